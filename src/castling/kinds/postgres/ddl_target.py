"""Makes on the target the changes of the schema that the source's triggers told of.

A statement is executed inside the target's open transaction, between the rows that came before it and those
that come after, so its progress is theirs. It runs as the role that gave it, with that role's search path and
the settings that change what a statement means; inside a function of that role (SECURITY DEFINER), where
nobody can change the role: a default or an index expression is code of the source's users, and the apply
session's own user may do anything.

What the target holds afterwards must be what the source said: every object it touched is there, every table
has its columns. The same question decides whether a statement that fails, because what it makes is there
already, was made by hand beforehand.

Rows that the statement itself wrote are in no log (CREATE TABLE AS), or can't be made here as they were there
(a volatile default, USING): that table is copied anew, by the same way as any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import AsyncConnection

from castling.config import GroupSettings
from castling.errors import TargetError
from castling.kinds.postgres.catalog import are_chosen, table_name
from castling.kinds.postgres.ddl_message import SchemaChange, Shape
from castling.kinds.postgres.ddl_text import dropped, may_be_made, statement_of
from castling.kinds.postgres.statements import quoted

__all__ = ["DdlTarget", "Plan", "carried", "is_remade"]

Table = tuple[str, str]

#: kinds of relations whose names the group's patterns choose
_TABLES = "rpf"
#: table_rewrite's reasons: a default had to be computed for each row; a column's values were
_BY_DEFAULT, _BY_COLUMN = 2, 4

_COLUMNS = """
    SELECT a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod), a.attmissingval::text
      FROM pg_catalog.pg_attribute a
     WHERE a.attrelid = pg_catalog.to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped
