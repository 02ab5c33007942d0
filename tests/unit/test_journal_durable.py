"""What is hardened survives a crash of the machine at any moment; so does a raised epoch."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from journal_cast import GROUP, draft, open_journal, read_all, record, run
from journal_host import MemoryHost, Operation

from castling.config import RetentionSettings
from castling.errors import JournalCorrupt, JournalError, JournalFull, StaleEpoch
from castling.host import File
from castling.journal.journal import Journal
from castling.journal.reader import JournalReader
from castling.journal.record import Position, Tail

_DIR = "/journal"
_SEGMENT = 4096 + 1000
_NOTHING_KEPT = RetentionSettings(size=0, age=0.0)


class _Unsynced(Journal):
    """A broken journal: it says that records are hardened and has not synced them."""

    async def harden(self) -> Tail:
        self.hardened = self.tail
        self._publish()
        return self.hardened


# --- power ------------------------------------------------------------------------------------


async def _hardened_then_lost(kind: type[Journal]) -> tuple[Tail, Tail]:
    """What a journal said is hardened, and what a crash of the machine left of it."""
    host = MemoryHost()
    journal = kind.open(host, _DIR, group=GROUP, segment_bytes=16 << 10)
    journal.raise_epoch(1)
    journal.append(run(1, 7))
    said = await journal.harden()
    return said, open_journal(host.after_power_loss(), _DIR).tail


async def test_a_hardened_record_survives_power_loss() -> None:
    said, left = await _hardened_then_lost(Journal)
    assert left == said and said.position == Position(1, 7)


async def test_a_journal_that_does_not_sync_is_caught() -> None:
    said, left = await _hardened_then_lost(_Unsynced)
    assert left.position < said.position, "the disk of this test would hide a missing sync"


class _PowerCut(BaseException):
    """The machine loses power before this operation of its disk."""


class _Life:
    """A journal's life by a fixed script, which a power cut may end at any operation.

    `acknowledged`: what had been told to be hardened; `epoch`: what `raise_epoch` had returned for.
    `reset` is true from before a reset is begun: what was acknowledged may then be gone.
    """

    def __init__(self, host: MemoryHost) -> None:
        self.host = host
        self.acknowledged = 0
        self.epoch = 0
        self.reset = False

    async def live(self) -> None:
        journal = open_journal(self.host, _DIR, segment_bytes=_SEGMENT)
        self.epoch = 1
        for first in range(1, 25, 6):
            journal.append(run(first, first + 5))
            self.acknowledged = (await journal.harden()).position.seq
        journal.append(run(25, 27))
        journal.raise_epoch(2)
        self.epoch, self.acknowledged = 2, 27
        journal.append(run(28, 40, epoch=2))
        self.acknowledged = (await journal.harden()).position.seq
        where = Position(2, 31)
        assert journal.release(where, keyframe=where, retention=_NOTHING_KEPT, now_ns=10**18)
        journal.raise_epoch(3)
        self.epoch, self.reset = 3, True
        journal.reset()
        self.acknowledged = 0
        journal.append(run(1, 9, epoch=3))
        self.acknowledged = (await journal.harden()).position.seq
        self.reset = False
        journal.close()


async def _cut_before(operation: int) -> _Life:
    """A life that ends before the given operation, counted from 1."""
    life = _Life(MemoryHost())

    def cut(_what: str, _name: str) -> None:
        if len(life.host.log) + 1 == operation:
            raise _PowerCut

    life.host.before = cut
    with contextlib.suppress(_PowerCut):
        await life.live()
    life.host.before = None
    return life


async def _operations() -> list[Operation]:
    life = _Life(MemoryHost())
    await life.live()
    return life.host.log


def _after(life: _Life, host: MemoryHost) -> Journal:
    """Recover what the crash has left, and see that it is all that was promised."""
    journal = open_journal(host, _DIR, segment_bytes=_SEGMENT)
    assert journal.epoch >= life.epoch, "a raised epoch was forgotten"
    if not life.reset:
        assert journal.tail.position.seq >= life.acknowledged, "an acknowledged record was forgotten"
    if journal.hardened.position.seq:
        begin = min(int(name[:20]) for name in host.disk.listdir(_DIR) if name.endswith(".seg"))
        found = read_all(host, _DIR, Position(0, begin))
        assert [each.position.seq for each in found] == list(range(begin, journal.tail.position.seq + 1))
        for each in found:
            assert each.payload == draft(each.position.seq).payload
    return journal


async def test_power_cut_before_any_operation_loses_nothing_acknowledged() -> None:
    total = len(await _operations())
    assert total > 60
    for operation in range(1, total + 2):
        life = await _cut_before(operation)
        _after(life, life.host.after_power_loss())


@pytest.mark.parametrize("seed", range(6))
async def test_power_cut_that_leaves_some_of_what_was_not_synced(seed: int) -> None:
    total = len(await _operations())
    for operation in range(1, total + 2):
        life = await _cut_before(operation)
        life.host.sim._random = random.Random(seed * 1000 + operation)
        life.host.sim.crash()
        journal = _after(life, life.host)
        epoch, seq = journal.epoch, journal.tail.position.seq
        journal.append(run(seq + 1, seq + 3, epoch=epoch))
        await journal.harden()
        again = open_journal(life.host.after_power_loss(), _DIR, segment_bytes=_SEGMENT)
        assert again.tail.position == Position(epoch, seq + 3)


async def test_killed_before_any_operation_the_process_comes_back() -> None:
    """Without a crash of the machine everything written is there."""
    total = len(await _operations())
    for operation in range(1, total + 2):
        life = await _cut_before(operation)
        _after(life, life.host)


# --- the order of syncs -----------------------------------------------------------------------


def _ordered(log: list[Operation]) -> list[str]:
    """What is wrong with the order in which the disk was changed; nothing when it is right."""
    wrong: list[str] = []
    unsynced: set[str] = set()
    renamed: str | None = None
    for what, name in log:
        if not name.endswith((".seg", ".seg.new")) and what != "sync_dir":
            continue
        if what == "write":
            if renamed is not None:
                wrong.append(f"a write to {name} before the folder was synced")
            if unsynced - {name}:
                wrong.append(f"a write to {name} before {unsynced - {name}} was synced")
            unsynced.add(name)
        elif what == "sync":
            unsynced.discard(name)
            unsynced.discard(f"{name}.new")
        elif what == "rename":
            renamed = name
            if unsynced:
                wrong.append(f"{name} got its name before {unsynced} was synced")
        elif what == "sync_dir":
            renamed = None
    return wrong


async def test_a_closed_segment_is_durable_before_the_next_takes_a_record() -> None:
    host = MemoryHost()
    journal = open_journal(host, _DIR, segment_bytes=_SEGMENT)
    for first in range(1, 60, 5):
        journal.append(run(first, first + 4))
    assert sum(what == "rename" for what, _ in host.log) > 4
    assert _ordered(_as_segments(host.log)) == []
    for step in ("sync", "sync_dir"):
        kept = [each for each in host.log if each[0] != step]
        assert _ordered(_as_segments(kept)) != [], f"an order without {step} would pass"


def _as_segments(log: list[Operation]) -> list[Operation]:
    """A file that was written as `.seg.new` keeps that name in the log of its handle: give it its own."""
    last: dict[str, str] = {}
    found = []
    for what, name in log:
        if what == "rename":
            last[f"{name}.new"] = name
        elif what == "create":
            last.pop(name, None)
        found.append((what, last.get(name, name)))
    return found


# --- a failing disk ---------------------------------------------------------------------------


def _failing(what: str, code: int, *, times: int = 1, suffix: str = "") -> Callable[[str, str], None]:
    """The next `times` operations of this sort fail."""
    left = times

    def before(found: str, name: str) -> None:
        nonlocal left
        if found == what and suffix in name and left > 0:
            left -= 1
            raise OSError(code, "made to fail")

    return before


async def test_after_one_failed_sync_the_journal_refuses_for_good() -> None:
    host = MemoryHost()
    journal = open_journal(host, _DIR)
    journal.append(run(1, 3))
    await journal.harden()
    journal.append(run(4, 6))
    host.before = _failing("sync", errno.EIO)
    with pytest.raises(JournalError):
        await journal.harden()
    for attempt in (journal.harden, journal.harden):
        with pytest.raises(JournalError):
            await attempt()
    for refused in (lambda: journal.append(record(7)), lambda: journal.raise_epoch(2), journal.reset):
        with pytest.raises(JournalError):
            refused()
    assert journal.hardened.position.seq == 3
    assert ("sync", "") not in host.log
    journal.close()
    again = open_journal(host, _DIR)
    assert again.tail.position.seq >= 3
    assert open_journal(host.after_power_loss(), _DIR).tail == again.tail, (
        "recovery vouched for what was lost"
    )


@pytest.mark.parametrize("seed", range(20))
async def test_records_lost_by_a_failed_sync_are_written_again_by_recovery(seed: int) -> None:
    host = MemoryHost()
    host.random = random.Random(seed)
    journal = open_journal(host, _DIR)
    journal.append(run(1, 40))
    host.before = _failing("sync", errno.EIO)
    with pytest.raises(JournalError):
        await journal.harden()
    journal.close()
    again = open_journal(host, _DIR)
    assert again.hardened.position.seq == 40
    assert open_journal(host.after_power_loss(), _DIR).tail == again.tail


async def test_a_folder_that_can_not_be_synced_stops_the_journal() -> None:
    host = MemoryHost()
    journal = open_journal(host, _DIR, segment_bytes=_SEGMENT)
    journal.append(run(1, 5))
    host.before = _failing("sync_dir", errno.EIO)
    with pytest.raises(JournalError):
        journal.append(run(6, 12))
    with pytest.raises(JournalError):
        journal.append(record(journal.tail.position.seq + 1))


# --- epochs -----------------------------------------------------------------------------------


async def test_a_raised_epoch_is_durable_and_its_history_kept() -> None:
    host = MemoryHost()
    journal = open_journal(host, _DIR)
    journal.append(run(1, 4))
    journal.raise_epoch(2)
    journal.raise_epoch(3)
    lost = open_journal(host.after_power_loss(), _DIR)
    assert lost.epoch == 3 and lost.epoch_history == ((1, 1), (3, 5)) and lost.tail.position == Position(1, 4)
    with pytest.raises(StaleEpoch):
        lost.append(record(5, epoch=2))
    with pytest.raises(StaleEpoch):
        lost.raise_epoch(2)
    lost.append(run(5, 6, epoch=3))
    await lost.harden()
    assert open_journal(lost._host, _DIR).tail.position == Position(3, 6)


async def test_a_stale_epoch_in_a_run_takes_nothing_of_it() -> None:
    host = MemoryHost()
    journal = open_journal(host, _DIR)
    journal.append(run(1, 2))
    journal.raise_epoch(2)
    before = host.files(_DIR)
    with pytest.raises(StaleEpoch):
        journal.append(record(3, epoch=2) + record(4, epoch=1))
    assert host.files(_DIR) == before and journal.tail.position.seq == 2


async def test_an_epoch_that_could_not_be_raised_is_not_raised() -> None:
    host = MemoryHost()
    journal = open_journal(host, _DIR)
    journal.append(run(1, 2))
    for what in ("create", "allocate", "write", "rename"):
        host.before = _failing(what, errno.ENOSPC, suffix=".seg")
        with pytest.raises(JournalFull):
            journal.raise_epoch(2)
        assert journal.epoch == 1 and journal.epoch_history == ((1, 1),)
        assert not [name for name in host.disk.listdir(_DIR) if name.endswith(".new")]
    host.before = None
    journal.append(record(3))
    await journal.harden()
    journal.raise_epoch(2)
    assert open_journal(host.after_power_loss(), _DIR).epoch_history == ((1, 1), (2, 4))


# --- beginning anew ---------------------------------------------------------------------------


async def test_a_reset_forgets_the_records_and_keeps_the_epoch() -> None:
    host = MemoryHost()
    journal = open_journal(host, _DIR, segment_bytes=_SEGMENT)
    journal.append(run(1, 30))
    await journal.harden()
    journal.raise_epoch(4)
    old = journal.journal_id
    journal.reset()
    assert journal.tail == Tail() == journal.hardened and journal.journal_id != old
    again = open_journal(host.after_power_loss(), _DIR, segment_bytes=_SEGMENT)
    assert (again.epoch, again.tail, again.journal_id) == (4, Tail(), journal.journal_id)
    assert [name for name in host.disk.listdir(_DIR) if name.endswith(".seg")] == [f"{1:020d}.seg"]


class _SlowHost(MemoryHost):
    """Its syncs off the loop end when they are let."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = asyncio.Event()
        self.let = asyncio.Event()

    async def sync(self, files: Sequence[File]) -> None:
        self.begun.set()
        await self.let.wait()
        await super().sync(files)


