"""The sidecar index of a closed segment: where each record is, without reading it.

40 bytes a record. It can always be read from its segment instead, so it is never synced, and one
that is missing or damaged is passed over. It bears the journal's id: after a crash the index of a
journal that was begun anew since may stand beside a segment of the same name.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from castling.journal.record import Flag, Position
from castling.journal.segment import Header

__all__ = ["Entry", "decode_index", "encode_index", "entry_of"]

_MAGIC = b"CASTLIDX"
_HEAD = struct.Struct("<8sII16s")  # magic, entries, crc of what follows, journal id
_ENTRY = struct.Struct("<QQQQIBBH")  # seq, epoch, t_ns, offset, place, type, flags, zero
assert _ENTRY.size == 40


class Entry(NamedTuple):
    """One record: `place` is its byte offset in the segment file."""

    seq: int
    epoch: int
    t_ns: int
    offset: int
    place: int
    type: int
    flags: int

    @property
    def position(self) -> Position:
        return Position(self.epoch, self.seq)

    @property
    def is_keyframe(self) -> bool:
        return bool(self.flags & Flag.KEYFRAME)


def entry_of(header: Header, place: int) -> Entry:
    return Entry(header.seq, header.epoch, header.t_ns, header.offset, place, header.type, header.flags)


def encode_index(entries: list[Entry], journal_id: bytes) -> bytes:
    body = b"".join(_ENTRY.pack(*entry, 0) for entry in entries)
    return _HEAD.pack(_MAGIC, len(entries), zlib.crc32(journal_id + body), journal_id) + body


def decode_index(raw: bytes, journal_id: bytes) -> list[Entry] | None:
    """The entries; None when the index is damaged in any way or of another journal."""
    if len(raw) < _HEAD.size:
        return None
    magic, count, crc, owner = _HEAD.unpack_from(raw)
    body = raw[_HEAD.size :]
    if magic != _MAGIC or owner != journal_id or len(body) != count * _ENTRY.size:
        return None
    if zlib.crc32(owner + body) != crc:
        return None
    return [Entry(*fields[:7]) for fields in _ENTRY.iter_unpack(body)]
