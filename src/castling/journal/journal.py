"""The writer of a remote journal: append, harden, recover, release. One per folder.

A run of records arrives as the bytes that were sent. It is verified, written with one
write, and durable once `harden` has returned. Segments are preallocated, and a closed one
is synced before the first record of the next is written: so damage in a segment that is
not the last is rot, and damage in the last one beyond what was ever hardened is a torn
tail, which recovery cuts (its sender was never told it had arrived and sends it again).

Invariants: positions are dense; the epoch never goes back; `hardened` never passes what
an fsync has covered; a write that failed leaves nothing behind the last good record.
"""

from __future__ import annotations

import contextlib
import errno
from dataclasses import dataclass

from castling.config import RetentionSettings
from castling.errors import JournalCorrupt, JournalError, JournalFull, JournalGap, StaleEpoch
from castling.host import File, Host
from castling.journal import retention as keeping
from castling.journal.files import first_seqs, remove_segment, reserve, segment_path, write_index
from castling.journal.index import Entry, entry_of
from castling.journal.marks import Mark, Marks
from castling.journal.record import Position, RecordType, Tail
from castling.journal.recovery import recover
from castling.journal.segment import (
    HEADER,
    SEGMENT_BLOCK,
    Damage,
    End,
    SegmentHeader,
    encode_segment_header,
    parse_header,
    parse_record,
    payload_end,
)

__all__ = ["Journal"]


@dataclass(slots=True)
class _Segment:
    """The segment that is written to. `end`: where the next record goes."""

    file: File
    header: SegmentHeader
    end: int
    allocated: int
    entries: list[Entry]


