"""One bad table does not stop the rest: it stands still, nothing of it is lost, and it comes back."""

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
from castling.errors import NotFound, PartsMoved, StateError, TargetUnreachable
from castling.kinds.base import Held
from castling.kinds.postgres.emptied import CREATE_EMPTIED
from castling.kinds.postgres.kind import KIND
from castling.kinds.postgres.lsn import lsn_text
from castling.kinds.postgres.target import PostgresTarget
from castling.testing.servers import EmbeddedServer

_TABLES = """
    CREATE TABLE good (id int PRIMARY KEY, v text);
    CREATE TABLE bad (id int PRIMARY KEY, v text);
    CREATE TABLE heap (n int, v text);
"""


@pytest.fixture
def pair(east: EmbeddedServer, west: EmbeddedServer, tmp_path: Path) -> Iterator[Pair]:
    with database_pair(east, west, tmp_path) as made:
        made.source(_TABLES)
        made.target(_TABLES)
        yield made


async def _follower(pair: Pair) -> Follower:
    follower = Follower(pair, on_error="hold")
    await follower.begin()
    return follower


async def _applied(follower: Follower, **how: Any) -> int:
    """Apply all of the journal, through as many sessions as parts are moved; how many were."""
    for moved in range(50):
        try:
            await follower.apply(**how)
        except PartsMoved:
            continue
        return moved
    raise AssertionError("parts are moved for ever")


async def _held(follower: Follower) -> list[Held]:
    target = follower.target()
    try:
        await target.open()
        return target.held()
    finally:
        await target.close()


async def _ask(follower: Follower, action: Any, *parts: str) -> list[str]:
    return [each["result"] for each in await KIND.move_parts(follower.stream, action, parts, "a test")]


def _rows(pair: Pair, table: str) -> list[tuple[Any, ...]]:
    return pair.target(f"SELECT * FROM {table} ORDER BY 1, 2")


_WORK = """
    INSERT INTO good SELECT i, 'v' FROM generate_series({0}, {0} + 9) i; COMMIT;
    INSERT INTO bad SELECT i, 'v' FROM generate_series({0}, {0} + 9) i;
    UPDATE good SET v = v || 'x' WHERE id % 3 = 0; COMMIT;
    UPDATE bad SET v = v || 'y' WHERE id % 2 = 0; DELETE FROM bad WHERE id % 7 = 0; COMMIT;
    INSERT INTO heap SELECT i, 'h' FROM generate_series(1, 3) i
"""


def _work(pair: Pair, start: int, times: int = 1) -> None:
    for at in range(times):
        pair.source(_WORK.format(start + 10 * at))


_BREAKS = {
    "a row is missing": ("DELETE FROM bad WHERE id = 2", "INSERT INTO bad VALUES (2, 'vy')"),
    "a row is there already": ("INSERT INTO bad VALUES (106, 'mine')", "DELETE FROM bad WHERE id = 106"),
    "a constraint": ("ALTER TABLE bad ADD CHECK (id < 105)", "ALTER TABLE bad DROP CONSTRAINT bad_id_check"),
    "a column is missing": (
        "ALTER TABLE bad RENAME v TO w",
        "ALTER TABLE bad RENAME w TO v",
    ),
    "the table is missing": ("ALTER TABLE bad RENAME TO was", "ALTER TABLE was RENAME TO bad"),
    "a trigger objects": (
        "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'never'; END $$;"
        "CREATE TRIGGER no BEFORE INSERT ON bad FOR EACH ROW EXECUTE FUNCTION no();"
        "ALTER TABLE bad ENABLE ALWAYS TRIGGER no",
        "DROP TRIGGER no ON bad",
    ),
}


async def test_a_row_that_is_too_large_holds_its_table_by_name(pair: Pair) -> None:
    """It is named with key and size, and never put together; with a larger bound it arrives."""
    follower = await _follower(pair)
    follower.stream = pair.stream(on_error="hold", row_max=8 << 20)
    for work in (
        "INSERT INTO bad VALUES (1, 'small'); INSERT INTO good VALUES (1, 'before')",
        "INSERT INTO bad VALUES (41, repeat('x', 7 << 20))",
        "INSERT INTO bad VALUES (42, repeat('x', 9 << 20)); INSERT INTO good VALUES (2, 'beside')",
        "DELETE FROM bad WHERE id = 1; INSERT INTO good VALUES (3, 'behind')",
    ):
        pair.source(work)
    await follower.capture()
    assert await _applied(follower, limits=Limits(changes=1)) == 1
    (held,) = await _held(follower)
    assert held.part == "public.bad"
    assert "public.bad (id=42) has 9 MiB" in held.reason
    assert pair.target("SELECT count(*) FROM good") == [(3,)]
    assert pair.target("SELECT id FROM bad ORDER BY id") == [(1,), (41,)]
    follower.stream = pair.stream(on_error="hold")
    assert await _ask(follower, "release", "public.bad") == ["asked"]
    await _applied(follower)
    assert await _held(follower) == []
    follower.assert_equal()


