"""What others write on the target is noticed, with who, when and rows; what Castling writes is not."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.real.apply_cast import Follower
from tests.real.pg_cast import BulkTo, Pair, database_pair, until

from castling.apply.schedule import Limits
from castling.config import SeedSettings
from castling.kinds.base import Severity, Stream
from castling.kinds.postgres import foreign_watch
from castling.kinds.postgres.foreign_watch import ForeignWatch
from castling.kinds.postgres.kind import KIND
from castling.kinds.postgres.target import PostgresTarget
from castling.testing.servers import EmbeddedServer

_TABLES = """
    CREATE TABLE t (id int PRIMARY KEY, v text);
    CREATE TABLE child (id int PRIMARY KEY, t int REFERENCES t ON DELETE CASCADE);
    CREATE TABLE parts (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
    CREATE TABLE parts_low PARTITION OF parts FOR VALUES FROM (0) TO (1000);
    CREATE TABLE parts_high PARTITION OF parts FOR VALUES FROM (1000) TO (2000);
    CREATE TABLE "odd.name" (id int PRIMARY KEY, "a b" int[], c jsonb, d numeric, e bytea);
    INSERT INTO t SELECT i, 'x' FROM generate_series(1, 100) i;
    INSERT INTO child SELECT i, i FROM generate_series(1, 100) i;
    INSERT INTO parts SELECT i * 10, 'x' FROM generate_series(1, 150) i;
"""


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ForeignWatch, "LOOK_S", 0.05)
    monkeypatch.setattr(ForeignWatch, "COVER_S", 0.2)


@pytest.fixture(scope="module", params=["18", "15"])
def target_server(request: pytest.FixtureRequest, bin15: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(name="watched", bin_folder=bin15 if request.param == "15" else None) as server:
        server.execute("CREATE ROLE mallory LOGIN PASSWORD 'm'; CREATE ROLE clerk; GRANT clerk TO mallory")
        yield server


async def _seeded(stream: Stream) -> None:
    source, target = KIND.seed_source(stream), KIND.seed_target(stream)
    try:
        await source.begin()
        await source.run(BulkTo(target))
    finally:
        await source.close()
        await target.close()


@contextlib.asynccontextmanager
async def _watched(stream: Stream) -> AsyncIterator[PostgresTarget]:
    """An apply session, as its end would have it, once every table is watched."""
    target = KIND.target(stream)
    try:
        await target.open()
        await until(lambda: _said(target)["unwatched"] == 0 and _said(target)["open"] is not None)
        yield target
    finally:
        await target.close()


def _said(target: PostgresTarget) -> dict[str, Any]:
    found: dict[str, Any] = target.report()["foreign_writes"]
    return found


def _by_part(target: PostgresTarget) -> dict[str, dict[str, Any]]:
    return {each["part"]: each for each in _said(target)["parts"] or ()}


def _warnings(target: PostgresTarget, code: str) -> list[str]:
    return [each["message"] for each in target.report()["warnings"] if each["code"] == code]


def _other(pair: Pair, **how: Any) -> psycopg.Connection[Any]:
    """A session of somebody who is not Castling and no superuser."""
    how.setdefault("application_name", "by hand")
    return psycopg.connect(
        host="127.0.0.1", port=pair.west.port, dbname=pair.name, user="mallory", password="m", **how
    )


async def _notes(stream: Stream, **how: Any) -> list[dict[str, Any]]:
    return await KIND.foreign_writes(stream, **{"since_s": None, "acknowledge": None, **how})


@contextlib.contextmanager
def _pair(east: EmbeddedServer, west: EmbeddedServer, folder: Path) -> Iterator[tuple[Pair, Stream]]:
    with database_pair(east, west, folder) as pair:
        pair.source(_TABLES)
        yield pair, pair.stream(seed=SeedSettings(schema="create", owners="leave"))


async def test_who_when_and_rows(east: EmbeddedServer, target_server: EmbeddedServer, tmp_path: Path) -> None:
    with _pair(east, target_server, tmp_path) as (pair, stream):
        await _seeded(stream)
        async with _watched(stream) as target:
            assert _said(target) | {"at_ns": 0} == {
                "mode": "watch", "tables": 6, "unwatched": 0, "open": 0, "parts": [], "at_ns": 0
            }  # fmt: skip
            pair.target("GRANT ALL ON ALL TABLES IN SCHEMA public TO mallory, clerk")
            before_ns = time.time_ns()
            with _other(pair) as session:
                session.execute("INSERT INTO t VALUES (1001, 'mine'), (1002, 'mine')")
                session.execute("UPDATE t SET v = 'y' WHERE id <= 3")
                for i in range(1, 41):
                    session.execute("UPDATE t SET v = 'z' WHERE id = %s", (i,))
                session.execute("DELETE FROM t WHERE id = 100")  # and its child, by the foreign key
                pid = session.info.backend_pid
            with _other(pair) as session:
                session.execute("SET ROLE clerk")
                with session.cursor().copy("COPY parts FROM STDIN") as copy:
                    copy.write("5\ta\n1005\tb\n")
                session.execute("UPDATE t SET v = 'nobody' WHERE id = -1")  # no row: no write
                session.commit()
                session.execute("DELETE FROM parts_low WHERE id = 5")
                session.commit()
                session.execute("INSERT INTO t VALUES (2000, 'never')")
                session.rollback()
            await until(lambda: len(_by_part(target)) == 4)
            notes = {each["part"]: each for each in await _notes(stream)}
            written = notes["public.t"]
            assert [written[key] for key in ("inserted", "updated", "deleted")] == [2, 43, 1]
            assert (written["login"], written["role"], written["pid"]) == ("mallory", None, pid)
            assert (written["application"], written["client"]) == ("by hand", "127.0.0.1")
            assert before_ns - 10**6 <= written["at_ns"] <= time.time_ns() + 10**6
            assert written["what"] == "2 inserted, 43 updated, 1 deleted"
            assert notes["public.child"]["deleted"] == 1
            assert (notes["public.parts"]["inserted"], notes["public.parts"]["role"]) == (2, "clerk")
            # counters of the transaction before are not flushed yet, and not counted again
            assert [notes["public.parts_low"][key] for key in ("inserted", "deleted")] == [0, 1]
            told = " ".join(_warnings(target, "foreign-writes"))
            assert "public.t was changed by others: 2 inserted, 43 updated, 1 deleted; last " in told
            assert "by mallory (by hand, 127.0.0.1)" in told and "mallory as clerk" in told
            assert _said(target)["open"] == 4


async def test_whatever_a_session_sets_its_writes_are_noticed(
    east: EmbeddedServer, target_server: EmbeddedServer, tmp_path: Path
) -> None:
    with _pair(east, target_server, tmp_path) as (pair, stream):
        await _seeded(stream)
        async with _watched(stream) as target:
            with psycopg.connect(target_server.dsn(pair.name), application_name="replica") as session:
                session.execute("SET session_replication_role = replica")
                session.execute("UPDATE t SET v = 'r' WHERE id <= 2")
            await until(lambda: _by_part(target).get("public.t", {}).get("updated") == 2)
            with psycopg.connect(target_server.dsn(pair.name), application_name="immediate") as session:
                session.execute("SET CONSTRAINTS ALL IMMEDIATE")
                session.execute("DELETE FROM parts WHERE id < 100")
            await until(lambda: "public.parts" in _by_part(target))
            (note,) = (each for each in await _notes(stream) if each["part"] == "public.parts")
            assert (note["deleted"], note["what"]) == (None, "DELETE, rows unknown")
            with psycopg.connect(target_server.dsn(pair.name), application_name="isolated") as session:
                for isolation in ("SERIALIZABLE", "REPEATABLE READ"):
                    session.execute(f"SET TRANSACTION ISOLATION LEVEL {isolation}")
                    session.execute("DELETE FROM child WHERE id = (SELECT min(id) FROM child)")
                    session.commit()
            await until(lambda: _by_part(target).get("public.child", {}).get("deleted") == 2)


async def test_truncate_and_definitions_are_noticed(
    east: EmbeddedServer, target_server: EmbeddedServer, tmp_path: Path
) -> None:
    with _pair(east, target_server, tmp_path) as (pair, stream):
        await _seeded(stream)
        async with _watched(stream) as target:
            pair.target("TRUNCATE t CASCADE")
            pair.target("CREATE INDEX mine ON t (v)")
            pair.target('ALTER TABLE "odd.name" ADD COLUMN mine int')
            pair.target("CREATE TABLE not_ours (id int); DROP TABLE not_ours; CREATE TEMP TABLE t2 (id int)")
            pair.target("DROP TABLE parts_high")
            await until(
                lambda: (
                    {part: each["others"] for part, each in _by_part(target).items()}
                    == {
                        "public.t": ["CREATE INDEX", "TRUNCATE"],
                        "public.child": ["TRUNCATE"],
                        "public.odd.name": ["ALTER TABLE"],
                        "public.parts_high": ["DROP TABLE"],
                    }
                )
            )
            assert {each["login"] for each in await _notes(stream)} == {EmbeddedServer.USER}


async def test_a_trigger_that_is_taken_away_comes_back_and_is_told(
    east: EmbeddedServer, target_server: EmbeddedServer, tmp_path: Path
) -> None:
    with _pair(east, target_server, tmp_path) as (pair, stream):
        await _seeded(stream)
        async with _watched(stream) as target:
            pair.target("ALTER TABLE t DISABLE TRIGGER ALL; UPDATE t SET v = 'unseen' WHERE id = 1")
            await until(lambda: "WATCH REMOVED" in _by_part(target).get("public.t", {}).get("others", ()))
            assert "ALTER TABLE" in _by_part(target)["public.t"]["others"], "and by whom"
            pair.target("DROP TRIGGER castling_watch ON child")
            await until(lambda: "WATCH REMOVED" in _by_part(target).get("public.child", {}).get("others", ()))
            pair.target("DROP EVENT TRIGGER castling_watch_ddl")
            await until(lambda: pair.target("SELECT count(*) FROM pg_event_trigger") == [(2,)])
            for table in ("t", "child"):
                pair.target(f"DELETE FROM {table} WHERE id = 50")
                await until(lambda table=table: _by_part(target)[f"public.{table}"]["deleted"] > 0)


async def test_a_busy_table_is_watched_when_it_is_free(
    east: EmbeddedServer, target_server: EmbeddedServer, tmp_path: Path
) -> None:
    with _pair(east, target_server, tmp_path) as (pair, stream):
        await _seeded(stream)
        target = KIND.target(stream)
        try:
            with psycopg.connect(target_server.dsn(pair.name)) as session:
                session.execute("UPDATE t SET v = v WHERE id = 1")
                await target.open()
                await until(lambda: _said(target)["unwatched"] == 1)
                assert _said(target)["tables"] == 6
            await until(lambda: _said(target)["unwatched"] == 0)
        finally:
            await target.close()


async def test_acknowledged_is_no_alarm_any_more(
    east: EmbeddedServer, west: EmbeddedServer, tmp_path: Path
) -> None:
    with _pair(east, west, tmp_path) as (pair, stream):
        await _seeded(stream)
        async with _watched(stream) as target:
            pair.target("DELETE FROM t WHERE id = 5")
            await until(lambda: len(_warnings(target, "foreign-writes")) == 2)  # and the child's
            seen = await _notes(stream, acknowledge="dora")
            assert [each["acknowledged_by"] for each in seen] == ["dora", "dora"]
            await until(lambda: _said(target)["open"] == 0)
            assert _warnings(target, "foreign-writes") == [] and await _notes(stream) == []
            again = await _notes(stream, since_s=60.0)
            assert [(each["part"], each["acknowledged_by"]) for each in again] == [
                (each["part"], "dora") for each in seen
            ]
            assert await _notes(stream, since_s=0.000001) == []
            pair.target("DELETE FROM t WHERE id = 6")
            await until(lambda: _said(target)["open"] == 2)


async def test_notes_are_bounded(
    east: EmbeddedServer, west: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign_watch, "CREATE_NOTES", foreign_watch.CREATE_NOTES.replace("10000", "50"))
    with _pair(east, west, tmp_path) as (pair, stream):
        await _seeded(stream)
        async with _watched(stream):
            pass
        for number in range(3):
            pair.target(
                "DO $$ BEGIN FOR i IN 1..40 LOOP"
                f" UPDATE t SET v = 'n{number}' WHERE id = i; COMMIT; END LOOP; END $$"
            )
        assert pair.target("SELECT count(*) FROM castling.foreign_writes") == [(50,)]


_WORK = (
    "INSERT INTO t SELECT i, 'new' FROM generate_series(200, 400) i",
    "UPDATE t SET v = 'u' WHERE id % 2 = 0",
    "UPDATE t SET id = CASE id WHEN 1 THEN 2 ELSE 1 END WHERE id IN (1, 2)",
    "DELETE FROM child WHERE id > 60; DELETE FROM t WHERE id > 350",
    "INSERT INTO parts SELECT i, 'p' FROM generate_series(1, 9) i",
    "UPDATE parts SET id = id + 1000 WHERE id < 9",
    "TRUNCATE child",
    "INSERT INTO child VALUES (1, 1); UPDATE child SET t = 2",
    "INSERT INTO \"odd.name\" VALUES (1, '{1,2}', '{}', 'NaN', '\\x00')",
)


@pytest.mark.parametrize("changes", [1, 50_000], ids=["rows", "sets"])
async def test_what_castling_writes_is_not_reported(
    east: EmbeddedServer, west: EmbeddedServer, tmp_path: Path, changes: int
) -> None:
    """Sets, single rows, truncates, a second copy of all, a copy of unlogged tables; and then one that is."""
    with _pair(east, west, tmp_path) as (pair, _):
        pair.source("CREATE UNLOGGED TABLE u (id int PRIMARY KEY); INSERT INTO u VALUES (1)")
        pair.source("ALTER TABLE t DROP CONSTRAINT t_pkey CASCADE, ADD PRIMARY KEY (id) DEFERRABLE")
        follower = Follower(pair, seed=SeedSettings(schema="create", owners="leave"))
        stream = follower.stream
        await _seeded(stream)
        async with _watched(stream):
            pass
        for statement in _WORK:
            pair.source(statement)
        await follower.capture()
        await follower.apply(target=lambda: KIND.target(stream), limits=Limits(changes=changes))
        await KIND.copy_left_behind(stream)
        follower.assert_equal()
        await _seeded(stream)
        assert pair.target("SELECT count(*) FROM castling.foreign_writes") == [(0,)]
        pair.target("UPDATE t SET v = 'other' WHERE id = 3")
        assert pair.target("SELECT part, updated FROM castling.foreign_writes") == [("public.t", 1)]


async def test_definitions_do_not_differ_for_it(
    east: EmbeddedServer, west: EmbeddedServer, tmp_path: Path
) -> None:
    with _pair(east, west, tmp_path) as (_, stream):
        found = {each.code: each for each in await KIND.check(stream)}
        assert found["watches-writes"].severity is Severity.CHANGE
        await _seeded(stream)
        async with _watched(stream):
            assert [each.code for each in await KIND.compare_schema(stream)] == ["schema-same"]
        assert "watches-writes" not in {each.code for each in await KIND.check(stream)}, "it is there already"


async def test_a_copy_of_the_copy_does_not_take_the_triggers_along(
    east: EmbeddedServer, west: EmbeddedServer, tmp_path: Path
) -> None:
    with _pair(east, west, tmp_path) as (pair, stream):
        pair.source(
            "CREATE TRIGGER own BEFORE UPDATE ON t FOR EACH ROW"
            " EXECUTE FUNCTION suppress_redundant_updates_trigger()"
        )
        await _seeded(stream)
        async with _watched(stream):
            pass
        with database_pair(west, east, tmp_path) as other:
            back = other.stream(seed=SeedSettings(schema="create", owners="leave"))
            west.execute(f"DROP DATABASE {other.name} WITH (FORCE)")
            west.execute(f"CREATE DATABASE {other.name} TEMPLATE {pair.name}")
            await _seeded(back)
            triggers = "SELECT tgname FROM pg_trigger WHERE NOT tgisinternal"
            assert other.target(triggers) == [("own",)]
            assert other.target("SELECT count(*) FROM pg_event_trigger") == [(0,)]
            assert other.target("SELECT count(*) FROM t") == [(100,)]


async def test_ignored_and_removed_leave_nothing_on_the_tables(
    east: EmbeddedServer, west: EmbeddedServer, tmp_path: Path
) -> None:
    left = "SELECT (SELECT count(*) FROM pg_trigger WHERE tgname = 'castling_watch'),"
    left += " (SELECT count(*) FROM pg_event_trigger WHERE evtname LIKE 'castling%')"
    with _pair(east, west, tmp_path) as (pair, stream):
        await _seeded(stream)
        async with _watched(stream):
            assert pair.target(left) == [(6, 2)]
        ignoring = pair.stream(foreign_writes="ignore")
        target = KIND.target(ignoring)
        try:
            await target.open()
            await until(lambda: pair.target(left) == [(0, 0)])
            assert _said(target)["mode"] == "ignore"
        finally:
            await target.close()
        pair.target("UPDATE t SET v = 'other' WHERE id = 3")
        assert await _notes(stream) == []
        async with _watched(stream):
            assert pair.target(left) == [(6, 2)]
        await KIND.forget(stream)
        assert pair.target(left) == [(0, 0)]
        pair.target("DROP SCHEMA castling CASCADE; UPDATE t SET v = 'free'; DROP TABLE child")


async def test_a_subscription_into_the_same_tables_is_named(
    east: EmbeddedServer, west: EmbeddedServer, tmp_path: Path
) -> None:
    with _pair(east, west, tmp_path) as (pair, stream):
        await _seeded(stream)
        async with _watched(stream) as target:
            pair.source("CREATE PUBLICATION native FOR TABLE t")
            with psycopg.connect(west.dsn(pair.name), autocommit=True) as session:
                session.execute(
                    f"CREATE SUBSCRIPTION twice_{pair.name} CONNECTION '{east.dsn(pair.name)}'"
                    " PUBLICATION native WITH (copy_data = false)"
                )
                try:
                    await until(lambda: bool(_warnings(target, "foreign-subscription")))
                    (told,) = _warnings(target, "foreign-subscription")
                    assert f"twice_{pair.name}" in told and "public.t" in told
                finally:
                    session.execute(f"DROP SUBSCRIPTION twice_{pair.name}")
            await until(lambda: _warnings(target, "foreign-subscription") == [])
