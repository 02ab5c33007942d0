"""Strict visibility: a reader of the target never sees a state that the source never had."""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import psycopg
import pytest
from tests.real.apply_cast import Follower
from tests.real.pg_cast import Pair, database_pair

from castling.apply.schedule import Limits
from castling.kinds.base import Commit, Piece
from castling.kinds.postgres.target import PostgresTarget
from castling.testing.servers import EmbeddedServer

_ACCOUNTS = "CREATE TABLE account (id int PRIMARY KEY, balance int NOT NULL)"
_SUM = "SELECT count(*), sum(balance) FROM account"


@pytest.fixture
def pair(east: EmbeddedServer, west: EmbeddedServer, tmp_path: Path) -> Iterator[Pair]:
    with database_pair(east, west, tmp_path) as made:
        yield made


async def _accounts(pair: Pair) -> Follower:
    """Fifty accounts on both sides; only transfers follow."""
    pair.source(_ACCOUNTS)
    pair.target(_ACCOUNTS)
    follower = Follower(pair)
    await follower.begin()
    pair.source("INSERT INTO account SELECT i, 1000 FROM generate_series(0, 49) i")
    await follower.follow()
    return follower


def _transfers(pair: Pair, number: int) -> None:
    with psycopg.connect(pair.east.dsn(pair.name)) as connection:
        for step in range(number):
            give, take = step % 50, (step * 7 + 1) % 50
            connection.execute("UPDATE account SET balance = balance - %s WHERE id = %s", (step, give))
            connection.execute("UPDATE account SET balance = balance + %s WHERE id = %s", (step, take))
            connection.commit()


class _Watched(PostgresTarget):
    """Another session looks at the accounts whenever something was written and whenever it was committed."""

    def __init__(self, follower: Follower, seen: set[tuple[object, ...]]) -> None:
        super().__init__(follower.stream.group, follower.stream.settings.databases["west"])
        self._pair, self._seen = follower.pair, seen

    def _look(self) -> None:
        self._seen.add(self._pair.target(_SUM)[0])

    async def apply(self, pieces: Sequence[Piece]) -> None:
        await super().apply(pieces)
        self._look()

    async def commit(self, commit: Commit) -> None:
        await super().commit(commit)
        self._look()


class _Impatient(_Watched):
    """The mistake: what is written is committed at once."""

    async def apply(self, pieces: Sequence[Piece]) -> None:
        await PostgresTarget.apply(self, pieces)
        await (await self._begin()).execute(b"COMMIT")
        self._in_transaction = False
        self._look()


@contextlib.contextmanager
def _reading(pair: Pair, seen: set[tuple[object, ...]]) -> Iterator[None]:
    """A reader that never rests, in a thread of its own."""
    ends = threading.Event()

    def read() -> int:
        with psycopg.connect(pair.west.dsn(pair.name), autocommit=True) as connection:
            reads = 0
            while not ends.is_set() or not reads:
                seen.update(connection.execute(_SUM).fetchall())
                reads += 1
        return reads

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        reader = pool.submit(read)
        try:
            yield
        finally:
            ends.set()
        assert reader.result(20) > 0


@pytest.mark.parametrize(
    ("changes", "piece_bytes"),
    [(1, 1 << 20), (25, 1 << 20), (50_000, 1 << 20), (50_000, 500)],
    ids=["one by one", "some at once", "all at once", "each in parts"],
)
async def test_a_reader_of_the_target_sees_only_what_the_source_was(
    pair: Pair, changes: int, piece_bytes: int
) -> None:
    follower = await _accounts(pair)
    _transfers(pair, 60)
    pair.source(
        "WITH gone AS (DELETE FROM account WHERE id = 9 RETURNING *) INSERT INTO account"
        " SELECT id + 100, balance FROM gone"
    )
    await follower.capture()
    seen: set[tuple[object, ...]] = set()
    with _reading(pair, seen):
        await follower.apply(
            limits=Limits(changes), piece_bytes=piece_bytes, target=lambda: _Watched(follower, seen)
        )
    follower.assert_equal()
    assert seen == {(50, 50_000)}


async def test_a_reader_would_see_half_a_transaction(pair: Pair) -> None:
    """The control."""
    follower = await _accounts(pair)
    _transfers(pair, 20)
    await follower.capture()
    seen: set[tuple[object, ...]] = set()
    await follower.apply(piece_bytes=1, target=lambda: _Impatient(follower, seen))
    assert len(seen) > 1
