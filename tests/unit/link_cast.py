"""The cast of the link's tests: a source of drafts, a receiver with a real journal, a sender's run."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from castling.config import LinkSettings
from castling.errors import SourceUnreachable
from castling.host import Host, RealHost, TlsContexts
from castling.journal.journal import Journal
from castling.journal.reader import JournalReader
from castling.journal.record import Draft, Flag, Position, Record, RecordType, Tail
from castling.link.receiver import Receiver
from castling.link.sender import HelloInfo, Sender

INSTALLATION = "0" * 32


async def until(found: Callable[[], Any], what: str, within_s: float = 20.0) -> Any:
    """Poll until `found()` is true; a test that waits in vain says for what."""
    deadline = asyncio.get_running_loop().time() + within_s
    while not (value := found()):
        assert asyncio.get_running_loop().time() < deadline, f"waited in vain: {what}"
        await asyncio.sleep(0.005)
    return value


class Source:
    """A capture over a list: draft n has offset n; what is acknowledged is forgotten, as a slot does."""

    def __init__(self) -> None:
        self.log: list[bytes] = []
        self.confirmed = 0
        self.opens: list[int] = []
        self.closed = 0
        self.fail: Exception | None = None
        self._at = 0
        self._fresh: deque[Draft] = deque()
        self._more = asyncio.Event()

    def write(self, *payloads: bytes) -> None:
        self.log.extend(payloads)
        self._more.set()

    async def open(self, *, resume: int, session: bytes | None) -> None:
        assert resume >= self.confirmed, "asked for what was acknowledged and forgotten"
        assert session is not None or resume == 0, "the tail came without its continuity token"
        self.opens.append(resume)
        self._at = resume
        self._fresh = deque([Draft(RecordType.SESSION, b"session", resume, Flag.KEYFRAME)])

    async def read(self) -> list[Draft]:
        while not self._fresh and self._at >= len(self.log):
            if self.fail is not None:
                raise self.fail
            self._more.clear()
            await self._more.wait()
        found = list(self._fresh)
        self._fresh.clear()
        while self._at < len(self.log) and len(found) < 10:
            self._at += 1
            found.append(Draft(RecordType.DATA, self.log[self._at - 1], self._at, commits=(self._at,)))
        return found

    async def acknowledge(self, offset: int) -> None:
        assert offset >= self.confirmed
        self.confirmed = offset

    async def close(self) -> None:
        self.closed += 1

    def break_off(self) -> None:
        self.fail = SourceUnreachable("the source went away")
        self._more.set()

    def report(self) -> dict[str, Any]:
        return {}


class Backup:
    """A running receiver over a real journal; counts what it was told."""

    def __init__(
        self,
        folder: Path,
        *,
        host: Host | None = None,
        tls: TlsContexts | None = None,
        journal: Journal | None = None,
        allowed: set[str] | None = None,
        installation: str = INSTALLATION,
        listen: str = "127.0.0.1:0",
    ) -> None:
        self.host = host or RealHost()
        self.folder = str(folder / "journal")
        self.journal = journal or open_journal(self.host, folder)
        self.hardened: list[Tail] = []
        self.calls: list[tuple[bytes, bytes]] = []
        self.receiver = Receiver(
            self.host,
            listen,
            tls,
            group="orders",
            installation=installation,
            node="west",
            allowed=allowed if allowed is not None else {"east"},
            journal=self.journal,
            bulk=self.bulk,
            state=lambda: {"seed": "seeded"},
            applied=lambda: None,
            on_hardened=self.hardened.append,
        )

    async def bulk(self, meta: bytes, body: AsyncIterator[bytes]) -> bytes:
        data = b"".join([chunk async for chunk in body])
        self.calls.append((meta, data))
        return b"%d" % len(data)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """The receiver's address while it runs."""
        task = asyncio.create_task(self.receiver.run())
        try:
            await until(lambda: self.receiver.address or task.done(), "the receiver to listen")
            assert self.receiver.address is not None, task.result()
            yield self.receiver.address
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            self.journal.close()

    def records(self) -> list[Record]:
        """Everything hardened, read back by the journal's reader."""
        reader = JournalReader(self.host, self.folder)
        try:
            found: list[Record] = []
            reader.seek(Position(0, 1))
            while more := reader.read(1 << 20):
                found.extend(more)
            return found
        finally:
            reader.close()

    def payloads(self) -> list[bytes]:
        return [record.payload for record in self.records() if record.type is RecordType.DATA]


def open_journal(host: Host, folder: Path, **settings: Any) -> Journal:
    (folder / "journal").mkdir(exist_ok=True)
    return Journal.open(
        host, str(folder / "journal"), group="orders", **{"segment_bytes": 4 << 20, **settings}
    )


def make_sender(
    address: str,
    *,
    host: Host | None = None,
    tls: TlsContexts | None = None,
    epoch: int = 1,
    node: str = "east",
    group: str = "orders",
    installation: str = INSTALLATION,
    settings: LinkSettings | None = None,
) -> Sender:
    hello = HelloInfo(group=group, node=node, epoch=epoch, installation=installation)
    return Sender(host or RealHost(), address, tls, hello, settings or LinkSettings())
