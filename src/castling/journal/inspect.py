"""Looks into a journal without touching it: what it holds, how far it is hardened, where it is damaged.

Writes nothing and takes no lock, so it may look while the journal is written. What
lies beyond the `hardened` mark in the last segment may be under way: damage there is told as a
torn tail, which recovery cuts; anywhere else it is rot.
"""

from __future__ import annotations

from typing import Any

from castling.errors import JournalCorrupt, JournalVersion
from castling.host import Host
from castling.journal.files import Scan, first_seqs, read_segment_header, scan, segment_path
from castling.journal.index import Entry
from castling.journal.marks import Marks
from castling.journal.record import Position, RecordType
from castling.journal.segment import SegmentHeader

__all__ = ["describe"]

_MARKS = ("hardened", "applied", "released")


def describe(host: Host, directory: str, *, records: bool) -> dict[str, Any]:
    """Everything about the journal in `directory`; with `records` a line for each record too.

    `damage`: [{file, offset, position, reason, kind: "rot" | "torn tail"}]; `position` is the first that
    can't be read. Sizes in bytes, times in ns. Raises JournalVersion for a format that can't be read.
    """
    found = _Description(host, directory, records)
    for first_seq in first_seqs(host, directory):
        found.add(first_seq)
    return found.as_dict()


class _Description:
    def __init__(self, host: Host, directory: str, records: bool) -> None:
        self._host = host
        self._directory = directory
        self._wanted = records
        reader = Marks(host, directory)
        self._marks = {name: reader.read(name) for name in _MARKS}
        self._segments: list[dict[str, Any]] = []
        self._damage: list[dict[str, Any]] = []
        self._keyframes: list[dict[str, Any]] = []
        self._records: list[dict[str, Any]] = []
        self._header: SegmentHeader | None = None
        self._next: int | None = None
        self._last: Entry | None = None

    def add(self, first_seq: int) -> None:
        """Look at the segment that begins with `first_seq`; they come in ascending order."""
        path = segment_path(self._directory, first_seq)
        name = path.rpartition("/")[2]
        if self._next is not None and self._next != first_seq:
            self._note(name, 0, self._next, f"positions {self._next} to {first_seq - 1} are missing", "rot")
        try:
            file = self._host.disk.open(path)
        except FileNotFoundError:  # released since the folder was listed, as are all before it
            self._next = None
            return
        try:
            header, start = read_segment_header(file, path)
            content = scan(file, start)
            size = file.size()
        except JournalVersion:
            raise
        except JournalCorrupt as error:
            self._note(name, 0, first_seq, str(error).removeprefix(f"{path}: "), "rot")
            self._next = None
            return
        finally:
            file.close()
        self._header = header
        self._take(name, first_seq, content, size, header.epoch)

    def _take(self, name: str, first_seq: int, content: Scan, size: int, epoch: int) -> None:
        entries = content.entries
        self._next = first_seq + len(entries)
        if entries:
            self._last = entries[-1]
        self._segments.append(
            {
                "file": name,
                "epoch": epoch,
                "first": first_seq,
                "last": entries[-1].seq if entries else None,
                "records": len(entries),
                "bytes": size,
                "used": content.end,
                "first_t_ns": entries[0].t_ns if entries else None,
                "last_t_ns": entries[-1].t_ns if entries else None,
            }
        )
        if content.damage is not None:
            self._note(name, content.damage.at, self._next, content.damage.reason, "")
            self._next = None  # what follows in the file can't be told any more
        for entry in entries:
            if entry.is_keyframe:
                self._keyframes.append({"position": str(entry.position), "t_ns": entry.t_ns})
            if self._wanted:
                self._records.append(
                    {
                        "position": str(entry.position),
                        "type": RecordType(entry.type).name.lower(),
                        "flags": entry.flags,
                        "t_ns": entry.t_ns,
                        "offset": entry.offset,
                        "file": name,
                        "at": entry.place,
                    }
                )

    def _note(self, file: str, offset: int, seq: int, reason: str, kind: str) -> None:
        self._damage.append({"file": file, "offset": offset, "position": seq, "reason": reason, "kind": kind})

    def _kind(self, damage: dict[str, Any]) -> str:
        """What recovery would make of it."""
        hardened = self._marks["hardened"]
        in_last = bool(self._segments) and damage["file"] == self._segments[-1]["file"]
        beyond = hardened is None or damage["position"] > hardened.position.seq
        return "torn tail" if in_last and beyond else "rot"

    def _note_lost(self) -> None:
        """Hardened positions that the last segment does not hold, though nothing in it looks damaged.

        The marks were read before the segments: a journal that is written meanwhile holds more, not less.
        """
        hardened = self._marks["hardened"]
        if hardened is None or self._header is None or self._next is None:
            return
        if hardened.journal_id == self._header.journal_id and hardened.position.seq >= self._next:
            last = self._segments[-1]
            reason = f"positions {self._next} to {hardened.position.seq} were hardened and are not there"
            self._note(last["file"], last["used"], self._next, reason, "rot")

    def as_dict(self) -> dict[str, Any]:
        header, last = self._header, self._last
        self._note_lost()
        for damage in self._damage:
            damage["kind"] = damage["kind"] or self._kind(damage)
        found: dict[str, Any] = {
            "group": None if header is None else header.group,
            "journal_id": None if header is None else header.journal_id.hex(),
            "epoch": None if header is None else header.epoch,
            "epochs": [] if header is None else [str(Position(*pair)) for pair in header.history],
            "tail": None if last is None else str(last.position),
            "tail_offset": None if last is None else last.offset,
            "tail_t_ns": None if last is None else last.t_ns,
        }
        for name, mark in self._marks.items():
            found[name] = None if mark is None else str(mark.position)
        found["bytes"] = sum(segment["bytes"] for segment in self._segments)
        found["segments"] = self._segments
        found["keyframes"] = self._keyframes
        found["damage"] = self._damage
        if self._wanted:
            found["records"] = self._records
        return found
