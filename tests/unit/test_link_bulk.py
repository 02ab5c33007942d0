"""Bulk calls: bodies of any length in bounded memory, and every way in which a call can end."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from link_cast import INSTALLATION, Backup, make_sender, until

from castling.config import LinkSettings
from castling.errors import LinkError, LinkProtocol, LinkRefused, SeedFailed, TargetNotEmpty
from castling.host import RealHost
from castling.link.frames import DATA_MAX, FrameType
from castling.link.sender import BulkClient, HelloInfo


@contextlib.asynccontextmanager
async def bulk(folder: Path, handler: object = None) -> AsyncIterator[tuple[Backup, BulkClient]]:
    """A receiver whose bulk calls go to `handler`, and a client of it."""
    backup = Backup(folder)
    if handler is not None:
        backup.receiver._bulk = handler  # type: ignore[assignment] # any callable of that shape
    async with backup.running() as address:
        hello = HelloInfo(group="orders", node="east", epoch=1, installation=INSTALLATION)
        client = BulkClient(RealHost(), address, None, hello, LinkSettings())
        try:
            yield backup, client
        finally:
            await client.close()


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def test_calls_follow_one_another_on_a_connection(tmp_path: Path) -> None:
    large = bytes(range(256)) * ((DATA_MAX * 3) // 256 + 5)
    async with bulk(tmp_path) as (backup, client):
        call = await client.open()
        for number in range(20):
            assert await call(b"call %d" % number, chunks(b"ab", b"", b"c")) == b"3"
        assert await call(b"large", chunks(large)) == b"%d" % len(large)
        assert await call(b"none", None) == b"0"
    assert backup.calls[-2:] == [(b"large", large), (b"none", b"")]


async def test_connections_work_side_by_side(tmp_path: Path) -> None:
    async with bulk(tmp_path) as (backup, client):
        calls = [await client.open() for _ in range(4)]
        sizes = await asyncio.gather(*(call(b"", chunks(*[b"x" * 1000] * 200)) for call in calls))
    assert sizes == [b"200000"] * 4 and len(backup.calls) == 4


async def test_the_far_side_s_error_is_raised_as_its_own_and_the_connection_lives(tmp_path: Path) -> None:
    async def handler(meta: bytes, body: AsyncIterator[bytes]) -> bytes:
        if meta == b"bad":
            raise TargetNotEmpty("public.orders has rows", hint="empty it", table="public.orders")
        return b"".join([chunk async for chunk in body])

    async with bulk(tmp_path, handler) as (_, client):
        call = await client.open()
        with pytest.raises(TargetNotEmpty) as caught:
            await call(b"bad", chunks(*[bytes(DATA_MAX)] * 20))
        assert caught.value.context == {"table": "public.orders"} and caught.value.hint == "empty it"
        assert await call(b"good", chunks(b"fine")) == b"fine"


async def test_a_refused_body_is_not_sent_to_its_end(tmp_path: Path) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1
            yield bytes(1000)
            await asyncio.sleep(0)

    async def handler(meta: bytes, body: AsyncIterator[bytes]) -> bytes:
        async for _ in body:
            raise SeedFailed("enough")
        return b""

    async with bulk(tmp_path, handler) as (_, client):
        call = await client.open()
        with pytest.raises(SeedFailed):
            await asyncio.wait_for(call(b"", endless()), 20)
        assert sent > 0


async def test_a_handler_that_does_not_read_holds_the_sender_back(tmp_path: Path) -> None:
    pulled, reading = 0, asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        nonlocal pulled
        noise = RealHost().random.randbytes(DATA_MAX)
        for _ in range(200):
            pulled += 1
            yield noise

    async def handler(meta: bytes, body: AsyncIterator[bytes]) -> bytes:
        await reading.wait()
        return b"%d" % sum([len(chunk) async for chunk in body])

    async with bulk(tmp_path, handler) as (_, client):
        call = asyncio.create_task((await client.open())(b"", body()))
        seen = -1
        while seen != pulled:  # until it stands still
            seen = pulled
            await asyncio.sleep(0.2)
        assert pulled < 60, "200 MiB were taken from the source for nobody"
        reading.set()
        assert await call == b"%d" % (200 * DATA_MAX)


async def test_a_caller_that_goes_away_ends_its_handler(tmp_path: Path) -> None:
    events: list[str] = []

    async def handler(meta: bytes, body: AsyncIterator[bytes]) -> bytes:
        events.append("begun")
        try:
            return b"".join([chunk async for chunk in body])
        except asyncio.CancelledError:
            events.append("cancelled")
            raise

    async def stuck() -> AsyncIterator[bytes]:
        yield b"some"
        await asyncio.Event().wait()

    async with bulk(tmp_path, handler) as (_, client):
        call = asyncio.create_task((await client.open())(b"", stuck()))
        await until(lambda: events == ["begun"], "the handler")
        call.cancel()
        await asyncio.wait((call,))
        await until(lambda: events == ["begun", "cancelled"], "its end")


async def test_a_source_that_fails_in_the_middle_is_not_taken_for_the_end(tmp_path: Path) -> None:
    finished: list[bytes] = []

    async def handler(meta: bytes, body: AsyncIterator[bytes]) -> bytes:
        finished.append(b"".join([chunk async for chunk in body]))
        return b""

    async def failing() -> AsyncIterator[bytes]:
        yield b"half"
        raise SeedFailed("the source went away")

    async with bulk(tmp_path, handler) as (backup, client):
        call = await client.open()
        with pytest.raises(SeedFailed):
            await call(b"", failing())
        await until(lambda: not backup.receiver._connections, "the connection to end")
        assert not finished, "half a body was taken for a whole one"
        with pytest.raises(LinkError):
            await call(b"", None)


async def test_a_receiver_that_goes_away_fails_the_call(tmp_path: Path) -> None:
    async def handler(meta: bytes, body: AsyncIterator[bytes]) -> bytes:
        await asyncio.Event().wait()
        return b""

    async with bulk(tmp_path, handler) as (backup, client):
        call = asyncio.create_task((await client.open())(b"", None))
        await until(lambda: backup.receiver._bulks, "the call's connection")
        for task in backup.receiver._bulks:
            task.cancel()
        with pytest.raises(LinkError):
            await call


async def test_a_mistake_in_a_handler_is_loud(tmp_path: Path) -> None:
    async def handler(meta: bytes, body: AsyncIterator[bytes]) -> bytes:
        raise ZeroDivisionError("a mistake of ours")

    backup = Backup(tmp_path)
    backup.receiver._bulk = handler
    task = asyncio.create_task(backup.receiver.run())
    address = await until(lambda: backup.receiver.address, "the receiver")
    hello = HelloInfo(group="orders", node="east", epoch=1, installation=INSTALLATION)
    client = BulkClient(RealHost(), address, None, hello, LinkSettings())
    with pytest.raises(LinkError):
        await (await client.open())(b"", None)
    with pytest.raises(ZeroDivisionError):
        await task
    await client.close()
    backup.journal.close()


async def test_two_calls_at_once_break_the_protocol(tmp_path: Path) -> None:
    begun = asyncio.Event()

    async def handler(meta: bytes, body: AsyncIterator[bytes]) -> bytes:
        begun.set()
        await asyncio.Event().wait()
        return b""

    async with bulk(tmp_path, handler) as (_, client):
        call = asyncio.create_task((await client.open())(b"first", None))
        await begun.wait()
        channel = client._connections[0]._channel
        await channel.write(FrameType.CALL, b"second")
        with pytest.raises(LinkProtocol, match="before the answer"):
            await call


async def test_a_new_record_stream_ends_the_bulk_calls_before_it(tmp_path: Path) -> None:
    begun = asyncio.Event()

    async def handler(meta: bytes, body: AsyncIterator[bytes]) -> bytes:
        begun.set()
        await asyncio.Event().wait()
        return b""

    async with bulk(tmp_path, handler) as (backup, client):
        call = asyncio.create_task((await client.open())(b"", None))
        await begun.wait()
        assert backup.receiver.address is not None
        sender = make_sender(backup.receiver.address)
        await sender.connect()
        with pytest.raises(LinkError):
            await call
        await sender.close()


async def test_bulk_is_refused_as_records_are(tmp_path: Path) -> None:
    async with bulk(tmp_path) as (backup, _):
        assert backup.receiver.address is not None
        hello = HelloInfo(group="billing", node="east", epoch=1, installation=INSTALLATION)
        with pytest.raises(LinkRefused):
            await BulkClient(RealHost(), backup.receiver.address, None, hello, LinkSettings()).open()
