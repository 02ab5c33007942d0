"""Captures a PostgreSQL database from its log: the server's messages, made into drafts by `drafts`.

Before the first message it is proven that the source is the one the journal was written from
and can give what follows the journal's end (`session`, `publication`); when that can't be
proven the stream ends loudly. What is acknowledged to the source never exceeds what the
far journal holds durably: so the source forgets nothing too early, and a slot that stands
further than the journal is known to be another.

Reads are paced while there is a backlog (see `replication`), immediate when idle and with
synchronous delivery.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import msgspec
import psycopg

from castling.config import DatabaseSettings, GroupSettings
from castling.errors import CastlingError, ContinuityLost, NotReplicable, SourceUnreachable
from castling.journal.record import Draft, Flag, RecordType
from castling.kinds.postgres.catalog import Table, is_left_behind, read_tables, types_agree
from castling.kinds.postgres.connect import connect, scrubbed
from castling.kinds.postgres.copystream import Keepalive
from castling.kinds.postgres.ddl_watch import DdlWatch
from castling.kinds.postgres.definition_watch import DefinitionWatch
from castling.kinds.postgres.drafts import DRAFT_BYTES, DraftMaker
from castling.kinds.postgres.heartbeat import Heartbeat
from castling.kinds.postgres.large_object_watch import LargeObjectWatch
from castling.kinds.postgres.lsn import lsn_text
from castling.kinds.postgres.narrowing import narrowing_digest
from castling.kinds.postgres.pacing import Pacing
from castling.kinds.postgres.publication import published, read_published
from castling.kinds.postgres.replication import ReplicationConnection
from castling.kinds.postgres.sequence_watch import SequenceWatch
from castling.kinds.postgres.session import (
    Published,
    Session,
    Source,
    check_continuity,
    check_published,
    remembered,
    slot_name,
)
from castling.kinds.postgres.slot_watch import SlotWatch
from castling.kinds.postgres.source_look import read_source, take_memory
from castling.kinds.postgres.standby import release_commits
from castling.kinds.postgres.sync import SyncGuard
from castling.observe import events
from castling.together import run_together

__all__ = ["PostgresCapture"]

#: seconds between two status updates to the source
STATUS_S = 1.0
#: seconds between two looks at what is published
WATCH_S = 30.0
#: how long a source that shuts down may wait for the backup to acknowledge, seconds
SHUTDOWN_S = 5.0
#: one that shuts down asks again as soon as it is answered; one that asks less often than this only looks
#: whether we are there, seconds
_ASKS_AGAIN_S = 2.0
#: bytes of drafts given at once, about: a message of hundreds of megabytes is many drafts
_READ_BYTES = 16 << 20

_OBJECT_IN_USE = "55006"


class PostgresCapture:
    """Implements `kinds.base.Capture`."""

    #: how long to wait for a walsender of ours that has not noticed its client's death, seconds
    TAKEOVER_S = 20.0
    #: how long one question to the source's catalog may take, seconds
    LOOK_S = 60

    def __init__(self, group: str, backup: str, settings: GroupSettings, database: DatabaseSettings) -> None:
        self._group = group
        self._settings = settings
        self._database = database
        #: the slot, the publication and the synchronous standby all have the stream's name
        self._name = slot_name(group, backup)
        self._is_sync = settings.delivery == "sync"
        self._connection: ReplicationConnection | None = None
        self._heartbeat = Heartbeat(database, group=group, interval_s=settings.heartbeat)
        self._sequences = SequenceWatch(group, settings, database)
        self._large_objects = LargeObjectWatch(group, settings, database)
        self._definitions = DefinitionWatch(group, settings, database)
        self._ddl = DdlWatch(group, self._name, settings)
        self._log_kept = SlotWatch(group, self._name, settings, database)
        self._guard = SyncGuard(group, backup, settings, database)
        self._background: list[asyncio.Task[None]] = []
        self._log = events("capture").bind(group=group, backup=backup)
        self._failure: CastlingError | None = None
        self._maker = DraftMaker(resume=0, begins=0, any_commit=True)
        self._session: Session | None = None
        self._pending: list[Draft] = []
        self._begins = 0
        self._received = 0
        self._confirmed = 0
        self._told_s = 0.0
        #: since when the server has asked for an answer again and again, with nothing new between
        self._asked_s: float | None = None
        self._asked_last = (0.0, 0)
        self._pacing = Pacing()
        self._gathered_s = 0.0
        self._seen_ns: int | None = None
        self._frames = 0
        self._bytes = 0
        self._unprotected: list[str] = []
        self._left_behind: list[str] = []

    # --- opening ------------------------------------------------------------------------------

    async def open(self, *, resume: int, session: bytes | None) -> None:
        await self.close()
        known = None if session is None else Session.decode(session)
        connection = ReplicationConnection(self._database, application_name=self._name)
        try:
            await connection.open()
            before = None if known is None else known.timeline
            source = await read_source(connection, self._name, timeline_before=before)
            if source.server_version < 140000:
                raise NotReplicable("PostgreSQL 14 is the oldest source: older ones send no messages")
            check_continuity(source, slot=self._name, resume=resume, session=known)
            if before is not None and source.timeline != before:
                self._log.warning(
                    "capture.promotion_followed",
                    timeline=source.timeline,
                    before=before,
                    left_at=lsn_text(source.left_at or 0),
                    resume=lsn_text(resume),
                )
            await self._let_standbys_keep(connection, source)
            found, tables = await self._look(known)
            begins = source.confirmed_lsn
            assert begins is not None, "the continuity check lets no stream begin without a slot"
            start = begins if known is None else resume
            token = self._token(source, found, start=start, binary=types_agree(tables))
            await take_memory(connection, self._settings.decoding_memory)
            await self._start(connection, binary=token.binary)
        except BaseException:
            connection.close()
            raise
        rests = known is not None and known.rests and known.start_lsn == resume
        last_commit = known.last_commit if known is not None and rests else None
        any_commit = start == source.created_lsn or (rests and last_commit is None)
        self._large_objects.forget_after(0 if known is None else resume)
        self._begin(connection, token, begins=begins, any_commit=any_commit, last_commit=last_commit)

    async def _let_standbys_keep(self, connection: ReplicationConnection, source: Source) -> None:
        """A slot that was made before the server was 17, or by a release that did not ask for it."""
        if source.server_version < 170000 or source.slot_failover:
            return
        with contextlib.suppress(SourceUnreachable):  # a walsender still holds it: the next opening does it
            await connection.query(f"ALTER_REPLICATION_SLOT {self._name} (FAILOVER true)")

    async def _look(self, known: Session | None) -> tuple[Published, list[Table]]:
        """What is published, proven to be what `known` says; and the published tables."""
        asked = known.tables if known is not None else []
        async with asyncio.timeout(self.TAKEOVER_S):
            connection = await connect(self._database, application_name=f"castling setup {self._group}")
        try:
            await connection.execute(f"SET statement_timeout = '{self.LOOK_S}s'".encode())
            async with self._ddl.looking(connection):
                found = await read_published(connection, self._name, asked, narrowing_digest(self._settings))
                tables = await read_tables(connection, measured=False)
                if known is not None:
                    check_published(found, publication=self._name, session=known)
            await self._ddl.catch_up(connection, tables, found)
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            message = f"the source could not say what is published: {error}"
            raise SourceUnreachable(scrubbed(message, self._database)) from None
        finally:
            await connection.close()
        listed = set(found.tables)
        missing = [str(table) for table in published(tables, self._settings) if table.oid not in listed]
        if missing and missing != self._unprotected:
            self._log.warning("capture.tables_unprotected", tables=missing[:20], count=len(missing))
        self._unprotected = missing
        self._left_behind = [str(table) for table in tables if is_left_behind(table, self._settings)]
        return found, [table for table in tables if table.oid in listed]

    def _token(self, source: Source, found: Published, *, start: int, binary: bool) -> Session:
        tables, digest = remembered(found.tables)
        return Session(
            system_id=source.system_id,
            timeline=source.timeline,
            database=source.database,
            slot=self._name,
            publication=self._name,
            server_version=source.server_version,
            start_lsn=start,
            binary=binary,
            created_lsn=source.created_lsn,
            tables=tables,
            tables_digest=digest,
        )

    async def _start(self, connection: ReplicationConnection, *, binary: bool) -> None:
        """Begin at what the slot has confirmed: the part that the journal holds already is the proof
        that the source's history is the journal's (see `drafts`)."""
        command = (
            f"START_REPLICATION SLOT {self._name} LOGICAL 0/0 (proto_version '2', streaming 'on',"
            f" publication_names '{self._name}', binary '{'true' if binary else 'false'}', messages 'true')"
        )
        deadline = time.monotonic() + self.TAKEOVER_S
        while True:
            try:
                await connection.start(command)
                return
            except SourceUnreachable as error:
                if error.context.get("sqlstate") != _OBJECT_IN_USE or time.monotonic() > deadline:
                    raise
            await self._end_predecessor(connection)

    async def _end_predecessor(self, connection: ReplicationConnection) -> None:
        """A walsender whose client has died may hold the slot until its timeout: end it, if it is ours."""
        await connection.query(
            "SELECT pg_catalog.pg_terminate_backend(a.pid) FROM pg_catalog.pg_stat_activity a"
            " JOIN pg_catalog.pg_replication_slots s ON s.active_pid = a.pid"
            f" WHERE s.slot_name = '{self._name}' AND a.application_name = '{self._name}'"
        )
        await asyncio.sleep(0.1)

    def _begin(
        self,
        connection: ReplicationConnection,
        token: Session,
        *,
        begins: int,
        any_commit: bool,
        last_commit: int | None,
    ) -> None:
        self._connection, self._session, self._failure = connection, token, None
        start = token.start_lsn
        self._maker = DraftMaker(resume=start, begins=begins, any_commit=any_commit, last_commit=last_commit)
        self._maker.trusts = self._ddl.trusts
        self._begins = self._received = begins
        self._confirmed = start
        self._asked_s, self._pacing = None, Pacing()
        self._pending = [Draft(RecordType.SESSION, token.encode(), start, Flag.KEYFRAME)]
        looks = (self._watch(), self._sequences.run(), self._large_objects.run(), self._definitions.run())
        beside = (self._heartbeat.run(), *looks)
        self._background = [asyncio.create_task(task) for task in beside]

    async def _watch(self) -> None:
        """Look from time to time whether what should be published still is."""
        while self._failure is None:
            await asyncio.sleep(WATCH_S)
            try:
                await self._look(self._session)
            except ContinuityLost as error:
                self._failure = error
            except (CastlingError, psycopg.Error, TimeoutError) as error:
                self._log.info("capture.look_failed", error=str(error))  # the stream itself will tell

    # --- reading ------------------------------------------------------------------------------

    async def read(self) -> list[Draft]:
        # not even the session is told to the journal before the source is proven to be the one of it
        while not (self._pending and self._maker.proven):
            if self._failure is not None:
                raise self._failure
            for task in self._background:
                if task.done():
                    task.result()  # it works until it is cancelled, or has failed
            await self._gather()
        size = count = 0
        while count < len(self._pending) and size < _READ_BYTES:
            size += len(self._pending[count].payload)
            count += 1
        drafts, self._pending = self._pending[:count], self._pending[count:]
        return drafts

    async def _gather(self) -> None:
        connection = self._connection
        if connection is None:
            raise SourceUnreachable("the capture is not open")
        maker = self._maker
        if maker.is_unspooling:
            maker.unspool(DRAFT_BYTES)
        elif self._pacing.pause_s and not self._is_sync:
            await asyncio.sleep(self._pacing.pause_s)
        else:
            await connection.wait(STATUS_S)
        if not maker.is_full:
            self._pump(connection)
        self._pending += maker.ready()
        self._tell(force=False)

    def _pump(self, connection: ReplicationConnection) -> None:
        """Take what the server has sent so far."""
        maker = self._maker
        frames, before = maker.frames, maker.bytes
        while (keepalive := connection.pump(maker, DRAFT_BYTES - (maker.bytes - before))) is not None:
            self._take_keepalive(keepalive)
        now_s = time.monotonic()
        self._pacing.gathered(maker.bytes - before, now_s - self._gathered_s)
        self._gathered_s = now_s
        self._frames += maker.frames - frames
        self._bytes += maker.bytes - before
        self._seen_ns = max(filter(None, (self._seen_ns, maker.heartbeat_ns)), default=None)

    def _take_keepalive(self, keepalive: Keepalive) -> None:
        """The server has nothing more for us before `wal_end`. When it asks for an answer it mostly
        shuts down, and waits until that is safe on the backup; a while, then it is let go."""
        maker = self._maker
        self._received = max(self._received, keepalive.wal_end)
        self._nudge_if_due()
        if not keepalive.reply:
            return
        now_s = time.monotonic()
        last_s, frames = self._asked_last
        self._asked_last = (now_s, maker.frames)
        if self._asked_s is None or maker.frames != frames or now_s - last_s > _ASKS_AGAIN_S:
            self._asked_s = now_s
        elif now_s - self._asked_s > SHUTDOWN_S:
            raise SourceUnreachable("the source shuts down and is not kept waiting for the backup")
        between = not maker.in_transaction and not maker.is_unspooling
        if between and keepalive.wal_end > maker.resume and self._session is not None:
            token = msgspec.structs.replace(
                self._session, start_lsn=keepalive.wal_end, rests=True, last_commit=maker.last_commit
            )
            maker.rest(token.encode(), keepalive.wal_end)
        self._tell(force=True)

    def _nudge_if_due(self) -> None:
        """With synchronous delivery, commits that are not ours to carry (of other tables, other databases)
        wait for us too. A heartbeat behind them lets them go at once."""
        maker = self._maker
        between = not maker.in_transaction and not maker.is_unspooling
        if self._is_sync and between and self._received > maker.resume == self._confirmed:
            self._heartbeat.nudge()

    # --- acknowledging ------------------------------------------------------------------------

    async def acknowledge(self, offset: int) -> None:
        resume = self._maker.resume
        assert offset <= resume, "more was acknowledged than was captured"
        if offset > self._confirmed:
            self._confirmed = offset
            self._asked_s = None
            self._tell(force=True)
        self._nudge_if_due()
        self._guard.acknowledged(caught_up=offset == resume and not self._pacing.is_behind)

    def _tell(self, *, force: bool) -> None:
        now_s = time.monotonic()
        if self._connection is None or not (force or now_s - self._told_s >= STATUS_S):
            return
        self._told_s = now_s
        # what is confirmed is forgotten by the source: nothing before the proof that it is the right one
        confirmed = self._confirmed if self._maker.proven else self._begins
        # a commit with synchronous_commit = remote_write waits for what is "received": that is hardened too
        received = confirmed if self._is_sync else max(self._received, confirmed)
        self._connection.tell(received=received, confirmed=confirmed, now_ns=time.time_ns())

    def waiting_bytes(self) -> int | None:
        return self._log_kept.waiting_bytes

    async def guard(self) -> None:
        await run_together(self._guard.run(), self._log_kept.run())

    async def leave(self) -> None:
        if self._is_sync and self._settings.on_sync_loss == "degrade":
            await release_commits(self._group, self._settings.backups, self._database)

    # --- closing ------------------------------------------------------------------------------

    async def close(self) -> None:
        background, self._background = self._background, []
        for task in background:
            task.cancel()
        if background:
            await asyncio.wait(background)
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._maker.close()
        self._pending = []

    def _warnings(self) -> list[dict[str, Any]]:
        if not self._unprotected:
            return []
        shown = ", ".join(self._unprotected[:5]) + (", …" if len(self._unprotected) > 5 else "")
        return [
            {
                "code": "tables-unprotected",
                "message": f"{len(self._unprotected)} of the group's tables are not carried: {shown}",
                "hint": "they were made while the group ran: make them on the target too, then"
                " `castling group start GROUP --reseed`, or exclude them",
            }
        ]

    def _all_warnings(self) -> list[dict[str, Any]]:
        beside = self._sequences.warnings() + self._large_objects.warnings()
        watched = self._guard.warnings() + self._log_kept.warnings() + self._ddl.warnings()
        return watched + self._warnings() + beside

    def report(self) -> dict[str, Any]:
        flush, resume = self._heartbeat.flush_lsn, self._maker.resume
        return {
            "source": "up" if self._heartbeat.is_up else "down",
            "warnings": self._all_warnings(),
            "definitions": self._definitions.report(),
            "beside": {
                "sequences": self._sequences.report(),
                "large objects": self._large_objects.report(),
            },
            "slot": self._name,
            "binary": None if self._session is None else self._session.binary,
            "captured_offset": resume or None,
            "confirmed_offset": self._confirmed or None,
            "wal_behind_bytes": None if flush is None or not resume else max(0, flush - resume),
            "wal": self._log_kept.report(),
            "heartbeat_sent_ns": self._heartbeat.sent_ns,
            "heartbeat_seen_ns": self._seen_ns,
            "frames": self._frames,
            "bytes": self._bytes,
            "unprotected": self._unprotected,
            "left_behind": self._left_behind,
            "spool": {
                "transactions": self._maker.spool.transactions,
                "committed": self._maker.spool.committed,
                "memory_bytes": self._maker.spool.in_memory,
                "disk_bytes": self._maker.spool.on_disk,
            },
            "sync": self._guard.report(),
        }
