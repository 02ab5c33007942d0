"""Marks: named places in a stream, told from one process of a host to the others.

`hardened` is written by the journal's writer after an fsync, `applied` and `released` by
the apply end. A mark is a hint that its writer can always redo, so it is not synced;
what it says is never ahead of the truth. Readers need no lock: a torn read fails the
checksum and is read again.
"""

from __future__ import annotations

import errno
import struct
import zlib
from dataclasses import dataclass

from castling.errors import JournalError, JournalFull
from castling.host import File, Host
from castling.journal.record import Position

__all__ = ["Mark", "Marks"]

_LAYOUT = struct.Struct("<QQQQ16s")
_CRC = struct.Struct("<I")
_SIZE = _LAYOUT.size + _CRC.size
#: a torn read heals within microseconds; a damaged mark never does
_TRIES = 5


@dataclass(frozen=True, slots=True)
class Mark:
    """`offset`: source position; `t_ns`: wall clock that belongs to it; `journal_id`: of which journal."""

    position: Position
    offset: int
    t_ns: int
    journal_id: bytes = b"\0" * 16


class Marks:
    """The marks of one folder."""

    def __init__(self, host: Host, directory: str) -> None:
        self._host = host
        self._directory = directory
        self._writers: dict[str, File] = {}

    def _path(self, name: str) -> str:
        return f"{self._directory}/{name}.mark"

    def publish(self, name: str, mark: Mark) -> None:
        """Let every reader of the host see `mark`. JournalFull when there is no room to make it.

        Once made, a mark is written in place and needs none.
        """
        raw = _LAYOUT.pack(mark.position.epoch, mark.position.seq, mark.offset, mark.t_ns, mark.journal_id)
        try:
            file = self._writers.get(name)
            if file is None:
                file = self._writers[name] = self._host.disk.open(self._path(name), create=True)
            file.write_at(0, raw + _CRC.pack(zlib.crc32(raw)))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise JournalFull(f"no room for the mark {name} in {self._directory}") from error
            raise JournalError(f"the mark {name} can't be written: {error.strerror or error}") from error

    def read(self, name: str) -> Mark | None:
        """The mark, or None when there is none that can be trusted."""
        try:
            file = self._host.disk.open(self._path(name))
        except FileNotFoundError:
            return None
        try:
            for _ in range(_TRIES):
                raw = file.read_at(0, _SIZE)
                if len(raw) == _SIZE and _CRC.unpack_from(raw, _LAYOUT.size)[0] == zlib.crc32(
                    raw[: _LAYOUT.size]
                ):
                    epoch, seq, offset, t_ns, journal_id = _LAYOUT.unpack_from(raw)
                    return Mark(Position(epoch, seq), offset, t_ns, journal_id)
            return None
        finally:
            file.close()

    def clear(self, name: str) -> None:
        """Remove the mark; nothing when there is none."""
        file = self._writers.pop(name, None)
        if file is not None:
            file.close()
        if self._host.disk.exists(self._path(name)):
            self._host.disk.remove(self._path(name))

    def close(self) -> None:
        while self._writers:
            self._writers.popitem()[1].close()
