"""Removes what a stream left behind on its source and target. Repeatable; says nothing when it is gone."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import AsyncConnection

from castling.errors import TargetUnreachable
from castling.kinds.base import Stream
from castling.kinds.postgres.connect import questions
from castling.kinds.postgres.ddl_source import uninstall
from castling.kinds.postgres.fence import lift_in, remove_guard
from castling.kinds.postgres.foreign_notes import unwatch
from castling.kinds.postgres.giving_up import drop_slot
from castling.kinds.postgres.progress import origin_name
from castling.kinds.postgres.seed_parts import PARTS_TABLES
from castling.kinds.postgres.session import slot_name
from castling.kinds.postgres.standby import release_commits

__all__ = ["TARGET_ROWS", "forget_rows", "forget_source", "forget_stream"]

#: large objects stay where they are, as rows do
_BESIDE = ("large_objects", "large_objects_told")
TARGET_ROWS = (
    "progress",
    "lane_progress",
    "lane_tables",
    "seed",
    "seed_attempt",
    *PARTS_TABLES,
    "seed_emptied",
    "sequences",
    "table_positions",
    "schema_changes_aside",
    "audit_marks",
    "audit_repairs",
    "prepared",
    *_BESIDE,
)
#: how long to wait for connections of ours to end, seconds
_WITHIN_S = 20.0


async def forget_stream(stream: Stream, *, target: bool = True) -> None:
    """The slot and the publication go from the source; progress and seed notes from the target.

    Rows stay where they are. The slot matters most: one that is left keeps the source's log.
    """
    await forget_source(stream)
    if target:
        await _forget_target(stream)


async def forget_source(stream: Stream) -> None:
    settings = stream.settings.databases[stream.settings.primary]
    await release_commits(stream.group, stream.settings.backups, settings)
    async with questions(settings, application_name=f"castling forget {stream.group}") as connection:
        name = slot_name(stream.group, stream.backup)
        await drop_slot(connection, name, within_s=_WITHIN_S)
        await connection.execute(f"DROP PUBLICATION IF EXISTS {name}".encode())
        await uninstall(connection, name)


async def _forget_target(stream: Stream) -> None:
    async with questions(
        stream.settings.databases[stream.backup],
        application_name=f"castling forget {stream.group}",
        error=TargetUnreachable,
    ) as connection:
        await _unwatch(connection, stream.group)
        await connection.execute(
            "SELECT pg_catalog.pg_replication_origin_drop(roname)"
            " FROM pg_catalog.pg_replication_origin WHERE roname = %(name)s"
            " OR starts_with(roname, %(name)s || ':')",
            {"name": origin_name(stream.group)},
        )
        await forget_rows(connection, stream.group)
        if await _has(connection, "castling.fence"):
            await lift_in(connection, stream.group)
            await remove_guard(connection, stream.group, within_s=_WITHIN_S)


async def _has(connection: AsyncConnection[Any], table: str) -> bool:
    cursor = await connection.execute("SELECT pg_catalog.to_regclass(%s) IS NOT NULL", (table,))
    row = await cursor.fetchone()
    return bool(row and row[0])


async def forget_rows(connection: AsyncConnection[Any], group: str) -> None:
    """What the target notes of a stream: how far it is, what was copied, what stands behind."""
    cursor = await connection.execute(
        "SELECT relname FROM pg_catalog.pg_class"
        " WHERE relnamespace = pg_catalog.to_regnamespace('castling') AND relkind = 'r'"
    )
    there = {str(row[0]) for row in await cursor.fetchall()}
    for table in TARGET_ROWS:
        if table in there:
            await connection.execute(f"DELETE FROM castling.{table} WHERE stream = %s".encode(), (group,))


async def _unwatch(connection: AsyncConnection[Any], group: str) -> None:
    """To take a trigger off a table is to wait for those who read it."""
    await connection.execute(f"SET lock_timeout = '{_WITHIN_S:.0f}s'".encode())
    try:
        await unwatch(connection, group)
    except psycopg.errors.LockNotAvailable as error:
        raise TargetUnreachable(
            f"a table of the target is in use, and keeps its trigger: {error.diag.message_primary}",
            hint="ask again when who reads it has ended",
        ) from error
