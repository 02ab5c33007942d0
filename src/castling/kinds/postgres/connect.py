"""Connections to PostgreSQL, with the password from where the settings say it is.

A password is read when it is needed and given to libpq as a parameter; it never stands on
a command line, in a log or in an error. Errors are told with the server's own words, which
never contain it, and are scrubbed of it all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import psycopg
from psycopg import AsyncConnection

from castling.config import DatabaseSettings
from castling.errors import (
    CastlingError,
    SecretMissing,
    SourceError,
    SourceRefused,
    SourceUnreachable,
    TargetError,
    TargetRefused,
    TargetUnreachable,
)

__all__ = [
    "OWN_OPTIONS",
    "OWN_SESSION",
    "TEXT_FORM",
    "connect",
    "parameters",
    "password_of",
    "questions",
    "scrubbed",
    "told",
    "where",
]

CONNECT_TIMEOUT_S = 10
#: set to "on" in every session of Castling's: by it the target tells what it writes from what others write
OWN_SESSION = "castling.session"
#: in the same place: a fenced database makes sessions read-only unless they say otherwise
OWN_OPTIONS = f"-c {OWN_SESSION}=on -c default_transaction_read_only=off"
#: statements after which values in text form mean the same in every session, on both sides
TEXT_FORM = (
    "SET search_path = pg_catalog",
    "SET DateStyle = ISO",
    "SET IntervalStyle = postgres",
    "SET TimeZone = 'UTC'",
    "SET extra_float_digits = 1",
    "SET lc_monetary = 'C'",
    "SET bytea_output = hex",
)
#: how long a connection that nobody wants any more may take to be made
GIVEN_UP_S = 2.0
#: a part of a line of a pgpass file, which may hold escaped colons, and one such escape
_PART = re.compile(r"(?:^|:)((?:\\.|[^:\\])*)")
_ESCAPED = re.compile(r"\\(.)")
#: what is raised instead when the server answers and refuses
_REFUSED: dict[type[CastlingError], type[CastlingError]] = {
    SourceUnreachable: SourceRefused,
    TargetUnreachable: TargetRefused,
}


def password_of(settings: DatabaseSettings) -> str | None:
    """The password, or None when libpq is to look for it itself (trust, certificate, its own defaults).

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
    if settings.passfile is not None:
        return _from_passfile(settings, settings.passfile)
    return None


def _from_passfile(settings: DatabaseSettings, passfile: str) -> str:
    """The password of the first line that matches; libpq would let PGPASSWORD go before it."""
    try:
        lines = Path(passfile).read_text().splitlines()
    except OSError as error:
        raise SecretMissing(f"the password file {passfile} can't be read: {error.strerror}") from error
    every = [(host, str(port), settings.dbname, settings.user) for host, port in settings.places]
    for line in lines:
        parts = [_ESCAPED.sub(r"\1", part) for part in _PART.findall(line)]
        if len(parts) >= 5 and any(_fits(parts, wanted) for wanted in every):
            return parts[4]
    raise SecretMissing(
        f"{passfile} has no line for {':'.join(every[0])}",
        hint="a line is host:port:database:user:password; * stands for any",
    )


def _fits(parts: list[str], wanted: tuple[str, ...]) -> bool:
    return all(there in ("*", each) for there, each in zip(parts, wanted, strict=False))


def where(settings: DatabaseSettings) -> dict[str, str]:
    """libpq's parameters for where the server is. Of several the one that can be written is meant."""
    named = settings.places
    found = {"host": ",".join(host for host, _ in named), "port": ",".join(str(port) for _, port in named)}
    return found | {"target_session_attrs": "read-write"} if len(named) > 1 else found


def parameters(settings: DatabaseSettings, *, application_name: str, **more: str) -> dict[str, Any]:
    """libpq's connection parameters, the password among them: for libpq only, never for a log."""
    found: dict[str, Any] = {
        **where(settings),
        "dbname": settings.dbname,
        "user": settings.user,
        "sslmode": settings.sslmode,
        "application_name": application_name,
        "client_encoding": "UTF8",
        # or libpq would take them from the agent's environment, and reach another server than is written
        "hostaddr": "",
        "options": OWN_OPTIONS,
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
    password = password_of(settings)
    if password is not None:
        found["password"] = password
    return found


def told(settings: DatabaseSettings) -> str:
    """Where the server is, for people."""
    return settings.host if "," in settings.host else f"{settings.host}:{settings.port}"


def scrubbed(text: str, settings: DatabaseSettings) -> str:
    """`text` without the password, whatever put it there."""
    try:
        password = password_of(settings)
    except SecretMissing:
        password = None
    return text.replace(password, "***").strip() if password else text.strip()


async def _not_half_way(connecting: asyncio.Task[AsyncConnection[Any]]) -> None:
    """A connection that is given up while the server still authenticates it would stay there for a minute."""
    await asyncio.wait((connecting,), timeout=GIVEN_UP_S)
    connecting.cancel()
    if connecting.done() and not connecting.cancelled() and connecting.exception() is None:
        await connecting.result().close()


async def connect(
    settings: DatabaseSettings,
    *,
    application_name: str,
    autocommit: bool = True,
    error: type[CastlingError] = SourceUnreachable,
    more: Mapping[str, str] | None = None,
) -> AsyncConnection[Any]:
    """A connection. `error`: what is raised when there can be none (source or target unreachable); `more`:
    further parameters of libpq."""
    found = parameters(settings, application_name=application_name, **(more or {}))
    connecting = asyncio.create_task(AsyncConnection.connect("", autocommit=autocommit, **found))
    try:
        return await asyncio.shield(connecting)
    except asyncio.CancelledError:
        await _not_half_way(connecting)
        raise
    except psycopg.OperationalError as failure:
        refused = "FATAL:" in str(failure)
        raise (_REFUSED.get(error, error) if refused else error)(
            f"{told(settings)}/{settings.dbname}: {scrubbed(str(failure), settings)}",
            hint=f"connected as user {settings.user} with {_secret_place(settings)}, from the node that asks",
        ) from None


@contextlib.asynccontextmanager
async def questions(
    settings: DatabaseSettings, *, application_name: str, error: type[CastlingError] = SourceUnreachable
) -> AsyncIterator[AsyncConnection[Any]]:
    """A connection for a few questions; whatever goes wrong on it is an error that says where.
    `error`: as for `connect`."""
    connection = await connect(settings, application_name=application_name, error=error)
    try:
        yield connection
    except (psycopg.OperationalError, psycopg.InterfaceError) as failure:
        message = f"{told(settings)}/{settings.dbname} broke off: {failure}"
        raise error(scrubbed(message, settings)) from failure
    except psycopg.Error as failure:
        words = failure.diag.message_primary or failure
        message = f"{told(settings)}/{settings.dbname} does not answer that: {words}"
        kind = TargetError if issubclass(error, TargetError) else SourceError
        raise kind(
            scrubbed(message, settings),
            hint="what was asked about may just be changing: try again",
            sqlstate=failure.sqlstate,
        ) from failure
    finally:
        await connection.close()


def _secret_place(settings: DatabaseSettings) -> str:
    """Where the password comes from, for people."""
    if settings.password_file is not None:
        return f"the password in {settings.password_file}"
    if settings.password_env is not None:
        return f"the password in the environment variable {settings.password_env}"
    return "no password" if settings.passfile is None else f"the password in {settings.passfile}"
