"""Bulk calls: a small description, a body of any length, a small result. Used by the first copy.

    caller:    CALL  DATA … DATA  END                          CALL …
    listener:                          RESULT | ERROR

One call at a time per connection. The listener passes body and description on without
looking at them. A caller that fails in the middle closes the connection, which cancels
what the listener was doing with it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable

from castling.config import LinkSettings
from castling.errors import CastlingError, LinkError, LinkProtocol
from castling.host import Host, TlsContexts
from castling.kinds.base import BulkCall
from castling.link.channel import Channel
from castling.link.codec import Packer
from castling.link.frames import DATA_MAX, FrameType, Purpose, Refusal, data_head, decode, decode_data, encode
from castling.link.handshake import HelloInfo, dial
from castling.link.pace import Pace
from castling.together import run_together

__all__ = ["BulkClient", "BulkHandler", "serve_bulk"]

#: what the listening side does with a call: description and body in, result out
BulkHandler = Callable[[bytes, AsyncIterator[bytes]], Awaitable[bytes]]

#: DATA bodies that wait for the handler
_WAITING_MAX = 4


# --- the calling side -------------------------------------------------------------------------


class BulkClient:
    """Opens bulk connections; implements `kinds.base.Bulk`.

    `pace`: the bandwidth limit of the stream it stands beside; None: one by the settings.
    """

    def __init__(
        self,
        host: Host,
        address: str,
        tls: TlsContexts | None,
        hello: HelloInfo,
        settings: LinkSettings,
        *,
        pace: Pace | None = None,
    ) -> None:
        self._host = host
        self._address = address
        self._tls = tls
        self._hello = hello
        self._compression = settings.compression
        self.pace = pace or Pace(host, settings.bandwidth)
        self._connections: list[_BulkConnection] = []

    async def open(self) -> BulkCall:
        """A new connection. Raises as `Sender.connect` does."""
        channel, _ = await dial(self._host, self._address, self._tls, self._hello, Purpose.BULK, self.pace)
        connection = _BulkConnection(channel, Packer(self._compression))
        self._connections.append(connection)
        return connection.call

    async def close(self) -> None:
        """Close every connection; calls under way fail with LinkError."""
        connections, self._connections = self._connections, []
        for connection in connections:
            await connection.close()


class _BulkConnection:
    """One bulk connection, with a task that listens and one that keeps it alive between calls."""

    def __init__(self, channel: Channel, packer: Packer) -> None:
        self._channel = channel
        self._packer = packer
        self._answer: asyncio.Future[bytes] | None = None
        self._error: BaseException | None = None
        self._life = asyncio.create_task(self._live())

    async def call(self, meta: bytes, body: AsyncIterator[bytes] | None) -> bytes:
        """Send one call and wait for its result; the far side's error is raised as its own class."""
        assert self._answer is None, "a bulk connection serves one call at a time"
        if self._life.done():
            raise self._lost()
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._answer = answer
        whole = False
        try:
            await self._send(meta, body, answer)
            whole = True
            return await answer
        finally:
            self._answer = None
            if not whole or answer.cancelled():  # the far side waits for the rest, or works for nobody
                answer.cancel()
                self._channel.close()

    async def _send(
        self, meta: bytes, body: AsyncIterator[bytes] | None, answer: asyncio.Future[bytes]
    ) -> None:
        await self._write(FrameType.CALL, meta)
        if body is not None:
            async for chunk in body:
                for at in range(0, len(chunk), DATA_MAX):
                    if answer.done():
                        break
                    await self._send_chunk(chunk[at : at + DATA_MAX])
                if answer.done():  # refused before the end: the rest would be thrown away
                    break
        await self._write(FrameType.END)

    async def _send_chunk(self, chunk: bytes) -> None:
        codec, packed = self._packer.pack(chunk, is_scarce=self._channel.gauge.is_scarce)
        await self._write(FrameType.DATA, data_head(chunk, codec), packed)

    async def _write(self, type: FrameType, *parts: bytes) -> None:
        try:
            await self._channel.write(type, *parts)
        except LinkError:
            self._channel.close()
            await asyncio.wait((self._life,))
            raise self._lost() from None  # why it broke, if the other side has told

    async def _live(self) -> None:
        try:
            await run_together(self._listen(), self._channel.beat())
        except CastlingError as error:
            self._error = error
        finally:
            self._channel.close()
            if self._answer is not None and not self._answer.done():
                self._answer.set_exception(self._lost())

    def _lost(self) -> BaseException:
        return self._error or LinkError("the bulk connection was closed")

    async def _listen(self) -> None:
        while True:
            type, body = await self._channel.read(FrameType.RESULT, FrameType.ERROR)
            if self._answer is None or self._answer.done():
                raise LinkProtocol("an answer came to no call")
            if type is FrameType.RESULT:
                self._answer.set_result(body)
            else:
                self._answer.set_exception(decode(body, Refusal).as_error())

    async def close(self) -> None:
        self._life.cancel()
        await asyncio.wait((self._life,))
        if not self._life.cancelled() and (mistake := self._life.exception()) is not None:
            raise mistake


