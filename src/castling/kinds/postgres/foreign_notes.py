"""Reads and acknowledges what the target's triggers have noted (see `foreign_sql`); takes them away."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import AsyncConnection

from castling.errors import TargetError, TargetUnreachable
from castling.kinds.base import Stream
from castling.kinds.postgres.connect import connect
from castling.kinds.postgres.foreign_sql import DROP_EVENT_TRIGGERS, TRIGGER
from castling.kinds.postgres.foreign_writes import ForeignWrite, PartWrites, who
from castling.kinds.postgres.statements import quoted

__all__ = ["list_foreign_writes", "read_open", "read_parts", "unwatch"]

_COLUMNS = (
    "number, part, operation, at, login, role, application, client, pid, inserted, updated, deleted,"
    " acknowledged_at, acknowledged_by"
)
#: a note of nothing waits for its number until the commit, or for good where constraints are immediate
_PARTS = """
SELECT part, pg_catalog.count(*), COALESCE(pg_catalog.sum(inserted), 0)::int8,
       COALESCE(pg_catalog.sum(updated), 0)::int8, COALESCE(pg_catalog.sum(deleted), 0)::int8,
       pg_catalog.count(*) FILTER (WHERE inserted IS NULL AND operation IN ('INSERT', 'UPDATE', 'DELETE')),
       pg_catalog.array_agg(DISTINCT operation)
           FILTER (WHERE operation NOT IN ('INSERT', 'UPDATE', 'DELETE')),
       pg_catalog.min(at), pg_catalog.max(at),
       (pg_catalog.array_agg(ARRAY[login, role, application, client] ORDER BY number DESC))[1:1]
  FROM castling.foreign_writes
 WHERE stream = %s AND acknowledged_at IS NULL
 GROUP BY part ORDER BY pg_catalog.max(number) DESC
"""


async def read_open(
    connection: AsyncConnection[Any], group: str, *, after: int, limit: int
) -> list[ForeignWrite]:
    """What nobody has acknowledged, beyond a number; the newest first."""
    cursor = await connection.execute(
        f"SELECT {_COLUMNS} FROM castling.foreign_writes WHERE stream = %s AND number > %s"
        " AND acknowledged_at IS NULL ORDER BY number DESC LIMIT %s".encode(),
        (group, after, limit),
    )
    return [ForeignWrite(*row) for row in await cursor.fetchall()]


async def read_parts(connection: AsyncConnection[Any], group: str) -> list[PartWrites]:
    """The same by table, whatever there is of it."""
    cursor = await connection.execute(_PARTS.encode(), (group,))
    return [
        PartWrites(
            part=part,
            transactions=transactions,
            inserted=inserted,
            updated=updated,
            deleted=deleted,
            uncounted=uncounted,
            others=tuple(others or ()),
            first=first,
            last=last,
            last_by=who(*by[0]),
        )
        for part, transactions, inserted, updated, deleted, uncounted, others, first, last, by in (
            await cursor.fetchall()
        )
    ]


async def list_foreign_writes(
    stream: Stream, *, since_s: float | None, acknowledge: str | None
) -> list[dict[str, Any]]:
    """The notes, the newest first: all of the last `since_s` seconds, or those that nobody has acknowledged.
    `acknowledge`: who has seen them now; what is acknowledged is what is returned."""
    connection = await connect(
        stream.settings.databases[stream.backup],
        application_name=f"castling foreign {stream.group}",
        error=TargetUnreachable,
    )
    try:
        cursor = await connection.execute(
            b"SELECT pg_catalog.to_regclass('castling.foreign_writes') IS NOT NULL"
        )
        row = await cursor.fetchone()
        if row is None or not row[0]:
            return []  # it never ran, or was never watched
        where = "stream = %(s)s"
        if since_s is not None:
            where += " AND at >= pg_catalog.now() - pg_catalog.make_interval(secs => %(since)s)"
        if since_s is None or acknowledge is not None:
            where += " AND acknowledged_at IS NULL"
        query = f"SELECT {_COLUMNS} FROM castling.foreign_writes WHERE {where}"
        if acknowledge is not None:
            query = (
                "UPDATE castling.foreign_writes"
                " SET acknowledged_at = pg_catalog.now(), acknowledged_by = %(by)s"
                f" WHERE {where} RETURNING {_COLUMNS}"
            )
        cursor = await connection.execute(
            query.encode(), {"s": stream.group, "since": since_s, "by": acknowledge}
        )
        found = [ForeignWrite(*each) for each in await cursor.fetchall()]
        return [each.as_json() for each in sorted(found, key=lambda each: -each.number)]
    except psycopg.OperationalError as error:
        raise TargetUnreachable(f"the target broke off: {error}") from error
    except psycopg.Error as error:
        raise TargetError(f"the notes can't be read: {error.diag.message_primary or error}") from error
    finally:
        await connection.close()


async def unwatch(connection: AsyncConnection[Any], group: str) -> None:
    """Take a stream's triggers off the target's tables, and its notes; the event triggers with the last
    stream's."""
    cursor = await connection.execute(b"SELECT pg_catalog.to_regclass('castling.watched') IS NOT NULL")
    row = await cursor.fetchone()
    if row is None or not row[0]:
        return
    cursor = await connection.execute(
        "SELECT w.relation::int8, n.nspname, c.relname FROM castling.watched w"
        " LEFT JOIN pg_catalog.pg_class c ON c.oid = w.relation"
        " LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE w.stream = %s",
        (group,),
    )
    for oid, schema, name in await cursor.fetchall():
        async with connection.transaction():
            if name is not None:
                table = f"{quoted(schema)}.{quoted(name)}"
                await connection.execute(f"DROP TRIGGER IF EXISTS {TRIGGER} ON {table}".encode())
            await connection.execute("DELETE FROM castling.watched WHERE relation = %s", (oid,))
    await connection.execute("DELETE FROM castling.foreign_writes WHERE stream = %s", (group,))
    cursor = await connection.execute(b"SELECT EXISTS (SELECT FROM castling.watched)")
    row = await cursor.fetchone()
    if row is not None and not row[0]:
        await connection.execute(DROP_EVENT_TRIGGERS.encode())
