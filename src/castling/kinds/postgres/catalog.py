"""What a server holds: the tables of a group and all that decides whether they can be replicated.

One question for all tables, however many there are.
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from typing import Any

from psycopg import AsyncConnection

from castling.config import GroupSettings

__all__ = [
    "Table",
    "TableColumn",
    "are_chosen",
    "is_chosen",
    "is_left_behind",
    "partition_sizes",
    "read_tables",
    "table_name",
    "types_agree",
]

#: built-in and so the same on every server; others may carry identifiers that differ
_FIRST_USER_OID = 16384

_TABLES = """
SELECT c.oid::int8, n.nspname, c.relname, c.relkind::text, c.relpersistence::text, c.relreplident::text,
       c.relispartition, c.relrowsecurity, GREATEST(c.reltuples, 0)::int8,
       {size}::int8,
       pg_catalog.has_table_privilege(c.oid, 'SELECT'),
       (SELECT i.indisvalid AND i.indimmediate FROM pg_catalog.pg_index i
         WHERE i.indrelid = c.oid AND i.indisprimary),
       EXISTS (SELECT FROM pg_catalog.pg_index i
                WHERE i.indrelid = c.oid AND i.indisreplident AND i.indisvalid),
       EXISTS (SELECT FROM pg_catalog.pg_inherits h WHERE h.inhparent = c.oid AND c.relkind = 'r'),
       (SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(pn.nspname, pc.relname))
          FROM pg_catalog.pg_partition_ancestors(c.oid) a
          JOIN pg_catalog.pg_class pc ON pc.oid = a.relid AND pc.oid <> c.oid
          JOIN pg_catalog.pg_namespace pn ON pn.oid = pc.relnamespace
         WHERE c.relispartition),
       (SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(
                 a.attname, a.atttypid::int8, pg_catalog.format_type(a.atttypid, a.atttypmod),
                 a.attgenerated, a.attidentity, t.typtype, COALESCE(t.typelem, 0)::int8,
                 COALESCE(et.typtype::text, ''), a.attnotnull) ORDER BY a.attnum)
          FROM pg_catalog.pg_attribute a
          JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
          LEFT JOIN pg_catalog.pg_type et ON et.oid = t.typelem AND t.typelem <> 0
         WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
       (SELECT pg_catalog.array_agg(k.attname ORDER BY u.place)
          FROM pg_catalog.pg_index i
          CROSS JOIN LATERAL pg_catalog.unnest(i.indkey::int2[]) WITH ORDINALITY u(number, place)
          JOIN pg_catalog.pg_attribute k ON k.attrelid = c.oid AND k.attnum = u.number
         WHERE i.indrelid = c.oid AND i.indisprimary),
       EXISTS (SELECT FROM pg_catalog.pg_index i
                 JOIN pg_catalog.pg_attribute g ON g.attrelid = c.oid AND g.attnum = ANY (i.indkey::int2[])
                WHERE i.indrelid = c.oid AND g.attgenerated <> ''
                  AND CASE c.relreplident WHEN 'd' THEN i.indisprimary ELSE i.indisreplident END),
       pg_catalog.current_setting('server_version_num')::int4 < 180000,
       (SELECT pg_catalog.array_agg(k.attname ORDER BY u.place)
          FROM pg_catalog.pg_index i
          CROSS JOIN LATERAL pg_catalog.unnest(i.indkey::int2[]) WITH ORDINALITY u(number, place)
          JOIN pg_catalog.pg_attribute k ON k.attrelid = c.oid AND k.attnum = u.number
         WHERE i.indrelid = c.oid AND u.place <= i.indnkeyatts
           AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident END)
  FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p', 'f', 'm')
   AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'castling', 'castling_ddl')
   AND n.nspname NOT LIKE 'pg\\_toast%' AND n.nspname NOT LIKE 'pg\\_temp%'
   AND c.relpersistence <> 't'
   AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                    WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid
                      AND d.deptype = 'e')
 ORDER BY n.nspname, c.relname
