"""The statements that apply steps, as SQL. Pure.

Every name is quoted, every table named with its schema, every column list written out.
A value that came as text is cast to the target column's type; one that came binary is
already of it.

An ordinary table is named ONLY: tables that inherit from it are replicated on their own.

A column GENERATED ALWAYS AS IDENTITY can't be set by an UPDATE, but the source's row may have a
new value there (SET id = DEFAULT). A set leaves such a column alone and counts only rows where it
already agrees; one row is deleted and inserted anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from castling.kinds.postgres.messages import Fields, Relation

__all__ = [
    "COPY_END",
    "COPY_START",
    "FIRST_USER_OID",
    "Shape",
    "TargetColumn",
    "TargetTable",
    "column_list",
    "copy_table",
    "create_stage",
    "delete_from_stage",
    "delete_listed",
    "delete_row",
    "insert_from_stage",
    "insert_row",
    "is_listed",
    "quoted",
    "replace_row",
    "resets_identity",
    "shape_of",
    "staged",
    "truncate",
    "update_from_stage",
    "update_row",
]

#: objects below this have the same identifier on every server
FIRST_USER_OID = 16384

COPY_START = b"PGCOPY\n\xff\r\n\0" + b"\0" * 8
COPY_END = b"\xff\xff"


@dataclass(frozen=True, slots=True)
class TargetColumn:
    """A column as the target has it; `type` is what a cast to it is written as, `equals` the operator
    by which two of its values are the same key."""

    name: str
    type: str
    type_oid: int
    always_identity: bool
    equals: str = "="


@dataclass(frozen=True, slots=True)
class TargetTable:
    """The target's columns in the order of the source's description. `key`: indexes of its primary key's."""

    schema: str
    name: str
    columns: tuple[TargetColumn, ...]
    is_partitioned: bool = False
    key: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"

    @property
    def identifiers(self) -> int:
        """The columns (bit i: column i) whose binary form is an identifier of the server it comes from."""
        return sum(1 << at for at, column in enumerate(self.columns) if column.type.startswith("reg"))

    @property
    def sql(self) -> str:
        return f"{quoted(self.schema)}.{quoted(self.name)}"

    @property
    def only(self) -> str:
        """Its own rows; of a partitioned table those of its partitions."""
        return self.sql if self.is_partitioned else f"ONLY {self.sql}"


@dataclass(frozen=True, slots=True)
class Shape:
    """Which columns (by index) rows carry, and which of them as text (bit i: column i)."""

    sent: tuple[int, ...]
    text: int


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def column_list(names: Sequence[str]) -> str:
    """As COPY wants it behind a table's name: a table without columns has none."""
    return f" ({', '.join(quoted(name) for name in names)})" if names else ""


def _names(table: TargetTable, indexes: Iterable[int]) -> str:
    return ", ".join(quoted(table.columns[index].name) for index in indexes)


def copy_table(table: TargetTable, shape: Shape) -> str:
    names = column_list([table.columns[index].name for index in shape.sent])
    return f"COPY {table.sql}{names} FROM STDIN (FORMAT binary)"


# --- a set at once ----------------------------------------------------------------------------


def create_stage(stage: str, table: TargetTable, shape: Shape) -> str:
    """A staging table whose columns are called c0, c1, … by the index of the column they stand for."""
    columns = ", ".join(
        f"c{index} {'pg_catalog.text' if shape.text >> index & 1 else table.columns[index].type}"
        for index in shape.sent
    )
    return f"CREATE TEMPORARY TABLE {stage} ({columns})"


#: types to which a cast from text does not read what the type's output writes ("-", digits, octal bytes)
_INPUT = {"regclass": "regclassin", '"char"': "charin"}


def staged(table: TargetTable, shape: Shape, index: int) -> str:
    """A staged value as one of the target's column."""
    if shape.text >> index & 1:
        type_ = table.columns[index].type
        if type_ in _INPUT:
            return f"pg_catalog.{_INPUT[type_]}(pg_catalog.textout(s.c{index}))"
        return f"s.c{index}::{type_}"
    return f"s.c{index}"


