"""What the tests of the journal share: records by position, and journals on any host."""

from __future__ import annotations

from castling.host import Host
from castling.journal.files import first_seqs, read_segment_header, scan, segment_path
from castling.journal.index import Entry
from castling.journal.journal import Journal
from castling.journal.reader import JournalReader
from castling.journal.record import Draft, Flag, Position, Record, RecordType
from castling.journal.segment import encode

GROUP = "bank"


def draft(seq: int, size: int = 100) -> Draft:
    """The record of a position, always the same; each tenth is a SESSION."""
    payload = (b"%d " % seq * (size // 2 + 1))[:size]
    if seq % 10 == 1:
        return Draft(RecordType.SESSION, payload, seq * 10, Flag.KEYFRAME)
    return Draft(RecordType.DATA, payload, seq * 10)


def record(seq: int, *, size: int = 100, epoch: int = 1) -> bytes:
    return encode(draft(seq, size), Position(epoch, seq), 1000 + seq)


def run(first: int, last: int, *, size: int = 100, epoch: int = 1) -> bytes:
    """The records `first` to `last`, back to back."""
    return b"".join(record(seq, size=size, epoch=epoch) for seq in range(first, last + 1))


def open_journal(host: Host, directory: str, *, segment_bytes: int = 16 << 10, min_free: int = 0) -> Journal:
    """The group's journal, in epoch 1 at least."""
    journal = Journal.open(host, directory, group=GROUP, segment_bytes=segment_bytes, min_free=min_free)
    if journal.epoch == 0:
        journal.raise_epoch(1)
    return journal


def read_all(host: Host, directory: str, start: Position, *, max_bytes: int = 1 << 20) -> list[Record]:
    """Every hardened record from `start` on, by a new reader."""
    reader = JournalReader(host, directory)
    try:
        if reader.hardened() is None:
            return []
        reader.seek(start)
        found: list[Record] = []
        while part := reader.read(max_bytes):
            found += part
        return found
    finally:
        reader.close()


def places(host: Host, directory: str) -> list[tuple[str, list[Entry]]]:
    """Each segment's file and the entries in it, as they stand on the disk."""
    found = []
    for first_seq in first_seqs(host, directory):
        path = segment_path(directory, first_seq)
        file = host.disk.open(path)
        found.append((path, scan(file, read_segment_header(file, path)[1]).entries))
        file.close()
    return found
