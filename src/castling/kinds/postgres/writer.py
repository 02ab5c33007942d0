"""Writes steps into the target's open transaction: as sets, or one row at a time.

The set form is the fast one: rows are copied as bytes, straight into the table where it
only gains rows, else into a staging table from which one statement per operation does the
rest. It counts what it touched. A count that is off, or a constraint that objects, does not
mean that the target is wrong (two rows that swap a unique value object in set form), so the
caller then rolls back to where the set began and replays the changes one by one, in the
source's order: that is the truth, and what fails there is a difference.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from collections.abc import Mapping as Handlers
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import AsyncConnection, AsyncCursor, pq
from psycopg.abc import Buffer
from psycopg.adapt import AdaptersMap, Dumper

from castling.errors import TargetDiverged, TargetError
from castling.kinds.postgres.changes import (
    Delete,
    Insert,
    Message,
    MessageStep,
    NetStep,
    OversizedStep,
    RowStep,
    Step,
    Truncate,
    TruncateStep,
    Update,
)
from castling.kinds.postgres.copying import (
    Group,
    array_of,
    copy_rows,
    groups_of,
    in_order,
    keys_of,
    row_parts,
)
from castling.kinds.postgres.mapping import Mapping
from castling.kinds.postgres.messages import NULL, Relation, Row
from castling.kinds.postgres.row_words import told_by, too_large
from castling.kinds.postgres.statements import (
    COPY_END,
    COPY_START,
    Shape,
    TargetTable,
    copy_table,
    create_stage,
    delete_from_stage,
    delete_listed,
    delete_row,
    insert_from_stage,
    insert_row,
    is_listed,
    replace_row,
    resets_identity,
    shape_of,
    truncate,
    update_from_stage,
    update_row,
)

__all__ = ["MessageHandler", "NotExact", "Writer", "register_fields"]

#: does, in the target's open transaction, what the content of a message asks for
MessageHandler = Callable[[AsyncConnection[Any], bytes], Awaitable[None]]

#: bytes copied with one write to the connection, about
_COPY_BYTES = 120 << 10
#: a step of no more changes than this is cheaper row by row than through a staging table
_FEW = 8
#: bytes of a row that is copied in parts, never as a parameter: each way it goes through keeps it once more
_LARGE_ROW = 1 << 20
#: row changes on their way at once
_PIPELINED = 500


class NotExact(Exception):
    """The set form did not touch the rows it should have; the changes must be replayed one by one."""


#: what says that sets are not the way, though the changes may well be right
_REPLAY = (psycopg.errors.IntegrityError, psycopg.errors.DataError, NotExact)


class _Binary(bytes):
    """A value in its type's binary form."""


class _Text(bytes):
    """A value in its type's text form."""


class _BinaryDumper(Dumper):
    format = pq.Format.BINARY

    def dump(self, obj: bytes) -> Buffer | None:
        return bytes(obj)


class _TextDumper(Dumper):
    format = pq.Format.TEXT

    def dump(self, obj: bytes) -> Buffer | None:
        return bytes(obj)


def register_fields(adapters: AdaptersMap) -> None:
    """Let a connection pass fields on as they are; their type is that of the cast around them."""
    adapters.register_dumper(_Binary, _BinaryDumper)
    adapters.register_dumper(_Text, _TextDumper)


def _parameters(row: Row, indexes: Iterable[int]) -> list[bytes | None]:
    """Fields as statement parameters."""
    found: list[bytes | None] = []
    for index in indexes:
        value = row.fields[index]
        assert value is not None, "a field that was not sent can't be a parameter"
        if value[:4] == b"\xff\xff\xff\xff":
            found.append(None)
        else:
            found.append((_Text if row.text >> index & 1 else _Binary)(value[4:]))
    return found


def _refuse_identifiers(table: TargetTable, changes: Sequence[Insert | Update | Delete]) -> None:
    """A regclass in binary form is a number that means another object here, or none. The stream sends such
    columns as text, but for one that was added while it ran."""
    wrong = table.identifiers
    if not wrong:
        return
    for change in changes:
        new = None if isinstance(change, Delete) else change.new
        old = None if isinstance(change, Insert) else change.old
        for row in (new, old):
            if row is None or row.text & wrong == wrong:
                continue
            for index, value in enumerate(row.fields):
                if wrong >> index & 1 and not row.text >> index & 1 and value not in (None, NULL):
                    raise TargetError(
                        f"{table}.{table.columns[index].name} names objects of the server, and its values"
                        " came in a form that only the source can read",
                        hint="the column was added while the group ran: seed the group anew",
                        table=str(table),
                        column=table.columns[index].name,
                    )


