"""The source's side of large objects: digests all of them at intervals and tells of those that changed.

A look reads every page of pg_largeobject once, in the order of its index, and never takes more than about a
twentieth of the time. What was told is remembered with the place in the log where it was told; what the far
journal does not hold when a session begins is told again. A process that begins anew tells everything.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import psycopg
from psycopg import AsyncConnection

from castling.config import DatabaseSettings, GroupSettings
from castling.errors import CastlingError
from castling.kinds.postgres.connect import connect
from castling.kinds.postgres.large_objects import (
    CONTENT,
    GRANTS,
    LARGE_OBJECTS_PREFIX,
    All,
    Grant,
    Message,
    Piece,
    State,
    encode_large,
    runs,
)
from castling.observe import events

__all__ = ["LargeObjectWatch"]

#: a look is followed by a pause of at least this many times its own length
_IDLE_SHARE = 20
#: objects listed in one message, at most
_LISTED = 10_000
#: pages read at once: 2 MiB of them
_PAGES = 1024

#: `state`: of the content and all that stands beside it
_OBJECTS = """
WITH pages AS ({pages})
SELECT m.oid::int8, pg_catalog.sha256(COALESCE(p.content, '') || pg_catalog.convert_to(
           pg_catalog.concat_ws('|', o.rolname, m.lomacl::text,
                                pg_catalog.obj_description(m.oid, 'pg_largeobject')), 'UTF8')) AS state,
       COALESCE(p.content, '') AS content, o.rolname,
       pg_catalog.obj_description(m.oid, 'pg_largeobject')
  FROM pg_catalog.pg_largeobject_metadata m
  JOIN pg_catalog.pg_roles o ON o.oid = m.lomowner
  LEFT JOIN pages p ON p.loid = m.oid
  {where}
 ORDER BY m.oid
