"""Which tables are published: an explicit list, so that nothing is published by accident.

The list is made when a stream begins and not touched while it lives: a table that is published
later would arrive without the rows that it had before. Each stream has a publication of its
own, named as its slot, whose comment says where the slot began.

A table without a usable key is given REPLICA IDENTITY FULL in the same transaction that
publishes it: otherwise its updates and deletes would fail on the source. A partitioned table is
published partition by partition, as its changes are logged: published through its root, a
TRUNCATE of one partition would not be sent.
"""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import AsyncConnection

from castling.config import GroupSettings
from castling.errors import ContinuityLost, NotReplicable, SeedFailed
from castling.kinds.postgres.catalog import Table, is_chosen, read_tables
from castling.kinds.postgres.session import RESEED, Published, created_comment

__all__ = [
    "ensure_publication",
    "identity_problems",
    "note_beginning",
    "partition_problems",
    "partitions_of",
    "published",
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


def partitions_of(root: Table, tables: list[Table]) -> list[Table]:
    """The partitions below `root` that may hold rows."""
    return [table for table in tables if table.kind != "p" and str(root) in table.ancestors]


def partition_problems(
    tables: list[Table], everything: list[Table], settings: GroupSettings
) -> list[tuple[Table, str, str]]:
    """Why partitioned tables among `tables` can't be published: root, reason, way out. Pure."""
    found = []
    for root in tables:
        parts = partitions_of(root, everything)
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
    for table in tables:
        leaves = partitions_of(table, everything) if table.kind == "p" else [table]
        for leaf in leaves:
            if leaf.identity_problem is not None:
                inside = "" if leaf is table else f" (its partition {leaf})"
                found.append((table, leaf.identity_problem + inside, _KEY))
                break
    return found


def _needing_identity(tables: list[Table], everything: list[Table], settings: GroupSettings) -> list[Table]:
    """The tables to give REPLICA IDENTITY FULL. NotReplicable where that would not last."""
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
    keyless = _needing_identity(tables, everything, settings)
    listed = ", ".join(f"{'ONLY ' if table.kind == 'r' else ''}{table.sql}" for table in tables)
    try:
        async with connection.transaction():
            await connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT_S}s'".encode())
            for table in keyless:
                await connection.execute(f"ALTER TABLE ONLY {table.sql} REPLICA IDENTITY FULL".encode())
            await connection.execute(f"DROP PUBLICATION IF EXISTS {name}".encode())
            await connection.execute(
                f"CREATE PUBLICATION {name} FOR TABLE {listed}"
                " WITH (publish_via_partition_root = false)".encode()
            )
    except psycopg.errors.LockNotAvailable as error:
        raise SeedFailed(
            "a table that is to be published is locked by another session",
            hint="it is tried again; end the session that holds the lock if it lasts",
        ) from error
    return tables


async def note_beginning(connection: AsyncConnection[Any], name: str, lsn: int) -> None:
    """Remember where the stream's slot begins, as the comment of its publication."""
    await connection.execute(f"COMMENT ON PUBLICATION {name} IS '{created_comment(lsn)}'".encode())


async def read_published(connection: AsyncConnection[Any], name: str, known: list[int]) -> Published:
    """What the publication `name` holds now, and which of `known` still exist. ContinuityLost: it is gone."""
    cursor = await connection.execute(
        "SELECT pubinsert AND pubupdate AND pubdelete AND pubtruncate AND NOT pubviaroot, oid"
        "  FROM pg_catalog.pg_publication WHERE pubname = %s",
        (name,),
    )
    row = await cursor.fetchone()
    if row is None:
        raise ContinuityLost(
            f"the publication {name} is gone; changes since it was removed are lost", hint=RESEED
        )
    whole, oid = bool(row[0]), row[1]
    narrowed = (
        "prqual IS NOT NULL OR prattrs IS NOT NULL" if connection.info.server_version >= 150000 else "false"
    )
    cursor = await connection.execute(
        f"SELECT prrelid::int8, {narrowed} FROM pg_catalog.pg_publication_rel WHERE prpubid = %s".encode(),
        (oid,),
    )
    rows = await cursor.fetchall()
    cursor = await connection.execute(
        "SELECT oid::int8 FROM pg_catalog.pg_class WHERE oid = ANY(%s::oid[])", (known,)
    )
    existing = [int(row[0]) for row in await cursor.fetchall()]
    return Published([int(row[0]) for row in rows], existing, whole and not any(row[1] for row in rows))
