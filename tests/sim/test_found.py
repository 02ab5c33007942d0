"""What the simulation has found, each as the shortest story that showed it."""

from __future__ import annotations

import asyncio
import errno
import random
from typing import Any

import pytest

from castling.apply.schedule import Limits
from castling.apply.session import ApplySession, Figures
from castling.config import RetentionSettings
from castling.errors import JournalError, JournalFull, JournalGap, SourceUnreachable, StateUnsaved
from castling.groups.role import write_durably
from castling.journal.journal import Journal
from castling.journal.marks import Mark, Marks
from castling.journal.reader import JournalReader
from castling.journal.record import START, Position, Tail
from castling.journal.segment import encode
from castling.link.feed import CaptureFeed
from castling.testing.sim.host import Machine, SimHost, SimKilled
from castling.testing.sim.ledger import LedgerCapture, LedgerDecoder, LedgerServer
from castling.testing.sim.loop import SimLoop
from castling.testing.sim.network import SimNetwork
from castling.testing.sim.replica import LedgerTarget, Replica

FOLDER = "/j"


class Place:
    """A machine with a process, a ledger with some transactions and a journal."""

    def __init__(self, seed: int = 1) -> None:
        self.loop = SimLoop(seed)
        self.machine = Machine(
            "west", self.loop, SimNetwork(self.loop, random.Random(seed)), random.Random(seed)
        )
        self.host = SimHost(self.machine, "end", lambda: None)
        self.ledger = LedgerServer(self.loop, random.Random(seed))
        self.ledger.create_slot()
        self.machine.disk.makedirs(FOLDER)

    def write(self, txns: int) -> None:
        for _ in range(txns):
            self.ledger.commit([b"x" * 30] * 3, self.machine.wall_ns())

    def open_journal(self) -> Journal:
        return Journal.open(self.host, FOLDER, group="g", segment_bytes=6144)

    async def ship(self, journal: Journal, capture: LedgerCapture) -> Tail:
        """Append what the capture reads next."""
        for draft in await capture.read():
            position = Position(journal.epoch, journal.tail.position.seq + 1)
            journal.append(encode(draft, position, self.machine.wall_ns()))
        return journal.tail

    def run(self, story: Any) -> None:
        self.loop.run_until_complete(story)
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
            self.loop.run_until_complete(asyncio.wait((task,)))
        self.loop.close()


@pytest.mark.parametrize("seed", range(20))
def test_what_a_failed_sync_left_in_the_cache_is_made_durable_before_it_counts(seed: int) -> None:
    place = Place(seed)

    async def story() -> None:
        journal = place.open_journal()
        capture = LedgerCapture(place.host, place.ledger)
        await capture.open(resume=0, session=None)
        place.write(10)
        await place.ship(journal, capture)
        await journal.harden()
        place.write(10)
        await place.ship(journal, capture)
        place.machine.failing_syncs = 1
        with pytest.raises(JournalError):
            await journal.harden()
        with pytest.raises(JournalError):  # it stays given up
            await journal.harden()
        journal.close()
        again = place.open_journal()
        told = again.hardened
        again.close()
        place.machine.disk.crash()
        assert place.open_journal().tail.position >= told.position

    place.run(story())


def test_a_sync_that_succeeds_beside_one_that_failed_vouches_for_nothing() -> None:
    place = Place()

    async def story() -> None:
        journal = place.open_journal()
        capture = LedgerCapture(place.host, place.ledger)
        await capture.open(resume=0, session=None)
        place.write(10)
        await place.ship(journal, capture)
        before = journal.hardened
        hardening = asyncio.ensure_future(journal.harden())
        while place.host.last != "sync":  # it is under way
            await asyncio.sleep(0)
        place.machine.failing_syncs = 1
        with pytest.raises(JournalError):  # the segment is full: closing it needs a sync
            while True:
                place.write(20)
                await place.ship(journal, capture)
        with pytest.raises(JournalError):
            await hardening
        assert journal.hardened == before

    place.run(story())