@dataclass(slots=True)
class _Set:
    """A net step whose tables are looked up and whose staging tables are made."""

    step: NetStep
    table: TargetTable
    deletes: list[Group]
    updates: list[Group]
    inserts: list[Group]


def _shape(group: Group) -> Shape:
    return Shape(group.sent, group.text)


def _has_large_row(step: NetStep) -> bool:
    return any(row.size > _LARGE_ROW for rows in (step.updates, step.inserts) for row in rows)


def _tables(step: Step) -> tuple[Relation, ...]:
    if isinstance(step, TruncateStep):
        return step.truncate.relations
    if isinstance(step, OversizedStep):
        return (step.oversized.relation,)
    return () if isinstance(step, MessageStep) else (step.relation,)


class Writer:
    """Statements on one connection. Knows no transactions: its caller opens and ends them."""

    def __init__(
        self,
        connection: AsyncConnection[tuple[object, ...]],
        mapping: Mapping,
        handlers: Handlers[str, MessageHandler] | None = None,
    ) -> None:
        self._connection = connection
        self._mapping = mapping
        self._handlers = handlers or {}
        #: by all that the target's table is: of one whose type has changed, a stage would round values
        self._stages: dict[tuple[TargetTable, Shape], str] = {}
        #: steps written as sets, and steps whose set form was not exact and which were replayed
        self.sets = 0
        self.replays = 0
        #: the tables of the step that is being written: whose error it is
        self.at: tuple[Relation, ...] = ()
        #: the prefixes of the messages that were handed over
        self.heard: set[str] = set()

    def forget_stages(self) -> None:
        """The transaction that made staging tables was rolled back."""
        self._stages.clear()

    async def forget_tables(self) -> None:
        """The target's tables are about to change. Staging tables have columns of their types, which would be
        in the way of that."""
        for name in self._stages.values():
            await self._connection.execute(f"DROP TABLE IF EXISTS pg_temp.{name}".encode())
        self._stages.clear()
        self._mapping.forget()
        self.at = ()

    # --- as sets ------------------------------------------------------------------------------

    async def write(self, steps: Sequence[Step]) -> None:
        """Apply steps in order. TargetDiverged when the target is not what the source's changes presume.

        A message may change tables, so those of the steps behind it are looked up after it.
        """
        run: list[Step] = []
        for step in steps:
            if isinstance(step, MessageStep):
                await self._write_run(run)
                run = []
                self.at = ()
                await self._hand_over(step.message)
            else:
                run.append(step)
        await self._write_run(run)
        self.at = ()

    async def _write_run(self, steps: Sequence[Step]) -> None:
        # every table is looked up, and every staging table made, outside of any savepoint
        ready = [await self._prepare(step) for step in steps]
        for step, one in zip(steps, ready, strict=True):
            self.at = _tables(step)
            if isinstance(one, _Set):
                await self._write_set(one)
            elif isinstance(one, TruncateStep):
                await self._truncate(one.truncate)
            else:
                await self._write_rows(one.changes)

    async def _prepare(self, step: Step) -> _Set | NetStep | RowStep | TruncateStep:
        assert not isinstance(step, MessageStep)
        self.at = _tables(step)
        if isinstance(step, OversizedStep):
            raise too_large(step.oversized)
        if isinstance(step, TruncateStep):
            for relation in step.truncate.relations:
                await self._mapping.table(relation)
            return step
        relation = step.relation
        table = await self._mapping.table(relation)
        _refuse_identifiers(table, step.changes)
        if isinstance(step, RowStep) or (len(step.changes) <= _FEW and not _has_large_row(step)):
            return step
        width = len(relation.columns)
        found = _Set(
            step,
            table,
            keys_of(step.deletes, relation.keys, relation.key_mask),
            groups_of(step.updates, width),
            groups_of(step.inserts, width),
        )
        deletes = (group for group in found.deletes if not is_listed(table, _shape(group), relation.keys))
        inserts = (group for group in found.inserts if group.text)
        for group in (*deletes, *found.updates, *inserts):
            await self._stage(table, _shape(group))
        return found

    async def _stage(self, table: TargetTable, shape: Shape) -> str:
        key = (table, shape)
        name = self._stages.get(key)
        if name is None:
            name = f"castling_stage_{len(self._stages) + 1}"
            await self._connection.execute(f"DROP TABLE IF EXISTS pg_temp.{name}".encode())
            await self._connection.execute(create_stage(name, table, shape).encode())
            self._stages[key] = name
        return name

    async def _write_set(self, found: _Set) -> None:
        await self._connection.execute(b"SAVEPOINT castling_set")
        try:
            await self._write_net(found)
            self.sets += 1
        except _REPLAY:
            await self._connection.execute(b"ROLLBACK TO SAVEPOINT castling_set")
            self.replays += 1
            await self._write_rows(found.step.changes)
        await self._connection.execute(b"RELEASE SAVEPOINT castling_set")

    async def _write_net(self, found: _Set) -> None:
        table, keys = found.table, found.step.relation.keys
        for group in found.deletes:
            if is_listed(table, _shape(group), keys):
                await self._delete_listed(table, group, keys)
                continue
            stage = await self._fill(table, group, keys)
            await self._run_staged(stage, delete_from_stage(stage, table, _shape(group), keys), group)
        for group in found.updates:
            stage = await self._fill(table, group, keys)
            await self._run_staged(stage, update_from_stage(stage, table, _shape(group), keys), group)
        for group in found.inserts:
            if group.text:
                stage = await self._fill(table, group, keys)
                await self._run_staged(stage, insert_from_stage(stage, table, _shape(group)), group)
            else:
                await self._copy(copy_table(table, _shape(group)), group, len(table.columns))

    async def _fill(self, table: TargetTable, group: Group, keys: tuple[int, ...]) -> str:
        stage = await self._stage(table, _shape(group))
        if keys:
            in_order(group.rows, keys)
        columns = ", ".join(f"c{index}" for index in group.sent)
        await self._copy(f"COPY {stage} ({columns}) FROM STDIN (FORMAT binary)", group, len(table.columns))
        return stage

    async def _copy(self, statement: str, group: Group, width: int) -> None:
        rows, at, count = group.rows, 0, 100
        async with self._connection.cursor() as cursor, cursor.copy(statement.encode()) as copy:
            await copy.write(COPY_START)
            while at < len(rows):
                if rows[at].size > _LARGE_ROW:
                    for part in row_parts(rows[at : at + 1], group.sent, width):
                        await copy.write(part)
                    at += 1
                    continue
                data = copy_rows(rows[at : at + count], group.sent, width)
                at += count
                count = max(1, count * _COPY_BYTES // len(data))
                await copy.write(data)
            await copy.write(COPY_END)

    async def _delete_listed(self, table: TargetTable, group: Group, keys: tuple[int, ...]) -> None:
        listed = array_of(group.rows, keys[0], table.columns[keys[0]].type_oid)
        cursor = await self._connection.execute(delete_listed(table, keys).encode(), (_Binary(listed),))
        if cursor.rowcount != len(group.rows):
            raise NotExact

    async def _run_staged(self, stage: str, statement: str, group: Group) -> None:
        cursor = await self._connection.execute(statement.encode())
        if cursor.rowcount != len(group.rows):
            raise NotExact
        await self._connection.execute(f"TRUNCATE pg_temp.{stage}".encode())

    async def _hand_over(self, message: Message) -> None:
        handler = self._handlers.get(message.prefix)
        if handler is None:
            raise TargetError(
                f"the source sent a message {message.prefix!r} that this version does not know",
                hint="the source's side is newer: bring this node to the same version",
                prefix=message.prefix,
            )
        self.heard.add(message.prefix)
        await handler(self._connection, message.content)

    async def _truncate(self, change: Truncate) -> None:
        """A table that another refers to is truncated only together with it. That one may be on hold, and
        keeps its rows; the rows of this one are then deleted."""
        tables = [await self._mapping.table(relation) for relation in change.relations]
        await self._connection.execute(b"SAVEPOINT castling_truncate")
        try:
            statement = truncate(tables, restart_identity=change.restart_identity)
            await self._connection.execute(statement.encode())
        except psycopg.errors.FeatureNotSupported:
            await self._connection.execute(b"ROLLBACK TO SAVEPOINT castling_truncate")
            for table in tables:
                await self._connection.execute(f"DELETE FROM {table.only}".encode())
        await self._connection.execute(b"RELEASE SAVEPOINT castling_truncate")

    # --- row by row ---------------------------------------------------------------------------

    async def _write_rows(self, changes: Sequence[Insert | Update | Delete]) -> None:
        """One by one, in the source's order; many on their way at once. When one of them fails, they are
        done again singly, so that the error can name it."""
        for at in range(0, len(changes), _PIPELINED):
            some = changes[at : at + _PIPELINED]
            await self._connection.execute(b"SAVEPOINT castling_rows")
            try:
                async with self._connection.pipeline():
                    cursors = [await self._send_row(change) for change in some]
                exact = all(cursor.rowcount == 1 for cursor in cursors)
            except (psycopg.errors.IntegrityError, psycopg.errors.DataError):
                exact = False
            if not exact:
                await self._connection.execute(b"ROLLBACK TO SAVEPOINT castling_rows")
                for change in some:
                    await self._write_row(change)
            await self._connection.execute(b"RELEASE SAVEPOINT castling_rows")

    async def _send_row(self, change: Insert | Update | Delete) -> AsyncCursor[tuple[object, ...]]:
        statement, parameters = await self._row_statement(change)
        return await self._connection.execute(statement.encode(), parameters, prepare=True)

    async def _row_statement(self, change: Insert | Update | Delete) -> tuple[str, list[bytes | None]]:
        table = await self._mapping.table(change.relation)
        keys = change.relation.keys
        if isinstance(change, Insert):
            if not change.new.whole:
                raise _without_values(change)
            shape = shape_of(change.relation, change.new.fields, change.new.text)
            return insert_row(table, shape), _parameters(change.new, shape.sent)
        if isinstance(change, Delete):
            old = shape_of(change.relation, change.old.fields, change.old.text)
            return delete_row(table, old, keys), _parameters(change.old, keys or old.sent)
        before = change.old or change.new
        old = shape_of(change.relation, before.fields, before.text)
        new = shape_of(change.relation, change.new.fields, change.new.text)
        told = None if change.old is None else change.old.fields
        if resets_identity(table, change.new.fields, told, keys):
            statement = replace_row(table, new, old, keys)
            return statement, _parameters(before, keys or old.sent) + _parameters(change.new, new.sent)
        statement, indexes = update_row(table, new, old, keys)
        return statement, _parameters(change.new, indexes) + _parameters(before, keys or old.sent)

    async def _write_row(self, change: Insert | Update | Delete) -> None:
        """Apply one change. TargetDiverged when its row is not there, or is there already."""
        table = change.relation
        try:
            cursor = await self._send_row(change)
        except psycopg.errors.IntegrityError as error:
            raise TargetDiverged(
                f"{table} on the target objects to a change of the source: {error.diag.message_primary}",
                hint=_DIVERGED,
                table=str(table),
                key=told_by(change),
                sqlstate=error.sqlstate,
                constraint=error.diag.constraint_name,
            ) from error
        if cursor.rowcount != 1:
            raise TargetDiverged(
                f"{table} on the target lacks a row that the source has changed ({told_by(change)})",
                hint=_DIVERGED,
                table=str(table),
                key=told_by(change),
                rows=cursor.rowcount,
            )


def _without_values(change: Insert) -> TargetDiverged:
    missing = [
        column.name
        for column, value in zip(change.relation.columns, change.new.fields, strict=True)
        if value is None
    ]
    return TargetDiverged(
        f"a row came into {change.relation} by a change of its key ({told_by(change)}), and the source"
        f" does not send what it left as it was: {', '.join(missing)}",
        hint="copy the table anew: `castling group resync`; REPLICA IDENTITY FULL on the source avoids it",
        table=str(change.relation),
        key=told_by(change),
    )


_DIVERGED = (
    "something else has written to the target; compare the table on both sides, repair it, then start "
    "the group again, or seed it anew"
)
