"""A reader gives every hardened record once, in order and whole, and says so when it can't."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from journal_cast import draft, open_journal, places, read_all, record, run
from journal_host import MemoryHost

from castling.config import RetentionSettings
from castling.errors import JournalCorrupt, JournalGap
from castling.host import RealHost
from castling.journal.journal import Journal
from castling.journal.marks import Mark, Marks
from castling.journal.reader import JournalReader
from castling.journal.record import Draft, Position, RecordType, Tail
from castling.journal.segment import encode

_DIR = "/journal"
_SEGMENT = 4096 + 1000
_NOTHING_KEPT = RetentionSettings(size=0, age=0.0)


async def _journal(last: int, host: MemoryHost, *, segment_bytes: int = _SEGMENT) -> Journal:
    journal = open_journal(host, _DIR, segment_bytes=segment_bytes)
    journal.append(run(1, last))
    await journal.harden()
    return journal


def _reader(host: MemoryHost, seq: int) -> JournalReader:
    reader = JournalReader(host, _DIR)
    reader.seek(Position(1, seq))
    return reader


def _seqs(reader: JournalReader, max_bytes: int = 1 << 20) -> list[int]:
    return [each.position.seq for each in reader.read(max_bytes)]


async def test_only_what_is_hardened_is_seen() -> None:
    host = MemoryHost()
    journal = open_journal(host, _DIR)
    reader = JournalReader(host, _DIR)
    journal.append(run(1, 3))
    assert reader.hardened() is None and reader.keyframe_at_or_before(10**6) is None
    with pytest.raises(JournalGap):
        reader.seek(Position(1, 1))
    await journal.harden()
    journal.append(run(4, 21))
    assert reader.hardened() == Tail(Position(1, 3), 30, 1003)
    assert reader.keyframe_at_or_before(10**6) == Position(1, 1), "the keyframe at 11 is not hardened"
    reader.seek(Position(1, 1))
    assert _seqs(reader) == [1, 2, 3] and _seqs(reader) == []
    await journal.harden()
    assert _seqs(reader) == list(range(4, 22))
    assert reader.keyframe_at_or_before(10**6) == Position(1, 21)


async def test_a_keyframe_in_a_closed_segment_is_not_seen_before_it_is_hardened() -> None:
    host = MemoryHost()
    journal = await _journal(9, host)
    journal.append(run(10, 40))
    assert [entries[0].seq for _, entries in places(host, _DIR)][:3] == [1, 7, 13], "9 and 11 are in one"
    assert JournalReader(host, _DIR).keyframe_at_or_before(10**6) == Position(1, 1)
    await journal.harden()
    assert JournalReader(host, _DIR).keyframe_at_or_before(10**6) == Position(1, 31)


async def test_a_reader_goes_through_segments_as_they_are_made() -> None:
    host = MemoryHost()
    journal = await _journal(3, host)
    reader = _reader(host, 2)
    found = _seqs(reader)
    for first in range(4, 60, 4):
        journal.append(run(first, first + 3))
        await journal.harden()
        while part := reader.read(300):
            assert all(each.payload == draft(each.position.seq).payload for each in part)
            found += [each.position.seq for each in part]
    assert found == list(range(2, 60)) and len(places(host, _DIR)) > 5


@pytest.mark.parametrize("segment_bytes", [16 << 10, 64 << 20])
@pytest.mark.parametrize("max_bytes", [1, 1000, 1 << 20])
async def test_records_larger_than_what_is_read_at_once(max_bytes: int, segment_bytes: int) -> None:
    host = MemoryHost()
    journal = open_journal(host, _DIR, segment_bytes=segment_bytes)
    sizes = [10, JournalReader.CHUNK_BYTES - 64, 5 << 20, 0, 16 << 20, (4 << 20) - 64, (4 << 20) - 63, 1]
    payloads = [bytes([seq]) * size for seq, size in enumerate(sizes)]
    for seq, payload in enumerate(payloads, start=1):
        journal.append(encode(Draft(RecordType.DATA, payload, seq), Position(1, seq), seq))
    tail = await journal.harden()
    found = read_all(host, _DIR, Position(1, 1), max_bytes=max_bytes)
    assert [each.payload for each in found] == payloads
    host.disk.remove(f"{_DIR}/hardened.mark")
    again = open_journal(host, _DIR, segment_bytes=segment_bytes)
    assert again.tail == tail and again.cut_bytes is None, "recovery took a large record for a torn one"
    assert read_all(host, _DIR, Position(1, 5))[0].payload == payloads[4]


async def test_every_position_can_be_sought() -> None:
    host = MemoryHost()
    await _journal(40, host)
    for seq in range(1, 41):
        assert _seqs(_reader(host, seq))[0] == seq
    end = _reader(host, 41)
    assert _seqs(end) == []
    for beyond in (42, 1000):
        with pytest.raises(JournalGap):
            _reader(host, beyond)


async def test_keyframes_by_their_source_position() -> None:
    host = MemoryHost()
    journal = await _journal(40, host)
    reader = JournalReader(host, _DIR)
    for offset in range(0, 420, 5):
        expected = [seq for seq in range(1, 41) if seq % 10 == 1 and seq * 10 <= offset]
        found = reader.keyframe_at_or_before(offset)
        assert found == (Position(1, expected[-1]) if expected else None)
        assert journal.keyframe_at_or_before(offset) == found


# --- what a reader notices --------------------------------------------------------------------


async def test_a_journal_begun_anew_is_noticed_in_any_state() -> None:
    host = MemoryHost()
    journal = await _journal(40, host)
    readers = [_reader(host, 1), _reader(host, 30), _reader(host, 41)]
    readers[1].read(100)
    journal.reset()
    journal.append(run(1, 60))
    await journal.harden()
    for reader in readers:
        with pytest.raises(JournalGap):
            reader.read(1 << 20)
        with pytest.raises(JournalGap):
            reader.hardened()
    assert len(read_all(host, _DIR, Position(1, 1))) == 60, "a new reader follows the new journal"


async def test_a_journal_begun_anew_between_two_looks_is_noticed() -> None:
    """The mark is still that of the old journal, the segment already that of the new one."""
    host = MemoryHost()
    journal = await _journal(5, host)
    old_mark = host.files(_DIR)[f"{_DIR}/hardened.mark"]
    journal.reset()
    journal.append(run(1, 5, size=20))
    await journal.harden()
    reader = JournalReader(MemoryHost.of(_DIR, {**host.files(_DIR), f"{_DIR}/hardened.mark": old_mark}), _DIR)
    with pytest.raises(JournalGap, match="begun anew"):
        reader.seek(Position(1, 1))


async def test_positions_released_before_they_were_read_are_noticed() -> None:
    host = MemoryHost()
    journal = await _journal(60, host)
    slow, quick = _reader(host, 1), _reader(host, 45)
    journal.release(Position(1, 45), keyframe=Position(1, 41), retention=_NOTHING_KEPT, now_ns=10**18)
    with pytest.raises(JournalGap):
        while slow.read(1000):
            continue
    assert _seqs(quick)[0] == 45
    with pytest.raises(JournalGap):
        _reader(host, 5)


async def test_a_hardened_record_that_is_not_there_is_a_gap_or_damage() -> None:
    host = MemoryHost()
    await _journal(40, host)
    path, entries = places(host, _DIR)[2]
    files = host.files(_DIR)

    def read(changed: bytes | None) -> list[int]:
        others = {name: raw for name, raw in files.items() if name != path}
        broken = MemoryHost.of(_DIR, others if changed is None else {**others, path: changed})
        return [each.position.seq for each in read_all(broken, _DIR, Position(1, 1))]

    assert read(files[path]) == list(range(1, 41))
    at = entries[1].place
    for changed in (
        None,
        files[path][:at],
        files[path][:at] + bytes(len(files[path]) - at),
        files[path][: at + 70],
    ):
        with pytest.raises((JournalGap, JournalCorrupt)):
            read(changed)


async def test_damage_is_told_by_file_and_place() -> None:
    host = MemoryHost()
    await _journal(40, host)
    path, entries = places(host, _DIR)[1]
    raw = bytearray(host.files(_DIR)[path])
    raw[entries[2].place + 80] ^= 1
    reader = JournalReader(MemoryHost.of(_DIR, {**host.files(_DIR), path: bytes(raw)}), _DIR)
    reader.seek(entries[0].position)
    assert _seqs(reader) == [entries[0].seq, entries[1].seq], "what is intact before it is given"
    with pytest.raises(JournalCorrupt) as damage:
        reader.read(1 << 20)
    assert damage.value.context == {"file": path, "offset": entries[2].place}
    assert str(entries[2].seq) in str(damage.value) and path in str(damage.value)


async def test_an_old_record_in_a_recycled_place_is_not_taken() -> None:
    """Intact, but not the position that is next."""
    host = MemoryHost()
    await _journal(6, host)
    path, entries = places(host, _DIR)[0]
    raw = bytearray(host.files(_DIR)[path])
    raw[entries[3].place : entries[4].place] = record(3)
    reader = JournalReader(MemoryHost.of(_DIR, {**host.files(_DIR), path: bytes(raw)}), _DIR)
    reader.seek(Position(1, 1))
    with pytest.raises(JournalCorrupt):
        reader.read(1 << 20)


# --- marks ------------------------------------------------------------------------------------


def test_a_mark_is_what_was_published_or_nothing(tmp_path: Path) -> None:
    host = RealHost()
    marks = Marks(host, str(tmp_path))
    assert marks.read("applied") is None
    mark = Mark(Position(3, 2**60), 2**64 - 1, 10**18, bytes(range(16)))
    marks.publish("applied", mark)
    assert Marks(host, str(tmp_path)).read("applied") == mark
    path = tmp_path / "applied.mark"
    raw = path.read_bytes()
    assert len(raw) == 52
    for bit in range(len(raw) * 8):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        assert marks.read("applied") is None
    for size in range(len(raw)):
        path.write_bytes(raw[:size])
        assert marks.read("applied") is None
    marks.publish("applied", mark)
    assert marks.read("applied") == mark
    marks.clear("applied")
    marks.clear("applied")
    assert marks.read("applied") is None
    marks.close()


def test_a_mark_read_while_it_is_written_is_read_again() -> None:
    host = MemoryHost()
    host.disk.makedirs(_DIR)
    marks = Marks(host, _DIR)
    mark = Mark(Position(1, 5), 50, 7)
    marks.publish("hardened", mark)
    whole = host.files(_DIR)[f"{_DIR}/hardened.mark"]
    inode = host.sim.find(f"{_DIR}/hardened.mark")
    inode.write(0, b"\xff" * 20)

    class _Heals(bytearray):
        reads = 0

        def __getitem__(self, index: object) -> bytearray:  # type: ignore[override]
            _Heals.reads += 1
            if _Heals.reads == 3:
                self[:] = whole
            return super().__getitem__(index)  # type: ignore[index]

    inode.data = _Heals(inode.data)
    assert marks.read("hardened") == mark and _Heals.reads == 3


# --- on the machine itself --------------------------------------------------------------------


def _runs(number: int) -> Callable[[int], bytes]:
    return lambda nth: run(nth * number + 1, (nth + 1) * number)


async def test_on_a_real_disk_written_and_read_at_once(tmp_path: Path) -> None:
    host = RealHost()
    journal = open_journal(host, str(tmp_path), segment_bytes=20_000)
    reader = JournalReader(host, str(tmp_path))
    found: list[int] = []
    make = _runs(30)
    for nth in range(40):
        journal.append(make(nth))
        hardened = await journal.harden()
        if nth == 0:
            reader.seek(Position(1, 1))
        if nth % 13 == 12:
            journal.close()
            journal = open_journal(host, str(tmp_path), segment_bytes=20_000)
            assert journal.tail == hardened
        while part := reader.read(5000):
            assert all(each.payload == draft(each.position.seq).payload for each in part)
            found += [each.position.seq for each in part]
        assert found[-1] == hardened.position.seq
    assert found == list(range(1, 1201))
    where = Position(1, 1000)
    assert journal.release(where, keyframe=Position(1, 991), retention=_NOTHING_KEPT, now_ns=10**18)
    assert read_all(host, str(tmp_path), where)[0].position == where
    journal.close()
    reader.close()
