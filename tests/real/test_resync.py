"""A table is copied anew while everything else goes on, and fits the stream exactly."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.real.apply_cast import Follower
from tests.real.pg_cast import Pair, database_pair, until
from tests.real.resync_cast import applied, asked, copied, held

from castling.config import SeedSettings
from castling.errors import SeedFailed, StateError, TargetUnreachable
from castling.testing.servers import EmbeddedServer

_TABLES = """
    CREATE TABLE good (id int PRIMARY KEY, v text);
    CREATE TABLE bad (id int PRIMARY KEY, v text, t timestamptz DEFAULT now(), b bytea, g int[]);
    CREATE TABLE child (id int PRIMARY KEY, bad int REFERENCES bad);
    CREATE TABLE heap (n int, v text);
    CREATE TABLE root (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
    CREATE TABLE root_low PARTITION OF root FOR VALUES FROM (0) TO (100);
    CREATE TABLE root_high PARTITION OF root FOR VALUES FROM (100) TO (100000);
"""
_WORK = """
    INSERT INTO good SELECT i, 'v' FROM generate_series({0}, {0} + 9) i; COMMIT;
    INSERT INTO bad SELECT i, 'v\\' || i, now(), '\\xff00', ARRAY[i, NULL]
      FROM generate_series({0}, {0} + 9) i;
    INSERT INTO child SELECT i, i FROM generate_series({0}, {0} + 9) i WHERE i % 7 <> 0;
    UPDATE good SET v = v || 'x' WHERE id % 3 = 0; COMMIT;
    UPDATE bad SET v = v || 'y' WHERE id % 2 = 0; DELETE FROM bad WHERE id % 7 = 0; COMMIT;
    INSERT INTO root SELECT i, 'r' FROM generate_series({0}, {0} + 9) i;
    INSERT INTO heap SELECT i, NULL FROM generate_series(1, 3) i
"""


@pytest.fixture
def pair(east: EmbeddedServer, west: EmbeddedServer, tmp_path: Path) -> Iterator[Pair]:
    with database_pair(east, west, tmp_path) as made:
        made.source(_TABLES)
        made.target(_TABLES)
        yield made


def _work(pair: Pair, start: int, times: int = 1) -> None:
    for at in range(times):
        pair.source(_WORK.format(start + 10 * at))


async def _passed(pair: Pair, follower: Follower) -> None:
    """The source does something more, so that the stream passes where it is now."""
    _work(pair, pair.source("SELECT max(id) + 1 FROM good")[0][0])
    await follower.capture()
    await applied(follower)


async def _begun(pair: Pair, **settings: Any) -> Follower:
    follower = Follower(pair, **settings)
    await follower.begin()
    _work(pair, 0)
    await follower.capture()
    await applied(follower)
    follower.assert_equal()
    return follower


@pytest.mark.parametrize("table", ["bad", "heap", "root", "child"])
@pytest.mark.parametrize("applied_first", [True, False])
async def test_a_table_that_was_spoilt_is_whole_again(pair: Pair, table: str, applied_first: bool) -> None:
    """The copy is later than the stream's progress, or earlier: both fit."""
    follower = await _begun(pair, on_error="hold")
    pair.target(f"SET session_replication_role = replica; DELETE FROM {table}")  # children have no parents
    assert not follower.compared().equal
    assert set(await asked(follower, "resync", f"public.{table}")) == {"asked"}
    await applied(follower)
    parts = ["root_high", "root_low"] if table == "root" else [table]
    assert sorted(each.part for each in await held(follower)) == [f"public.{part}" for part in parts]
    assert {each.state for each in await held(follower)} == {"copying"}
    assert set(await asked(follower, "release", f"public.{table}")) == {"already_copying"}

    async def between() -> None:
        _work(pair, 200)

    _work(pair, 100)
    assert await copied(follower, between)
    assert not await copied(follower), "what is copied is not wanted any longer"
    if applied_first:
        await follower.capture()
    else:
        _work(pair, 300)
        await follower.capture()
    await applied(follower)
    assert await held(follower) == []
    follower.assert_equal()
    _work(pair, 400)
    await follower.capture()
    await applied(follower)
    follower.assert_equal()


async def test_the_stream_passes_the_copy_s_position_before_the_copy_is_in(pair: Pair) -> None:
    follower = await _begun(pair, on_error="hold")
    pair.target("DELETE FROM heap")
    await asked(follower, "resync", "public.heap")
    await applied(follower)

    async def between() -> None:
        _work(pair, 100, 3)
        await follower.capture()
        await applied(follower)
        assert pair.target("SELECT count(*) FROM good") == pair.source("SELECT count(*) FROM good")
        assert pair.target("SELECT count(*) FROM heap") == [(0,)], "readers see it as it was"

    await copied(follower, between)
    assert pair.target("SELECT count(*) FROM heap") == [(3,)], "as of the copy's own position"
    await applied(follower)
    assert await held(follower) == []
    follower.assert_equal()


async def test_an_error_is_healed_by_itself(pair: Pair) -> None:
    follower = await _begun(pair, on_error="resync")
    pair.target("DELETE FROM good WHERE id = 3")
    _work(pair, 100)
    await follower.capture()
    await applied(follower)
    (one,) = await held(follower)
    assert (one.part, one.state) == ("public.good", "copying")
    await copied(follower)
    await _passed(pair, follower)
    assert await held(follower) == []
    follower.assert_equal()


async def test_what_a_copy_can_not_mend_waits_for_a_person(pair: Pair) -> None:
    follower = await _begun(pair, on_error="resync")
    pair.target("ALTER TABLE bad ADD CHECK (id < 105)")
    _work(pair, 100)
    await follower.capture()
    await applied(follower)
    assert [(one.part, one.state) for one in await held(follower)] == [("public.bad", "held")]
    assert not await copied(follower)


async def test_it_is_not_tried_for_ever(pair: Pair) -> None:
    follower = await _begun(pair, on_error="resync")
    states = []
    for at in range(4):
        pair.target("DELETE FROM good WHERE id = 3")
        _work(pair, 100 + 100 * at)
        await follower.capture()
        await applied(follower)
        states.append((await held(follower))[0].state)
        await copied(follower)
        await _passed(pair, follower)
    assert states == ["copying", "copying", "copying", "held"]
    assert await asked(follower, "resync") == ["asked"], "a person may try again"
    await applied(follower)
    await copied(follower)
    await _passed(pair, follower)
    follower.assert_equal()


async def test_a_copy_that_the_target_refuses_changes_nothing(pair: Pair) -> None:
    follower = await _begun(pair, on_error="hold")
    pair.target("ALTER TABLE bad ADD CHECK (id < 105)")
    _work(pair, 100)
    await follower.capture()
    await applied(follower)
    before = pair.target("SELECT * FROM bad ORDER BY id")
    assert await asked(follower, "resync") == ["asked"]
    await applied(follower)
    for _ in range(2):  # what the stream has not brought yet may be what the copy lacks
        with pytest.raises(SeedFailed, match="tried once more"):
            await copied(follower)
    await _passed(pair, follower)
    before = pair.target("SELECT * FROM bad ORDER BY id")
    await copied(follower)
    assert not await copied(follower)
    (one,) = await held(follower)
    assert (one.state, one.sqlstate) == ("held", "23514")
    assert pair.target("SELECT * FROM bad ORDER BY id") == before
    pair.target("ALTER TABLE bad DROP CONSTRAINT bad_id_check")
    await asked(follower, "release")
    await applied(follower)
    follower.assert_equal()


async def test_a_copy_that_comes_before_the_column_that_it_brings_is_tried_once_more(pair: Pair) -> None:
    follower = await _begun(pair, on_error="hold")
    pair.target("DELETE FROM heap")
    await asked(follower, "resync", "public.heap")
    await applied(follower)
    pair.source("ALTER TABLE heap ADD more int DEFAULT 7")
    with pytest.raises(SeedFailed, match=r"public\.heap.*tried once more"):
        await copied(follower)
    pair.target("ALTER TABLE heap ADD more int")  # as the stream would have brought it
    assert await copied(follower)
    await _passed(pair, follower)
    assert await held(follower) == []
    follower.assert_equal()


async def test_a_lost_table_comes_back(pair: Pair) -> None:
    follower = await _begun(pair, on_error="hold")
    await asked(follower, "hold", "public.heap")
    await applied(follower)
    _work(pair, 100)
    await follower.capture()
    await applied(follower)
    target = follower.target()
    try:
        await target.open()
        await target.give_up("public.heap")
    finally:
        await target.close()
    with pytest.raises(StateError) as told:
        await asked(follower, "release", "public.heap")
    assert "group resync" in told.value.hint
    assert await asked(follower, "resync") == ["asked"]
    await applied(follower)
    assert [each.state for each in await held(follower)] == ["copying"]
    await copied(follower)
    await applied(follower)
    follower.assert_equal()


async def test_a_table_emptied_meanwhile_is_copied_once_more(pair: Pair) -> None:
    follower = await _begun(pair, on_error="hold", seed=SeedSettings(chunk_rows=5))
    pair.target("DELETE FROM heap")
    await asked(follower, "resync", "public.heap")
    await applied(follower)

    async def between() -> None:
        pair.source("TRUNCATE heap; COMMIT; INSERT INTO heap VALUES (7, 'after')")

    with pytest.raises(SeedFailed, match=r"public\.heap"):
        await copied(follower, between)
    assert await copied(follower)
    await follower.capture()
    await applied(follower)
    follower.assert_equal()


async def test_what_the_group_has_not_is_refused_by_name(pair: Pair) -> None:
    follower = await _begun(pair, on_error="hold")
    pair.target("CREATE TABLE public.foreign_one (id int); INSERT INTO public.foreign_one VALUES (1)")
    await asked(follower, "resync", "public.foreign_one")
    await applied(follower)
    await copied(follower)
    (one,) = await held(follower)
    assert one.state == "held" and "no such table" in one.reason
    assert pair.target("SELECT * FROM public.foreign_one") == [(1,)]


# --- dying, and coming late -------------------------------------------------------------------


async def test_a_copy_that_dies_in_the_middle_has_changed_nothing(pair: Pair) -> None:
    follower = await _begun(pair, on_error="hold")
    pair.source("INSERT INTO heap SELECT i, repeat('x', 1000) FROM generate_series(1, 2000) i")
    pair.target("UPDATE heap SET v = 'spoilt'")
    await follower.capture()
    await asked(follower, "resync", "public.heap")
    await applied(follower)
    before = pair.target("SELECT count(*), max(v) FROM heap")

    async def kill() -> None:
        pair.west.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name LIKE 'castling resync%'"
        )

    with pytest.raises(TargetUnreachable):
        await copied(follower, kill)
    assert pair.target("SELECT count(*), max(v) FROM heap") == before
    assert [each.state for each in await held(follower)] == ["copying"]
    assert await copied(follower)
    await applied(follower)
    follower.assert_equal()


