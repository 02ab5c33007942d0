"""Names of schemas and tables as they stand in castling.toml: `schema.table`, parts in double quotes where
they hold a dot or a quote, as in SQL. Pure."""

from __future__ import annotations

import re

__all__ = ["EVERY", "split_name", "sql_problem"]

#: in place of a table: all of the schema
EVERY = "*"

_PART = r'("(?:[^"]|"")+"|[^".]+)'
_NAME = re.compile(rf"{_PART}\.{_PART}")
#: what may hide a bracket or a semicolon; then those
_SQL = re.compile(r"""--[^\n]*|/\*|'(?:[^']|'')*'|"(?:[^"]|"")*"|\$\w*\$|(?P<mark>[();])""")


def split_name(name: str) -> tuple[str, str] | None:
    """Schema and table; None for what is no such name. A bare `*` is not a table, but `EVERY` of them."""
    found = _NAME.fullmatch(name)
    return None if found is None else (_plain(found[1]), _plain(found[2]))


def _plain(part: str) -> str:
    return part[1:-1].replace('""', '"') if part.startswith('"') else part


def sql_problem(expression: str) -> str | None:
    """Why `expression` could not stand between brackets in a statement; None if it can."""
    if not expression.strip():
        return "is empty"
    depth = 0
    for found in _SQL.finditer(expression):
        if found["mark"] is None:
            if found[0].startswith(("--", "/*", "$")):
                return f"holds {found[0][:2]!r}: write it without comments and dollar quotes"
            continue
        if found["mark"] == ";":
            return "holds a semicolon: a condition is one expression"
        depth += 1 if found["mark"] == "(" else -1
        if depth < 0:
            break
    return "has brackets that don't match" if depth else None
