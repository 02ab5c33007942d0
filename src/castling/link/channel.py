"""Frames over one connection: bounded reading, ordered writing, heartbeats, silence.

Reading never waits for writing: a PING is answered at once when no frame is being
written, else right after it. So two sides that both send a lot can't block each other.
Whoever waits for bytes and gets none for `dead_after_s` takes the other side for dead.
"""

from __future__ import annotations

import asyncio
from collections import deque

from castling.errors import CastlingError, LinkError, LinkProtocol
from castling.host import Connection, Host
from castling.link.frames import (
    HEADER_BYTES,
    FrameType,
    PingBody,
    PongBody,
    Refusal,
    decode,
    decode_header,
    encode,
    encode_header,
)
from castling.link.gauge import Gauge
from castling.link.pace import Pace

__all__ = ["DEAD_AFTER_S", "Channel", "Clocks"]

DEAD_AFTER_S = 10.0
BEAT_S = 1.0
#: bytes read at once, so that each piece of a large frame shows that the other side lives
_PIECE = 256 << 10
_LINGER_S = 2.0
#: PINGs that come faster than this are not answered, seconds
_PONG_EVERY_S = 0.05


class Clocks:
    """Round trip and clock skew, from the quickest of the last eight round trips; None: unknown."""

    def __init__(self) -> None:
        self._trips: deque[tuple[float, float]] = deque(maxlen=8)

    def add(self, pong: PongBody, mono_ns: int, wall_ns: int) -> None:
        """Take in an answer that arrived at the given local times."""
        rtt_s = max(mono_ns - pong.mono_ns, 0) / 1e9
        self._trips.append((rtt_s, (pong.peer_wall_ns - (pong.wall_ns + wall_ns) / 2) / 1e9))

    @property
    def rtt_s(self) -> float | None:
        return min(self._trips)[0] if self._trips else None

    @property
    def skew_s(self) -> float | None:
        """How far the other side's wall clock is ahead of ours."""
        return min(self._trips)[1] if self._trips else None


