"""The spool: what was captured while the backup was away is sent later, whole, whoever died meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from link_cast import Source, until
from test_link_feed import FarJournal

from castling.config import SpoolSettings
from castling.errors import ContinuityLost, JournalFull, JournalGap, LinkProtocol, StaleEpoch
from castling.groups.spool import Spool
from castling.groups.spooling import SpoolFeed
from castling.host import RealHost
from castling.journal.journal import Journal
from castling.journal.record import Draft, Position, RecordType, Tail
from castling.journal.segment import encode, walk
from castling.link.feed import CaptureFeed
from castling.link.journal_feed import JournalFeed

_BEGIN_AT = 5


class Cast:
    """A source, the feed of one process after the other, and a far journal."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.source = Source()
        self.far = FarJournal()
        self.feed: SpoolFeed

    def process(self, *, epoch: int = 1, **spool: int) -> SpoolFeed:
        """The next process, which knows what is on the disk."""
        host = RealHost()
        kept = Spool(
            host,
            str(self.folder / "spool"),
            group="g",
            epoch=epoch,
            settings=SpoolSettings(min_free=0, segment=1 << 20, **spool),
        )
        kept.recover()
        capture: Any = self.source
        self.feed = SpoolFeed(
            host,
            CaptureFeed(host, capture, epoch=epoch, window=1 << 20),
            kept,
            begin_at=_BEGIN_AT,
            window=1 << 20,
            waiting=lambda: len(self.source.log) - self.source.confirmed,
        )
        self.feed.LOOK_S = self.feed.AWAY_S = self.feed.RETRY_S = 0.02  # type: ignore[misc]
        return self.feed

    @contextlib.asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """What works beside the feed, until the process dies."""
        task = asyncio.create_task(self.feed.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait((task,))
            if not task.cancelled():
                task.result()

    async def send(self, changes: int, *, acknowledge: bool = True) -> None:
        """Over a link, until the far journal holds so many changes."""
        async with asyncio.timeout(20):
            while len(self.far.payloads) < changes:
                self.far.append(await self.feed.next())
                if acknowledge:
                    await self.feed.acknowledge(self.far.tails[-1])

    async def spooled(self, changes: int) -> None:
        await until(lambda: self.source.confirmed >= changes, "the spool holds what was written")


@pytest.fixture
def cast(tmp_path: Path) -> Cast:
    return Cast(tmp_path)


def _write(cast: Cast, changes: int) -> None:
    cast.source.write(*(b"change %d" % (len(cast.source.log) + n) for n in range(changes)))


async def test_a_backup_that_is_away_gets_all_of_it_later(cast: Cast) -> None:
    feed = cast.process()
    feed.may_begin = True
    _write(cast, 10)
    await feed.open(Tail())
    async with cast.at_work():
        await cast.send(10)
        feed.lost()
        _write(cast, 50)
        await cast.spooled(60)
        assert feed.state == "filling" and len(cast.far.payloads) == 10
        assert [each["code"] for each in feed.warnings()] == ["spooling"]
        await feed.open(cast.far.tails[-1])
        await cast.send(60)
        _write(cast, 5)
        await cast.send(65)
        await until(lambda: feed.state == "empty", "the spool is sent")
    assert cast.far.payloads == cast.source.log
    assert not list((cast.folder / "spool").iterdir())
    await feed.close()


async def test_the_next_process_spools_on_without_a_link(cast: Cast) -> None:
    """Also what the far side got and never acknowledged lies in the spool."""
    feed = cast.process()
    feed.may_begin = True
    _write(cast, 10)
    await feed.open(Tail())
    async with cast.at_work():
        await cast.send(3)
        await cast.send(10, acknowledge=False)
        feed.lost()
        await until(lambda: feed.state == "kept", "what was on its way is kept")
    for _ in range(3):  # killed: nothing is closed
        feed = cast.process()
        assert feed.state == "kept"
        async with cast.at_work():
            _write(cast, 20)
            await cast.spooled(len(cast.source.log))
    feed = cast.process()
    async with cast.at_work():
        tail = cast.far.tails[-1]
        await feed.open(tail)
        assert feed.oldest_ns() == tail.t_ns, (
            "what waits is younger than what the backup has, and not zero old"
        )
        await cast.send(70)
        assert feed.oldest_ns() is None
    assert cast.far.payloads == cast.source.log


async def test_control_a_spool_without_what_was_on_its_way_is_noticed(
    cast: Cast, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = Spool.begin

    async def without(self: Spool, after: Tail, runs: Any) -> None:
        await begin(self, after, [])

    monkeypatch.setattr(Spool, "begin", without)
    feed = cast.process()
    feed.may_begin = True
    _write(cast, 10)
    await feed.open(Tail())
    async with cast.at_work():
        await cast.send(3)
        await cast.send(10, acknowledge=False)
        feed.lost()
        await until(lambda: feed.state == "kept", "a spool is begun")
    feed = cast.process()
    async with cast.at_work():
        _write(cast, 20)
        await cast.spooled(30)
        with pytest.raises(JournalGap):
            await feed.open(cast.far.tails[-1])


async def test_a_full_spool_takes_nothing_more_and_loses_nothing(cast: Cast) -> None:
    feed = cast.process(size=1 << 20)
    feed.may_begin = True
    await feed.open(Tail())
    async with cast.at_work():
        _write(cast, 10)
        await cast.send(10)
        feed.lost()
        cast.source.write(*(bytes([n]) * 100_000 for n in range(40)))
        await until(lambda: feed.state == "full", "the spool is full")
        held = cast.source.confirmed
        assert 10 < held < 50, "it took what it had room for"
        assert [each["code"] for each in feed.warnings()] == ["spool-full"]
        await feed.open(cast.far.tails[-1])
        await cast.send(50)
        await until(lambda: feed.state == "empty", "the spool is sent")
    assert cast.far.payloads == cast.source.log


async def test_what_is_no_whole_spool_is_none(cast: Cast) -> None:
    """A process that dies while it begins one leaves files, and nothing was taken from the source."""
    spool = Spool(
        RealHost(), str(cast.folder / "spool"), group="g", epoch=1, settings=SpoolSettings(min_free=0)
    )
    await spool.begin(Tail(), [])
    (cast.folder / "spool" / "spool.json").unlink()
    assert cast.process().state == "empty"
    assert not list((cast.folder / "spool").iterdir())


async def test_a_spool_that_can_not_be_read_is_a_gap(cast: Cast) -> None:
    feed = cast.process()
    feed.may_begin = True
    await feed.open(Tail())
    async with cast.at_work():
        _write(cast, 10)
        await cast.send(10)
        feed.lost()
        _write(cast, 50)
        await cast.spooled(60)
    (segment,) = (cast.folder / "spool").glob("*.seg")
    with segment.open("r+b") as file:
        file.seek(4096 + 100)
        file.write(b"rot")
    with pytest.raises(ContinuityLost, match="can't be read"):
        cast.process()


async def test_a_spool_of_another_epoch_is_not_sent(cast: Cast) -> None:
    feed = cast.process()
    feed.may_begin = True
    await feed.open(Tail())
    async with cast.at_work():
        _write(cast, 10)
        await cast.send(10)
        feed.lost()
        _write(cast, 50)
        await cast.spooled(60)
    feed = cast.process(epoch=2)
    with pytest.raises(ContinuityLost, match="another epoch"):
        await feed.open(cast.far.tails[-1])


# --- sending a local journal ------------------------------------------------------------------


async def _journal(folder: Path, records: int, begins: Tail | None = None) -> Journal:
    journal = Journal.open(RealHost(), str(folder), group="g", segment_bytes=1 << 20, begins=begins)
    journal.raise_epoch(1)
    for _ in range(records):
        seq = journal.tail.position.seq + 1
        journal.append(encode(Draft(RecordType.DATA, b"%d" % seq * 9, seq), Position(1, seq), seq))
    await journal.harden()
    return journal


async def test_a_local_journal_is_sent_as_it_was_written(tmp_path: Path) -> None:
    journal = await _journal(tmp_path, 100)
    feed = JournalFeed(RealHost(), str(tmp_path), epoch=1)
    feed.RUN_BYTES = 1000  # type: ignore[misc]
    for after in (0, 1, 57, 99):
        await feed.open(Tail(Position(1, after), after, after) if after else Tail())
        sent = b""
        while not sent.endswith(b"100" * 9):
            sent += (await feed.next()).data
        found = [record.position.seq for record in walk(sent)]
        assert found == list(range(after + 1, 101))
        assert sent in next(tmp_path.glob("*.seg")).read_bytes()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await feed.next()
    seq = Position(1, 101)
    journal.append(encode(Draft(RecordType.DATA, b"late", 101), seq, 101))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await feed.next()  # it is not durable here yet
    await journal.harden()
    feed.ring()
    assert (await feed.next()).last == seq
    with pytest.raises(LinkProtocol):
        await feed.acknowledge(Tail(Position(1, 102), 102, 102))


async def test_a_far_journal_that_is_no_beginning_of_the_local_one_is_refused(tmp_path: Path) -> None:
    await _journal(tmp_path, 20, begins=Tail(Position(1, 10), 10, 10))
    feed = JournalFeed(RealHost(), str(tmp_path), epoch=1, begins=Tail(Position(1, 10), 10, 10))
    await feed.open(Tail(Position(1, 10), 10, 10))
    await feed.open(Tail(Position(1, 30), 30, 30))
    for other in (
        Tail(Position(1, 9), 9, 9),  # before it begins
        Tail(Position(1, 31), 31, 31),  # behind its end
        Tail(Position(1, 20), 21, 20),  # another record
        Tail(Position(1, 10), 10, 9),
        Tail(),
    ):
        with pytest.raises(JournalGap):
            await feed.open(other)
    with pytest.raises(StaleEpoch):
        await feed.open(Tail(Position(2, 20), 20, 20))


async def test_a_journal_that_goes_on_behind_another_is_recovered(tmp_path: Path) -> None:
    begins = Tail(Position(1, 10), 10, 10, b"token")
    for records in (0, 5):
        journal = await _journal(tmp_path, records, begins)
        end = journal.tail
        assert end.position.seq == 10 + records and end.session == b"token"
        journal.close()
        again = Journal.open(RealHost(), str(tmp_path), group="g", segment_bytes=1 << 20, begins=begins)
        assert again.tail == end and again.epoch == 1
        again.close()
    with pytest.raises(JournalGap):
        Journal.open(RealHost(), str(tmp_path / "x"), group="g", segment_bytes=1 << 20, begins=begins).close()
        Journal.open(RealHost(), str(tmp_path / "x"), group="g", segment_bytes=1 << 20).close()


async def test_no_room_leaves_what_there_was(tmp_path: Path) -> None:
    settings = SpoolSettings(min_free=1 << 62)
    spool = Spool(RealHost(), str(tmp_path / "spool"), group="g", epoch=1, settings=settings)
    source: Any = Source()
    feed = CaptureFeed(RealHost(), source, epoch=1, window=1 << 20)
    await feed.open(Tail())
    source.write(b"x")
    await feed.next()
    with pytest.raises(JournalFull):
        await spool.begin(*feed.unacknowledged())
    assert not spool.is_there
    spool.recover()
    assert not spool.is_there
