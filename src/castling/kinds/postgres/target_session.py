"""A session that applies: a replication replica of fixed settings, whose errors are told in our words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import AsyncConnection

from castling.config import DatabaseSettings
from castling.errors import TargetError, TargetUnreachable
from castling.kinds.postgres.connect import TEXT_FORM, connect
from castling.kinds.postgres.writer import register_fields

__all__ = ["explained", "open_session"]

_SESSION = (
    "SET session_replication_role = replica",
    "SET synchronous_commit = off",
    *TEXT_FORM,
    "SET statement_timeout = 0",
    "SET idle_in_transaction_session_timeout = 0",
    "SET lock_timeout = '30s'",
    "SET row_security = off",
    # the rows of a batch are found by their key: the planner, which knows nothing of a staging table's
    # rows, would rather read and hash the whole table for a few thousand of them. No index, and it still can
    "SET random_page_cost = 0.1",
    "SET seq_page_cost = 100",
    "SET enable_mergejoin = off",  # it reads the index from its beginning
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


async def open_session(settings: DatabaseSettings, application_name: str) -> AsyncConnection[Any]:
    """A connection that is ready to apply. TargetUnreachable when there can be none."""
    connection = await connect(settings, application_name=application_name, error=TargetUnreachable)
    register_fields(connection.adapters)
    with explained():
        for statement in _SESSION:
            await connection.execute(statement.encode())
    return connection


@contextmanager
def explained() -> Iterator[None]:
    """psycopg's errors as ours: what may pass is retryable, the rest names the SQLSTATE."""
    try:
        yield
    except TargetError:
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
