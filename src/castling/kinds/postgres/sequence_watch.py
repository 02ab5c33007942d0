"""The source's side of sequences: looks at them from time to time and says in the source's log what moved.

A look is one question for all sequences. It takes a sequence's lock for a moment; one that a transaction
is just restarting would keep it waiting, so such sequences are passed over until that has ended. A look
that takes long is made rarer: it never takes more than about a twentieth of the time.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from typing import Any

import psycopg
from psycopg import AsyncConnection

from castling.config import DatabaseSettings, GroupSettings
from castling.errors import CastlingError
from castling.kinds.postgres.catalog import are_chosen, table_name
from castling.kinds.postgres.connect import connect
from castling.kinds.postgres.naming import Naming
from castling.kinds.postgres.sequences import (
    SEQUENCES_MAX,
    SEQUENCES_PREFIX,
    SequenceMessage,
    Told,
    encode_sequences,
    moved,
)
from castling.kinds.postgres.statements import quoted
from castling.observe import events

__all__ = ["SequenceWatch", "SourceSequence", "read_sequences", "read_uncalled"]

#: a look is followed by a pause of at least this many times its own length
_IDLE_SHARE = 20
#: seconds between two looks that also read the sequences from which nothing was taken yet
_FULL_S = 60.0
#: sequences read with one statement where each has to be named
_NAMED = 200
_LOCK_TIMEOUT = "250ms"
_FIRST_WITH_DATA = 180000

_LISTED = """
SELECT c.oid AS oid, n.nspname AS schema, c.relname AS name, c.relfilenode::int8 AS file,
       s.seqincrement AS increment, s.seqmin AS min, s.seqmax AS max, s.seqcycle AS cycle,
       s.seqcache AS cache, pg_catalog.has_sequence_privilege(c.oid, 'SELECT') AS readable,
       (SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(tn.nspname, t.relname))
          FROM pg_catalog.pg_depend d
          CROSS JOIN LATERAL (SELECT d.refobjid AS oid UNION
                              SELECT relid FROM pg_catalog.pg_partition_ancestors(d.refobjid)) o
          JOIN pg_catalog.pg_class t ON t.oid = o.oid
          JOIN pg_catalog.pg_namespace tn ON tn.oid = t.relnamespace
         WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid
           AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.deptype IN ('a', 'i')) AS owners,
       (SELECT pg_catalog.min(t.relname) FROM pg_catalog.pg_depend d
          JOIN pg_catalog.pg_class t ON t.oid = d.refobjid
         WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid
           AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.deptype IN ('a', 'i')) AS owner
  FROM pg_catalog.pg_sequence s
  JOIN pg_catalog.pg_class c ON c.oid = s.seqrelid
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relpersistence <> 't' AND n.nspname NOT IN ('castling', 'castling_ddl')
   AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                    WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid
                      AND d.deptype = 'e')
