"""The format on disk stays what it is: a segment of format 1 is read, and written byte for byte."""

from __future__ import annotations

from pathlib import Path

from castling.host import RealHost
from castling.journal.files import segment_path
from castling.journal.inspect import describe
from castling.journal.record import Draft, Flag, Position, Record, RecordType
from castling.journal.segment import (
    SegmentHeader,
    encode,
    encode_segment_header,
    parse_segment_header,
    segment_header_size,
    walk,
)

_GOLDEN = Path(__file__).parent / "golden" / "journal-v1.hex"

_HEADER = SegmentHeader(
    journal_id=bytes(range(16)),
    group="bank",
    epoch=3,
    first_seq=41,
    history=[(1, 1), (2, 17), (3, 41)],
    session=b"\x01token",
)
_NOON = 1_780_000_000 * 10**9
_RECORDS = (
    (Draft(RecordType.SESSION, b'{"slot":"castling_bank"}', 0x16B374D848, Flag.KEYFRAME), _NOON),
    (Draft(RecordType.DATA, bytes(range(256)), 0x16B374D900), _NOON),
    (Draft(RecordType.DATA, b"", 2**64 - 1, Flag.KEYFRAME, 2**16 - 1, 2**32 - 1), _NOON + 1),
    (Draft(RecordType.ZERO, b"", 1 << 40, object=7, length=4096), _NOON + 1),
    (Draft(RecordType.BARRIER, b"", 0), 2**63),
    (Draft(RecordType.MARK, "vor dem Umbau \N{LATIN SMALL LETTER U WITH DIAERESIS}".encode(), 1), 2**64 - 2),
    (Draft(RecordType.RESIZE, b"", 0, object=1, length=1 << 20), 2**64 - 1),
)


def _positions() -> list[Position]:
    return [Position(3, 41 + i) for i in range(len(_RECORDS))]


def _written() -> bytes:
    records = (encode(draft, at, t_ns) for (draft, t_ns), at in zip(_RECORDS, _positions(), strict=True))
    return encode_segment_header(_HEADER) + b"".join(records)


def _golden() -> bytes:
    return bytes.fromhex(_GOLDEN.read_text("ascii"))


def test_it_is_read_as_what_was_written() -> None:
    raw = _golden()
    size = segment_header_size(raw)
    assert size == 4096
    assert parse_segment_header(raw[:size]) == _HEADER
    assert list(walk(raw[size:])) == [
        Record(at, draft.type, draft.flags, draft.object, t_ns, draft.offset, draft.length, draft.payload)
        for (draft, t_ns), at in zip(_RECORDS, _positions(), strict=True)
    ]


def test_it_is_written_byte_for_byte() -> None:
    assert _written() == _golden()


def test_another_byte_anywhere_is_another_segment() -> None:
    """That the comparison above can fail: a field that is not written would not change the bytes."""
    fields = {"offset": 5, "object": 5, "length": 5, "flags": Flag.KEYFRAME, "payload": b"x"}
    for name, value in fields.items():
        draft = Draft(**{"type": RecordType.DATA, "payload": b"", "offset": 0, name: value})
        assert encode(draft, Position(3, 41), 1) != encode(
            Draft(RecordType.DATA, b"", 0), Position(3, 41), 1
        ), name


def test_its_bytes_are_where_the_page_says() -> None:
    record = _golden()[4096:]
    assert record[:4] == b"CLR1"
    assert record[4] == 7 and record[5] == 1
    assert int.from_bytes(record[8:16], "little") == 41
    assert int.from_bytes(record[24:32], "little") == 0x16B374D848
    assert int.from_bytes(record[36:40], "little") == len(_RECORDS[0][0].payload)
    assert int.from_bytes(record[48:56], "little") == 3
    assert record[60:64] == bytes(4)


def test_it_is_a_segment_to_the_rest_of_the_journal(tmp_path: Path) -> None:
    path = segment_path(str(tmp_path), 41)
    Path(path).write_bytes(_golden() + bytes(1000))
    found = describe(RealHost(), str(tmp_path), records=True)
    assert found["damage"] == [] and found["tail"] == "3/47" and found["epochs"] == ["1/1", "2/17", "3/41"]
    assert [each["type"] for each in found["records"]] == [
        "session",
        "data",
        "data",
        "zero",
        "barrier",
        "mark",
        "resize",
    ]