"""


class LargeObjectWatch:
    """Looks and tells on a connection of its own until cancelled; a source that is away is tried again."""

    def __init__(self, group: str, settings: GroupSettings, database: DatabaseSettings) -> None:
        self._group = group
        self._settings = settings
        self._database = database
        self._log = events("large_objects").bind(group=group)
        #: by number: what it was, and behind which place of the log it was told
        self._told: dict[int, tuple[bytes, int]] = {}
        self._list_all = True
        self._carried: int | None = None
        self._looked_ns: int | None = None
        self._told_ns: int | None = None
        self._look_s: float | None = None
        self._failure: str | None = None

    def forget_after(self, lsn: int) -> None:
        """The far journal holds what was told up to there; the rest has to be told again."""
        self._told = {oid: told for oid, told in self._told.items() if told[1] <= lsn}

    async def run(self) -> None:
        if self._settings.large_objects == "ignore":
            return
        self._list_all, self._looked_ns, self._told_ns = True, None, None
        while True:
            try:
                await self._watch()
            except (CastlingError, psycopg.Error, TimeoutError) as error:
                self._failure = str(error)
                self._log.info("large_objects.look_failed", error=str(error))
            await asyncio.sleep(max(1.0, self._settings.heartbeat))

    async def look_once(self) -> None:
        """Tell of everything there is, once. Raises what reaching the source raises."""
        await self._watch(again=False)

    async def _watch(self, *, again: bool = True) -> None:
        connection = await connect(
            self._database, application_name=f"castling large objects {self._group}", autocommit=True
        )
        try:
            for statement in (
                "SET synchronous_commit = local",  # what is told must not wait for whom it is told to
                "SET idle_session_timeout = 0",
                "SET statement_timeout = 0",
                "SET default_transaction_isolation = 'repeatable read'",
                "SET enable_sort = off",  # pages in the order of their index, not all of them on the disk
                "SET enable_hashagg = off",
            ):
                await connection.execute(statement.encode())
            while True:
                began_s = time.monotonic()
                await self._look(connection)
                self._look_s, self._failure = time.monotonic() - began_s, None
                if not again:
                    return
                await asyncio.sleep(max(self._settings.compare_every, _IDLE_SHARE * self._look_s))
        finally:
            await connection.close()

    async def _look(self, connection: AsyncConnection[Any]) -> None:
        at_ns = time.time_ns() // 1000 * 1000  # the target keeps microseconds
        there: dict[int, bytes] = {}
        async with connection.transaction(), connection.cursor(name="castling_large_objects") as cursor:
            await cursor.execute(_OBJECTS.format(pages=CONTENT.format(where=""), where="").encode())
            async for oid, state, *_ in cursor:
                there[oid] = state
        changed = [oid for oid, state in there.items() if self._told.get(oid, (b"", 0))[0] != state]
        gone = self._told.keys() - there.keys()
        if gone or self._list_all:
            await self._tell_all(connection, sorted(there), at_ns)
            for oid in gone:
                del self._told[oid]
        for oid in changed:
            await self._tell_one(connection, oid, at_ns)
        self._carried, self._looked_ns = len(there), at_ns

    async def _tell_all(self, connection: AsyncConnection[Any], oids: list[int], at_ns: int) -> None:
        """What there is; so the target removes what is not. In one transaction."""
        ends = [*oids[_LISTED - 1 : -1 : _LISTED], (1 << 32) - 1]
        first = 0
        messages: list[Message] = []
        for number, last in enumerate(ends):
            part = oids[number * _LISTED : (number + 1) * _LISTED]
            messages.append(All(group=self._group, at_ns=at_ns, first=first, last=last, oids=part))
            first = last + 1
        async with connection.transaction():
            for message in messages:
                await self._emit(connection, message)
        self._list_all, self._told_ns = False, at_ns

    async def _tell_one(self, connection: AsyncConnection[Any], oid: int, at_ns: int) -> None:
        """One object as it is now, in one transaction; nothing when it is gone."""
        async with connection.transaction():
            cursor = await connection.execute(
                _OBJECTS.format(
                    pages=CONTENT.format(where="WHERE loid = %(oid)s"), where="WHERE m.oid = %(oid)s"
                ).encode(),
                {"oid": oid},
            )
            row = await cursor.fetchone()
            if row is None:
                return
            _, state, content, owner, comment = row
            grants = await self._grants(connection, oid)
            message = State(
                group=self._group,
                at_ns=at_ns,
                oid=oid,
                content=content,
                owner=owner,
                grants=grants,
                comment=comment,
            )
            lsn = await self._emit(connection, message)
            async for offset, data in self._pieces(connection, oid):
                piece = Piece(group=self._group, oid=oid, offset=offset, data=data)
                lsn = await self._emit(connection, piece)
        self._told[oid] = (state, lsn)
        self._told_ns = at_ns

    async def _pieces(self, connection: AsyncConnection[Any], oid: int) -> AsyncIterator[tuple[int, bytes]]:
        cursor = await connection.execute(
            "SELECT pg_catalog.current_setting('block_size')::int / 4"
        )  # the server's LOBLKSIZE
        row = await cursor.fetchone()
        page_bytes = int(row[0]) if row else 2048
        after = -1
        while True:
            cursor = await connection.execute(
                "SELECT pageno, data FROM pg_catalog.pg_largeobject"
                " WHERE loid = %s AND pageno > %s ORDER BY pageno LIMIT %s",
                (oid, after, _PAGES),
            )
            pages: list[tuple[int, bytes]] = [(row[0], bytes(row[1])) for row in await cursor.fetchall()]
            if not pages:
                return
            after = pages[-1][0]
            for run in runs(pages, page_bytes=page_bytes):
                yield run

    async def _grants(self, connection: AsyncConnection[Any], oid: int) -> list[Grant]:
        cursor = await connection.execute(GRANTS.encode(), (oid,))
        return [Grant(*row) for row in await cursor.fetchall()]

    async def _emit(self, connection: AsyncConnection[Any], message: Message) -> int:
        """Where in the log it stands."""
        cursor = await connection.execute(
            "SELECT (pg_catalog.pg_logical_emit_message(true, %s, %b::pg_catalog.bytea)"
            " - '0/0'::pg_catalog.pg_lsn)::int8",
            (LARGE_OBJECTS_PREFIX, encode_large(message)),
        )
        row = await cursor.fetchone()
        assert row is not None
        return int(row[0])

    def warnings(self) -> list[dict[str, Any]]:
        if self._failure is None:
            return []
        return [
            {
                "code": "large-objects-not-compared",
                "message": f"the source's large objects can't be looked at: {self._failure}",
                "hint": "the user needs SELECT on pg_largeobject (pg_read_all_data gives it)",
            }
        ]

    def report(self) -> dict[str, Any]:
        """`looked_ns`: when the source was asked; `told_ns`: when something had changed."""
        return {
            "carried": self._carried,
            "looked_ns": self._looked_ns,
            "told_ns": self._told_ns,
            "look_s": None if self._look_s is None else round(self._look_s, 3),
        }
