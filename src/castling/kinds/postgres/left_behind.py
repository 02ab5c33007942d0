"""Copies, once and on demand, what the log does not carry: the rows of unlogged tables. Materialized
views are refreshed on the target.

Each table is one transaction on the target: it has all rows that the source's had at one moment, or what
it had before. One that can't be copied is told of and keeps no other back.
"""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import AsyncConnection

from castling.errors import SourceUnreachable, TargetUnreachable
from castling.kinds.base import Copied, Stream
from castling.kinds.postgres.catalog import Table, is_left_behind, read_tables
from castling.kinds.postgres.connect import TEXT_FORM, connect
from castling.kinds.postgres.naming import Naming
from castling.kinds.postgres.statements import quoted

__all__ = ["copy_left_behind"]

_SESSION = (
    *TEXT_FORM,
    "SET statement_timeout = 0",
    "SET row_security = off",
    "SET lock_timeout = '30s'",
)


async def copy_left_behind(stream: Stream) -> list[Copied]:
    """Every unlogged table, then every materialized view of the group, in the order of their names."""
    application = f"castling copy {stream.group}"
    databases = stream.settings.databases
    source = await connect(
        databases[stream.settings.primary], application_name=application, error=SourceUnreachable
    )
    try:
        target = await connect(
            databases[stream.backup], application_name=application, error=TargetUnreachable
        )
        try:
            for connection in (source, target):
                for statement in _SESSION:
                    await connection.execute(statement.encode())
            await target.execute(b"SET session_replication_role = replica")
            there = {str(table): table for table in await read_tables(target)}
            tables = [each for each in await read_tables(source) if is_left_behind(each, stream.settings)]
            tables.sort(key=lambda table: (table.kind == "m", str(table)))
            naming = Naming(stream.settings.rename)
            return [
                await _one(source, target, table, there.get(naming.target_name(table))) for table in tables
            ]
        finally:
            await target.close()
    finally:
        await source.close()


async def _one(
    source: AsyncConnection[Any], target: AsyncConnection[Any], table: Table, other: Table | None
) -> Copied:
    if other is None:
        return Copied(str(table), None, "is not on the target")
    if other.kind != table.kind:
        return Copied(str(table), None, "is something else on the target")
    try:
        if table.kind == "m":
            await target.execute(f"REFRESH MATERIALIZED VIEW {other.sql}".encode())
            return Copied(str(table), None, "")
        return Copied(str(table), await _rows(source, target, table, other), "")
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        if source.closed or target.closed:
            away = SourceUnreachable if source.closed else TargetUnreachable
            raise away(f"the connection broke while {table} was copied: {error}") from error
        return Copied(str(table), None, str(error).splitlines()[0])
    except psycopg.Error as error:
        return Copied(str(table), None, error.diag.message_primary or str(error))


async def _rows(
    source: AsyncConnection[Any], target: AsyncConnection[Any], table: Table, other: Table
) -> int:
    columns = table.copied_columns
    listed = ", ".join(quoted(column.name) for column in columns)
    form = "binary" if all(column.is_portable for column in columns) else "text"
    read = f"COPY (SELECT {listed} FROM ONLY {table.sql}) TO STDOUT (FORMAT {form})"
    write = f"COPY {other.sql} ({listed}) FROM STDIN (FORMAT {form})"
    async with target.transaction(), source.cursor() as reading, target.cursor() as writing:
        await writing.execute(f"TRUNCATE ONLY {other.sql}".encode())
        async with reading.copy(read.encode()) as rows, writing.copy(write.encode()) as copy:
            async for data in rows:
                await copy.write(data)
        return writing.rowcount