def _same_key(table: TargetTable, shape: Shape, keys: Sequence[int]) -> str:
    return " AND ".join(
        f"t.{quoted(table.columns[index].name)} {table.columns[index].equals} {staged(table, shape, index)}"
        for index in keys
    )


def delete_from_stage(stage: str, table: TargetTable, shape: Shape, keys: Sequence[int]) -> str:
    return f"DELETE FROM {table.only} t USING {stage} s WHERE {_same_key(table, shape, keys)}"


def is_listed(table: TargetTable, shape: Shape, keys: Sequence[int]) -> bool:
    """Whether rows can be told by a list of their keys alone: one column, whose values came in the binary
    form of a type that is the same on every server."""
    if len(keys) != 1 or shape.text:
        return False
    column = table.columns[keys[0]]
    return column.type_oid < FIRST_USER_OID and column.equals == "="


def delete_listed(table: TargetTable, keys: Sequence[int]) -> str:
    """Takes the keys as an array: the index is read once, in order, where a join descends into it for each
    row (from PostgreSQL 17 on; before, it costs what a join does)."""
    table = _with_parameters(table)
    column = table.columns[keys[0]]
    return f"DELETE FROM {table.only} t WHERE t.{quoted(column.name)} = ANY (%b::{column.type}[])"


def _settable(table: TargetTable, indexes: Iterable[int]) -> list[int]:
    return [index for index in indexes if not table.columns[index].always_identity]


def update_from_stage(stage: str, table: TargetTable, shape: Shape, keys: Sequence[int]) -> str:
    """Touches, or where nothing can be set finds, each row whose identity columns already agree."""
    others = [index for index in shape.sent if index not in keys]
    indexes = _settable(table, others)
    same = _same_key(table, shape, [*keys, *(index for index in others if index not in indexes)])
    if not indexes:
        return f"SELECT FROM {table.only} t JOIN {stage} s ON {same}"
    sets = ", ".join(
        f"{quoted(table.columns[index].name)} = {staged(table, shape, index)}" for index in indexes
    )
    return f"UPDATE {table.only} t SET {sets} FROM {stage} s WHERE {same}"


def insert_from_stage(stage: str, table: TargetTable, shape: Shape) -> str:
    values = ", ".join(staged(table, shape, index) for index in shape.sent)
    return (
        f"INSERT INTO {table.sql} ({_names(table, shape.sent)}) OVERRIDING SYSTEM VALUE "
        f"SELECT {values} FROM {stage} s"
    )


# --- one row ----------------------------------------------------------------------------------
# These take parameters, so that a percent sign in a name has to be written twice.


def _with_parameters(table: TargetTable) -> TargetTable:
    if "%" not in f"{table.sql}{table.columns}":
        return table

    def doubled(text: str) -> str:
        return text.replace("%", "%%")

    columns = (
        replace(each, name=doubled(each.name), type=doubled(each.type), equals=doubled(each.equals))
        for each in table.columns
    )
    return replace(table, schema=doubled(table.schema), name=doubled(table.name), columns=tuple(columns))


def _value(table: TargetTable, text: int, index: int) -> str:
    return f"{'%t' if text >> index & 1 else '%b'}::{table.columns[index].type}"


def insert_row(table: TargetTable, shape: Shape) -> str:
    if not shape.sent:
        return f"INSERT INTO {table.sql} DEFAULT VALUES"
    table = _with_parameters(table)
    values = ", ".join(_value(table, shape.text, index) for index in shape.sent)
    names = _names(table, shape.sent)
    return f"INSERT INTO {table.sql} ({names}) OVERRIDING SYSTEM VALUE VALUES ({values})"


