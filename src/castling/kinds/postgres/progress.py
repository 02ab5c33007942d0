"""How far the target has come: a row of its own, written by the transaction whose changes it counts.

A replication origin marks what Castling writes (so that it can be told from what others write) and
keeps two sessions from applying at once. Its *position* is not used, though it seems made for this:
a transaction that aborts after `pg_replication_origin_xact_setup` advances the origin all the same,
without its changes, and the next session would pass them over. A session that is killed right before its
COMMIT is enough. A row can't do that.

What was committed asynchronously may be lost in a crash of the server, progress and changes together.
`flushed` makes all that the origin's sessions have committed durable.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from psycopg import AsyncConnection

from castling.errors import TargetError, TargetUnreachable
from castling.kinds.postgres.lsn import lsn_text, parse_lsn
from castling.kinds.postgres.neighbours import MAKE_ALONE

__all__ = [
    "CREATE_PROGRESS",
    "application_name",
    "end_sessions",
    "flush",
    "origin_name",
    "read",
    "take_origin",
    "write",
]

CREATE_PROGRESS = (
    MAKE_ALONE
    + """
    CREATE SCHEMA IF NOT EXISTS castling;
    CREATE TABLE IF NOT EXISTS castling.progress (
        stream text PRIMARY KEY,
        lsn pg_lsn NOT NULL,
        committed_at timestamptz
    ) WITH (fillfactor = 50);
"""
)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: how long to wait for a session before us to let go of the origin, seconds
_TAKEOVER_S = 20.0


def origin_name(group: str, lane: int | None = None) -> str:
    """The replication origin that marks what is applied for the group, or by one of its lanes. No group has
    a name with a colon in it."""
    return f"castling_{group}" if lane is None else f"castling_{group}:{lane}"


def application_name(group: str, lane: int | None = None) -> str:
    """By which the group's apply session, or that of a lane, is found in pg_stat_activity."""
    return f"castling apply {group}" if lane is None else f"castling apply {group} lane {lane}"


async def take_origin(connection: AsyncConnection[Any], group: str, lane: int | None = None) -> None:
    """Make the group's origin, or its lane's, this session's alone. An apply session that died without the
    server noticing is ended: the main one's with all of its lanes. TargetUnreachable if it does not let go
    in time."""
    await connection.execute(
        "SELECT pg_catalog.pg_replication_origin_create(%(name)s)"
        " WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_replication_origin WHERE roname = %(name)s)",
        {"name": origin_name(group, lane)},
    )
    deadline = time.monotonic() + _TAKEOVER_S
    while True:
        try:
            await connection.execute(
                "SELECT pg_catalog.pg_replication_origin_session_setup(%s)", (origin_name(group, lane),)
            )
            return
        except psycopg.errors.ConfigurationLimitExceeded as error:
            raise TargetError(
                "the target's server has no room for one more replication origin: every group needs one"
                " there, and one more for each of its lanes",
                hint="raise max_active_replication_origins (before PostgreSQL 18: max_replication_slots) on"
                " the target and restart it, or give the group fewer lanes",
            ) from error
        except psycopg.errors.ObjectInUse as error:
            if time.monotonic() > deadline:
                raise TargetUnreachable(
                    f"another session applies group {group} and does not let go",
                    hint=f"look for application_name '{application_name(group, lane)}' in pg_stat_activity",
                ) from error
        await end_sessions(connection, group, lane)
        await asyncio.sleep(0.1)


async def end_sessions(connection: AsyncConnection[Any], group: str, lane: int | None = None) -> None:
    """Terminate the group's apply sessions, or those of one lane, but this one."""
    await connection.execute(
        "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity"
        " WHERE (application_name = %(name)s"
        " OR %(lanes)s AND pg_catalog.starts_with(application_name, %(name)s || ' lane '))"
        " AND pid <> pg_catalog.pg_backend_pid()",
        {"name": application_name(group, lane), "lanes": lane is None},
    )


async def read(connection: AsyncConnection[Any], group: str) -> int:
    """The source position up to which the target holds everything; 0 when it holds nothing."""
    cursor = await connection.execute("SELECT lsn::text FROM castling.progress WHERE stream = %s", (group,))
    row = await cursor.fetchone()
    return parse_lsn(row[0]) if row else 0


async def write(connection: AsyncConnection[Any], group: str, offset: int, committed_ns: int | None) -> None:
    """Note in the open transaction that with it the target holds everything up to `offset`."""
    at = None if committed_ns is None else _EPOCH + timedelta(microseconds=committed_ns // 1000)
    await connection.execute(
        "INSERT INTO castling.progress (stream, lsn, committed_at) VALUES (%s, %s::pg_catalog.pg_lsn, %s)"
        " ON CONFLICT (stream) DO UPDATE SET lsn = excluded.lsn, committed_at = excluded.committed_at",
        (group, lsn_text(offset), at),
    )


async def move(connection: AsyncConnection[Any], group: str, offset: int) -> None:
    """Note in the open transaction that lanes have taken the target to `offset`, which is not behind."""
    await connection.execute(
        "UPDATE castling.progress SET lsn = %s::pg_catalog.pg_lsn WHERE stream = %s",
        (lsn_text(offset), group),
    )


async def flush(connection: AsyncConnection[Any]) -> None:
    """Make every commit of the origin's sessions durable. The session must hold the origin."""
    await connection.execute(b"SELECT pg_catalog.pg_replication_origin_session_progress(true)")
