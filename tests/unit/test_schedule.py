"""The batcher against a model that knows only one rule: every transaction once, whole, in order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from castling.apply.schedule import Batcher, Discard, Limits, Write
from castling.journal.record import Position
from castling.kinds.base import Abandon, Commit, Piece


def transaction(number: int, parts: list[list[int]]) -> list[Piece]:
    offset = number * 10
    commit = Commit(offset + 5, number, Position(1, number))
    pieces = [Piece(list(part), len(part) * 8, None, offset) for part in parts]
    pieces[-1].commit = commit
    return pieces


class Replica:
    """Applies what the batcher says; keeps what is committed apart from what is open."""

    def __init__(self) -> None:
        self.open: list[int] = []
        self.rows: list[int] = []
        self.states: list[int] = [0]
        self.progress = 0

    def do(self, action: Write | Discard) -> None:
        if isinstance(action, Discard):
            self.open.clear()
            return
        for piece in action.pieces:
            self.open.extend(piece.changes)
        if action.commit is not None:
            self.rows += self.open
            self.open = []
            self.progress = action.commit.offset
            self.states.append(len(self.rows))


PARTS = st.lists(st.lists(st.integers(), max_size=4), min_size=1, max_size=4)


@given(
    st.lists(PARTS, max_size=25),
    st.integers(1, 8),
    st.integers(1, 200),
    st.sets(st.integers(0, 200)),
    st.integers(0, 25),
)
def test_every_transaction_once_whole_and_in_order(parts, changes, size, flushes, applied):
    history = [transaction(number, part) for number, part in enumerate(parts, start=1)]
    already = min(applied, len(history))
    replica = Replica()
    progress = already * 10 + 5 if already else 0
    batcher = Batcher(Limits(changes, size), progress)
    step = 0
    for pieces in history:
        for piece in pieces:
            for action in batcher.add(piece):
                replica.do(action)
            step += 1
            if step in flushes:
                for action in batcher.flush():
                    replica.do(action)
    for action in batcher.flush():
        replica.do(action)
    expected = [row for pieces in history[already:] for piece in pieces for row in piece.changes]
    assert replica.rows == expected
    assert not replica.open
    whole = {0}
    total = 0
    for pieces in history[already:]:
        total += sum(len(piece.changes) for piece in pieces)
        whole.add(total)
    assert set(replica.states) <= whole, "a reader saw a state that the source never had"


@given(st.integers(1, 5), st.integers(0, 4))
def test_an_abandoned_transaction_is_rolled_back_and_taken_again(parts, seen):
    again = transaction(2, [[index] for index in range(parts)] + [[99]])
    replica = Replica()
    batcher = Batcher(Limits(), 0)
    items: list[Piece | Abandon] = [*transaction(1, [[1]]), *again[: min(seen, parts)], Abandon(), *again]
    for item in items:
        for action in batcher.add(item):
            replica.do(action)
    for action in batcher.flush():
        replica.do(action)
    assert replica.rows == [1, *range(parts), 99]


def test_a_batcher_that_ignores_abandon_is_noticed():
    """Negative control of the test above: without the rollback the parts come twice."""
    replica = Replica()
    batcher = Batcher(Limits(), 0)
    again = transaction(1, [[7], [8]])
    for item in (again[0], *again):
        for action in batcher.add(item):
            replica.do(action)
    assert replica.rows == [7, 7, 8]


def test_a_batch_closes_at_its_limits():
    batcher = Batcher(Limits(changes=4, bytes=1000), 0)
    writes = [
        action
        for number in range(1, 7)
        for piece in transaction(number, [[0, 1]])
        for action in batcher.add(piece)
    ]
    assert [len(write.pieces) for write in writes if isinstance(write, Write)] == [2, 2, 2]
    assert batcher.is_empty
