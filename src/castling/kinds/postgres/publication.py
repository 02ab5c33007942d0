"""Which tables are published: an explicit list, so that nothing is published by accident.

The list is made when a stream begins and not touched while it lives: a table that is published
later would arrive without the rows that it had before. Each stream has a publication of its
own, named as its slot, whose comment says where the slot began.

A table without a usable key, or whose filter reads more than its key, is given REPLICA IDENTITY FULL in the
same transaction that publishes it: otherwise its updates and deletes would fail on the source. A partitioned
table is published partition by partition, as its changes are logged: published through its root, a TRUNCATE
of one partition would not be sent.
"""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import AsyncConnection

from castling.config import GroupSettings
from castling.errors import ContinuityLost, NotReplicable, SeedFailed
from castling.kinds.postgres.catalog import Table, is_chosen, read_tables
from castling.kinds.postgres.ddl_source import begin_anew, install, read_noted
from castling.kinds.postgres.naming import CLASH, Naming, clashes
from castling.kinds.postgres.narrowing import (
    Narrowed,
    identity_conflicts,
    listed,
    narrowing_digest,
    narrowing_note,
    narrowing_problems,
    needing_identity,
    noted_narrowing,
    read_column_lists,
    read_narrowed,
)
from castling.kinds.postgres.session import RESEED, Published, created_comment, created_lsn

__all__ = [
    "ensure_publication",
    "identity_problems",
    "note_beginning",
    "partition_problems",
    "partitions_by_root",
    "publish",
    "published",
    "read_beginning",
    "read_published",
]

_KEY = "give it a primary key, or exclude it"
_WHOLE = "exclude the table and include the partitions that are wanted, or include it whole"
#: how long production may be kept waiting for a lock that an ALTER TABLE needs, seconds
_LOCK_TIMEOUT_S = 5


def published(tables: list[Table], settings: GroupSettings) -> list[Table]:
    """The tables to publish: chosen, permanent; of a partitioned table only the root."""
    chosen = [
        table
        for table in tables
        if table.kind in "rp" and table.persistence == "p" and is_chosen(table, settings)
    ]
    names = {str(table) for table in chosen}
    return [table for table in chosen if not names.intersection(table.ancestors)]


def partitions_by_root(tables: list[Table]) -> dict[str, list[Table]]:
    """By the name of each partitioned table: the partitions below it that may hold rows."""
    found: dict[str, list[Table]] = {}
    for table in tables:
        if table.kind != "p":
            for ancestor in table.ancestors:
                found.setdefault(ancestor, []).append(table)
    return found


def partition_problems(
    tables: list[Table], everything: list[Table], settings: GroupSettings
) -> list[tuple[Table, str, str]]:
    """Why partitioned tables among `tables` can't be published: root, reason, way out. Pure."""
    found = []
    partitions = partitions_by_root(everything)
    for root in tables:
        parts = partitions.get(str(root), []) if root.kind == "p" else []
        if root.kind == "p" and not parts and not root.has_identity:
            found.append((root, "has no usable key: its first partition would refuse updates", _KEY))
        for part in parts:
            if part.kind != "r" or part.persistence != "p":
                found.append((root, f"has a partition, {part}, that is foreign or unlogged", "exclude it"))
            elif not is_chosen(part, settings):
                found.append((root, f"has a partition, {part}, that is excluded", _WHOLE))
            elif not part.has_identity:
                reason = f"has no usable key ({part}): the next partition that is made would refuse updates"
                found.append((root, reason, _KEY))
                break
    return found


def identity_problems(tables: list[Table], everything: list[Table]) -> list[tuple[Table, str, str]]:
    """Which of `tables` would refuse updates and deletes once published: table, reason, way out. Pure."""
    found = []
    partitions = partitions_by_root(everything)
    for table in tables:
        leaves = partitions.get(str(table), []) if table.kind == "p" else [table]
        for leaf in leaves:
            if leaf.identity_problem is not None:
                inside = "" if leaf is table else f" (its partition {leaf})"
                found.append((table, leaf.identity_problem + inside, _KEY))
                break
    return found


def _keyless(tables: list[Table], everything: list[Table], settings: GroupSettings) -> list[Table]:
    """The tables to give REPLICA IDENTITY FULL for want of a key. NotReplicable where that would not last."""
    problems = partition_problems(tables, everything, settings) + identity_problems(tables, everything)
    for root, reason, hint in problems:
        raise NotReplicable(f"{root} {reason}", hint=hint)
    return [table for table in tables if table.kind == "r" and not table.has_identity]


async def ensure_publication(
    connection: AsyncConnection[Any], name: str, settings: GroupSettings
) -> list[Table]:
    """Make the publication what the settings say; the tables in it. Repeatable, before the slot is made."""
    everything = await read_tables(connection, measured=False)
    tables = published(everything, settings)
    if not tables:
        raise NotReplicable("the group's patterns choose no table", hint="look at include and exclude")
    for table, first in clashes(tables, Naming(settings.rename)):
        raise NotReplicable(f"{table} would have the same name on the target as {first}", hint=CLASH)
    keyless = _keyless(tables, everything, settings)
    _refuse(narrowing_problems(tables, settings, connection.info.server_version))
    try:
        async with connection.transaction():
            await connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT_S}s'".encode())
            carry = settings.ddl == "carry"
            if carry:  # what is done here is not for the target
                await connection.execute(b"SET LOCAL session_replication_role = replica")
            narrowed = await publish(connection, name, tables, settings)
            needing = keyless + [table for table, _ in needing_identity(narrowed, tables)]
            for table in needing:
                await connection.execute(f"ALTER TABLE ONLY {table.sql} REPLICA IDENTITY FULL".encode())
            _refuse(identity_conflicts(needing, await read_column_lists(connection)))
            await begin_anew(connection, name)
            if carry:
                await install(connection, name, settings)
    except psycopg.errors.LockNotAvailable as error:
        raise SeedFailed(
            "a table that is to be published is locked by another session",
            hint="it is tried again; end the session that holds the lock if it lasts",
        ) from error
    return tables


