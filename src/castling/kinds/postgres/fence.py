"""Fences a database: from a moment on, behind every commit before it, no client can write the group's tables.

    1. new sessions begin read-only (libpq's target_session_attrs=read-write passes the server by)
    2. the guard is put on every table, in one transaction: to wait for its locks is to wait for the writers
    3. sessions of clients are ended, so that they look for the primary again

The guard's locks conflict with writers' only, and are asked for in short tries: whoever waits behind one
waits for less than it takes the server to look for deadlocks, so nobody's transaction is broken by it. Those
that hold the locks for longer than the time of grace are ended.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import AsyncConnection

from castling.config import DatabaseSettings, GroupSettings
from castling.errors import NotFenced, SourceUnreachable
from castling.kinds.postgres.catalog import Table, is_chosen, read_tables
from castling.kinds.postgres.connect import connect
from castling.kinds.postgres.fence_sql import (
    CREATE_GUARD,
    DROP_DDL_GUARD,
    MAKE_DDL_GUARD,
    guard_name,
    guard_table,
)
from castling.kinds.postgres.statements import quoted

__all__ = ["Fence", "fence", "lift", "lift_in", "read_fence", "remove_guard"]

#: one try to lock all tables: less than the time after which a server looks for deadlocks (1 s)
_TRY = "400ms"
#: beyond the time of grace, how long those that were ended may take to go, seconds
_GONE_S = 15.0

_OURS = "application_name LIKE 'castling%%' AND usename = session_user"
#: client sessions that hold a writer's lock on one of the tables
_END_WRITERS = f"""
SELECT pg_catalog.pg_terminate_backend(a.pid), a.pid
  FROM pg_catalog.pg_stat_activity a
 WHERE a.pid <> pg_catalog.pg_backend_pid() AND NOT ({_OURS})
   AND EXISTS (SELECT FROM pg_catalog.pg_locks l
                WHERE l.pid = a.pid AND l.granted AND l.relation = ANY (%s::oid[])
                  AND l.database = (SELECT oid FROM pg_catalog.pg_database
                                     WHERE datname = pg_catalog.current_database())
                  AND l.mode NOT IN ('AccessShareLock', 'RowShareLock'))
"""
_SESSIONS = f"""
SELECT a.pid, a.usename, a.application_name, COALESCE(r.rolsuper, false)
  FROM pg_catalog.pg_stat_activity a LEFT JOIN pg_catalog.pg_roles r ON r.oid = a.usesysid
 WHERE a.datname = pg_catalog.current_database() AND a.backend_type = 'client backend'
   AND a.pid <> pg_catalog.pg_backend_pid() AND NOT ({_OURS})
"""
_PREPARED = """
SELECT gid FROM pg_catalog.pg_prepared_xacts WHERE database = pg_catalog.current_database() ORDER BY gid
"""
_HOLDERS = """
SELECT DISTINCT pg_catalog.format('process %%s (%%s)', a.pid, a.application_name)
  FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a USING (pid)
 WHERE l.granted AND l.relation = ANY (%s::oid[]) AND l.mode NOT IN ('AccessShareLock', 'RowShareLock')
   AND a.pid <> pg_catalog.pg_backend_pid()
"""
_GUARDED = """
SELECT t.tgrelid::int8 FROM pg_catalog.pg_trigger t
 WHERE t.tgname = %s AND t.tgenabled = 'A' AND t.tgfoid = pg_catalog.to_regproc('castling.refuse_write')
   AND pg_catalog.starts_with(pg_catalog.encode(t.tgargs, 'escape'), %s)
"""
_DEFAULT = """
SELECT pg_catalog.split_part(c, '=', 2) FROM pg_catalog.pg_db_role_setting s,
       pg_catalog.unnest(s.setconfig) c
 WHERE s.setrole = 0 AND c LIKE 'default_transaction_read_only=%%'
   AND s.setdatabase = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
