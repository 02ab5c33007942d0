"""What a journal holds: records at dense positions.

A record is a fixed header and opaque bytes. The header's meaning is the same for
every kind of group; what `object`, `offset` and `length` address is the kind's own
business. The binary form is in `segment`, its page in docs/formats/journal.md.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

__all__ = ["START", "Draft", "Flag", "Position", "Record", "RecordType", "Tail"]


@dataclass(frozen=True, order=True, slots=True)
class Position:
    """A place in a journal.

    Dense: the successor of `seq` is `seq + 1`; the first record has seq 1. `epoch`
    counts role changes, so what a deposed primary wrote sorts before the new history.
    """

    epoch: int
    seq: int

    def __str__(self) -> str:
        return f"{self.epoch}/{self.seq}"

    @classmethod
    def parse(cls, text: str) -> Position:
        epoch, _, seq = text.partition("/")
        return cls(int(epoch), int(seq))


#: before the first record of an empty journal
START = Position(0, 0)


class RecordType(enum.IntEnum):
    DATA = 1  #: payload: changes in the kind's own form
    ZERO = 2  #: no payload: `length` bytes at `offset` become zero
    BARRIER = 3  #: a natural recovery point
    MARK = 4  #: payload: UTF-8 name of an event marker
    RESIZE = 5  #: `object` now has `length` bytes
    SESSION = 7  #: capture (re)starts here; payload: the kind's continuity token


class Flag(enum.IntFlag):
    NONE = 0
    #: decoding may start at this record without having seen any before it
    KEYFRAME = 1


@dataclass(frozen=True, slots=True)
class Record:
    """One record as read and verified.

    `t_ns`: wall clock of the capturing node, clamped so that it never goes back
    within a journal. `offset`: for kinds captured from another log, the source
    position from which capture resumes after this record; for volumes a byte offset.
    """

    position: Position
    type: RecordType
    flags: Flag
    object: int
    t_ns: int
    offset: int
    length: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Draft:
    """A record that has no position yet.

    `commits`: the source's own times (wall clock, ns) of the transactions that end in it, for the lag
    figures only.
    """

    type: RecordType
    payload: bytes
    offset: int
    flags: Flag = Flag.NONE
    object: int = 0
    length: int = 0
    commits: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Tail:
    """Where a journal ends: what a sender needs to go on without gap or repetition.

    `offset` and `t_ns` are those of the last record; `session` is the payload of the
    last SESSION record (the continuity token), None in an empty journal.
    """

    position: Position = START
    offset: int = 0
    t_ns: int = 0
    session: bytes | None = None
