"""Exactly once, whatever dies: progress is committed with the changes that it counts."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.real.apply_cast import Follower
from tests.real.pg_cast import Pair, database_pair

from castling.apply.schedule import Limits
from castling.errors import TargetDiverged, TargetUnreachable
from castling.journal.record import START
from castling.kinds.base import Commit, Piece
from castling.kinds.postgres.target import PostgresTarget
from castling.kinds.postgres.target_session import explained
from castling.testing.servers import EmbeddedServer

#: a table without a key shows whatever comes twice: nothing objects to a second row
_TABLES = "CREATE TABLE once (n int, v text); CREATE TABLE keyed (id int PRIMARY KEY, n int)"


@pytest.fixture
def pair(east: EmbeddedServer, west: EmbeddedServer, tmp_path: Path) -> Iterator[Pair]:
    with database_pair(east, west, tmp_path) as made:
        made.source(_TABLES)
        made.target(_TABLES)
        yield made


async def _backlog(pair: Pair, commits: int = 40) -> Follower:
    follower = Follower(pair)
    await follower.begin()
    for number in range(commits):
        pair.source(
            f"INSERT INTO once SELECT {number}, 'v' FROM generate_series(1, 3);"
            f"INSERT INTO keyed VALUES ({number}, 0); UPDATE keyed SET n = n + 1"
        )
    await follower.capture()
    return follower


class _Dying(PostgresTarget):
    """Its server session is terminated before a chosen statement; or after a COMMIT, whose answer is lost."""

    def __init__(self, follower: Follower, chance: random.Random) -> None:
        super().__init__(follower.stream.group, follower.stream.settings.databases["west"])
        self._west = follower.pair.west
        self._left = chance.randrange(1, 60)
        self._loses_answer = chance.random() < 0.3

    async def open(self) -> int:
        progress = await super().open()
        connection = self._connection
        assert connection is not None
        execute = connection.execute

        async def dying(query: Any, *arguments: Any, **how: Any) -> Any:
            self._left -= 1
            lost = self._loses_answer and self._left <= 0 and query == b"COMMIT"
            if self._left == 0 and not self._loses_answer:
                self._die()
            found = await execute(query, *arguments, **how)
            if lost:
                self._die()
                raise psycopg.OperationalError("the answer to COMMIT never came")
            return found

        connection.execute = dying  # type: ignore[method-assign]
        return progress

    def _die(self) -> None:
        self._west.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            f" WHERE application_name = '{self._application}'"
        )


async def _until_applied(follower: Follower, chance: random.Random, dying: type[_Dying]) -> int:
    """Sessions until one gets to the end; how many died."""
    deaths = 0
    while True:
        try:
            await follower.apply(
                limits=Limits(changes=chance.choice([1, 5, 30])),
                piece_bytes=chance.choice([2000, 1 << 20]),
                target=lambda: dying(follower, chance),
            )
        except TargetUnreachable:
            deaths += 1
            assert deaths < 200, "it never got to the end"
            continue
        return deaths


@pytest.mark.parametrize("seed", range(6))
async def test_sessions_that_die_anywhere(pair: Pair, seed: int) -> None:
    follower = await _backlog(pair)
    deaths = await _until_applied(follower, random.Random(seed), _Dying)
    follower.assert_equal()
    assert deaths > 0, "nothing has died"


async def test_all_of_it_once_more_changes_nothing(pair: Pair) -> None:
    follower = await _backlog(pair)
    for _ in range(3):
        await follower.apply()
        follower.assert_equal()
    assert pair.target("SELECT count(*), count(DISTINCT n) FROM once") == [(120, 40)]


async def test_a_second_session_takes_the_origin_over(pair: Pair) -> None:
    """A session that nobody uses any more, as one on a server that has not noticed a dead client."""
    follower = await _backlog(pair, 3)
    stale = PostgresTarget(follower.stream.group, follower.stream.settings.databases["west"])
    await stale.open()
    try:
        await follower.apply()
        follower.assert_equal()
        with pytest.raises(TargetUnreachable):
            await stale.apply([Piece([], 0, Commit(1, 1, START), 0)])
            await stale.commit(Commit(1, 1, START))
    finally:
        await stale.close()


class _ProgressApart(_Dying):
    """The mistake: the changes are committed first, and what they count afterwards."""

    async def commit(self, commit: Commit) -> None:
        with explained():
            connection = await self._begin()
            await connection.execute(b"COMMIT")
            self._in_transaction = False
        await super().commit(commit)


async def test_progress_in_a_transaction_of_its_own_is_noticed(pair: Pair) -> None:
    """The control of the first test."""
    follower = await _backlog(pair)
    deaths = 0
    for seed in range(6):
        try:
            deaths += await _until_applied(follower, random.Random(seed), _ProgressApart)
        except TargetDiverged:
            return  # what came twice did not fit: noticed at once
    assert deaths > 0
    assert not follower.compared().equal, "rows that came twice were not noticed"
