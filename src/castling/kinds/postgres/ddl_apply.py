"""What a change of the schema does to the group's tables, wherever each of them stands in the stream.

A table on hold is not changed: what it lacks was made for the shape that it has, so the change waits with its
other changes, and every other table that the same statement concerns waits with it. A table that is to be
copied anew goes with the stream in its shape. A change that the target refuses puts its tables on hold; one
that concerns no table is put aside by name, and the stream goes on (`ddl_aside`), unless errors are to stop
the group.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from psycopg import AsyncConnection

from castling.config import GroupSettings
from castling.errors import TargetError
from castling.kinds.postgres.catalog import table_name
from castling.kinds.postgres.ddl_aside import SetAside
from castling.kinds.postgres.ddl_message import SchemaChange, decode_ddl
from castling.kinds.postgres.ddl_target import DdlTarget, Plan, carried, is_remade
from castling.kinds.postgres.emptied import EmptiedTables
from castling.kinds.postgres.holds import TablePositions
from castling.kinds.postgres.statements import quoted
from castling.kinds.postgres.writer import Writer

__all__ = ["SchemaChanges", "TablesRefused"]

Table = tuple[str, str]
Begin = Callable[[], Awaitable[AsyncConnection[Any]]]

_OURS = """
    UPDATE castling.seed SET tables = ARRAY(
        SELECT DISTINCT name FROM pg_catalog.unnest(tables || %s::text[]) name WHERE name <> ALL (%s::text[])
         ORDER BY name)
     WHERE stream = %s
"""
#: renamed tables under their new names, for the watch of what others write there
_WATCHED = """
    UPDATE castling.watched w SET schema = n.nspname, name = c.relname
      FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
     WHERE c.oid = w.relation AND (w.schema, w.name) <> (n.nspname, c.relname)
