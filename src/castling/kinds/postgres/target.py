"""The replica of a PostgreSQL stream: changes and progress in one transaction.

Progress is a row that the same transaction writes (see `progress`), so what is applied and how far
apply has come can't disagree, whatever dies. While it applies, the session is a replication
replica: the target's foreign keys and ordinary triggers stay quiet, because the source has
already obeyed them.

Each table's net change is first tried as a set inside a savepoint; where that is not exact it
is replayed row by row in the source's order (see `writer`). The target need not sync at each commit: the
journal keeps everything until the progress is flushed (`durable`).

An error that speaks of one table puts that table on hold (see `holds`): the transaction is rolled back, the
hold is noted, and the next session does the same work without the table.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import psycopg
from psycopg import AsyncConnection

from castling.config import DatabaseSettings
from castling.errors import PartsMoved, TargetError, TargetForeign, TargetUnreachable
from castling.kinds.base import Commit, Held, Piece
from castling.kinds.postgres import progress
from castling.kinds.postgres.changes import coalesce
from castling.kinds.postgres.connect import connect
from castling.kinds.postgres.definition_watch import DefinitionWatch
from castling.kinds.postgres.emptied import EmptiedTables
from castling.kinds.postgres.foreign_watch import ForeignWatch
from castling.kinds.postgres.holds import TablePositions, concerns_table, copy_mends
from castling.kinds.postgres.large_object_target import LargeObjectTarget
from castling.kinds.postgres.large_objects import LARGE_OBJECTS_PREFIX
from castling.kinds.postgres.mapping import Mapping
from castling.kinds.postgres.progress import application_name, origin_name
from castling.kinds.postgres.sequence_target import SequenceTarget
from castling.kinds.postgres.sequences import SEQUENCES_PREFIX
from castling.kinds.postgres.writer import MessageHandler, Writer, register_fields

__all__ = ["PostgresTarget"]

_SESSION = (
    "SET session_replication_role = replica",
    "SET synchronous_commit = off",
    "SET search_path = pg_catalog",
    "SET DateStyle = ISO",
    "SET IntervalStyle = postgres",
    "SET TimeZone = 'UTC'",
    "SET extra_float_digits = 1",
    "SET bytea_output = hex",
    "SET lc_monetary = 'C'",
    "SET statement_timeout = 0",
    "SET idle_in_transaction_session_timeout = 0",
    "SET lock_timeout = '30s'",
    "SET row_security = off",
    # the rows of a batch are found by their key: the planner, which knows nothing of a staging table's
    # rows, would rather read and hash the whole table for a few thousand of them. No index, and it still can
    "SET random_page_cost = 0.1",
    "SET seq_page_cost = 100",
    "SET enable_mergejoin = off",  # it reads the index from its beginning
)

#: what passes by itself
_RETRY = (
    psycopg.errors.DeadlockDetected,
    psycopg.errors.SerializationFailure,
    psycopg.errors.LockNotAvailable,
    psycopg.errors.QueryCanceled,
    psycopg.errors.InsufficientResources,
    psycopg.errors.OperatorIntervention,
)


class PostgresTarget:
    """Implements `kinds.base.Target`. `seeded`: it must hold a finished first copy."""

    def __init__(
        self,
        group: str,
        settings: DatabaseSettings,
        *,
        seeded: bool = False,
        definitions: DefinitionWatch | None = None,
        foreign: ForeignWatch | None = None,
        on_error: Literal["resync", "hold", "stop"] = "stop",
    ) -> None:
        self._seeded = seeded
        self._group = group
        self._on_error = on_error
        self._settings = settings
        self._application = application_name(group)
        self._progress = 0
        self._connection: AsyncConnection[Any] | None = None
        self._writer: Writer | None = None
        self._emptied = EmptiedTables(group)
        self._positions = TablePositions(group)
        self._in_transaction = False
        self._definitions = definitions
        self._foreign = foreign
        self._looking: list[asyncio.Task[None]] = []
        self._sequences = SequenceTarget(group)
        self._large_objects = LargeObjectTarget(group)
        #: by prefix: what is done with messages of the stream
        self._handlers: dict[str, MessageHandler] = {
            SEQUENCES_PREFIX: self._sequences.take,
            LARGE_OBJECTS_PREFIX: self._large_objects.take,
        }

    # --- connecting ---------------------------------------------------------------------------

    async def open(self) -> int:
        connection = await connect(
            self._settings, application_name=self._application, error=TargetUnreachable
        )
        self._connection = connection
        register_fields(connection.adapters)
        with self._explained():
            for statement in _SESSION:
                await connection.execute(statement.encode())
            await connection.execute(progress.CREATE_PROGRESS.encode())
            await progress.take_origin(connection, self._group)
            self._writer = Writer(connection, Mapping(connection), self._handlers)
            await self._emptied.load(connection)
            await self._sequences.load(connection)
            await self._large_objects.load(connection)
            self._progress = await progress.read(connection, self._group)
            await self._positions.do_wanted_and_load(connection, self._progress)
        watches = [each for each in (self._definitions, self._foreign) if each is not None]
        if not self._looking:
            self._looking = [asyncio.create_task(each.run()) for each in watches]
        if self._seeded and not self._progress:
            raise TargetForeign(
                f"{self._settings.host}:{self._settings.port}/{self._settings.dbname} does not hold the copy"
                f" of group {self._group}",
                hint="does the address lead to the database that was copied to? If its copy is gone,"
                f" `castling group start {self._group} --reseed` makes a new one",
            )
        return self._positions.start(self._progress)

    # --- transactions -------------------------------------------------------------------------

    def _connected(self) -> AsyncConnection[Any]:
        connection = self._connection
        if connection is None or connection.closed:
            raise TargetUnreachable("the connection to the target is gone")
        return connection

    async def _begin(self) -> AsyncConnection[Any]:
        connection = self._connected()
        if not self._in_transaction:
            await connection.execute(b"BEGIN ISOLATION LEVEL READ COMMITTED; SET CONSTRAINTS ALL DEFERRED")
            self._in_transaction = True
        return connection

    async def apply(self, pieces: Sequence[Piece]) -> None:
        changes = self._emptied.keep(self._positions.keep(pieces, self._progress))
        if not changes:
            return
        try:
            with self._explained():
                await self._begin()
                assert self._writer is not None
                await self._writer.write(coalesce(changes))
        except TargetError as error:
            await self._hold(error)
            raise

    async def commit(self, commit: Commit) -> None:
        with self._explained():
            connection = await self._begin()
            await self._emptied.settle(connection, commit.offset, self._positions.elsewhere())
            await self._positions.settle(connection, commit.offset, self._progress)
            if commit.offset > self._progress:  # not while a released table is brought up to it
                await progress.write(connection, self._group, commit.offset, commit.committed_ns)
            await connection.execute(b"COMMIT")
            self._in_transaction = False
            self._progress = max(self._progress, commit.offset)
            self._emptied.committed()
            self._positions.committed()

    async def _hold(self, error: TargetError) -> None:
        """Put the table of which an error speaks on hold: PartsMoved. Nothing when that is not the way."""
        assert self._writer is not None
        tables, sqlstate = self._writer.at, error.context.get("sqlstate")
        if self._on_error == "stop" or error.retryable or not tables or not concerns_table(sqlstate):
            return
        await self.rollback()
        told = None if sqlstate is None else str(sqlstate)
        with self._explained():
            connection = self._connected()
            copy = self._on_error == "resync" and copy_mends(error)
            await self._positions.hold(connection, tables, self._progress, str(error), told, copy=copy)
        names = [str(relation) for relation in tables]
        raise PartsMoved(f"on hold: {', '.join(names)}: {error}", parts=names) from error

    async def rollback(self) -> None:
        connection = self._connection
        self._emptied.rolled_back()
        self._positions.rolled_back()
        if connection is None or connection.closed or not self._in_transaction:
            return
        self._in_transaction = False
        if self._writer is not None:
            self._writer.forget_stages()
        try:
            await connection.execute(b"ROLLBACK")
        except psycopg.Error:  # the connection is gone, and the transaction with it
            await connection.close()

    async def durable(self) -> int:
        if self._in_transaction:
            return 0  # an open transaction of several parts: ask again after it
        with self._explained():
            connection = self._connected()
            moved = await self._positions.do_wanted(connection, self._progress)
            if moved:
                raise PartsMoved(f"as asked for: {', '.join(moved)}", parts=moved)
            await progress.flush(connection)
        return self._positions.pinned(self._progress)

    # --- parts --------------------------------------------------------------------------------

    def held(self) -> list[Held]:
        return self._positions.held()

    async def give_up(self, part: str) -> None:
        with self._explained():
            await self._positions.give_up(self._connected(), part, self._progress)

    async def close(self) -> None:
        looking, self._looking = self._looking, []
        for each in looking:
            each.cancel()
        if looking:
            await asyncio.wait(looking)
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """psycopg's errors as ours: what may pass is retryable, the rest names the SQLSTATE."""
        try:
            yield
        except TargetError:
            raise
        except _RETRY as error:
            raise TargetUnreachable(
                f"the target could not go on: {error.diag.message_primary or error}"
            ) from error
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            raise TargetUnreachable(f"the connection to the target broke: {error}") from error
        except psycopg.Error as error:
            raise TargetError(
                f"the target refused to apply: {error.diag.message_primary or error}",
                hint="mend the cause on the target and start the group again",
                sqlstate=error.sqlstate,
                table=error.diag.table_name,
            ) from error

    def report(self) -> dict[str, Any]:
        return {
            "connected": self._connection is not None and not self._connection.closed,
            "origin": origin_name(self._group),
            "sets": None if self._writer is None else self._writer.sets,
            "replays": None if self._writer is None else self._writer.replays,
            "warnings": self._sequences.warnings()
            + self._large_objects.warnings()
            + ([] if self._foreign is None else self._foreign.warnings()),
            "foreign_writes": None if self._foreign is None else self._foreign.report(),
            "definitions": None if self._definitions is None else self._definitions.report(),
            "beside": {
                "sequences": self._sequences.report(),
                "large objects": self._large_objects.report(),
            },
        }
