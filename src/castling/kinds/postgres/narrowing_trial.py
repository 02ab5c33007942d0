"""Asks the source what conditions and column lists would do, by publishing each table in a transaction that
is rolled back: nobody but this session ever sees it, and nothing is left of it.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import AsyncConnection

from castling.config import GroupSettings
from castling.kinds.postgres.catalog import Table
from castling.kinds.postgres.narrowing import FIRST_WITH, Narrowed, names_narrowed
from castling.kinds.postgres.publication import publish

__all__ = ["Tried", "try_narrowing"]

#: production is not kept waiting for long, seconds
_LOCK_TIMEOUT_S = 2

_REQUIRED = """
SELECT a.attname FROM pg_catalog.pg_attribute a
 WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped
   AND a.attnotnull AND NOT a.atthasdef AND a.attidentity = ''
"""


@dataclass(frozen=True, slots=True)
class Tried:
    """`refused`: what the server said, if it did not publish the table so. `locked`: it was not asked, for
    somebody has locked the table. `required`: columns that no row can be without."""

    table: Table
    narrowed: Narrowed | None = None
    refused: str | None = None
    locked: bool = False
    required: tuple[str, ...] = ()


async def try_narrowing(
    connection: AsyncConnection[Any], tables: Sequence[Table], settings: GroupSettings
) -> list[Tried]:
    """One answer for each table that `rows` or `columns` name; none where the server is too old for them."""
    if connection.info.server_version < FIRST_WITH:
        return []
    named = names_narrowed(settings)
    chosen = [table for table in tables if table.kind == "r" and (table.schema, table.name) in named]
    return [await _try(connection, table, settings) for table in chosen]


async def _try(connection: AsyncConnection[Any], table: Table, settings: GroupSettings) -> Tried:
    name = f"castling_check_{secrets.token_hex(8)}"
    cursor = await connection.execute(_REQUIRED, (table.oid,))
    required = tuple(str(row[0]) for row in await cursor.fetchall())
    try:
        async with connection.transaction(force_rollback=True):
            await connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT_S}s'".encode())
            found = await publish(connection, name, [table], settings)
    except psycopg.errors.LockNotAvailable:
        return Tried(table, locked=True, required=required)
    except (psycopg.OperationalError, psycopg.InterfaceError):
        raise
    except psycopg.Error as error:
        return Tried(table, refused=error.diag.message_primary or str(error), required=required)
    return Tried(table, found[0], required=required)
