"""An independent comparison of two databases, table by table, row by row.

It shares no code with the replication: its own SQL, its own connection, its own idea of
what a row is (the text of every column, by name). Each side hashes each table to a count
and a sum of row hashes, which neither order nor duplicates can fool; a table that differs is
then looked at row by row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg

__all__ = ["Comparison", "Difference", "compare"]

_SHOWN = 10

_SESSION = (
    "SET search_path = pg_catalog; SET DateStyle = ISO; SET IntervalStyle = iso_8601; SET TimeZone = 'UTC';"
    "SET extra_float_digits = 3; SET bytea_output = hex; SET xmloption = content;"
)

_TABLES = """
    SELECT n.nspname, format('%I.%I', n.nspname, c.relname),
           array_remove(array_agg(quote_ident(a.attname) ORDER BY a.attname), NULL)
      FROM pg_class c
      JOIN pg_namespace n ON n.oid = c.relnamespace
      LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
     WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition
       AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'castling', 'castling_ddl')
       AND n.nspname NOT LIKE 'pg\\_%'
     GROUP BY 1, 2
"""


@dataclass(frozen=True, slots=True)
class Difference:
    """`rows`: up to ten rows as text, each with the side that has it and how often."""

    table: str
    what: str
    rows: list[tuple[str, str, int]] = field(default_factory=list)


@dataclass(slots=True)
class Comparison:
    """`tables` and `rows` say how much was compared; equal means no differences and at least one table."""

    tables: int = 0
    rows: int = 0
    differences: list[Difference] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        return self.tables > 0 and not self.differences


def compare(
    dsn_a: str,
    dsn_b: str,
    schemas: Sequence[str] | None = None,
    *,
    named: Mapping[str, str] | None = None,
    rows: Mapping[str, str] | None = None,
    columns: Mapping[str, Sequence[str]] | None = None,
) -> Comparison:
    """Compare every table of both databases (`schemas`: only these of the first). Both must be at rest.

    `named`: what the second calls a table of the first, or a schema (`old.*`), or both;
    with it, only tables that are called so are looked at in the second. `rows`: of a table of the
    first, only these; the second must have no others. `columns`: only these are compared. All by the first's
    names.
    """
    with psycopg.connect(dsn_a) as a, psycopg.connect(dsn_b) as b:
        for connection in (a, b):
            connection.execute(_SESSION.encode())
        tables_a = _tables(a, schemas)
        there = {name: _there(name, named or {}) for name in tables_a}
        tables_b = _tables(b, schemas if named is None else None)
        back = {new: old for old, new in there.items()}
        tables_b = {back.get(name, name): its for name, its in tables_b.items() if not named or name in back}
        found = Comparison()
        for name in sorted(tables_a.keys() | tables_b.keys()):
            if name not in tables_b or name not in tables_a:
                side = "second" if name not in tables_b else "first"
                found.differences.append(Difference(name, f"the table is missing on the {side} side"))
                continue
            found.tables += 1
            only = (columns or {}).get(name)
            if only is None and tables_a[name] != tables_b[name]:
                found.differences.append(Difference(name, "the columns differ"))
                continue
            condition = (rows or {}).get(name)
            side_a = name if condition is None else f"{name} WHERE {condition}"
            _compare_table((a, side_a), (b, there[name]), name, tuple(only or tables_a[name]), found)
    return found


def _there(name: str, named: Mapping[str, str]) -> str:
    schema, _, table = name.partition(".")
    new = named.get(name) or named.get(f"{schema}.*", name)
    return f"{new[:-1]}{table}" if new.endswith(".*") else new


def _tables(connection: psycopg.Connection[Any], schemas: Sequence[str] | None) -> dict[str, tuple[str, ...]]:
    rows = connection.execute(_TABLES.encode()).fetchall()
    return {name: tuple(columns) for schema, name, columns in rows if schemas is None or schema in schemas}


def _compare_table(
    a: tuple[psycopg.Connection[Any], str],
    b: tuple[psycopg.Connection[Any], str],
    name: str,
    columns: tuple[str, ...],
    found: Comparison,
) -> None:
    row = f"ROW({', '.join(columns)})::text"
    # sixteen hex digits of each row's hash, summed exactly: a multiset has one such sum
    question = (
        f"SELECT count(*), COALESCE(sum(('x' || substr(md5({row}), 1, 16))::bit(64)::int8::numeric), 0),"
        f" COALESCE(sum(('x' || substr(md5({row}), 17, 16))::bit(64)::int8::numeric), 0) FROM "
    )
    summary_a, summary_b = (side.execute((question + its).encode()).fetchone() for side, its in (a, b))
    assert summary_a is not None
    found.rows += summary_a[0]
    if summary_a == summary_b:
        return
    counts = [_rows(side, its, row) for side, its in (a, b)]
    shown = [
        (side, text, number)
        for side, more in (("first", counts[0] - counts[1]), ("second", counts[1] - counts[0]))
        for text, number in more.most_common(_SHOWN)
    ]
    assert summary_b is not None
    what = f"{summary_a[0]} rows against {summary_b[0]}, {len(shown)} or more differ"
    found.differences.append(Difference(name, what, shown))


def _rows(connection: psycopg.Connection[Any], name: str, row: str) -> Counter[str]:
    cursor = connection.execute(f"SELECT left({row}, 300) || ' #' || md5({row}) FROM {name}".encode())
    return Counter(text for (text,) in cursor)