@pytest.mark.parametrize("seed", range(20))
def test_a_segment_whose_maker_died_keeps_its_name(seed: int) -> None:
    """The writer dies between giving a new segment its name and syncing the folder."""
    place = Place(seed)

    async def story() -> None:
        journal = place.open_journal()
        capture = LedgerCapture(place.host, place.ledger)
        await capture.open(resume=0, session=None)
        sync_dir = place.host.disk.sync_dir

        def die(path: str) -> None:
            place.host.kill()
            sync_dir(path)

        place.host.disk.sync_dir = die  # type: ignore[method-assign]
        with pytest.raises(SimKilled):
            while True:
                place.write(20)
                await place.ship(journal, capture)
        place.host = SimHost(place.machine, "successor", lambda: None)
        again = place.open_journal()
        capture = LedgerCapture(place.host, place.ledger)
        await capture.open(resume=again.tail.offset, session=again.tail.session)
        await place.ship(again, capture)
        told = await again.harden()
        place.machine.disk.crash()
        assert place.open_journal().tail.position >= told.position

    place.run(story())


def session_on(place: Place, replica: Replica) -> ApplySession:
    return ApplySession(
        place.host,
        JournalReader(place.host, FOLDER),
        LedgerDecoder(100),
        LedgerTarget(place.host, replica),
        Marks(place.host, FOLDER),
        hardened=place.host.bell("/h"),
        applied=place.host.bell("/a"),
        limits=Limits(),
        memory=1 << 20,
        hold_bytes=1 << 40,
        figures=Figures(),
    )


async def _journal_that_released_its_beginning(place: Place) -> tuple[Journal, int, Mark]:
    """A journal, the progress up to which it released, and a mark from long before."""
    journal = place.open_journal()
    capture = LedgerCapture(place.host, place.ledger)
    await capture.open(resume=0, session=None)
    place.write(1)
    await place.ship(journal, capture)
    await journal.harden()
    old = Marks(place.host, FOLDER).read("hardened")
    assert old is not None
    while len(journal._closed) < 4:
        place.write(10)
        await place.ship(journal, capture)
    await journal.harden()
    progress = journal.tail.offset
    gone = journal.release(
        journal.tail.position,
        keyframe=journal.keyframe_at_or_before(progress),
        retention=RetentionSettings(size=0),
        now_ns=place.machine.wall_ns(),
    )
    assert gone
    place.write(5)
    await place.ship(journal, capture)
    await journal.harden()
    return journal, progress, old


def replica_at(place: Place, progress: int) -> Replica:
    replica = Replica(place.loop.time, random.Random(1), lambda: None)
    replica.commit(place.ledger.rows[: place.ledger.count_upto(progress)], progress)
    return replica


def test_a_mark_from_before_a_crash_is_no_gap() -> None:
    place = Place()

    async def story() -> None:
        journal, progress, old = await _journal_that_released_its_beginning(place)
        newest = Marks(place.host, FOLDER).read("hardened")
        assert newest is not None
        Marks(place.host, FOLDER).publish("hardened", old)
        replica = replica_at(place, progress)
        applying = asyncio.ensure_future(session_on(place, replica).run())
        await asyncio.sleep(5)
        assert not applying.done()
        Marks(place.host, FOLDER).publish("hardened", newest)  # the receive end has recovered
        await asyncio.sleep(5)
        assert replica.rows == place.ledger.rows
        applying.cancel()
        await asyncio.wait((applying,))
        journal.close()

    place.run(story())


def test_a_journal_that_really_begins_too_late_is_a_gap() -> None:
    place = Place()

    async def story() -> None:
        journal, _, _ = await _journal_that_released_its_beginning(place)
        replica = replica_at(place, place.ledger.ends[2])
        with pytest.raises(JournalGap):
            await session_on(place, replica).run()
        journal.close()

    place.run(story())


def test_a_capture_that_fails_while_it_is_told_of_an_acknowledgement_can_be_opened_again() -> None:
    place = Place()

    async def story() -> None:
        place.write(3)
        feed = CaptureFeed(place.host, LedgerCapture(place.host, place.ledger), epoch=1, window=1 << 20)
        await feed.open(Tail())
        run = await feed.next()
        tail = Tail(run.last, run.offset, run.t_ns)
        place.ledger.stop()
        with pytest.raises(SourceUnreachable):
            await feed.acknowledge(tail)
        with pytest.raises(SourceUnreachable):
            await feed.next()
        place.ledger.restart()
        await feed.close()

    place.run(story())


def test_no_room_for_a_mark_or_a_state_is_told_by_its_name() -> None:
    place = Place()
    place.machine.disk.room = 0
    with pytest.raises(JournalFull):
        Marks(place.host, FOLDER).publish("applied", Mark(START, 0, 0))
    with pytest.raises(StateUnsaved) as found:
        write_durably(place.host, FOLDER, "stream.json", b"{}")
    assert isinstance(found.value.__cause__, OSError)
    assert found.value.__cause__.errno == errno.ENOSPC
    place.loop.close()
