"""Puts the triggers of `foreign_sql` on the target's tables, keeps them there, and reads what they noted.

On a connection of its own beside the apply, until cancelled. A table that is busy is tried again a moment
later: nobody waits for this. A trigger that is gone or disabled is put back, and that it was is a note too.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import psycopg
from psycopg import AsyncConnection

from castling.config import DatabaseSettings
from castling.errors import CastlingError, TargetUnreachable
from castling.kinds.postgres.connect import connect
from castling.kinds.postgres.foreign_notes import read_open, read_parts, unwatch
from castling.kinds.postgres.foreign_sql import CREATE_NOTES, KEPT, TRIGGER, watch_table
from castling.kinds.postgres.foreign_writes import WATCH_REMOVED, PartWrites, foreign_warnings
from castling.observe import events

__all__ = ["ForeignWatch"]

#: a name as `catalog.table_name` writes its parts
_PART = """CASE WHEN {0} ~ '[."]' THEN '"' || pg_catalog.replace({0}, '"', '""') || '"' ELSE {0} END"""
#: what the group fills on the target: the tables of its seed, and the partitions of those. `had`: it was
#: watched before; `has`: it is now
_OURS = f"""
WITH RECURSIVE named AS (
    SELECT pg_catalog.unnest(tables) AS name FROM castling.seed WHERE stream = %(stream)s
), ours (oid) AS (
    SELECT c.oid FROM pg_catalog.pg_class c
      JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
      JOIN named ON named.name = {_PART.format("n.nspname")} || '.' || {_PART.format("c.relname")}
     WHERE c.relkind IN ('r', 'p')
    UNION
    SELECT i.inhrelid FROM ours
      JOIN pg_catalog.pg_class p ON p.oid = ours.oid AND p.relkind = 'p'
      JOIN pg_catalog.pg_inherits i ON i.inhparent = ours.oid
)
SELECT c.oid::int8, n.nspname, c.relname, COALESCE(w.stream = %(stream)s, false) AS had,
       EXISTS (SELECT FROM pg_catalog.pg_trigger t
                WHERE t.tgrelid = c.oid AND t.tgname = '{TRIGGER}' AND t.tgenabled = 'A'
                  AND t.tgfoid = 'castling.note_write'::pg_catalog.regproc
                  AND t.tgargs = pg_catalog.convert_to(%(stream)s, 'UTF8') || '\\x00'::bytea)
         AND COALESCE(w.stream = %(stream)s AND w.schema = n.nspname AND w.name = c.relname, false) AS has
  FROM ours JOIN pg_catalog.pg_class c ON c.oid = ours.oid AND c.relkind IN ('r', 'p')
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN castling.watched w ON w.relation = c.oid
 ORDER BY 1
"""
#: what others' subscriptions write fires no statement's trigger
_SUBSCRIBED = """
SELECT s.subname, w.schema || '.' || w.name
  FROM castling.watched w
  JOIN pg_catalog.pg_subscription_rel r ON r.srrelid = w.relation
  JOIN pg_catalog.pg_subscription s ON s.oid = r.srsubid AND s.subenabled
 WHERE w.stream = %s ORDER BY 1, 2
"""
_REMOVED = """
INSERT INTO castling.foreign_writes (stream, part, operation, relation, counted)
SELECT %s, schema || '.' || name, %s, relation, true FROM castling.watched WHERE relation = %s
"""
_WATCHED = """
INSERT INTO castling.watched AS w (relation, stream, schema, name) VALUES (%s, %s, %s, %s)
ON CONFLICT (relation) DO UPDATE SET stream = excluded.stream, schema = excluded.schema, name = excluded.name
"""
_HAS_EVENT_TRIGGERS = """
SELECT pg_catalog.count(*) = 2 FROM pg_catalog.pg_event_trigger
 WHERE evtname IN ('castling_watch_ddl', 'castling_watch_drop') AND evtenabled = 'A'
