"""Frames over one connection in virtual time, and tasks that end together."""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path
from typing import Any, cast

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from test_link_pace import Clock, busiest

from castling.errors import LinkError, LinkProtocol, StaleEpoch
from castling.host import Host
from castling.link.channel import Channel
from castling.link.frames import FrameType, PingBody, encode, encode_header
from castling.link.pace import Pace
from castling.together import run_together


class Wire:
    """A connection of which one end is the test: what was written when, and what there is to read."""

    peer_node = None

    def __init__(self, clock: Clock, incoming: bytes = b"") -> None:
        self._clock = clock
        self._incoming = asyncio.StreamReader()
        self._incoming.feed_data(incoming)
        self.writes: list[tuple[float, int]] = []
        self.sent = b""
        self.room = asyncio.Event()
        self.room.set()

    def feed(self, data: bytes) -> None:
        self._incoming.feed_data(data)

    async def read_exactly(self, length: int) -> bytes:
        return await self._incoming.readexactly(length)

    def write(self, data: bytes | memoryview) -> None:
        self.writes.append((self._clock.now_s, len(data)))
        self.sent += data

    async def drain(self) -> None:
        await self.room.wait()

    def close(self) -> None: ...


class WireHost(Clock):
    def wall_ns(self) -> int:
        return int(self.now_s * 1e9)


def make(incoming: bytes = b"", rate: int | None = None) -> tuple[Channel, Wire, Pace]:
    clock = WireHost()
    host = cast(Host, cast(Any, clock))
    wire, pace = Wire(clock, incoming), Pace(host, rate)
    return Channel(host, wire, pace), wire, pace


def ping(mono_ns: int = 7) -> bytes:
    body = encode(PingBody(mono_ns=mono_ns, wall_ns=8))
    return encode_header(FrameType.PING, len(body)) + body


async def test_frames_of_any_size_keep_to_the_bandwidth_limit() -> None:
    rate = 100_000
    channel, wire, _ = make(rate=rate)
    luck = random.Random(3)
    for _ in range(30):
        await channel.write(FrameType.BATCH, bytes(luck.choice((100, 5_000, 300_000))))
        await channel.ping()
    assert sum(size for _, size in wire.writes) == channel.sent_bytes == len(wire.sent)
    pings = 30 * 60  # heartbeats do not wait, though the next frame pays for them
    assert busiest(wire.writes, rate, rate / 4 + pings) <= 0


async def test_the_measure_notices_a_channel_that_does_not_ask() -> None:
    channel, wire, _ = make(rate=None)
    for _ in range(10):
        await channel.write(FrameType.BATCH, bytes(300_000))
    assert busiest(wire.writes, 100_000, 27_000) > 0


async def test_two_limits_are_one_when_they_are_shared() -> None:
    clock = WireHost()
    host = cast(Host, cast(Any, clock))
    shared, wires = Pace(host, 100_000), [Wire(clock), Wire(clock)]
    channels = [Channel(host, wire, shared) for wire in wires]
    for _ in range(20):
        for channel in channels:
            await channel.write(FrameType.DATA, bytes(10_000))
    both = sorted(wires[0].writes + wires[1].writes)
    assert busiest(both, 100_000, 25_000) <= 1


async def test_a_ping_is_answered_even_while_a_frame_can_not_be_sent() -> None:
    """The answer waits for the frame's end, the reader waits for neither."""
    channel, wire, _ = make(ping() + encode_header(FrameType.BYE, 0))
    wire.room.clear()
    writing = asyncio.create_task(channel.write(FrameType.BATCH, bytes(200_000)))
    await asyncio.sleep(0)
    assert await asyncio.wait_for(channel.read(FrameType.BYE), 5) == (FrameType.BYE, b"")
    assert len(wire.sent) < 200_000, "the frame is still being sent"
    wire.room.set()
    await writing
    batch = encode_header(FrameType.BATCH, 200_000) + bytes(200_000)
    assert wire.sent[: len(batch)] == batch, "another frame came in between"
    assert wire.sent[len(batch)] == FrameType.PONG


async def test_a_flood_of_pings_is_not_answered_by_a_flood() -> None:
    channel, wire, _ = make(ping() * 1000 + encode_header(FrameType.BYE, 0))
    await channel.read(FrameType.BYE)
    assert len(wire.writes) == 1


async def test_a_frame_out_of_place_is_refused_before_its_body_is_read() -> None:
    channel, _, _ = make(encode_header(FrameType.CALL, 1 << 20))
    with pytest.raises(LinkProtocol, match="has no place"):
        await asyncio.wait_for(channel.read(FrameType.ACK), 5)


async def test_silence_is_told_from_slowness() -> None:
    channel, wire, _ = make(encode_header(FrameType.BATCH, 1_000_000))
    channel.dead_after_s = 1.5

    async def trickle() -> None:
        for _ in range(8):
            await asyncio.sleep(0.25)
            wire.feed(bytes(125_000))

    feeding = asyncio.create_task(trickle())
    piece = await channel.read(FrameType.BATCH)
    assert len(piece[1]) == 1_000_000, "a slow frame took longer than the deadline and was no silence"
    await feeding
    with pytest.raises(LinkError, match="nothing was heard"):
        await channel.read(FrameType.BATCH)


# --- tasks that end together ------------------------------------------------------------------


async def forever() -> None:
    await asyncio.Event().wait()


async def fail(error: Exception) -> None:
    raise error


async def fail_when_cancelled(error: Exception) -> None:
    try:
        await forever()
    except asyncio.CancelledError:
        raise error from None


async def test_the_first_failure_ends_all() -> None:
    with pytest.raises(StaleEpoch):
        await run_together(forever(), fail(StaleEpoch()), forever())


async def test_the_reason_is_told_rather_than_the_loss() -> None:
    with pytest.raises(StaleEpoch):
        await run_together(fail(LinkError()), fail_when_cancelled(StaleEpoch()))
    with pytest.raises(ZeroDivisionError):
        await run_together(fail(StaleEpoch()), fail_when_cancelled(ZeroDivisionError()))


async def test_a_cancellation_is_never_lost_to_a_failure_at_the_same_moment() -> None:
    for turns in range(6):
        task = asyncio.create_task(run_together(fail_when_cancelled(LinkError()), fail_later(turns)))
        for _ in range(turns):
            await asyncio.sleep(0)
        cancelled = task.cancel()
        await asyncio.wait((task,))
        assert task.cancelled() or not cancelled


async def fail_later(turns: int) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)
    raise LinkError
