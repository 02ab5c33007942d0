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
from collections.abc import Sequence
from typing import Any, Literal

import psycopg
from psycopg import AsyncConnection

from castling.config import DatabaseSettings, GroupSettings
from castling.errors import PartsMoved, TargetError, TargetForeign, TargetUnreachable
from castling.kinds.base import Commit, Held, Piece
from castling.kinds.postgres import progress
from castling.kinds.postgres.audit_marks import MARK_PREFIX, REPAIR_PREFIX, has_mark, mark_in
from castling.kinds.postgres.audit_mend import AuditMend
from castling.kinds.postgres.audit_stop import AuditStop
from castling.kinds.postgres.changes import Change, coalesce
from castling.kinds.postgres.ddl_apply import SchemaChanges, TablesRefused
from castling.kinds.postgres.ddl_message import DDL_PREFIX, runs
from castling.kinds.postgres.definition_watch import DefinitionWatch
from castling.kinds.postgres.emptied import EmptiedTables, rewritten
from castling.kinds.postgres.foreign_watch import ForeignWatch
from castling.kinds.postgres.holds import TablePositions, concerns_table, copy_mends
from castling.kinds.postgres.lane_rows import LaneRows, read_families
from castling.kinds.postgres.lanes import Table, assign
from castling.kinds.postgres.large_object_target import LargeObjectTarget
from castling.kinds.postgres.large_objects import LARGE_OBJECTS_PREFIX
from castling.kinds.postgres.mapping import Mapping
from castling.kinds.postgres.messages import Relation
from castling.kinds.postgres.progress import application_name, origin_name
from castling.kinds.postgres.sequence_target import SequenceTarget
from castling.kinds.postgres.sequences import SEQUENCES_PREFIX
from castling.kinds.postgres.target_session import explained, open_session
from castling.kinds.postgres.writer import MessageHandler, Writer

__all__ = ["PostgresTarget"]


async def _pass_over(connection: AsyncConnection[Any], content: bytes) -> None:
    """A message that says all by its place."""


