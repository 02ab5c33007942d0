"""A full disk loses nothing that was acknowledged; releasing never takes what is needed."""

from __future__ import annotations

import errno
import random
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from journal_cast import draft, open_journal, places, read_all, record, run
from journal_host import MemoryHost

from castling.config import RetentionSettings
from castling.errors import JournalFull
from castling.journal.journal import Journal
from castling.journal.reader import JournalReader
from castling.journal.record import Draft, Flag, Position, RecordType
from castling.journal.retention import Closed, forecast_full_s, releasable
from castling.journal.segment import encode
from castling.testing.sim.disk import SimDisk

_DIR = "/journal"
_SEGMENT = 4096 + 1000


# --- full disks -------------------------------------------------------------------------------


class _FullAt:
    """Fails the n-th operation from now on that takes room, once."""

    def __init__(self, nth: int) -> None:
        self.left = nth

    def __call__(self, what: str, name: str) -> None:
        if what in ("write", "allocate", "create") and not name.endswith(".mark"):
            self.left -= 1
            if self.left == 0:
                raise OSError(errno.ENOSPC, "no space left on device")


async def _fill(host: MemoryHost) -> int:
    """Append sixty records in runs across segments; how often that was refused."""
    journal = open_journal(host, _DIR, segment_bytes=_SEGMENT)
    refused = 0
    seq = 0
    while seq < 60:
        try:
            journal.append(run(seq + 1, min(seq + 9, 60)))
        except JournalFull:
            refused += 1
            assert journal.tail.position.seq >= seq, "what was taken before is still there"
        seq = journal.tail.position.seq
        said = await journal.harden()
        lost = open_journal(host.after_power_loss(), _DIR, segment_bytes=_SEGMENT)
        assert lost.tail == said == journal.tail, "what is behind the last good record was left there"
    return refused


async def test_no_room_at_any_write_loses_nothing_and_goes_on() -> None:
    truth = [draft(seq).payload for seq in range(1, 61)]
    refusals = []
    for nth in range(1, 1000):
        host = MemoryHost()
        open_journal(host, _DIR, segment_bytes=_SEGMENT).close()
        host.before = full = _FullAt(nth)
        refusals.append(await _fill(host))
        assert [each.payload for each in read_all(host, _DIR, Position(1, 1))] == truth
        if full.left > 0:
            break
    assert len(refusals) > 30 and max(refusals) == 1 and refusals[-1] == 0


async def test_a_disk_that_is_full_for_long_refuses_until_there_is_room() -> None:
    host = MemoryHost()
    journal = open_journal(host, _DIR, segment_bytes=_SEGMENT)
    host.sim.room = host.sim.used() + 2 * _SEGMENT
    with pytest.raises(JournalFull) as refusal:
        for seq in range(1, 100):
            journal.append(record(seq))
    assert refusal.value.hint
    said = await journal.harden()
    for _ in range(3):
        with pytest.raises(JournalFull):
            journal.append(record(said.position.seq + 1))
        assert await journal.harden() == said
    reopened = open_journal(host, _DIR, segment_bytes=_SEGMENT)
    assert reopened.tail == said
    host.sim.room = None
    reopened.append(run(said.position.seq + 1, 100))
    await reopened.harden()
    assert len(read_all(host, _DIR, Position(1, 1))) == 100


@pytest.mark.parametrize("seed", range(10))
async def test_a_partial_write_is_taken_back(seed: int) -> None:
    """Opened on a full disk a journal has no room reserved: a write may leave a part of itself."""
    host = MemoryHost(SimDisk(random.Random(seed)))
    journal = open_journal(host, _DIR, segment_bytes=1 << 16)
    journal.append(run(1, 3))
    await journal.harden()
    ((path, entries),) = places(host, _DIR)
    end = entries[-1].place + len(record(3))
    journal.close()
    host.sim.room = host.sim.used() - len(host.files(_DIR)[path]) + end + 500
    journal = open_journal(host, _DIR, segment_bytes=1 << 16)
    assert len(host.files(_DIR)[path]) == end, "there was no room to reserve"
    with pytest.raises(JournalFull):
        journal.append(run(4, 12))
    assert journal.tail.position.seq == 3
    assert len(host.files(_DIR)[path]) == end, "a part of the failed write stands behind the tail"
    journal.append(run(4, 5))
    await journal.harden()
    assert open_journal(host.after_power_loss(), _DIR).tail.position.seq == 5


async def test_room_below_what_is_kept_free_is_no_room() -> None:
    host = MemoryHost()
    host.sim.room = 1 << 20
    journal = open_journal(host, _DIR, min_free=(1 << 20) - (17 << 10))
    journal.append(record(1))
    host.sim.room -= 4096
    host.now_s += 2
    with pytest.raises(JournalFull):
        journal.append(record(2))
    host.sim.room += 4096
    journal.append(record(2))
    await journal.harden()
    assert journal.hardened.position.seq == 2


# --- releasing --------------------------------------------------------------------------------

_SEGMENTS = st.lists(
    st.tuples(st.integers(1, 50), st.integers(0, 10**10), st.integers(1, 10**6)), max_size=12
).map(
    lambda rows: [
        Closed(1 + sum(row[0] for row in rows[:i]), sum(row[0] for row in rows[: i + 1]), row[1], row[2])
        for i, row in enumerate(rows)
    ]
)


