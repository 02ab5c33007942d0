"""What the stream says of sequences, and where the target's go by it. Pure.

A sequence's value is not in the stream of rows. The source end looks at the group's sequences and writes
the values that have moved as a message into the source's log, where it is in order with the rows. Between
two looks the source hands out values that no message tells of yet; so the target stays a margin ahead, and
values that it hands out after a switch were never handed out by the source.

The target goes back only where the source itself went back: its sequence has another file (ALTER
SEQUENCE … RESTART and TRUNCATE … RESTART IDENTITY give it one), or its value is behind what the source
said before (setval). A target that is ahead for another reason stays ahead: gaps are allowed, the
same value twice is not. A sequence that cycles has no ahead and follows exactly, with its margin wrapped.
"""

from __future__ import annotations

import msgspec

from castling.errors import DecodeError

__all__ = [
    "SEQUENCES_PREFIX",
    "Known",
    "SequenceMessage",
    "Standing",
    "Told",
    "ahead",
    "decode_sequences",
    "encode_sequences",
    "moved",
    "standing",
]

SEQUENCES_PREFIX = "castling:sequences"

#: sequences told of in one message, at most
SEQUENCES_MAX = 1000
_VERSION = 1
_BIGGEST = (1 << 63) - 1


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """One sequence as the source has it. `file`: changes when it is restarted, not when it moves.
    `margin`: values to stay ahead of it."""

    schema: str
    name: str
    last: int
    called: bool
    increment: int
    min: int
    max: int
    cycle: bool
    file: int
    margin: int

    @property
    def key(self) -> tuple[str, str]:
        return self.schema, self.name


class SequenceMessage(msgspec.Struct, frozen=True, kw_only=True):
    """The content of a message. Every stream of the source's database sees it; `group` says whose it is.

    `gone`: schema and name of those that are no longer there. `begins`: all there are follow, in this
    message and those behind it.
    """

    group: str
    at_ns: int
    sequences: list[Told]
    gone: list[tuple[str, str]] = []
    begins: bool = False
    v: int = _VERSION


class Known(msgspec.Struct, frozen=True):
    """What the source said of a sequence before."""

    last: int
    called: bool
    file: int


class Standing(msgspec.Struct, frozen=True):
    """Where a sequence stands: what setval takes."""

    last: int
    called: bool


def encode_sequences(message: SequenceMessage) -> bytes:
    return msgspec.json.encode(message)


def decode_sequences(content: bytes) -> SequenceMessage:
    """DecodeError for what is no message of sequences, or one that this release does not know."""
    try:
        found = msgspec.json.decode(content, type=SequenceMessage)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DecodeError(f"a {SEQUENCES_PREFIX} message can't be read: {error}") from error
    if found.v != _VERSION:
        raise DecodeError(f"a {SEQUENCES_PREFIX} message is of version {found.v}, not {_VERSION}")
    for told in found.sequences:
        if told.increment == 0 or not told.min <= told.last <= told.max or told.margin < 0:
            raise DecodeError(f"a {SEQUENCES_PREFIX} message says what no sequence can be: {told}")
    return found


def ahead(told: Told) -> Standing:
    """`told`, moved on by its margin: past the last value it may stand on; wrapped, where it cycles.

    One that has no room left stands on its last value: the next one is the same error as on the source.
    """
    margin = told.margin
    last = told.last + margin * told.increment
    if told.min <= last <= told.max:
        return Standing(last, told.called)
    if not told.cycle:
        most = (told.max - told.last if told.increment > 0 else told.last - told.min) // abs(told.increment)
        return Standing(told.last + most * told.increment, told.called)
    # a round has this many values, and begins anew at its end, not at where it left off
    first = told.min if told.increment > 0 else told.max
    count = (told.max - told.min) // abs(told.increment) + 1
    left = (told.max - told.last if told.increment > 0 else told.last - told.min) // abs(told.increment)
    return Standing(first + (margin - left - 1) % count * told.increment, told.called)


def _is_behind(one: Known | Standing | Told, other: Known | Standing, increment: int) -> bool:
    """Whether `one` will hand out, next, a value that `other` has handed out already."""
    next_one = one.last + (increment if one.called else 0)
    next_other = other.last + (increment if other.called else 0)
    return next_one < next_other if increment > 0 else next_one > next_other


def standing(told: Told, before: Known | None, target: Standing | None) -> Standing | None:
    """Where the target's sequence, now at `target` (None: not known), has to be; None: it may stay."""
    wanted = ahead(told)
    went_back = before is not None and (before.file != told.file or _is_behind(told, before, told.increment))
    if target is None or told.cycle or went_back or _is_behind(target, wanted, told.increment):
        return None if wanted == target else wanted
    return None


def _what_moves(told: Told) -> tuple[object, ...]:
    return told.key, told.last, told.called, told.file


def moved(told: Told, before: Told | None, *, margin: int, cache: int) -> Told | None:
    """`told` with its margin, when it is news; None when `before` said the same.

    The margin is at least what the source has handed out, twice over, since it was asked before.
    """
    if before is not None and _what_moves(before) == _what_moves(told):
        return None
    passed = 0 if before is None else abs(told.last - before.last) // abs(told.increment)
    if before is not None and before.file != told.file:
        passed = 0
    return msgspec.structs.replace(told, margin=min(max(margin, cache, 2 * passed), _BIGGEST))
