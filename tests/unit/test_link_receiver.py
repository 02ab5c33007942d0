"""Who is welcomed, what is acknowledged and when, and what happens when the disk does not play along."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from link_cast import INSTALLATION, Backup, Source, make_sender, open_journal, until

from castling.config import LinkSettings
from castling.errors import (
    CastlingError,
    JournalError,
    JournalFull,
    JournalVersion,
    LinkError,
    LinkForeign,
    LinkProtocol,
    LinkRefused,
    LinkVersion,
    StaleEpoch,
)
from castling.host import File, RealHost
from castling.journal.journal import Journal
from castling.journal.record import Tail
from castling.link.channel import Channel
from castling.link.feed import CaptureFeed
from castling.link.frames import MAGIC, PROTOCOL, RECORD_FORMAT, FrameType, Hello, Purpose, encode
from castling.link.sender import Sender


class FaultyHost(RealHost):
    """The real machine, but syncs wait, fail, or the disk has no room, as told."""

    def __init__(self) -> None:
        super().__init__()
        self.may_sync = asyncio.Event()
        self.may_sync.set()
        self.failing = False
        self.synced = 0
        self.full = False
        real = self.disk
        self.disk = _Disk(real, self)

    async def sync(self, files: Sequence[File]) -> None:
        await self.may_sync.wait()
        if self.failing:
            raise OSError(errno.EIO, "Input/output error")
        await super().sync(files)
        self.synced += 1


class _Disk:
    def __init__(self, real: Any, host: FaultyHost) -> None:
        self._real = real
        self._host = host

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def free_bytes(self, path: str) -> int:
        return 0 if self._host.full else 1 << 40


@contextlib.asynccontextmanager
async def streaming(address: str, source: Source, **settings: Any) -> AsyncIterator[Sender]:
    """A sender that streams `source` until the block is left."""
    sender = make_sender(address, **settings)
    feed = CaptureFeed(RealHost(), source, epoch=settings.get("epoch", 1), window=1 << 20)
    welcome = await sender.connect()
    await feed.open(welcome.tail)
    task = asyncio.create_task(sender.stream(feed))
    try:
        yield sender
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, CastlingError):
            await task
        await feed.close()
        await sender.close()


# --- who is welcomed --------------------------------------------------------------------------


def hello(**changed: Any) -> Hello:
    fields: dict[str, Any] = {
        "magic": MAGIC,
        "version_min": 1,
        "version_max": PROTOCOL,
        "installation": INSTALLATION,
        "group": "orders",
        "node": "east",
        "epoch": 5,
        "purpose": Purpose.RECORDS,
        "journal_format": RECORD_FORMAT,
    }
    return Hello(**{**fields, **changed})


async def say(address: str, first: Hello) -> None:
    """Say hello; raises what it is refused with."""
    host = RealHost()
    channel = Channel(host, await host.network.connect(address, None, timeout_s=5))
    try:
        await channel.write_now(FrameType.HELLO, encode(first))
        await channel.read(FrameType.WELCOME)
    finally:
        channel.close()


REFUSALS: list[tuple[dict[str, Any], type[CastlingError], str]] = [
    ({"version_min": PROTOCOL + 1, "version_max": PROTOCOL + 2}, LinkVersion, "speaks link versions 2 to 3"),
    ({"version_min": 0, "version_max": 0}, LinkVersion, "this node 1 to 1"),
    ({"installation": "f" * 32}, LinkForeign, "another installation"),
    ({"group": "billing"}, LinkRefused, "billing"),
    ({"node": "north"}, LinkRefused, "may not send"),
    ({"journal_format": RECORD_FORMAT + 1}, JournalVersion, "format"),
    ({"epoch": 4}, StaleEpoch, "it is 5 now"),
    ({"magic": "other-link"}, LinkProtocol, "HELLO"),
]


@pytest.mark.parametrize("purpose", list(Purpose))
async def test_each_reason_to_refuse_has_its_own_error(tmp_path: Path, purpose: Purpose) -> None:
    backup = Backup(tmp_path)
    async with backup.running() as address:
        await say(address, hello(purpose=purpose))  # the control: this one is welcome
        for changed, error, text in REFUSALS:
            with pytest.raises(error, match=text) as caught:
                await say(address, hello(purpose=purpose, **changed))
            assert type(caught.value) is error
        assert backup.receiver.report()["refused"] == len(REFUSALS)
        await say(address, hello(purpose=purpose))


async def test_a_newer_release_that_still_speaks_our_version_is_welcome(tmp_path: Path) -> None:
    async with Backup(tmp_path).running() as address:
        await say(address, hello(version_min=PROTOCOL, version_max=PROTOCOL + 5))


async def test_a_newer_epoch_is_durable_before_the_welcome(tmp_path: Path) -> None:
    backup = Backup(tmp_path)
    async with backup.running() as address:
        await say(address, hello(epoch=9))
        assert backup.journal.epoch == 9
    again = open_journal(RealHost(), tmp_path)
    assert again.epoch == 9
    again.close()


async def test_a_deposed_sender_is_stopped_in_the_middle_of_its_stream(tmp_path: Path) -> None:
    backup, source = Backup(tmp_path), Source()
    async with backup.running() as address:
        sender = make_sender(address)
        feed = CaptureFeed(RealHost(), source, epoch=1, window=1 << 20)
        await feed.open((await sender.connect()).tail)
        task = asyncio.create_task(sender.stream(feed))
        source.write(b"before")
        await until(lambda: source.confirmed == 1, "the first change")
        backup.journal.raise_epoch(2)
        source.write(b"after")
        with pytest.raises(StaleEpoch):
            await task
        assert backup.payloads() == [b"before"] and source.confirmed == 1
        with pytest.raises(StaleEpoch):
            await sender.connect()
        await feed.close()


async def test_the_newcomer_ends_the_stream_before_it(tmp_path: Path) -> None:
    backup, old, new = Backup(tmp_path, allowed={"east", "north"}), Source(), Source()
    async with backup.running() as address, streaming(address, old) as first:
        old.write(b"one", b"two")
        await until(lambda: old.confirmed == 2, "the old stream's changes")
        new.log = list(old.log)
        async with streaming(address, new) as second:
            await until(lambda: first.report()["state"] == "down", "the old stream to end")
            old.write(b"never arrives")
            new.write(b"three")
            await until(lambda: new.confirmed == 3, "the new stream's change")
            assert second.report()["state"] == "up"
        assert backup.payloads() == [b"one", b"two", b"three"]


async def test_another_node_takes_over_with_a_newer_epoch_only(tmp_path: Path) -> None:
    backup, old, new = Backup(tmp_path, allowed={"east", "north"}), Source(), Source()
    async with backup.running() as address, streaming(address, old):
        old.write(b"one")
        await until(lambda: old.confirmed == 1, "the old primary's change")
        with pytest.raises(LinkRefused, match="east is sending"):
            await make_sender(address, node="north").connect()
        new.log = [b"one"]
        async with streaming(address, new, node="north", epoch=2):
            new.write(b"two")
            await until(lambda: new.confirmed == 2, "the new primary's change")
        with pytest.raises(StaleEpoch):
            await make_sender(address).connect()
        assert [str(record.position) for record in backup.records()] == ["1/1", "1/2", "2/3", "2/4"]


async def test_there_are_never_more_connections_than_the_limit(tmp_path: Path) -> None:
    backup = Backup(tmp_path)
    async with backup.running() as address:
        host, _, port = address.rpartition(":")
        idle = [await asyncio.open_connection(host, int(port)) for _ in range(40)]
        await until(lambda: backup.receiver.report()["refused"] >= 8, "eight too many")
        for _, writer in idle:
            writer.transport.abort()
        await until(lambda: not backup.receiver._connections, "their end")
        await say(address, hello())


# --- acknowledged means synced ----------------------------------------------------------------


class Unsynced(Journal):
    """A journal that says hardened without having synced: what the check below must notice."""

    async def harden(self) -> Tail:
        self.hardened = self.tail
        self._publish()
        return self.hardened


async def acknowledged_before_sync(folder: Path, kind: type[Journal]) -> int:
    """How many changes are acknowledged while the disk has not answered."""
    host = FaultyHost()
    folder.mkdir()
    (folder / "journal").mkdir()
    journal = kind.open(host, str(folder / "journal"), group="orders", segment_bytes=1 << 20)
    backup, source = Backup(folder, host=host, journal=journal), Source()
    async with backup.running() as address, streaming(address, source) as sender:
        host.may_sync.clear()
        source.write(*[b"change"] * 20)
        await until(lambda: backup.journal.tail.offset == 20, "everything to be appended")
        # frames keep their order, so what was going to be said is said before the next beat's answer
        count = len(sender._clocks._trips)
        await until(lambda: len(sender._clocks._trips) > count, "an answer")
        early = source.confirmed
        host.may_sync.set()
        await until(lambda: source.confirmed == 20, "the acknowledgement after the sync")
        return early


async def test_nothing_is_acknowledged_before_the_disk_has_answered(tmp_path: Path) -> None:
    assert await acknowledged_before_sync(tmp_path / "real", Journal) == 0


async def test_a_journal_that_does_not_sync_is_caught(tmp_path: Path) -> None:
    assert await acknowledged_before_sync(tmp_path / "broken", Unsynced) == 20


async def test_one_sync_covers_all_that_came_meanwhile(tmp_path: Path) -> None:
    host = FaultyHost()
    backup, source = Backup(tmp_path, host=host), Source()
    async with backup.running() as address, streaming(address, source):
        host.may_sync.clear()
        for number in range(50):
            source.write(b"change")
            await until(lambda number=number: backup.journal.tail.offset == number + 1, "the change")
        before = host.synced
        host.may_sync.set()
        await until(lambda: source.confirmed == 50, "all of it")
        assert host.synced - before <= 3


async def test_a_failed_sync_ends_the_receiver_and_acknowledges_nothing(tmp_path: Path) -> None:
    host = FaultyHost()
    backup, source = Backup(tmp_path, host=host), Source()
    task = asyncio.create_task(backup.receiver.run())
    address = await until(lambda: backup.receiver.address, "the receiver")
    async with streaming(address, source) as sender:
        host.failing = True
        source.write(b"change")
        with pytest.raises(JournalError, match="the disk failed"):
            await task
        await until(lambda: sender.report()["state"] == "down", "the sender to notice")
        assert source.confirmed == 0 and sender.report()["last_error"]["code"] == "link-failed"
    backup.journal.close()


async def test_a_full_disk_refuses_loudly_and_goes_on_by_itself(tmp_path: Path) -> None:
    host = FaultyHost()
    journal = open_journal(host, tmp_path, min_free=1 << 20)
    backup, source = Backup(tmp_path, host=host, journal=journal), Source()
    async with backup.running() as address:
        host.full = True
        sender = make_sender(address)
        feed = CaptureFeed(RealHost(), source, epoch=1, window=1 << 20)
        source.write(b"change")
        for _ in range(2):
            await feed.open((await sender.connect()).tail)
            with pytest.raises(JournalFull) as caught:
                await sender.stream(feed)
            assert caught.value.retryable and backup.receiver.report()["state"] == "journal-full"
        host.full = False
        await feed.open((await sender.connect()).tail)
        task = asyncio.create_task(sender.stream(feed))
        await until(lambda: source.confirmed == 1, "the change, once there is room")
        assert backup.receiver.report()["state"] == "receiving"
        task.cancel()
        await asyncio.wait((task,))
        await feed.close()
        await sender.close()


# --- the sender's window ----------------------------------------------------------------------


@pytest.mark.parametrize("compression", [0, 1, "auto"])
async def test_what_is_on_its_way_never_exceeds_the_window(
    tmp_path: Path, compression: int | Literal["auto"]
) -> None:
    host = FaultyHost()
    backup, source = Backup(tmp_path, host=host), Source()
    async with backup.running() as address:
        settings = LinkSettings(window=100_000, compression=compression)
        async with streaming(address, source, settings=settings) as sender:
            host.may_sync.clear()
            source.write(*[bytes(1000)] * 1000)
            await until(lambda: sender.report()["in_flight_bytes"] > 85_000, "a full window")
            received = backup.journal.tail.offset
            host.may_sync.set()
            await until(lambda: source.confirmed == 1000, "all of it")
            assert received <= 100
            report = sender.report()
            assert report["in_flight_bytes"] == 0
            assert (report["ratio"] > 5) == (compression == 1), "a near link is not compressed by itself"


async def test_a_restart_of_the_receiver_goes_on_where_its_disk_is(tmp_path: Path) -> None:
    source = Source()
    feed = CaptureFeed(RealHost(), source, epoch=1, window=1 << 20)
    for round in range(1, 4):
        backup = Backup(tmp_path)
        async with backup.running() as address:
            sender = make_sender(address)
            await feed.open((await sender.connect()).tail)
            task = asyncio.create_task(sender.stream(feed))
            source.write(*[b"%d" % number for number in range(100)])
            await until(lambda round=round: source.confirmed == 100 * round, "this round's changes")
        with pytest.raises(LinkError):
            await task
    again = Backup(tmp_path)
    assert again.payloads() == source.log and source.opens == [0]
    again.journal.close()
    await feed.close()


async def test_both_sides_know_the_round_trip_and_the_clocks(tmp_path: Path) -> None:
    backup, source = Backup(tmp_path), Source()
    async with backup.running() as address, streaming(address, source) as sender:
        assert backup.receiver.report()["peer"] == "east"
        await until(lambda: sender.report()["rtt_s"] is not None, "the sender's first round trip")
        await until(lambda: backup.receiver.report()["rtt_s"] is not None, "the receiver's")
        assert abs(sender.report()["clock_skew_s"]) < 0.5
    assert sender.report()["rtt_s"] is None, "an old figure is not shown as a new one"


async def test_an_address_that_is_taken_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = Backup(tmp_path / "a")
    async with first.running() as address:
        second = Backup(tmp_path / "b", listen=address)
        with pytest.raises(LinkError, match="can't be listened on"):
            await second.receiver.run()
        second.journal.close()


async def test_a_sender_whose_feed_takes_long_to_open_is_not_taken_for_dead(tmp_path: Path) -> None:
    backup = Backup(tmp_path)
    async with backup.running() as address:
        sender = make_sender(address)
        await sender.connect()
        streaming_now = backup.receiver._streaming
        assert streaming_now is not None
        begun = streaming_now.channel.heard_at
        await until(lambda: streaming_now.channel.heard_at > begun + 0.9, "a sign of life without a stream")
        await sender.close()
        await until(lambda: backup.receiver.report()["peer"] is None, "its goodbye")
