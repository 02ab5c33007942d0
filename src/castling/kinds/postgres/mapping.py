"""The target's tables for the source's: by schema and name, columns by name.

What does not fit is an error at the first change, with the column named: a table that is
not there, a column that is not there, a binary value for a column of another type.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from psycopg import AsyncConnection

from castling.errors import TargetError
from castling.kinds.postgres.messages import Column, Relation
from castling.kinds.postgres.statements import TargetColumn, TargetTable

__all__ = ["FIRST_USER_OID", "Found", "Mapping", "matched"]

#: objects below this have the same identifier on every server
FIRST_USER_OID = 16384

_COLUMNS = """
    SELECT a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod), a.atttypid::pg_catalog.int8,
           a.attidentity = 'a', a.attgenerated <> '', c.relkind = 'p'
      FROM pg_catalog.pg_attribute a
      JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
      JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
     WHERE n.nspname = %s AND c.relname = %s AND c.relkind IN ('r', 'p')
       AND a.attnum > 0 AND NOT a.attisdropped
"""


class Found(NamedTuple):
    """A column of the target's table. `type` as PostgreSQL writes it; `generated`: computed from others."""

    name: str
    type: str
    type_oid: int
    always_identity: bool
    generated: bool


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

    async def _look_up(self, relation: Relation) -> TargetTable:
        cursor = await self._connection.execute(_COLUMNS, (relation.schema, relation.name))
        rows = await cursor.fetchall()
        found = [
            Found(str(row[0]), str(row[1]), int(str(row[2])), bool(row[3]), bool(row[4])) for row in rows
        ]
        return matched(relation, found, is_partitioned=any(row[5] for row in rows))


def matched(relation: Relation, found: Sequence[Found], *, is_partitioned: bool = False) -> TargetTable:
    """The target's columns for those of `relation`, in its order. Pure. TargetError names what does not fit.

    Columns that only the target has are left to their defaults.
    """
    if not found:
        raise TargetError(
            f"the target has no table {relation}",
            hint="create it as on the source, or exclude it from the group",
            table=str(relation),
        )
    by_name = {column.name: column for column in found}
    columns = tuple(_fitting(relation, column, by_name.get(column.name)) for column in relation.columns)
    return TargetTable(relation.schema, relation.name, columns, is_partitioned)


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
    return TargetColumn(column.name, found.type, found.type_oid, found.always_identity)
