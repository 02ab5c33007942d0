"""A network that delays, splits, stalls, cuts and lies about who is still there.

A connection is two byte streams. Within a stream nothing is lost, repeated or reordered, as
TCP promises; between streams anything is. Bytes arrive after a latency, in pieces whose
borders have nothing to do with what was written at once. Faults:

* stall: one direction between two machines delivers nothing for a while; connections live on;
* cut: bytes under way are lost. Both sides are told, or one, or none: who is not told keeps a
  half-open connection that only silence gives away;
* a machine that loses power tells nobody; a process that is killed has its connections closed
  by its machine, and what it had written may still arrive.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections import deque

from castling.errors import LinkError
from castling.host import Connection, Handler, Listener
from castling.testing.sim.host import SimHost
from castling.testing.sim.loop import SimLoop

__all__ = ["SimNetwork"]

#: bytes on their way or unread before a writer waits
_WINDOW = 64 << 10


class _Stream:
    """One direction of a connection."""

    def __init__(self, network: SimNetwork, way: tuple[str, str]) -> None:
        self._network = network
        self._way = way
        self._flying: deque[tuple[float, bytes | None]] = deque()
        self._flying_bytes = 0
        self._arrived = bytearray()
        self._is_over = False
        self.drops = False  # what is written goes nowhere
        self._reader: asyncio.Future[None] | None = None
        self._writers: list[asyncio.Future[None]] = []
        self._last_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def flying_bytes(self) -> int:
        return self._flying_bytes

    # --- in -----------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        if self.drops or self._is_over:
            return
        rng = self._network.random
        if len(data) > 1 and rng.random() < 0.15:
            at = rng.randrange(1, len(data))
            self._fly(data[:at])
            data = data[at:]
        self._fly(data)

    def finish(self) -> None:
        """No more will be written; the reader sees the end behind what is on its way."""
        if not self.drops:
            self._fly(None)

    def _fly(self, data: bytes | None) -> None:
        self._last_s = max(self._last_s, self._network.loop.time() + self._network.latency_s())
        self._flying.append((self._last_s, data))
        self._flying_bytes += len(data or b"")
        if self._timer is None:
            self._timer = self._network.loop.call_at(self._last_s, self._land)

    def _land(self) -> None:
        self._timer = None
        now_s = self._network.loop.time()
        until_s = self._network.stalled_until(self._way)
        if until_s <= now_s:
            while self._flying and self._flying[0][0] <= now_s:
                data = self._flying.popleft()[1]
                if data is None:
                    self._is_over = True
                else:
                    self._flying_bytes -= len(data)
                    self._arrived += data
            _wake(self._reader)
        if self._flying:
            self._timer = self._network.loop.call_at(max(self._flying[0][0], until_s), self._land)

    def cut(self, *, tell: bool) -> None:
        """What is on its way is lost; the reader is told, or waits for ever."""
        self.drops = True
        self._flying.clear()
        self._flying_bytes = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if tell:
            self._is_over = True
            _wake(self._reader)
        self._let_write()

    # --- out ----------------------------------------------------------------------------------

    async def read(self, length: int) -> bytes:
        while len(self._arrived) < length:
            if self._is_over:
                raise LinkError("the other side closed the connection")
            self._reader = self._network.loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        data = bytes(self._arrived[:length])
        del self._arrived[:length]
        self._let_write()
        return data

    def _let_write(self) -> None:
        writers, self._writers = self._writers, []
        for writer in writers:
            _wake(writer)

    async def room(self) -> None:
        while self._flying_bytes + len(self._arrived) > _WINDOW and not self._is_over:
            writer = self._network.loop.create_future()
            self._writers.append(writer)
            await writer


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


class _SimConnection:
    """One end of a connection, held by one process."""

    def __init__(self, host: SimHost, inward: _Stream, outward: _Stream) -> None:
        self.host = host
        self.inward = inward
        self.outward = outward
        self.is_open = True

    @property
    def peer_node(self) -> str | None:
        return None

    async def read_exactly(self, length: int) -> bytes:
        self.host.door("receive")
        if not self.is_open:
            raise LinkError("the connection was closed")
        return await self.inward.read(length)

    def write(self, data: bytes | memoryview) -> None:
        self.host.door("send")
        if self.is_open:
            self.outward.write(bytes(data))

    async def drain(self) -> None:
        self.host.door("drain")
        if not self.is_open:
            raise LinkError("the connection was closed")
        await self.outward.room()

    def close(self) -> None:
        if not self.is_open:
            return
        self.is_open = False
        if self.host.alive:
            self.outward.finish()
        self.inward.cut(tell=True)
        self.host.machine.network.closed(self)


class _SimListener:
    def __init__(self, host: SimHost, address: str, handler: Handler) -> None:
        self.host = host
        self.handler = handler
        self._address = address
        self.context = contextvars.copy_context()

    @property
    def address(self) -> str:
        return self._address

    async def close(self) -> None:
        self.host.door("unlisten")
        self.host.machine.network.listeners.pop(self._address, None)


class SimNetwork:
    """Everything between the machines of a world. Addresses are `machine:port`."""

    def __init__(self, loop: SimLoop, rng: random.Random) -> None:
        self.loop = loop
        self.random = rng
        self.listeners: dict[str, _SimListener] = {}
        self.latency_most_s = 0.01
        self._stalls: dict[tuple[str, str], float] = {}
        self._pairs: list[tuple[_SimConnection, _SimConnection]] = []
        #: how often a connection was made while an older one to the same process lingered half-open
        self.half_open = 0
        #: how often a connection was cut with a part of a large frame on its way
        self.cut_within = 0

    def latency_s(self) -> float:
        return 0.0002 + self.random.random() * self.latency_most_s

    # --- connecting ---------------------------------------------------------------------------

    async def connect(self, host: SimHost, address: str, timeout_s: float) -> Connection:
        host.door("connect")
        there = address.partition(":")[0]
        here = host.machine.name
        blocked_s = max(self.stalled_until((here, there)), self.stalled_until((there, here)))
        wait_s = max(2 * self.latency_s(), blocked_s - self.loop.time())
        await asyncio.sleep(min(wait_s, timeout_s))
        if wait_s >= timeout_s:
            raise LinkError(f"{address} can't be reached: timed out")
        host.door("connected")
        listener = self.listeners.get(address)
        if listener is None:
            raise LinkError(f"{address} can't be reached: refused")
        out, back = _Stream(self, (here, there)), _Stream(self, (there, here))
        client, server = _SimConnection(host, back, out), _SimConnection(listener.host, out, back)
        if any(old.host is listener.host and old.inward.drops and old.is_open for _, old in self._pairs):
            self.half_open += 1
        self._pairs.append((client, server))
        self.loop.create_task(_serve(listener, server), context=listener.context.copy())
        return client

    def listen(self, host: SimHost, address: str, handler: Handler) -> Listener:
        host.door("listen")
        if address in self.listeners:
            raise OSError(98, "address already in use")
        self.listeners[address] = listener = _SimListener(host, address, handler)
        return listener

    def closed(self, connection: _SimConnection) -> None:
        self._pairs = [pair for pair in self._pairs if pair[0].is_open or pair[1].is_open]

    # --- faults -------------------------------------------------------------------------------

    def forget(self, host: SimHost, *, silently: bool) -> None:
        """The process is dead: its machine closes what it held, unless that is dead too."""
        for address in [key for key, listener in self.listeners.items() if listener.host is host]:
            del self.listeners[address]
        for connection in [end for pair in self._pairs for end in pair if end.host is host and end.is_open]:
            connection.is_open = False
            if silently:
                connection.outward.cut(tell=False)
                connection.inward.cut(tell=False)
            elif self.random.random() < 0.5:
                connection.outward.finish()
            else:
                connection.outward.cut(tell=True)
            connection.inward.drops = True
        self._pairs = [pair for pair in self._pairs if pair[0].is_open or pair[1].is_open]

    def cut(self, *, client_told: bool, server_told: bool) -> None:
        """Cut every connection; who is not told keeps a half-open one."""
        for client, server in self._pairs:
            if client.outward.flying_bytes > 200:
                self.cut_within += 1
            client.inward.cut(tell=client_told)
            server.inward.cut(tell=server_told)

    def is_busy(self) -> bool:
        """Much is on its way to somebody who listens."""
        return any(client.outward.flying_bytes > 200 for client, _ in self._pairs)

    def stall(self, way: tuple[str, str], seconds: float) -> None:
        """Deliver nothing that way for a while."""
        self._stalls[way] = max(self.stalled_until(way), self.loop.time() + seconds)

    def heal(self) -> None:
        """No stall any more; what is under way arrives when its time comes."""
        now_s = self.loop.time()
        self._stalls = {way: min(until_s, now_s + 0.1) for way, until_s in self._stalls.items()}

    def stalled_until(self, way: tuple[str, str]) -> float:
        return self._stalls.get(way, 0.0)


async def _serve(listener: _SimListener, connection: _SimConnection) -> None:
    try:
        await listener.handler(connection)
    finally:
        connection.close()
