"""Definitions of the source as the target has them, where schemas or tables have another name there.

What the server writes with an empty search path names everything by its schema, so that a name and the one
before it are looked up together. A column behind a table of the same name as a renamed schema would be taken
for one of its tables: a definition is then shown as different, and nothing else comes of it. What a
function's body says is its own affair; it is not translated when the target's is made either.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from psycopg import AsyncConnection

from castling.kinds.postgres.definitions import Thing
from castling.kinds.postgres.naming import Naming

__all__ = ["named_as_on_target", "named_text", "with_belongings"]

_IDENT = r'(?:"(?:[^"]|"")+"|[^\W\d][\w$]*)'
#: a name behind another, also as the literal of a regclass; other literals stay as they are
_QUALIFIED = re.compile(
    r"'(?P<text>(?:[^']|'')*)'(?P<regclass>::regclass)?"
    rf"|(?<![\w$\".])(?P<schema>{_IDENT})\.(?P<name>{_IDENT})"
)
#: where a schema stands alone, by kind of thing: in its name, and in the statement that makes it
_SCHEMA_IN_NAME = {
    "schema": rf"^()({_IDENT})$",
    "owner": rf"^()({_IDENT})$",
    "grant": rf"^()({_IDENT})(?= to )",
    "comment": rf"^(schema )({_IDENT})$",
    "security label": rf"^(schema )({_IDENT})(?= of )",
    "default privileges": rf"( in )({_IDENT})$",
}
_SCHEMA_IN_STATEMENT = rf"(?i)(\bschema )({_IDENT})"

#: what goes into another schema with its table: indexes, and the sequences it owns
_BELONGINGS = """
SELECT n.nspname, t.relname, c.relname
  FROM unnest(%s::text[], %s::text[]) named(schema, name)
  JOIN pg_catalog.pg_namespace n ON n.nspname = named.schema
  JOIN pg_catalog.pg_class t ON t.relnamespace = n.oid AND t.relname = named.name
  JOIN (SELECT indrelid AS owner, indexrelid AS oid FROM pg_catalog.pg_index UNION ALL
        SELECT d.refobjid, d.objid FROM pg_catalog.pg_depend d
         WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.refclassid = 'pg_catalog.pg_class'::regclass
           AND d.deptype IN ('a', 'i')) b ON b.owner = t.oid
  JOIN pg_catalog.pg_class c ON c.oid = b.oid AND c.relkind IN ('i', 'I', 'S')
"""


async def with_belongings(connection: AsyncConnection[Any], naming: Naming) -> Naming:
    """On the source: `naming`, and rules for what goes with the tables that have one."""
    if not naming.tables:
        return naming
    cursor = await connection.execute(
        _BELONGINGS.encode(), ([name[0] for name in naming.tables], [name[1] for name in naming.tables])
    )
    return naming.and_also(
        {
            (schema, name): (naming.target(schema, table)[0], name)
            for schema, table, name in await cursor.fetchall()
        }
    )


def named_as_on_target(thing: Thing, naming: Naming) -> Thing:
    """What the source's `thing` is on the target. Pure."""
    if not naming:
        return thing
    name = named_text(thing.name, naming)
    if thing.kind in _SCHEMA_IN_NAME:
        name = _schemas(_SCHEMA_IN_NAME[thing.kind], name, naming)
    make = _schemas(_SCHEMA_IN_STATEMENT, named_text(thing.make, naming), naming)
    return replace(thing, name=name, text=named_text(thing.text, naming), make=make)


def _schemas(pattern: str, text: str, naming: Naming) -> str:
    return re.sub(pattern, lambda found: found[1] + _part(naming.schema(_plain(found[2]))), text)


def named_text(text: str, naming: Naming) -> str:
    """What the source's server wrote, with an empty search path or nearly so, in the target's names. Pure."""
    if not naming:
        return text

    def told(found: re.Match[str]) -> str:
        if found["text"] is not None:
            return f"'{named_text(found['text'], naming)}'::regclass" if found["regclass"] else found[0]
        here = _plain(found["schema"]), _plain(found["name"])
        there = naming.target(*here)
        return found[0] if here == there else f"{_part(there[0])}.{_part(there[1])}"

    return _QUALIFIED.sub(told, text)


def _plain(part: str) -> str:
    return part[1:-1].replace('""', '"') if part.startswith('"') else part


def _part(name: str) -> str:
    """As the server writes a name, but for those that are words of SQL."""
    plain = re.fullmatch(r"[a-z_][a-z0-9_$]*", name)
    return name if plain else '"' + name.replace('"', '""') + '"'