"""

#: held by ALTER SEQUENCE, TRUNCATE RESTART IDENTITY and DROP until their transaction ends
_LOCKED = """
SELECT relation FROM pg_catalog.pg_locks
 WHERE locktype = 'relation' AND granted
   AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
   AND mode IN ('ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
"""


@dataclass(frozen=True, slots=True)
class SourceSequence:
    """One that the group carries; an owned one lives in its table's schema. `last` None: nothing was
    taken from it yet, or it was not read."""

    oid: int
    schema: str
    name: str
    file: int
    increment: int
    min: int
    max: int
    cycle: bool
    cache: int
    readable: bool
    last: int | None = None
    called: bool = True
    #: schema and name on the target
    there: tuple[str, str] = ("", "")

    def __str__(self) -> str:
        return table_name(self.schema, self.name)

    @property
    def sql(self) -> str:
        return f"{quoted(self.schema)}.{quoted(self.name)}"

    def told(self, last: int, called: bool) -> Told:
        return Told(
            schema=self.there[0],
            name=self.there[1],
            last=last,
            called=called,
            increment=self.increment,
            min=self.min,
            max=self.max,
            cycle=self.cycle,
            file=self.file,
            margin=0,
        )


async def read_sequences(
    connection: AsyncConnection[Any], settings: GroupSettings, *, values: bool = True
) -> list[SourceSequence]:
    """The group's sequences: each as its table is chosen, or, without one, by its own name.

    With their values; those that a transaction holds locked are left out then.
    """
    if not values:
        return await _listed(connection, settings, "SELECT *, NULL, true FROM listed", ())
    by_data = connection.info.server_version >= _FIRST_WITH_DATA
    ask = _VALUES_BY_DATA if by_data else _VALUES
    try:
        return await _listed(connection, settings, ask, ([],))
    except psycopg.errors.LockNotAvailable:
        cursor = await connection.execute(_LOCKED.encode())
        locked = [row[0] for row in await cursor.fetchall()]
    return await _listed(connection, settings, ask, (locked,))


_VALUES_BY_DATA = """
SELECT listed.*, d.last_value, d.is_called FROM listed
  LEFT JOIN LATERAL pg_catalog.pg_get_sequence_data(listed.oid::pg_catalog.regclass) d ON listed.readable
 WHERE listed.oid <> ALL(%s::oid[])
"""
_VALUES = """
SELECT listed.*, CASE WHEN listed.readable THEN pg_catalog.pg_sequence_last_value(listed.oid) END, true
  FROM listed WHERE listed.oid <> ALL(%s::oid[])
"""


async def _listed(
    connection: AsyncConnection[Any], settings: GroupSettings, ask: str, parameters: tuple[Any, ...]
) -> list[SourceSequence]:
    cursor = await connection.execute(f"WITH listed AS MATERIALIZED ({_LISTED}) {ask}".encode(), parameters)
    found = []
    naming = Naming(settings.rename)
    for *definition, owners, owner, last, called in await cursor.fetchall():
        schema, name = definition[1], definition[2]
        there = naming.sequence(schema, name, None if owner is None else (schema, owner))
        fields: list[Any] = [*definition, last, called, there]
        one = SourceSequence(*fields)
        if are_chosen([table_name(*owner) for owner in owners or ()] or [str(one)], settings):
            found.append(one)
    return found


async def read_uncalled(
    connection: AsyncConnection[Any], sequences: list[SourceSequence]
) -> list[SourceSequence]:
    """Those from which nothing was taken yet, with where they begin; without any that is gone or locked."""
    found: list[SourceSequence] = []
    for at in range(0, len(sequences), _NAMED):
        part = sequences[at : at + _NAMED]
        ask = " UNION ALL ".join(
            f"SELECT {number}, last_value, is_called FROM {one.sql}" for number, one in enumerate(part)
        )
        try:
            cursor = await connection.execute(ask.encode())
        except (psycopg.errors.UndefinedTable, psycopg.errors.LockNotAvailable):
            continue  # they are looked at again
        found += [replace(part[row[0]], last=row[1], called=row[2]) for row in await cursor.fetchall()]
    return found


class SequenceWatch:
    """Looks and tells on a connection of its own until cancelled; a source that is away is tried again."""

    def __init__(self, group: str, settings: GroupSettings, database: DatabaseSettings) -> None:
        self._group = group
        self._settings = settings
        self._database = database
        self._log = events("sequences").bind(group=group)
        self._told: dict[int, Told] = {}
        self._full_s = 0.0
        self._carried: int | None = None
        self._unreadable: list[str] = []
        self._looked_ns: int | None = None
        self._told_ns: int | None = None
        self._look_s: float | None = None

    async def run(self) -> None:
        # what was said in a session before is not known to have arrived: everything is said again, once
        self._told, self._full_s, self._looked_ns, self._told_ns = {}, 0.0, None, None
        while True:
            try:
                await self._watch()
            except (CastlingError, psycopg.Error, TimeoutError) as error:
                self._log.info("sequences.look_failed", error=str(error))
            await asyncio.sleep(self._settings.heartbeat)

    async def _watch(self) -> None:
        connection = await connect(self._database, application_name=f"castling sequences {self._group}")
        try:
            for statement in (
                "SET synchronous_commit = local",  # what is told must not wait for whom it is told to
                "SET idle_session_timeout = 0",
                "SET statement_timeout = '60s'",
                f"SET lock_timeout = '{_LOCK_TIMEOUT}'",
            ):
                await connection.execute(statement.encode())
            while True:
                began_s = time.monotonic()
                await self._look(connection)
                self._look_s = time.monotonic() - began_s
                await asyncio.sleep(max(self._settings.heartbeat, _IDLE_SHARE * self._look_s))
        finally:
            await connection.close()

    async def _look(self, connection: AsyncConnection[Any]) -> None:
        """Say what moved since the last look."""
        at_ns = time.time_ns() // 1000 * 1000  # the target keeps microseconds
        found = await read_sequences(connection, self._settings)
        self._carried = len(found)
        self._unreadable = [str(one) for one in found if not one.readable]
        known = [one for one in found if one.last is not None]
        uncalled = [one for one in found if one.last is None and one.readable]
        known += await read_uncalled(connection, self._worth_reading(uncalled))
        news = []
        for one in known:
            assert one.last is not None
            before = self._told.get(one.oid)
            told = one.told(one.last, one.called)
            margin = self._settings.sequence_margin
            change = moved(told, before, margin=margin, cache=one.cache)
            if change is not None:
                news.append((one.oid, change))
        gone = await self._gone(connection, {one.oid for one in found}, dict(news))
        begins = self._looked_ns is None
        for at in range(0, len(news) or (1 if gone or begins else 0), SEQUENCES_MAX):
            message = SequenceMessage(
                group=self._group,
                at_ns=at_ns,
                sequences=[told for _, told in news[at : at + SEQUENCES_MAX]],
                gone=gone if at == 0 else [],
                begins=begins and at == 0,
            )
            await self._tell(connection, message)
            self._told.update(news[at : at + SEQUENCES_MAX])
        self._looked_ns = at_ns

    async def _gone(
        self, connection: AsyncConnection[Any], found: set[int], news: dict[int, Told]
    ) -> list[tuple[str, str]]:
        """What was told of and is there no longer, or by another name. One that is locked is still there."""
        renamed = [
            self._told[oid].key
            for oid, told in news.items()
            if oid in self._told and self._told[oid].key != told.key
        ]
        missing = self._told.keys() - found
        if not missing:
            return renamed
        there = {one.oid for one in await read_sequences(connection, self._settings, values=False)}
        return renamed + [self._told.pop(oid).key for oid in missing - there]

    def _worth_reading(self, uncalled: list[SourceSequence]) -> list[SourceSequence]:
        """Each has to be read by its name: so only what is new or restarted is, and all from time to time."""
        now_s = time.monotonic()
        if now_s - self._full_s >= _FULL_S or not self._full_s:
            self._full_s = now_s
            return uncalled
        return [
            one
            for one in uncalled
            if (before := self._told.get(one.oid)) is None or before.called or before.file != one.file
        ]

    async def _tell(self, connection: AsyncConnection[Any], message: SequenceMessage) -> None:
        await connection.execute(
            "SELECT pg_catalog.pg_logical_emit_message(true, %s, %s::pg_catalog.text)",
            (SEQUENCES_PREFIX, encode_sequences(message).decode()),
        )
        self._told_ns = message.at_ns

    def warnings(self) -> list[dict[str, Any]]:
        if not self._unreadable:
            return []
        shown = ", ".join(self._unreadable[:5]) + (", …" if len(self._unreadable) > 5 else "")
        return [
            {
                "code": "sequences-unreadable",
                "message": f"the user may not read {len(self._unreadable)} sequences of the source: {shown}",
                "hint": "GRANT SELECT ON SEQUENCE … to it; until then the target's stay where they are",
            }
        ]

    def report(self) -> dict[str, Any]:
        """`looked_ns`: when the source was asked; `told_ns`: when something had moved."""
        return {
            "carried": self._carried,
            "looked_ns": self._looked_ns,
            "told_ns": self._told_ns,
            "look_s": None if self._look_s is None else round(self._look_s, 4),
        }