class Journal:
    """See the module. All methods but `harden` are synchronous: one caller, no interleaving."""

    #: seconds between two looks at the free space
    SPACE_S = 1.0

    def __init__(
        self,
        host: Host,
        directory: str,
        *,
        group: str,
        segment_bytes: int,
        min_free: int = 0,
        begins: Tail | None = None,
    ) -> None:
        self._host = host
        self._directory = directory
        self._group = group
        self._segment_bytes = segment_bytes
        self._min_free = min_free
        self._begins = begins or Tail()
        self._marks = Marks(host, directory)
        self._current: _Segment | None = None
        self._retired: list[File] = []
        self._closed: dict[int, list[Entry]] = {}
        self._failed: JournalError | None = None
        self._space_checked_s = float("-inf")
        self.journal_id = b""
        self.epoch = 0
        self.epoch_history: tuple[tuple[int, int], ...] = ()
        self.tail = Tail()
        self.hardened = Tail()
        self.bytes_appended = 0
        #: what recovery cut off, bytes; None when the tail was whole
        self.cut_bytes: int | None = None

    @classmethod
    def open(
        cls,
        host: Host,
        directory: str,
        *,
        group: str,
        segment_bytes: int,
        min_free: int = 0,
        begins: Tail | None = None,
    ) -> Journal:
        """Create the journal in `directory`, or recover it.

        `begins`: the tail of another journal that this one goes on behind, told in the same way each time;
        None: it is whole, from the first position on.
        Raises JournalCorrupt (rot), JournalGap (a segment is missing), JournalVersion,
        StateError (another group's journal).
        """
        host.disk.makedirs(directory)
        journal = cls(
            host, directory, group=group, segment_bytes=segment_bytes, min_free=min_free, begins=begins
        )
        for name in host.disk.listdir(directory):
            if name.endswith(".new"):
                host.disk.remove(f"{directory}/{name}")
        if first_seqs(host, directory):
            journal._recover()
        else:
            journal._begin_anew()
            journal._reserve_current()
            journal._publish()  # the mark's file is made while there is room
        return journal

    def _recover(self) -> None:
        try:
            found = recover(
                self._host,
                self._directory,
                group=self._group,
                segment_bytes=self._segment_bytes,
                mark=self._marks.read("hardened"),
                begins=self._begins,
            )
        except OSError as error:
            raise self._explain(error) from error
        header = found.header
        self.journal_id, self.epoch = header.journal_id, header.epoch
        self.epoch_history = tuple(header.history)
        self._closed = found.closed
        self._current = _Segment(found.file, header, found.end, found.reserved, found.entries)
        self.tail = self.hardened = found.tail
        self.cut_bytes = found.cut_bytes
        self._publish()

    # --- beginning ----------------------------------------------------------------------------

    def _begin_anew(self) -> None:
        """A new first segment under a new id. It needs no room: the disk may be full of the old."""
        before = (self.journal_id, self.tail, self.hardened, self.epoch_history)
        self.journal_id = self._host.random.randbytes(16)
        self.tail = self.hardened = self._begins
        first_seq = self._begins.position.seq + 1
        self.epoch_history = ((self.epoch, first_seq),)
        try:
            self._open_segment(first_seq, 0)
        except JournalError:
            self.journal_id, self.tail, self.hardened, self.epoch_history = before
            raise

    def reset(self) -> None:
        """Forget every record and begin a new journal; only for a stream that is seeded again.

        Done or not done at all: that the new first segment has its name decides, and recovery
        removes what is left of the old. So the epoch is never forgotten.
        """
        assert self._begins.position.seq == 0, "a journal that goes on behind another is removed, not reset"
        self._check_usable()
        old = [seq for seq in first_seqs(self._host, self._directory) if seq != 1]
        current = self._current
        self._begin_anew()
        if current is not None:
            self._retired.append(current.file)  # a harden on its way may still be syncing it
        self._closed.clear()
        for first_seq in old:
            remove_segment(self._host, self._directory, first_seq)
        self._host.disk.sync_dir(self._directory)
        self._reserve_current()
        self._publish()

    def raise_epoch(self, epoch: int) -> None:
        """From now on only records of `epoch` are taken. Durable when this returns."""
        if epoch < self.epoch:
            raise StaleEpoch(f"epoch {epoch} is over: the journal is in epoch {self.epoch}")
        if epoch == self.epoch:
            return
        self._check_usable()
        next_seq = self.tail.position.seq + 1
        before = (self.epoch, self.epoch_history)
        kept = [entry for entry in self.epoch_history if entry[1] < next_seq]
        self.epoch, self.epoch_history = epoch, (*kept, (epoch, next_seq))
        try:
            self._roll(next_seq)
        except JournalError:
            self.epoch, self.epoch_history = before
            raise

    # --- segments -----------------------------------------------------------------------------

    def _open_segment(self, first_seq: int, room: int) -> None:
        """Make the segment that begins at `first_seq`, whole and durable under its name, or nothing.

        `room`: bytes to reserve for it in advance.
        """
        header = SegmentHeader(
            journal_id=self.journal_id,
            group=self._group,
            epoch=self.epoch,
            first_seq=first_seq,
            history=list(self.epoch_history),
            session=self.tail.session,
        )
        raw = encode_segment_header(header)
        path = segment_path(self._directory, first_seq)
        scratch = f"{path}.new"
        file = None
        try:
            file = self._host.disk.open(scratch, create=True)
            file.truncate(0)
            file.allocate(max(room, len(raw)))
            file.write_at(0, raw)
            file.sync()
            self._host.disk.rename(scratch, path)
        except OSError as error:
            if file is not None:
                file.close()
            with contextlib.suppress(FileNotFoundError):
                self._host.disk.remove(scratch)
            raise self._explain(error) from error
        try:
            self._host.disk.sync_dir(self._directory)
        except OSError as error:  # it has its name already, for how long nobody knows
            file.close()
            raise self._fail(error) from error
        self._current = _Segment(file, header, len(raw), max(room, len(raw)), [])

    def _reserve_current(self) -> None:
        current = self._current
        assert current is not None
        try:
            current.allocated = reserve(current.file, current.end, self._segment_bytes)
        except OSError as error:
            raise self._fail(error) from error

    def _roll(self, first_seq: int) -> None:
        """Close the current segment (synced) and open the next."""
        current = self._current
        assert current is not None
        if current.entries:
            self._sync_now(current.file)
            self._open_segment(first_seq, self._segment_bytes)
            self._closed[current.header.first_seq] = current.entries
            self._write_index(current)
            self._retired.append(current.file)
        else:  # nothing in it yet: the new one takes its name
            self._open_segment(first_seq, self._segment_bytes)
            self._retired.append(current.file)

    def _write_index(self, segment: _Segment) -> None:
        try:
            write_index(
                self._host, self._directory, segment.header.first_seq, segment.entries, self.journal_id
            )
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):  # the segment itself can be read instead
                raise self._fail(error) from error

    def _sync_now(self, file: File) -> None:
        try:
            file.sync()
        except OSError as error:
            raise self._fail(error) from error

    # --- appending ----------------------------------------------------------------------------

    def append(self, run: bytes | memoryview) -> Tail:
        """Take a run of whole records; the new tail, not yet hardened.

        Raises StaleEpoch, JournalGap (not the next position), JournalCorrupt (damaged on its
        way): nothing of the run was taken. JournalFull: nothing of it that belongs in the current
        segment was taken; `tail` says how far the journal reaches, and it stays usable.
        """
        self._check_usable()
        entries, session = self._verify(run)
        if not entries:
            return self.tail
        self._check_space()
        try:
            self._write(memoryview(run), entries)
        except OSError as error:
            self._take_back()
            raise self._explain(error) from error
        assert self.tail.position == entries[-1].position
        self.tail = Tail(entries[-1].position, entries[-1].offset, entries[-1].t_ns, session)
        self.bytes_appended += len(run)
        return self.tail

    def _verify(self, run: bytes | memoryview) -> tuple[list[Entry], bytes | None]:
        """The run's records as entries (`place` within the run) and the session in force after them."""
        entries: list[Entry] = []
        expected, t_ns, session = self.tail.position.seq + 1, self.tail.t_ns, self.tail.session
        at, view = 0, memoryview(run)
        while at < len(run):
            try:
                header = parse_header(view, at)
                end = payload_end(view, at, header)
            except (Damage, End) as damage:
                raise JournalCorrupt(f"a record was damaged on its way: {damage or 'zeros'}") from damage
            if header.epoch < self.epoch:
                raise StaleEpoch(f"a record of epoch {header.epoch} came in epoch {self.epoch}")
            if header.epoch > self.epoch:
                raise JournalGap(f"a record of epoch {header.epoch} came before the epoch was raised")
            if header.seq != expected:
                raise JournalGap(f"position {header.seq} came where {expected} is next")
            if header.t_ns < t_ns:
                raise JournalCorrupt(f"time goes back at position {header.seq}")
            if header.type is RecordType.SESSION:
                session = bytes(view[end - header.payload_len : end])
            entries.append(entry_of(header, at))
            expected, t_ns, at = expected + 1, header.t_ns, end
        return entries, session

    def _write(self, run: memoryview, entries: list[Entry]) -> None:
        """Write the run, one write per segment it touches; a record never straddles two."""
        begin = 0
        while begin < len(entries):
            current = self._current
            assert current is not None
            start = entries[begin].place
            stop = self._fitting(current, run, entries, begin)
            if stop == begin:
                self._roll(entries[begin].seq)
                continue
            limit = entries[stop].place if stop < len(entries) else len(run)
            current.file.write_at(current.end, run[start:limit])
            shift = current.end - start
            current.entries += [entry._replace(place=entry.place + shift) for entry in entries[begin:stop]]
            current.end += limit - start
            current.allocated = max(current.allocated, current.end)
            self.tail = self._tail_after(run, entries[begin:stop])
            begin = stop

    def _tail_after(self, run: memoryview, written: list[Entry]) -> Tail:
        """The tail after these entries of the run, with the session that is in force there."""
        session = self.tail.session
        for entry in written:
            if entry.type == RecordType.SESSION:
                session = parse_record(run, entry.place)[0].payload
        last = written[-1]
        return Tail(last.position, last.offset, last.t_ns, session)

    def _fitting(self, current: _Segment, run: memoryview, entries: list[Entry], begin: int) -> int:
        """How many of the entries from `begin` go into the current segment: at least one when it is empty."""
        room = self._segment_bytes - current.end
        start = entries[begin].place
        stop = begin
        while stop < len(entries):
            limit = entries[stop + 1].place if stop + 1 < len(entries) else len(run)
            if limit - start > room and (stop > begin or current.entries):
                break
            stop += 1
        return stop

    def _take_back(self) -> None:
        """Erase what a failed write may have left behind the last good record."""
        current = self._current
        assert current is not None
        try:
            current.file.truncate(current.end)
        except OSError as error:
            raise self._fail(error) from error

    def _check_space(self) -> None:
        now_s = self._host.monotonic()
        if now_s - self._space_checked_s < self.SPACE_S:
            return
        try:
            free = self._host.disk.free_bytes(self._directory)
        except OSError as error:
            raise self._explain(error) from error
        if free < self._min_free:
            raise JournalFull(
                f"{self._directory} has {free >> 20} MiB free, less than the {self._min_free >> 20} MiB kept",
                hint="make room or lower retention.min_free; receiving goes on by itself",
                free_bytes=free,
            )
        self._space_checked_s = now_s

    # --- hardening ----------------------------------------------------------------------------

    async def harden(self) -> Tail:
        """Make everything appended so far durable; how far that is.

        After a failed fsync nothing about the file is known: the journal then refuses all
        further work, because a second fsync would report success for data that is lost.
        """
        self._check_usable()
        current = self._current
        assert current is not None
        tail, journal_id = self.tail, self.journal_id
        retired, self._retired = self._retired, []
        try:
            await self._host.sync([current.file])
        except OSError as error:
            raise self._fail(error) from error
        finally:
            for file in retired:
                file.close()
        self._check_usable()  # another sync of the file failed meanwhile: then this one vouches for nothing
        if journal_id == self.journal_id and tail.position > self.hardened.position:
            self.hardened = tail
            self._publish()
        return self.hardened

    def _publish(self) -> None:
        tail = self.hardened
        assert tail.position <= self.tail.position, "hardened what was never appended"
        self._marks.publish("hardened", Mark(tail.position, tail.offset, tail.t_ns, self.journal_id))

    # --- room ---------------------------------------------------------------------------------

    def release(
        self, applied: Position, *, keyframe: Position | None, retention: RetentionSettings, now_ns: int
    ) -> list[str]:
        """Remove closed segments that nobody needs; their file names.

        Never one with a record after `applied`, or at or after the keyframe from which apply
        would start again; of the rest, those beyond the size or the age to keep.
        """
        if keyframe is None:
            return []
        needed = min(applied.seq + 1, keyframe.seq)
        segments = [
            keeping.Closed(seq, entries[-1].seq, entries[-1].t_ns, self._size_of(seq))
            for seq, entries in sorted(self._closed.items())
        ]
        removed = keeping.releasable(segments, needed_seq=needed, retention=retention, now_ns=now_ns)
        for first_seq in removed:
            remove_segment(self._host, self._directory, first_seq)
            del self._closed[first_seq]
        if removed:
            self._host.disk.sync_dir(self._directory)
        return [segment_path(self._directory, seq) for seq in removed]

    def _size_of(self, first_seq: int) -> int:
        entries = self._closed[first_seq]
        return max(self._segment_bytes, entries[-1].place + HEADER)

    def size_bytes(self) -> int:
        """What the segments take on disk, about."""
        current = self._current.allocated if self._current else 0
        return current + sum(self._size_of(seq) for seq in self._closed)

    def size_with(self, more: int) -> int:
        """What they would take with a run of so many bytes more, at most."""
        current = self._current
        fits = current is not None and current.end + more <= current.allocated
        return self.size_bytes() + (0 if fits else max(self._segment_bytes, more + SEGMENT_BLOCK))

    def keyframe_at_or_before(self, offset: int) -> Position | None:
        """The last keyframe whose source position is at or before `offset`."""
        runs = [entries for _, entries in sorted(self._closed.items())]
        if self._current is not None:
            runs.append(self._current.entries)
        for entries in reversed(runs):
            for entry in reversed(entries):
                if entry.is_keyframe and entry.offset <= offset:
                    return entry.position
        return None

    # --- failing and closing ------------------------------------------------------------------

    def _check_usable(self) -> None:
        if self._failed is not None:
            raise self._failed

    def _fail(self, error: OSError) -> JournalError:
        self._failed = JournalError(
            f"the disk failed under the journal: {error.strerror or error}",
            hint="find out what the disk lost, then restart this end; unacknowledged records are sent again",
        )
        return self._failed

    def _explain(self, error: OSError) -> JournalError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            self._space_checked_s = float("-inf")
            return JournalFull(
                f"no room for more records in {self._directory}",
                hint="make room; receiving goes on by itself, what was acknowledged stays",
            )
        return self._fail(error)

    def _close_files(self) -> None:
        for file in self._retired:
            file.close()
        self._retired = []
        if self._current is not None:
            self._current.file.close()
            self._current = None

    def close(self) -> None:
        """Close the files. What was not hardened is not synced: its sender sends it again."""
        self._close_files()
        self._marks.close()
