"""The bytes of a replication stream, and of a COPY, cut into messages. Pure.

Source: PostgreSQL's documentation, "Frontend/Backend Protocol", version 3, and "Streaming Replication
Protocol": each message is a kind, a length (big-endian, itself included) and a body; changes and keepalives
come as CopyData.

Compiled where a compiler is at hand, like `messages`: a change costs one slice here, and no call from
outside.
"""

from __future__ import annotations

from typing import Final, NamedTuple, final

from mypy_extensions import i64

from castling.errors import DecodeError
from castling.kinds.postgres.drafts import DraftMaker
from castling.kinds.postgres.messages import FRAME_MAX

__all__ = ["CopyOut", "CopyStream", "Keepalive", "Refusal", "keepalive_of"]

#: bytes before a change in CopyData: kind, where it starts, where the server's log ends, its clock
WAL_HEAD: Final = 25
#: kind, end of the server's log, its clock, whether it wants an answer
KEEPALIVE_SIZE: Final = 18
_HEAD: Final = 5
#: a change larger than this is not kept twice
_LARGE: Final = 1 << 20
#: bytes of an answer to a command, at most
_ANSWER_MAX: Final = 1 << 20


class Keepalive(NamedTuple):
    """The server has sent everything before `wal_end`; `reply`: it wants to hear from us now."""

    wal_end: int
    reply: bool


class Refusal(NamedTuple):
    """The server's error, in its own words."""

    sqlstate: str
    message: str


def keepalive_of(body: bytes) -> Keepalive:
    if len(body) != KEEPALIVE_SIZE:
        raise DecodeError("a keepalive of the source has the wrong length")
    return Keepalive(int.from_bytes(body[1:9], "big"), body[17] != 0)


def _refusal_of(body: bytes) -> Refusal:
    """An ErrorResponse: fields, each a letter and a string that a zero byte ends."""
    found: dict[int, str] = {}
    for field in body.split(b"\0"):
        if field:
            found[field[0]] = field[1:].decode(errors="replace")
    return Refusal(found.get(0x43, ""), found.get(0x4D, ""))


@final
class CopyStream:
    """Takes what was received (`feed`) and gives changes to a maker of drafts (`pump`).

    `streaming`: the server has begun to. `refusal`: its error. `ready`: after an error, it waits for the
    next command. `ended`: it has ended the stream in good order.
    """

    def __init__(self) -> None:
        self.streaming = False
        self.refusal: Refusal | None = None
        self.ready = False
        self.ended = False
        #: received, and not yet joined: a large message comes in very many portions
        self._portions: list[bytes] = []
        self._waiting = 0
        self._needed = _HEAD
        self._buffer = b""
        self._at = 0

    def feed(self, data: bytes) -> None:
        self._portions.append(data)
        self._waiting += len(data)

    def begin(self) -> None:
        """Read the answer to the command that begins the stream, as far as it has come."""
        while not self.streaming and not self.ready and self._join():
            length = _length_at(self._buffer, self._at)
            if length < 4 or length > _ANSWER_MAX:
                raise DecodeError("the source's answer is longer than one can be")
            self._needed = int(length) + 1
            if not self._join():
                return
            end = self._at + self._needed
            self._note(self._buffer[self._at], self._buffer[self._at + _HEAD : end])
            self._at, self._needed = end, _HEAD

    def pump(self, maker: DraftMaker, max_bytes: int) -> Keepalive | None:
        """Give what has been received to `maker`: until a keepalive, which is returned, or about
        `max_bytes`, or all of it, or until `maker` is full. DecodeError for what no
        server sends."""
        if not self._join():
            return None
        buffer = self._buffer
        at: i64 = self._at
        end: i64 = len(buffer)
        left: i64 = max_bytes
        found: Keepalive | None = None
        self._needed = _HEAD
        while left > 0 and end - at >= _HEAD and not maker.is_full:
            length: i64 = _length_at(buffer, at)
            if length < 4 or length > FRAME_MAX + 64:
                raise DecodeError("a message of the source is longer than one can be")
            if end - at - 1 < length:
                self._needed = int(length) + 1
                break
            if buffer[at] == 0x64:  # d: CopyData
                kind: i64 = buffer[at + _HEAD] if length > 4 else 0
                if kind == 0x77 and length > 4 + WAL_HEAD:  # w
                    message = buffer[at + _HEAD + WAL_HEAD : at + 1 + length]
                    left -= length
                    if length > _LARGE:
                        buffer = buffer[at + 1 + length :]
                        self._buffer = buffer
                        end = len(buffer)
                        at = -1 - length
                    maker.take(message)
                elif kind == 0x6B:  # k
                    found = keepalive_of(buffer[at + _HEAD : at + 1 + length])
                else:
                    raise DecodeError(
                        f"the replication stream holds a message of unknown kind {int(kind):#x}"
                    )
            else:
                self._note(buffer[at], buffer[at + _HEAD : at + 1 + length])
            at += 1 + length
            if found is not None:
                break
        self._at = int(at)
        return found

    def _join(self) -> bool:
        """Whether there may be a whole message."""
        if self._waiting and len(self._buffer) - self._at + self._waiting >= self._needed:
            self._portions.insert(0, self._buffer[self._at :])
            self._buffer = b"".join(self._portions)
            self._portions, self._waiting, self._at = [], 0, 0
        return len(self._buffer) - self._at >= self._needed

    def _note(self, kind: int, body: bytes) -> None:
        if kind == 0x57:  # W: CopyBothResponse
            self.streaming = True
        elif kind == 0x45:  # E
            self.refusal = _refusal_of(body)
        elif kind == 0x5A:  # Z: ReadyForQuery
            self.ready = True
        elif kind == 0x63:  # c: CopyDone
            self.ended = True
        elif kind not in (0x4E, 0x53, 0x43):  # a notice, a changed setting, the end of a command
            raise DecodeError(f"the source sent a message of unknown kind {kind:#x}")


