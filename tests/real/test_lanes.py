"""Several lanes: each table whole, in order, exactly once, whichever session dies, however many there are."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.real.apply_cast import Follower
from tests.real.pg_cast import Pair, database_pair
from tests.real.random_work import EXTENSIONS, RandomWork

from castling.apply.schedule import Limits
from castling.errors import CastlingError, PartsMoved, TargetDiverged, TargetError, TargetUnreachable
from castling.kinds.base import Target
from castling.kinds.postgres import lanes_target as lanes_module
from castling.kinds.postgres.changes import Change
from castling.kinds.postgres.lane_rows import read_families
from castling.kinds.postgres.lanes_target import LanesTarget
from castling.testing.servers import EmbeddedServer

#: tables without a key show whatever comes twice; two that are joined; one with a second unique column
_TABLES = """
    CREATE TABLE once_a (n int, v text);
    CREATE TABLE once_b (n int, v text);
    CREATE TABLE keyed (id int PRIMARY KEY, n int);
    CREATE TABLE parent (id int PRIMARY KEY, n int);
    CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent, place int UNIQUE);
"""


@pytest.fixture
def pair(east: EmbeddedServer, west: EmbeddedServer, tmp_path: Path) -> Iterator[Pair]:
    with database_pair(east, west, tmp_path) as made:
        made.source(_TABLES)
        made.target(_TABLES)
        yield made


async def _backlog(pair: Pair, commits: int = 40) -> Follower:
    follower = Follower(pair, on_error="hold")
    await follower.begin()
    for number in range(commits):
        pair.source(
            f"""
            INSERT INTO once_a SELECT {number}, 'v' FROM generate_series(1, 3);
            INSERT INTO keyed VALUES ({number}, 0); UPDATE keyed SET n = n + 1;
            INSERT INTO parent VALUES ({number}, 0);
            INSERT INTO child VALUES ({number}, {number}, {number});
            """
        )
        pair.source(f"INSERT INTO once_b SELECT {number}, 'v' FROM generate_series(1, 3)")
        if number % 9 == 8:
            pair.source("UPDATE child SET place = -1 WHERE id = 0; UPDATE child SET place = 0 WHERE id = 0")
            pair.source(
                f"DELETE FROM child WHERE id = {number - 5}; DELETE FROM parent WHERE id = {number - 5}"
            )
        if number == 20:
            pair.source("TRUNCATE once_b; INSERT INTO once_b VALUES (-1, 'first')")
    await follower.capture()
    return follower


def _with_lanes(follower: Follower, lanes: int) -> LanesTarget:
    settings = follower.stream.settings
    return LanesTarget(follower.target(), follower.stream.group, settings.databases["west"], lanes)


class _Dying(LanesTarget):
    """One of its sessions, whichever comes to it, is terminated before a chosen statement; or after a COMMIT,
    whose answer is lost."""

    def __init__(self, follower: Follower, lanes: int, chance: random.Random) -> None:
        settings = follower.stream.settings
        super().__init__(follower.target(), follower.stream.group, settings.databases["west"], lanes)
        self._west = follower.pair.west
        self._left = chance.randrange(1, 150)
        self._loses_answer = chance.random() < 0.3

    async def open(self) -> int:
        start = await super().open()
        self._endanger(self._main._connection)
        for lane in self._lanes:
            lane.open = self._opening(lane, lane.open)  # type: ignore[method-assign]
        return start

    def _opening(self, lane: Any, open_: Callable[[], Any]) -> Callable[[], Any]:
        async def opened() -> None:
            await open_()
            self._endanger(lane._connection)

        return opened

    def _endanger(self, connection: Any) -> None:
        execute = connection.execute

        async def dying(query: Any, *arguments: Any, **how: Any) -> Any:
            self._left -= 1
            lost = self._loses_answer and self._left <= 0 and query == b"COMMIT"
            if self._left == 0 and not self._loses_answer:
                self._die(connection)
            found = await execute(query, *arguments, **how)
            if lost:
                self._die(connection)
                raise psycopg.OperationalError("the answer to COMMIT never came")
            return found

        connection.execute = dying

    def _die(self, connection: Any) -> None:
        self._west.execute(f"SELECT pg_terminate_backend({connection.info.backend_pid})")


async def _until_applied(
    follower: Follower, chance: random.Random, lanes: Sequence[int], make: Callable[[int], Target]
) -> int:
    """Sessions until one gets to the end, of numbers of lanes drawn anew each time; how many died."""
    deaths = 0
    while True:
        try:
            await follower.apply(
                limits=Limits(changes=chance.choice([1, 5, 30])),
                piece_bytes=chance.choice([2000, 1 << 20]),
                target=lambda: make(chance.choice(lanes)),
            )
        except TargetUnreachable:
            deaths += 1
            assert deaths < 200, "it never got to the end"
            continue
        return deaths


@pytest.mark.parametrize("seed", range(4))
async def test_any_session_may_die_anywhere(pair: Pair, seed: int) -> None:
    follower = await _backlog(pair)
    chance = random.Random(seed)
    deaths = await _until_applied(
        follower, chance, [1, 2, 3, 5], lambda lanes: _Dying(follower, lanes, chance)
    )
    follower.assert_equal()
    assert deaths > 0, "nothing has died"


async def test_lanes_take_what_can_be_apart_and_say_so(pair: Pair) -> None:
    follower = await _backlog(pair)
    target = _with_lanes(follower, 3)

    def orphans() -> bool:
        found = pair.target("SELECT count(*) FROM child WHERE parent NOT IN (SELECT id FROM parent)")
        assert found == [(0,)], "a row was seen before the one that it refers to"
        return False

    await follower.apply(limits=Limits(changes=5), target=lambda: target, ended=orphans)
    follower.assert_equal()
    assert target.handed_over > 10
    report = follower.reports[-1]
    assert sum(lane["tables"] for lane in report["lanes"]) == 5
    lanes = dict(pair.target("SELECT name, lane FROM castling.lane_tables"))
    assert lanes["parent"] == lanes["child"]
    assert len(set(lanes.values())) == 3


async def test_what_joins_tables_is_read_from_the_target(pair: Pair) -> None:
    pair.target(
        """
        CREATE TABLE grown (id int PRIMARY KEY) PARTITION BY RANGE (id);
        CREATE TABLE grown_1 PARTITION OF grown FOR VALUES FROM (0) TO (9);
        CREATE SCHEMA castling;
        CREATE FUNCTION castling.own() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
        CREATE FUNCTION public.theirs() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
        """
    )
    for table in ("once_a", "once_b", "keyed", "parent"):
        functions = ("castling.own", "public.theirs") if table in ("once_b", "keyed") else ("castling.own",)
        for number, function in enumerate(functions):
            pair.target(
                f"CREATE TRIGGER t{number} AFTER INSERT ON {table} EXECUTE FUNCTION {function}();"
                f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER t{number}"
            )
    async with await psycopg.AsyncConnection.connect(pair.west.dsn(pair.name)) as connection:
        weights, links = await read_families(connection)
    assert {("public", "once_a"), ("public", "grown"), ("public", "grown_1")} <= weights.keys()
    joined = {frozenset(table for _, table in pair) for pair in links}
    assert joined == {
        frozenset({"parent", "child"}),
        frozenset({"grown", "grown_1"}),
        frozenset({"once_b", "keyed"}),
    }


async def test_one_lane_after_many_leaves_no_rows_of_them(pair: Pair) -> None:
    follower = await _backlog(pair, 10)
    await follower.apply(limits=Limits(changes=5), target=lambda: _with_lanes(follower, 3))
    assert pair.target("SELECT count(*) FROM castling.lane_progress") == [(3,)]
    pair.source("INSERT INTO keyed VALUES (1000, 0)")
    await follower.follow()
    follower.assert_equal()
    assert pair.target("SELECT count(*) FROM castling.lane_progress") == [(0,)]


async def test_a_session_that_was_taken_over_commits_nothing_more(pair: Pair) -> None:
    follower = await _backlog(pair, 10)
    stale = _with_lanes(follower, 2)
    await follower.apply(limits=Limits(changes=5), target=lambda: stale, ended=lambda: True)
    stale = _with_lanes(follower, 2)
    await stale.open()
    await stale._begin()
    lane = stale._lanes[0]
    try:
        await follower.apply()
        follower.assert_equal()
        with pytest.raises(TargetUnreachable):
            await lane.write([], lane.offset + 1)
        follower.assert_equal()
    finally:
        await stale.close()


async def test_a_table_of_a_lane_goes_on_hold_alone_and_comes_back(pair: Pair) -> None:
    follower = await _backlog(pair)
    pair.target("INSERT INTO keyed VALUES (7, 7)")
    sessions = 0
    while True:
        sessions += 1
        assert sessions < 5
        try:
            await follower.apply(limits=Limits(changes=5), target=lambda: _with_lanes(follower, 3))
        except PartsMoved:
            continue
        break
    assert pair.target("SELECT name, state FROM castling.table_positions") == [("keyed", "held")]
    assert [each.table for each in follower.compared().differences] == ["public.keyed"]
    assert pair.target("SELECT count(*) FROM keyed") == [(8,)], "it stands where the row was there already"
    pair.target("DELETE FROM keyed WHERE id = 7 AND n = 7")
    pair.target("UPDATE castling.table_positions SET wanted = 'release'")
    for _ in range(2):  # the first makes the lanes equal: only then a wish can be done
        await follower.apply(limits=Limits(changes=5), target=lambda: _with_lanes(follower, 3))
    follower.assert_equal()


@pytest.fixture(scope="module")
def source() -> Iterator[EmbeddedServer]:
    """It streams transactions that are still open as soon as they hold anything worth it."""
    settings = {"logical_decoding_work_mem": "64kB", "max_prepared_transactions": "10"}
    with EmbeddedServer(name="lanes", settings=settings) as server:
        yield server


@pytest.mark.parametrize(
    "seed", [*range(4), *(pytest.param(n, marks=pytest.mark.faults) for n in range(4, 60))]
)
async def test_random_work_through_lanes(
    source: EmbeddedServer, west: EmbeddedServer, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(f"lanes {seed}")
    with database_pair(source, west, tmp_path) as pair:
        work = RandomWork(chance)
        for side in (pair.source, pair.target):
            side("".join(f"CREATE EXTENSION {name};" for name in EXTENSIONS))
            side(work.schema)
        follower = Follower(pair)
        await follower.begin()
        sessions = [psycopg.connect(pair.east.dsn(pair.name), autocommit=True) for _ in range(2)]
        try:
            for _ in range(4):
                for _ in range(10):
                    work.step(sessions)
                await follower.capture()
                await _until_applied(follower, chance, [1, 3], lambda lanes: _Dying(follower, lanes, chance))
                found = follower.compared()
                assert found.equal, (found.differences, work.done)
        finally:
            for session in sessions:
                session.close()


async def test_more_lanes_than_the_server_has_room_for_are_refused_by_name(pair: Pair) -> None:
    follower = await _backlog(pair, 3)
    room = int(pair.target("SHOW max_active_replication_origins")[0][0])
    with pytest.raises(TargetError) as refused:
        await follower.apply(limits=Limits(changes=5), target=lambda: _with_lanes(follower, room + 1))
    assert "max_active_replication_origins" in refused.value.hint
    await follower.apply(target=lambda: _with_lanes(follower, 2))
    follower.assert_equal()


# --- the tests notice mistakes ------------------------------------------------------------------


async def test_equal_keys_in_different_lanes_are_noticed(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def dealt(changes: Sequence[Change], lane_of: object, lanes: int) -> list[list[Change]]:
        parts: list[list[Change]] = [[] for _ in range(lanes)]
        for number, change in enumerate(changes):
            parts[number % lanes].append(change)
        return parts

    monkeypatch.setattr(lanes_module, "split", dealt)
    follower = await _backlog(pair)
    try:
        await follower.apply(limits=Limits(changes=5), target=lambda: _with_lanes(follower, 3))
    except CastlingError:
        return  # a row that is not there yet, or locked by another lane: noticed at once
    assert not follower.compared().equal, "rows out of order were not noticed"


async def test_a_lane_whose_progress_is_apart_is_noticed(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the first test: the changes are committed first, and what they count afterwards."""
    from castling.kinds.postgres import lane as lane_module

    real = lane_module.note_lane

    async def apart(connection: Any, *arguments: Any) -> None:
        await connection.execute(b"COMMIT")
        await connection.execute(b"BEGIN")
        await real(connection, *arguments)

    monkeypatch.setattr(lane_module, "note_lane", apart)
    follower = await _backlog(pair)
    deaths, chance = 0, random.Random(0)
    for _ in range(6):
        try:
            deaths += await _until_applied(
                follower, chance, [2, 3], lambda lanes: _Dying(follower, lanes, chance)
            )
        except (TargetDiverged, PartsMoved):
            return  # what came twice did not fit: noticed at once
    assert deaths > 0
    assert not follower.compared().equal, "rows that came twice were not noticed"
