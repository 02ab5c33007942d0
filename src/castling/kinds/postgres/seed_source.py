"""Sends the first copy: consistent views of the source, read by several connections at once.

The first view is that of the stream's own slot: exactly the point where the stream begins, so that copy and
stream fit together without overlap or gap; the stream itself may already run. A copy that breaks off goes on
with a view of then: the target is told which tables that has, says which of their rows have changed since
they were copied (`seed_renew`), gets those once more, and then what it still lacks.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import psycopg
from psycopg import AsyncConnection

from castling.config import DatabaseSettings, GroupSettings
from castling.errors import CastlingError, SeedFailed, SeedLost, SourceError, SourceUnreachable
from castling.kinds.base import Bulk, BulkCall, PartProgress, SeedProgress
from castling.kinds.postgres.catalog import Table, is_left_behind, read_tables
from castling.kinds.postgres.connect import connect
from castling.kinds.postgres.giving_up import drop_slot
from castling.kinds.postgres.naming import Naming
from castling.kinds.postgres.narrowing import Part as Narrowing
from castling.kinds.postgres.narrowing import read_parts
from castling.kinds.postgres.publication import (
    ensure_publication,
    note_beginning,
    partitions_by_root,
    read_beginning,
)
from castling.kinds.postgres.resync_source import copy_tables
from castling.kinds.postgres.seed_plan import (
    Begin,
    Finish,
    Have,
    Part,
    Range,
    Renew,
    Renewed,
    Resume,
    Resumed,
    Schema,
    There,
    chosen_by,
    cut,
    decode,
    encode,
    encode_request,
    gaps,
    likely_rows,
)
from castling.kinds.postgres.seed_read import WHOLE, Reader
from castling.kinds.postgres.session import slot_name
from castling.kinds.postgres.source_view import View, open_view
from castling.kinds.postgres.tools import find_tool, run_tool

__all__ = ["PostgresSeedSource"]

#: bytes handed to the link at once
_BLOCK = 256 << 10


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
        self._application = f"castling seed {group}"
        self._group = group
        self._settings = settings
        self._database = database
        self._naming = Naming(settings.rename)
        self._slot = slot_name(group, backup)
        self._postgres_bin = postgres_bin
        self._stack = contextlib.AsyncExitStack()
        self._view: View | None = None
        #: where the stream begins, by which the copy is known
        self._begun = 0
        self._is_new = True
        self._tables: list[Table] = []  # as published
        self._copied: list[Table] = []  # as copied: partitions instead of their roots
        self._everything: list[Table] = []  # as the snapshot has them
        self._narrowed: dict[int, Narrowing] = {}
        self._files: dict[int, int] = {}
        self._server_version = 0
        self.progress = SeedProgress()
        self.parts: list[PartProgress] = []

    # --- beginning ----------------------------------------------------------------------------

    async def begin(self) -> None:
        async with self._setup() as setup:
            # its journal is empty, so nothing that it held back is needed
            await drop_slot(setup, self._slot, within_s=self.TAKEOVER_S)
            self._tables = await ensure_publication(setup, self._slot, self._settings)
            self._view = await self._stack.enter_async_context(
                open_view(self._application, self._database, slot=self._slot)
            )
            self._begun, self._is_new = self._view.lsn, True
            await note_beginning(setup, self._slot, self._begun)

    async def resume(self) -> None:
        async with self._setup() as setup:
            found = await read_beginning(setup, self._slot)
            if found is None:
                raise SeedLost(f"the slot or the publication {self._slot} is gone from the source")
            self._begun, published = found
            tables = await read_tables(setup, measured=False)
            self._tables = [table for table in tables if table.oid in published]
            self._is_new = False
            # made here, it waits for the transactions that are open now
            self._view = await self._stack.enter_async_context(open_view(self._application, self._database))

    @contextlib.asynccontextmanager
    async def _setup(self) -> AsyncIterator[AsyncConnection[Any]]:
        """A connection for what comes before a view, and its errors as ours."""
        await self.close()
        self.progress = SeedProgress(started_ns=time.time_ns())
        setup = await connect(self._database, application_name=f"castling setup {self._group}")
        try:
            self._server_version = setup.info.server_version
            yield setup
        except psycopg.OperationalError as error:
            raise SourceUnreachable(f"the source broke off: {error}") from error
        except psycopg.Error as error:
            raise SourceError(
                f"the source refused the first copy's beginning: {error.diag.message_primary}"
            ) from error
        finally:
            await setup.close()

    # --- running ------------------------------------------------------------------------------

    async def run(self, bulk: Bulk) -> None:
        try:
            await self._run(bulk)
        except psycopg.OperationalError as error:
            raise SourceUnreachable(f"the source broke off during the first copy: {error}") from error
        except psycopg.Error as error:
            raise SeedFailed(
                f"the source refused the first copy: {error.diag.message_primary or error}"
            ) from error

    async def _run(self, bulk: Bulk) -> None:
        view = self._view
        assert view is not None, "begin or resume first"
        async with view.session() as main:
            async with view.seen(main):
                await self._look(main)
            self._estimate()
            call = await bulk.open()
            state = await (self._tell_begin(call, main) if self._is_new else self._tell_resume(call))
            if not state.finished:
                await self._bring(bulk, call, main, view, state)
            self.progress.phase = "done"
            self.progress.eta_s = 0.0

    async def _bring(
        self, bulk: Bulk, call: BulkCall, main: AsyncConnection[Any], view: View, state: Resumed
    ) -> None:
        """Everything that the target lacks."""
        if self._settings.seed.schema == "create" and not state.indexed:
            self.progress.phase = "schema"
            await call(encode_request(self._schema()), _whole(await self._dump(view)))
        reader = Reader(view, self._files, self._narrowed, self._naming, self.progress)
        if not self._is_new:
            self.progress.phase = "renewing"
        renewed = decode(await call(encode_request(Renew(view.lsn)), _whole(self._told_parts())), Renewed)
        if renewed.filled:
            self.progress.phase = "matching"
            renewed = await self._match_all(bulk, main, reader, renewed)
        there = await self._there(call)
        await self._patch_all(call, main, reader, renewed, there)
        self.progress.phase = "data"
        await self._copy_all(bulk, main, reader, there)
        self.progress.phase = "indexes"
        await call(encode_request(Finish(view.lsn, self._begun, self._server_version)), None)

    async def _tell_begin(self, call: BulkCall, main: AsyncConnection[Any]) -> Resumed:
        create = self._settings.seed.schema == "create"
        lock = secrets.randbits(62)
        naming, chosen = self._naming.digest, chosen_by(self._settings)
        match = self._settings.seed.existing == "match"
        begin = Begin(self._names(), create, lock, naming, self._begun, chosen, match)
        await main.execute("SELECT pg_catalog.pg_advisory_lock(%s)", (lock,))
        await call(encode_request(begin), None)
        await main.execute("SELECT pg_catalog.pg_advisory_unlock(%s)", (lock,))
        return Resumed(1, finished=False, indexed=False)

    async def _tell_resume(self, call: BulkCall) -> Resumed:
        create = self._settings.seed.schema == "create"
        chosen = chosen_by(self._settings)
        resume = Resume(self._names(), create, self._naming.digest, self._begun, chosen)
        state = decode(await call(encode_request(resume), None), Resumed)
        self.progress.attempts = state.attempt
        return state

    def _names(self) -> list[tuple[str, str]]:
        """As all requests call the tables: by their names on the target."""
        return [self._naming.target(table.schema, table.name) for table in self._tables]

    def _told_parts(self) -> bytes:
        return encode(
            [
                Part(
                    *self._naming.target(table.schema, table.name),
                    table.oid,
                    self._files[table.oid],
                    [column.name for column in self._narrowed.get(table.oid, WHOLE).copied(table)],
                )
                for table in self._copied
            ]
        )

    async def _there(self, call: BulkCall) -> dict[tuple[str, str], There]:
        """What the target has already, by table."""
        found: dict[tuple[str, str], There] = {}
        after = ("", "")
        while page := decode(await call(encode_request(Have(after)), None), list[There]):
            found.update({(each.schema, each.name): each for each in page})
            after = (page[-1].schema, page[-1].name)
        self.progress.rows_kept = sum(each.rows for each in found.values())
        self.progress.rows += self.progress.rows_kept
        self.progress.bytes += sum(each.bytes for each in found.values())
        return found

    async def _look(self, main: AsyncConnection[Any]) -> None:
        """The tables as the snapshot has them, with the file that each has there (see `emptied`)."""
        self._everything = await read_tables(main)
        seen = {table.oid: table for table in self._everything}
        gone = [str(table) for table in self._tables if table.oid not in seen]
        if gone:
            raise SeedFailed(f"tables were dropped as the first copy began: {', '.join(gone[:10])}")
        self._tables = [seen[table.oid] for table in self._tables]
        partitions = partitions_by_root(self._everything)
        self._copied = [
            part
            for table in self._tables
            for part in ([table] if table.kind == "r" else partitions.get(str(table), []))
        ]
        cursor = await main.execute(
            "SELECT oid, relfilenode FROM pg_catalog.pg_class WHERE oid = ANY(%s::oid[])",
            ([table.oid for table in self._copied],),
        )
        self._files = {int(oid): int(file) for oid, file in await cursor.fetchall()}
        self._narrowed = await read_parts(main, self._slot)

    def _estimate(self) -> None:
        self.progress.rows_total = sum(likely_rows(table) for table in self._copied)
        self.progress.bytes_total = sum(table.bytes for table in self._copied)
        self.progress.tables_total = len(self._copied)

    async def _dump(self, view: View) -> bytes:
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
            "--exclude-schema=castling_ddl",
            f"--snapshot={view.snapshot}",
            *left_out,
            settings=self._database,
            application=self._application,
        )

    def _schema(self) -> Schema:
        return Schema(self._server_version, owners=self._settings.seed.owners == "carry")

    def _root_is_chosen(self, table: Table) -> bool:
        return any(str(root) in table.ancestors for root in self._tables)

    # --- data ---------------------------------------------------------------------------------

    async def _patch_all(
        self,
        call: BulkCall,
        main: AsyncConnection[Any],
        reader: Reader,
        renewed: Renewed,
        there: dict[tuple[str, str], There],
    ) -> None:
        """Read once more what has changed since it was copied."""
        tables = {self._naming.target(table.schema, table.name): table for table in self._copied}
        for schema, name, columns, count in renewed.keyed:
            ranges = there[schema, name].ranges if (schema, name) in there else []
            rows = await reader.patch(main, call, tables[schema, name], columns, count, ranges)
            if (schema, name) in renewed.filled:
                self.progress.rows += rows
            else:
                self.progress.rows_renewed += rows

    async def _match_all(
        self, bulk: Bulk, main: AsyncConnection[Any], reader: Reader, renewed: Renewed
    ) -> Renewed:
        """Compare the tables that hold rows of others; what they lack is wanted like what has changed."""
        tables = {self._naming.target(table.schema, table.name): table for table in self._copied}
        keyed = list(renewed.keyed)
        call = await bulk.open()
        pages = await self._pages(main, [tables[name] for name in renewed.filled])
        for name in renewed.filled:
            table = tables[name]
            parts = cut([(0, None)], table, pages[table.oid], chunk_rows=self._settings.seed.chunk_rows)
            wanted = await reader.match(main, call, table, list(parts))
            if wanted is None:
                call = await bulk.open()
                await reader.tell_emptied(call, table)
            elif wanted:
                keyed.append((*name, reader.key(table), wanted))
        return Renewed(renewed.restarted, keyed, renewed.filled)

    async def _copy_all(
        self, bulk: Bulk, main: AsyncConnection[Any], reader: Reader, there: dict[tuple[str, str], There]
    ) -> None:
        waiting: asyncio.Queue[tuple[Table, Range]] = asyncio.Queue()
        left: dict[int, int] = {}
        pages = await self._pages(main, self._copied)
        for table in sorted(self._copied, key=lambda table: -table.bytes):
            found = there.get(self._naming.target(table.schema, table.name))
            missing = gaps(found.ranges if found else [])
            parts = list(cut(missing, table, pages[table.oid], chunk_rows=self._settings.seed.chunk_rows))
            left[table.oid] = len(parts)
            self.progress.tables_done += not parts
            for part in parts:
                waiting.put_nowait((table, part))
        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(min(self._settings.seed.jobs, max(waiting.qsize(), 1))):
                    tasks.create_task(self._copy_some(bulk, reader, waiting, left))
        except BaseExceptionGroup as group:
            raise _first(group) from None

    async def _pages(self, connection: AsyncConnection[Any], tables: Sequence[Table]) -> dict[int, int]:
        """Blocks of each, by oid; 0 of one that is gone. No table's lock outlives the look at it."""
        cursor = await connection.execute(
            "SELECT oid, pg_catalog.pg_relation_size(oid::pg_catalog.regclass)"
            " / pg_catalog.current_setting('block_size')::int8 FROM pg_catalog.unnest(%s::oid[]) t(oid)",
            ([table.oid for table in tables],),
        )
        return {int(oid): int(pages or 0) for oid, pages in await cursor.fetchall()}

    async def _copy_some(
        self,
        bulk: Bulk,
        reader: Reader,
        waiting: asyncio.Queue[tuple[Table, Range]],
        left: dict[int, int],
    ) -> None:
        assert self._view is not None
        async with self._view.session() as connection:
            call = await bulk.open()
            while not waiting.empty():
                table, part = waiting.get_nowait()
                if not await reader.copy(connection, call, table, part):
                    call = await bulk.open()  # a call that is given up takes its connection with it
                    await reader.tell_emptied(call, table)
                left[table.oid] -= 1
                self.progress.tables_done += left[table.oid] == 0

    async def copy_parts(self, wanted: bytes, bulk: Bulk) -> None:
        await copy_tables(self._slot, self._settings, self._database, wanted, bulk, self.parts)

    async def close(self) -> None:
        self._view = None
        await self._stack.aclose()


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