@given(
    segments=_SEGMENTS,
    needed=st.integers(0, 700),
    size=st.integers(0, 10**7),
    age_s=st.floats(0, 10),
    now_ns=st.integers(0, 10**10),
)
def test_releasing_takes_only_the_oldest_and_never_what_is_needed(
    segments: list[Closed], needed: int, size: int, age_s: float, now_ns: int
) -> None:
    retention = RetentionSettings(size=size, age=age_s)
    gone = releasable(segments, needed_seq=needed, retention=retention, now_ns=now_ns)
    assert gone == [each.first_seq for each in segments[: len(gone)]], "oldest first, no hole"
    assert all(each.last_seq < needed for each in segments[: len(gone)])
    free = [each for each in segments[len(gone) :] if each.last_seq < needed]
    assert sum(each.size for each in free) <= size
    if free:
        assert now_ns - free[0].last_ns <= age_s * 1e9


def test_without_limits_nothing_is_released_and_without_need_all() -> None:
    segments = [Closed(1, 9, 0, 100), Closed(10, 19, 5, 100)]
    endless = RetentionSettings(size=1 << 40, age=1e9)
    none = RetentionSettings(size=0, age=0.0)
    assert releasable(segments, needed_seq=100, retention=endless, now_ns=10) == []
    assert releasable(segments, needed_seq=100, retention=none, now_ns=10) == [1, 10]
    assert releasable(segments, needed_seq=19, retention=none, now_ns=10) == [1]
    assert releasable(segments, needed_seq=9, retention=none, now_ns=10) == []


@settings(max_examples=60)
@given(
    keyframes=st.sets(st.integers(2, 60), max_size=8),
    applied=st.integers(0, 60),
    size=st.sampled_from([0, 1, 3 * _SEGMENT, 1 << 40]),
    fresh_epoch=st.booleans(),
)
async def test_apply_can_always_start_again_after_a_release(
    keyframes: set[int], applied: int, size: int, fresh_epoch: bool
) -> None:
    host = MemoryHost()
    journal = open_journal(host, _DIR, segment_bytes=_SEGMENT)
    keyframes = keyframes | {1}
    for seq in range(1, 61):
        flags = Flag.KEYFRAME if seq in keyframes else Flag.NONE
        journal.append(
            encode(Draft(RecordType.DATA, b"x" * 90, seq * 10, flags), Position(1, seq), 1000 + seq)
        )
    await journal.harden()
    if fresh_epoch:
        journal.raise_epoch(2)
    keyframe = journal.keyframe_at_or_before(applied * 10)
    where = Position(1, applied)
    kept = RetentionSettings(size=size, age=1e9)
    removed = journal.release(where, keyframe=keyframe, retention=kept, now_ns=2000)
    if keyframe is None:
        assert removed == []
    if size == 1 << 40:
        assert removed == []
    reopened = open_journal(host.after_power_loss(), _DIR, segment_bytes=_SEGMENT)
    assert reopened.tail.position.seq == 60
    start = keyframe or Position(1, 1)
    reader = JournalReader(host, _DIR)
    assert reader.keyframe_at_or_before(applied * 10) == keyframe
    found = read_all(host, _DIR, start)
    assert [each.position.seq for each in found] == list(range(start.seq, 61))
    assert start.seq in keyframes and start.seq <= max(applied, 1)


async def test_what_is_not_needed_is_released() -> None:
    """That the property above does not hold only because nothing is ever removed."""
    host = MemoryHost()
    journal = open_journal(host, _DIR, segment_bytes=_SEGMENT)
    journal.append(run(1, 60))
    await journal.harden()
    before = journal.size_bytes()
    where = Position(1, 45)
    gone = journal.release(where, keyframe=Position(1, 41), retention=RetentionSettings(size=0), now_ns=2000)
    assert len(gone) > 3 and journal.size_bytes() < before
    assert not any(host.disk.exists(path) for path in gone)
    assert min(each.seq for _, entries in places(host, _DIR) for each in entries) > 30
    assert _is_without_stray_indexes(host)


def _is_without_stray_indexes(host: MemoryHost) -> bool:
    names = host.disk.listdir(_DIR)
    segments = {name.removesuffix(".seg") for name in names}
    return all(name.removesuffix(".idx") in segments for name in names if name.endswith(".idx"))


async def test_a_released_journal_goes_on_where_it_was() -> None:
    host = MemoryHost()
    journal = open_journal(host, _DIR, segment_bytes=_SEGMENT)
    journal.append(run(1, 60))
    tail = await journal.harden()
    journal.release(
        Position(1, 60), keyframe=Position(1, 51), retention=RetentionSettings(size=0), now_ns=2000
    )
    again = Journal.open(host.after_power_loss(), _DIR, group="bank", segment_bytes=_SEGMENT)
    assert again.tail == tail and again.tail.session == draft(51).payload


def test_the_forecast_of_a_full_disk_is_now_even_when_nothing_can_be_written() -> None:
    assert forecast_full_s(free_bytes=5, min_free=10, bytes_per_s=0.0) == 0.0
    assert forecast_full_s(free_bytes=5, min_free=10, bytes_per_s=None) == 0.0
    assert forecast_full_s(free_bytes=110, min_free=10, bytes_per_s=10.0) == 10.0
    assert forecast_full_s(free_bytes=110, min_free=10, bytes_per_s=0.0) is None
