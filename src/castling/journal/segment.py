"""The journal's format: records, segment headers, and how damage is told apart. Pure.

docs/formats/journal.md is the page; this is its only implementation. Little-endian
throughout. A segment is a header of whole 4096-byte blocks and records back to back; a
record is a 64-byte header and its payload. What follows the last record is zeros: so a
preallocated segment ends.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import msgspec
import xxhash

from castling.errors import JournalCorrupt, JournalVersion
from castling.journal.record import Draft, Flag, Position, Record, RecordType

__all__ = [
    "HEADER",
    "PAYLOAD_MAX",
    "SEGMENT_BLOCK",
    "SEGMENT_HEADER_MAX",
    "Damage",
    "End",
    "Header",
    "SegmentHeader",
    "encode",
    "encode_segment_header",
    "parse_header",
    "parse_segment_header",
    "payload_end",
    "segment_header_size",
    "walk",
]

RECORD_MAGIC = 0x3152_4C43  # "CLR1"
SEGMENT_MAGIC = b"CASTLSEG"
SEGMENT_VERSION = 1
SEGMENT_BLOCK = 4096
SEGMENT_HEADER_MAX = 1 << 20
PAYLOAD_MAX = 16 << 20

#: magic, type, flags, object, seq, t_ns, offset, length, payload_len, payload_sum, epoch
_CHECKED = struct.Struct("<IBBHQQQIIQQ")
_CRC = struct.Struct("<II")  # header_crc, zero
_FIXED = struct.Struct("<8sHHII")  # magic, version, zero, body length, crc of body
HEADER = _CHECKED.size + _CRC.size
assert HEADER == 64

_TYPES = {int(kind): kind for kind in RecordType}
_FLAGS = {0: Flag.NONE, 1: Flag.KEYFRAME}
_ZEROS = b"\0" * HEADER
_crc32 = zlib.crc32
_xxh3 = xxhash.xxh3_64_intdigest


class Damage(Exception):
    """The bytes at `at` are not a whole, intact record. Whether that is a torn tail or rot is for
    whoever reads to decide: the journal when it recovers, the reader when it reads."""

    def __init__(self, at: int, reason: str) -> None:
        super().__init__(f"{reason} at byte {at}")
        self.at = at
        self.reason = reason


class End(Exception):
    """Zeros, or nothing, where a record would begin: the clean end of what was written."""


class Header(NamedTuple):
    """A verified record header. Sizes in bytes."""

    type: RecordType
    flags: Flag
    object: int
    seq: int
    t_ns: int
    offset: int
    length: int
    payload_len: int
    payload_sum: int
    epoch: int

    @property
    def size(self) -> int:
        return HEADER + self.payload_len


def encode(draft: Draft, position: Position, t_ns: int) -> bytes:
    """The bytes of one record: what is written, sent and written again on the far side."""
    payload = draft.payload
    assert len(payload) <= PAYLOAD_MAX, "a payload is at most 16 MiB"
    checked = _CHECKED.pack(
        RECORD_MAGIC,
        draft.type,
        draft.flags,
        draft.object,
        position.seq,
        t_ns,
        draft.offset,
        draft.length,
        len(payload),
        _xxh3(payload),
        position.epoch,
    )
    return b"".join((checked, _CRC.pack(_crc32(checked), 0), payload))


def parse_header(buffer: bytes | memoryview, at: int) -> Header:
    """The header at byte `at`. Raises End on zeros or nothing, Damage on anything else unusable."""
    raw = bytes(buffer[at : at + HEADER])
    if raw == _ZEROS[: len(raw)]:
        raise End
    if len(raw) < HEADER:
        raise Damage(at, "a record header is cut off")
    checked = raw[: _CHECKED.size]
    crc, zero = _CRC.unpack_from(raw, _CHECKED.size)
    if crc != _crc32(checked) or zero:
        raise Damage(at, "a record header does not match its checksum")
    magic, kind, flags, object_, *rest = _CHECKED.unpack(checked)
    if magic != RECORD_MAGIC or kind not in _TYPES or flags not in _FLAGS:
        raise Damage(at, "a record header is of a form that this version does not know")
    found = Header(_TYPES[kind], _FLAGS[flags], object_, *rest)
    if found.payload_len > PAYLOAD_MAX:
        raise Damage(at, "a record header claims an impossible length")
    return found


def parse_record(buffer: bytes | memoryview, at: int) -> tuple[Record, int]:
    """The record at byte `at`, verified, and where the next begins."""
    header = parse_header(buffer, at)
    end = payload_end(memoryview(buffer), at, header)
    payload = bytes(buffer[at + HEADER : end])
    record = Record(
        Position(header.epoch, header.seq),
        header.type,
        header.flags,
        header.object,
        header.t_ns,
        header.offset,
        header.length,
        payload,
    )
    return record, end


def payload_end(buffer: memoryview, at: int, header: Header) -> int:
    """Where the record of `header` at byte `at` ends, its payload verified."""
    start = at + HEADER
    end = start + header.payload_len
    if end > len(buffer):
        raise Damage(at, "a record's payload is cut off")
    if _xxh3(buffer[start:end]) != header.payload_sum:
        raise Damage(at, "a record's payload does not match its checksum")
    return end


def walk(buffer: bytes | memoryview) -> Iterator[Record]:
    """Every record of a run of whole records. Raises Damage at the first that is not intact."""
    at = 0
    while at < len(buffer):
        try:
            record, at = parse_record(buffer, at)
        except End:
            raise Damage(at, "zeros stand in a run of records") from None
        yield record


# --- segments ---------------------------------------------------------------------------------


class SegmentHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What a segment says about itself, so that it can be understood alone.

    `journal_id` changes whenever the journal is begun anew; `history` lists (epoch, first
    seq) for every epoch so far; `session` is the continuity token in force at its beginning.
    """

    journal_id: bytes
    group: str
    epoch: int
    first_seq: int
    history: list[tuple[int, int]]
    session: bytes | None