async def test_a_copy_that_waits_for_the_source_can_be_broken_off(pair: Pair) -> None:
    """A snapshot is made when the open transactions have ended: that can take long."""
    follower = await _begun(pair, on_error="hold")
    pair.target("DELETE FROM heap")
    await asked(follower, "resync", "public.heap")
    await applied(follower)
    waiting = (
        "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'castling resync%'"
        f" AND query LIKE 'CREATE_REPLICATION_SLOT%' AND datname = '{pair.name}' AND wait_event IS NOT NULL"
        " AND state = 'active'"
    )
    with psycopg.connect(pair.east.dsn(pair.name)) as open_one:
        open_one.execute("INSERT INTO heap VALUES (77, 'open')")
        copy = asyncio.create_task(copied(follower))
        await until(lambda: bool(pair.source(waiting)))
        copy.cancel()
        await asyncio.wait([copy], timeout=20)
        assert copy.cancelled()
        await until(lambda: not pair.source(waiting))
    slots = "SELECT 1 FROM pg_replication_slots WHERE slot_name LIKE 'castling_view%'"
    await until(lambda: not pair.source(slots))
    assert await copied(follower)
    await _passed(pair, follower)
    assert await held(follower) == []
    follower.assert_equal()


async def test_a_copy_that_comes_late_is_thrown_away(pair: Pair) -> None:
    """Its position may be one that the journal has let go: taking it would lose what lies between."""
    follower = await _begun(pair, on_error="hold")
    pair.target("DELETE FROM heap")
    await asked(follower, "resync", "public.heap")
    await applied(follower)

    async def between() -> None:
        await asked(follower, "hold", "public.heap")
        await applied(follower)

    with pytest.raises(StateError, match="not wanted"):
        await copied(follower, between)
    assert pair.target("SELECT count(*) FROM heap") == [(0,)]

    async def later() -> None:
        target = follower.target()
        _work(pair, 100)
        await follower.capture()
        await applied(follower)
        try:
            await target.open()
            await target.give_up("public.heap")
        finally:
            await target.close()

    await asked(follower, "resync", "public.heap")
    await applied(follower)
    with pytest.raises(StateError, match="not wanted"):
        await copied(follower, later)
    assert await copied(follower), "but a later one is"
    await applied(follower)
    follower.assert_equal()


