"""The target's tables for the source's: by schema and name, columns by name.

What does not fit is an error at the first change, with the column named: a table that is
not there, a column that is not there, a binary value for a column of another type.
"""

from __future__ import annotations

from psycopg import AsyncConnection

from castling.errors import TargetError
from castling.kinds.postgres.messages import Relation
from castling.kinds.postgres.statements import TargetColumn, TargetTable

__all__ = ["FIRST_USER_OID", "Mapping"]

#: objects below this have the same identifier on every server
FIRST_USER_OID = 16384

_COLUMNS = """
    SELECT a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod), a.atttypid::pg_catalog.int8,
           a.attidentity = 'a', a.attgenerated <> ''
      FROM pg_catalog.pg_attribute a
      JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
      JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
     WHERE n.nspname = %s AND c.relname = %s AND c.relkind IN ('r', 'p')
       AND a.attnum > 0 AND NOT a.attisdropped
"""


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
        found = {str(row[0]): row for row in await cursor.fetchall()}
        if not found:
            raise TargetError(
                f"the target has no table {relation}",
                hint="create it as on the source, or exclude it from the group",
                table=str(relation),
            )
        columns = []
        for column in relation.columns:
            row = found.get(column.name)
            if row is None or row[4]:
                raise TargetError(
                    f"{relation} on the target has no column {column.name!r} that can be written",
                    hint="schema changes are not carried: make the same change on the target",
                    table=str(relation),
                    column=column.name,
                )
            type_oid = int(str(row[2]))
            if type_oid != column.type_oid and min(type_oid, column.type_oid) < FIRST_USER_OID:
                raise TargetError(
                    f"{relation}.{column.name} is of type {row[1]} on the target, but not on the source",
                    hint="give the column the source's type",
                    table=str(relation),
                    column=column.name,
                )
            columns.append(TargetColumn(column.name, str(row[1]), type_oid, bool(row[3])))
        return TargetTable(relation.schema, relation.name, tuple(columns))
