"""Several groups from one source, several sources into one target: one writer for each table."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tests.real.apply_cast import DyingTarget, Follower, random_limits
from tests.real.pg_cast import BulkTo, Journal, Pair, database_pair
from tests.real.test_seed import seeded

from castling.config import SeedSettings
from castling.errors import TargetTaken, TargetUnreachable
from castling.kinds.base import Severity, Stream
from castling.kinds.postgres import seed_target
from castling.kinds.postgres.forget import forget_stream
from castling.kinds.postgres.kind import KIND
from castling.testing.compare import compare
from castling.testing.servers import EmbeddedServer

_EXPECT = SeedSettings(schema="expect", chunk_rows=500)
_CREATE = SeedSettings(schema="create", chunk_rows=500)
_TABLES = """
    CREATE SCHEMA {0}; CREATE TABLE {0}.account (id int PRIMARY KEY, v int NOT NULL);
    CREATE TABLE {0}.entry (id int PRIMARY KEY, account int REFERENCES {0}.account, note text);
"""
_ROWS = "INSERT INTO {0}.account SELECT i, 0 FROM generate_series(1, 1000) i"
_WORK = """
    UPDATE {0}.account SET v = v + 1 WHERE id % {1} = 0;
    INSERT INTO {0}.entry SELECT {2} * 100 + i, i, repeat('x', i) FROM generate_series(1, {1}) i;
    DELETE FROM {0}.entry WHERE id % 7 = {1} % 7
"""


@pytest.fixture
def pair(east: EmbeddedServer, west: EmbeddedServer, tmp_path: Path) -> Iterator[Pair]:
    with database_pair(east, west, tmp_path) as made:
        yield made


@pytest.fixture
def other(pair: Pair, tmp_path: Path) -> Iterator[Pair]:
    """Another database of the source's server, whose copy goes into the target of `pair`."""
    with database_pair(pair.east, pair.west, tmp_path) as made:
        yield made


def _named(stream: Stream, suffix: str) -> Stream:
    group = f"{stream.group}_{suffix}"
    config = msgspec.structs.replace(stream.config, groups={group: stream.settings})
    return Stream(group, stream.backup, stream.settings, config)


def _into(stream: Stream, target: Pair) -> Stream:
    stream.settings.databases["west"] = target.database(target.west)
    return stream


def _equal(source: Pair, target: Pair, *schemas: str) -> None:
    found = compare(source.east.dsn(source.name), target.west.dsn(target.name), schemas)
    assert found.equal and found.tables == 2 * len(schemas), found.differences


async def _life(follower: Follower, chance: random.Random) -> int:
    """One life of an apply that is killed on its way, or not; how often it died."""
    try:
        left = chance.randint(5, 60)
        await follower.apply(limits=random_limits(chance), target=lambda: DyingTarget(follower, left))
    except TargetUnreachable:
        return 1
    return 0


async def _run(one: Follower, two: Follower, schemas: tuple[str, str], *, seed: int) -> int:
    """Work on both, applied side by side by applies that die."""
    chance = random.Random(seed)
    deaths = 0
    for number in range(6):
        for follower, schema in zip((one, two), schemas, strict=True):
            for part in range(3):
                follower.pair.source(_WORK.format(schema, chance.randint(2, 20), number * 10 + part))
        await asyncio.gather(one.capture(), two.capture())
        deaths += sum(await asyncio.gather(_life(one, chance), _life(two, chance)))
    await asyncio.gather(one.apply(), two.apply())
    return deaths


def _follower(pair: Pair, stream: Stream) -> Follower:
    follower = Follower(pair)
    follower.stream, follower.journal = stream, Journal()
    return follower


async def test_two_groups_of_one_source_go_on_beside_each_other(pair: Pair) -> None:
    """In one target, with tables of their own; each has its slot, its progress and its origin."""
    for schema in ("sales", "stock"):
        pair.source(_TABLES.format(schema) + ";" + _ROWS.format(schema))
        pair.target(_TABLES.format(schema))
    streams = [
        _named(pair.stream(seed=_EXPECT, include=[f"{schema}.*"]), schema) for schema in ("sales", "stock")
    ]
    await asyncio.gather(*(seeded(stream) for stream in streams))
    one, two = (_follower(pair, stream) for stream in streams)
    assert await _run(one, two, ("sales", "stock"), seed=1) > 0
    _equal(pair, pair, "sales", "stock")
    assert len(pair.target("SELECT FROM castling.progress")) == 2
    # the end of one is not the end of the other
    await forget_stream(streams[0])
    pair.source(_WORK.format("stock", 3, 900) + ";" + "UPDATE sales.account SET v = -1")
    await two.follow()
    _equal(pair, pair, "stock")
    with pytest.raises(AssertionError):
        _equal(pair, pair, "sales")