"""


@dataclass(frozen=True, slots=True)
class Fence:
    """`is_up`: the guard is on every table; it was made for `epoch`. `missing`: tables without it."""

    is_up: bool
    epoch: int | None
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Guard:
    """`told`: epoch and primary, as the message has them."""

    group: str
    number: int
    told: tuple[str, str]


def guarded(tables: list[Table], settings: GroupSettings) -> list[Table]:
    """The tables to guard: all of the group that hold rows or lead to some. Pure."""
    return [table for table in tables if table.kind in "rp" and is_chosen(table, settings)]


async def read_fence(connection: AsyncConnection[Any], group: str, settings: GroupSettings) -> Fence:
    """What stands of the fence; only looks."""
    cursor = await connection.execute(b"SELECT pg_catalog.to_regclass('castling.fence') IS NOT NULL")
    row = await cursor.fetchone()
    if row is None or not row[0]:
        return Fence(False, None)
    cursor = await connection.execute("SELECT number, epoch FROM castling.fence WHERE stream = %s", (group,))
    row = await cursor.fetchone()
    if row is None:
        return Fence(False, None)
    tables = guarded(await read_tables(connection, measured=False), settings)
    cursor = await connection.execute(_GUARDED, (guard_name(group), f"{group}\\000{row[0]}\\000"))
    there = {int(oid) for (oid,) in await cursor.fetchall()}
    missing = tuple(str(table) for table in tables if table.oid not in there)
    return Fence(not missing, int(row[1]), missing)


async def fence(
    group: str,
    settings: GroupSettings,
    database: DatabaseSettings,
    *,
    epoch: int,
    primary: str,
    grace_s: float,
    ending: bool = True,
) -> dict[str, Any]:
    """Fence it. NotFenced, with everything as before, where that can't be done. Repeatable.

    `primary`: the node that clients are sent to; `grace_s`: how long transactions that have written may go
    on; `ending`: sessions are ended, so that they look for another server. Returns how many were ended,
    which superusers' were among them, and what could not be done.
    """
    connection = await connect(database, application_name=f"castling fence {group}")
    try:
        await connection.execute(b"SET synchronous_commit = local; SET search_path = pg_catalog")
        await connection.execute(CREATE_GUARD.encode())
        number, left = await _begin_read_only(connection, group, epoch, primary)
        guard = _Guard(group, number, (str(epoch), primary))
        try:
            left += await _guard(connection, guard, settings, grace_s)
        except BaseException:
            if not connection.closed:
                await lift_in(connection, group)
            raise
        ended, superusers = await _end_sessions(connection) if ending else (0, [])
        return {"fenced": True, "ended": ended, "superusers": superusers, "left": left}
    except psycopg.OperationalError as error:
        raise SourceUnreachable(f"the source broke off while it was fenced: {error}") from error
    except psycopg.Error as error:
        raise NotFenced(f"the source refused to be fenced: {error.diag.message_primary}") from error
    finally:
        await connection.close()


async def _begin_read_only(
    connection: AsyncConnection[Any], group: str, epoch: int, primary: str
) -> tuple[int, list[str]]:
    """New sessions begin read-only; what was set before is remembered. The number of the guard to come, and
    what could not be done."""
    cursor = await connection.execute(_DEFAULT)
    row = await cursor.fetchone()
    await connection.execute(
        "INSERT INTO castling.fence AS f (stream, number, epoch, primary_node, had_default)"
        " SELECT %(g)s, COALESCE(pg_catalog.max(number), 0) + 1, %(e)s, %(p)s, %(d)s"
        " FROM castling.fence_lifted WHERE stream = %(g)s"
        " ON CONFLICT (stream) DO UPDATE SET epoch = excluded.epoch, primary_node = excluded.primary_node",
        {"g": group, "e": epoch, "p": primary, "d": row and row[0]},
    )
    cursor = await connection.execute("SELECT number FROM castling.fence WHERE stream = %s", (group,))
    numbered = await cursor.fetchone()
    number = int(numbered[0]) if numbered else 0
    try:
        await _set_default(connection, "on")
    except psycopg.errors.InsufficientPrivilege:
        return number, ["new sessions do not begin read-only: Castling's user does not own the database"]
    return number, []


async def _set_default(connection: AsyncConnection[Any], value: str | None) -> None:
    name = quoted(connection.info.dbname)
    change = "RESET default_transaction_read_only"
    if value is not None:
        change = f"SET default_transaction_read_only = {'on' if value == 'on' else 'off'}"
    await connection.execute(f"ALTER DATABASE {name} {change}".encode())


async def _guard(
    connection: AsyncConnection[Any], guard: _Guard, settings: GroupSettings, grace_s: float
) -> list[str]:
    tables = guarded(await read_tables(connection, measured=False), settings)
    began_s = time.monotonic()
    while True:
        try:
            return await _put(connection, guard, tables)
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
            waited_s = time.monotonic() - began_s
        except psycopg.errors.UndefinedTable:  # dropped since it was listed
            tables = guarded(await read_tables(connection, measured=False), settings)
            waited_s = time.monotonic() - began_s
        if waited_s > grace_s + _GONE_S:
            raise NotFenced(
                f"{await _who_writes(connection, tables)} still holds tables of the group",
                hint="end it, or let it end, and begin again; nothing was changed",
            )
        if waited_s > grace_s:
            await connection.execute(_END_WRITERS, ([table.oid for table in tables],))
        await asyncio.sleep(0.05)  # whoever has waited behind the try goes on


async def _put(connection: AsyncConnection[Any], guard: _Guard, tables: list[Table]) -> list[str]:
    left = []
    async with connection.transaction():
        await connection.execute(f"SET LOCAL lock_timeout = '{_TRY}'".encode())
        cursor = await connection.execute(b"SELECT rolsuper FROM pg_roles WHERE rolname = session_user")
        row = await cursor.fetchone()
        if row is not None and row[0]:  # what is done here is no schema change to carry
            await connection.execute(b"SET LOCAL session_replication_role = replica")
            await connection.execute(MAKE_DDL_GUARD.encode())
        else:
            left.append("schema changes are not refused: Castling's user is no superuser")
        if tables:
            named = ", ".join(f"ONLY {table.sql}" for table in tables)
            await connection.execute(f"LOCK TABLE {named} IN SHARE ROW EXCLUSIVE MODE".encode())
        user = connection.info.user
        guards = [guard_table(each, guard.group, guard.number, guard.told, user) for each in tables]
        if guards:
            await connection.execute("".join(guards).encode())
    return left


async def _who_writes(connection: AsyncConnection[Any], tables: list[Table]) -> str:
    cursor = await connection.execute(_PREPARED)
    named = [f"the prepared transaction {gid!r}" for (gid,) in await cursor.fetchall()]
    cursor = await connection.execute(_HOLDERS, ([table.oid for table in tables],))
    named += [str(said) for (said,) in await cursor.fetchall()]
    return ", ".join(named[:5]) or "another session"


async def _end_sessions(connection: AsyncConnection[Any]) -> tuple[int, list[str]]:
    """End every client's session; how many, and those that were superusers'."""
    cursor = await connection.execute(_SESSIONS)
    superusers, ended = [], 0
    for pid, user, application, is_super in await cursor.fetchall():
        if is_super:
            superusers.append(f"{user} ({application or 'no application_name'}, process {pid})")
        try:
            await connection.execute("SELECT pg_catalog.pg_terminate_backend(%s)", (pid,))
            ended += 1
        except psycopg.errors.InsufficientPrivilege:
            continue  # the guard stands whoever is left
    return ended, superusers


async def lift(group: str, database: DatabaseSettings) -> None:
    """Let clients write again, at once; what is left of the guard does nothing. Repeatable."""
    connection = await connect(database, application_name=f"castling fence {group}")
    try:
        await connection.execute(b"SET synchronous_commit = local; SET search_path = pg_catalog")
        await lift_in(connection, group)
    except psycopg.OperationalError as error:
        raise SourceUnreachable(f"the source broke off: {error}") from error
    finally:
        await connection.close()


async def lift_in(connection: AsyncConnection[Any], group: str) -> None:
    """The same on a connection of the caller's, in its transaction if there is one."""
    cursor = await connection.execute(b"SELECT pg_catalog.to_regclass('castling.fence') IS NOT NULL")
    row = await cursor.fetchone()
    if row is None or not row[0]:
        return
    cursor = await connection.execute("SELECT number FROM castling.fence WHERE stream = %s", (group,))
    row = await cursor.fetchone()
    if row is not None:
        await _lift(connection, group, int(row[0]))


