"""The moves by which a PostgreSQL group changes its roles. See `kinds.base.Moves` for what each promises.

    old primary: fence ─▶ mark ─┐                                   ┌─▶ (its copy is ready at `begin`)
                                ▼                                   │
    new primary:         all is applied ─▶ carry ─▶ slot of the reverse stream ─▶ open ─▶ leave

The reverse stream begins where its slot was made: behind everything that was applied, and before the first
commit of a client. So the old primary has everything before it and needs no copy; its progress is there.
What a database was made ready for stands in `castling.prepared` there.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from psycopg import AsyncConnection

from castling.config import DatabaseSettings
from castling.errors import NotDrained, RoleError, SourceUnreachable
from castling.kinds.base import Finding, Severity, Stream
from castling.kinds.postgres import progress
from castling.kinds.postgres.catalog import table_name
from castling.kinds.postgres.check import check_new_source
from castling.kinds.postgres.connect import connect
from castling.kinds.postgres.ddl_source import uninstall
from castling.kinds.postgres.fence import fence, lift, lift_in, read_fence, remove_guard
from castling.kinds.postgres.foreign_notes import unwatch
from castling.kinds.postgres.forget import forget_rows, forget_source
from castling.kinds.postgres.giving_up import drop_slot
from castling.kinds.postgres.heartbeat import PREFIX
from castling.kinds.postgres.large_object_watch import LargeObjectWatch
from castling.kinds.postgres.lsn import lsn_text, parse_lsn
from castling.kinds.postgres.neighbours import MAKE_ALONE
from castling.kinds.postgres.progress import origin_name
from castling.kinds.postgres.publication import ensure_publication, note_beginning
from castling.kinds.postgres.seed_target import CREATE_NOTES
from castling.kinds.postgres.sequence_watch import read_sequences, read_uncalled
from castling.kinds.postgres.session import slot_name

__all__ = ["PostgresMoves"]

#: `lsn`: where the stream begins; `opened_at`: since when clients may write here
_CREATE = (
    MAKE_ALONE
    + """
    CREATE SCHEMA IF NOT EXISTS castling;
    CREATE TABLE IF NOT EXISTS castling.prepared (
        stream text NOT NULL,
        backup text NOT NULL,
        epoch bigint NOT NULL,
        is_source boolean NOT NULL,
        lsn pg_lsn NOT NULL,
        tables text[] NOT NULL,
        opened_at timestamptz,
        PRIMARY KEY (stream, backup)
    );
"""
)
_BEHIND = """
SELECT schema || '.' || name || ' is ' || CASE WHEN copying THEN 'copying' ELSE state END
  FROM castling.table_positions
 WHERE stream = %s AND (state NOT IN ('live', 'ahead') OR copying) ORDER BY 1