# --- the listening side -----------------------------------------------------------------------


async def serve_bulk(channel: Channel, handler: BulkHandler) -> None:
    """Serve the calls of one welcomed connection until it ends (LinkError) or breaks the protocol.

    A CastlingError of the handler is the caller's answer; any other is a mistake of ours
    and is raised.
    """
    calls = _Calls(channel, handler)
    await run_together(channel.beat(), calls.read(), calls.answer())


class _Body:
    """The body of a call on its way from the connection to the handler; bounded."""

    def __init__(self) -> None:
        self._chunks: deque[bytes | None] = deque()
        self._came = asyncio.Event()
        self._taken = asyncio.Event()
        self._dropped = False

    async def put(self, chunk: bytes | None) -> None:
        """Add a chunk, or None for the end; waits while the handler has enough."""
        while len(self._chunks) >= _WAITING_MAX and not self._dropped:
            self._taken.clear()
            await self._taken.wait()
        if not self._dropped:
            self._chunks.append(chunk)
            self._came.set()

    def drop(self) -> None:
        """The handler has ended: what still comes is thrown away."""
        self._dropped = True
        self._chunks.clear()
        self._taken.set()

    async def chunks(self) -> AsyncIterator[bytes]:
        while True:
            while not self._chunks:
                self._came.clear()
                await self._came.wait()
            chunk = self._chunks.popleft()
            self._taken.set()
            if chunk is None:
                return
            yield chunk


class _Calls:
    """Reads the calls of one connection. The handler runs beside the reading, so that a caller that
    goes away is noticed, and its handler cancelled, however long that takes."""

    def __init__(self, channel: Channel, handler: BulkHandler) -> None:
        self._channel = channel
        self._handler = handler
        self._next: asyncio.Queue[tuple[bytes, _Body]] = asyncio.Queue(1)
        self._busy = False

    async def read(self) -> None:
        """Take in calls and their bodies until the connection ends."""
        while True:
            type, meta = await self._channel.read(FrameType.CALL, FrameType.BYE)
            if type is FrameType.BYE:
                raise LinkError("the other side said goodbye")
            if self._busy:
                raise LinkProtocol("a CALL came before the answer to the one before")
            self._busy = True
            body = _Body()
            self._next.put_nowait((meta, body))
            await self._read_body(body)

    async def _read_body(self, body: _Body) -> None:
        while True:
            type, data = await self._channel.read(FrameType.DATA, FrameType.END)
            if type is FrameType.END:
                await body.put(None)
                return
            await body.put(decode_data(data))

    async def answer(self) -> None:
        """Work on one call after the other."""
        while True:
            await self._answer(*await self._next.get())

    async def _answer(self, meta: bytes, body: _Body) -> None:
        try:
            result = await self._handler(meta, body.chunks())
        except CastlingError as error:
            type, answer = FrameType.ERROR, encode(Refusal.of(error))
        else:
            type, answer = FrameType.RESULT, result
        body.drop()
        self._busy = False  # before the answer is out: the next CALL may follow it at once
        await self._channel.write(type, answer)
