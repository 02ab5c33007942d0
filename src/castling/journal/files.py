"""The files of a journal: names, reading headers, scanning records. Shared by writer and readers."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field

from castling.errors import JournalCorrupt
from castling.host import File, Host
from castling.journal.index import Entry, decode_index, encode_index, entry_of
from castling.journal.record import RecordType
from castling.journal.segment import (
    HEADER,
    SEGMENT_BLOCK,
    Damage,
    End,
    SegmentHeader,
    parse_header,
    parse_record,
    parse_segment_header,
    segment_header_size,
)

__all__ = [
    "Scan",
    "check_dense",
    "first_seqs",
    "index_path",
    "read_index",
    "read_segment_header",
    "remove_segment",
    "reserve",
    "scan",
    "segment_path",
    "write_index",
]

_SUFFIX = ".seg"
#: bytes read at once while scanning; more when one record is larger
_READ = 4 << 20


def segment_path(directory: str, first_seq: int) -> str:
    return f"{directory}/{first_seq:020d}{_SUFFIX}"


def index_path(directory: str, first_seq: int) -> str:
    return f"{directory}/{first_seq:020d}.idx"


def first_seqs(host: Host, directory: str) -> list[int]:
    """The first position of every segment in the folder, ascending."""
    names = host.disk.listdir(directory)
    return sorted(int(name[: -len(_SUFFIX)]) for name in names if name.endswith(_SUFFIX))


def read_segment_header(file: File, path: str) -> tuple[SegmentHeader, int]:
    """The header of an open segment and where its records begin. JournalCorrupt names the file."""
    try:
        raw = file.read_at(0, SEGMENT_BLOCK)
        size = segment_header_size(raw)
        if size > len(raw):
            raw = file.read_at(0, size)
        header = parse_segment_header(raw)
        if not path.endswith(f"/{header.first_seq:020d}{_SUFFIX}"):
            raise JournalCorrupt(
                f"it says that it begins at {header.first_seq}: it is not what its name tells"
            )
        return header, size
    except JournalCorrupt as error:
        raise JournalCorrupt(f"{path}: {error}", hint=error.hint, file=path) from error


@dataclass(slots=True)
class Scan:
    """What a walk through a segment found.

    `end`: where the next record would be written. `damage`: what ended the walk if it was
    not zeros or the end of the file. `session`: the last continuity token seen.
    """

    end: int
    entries: list[Entry] = field(default_factory=list)
    session: bytes | None = None
    damage: Damage | None = None


def scan(file: File, start: int, *, verify: bool = True, upto_seq: int | None = None) -> Scan:
    """Walk the records from byte `start`; with `verify` payloads are checked too.

    Stops after the record `upto_seq`, at the clean end, or at the first damage.
    """
    found = Scan(start)
    window, base = b"", start
    while upto_seq is None or not found.entries or found.entries[-1].seq < upto_seq:
        at = found.end - base
        try:
            if len(window) - at < HEADER:
                window, base, at = file.read_at(found.end, _READ), found.end, 0
            header = parse_header(window, at)
            if len(window) - at < header.size:
                window, base, at = file.read_at(found.end, max(_READ, header.size)), found.end, 0
            if verify or header.type is RecordType.SESSION:
                record, _ = parse_record(window, at)
                if record.type is RecordType.SESSION:
                    found.session = record.payload
            elif len(window) - at < header.size:
                raise Damage(at, "a record's payload is cut off")
        except End:
            return found
        except Damage as damage:
            found.damage = Damage(found.end, damage.reason)
            return found
        found.entries.append(entry_of(header, found.end))
        found.end += header.size
    return found


def read_index(host: Host, directory: str, first_seq: int) -> list[Entry]:
    """The entries of a closed segment, from its index or, when that is no good, from the segment.

    Raises JournalCorrupt when the segment's header or, without an index, a record is damaged.
    """
    path = segment_path(directory, first_seq)
    segment = host.disk.open(path)
    try:
        header, start = read_segment_header(segment, path)
        entries = _indexed(host, index_path(directory, first_seq), header)
        if entries is not None:
            return entries
        found = scan(segment, start, verify=False)
    finally:
        segment.close()
    if found.damage is not None:
        raise JournalCorrupt(
            f"{path}: {found.damage}; the segment was complete once, so this is damage, not a torn tail",
            hint="keep the folder for examination and seed the stream again",
            file=path,
            offset=found.damage.at,
        )
    check_dense(path, first_seq, found.entries)
    return found.entries


def _indexed(host: Host, path: str, header: SegmentHeader) -> list[Entry] | None:
    """The entries by the index; None when it is missing or no good."""
    try:
        file = host.disk.open(path)
    except FileNotFoundError:
        return None
    try:
        entries = decode_index(file.read_at(0, file.size()), header.journal_id)
    finally:
        file.close()
    return entries if entries and entries[0].seq == header.first_seq else None


def check_dense(path: str, first_seq: int, entries: list[Entry]) -> None:
    """JournalCorrupt when a position is not the one that belongs there."""
    for expected, entry in enumerate(entries, start=first_seq):
        if entry.seq != expected:
            raise JournalCorrupt(
                f"{path}: position {entry.seq} stands where {expected} belongs",
                hint="keep the folder for examination and seed the stream again",
                file=path,
                offset=entry.place,
            )


def write_index(host: Host, directory: str, first_seq: int, entries: list[Entry], journal_id: bytes) -> None:
    """Write the sidecar of a closed segment. Not synced: it can be made again."""
    file = host.disk.open(index_path(directory, first_seq), create=True)
    try:
        raw = encode_index(entries, journal_id)
        file.truncate(len(raw))
        file.write_at(0, raw)
    finally:
        file.close()


def remove_segment(host: Host, directory: str, first_seq: int) -> None:
    """The index first: one without its segment would only lie about."""
    if host.disk.exists(index_path(directory, first_seq)):
        host.disk.remove(index_path(directory, first_seq))
    host.disk.remove(segment_path(directory, first_seq))


def reserve(file: File, used: int, size: int) -> int:
    """Room up to `size`, if the disk has it: how far the file now reaches, bytes."""
    size = max(size, used)
    try:
        file.allocate(size)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        file.truncate(used)  # it grows as it is written
        return used
    return size
