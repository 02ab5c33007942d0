"""The bandwidth limit, with a clock that only moves when somebody sleeps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from castling.groups.source import KindBulk
from castling.host import Host
from castling.kinds.base import BulkCall
from castling.link.channel import Clocks
from castling.link.frames import PongBody
from castling.link.pace import Pace


class Clock:
    """A host of which only the clock is used."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def pace(rate: int | None) -> tuple[Pace, Clock]:
    clock = Clock()
    return Pace(cast(Host, cast(Any, clock)), rate), clock


def passed(bucket: Pace, clock: Clock, sizes: list[int]) -> list[tuple[float, int]]:
    """When how much went through."""

    async def run() -> list[tuple[float, int]]:
        found = []
        for size in sizes:
            await bucket.take(size)
            found.append((clock.now_s, size))
        return found

    return asyncio.run(run())


def busiest(points: list[tuple[float, int]], rate: int, burst: float) -> float:
    """By how much the worst span is over `rate * t + burst`; negative: never over."""
    worst = float("-inf")
    for begin in range(len(points)):
        total = 0
        for at_s, size in points[begin:]:
            total += size
            worst = max(worst, total - (rate * (at_s - points[begin][0]) + burst))
    return worst


@given(st.integers(10_000, 10_000_000), st.lists(st.integers(1, 2000), min_size=1, max_size=60))
def test_no_span_of_time_is_over_the_limit(rate: int, sizes: list[int]) -> None:
    bucket, clock = pace(rate)
    assert busiest(passed(bucket, clock, sizes), rate, rate / 4) <= 1


def test_the_measure_notices_a_bucket_that_leaks() -> None:
    bucket, clock = pace(1000)
    bucket.charge(0)
    points = passed(bucket, clock, [100] * 50)
    leaky = [(at_s / 2, size) for at_s, size in points]
    assert busiest(points, 1000, 250) <= 1 < busiest(leaky, 1000, 250)


def test_the_limit_is_also_reached() -> None:
    bucket, clock = pace(1 << 20)
    passed(bucket, clock, [64 << 10] * 160)
    assert 9.0 < clock.now_s < 10.1, "10 MiB at 1 MiB/s"


def test_more_than_the_burst_passes_and_is_paid_for() -> None:
    bucket, clock = pace(1000)
    passed(bucket, clock, [5000, 1])
    assert 4.7 < clock.now_s < 5.1


def test_what_can_not_wait_is_paid_by_the_next() -> None:
    bucket, clock = pace(1000)
    bucket.charge(2250)
    assert clock.now_s == 0
    passed(bucket, clock, [100])
    assert 2.0 < clock.now_s < 2.2


def test_without_a_limit_nothing_waits() -> None:
    bucket, clock = pace(None)
    passed(bucket, clock, [1 << 30] * 5)
    assert clock.now_s == 0


@pytest.mark.parametrize("skew_s", [0.0, 5.0, -3600.0])
def test_clock_skew_is_seen_through_the_quickest_round_trip(skew_s: float) -> None:
    clocks = Clocks()
    assert clocks.rtt_s is None and clocks.skew_s is None
    for rtt_ms, way_back in ((40, 0.9), (2, 0.5), (80, 0.1)):
        begin, rtt = 1_000_000_000, rtt_ms * 1_000_000
        answered = begin + int(rtt * (1 - way_back)) + int(skew_s * 1e9)
        clocks.add(PongBody(mono_ns=0, wall_ns=begin, peer_wall_ns=answered), rtt, begin + rtt)
    assert clocks.rtt_s == pytest.approx(0.002)
    assert clocks.skew_s == pytest.approx(skew_s, abs=0.0011)


class Gathering:
    """A bulk channel that takes all it is given."""

    def __init__(self) -> None:
        self.size = 0

    async def open(self) -> BulkCall:
        async def call(meta: bytes, body: AsyncIterator[bytes] | None) -> bytes:
            async for block in body or _nothing():
                self.size += len(block)
            return b""

        return call

    async def close(self) -> None:
        return


async def _nothing() -> AsyncIterator[bytes]:
    for block in (b"",)[:0]:
        yield block


@pytest.mark.parametrize(("rate", "least_s"), [(100_000, 9.5), (None, 0.0)])
def test_copies_together_keep_to_their_own_limit(rate: int | None, least_s: float) -> None:
    bucket, clock = pace(rate)

    async def blocks() -> AsyncIterator[bytes]:
        for _ in range(50):
            yield b"x" * 10_000

    async def run() -> int:
        gathering = Gathering()
        bulk = KindBulk(gathering, bucket)
        calls = [await bulk.open() for _ in range(2)]
        await asyncio.gather(*(call(b"", blocks()) for call in calls), calls[0](b"", None))
        return gathering.size

    assert asyncio.run(run()) == 1_000_000
    assert least_s <= clock.now_s <= least_s * 1.1
