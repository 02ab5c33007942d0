"""Captures a PostgreSQL database from its log: pgoutput's messages into journal drafts.

Messages are not looked into beyond their kind: what the server says is what the journal
holds (docs/formats/postgres-stream.md). A draft's `offset` is the end of the last commit
before it ends, because that is where the server would have to begin again.

    SESSION   the continuity token: first draft after every open
    DATA      messages; with KEYFRAME it begins with every table description known so far, so
              that decoding can begin there
    BARRIER   nothing happened for us up to `offset`; lets the source forget its idle log

Reads are paced while there is a backlog (see `replication`), immediate when idle and with
synchronous delivery.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import time
from typing import Any

from castling.config import DatabaseSettings, GroupSettings
from castling.errors import ContinuityLost, SourceUnreachable
from castling.journal.record import Draft, Flag, RecordType
from castling.kinds.postgres.catalog import Table, types_agree
from castling.kinds.postgres.connect import connect
from castling.kinds.postgres.heartbeat import PREFIX, Heartbeat
from castling.kinds.postgres.messages import pack_frames, unix_ns
from castling.kinds.postgres.publication import ensure_publication, publication_name
from castling.kinds.postgres.replication import Keepalive, ReplicationConnection, WalData
from castling.kinds.postgres.session import Session, Source, check_continuity, slot_name
from castling.kinds.postgres.sync import SyncGuard, release_commits
from castling.kinds.postgres.target import lsn_text, parse_lsn

__all__ = ["PostgresCapture", "application_name", "read_source"]

_COMMIT = struct.Struct(">cBQQq")
_MESSAGE = struct.Struct(">cBQ")
_OID = struct.Struct(">I")

#: bytes of messages in one draft, about
DRAFT_BYTES = 1 << 20
#: bytes of messages between two keyframes
KEYFRAME_BYTES = 16 << 20
#: a read that gathered more than this means a backlog
BACKLOG_BYTES = 64 << 10
#: how long messages may gather while there is a backlog, seconds
PACE_S = 0.01
#: seconds between two status updates to the source
STATUS_S = 1.0


def application_name(group: str, backup: str) -> str:
    """How the stream's connection calls itself: the name of the synchronous standby."""
    return f"castling_{group}_{backup}".replace("-", "_")


async def read_source(connection: ReplicationConnection, slot: str) -> Source:
    """What the server says of itself and of `slot`."""
    system_id, timeline, _, database = (await connection.query("IDENTIFY_SYSTEM"))[0]
    rows = await connection.query(
        "SELECT pg_catalog.current_setting('server_version_num'),"
        " CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn()"
        " ELSE pg_catalog.pg_current_wal_flush_lsn() END"
    )
    slots = await connection.query(
        "SELECT plugin, database, confirmed_flush_lsn, wal_status FROM pg_catalog.pg_replication_slots"
        f" WHERE slot_name = '{slot}'"
    )
    plugin, slot_database, confirmed, wal_status = slots[0] if slots else (None, None, None, None)
    version, flush = rows[0]
    return Source(
        system_id=str(system_id),
        timeline=int(str(timeline)),
        database=str(database),
        server_version=int(str(version)),
        flush_lsn=parse_lsn(str(flush)),
        slot_plugin=plugin,
        slot_database=slot_database,
        confirmed_lsn=None if confirmed is None else parse_lsn(confirmed),
        wal_status=wal_status,
    )