async def publish(
    connection: AsyncConnection[Any], name: str, tables: list[Table], settings: GroupSettings
) -> list[Narrowed]:
    """In the open transaction, whose search path it changes, make the publication anew; the tables of which
    it publishes a part. Nobody sees it before the commit, so an identity that it needs may be set after it.
    """
    await connection.execute(b"SET LOCAL search_path = pg_catalog")
    await connection.execute(f"DROP PUBLICATION IF EXISTS {name}".encode())
    await connection.execute(
        f"CREATE PUBLICATION {name} FOR TABLE {listed(tables, settings)}"
        " WITH (publish_via_partition_root = false)".encode()
    )
    narrowed = await read_narrowed(connection, name)
    note = narrowing_note(narrowing_digest(settings), narrowed)
    await connection.execute(f"COMMENT ON PUBLICATION {name} IS 'castling{note}'".encode())
    return narrowed


def _refuse(problems: list[tuple[str, str, str]]) -> None:
    for name, reason, hint in problems:
        raise NotReplicable(f"{name} {reason}", hint=hint)


async def note_beginning(connection: AsyncConnection[Any], name: str, lsn: int) -> None:
    """Remember where the stream's slot begins, in the comment of its publication."""
    cursor = await connection.execute(
        "SELECT pg_catalog.obj_description(oid, 'pg_publication') FROM pg_catalog.pg_publication"
        " WHERE pubname = %s",
        (name,),
    )
    row = await cursor.fetchone()
    said = "" if row is None else str(row[0] or "")
    note = said[said.find("; ") :] if "; " in said else ""
    await connection.execute(f"COMMENT ON PUBLICATION {name} IS '{created_comment(lsn, note)}'".encode())


async def read_beginning(connection: AsyncConnection[Any], name: str) -> tuple[int, set[int]] | None:
    """Where the stream begins and which tables it has, by oid; None when its slot or publication is gone."""
    cursor = await connection.execute(
        "SELECT pg_catalog.obj_description(p.oid, 'pg_publication'),"
        " ARRAY(SELECT r.prrelid::int8 FROM pg_catalog.pg_publication_rel r WHERE r.prpubid = p.oid)"
        " FROM pg_catalog.pg_publication p"
        " JOIN pg_catalog.pg_replication_slots s ON s.slot_name = p.pubname WHERE p.pubname = %s",
        (name,),
    )
    row = await cursor.fetchone()
    begun = created_lsn(row[0]) if row is not None else None
    return None if row is None or begun is None else (begun, set(row[1]))


async def read_published(
    connection: AsyncConnection[Any], name: str, known: list[int], narrowing: str = ""
) -> Published:
    """What the publication `name` holds now, and which of `known` still exist. ContinuityLost: it is gone, or
    was made for other `rows` and `columns` than those of `narrowing` (see `narrowing_digest`)."""
    cursor = await connection.execute(
        "SELECT pubinsert AND pubupdate AND pubdelete AND pubtruncate AND NOT pubviaroot,"
        " pg_catalog.obj_description(oid, 'pg_publication'), oid"
        " FROM pg_catalog.pg_publication WHERE pubname = %s",
        (name,),
    )
    row = await cursor.fetchone()
    if row is None:
        raise ContinuityLost(
            f"the publication {name} is gone; changes since it was removed are lost", hint=RESEED
        )
    whole, (noted, marks), oid = bool(row[0]), noted_narrowing(row[1]), row[2]
    if narrowing != noted:
        raise ContinuityLost(
            f"the publication {name} was made for other `rows` and `columns` than castling.toml says now",
            hint=RESEED,
        )
    cursor = await connection.execute(
        "SELECT prrelid::int8 FROM pg_catalog.pg_publication_rel WHERE prpubid = %s", (oid,)
    )
    tables = [int(row[0]) for row in await cursor.fetchall()]
    cursor = await connection.execute(
        "SELECT oid::int8 FROM pg_catalog.pg_class WHERE oid = ANY(%s::oid[])", (known,)
    )
    existing = [int(row[0]) for row in await cursor.fetchall()]
    now = {one.oid: one.mark for one in await read_narrowed(connection, name)}
    same = all(now.get(table) == marks.get(table) for table in tables)
    told = await read_noted(connection, name)
    if told is None:
        return Published(tables, existing, whole and same)
    cursor = await connection.execute(
        "SELECT oid::int8 FROM pg_catalog.pg_class WHERE oid = ANY(%s::oid[])",
        ([oid for oid, is_listed in told.items() if is_listed],),
    )
    return Published(tables, existing, whole and same, [int(row[0]) for row in await cursor.fetchall()])