async def test_several_sources_fill_one_target_under_schemas_of_their_own(pair: Pair, other: Pair) -> None:
    for each, schema in ((pair, "sales"), (other, "stock")):
        each.source(_TABLES.format(schema) + ";" + _ROWS.format(schema))
    streams = [pair.stream(seed=_CREATE), _into(other.stream(seed=_CREATE), pair)]
    for stream in streams:
        await seeded(stream)
    one, two = _follower(pair, streams[0]), _follower(other, streams[1])
    assert await _run(one, two, ("sales", "stock"), seed=2) > 0
    _equal(pair, pair, "sales")
    _equal(other, pair, "stock")
    # a new copy of one leaves the other alone
    other.source("UPDATE stock.account SET v = 77; DELETE FROM stock.entry")
    await seeded(streams[1])
    _equal(pair, pair, "sales")
    _equal(other, pair, "stock")


async def test_one_source_goes_to_two_targets_over_the_same_tables(pair: Pair, other: Pair) -> None:
    """Overlapping groups: what one has taken is still there for the other."""
    pair.source(_TABLES.format("sales") + ";" + _ROWS.format("sales"))
    streams = [
        pair.stream(seed=_CREATE),
        _into(_named(pair.stream(seed=_CREATE, include=["sales.*"]), "too"), other),
    ]
    for stream in streams:
        await seeded(stream)
    one, two = (_follower(pair, stream) for stream in streams)
    pair.source(_WORK.format("sales", 5, 1))
    await one.follow()
    _equal(pair, pair, "sales")
    pair.source(_WORK.format("sales", 6, 2))
    await two.follow()
    await one.follow()
    _equal(pair, pair, "sales")
    _equal(pair, other, "sales")


async def test_a_table_that_another_group_fills_is_refused_and_not_emptied(pair: Pair, other: Pair) -> None:
    for each in (pair, other):
        each.source(_TABLES.format("sales") + ";" + _ROWS.format("sales"))
    pair.target(_TABLES.format("sales"))
    other.source("UPDATE sales.account SET v = 5")
    first, second = pair.stream(seed=_EXPECT), _into(other.stream(seed=_EXPECT), pair)
    await seeded(first)
    pair.source("DELETE FROM sales.account")
    await _follower(pair, first).follow()  # empty now: nothing but the note says whose it is
    found = {(one.object, one.code) for one in await KIND.check(second) if one.severity is Severity.REFUSED}
    assert found == {("sales.account", "target-taken"), ("sales.entry", "target-taken")}
    with pytest.raises(TargetTaken, match=f"sales.account .group {first.group}") as refused:
        await seeded(second)
    assert "exclude" in refused.value.hint
    assert pair.target("SELECT count(*) FROM sales.account") == [(0,)]
    assert not [one for one in await KIND.check(first) if one.severity is Severity.REFUSED]
    await forget_stream(first)
    await seeded(second)
    _equal(other, pair, "sales")


async def _begun(stream: Stream) -> None:
    seed, target = KIND.seed_source(stream), KIND.seed_target(stream)
    try:
        await seed.begin()
        await seed.run(BulkTo(target))
    finally:
        await seed.close()
        await target.close()


async def test_of_two_first_copies_that_begin_at_once_one_is_refused(pair: Pair, other: Pair) -> None:
    for each in (pair, other):
        each.source(_TABLES.format("sales"))
    pair.target(_TABLES.format("sales"))
    streams = [pair.stream(seed=_EXPECT), _into(other.stream(seed=_EXPECT), pair)]
    ended = await asyncio.gather(*(_begun(stream) for stream in streams), return_exceptions=True)
    assert sorted(type(each).__name__ for each in ended) == ["NoneType", "TargetTaken"]


async def test_without_the_look_at_others_two_groups_would_write_one_table(
    pair: Pair, other: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control."""
    for each in (pair, other):
        each.source(_TABLES.format("sales"))
    pair.target(_TABLES.format("sales"))

    async def blind(*_: object) -> dict[str, str]:
        return {}

    monkeypatch.setattr(seed_target, "read_taken", blind)
    await seeded(pair.stream(seed=_EXPECT))
    await seeded(_into(other.stream(seed=_EXPECT), pair))
    assert len(pair.target("SELECT FROM castling.seed WHERE 'sales.account' = ANY (tables)")) == 2