class PostgresCapture:
    """Implements `kinds.base.Capture`."""

    #: how long to wait for a walsender of ours that has not noticed its client's death, seconds
    TAKEOVER_S = 20.0

    def __init__(self, group: str, backup: str, settings: GroupSettings, database: DatabaseSettings) -> None:
        self._group = group
        self._settings = settings
        self._database = database
        self._slot = slot_name(group, backup)
        self._application = application_name(group, backup)
        self._paced = settings.delivery != "sync"
        self._connection: ReplicationConnection | None = None
        self._heartbeat = Heartbeat(database, group=group, interval_s=settings.heartbeat)
        self._guard = SyncGuard(group, backup, settings, database)
        self._background: list[asyncio.Task[None]] = []
        self._pending: list[Draft] = []
        self._messages: list[bytes] = []
        self._commits: list[int] = []
        self._size = 0
        self._flags = Flag.NONE
        self._since_keyframe = 0
        self._descriptions: dict[bytes, bytes] = {}
        self._in_transaction = False
        self._resume = 0
        self._received = 0
        self._confirmed = 0
        self._told_s = 0.0
        self._idle_told_s = 0.0
        self._backlog = False
        self._seen_ns: int | None = None
        self._frames = 0
        self._bytes = 0
        self._binary: bool | None = None

    # --- opening ------------------------------------------------------------------------------

    async def open(self, *, resume: int, session: bytes | None) -> None:
        await self.close()
        known = None if session is None else Session.decode(session)
        tables = await self._publish()
        connection = ReplicationConnection(self._database, application_name=self._application)
        try:
            await connection.open()
            source = await read_source(connection, self._slot)
            check_continuity(source, slot=self._slot, resume=resume, session=known)
            start = resume if known is not None else source.confirmed_lsn
            assert start is not None, "the continuity check lets no stream begin without a slot"
            self._binary = source.server_version >= 140000 and types_agree(tables)
            await self._start(connection, start, source.server_version)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        self._begin(start, source)
        self._background = [asyncio.create_task(self._heartbeat.run())]
        if self._settings.delivery == "sync":
            self._background.append(asyncio.create_task(self._guard.run()))

    async def _publish(self) -> list[Table]:
        connection = await connect(self._database, application_name=f"castling setup {self._group}")
        try:
            return await ensure_publication(connection, self._group, self._settings)
        finally:
            await connection.close()

    async def _start(self, connection: ReplicationConnection, start: int, version: int) -> None:
        options = [f"proto_version '1', publication_names '{publication_name(self._group)}'"]
        if version >= 140000:
            options.append(f"binary '{'true' if self._binary else 'false'}', messages 'true'")
        command = f"START_REPLICATION SLOT {self._slot} LOGICAL {lsn_text(start)} ({', '.join(options)})"
        deadline = time.monotonic() + self.TAKEOVER_S
        while True:
            try:
                await connection.start(command)
                return
            except SourceUnreachable as error:
                if "is active" not in str(error) or time.monotonic() > deadline:
                    raise
            await self._end_predecessor(connection)

    async def _end_predecessor(self, connection: ReplicationConnection) -> None:
        """A walsender whose client has died may hold the slot until its timeout: end it, if it is ours."""
        await connection.query(
            "SELECT pg_catalog.pg_terminate_backend(a.pid) FROM pg_catalog.pg_stat_activity a"
            " JOIN pg_catalog.pg_replication_slots s ON s.active_pid = a.pid"
            f" WHERE s.slot_name = '{self._slot}' AND a.application_name = '{self._application}'"
        )
        await asyncio.sleep(0.1)

    def _begin(self, start: int, source: Source) -> None:
        self._resume = self._received = self._confirmed = start
        self._descriptions.clear()
        self._messages, self._commits, self._size = [], [], 0
        self._in_transaction, self._backlog = False, False
        self._since_keyframe, self._flags = 0, Flag.NONE
        token = Session(
            system_id=source.system_id,
            timeline=source.timeline,
            database=source.database,
            slot=self._slot,
            publication=publication_name(self._group),
            server_version=source.server_version,
            start_lsn=start,
            binary=bool(self._binary),
        )
        self._pending = [Draft(RecordType.SESSION, token.encode(), start, Flag.KEYFRAME)]

    # --- reading ------------------------------------------------------------------------------

    async def read(self) -> list[Draft]:
        while not self._pending:
            await self._gather()
        drafts, self._pending = self._pending, []
        return drafts

    async def _gather(self) -> None:
        connection = self._connection
        if connection is None:
            raise SourceUnreachable("the capture is not open")
        if self._backlog and self._paced:
            await asyncio.sleep(PACE_S)
        else:
            await connection.wait(STATUS_S)
        before = self._bytes
        for item in connection.gather(DRAFT_BYTES):
            if isinstance(item, WalData):
                self._take(item.message)
            else:
                self._take_keepalive(item)
        self._backlog = self._bytes - before > BACKLOG_BYTES
        self._close_draft()
        self._tell(force=False)

    def _take(self, message: bytes) -> None:
        kind = message[0]
        self._frames += 1
        self._bytes += len(message)
        if kind == 0x42:  # B
            self._in_transaction = True
            if self._since_keyframe >= KEYFRAME_BYTES:
                self._begin_keyframe()
        elif kind in b"RY":
            self._descriptions[message[:5]] = message
        elif kind == 0x4D:  # M
            self._take_message(message)
        self._messages.append(message)
        self._size += len(message) + 4
        if kind == 0x43:  # C
            _, _, _, end, time_us = _COMMIT.unpack(message)
            self._in_transaction = False
            self._resume = end
            self._commits.append(unix_ns(time_us))
        if self._size >= DRAFT_BYTES:
            self._close_draft()

    def _begin_keyframe(self) -> None:
        """Begin a draft in which decoding can begin: every description first."""
        self._close_draft()
        self._messages = list(self._descriptions.values())
        self._size = sum(len(message) + 4 for message in self._messages)
        self._flags = Flag.KEYFRAME
        self._since_keyframe = 0

    def _take_message(self, message: bytes) -> None:
        start = _MESSAGE.size
        end = message.find(b"\0", start)
        if message[start:end] == PREFIX.encode():
            with contextlib.suppress(ValueError):
                self._seen_ns = int(message[end + 5 :])

    def _close_draft(self) -> None:
        if not self._messages:
            return
        self._pending.append(
            Draft(
                RecordType.DATA,
                pack_frames(self._messages),
                self._resume,
                self._flags,
                commits=tuple(self._commits),
            )
        )
        self._since_keyframe += self._size
        self._messages, self._commits, self._size, self._flags = [], [], 0, Flag.NONE

    def _take_keepalive(self, keepalive: Keepalive) -> None:
        """The server has nothing more for us before `wal_end`: so is the journal to say, now and then,
        or at once when the server waits for it (it does when it shuts down)."""
        self._received = max(self._received, keepalive.wal_end)
        now_s = time.monotonic()
        due = keepalive.reply or now_s - self._idle_told_s >= STATUS_S
        if due and not self._in_transaction and keepalive.wal_end > self._resume:
            self._close_draft()
            self._resume = keepalive.wal_end
            self._pending.append(Draft(RecordType.BARRIER, b"", self._resume))
            self._idle_told_s = now_s
        if keepalive.reply:
            self._tell(force=True)

    # --- acknowledging ------------------------------------------------------------------------

    async def acknowledge(self, offset: int) -> None:
        if offset > self._resume:
            raise ContinuityLost(
                f"{lsn_text(offset)} was acknowledged though only {lsn_text(self._resume)} was captured"
            )
        if offset > self._confirmed:
            self._confirmed = offset
            self._tell(force=True)
        self._guard.acknowledged(caught_up=offset == self._resume and not self._backlog)

    def _tell(self, *, force: bool) -> None:
        now_s = time.monotonic()
        if self._connection is None or not (force or now_s - self._told_s >= STATUS_S):
            return
        self._told_s = now_s
        received = max(self._received, self._resume, self._confirmed)
        self._connection.tell(received=received, confirmed=self._confirmed, now_ns=time.time_ns())

    async def stop(self) -> None:
        """The group is stopped on purpose: commits on the source must not wait for it any longer."""
        if self._settings.delivery == "sync":
            await release_commits(self._group, self._settings, self._database)

    # --- closing ------------------------------------------------------------------------------

    async def close(self) -> None:
        for task in self._background:
            task.cancel()
        if self._background:
            await asyncio.gather(*self._background, return_exceptions=True)
            self._background = []
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._pending = []

    def report(self) -> dict[str, Any]:
        flush = self._heartbeat.flush_lsn
        return {
            "source": "up" if self._heartbeat.is_up else "down",
            "slot": self._slot,
            "binary": self._binary,
            "captured_offset": self._resume or None,
            "confirmed_offset": self._confirmed or None,
            "wal_behind_bytes": None if flush is None or not self._resume else max(0, flush - self._resume),
            "heartbeat_sent_ns": self._heartbeat.sent_ns,
            "heartbeat_seen_ns": self._seen_ns,
            "frames": self._frames,
            "bytes": self._bytes,
            "sync": self._guard.report(),
        }
