"""Looks from time to time at what the stream's slot keeps of the source's log, and who has it kept."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import psycopg
from psycopg import AsyncConnection

from castling.config import DatabaseSettings
from castling.errors import CastlingError
from castling.kinds.postgres.connect import connect
from castling.kinds.postgres.pins import Growth, OpenTransaction, SlotState, pin_warnings

__all__ = ["SlotWatch"]

_SLOT = """
SELECT (pg_catalog.pg_current_wal_flush_lsn() - s.restart_lsn)::int8, s.wal_status, s.safe_wal_size::int8
  FROM pg_catalog.pg_replication_slots s
 WHERE s.slot_name = %s AND s.restart_lsn IS NOT NULL
"""
#: of the whole server: decoding waits for those of other databases too. No query text: it may hold secrets
_OPEN = """
SELECT EXTRACT(epoch FROM pg_catalog.clock_timestamp() - a.xact_start)::float8,
       COALESCE(a.usename, ''), a.pid, COALESCE(a.application_name, ''), COALESCE(a.state, ''), NULL
  FROM pg_catalog.pg_stat_activity a
 WHERE a.backend_xid IS NOT NULL AND a.xact_start IS NOT NULL
UNION ALL
SELECT EXTRACT(epoch FROM pg_catalog.clock_timestamp() - p.prepared)::float8, p.owner, NULL, '', '', p.gid
  FROM pg_catalog.pg_prepared_xacts p
 ORDER BY 1 DESC LIMIT 20
"""


class SlotWatch:
    """On a connection of its own until cancelled; a source that is away is tried again."""

    LOOK_S = 5.0

    def __init__(self, group: str, slot: str, alarm: int, database: DatabaseSettings) -> None:
        self._application = f"castling log {group}"
        self._slot = slot
        self._alarm = alarm
        self._database = database
        self._growth = Growth()
        self._found: SlotState | None = None
        self._at_ns: int | None = None

    async def run(self) -> None:
        while True:
            try:
                await self._look_on()
            except (CastlingError, psycopg.Error, TimeoutError):
                self._found, self._at_ns = None, None
                self._growth.forget()
            await asyncio.sleep(self.LOOK_S)

    async def _look_on(self) -> None:
        connection = await connect(self._database, application_name=self._application)
        try:
            await connection.execute("SET idle_session_timeout = 0")
            await connection.execute("SET statement_timeout = '30s'")
            while True:
                await self._look(connection)
                await asyncio.sleep(self.LOOK_S)
        finally:
            await connection.close()

    async def _look(self, connection: AsyncConnection[Any]) -> None:
        cursor = await connection.execute(_SLOT, (self._slot,))
        row = await cursor.fetchone()
        if row is None:
            self._found, self._at_ns = None, None  # the stream itself tells of a slot that is gone
            return
        cursor = await connection.execute(_OPEN)
        found = tuple(OpenTransaction(*each) for each in await cursor.fetchall())
        self._found = SlotState(retained=max(0, row[0]), status=str(row[1]), left=row[2], open=found)
        self._at_ns = time.time_ns()
        self._growth.add(time.monotonic(), self._found.retained)

    def report(self) -> dict[str, Any]:
        """All None: not looked at yet, or it could not be."""
        found = self._found
        oldest = max((each.age_s for each in found.open), default=None) if found else None
        return {
            "retained_bytes": found.retained if found else None,
            "status": found.status if found else None,
            "left_bytes": found.left if found else None,
            "growth_bytes_per_s": self._growth.bytes_per_s,
            "lasts_s": self._growth.lasts_s(found.left) if found else None,
            "oldest_transaction_s": oldest,
            "at_ns": self._at_ns,
        }

    def warnings(self) -> list[dict[str, Any]]:
        if self._found is None:
            return []
        lasts_s = self._growth.lasts_s(self._found.left)
        return pin_warnings(self._found, alarm=self._alarm, lasts_s=lasts_s)
