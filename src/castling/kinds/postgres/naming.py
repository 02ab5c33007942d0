"""What the source's schemas and tables are called on the target. Pure.

The journal and all that is asked of the source speak of the source's names; all that is said of the target,
by either end, speaks of the target's. One name becomes the other in three places only: where the stream is
decoded, where a copy is sent, and where the source end tells of a sequence.

A rule for a table wins over one for its schema. A partition goes by its own name, not by its root's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from castling.config.names import EVERY, split_name
from castling.kinds.postgres.catalog import Table, table_name

__all__ = ["CLASH", "OTHER_NAMING", "OTHER_NAMING_HINT", "Name", "Naming", "clashes"]

CLASH = "give one of the two another name in `rename`, or exclude it"

OTHER_NAMING = "the two ends have different rules in `rename`, and so would speak of different tables"
OTHER_NAMING_HINT = "deploy the same castling.toml to both nodes; it is tried again"

#: schema and name of a table, a sequence or a view
Name = tuple[str, str]


class Naming:
    """The rules of `rename` in castling.toml. Without any, every name stays."""

    def __init__(self, rules: Mapping[str, str]) -> None:
        #: by name on the source
        self.schemas: dict[str, str] = {}
        self.tables: dict[Name, Name] = {}
        for old, new in rules.items():
            here, there = split_name(old), split_name(new)
            assert here is not None and there is not None, "config.rules lets no such name pass"
            if here[1] == EVERY:
                self.schemas[here[0]] = there[0]
            else:
                self.tables[here] = there
        told = repr((sorted(self.schemas.items()), sorted(self.tables.items())))
        #: by which a target tells whether it was filled by the same rules; empty without any
        self.digest = hashlib.sha256(told.encode()).hexdigest()[:16] if rules else ""

    def __bool__(self) -> bool:
        return bool(self.digest)

    def and_also(self, tables: Mapping[Name, Name]) -> Naming:
        """These rules and, where they say nothing, those."""
        found = Naming({})
        found.schemas, found.digest = self.schemas, self.digest
        found.tables = {**tables, **self.tables}
        return found

    def schema(self, schema: str) -> str:
        """Where what is no table of the source's `schema` is on the target."""
        return self.schemas.get(schema, schema)

    def target(self, schema: str, name: str) -> Name:
        """The target's name of a table of the source."""
        return self.tables.get((schema, name)) or (self.schema(schema), name)

    def target_name(self, table: Table) -> str:
        return table_name(*self.target(table.schema, table.name))

    def sequence(self, schema: str, name: str, owner: Name | None) -> Name:
        """The target's name of a sequence: one that a table owns lives in that table's schema."""
        if owner is None or (schema, name) in self.tables:
            return self.target(schema, name)
        return self.target(*owner)[0], name

    def sources(self, schema: str, name: str) -> list[Name]:
        """What may be called this on the target, by the source's names; nothing: no table of it is."""
        near = [old for old, new in self.schemas.items() if new == schema]
        found = [old for old, new in self.tables.items() if new == (schema, name)]
        found += [(old, name) for old in [*near, schema]]
        return [old for old in dict.fromkeys(found) if self.target(*old) == (schema, name)]

    def source_schemas(self, schema: str) -> list[str]:
        """Of what is no table: the schemas of the source that are called this on the target."""
        return [old for old in (*self.schemas, schema) if self.schema(old) == schema]


def clashes(tables: Iterable[Table], naming: Naming) -> list[tuple[Table, Table]]:
    """Tables that would be one on the target: each with the first of that name."""
    seen: dict[Name, Table] = {}
    found = []
    for table in tables:
        first = seen.setdefault(naming.target(table.schema, table.name), table)
        if first is not table:
            found.append((table, first))
    return found