async def test_a_sync_of_the_old_journal_hardens_nothing_of_the_new() -> None:
    host = _SlowHost()
    journal = open_journal(host, _DIR)
    journal.append(run(1, 9))
    hardening = asyncio.create_task(journal.harden())
    await host.begun.wait()
    journal.reset()
    journal.append(run(1, 3))
    host.let.set()
    assert await hardening == Tail()
    assert JournalReader(host, _DIR).hardened() is None
    assert (await journal.harden()).position.seq == 3


async def test_records_that_come_during_a_sync_are_not_hardened_by_it() -> None:
    host = _SlowHost()
    journal = open_journal(host, _DIR)
    journal.append(run(1, 3))
    hardening = asyncio.create_task(journal.harden())
    await host.begun.wait()
    journal.append(run(4, 6))
    host.let.set()
    assert (await hardening).position.seq == 3 == journal.hardened.position.seq


async def test_a_reset_without_room_changes_nothing() -> None:
    host = MemoryHost()
    journal = open_journal(host, _DIR, segment_bytes=_SEGMENT)
    journal.append(run(1, 30))
    await journal.harden()
    tail, old = journal.tail, journal.journal_id
    host.before = _failing("write", errno.ENOSPC, suffix=".seg.new")
    with pytest.raises(JournalFull):
        journal.reset()
    assert (journal.tail, journal.hardened, journal.journal_id) == (tail, tail, old)
    journal.append(record(31))
    await journal.harden()
    assert len(read_all(host, _DIR, Position(1, 1))) == 31
    journal.reset()
    assert journal.tail == Tail()


async def test_segments_of_another_journal_are_not_taken_for_an_unfinished_reset() -> None:
    """Only a first segment that is not older than the rest can be a reset's."""
    host, other = MemoryHost(), MemoryHost()
    journal = open_journal(host, _DIR, segment_bytes=_SEGMENT)
    journal.raise_epoch(2)
    journal.append(run(1, 30, epoch=2))
    other.random = random.Random(2)
    open_journal(other, _DIR, segment_bytes=_SEGMENT)
    first = f"{_DIR}/{1:020d}.seg"
    mixed = MemoryHost.of(_DIR, {**host.files(_DIR), first: other.files(_DIR)[first]})
    before = mixed.files(_DIR)
    with pytest.raises((JournalCorrupt, JournalError)):
        open_journal(mixed, _DIR, segment_bytes=_SEGMENT)
    assert mixed.files(_DIR) == before