class Channel:
    """One connection's frames. One reader at a time; any number of writers."""

    def __init__(
        self,
        host: Host,
        connection: Connection,
        pace: Pace | None = None,
        *,
        dead_after_s: float = DEAD_AFTER_S,
    ) -> None:
        self._host = host
        self._connection = connection
        self._pace = pace or Pace(host, None)
        self.dead_after_s = dead_after_s
        self._writing = asyncio.Lock()
        self._pong: bytes | None = None
        self._ponged_at = float("-inf")
        self.clocks = Clocks()
        self.gauge = Gauge(is_limited=self._pace.rate is not None)
        self.heard_at = host.monotonic()
        self.sent_bytes = 0
        self.received_bytes = 0

    @property
    def peer_node(self) -> str | None:
        return self._connection.peer_node

    # --- reading ------------------------------------------------------------------------------

    async def read(self, *allowed: FrameType) -> tuple[FrameType, bytes]:
        """The next frame of an allowed type. Heartbeats are dealt with here.

        Raises the other side's error when it refuses, LinkProtocol for any other frame,
        LinkError when the connection ends or falls silent.
        """
        while True:
            type, length = decode_header(await self._bytes(HEADER_BYTES))
            if type not in allowed and type not in _ALWAYS:
                raise LinkProtocol(f"a {type.name} frame came where it has no place")
            body = await self._body(length)
            if type is FrameType.PING:
                self._answer(decode(body, PingBody))
            elif type is FrameType.PONG:
                pong = decode(body, PongBody)
                self.clocks.add(pong, int(self._host.monotonic() * 1e9), self._host.wall_ns())
                self.gauge.trip(self.clocks.rtt_s or 0.0)
            elif type is FrameType.REFUSE:
                raise decode(body, Refusal).as_error()
            else:
                return type, body

    async def read_first(self, type: FrameType, within_s: float) -> bytes:
        """The body of the very first frame of an unknown peer: nothing but `type` is even allocated."""
        try:
            async with asyncio.timeout(within_s):
                found, length = decode_header(await self._bytes(HEADER_BYTES))
                if found is not type:
                    raise LinkProtocol(f"the first frame is a {found.name}, not a {type.name}")
                return await self._body(length)
        except TimeoutError:
            raise LinkError(f"no {type.name} came within {within_s:g} s") from None

    async def _body(self, length: int) -> bytes:
        if length <= _PIECE:
            return await self._bytes(length) if length else b""
        pieces = []
        while length > 0:
            piece = await self._bytes(min(length, _PIECE))
            pieces.append(piece)
            length -= len(piece)
        return b"".join(pieces)

    async def _bytes(self, length: int) -> bytes:
        try:
            async with asyncio.timeout(self.dead_after_s):
                data = await self._connection.read_exactly(length)
        except TimeoutError:
            raise LinkError(f"nothing was heard from the other side for {self.dead_after_s:g} s") from None
        self.heard_at = self._host.monotonic()
        self.received_bytes += length
        return data

    # --- writing ------------------------------------------------------------------------------

    async def write(self, type: FrameType, *parts: bytes) -> None:
        """Send one frame; waits for the bandwidth limit and for room in the connection. A large last part is
        sent from where it is."""
        header = encode_header(type, sum(map(len, parts)))
        step = self._pace.slice
        small, large = (parts[:-1], parts[-1]) if parts and len(parts[-1]) > step else (parts, b"")
        async with self._writing:
            began_s = self._host.monotonic()
            await self._write_in_pieces(b"".join((header, *small)), step)
            await self._write_in_pieces(large, step)
            self.gauge.sent(len(header) + sum(map(len, parts)), self._host.monotonic() - began_s)
            self._send_pong()

    async def _write_in_pieces(self, data: bytes, step: int) -> None:
        view = memoryview(data)
        for at in range(0, len(data), step):
            piece = view[at : at + step] if len(data) > step else data
            await self._pace.take(len(piece))
            self._send(piece)
            await self._connection.drain()

    async def write_now(self, type: FrameType, *parts: bytes) -> None:
        """Send a small frame that does not wait for the bandwidth limit, though it is counted."""
        frame = b"".join((encode_header(type, sum(map(len, parts))), *parts))
        async with self._writing:
            self._pace.charge(len(frame))
            self._send(frame)
            self._send_pong()
            await self._connection.drain()

    async def beat(self) -> None:
        """Send a PING each second until the connection fails."""
        while True:
            await self.ping()
            await self._host.sleep(BEAT_S)

    async def ping(self) -> None:
        body = PingBody(mono_ns=int(self._host.monotonic() * 1e9), wall_ns=self._host.wall_ns())
        await self.write_now(FrameType.PING, encode(body))

    def _answer(self, ping: PingBody) -> None:
        now = self._host.monotonic()
        if now - self._ponged_at < _PONG_EVERY_S:
            return
        self._ponged_at = now
        body = encode(PongBody(mono_ns=ping.mono_ns, wall_ns=ping.wall_ns, peer_wall_ns=self._host.wall_ns()))
        self._pong = encode_header(FrameType.PONG, len(body)) + body
        if not self._writing.locked():
            self._send_pong()

    def _send_pong(self) -> None:
        if self._pong is not None:
            self._pace.charge(len(self._pong))
            self._send(self._pong)
            self._pong = None

    def _send(self, data: bytes | memoryview) -> None:
        self.sent_bytes += len(data)
        self._connection.write(data)

    # --- the end ------------------------------------------------------------------------------

    async def refuse(self, error: CastlingError) -> None:
        """Tell the other side why, and give it the time to read it. Never fails."""
        body = encode(Refusal.of(error))
        try:
            async with asyncio.timeout(_LINGER_S):
                await self.write_now(FrameType.REFUSE, body)
                while True:  # until the other side closes: a close with unread bytes would be a reset
                    await self._connection.read_exactly(_PIECE)
        except (LinkError, TimeoutError):
            return

    def close(self) -> None:
        self._connection.close()


_ALWAYS = frozenset((FrameType.PING, FrameType.PONG, FrameType.REFUSE))
