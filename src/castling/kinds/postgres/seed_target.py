"""Takes the first copy: definitions, rows, then indexes and constraints, then the starting position.

What it has begun it writes down in the target itself (`castling.seed`), so that a copy that
broke off is told from rows that somebody else put there: only the former are ever emptied. How far it has
come stands there too (`seed_parts`), so that it goes on where it broke off.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, NoReturn

import psycopg
from psycopg import AsyncConnection

from castling.config import DatabaseSettings
from castling.errors import (
    SeedFailed,
    SeedLost,
    TargetError,
    TargetForeign,
    TargetNotEmpty,
    TargetTaken,
    TargetUnreachable,
)
from castling.kinds.base import Records
from castling.kinds.postgres import progress
from castling.kinds.postgres.catalog import table_name
from castling.kinds.postgres.connect import TEXT_FORM, connect
from castling.kinds.postgres.decoder import PostgresDecoder
from castling.kinds.postgres.emptied import CREATE_EMPTIED
from castling.kinds.postgres.holds import CREATE_POSITIONS
from castling.kinds.postgres.lane_rows import CREATE_LANES
from castling.kinds.postgres.lsn import lsn_text
from castling.kinds.postgres.naming import OTHER_NAMING, OTHER_NAMING_HINT, Naming
from castling.kinds.postgres.neighbours import MAKE_ALONE, TAKEN_HINT, begin_alone, read_taken
from castling.kinds.postgres.resync_target import TableCopies
from castling.kinds.postgres.seed_again import drop_of_roots
from castling.kinds.postgres.seed_archive import SeedArchive
from castling.kinds.postgres.seed_match import match_table
from castling.kinds.postgres.seed_parts import CREATE_PARTS, SeedParts
from castling.kinds.postgres.seed_plan import (
    Begin,
    Chunk,
    Emptied,
    Finish,
    Have,
    Keys,
    Match,
    Part,
    Patch,
    Renew,
    Request,
    Resume,
    Resumed,
    Schema,
    decode,
    decode_request,
    encode,
)
from castling.kinds.postgres.seed_renew import Renewal
from castling.kinds.postgres.sequence_target import CREATE_SEQUENCES
from castling.kinds.postgres.statements import column_list, quoted

__all__ = ["CREATE_NOTES", "CREATE_STATE", "PostgresSeedTarget"]


CREATE_STATE = (
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
"""
)
_TABLES = (
    CREATE_EMPTIED
    + CREATE_SEQUENCES
    + progress.CREATE_PROGRESS
    + CREATE_POSITIONS
    + CREATE_LANES
    + CREATE_PARTS
)
#: everything that a target notes
CREATE_NOTES = CREATE_STATE + _TABLES
#: keys told at once: as many, and about as many bytes
_KEYS, _KEYS_BYTES = 5000, 256 << 10
#: calls that one session serves, at most: it remembers something of every table that it has seen
_SERVES_MOST = 1000
#: tables that are analyzed by one statement; each is a transaction of its own all the same
_ANALYZED = 50


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
        decoder: Callable[[], PostgresDecoder] = PostgresDecoder,
    ) -> None:
        self._group = group
        self._application = f"castling seed {group}"
        self._naming = naming or Naming({})
        self._settings = settings
        self._postgres_bin = postgres_bin
        self._begun: list[tuple[str, str]] = []
        self._archive: SeedArchive | None = None
        self._version = 0
        self._parts = SeedParts(group)
        self._decoder = decoder
        #: sessions between two calls, with how many they have served
        self._idle: list[tuple[AsyncConnection[Any], int]] = []
        self.records: Records | None = None
        #: later copies of single tables
        self._copies = TableCopies(group, settings, naming=self._naming.digest)
        self.wanted = self._copies.wanted
        self.handle_part = self._copies.handle

    async def handle(self, meta: bytes, body: AsyncIterator[bytes]) -> bytes:
        request = decode_request(meta)
        try:
            return await self._answer(request, body)
        except psycopg.OperationalError as error:
            raise TargetUnreachable(f"the target broke off during the first copy: {error}") from error
        except psycopg.Error as error:
            raise TargetError(
                f"the target refused the first copy: {error.diag.message_primary or error}",
                hint="mend the cause on the target; the copy then goes on",
                sqlstate=error.sqlstate,
            ) from error

    async def _answer(self, request: Request, body: AsyncIterator[bytes]) -> bytes:
        match request:
            case Begin():
                return await self._begin(request)
            case Resume():
                return await self._resume(request)
            case Schema():
                return await self._definitions(request, body)
            case Renew():
                return await self._renew(request, body)
            case Have() | Keys():
                return await self._tell(request)
            case Chunk() | Patch():
                return await self._rows(request, body)
            case Match():
                return await self._match(request, body)
            case Emptied():
                return await self._emptied(request)
            case Finish():
                return await self._finish(request)

    async def _connect(self, *, durable: bool = False) -> AsyncConnection[Any]:
        """`durable`: what is committed survives a crash; rows need not, before the copy is finished."""
        connection = await connect(
            self._settings, application_name=self._application, error=TargetUnreachable
        )
        for statement in (
            "SET session_replication_role = replica",
            *TEXT_FORM,
            "SET statement_timeout = 0",
            "SET idle_in_transaction_session_timeout = 0",
            f"SET synchronous_commit = {'on' if durable else 'off'}",
        ):
            await connection.execute(statement.encode())
        return connection

    @contextlib.asynccontextmanager
    async def _session(self) -> AsyncIterator[AsyncConnection[Any]]:
        """A session that is not durable, used again by calls that follow; one that failed is not."""
        connection, served = self._idle.pop() if self._idle else (await self._connect(), 0)
        try:
            yield connection
        except BaseException:
            await connection.close()
            raise
        if served < _SERVES_MOST:
            self._idle.append((connection, served + 1))
        else:
            await connection.close()

    async def _end_sessions(self) -> None:
        while self._idle:
            await self._idle.pop()[0].close()

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
            await self._end_attempts(connection)
            await begin_alone(connection)  # nor do two make the schema at once, which PostgreSQL refuses
            await connection.execute((CREATE_STATE + _TABLES).encode())
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
            await self._parts.begin(connection, request.lsn, request.chosen, match=request.match)
            self._begun = request.tables
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
            if request.match:
                continue  # whatever is there
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
                hint="empty these tables, choose another database, or let their rows be compared with the"
                ' source\'s, and replaced where they differ: seed.existing = "match"',
                tables=filled,
            )
        if request.create and mine and missing:
            self._refuse_half(missing)
        if mine:
            await connection.execute(f"TRUNCATE {', '.join(mine)}".encode())

    def _refuse_half(self, missing: list[str]) -> NoReturn:
        raise TargetNotEmpty(
            f"the target has some of the tables to create, but not {', '.join(missing[:10])}",
            hint='make these there too, as on the source, and set seed.schema = "expect";'
            " or drop the group's tables there, so that all are created anew",
            tables=missing,
        )

    async def _end_attempts(self, connection: AsyncConnection[Any]) -> None:
        """What attempts before still do here, PostgreSQL's own programs among them, is broken off."""
        await self._end_sessions()
        await connection.execute(
            "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity"
            " WHERE application_name = %s AND datname = pg_catalog.current_database()"
            " AND pid <> pg_catalog.pg_backend_pid()",
            (self._application,),
        )

    async def _resume(self, request: Resume) -> bytes:
        """Go on with what is there. SeedLost when it is not the copy that the source end speaks of."""
        if request.naming != self._naming.digest:
            raise SeedFailed(OTHER_NAMING, hint=OTHER_NAMING_HINT)
        connection = await self._connect(durable=True)
        try:
            self._version = connection.info.server_version
            await self._end_attempts(connection)
            cursor = await connection.execute(
                b"SELECT pg_catalog.to_regclass('castling.seed_attempt') IS NOT NULL"
            )
            row = await cursor.fetchone()
            if row is None or not row[0]:
                raise SeedLost("the target holds no unfinished copy")
            cursor = await connection.execute(
                "SELECT finished_at IS NOT NULL FROM castling.seed WHERE stream = %s AND created = %s",
                (self._group, request.create),
            )
            row = await cursor.fetchone()
            found = await self._parts.resume(connection, request.lsn, request.chosen)
            if row is None or found is None:
                raise SeedLost(
                    "the target does not hold the copy that was begun, or other tables are chosen now"
                )
            self._begun = request.tables
            return encode(Resumed(found[0], bool(row[0]), found[1]))
        finally:
            await connection.close()

    # --- definitions --------------------------------------------------------------------------

    async def _definitions(self, request: Schema, body: AsyncIterator[bytes]) -> bytes:
        self._archive = SeedArchive(
            self._settings,
            postgres_bin=self._postgres_bin,
            application=self._application,
            versions=(request.server_version, self._version),
            owners=request.owners,
            naming=self._naming,
        )
        await self._archive.receive(body)
        missing = await self._missing()
        if len(missing) == len(self._begun):
            await self._archive.restore("pre-data")
        elif missing:
            self._refuse_half(missing)
        return b""

    async def _missing(self) -> list[str]:
        """The tables that are not there. The definitions are restored in one transaction: that is all, or
        none, unless a table was made or renamed on the source since."""
        async with self._session() as connection:
            cursor = await connection.execute(
                "SELECT pg_catalog.to_regclass(name) IS NULL"
                " FROM pg_catalog.unnest(%s::text[]) WITH ORDINALITY n(name, place) ORDER BY place",
                ([f"{quoted(schema)}.{quoted(name)}" for schema, name in self._begun],),
            )
            answers = zip(self._begun, await cursor.fetchall(), strict=True)
            return [table_name(*table) for table, (is_missing,) in answers if is_missing]

    # --- rows ---------------------------------------------------------------------------------

    async def _renew(self, request: Renew, body: AsyncIterator[bytes]) -> bytes:
        """All that is there becomes what the view at `request.lsn` has of it, or is noted as wanted."""
        wanted = decode(b"".join([data async for data in body]), list[Part])
        connection = await self._connect(durable=True)
        try:
            begins = Renewal.begins(await self._parts.known(connection))
            records = None
            if begins is not None:
                if self.records is None:
                    raise SeedFailed("there is no journal at hand to bring the copy up with")
                records = self.records(begins, request.lsn)
            async with connection.transaction():
                renewal = Renewal(connection, self._parts, request.lsn, decoder=self._decoder)
                return encode(await renewal.run(wanted, records))
        finally:
            await connection.close()

    async def _tell(self, request: Have | Keys) -> bytes:
        async with self._session() as connection:
            if isinstance(request, Have):
                return encode(await self._parts.there(connection, request.after))
            async with connection.transaction():
                await self._parts.hold(connection)
                table = (request.schema, request.table)
                await self._parts.is_at(connection, *table, request.lsn, renewing=True)
                return encode(await self._parts.keys(connection, *table, limit=_KEYS, size=_KEYS_BYTES))

    async def _rows(self, request: Chunk | Patch, body: AsyncIterator[bytes]) -> bytes:
        """One chunk is one transaction, with the note that it is there."""
        columns = column_list(request.columns)
        sql = f"{quoted(request.schema)}.{quoted(request.table)}"
        form = "binary" if request.binary else "text"
        table, size = (request.schema, request.table), 0
        async with self._session() as connection:
            async with connection.transaction(), connection.cursor() as cursor:
                await self._parts.hold(connection)
                renewing = isinstance(request, Patch)
                await self._parts.is_at(connection, *table, request.lsn, renewing=renewing)
                async with cursor.copy(f"COPY {sql}{columns} FROM STDIN (FORMAT {form})".encode()) as copy:
                    async for data in body:
                        size += len(data)
                        await copy.write(data)
                rows = cursor.rowcount
                if isinstance(request, Patch):
                    await self._parts.patched(connection, *table, request.lsn, request.upto)
                else:
                    await self._parts.add(connection, request, rows, size)
            return str(rows).encode()

    async def _match(self, request: Match, body: AsyncIterator[bytes]) -> bytes:
        connection = await self._connect(durable=True)
        try:
            async with connection.transaction():
                await self._parts.hold(connection)
                await self._parts.is_at(connection, request.schema, request.table, request.lsn)
                return str(await match_table(connection, self._parts, request, body)).encode()
        finally:
            await connection.close()

    async def _emptied(self, request: Emptied) -> bytes:
        connection = await self._connect(durable=True)
        try:
            async with connection.transaction():
                await self._parts.hold(connection)
                await connection.execute(
                    "INSERT INTO castling.seed_emptied VALUES (%s, %s, %s, %s::pg_catalog.pg_lsn)"
                    " ON CONFLICT (stream, schema, name) DO UPDATE SET until = excluded.until",
                    (self._group, request.schema, request.table, lsn_text(request.until)),
                )
                await self._parts.cover(connection, request)
            return b""
        finally:
            await connection.close()

    # --- finishing ----------------------------------------------------------------------------

    async def _finish(self, request: Finish) -> bytes:
        connection = await self._connect(durable=True)
        try:
            await self._parts.is_whole(connection, request.lsn)
            if self._archive is not None:
                # a copy that broke off here before may have left the same indexes and constraints
                await drop_of_roots(connection, await self._archive.contents("post-data"), self._naming)
                await self._archive.restore("post-data", "--clean", "--if-exists")
                await self._parts.note_indexed(connection)
            await self._analyze()
            # only with the origin in hand: no session of before may commit its own progress after ours
            await progress.take_origin(connection, self._group)
            async with connection.transaction():
                await self._parts.hold(connection)
                await self._place(connection, request)
                await connection.execute(
                    "UPDATE castling.seed SET finished_at = pg_catalog.now() WHERE stream = %s",
                    (self._group,),
                )
        finally:
            await connection.close()
        await self.close()
        return b""

    async def _analyze(self) -> None:
        """What it finds need not be durable before the copy is: that waits for all that was before."""
        names = [f"{quoted(schema)}.{quoted(name)}" for schema, name in self._begun]
        async with self._session() as connection:
            for at in range(0, len(names), _ANALYZED):
                await connection.execute(f"ANALYZE {', '.join(names[at : at + _ANALYZED])}".encode())

    async def _place(self, connection: AsyncConnection[Any], request: Finish) -> None:
        """The stream is applied from its beginning on, because of what beside rows it carries; tables that
        are of a later view leave out what that has already (see `holds`)."""
        if request.lsn > request.begun:
            await connection.execute(
                "INSERT INTO castling.table_positions (stream, schema, name, state, lsn)"
                " SELECT stream, schema, name, 'ahead', lsn FROM castling.seed_part WHERE stream = %s"
                " ON CONFLICT (stream, schema, name) DO UPDATE SET state = 'ahead', lsn = excluded.lsn",
                (self._group,),
            )
        await progress.write(connection, self._group, request.begun, None)
        await self._parts.forget(connection)

    async def close(self) -> None:
        await self._end_sessions()
        if self._archive is not None:
            self._archive.close()
            self._archive = None
