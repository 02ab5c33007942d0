"""Reads a journal that another process writes: only what is hardened, always verified.

How far that is, the `hardened` mark says. A reader keeps its place; segments that the
writer begins or removes are noticed, and so is a journal that was begun anew.
"""

from __future__ import annotations

from bisect import bisect_right

from castling.errors import JournalCorrupt, JournalGap
from castling.host import File, Host
from castling.journal.files import first_seqs, read_index, read_segment_header, scan, segment_path
from castling.journal.index import Entry
from castling.journal.marks import Mark, Marks
from castling.journal.record import Position, Record, Tail
from castling.journal.segment import HEADER, Damage, End, parse_record

__all__ = ["JournalReader"]


class JournalReader:
    """See the module. Not shared between tasks."""

    CHUNK_BYTES = 64 << 10

    def __init__(self, host: Host, directory: str) -> None:
        self._host = host
        self._directory = directory
        self._marks = Marks(host, directory)
        self._journal_id: bytes | None = None
        self._file: File | None = None
        self._path = ""
        self._place = 0
        self._next_seq = 0
        #: bytes to read at once: grows while there is a backlog, so that idle reads stay small
        self._chunk = self.CHUNK_BYTES
        #: what was already scanned of the newest segment: first seq, entries, where to go on
        self._newest: tuple[int, list[Entry], int] = (0, [], 0)

    def hardened(self) -> Tail | None:
        """The last hardened record (without its session); None while there is none."""
        mark = self._hardened()
        return None if mark is None else Tail(mark.position, mark.offset, mark.t_ns)

    def _hardened(self) -> Mark | None:
        mark = self._marks.read("hardened")
        if mark is None or mark.position.seq == 0:
            return None
        if self._journal_id is None:
            self._journal_id = mark.journal_id
        elif self._journal_id != mark.journal_id:
            raise JournalGap("the journal was begun anew; what this reader followed is gone")
        return mark

    # --- finding ------------------------------------------------------------------------------

    def tail_at(self, seq: int) -> Tail | None:
        """The hardened record of that position as a tail, without its session; None when it is not here."""
        mark = self._hardened()
        seqs = [first for first in first_seqs(self._host, self._directory) if first <= seq]
        if mark is None or not seqs or seq > mark.position.seq:
            return None
        entries = self._entries(seqs[-1], mark)
        if not entries or not entries[0].seq <= seq <= entries[-1].seq:
            return None
        entry = entries[seq - entries[0].seq]
        return Tail(entry.position, entry.offset, entry.t_ns)

    def keyframe_at_or_before(self, offset: int) -> Position | None:
        """The last hardened keyframe whose source position is at or before `offset`."""
        mark = self._hardened()
        if mark is None:
            return None
        for first_seq in reversed(first_seqs(self._host, self._directory)):
            try:
                entries = self._entries(first_seq, mark)
            except FileNotFoundError:  # released meanwhile
                continue
            for entry in reversed(entries):
                if entry.is_keyframe and entry.offset <= offset and entry.seq <= mark.position.seq:
                    return entry.position
        return None

    def bytes_after(self, offset: int) -> int:
        """Bytes of the segments from that of the keyframe before source position `offset` on."""
        keyframe = self.keyframe_at_or_before(offset)
        seqs = first_seqs(self._host, self._directory)
        if keyframe is not None:
            seqs = seqs[max(0, bisect_right(seqs, keyframe.seq) - 1) :]
        found = 0
        for seq in seqs:
            try:
                file = self._host.disk.open(segment_path(self._directory, seq))
            except FileNotFoundError:  # released meanwhile
                continue
            found += file.size()
            file.close()
        return found

    def _entries(self, first_seq: int, mark: Mark) -> list[Entry]:
        """The entries of a segment: the newest is scanned further, others have an index."""
        if first_seq > mark.position.seq:
            return []
        if first_seqs(self._host, self._directory)[-1] > first_seq:
            return read_index(self._host, self._directory, first_seq)
        path = segment_path(self._directory, first_seq)
        file = self._host.disk.open(path)
        try:
            known, entries, place = self._newest
            if known != first_seq:
                entries, place = [], read_segment_header(file, path)[1]
            if not entries or entries[-1].seq < mark.position.seq:
                found = scan(file, place, verify=False, upto_seq=mark.position.seq)
                entries, place = entries + found.entries, found.end
            self._newest = (first_seq, entries, place)
        finally:
            file.close()
        return entries

    def seek(self, position: Position) -> None:
        """The next `read` begins at `position`, at most one after the last that is hardened.

        JournalGap when it is not there any more, or not yet.
        """
        mark = self._hardened()
        seqs = [seq for seq in first_seqs(self._host, self._directory) if seq <= position.seq]
        if mark is None or not seqs or position.seq > mark.position.seq + 1:
            raise JournalGap(f"position {position} is not in the journal", hint="seed the stream again")
        self._open(seqs[-1])
        if position.seq == seqs[-1]:
            self._next_seq = position.seq
            return
        entries = self._entries(seqs[-1], mark)
        for entry in entries:
            if entry.seq == position.seq:
                self._place, self._next_seq = entry.place, entry.seq
                return
        if entries and entries[-1].seq + 1 == position.seq and self._newest[0] == seqs[-1]:
            self._place, self._next_seq = self._newest[2], position.seq
            return
        raise JournalGap(f"position {position} is not in the journal", hint="seed the stream again")

    def _open(self, first_seq: int) -> None:
        self._close_file()
        self._path = segment_path(self._directory, first_seq)
        try:
            self._file = self._host.disk.open(self._path)
        except FileNotFoundError as error:
            raise JournalGap(f"{self._path} was released before it was read") from error
        header, self._place = read_segment_header(self._file, self._path)
        if self._journal_id is not None and header.journal_id != self._journal_id:
            raise JournalGap("the journal was begun anew; what this reader followed is gone")

    # --- reading ------------------------------------------------------------------------------

    def read(self, max_bytes: int) -> list[Record]:
        """The next hardened records, about `max_bytes` of them, at least one if there is one.

        Raises JournalGap when the next position is missing, JournalCorrupt when a hardened
        record is damaged.
        """
        assert self._file is not None, "seek first"
        mark = self._hardened()
        if mark is None or mark.position.seq < self._next_seq:
            return []
        records = self._read_here(max_bytes, mark)
        if not records:
            self._open_next()
            records = self._read_here(max_bytes, mark)
            if not records:
                raise JournalGap(
                    f"position {self._next_seq} is hardened (up to {mark.position}) but not in {self._path}"
                )
        return records

    def _read_here(self, max_bytes: int, mark: Mark) -> list[Record]:
        assert self._file is not None
        records: list[Record] = []
        raw = self._file.read_at(self._place, max(min(self._chunk, max_bytes), HEADER))
        at = 0
        while self._next_seq <= mark.position.seq:
            try:
                record, end = parse_record(raw, at)
            except End:
                break
            except Damage as damage:
                if records:
                    break
                record, end = self._read_one(damage)
                at = 0
            if record.position.seq != self._next_seq:
                raise JournalCorrupt(
                    f"{self._path}: position {record.position} stands where {self._next_seq} belongs",
                    hint="keep the folder for examination and seed the stream again",
                )
            records.append(record)
            self._place += end - at
            at = end
            self._next_seq += 1
            if at >= len(raw):
                break
        behind = self._next_seq <= mark.position.seq
        self._chunk = min(self._chunk * 2, max_bytes) if behind else self.CHUNK_BYTES
        return records

    def _read_one(self, damage: Damage) -> tuple[Record, int]:
        """One record larger than what was read at once, or truly damaged."""
        assert self._file is not None
        try:
            found = scan(self._file, self._place, upto_seq=self._next_seq)
            if found.entries:
                raw = self._file.read_at(self._place, found.end - self._place)
                return parse_record(raw, 0)
            damage = found.damage or damage
        except (Damage, End) as error:
            damage = error if isinstance(error, Damage) else damage
        raise JournalCorrupt(
            f"{self._path}: {damage.reason} at byte {self._place}, position {self._next_seq}",
            hint="keep the folder for examination and seed the stream again",
            file=self._path,
            offset=self._place,
        )

    def _open_next(self) -> None:
        """Go on in the segment that begins with the next position, if there is one."""
        if self._next_seq in first_seqs(self._host, self._directory):
            self._open(self._next_seq)

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def close(self) -> None:
        self._close_file()
        self._marks.close()
