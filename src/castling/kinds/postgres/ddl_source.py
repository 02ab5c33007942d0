"""Installs on the source what tells of schema changes, and takes it away: see `ddl_source.sql`.

It is installed when a stream begins, and looked after when its capture opens; `castling check` says so
beforehand. The database has one installation, however many streams there are; each has a row with its
patterns. The last stream that goes takes it along.

What the triggers did to a stream's publication is noted in the same transaction (`castling_ddl.member`). So a
publication that is not as noted was changed by somebody else.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

from psycopg import AsyncConnection

from castling.config import GroupSettings

__all__ = [
    "begin_anew",
    "catch_up",
    "ddl_key",
    "expression",
    "install",
    "installation",
    "is_up",
    "read_noted",
    "uninstall",
]

_SCRIPT = resources.files("castling.kinds.postgres").joinpath("ddl_source.sql")
#: one installer at a time: they would meet in the same catalog rows
_ALONE = "SELECT pg_catalog.pg_advisory_xact_lock(4850197713)"
_TRIGGERS = ("castling_ddl_end", "castling_ddl_drop", "castling_ddl_rewrite")
#: how all tables stand now, so that the first change of one is seen as one
_STAND = """
INSERT INTO castling_ddl.table AS t (relation, schema, name, attributes)
SELECT c.oid, n.nspname, c.relname, c.relnatts
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p')
   AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'castling', 'castling_ddl')
   AND n.nspname NOT LIKE 'pg\\_toast%' AND c.relpersistence <> 't'
    ON CONFLICT (relation) DO UPDATE
   SET schema = excluded.schema, name = excluded.name, attributes = excluded.attributes;
INSERT INTO castling_ddl.member AS m (publication, relation, covered, listed)
SELECT p.pubname, t.relation, l.listed OR l.through, l.listed
  FROM castling_ddl.stream s JOIN pg_catalog.pg_publication p ON p.pubname = s.publication
 CROSS JOIN castling_ddl.table t
 CROSS JOIN LATERAL (
       SELECT EXISTS (SELECT FROM pg_catalog.pg_publication_rel r
                       WHERE r.prpubid = p.oid AND r.prrelid = t.relation) AS listed,
              EXISTS (SELECT FROM pg_catalog.pg_partition_ancestors(t.relation) a
                        JOIN pg_catalog.pg_publication_rel r ON r.prrelid = a.relid AND r.prpubid = p.oid
                       WHERE a.relid <> t.relation) AS through) l
    ON CONFLICT (publication, relation) DO NOTHING;
"""


def expression(pattern: str) -> str:
    """A pattern of the settings as a regular expression of PostgreSQL. Pure."""
    if "." not in pattern:
        pattern = f"{pattern}.*"
    parts, at = [], 0
    while at < len(pattern):
        letter = pattern[at]
        closing = pattern.find("]", at + 2) if letter == "[" else -1
        at += 1
        if letter == "*":
            parts.append(".*")
        elif letter == "?":
            parts.append(".")
        elif closing > 0:
            inside = pattern[at:closing].replace("\\", "\\\\")
            parts.append(f"[^{inside[1:]}]" if inside.startswith("!") else f"[{inside}]")
            at = closing + 1
        else:
            parts.append(re.sub(r"([^\w])", r"\\\1", letter))
    return f"^{''.join(parts)}$"


def installation() -> str:
    """The SQL that is run on the source."""
    return _SCRIPT.read_text()


async def install(connection: AsyncConnection[Any], publication: str, settings: GroupSettings) -> None:
    """Make everything that tells of schema changes to this stream. In the caller's transaction; repeatable.
    The publication is noted as it is."""
    await connection.execute(_ALONE.encode())
    await connection.execute(installation().encode())
    await connection.execute(
        "INSERT INTO castling_ddl.stream VALUES (%s, %s, %s)"
        " ON CONFLICT (publication) DO UPDATE SET include = excluded.include, exclude = excluded.exclude",
        (publication, _expressions(settings.include), _expressions(settings.exclude)),
    )
    await connection.execute(_STAND.encode())


def _expressions(patterns: Sequence[str]) -> list[str]:
    return [expression(each) for each in patterns]


async def begin_anew(connection: AsyncConnection[Any], publication: str) -> None:
    """The publication is made anew: what the triggers did to the one before is of no meaning."""
    if await is_installed(connection):
        await connection.execute("DELETE FROM castling_ddl.member WHERE publication = %s", (publication,))


async def is_installed(connection: AsyncConnection[Any]) -> bool:
    """By a user of Castling's, that is: to another it is nothing."""
    cursor = await connection.execute(
        b"SELECT pg_catalog.has_table_privilege(pg_catalog.to_regclass('castling_ddl.member'), 'SELECT')"
    )
    row = await cursor.fetchone()
    return bool(row and row[0])


async def is_up(connection: AsyncConnection[Any], publication: str, settings: GroupSettings) -> bool:
    """Whether all triggers fire and the stream is told by the patterns that it has."""
    cursor = await connection.execute(
        "SELECT count(*) FROM pg_catalog.pg_event_trigger WHERE evtname = ANY (%s) AND evtenabled = 'O'",
        (list(_TRIGGERS),),
    )
    row = await cursor.fetchone()
    if row is None or row[0] != len(_TRIGGERS) or not await is_installed(connection):
        return False
    cursor = await connection.execute(
        "SELECT include, exclude FROM castling_ddl.stream WHERE publication = %s", (publication,)
    )
    row = await cursor.fetchone()
    return row == (_expressions(settings.include), _expressions(settings.exclude))


async def uninstall(connection: AsyncConnection[Any], publication: str) -> None:
    """The stream is told no longer; with the last one everything goes. Repeatable."""
    if not await is_installed(connection):
        return
    async with connection.transaction():
        await connection.execute(_ALONE.encode())
        for table in ("stream", "member"):
            await connection.execute(
                f"DELETE FROM castling_ddl.{table} WHERE publication = %s".encode(), (publication,)
            )
        cursor = await connection.execute(b"SELECT EXISTS (SELECT FROM castling_ddl.stream)")
        row = await cursor.fetchone()
        if row is None or row[0]:
            return
        for trigger in _TRIGGERS:
            await connection.execute(f"DROP EVENT TRIGGER IF EXISTS {trigger}".encode())
        await connection.execute(b"DROP SCHEMA castling_ddl CASCADE")


async def ddl_key(connection: AsyncConnection[Any]) -> bytes | None:
    """What the source's messages are sealed with; None: nothing is installed."""
    if not await is_installed(connection):
        return None
    cursor = await connection.execute(b"SELECT key FROM castling_ddl.key")
    row = await cursor.fetchone()
    return None if row is None else bytes(row[0])


async def read_noted(connection: AsyncConnection[Any], publication: str) -> dict[int, bool] | None:
    """By table, whether the publication should list it; None: nothing is noted of it."""
    if not await is_installed(connection):
        return None
    cursor = await connection.execute(
        "SELECT relation::int8, listed FROM castling_ddl.member WHERE publication = %s", (publication,)
    )
    return {int(oid): bool(listed) for oid, listed in await cursor.fetchall()} or None


async def catch_up(connection: AsyncConnection[Any], tables: Sequence[int]) -> None:
    """Publish tables that no trigger could, and tell of them: they are made and copied on the target."""
    for oid in tables:  # each in a transaction of its own: one that is locked keeps no other back
        await connection.execute("SELECT castling_ddl.catch_up(%s::oid)", (oid,))