async def _lift(connection: AsyncConnection[Any], group: str, number: int) -> None:
    async with connection.transaction():
        cursor = await connection.execute(
            "DELETE FROM castling.fence WHERE stream = %s RETURNING had_default", (group,)
        )
        row = await cursor.fetchone()
        await connection.execute(
            "INSERT INTO castling.fence_lifted AS l (stream, number) VALUES (%s, %s)"
            " ON CONFLICT (stream) DO UPDATE SET number = GREATEST(l.number, excluded.number)",
            (group, number),
        )
        cursor = await connection.execute(b"SELECT EXISTS (SELECT FROM castling.fence)")
        others = await cursor.fetchone()
        if others is not None and others[0]:
            return  # another group's fence needs the read-only default
        try:
            async with connection.transaction():
                await _set_default(connection, row[0] if row else None)
        except psycopg.errors.InsufficientPrivilege:
            return  # then it was never set


async def remove_guard(connection: AsyncConnection[Any], group: str, *, within_s: float = 20.0) -> bool:
    """Take a lifted guard's triggers off the tables; False when one is in use for longer than that."""
    cursor = await connection.execute(
        "SELECT n.nspname, c.relname FROM pg_catalog.pg_trigger t"
        " JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid"
        " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
        " WHERE t.tgname = %s AND NOT EXISTS (SELECT FROM castling.fence f WHERE f.stream = %s)",
        (guard_name(group), group),
    )
    waiting = [f"{quoted(schema)}.{quoted(name)}" for schema, name in await cursor.fetchall()]
    deadline = time.monotonic() + within_s
    while waiting and time.monotonic() < deadline:
        left = []
        for table in waiting:
            try:
                async with connection.transaction():
                    await connection.execute(f"SET LOCAL lock_timeout = '{_TRY}'".encode())
                    await _without_event_triggers(connection)
                    await connection.execute(
                        f"DROP TRIGGER IF EXISTS {quoted(guard_name(group))} ON {table}".encode()
                    )
            except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
                left.append(table)
            except psycopg.errors.UndefinedTable:
                continue
        waiting = left
    cursor = await connection.execute(b"SELECT EXISTS (SELECT FROM castling.fence)")
    row = await cursor.fetchone()
    if row is not None and not row[0]:
        await connection.execute(DROP_DDL_GUARD.encode())
    return not waiting


async def _without_event_triggers(connection: AsyncConnection[Any]) -> None:
    """What is done in the open transaction is no schema change to carry."""
    cursor = await connection.execute(b"SELECT rolsuper FROM pg_roles WHERE rolname = session_user")
    row = await cursor.fetchone()
    if row is not None and row[0]:
        await connection.execute(b"SET LOCAL session_replication_role = replica")