@final
class CopyOut:
    """The answer to one COPY … TO STDOUT, as it comes: rows need not be whole in what is taken out of it.

    `refusal`: the server's error. `ready`: the answer is over.
    """

    def __init__(self) -> None:
        self.refusal: Refusal | None = None
        self.ready = False
        #: the beginning of a message that is not data, or of a head
        self._begun = b""
        #: what is still to come of the row that came in part
        self._left: i64 = 0

    def take(self, data: bytes) -> bytes:
        """The rows' bytes in what was received. DecodeError for what no server sends."""
        if self._begun:
            data = self._begun + data
            self._begun = b""
        at: i64 = min(self._left, i64(len(data)))
        end: i64 = len(data)
        found = [data[:at]] if at else []
        self._left -= at
        while end - at >= _HEAD:
            length: i64 = _length_at(data, at)
            if length < 4:
                raise DecodeError("a message of the source is shorter than one can be")
            stop: i64 = at + 1 + length
            if data[at] == 0x64:  # d: CopyData
                found.append(data[at + _HEAD : min(stop, end)])
                if stop > end:
                    self._left = stop - end
                    stop = end
            else:
                if length > _ANSWER_MAX:
                    raise DecodeError("the source's answer is longer than one can be")
                if stop > end:
                    break
                self._note(data[at], data[at + _HEAD : stop])
            at = stop
        self._begun = data[at:]
        return b"".join(found)

    def _note(self, kind: int, body: bytes) -> None:
        if kind == 0x45:  # E
            self.refusal = _refusal_of(body)
        elif kind == 0x5A:  # Z: ReadyForQuery
            self.ready = True
        # it begins, is over; a notice, a changed setting, a notification
        elif kind not in (0x48, 0x63, 0x43, 0x4E, 0x53, 0x41):
            raise DecodeError(f"the source sent a message of unknown kind {kind:#x}")


def _length_at(buffer: bytes, at: i64) -> i64:
    top: i64 = buffer[at + 1]
    high: i64 = buffer[at + 2]
    middle: i64 = buffer[at + 3]
    low: i64 = buffer[at + 4]
    return top << 24 | high << 16 | middle << 8 | low
