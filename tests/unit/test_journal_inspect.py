"""What `castling journal inspect` says of a journal: all that is there, and damage by its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from castling.host import RealHost
from castling.journal.inspect import describe
from castling.journal.journal import Journal
from castling.journal.record import Draft, Flag, Position, RecordType
from castling.journal.segment import encode


def _run(first: int, number: int, size: int = 2000) -> bytes:
    drafts = [
        Draft(RecordType.SESSION, b"token", 0, Flag.KEYFRAME)
        if seq == 1
        else Draft(RecordType.DATA, bytes([seq % 256]) * size, seq * 10)
        for seq in range(first, first + number)
    ]
    return b"".join(encode(draft, Position(1, first + i), 1000 + first + i) for i, draft in enumerate(drafts))


@pytest.fixture
async def folder(tmp_path: Path) -> Path:
    """Sixty records in several segments, all hardened."""
    journal = Journal.open(RealHost(), str(tmp_path), group="bank", segment_bytes=32 << 10)
    journal.raise_epoch(1)
    for first in range(1, 61, 10):
        journal.append(_run(first, 10))
    await journal.harden()
    journal.close()
    return tmp_path


def _look(folder: Path, *, records: bool = False) -> dict[str, Any]:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    found = describe(RealHost(), str(folder), records=records)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before, "looking has changed something"
    return found


async def test_it_tells_all_that_is_there(folder: Path) -> None:
    found = _look(folder, records=True)
    assert found["group"] == "bank" and found["tail"] == "1/60" == found["hardened"]
    assert found["applied"] is None and found["damage"] == []
    assert found["tail_offset"] == 600 and len(found["segments"]) > 2
    assert [(each["position"], each["type"]) for each in found["records"]][:2] == [
        ("1/1", "session"),
        ("1/2", "data"),
    ]
    assert len(found["records"]) == 60 == sum(segment["records"] for segment in found["segments"])
    assert [each["position"] for each in found["keyframes"]] == ["1/1"]


def _flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 4
    path.write_bytes(raw)


async def test_rot_is_told_by_file_place_and_position(folder: Path) -> None:
    segments = sorted(folder.glob("*.seg"))
    where = next(each for each in _look(folder, records=True)["records"] if each["file"] == segments[1].name)
    _flip(segments[1], where["at"] + 100)
    (damage,) = _look(folder)["damage"]
    assert damage["file"] == segments[1].name and damage["offset"] == where["at"] and damage["kind"] == "rot"
    assert f"1/{damage['position']}" == where["position"]


async def test_a_torn_tail_beyond_what_is_hardened_is_told_apart(folder: Path) -> None:
    journal = Journal.open(RealHost(), str(folder), group="bank", segment_bytes=32 << 10)
    journal.append(_run(61, 2))
    journal.close()
    last = sorted(folder.glob("*.seg"))[-1]
    at = next(each["at"] for each in _look(folder, records=True)["records"] if each["position"] == "1/62")
    _flip(last, at + 100)
    (damage,) = _look(folder)["damage"]
    assert damage["kind"] == "torn tail" and damage["position"] == 62
    _flip(last, at + 100)
    hardened = next(
        each["at"] for each in _look(folder, records=True)["records"] if each["position"] == "1/60"
    )
    _flip(last, hardened + 100)
    assert _look(folder)["damage"][0]["kind"] == "rot", "what was acknowledged is gone: no torn tail"


async def test_a_missing_segment_and_a_damaged_header_are_told(folder: Path) -> None:
    segments = sorted(folder.glob("*.seg"))
    segments[1].unlink()
    (missing,) = _look(folder)["damage"]
    assert "are missing" in missing["reason"] and missing["kind"] == "rot"
    _flip(segments[0], 20)
    assert any(each["file"] == segments[0].name and each["offset"] == 0 for each in _look(folder)["damage"])


async def test_an_empty_folder_is_an_empty_journal(tmp_path: Path) -> None:
    found = _look(tmp_path)
    assert found["tail"] is None and found["segments"] == [] and found["damage"] == []


async def test_hardened_records_that_became_zeros_are_rot(folder: Path) -> None:
    last = sorted(folder.glob("*.seg"))[-1]
    at = next(each["at"] for each in _look(folder, records=True)["records"] if each["position"] == "1/59")
    raw = last.read_bytes()
    last.write_bytes(raw[:at] + bytes(len(raw) - at))
    (damage,) = _look(folder)["damage"]
    assert (damage["kind"], damage["position"], damage["offset"]) == ("rot", 59, at)
    (folder / "hardened.mark").unlink()
    assert _look(folder)["damage"] == [], "without the mark this is a clean end"