@pytest.mark.parametrize("broken", sorted(_BREAKS))
@pytest.mark.parametrize("changes", [1, 50_000])
async def test_the_rest_goes_on_and_the_table_comes_back(pair: Pair, broken: str, changes: int) -> None:
    follower = await _follower(pair)
    limits = Limits(changes=changes)
    _work(pair, 0)
    await follower.capture()
    await _applied(follower, limits=limits)
    follower.assert_equal()
    breaks, mends = _BREAKS[broken]
    pair.target(breaks)
    _work(pair, 100, 3)
    await follower.capture()
    assert await _applied(follower, limits=limits) == 1
    (held,) = await _held(follower)
    assert (held.part, held.state) == ("public.bad", "held")
    assert held.reason
    assert pair.target("SELECT count(*) FROM good") == pair.source("SELECT count(*) FROM good")
    assert pair.target("SELECT count(*) FROM heap") == pair.source("SELECT count(*) FROM heap")
    pair.target(mends)
    standing = _rows(pair, "bad")
    _work(pair, 150)
    await follower.capture()
    assert await _applied(follower, limits=limits) == 0
    assert _rows(pair, "bad") == standing, "a table on hold stands still, also when it is mended"
    assert pair.target("SELECT count(*) FROM heap") == pair.source("SELECT count(*) FROM heap")
    assert await _ask(follower, "release", "public.bad") == ["asked"]
    _work(pair, 200)
    await follower.capture()
    await _applied(follower, limits=limits)
    assert await _held(follower) == []
    follower.assert_equal()
    _work(pair, 300)
    await follower.capture()
    assert await _applied(follower) == 0
    follower.assert_equal()


async def test_a_release_without_a_cure_is_a_hold_again(pair: Pair) -> None:
    follower = await _follower(pair)
    pair.target("INSERT INTO bad VALUES (5, 'mine')")
    _work(pair, 0, 2)
    await follower.capture()
    await _applied(follower)
    (first,) = await _held(follower)
    await _ask(follower, "release")
    await _applied(follower)
    (again,) = await _held(follower)
    assert (again.state, again.since_ns) == ("held", first.since_ns)
    assert again.offset >= first.offset
    assert pair.target("SELECT count(*) FROM heap") == [(6,)], "a table without a key shows what comes twice"


async def test_a_hold_by_hand(pair: Pair) -> None:
    follower = await _follower(pair)
    _work(pair, 0)
    await follower.follow()
    assert await _ask(follower, "hold", "public.heap") == ["asked"]
    assert await _ask(follower, "hold", "public.heap") == ["already_asked"]
    _work(pair, 100)
    await follower.capture()
    await _applied(follower)
    assert await _ask(follower, "hold", "public.heap") == ["already_held"]
    assert await _ask(follower, "release", "public.good") == ["not_held"]
    assert pair.target("SELECT count(*) FROM heap") == [(3,)]
    with pytest.raises(NotFound, match=r"public\.nowhere"):
        await _ask(follower, "hold", "public.nowhere")
    assert await _ask(follower, "release") == ["asked"]
    await _applied(follower)
    follower.assert_equal()


async def test_a_truncate_of_several_tables_reaches_those_that_are_not_held(pair: Pair) -> None:
    follower = await _follower(pair)
    _work(pair, 0)
    await follower.follow()
    await _ask(follower, "hold", "public.bad")
    pair.source("TRUNCATE good, bad; COMMIT; INSERT INTO bad VALUES (1, 'after')")
    await follower.capture()
    await _applied(follower)
    assert pair.target("SELECT count(*) FROM good") == [(0,)]
    assert pair.target("SELECT count(*) > 0 FROM bad") == [(True,)]
    await _ask(follower, "release")
    await _applied(follower)
    follower.assert_equal()


async def test_what_is_held_pins_the_journal_until_it_is_given_up(pair: Pair) -> None:
    follower = await _follower(pair)
    _work(pair, 0)
    await follower.follow()
    await _ask(follower, "hold", "public.bad")
    target = follower.target()
    try:
        held_at = await target.open()
        _work(pair, 100)
        await follower.capture()
        await follower.apply(target=lambda: target)
        assert (await target.open(), await target.durable()) > (held_at, held_at)
        assert await target.durable() == held_at
        await target.give_up("public.bad")
        assert await target.durable() > held_at
        assert [each.state for each in target.held()] == ["lost"]
    finally:
        await target.close()
    with pytest.raises(StateError, match=r"public\.bad"):
        await _ask(follower, "release")
    _work(pair, 200)
    await follower.capture()
    assert await _applied(follower) == 0, "a lost table stands still, and nothing else does"


# --- dying in the middle ----------------------------------------------------------------------