def encode_segment_header(header: SegmentHeader) -> bytes:
    """The header's bytes, padded with zeros to whole blocks."""
    body = msgspec.msgpack.encode(header)
    raw = _FIXED.pack(SEGMENT_MAGIC, SEGMENT_VERSION, 0, len(body), _crc32(body)) + body
    size = -(-len(raw) // SEGMENT_BLOCK) * SEGMENT_BLOCK
    assert size <= SEGMENT_HEADER_MAX, "a segment header is at most 1 MiB"
    return raw.ljust(size, b"\0")


def segment_header_size(first_block: bytes) -> int:
    """How many bytes the header takes, from its first block. Raises JournalVersion, JournalCorrupt."""
    if len(first_block) < _FIXED.size:
        raise JournalCorrupt("a segment file is too short to hold its header")
    magic, version, _, length, _ = _FIXED.unpack_from(first_block)
    if magic != SEGMENT_MAGIC:
        raise JournalCorrupt("a segment file does not begin like one")
    if version != SEGMENT_VERSION:
        raise JournalVersion(
            f"the journal is written in format {version}; this version reads format {SEGMENT_VERSION}",
            hint="use the version of Castling that wrote it",
        )
    size: int = -(-(_FIXED.size + length) // SEGMENT_BLOCK) * SEGMENT_BLOCK
    if size > SEGMENT_HEADER_MAX:
        raise JournalCorrupt("a segment header claims an impossible length")
    return size


def parse_segment_header(raw: bytes) -> SegmentHeader:
    """The header of a segment from its whole blocks. Raises JournalCorrupt, JournalVersion."""
    size = segment_header_size(raw)
    *_, length, crc = _FIXED.unpack_from(raw)
    body = raw[_FIXED.size : _FIXED.size + length]
    padding = raw[_FIXED.size + length : size]
    reserved = _FIXED.unpack_from(raw)[2]
    if len(raw) < size or _crc32(body) != crc or reserved or padding.strip(b"\0"):
        raise JournalCorrupt("a segment header does not match its checksum")
    try:
        return msgspec.msgpack.decode(body, type=SegmentHeader)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise JournalCorrupt("a segment header can't be read") from error
