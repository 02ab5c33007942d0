"""Which tables are published: an explicit list, so that nothing is published by accident.

A table without a usable key is given REPLICA IDENTITY FULL in the same transaction that
publishes it: otherwise its updates and deletes would fail on the source.
"""

from __future__ import annotations

from typing import Any

from psycopg import AsyncConnection

from castling.config import GroupSettings
from castling.kinds.postgres.catalog import Table, is_chosen, read_tables

__all__ = ["ensure_publication", "publication_name", "published"]


def publication_name(group: str) -> str:
    return f"castling_{group}".replace("-", "_")


def published(tables: list[Table], settings: GroupSettings) -> list[Table]:
    """The tables to publish: chosen, permanent, and no partition (its root stands for it)."""
    return [
        table
        for table in tables
        if table.kind in "rp"
        and table.persistence == "p"
        and not table.is_partition
        and is_chosen(table, settings)
    ]


async def ensure_publication(
    connection: AsyncConnection[Any], group: str, settings: GroupSettings
) -> list[Table]:
    """Make the publication what the settings say; the tables in it. Repeatable."""
    tables = published(await read_tables(connection), settings)
    name = publication_name(group)
    async with connection.transaction():
        cursor = await connection.execute(
            "SELECT pg_catalog.array_agg(prrelid::int8) FROM pg_catalog.pg_publication p "
            "LEFT JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid "
            "WHERE p.pubname = %s GROUP BY p.oid",
            (name,),
        )
        row = await cursor.fetchone()
        for table in tables:
            if not table.has_identity:
                await connection.execute(f"ALTER TABLE {table.sql} REPLICA IDENTITY FULL".encode())
        listed = ", ".join(
            f"TABLE ONLY {table.sql}" if table.kind == "r" else f"TABLE {table.sql}" for table in tables
        )
        if row is None:
            await connection.execute(
                f"CREATE PUBLICATION {name} {'FOR ' + listed if tables else ''} "
                "WITH (publish_via_partition_root = true)".encode()
            )
        elif {oid for oid in row[0] if oid is not None} != {table.oid for table in tables} and tables:
            await connection.execute(f"ALTER PUBLICATION {name} SET {listed}".encode())
    return tables
