"""One real connection: its protocol in asyncio's sense, and what the link calls a `Connection`.

What arrives is read into a buffer of ours, by TLS or from the socket itself, and copied once, when it is
taken. (asyncio's streams copy each byte three times more, which shows where rows are wide.) A buffer that
is full is not read into, so the other side has to wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from castling.errors import LinkError

__all__ = ["Wire"]

#: bytes that may have come and not been taken; no more can be asked for at once
ROOM: Final = 1 << 20


class Wire(asyncio.BufferedProtocol):
    """Implements `host.Connection`; one reader at a time. `made`: called when it is connected (and, with TLS,
    both sides are known to each other)."""

    def __init__(self, made: Callable[[Wire], None] | None = None) -> None:
        self._made = made
        self._transport: asyncio.Transport | None = None
        self._view = memoryview(bytearray(ROOM))
        self._begin = self._end = 0
        self._is_paused = False
        self._wanted = 0
        self._waiter: asyncio.Future[None] | None = None
        self._room = asyncio.Event()
        self._room.set()
        #: why nothing comes any more; None while it may
        self._over: str | None = None
        self._is_lost = False
        self.peer_node: str | None = None

    def extra(self, name: str) -> Any:
        """What asyncio's `get_extra_info` says."""
        assert self._transport is not None
        return self._transport.get_extra_info(name)

    # --- called by asyncio --------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if self._made is not None:
            self._made(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view[self._end :]

    def buffer_updated(self, nbytes: int) -> None:
        self._end += nbytes
        if self._end == ROOM:
            self._make_room()
        if self._end - self._begin >= self._wanted:
            self._wake()

    def _make_room(self) -> None:
        """Move what was not taken to the front; without any room there, stop reading."""
        if self._begin:
            left = self._end - self._begin
            self._view[:left] = self._view[self._begin : self._end]
            self._begin, self._end = 0, left
        elif self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        """Whether it can still be written to: the other side may want to hear why (TLS ends both ways)."""
        self._finish("the other side closed the connection")
        return self.extra("sslcontext") is None

    def connection_lost(self, exc: Exception | None) -> None:
        self._finish(f"the connection broke: {exc}" if exc else "the other side closed the connection")
        self._is_lost = True
        self._room.set()

    def _finish(self, why: str) -> None:
        if self._over is None:
            self._over = why
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    # --- called by the link -------------------------------------------------------------------

    async def read_exactly(self, length: int) -> bytes:
        assert length <= ROOM, "more is asked for than there is room"
        while self._end - self._begin < length:
            if self._over is not None:
                raise LinkError(self._over)
            self._wanted = length
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        end = self._begin + length
        data = bytes(self._view[self._begin : end])
        self._begin = end
        if self._begin == self._end:
            self._begin = self._end = 0
        if self._is_paused:
            self._go_on()
        return data

    def _go_on(self) -> None:
        if self._end == ROOM:
            self._make_room()
        self._is_paused = False
        if self._transport is not None and self._over is None:
            self._transport.resume_reading()

    def write(self, data: bytes | memoryview) -> None:
        assert self._transport is not None
        self._transport.write(data)

    async def drain(self) -> None:
        await self._room.wait()
        if self._is_lost:
            raise LinkError(self._over or "")

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()
