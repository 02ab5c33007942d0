"""The statements that apply steps, as SQL. Pure.

Every name is quoted, every table named with its schema, every column list written out.
A value that came as text is cast to the target column's type; one that came binary is
already of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from castling.kinds.postgres.messages import Fields, Relation

__all__ = [
    "COPY_END",
    "COPY_START",
    "Shape",
    "TargetColumn",
    "TargetTable",
    "copy_rows",
    "copy_table",
    "create_stage",
    "delete_from_stage",
    "delete_row",
    "insert_from_stage",
    "insert_row",
    "quoted",
    "shape_of",
    "truncate",
    "update_from_stage",
    "update_row",
]

COPY_START = b"PGCOPY\n\xff\r\n\0" + b"\0" * 8
COPY_END = b"\xff\xff"


@dataclass(frozen=True, slots=True)
class TargetColumn:
    """A column as the target has it; `type` is what a cast to it is written as."""

    name: str
    type: str
    type_oid: int
    always_identity: bool


@dataclass(frozen=True, slots=True)
class TargetTable:
    """The target's columns in the order of the source's description."""

    schema: str
    name: str
    columns: tuple[TargetColumn, ...]

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"

    @property
    def sql(self) -> str:
        return f"{quoted(self.schema)}.{quoted(self.name)}"


@dataclass(frozen=True, slots=True)
class Shape:
    """Which columns (by index) rows carry, and which of them as text (bit i: column i)."""

    sent: tuple[int, ...]
    text: int


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _names(table: TargetTable, indexes: Iterable[int]) -> str:
    return ", ".join(quoted(table.columns[index].name) for index in indexes)


def copy_rows(rows: Sequence[Fields], sent: tuple[int, ...], total: int) -> bytes:
    """Rows as COPY BINARY tuples (without the stream's head and end)."""
    head = len(sent).to_bytes(2, "big")
    parts: list[bytes] = []
    if len(sent) == total:
        for fields in rows:
            parts.append(head)
            parts.extend(fields)  # type: ignore[arg-type]  # a whole row has no unsent field
    else:
        for fields in rows:
            parts.append(head)
            parts.extend([fields[index] for index in sent])  # type: ignore[misc]  # chosen because sent
    return b"".join(parts)


def copy_table(table: TargetTable, shape: Shape) -> str:
    return f"COPY {table.sql} ({_names(table, shape.sent)}) FROM STDIN (FORMAT binary)"


# --- a set at once ----------------------------------------------------------------------------


def create_stage(stage: str, table: TargetTable, shape: Shape) -> str:
    """A staging table whose columns are called c0, c1, … by the index of the column they stand for."""
    columns = ", ".join(
        f"c{index} {'pg_catalog.text' if shape.text >> index & 1 else table.columns[index].type}"
        for index in shape.sent
    )
    return f"CREATE TEMPORARY TABLE {stage} ({columns})"


def _staged(table: TargetTable, shape: Shape, index: int) -> str:
    if shape.text >> index & 1:
        return f"s.c{index}::{table.columns[index].type}"
    return f"s.c{index}"


def _same_key(table: TargetTable, shape: Shape, keys: Sequence[int]) -> str:
    return " AND ".join(
        f"t.{quoted(table.columns[index].name)} = {_staged(table, shape, index)}" for index in keys
    )


def delete_from_stage(stage: str, table: TargetTable, shape: Shape, keys: Sequence[int]) -> str:
    return f"DELETE FROM {table.sql} t USING {stage} s WHERE {_same_key(table, shape, keys)}"


def _settable(table: TargetTable, indexes: Iterable[int]) -> list[int]:
    """An identity column that is always generated can't be set, and never changes on the source either."""
    return [index for index in indexes if not table.columns[index].always_identity]


def update_from_stage(stage: str, table: TargetTable, shape: Shape, keys: Sequence[int]) -> str:
    indexes = _settable(table, (index for index in shape.sent if index not in keys)) or list(keys[:1])
    sets = ", ".join(
        f"{quoted(table.columns[index].name)} = {_staged(table, shape, index)}" for index in indexes
    )
    return f"UPDATE {table.sql} t SET {sets} FROM {stage} s WHERE {_same_key(table, shape, keys)}"


def insert_from_stage(stage: str, table: TargetTable, shape: Shape) -> str:
    values = ", ".join(_staged(table, shape, index) for index in shape.sent)
    return (
        f"INSERT INTO {table.sql} ({_names(table, shape.sent)}) OVERRIDING SYSTEM VALUE "
        f"SELECT {values} FROM {stage} s"
    )


# --- one row ----------------------------------------------------------------------------------


def _value(table: TargetTable, text: int, index: int) -> str:
    return f"{'%t' if text >> index & 1 else '%b'}::{table.columns[index].type}"


def insert_row(table: TargetTable, shape: Shape) -> str:
    values = ", ".join(_value(table, shape.text, index) for index in shape.sent)
    names = _names(table, shape.sent)
    return f"INSERT INTO {table.sql} ({names}) OVERRIDING SYSTEM VALUE VALUES ({values})"


def _one_row(table: TargetTable, shape: Shape, keys: Sequence[int]) -> str:
    """A condition that holds for exactly the one row meant: by key, or, without one, for one of those
    that equal the whole old row byte for byte (two equal rows are two rows)."""
    if keys:
        return " AND ".join(
            f"t.{quoted(table.columns[index].name)} = {_value(table, shape.text, index)}" for index in keys
        )
    names = ", ".join(f"r.{quoted(table.columns[index].name)}" for index in shape.sent)
    values = ", ".join(_value(table, shape.text, index) for index in shape.sent)
    return (
        f"(t.tableoid, t.ctid) = (SELECT r.tableoid, r.ctid FROM {table.sql} r "
        f"WHERE ROW({names})::record OPERATOR(pg_catalog.*=) ROW({values})::record LIMIT 1)"
    )


def delete_row(table: TargetTable, old: Shape, keys: Sequence[int]) -> str:
    return f"DELETE FROM {table.sql} t WHERE {_one_row(table, old, keys)}"


def update_row(
    table: TargetTable, new: Shape, old: Shape, keys: Sequence[int]
) -> tuple[str, tuple[int, ...]]:
    """The statement, and the columns of the new row that it takes, before those of the old one."""
    indexes = tuple(_settable(table, new.sent)) or new.sent[:1]
    sets = ", ".join(
        f"{quoted(table.columns[index].name)} = {_value(table, new.text, index)}" for index in indexes
    )
    return f"UPDATE {table.sql} t SET {sets} WHERE {_one_row(table, old, keys)}", indexes


def truncate(tables: Sequence[TargetTable], *, restart_identity: bool) -> str:
    names = ", ".join(table.sql for table in tables)
    return f"TRUNCATE TABLE {names}{' RESTART IDENTITY' if restart_identity else ''}"


def shape_of(relation: Relation, fields: Fields, text: int) -> Shape:
    """The shape of one row: its sent columns, and which of those are text."""
    if None not in fields:
        return Shape(tuple(range(len(relation.columns))), text)
    return Shape(tuple(index for index, value in enumerate(fields) if value is not None), text)
