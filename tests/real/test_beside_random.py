"""Sequences and large objects under random work, captures that begin anew and applies that die anywhere."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.real.apply_cast import DyingTarget, Follower, random_limits
from tests.real.pg_cast import Pair, captured, database_pair, until

from castling.errors import TargetUnreachable
from castling.kinds.postgres.sequence_target import SequenceTarget
from castling.testing.servers import EmbeddedServer

MARGIN = 50
#: most values that one step takes from a sequence, and the furthest that one sets it to
STEP = 40
FURTHEST = 300
#: no further ahead than twice the longest move; so what was set back is not left behind
LEAD_MAX = 2 * (FURTHEST + 10 * STEP)

_SEQUENCES = {"up": 1, "down": -1, "odd": 7, "cached": 1}
_TABLES = """
    CREATE TABLE rows (id int PRIMARY KEY, v text);
    CREATE SEQUENCE up; CREATE SEQUENCE down INCREMENT -1; CREATE SEQUENCE odd INCREMENT 7;
    CREATE SEQUENCE cached CACHE 20;
"""
_LARGE = "SELECT m.oid::int8, sha256(lo_get(m.oid)) FROM pg_largeobject_metadata m ORDER BY 1"


@pytest.fixture
def pair(east: EmbeddedServer, west: EmbeddedServer, tmp_path: Path) -> Iterator[Pair]:
    with database_pair(east, west, tmp_path) as made:
        made.source(_TABLES)
        made.target(_TABLES)
        yield made


def _step(pair: Pair, chance: random.Random, number: int) -> None:
    """One piece of work on the source."""
    name = chance.choice(list(_SEQUENCES))
    oid = 70_000 + chance.randrange(6)
    there = f"FROM pg_largeobject_metadata WHERE oid = {oid}"
    work = chance.choice(["next", "next", "set", "restart", "make", "put", "cut", "remove", "row"])
    if work == "next":
        pair.source(f"SELECT nextval('{name}') FROM generate_series(1, {chance.randint(1, STEP)})")
    elif work == "set":
        pair.source(f"SELECT setval('{name}', {_SEQUENCES[name] * chance.randint(1, FURTHEST)})")
    elif work == "restart":
        pair.source(f"ALTER SEQUENCE {name} RESTART")
    elif work == "make":
        pair.source(
            f"SELECT lo_from_bytea({oid}, repeat('x{number}', {chance.randint(0, 200_000)})::bytea)"
            f" WHERE NOT EXISTS (SELECT {there})"
        )
    elif work == "put":
        pair.source(f"SELECT lo_put({oid}, {chance.randint(0, 3_000_000)}, 'put {number}') {there}")
    elif work == "cut":
        pair.source(f"SELECT lo_truncate(lo_open({oid}, 131072), {chance.randint(0, 100_000)}) {there}")
    elif work == "remove":
        pair.source(f"SELECT lo_unlink(oid) {there}")
    else:
        pair.source(f"INSERT INTO rows VALUES ({number}, 'v')")


def _next(run: Any, name: str) -> int:
    row = run(f"SELECT last_value + CASE WHEN is_called THEN {_SEQUENCES[name]} ELSE 0 END FROM {name}")
    return int(row[0][0])


async def _looked(follower: Follower, capture: Any) -> None:
    asked = follower.pair.source("SELECT (extract(epoch from clock_timestamp()) * 1000000000)::int8")[0][0]
    reading = asyncio.create_task(_read(follower, capture))
    try:
        for what in ("sequences", "large objects"):
            await until(lambda w=what: (capture.report()["beside"][w]["looked_ns"] or 0) > asked)  # type: ignore[misc]
    finally:
        reading.cancel()
        await asyncio.wait((reading,))
    await follower.journal.read_until(capture, follower.pair.end_of_log())


async def _read(follower: Follower, capture: Any) -> None:
    while True:
        follower.journal.add(await capture.read())


async def _run(pair: Pair, seed: int) -> int:
    """Random work in several lives of the capture; how many applies died."""
    chance = random.Random(seed)
    follower = Follower(pair, compare_every=0.05, heartbeat=0.05, sequence_margin=MARGIN)
    await follower.begin()
    deaths = 0
    for life in range(4):
        async with captured(follower.stream, follower.journal) as capture:
            for number in range(chance.randint(1, 8)):
                _step(pair, chance, life * 100 + number)
                if chance.random() < 0.4:
                    await _looked(follower, capture)
                if chance.random() < 0.2:  # the connection breaks; the process lives on
                    await capture.open(resume=follower.journal.offset, session=follower.journal.session)
                if chance.random() < 0.3:
                    with contextlib.suppress(TargetUnreachable):
                        left = chance.randint(1, 60)
                        deaths += 1
                        await follower.apply(
                            limits=random_limits(chance),
                            target=lambda: DyingTarget(follower, left),  # noqa: B023
                        )
                        deaths -= 1
            await _looked(follower, capture)
        await follower.apply(limits=random_limits(chance))
        assert pair.target(_LARGE) == pair.source(_LARGE), f"seed {seed}, life {life}"
        for name, increment in _SEQUENCES.items():
            lead = (_next(pair.target, name) - _next(pair.source, name)) // increment
            assert MARGIN <= lead <= LEAD_MAX, f"seed {seed}, life {life}: {name} is {lead} ahead"
        follower.assert_equal()
    return deaths


@pytest.mark.parametrize("seed", range(3))
async def test_random_work_arrives(pair: Pair, seed: int) -> None:
    await _run(pair, seed)


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(100, 140))
async def test_random_work_arrives_whatever_dies(pair: Pair, seed: int) -> None:
    await _run(pair, seed)


async def test_a_target_that_forgets_what_it_was_told_is_noticed(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: messages that are passed over leave the target behind."""

    async def deaf(*_: Any) -> None:
        return None

    monkeypatch.setattr(SequenceTarget, "take", deaf)
    pair.source("SELECT nextval('up') FROM generate_series(1, 10)")
    with pytest.raises(AssertionError, match="ahead"):
        await _run(pair, 0)
