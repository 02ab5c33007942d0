"""A small logical message committed on the source every second.

It proves that the source lives and that what it commits arrives, moves the slot of an
idle database forward, and gives the lag figures a commit whose time is known even while
nobody else writes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import psycopg
from psycopg import AsyncConnection

from castling.config import DatabaseSettings
from castling.errors import CastlingError
from castling.kinds.postgres.connect import connect

__all__ = ["PREFIX", "Heartbeat"]

PREFIX = "castling.heartbeat"


class Heartbeat:
    """Beats on a connection of its own until cancelled; a source that is away is tried again."""

    #: seconds that one beat may take before the source is taken for dead
    BEAT_TIMEOUT_S = 10.0

    def __init__(self, settings: DatabaseSettings, *, group: str, interval_s: float) -> None:
        self._settings = settings
        self._application = f"castling heartbeat {group}"
        self._interval_s = interval_s
        self._wanted = asyncio.Event()
        #: wall clock of the last beat that was committed on the source; None: none yet
        self.sent_ns: int | None = None
        #: how far the source's log is written, as of that beat
        self.flush_lsn: int | None = None
        self.is_up = False

    def nudge(self) -> None:
        """Beat now: somebody waits for the source's log to move past what is not ours."""
        self._wanted.set()

    async def run(self) -> None:
        try:
            while True:
                try:
                    await self._beat()
                except (CastlingError, psycopg.Error, TimeoutError):
                    self.is_up = False
                await asyncio.sleep(self._interval_s)
        finally:
            self.is_up = False  # nobody asks any more

    async def _beat(self) -> None:
        connection = await connect(self._settings, application_name=self._application)
        try:
            # a heartbeat must not wait for the synchronous standby whose absence it is to tell of
            await connection.execute("SET synchronous_commit = local")
            await connection.execute("SET idle_session_timeout = 0")
            while True:
                async with asyncio.timeout(self.BEAT_TIMEOUT_S):
                    await self._emit(connection)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._interval_s):
                        await self._wanted.wait()
                self._wanted.clear()
        finally:
            await connection.close()

    async def _emit(self, connection: AsyncConnection[Any]) -> None:
        now_ns = time.time_ns()
        cursor = await connection.execute(
            "SELECT pg_catalog.pg_logical_emit_message(true, %s, %s::text), "
            "(pg_catalog.pg_current_wal_flush_lsn() - '0/0'::pg_catalog.pg_lsn)::int8",
            (PREFIX, str(now_ns)),
        )
        row = await cursor.fetchone()
        self.sent_ns = now_ns
        self.flush_lsn = int(row[1]) if row else None
        self.is_up = True
