"""Takes the first copy: definitions, rows, then indexes and constraints, then the starting position.

What it has begun it writes down in the target itself (`castling.seed`), so that a copy that
broke off is told from rows that somebody else put there: only the former are ever emptied.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import psycopg
from psycopg import AsyncConnection

from castling.config import DatabaseSettings
from castling.errors import (
    SeedFailed,
    StateError,
    TargetError,
    TargetForeign,
    TargetNotEmpty,
    TargetTaken,
    TargetUnreachable,
)
from castling.kinds.postgres import progress
from castling.kinds.postgres.catalog import table_name
from castling.kinds.postgres.connect import connect
from castling.kinds.postgres.emptied import CREATE_EMPTIED
from castling.kinds.postgres.holds import CREATE_POSITIONS
from castling.kinds.postgres.lane_rows import CREATE_LANES
from castling.kinds.postgres.lsn import lsn_text
from castling.kinds.postgres.naming import OTHER_NAMING, OTHER_NAMING_HINT, Naming
from castling.kinds.postgres.neighbours import MAKE_ALONE, TAKEN_HINT, begin_alone, read_taken
from castling.kinds.postgres.resync_target import TableCopies
from castling.kinds.postgres.seed_again import drop_of_roots
from castling.kinds.postgres.seed_archive import SeedArchive
from castling.kinds.postgres.seed_plan import Begin, Chunk, Finish, Schema, decode_request
from castling.kinds.postgres.sequence_target import CREATE_SEQUENCES
from castling.kinds.postgres.statements import quoted

__all__ = ["PostgresSeedTarget"]


_STATE = (
    MAKE_ALONE
    + """
    CREATE SCHEMA IF NOT EXISTS castling;
    CREATE TABLE IF NOT EXISTS castling.seed (
        stream text PRIMARY KEY,
        tables text[] NOT NULL,
        created boolean NOT NULL,
        finished_at timestamptz,
        naming text NOT NULL DEFAULT ''
    );
    ALTER TABLE castling.seed ADD COLUMN IF NOT EXISTS naming text NOT NULL DEFAULT '';
    CREATE TABLE IF NOT EXISTS castling.seed_chunk (
        stream text NOT NULL,
        relation text NOT NULL,
        number int NOT NULL,
        row_count bigint NOT NULL,
        PRIMARY KEY (stream, relation, number)
    );
