"""Copies single tables anew while capture and apply run.

They are read from a view of exactly one position of the stream (`source_view`). Each chunk is a short
transaction of that snapshot, so that no lock outlives it.

A table that was rewritten on the source meanwhile (TRUNCATE does not wait for snapshots) is given up and
copied from a later snapshot the next time: there is nothing that would have to be told about it.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import psycopg
from psycopg import AsyncConnection

from castling.config import DatabaseSettings, GroupSettings
from castling.errors import CastlingError, SeedFailed, SourceError, SourceUnreachable, StateError, TargetError
from castling.kinds.base import Bulk, BulkCall, PartProgress
from castling.kinds.postgres.catalog import Table, read_tables
from castling.kinds.postgres.copy_out import read_blocks
from castling.kinds.postgres.naming import Naming
from castling.kinds.postgres.narrowing import Part, read_parts
from castling.kinds.postgres.resync_plan import Anew, PartRequest, Refused, decode_wanted, encode_part
from castling.kinds.postgres.seed_plan import chunks
from castling.kinds.postgres.source_view import View, open_view
from castling.kinds.postgres.statements import quoted

__all__ = ["copy_tables"]

_WHOLE = Part()
_UNKNOWN = "the stream has no such table on the source (of a partitioned one, name its partitions)"


async def copy_tables(
    publication: str,
    settings: GroupSettings,
    database: DatabaseSettings,
    wanted: bytes,
    bulk: Bulk,
    shown: list[PartProgress],
) -> None:
    """Copy all that are wanted, one after the other; the one that is under way is in `shown`. Raises the
    last error that may pass; those tables are wanted again. `publication`: the stream's, where only what
    is in it can be brought up to the stream."""
    names = decode_wanted(wanted)
    if not names:
        return
    application = f"castling resync {publication}"
    try:
        async with open_view(application, database) as view:
            await _Copies(view, publication, settings, bulk, names, shown).run()
    except psycopg.OperationalError as error:
        raise SourceUnreachable(f"the source broke off while tables were copied anew: {error}") from error
    except psycopg.Error as error:
        raise SourceError(
            f"the source can't be copied from: {error.diag.message_primary or error}"
        ) from error


class _Copies:
    """The tables that one view is copied for."""

    def __init__(
        self,
        view: View,
        publication: str,
        settings: GroupSettings,
        bulk: Bulk,
        names: list[tuple[str, str]],
        shown: list[PartProgress],
    ) -> None:
        self._view = view
        self._publication = publication
        self._settings = settings
        self._bulk = bulk
        #: what is wanted, as the target calls it
        self._names = names
        self._naming = Naming(settings.rename)
        self._parts: dict[int, Part] = {}
        self._shown = shown
        #: the file of each table in the snapshot, by oid
        self._files: dict[int, int] = {}
        self._call: BulkCall | None = None

    async def run(self) -> None:
        """What one table meets keeps no other back; what may pass is raised when all have been tried."""
        chosen = await self._look()
        passing: CastlingError | None = None
        for schema, name in self._names:
            table = chosen.get((schema, name))
            try:
                if table is None:
                    # where names are carried, the stream may not have come to the one that it has here
                    view = self._view.lsn if self._settings.ddl == "carry" else 0
                    await self._tell(Refused(schema, name, _UNKNOWN, view))
                else:
                    await self._copy(table)
            except (SeedFailed, StateError) as error:
                passing = error  # rewritten meanwhile, or not wanted any longer
            except TargetError as error:
                if error.retryable:
                    raise
                # else the target has noted why, and does not want it any longer
        if passing is not None:
            raise passing

    async def _look(self) -> dict[tuple[str, str], Table]:
        """By their names on the target the tables of the stream as their changes are logged: partitions
        instead of their roots."""
        keeper = self._view.keeper
        cursor = await keeper.execute(b"SELECT oid, relfilenode FROM pg_catalog.pg_class")
        self._files = {int(oid): int(file) for oid, file in await cursor.fetchall()}
        cursor = await keeper.execute(
            "SELECT schemaname, tablename FROM pg_catalog.pg_publication_tables WHERE pubname = %s",
            (self._publication,),
        )
        streamed = {(str(schema), str(name)) for schema, name in await cursor.fetchall()}
        self._parts = await read_parts(keeper, self._publication)
        tables = {(table.schema, table.name): table for table in await read_tables(keeper)}
        return {self._naming.target(*name): tables[name] for name in streamed & tables.keys()}

    async def _tell(self, request: PartRequest, body: AsyncIterator[bytes] | None = None) -> None:
        call, self._call = self._call or await self._bulk.open(), None
        await call(encode_part(request), body)
        self._call = call  # one that has failed may be closed

    async def _copy(self, table: Table) -> None:
        names = [column.name for column in self._parts.get(table.oid, _WHOLE).copied(table)]
        schema, name = self._naming.target(table.schema, table.name)
        progress = PartProgress(f"{schema}.{name}", table.bytes, time.time_ns())
        self._shown.append(progress)
        try:
            async with self._view.session() as reader:
                rows = self._rows(reader, table, names, progress)
                request = Anew(schema, name, names, self._view.lsn, self._naming.digest)
                await self._tell(request, rows)
        except psycopg.OperationalError:
            raise
        except psycopg.Error as error:
            reason = f"the source refused to be read: {error.diag.message_primary or error}"
            await self._tell(Refused(schema, name, reason))
        finally:
            self._shown.remove(progress)

    async def _rows(
        self, reader: AsyncConnection[Any], table: Table, names: list[str], progress: PartProgress
    ) -> AsyncIterator[bytes]:
        listed = ", ".join(quoted(name) for name in names)
        part = self._parts.get(table.oid, _WHOLE)
        for place in chunks(table, await self._pages(table), chunk_rows=self._settings.seed.chunk_rows):
            statement = f"COPY (SELECT {listed} FROM ONLY {table.sql} {part.where(place)}) TO STDOUT"
            async with self._view.seen(reader):
                async for block in read_blocks(reader, statement):
                    progress.rows += block.count(b"\n")  # those within values are written otherwise
                    progress.bytes += len(block)
                    yield block
                await self._is_as_seen(reader, table)

    async def _pages(self, table: Table) -> int:
        cursor = await self._view.keeper.execute(
            "SELECT pg_catalog.pg_relation_size(%s::pg_catalog.oid::pg_catalog.regclass)"
            " / pg_catalog.current_setting('block_size')::int8",
            (table.oid,),
        )
        row = await cursor.fetchone()
        return int(row[0] or 0) if row else 0

    async def _is_as_seen(self, reader: AsyncConnection[Any], table: Table) -> None:
        """While the lock of the chunk is still held: is this still the file that the snapshot knew?"""
        cursor = await reader.execute(
            "SELECT pg_catalog.pg_relation_filenode(%s::pg_catalog.oid::pg_catalog.regclass)", (table.oid,)
        )
        row = await cursor.fetchone()
        if row is None or row[0] != self._files.get(table.oid):
            raise SeedFailed(f"{table} was rewritten while it was copied anew; it is tried again")
