"""What pg_restore writes for a server as new as itself, told to an older one. Pure.

Two things of a new dump are unknown to older servers: settings of its head, and NOT NULL as an element of
a table of its own (PostgreSQL 18 writes it for a column that comes from a parent). The settings are left out;
the element becomes a statement behind the table's. All else is left alone: what an older server can't know
at all is refused by it, by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

__all__ = ["for_server", "is_as_it_is"]

#: settings of a dump's head, and the first version that has them
_SINCE = {b"transaction_timeout": 170000}
_ELEMENT_SINCE = 180000

_SET = re.compile(rb"SET (\w+) = [^;\n]*;")
#: what may hide a comma, a bracket or a semicolon; then those, then names (which may hold a dollar sign)
_TOKEN = re.compile(
    rb"""--[^\n]*
       | [eE]'(?:[^'\\]|\\.|'')*'
       | '(?:[^']|'')*'
       | "(?:[^"]|"")*"
       | [A-Za-z_\x80-\xff][\w$\x80-\xff]*
       | \$(?P<tag>[A-Za-z_\x80-\xff][\w\x80-\xff]*)?\$ .*? \$(?(tag)(?P=tag))\$
       | (?P<mark>[(),;])""",
    re.VERBOSE | re.DOTALL,
)
_NAME = rb'(?:"(?:[^"]|"")*"|[A-Za-z_\x80-\xff][\w$\x80-\xff]*)'
_TABLE = re.compile(
    rb"(?:--[^\n]*\n|\s)*CREATE (?:UNLOGGED |FOREIGN )?TABLE (" + _NAME + rb"(?:\." + _NAME + rb")?)\s*\("
)
_NOT_NULL = re.compile(rb"\s*(?:CONSTRAINT " + _NAME + rb" )?NOT NULL (" + _NAME + rb")\s*")


def for_server(script: bytes, version: int) -> bytes:
    """`script`, as pg_restore writes it, so that a server of `version` takes it."""
    script = _without_settings(script, version)
    return script if version >= _ELEMENT_SINCE else b"".join(map(_without_elements, _statements(script)))


def is_as_it_is(version: int) -> bool:
    """Whether a server of `version` takes any script unchanged."""
    return version >= max(_ELEMENT_SINCE, *_SINCE.values())


def _without_settings(script: bytes, version: int) -> bytes:
    """Only the head is looked at: what stands after the first statement of another kind may be data."""
    lines = script.splitlines(keepends=True)
    for number, line in enumerate(lines):
        found = _SET.fullmatch(line.strip())
        if found and _SINCE.get(found[1], 0) > version:
            lines[number] = b"\n"
        elif (
            line.strip()
            and not found
            and not line.startswith((b"--", b"\\", b"SELECT pg_catalog.set_config"))
        ):
            break
    return b"".join(lines)


def _statements(script: bytes) -> Iterator[bytes]:
    start = 0
    for mark in _marks(script):
        if mark.group() == b";":
            yield script[start : mark.end()]
            start = mark.end()
    yield script[start:]


def _marks(text: bytes, at: int = 0) -> Iterator[re.Match[bytes]]:
    return (found for found in _TOKEN.finditer(text, at) if found["mark"])


def _without_elements(statement: bytes) -> bytes:
    table = _TABLE.match(statement)
    if table is None or b"NOT NULL" not in statement:
        return statement
    elements, start, depth, end = [], table.end(), 1, len(statement)
    for mark in _marks(statement, table.end()):
        depth += {b"(": 1, b")": -1}.get(mark.group(), 0)
        if depth == 0 or (depth == 1 and mark.group() == b","):
            elements.append(statement[start : mark.start()])
            start = mark.end()
        if depth == 0:
            end = mark.start()
            break
    found = [_NOT_NULL.fullmatch(each) for each in elements]
    kept = [each for each, without in zip(elements, found, strict=True) if without is None]
    if len(kept) == len(elements):
        return statement
    later = b"".join(
        b"\nALTER TABLE ONLY %b ALTER COLUMN %b SET NOT NULL;" % (table[1], each[1]) for each in found if each
    )
    ends = b"" if kept and kept[-1].endswith(b"\n") else b"\n"
    return statement[: table.end()] + b",".join(kept) + ends + statement[end:] + later