def _one_row(table: TargetTable, shape: Shape, keys: Sequence[int]) -> str:
    """A condition that holds for exactly the one row meant: by key, or, without one, for one of those
    that equal the whole old row byte for byte (two equal rows are two rows), found by the target's own key
    where it has one: what is equal byte for byte is equal there too."""
    if keys:
        return " AND ".join(
            f"t.{quoted(table.columns[index].name)} {table.columns[index].equals}"
            f" {_value(table, shape.text, index)}"
            for index in keys
        )
    if not shape.sent:  # rows without columns are all equal
        return f"ROW(t.tableoid, t.ctid) = (SELECT r.tableoid, r.ctid FROM {table.only} r LIMIT 1)"
    names = ", ".join(f"r.{quoted(table.columns[index].name)}" for index in shape.sent)
    values = ", ".join(f"{_value(table, shape.text, index)} AS c{index}" for index in shape.sent)
    told = ", ".join(f"o.c{index}" for index in shape.sent)
    near = "".join(
        f"r.{quoted(table.columns[index].name)} {table.columns[index].equals} o.c{index} AND "
        for index in (table.key if set(table.key) <= set(shape.sent) else ())
    )
    return (
        f"(t.tableoid, t.ctid) = (SELECT r.tableoid, r.ctid FROM {table.only} r, (SELECT {values}) o "
        f"WHERE {near}ROW({names})::record OPERATOR(pg_catalog.*=) ROW({told})::record LIMIT 1)"
    )


def delete_row(table: TargetTable, old: Shape, keys: Sequence[int]) -> str:
    table = _with_parameters(table)
    return f"DELETE FROM {table.only} t WHERE {_one_row(table, old, keys)}"


def resets_identity(table: TargetTable, new: Fields, old: Fields | None, keys: Sequence[int]) -> bool:
    """Whether an update gives a GENERATED ALWAYS column another value, or may: an old key tells
    nothing of a column beside it. Such an update is made by `replace_row`."""
    for index, column in enumerate(table.columns):
        if not column.always_identity or new[index] is None:
            continue
        is_told = index in keys or not keys
        if not is_told or (old is not None and old[index] != new[index]):
            return True
    return False


def update_row(
    table: TargetTable, new: Shape, old: Shape, keys: Sequence[int]
) -> tuple[str, tuple[int, ...]]:
    """The statement, and the columns of the new row that it takes, before those of the old one."""
    table = _with_parameters(table)
    indexes = tuple(_settable(table, new.sent))
    if not indexes:
        return f"SELECT FROM {table.only} t WHERE {_one_row(table, old, keys)}", ()
    sets = ", ".join(
        f"{quoted(table.columns[index].name)} = {_value(table, new.text, index)}" for index in indexes
    )
    return f"UPDATE {table.only} t SET {sets} WHERE {_one_row(table, old, keys)}", indexes


def replace_row(table: TargetTable, new: Shape, old: Shape, keys: Sequence[int]) -> str:
    """An update as a delete and an insert; values that were not sent are kept. Takes the columns of
    the old row before those of the new one."""
    table = _with_parameters(table)
    every = range(len(table.columns))
    values = ", ".join(
        _value(table, new.text, index) if index in new.sent else f"gone.{quoted(table.columns[index].name)}"
        for index in every
    )
    return (
        f"WITH gone AS (DELETE FROM {table.only} t WHERE {_one_row(table, old, keys)} RETURNING t.*) "
        f"INSERT INTO {table.sql} ({_names(table, every)}) OVERRIDING SYSTEM VALUE SELECT {values} FROM gone"
    )


def truncate(tables: Sequence[TargetTable], *, restart_identity: bool) -> str:
    names = ", ".join(table.only for table in tables)
    return f"TRUNCATE TABLE {names}{' RESTART IDENTITY' if restart_identity else ''}"


def shape_of(relation: Relation, fields: Fields, text: int) -> Shape:
    """The shape of one row: its sent columns, and which of those are text."""
    if None not in fields:
        return Shape(tuple(range(len(relation.columns))), text)
    return Shape(tuple(index for index, value in enumerate(fields) if value is not None), text)
