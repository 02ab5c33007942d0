"""The replica of a PostgreSQL stream: changes and progress in one transaction.

Progress is a replication origin: the server itself stores it with the commit, so what is
applied and how far apply has come can't disagree, whatever dies. While it applies, the
session is a replication replica: the target's foreign keys and ordinary triggers stay quiet,
because the source has already obeyed them.

Each table's net change is first tried as a set inside a savepoint; where that is not exact it
is replayed row by row in the source's order (see `writer`). The target need not sync at each commit: the
journal keeps everything until the progress is flushed (`durable`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from psycopg import AsyncConnection

from castling.config import DatabaseSettings
from castling.errors import TargetDiverged, TargetError, TargetUnreachable
from castling.kinds.base import Commit, Piece
from castling.kinds.postgres.changes import Change, coalesce
from castling.kinds.postgres.connect import connect
from castling.kinds.postgres.emptied import EmptiedTables
from castling.kinds.postgres.lsn import lsn_text, parse_lsn
from castling.kinds.postgres.mapping import Mapping
from castling.kinds.postgres.writer import Writer, register_fields

__all__ = ["PostgresTarget", "lsn_text", "origin_name", "parse_lsn"]

_SESSION = (
    "SET session_replication_role = replica",
    "SET synchronous_commit = off",
    "SET search_path = pg_catalog",
    "SET DateStyle = ISO",
    "SET IntervalStyle = postgres",
    "SET TimeZone = 'UTC'",
    "SET extra_float_digits = 1",
    "SET bytea_output = hex",
    "SET lc_monetary = 'C'",
    "SET statement_timeout = 0",
    "SET idle_in_transaction_session_timeout = 0",
    "SET lock_timeout = '30s'",
    "SET row_security = off",
)

#: what passes by itself
_RETRY = (
    psycopg.errors.DeadlockDetected,
    psycopg.errors.SerializationFailure,
    psycopg.errors.LockNotAvailable,
    psycopg.errors.QueryCanceled,
    psycopg.errors.InsufficientResources,
    psycopg.errors.OperatorIntervention,
)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def origin_name(group: str) -> str:
    """The replication origin that stores the group's progress on its target."""
    return f"castling_{group}"


class PostgresTarget:
    """Implements `kinds.base.Target`."""

    #: how long to wait for an apply session before us to let go of the origin, seconds
    TAKEOVER_S = 20.0

    def __init__(self, group: str, settings: DatabaseSettings) -> None:
        self._group = group
        self._settings = settings
        self._origin = origin_name(group)
        self._application = f"castling apply {group}"
        self._connection: AsyncConnection[Any] | None = None
        self._writer: Writer | None = None
        self._emptied = EmptiedTables(group)
        self._in_transaction = False

    # --- connecting ---------------------------------------------------------------------------

    async def open(self) -> int:
        connection = await connect(
            self._settings, application_name=self._application, error=TargetUnreachable
        )
        self._connection = connection
        register_fields(connection.adapters)
        with self._explained():
            for statement in _SESSION:
                await connection.execute(statement.encode())
            await self._take_origin(connection)
            self._writer = Writer(connection, Mapping(connection))
            await self._emptied.load(connection)
            cursor = await connection.execute(
                "SELECT pg_catalog.pg_replication_origin_progress(%s, false)::text", (self._origin,)
            )
            row = await cursor.fetchone()
        return parse_lsn(row[0]) if row and row[0] else 0

    async def _take_origin(self, connection: AsyncConnection[Any]) -> None:
        """Make the origin ours. A session of ours that died without the server noticing is ended."""
        await connection.execute(
            """
            SELECT pg_catalog.pg_replication_origin_create(%(name)s)
             WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_replication_origin WHERE roname = %(name)s)
            """,
            {"name": self._origin},
        )
        deadline = time.monotonic() + self.TAKEOVER_S
        while True:
            try:
                await connection.execute(
                    "SELECT pg_catalog.pg_replication_origin_session_setup(%s)", (self._origin,)
                )
                return
            except psycopg.errors.ObjectInUse as error:
                if time.monotonic() > deadline:
                    raise TargetUnreachable(
                        f"another session applies group {self._group} and does not let go",
                        hint=f"look for application_name '{self._application}' in pg_stat_activity",
                    ) from error
            await connection.execute(
                """
                SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity
                 WHERE application_name = %s AND pid <> pg_catalog.pg_backend_pid()
                """,
                (self._application,),
            )
            await asyncio.sleep(0.1)

    # --- transactions -------------------------------------------------------------------------

    async def _begin(self) -> AsyncConnection[Any]:
        connection = self._connection
        if connection is None or connection.closed:
            raise TargetUnreachable("the connection to the target is gone")
        if not self._in_transaction:
            await connection.execute(b"BEGIN ISOLATION LEVEL READ COMMITTED; SET CONSTRAINTS ALL DEFERRED")
            self._in_transaction = True
        return connection

    async def apply(self, pieces: Sequence[Piece]) -> None:
        came: list[Change] = [change for piece in pieces for change in piece.changes]
        changes = self._emptied.keep(came)
        if not changes:
            return
        with self._explained():
            await self._begin()
            assert self._writer is not None
            steps = coalesce(changes)
            await self._writer.prepare(steps)
            for step in steps:
                await self._writer.write(step)

    async def commit(self, commit: Commit) -> None:
        with self._explained():
            connection = await self._begin()
            await self._emptied.settle(connection, commit.offset)
            await connection.execute(
                # a transaction that wrote nothing would not store progress: give it an identity
                "SELECT pg_catalog.pg_current_xact_id(), "
                "pg_catalog.pg_replication_origin_xact_setup(%s::pg_catalog.pg_lsn, %s)",
                (lsn_text(commit.offset), _EPOCH + timedelta(microseconds=commit.committed_ns // 1000)),
            )
            await connection.execute(b"COMMIT")
            self._in_transaction = False
            self._emptied.committed()

    async def rollback(self) -> None:
        connection = self._connection
        self._emptied.rolled_back()
        if connection is None or connection.closed or not self._in_transaction:
            return
        self._in_transaction = False
        if self._writer is not None:
            self._writer.forget_stages()
        try:
            await connection.execute(b"ROLLBACK")
        except psycopg.Error:  # the connection is gone, and the transaction with it
            await connection.close()

    async def durable(self) -> int:
        if self._in_transaction:
            return 0  # an open transaction of several parts: ask again after it
        with self._explained():
            connection = self._connection
            if connection is None or connection.closed:
                raise TargetUnreachable("the connection to the target is gone")
            cursor = await connection.execute(
                "SELECT pg_catalog.pg_replication_origin_session_progress(true)::text"
            )
            row = await cursor.fetchone()
        return parse_lsn(row[0]) if row and row[0] else 0

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """psycopg's errors as ours: what may pass is retryable, the rest names the SQLSTATE."""
        try:
            yield
        except (TargetDiverged, TargetError):
            raise
        except _RETRY as error:
            raise TargetUnreachable(
                f"the target could not go on: {error.diag.message_primary or error}"
            ) from error
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            raise TargetUnreachable(f"the connection to the target broke: {error}") from error
        except psycopg.Error as error:
            raise TargetError(
                f"the target refused to apply: {error.diag.message_primary or error}",
                hint="mend the cause on the target and start the group again",
                sqlstate=error.sqlstate,
                table=error.diag.table_name,
            ) from error

    def report(self) -> dict[str, Any]:
        return {
            "connected": self._connection is not None and not self._connection.closed,
            "origin": self._origin,
            "sets": None if self._writer is None else self._writer.sets,
            "replays": None if self._writer is None else self._writer.replays,
        }
