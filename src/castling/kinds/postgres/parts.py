"""What a person wants of single tables: to hold them, to release them.

Only the session that applies knows where a table stands, so nothing is done here: the wish is
written into the target's database, where that session finds it between two transactions, also when it
is not running now.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from psycopg import AsyncConnection

from castling.errors import NotFound, StateError, TargetUnreachable
from castling.kinds.base import PartAction, Stream
from castling.kinds.postgres import progress
from castling.kinds.postgres.connect import connect
from castling.kinds.postgres.holds import CREATE_POSITIONS

__all__ = ["move_parts"]

_TABLES = """
    SELECT n.nspname, c.relname, t.state, t.wanted
      FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
      LEFT JOIN castling.table_positions t ON t.stream = %s AND t.schema = n.nspname AND t.name = c.relname
     WHERE n.nspname || '.' || c.relname = ANY (%s) AND c.relkind IN ('r', 'p')
    UNION
    SELECT schema, name, state, wanted FROM castling.table_positions
     WHERE stream = %s AND (schema || '.' || name = ANY (%s) OR %s)
"""
_WISH = """
    INSERT INTO castling.table_positions (stream, schema, name, state, reason, wanted)
    VALUES (%s, %s, %s, 'live', %s, %s)
    ON CONFLICT (stream, schema, name) DO UPDATE SET wanted = excluded.wanted
"""


async def move_parts(
    stream: Stream, action: PartAction, parts: Sequence[str], reason: str
) -> list[dict[str, Any]]:
    """Ask for `action` on tables (`schema.table`; none: all on hold). What comes of it, by part."""
    connection = await connect(
        stream.settings.databases[stream.backup],
        application_name=f"castling {action} {stream.group}",
        error=TargetUnreachable,
    )
    try:
        async with connection.transaction():
            await connection.execute((progress.CREATE_PROGRESS + CREATE_POSITIONS).encode())
            found = await _found(connection, stream.group, parts, release=action == "release")
            answers = []
            for (schema, name), (state, wanted) in sorted(found.items()):
                result = _result(action, f"{schema}.{name}", state, wanted)
                if result == "asked":
                    await connection.execute(_WISH, (stream.group, schema, name, reason, action))
                answers.append({"part": f"{schema}.{name}", "result": result})
            return answers
    finally:
        await connection.close()


async def _found(
    connection: AsyncConnection[Any], group: str, parts: Sequence[str], *, release: bool
) -> dict[tuple[str, str], tuple[str | None, str | None]]:
    named = list(parts)
    cursor = await connection.execute(_TABLES, (group, named, group, named, release and not named))
    found = {
        (str(schema), str(name)): (state, wanted) for schema, name, state, wanted in await cursor.fetchall()
    }
    missing = sorted(set(named) - {f"{schema}.{name}" for schema, name in found})
    if missing:
        raise NotFound(
            f"the target has no table {', '.join(missing)}",
            hint="name tables as `castling group status` does: schema.table",
        )
    return found


def _result(action: PartAction, part: str, state: str | None, wanted: str | None) -> str:
    """Pure: what comes of a wish for a table in that state."""
    state = state or "live"
    if wanted == action:
        return "already_asked"
    if action == "hold":
        return "already_held" if state in ("held", "lost") else "asked"
    if state == "lost":
        raise StateError(
            f"the journal no longer holds the changes of {part} since it was put on hold",
            hint="copy the group anew: `castling group start GROUP --reseed`",
        )
    if state == "releasing":
        return "already_releasing"
    return "asked" if state == "held" or wanted == "hold" else "not_held"