async def test_a_copy_taken_for_the_stream_s_place_is_noticed(pair: Pair) -> None:
    """The control: were its position forgotten, changes would be there twice, or not at all."""
    follower = await _begun(pair, on_error="hold")
    await asked(follower, "resync", "public.heap")
    await applied(follower)
    _work(pair, 100)
    assert await copied(follower)
    pair.target("DELETE FROM castling.table_positions")
    await follower.capture()
    await applied(follower)
    assert not follower.compared().equal, "rows that were applied twice were not noticed"


# --- between versions -------------------------------------------------------------------------


@pytest.fixture(params=["15 to 18", "18 to 15"])
def versions(
    request: pytest.FixtureRequest, east: EmbeddedServer, west: EmbeddedServer, bin15: Path, tmp_path: Path
) -> Iterator[Pair]:
    with EmbeddedServer(name="fifteen", bin_folder=bin15) as old:
        source, target = (old, west) if request.param == "15 to 18" else (east, old)
        with database_pair(source, target, tmp_path) as made:
            made.source(_TABLES)
            made.target(_TABLES)
            yield made


async def test_a_table_is_copied_anew_between_versions(versions: Pair) -> None:
    follower = await _begun(versions, on_error="resync")
    versions.target("DELETE FROM good WHERE id = 3; DELETE FROM heap; DELETE FROM root")
    _work(versions, 100)
    await follower.capture()
    await applied(follower)
    await asked(follower, "resync", "public.heap", "public.root")
    await applied(follower)
    assert len(await held(follower)) == 4

    async def between() -> None:
        _work(versions, 200)

    await copied(follower, between)
    await _passed(versions, follower)
    assert await held(follower) == []
    follower.assert_equal()