"""
#: how long connections of ours may take to let go of a slot, seconds
_LETS_GO_S = 20.0


def _source(stream: Stream) -> DatabaseSettings:
    return stream.settings.databases[stream.settings.primary]


def _target(stream: Stream) -> DatabaseSettings:
    return stream.settings.databases[stream.backup]


@asynccontextmanager
async def _session(database: DatabaseSettings, group: str) -> AsyncIterator[AsyncConnection[Any]]:
    """A connection for a move; its errors as ours. Commits are durable here and wait for no other server."""
    connection = await connect(database, application_name=f"castling switch {group}")
    try:
        await connection.execute(b"SET synchronous_commit = local; SET search_path = pg_catalog")
        await connection.execute(b"SET lock_timeout = '5s'; SET client_min_messages = error")
        yield connection
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        raise SourceUnreachable(f"the database could not go on: {error}") from error
    except psycopg.Error as error:
        raise RoleError(f"the database refused: {error.diag.message_primary or error}") from error
    finally:
        await connection.close()


class PostgresMoves:
    """Implements `kinds.base.Moves`."""

    # --- looking ------------------------------------------------------------------------------

    async def switchable(self, stream: Stream) -> list[Finding]:
        settings, found = stream.settings, []
        for key in ("rename", "rows", "columns"):
            if getattr(settings, key):
                message = f"`{key}` makes the copy another database than the original: it can't become one"
                found.append(Finding(Severity.REFUSED, "group", "not-switchable", message))
        if not found:
            found = await check_new_source(stream)
        return found

    async def fenced(self, stream: Stream) -> bool:
        async with _session(_source(stream), stream.group) as connection:
            return (await read_fence(connection, stream.group, stream.settings)).is_up

    async def prepared(self, stream: Stream) -> tuple[int, bool, bool] | None:
        async with _session(_source(stream), stream.group) as connection:
            await connection.execute(_CREATE.encode())
            cursor = await connection.execute(
                "SELECT epoch, is_source, opened_at IS NOT NULL FROM castling.prepared"
                " WHERE stream = %s ORDER BY epoch DESC LIMIT 1",
                (stream.group,),
            )
            row = await cursor.fetchone()
            return None if row is None else (int(row[0]), bool(row[1]), bool(row[2]))

    # --- the old primary ----------------------------------------------------------------------

    async def fence(
        self, stream: Stream, *, epoch: int, to: str, grace_s: float, ending: bool
    ) -> dict[str, Any]:
        return await fence(
            stream.group,
            stream.settings,
            _source(stream),
            epoch=epoch,
            primary=to,
            grace_s=grace_s,
            ending=ending,
        )

    async def unfence(self, stream: Stream) -> None:
        await lift(stream.group, _source(stream))
        async with _session(_source(stream), stream.group) as connection:
            cursor = await connection.execute(b"SELECT pg_catalog.to_regclass('castling.fence') IS NOT NULL")
            row = await cursor.fetchone()
            if row is not None and row[0]:
                await remove_guard(connection, stream.group, within_s=2)

    async def mark(self, stream: Stream) -> tuple[int, dict[str, Any]]:
        async with _session(_source(stream), stream.group) as connection:
            if not (await read_fence(connection, stream.group, stream.settings)).is_up:
                raise RoleError("the source is not fenced: there is no last position of it")
            sequences = await read_sequences(connection, stream.settings)
            taken = [each for each in sequences if each.last is not None]
            taken += await read_uncalled(
                connection, [each for each in sequences if each.last is None and each.readable]
            )
            told = [[each.schema, each.name, each.last, each.called] for each in taken]
            await self._tell_large_objects(connection, stream)
            cursor = await connection.execute(
                "SELECT (pg_catalog.pg_logical_emit_message(true, %s, %s::text)"
                " - '0/0'::pg_catalog.pg_lsn)::int8",
                (PREFIX, str(time.time_ns())),
            )
            row = await cursor.fetchone()
            assert row is not None
            return int(row[0]), {"sequences": told}

    async def _tell_large_objects(self, connection: AsyncConnection[Any], stream: Stream) -> None:
        """All of them once more, before the marker: what the last look of the stream has missed."""
        if stream.settings.large_objects == "ignore":
            return
        cursor = await connection.execute(b"SELECT EXISTS (SELECT FROM pg_largeobject_metadata)")
        row = await cursor.fetchone()
        if row is not None and row[0]:
            await LargeObjectWatch(stream.group, stream.settings, _source(stream)).look_once()

    # --- the new primary ----------------------------------------------------------------------

    async def settled(self, stream: Stream) -> None:
        async with _session(_target(stream), stream.group) as connection:
            cursor = await connection.execute(_BEHIND, (stream.group,))
            behind = [str(said) for (said,) in await cursor.fetchall()]
            if behind:
                raise NotDrained(
                    f"not everything that was received is applied: {', '.join(behind[:5])}",
                    hint=f"`castling group release {stream.group}` or `resync`, then begin again",
                )

    async def carry(self, stream: Stream, final: dict[str, Any]) -> dict[str, Any]:
        sequences = final.get("sequences") or []
        async with _session(_target(stream), stream.group) as connection:
            cursor = await connection.execute(
                "SELECT t.schema, t.name, c.oid IS NOT NULL,"
                " CASE WHEN c.oid IS NOT NULL THEN pg_catalog.setval(c.oid, t.last, t.called) END"
                " FROM unnest(%s::text[], %s::text[], %s::bigint[], %s::boolean[])"
                " t(schema, name, last, called)"
                " LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = t.schema"
                " LEFT JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = t.name"
                " AND c.relkind = 'S'",
                tuple([each[place] for each in sequences] for place in range(4)),
            )
            rows = await cursor.fetchall()
        missing = [table_name(schema, name) for schema, name, is_there, _ in rows if not is_there]
        return {"sequences": len(rows) - len(missing), "missing": missing}

    async def prepare_source(self, stream: Stream, *, epoch: int) -> dict[str, Any]:
        name = slot_name(stream.group, stream.backup)
        async with _session(_source(stream), stream.group) as connection:
            await connection.execute(_CREATE.encode())
            found = await self._begun(connection, stream, epoch, name)
            if found is not None:
                return found
            await connection.execute(
                "DELETE FROM castling.prepared WHERE stream = %s AND backup = %s",
                (stream.group, stream.backup),
            )
            await drop_slot(connection, name, within_s=_LETS_GO_S)
            try:
                tables = await ensure_publication(connection, name, stream.settings)
            except psycopg.errors.InsufficientPrivilege as error:
                raise RoleError(f"the reverse stream can't begin: {error.diag.message_primary}") from error
            lsn = await _make_slot(connection, name)
            await note_beginning(connection, name, lsn)
            names = [str(table) for table in tables]
            await connection.execute(
                "INSERT INTO castling.prepared (stream, backup, epoch, is_source, lsn, tables)"
                " VALUES (%s, %s, %s, true, %s::pg_catalog.pg_lsn, %s)",
                (stream.group, stream.backup, epoch, lsn_text(lsn), names),
            )
            return {"lsn": lsn_text(lsn), "tables": names}

    async def _begun(
        self, connection: AsyncConnection[Any], stream: Stream, epoch: int, name: str
    ) -> dict[str, Any] | None:
        """The beginning that was made before for this very epoch, if it still stands."""
        cursor = await connection.execute(
            "SELECT p.lsn::text, p.tables FROM castling.prepared p"
            " JOIN pg_catalog.pg_replication_slots s ON s.slot_name = %s"
            " JOIN pg_catalog.pg_publication u ON u.pubname = %s"
            " WHERE p.stream = %s AND p.backup = %s AND p.epoch = %s AND p.is_source",
            (name, name, stream.group, stream.backup, epoch),
        )
        row = await cursor.fetchone()
        return None if row is None else {"lsn": row[0], "tables": row[1]}

    async def prepare_target(self, stream: Stream, *, epoch: int, begin: dict[str, Any]) -> None:
        group = stream.group
        async with _session(_target(stream), group) as connection:
            await connection.execute((_CREATE + CREATE_NOTES).encode())
            async with connection.transaction():
                await forget_rows(connection, group)
                await progress.write(connection, group, parse_lsn(begin["lsn"]), None)
                await connection.execute(
                    "INSERT INTO castling.seed (stream, tables, created, finished_at, naming)"
                    " VALUES (%s, %s, false, pg_catalog.now(), '')",
                    (group, sorted(begin["tables"])),
                )
                await connection.execute(
                    "INSERT INTO castling.prepared (stream, backup, epoch, is_source, lsn, tables)"
                    " VALUES (%s, %s, %s, false, %s::pg_catalog.pg_lsn, %s)",
                    (group, stream.backup, epoch, begin["lsn"], begin["tables"]),
                )

    async def unprepare(self, stream: Stream, *, source: bool) -> None:
        async with _session(_source(stream) if source else _target(stream), stream.group) as connection:
            await connection.execute(_CREATE.encode())
            if source:
                name = slot_name(stream.group, stream.backup)
                await drop_slot(connection, name, within_s=_LETS_GO_S)
                await connection.execute(f"DROP PUBLICATION IF EXISTS {name}".encode())
                await uninstall(connection, name)
                await connection.execute(
                    "DELETE FROM castling.prepared WHERE stream = %s AND is_source", (stream.group,)
                )
                return
            cursor = await connection.execute(
                "SELECT EXISTS (SELECT FROM castling.prepared WHERE stream = %s AND NOT is_source)",
                (stream.group,),
            )
            row = await cursor.fetchone()
            if row is not None and row[0]:
                async with connection.transaction():
                    await forget_rows(connection, stream.group)

    async def open(self, stream: Stream, *, epoch: int) -> None:
        group = stream.group
        async with _session(_source(stream), group) as connection:
            await connection.execute(_CREATE.encode())
            async with connection.transaction():
                # what is prepared for the reverse streams stays; what was noted as a target goes
                cursor = await connection.execute(
                    "SELECT * FROM castling.prepared WHERE stream = %s AND is_source AND epoch = %s",
                    (group, epoch),
                )
                kept = await cursor.fetchall()
                if not kept:
                    raise RoleError(
                        f"nothing is prepared for epoch {epoch}: there would be no reverse stream"
                    )
                await _silence(connection, group)
                await forget_rows(connection, group)
                for row in kept:
                    await connection.execute(
                        "INSERT INTO castling.prepared VALUES (%s, %s, %s, %s, %s, %s, pg_catalog.now())",
                        row[:6],
                    )
                await lift_in(connection, group)

    async def leave(self, stream: Stream, *, source: bool) -> None:
        """`stream`: with this node as its source, whether it is the primary or was."""
        if source:
            await forget_source(stream)
            return
        async with _session(_source(stream), stream.group) as connection:
            await connection.execute(_CREATE.encode())
            await unwatch(connection, stream.group)
            await connection.execute(
                "SELECT pg_catalog.pg_replication_origin_drop(roname)"
                " FROM pg_catalog.pg_replication_origin WHERE roname = %(name)s"
                " OR starts_with(roname, %(name)s || ':')",
                {"name": origin_name(stream.group)},
            )
            cursor = await connection.execute(b"SELECT pg_catalog.to_regclass('castling.fence') IS NOT NULL")
            row = await cursor.fetchone()
            if row is not None and row[0]:
                await remove_guard(connection, stream.group)


async def _make_slot(connection: AsyncConnection[Any], name: str) -> int:
    """Make the slot; where it begins. Standbys of the server that are set to keep it in step may do so."""
    failover = ", failover => true" if connection.info.server_version >= 170000 else ""
    cursor = await connection.execute(
        "SELECT lsn::text FROM pg_catalog.pg_create_logical_replication_slot"
        f"(%s, 'pgoutput'{failover})".encode(),
        (name,),
    )
    row = await cursor.fetchone()
    assert row is not None
    return parse_lsn(row[0])


async def _silence(connection: AsyncConnection[Any], group: str) -> None:
    """What clients write from now on is no foreign write; the triggers that would note it are taken later."""
    cursor = await connection.execute(b"SELECT pg_catalog.to_regclass('castling.watch_off') IS NOT NULL")
    row = await cursor.fetchone()
    if row is not None and row[0]:
        await connection.execute(
            "INSERT INTO castling.watch_off VALUES (%s) ON CONFLICT DO NOTHING", (group,)
        )
