"""What a journal is after its writer, or the machine, has died: what is kept, what is cut, what is refused.

Damage in a segment that is not the last is rot, for a segment is synced before the next is begun; so is
damage in the last one at or before the `hardened` mark. Beyond the mark it is a torn tail, which is cut.

Invariants: a refusal changes nothing on the disk; everything kept is durable when `recover` returns.
"""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass

from castling.errors import JournalCorrupt, JournalGap, StateError
from castling.host import File, Host
from castling.journal.files import (
    Scan,
    check_dense,
    first_seqs,
    read_index,
    read_segment_header,
    remove_segment,
    reserve,
    scan,
    segment_path,
)
from castling.journal.index import Entry
from castling.journal.marks import Mark
from castling.journal.record import Tail
from castling.journal.segment import SegmentHeader

__all__ = ["Recovered", "recover", "write_again"]

#: bytes written at once when records are written again
_AGAIN = 4 << 20


@dataclass(slots=True)
class Recovered:
    """A journal as it goes on. `file`: the last segment, open; the rest as `end` and `reserved`: bytes in it.

    `closed`: the entries of the other segments by first position. `cut_bytes`: how much of a torn tail
    was cut, None when there was none.
    """

    file: File
    header: SegmentHeader
    end: int
    reserved: int
    entries: list[Entry]
    closed: dict[int, list[Entry]]
    tail: Tail
    cut_bytes: int | None


def recover(
    host: Host, directory: str, *, group: str, segment_bytes: int, mark: Mark | None, begins: Tail
) -> Recovered:
    """Make the journal in `directory`, which has a segment, fit to go on. `mark`: how far it was hardened;
    `begins`: what its first record ever comes right after.

    Raises JournalCorrupt (rot), JournalGap (a segment is missing), JournalVersion, StateError (another
    group's journal), and OSError when the disk fails under it.
    """
    _finish_reset(host, directory, first_seqs(host, directory))
    seqs = first_seqs(host, directory)
    closed = {first_seq: read_index(host, directory, first_seq) for first_seq in seqs[:-1]}
    for before, first_seq in itertools.pairwise(seqs):
        last = closed[before][-1].seq if closed[before] else before - 1
        if last + 1 != first_seq:
            raise JournalGap(
                f"positions {last + 1} to {first_seq - 1} are missing from {directory}",
                hint="restore the missing segment or seed the stream again",
            )
    path = segment_path(directory, seqs[-1])
    with contextlib.ExitStack() as on_refusal:
        file = host.disk.open(path)
        on_refusal.callback(file.close)
        header, start = read_segment_header(file, path)
        if header.group != group:
            raise StateError(f"{directory} holds the journal of group {header.group!r}, not of {group!r}")
        if mark is not None and mark.journal_id != header.journal_id:
            mark = None
        found = scan(file, start)
        check_dense(path, seqs[-1], found.entries)
        tail = _tail(found, header, closed[seqs[-2]] if len(seqs) > 1 else [], begins)
        if tail.position.seq + 1 < seqs[-1]:
            raise JournalGap(f"{directory} begins at {seqs[-1]} and what was before is not known")
        _check_whole(path, found, tail, mark)
        cut_bytes = file.size() - found.end if found.damage is not None else None
        # Also behind a clean end. Of a run that was never synced the beginning may be lost and the end be
        # there: it would come to life when another record is written before it.
        file.truncate(found.end)
        write_again(file, found, mark)
        reserved = reserve(file, found.end, segment_bytes)
        file.sync()
        # a writer that died while it began this segment may not have made its name durable
        host.disk.sync_dir(directory)
        on_refusal.pop_all()
    return Recovered(file, header, found.end, reserved, found.entries, closed, tail, cut_bytes)


def _finish_reset(host: Host, directory: str, seqs: list[int]) -> None:
    """A journal begun anew has one segment, of a new id: what stands behind it is of the old one."""
    if len(seqs) == 1 or seqs[0] != 1:
        return
    new, old = _header_of(host, directory, seqs[0]), _header_of(host, directory, seqs[-1])
    if new.journal_id == old.journal_id or new.group != old.group or new.epoch < old.epoch:
        return
    host.disk.sync_dir(directory)  # the new one's name may not be durable yet
    for first_seq in seqs[1:]:
        remove_segment(host, directory, first_seq)
    host.disk.sync_dir(directory)


def _header_of(host: Host, directory: str, first_seq: int) -> SegmentHeader:
    path = segment_path(directory, first_seq)
    file = host.disk.open(path)
    try:
        return read_segment_header(file, path)[0]
    finally:
        file.close()


def _tail(found: Scan, header: SegmentHeader, before: list[Entry], begins: Tail) -> Tail:
    """Where the journal ends; `before`: the entries of the segment before the last."""
    session = found.session if found.session is not None else header.session
    entries = found.entries or before
    if not entries:
        return begins
    last = entries[-1]
    return Tail(last.position, last.offset, last.t_ns, session)


def _check_whole(path: str, found: Scan, tail: Tail, mark: Mark | None) -> None:
    """What ends before a position that was once hardened has not been torn: it is rot."""
    last_seq = tail.position.seq
    if mark is None or mark.position.seq <= last_seq:
        return
    reason = found.damage or f"nothing from byte {found.end} on"
    raise JournalCorrupt(
        f"{path}: {reason}, position {last_seq + 1}, but up to {mark.position} was acknowledged",
        hint="keep the folder for examination and seed the stream again",
        file=path,
        offset=found.end,
    )


def write_again(file: File, found: Scan, mark: Mark | None) -> None:
    """Write the records of the last segment that no sync is known to have covered.

    After a failed sync the page cache shows what the disk may not have, and counts it as
    clean: a sync alone would vouch for records that the next crash takes away.
    """
    sure = 0 if mark is None else mark.position.seq
    at = next((entry.place for entry in found.entries if entry.seq > sure), found.end)
    while at < found.end:
        piece = file.read_at(at, min(found.end - at, _AGAIN))
        file.write_at(at, piece)
        at += len(piece)
