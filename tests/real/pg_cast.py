"""The cast of the PostgreSQL tests: a database on each server, settings, a journal in memory.

The journal here is a list of records: what a capture gives is given positions and kept, so that a
test can end it anywhere, decode it from anywhere and apply it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from castling.config import (
    Config,
    DatabaseSettings,
    GroupSettings,
    InstallationSettings,
    NodeSettings,
    SeedSettings,
)
from castling.journal.record import Draft, Position, Record, RecordType
from castling.kinds.base import Abandon, BulkCall, Capture, Commit, Decoder, Piece, SeedTarget, Stream
from castling.kinds.postgres.decoder import PostgresDecoder
from castling.kinds.postgres.kind import KIND
from castling.testing.servers import EmbeddedServer

__all__ = ["BulkTo", "Journal", "Pair", "captured", "database_pair", "until"]

GROUP = "bank"


async def until(condition: Callable[[], bool | Awaitable[bool]], *, within_s: float = 60.0) -> None:
    """Poll until it is true; AssertionError when it does not become so."""
    deadline = time.monotonic() + within_s
    while True:
        found = condition()
        if isinstance(found, Awaitable):
            found = await found
        if found:
            return
        assert time.monotonic() < deadline, "it did not happen within its deadline"
        await asyncio.sleep(0.02)


class Pair:
    """One database on the source server and one on the target server."""

    def __init__(self, east: EmbeddedServer, west: EmbeddedServer, name: str, folder: Path) -> None:
        self.east, self.west, self.name = east, west, name
        self.password_file = folder / "password"
        self.password_file.write_text(EmbeddedServer.PASSWORD + "\n")
        self.password_file.chmod(0o600)

    def source(self, sql: str) -> list[tuple[Any, ...]]:
        return self.east.execute(sql, self.name)

    def target(self, sql: str) -> list[tuple[Any, ...]]:
        return self.west.execute(sql, self.name)

    def database(self, server: EmbeddedServer) -> DatabaseSettings:
        return DatabaseSettings(
            host="127.0.0.1",
            port=server.port,
            dbname=self.name,
            user=EmbeddedServer.USER,
            password_file=str(self.password_file),
        )

    def stream(
        self, *, seed: SeedSettings | None = None, postgres_bin: str | None = None, **settings: Any
    ) -> Stream:
        """The stream of a group of this pair. Its name is the database's, because slots are a server's."""
        settings.setdefault("on_error", "stop")  # a test that means to hold says so
        group = GroupSettings(
            kind="postgres",
            primary="east",
            backups=["west"],
            databases={"east": self.database(self.east), "west": self.database(self.west)},
            heartbeat=settings.pop("heartbeat", 0.2),
            seed=seed or SeedSettings(),
            **settings,
        )
        node = NodeSettings(api="127.0.0.1:1", link="127.0.0.1:2", postgres_bin=postgres_bin)
        nodes = {"east": node, "west": node}
        config = Config(
            installation=InstallationSettings(name="test"), nodes=nodes, groups={self.name: group}
        )
        return Stream(self.name, "west", group, config)

    def end_of_log(self) -> int:
        return int(self.source("SELECT (pg_current_wal_flush_lsn() - '0/0')::int8")[0][0])


@contextlib.contextmanager
def database_pair(east: EmbeddedServer, west: EmbeddedServer, folder: Path) -> Iterator[Pair]:
    """A pair of fresh databases, removed afterwards with what was left on the servers."""
    name = f"db_{uuid.uuid4().hex[:8]}"
    for server in dict.fromkeys((east, west)):
        server.execute(f"CREATE DATABASE {name}")
    try:
        yield Pair(east, west, name, folder)
    finally:
        east.execute("ALTER SYSTEM RESET synchronous_standby_names")
        east.execute("SELECT pg_reload_conf()")
        for server in dict.fromkeys((east, west)):
            server.execute(
                "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots"
                f" WHERE database = '{name}' AND active_pid IS NOT NULL"
            )
            deadline = time.monotonic() + 10
            while (
                server.execute(f"SELECT 1 FROM pg_replication_slots WHERE database = '{name}' AND active")
                and time.monotonic() < deadline
            ):
                time.sleep(0.02)
            server.execute(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
                f" WHERE database = '{name}'"
            )
            server.execute(f"DROP DATABASE {name} WITH (FORCE)")
            server.execute(
                "SELECT pg_replication_origin_drop(roname) FROM pg_replication_origin"
                f" WHERE roname LIKE 'castling_{name}%'"
            )


class Journal:
    """What a remote journal would hold, in memory."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def add(self, drafts: list[Draft]) -> None:
        for draft in drafts:
            assert draft.offset >= self.offset, "a draft's offset went back"
            self.records.append(
                Record(
                    Position(1, len(self.records) + 1),
                    draft.type,
                    draft.flags,
                    draft.object,
                    time.time_ns(),
                    draft.offset,
                    draft.length,
                    draft.payload,
                )
            )

    @property
    def offset(self) -> int:
        return self.records[-1].offset if self.records else 0

    @property
    def session(self) -> bytes | None:
        found = [record.payload for record in self.records if record.type is RecordType.SESSION]
        return found[-1] if found else None

    async def read_until(self, capture: Capture, offset: int, *, within_s: float = 60.0) -> None:
        """Read until everything up to source position `offset` is here."""
        async with asyncio.timeout(within_s):
            while self.offset < offset:
                self.add(await capture.read())

    def commits(self, *, start: int = 0, decoder: Decoder | None = None) -> list[tuple[Commit, list[Any]]]:
        """The transactions as an apply would see them: from record `start` on, each once.

        What the record stream repeats (a transaction that a new session sends again) is skipped by
        progress, as the apply session does.
        """
        decoder = decoder or PostgresDecoder()
        found: list[tuple[Commit, list[Any]]] = []
        open_changes: list[Any] = []
        progress = 0
        for record in self.records[start:]:
            for piece in decoder.feed(record):
                if isinstance(piece, Abandon):
                    open_changes = []
                    continue
                assert isinstance(piece, Piece)
                if piece.offset < progress:
                    continue
                open_changes.extend(piece.changes)
                if piece.commit is not None:
                    found.append((piece.commit, open_changes))
                    progress, open_changes = piece.commit.offset, []
        return found


@contextlib.asynccontextmanager
async def captured(stream: Stream, journal: Journal | None = None) -> AsyncIterator[Any]:
    """An open capture that goes on where `journal` ends."""
    capture = KIND.capture(stream)
    journal = journal or Journal()
    guarding = asyncio.create_task(capture.guard())
    try:
        await capture.open(resume=journal.offset, session=journal.session)
        yield capture
    finally:
        guarding.cancel()
        await asyncio.wait((guarding,))
        await capture.close()


class BulkTo:
    """A bulk channel without a network: calls go straight to the seed target."""

    def __init__(self, target: SeedTarget) -> None:
        self._target = target

    async def open(self) -> BulkCall:
        async def call(meta: bytes, body: AsyncIterator[bytes] | None) -> bytes:
            return await self._target.handle(meta, body if body is not None else _nothing())

        return call

    async def close(self) -> None:
        return None


async def _nothing() -> AsyncIterator[bytes]:
    nothing: tuple[bytes, ...] = ()
    for part in nothing:
        yield part
