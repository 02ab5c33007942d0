"""The receiving side of a link: who may send, one stream at a time, bulk calls beside it.

It works whether or not anything is applied. What comes over the network is taken for
hostile: nothing is read but HELLO before it is verified, every length has a limit, and
whatever breaks the protocol ends its own connection and nothing else.

Invariants: two streams never append at once, for a new one is welcomed only after the
one before it has ended; a WELCOME tells a tail that is durable; a newer epoch is durable
before its first record is taken.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from castling.errors import CastlingError, JournalError, LinkError, LinkRefused
from castling.host import Connection, Host, Listener, TlsContexts
from castling.journal.journal import Journal
from castling.journal.marks import Mark
from castling.journal.record import Tail
from castling.link.bulk import BulkHandler, serve_bulk
from castling.link.channel import Channel
from castling.link.frames import FrameType, Hello, Purpose, decode, encode
from castling.link.handshake import HELLO_WITHIN_S, verify, welcome
from castling.link.intake import Hardening, Intake
from castling.observe import Throughput
from castling.together import run_together

__all__ = ["Receiver"]


@dataclass(frozen=True, slots=True)
class _Streaming:
    """The record stream that is welcomed now."""

    task: asyncio.Task[Any]
    hello: Hello
    channel: Channel
    intake: Intake


class Receiver:
    """Receives one group's records into `journal`, and bulk calls for `bulk`.

    `allowed`: names of the nodes that may send. `state`: told to the sender with WELCOME and
    each ACK. `applied`: how far apply is, None when not known. `on_hardened`: called on the
    event loop after each sync of the journal.
    """

    CONNECTIONS_MAX = 32

    def __init__(
        self,
        host: Host,
        listen: str,
        tls: TlsContexts | None,
        *,
        group: str,
        installation: str,
        node: str,
        allowed: set[str],
        journal: Journal,
        bulk: BulkHandler,
        state: Callable[[], dict[str, Any]],
        applied: Callable[[], Mark | None],
        on_hardened: Callable[[Tail], None],
    ) -> None:
        self._host = host
        self._listen = listen
        self._tls = tls
        self._group = group
        self._installation = installation
        self._node = node
        self._allowed = allowed
        self._journal = journal
        self._bulk = bulk
        self._state = state
        self._applied = applied
        self._hardening = Hardening(host, journal, on_hardened)
        self._turn = asyncio.Lock()  # one newcomer at a time
        self._streaming: _Streaming | None = None
        self._bulks: set[asyncio.Task[Any]] = set()
        self._connections: set[asyncio.Task[Any]] = set()
        self._failure: asyncio.Future[None] | None = None
        self._full = False
        self._rate = Throughput()
        self._welcomed = 0
        self._refused = 0
        self._error: CastlingError | None = None
        #: what is really listened on, `host:port`; None while nothing is
        self.address: str | None = None

    async def run(self) -> None:
        """Receive until cancelled. Raises JournalError when the journal's disk failed, LinkError when
        the address can't be listened on."""
        self._failure = asyncio.get_running_loop().create_future()
        listener = await self._open()
        self.address = listener.address
        try:
            await run_together(self._hardening.run(), self._watch(self._failure))
        finally:
            self.address = None
            await listener.close()
            await _end(self._connections)

    async def _open(self) -> Listener:
        try:
            return await self._host.network.listen(self._listen, self._tls, self._serve)
        except OSError as error:
            raise LinkError(
                f"{self._listen} can't be listened on: {error.strerror or error}",
                hint="each group that a node receives needs a port of its own: `link.port`",
            ) from error

    @staticmethod
    async def _watch(failure: asyncio.Future[None]) -> None:
        await failure

    # --- connections --------------------------------------------------------------------------

    async def _serve(self, connection: Connection) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._connections) >= self.CONNECTIONS_MAX:
            self._refused += 1
            connection.close()
            return
        self._connections.add(task)
        channel = Channel(self._host, connection)
        try:
            await self._greet(channel, task)
        except CastlingError as error:
            await self._tell(channel, error)
        except asyncio.CancelledError:
            pass  # by us: superseded, or the receiver ends; there is nobody further out to tell
        except Exception as error:  # noqa: BLE001 - the task's outermost frame: `run` raises it
            self._fail(error)
        finally:
            channel.close()
            self._connections.discard(task)

    async def _tell(self, channel: Channel, error: CastlingError) -> None:
        """Why the connection ends; nobody is told when it is the connection itself that failed."""
        self._error = error
        if type(error) is JournalError:  # the disk failed: nothing can be received any more
            self._fail(error)
        elif type(error) is not LinkError:
            self._refused += 1
            await channel.refuse(error)

    def _fail(self, error: Exception) -> None:
        if self._failure is not None and not self._failure.done():
            self._failure.set_exception(error)

    async def _greet(self, channel: Channel, task: asyncio.Task[Any]) -> None:
        hello = decode(await channel.read_first(FrameType.HELLO, HELLO_WITHIN_S), Hello)
        if hello.purpose is Purpose.RECORDS:
            await self._receive_records(channel, hello, task)
        else:
            await self._receive_bulk(channel, hello, task)

    async def _receive_records(self, channel: Channel, hello: Hello, task: asyncio.Task[Any]) -> None:
        intake = Intake(
            self._host,
            channel,
            hello,
            self._journal,
            self._hardening,
            applied=self._applied,
            state=self._state,
            full=self._full,
        )
        mine = _Streaming(task, hello, channel, intake)
        try:
            async with self._turn:
                version = self._verify(channel, hello)
                await self._supersede(hello)
                self._streaming = mine
                await self._hardening.settled()
                await self._welcome(channel, hello, version)
            await intake.run()
        finally:
            if self._streaming is mine:
                self._streaming = None
                self._full = intake.full

    async def _receive_bulk(self, channel: Channel, hello: Hello, task: asyncio.Task[Any]) -> None:
        async with self._turn:
            version = self._verify(channel, hello)
            await self._welcome(channel, hello, version)
            self._bulks.add(task)
        try:
            await serve_bulk(channel, self._call)
        finally:
            self._bulks.discard(task)

    async def _call(self, meta: bytes, body: Any) -> bytes:
        await self._hardening.settled()  # a call may begin the journal anew: nothing is being synced then
        return await self._bulk(meta, body)

    def _verify(self, channel: Channel, hello: Hello) -> int:
        version = verify(
            hello,
            installation=self._installation,
            group=self._group,
            allowed=self._allowed,
            peer_node=channel.peer_node,
            epoch=self._journal.epoch,
        )
        now = self._streaming
        if now is not None and now.hello.node != hello.node and hello.epoch <= now.hello.epoch:
            raise LinkRefused(
                f"node {now.hello.node} is sending records of group {self._group} in the same epoch"
            )
        return version

    async def _supersede(self, hello: Hello) -> None:
        """End the stream before this one, with the bulk calls begun beside it, and wait for that."""
        before = set(self._bulks)
        if self._streaming is not None:
            before.add(self._streaming.task)
        await _end(before)

    async def _welcome(self, channel: Channel, hello: Hello, version: int) -> None:
        if hello.epoch > self._journal.epoch:
            self._journal.raise_epoch(hello.epoch)
        assert hello.purpose is Purpose.BULK or self._journal.hardened.position == self._journal.tail.position
        body = welcome(
            version,
            self._node,
            self._journal.hardened,
            self._journal.epoch,
            self._state(),
            self._host.wall_ns(),
        )
        self._welcomed += 1
        await channel.write_now(FrameType.WELCOME, encode(body))

    # --- figures ------------------------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        """Figures for the report tree; what is not known is None."""
        now = self._streaming
        seconds = self._host.monotonic()
        self._rate.add(seconds, self._hardening.appended_bytes)
        full = now.intake.full if now is not None else self._full
        error = self._error
        return {
            "state": "journal-full" if full else "receiving" if now is not None else "waiting",
            "address": self.address,
            "peer": None if now is None else now.hello.node,
            "epoch": None if now is None else now.hello.epoch,
            "received": str(self._journal.tail.position),
            "hardened": str(self._journal.hardened.position),
            "bytes": self._hardening.appended_bytes,
            "unhardened_bytes": self._hardening.appended_bytes - self._hardening.hardened_bytes,
            "bytes_per_s": self._rate.per_second(),
            "last_frame_age_s": None if now is None else seconds - now.channel.heard_at,
            "rtt_s": None if now is None else now.channel.clocks.rtt_s,
            "clock_skew_s": None if now is None else now.channel.clocks.skew_s,
            "connections": self._welcomed,
            "refused": self._refused,
            "last_error": None if error is None else {"code": error.code, "message": str(error)},
        }


async def _end(tasks: set[asyncio.Task[Any]]) -> None:
    waiting = [task for task in tasks if not task.done()]
    for task in waiting:
        task.cancel()
    if waiting:
        await asyncio.wait(waiting)
