"""A view of the source: a snapshot that stands at exactly one position of the stream.

Making a slot exports a snapshot of the point where the slot begins. It is handed on to a plain session,
which keeps it alive; the connection that made the slot is let go at once: a slot that lives for a moment
would, unread, keep the source's log as long as the view is needed.

Whoever reads does it in short transactions of the view: they keep the locks they take, and a TRUNCATE that
waits for them makes everybody behind it wait.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from psycopg import AsyncConnection

from castling.config import DatabaseSettings
from castling.kinds.postgres.connect import TEXT_FORM, connect
from castling.kinds.postgres.copy_out import gss_parameters
from castling.kinds.postgres.lsn import parse_lsn
from castling.kinds.postgres.replication import ReplicationConnection

__all__ = ["View", "open_view"]

_BEGIN = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_SESSION = (
    *TEXT_FORM,
    "SET statement_timeout = 0",
    "SET idle_in_transaction_session_timeout = 0",
    "SET row_security = off",
)


@dataclass(frozen=True, slots=True)
class View:
    """A snapshot of the source and the position it stands at. `keeper` keeps it alive, and sees it."""

    application: str
    database: DatabaseSettings
    lsn: int
    snapshot: str
    keeper: AsyncConnection[Any]

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[AsyncConnection[Any]]:
        async with contextlib.AsyncExitStack() as stack:
            yield await _session(self.application, self.database, stack)

    @contextlib.asynccontextmanager
    async def seen(self, reader: AsyncConnection[Any]) -> AsyncIterator[None]:
        """A short transaction that sees exactly the snapshot. One that failed in it is of no more use."""
        await reader.execute(f"{_BEGIN}; SET TRANSACTION SNAPSHOT '{self.snapshot}'".encode())
        yield
        await reader.execute(b"COMMIT")


@contextlib.asynccontextmanager
async def open_view(
    application: str, database: DatabaseSettings, *, slot: str | None = None
) -> AsyncIterator[View]:
    """`slot`: the lasting slot to make with it; without, one of its own that lives for a moment."""
    async with contextlib.AsyncExitStack() as stack:
        keeper = await _session(application, database, stack)
        maker = ReplicationConnection(database, application_name=application)
        made = slot or f"castling_view_{secrets.token_hex(8)} TEMPORARY"
        kept = "EXPORT_SNAPSHOT"
        if slot is not None and keeper.info.server_version >= 170000:
            # standbys that are set to keep the slot in step may then be promoted (see `promotion`)
            kept = "(SNAPSHOT 'export', FAILOVER true)"
        try:
            await maker.open()
            rows = await maker.query(f"CREATE_REPLICATION_SLOT {made} LOGICAL pgoutput {kept}")
            await keeper.execute(f"{_BEGIN}; SET TRANSACTION SNAPSHOT '{rows[0][2]}'".encode())
        finally:
            maker.close()
        cursor = await keeper.execute(b"SELECT pg_catalog.pg_export_snapshot()")
        row = await cursor.fetchone()
        assert row is not None
        yield View(application, database, parse_lsn(str(rows[0][1])), str(row[0]), keeper)


async def _session(
    application: str, database: DatabaseSettings, stack: contextlib.AsyncExitStack
) -> AsyncConnection[Any]:
    connection = await connect(database, application_name=application, more=gss_parameters())
    stack.push_async_callback(connection.close)
    for statement in _SESSION:
        await connection.execute(statement.encode())
    return connection
