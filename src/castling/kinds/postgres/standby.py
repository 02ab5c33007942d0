"""The source's `synchronous_standby_names`: looked at, changed, and set free.

It is the whole server's, and not ours alone: what somebody else wrote there is never
overwritten. A change counts only when the server is seen to follow it, because a value on
the server's command line goes before what ALTER SYSTEM writes, and a mistake anywhere in
the server's files makes a reload change nothing.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import psycopg

from castling.config import DatabaseSettings
from castling.errors import CastlingError, SettingOverridden, SourceRefused, SourceUnreachable
from castling.kinds.postgres.connect import connect
from castling.kinds.postgres.session import slot_name

__all__ = [
    "SETTING",
    "change",
    "holds_commits",
    "names_in_force",
    "release_commits",
    "standby_names",
]

SETTING = "synchronous_standby_names"
#: how long the server may take to follow a change of its files, seconds
FOLLOW_S = 5.0
#: how long a whole release may take, seconds
RELEASE_S = 15.0

Connection = psycopg.AsyncConnection[Any]


def standby_names(group: str, backups: list[str]) -> str:
    """What `synchronous_standby_names` is set to: any one of the group's backups."""
    names = ", ".join(f'"{slot_name(group, backup)}"' for backup in backups)
    return f"ANY 1 ({names})"


async def change(connection: Connection, names: str, *, ours: str) -> None:
    """Make it `names`, and return when the server follows. `ours`: the value that may be replaced.

    SettingOverridden when somebody else has set it, or when the server does not follow.
    """
    now = await names_in_force(connection)
    if now not in ("", ours):
        raise SettingOverridden(
            f"{SETTING} on the source is {now!r}, which is not Castling's",
            hint="take it out of the server's settings; a group with synchronous delivery has them to itself",
        )
    quoted = names.replace("'", "''")
    await connection.execute(f"ALTER SYSTEM SET {SETTING} = '{quoted}'".encode())
    await connection.execute("SELECT pg_catalog.pg_reload_conf()")
    deadline = time.monotonic() + FOLLOW_S
    while (now := await names_in_force(connection)) != names:
        if time.monotonic() > deadline:
            raise await _not_followed(connection, wanted=names, now=now)
        await asyncio.sleep(0.05)


async def names_in_force(connection: Connection) -> str:
    """What the server goes by now."""
    cursor = await connection.execute("SELECT pg_catalog.current_setting(%s)", (SETTING,))
    row = await cursor.fetchone()
    return str(row[0]) if row else ""


async def _not_followed(connection: Connection, *, wanted: str, now: str) -> CastlingError:
    cursor = await connection.execute("SELECT source FROM pg_catalog.pg_settings WHERE name = %s", (SETTING,))
    row = await cursor.fetchone()
    place = str(row[0]) if row else "unknown"
    why = "the server's log says why the reload changed nothing"
    if place != "configuration file":
        why = f"its value comes from the {place}, which goes before ALTER SYSTEM: take it from there"
    return SettingOverridden(
        f"{SETTING} on the source stays {now!r} and does not become {wanted!r}", hint=why
    )


async def holds_commits(group: str, backups: list[str], database: DatabaseSettings) -> bool:
    """Whether commits on the source wait for the group."""
    try:
        async with asyncio.timeout(RELEASE_S):
            connection = await connect(database, application_name=f"castling sync {group}")
            try:
                return await names_in_force(connection) == standby_names(group, backups)
            finally:
                await connection.close()
    except (psycopg.Error, TimeoutError) as error:
        raise _told(error, "the source does not say whether commits wait") from error


async def release_commits(group: str, backups: list[str], database: DatabaseSettings) -> None:
    """Let commits on the source wait for the group no longer. Repeatable; never touches another's value.

    What is written but not in force (a reload that was never done, a command line before it) is taken away
    too: else commits would begin to wait for nobody when the server is started the next time.
    """
    ours = standby_names(group, backups)
    try:
        async with asyncio.timeout(RELEASE_S):
            connection = await connect(database, application_name=f"castling sync {group}")
            try:
                if ours in (await names_in_force(connection), await _written(connection)):
                    await change(connection, "", ours=ours)
            finally:
                await connection.close()
    except (psycopg.Error, TimeoutError) as error:
        raise _told(error, f"{SETTING} on the source could not be taken back") from error


def _told(error: Exception, what: str) -> CastlingError:
    """What the server refuses is told apart from one that is gone."""
    if isinstance(error, psycopg.Error) and error.diag.message_primary:
        return SourceRefused(f"{what}: {error.diag.message_primary}")
    return SourceUnreachable(f"{what}: {str(error).strip() or 'no answer'}")


async def _written(connection: Connection) -> str | None:
    """What ALTER SYSTEM has written last; None when nothing, or when this user may not see it."""
    cursor = await connection.execute(
        "SELECT pg_catalog.has_table_privilege('pg_catalog.pg_file_settings', 'SELECT')"
        " AND pg_catalog.has_function_privilege('pg_catalog.pg_show_all_file_settings()', 'EXECUTE')"
    )
    row = await cursor.fetchone()
    if not (row and row[0]):
        return None
    cursor = await connection.execute(
        "SELECT setting FROM pg_catalog.pg_file_settings WHERE name = %s"
        " AND sourcefile LIKE '%%/postgresql.auto.conf' ORDER BY seqno DESC LIMIT 1",
        (SETTING,),
    )
    row = await cursor.fetchone()
    return None if row is None else str(row[0])
