"""What a person wants of single tables: to hold them, to release them, to copy them anew.

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
from castling.kinds.postgres.connect import questions
from castling.kinds.postgres.holds import CREATE_POSITIONS

__all__ = ["answer_to", "move_parts"]

#: a partitioned table is its partitions, as in the stream; but one that is itself a partition may be a plain
#: one on the source
_TABLES = """
    WITH named AS (
        SELECT CASE WHEN c.relkind = 'p' AND NOT c.relispartition THEN l.relid ELSE c.oid END AS oid,
               n.nspname || '.' || c.relname AS said
          FROM pg_catalog.pg_class c
          JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
          LEFT JOIN LATERAL pg_catalog.pg_partition_tree(c.oid) l
            ON c.relkind = 'p' AND NOT c.relispartition AND l.isleaf AND l.relid <> c.oid
         WHERE n.nspname || '.' || c.relname = ANY (%(named)s) AND c.relkind IN ('r', 'p')
    )
    SELECT n.nspname, c.relname, t.state, t.wanted, t.copying, named.said
      FROM named LEFT JOIN pg_catalog.pg_class c ON c.oid = named.oid
      LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
      LEFT JOIN castling.table_positions t
        ON t.stream = %(stream)s AND t.schema = n.nspname AND t.name = c.relname
    UNION
    SELECT schema, name, state, wanted, copying, schema || '.' || name FROM castling.table_positions
     WHERE stream = %(stream)s AND (schema || '.' || name = ANY (%(named)s)
                                    OR %(all)s AND (state NOT IN ('live', 'ahead') OR wanted IS NOT NULL))
"""
_WISH = """
    INSERT INTO castling.table_positions AS t (stream, schema, name, state, reason, wanted)
    VALUES (%s, %s, %s, 'live', %s, %s)
    ON CONFLICT (stream, schema, name) DO UPDATE SET wanted = excluded.wanted,
        reason = CASE WHEN t.state = 'live' THEN excluded.reason ELSE t.reason END
"""


async def move_parts(
    stream: Stream, action: PartAction, parts: Sequence[str], reason: str
) -> list[dict[str, Any]]:
    """Ask for `action` on tables (`schema.table`; none: all on hold). What comes of it, by part."""
    async with questions(
        stream.settings.databases[stream.backup],
        application_name=f"castling {action} {stream.group}",
        error=TargetUnreachable,
    ) as connection:
        await connection.execute((progress.CREATE_PROGRESS + CREATE_POSITIONS).encode())
        async with connection.transaction():
            found = await _found(connection, stream.group, parts, all_held=action != "hold")
            answers = []
            for (schema, name), seen in sorted(found.items()):
                state, wanted, copying = seen
                result = answer_to(action, f"{schema}.{name}", state, wanted, copying=copying)
                if result == "asked":
                    await connection.execute(_WISH, (stream.group, schema, name, reason, action))
                answers.append({"part": f"{schema}.{name}", "result": result})
            return answers


async def _found(
    connection: AsyncConnection[Any], group: str, parts: Sequence[str], *, all_held: bool
) -> dict[tuple[str, str], tuple[str | None, str | None, bool]]:
    asked = {"stream": group, "named": list(parts), "all": all_held and not parts}
    rows = await (await connection.execute(_TABLES, asked)).fetchall()
    found = {
        (str(schema), str(name)): (state, wanted, bool(copying))
        for schema, name, state, wanted, copying, _ in rows
        if name is not None  # a partitioned table without partitions
    }
    missing = sorted(set(parts) - {said for *_, said in rows})
    if missing:
        raise NotFound(
            f"the target has no table {', '.join(missing)}",
            hint="name tables as `castling group status` does: schema.table",
        )
    return found


def answer_to(action: PartAction, part: str, state: str | None, wanted: str | None, *, copying: bool) -> str:
    """Pure: what comes of a wish for a table in that state."""
    state = state or "live"
    if wanted == action:
        return "already_asked"
    if action == "hold":
        return "already_held" if state in ("held", "lost") and not copying else "asked"
    if copying:
        return "already_copying"
    if action == "resync":
        return "asked"
    if state == "lost":
        raise StateError(
            f"the journal no longer holds the changes of {part} since it was put on hold",
            hint=f"copy it anew: `castling group resync GROUP {part}`",
        )
    if state == "releasing":
        return "already_releasing"
    return "asked" if state == "held" or wanted == "hold" else "not_held"