class PostgresTarget:
    """Implements `kinds.base.Target`. `seeded`: it must hold a finished first copy, made with the `naming` of
    this digest."""

    def __init__(
        self,
        group: str,
        settings: DatabaseSettings,
        *,
        seeded: bool = False,
        definitions: DefinitionWatch | None = None,
        foreign: ForeignWatch | None = None,
        on_error: Literal["resync", "hold", "stop"] = "stop",
        naming: str = "",
        schema: GroupSettings | None = None,
    ) -> None:
        self._naming = naming
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
        self.lanes = LaneRows(group)
        self._schema = (
            None if schema is None else SchemaChanges(group, schema, self._positions, self._emptied)
        )
        self._in_transaction = False
        self._definitions = definitions
        self._foreign = foreign
        self._looking: list[asyncio.Task[None]] = []
        self._sequences = SequenceTarget(group)
        self._large_objects = LargeObjectTarget(group)
        self._audit = AuditStop(group)
        self._mend = AuditMend(group, lambda: self._positions.elsewhere())
        #: by prefix: what is done with messages of the stream
        self._handlers: dict[str, MessageHandler] = {
            SEQUENCES_PREFIX: self._sequences.take,
            LARGE_OBJECTS_PREFIX: self._large_objects.take,
            MARK_PREFIX: _pass_over,
            REPAIR_PREFIX: self._mend.take,
        }

    # --- connecting ---------------------------------------------------------------------------

    async def open(self) -> int:
        connection = self._connection = await open_session(self._settings, self._application)
        with explained():
            await connection.execute(progress.CREATE_PROGRESS.encode())
            await progress.take_origin(connection, self._group)
            self._writer = Writer(connection, Mapping(connection), self._handlers)
            await self._emptied.load(connection)
            await self._sequences.load(connection)
            await self._large_objects.load(connection)
            await self._audit.load(connection)
            if self._schema is not None:
                await self._schema.load(connection)
            self._progress = await progress.read(connection, self._group)
            self._progress, ahead = await self.lanes.take_over(connection, self._progress)
            await self._positions.do_wanted_and_load(connection, self._progress, ahead)
            if self._seeded and self._progress:
                await self._is_named_so(connection)
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

    async def _is_named_so(self, connection: AsyncConnection[Any]) -> None:
        """Other rules would take the stream to other tables than the copy's."""
        cursor = await connection.execute(
            "SELECT COALESCE(pg_catalog.to_jsonb(s) ->> 'naming', '') FROM castling.seed s WHERE stream = %s",
            (self._group,),
        )
        row = await cursor.fetchone()
        if row is not None and row[0] != self._naming:
            raise TargetForeign(
                f"the copy of group {self._group} was made with other rules in `rename`",
                hint="put the rules back as they were, or make a new copy:"
                f" `castling group start {self._group} --reseed`",
            )

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

    def kept(self, pieces: Sequence[Piece]) -> list[Change]:
        """The changes that their tables still need and can take, in order."""
        return self._emptied.keep(self._positions.keep(pieces, self._progress))

    async def apply(self, pieces: Sequence[Piece]) -> None:
        if self.stops(pieces):
            await self._apply_to_stop(pieces)
        else:
            await self._apply_runs(pieces)

    def stops(self, pieces: Sequence[Piece]) -> bool:
        """Whether an audit may ask for a stop among `pieces`."""
        return self._audit.until is not None or has_mark(pieces)

    async def _apply_to_stop(self, pieces: Sequence[Piece]) -> None:
        """One transaction of the source after the other, with a stop where an audit wants to see the target:
        what comes before it is committed, and what comes after is not there."""
        before: Commit | None = None
        for piece in pieces:
            until = self._audit.until
            if until is not None and piece.offset >= until:
                if before is not None:
                    await self.commit(before)
                with explained():
                    await self._audit.reached(self._connected())
            await self._apply_runs([piece])
            before = piece.commit
            mark = mark_in(piece)
            if mark is not None and before is not None and piece.offset >= self._progress:
                await self.commit(before)
                with explained():
                    await self._audit.arm(self._connected(), mark)

    async def _apply_runs(self, pieces: Sequence[Piece]) -> None:
        for run, message in runs(pieces):
            await self._apply_rows(run)
            if message is not None and self._schema is not None:
                await self._change_schema(self._schema, message.content, run[-1].offset)

    async def _change_schema(self, schema: SchemaChanges, content: bytes, offset: int) -> None:
        assert self._writer is not None
        self._writer.heard.add(DDL_PREFIX)
        try:
            with explained():
                await schema.take(self._begin, self._writer, content, offset=offset, progress=self._progress)
        except TablesRefused as refused:
            await self.rollback()
            tables = [Relation(0, *table, "d", ()) for table in refused.tables]
            await self.hold(refused.error, tables, self._progress, changed=True)
            raise refused.error from refused

    async def _apply_rows(self, pieces: Sequence[Piece]) -> None:
        changes = self.kept(pieces)
        if not changes:
            return
        assert self._writer is not None
        try:
            with explained():
                await self._begin()
                await self._writer.write(coalesce(changes))
        except TargetError as error:
            tables = self._writer.at
            await self.rollback()
            await self.hold(error, tables, self._progress)
            raise

    async def commit(self, commit: Commit) -> None:
        await self._hold_rewritten(commit.offset)
        with explained():
            connection = await self._begin()
            await self._emptied.settle(connection)
            await self._positions.settle(connection, commit.offset, self._progress)
            await self.lanes.settle(connection, commit.offset)
            if commit.offset > self._progress:  # not while a released table is brought up to it
                await progress.write(connection, self._group, commit.offset, commit.committed_ns)
            await connection.execute(b"COMMIT")
            self._in_transaction = False
            self._progress = max(self._progress, commit.offset)
            self._emptied.committed()
            self._positions.committed()
            self.lanes.committed()
            if self._schema is not None:
                self._schema.committed()

    async def _hold_rewritten(self, offset: int) -> None:
        """Tables that were not copied, and whose TRUNCATE has not come."""
        late = self._emptied.late(offset, self._positions.elsewhere())
        if late:
            error = rewritten(late)
            await self.rollback()
            await self.hold(error, [Relation(0, *table, "d", ()) for table in late], self._progress)
            raise error

    async def hold(
        self, error: TargetError, tables: Sequence[Relation], offset: int, *, changed: bool = False
    ) -> None:
        """Put the tables of which an error speaks on hold, where they are up to `offset`: PartsMoved. Nothing
        when that is not the way. `changed`: their schema could not be changed, whatever the error says."""
        sqlstate = error.context.get("sqlstate")
        if self._on_error == "stop" or error.retryable or not tables:
            return
        if not changed and not concerns_table(sqlstate):
            return
        told = None if sqlstate is None else str(sqlstate)
        with explained():
            connection = self._connected()
            copy = self._on_error == "resync" and copy_mends(error)
            await self._positions.hold(connection, tables, offset, str(error), told, copy=copy)
        names = [str(relation) for relation in tables]
        raise PartsMoved(f"on hold: {', '.join(names)}: {error}", parts=names) from error

    async def rollback(self) -> None:
        connection = self._connection
        self._emptied.rolled_back()
        self._positions.rolled_back()
        self.lanes.rolled_back()
        if self._schema is not None:
            self._schema.rolled_back()
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
        with explained():
            connection = self._connected()
            moved = await self._positions.do_wanted(connection, self._progress)
            if moved:
                raise PartsMoved(f"as asked for: {', '.join(moved)}", parts=moved)
            await progress.flush(connection)
        return self._positions.pinned(self._progress)

    def applied(self) -> int:
        return self._progress

    async def settle(self) -> None:
        return  # nothing is ever under way here

    # --- lanes beside it (see `lanes_target`) -------------------------------------------------

    @property
    def in_transaction(self) -> bool:
        return self._in_transaction

    @property
    def is_even(self) -> bool:
        """Every table is where the stream is, or stands still: what comes now can be split by table."""
        return (
            not self._in_transaction
            and self._progress > 0
            and self.lanes.passed
            and self._positions.are_still
            and self._emptied.are_none
        )

    @property
    def heard(self) -> set[str]:
        """The prefixes of the messages that were handed over."""
        return set() if self._writer is None else self._writer.heard

    def reach(self, offset: int) -> None:
        """Lanes have committed everything before `offset`."""
        self._progress = max(self._progress, offset)

    async def align(self) -> None:
        """Note as the stream's progress, and as each lane's, what `reach` has said."""
        if not self.lanes.live or self.lanes.even_at == self._progress:
            return
        with explained():
            connection = self._connected()
            async with connection.transaction():
                await progress.move(connection, self._group, self._progress)
                await self.lanes.settle(connection, self._progress)
            self.lanes.committed()

    async def begin_lanes(self, number: int) -> dict[Table, int]:
        """Give each table of the target its lane, now that all are as far. The lane of each."""
        with explained():
            connection = self._connected()
            lane_of = assign(*await read_families(connection), number)
            async with connection.transaction():
                await progress.move(connection, self._group, self._progress)
                await self.lanes.begin(connection, lane_of, number)
            self.lanes.begun()
            return lane_of

    # --- parts --------------------------------------------------------------------------------

    def held(self) -> list[Held]:
        return self._positions.held()

    async def give_up(self, part: str) -> None:
        with explained():
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

    def report(self) -> dict[str, Any]:
        return {
            "connected": self._connection is not None and not self._connection.closed,
            "origin": origin_name(self._group),
            "audit_stops": self._audit.stops,
            "audit_paused_s": self._audit.last_paused_s,
            "sets": None if self._writer is None else self._writer.sets,
            "replays": None if self._writer is None else self._writer.replays,
            "warnings": self._sequences.warnings()
            + self._large_objects.warnings()
            + ([] if self._schema is None else self._schema.warnings())
            + ([] if self._foreign is None else self._foreign.warnings()),
            "schema_changes": None if self._schema is None else self._schema.report(),
            "foreign_writes": None if self._foreign is None else self._foreign.report(),
            "definitions": None if self._definitions is None else self._definitions.report(),
            "beside": {
                "sequences": self._sequences.report(),
                "large objects": self._large_objects.report(),
            },
        }
