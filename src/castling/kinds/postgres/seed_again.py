"""What a first copy before has left of indexes and constraints of partitioned tables, taken away.

`pg_restore --clean` drops what it will make, partitions before their roots, and the server refuses that:
what a partition has through its root goes only with the root's. So the roots' go first, and only those
that the archive will make again; what somebody has added on the target stays.
"""

from __future__ import annotations

from typing import Any

from psycopg import AsyncConnection

from castling.kinds.postgres.naming import Naming
from castling.kinds.postgres.statements import quoted

__all__ = ["drop_of_roots"]

#: of every partitioned table: its own constraints with an index, and its own other indexes
_OF_ROOTS = """
SELECT 'CONSTRAINT', n.nspname, c.relname, k.conname
  FROM pg_catalog.pg_constraint k
  JOIN pg_catalog.pg_class c ON c.oid = k.conrelid AND c.relkind = 'p'
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE k.contype IN ('p', 'u', 'x') AND k.conparentid = 0
UNION ALL
SELECT 'INDEX', n.nspname, c.relname, i.relname
  FROM pg_catalog.pg_index x
  JOIN pg_catalog.pg_class i ON i.oid = x.indexrelid AND NOT i.relispartition
  JOIN pg_catalog.pg_class c ON c.oid = x.indrelid AND c.relkind = 'p'
  JOIN pg_catalog.pg_namespace n ON n.oid = i.relnamespace
 WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_constraint k WHERE k.conindid = i.oid AND k.conrelid = c.oid)
"""
#: foreign keys that refer to partitioned tables
_TO_ROOTS = """
SELECT 'FK CONSTRAINT', n.nspname, c.relname, k.conname
  FROM pg_catalog.pg_constraint k
  JOIN pg_catalog.pg_class c ON c.oid = k.conrelid
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_catalog.pg_class r ON r.oid = k.confrelid AND r.relkind = 'p'
 WHERE k.contype = 'f' AND k.conparentid = 0
"""


async def drop_of_roots(connection: AsyncConnection[Any], listed: bytes, naming: Naming) -> None:
    """`listed`: the archive's table of contents, as `pg_restore --list` writes it, in the source's names."""
    contents = listed.decode(errors="replace")
    async with connection.transaction():
        for question in (_TO_ROOTS, _OF_ROOTS):
            cursor = await connection.execute(question.encode())
            for kind, schema, table, name in await cursor.fetchall():
                if kind == "INDEX":
                    statement = f"DROP INDEX {quoted(schema)}.{quoted(name)}"
                else:
                    owner = f"{quoted(schema)}.{quoted(table)}"
                    statement = f"ALTER TABLE {owner} DROP CONSTRAINT {quoted(name)}"
                if any(
                    (
                        f" INDEX {here[0]} {name} "
                        if kind == "INDEX"
                        else f" {kind} {here[0]} {here[1]} {name} "
                    )
                    in contents
                    for here in naming.sources(schema, table)
                ):
                    await connection.execute(statement.encode())
