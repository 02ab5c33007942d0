"""A first copy into tables that hold rows already: what is as on the source stays, all else is replaced.

The source end sends the key and a digest of each row of its view; what the target has otherwise is deleted
in one transaction, and the keys of what it lacks are noted, as those of rows that have changed are
(`seed_renew`): so their rows come in the same way, and what is there is then exactly of that view. Digests
are of the values as text, which means the same on any two servers.

A table without a key can't be compared so: it is emptied and copied.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from psycopg import AsyncConnection

from castling.errors import TargetError
from castling.kinds.postgres.mapping import Found, find_columns
from castling.kinds.postgres.resync_target import only
from castling.kinds.postgres.seed_parts import SeedParts
from castling.kinds.postgres.seed_plan import Match
from castling.kinds.postgres.seed_renew import empty
from castling.kinds.postgres.statements import quoted

__all__ = ["digest_of", "match_table", "read_digests"]


def digest_of(columns: Sequence[str]) -> str:
    """The digest of a row of `t`, as both servers compute it, whatever their versions and encodings."""
    row = ", ".join(f"t.{quoted(column)}" for column in columns)
    return f"pg_catalog.sha256(pg_catalog.convert_to(ROW({row})::pg_catalog.text, 'UTF8'))"


def read_digests(table: str, key: Sequence[str], columns: Sequence[str], where: str) -> str:
    """The COPY of keys and digests of the rows that `where` (all of the clause) chooses. Pure."""
    keys = ", ".join(f"t.{quoted(column)}" for column in key)
    return f"COPY (SELECT {keys}, {digest_of(columns)} FROM ONLY {table} t {where}) TO STDOUT"


async def match_table(
    connection: AsyncConnection[Any], parts: SeedParts, request: Match, body: AsyncIterator[bytes]
) -> int:
    """In a transaction of the caller: how many rows are wanted."""
    if not request.key:
        await empty(connection, request.schema, request.table)
        return 0
    columns = {
        column.name: column for column in await find_columns(connection, request.schema, request.table)
    }
    missing = [name for name in (*request.key, *request.columns) if name not in columns]
    if missing:
        raise TargetError(
            f"{request.schema}.{request.table} on the target has no column {', '.join(missing)}",
            hint="make the same change on the target",
        )
    await _take(connection, [columns[name] for name in request.key], body)
    table = f"{quoted(request.schema)}.{quoted(request.table)}"
    table = f"{await only(connection, table)}{table}"
    same = " AND ".join(
        f"t.{quoted(name)} {columns[name].equals or '='} s.k{place}" for place, name in enumerate(request.key)
    )
    same += f" AND s.digest = {digest_of(request.columns)}"
    wanted = await _note_wanted(connection, parts, request, table, same)
    await connection.execute(
        f"DELETE FROM {table} t WHERE NOT EXISTS (SELECT FROM castling_digests s WHERE {same})".encode()
    )
    cursor = await connection.execute(f"SELECT pg_catalog.count(*) FROM {table}".encode())
    row = await cursor.fetchone()
    kept = int(row[0]) if row else 0
    await parts.note_matched(connection, request.schema, request.table, request.lsn, kept)
    if not wanted:
        await parts.patched(connection, request.schema, request.table, request.lsn, 0)
    return wanted


async def _take(connection: AsyncConnection[Any], key: Sequence[Found], body: AsyncIterator[bytes]) -> None:
    """The keys and digests, in a table for the length of the transaction."""
    listed = ", ".join(f"k{place} {column.type}" for place, column in enumerate(key))
    await connection.execute(
        f"CREATE TEMPORARY TABLE castling_digests ({listed}, digest bytea) ON COMMIT DROP".encode()
    )
    async with connection.cursor() as cursor, cursor.copy(b"COPY castling_digests FROM STDIN") as copy:
        async for data in body:
            await copy.write(data)
    await connection.execute(b"ANALYZE castling_digests")


async def _note_wanted(
    connection: AsyncConnection[Any], parts: SeedParts, request: Match, table: str, same: str
) -> int:
    key = ", ".join(f"s.k{place}::pg_catalog.text" for place in range(len(request.key)))
    there = f"SELECT FROM {table} t WHERE {same}".replace("%", "%%")
    cursor = await connection.execute(
        "INSERT INTO castling.seed_key (stream, schema, name, number, key)"
        f" SELECT %s, %s, %s, pg_catalog.row_number() OVER (), ARRAY[{key}]"
        f" FROM castling_digests s WHERE NOT EXISTS ({there})".encode(),
        (parts.stream, request.schema, request.table),
    )
    return cursor.rowcount