"""


def table_name(schema: str, name: str) -> str:
    """`schema.name`, and never the same for two tables: a part that holds a dot or a quote is quoted."""
    return f"{_part(schema)}.{_part(name)}"


def _part(name: str) -> str:
    return '"' + name.replace('"', '""') + '"' if "." in name or '"' in name else name


@dataclass(frozen=True, slots=True)
class TableColumn:
    """`type`: as PostgreSQL writes it. `generated`: '', s (stored), v (virtual). `identity`: '', a, d."""

    name: str
    type_oid: int
    type: str
    generated: str
    identity: str
    type_kind: str
    element_oid: int
    element_kind: str
    not_null: bool

    @property
    def is_portable(self) -> bool:
        """The binary form means the same on every server: that of built-in types and plain enums does,
        but for those that name an object of the server by its identifier; and no server reads the
        binary form of an empty tsquery."""
        if self.type_oid < _FIRST_USER_OID:
            return not self.type.startswith(("reg", "tsquery"))
        return self.type_kind == "e"


@dataclass(frozen=True, slots=True)
class Table:
    """`kind`: r table, p partitioned, f foreign, m materialized view. `identity`: d, n, f, i."""

    oid: int
    schema: str
    name: str
    kind: str
    persistence: str
    identity: str
    is_partition: bool
    row_security: bool
    rows: int
    bytes: int
    readable: bool
    primary_key_usable: bool | None
    has_identity_index: bool
    has_children: bool
    ancestors: tuple[str, ...]
    columns: tuple[TableColumn, ...]
    primary_key: tuple[str, ...]
    generated_in_key: bool = False
    #: the server lets rows be identified as a whole though generated columns are not published
    whole_rows_fit: bool = True
    #: the columns of its replica identity; none where that is the whole row
    identity_columns: tuple[str, ...] = ()

    def __str__(self) -> str:
        return table_name(self.schema, self.name)

    @property
    def sql(self) -> str:
        return ".".join('"' + part.replace('"', '""') + '"' for part in (self.schema, self.name))

    @property
    def identity_problem(self) -> str | None:
        """Why its updates and deletes can't be published: the server would refuse them to everybody.

        Generated columns are not published, so no row can be told by one (PostgreSQL 18 checks it for whole
        rows too; older servers leave such columns out of them).
        """
        hint = "a generated column, which is not published"
        if self.has_identity and self.identity != "f":
            return f"is identified by {hint}" if self.generated_in_key else None
        if self.whole_rows_fit or not any(column.generated for column in self.columns):
            return None
        return f"has no key and {hint}: PostgreSQL would refuse its updates and deletes"

    @property
    def has_identity(self) -> bool:
        """Updates and deletes can be published: by a key, an index or the whole row."""
        if self.identity == "d":
            return bool(self.primary_key_usable)
        if self.identity == "i":
            return self.has_identity_index
        return self.identity == "f"

    @property
    def copied_columns(self) -> tuple[TableColumn, ...]:
        """The columns that have values of their own."""
        return tuple(column for column in self.columns if not column.generated)


def _matches(name: str, patterns: list[str]) -> bool:
    return any(
        fnmatch.fnmatchcase(name, pattern if "." in pattern else f"{pattern}.*") for pattern in patterns
    )


def is_chosen(table: Table, settings: GroupSettings) -> bool:
    """Whether the group's patterns name the table. A partition follows its root."""
    return are_chosen([str(table), *table.ancestors], settings)


def are_chosen(names: list[str], settings: GroupSettings) -> bool:
    """Whether the group's patterns choose what is known by any of `names`."""
    if any(_matches(name, settings.exclude) for name in names):
        return False
    return any(_matches(name, settings.include) for name in names)


def is_left_behind(table: Table, settings: GroupSettings) -> bool:
    """Whether the group has it though its rows are not in the log: unlogged, or a materialized view."""
    is_without_log = table.kind == "m" or (table.kind == "r" and table.persistence == "u")
    return is_without_log and is_chosen(table, settings)


async def read_tables(connection: AsyncConnection[Any], *, measured: bool = True) -> list[Table]:
    """Every table, partition, foreign table and materialized view, ordered by name.

    To measure a table is to wait for who has locked it: without `measured`, no lock is taken and sizes are
    the server's last estimates. What opens a stream must not wait for a TRUNCATE whose commit waits for
    that very stream.
    """
    size = "pg_catalog.pg_table_size(c.oid)"
    if not measured:
        size = "c.relpages::int8 * pg_catalog.current_setting('block_size')::int8"
    cursor = await connection.execute(_TABLES.replace("{size}", size).encode())
    found = []
    for row in await cursor.fetchall():
        columns = tuple(TableColumn(*column) for column in row[15] or ())
        ancestors = tuple(table_name(*names) for names in row[14] or ())
        fields: list[Any] = [
            *row[:14],
            ancestors,
            columns,
            tuple(row[16] or ()),
            row[17],
            row[18],
            tuple(row[19] or ()),
        ]
        found.append(Table(*fields))
    return found


def partition_sizes(tables: list[Table]) -> dict[str, tuple[int, int]]:
    """Rows and bytes of each partitioned table: what its partitions hold together."""
    found: dict[str, tuple[int, int]] = {}
    for table in tables:
        for ancestor in table.ancestors:
            rows, size = found.get(ancestor, (0, 0))
            found[ancestor] = (rows + table.rows, size + table.bytes)
    return found


def types_agree(tables: list[Table]) -> bool:
    """Whether every value can travel in its binary form."""
    return all(column.is_portable for table in tables for column in table.copied_columns)
