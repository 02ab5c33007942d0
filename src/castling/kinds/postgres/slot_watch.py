"""Looks from time to time at what the stream's slot keeps of the source's log, and who has it kept; and gives
the slot up when that is more than the group allows."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import psycopg
from psycopg import AsyncConnection

from castling.config import DatabaseSettings, GroupSettings
from castling.errors import CastlingError, LogGivenUp
from castling.kinds.postgres import wal_disk
from castling.kinds.postgres.connect import connect
from castling.kinds.postgres.giving_up import finish, give_up, given_up
from castling.kinds.postgres.pins import Growth, OpenTransaction, SlotState, limit_warnings, pin_warnings
from castling.observe import events

__all__ = ["SlotWatch"]

_SLOT = """
SELECT (pg_catalog.pg_current_wal_flush_lsn() - s.restart_lsn)::int8, s.wal_status, s.safe_wal_size::int8,
       (pg_catalog.pg_current_wal_flush_lsn() - s.confirmed_flush_lsn)::int8
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
#: not everybody may see it
_FOLDER = (
    "SELECT pg_catalog.current_setting('data_directory')"
    " WHERE pg_catalog.pg_has_role('pg_read_all_settings', 'USAGE')"
)


class SlotWatch:
    """On a connection of its own until cancelled, whether a stream is open or not; a source that is away is
    tried again. Raises LogGivenUp, once."""

    LOOK_S = 5.0

    def __init__(self, group: str, slot: str, settings: GroupSettings, database: DatabaseSettings) -> None:
        self._application = f"castling log {group}"
        self._slot = slot
        self._alarm = settings.wal_alarm
        self._limit = settings.wal_limit
        self._database = database
        self._growth = Growth()
        self._found: SlotState | None = None
        self._disk_free: int | None = None
        self._at_ns: int | None = None
        self._has_told = False
        self._log = events("capture").bind(group=group, slot=slot)

    async def run(self) -> None:
        while True:
            try:
                await self._look_on()
            except LogGivenUp:
                self._forget()
                raise
            except (CastlingError, psycopg.Error, TimeoutError):
                self._forget()
            await asyncio.sleep(self.LOOK_S)

    def _forget(self) -> None:
        self._found = self._disk_free = self._at_ns = None
        self._growth.forget()

    async def _look_on(self) -> None:
        connection = await connect(self._database, application_name=self._application)
        try:
            await connection.execute("SET idle_session_timeout = 0")
            await connection.execute("SET statement_timeout = '30s'")
            # giving up must not wait for the very backup that is given up
            await connection.execute("SET synchronous_commit = local")
            row = await (await connection.execute(_FOLDER)).fetchone()
            folder = None if row is None else str(row[0])
            await self._finish_giving_up(connection)
            while True:
                await self._look(connection, folder)
                await asyncio.sleep(self.LOOK_S)
        finally:
            await connection.close()

    async def _finish_giving_up(self, connection: AsyncConnection[Any]) -> None:
        """An earlier process has given the slot up, or died while it did."""
        if self._has_told:
            return
        kept = await finish(connection, self._slot)
        if kept is not None:
            self._has_told = True
            raise given_up(self._slot, kept, earlier=True)

    async def _look(self, connection: AsyncConnection[Any], folder: str | None) -> None:
        cursor = await connection.execute(_SLOT, (self._slot,))
        row = await cursor.fetchone()
        if row is None:
            self._forget()  # the stream itself tells of a slot that is gone
            return
        cursor = await connection.execute(_OPEN)
        found = tuple(OpenTransaction(*each) for each in await cursor.fetchall())
        self._found = SlotState(
            retained=max(0, row[0]), status=str(row[1]), left=row[2], open=found, waiting=max(0, row[3])
        )
        self._disk_free = wal_disk.free_bytes(self._database, folder)
        self._at_ns = time.time_ns()
        self._growth.add(time.monotonic(), self._found.retained)
        if self._limit is not None and self._found.retained > self._limit:
            await self._give_up(connection, self._found.retained)

    async def _give_up(self, connection: AsyncConnection[Any], kept: int) -> None:
        """Loudly, and never to be taken for an accident."""
        self._log.error("capture.slot_given_up", retained_bytes=kept, wal_limit=self._limit)
        await give_up(connection, self._slot, kept)
        self._has_told = True
        raise given_up(self._slot, kept)

    # --- figures ------------------------------------------------------------------------------

    @property
    def waiting_bytes(self) -> int | None:
        """What is kept because it was not acknowledged; None: not known."""
        return None if self._found is None else self._found.waiting

    def _limit_in_s(self) -> float | None:
        if self._limit is None or self._found is None:
            return None
        return self._growth.lasts_s(max(0, self._limit - self._found.retained))

    def report(self) -> dict[str, Any]:
        """All None: not looked at yet, or it could not be."""
        found = self._found
        oldest = max((each.age_s for each in found.open), default=None) if found else None
        return {
            "retained_bytes": found.retained if found else None,
            "waiting_bytes": self.waiting_bytes,
            "status": found.status if found else None,
            "left_bytes": found.left if found else None,
            "growth_bytes_per_s": self._growth.bytes_per_s,
            "lasts_s": self._growth.lasts_s(found.left) if found else None,
            "limit_bytes": self._limit,
            "limit_in_s": self._limit_in_s(),
            "disk_free_bytes": self._disk_free,
            "disk_full_in_s": self._growth.lasts_s(self._disk_free),
            "oldest_transaction_s": oldest,
            "at_ns": self._at_ns,
        }

    def warnings(self) -> list[dict[str, Any]]:
        if self._found is None:
            return []
        lasts_s = self._growth.lasts_s(self._found.left)
        return [
            *pin_warnings(self._found, alarm=self._alarm, lasts_s=lasts_s),
            *limit_warnings(
                self._found,
                limit=self._limit,
                limit_in_s=self._limit_in_s(),
                disk_full_in_s=self._growth.lasts_s(self._disk_free),
            ),
        ]
