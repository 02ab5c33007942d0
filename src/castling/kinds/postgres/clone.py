"""A copy of the target's database beside it, on the same server: what a rehearsal writes into.

    apply is away ─▶ CREATE DATABASE … TEMPLATE replica ─▶ what must not work in it is taken out ─▶ ready

The server copies the files; PostgreSQL 18 lets the file system share their blocks where it can (XFS, Btrfs),
which takes no room and hardly any time. A template must have no other session while it is copied, so who is
connected to the replica is named and not thrown out. The copy's name says whose it is, and its comment that
it is complete: one that is not is made anew.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import psycopg
from psycopg import AsyncConnection, sql

from castling.config import DatabaseSettings
from castling.errors import CloneFailed, TargetUnreachable
from castling.kinds.base import Clone
from castling.kinds.postgres.connect import connect, password_of
from castling.kinds.postgres.lsn import parse_lsn
from castling.kinds.postgres.wal_disk import free_bytes

__all__ = ["PREFIX", "clone_environment", "clone_names", "close_clone", "database_name", "open_clone"]

PREFIX = "castling_rehearsal_"
#: PostgreSQL cuts longer names
NAME_MAX = 63
#: the comment of a database that is complete begins so; the rest is the position
_READY = "castling rehearsal, ready at "
#: databases that every server has and that can be connected to while another one is copied
_DOORS = ("postgres", "template1")
#: room that must be left on the server's disk after a copy whose blocks are not shared, bytes
ROOM_LEFT = 1 << 30
#: settings whose values are lists that the server has quoted already, as pg_dump knows them
_LISTS = ("local_preload_libraries", "search_path", "session_preload_libraries", "temp_tablespaces")
_CLONING = "SET file_copy_method = clone"
#: from this version on the server can let the file system share blocks
_SHARING_VERSION = 180000


def database_name(group: str, identity: str) -> str:
    """The name of the copy `identity` of the group: NAME_MAX characters at most, the identity whole."""
    return f"{PREFIX}{group[: NAME_MAX - len(PREFIX) - len(identity) - 1]}_{identity}"


async def open_clone(group: str, database: DatabaseSettings, identity: str) -> Clone:
    """Make the copy, or find it complete. The stream's apply must be away.

    Raises CloneFailed with who is connected, or how much room it would take; TargetUnreachable.
    """
    name = database_name(group, identity)
    began = time.monotonic()
    async with _door(database) as door:
        ready = await _ready_at(door, name)
        shares: bool | None = None
        if ready is None:
            await _drop(door, name)
            size = await _size(door, database)
            shares = await _create(door, database, name, size)
            await _copy_settings(door, database.dbname, name)
            position = await _disarm(group, database, name)
            await door.execute(
                sql.SQL("COMMENT ON DATABASE {} IS {}").format(
                    sql.Identifier(name), sql.Literal(f"{_READY}{position}")
                )
            )
        else:
            position = ready
        size = await _size(door, database)
    return Clone(
        database=name,
        position=parse_lsn(position),
        shares_blocks=shares,
        size=size,
        opened_s=time.monotonic() - began,
    )


async def close_clone(group: str, database: DatabaseSettings, identity: str) -> bool:
    """Remove the copy, ending the sessions in it; False when there was none. Repeatable."""
    async with _door(database) as door:
        return await _drop(door, database_name(group, identity))


async def clone_names(group: str, database: DatabaseSettings) -> list[str]:
    """The identities of the group's copies on the target's server, complete or not."""
    prefix = database_name(group, "")
    async with _door(database) as door:
        rows = await door.execute(
            b"SELECT datname FROM pg_database WHERE starts_with(datname, %s)", (prefix,)
        )
        return sorted(name.removeprefix(prefix) for (name,) in await rows.fetchall())


@contextlib.asynccontextmanager
async def _door(database: DatabaseSettings) -> AsyncIterator[AsyncConnection[Any]]:
    """A session in a database that is not the replica: nobody may be in that while it is copied."""
    refusals = []
    for name in _DOORS:
        try:
            connection = await _connect(database, name)
        except TargetUnreachable as error:
            refusals.append(error)
            continue
        try:
            await connection.execute(b"SET statement_timeout = 0")
            yield connection
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            if not connection.closed:
                raise CloneFailed(f"{database.dbname}: {_told(error)}") from error
            raise TargetUnreachable(f"the connection broke while a copy was made: {_told(error)}") from error
        except psycopg.Error as error:
            raise CloneFailed(f"{database.dbname} can't be copied: {_told(error)}") from error
        finally:
            await connection.close()
        return
    raise refusals[0]


async def _connect(database: DatabaseSettings, name: str) -> AsyncConnection[Any]:
    return await connect(
        msgspec.structs.replace(database, dbname=name),
        application_name="castling rehearsal",
        error=TargetUnreachable,
    )


async def _ready_at(door: AsyncConnection[Any], name: str) -> str | None:
    """The position of the complete copy of that name; None when there is none."""
    rows = await door.execute(
        b"SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s", (name,)
    )
    found = await rows.fetchone()
    if found is None or not (found[0] or "").startswith(_READY):
        return None
    return str(found[0]).removeprefix(_READY)


async def _size(door: AsyncConnection[Any], database: DatabaseSettings) -> int:
    rows = await door.execute(b"SELECT pg_database_size(%s)", (database.dbname,))
    found = await rows.fetchone()
    assert found is not None
    return int(found[0])


async def _create(door: AsyncConnection[Any], database: DatabaseSettings, name: str, size: int) -> bool:
    """Whether the copy shares its blocks with the replica."""
    if door.info.server_version >= _SHARING_VERSION:
        await door.execute(_CLONING.encode())
        try:
            await _create_database(door, database.dbname, name)
            return True
        except (psycopg.errors.FeatureNotSupported, psycopg.errors.InvalidParameterValue):
            pass  # the server was built without
        except psycopg.OperationalError as error:
            if door.closed or "clone file" not in str(error):
                raise
        except psycopg.Error as error:
            if "clone file" not in str(error):
                raise
        await door.execute(b"SET file_copy_method = copy")
    await _demand_room(door, database, size)
    await _create_database(door, database.dbname, name)
    return False


async def _create_database(door: AsyncConnection[Any], template: str, name: str) -> None:
    strategy = " STRATEGY file_copy" if door.info.server_version >= 150000 else ""
    try:
        await door.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}" + strategy).format(
                sql.Identifier(name), sql.Identifier(template)
            )
        )
    except psycopg.errors.ObjectInUse as error:
        raise CloneFailed(
            f"{template} can't be copied while others are connected to it: {await _who(door, template)}",
            hint="let them disconnect, or run the rehearsal when nobody reads the replica",
        ) from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise CloneFailed(
            f"{template} can't be copied: {_told(error)}",
            hint="the group's user on the backup needs CREATEDB and must own the database, or be superuser",
        ) from error


async def _demand_room(door: AsyncConnection[Any], database: DatabaseSettings, size: int) -> None:
    """CloneFailed when it is known that the disk has no room; else the server will say so."""
    try:
        rows = await door.execute(b"SELECT current_setting('data_directory')")
        found = await rows.fetchone()
    except psycopg.errors.InsufficientPrivilege:
        return
    free = free_bytes(database, None if found is None else str(found[0]))
    if free is not None and free < size + ROOM_LEFT:
        raise CloneFailed(
            f"a copy of {database.dbname} takes {size >> 20} MiB, and the disk has {free >> 20} MiB free",
            hint="a file system that shares blocks (XFS, Btrfs) with PostgreSQL 18 or newer needs no room",
        )


async def _who(door: AsyncConnection[Any], name: str) -> str:
    rows = await door.execute(
        b"SELECT pid, usename, application_name FROM pg_stat_activity WHERE datname = %s"
        b" ORDER BY pid LIMIT 5",
        (name,),
    )
    found = [
        f"{user or '?'} (process {pid}, {application or 'no name'})"
        for pid, user, application in await rows.fetchall()
    ]
    return ", ".join(found) or "prepared transactions, or sessions that have just left"


async def _copy_settings(door: AsyncConnection[Any], template: str, name: str) -> None:
    """What was set for the database and for roles in it; a template does not pass that on. That it shall be
    read only is left out: a rehearsal writes."""
    rows = await door.execute(
        b"SELECT r.rolname, s.setconfig FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase"
        b" LEFT JOIN pg_roles r ON r.oid = s.setrole WHERE d.datname = %s",
        (template,),
    )
    for role, settings in await rows.fetchall():
        for setting in settings:
            key, _, value = setting.partition("=")
            if key != "default_transaction_read_only":
                await door.execute(_setting(role, name, key, value))
    await door.execute(sql.SQL("REVOKE CONNECT ON DATABASE {} FROM PUBLIC").format(sql.Identifier(name)))


def _setting(role: str | None, name: str, key: str, value: str) -> sql.Composed:
    whose = (
        sql.SQL("DATABASE {}").format(sql.Identifier(name))
        if role is None
        else sql.SQL("ROLE {} IN DATABASE {}").format(sql.Identifier(role), sql.Identifier(name))
    )
    told: sql.Composable = sql.SQL(value) if key in _LISTS else sql.Literal(value)
    return sql.SQL("ALTER {} SET {} TO {}").format(whose, sql.Identifier(*key.split(".")), told)


async def _disarm(group: str, database: DatabaseSettings, name: str) -> str:
    """Take out what would act on the world, or is only for the replica; the position of the copy, as text.

    Passwords for other servers go, so nothing that is written can reach them; Castling's own schema goes, and
    with it the watch for foreign writes and the guard of a fenced database.
    """
    inside = await _connect(database, name)
    try:
        async with inside.transaction():
            rows = await inside.execute(
                b"SELECT lsn::text FROM castling.progress WHERE stream = %s", (group,)
            )
            found = await rows.fetchone()
            if found is None:
                raise CloneFailed(
                    f"{database.dbname} has no copy of group {group} yet",
                    hint="`castling group status` tells",
                )
            await inside.execute(b"DROP SCHEMA castling CASCADE")
            await inside.execute(_DROP_MAPPINGS.encode())
            # it can be written: what a rehearsal is for is proven before it is told to be open
            await inside.execute(b"CREATE TABLE castling_rehearsal_probe (id int)")
            await inside.execute(b"INSERT INTO castling_rehearsal_probe VALUES (1)")
            await inside.execute(b"DROP TABLE castling_rehearsal_probe")
        return str(found[0])
    except psycopg.Error as error:
        raise CloneFailed(f"the copy {name} can't be made ready: {_told(error)}") from error
    finally:
        await inside.close()


_DROP_MAPPINGS = """
    DO $castling$
    DECLARE each record;
    BEGIN
        FOR each IN SELECT srvname, usename FROM pg_catalog.pg_user_mappings LOOP
            EXECUTE pg_catalog.format('DROP USER MAPPING IF EXISTS FOR %s SERVER %I',
                CASE WHEN each.usename = 'public' THEN 'PUBLIC' ELSE pg_catalog.quote_ident(each.usename) END,
                each.srvname);
        END LOOP;
    END $castling$
"""


async def _drop(door: AsyncConnection[Any], name: str) -> bool:
    rows = await door.execute(b"SELECT 1 FROM pg_database WHERE datname = %s", (name,))
    if await rows.fetchone() is None:
        return False
    await door.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
    return True


def _told(error: psycopg.Error) -> str:
    return error.diag.message_primary or str(error).splitlines()[0]


def clone_environment(database: DatabaseSettings, name: str, secrets: Path) -> dict[str, str]:
    """libpq's variables for the copy `name`. The password, where the settings have one, goes into `secrets`,
    in the form of a pgpass file."""
    host, port = database.places[0]
    found = {
        "PGHOST": host,
        "PGPORT": str(port),
        "PGDATABASE": name,
        "PGUSER": database.user,
        "PGSSLMODE": database.sslmode,
    }
    if database.sslrootcert is not None:
        found["PGSSLROOTCERT"] = database.sslrootcert
    password = password_of(database)
    if password is not None:
        escaped = password.replace("\\", "\\\\").replace(":", "\\:")
        descriptor = os.open(secrets, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(f"*:*:*:*:{escaped}\n")
        found["PGPASSFILE"] = str(secrets)
    return found
