"""Holds, releases and new copies of tables under random work, truncations and deaths, in any order."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.real.apply_cast import Follower, random_limits
from tests.real.pg_cast import Pair, database_pair
from tests.real.resync_cast import applied, asked, copied, held

from castling.config import SeedSettings
from castling.errors import PartsMoved, SeedFailed, StateError, TargetUnreachable
from castling.testing.servers import EmbeddedServer

_TABLES = """
    CREATE TABLE wide (id int PRIMARY KEY, big text, n int UNIQUE DEFERRABLE INITIALLY DEFERRED);
    ALTER TABLE wide ALTER big SET STORAGE EXTERNAL;
    CREATE TABLE parent (id int PRIMARY KEY, v text);
    CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent ON DELETE CASCADE);
    CREATE TABLE heap (n int, v text);
    CREATE TABLE root (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
    CREATE TABLE low PARTITION OF root FOR VALUES FROM (0) TO (50);
    CREATE TABLE high PARTITION OF root FOR VALUES FROM (50) TO (100);
"""
_PARTS = ["wide", "parent", "child", "heap", "low", "high"]
#: how often which step is done
_STEPS = {"work": 6, "capture": 4, "apply": 5, "wish": 4, "copy": 5, "spoil": 1, "lose": 1}
#: what may come of a copy beside success: it is wanted again, or not any longer
_PASSING = (SeedFailed, StateError, TargetUnreachable)


@pytest.fixture
def pair(east: EmbeddedServer, west: EmbeddedServer, tmp_path: Path) -> Iterator[Pair]:
    with database_pair(east, west, tmp_path) as made:
        made.source(_TABLES)
        made.target(_TABLES)
        yield made


def _end(session: psycopg.Connection[Any], *, well: bool) -> None:
    """Deferred constraints may object; the transaction is then rolled back."""
    with contextlib.suppress(psycopg.errors.UniqueViolation):
        session.commit() if well else session.rollback()


class _Play:
    """One seed's steps on one pair."""

    def __init__(self, pair: Pair, chance: random.Random) -> None:
        self._pair = pair
        self._chance = chance
        self.follower = Follower(pair, on_error="hold", seed=SeedSettings(chunk_rows=20))
        self.copies = 0

    async def step(self, name: str) -> None:
        await getattr(self, f"_{name}")()

    async def _work(self) -> None:
        """Two transactions that overlap; one of them may fail, or be rolled back."""
        with contextlib.ExitStack() as stack:
            sessions = [
                stack.enter_context(psycopg.connect(self._pair.east.dsn(self._pair.name))) for _ in range(2)
            ]
            for session in sessions:
                session.execute("SET lock_timeout = '50ms'")
                session.commit()
            for _ in range(self._chance.randint(1, 12)):
                session = self._chance.choice(sessions)
                try:
                    session.execute(self._statement().encode())
                except psycopg.Error:
                    session.rollback()
                if self._chance.random() < 0.3:
                    _end(session, well=True)
            for session in sessions:
                _end(session, well=self._chance.random() < 0.9)

    def _statement(self) -> str:
        a, b, n = (self._chance.randrange(100) for _ in range(3))
        return self._chance.choice(
            [
                f"INSERT INTO wide SELECT {a}, repeat('{n % 10}', 3000), {n} ON CONFLICT (id) DO NOTHING",
                f"UPDATE wide SET n = n + 100 WHERE id < {a}",
                f"UPDATE wide SET id = {a} WHERE id = {b}",  # the key changes, the large value does not
                f"UPDATE wide SET n = 1 - n WHERE n IN (0, 1, {n})",
                f"DELETE FROM wide WHERE id BETWEEN {a} AND {a + 9}",
                f"INSERT INTO parent VALUES ({a}, 'p') ON CONFLICT (id) DO UPDATE SET v = parent.v || 'q'",
                f"INSERT INTO child SELECT {b}, id FROM parent ORDER BY abs(id - {a}) LIMIT 1",
                f"DELETE FROM parent WHERE id = {a}",
                f"INSERT INTO heap VALUES ({n % 5}, 'h'), ({n % 5}, 'h')",
                f"DELETE FROM heap WHERE ctid IN (SELECT ctid FROM heap LIMIT {n % 4})",
                f"UPDATE heap SET v = v || 'x' WHERE n = {n % 5}",
                f"INSERT INTO root VALUES ({a}, 'r') ON CONFLICT DO NOTHING",
                f"UPDATE root SET id = {a} WHERE id = {b}",  # from one partition to the other
                f"TRUNCATE {self._chance.choice(['wide', 'heap', 'parent CASCADE', 'low', 'root'])}"
                if n < 30
                else f"INSERT INTO wide VALUES ({a}, NULL, NULL) ON CONFLICT DO NOTHING",
            ]
        )

    async def _capture(self) -> None:
        await self.follower.capture()

    async def _apply(self) -> None:
        """Some of the journal; the session may end anywhere."""
        left = [self._chance.choice([1, 3, 1000])]

        def ended() -> bool:
            left[0] -= 1
            return left[0] <= 0

        for _ in range(self._chance.randint(1, 3)):
            with contextlib.suppress(PartsMoved):
                await self.follower.apply(limits=random_limits(self._chance), ended=ended)

    async def _wish(self) -> None:
        action = self._chance.choice(["hold", "release", "resync", "resync"])
        part = f"public.{self._chance.choice(_PARTS)}"
        with contextlib.suppress(StateError):  # lost, and to be released
            await asked(self.follower, action, part)

    async def _copy(self) -> None:
        async def between() -> None:
            for name in self._chance.choices(["work", "capture", "apply", "wish", "lose", "kill"], k=3):
                await self.step(name)

        with contextlib.suppress(*_PASSING):
            self.copies += await copied(self.follower, between)

    async def _kill(self) -> None:
        if self._chance.random() < 0.3:
            self._pair.west.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                f" WHERE application_name LIKE 'castling resync%' AND datname = '{self._pair.name}'"
            )

    async def _spoil(self) -> None:
        """Somebody writes on the target; a copy is then asked for."""
        part = self._chance.choice(_PARTS)
        self._pair.target(f"SET session_replication_role = replica; DELETE FROM {part}")
        await asked(self.follower, "resync", f"public.{part}")

    async def _lose(self) -> None:
        """The journal does not keep what one of the tables on hold lacks."""
        for one in await held(self.follower):
            if self._chance.random() < 0.3:
                target = self.follower.target()
                try:
                    await target.open()
                    await target.give_up(one.part)
                finally:
                    await target.close()

    async def end(self) -> None:
        """Everything comes to rest: no table is left on hold. Some are copied once more."""
        await asked(self.follower, "resync", *(f"public.{part}" for part in self._chance.sample(_PARTS, 2)))
        for _ in range(10):
            await self._work()
            await self.follower.capture()
            await applied(self.follower)
            left = await held(self.follower)
            if not left:
                return
            if any(one.state in ("held", "lost") for one in left):
                await asked(self.follower, "resync")
                await applied(self.follower)
            self.copies += await copied(self.follower)
        raise AssertionError(f"tables stay on hold: {left}")


@pytest.mark.parametrize(
    "seed", [*range(6), *(pytest.param(each, marks=pytest.mark.faults) for each in range(6, 60))]
)
async def test_whatever_happens_in_between_all_tables_are_equal_in_the_end(pair: Pair, seed: int) -> None:
    chance = random.Random(seed)
    play = _Play(pair, chance)
    await play.follower.begin()
    names, weights = list(_STEPS), list(_STEPS.values())
    for _ in range(40):
        await play.step(chance.choices(names, weights)[0])
    await play.end()
    play.follower.assert_equal()
    assert play.copies > 0, "nothing was copied anew"
