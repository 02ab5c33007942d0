"""Definitions under other names: statements around a script of pg_restore, in one transaction with it. Pure.

An archive can only be restored under the source's names. So the target's schemas of these names are put
aside, the script runs, what it made gets its names, and what stood aside comes back; nobody sees anything of
it before the commit, and nothing is locked but the names. For the second half of the archive (indexes and
constraints) what the first has made is first given back the source's names.

A table with a rule of its own is moved when the schemas have their names; indexes, constraints and the
sequences it owns go with it.
"""

from __future__ import annotations

from collections.abc import Iterator

from castling.kinds.postgres.naming import Naming
from castling.kinds.postgres.statements import quoted

__all__ = ["renamed_script"]

#: two copies at once would put the same schema aside
_ALONE = "SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('castling naming', 0));"
#: as initdb makes it; pg_dump takes it for granted
_PUBLIC = (
    "CREATE SCHEMA public; GRANT USAGE ON SCHEMA public TO PUBLIC;"
    " COMMENT ON SCHEMA public IS 'standard public schema';"
)
_PUBLIC_OWNER = "ALTER SCHEMA public OWNER TO pg_database_owner;"


def renamed_script(script: bytes, naming: Naming, *, begins: bool, owners: bool) -> bytes:
    """`script`, in the source's names, so that what it makes has the target's. `begins`: the first half.
    `owners`: objects have the source's owners."""
    head = [_ALONE]
    if not begins:
        head += _tables_back(naming)
        head += (_schema(new, f"castling_new_{at}") for at, (_, new) in enumerate(_rules(naming)))
    head += (_schema(old, f"castling_aside_{at}") for at, (old, _) in enumerate(_rules(naming)))
    if not begins:
        head += (_schema(f"castling_new_{at}", old) for at, (old, _) in enumerate(_rules(naming)))
    elif "public" in naming.schemas:
        head.append(_PUBLIC + (_PUBLIC_OWNER if owners else ""))
    tail = [
        *(_schema(old, f"castling_new_{at}") for at, (old, _) in enumerate(_rules(naming))),
        *(_schema(f"castling_aside_{at}", old) for at, (old, _) in enumerate(_rules(naming))),
        *(_schema(f"castling_new_{at}", new) for at, (_, new) in enumerate(_rules(naming))),
        *_tables_forth(naming),
    ]
    return b"\n".join(["\n".join(head).encode(), script, "\n".join(tail).encode(), b""])


def _rules(naming: Naming) -> list[tuple[str, str]]:
    return sorted(naming.schemas.items())


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _if(condition: str, *statements: str) -> str:
    return f"DO $castling$ BEGIN IF {condition} THEN {'; '.join(statements)}; END IF; END $castling$;"


def _schema(old: str, new: str) -> str:
    condition = f"EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = {_literal(old)})"
    return _if(condition, f"ALTER SCHEMA {quoted(old)} RENAME TO {quoted(new)}")


def _tables_forth(naming: Naming) -> Iterator[str]:
    """From where their schema's rule has brought them. All get a name in between: two may change places."""
    moves = [(naming.schema(schema), name, there) for (schema, name), there in sorted(naming.tables.items())]
    for at, (schema, name, _) in enumerate(moves):
        yield _table(schema, name, f"ALTER TABLE {{0}} RENAME TO castling_new_{at}")
    for at, (schema, _, (new_schema, new_name)) in enumerate(moves):
        yield from _move(schema, new_schema, f"castling_new_{at}", new_name)


def _tables_back(naming: Naming) -> Iterator[str]:
    moves = [(naming.schema(schema), name, there) for (schema, name), there in sorted(naming.tables.items())]
    for at, (_, _, (new_schema, new_name)) in enumerate(moves):
        yield _table(new_schema, new_name, f"ALTER TABLE {{0}} RENAME TO castling_new_{at}")
    for at, (schema, name, (new_schema, _)) in enumerate(moves):
        yield from _move(new_schema, schema, f"castling_new_{at}", name)


def _move(schema: str, to: str, name: str, to_name: str) -> Iterator[str]:
    if schema != to:
        yield _table(
            schema,
            name,
            f"CREATE SCHEMA IF NOT EXISTS {quoted(to)}",
            f"ALTER TABLE {{0}} SET SCHEMA {quoted(to)}",
        )
    yield _table(to, name, f"ALTER TABLE {{0}} RENAME TO {quoted(to_name)}")


def _table(schema: str, name: str, *statements: str) -> str:
    table = f"{quoted(schema)}.{quoted(name)}"
    condition = f"pg_catalog.to_regclass({_literal(table)}) IS NOT NULL"
    return _if(condition, *(each.replace("{0}", table) for each in statements))