"""
_UNFIT = (
    "it has no key but generated columns: published, PostgreSQL would refuse its updates to everybody;"
    " give it a key, and it is copied"
)


class TablesRefused(Exception):
    """A change of the schema could not be made: the tables that have to wait for it, and why."""

    def __init__(self, error: TargetError, tables: list[Table]) -> None:
        super().__init__(str(error))
        self.error = error
        self.tables = tables


class SchemaChanges:
    """Those of one stream, on its target."""

    def __init__(
        self, group: str, settings: GroupSettings, positions: TablePositions, emptied: EmptiedTables
    ) -> None:
        self._group = group
        self._settings = settings
        self._positions = positions
        self._emptied = emptied
        self._target = DdlTarget()
        self._aside = SetAside(group)

    async def load(self, connection: AsyncConnection[Any]) -> None:
        await self._aside.load(connection)

    async def take(self, begin: Begin, writer: Writer, content: bytes, *, offset: int, progress: int) -> None:
        """Make the change that `content` tells of, by the transaction at `offset`, if it is still to be made.
        TablesRefused when tables have to wait for it. `begin`: the target's open transaction."""
        change = decode_ddl(content)
        plan = carried(change, self._settings)
        if plan is None or not self._is_due(change, plan, offset, progress):
            return
        connection = await begin()
        await writer.forget_tables()
        due = [table for table in plan.tables if self._stands(table, offset, progress) == "due"]
        stale = [table for table in due if self._is_stale(table, offset)]
        try:
            await self._make(connection, change, plan, stale)
        except TargetError as error:
            if due:
                raise TablesRefused(error, due) from error
            if self._settings.on_error == "stop" or error.retryable:
                raise
            await self._aside.put(connection, change, plan.statement, error)
            return
        await self._settle(connection, change, plan, offset, due)

    def _is_stale(self, table: Table, offset: int) -> bool:
        """Whether its rows are not those that the source had at `offset`."""
        return self._positions.is_copied(table) or self._positions.rows_are_later(table, offset)

    async def _make(
        self, connection: AsyncConnection[Any], change: SchemaChange, plan: Plan, stale: list[Table]
    ) -> None:
        """Rows that others take the place of must not be in the way of a constraint."""
        try:
            await self._target.make(connection, change, plan)
        except TargetError as error:
            if not stale or not str(error.context.get("sqlstate")).startswith(("22", "23")):
                raise
            for schema, name in stale:
                await connection.execute(f"DELETE FROM ONLY {quoted(schema)}.{quoted(name)}".encode())
            await self._target.make(connection, change, plan)

    def _stands(self, table: Table, offset: int, progress: int) -> str:
        return self._positions.stands(table, offset, progress)

    def _is_due(self, change: SchemaChange, plan: Plan, offset: int, progress: int) -> bool:
        """Whether it is to be made now. TablesRefused when it concerns a table on hold, and others too."""
        if not plan.tables:
            return offset >= progress  # what is dropped lacks nothing, wherever it stands
        stands = {table: self._stands(table, offset, progress) for table in plan.tables}
        due = [table for table, where in stands.items() if where == "due"]
        behind = [table_name(*table) for table, where in stands.items() if where == "behind"]
        if due and behind:
            error = TargetError(
                f"a schema change ({change.tag}) concerns {', '.join(behind)} too, which is on hold",
                hint=f"release or copy anew {', '.join(behind)} and this table together",
            )
            raise TablesRefused(error, due)
        return bool(due)

    async def _settle(
        self,
        connection: AsyncConnection[Any],
        change: SchemaChange,
        plan: Plan,
        offset: int,
        due: list[Table],
    ) -> None:
        """What the statement has done to rows, and to names."""
        for gone in plan.gone:
            await self._positions.forget(connection, gone)
            self._emptied.forget(gone)
        for shape in plan.shapes:
            if shape.kind != "r" or shape.table not in due:
                continue
            assert plan.statement is not None
            before = shape.was or shape.table
            was_copied = self._positions.is_copied(before)
            later = self._positions.rows_are_later(before, offset)
            if shape.was is not None and (was_copied or later):
                await self._positions.forget(connection, shape.was)
            reason = None
            if shape.unfit:
                await self._positions.copy_from(connection, shape.table, offset + 1, _UNFIT, now=False)
                continue
            if later:
                # what was done to rows that had it done already, and by which names they came, is not known
                if change.tag in ("ALTER TABLE", "CREATE INDEX"):
                    reason = "its schema changed while it was copied"
            elif shape.untold:
                reason = "it came to the stream with rows: they are copied"
            elif is_remade(shape, plan.statement):
                reason = "a schema change has written its rows anew: they are copied"
            elif shape.rewritten and self._emptied.forget(shape.table):
                reason = "it was rewritten during the first copy: its rows are copied"
            elif not was_copied and not await self._target.fill(connection, shape):
                reason = "a new column has values that only the source knows: its rows are copied"
            if reason is not None or was_copied:
                await self._positions.copy_from(connection, shape.table, offset + 1, reason)
            else:
                await self._positions.shaped(connection, shape.table, offset + 1)
        await self._note_ours(connection, plan)

    async def _note_ours(self, connection: AsyncConnection[Any], plan: Plan) -> None:
        """Which tables a later first copy may empty, and other groups may not fill."""
        come = [table_name(*shape.table) for shape in plan.shapes if not shape.roots and shape.kind in "rp"]
        left = [table_name(*shape.was) for shape in plan.shapes if shape.was is not None]
        left += [table_name(*table) for table in plan.gone]
        if (come or left) and await self._has(connection, "seed"):
            await connection.execute(_OURS, (come, left, self._group))
        if any(shape.was is not None for shape in plan.shapes) and await self._has(connection, "watched"):
            await connection.execute(_WATCHED.encode())

    async def _has(self, connection: AsyncConnection[Any], table: str) -> bool:
        cursor = await connection.execute(
            "SELECT pg_catalog.to_regclass(%s) IS NOT NULL", (f"castling.{table}",)
        )
        row = await cursor.fetchone()
        return bool(row and row[0])

    def rolled_back(self) -> None:
        self._aside.rolled_back()

    def committed(self) -> None:
        self._aside.committed()

    def warnings(self) -> list[dict[str, Any]]:
        return self._aside.warnings()

    def report(self) -> dict[str, Any]:
        return {"made": self._target.made, "aside": self._aside.count}
