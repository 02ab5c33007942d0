"""Tables of which only some rows or columns are published: what that asks of them, and how it is known again.

The server refuses its own users' updates and deletes of a published table when a row filter reads a column
that is no part of its replica identity, or when a column list leaves out a part of it. So a filter that reads
others makes Castling give the table REPLICA IDENTITY FULL, in the transaction that publishes it, and what
even that would not mend is refused by name. Two groups share a table's identity: a table that another
publication narrows to columns can't be given a full one.

What a filter reads only the server can tell: it is asked by publishing the tables in a transaction that is
rolled back where nothing shall be changed.

A publication can be altered behind Castling's back. Its comment holds a mark of each table's narrowing as the
catalog has it, and a digest of what castling.toml says.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import AsyncConnection

from castling.config import GroupSettings
from castling.config.names import split_name
from castling.kinds.postgres.catalog import Table, TableColumn, table_name
from castling.kinds.postgres.naming import Name
from castling.kinds.postgres.statements import quoted

__all__ = [
    "FIRST_WITH",
    "Narrowed",
    "Part",
    "identity_conflicts",
    "listed",
    "named_columns",
    "named_rows",
    "names_narrowed",
    "narrowing_digest",
    "narrowing_note",
    "narrowing_problems",
    "needing_identity",
    "noted_narrowing",
    "read_column_lists",
    "read_narrowed",
    "read_parts",
]

#: the first version that publishes some rows or columns of a table
FIRST_WITH = 150000

_NARROWED = """
SELECT r.prrelid::int8,
       pg_catalog."left"(pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to(
           pg_catalog.concat_ws('/', r.prqual::text, r.prattrs::text), 'UTF8')), 'hex'), 16),
       ARRAY(SELECT DISTINCT COALESCE(a.attname::text, 'the whole row')
               FROM pg_catalog.regexp_matches(r.prqual::text, ':varattno (\\d+)', 'g') read(number)
               LEFT JOIN pg_catalog.pg_attribute a
                 ON a.attrelid = c.oid AND a.attnum = read.number[1]::int2 AND a.attnum > 0
              WHERE NOT read.number[1]::int2 = ANY (COALESCE(k.columns, '{}')) AND c.relreplident <> 'f')
  FROM pg_catalog.pg_publication_rel r
  JOIN pg_catalog.pg_class c ON c.oid = r.prrelid
  LEFT JOIN LATERAL (
       SELECT (i.indkey::int2[])[0:i.indnkeyatts - 1] AS columns FROM pg_catalog.pg_index i
        WHERE i.indrelid = c.oid AND CASE c.relreplident WHEN 'd' THEN i.indisprimary
                                                          WHEN 'i' THEN i.indisreplident END) k ON true
 WHERE r.prpubid = (SELECT oid FROM pg_catalog.pg_publication WHERE pubname = %s)
   AND (r.prqual IS NOT NULL OR r.prattrs IS NOT NULL)
"""


@dataclass(frozen=True, slots=True)
class Narrowed:
    """`mark`: what is published of it, as the catalog has it. `outside`: columns that the filter reads and
    that are no part of the replica identity."""

    oid: int
    mark: str
    outside: tuple[str, ...]


async def read_narrowed(connection: AsyncConnection[Any], publication: str) -> list[Narrowed]:
    if connection.info.server_version < FIRST_WITH:
        return []
    cursor = await connection.execute(_NARROWED.encode(), (publication,))
    return [Narrowed(oid, mark, tuple(outside)) for oid, mark, outside in await cursor.fetchall()]


@dataclass(frozen=True, slots=True)
class Part:
    """What is published of a table, as the server writes it: a condition, columns; None for all."""

    rows: str | None = None
    columns: tuple[str, ...] | None = None

    def copied(self, table: Table) -> list[TableColumn]:
        """The columns that a copy has to read."""
        columns = table.copied_columns
        return [column for column in columns if self.columns is None or column.name in self.columns]

    def where(self, place: str) -> str:
        """`place`, a condition on where rows lie (see `seed_plan.chunks`) or nothing, and the rows'."""
        if self.rows is None:
            return place
        return f"{place} AND ({self.rows})" if place else f"WHERE ({self.rows})"


async def read_parts(connection: AsyncConnection[Any], publication: str) -> dict[int, Part]:
    """By table: what the publication publishes of those of which it is not all. A copy that reads the same
    has exactly the rows that the stream goes on with."""
    if connection.info.server_version < FIRST_WITH:
        return {}
    cursor = await connection.execute(
        "SELECT r.prrelid::int8, pg_catalog.pg_get_expr(r.prqual, r.prrelid),"
        " CASE WHEN r.prattrs IS NOT NULL THEN ARRAY("
        "   SELECT a.attname::text FROM pg_catalog.pg_attribute a"
        "    WHERE a.attrelid = r.prrelid AND a.attnum = ANY (r.prattrs::int2[])) END"
        "  FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid"
        " WHERE p.pubname = %s AND (r.prqual IS NOT NULL OR r.prattrs IS NOT NULL)",
        (publication,),
    )
    return {
        oid: Part(rows, None if columns is None else tuple(columns))
        for oid, rows, columns in await cursor.fetchall()
    }


async def read_column_lists(connection: AsyncConnection[Any]) -> dict[int, str]:
    """The tables of which some publication publishes some columns only, and which publication."""
    if connection.info.server_version < FIRST_WITH:
        return {}
    cursor = await connection.execute(
        b"SELECT r.prrelid::int8, pg_catalog.min(p.pubname) FROM pg_catalog.pg_publication_rel r"
        b" JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid"
        b" WHERE r.prattrs IS NOT NULL GROUP BY r.prrelid"
    )
    return {oid: str(name) for oid, name in await cursor.fetchall()}


