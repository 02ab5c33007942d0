"""A real connection: all bytes in order, however they come; a reader that is slow makes the writer wait."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from castling.errors import LinkError
from castling.host import Connection, RealHost
from castling.wire import ROOM


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[Connection, Connection]]:
    """Both ends of a connection without TLS (tests/real/test_link_tls.py has one with it)."""
    network = RealHost().network
    came: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
    over = asyncio.Event()

    async def serve(connection: Connection) -> None:
        came.set_result(connection)
        await over.wait()

    listener = await network.listen("127.0.0.1:0", None, serve)
    near = await network.connect(listener.address, None, timeout_s=10)
    try:
        yield near, await came
    finally:
        over.set()
        near.close()
        await listener.close()


async def test_bytes_come_whole_and_in_order_in_whatever_portions_they_are_written_and_read() -> None:
    chance = random.Random(1)
    sent = chance.randbytes(5 * ROOM + 77)

    async def write(near: Connection) -> None:
        at = 0
        while at < len(sent):
            size = chance.choice([1, 700, 5000, 300_000])
            near.write(memoryview(sent)[at : at + size])
            await near.drain()
            at += size

    async with connected() as (near, far):
        writing = asyncio.create_task(write(near))
        found, left = [], len(sent)
        while left:
            size = min(left, chance.choice([1, 64, 9000, 256 << 10, ROOM]))
            found.append(await far.read_exactly(size))
            left -= size
        await writing
        assert b"".join(found) == sent


async def test_a_writer_waits_for_a_reader_that_takes_nothing() -> None:
    async with connected() as (near, far):

        async def write() -> int:
            for number in range(1000):
                near.write(bytes(ROOM))
                try:
                    async with asyncio.timeout(0.3):
                        await near.drain()
                except TimeoutError:
                    return number
            return 1000

        stuck = await write()
        assert stuck < 200, "a reader that takes nothing was sent everything"
        for _ in range(stuck + 1):
            assert await far.read_exactly(ROOM) == bytes(ROOM)
        await near.drain()


async def test_what_came_before_the_end_can_be_read_and_then_the_end_is_told() -> None:
    async with connected() as (near, far):
        far.write(b"goodbye")
        await far.drain()
        assert await near.read_exactly(4) == b"good"
        far.close()
        with pytest.raises(LinkError):
            await near.read_exactly(100)
        with pytest.raises(LinkError):
            while True:
                near.write(b"anybody?")
                await near.drain()
                await asyncio.sleep(0.01)


async def test_a_reader_that_was_cancelled_loses_nothing() -> None:
    async with connected() as (near, far):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await far.read_exactly(10)
        near.write(b"0123456789")
        assert await far.read_exactly(10) == b"0123456789"
