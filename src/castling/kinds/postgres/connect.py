"""Connections to PostgreSQL, with the password from where the settings say it is.

A password is read when it is needed and given to libpq as a parameter; it never stands on
a command line, in a log or in an error. Errors are told with the server's own words, which
never contain it, and are scrubbed of it all the same.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import psycopg
from psycopg import AsyncConnection

from castling.config import DatabaseSettings
from castling.errors import CastlingError, SecretMissing, SourceUnreachable

__all__ = ["connect", "parameters", "password_of", "scrubbed"]

CONNECT_TIMEOUT_S = 10


def password_of(settings: DatabaseSettings) -> str | None:
    """The password, or None when libpq is to look for it itself (pgpass, trust, certificate).

    Raises SecretMissing, which names the file or variable and never a value.
    """
    if settings.password_file is not None:
        try:
            return Path(settings.password_file).read_text().splitlines()[0]
        except (OSError, IndexError) as error:
            raise SecretMissing(
                f"the password file {settings.password_file} can't be read or is empty",
                hint="write the password into its first line, readable by the agent alone",
            ) from error
    if settings.password_env is not None:
        found = os.environ.get(settings.password_env)
        if not found:
            raise SecretMissing(
                f"the environment variable {settings.password_env} has no password",
                hint="set it for the agent's process, not on a command line",
            )
        return found
    return None


def parameters(settings: DatabaseSettings, *, application_name: str, **more: str) -> dict[str, Any]:
    """libpq's connection parameters, the password among them: for libpq only, never for a log."""
    found: dict[str, Any] = {
        "host": settings.host,
        "port": str(settings.port),
        "dbname": settings.dbname,
        "user": settings.user,
        "sslmode": settings.sslmode,
        "application_name": application_name,
        "client_encoding": "UTF8",
        "connect_timeout": str(CONNECT_TIMEOUT_S),
        "keepalives": "1",
        "keepalives_idle": "10",
        "keepalives_interval": "5",
        "keepalives_count": "3",
        "tcp_user_timeout": "30000",
        **more,
    }
    if settings.sslrootcert is not None:
        found["sslrootcert"] = settings.sslrootcert
    if settings.passfile is not None:
        found["passfile"] = settings.passfile
    password = password_of(settings)
    if password is not None:
        found["password"] = password
    return found


def scrubbed(text: str, settings: DatabaseSettings) -> str:
    """`text` without the password, whatever put it there."""
    try:
        password = password_of(settings)
    except SecretMissing:
        password = None
    return text.replace(password, "***").strip() if password else text.strip()


async def connect(
    settings: DatabaseSettings,
    *,
    application_name: str,
    autocommit: bool = True,
    error: type[CastlingError] = SourceUnreachable,
) -> AsyncConnection[Any]:
    """A connection. `error`: what is raised when there can be none (source or target unreachable)."""
    try:
        return await AsyncConnection.connect(
            "", autocommit=autocommit, **parameters(settings, application_name=application_name)
        )
    except psycopg.OperationalError as failure:
        raise error(
            f"{settings.host}:{settings.port}/{settings.dbname}: {scrubbed(str(failure), settings)}",
            hint=f"connected as user {settings.user} with {_secret_place(settings)}, from the node that asks",
        ) from None


def _secret_place(settings: DatabaseSettings) -> str:
    """Where the password comes from, for people."""
    if settings.password_file is not None:
        return f"the password in {settings.password_file}"
    if settings.password_env is not None:
        return f"the password in the environment variable {settings.password_env}"
    return "no password" if settings.passfile is None else f"the password in {settings.passfile}"