def needing_identity(narrowed: Sequence[Narrowed], tables: Sequence[Table]) -> list[tuple[Table, str]]:
    """The tables that need REPLICA IDENTITY FULL for their filter, and why. Pure."""
    by_oid = {table.oid: table for table in tables}
    return [
        (by_oid[one.oid], f"its condition in `rows` reads {', '.join(one.outside)}, beside its key")
        for one in narrowed
        if one.outside
    ]


def identity_conflicts(needing: Sequence[Table], column_lists: dict[int, str]) -> list[tuple[str, str, str]]:
    """Why tables can't be given a full replica identity: object, reason, way out. Pure."""
    return [
        (
            str(table),
            f"needs REPLICA IDENTITY FULL, and the publication {column_lists[table.oid]} publishes only some"
            " of its columns: PostgreSQL would refuse its users' updates",
            "give it a key, or a REPLICA IDENTITY USING INDEX that holds the columns of its filter",
        )
        for table in needing
        if table.oid in column_lists
    ]


def narrowing_digest(settings: GroupSettings) -> str:
    """Of what castling.toml says of rows and columns; empty when that is nothing."""
    if not settings.rows and not settings.columns:
        return ""
    told = json.dumps([sorted(settings.rows.items()), sorted(settings.columns.items())])
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def named_rows(settings: GroupSettings) -> dict[Name, str]:
    """The conditions of `rows` by schema and name of the table."""
    found = {split_name(name): condition for name, condition in settings.rows.items()}
    return {name: condition for name, condition in found.items() if name is not None}


def named_columns(settings: GroupSettings) -> dict[Name, list[str]]:
    found = {split_name(name): columns for name, columns in settings.columns.items()}
    return {name: columns for name, columns in found.items() if name is not None}


def names_narrowed(settings: GroupSettings) -> list[Name]:
    """The tables that `rows` or `columns` name."""
    return list(dict.fromkeys((*named_rows(settings), *named_columns(settings))))


def listed(tables: Sequence[Table], settings: GroupSettings) -> str:
    """The tables as a publication lists them."""
    rows, columns = named_rows(settings), named_columns(settings)
    parts = []
    for table in tables:
        part = f"{'ONLY ' if table.kind == 'r' else ''}{table.sql}"
        chosen, condition = columns.get((table.schema, table.name)), rows.get((table.schema, table.name))
        if chosen is not None:
            part += f" ({', '.join(map(quoted, chosen))})"
        if condition is not None:
            part += f" WHERE ({condition})"
        parts.append(part)
    return ", ".join(parts)


def narrowing_problems(
    tables: Sequence[Table], settings: GroupSettings, version: int
) -> list[tuple[str, str, str]]:
    """Why tables can't be narrowed as castling.toml says: object, reason, way out. Pure. What a condition
    reads is not looked at: see `needing_identity`."""
    rows, columns = named_rows(settings), named_columns(settings)
    if (rows or columns) and version < FIRST_WITH:
        reason = "`rows` and `columns` need PostgreSQL 15 or newer on the source"
        return [("source", reason, "carry the tables whole, or upgrade the source")]
    by_name = {(table.schema, table.name): table for table in tables}
    found = []
    for name in names_narrowed(settings):
        table = by_name.get(name)
        if table is None:
            hint = "name one that `include` chooses; of a partitioned table name partitions"
            found.append(
                (table_name(*name), "stands in `rows` or `columns`, and is no table of the group", hint)
            )
        elif table.kind == "p":
            hint = "include only the partitions that are wanted, without their root, and filter each"
            found.append((str(table), "is partitioned: its partitions are published, not it", hint))
        elif name in columns:
            found += [(str(table), reason, hint) for reason, hint in _column_problems(table, columns[name])]
    return found


def _column_problems(table: Table, chosen: list[str]) -> list[tuple[str, str]]:
    by_name = {column.name: column for column in table.columns}
    found = []
    for name in chosen:
        if name not in by_name:
            found.append((f"has no column {name}, which `columns` names", "correct castling.toml"))
        elif by_name[name].generated:
            found.append((f"column {name} is generated: the target computes it", "leave it out of `columns`"))
    if table.identity == "f" or not table.has_identity:
        reason = "has no key, or is told by its whole rows, and `columns` would not carry those"
        found.append((reason, "give it a primary key (and REPLICA IDENTITY DEFAULT), or carry all columns"))
    elif missing := [name for name in table.identity_columns if name not in chosen]:
        reason = f"column {', '.join(missing)} of its replica identity is not in `columns`"
        found.append((f"{reason}: PostgreSQL would refuse its users' updates", "name it there"))
    return found


def narrowing_note(digest: str, narrowed: Sequence[Narrowed]) -> str:
    """What the comment of a publication says of it, behind all else."""
    if not narrowed:
        return ""
    return f"; narrowed {digest} {json.dumps({str(one.oid): one.mark for one in narrowed}, sort_keys=True)}"


def noted_narrowing(comment: str | None) -> tuple[str, dict[int, str]]:
    """The reverse: the digest, and the marks by table; nothing for a comment that says nothing of it."""
    found = re.search(r"; narrowed (\w+) (\{[^{}]*\})$", comment or "")
    if found is None:
        return "", {}
    return found[1], {int(oid): str(mark) for oid, mark in json.loads(found[2]).items()}