"""
)


class PostgresSeedTarget:
    """Implements `kinds.base.SeedTarget`. All requests speak of tables by their names on the target, as the
    source end's `naming` has them; it must be the same as this end's."""

    def __init__(
        self,
        group: str,
        settings: DatabaseSettings,
        *,
        postgres_bin: str | None,
        naming: Naming | None = None,
    ) -> None:
        self._group = group
        self._naming = naming or Naming({})
        self._settings = settings
        self._postgres_bin = postgres_bin
        self._begun: Begin | None = None
        self._archive: SeedArchive | None = None
        self._version = 0
        #: later copies of single tables
        self._copies = TableCopies(group, settings, naming=self._naming.digest)
        self.wanted = self._copies.wanted
        self.handle_part = self._copies.handle

    async def handle(self, meta: bytes, body: AsyncIterator[bytes]) -> bytes:
        request = decode_request(meta)
        try:
            if isinstance(request, Begin):
                return await self._begin(request)
            if isinstance(request, Schema):
                return await self._definitions(request, body)
            if isinstance(request, Chunk):
                return await self._chunk(request, body)
            return await self._finish(request)
        except psycopg.OperationalError as error:
            raise TargetUnreachable(f"the target broke off during the first copy: {error}") from error
        except psycopg.Error as error:
            raise TargetError(
                f"the target refused the first copy: {error.diag.message_primary or error}",
                hint="mend the cause on the target; the copy is then begun again",
                sqlstate=error.sqlstate,
            ) from error

    async def _connect(self, *, durable: bool = False) -> AsyncConnection[Any]:
        """`durable`: what is committed survives a crash; rows need not, before the copy is finished."""
        connection = await connect(
            self._settings, application_name=f"castling seed {self._group}", error=TargetUnreachable
        )
        for statement in (
            "SET session_replication_role = replica",
            "SET search_path = pg_catalog",
            "SET DateStyle = ISO",
            "SET TimeZone = 'UTC'",
            "SET IntervalStyle = postgres",
            "SET lc_monetary = 'C'",
            "SET statement_timeout = 0",
            f"SET synchronous_commit = {'on' if durable else 'off'}",
        ):
            await connection.execute(statement.encode())
        return connection

    # --- beginning ----------------------------------------------------------------------------

    async def _begin(self, request: Begin) -> bytes:
        """Make sure the tables are empty, or are ours to empty. The progress of a copy before is forgotten:
        what it stands for is thrown away."""
        if request.naming != self._naming.digest:
            raise SeedFailed(OTHER_NAMING, hint=OTHER_NAMING_HINT)
        connection = await self._connect(durable=True)
        try:
            self._version = connection.info.server_version
            await self._is_not_the_source(connection, request)
            await progress.end_sessions(connection, self._group)
            await begin_alone(connection)  # nor do two make the schema at once, which PostgreSQL refuses
            await connection.execute(
                (
                    _STATE
                    + CREATE_EMPTIED
                    + CREATE_SEQUENCES
                    + progress.CREATE_PROGRESS
                    + CREATE_POSITIONS
                    + CREATE_LANES
                ).encode()
            )
            tables = [table_name(schema, name) for schema, name in request.tables]
            await self._are_free(connection, tables)
            cursor = await connection.execute(
                "SELECT tables FROM castling.seed WHERE stream = %s", (self._group,)
            )
            known = await cursor.fetchone()
            ours = set(known[0]) if known else set()
            await self._empty(connection, request, ours)
            await connection.execute(
                "INSERT INTO castling.seed (stream, tables, created, naming)"
                " VALUES (%(s)s, %(t)s, %(c)s, %(n)s)"
                " ON CONFLICT (stream) DO UPDATE SET finished_at = NULL, tables = %(t)s, naming = %(n)s",
                {
                    "s": self._group,
                    "t": sorted(ours | set(tables)),
                    "c": request.create,
                    "n": request.naming,
                },
            )
            for table in (
                "seed_chunk",
                "seed_emptied",
                "sequences",
                "table_positions",
                "lane_progress",
                "lane_tables",
                "progress",
            ):
                await connection.execute(
                    f"DELETE FROM castling.{table} WHERE stream = %s".encode(), (self._group,)
                )
            self._begun = request
            return b""
        finally:
            await connection.close()

    async def _is_not_the_source(self, connection: AsyncConnection[Any], request: Begin) -> None:
        """Before anything is emptied: with a mistaken address, production would be emptied for a copy."""
        cursor = await connection.execute("SELECT pg_catalog.pg_try_advisory_lock(%s)", (request.lock,))
        row = await cursor.fetchone()
        if row is None or not row[0]:
            raise TargetForeign(
                f"{self._settings.host}:{self._settings.port}/{self._settings.dbname} is the source itself",
                hint="correct the backup's or the primary's database in castling.toml; nothing was changed",
            )
        await connection.execute("SELECT pg_catalog.pg_advisory_unlock(%s)", (request.lock,))

    async def _are_free(self, connection: AsyncConnection[Any], tables: list[str]) -> None:
        """Before anything is emptied: a table that another group fills would be emptied under it."""
        taken = await read_taken(connection, self._group)
        wrong = [f"{name} (group {taken[name]})" for name in tables if name in taken]
        if wrong:
            raise TargetTaken(
                f"another group fills the target's {', '.join(wrong[:10])}", hint=TAKEN_HINT, tables=wrong
            )

    async def _empty(self, connection: AsyncConnection[Any], request: Begin, ours: set[str]) -> None:
        filled, mine, missing = [], [], []
        for schema, name in request.tables:
            sql = f"{quoted(schema)}.{quoted(name)}"
            cursor = await connection.execute("SELECT pg_catalog.to_regclass(%s)", (sql,))
            row = await cursor.fetchone()
            if row is None or row[0] is None:
                missing.append(table_name(schema, name))
                continue
            if table_name(schema, name) in ours:
                mine.append(sql)
                continue
            cursor = await connection.execute(f"SELECT EXISTS (SELECT FROM {sql})".encode())
            row = await cursor.fetchone()
            if row and row[0]:
                filled.append(table_name(schema, name))
            elif request.create:
                raise TargetNotEmpty(
                    f"the target already has {table_name(schema, name)}, and the group is to create it",
                    hint='drop it, or set seed.schema = "expect"',
                )
        if filled:
            raise TargetNotEmpty(
                f"the target already holds rows in {', '.join(filled[:10])}",
                hint="empty these tables, or choose another database; rows are never overwritten",
                tables=filled,
            )
        if request.create and mine and missing:
            raise TargetNotEmpty(
                f"the target has some of the tables to create, but not {', '.join(missing[:10])}",
                hint='make these there too, as on the source, and set seed.schema = "expect";'
                " or drop the group's tables there, so that all are created anew",
                tables=missing,
            )
        if mine:
            await connection.execute(f"TRUNCATE {', '.join(mine)}".encode())

    # --- definitions --------------------------------------------------------------------------

    async def _definitions(self, request: Schema, body: AsyncIterator[bytes]) -> bytes:
        self._archive = SeedArchive(
            self._settings,
            postgres_bin=self._postgres_bin,
            versions=(request.server_version, self._version),
            owners=request.owners,
            naming=self._naming,
        )
        await self._archive.receive(body)
        if not await self._tables_exist():
            await self._archive.restore("pre-data")
        return b""

    async def _tables_exist(self) -> bool:
        """The definitions are restored in one transaction: all the tables are there, or none."""
        if self._begun is None:
            raise StateError("definitions came though no first copy was begun")
        connection = await self._connect()
        try:
            cursor = await connection.execute(
                "SELECT pg_catalog.bool_and(pg_catalog.to_regclass(name) IS NOT NULL)"
                " FROM pg_catalog.unnest(%s::text[]) name",
                ([f"{quoted(schema)}.{quoted(name)}" for schema, name in self._begun.tables],),
            )
            row = await cursor.fetchone()
            return bool(row and row[0])
        finally:
            await connection.close()

    async def _note(self, change: str) -> None:
        connection = await self._connect(durable=True)
        try:
            await connection.execute(
                f"UPDATE castling.seed SET {change} WHERE stream = %s".encode(), (self._group,)
            )
        finally:
            await connection.close()

    # --- rows ---------------------------------------------------------------------------------

    async def _chunk(self, request: Chunk, body: AsyncIterator[bytes]) -> bytes:
        """One chunk is one transaction, with the note that it is there."""
        columns = ", ".join(quoted(name) for name in request.columns)
        sql = f"{quoted(request.schema)}.{quoted(request.table)}"
        form = "binary" if request.binary else "text"
        connection = await self._connect()
        try:
            async with connection.transaction(), connection.cursor() as cursor:
                async with cursor.copy(f"COPY {sql} ({columns}) FROM STDIN (FORMAT {form})".encode()) as copy:
                    async for data in body:
                        await copy.write(data)
                rows = cursor.rowcount
                await connection.execute(
                    "INSERT INTO castling.seed_chunk VALUES (%s, %s, %s, %s)",
                    (self._group, table_name(request.schema, request.table), request.number, rows),
                )
            return str(rows).encode()
        finally:
            await connection.close()

    # --- finishing ----------------------------------------------------------------------------

    async def _finish(self, request: Finish) -> bytes:
        if self._begun is None:
            raise StateError("a first copy was finished though none was begun")
        connection = await self._connect(durable=True)
        try:
            if self._archive is not None:
                # a copy that broke off here before has left the same indexes and constraints
                await drop_of_roots(connection, await self._archive.contents("post-data"), self._naming)
                await self._archive.restore("post-data", "--clean", "--if-exists")
            for schema, name in self._begun.tables:
                await connection.execute(f"ANALYZE {quoted(schema)}.{quoted(name)}".encode())
            for schema, name, until in request.emptied:
                await connection.execute(
                    "INSERT INTO castling.seed_emptied VALUES (%s, %s, %s, %s::pg_catalog.pg_lsn)"
                    " ON CONFLICT (stream, schema, name) DO UPDATE SET until = excluded.until",
                    (self._group, schema, name, lsn_text(until)),
                )
            # only with the origin in hand: no session of before may commit its own progress after ours
            await progress.take_origin(connection, self._group)
            await progress.write(connection, self._group, request.lsn, None)
            await self._note("finished_at = pg_catalog.now()")
        finally:
            await connection.close()
        await self.close()
        return b""

    async def close(self) -> None:
        if self._archive is not None:
            self._archive.close()
            self._archive = None
