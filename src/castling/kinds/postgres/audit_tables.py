"""The tables of a stream as an audit sees them: what of each is carried, by which names, and its key."""

from __future__ import annotations

from typing import Any

from psycopg import AsyncConnection

from castling.kinds.base import Stream
from castling.kinds.postgres.audit_sql import how_hashed
from castling.kinds.postgres.catalog import Table, read_tables
from castling.kinds.postgres.naming import Name, Naming
from castling.kinds.postgres.narrowing import Part, read_parts
from castling.kinds.postgres.session import slot_name

__all__ = ["Published", "read_published_tables"]


class Published:
    """A table of the stream as the source has it, and what of it is carried."""

    def __init__(self, table: Table, part: Part, there: Name) -> None:
        self.table = table
        self.there = there
        self.where = part.rows or ""
        #: what it has on the target too: generated columns are computed there
        self.columns = tuple(
            how_hashed(column.name, column.type_oid)
            for column in table.columns
            if column.generated != "v" and (part.columns is None or column.name in part.columns)
        )
        names = {column.name for column in part.copied(table)}
        key = table.identity_columns or table.primary_key
        by_name = {column.name: column for column in self.columns}
        self.key = tuple(by_name[name] for name in key) if set(key) <= names else ()

    def __str__(self) -> str:
        return str(self.table)


async def read_published_tables(connection: AsyncConnection[Any], stream: Stream) -> dict[str, Published]:
    """The stream's tables by name, as their changes are logged: partitions instead of their roots."""
    publication = slot_name(stream.group, stream.backup)
    naming = Naming(stream.settings.rename)
    cursor = await connection.execute(
        "SELECT schemaname, tablename FROM pg_catalog.pg_publication_tables WHERE pubname = %s",
        (publication,),
    )
    streamed = {(str(schema), str(name)) for schema, name in await cursor.fetchall()}
    parts = await read_parts(connection, publication)
    found = {}
    for table in await read_tables(connection):
        if (table.schema, table.name) in streamed:
            there = naming.target(table.schema, table.name)
            found[str(table)] = Published(table, parts.get(table.oid, Part()), there)
    return found
