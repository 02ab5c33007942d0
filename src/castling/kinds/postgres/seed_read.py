"""Reads tables of a first copy in a view of the source, and sends what it reads.

A table that was emptied on the source meanwhile has another file than in the view, and what the view should
show of it is gone: that is noticed while the lock of the reading is still held, before what was read counts.
One that shows its rows in another file was only packed anew (VACUUM FULL, CLUSTER): what is there of it was
told by blocks that are no longer its own, so the copy goes on from a later view, and begins that table anew.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from psycopg import AsyncConnection

from castling.errors import SeedFailed
from castling.kinds.base import BulkCall, SeedProgress
from castling.kinds.postgres.catalog import Table
from castling.kinds.postgres.copy_out import read_blocks
from castling.kinds.postgres.mapping import Found, find_columns
from castling.kinds.postgres.naming import Naming
from castling.kinds.postgres.narrowing import Part as Narrowing
from castling.kinds.postgres.seed_match import read_digests
from castling.kinds.postgres.seed_plan import (
    Chunk,
    Emptied,
    Keys,
    Match,
    Patch,
    Range,
    decode,
    encode_request,
    within,
)
from castling.kinds.postgres.source_view import View
from castling.kinds.postgres.statements import Shape, TargetColumn, TargetTable, quoted, staged

__all__ = ["WHOLE", "Reader", "of_keys"]

#: all rows and columns
WHOLE = Narrowing()


class _WasEmptied(Exception):
    """The table has another file than in the view."""


class Reader:
    """Reads for one view. By oid of a table: `files`, its file in that view; `narrowed`, what is published of
    it, where that is not all. What is said of a table calls it by its name on the target."""

    def __init__(
        self,
        view: View,
        files: dict[int, int],
        narrowed: dict[int, Narrowing],
        naming: Naming,
        progress: SeedProgress,
    ) -> None:
        self._view = view
        self._files = files
        self._narrowed = narrowed
        self._naming = naming
        self._progress = progress
        #: by oid: the position by which the table had been emptied
        self._emptied: dict[int, int] = {}

    async def copy(self, connection: AsyncConnection[Any], call: BulkCall, table: Table, part: Range) -> bool:
        """One chunk. False when the table was emptied: then `call` is of no more use."""
        if table.oid in self._emptied:
            return True  # nothing of it is left, and that was told
        names, binary = self._columns(table)
        chunk = Chunk(*self._name(table), names, self._view.lsn, *part, binary)
        rows = await self._send(connection, call, table, encode_request(chunk), within([part]), binary)
        if rows is None:
            return False
        self._progress.rows += rows
        self._forecast()
        return True

    async def tell_emptied(self, call: BulkCall, table: Table) -> None:
        until = self._emptied[table.oid]
        await call(encode_request(Emptied(*self._name(table), self._view.lsn, until)), None)

    async def patch(
        self,
        connection: AsyncConnection[Any],
        call: BulkCall,
        table: Table,
        columns: Sequence[str],
        count: int,
        ranges: Sequence[Range],
    ) -> int:
        """The rows of all keys that are wanted, so many, as far as they lie in these ranges; how many."""
        names, binary = self._columns(table)
        found = {column.name: column for column in await find_columns(connection, table.schema, table.name)}
        key = [found[name] for name in columns]
        place = within(ranges, "t.ctid")
        left, found_rows = count, 0
        while left > 0:
            answer = await call(encode_request(Keys(*self._name(table), self._view.lsn)), None)
            upto, keys = decode(answer, tuple[int, list[list[str]]])
            if not keys:
                raise SeedFailed(f"the target no longer knows what of {table} has changed")
            left -= len(keys)
            request = Patch(*self._name(table), names, self._view.lsn, upto, binary)
            where = f"{of_keys(table, key, keys)}{f' AND ({place})' if place else ''}"
            rows = await self._send(connection, call, table, encode_request(request), where, binary)
            if rows is None:
                raise SeedFailed(f"{table} was emptied while it was brought up to date; it begins anew")
            found_rows += rows
        return found_rows

    def _where(self, table: Table, place: str) -> str:
        return self._narrowed.get(table.oid, WHOLE).where(f"WHERE {place}" if place else "")

    def _name(self, table: Table) -> tuple[str, str]:
        return self._naming.target(table.schema, table.name)

    def _columns(self, table: Table) -> tuple[list[str], bool]:
        """The columns that are copied, and whether all of them in binary form."""
        columns = self._narrowed.get(table.oid, WHOLE).copied(table)
        return [column.name for column in columns], all(column.is_portable for column in columns)

    def key(self, table: Table) -> list[str]:
        """The columns that tell the table's rows apart on both sides; none where there are no such."""
        names, _ = self._columns(table)
        key = table.primary_key if table.primary_key_usable else ()
        return list(key) if set(key) <= set(names) else []

    async def match(
        self, connection: AsyncConnection[Any], call: BulkCall, table: Table, parts: Sequence[Range]
    ) -> int | None:
        """Send what the target compares its rows with; how many it wants. None when the table was emptied:
        then `call` is of no more use."""
        names, _ = self._columns(table)
        key = self.key(table)
        meta = encode_request(Match(*self._name(table), key, names, self._view.lsn))
        if not key:
            return int(await call(meta, None))

        async def body() -> AsyncIterator[bytes]:
            for part in parts:
                where = self._where(table, within([part], "t.ctid"))
                statement = read_digests(table.sql, key, names, where)
                async with self._view.seen(connection):
                    async for block in read_blocks(connection, statement):
                        yield block
                    await self._look(connection, table)

        try:
            return int(await call(meta, body()))
        except _WasEmptied:
            await connection.execute(b"COMMIT")
            return None

    # --- reading ------------------------------------------------------------------------------

    async def _send(
        self,
        connection: AsyncConnection[Any],
        call: BulkCall,
        table: Table,
        meta: bytes,
        where: str,
        binary: bool,
    ) -> int | None:
        """What the target says of the rows; None when the table was emptied."""
        listed = ", ".join(f"t.{quoted(name)}" for name in self._columns(table)[0])
        found = self._where(table, where)
        statement = (
            f"COPY (SELECT {listed} FROM ONLY {table.sql} t {found}) "
            f"TO STDOUT (FORMAT {'binary' if binary else 'text'})"
        )
        try:
            async with self._view.seen(connection):
                return int(await call(meta, self._body(connection, table, statement)))
        except _WasEmptied:
            await connection.execute(b"COMMIT")
            return None

    async def _body(
        self, connection: AsyncConnection[Any], table: Table, statement: str
    ) -> AsyncIterator[bytes]:
        async for block in read_blocks(connection, statement):
            self._progress.bytes += len(block)
            yield block
        await self._look(connection, table)

    async def _look(self, connection: AsyncConnection[Any], table: Table) -> None:
        """While the lock of the chunk is still held: is this still the file that the snapshot knew?"""
        cursor = await connection.execute(
            "SELECT pg_catalog.pg_relation_filenode(%s::pg_catalog.oid::pg_catalog.regclass),"
            " (pg_catalog.pg_current_wal_insert_lsn() - '0/0')::int8",
            (table.oid,),
        )
        row = await cursor.fetchone()
        assert row is not None
        if row[0] is None:
            raise SeedFailed(f"{table} was dropped during the first copy")
        if row[0] != self._files[table.oid]:
            cursor = await connection.execute(f"SELECT EXISTS (SELECT FROM ONLY {table.sql})".encode())
            seen = await cursor.fetchone()
            if seen is not None and seen[0]:
                packed = f"{table} was packed anew (VACUUM FULL, CLUSTER) while it was copied"
                raise SeedFailed(f"{packed}: it begins anew")
            self._emptied[table.oid] = int(row[1])
            raise _WasEmptied

    def _forecast(self) -> None:
        """From what was copied so far; nothing while that would say nothing."""
        progress = self._progress
        total, done = progress.rows_total or 0, progress.rows
        brought = done - progress.rows_kept
        if brought > 0 and done < total:
            elapsed = (time.time_ns() - progress.started_ns) / 1e9
            progress.eta_s = round(elapsed * (total - done) / brought, 1)
        else:
            progress.eta_s = None


def of_keys(table: Table, key: Sequence[Found], keys: Sequence[Sequence[str]]) -> str:
    """A condition that holds for the rows of a table `t` that have one of the keys, which are text. Pure."""
    columns = tuple(
        TargetColumn(column.name, column.type, column.type_oid, False, column.equals or "=") for column in key
    )
    target, shape = TargetTable(table.schema, table.name, columns), Shape(tuple(range(len(key))), -1)
    arrays = ", ".join(f"ARRAY[{', '.join(_literal(row[at]) for row in keys)}]" for at in shape.sent)
    names = ", ".join(f"c{at}" for at in shape.sent)
    same = " AND ".join(
        f"t.{quoted(column.name)} {column.equals} {staged(target, shape, at)}"
        for at, column in enumerate(columns)
    )
    return f"EXISTS (SELECT FROM unnest({arrays}) s({names}) WHERE {same})"


def _literal(text: str) -> str:
    """A string as SQL writes it whatever the server's settings."""
    escaped = text.replace("\\", "\\\\").replace("'", "''")
    return f"E'{escaped}'::pg_catalog.text"