"""


class ForeignWatch:
    """Of one stream's target. `watching` False: what was put there is taken away, once."""

    #: seconds between two looks at the notes
    LOOK_S = 5.0
    #: seconds between two looks whether every table is watched
    COVER_S = 60.0
    #: tables given their trigger between two looks at the notes
    AT_ONCE = 200
    #: notes told as events, of one look
    TOLD_MAX = 20

    def __init__(self, group: str, database: DatabaseSettings, *, watching: bool) -> None:
        self._group = group
        self._database = database
        self._watching = watching
        self._log = events("target").bind(group=group)
        self._parts: list[PartWrites] | None = None
        self._told = 0
        self._at_ns: int | None = None
        self._tables: int | None = None
        self._missing = 0
        self._subscribed: list[tuple[str, str]] = []
        self._problem: str | None = None
        self._next_cover_s = 0.0

    async def run(self) -> None:
        while True:
            try:
                await self._look_on()
                return
            except (CastlingError, psycopg.OperationalError, TimeoutError):
                self._parts = self._at_ns = None
            except psycopg.Error as error:
                self._parts = self._at_ns = None
                self._problem = error.diag.message_primary or str(error)
            await asyncio.sleep(self.LOOK_S)

    async def _look_on(self) -> None:
        connection = await connect(
            self._database, application_name=f"castling watch {self._group}", error=TargetUnreachable
        )
        try:
            for setting in (
                "idle_session_timeout = 0",
                "statement_timeout = '60s'",
                "lock_timeout = '200ms'",
            ):
                await connection.execute(f"SET {setting}".encode())
            await connection.execute(b"SET search_path = pg_catalog; SET TimeZone = 'UTC'")
            await connection.execute(b"SET client_min_messages = error; SET synchronous_commit = off")
            if not self._watching:
                await unwatch(connection, self._group)
                return
            await connection.execute(CREATE_NOTES.encode())
            await connection.execute("DELETE FROM castling.watch_off WHERE stream = %s", (self._group,))
            while True:
                if time.monotonic() >= self._next_cover_s:
                    await self._cover(connection)
                await self._read(connection)
                self._problem = None
                await asyncio.sleep(self.LOOK_S if self._missing < self.AT_ONCE else 0)
        finally:
            await connection.close()

    # --- triggers -----------------------------------------------------------------------------

    async def _cover(self, connection: AsyncConnection[Any]) -> None:
        """Give tables without a trigger theirs; those that are locked, and the rest of many, next time."""
        cursor = await connection.execute(b"SELECT pg_catalog.to_regclass('castling.seed') IS NOT NULL")
        row = await cursor.fetchone()
        if row is None or not row[0]:
            self._tables = None  # nothing was copied yet
            return
        cursor = await connection.execute(_HAS_EVENT_TRIGGERS.encode())
        row = await cursor.fetchone()
        if row is None or not row[0]:
            await connection.execute(CREATE_NOTES.encode())
        cursor = await connection.execute(_OURS.encode(), {"stream": self._group})
        found = await cursor.fetchall()
        lacking = [(oid, schema, name, had) for oid, schema, name, had, has in found if not has]
        given = 0
        for oid, schema, name, had in lacking[: self.AT_ONCE]:
            given += await self._give(connection, int(oid), str(schema), str(name), had=bool(had))
        await connection.execute(
            "DELETE FROM castling.watched w WHERE stream = %s"
            " AND NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = w.relation)",
            (self._group,),
        )
        cursor = await connection.execute(_SUBSCRIBED.encode(), (self._group,))
        self._subscribed = [(str(name), str(part)) for name, part in await cursor.fetchall()]
        self._tables, self._missing = len(found), len(lacking) - given
        if not self._missing:
            self._next_cover_s = time.monotonic() + self.COVER_S

    async def _give(
        self, connection: AsyncConnection[Any], oid: int, schema: str, name: str, *, had: bool
    ) -> bool:
        try:
            async with connection.transaction():
                if had:
                    await connection.execute(_REMOVED.encode(), (self._group, WATCH_REMOVED, oid))
                await connection.execute(watch_table(schema, name, self._group).encode())
                await connection.execute(_WATCHED.encode(), (oid, self._group, schema, name))
        except (
            psycopg.errors.LockNotAvailable,
            psycopg.errors.DeadlockDetected,
            psycopg.errors.UndefinedTable,
        ):
            return False
        return True

    # --- notes --------------------------------------------------------------------------------

    async def _read(self, connection: AsyncConnection[Any]) -> None:
        await connection.execute(
            "DELETE FROM castling.foreign_writes WHERE number <="
            " (SELECT pg_catalog.max(number) FROM castling.foreign_writes) - %s",
            (KEPT,),
        )
        new = await read_open(connection, self._group, after=self._told, limit=self.TOLD_MAX)
        for each in reversed(new):
            self._log.warning(
                "target.written_by_others",
                part=each.part,
                what=each.what,
                who=each.who,
                at=each.at.isoformat(),
            )
        self._told = max((each.number for each in new), default=self._told)
        self._parts = await read_parts(connection, self._group)
        self._at_ns = time.time_ns()

    # --- what is said -------------------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        """`open`: transactions that nobody has acknowledged. None: not known."""
        parts = self._parts
        return {
            "mode": "watch" if self._watching else "ignore",
            "tables": self._tables,
            "unwatched": self._missing if self._tables is not None else None,
            "open": None if parts is None else sum(each.transactions for each in parts),
            "parts": None if parts is None else [each.as_json() for each in parts[: self.TOLD_MAX]],
            "at_ns": self._at_ns,
        }

    def warnings(self) -> list[dict[str, Any]]:
        found = foreign_warnings(self._parts or (), self._group)
        if self._problem is not None:
            found.append(
                {
                    "code": "foreign-writes-unknown",
                    "message": f"writes of others on the target can't be noticed: {self._problem}",
                    "hint": 'mend it on the target; or set foreign_writes = "ignore"',
                }
            )
        for name, part in self._subscribed[:5]:
            found.append(
                {
                    "code": "foreign-subscription",
                    "message": f"the subscription {name} on the target writes into {part} too; what it writes"
                    " is not noticed",
                    "hint": f"take the table out of it: ALTER SUBSCRIPTION {name} …, or exclude it here",
                }
            )
        return found
