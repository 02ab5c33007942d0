"""Damage on the disk is noticed: no flipped bit, torn tail, swapped or missing record is taken for data."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from journal_cast import draft, open_journal, places, read_all, record, run
from journal_host import MemoryHost

from castling.errors import CastlingError, JournalCorrupt, JournalGap, JournalVersion
from castling.journal import files as journal_files
from castling.journal import segment as journal_segment
from castling.journal.journal import Journal
from castling.journal.record import Position, Record
from castling.journal.segment import (
    Damage,
    End,
    SegmentHeader,
    encode_segment_header,
    parse_record,
    parse_segment_header,
    walk,
)

_DIR = "/journal"
#: two records of 16 bytes fill a segment
_SEGMENT = 4096 + 160
_FROM = Position(1, 1)


async def _hardened(last: int, *, unsynced: int = 0) -> MemoryHost:
    """A journal of small segments with `last` hardened records and more that are not."""
    host = MemoryHost()
    journal = open_journal(host, _DIR, segment_bytes=_SEGMENT)
    journal.append(run(1, last, size=16))
    await journal.harden()
    if unsynced:
        journal.append(run(last + 1, last + unsynced, size=16))
    journal.close()
    return host


def _what_comes_back(files: dict[str, bytes]) -> list[Record]:
    """Recover a journal from these files and read it to its end."""
    host = MemoryHost.of(_DIR, files)
    journal = Journal.open(host, _DIR, group="bank", segment_bytes=_SEGMENT)
    journal.close()
    return read_all(host, _DIR, _FROM)


def _flipped(raw: bytes, bit: int) -> bytes:
    changed = bytearray(raw)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def _silent_flips(
    files: dict[str, bytes], truth: list[Record], suffix: str, begin: int, end: int
) -> list[str]:
    """Which single bits can be flipped so that other records than the true ones come back."""
    found = []
    for path in (path for path in files if path.endswith(suffix)):
        for bit in range(begin * 8, min(end, len(files[path])) * 8):
            changed = {**files, path: _flipped(files[path], bit)}
            try:
                if _what_comes_back(changed) != truth:
                    found.append(f"{path} bit {bit}")
            except CastlingError:
                continue
    return found


async def test_no_bit_of_hardened_records_flips_unnoticed() -> None:
    host = await _hardened(5)
    files, truth = host.files(_DIR), read_all(host, _DIR, _FROM)
    assert [each.payload for each in truth] == [draft(seq, 16).payload for seq in range(1, 6)]
    assert _silent_flips(files, truth, ".seg", 4096, 4096 + 160) == []


async def test_a_flip_is_noticed_only_because_of_the_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    host = await _hardened(5)
    files, truth = host.files(_DIR), read_all(host, _DIR, _FROM)
    monkeypatch.setattr(journal_segment, "_xxh3", lambda payload: int.from_bytes(payload[:1], "little"))
    records = MemoryHost.of(_DIR, files)
    journal = open_journal(records, "/weak", segment_bytes=_SEGMENT)
    journal.append(run(1, 5, size=16))
    await journal.harden()
    weak = {path.replace("/weak", _DIR): content for path, content in records.files("/weak").items()}
    assert _silent_flips(weak, truth, ".seg", 4096, 4096 + 160) != []


async def test_no_bit_of_segment_headers_indexes_and_marks_flips_unnoticed() -> None:
    host = await _hardened(5)
    files, truth = host.files(_DIR), read_all(host, _DIR, _FROM)
    assert sum(path.endswith(".idx") for path in files) == 2
    assert _silent_flips(files, truth, ".seg", 0, 40) == []
    assert _silent_flips(files, truth, ".idx", 0, 200) == []
    assert _silent_flips(files, truth, ".mark", 0, 60) == []


def test_no_bit_of_a_segment_header_flips_unnoticed() -> None:
    header = SegmentHeader(
        journal_id=b"0123456789abcdef", group="bank", epoch=2, first_seq=9, history=[(2, 1)], session=b"s"
    )
    raw = encode_segment_header(header)
    assert parse_segment_header(raw) == header
    for bit in range(len(raw) * 8):
        with pytest.raises((JournalCorrupt, JournalVersion)):
            parse_segment_header(_flipped(raw, bit))


def test_no_bit_of_a_run_flips_unnoticed() -> None:
    raw = run(1, 2, size=30) + record(3, size=0)
    assert len(list(walk(raw))) == 3
    for bit in range(len(raw) * 8):
        with pytest.raises(Damage):
            list(walk(_flipped(raw, bit)))


def test_a_segment_header_that_lies_about_its_text_is_damage() -> None:
    header = SegmentHeader(journal_id=b"i" * 16, group="bank", epoch=0, first_seq=1, history=[], session=None)
    good = encode_segment_header(header)
    length = int.from_bytes(good[12:16], "little")
    body = good[20 : 20 + length].replace(b"bank", b"\xff\xfenk")
    raw = good[:16] + journal_segment._crc32(body).to_bytes(4, "little") + body
    with pytest.raises(JournalCorrupt):
        parse_segment_header(raw.ljust(4096, b"\0"))


def test_a_record_cut_anywhere_is_no_record() -> None:
    raw = record(1, size=30)
    for size in range(1, len(raw)):
        with pytest.raises(Damage):
            parse_record(raw[:size], 0)
    with pytest.raises(End):
        parse_record(b"", 0)


# --- the tail ---------------------------------------------------------------------------------


@pytest.mark.parametrize("behind", ["cut off", "zeros", "garbage"])
async def test_a_tail_torn_at_any_byte_is_cut_and_goes_on(behind: str) -> None:
    host = MemoryHost()
    journal = open_journal(host, _DIR)
    journal.append(run(1, 2, size=16))
    await journal.harden()
    journal.append(run(3, 5, size=16))
    journal.close()
    files = host.files(_DIR)
    ((path, entries),) = places(host, _DIR)
    begin, end = entries[2].place, entries[4].place + 80
    for at in range(begin, end):
        rest = {"cut off": b"", "zeros": bytes(200), "garbage": b"\xa5" * 200}[behind]
        torn = MemoryHost.of(_DIR, {**files, path: files[path][:at] + rest})
        journal = open_journal(torn, _DIR)
        whole = 2 + (at - begin) // 80
        assert journal.tail.position == Position(1, whole) == journal.hardened.position, at
        journal.append(run(whole + 1, 7, size=16))
        await journal.harden()
        journal.close()
        found = _what_comes_back(torn.after_power_loss().files(_DIR))
        assert [each.position.seq for each in found] == list(range(1, 8)), at


@pytest.mark.parametrize("rest", [b"", bytes(400), b"\xa5" * 400])
async def test_what_was_hardened_is_never_cut_as_a_torn_tail(rest: bytes) -> None:
    host = await _hardened(6)
    files = host.files(_DIR)
    path, entries = places(host, _DIR)[-1]
    for at in range(entries[0].place, entries[-1].place + 80):
        damaged = MemoryHost.of(_DIR, {**files, path: files[path][:at] + rest})
        with pytest.raises(JournalCorrupt):
            open_journal(damaged, _DIR, segment_bytes=_SEGMENT)
        assert damaged.files(_DIR)[path] == files[path][:at] + rest, "a refusal changes nothing"


async def test_without_its_mark_the_same_damage_is_a_torn_tail() -> None:
    """That the refusal above comes from the mark: a crash may take it, and then nothing can be told."""
    host = await _hardened(6)
    files = {path: raw for path, raw in host.files(_DIR).items() if not path.endswith("hardened.mark")}
    path, entries = places(host, _DIR)[-1]
    journal = open_journal(MemoryHost.of(_DIR, {**files, path: files[path][: entries[-1].place]}), _DIR)
    assert journal.tail.position == Position(1, 5)


async def test_a_flip_in_what_was_never_hardened_touches_nothing_acknowledged() -> None:
    host = MemoryHost()
    journal = open_journal(host, _DIR)
    journal.append(run(1, 2, size=16))
    await journal.harden()
    journal.append(run(3, 4, size=16))
    files, ((path, entries),) = host.files(_DIR), places(host, _DIR)
    for bit in range(entries[2].place * 8, (entries[3].place + 80) * 8):
        found = _what_comes_back({**files, path: _flipped(files[path], bit)})
        assert [each.payload for each in found] == [
            draft(seq, 16).payload for seq in range(1, len(found) + 1)
        ]
        assert len(found) == (2 if bit < entries[3].place * 8 else 3)


async def test_a_record_behind_a_lost_one_does_not_come_to_life() -> None:
    """Of a run that was not synced the first is lost and the second there; another first takes its place."""
    host = MemoryHost()
    journal = open_journal(host, _DIR)
    journal.append(run(1, 4, size=16))
    journal.close()
    files, ((path, entries),) = host.files(_DIR), places(host, _DIR)
    third = entries[2].place
    lost = files[path][:third] + bytes(80) + files[path][third + 80 :]
    lossy = MemoryHost.of(_DIR, {**files, path: lost})
    journal = open_journal(lossy, _DIR)
    assert journal.tail.position.seq == 2
    journal.append(record(3, size=16))
    await journal.harden()
    journal.close()
    again = open_journal(lossy, _DIR)
    assert again.tail.position.seq == 3, "position 4 was never sent again"


# --- records and segments in the wrong place --------------------------------------------------


def _rearranged(files: dict[str, bytes], path: str, order: list[bytes]) -> dict[str, bytes]:
    return {**files, path: files[path][:4096] + b"".join(order) + bytes(200)}


@pytest.mark.parametrize("order", [(2, 1, 3), (1, 1, 2, 3), (1, 3), (1, 2, 2), (1, 3, 2)])
@pytest.mark.parametrize("marked", [True, False])
async def test_swapped_repeated_and_missing_records_are_noticed(order: tuple[int, ...], marked: bool) -> None:
    host = MemoryHost()
    journal = open_journal(host, _DIR)
    journal.append(run(1, 3, size=16))
    await journal.harden()
    ((path, _),) = places(host, _DIR)
    files = _rearranged(host.files(_DIR), path, [record(seq, size=16) for seq in order])
    if not marked:
        del files[f"{_DIR}/hardened.mark"]
    with pytest.raises(JournalCorrupt):
        _what_comes_back(files)
    right = _rearranged(files, path, [record(seq, size=16) for seq in (1, 2, 3)])
    assert len(_what_comes_back(right)) == 3


async def test_repeated_records_in_a_closed_segment_are_noticed_by_recovery() -> None:
    files = (await _hardened(8)).files(_DIR)
    first = min(path for path in files if path.endswith(".seg"))
    files = {path: raw for path, raw in files.items() if not path.endswith(".idx")}
    twice = _rearranged(files, first, [record(2, size=16), record(2, size=16)])
    with pytest.raises(JournalCorrupt):
        open_journal(MemoryHost.of(_DIR, twice), _DIR, segment_bytes=_SEGMENT)
    assert len(_what_comes_back(files)) == 8


async def test_a_segment_under_another_name_is_noticed() -> None:
    files = (await _hardened(1)).files(_DIR)
    path = next(path for path in files if path.endswith(".seg"))
    with pytest.raises(JournalCorrupt, match="says that it begins at 1"):
        open_journal(MemoryHost.of(_DIR, {path.replace("1.seg", "7.seg"): files[path]}), _DIR)


@pytest.mark.parametrize("indexed", [True, False])
async def test_segments_in_each_others_place_are_noticed(indexed: bool) -> None:
    files = (await _hardened(8)).files(_DIR)
    if not indexed:
        files = {path: raw for path, raw in files.items() if not path.endswith(".idx")}
    first, second = (path for path in sorted(files) if path.endswith(("1.seg", "3.seg")))
    with pytest.raises(JournalCorrupt):
        _what_comes_back({**files, first: files[second], second: files[first]})
    assert len(_what_comes_back(files)) == 8


async def test_a_missing_segment_is_noticed() -> None:
    files = (await _hardened(8)).files(_DIR)
    segments = sorted(path for path in files if path.endswith(".seg"))
    without_middle = {path: raw for path, raw in files.items() if path != segments[1]}
    with pytest.raises(JournalGap):
        _what_comes_back(without_middle)
    without_last = {path: raw for path, raw in files.items() if path != segments[-1]}
    with pytest.raises(JournalCorrupt):
        _what_comes_back(without_last)


async def test_a_closed_segment_that_lost_its_end_is_noticed() -> None:
    files = (await _hardened(8)).files(_DIR)
    first = min(path for path in files if path.endswith(".seg"))
    for size in range(4096 + 80, 4096 + 160, 7):
        with pytest.raises((JournalGap, JournalCorrupt)):
            _what_comes_back({**files, first: files[first][:size]})


# --- the index --------------------------------------------------------------------------------


async def test_an_index_that_is_missing_or_damaged_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    files = (await _hardened(8)).files(_DIR)
    truth = _what_comes_back(files)
    index = next(path for path in files if path.endswith("3.idx"))
    scans = []
    real = journal_files.scan
    monkeypatch.setattr(journal_files, "scan", lambda *a, **k: scans.append(a) or real(*a, **k))
    for content in (b"", files[index][:-1], files[index] + b"\0", b"\xff" * 200, files[index][:50]):
        assert _what_comes_back({**files, index: content}) == truth
        assert scans, "the segment was read in its place"
        scans.clear()
    assert _what_comes_back({path: raw for path, raw in files.items() if path != index}) == truth


async def test_the_index_of_a_journal_that_is_gone_is_not_believed() -> None:
    host = MemoryHost()
    old = open_journal(host, _DIR, segment_bytes=_SEGMENT)
    old.append(run(1, 8, size=16))
    await old.harden()
    stale = {path: raw for path, raw in host.files(_DIR).items() if path.endswith("1.idx")}
    old.reset()
    old.append(run(1, 8, size=0))
    await old.harden()
    old.close()
    found = _what_comes_back({**host.files(_DIR), **stale})
    assert [each.payload for each in found] == [b""] * 8
