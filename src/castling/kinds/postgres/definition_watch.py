"""Looks at the definitions of one database at intervals, and reports them short enough to compare.

Source and apply end each look at their own side; who sees both reports compares them. Of the few things that
stand outside of the schema each is reported by its name, of the schema a digest for each kind of thing.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Iterable
from typing import Any

import psycopg

from castling.config import DatabaseSettings, GroupSettings
from castling.errors import CastlingError
from castling.kinds.postgres.connect import connect
from castling.kinds.postgres.definitions import Digest, Thing
from castling.kinds.postgres.outside_read import read_outside
from castling.kinds.postgres.schema_read import read_schema
from castling.observe import events

__all__ = ["DefinitionWatch", "by_name"]

#: a look is followed by a pause of at least this many times its own length
_IDLE_SHARE = 20
#: of more things than this of one kind only a digest is reported
_NAMED_MAX = 500


def by_name(things: Iterable[Thing]) -> dict[str, dict[str, str] | str]:
    """For each kind a short digest of each thing by its name; of too many, of all of them. Pure."""
    kinds: dict[str, dict[str, str]] = {}
    for thing in things:
        short = hashlib.sha256(thing.text.encode()).hexdigest()[:12]
        kinds.setdefault(thing.kind, {})[thing.name] = short
    return {kind: named if len(named) <= _NAMED_MAX else _short(named) for kind, named in kinds.items()}


def _short(named: dict[str, str]) -> str:
    return hashlib.sha256(repr(sorted(named.items())).encode()).hexdigest()[:12]


class DefinitionWatch:
    """Looks on a connection of its own until cancelled; a server that is away is tried again."""

    def __init__(
        self, group: str, settings: GroupSettings, database: DatabaseSettings, *, is_target: bool = False
    ) -> None:
        self._is_target = is_target
        self._group = group
        self._settings = settings
        self._database = database
        self._log = events("definitions").bind(group=group)
        self._found: dict[str, Any] | None = None

    async def run(self) -> None:
        while True:
            began_s = time.monotonic()
            try:
                await self._look()
            except (CastlingError, psycopg.Error, TimeoutError) as error:
                self._found = None
                self._log.info("definitions.look_failed", error=str(error))
            pause_s = _IDLE_SHARE * (time.monotonic() - began_s)
            await asyncio.sleep(max(self._settings.compare_every, pause_s))

    async def _look(self) -> None:
        at_ns = time.time_ns()
        connection = await connect(self._database, application_name=f"castling compare {self._group}")
        try:
            await connection.execute(b"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            await connection.execute(b"SET LOCAL statement_timeout = '120s'")
            outside = await read_outside(connection, target_database="")
            # a table with another name is called so inside of definitions too
            strict, loose = Digest(loose=bool(self._settings.rename)), Digest(loose=True)
            async for thing in read_schema(connection, self._settings, is_target=self._is_target):
                strict.add(thing)
                loose.add(thing)
            await connection.execute(b"COMMIT")
            version = connection.info.server_version // 10000
        finally:
            await connection.close()
        self._found = {
            "at_ns": at_ns,
            "version": version,
            "outside": by_name(outside),
            "schema": strict.result(),
            "schema_loosely": loose.result(),
        }

    def report(self) -> dict[str, Any] | None:
        """None: not looked at yet, or it could not be."""
        return self._found
