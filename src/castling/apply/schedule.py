"""Which source transactions go into one target transaction. Pure.

Many source transactions share one target transaction, because that is what makes a
set-based apply fast; but only whole ones, so that a reader of the target never sees a
state that the source never had (strict visibility). The batch follows the backlog by
itself: it closes as soon as nothing more is waiting, so it is one transaction when
idle, and it grows to its limits while apply is behind.

A transaction too large to hold arrives in parts. It gets a target transaction of its
own, into which each part is written as it comes. So does one that its kind marks `alone`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from castling.kinds.base import Abandon, Commit, Piece

__all__ = ["Batcher", "Discard", "Limits", "Write"]


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that one target transaction is given at once: changes, and bytes of them."""

    changes: int = 50_000
    bytes: int = 32 << 20


@dataclass(frozen=True, slots=True)
class Write:
    """Write `pieces` into the open target transaction, then commit it if `commit` is given."""

    pieces: list[Piece]
    commit: Commit | None


@dataclass(frozen=True, slots=True)
class Discard:
    """Roll the open target transaction back: its source transaction will be sent again."""


class Batcher:
    """Turns pieces, in source order, into what to do with the target.

    `progress` is the source position that the target holds already; transactions at or
    before it are passed over (this is what makes apply exactly-once).
    """

    def __init__(self, limits: Limits, progress: int) -> None:
        self._limits = limits
        self._progress = progress
        self._pieces: list[Piece] = []
        self._changes = 0
        self._bytes = 0
        #: parts of an unfinished transaction were already handed out
        self._partial = False

    @property
    def is_empty(self) -> bool:
        return not self._pieces

    @property
    def changes(self) -> int:
        """Changes that wait for their batch to be closed."""
        return self._changes

    def add(self, item: Piece | Abandon) -> Iterator[Write | Discard]:
        """Take the next piece; what must be done with the target before more is added."""
        if isinstance(item, Abandon):
            if self._partial:
                self._partial = False
                yield Discard()
            return
        if item.offset < self._progress:
            return
        assert item.commit is None or item.commit.offset > item.offset, "a commit lies after its own order"
        if item.commit is None or self._partial:
            yield from self._add_part(item)
            return
        if item.alone:
            yield from self.flush()
        self._pieces.append(item)
        self._changes += len(item.changes)
        self._bytes += item.size
        self._progress = item.commit.offset
        if item.alone or self._changes >= self._limits.changes or self._bytes >= self._limits.bytes:
            yield from self.flush()

    def _add_part(self, part: Piece) -> Iterator[Write | Discard]:
        yield from self.flush()
        self._partial = part.commit is None
        if part.commit is not None:
            self._progress = part.commit.offset
        yield Write([part], part.commit)

    def flush(self) -> Iterator[Write]:
        """Close the batch: nothing more is waiting, or it is full. Nothing when it is empty."""
        if self._pieces:
            pieces, self._pieces = self._pieces, []
            self._changes = self._bytes = 0
            yield Write(pieces, pieces[-1].commit)