class _Dying(PostgresTarget):
    """Its server session is terminated before a chosen statement, or after a COMMIT whose answer is lost."""

    def __init__(self, follower: Follower, chance: random.Random) -> None:
        super().__init__(follower.stream.group, follower.stream.settings.databases["west"], on_error="hold")
        self._west = follower.pair.west
        self._left = chance.randrange(8, 80)
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


async def _through_deaths(follower: Follower, chance: random.Random, kind: type[_Dying] = _Dying) -> int:
    deaths = 0
    while deaths < 200:
        limits = Limits(changes=chance.choice([1, 5, 30]))
        size = chance.choice([2000, 1 << 20])
        try:
            await _applied(follower, limits=limits, piece_bytes=size, target=lambda: kind(follower, chance))
        except TargetUnreachable:
            deaths += 1
            continue
        return deaths
    raise AssertionError("it never got to the end")


@pytest.mark.parametrize("seed", range(3))
async def test_a_release_that_dies_anywhere(pair: Pair, seed: int) -> None:
    follower, chance = await _follower(pair), random.Random(seed)
    _work(pair, 0)
    await follower.follow()
    await _ask(follower, "hold", "public.heap")
    pair.target("DELETE FROM bad WHERE id = 2")
    _work(pair, 100, 8)
    await follower.capture()
    deaths = await _through_deaths(follower, chance)
    assert {each.part for each in await _held(follower)} == {"public.heap", "public.bad"}
    pair.target("INSERT INTO bad VALUES (2, 'vy')")
    await _ask(follower, "release")
    _work(pair, 200, 3)
    await follower.capture()
    deaths += await _through_deaths(follower, chance)
    assert deaths > 0, "nothing has died"
    assert await _held(follower) == []
    follower.assert_equal()


class _Forgetful(PostgresTarget):
    """The mistake: a released table is live at once, and what it lacks is forgotten."""

    async def open(self) -> int:
        progress = await super().open()
        assert self._connection is not None
        await self._connection.execute("DELETE FROM castling.table_positions WHERE state = 'releasing'")
        await self._positions.load(self._connection)
        return max(progress, self._progress)


async def test_entries_that_are_forgotten_are_noticed(pair: Pair) -> None:
    """The control: without the replay the comparison finds what is missing."""
    follower = await _follower(pair)
    await _ask(follower, "hold", "public.heap")
    _work(pair, 0, 2)
    await follower.capture()
    await _applied(follower)
    await _ask(follower, "release")
    settings = follower.stream.settings.databases["west"]
    await _applied(follower, target=lambda: _Forgetful(follower.stream.group, settings, on_error="hold"))
    assert not follower.compared().equal, "rows that were never applied were not noticed"


async def test_a_truncate_passes_a_relative_that_is_on_hold(pair: Pair) -> None:
    """A table that another refers to can't be truncated without it; it is emptied all the same."""
    relatives = """
        CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE child (id int PRIMARY KEY REFERENCES parent)
    """
    pair.source(relatives)
    pair.target(relatives)
    follower = Follower(pair, on_error="hold")
    await follower.begin()
    pair.source("INSERT INTO parent SELECT generate_series(1, 5); INSERT INTO child SELECT id FROM parent")
    await follower.capture()
    await _applied(follower)
    await KIND.move_parts(follower.stream, "hold", ["public.child"], "a test")
    pair.source("TRUNCATE parent CASCADE; INSERT INTO parent VALUES (6)")
    await follower.capture()
    await _applied(follower)
    assert [each.part for each in await _held(follower)] == ["public.child"]
    assert pair.target("SELECT id FROM parent") == [(6,)]
    assert pair.target("SELECT count(*) FROM child") == [(5,)]
    await KIND.move_parts(follower.stream, "release", [], "")
    await _applied(follower)
    assert await _held(follower) == []
    follower.assert_equal()


async def test_a_table_that_waits_for_its_truncate_may_be_on_hold(pair: Pair) -> None:
    """Truncated during the first copy, and on hold since: the stream passes without its TRUNCATE."""
    follower = Follower(pair, on_error="hold")
    await follower.begin()
    pair.source("INSERT INTO heap VALUES (1, 'gone')")
    pair.source("TRUNCATE heap")
    await follower.capture()
    target = follower.target()
    await target.open()
    await target.close()
    pair.target(CREATE_EMPTIED)
    pair.target(
        f"INSERT INTO castling.seed_emptied VALUES ('{pair.name}', 'public', 'heap',"
        f" '{lsn_text(pair.end_of_log())}')"
    )
    await KIND.move_parts(follower.stream, "hold", ["public.heap"], "a test")
    pair.source("INSERT INTO heap VALUES (2, 'new'); INSERT INTO good VALUES (1, 'v')")
    await follower.capture()
    await _applied(follower)
    assert pair.target("SELECT count(*) FROM good") == [(1,)]
    await KIND.move_parts(follower.stream, "release", [], "")
    await _applied(follower)
    assert await _held(follower) == []
    follower.assert_equal()
