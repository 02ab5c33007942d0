"""What groups that write into one target owe each other.

A table has one writer. Each group notes in `castling.seed` of the target what it fills. A first copy looks
there before it empties anything, and writes its own note while no other one can look, so of two that begin
at once one is refused. Castling's own tables there are made by one session at a time: `IF NOT EXISTS` does
not keep two sessions from making the same one, and PostgreSQL refuses the second.
"""

from __future__ import annotations

from typing import Any

from psycopg import AsyncConnection

__all__ = ["MAKE_ALONE", "TAKEN_HINT", "begin_alone", "read_taken"]

TAKEN_HINT = (
    "exclude it from one of the two groups, or give them different target databases; what a group has once"
    " filled is free when that group is removed (`castling group remove`)"
)

#: stands before what makes tables of Castling's own; ends with the statements it is sent with
MAKE_ALONE = """
    SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('castling tables', 0));
"""

#: for others that begin to be done, seconds: they empty tables meanwhile, which may wait for readers
_LOCK_TIMEOUT_S = 60
#: a session's lock, so that it ends with the connection whatever happens
_ALONE = "SELECT pg_catalog.pg_advisory_lock(pg_catalog.hashtextextended('castling.seed', 0))"


async def begin_alone(connection: AsyncConnection[Any]) -> None:
    """No other first copy begins on this target until `connection` is closed."""
    await connection.execute(f"SET lock_timeout = '{_LOCK_TIMEOUT_S}s'".encode())
    await connection.execute(_ALONE.encode())
    await connection.execute(b"RESET lock_timeout")


async def read_taken(connection: AsyncConnection[Any], group: str) -> dict[str, str]:
    """Tables by name that groups other than `group` fill, and which group. `castling.seed` must exist."""
    cursor = await connection.execute(
        "SELECT pg_catalog.unnest(tables), stream FROM castling.seed WHERE stream <> %s ORDER BY stream",
        (group,),
    )
    return {str(name): str(stream) for name, stream in await cursor.fetchall()}
