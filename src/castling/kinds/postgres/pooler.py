"""PgBouncer in front of the database: clients wait while the roles change, and are led to the new primary.

By its admin console, which speaks the simple protocol only. `PAUSE` returns when every client's transaction
is over (so `pool_mode` is `transaction` or `statement`); who asks for something then waits, and sees no
error. The address is changed in a file that pgbouncer.ini includes: the line of the database, of which only
host and port are touched.
"""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path
from typing import Any, Literal

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import dict_row

from castling.config import DatabaseSettings, PoolerSettings
from castling.errors import PoolerFailed
from castling.kinds.postgres.connect import password_of

__all__ = ["lead", "pool", "repointed"]

Json = dict[str, Any]
#: how long clients' transactions may go on after PAUSE, seconds; then they are let go again
PAUSE_S = 20.0
_CONNECT_S = 5
#: one option of a database's line; a quoted value may hold what looks like others
_OPTION = re.compile(r"(\w+)\s*=\s*('(?:[^']|'')*'|\S+)")


async def pool(settings: PoolerSettings, action: Literal["pause", "resume"], primary: str) -> Json:
    """`pause`: no client's transaction is open any more, and none begins. `resume`: clients go on, at
    `primary`. Both may be repeated."""
    try:
        async with await _console(settings) as console:
            if action == "pause":
                return await _pause(console, settings)
            return await _resume(console, settings, primary)
    except psycopg.Error as error:
        raise PoolerFailed(f"PgBouncer at {settings.host}:{settings.port}: {_first_line(error)}") from error
    except OSError as error:
        raise PoolerFailed(f"{settings.file} can't be written: {error.strerror or error}") from error


async def _console(settings: PoolerSettings) -> AsyncConnection[Json]:
    return await AsyncConnection.connect(
        host=settings.host,
        port=settings.port,
        dbname="pgbouncer",
        user=settings.user,
        password=_password(settings),
        connect_timeout=_CONNECT_S,
        autocommit=True,
        prepare_threshold=None,
        row_factory=dict_row,
    )


def _password(settings: PoolerSettings) -> str | None:
    names = ("host", "port", "user", "password_file", "password_env", "passfile")
    return password_of(DatabaseSettings(dbname="pgbouncer", **{key: getattr(settings, key) for key in names}))


async def _pause(console: AsyncConnection[Json], settings: PoolerSettings) -> Json:
    if not (await _state(console, settings))["paused"]:
        try:
            async with asyncio.timeout(PAUSE_S):
                await console.execute(f"PAUSE {_quoted(settings.database)}".encode())
        except TimeoutError:
            async with await _console(settings) as again:  # the other is busy with what it was told
                await again.execute(f"RESUME {_quoted(settings.database)}".encode())
            raise PoolerFailed(
                f"clients of {settings.database} did not end their transactions within {PAUSE_S:g} s",
                hint="pool_mode must be transaction or statement; long transactions are to be ended first",
            ) from None
    return {"state": "paused"}


async def _resume(console: AsyncConnection[Json], settings: PoolerSettings, primary: str) -> Json:
    lead(Path(settings.file), settings.database, settings.addresses[primary])
    await console.execute(b"RELOAD")
    state = await _state(console, settings)
    if f"{state['host']}:{state['port']}" != settings.addresses[primary]:
        raise PoolerFailed(
            f"PgBouncer still leads {settings.database} to {state['host']}:{state['port']}",
            hint=f"pgbouncer.ini must have `%include {settings.file}` below [databases]",
        )
    if state["paused"]:
        await console.execute(f"RESUME {_quoted(settings.database)}".encode())
    else:
        await console.execute(f"RECONNECT {_quoted(settings.database)}".encode())
    return {"state": "resumed", "address": settings.addresses[primary]}


async def _state(console: AsyncConnection[Json], settings: PoolerSettings) -> Json:
    cursor = await console.execute(b"SHOW DATABASES")
    for row in await cursor.fetchall():
        if row["name"] == settings.database:
            return {"host": row["host"], "port": row["port"], "paused": str(row["paused"]) == "1"}
    raise PoolerFailed(f"PgBouncer at {settings.host}:{settings.port} has no database {settings.database}")


# --- the file ---------------------------------------------------------------------------------


def lead(file: Path, database: str, address: str) -> None:
    """Make the line of `database` in `file` lead to `address`; a crash leaves the old file or the new one."""
    old = file.read_text(encoding="utf-8")
    new = repointed(old, database, address)
    if new is None:
        raise PoolerFailed(
            f"{file} has no line of {database}", hint=f"such as: {database} = host=… port=… dbname={database}"
        )
    if new == old:
        return
    scratch = file.with_name(file.name + ".new")
    there = file.stat()
    with scratch.open("w", encoding="utf-8") as writing:
        os.fchmod(writing.fileno(), there.st_mode & 0o777)
        if os.geteuid() == 0:
            os.fchown(writing.fileno(), there.st_uid, there.st_gid)
        writing.write(new)
        writing.flush()
        os.fsync(writing.fileno())
    scratch.replace(file)


def repointed(text: str, database: str, address: str) -> str | None:
    """`text` with host and port of the line of `database` changed; None when there is no such line. Pure."""
    host, _, port = address.rpartition(":")
    lines = text.splitlines(keepends=True)
    for place, line in enumerate(lines):
        name, equals, rest = line.partition("=")
        if equals and name.strip().strip('"') == database and not line.lstrip().startswith((";", "#")):
            rest = _with(_with(rest, "port", port), "host", host)
            lines[place] = f"{name}={rest}"
            return "".join(lines)
    return None


def _with(rest: str, key: str, value: str) -> str:
    """The options with `key` set; where it was not there, it comes first."""
    found = [each for each in _OPTION.finditer(rest) if each[1] == key]
    if found:
        return f"{rest[: found[0].start(2)]}{value}{rest[found[0].end(2) :]}"
    return f" {key}={value}{rest if rest[:1].isspace() else ' ' + rest}"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