"""
_RUN = """
CREATE OR REPLACE FUNCTION pg_temp.castling_change(statement text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER AS 'BEGIN EXECUTE statement; END'
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a change of the schema is to this group. `statement` None: it can't be told for certain.
    `tables`: those it concerns that have rows of their own, under the names of before and after."""

    statement: str | None
    tables: tuple[Table, ...]
    shapes: tuple[Shape, ...] = ()
    gone: tuple[Table, ...] = ()


def carried(change: SchemaChange, settings: GroupSettings) -> Plan | None:
    """Pure. None: nothing of it is the group's. Tables, views and sequences follow the group's patterns, with
    what is theirs; everything else is the group's."""
    if change.drop is not None:
        return _carried_drop(change, settings)
    tables = [shape for shape in change.tables if shape.kind in _TABLES]
    shapes = tuple(shape for shape in tables if _is_chosen(shape, settings))
    if tables and not shapes:
        return None
    if not tables and change.objects and not any(_is_ours(each, settings) for each in change.objects):
        return None
    names = [name for shape in shapes if shape.kind == "r" for name in (shape.was, shape.table)]
    found = tuple(dict.fromkeys((name[0], name[1]) for name in names if name is not None))
    return Plan(statement_of(change), found, shapes)


def _carried_drop(change: SchemaChange, settings: GroupSettings) -> Plan | None:
    drop = change.drop
    assert drop is not None
    ours = [
        identity
        for identity, of_table in drop.objects
        if of_table is None or are_chosen([table_name(of_table[0], of_table[1])], settings)
    ]
    if not ours:
        return None
    gone = tuple((each[0], each[1]) for each in drop.tables or ())
    return Plan(dropped(drop.type, ours, cascade=drop.cascade), (), gone=gone)


def _is_chosen(shape: Shape, settings: GroupSettings) -> bool:
    names = [table_name(*shape.table), *(table_name(*root) for root in shape.roots)]
    before = [] if shape.was is None else [table_name(*shape.was)]
    return are_chosen(names, settings) or bool(before and are_chosen(before, settings))


def _is_ours(
    each: tuple[str, str | None, tuple[list[str], list[str]] | None], settings: GroupSettings
) -> bool:
    kind, _, address = each
    if kind not in ("view", "materialized view", "sequence") or address is None or len(address[0]) < 2:
        return True
    return are_chosen([table_name(address[0][0], address[0][1])], settings)


def is_remade(shape: Shape, statement: str) -> bool:
    """Whether the rows that the statement wrote anew may be others than it would write here. Pure.

    A generated column is computed from the row alone, and a change of type without USING by the types' own
    cast; defaults, identities and whatever USING says may differ.
    """
    words = statement.upper()
    if shape.rewritten & _BY_DEFAULT and ("DEFAULT" in words or "IDENTITY" in words or "SERIAL" in words):
        return True
    return bool(shape.rewritten & (_BY_DEFAULT | _BY_COLUMN)) and (
        "USING" in words or not ("TYPE" in words or "GENERATED" in words)
    )


class DdlTarget:
    """Statements on the connection that applies; its caller opens and ends transactions."""

    def __init__(self) -> None:
        #: changes made since the process began
        self.made = 0

    async def make(self, connection: AsyncConnection[Any], change: SchemaChange, plan: Plan) -> None:
        """Execute it and see that the target has what it made. TargetError names the statement; the
        transaction is then as it was before."""
        if plan.statement is None:
            raise _untold(change)
        await connection.execute(b"SAVEPOINT castling_schema")
        try:
            await self._execute(connection, change, plan.statement)
        except psycopg.OperationalError:
            raise
        except psycopg.Error as error:
            await connection.execute(b"ROLLBACK TO SAVEPOINT castling_schema")
            made = may_be_made(plan.statement, str(error.sqlstate))
            if not made or await self._lacks(connection, change, plan) is not None:
                raise _refused(change, plan.statement, error) from error
        else:
            lacking = await self._lacks(connection, change, plan)
            if lacking is not None:
                await connection.execute(b"ROLLBACK TO SAVEPOINT castling_schema")
                raise TargetError(
                    f"after a schema change the target {lacking}: {_short(plan.statement)}",
                    hint="make the target as the source is",
                    statement=plan.statement,
                )
        await connection.execute(b"RELEASE SAVEPOINT castling_schema")
        self.made += 1

    async def _execute(self, connection: AsyncConnection[Any], change: SchemaChange, statement: str) -> None:
        """As the role that gave it, with its settings; the session's own come back after it."""
        settings = {**change.settings, "search_path": change.path}
        cursor = await connection.execute(
            "SELECT name, setting FROM pg_catalog.pg_settings WHERE name = ANY (%s)", (list(settings),)
        )
        before = {str(name): str(value) for name, value in await cursor.fetchall()}
        await connection.execute(_RUN.encode())
        await connection.execute(
            f"ALTER FUNCTION pg_temp.castling_change(text) OWNER TO {quoted(change.role)}".encode()
        )
        await self._set(connection, {name: settings[name] for name in before})
        await connection.execute("SELECT pg_temp.castling_change(%s)", (statement,))
        await self._set(connection, before)
        await connection.execute(b"DROP FUNCTION pg_temp.castling_change(text)")

    async def _set(self, connection: AsyncConnection[Any], settings: dict[str, str]) -> None:
        for name, value in settings.items():
            await connection.execute("SELECT pg_catalog.set_config(%s, %s, true)", (name, value))

    async def _lacks(self, connection: AsyncConnection[Any], change: SchemaChange, plan: Plan) -> str | None:
        """What the statement should have left here and did not; None: all is there."""
        await connection.execute(b"SAVEPOINT castling_look")
        looked_for = ""
        try:
            for kind, identity, address in change.objects:
                looked_for = f"{kind} {identity}"
                if address is not None and not _is_of_unchosen(kind, address, change, plan):
                    await connection.execute(
                        "SELECT * FROM pg_catalog.pg_get_object_address(%s, %s::text[], %s::text[])",
                        (kind, address[0], address[1]),
                    )
        except psycopg.OperationalError:
            raise
        except psycopg.Error:
            await connection.execute(b"ROLLBACK TO SAVEPOINT castling_look")
            return f"has no {looked_for}"
        for shape in plan.shapes:
            cursor = await connection.execute(_COLUMNS.encode(), (_sql(shape.table),))
            there = {str(name): str(type_) for name, type_, _ in await cursor.fetchall()}
            for name, type_, _ in shape.columns:
                if there.get(name) != type_:
                    return f"has no column {name} {type_} in {table_name(*shape.table)}"
        return None

    async def fill(self, connection: AsyncConnection[Any], shape: Shape) -> bool:
        """Give rows from before the value that a new column has in them on the source, where it is another
        here (the default was now(), say). False: that can't be said here; the table needs a new copy."""
        if not shape.filled:
            return True
        cursor = await connection.execute(_COLUMNS.encode(), (_sql(shape.table),))
        there = {str(name): (str(type_), value) for name, type_, value in await cursor.fetchall()}
        for name, value in shape.filled.items():
            type_, here = there[name]
            if here == value:
                continue
            if type_.endswith("]"):
                return False
            await connection.execute(
                f"UPDATE ONLY {_sql(shape.table)} SET {quoted(name)} = (%s::{type_}[])[1]".encode(), (value,)
            )
        return True


def _is_of_unchosen(
    kind: str, address: tuple[list[str], list[str]], change: SchemaChange, plan: Plan
) -> bool:
    """A table of the statement that is none of the group's need not be here."""
    if kind not in ("table", "table column", "foreign table") or len(address[0]) < 2:
        return False
    here = {shape.table for shape in plan.shapes}
    return (address[0][0], address[0][1]) in {shape.table for shape in change.tables} - here


def _sql(table: Sequence[str]) -> str:
    return ".".join(quoted(part) for part in table)


def _short(statement: str) -> str:
    told = " ".join(statement.split())
    return told if len(told) <= 300 else told[:299] + "…"


def _untold(change: SchemaChange) -> TargetError:
    objects = ", ".join(str(identity) for _, identity, _ in change.objects[:5] if identity)
    why = change.untold or "it was one of several in a text or a function, and can't be told from the others"
    return TargetError(
        f"a schema change can't be carried ({change.tag}{' of ' if objects else ''}{objects}): {why}",
        hint="make it on the target by hand",
        statement=None,
    )


def _refused(change: SchemaChange, statement: str, error: psycopg.Error) -> TargetError:
    return TargetError(
        f"the target refused a schema change: {error.diag.message_primary or error}: {_short(statement)}",
        hint="mend the cause on the target, or make the change there by hand",
        sqlstate=error.sqlstate,
        statement=statement,
        role=change.role,
        search_path=change.path,
    )
