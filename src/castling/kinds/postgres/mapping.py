"""The target's tables for the source's: by schema and name, columns by name.

What does not fit is an error at the first change, with the column named: a table that is
not there, a column that is not there, another type, and a type so narrow that the target would round
or cut values without a word. A wider one is no error, so that a column can be widened on the target
first, then on the source.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from psycopg import AsyncConnection

from castling.errors import TargetError
from castling.kinds.postgres.messages import Column, Relation
from castling.kinds.postgres.statements import FIRST_USER_OID, TargetColumn, TargetTable

__all__ = ["FIRST_USER_OID", "Found", "Mapping", "find_columns", "matched"]

_COLUMNS = """
    SELECT a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod), a.atttypid::pg_catalog.int8,
           a.attidentity = 'a', a.attgenerated <> '', a.atttypmod, c.relkind = 'p',
           CASE WHEN a.atttypid >= 16384 THEN (
               WITH RECURSIVE base(oid, above) AS (
                   SELECT t.oid, t.typbasetype FROM pg_catalog.pg_type t WHERE t.oid = a.atttypid
                   UNION ALL
                   SELECT t.oid, t.typbasetype FROM base JOIN pg_catalog.pg_type t ON t.oid = base.above
               )
               SELECT pg_catalog.format('OPERATOR(%%I.%%s)', s.nspname, o.oprname)
                 FROM base
                 JOIN pg_catalog.pg_opclass p ON p.opcintype = base.oid AND p.opcdefault
                 JOIN pg_catalog.pg_amop m ON m.amopfamily = p.opcfamily
                      AND m.amoplefttype = base.oid AND m.amoprighttype = base.oid
                 JOIN pg_catalog.pg_operator o ON o.oid = m.amopopr
                 JOIN pg_catalog.pg_namespace s ON s.oid = o.oprnamespace
                WHERE base.above = 0 AND (p.opcmethod, m.amopstrategy) IN ((403, 3), (405, 1))
                ORDER BY p.opcmethod LIMIT 1) END,
           EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisprimary
                      AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]))
      FROM pg_catalog.pg_attribute a
      JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
      JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
     WHERE n.nspname = %s AND c.relname = %s AND c.relkind IN ('r', 'p')
       AND a.attnum > 0 AND NOT a.attisdropped
"""


#: types whose values are rounded or cut to fit a modifier, and their arrays
_NUMERIC = (1700, 1231)
_TIMES = (1083, 1183, 1266, 1270, 1114, 1115, 1184, 1185)
_INTERVAL = (1186, 1187)
_VARCHAR = (1043, 1015)  # spaces at the end are cut


class Found(NamedTuple):
    """A column of the target's table. `type` as PostgreSQL writes it; `generated`: computed from others;
    `equals`: the operator of its type's index (btree, else hash), where that may not be in pg_catalog.
    `primary`: part of the primary key."""

    name: str
    type: str
    type_oid: int
    always_identity: bool
    generated: bool
    type_modifier: int = -1
    equals: str | None = None
    primary: bool = False
    in_partitioned: bool = False


class Mapping:
    """Looks tables up on a connection and remembers them while their description stays the same."""

    def __init__(self, connection: AsyncConnection[tuple[object, ...]]) -> None:
        self._connection = connection
        self._known: dict[int, tuple[Relation, TargetTable]] = {}

    async def table(self, relation: Relation) -> TargetTable:
        """The target of `relation`. TargetError names what does not fit."""
        known = self._known.get(relation.oid)
        if known is not None and (known[0] is relation or known[0] == relation):
            return known[1]
        table = await self._look_up(relation)
        self._known[relation.oid] = (relation, table)
        return table

    def forget(self) -> None:
        """The target's tables may have changed."""
        self._known.clear()

    async def _look_up(self, relation: Relation) -> TargetTable:
        found = await find_columns(self._connection, relation.schema, relation.name)
        if not found and not relation.columns and not await self._is_there(relation):
            raise _missing(relation)
        return matched(relation, found, is_partitioned=any(column.in_partitioned for column in found))

    async def _is_there(self, relation: Relation) -> bool:
        """A table without columns is a table."""
        cursor = await self._connection.execute(
            "SELECT FROM pg_catalog.pg_tables WHERE schemaname = %s AND tablename = %s",
            (relation.schema, relation.name),
        )
        return bool(await cursor.fetchall())


async def find_columns(
    connection: AsyncConnection[tuple[object, ...]], schema: str, name: str
) -> list[Found]:
    """The columns of a table; none when there is no such table."""
    cursor = await connection.execute(_COLUMNS, (schema, name))
    return [
        Found(
            name=str(row[0]),
            type=str(row[1]),
            type_oid=int(str(row[2])),
            always_identity=bool(row[3]),
            generated=bool(row[4]),
            type_modifier=int(str(row[5])),
            equals=None if row[7] is None else str(row[7]),
            in_partitioned=bool(row[6]),
            primary=bool(row[8]),
        )
        for row in await cursor.fetchall()
    ]


def matched(relation: Relation, found: Sequence[Found], *, is_partitioned: bool = False) -> TargetTable:
    """The target's columns for those of `relation`, in its order. Pure. TargetError names what does not fit.

    Columns that only the target has are left to their defaults.
    """
    if not found and relation.columns:
        raise _missing(relation)
    by_name = {column.name: column for column in found}
    columns = tuple(_fitting(relation, column, by_name.get(column.name)) for column in relation.columns)
    names = [column.name for column in relation.columns]
    primary = [column.name for column in found if column.primary]
    key = tuple(names.index(name) for name in primary) if set(primary) <= set(names) else ()
    return TargetTable(relation.schema, relation.name, columns, is_partitioned, key)


def _missing(relation: Relation) -> TargetError:
    return TargetError(
        f"the target has no table {relation}",
        hint="create it as on the source, or exclude it from the group",
        table=str(relation),
    )


def _fitting(relation: Relation, column: Column, found: Found | None) -> TargetColumn:
    if found is None or found.generated:
        raise TargetError(
            f"{relation} on the target has no column {column.name!r} that can be written",
            hint="schema changes are not carried: make the same change on the target",
            table=str(relation),
            column=column.name,
        )
    if found.type_oid != column.type_oid and min(found.type_oid, column.type_oid) < FIRST_USER_OID:
        raise TargetError(
            f"{relation}.{column.name} is of type {found.type} on the target, but not on the source",
            hint="give the column the source's type",
            table=str(relation),
            column=column.name,
        )
    if _narrows(found.type_oid, column.type_modifier, found.type_modifier):
        raise TargetError(
            f"{relation}.{column.name} is {found.type} on the target, which is narrower than on the source:"
            " values would be rounded or cut",
            hint="give the column the source's type",
            table=str(relation),
            column=column.name,
        )
    return TargetColumn(column.name, found.type, found.type_oid, found.always_identity, found.equals or "=")


def _narrows(type_oid: int, source: int, target: int) -> bool:
    """Whether a type with modifier `target` can silently lose some of what one with `source` holds.
    A modifier below 0 is none."""
    if target < 0 or target == source:
        return False
    if type_oid in _NUMERIC:
        return source < 0 or _scale(target) < _scale(source)
    if type_oid in _TIMES:
        return target < (6 if source < 0 else source)
    if type_oid in _VARCHAR:
        return source < 0 or target < source
    return type_oid in _INTERVAL


def _scale(modifier: int) -> int:
    """Digits after the point, by a numeric's modifier: less an offset of 4, its lowest 11 bits, signed."""
    return (((modifier - 4) & 0x7FF) ^ 0x400) - 0x400
