"""Sends the first copy: one consistent view of the source, read by several connections at once.

Creating the slot exports a snapshot of exactly the point where its stream begins, so the copy
and the stream fit together without overlap or gap. The connection that made it stays idle until
every reader has taken the snapshot; the stream itself may already run on another.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

import psycopg
from psycopg import AsyncConnection

from castling.config import DatabaseSettings, GroupSettings
from castling.errors import CastlingError, SeedFailed, SourceError, SourceUnreachable
from castling.kinds.base import Bulk, BulkCall, PartProgress, SeedProgress
from castling.kinds.postgres.catalog import Table, is_left_behind, read_tables
from castling.kinds.postgres.connect import connect
from castling.kinds.postgres.giving_up import drop_slot
from castling.kinds.postgres.lsn import parse_lsn
from castling.kinds.postgres.naming import Naming
from castling.kinds.postgres.narrowing import Part, read_parts
from castling.kinds.postgres.publication import ensure_publication, note_beginning, partitions_of
from castling.kinds.postgres.replication import ReplicationConnection
from castling.kinds.postgres.resync_source import copy_tables
from castling.kinds.postgres.seed_plan import (
    Begin,
    Chunk,
    Finish,
    Schema,
    chunks,
    encode_request,
    likely_rows,
)
from castling.kinds.postgres.session import slot_name
from castling.kinds.postgres.tools import find_tool, run_tool

__all__ = ["PostgresSeedSource"]

#: COPY data handed to the link at once, bytes
_BLOCK = 256 << 10
_WHOLE = Part()


class PostgresSeedSource:
    """Implements `kinds.base.SeedSource`."""

    #: how long to wait for a predecessor's connection to let go of the slot, seconds
    TAKEOVER_S = 20.0

    def __init__(
        self,
        group: str,
        backup: str,
        settings: GroupSettings,
        database: DatabaseSettings,
        *,
        postgres_bin: str | None,
    ) -> None:
        self._group = group
        self._settings = settings
        self._database = database
        self._naming = Naming(settings.rename)
        self._slot = slot_name(group, backup)
        self._postgres_bin = postgres_bin
        self._holder: ReplicationConnection | None = None
        self._snapshot = ""
        self._lsn = 0
        self._tables: list[Table] = []  # as published
        self._copied: list[Table] = []  # as copied: partitions instead of their roots
        self._everything: list[Table] = []  # as the snapshot has them
        self._parts: dict[int, Part] = {}
        self._files: dict[int, int] = {}
        self._emptied: dict[int, tuple[Table, int]] = {}
        self._server_version = 0
        self.progress = SeedProgress()
        self.parts: list[PartProgress] = []

    # --- beginning ----------------------------------------------------------------------------

    async def begin(self) -> None:
        await self.close()
        self.progress = SeedProgress(started_ns=time.time_ns())
        setup = await connect(self._database, application_name=f"castling setup {self._group}")
        try:
            self._server_version = setup.info.server_version
            # its journal is empty, so nothing that it held back is needed
            await drop_slot(setup, self._slot, within_s=self.TAKEOVER_S)
            self._tables = await ensure_publication(setup, self._slot, self._settings)
            self._holder = await self._create_slot()
            await note_beginning(setup, self._slot, self._lsn)
        except psycopg.OperationalError as error:
            raise SourceUnreachable(f"the source broke off: {error}") from error
        except psycopg.Error as error:
            raise SourceError(
                f"the source refused the stream's beginning: {error.diag.message_primary}"
            ) from error
        finally:
            await setup.close()

    async def _create_slot(self) -> ReplicationConnection:
        """The slot, and the connection that keeps its snapshot alive as long as it does nothing else."""
        holder = ReplicationConnection(self._database, application_name=f"castling seed {self._group}")
        try:
            await holder.open()
            # standbys that are set to keep it in step may then be promoted (see `promotion`)
            kept = (
                "(SNAPSHOT 'export', FAILOVER true)" if self._server_version >= 170000 else "EXPORT_SNAPSHOT"
            )
            rows = await holder.query(f"CREATE_REPLICATION_SLOT {self._slot} LOGICAL pgoutput {kept}")
        except BaseException:
            holder.close()
            raise
        self._lsn, self._snapshot = parse_lsn(str(rows[0][1])), str(rows[0][2])
        return holder

    # --- running ------------------------------------------------------------------------------

    async def run(self, bulk: Bulk) -> None:
        try:
            await self._run(bulk)
        except psycopg.OperationalError as error:
            raise SourceUnreachable(f"the source broke off during the first copy: {error}") from error
        except psycopg.Error as error:
            raise SeedFailed(f"the source refused the first copy: {error.diag.message_primary}") from error

    async def _run(self, bulk: Bulk) -> None:
        main = await self._reader()
        try:
            async with self._view(main):
                await self._look(main)
            self._estimate()
            call = await bulk.open()
            create = self._settings.seed.schema == "create"
            names = [self._naming.target(table.schema, table.name) for table in self._tables]
            lock = secrets.randbits(62)
            await main.execute("SELECT pg_catalog.pg_advisory_lock(%s)", (lock,))
            await call(encode_request(Begin(names, create, lock, self._naming.digest)), None)
            await main.execute("SELECT pg_catalog.pg_advisory_unlock(%s)", (lock,))
            if create:
                self.progress.phase = "schema"
                await call(encode_request(self._schema()), _whole(await self._dump()))
            self.progress.phase = "data"
            await self._copy_all(bulk, main)
            self.progress.phase = "indexes"
            emptied = [
                (*self._naming.target(table.schema, table.name), until)
                for table, until in self._emptied.values()
            ]
            await call(encode_request(Finish(self._lsn, self._server_version, emptied)), None)
            self.progress.phase = "done"
            self.progress.eta_s = 0.0
        finally:
            await main.close()

    async def _look(self, main: AsyncConnection[Any]) -> None:
        """The tables as the snapshot has them, with the file that each has there (see `emptied`)."""
        self._everything = await read_tables(main)
        seen = {table.oid: table for table in self._everything}
        gone = [str(table) for table in self._tables if table.oid not in seen]
        if gone:
            raise SeedFailed(f"tables were dropped as the first copy began: {', '.join(gone[:10])}")
        self._tables = [seen[table.oid] for table in self._tables]
        self._copied = [
            part
            for table in self._tables
            for part in ([table] if table.kind == "r" else partitions_of(table, self._everything))
        ]
        cursor = await main.execute(
            "SELECT oid, relfilenode FROM pg_catalog.pg_class WHERE oid = ANY(%s::oid[])",
            ([table.oid for table in self._copied],),
        )
        self._files = {int(oid): int(file) for oid, file in await cursor.fetchall()}
        self._parts = await read_parts(main, self._slot)
        self._emptied = {}

    def _estimate(self) -> None:
        self.progress.rows_total = sum(likely_rows(table) for table in self._copied)
        self.progress.bytes_total = sum(table.bytes for table in self._copied)
        self.progress.tables_total = len(self._copied)

    async def _reader(self) -> AsyncConnection[Any]:
        """A connection with the session's settings; `_view` lets it see the exported snapshot."""
        connection = await connect(
            self._database, application_name=f"castling seed {self._group}", autocommit=True
        )
        try:
            for statement in (
                "SET search_path = pg_catalog",
                "SET DateStyle = ISO",
                "SET IntervalStyle = postgres",
                "SET TimeZone = 'UTC'",
                "SET extra_float_digits = 1",
                "SET statement_timeout = 0",
                "SET lc_monetary = 'C'",
                "SET idle_in_transaction_session_timeout = 0",
                "SET row_security = off",
            ):
                await connection.execute(statement.encode())
        except psycopg.Error:
            await connection.close()
            raise
        return connection

    @contextlib.asynccontextmanager
    async def _view(self, connection: AsyncConnection[Any]) -> AsyncIterator[None]:
        """A transaction that sees exactly the exported snapshot. Short: it keeps the locks it takes, and a
        TRUNCATE that waits for them makes everybody behind it wait."""
        begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
        await connection.execute(f"{begin}; SET TRANSACTION SNAPSHOT '{self._snapshot}'".encode())
        yield
        await connection.execute(b"COMMIT")

    async def _dump(self) -> bytes:
        """The definitions of everything the group's tables need, as an archive."""
        program = find_tool("pg_dump", server_version=self._server_version, configured=self._postgres_bin)
        chosen = {table.oid for table in self._tables}
        left_out = [
            f"--exclude-table={table.sql}"
            for table in self._everything
            if table.oid not in chosen
            and not (table.is_partition and self._root_is_chosen(table))
            and not is_left_behind(table, self._settings)
        ]
        return await run_tool(
            program,
            "--format=custom",
            "--schema-only",
            "--no-publications",
            "--no-subscriptions",
            "--exclude-schema=castling",
            f"--snapshot={self._snapshot}",
            *left_out,
            settings=self._database,
        )

    def _schema(self) -> Schema:
        return Schema(self._server_version, owners=self._settings.seed.owners == "carry")

    def _root_is_chosen(self, table: Table) -> bool:
        return any(str(root) in table.ancestors for root in self._tables)

    # --- data ---------------------------------------------------------------------------------

    async def _copy_all(self, bulk: Bulk, main: AsyncConnection[Any]) -> None:
        waiting: asyncio.Queue[tuple[Table, int, str]] = asyncio.Queue()
        left: dict[int, int] = {}
        for table in sorted(self._copied, key=lambda table: -table.bytes):
            pages = await self._pages(main, table)
            parts = list(chunks(table, pages, chunk_rows=self._settings.seed.chunk_rows))
            left[table.oid] = len(parts)
            for number, condition in enumerate(parts):
                waiting.put_nowait((table, number, condition))
        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(min(self._settings.seed.jobs, max(waiting.qsize(), 1))):
                    tasks.create_task(self._copy_some(bulk, waiting, left))
        except BaseExceptionGroup as group:
            raise _first(group) from None

    async def _pages(self, connection: AsyncConnection[Any], table: Table) -> int:
        cursor = await connection.execute(
            "SELECT pg_catalog.pg_relation_size(%s::pg_catalog.oid::pg_catalog.regclass)"
            " / pg_catalog.current_setting('block_size')::int8",
            (table.oid,),
        )
        row = await cursor.fetchone()
        return int(row[0]) if row else 0

    async def _copy_some(
        self, bulk: Bulk, waiting: asyncio.Queue[tuple[Table, int, str]], left: dict[int, int]
    ) -> None:
        connection = await self._reader()
        try:
            call = await bulk.open()
            while True:
                try:
                    table, number, condition = waiting.get_nowait()
                except asyncio.QueueEmpty:
                    return
                await self._copy_chunk(connection, call, table, number, condition)
                left[table.oid] -= 1
                self.progress.tables_done += left[table.oid] == 0
        finally:
            await connection.close()

    async def _copy_chunk(
        self, connection: AsyncConnection[Any], call: BulkCall, table: Table, number: int, condition: str
    ) -> None:
        part = self._parts.get(table.oid, _WHOLE)
        columns = part.copied(table)
        binary = all(column.is_portable for column in columns)
        names = [column.name for column in columns]
        request = Chunk(*self._naming.target(table.schema, table.name), names, number, binary)
        listed = ", ".join('"' + name.replace('"', '""') + '"' for name in names)
        statement = (
            f"COPY (SELECT {listed} FROM ONLY {table.sql} {part.where(condition)}) "
            f"TO STDOUT (FORMAT {'binary' if binary else 'text'})"
        )
        async with self._view(connection):
            rows = await call(encode_request(request), self._body(connection, statement))
            await self._note_if_emptied(connection, table)
        self.progress.rows += int(rows)
        self._forecast()

    async def _note_if_emptied(self, connection: AsyncConnection[Any], table: Table) -> None:
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
            self._emptied[table.oid] = (table, int(row[1]))

    async def _body(self, connection: AsyncConnection[Any], statement: str) -> AsyncIterator[bytes]:
        async with connection.cursor() as cursor, cursor.copy(statement.encode()) as copy:
            parts: list[bytes] = []
            size = 0
            async for data in copy:
                parts.append(bytes(data))
                size += len(parts[-1])
                if size >= _BLOCK:
                    self.progress.bytes += size
                    yield b"".join(parts)
                    parts, size = [], 0
            if parts:
                self.progress.bytes += size
                yield b"".join(parts)

    async def copy_parts(self, wanted: bytes, bulk: Bulk) -> None:
        await copy_tables(self._slot, self._settings, self._database, wanted, bulk, self.parts)

    def _forecast(self) -> None:
        """Time left by the rows so far; estimates that are already passed say nothing."""
        progress = self.progress
        total, done = progress.rows_total or 0, progress.rows
        if 0 < done < total:
            elapsed = (time.time_ns() - progress.started_ns) / 1e9
            progress.eta_s = round(elapsed * (total - done) / done, 1)
        else:
            progress.eta_s = None

    async def close(self) -> None:
        if self._holder is not None:
            self._holder.close()
            self._holder = None


async def _whole(data: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(data), _BLOCK):
        yield data[at : at + _BLOCK]


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What failed first; a CastlingError before what it brought down with it."""
    with contextlib.suppress(StopIteration):
        return next(error for error in group.exceptions if isinstance(error, CastlingError))
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
