"""Schemas and tables that have other names on the target: made, copied, followed, held and compared there."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec
import pytest
from tests.real.apply_cast import DyingTarget, Follower, random_limits
from tests.real.pg_cast import Journal, Pair, captured, database_pair, until
from tests.real.resync_cast import applied, asked, copied, held
from tests.real.test_many_groups import _into
from tests.real.test_seed import ends, seeded

from castling.config import SeedSettings
from castling.errors import TargetError, TargetForeign, TargetUnreachable
from castling.kinds.base import Finding, Severity, Stream
from castling.kinds.postgres.kind import KIND
from castling.testing.compare import compare
from castling.testing.servers import EmbeddedServer

_CREATE = SeedSettings(schema="create", chunk_rows=500)
_EXPECT = SeedSettings(schema="expect", chunk_rows=500)

#: what a schema can hold: everything that follows it to its name on the target
_APP = """
    CREATE SCHEMA {0};
    CREATE TYPE {0}.mood AS ENUM ('calm', 'not');
    CREATE TABLE {0}.account (id serial PRIMARY KEY, name text NOT NULL, mood {0}.mood DEFAULT 'calm');
    CREATE TABLE {0}.entry (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        account int NOT NULL REFERENCES {0}.account ON DELETE CASCADE,
        note text, EXCLUDE (id WITH =)
    );
    CREATE INDEX entry_note ON {0}.entry (note) WHERE note <> 'x';
    CREATE TABLE {0}.measured (at date PRIMARY KEY, v int) PARTITION BY RANGE (at);
    CREATE TABLE {0}.measured_25 PARTITION OF {0}.measured FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
    CREATE TABLE {0}.measured_rest PARTITION OF {0}.measured DEFAULT;
    CREATE INDEX ON {0}.measured (v);
    CREATE TABLE {0}.keyless (v text);
    CREATE UNLOGGED TABLE {0}.cache (id int PRIMARY KEY, v text);
    CREATE SEQUENCE {0}.lonely START 77;
    CREATE VIEW {0}.told AS
        SELECT a.name, count(*) FROM {0}.account a JOIN {0}.entry e ON e.account = a.id GROUP BY 1;
    CREATE MATERIALIZED VIEW {0}.kept AS SELECT count(*) FROM {0}.account;
    CREATE FUNCTION {0}.one() RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 1';
    COMMENT ON SCHEMA {0} IS 'an application';
    COMMENT ON COLUMN {0}.entry.note IS 'said';
    INSERT INTO {0}.account (name) SELECT '{1}' || i FROM generate_series(1, 1200) i;
    INSERT INTO {0}.entry (account, note) SELECT i, 'n' || i FROM generate_series(1, 700) i;
    INSERT INTO {0}.measured SELECT date '2024-12-01' + i, i FROM generate_series(1, 300) i;
    INSERT INTO {0}.keyless SELECT NULLIF(i % 5, 0)::text FROM generate_series(1, 300) i;
    INSERT INTO {0}.cache VALUES (1, '{1}');
"""
_WORK = """
    INSERT INTO {0}.account (name) SELECT 'w{1}' || i FROM generate_series(1, 40) i;
    UPDATE {0}.account SET mood = 'not', name = name || '+' WHERE id % 7 = {1} % 7;
    INSERT INTO {0}.entry (account, note) SELECT id, 'x' FROM {0}.account WHERE id % 11 = {1} % 11;
    DELETE FROM {0}.entry WHERE id % 13 = {1} % 13;
    UPDATE {0}.measured SET at = at + 1000 WHERE at = date '2025-03-01' + {1};
    DELETE FROM {0}.keyless WHERE ctid IN (SELECT ctid FROM {0}.keyless LIMIT 3);
    SELECT nextval('{0}.lonely')
"""
_TABLES = 4  # and the unlogged one, which the log does not carry


@pytest.fixture(params=["18 to 18", "15 to 18", "18 to 15"])
def pair(
    request: pytest.FixtureRequest, east: EmbeddedServer, west: EmbeddedServer, tmp_path: Path, bin15: Path
) -> Iterator[Pair]:
    if request.param == "18 to 18":
        with database_pair(east, west, tmp_path) as made:
            yield made
        return
    with EmbeddedServer(name="fifteen", bin_folder=bin15) as old:
        servers = (old, west) if request.param == "15 to 18" else (east, old)
        with database_pair(*servers, tmp_path) as made:
            yield made


@pytest.fixture
def plain(east: EmbeddedServer, west: EmbeddedServer, tmp_path: Path) -> Iterator[Pair]:
    with database_pair(east, west, tmp_path) as made:
        yield made


@pytest.fixture
def other(plain: Pair, tmp_path: Path) -> Iterator[Pair]:
    with database_pair(plain.east, plain.west, tmp_path) as made:
        yield made


def _follower(pair: Pair, stream: Stream) -> Follower:
    follower = Follower(pair)
    follower.stream, follower.journal, follower.seed_target = stream, Journal(), KIND.seed_target(stream)
    return follower


def _equal(source: Pair, target: Pair, named: dict[str, str], tables: int = _TABLES) -> None:
    found = compare(source.east.dsn(source.name), target.west.dsn(target.name), named=named)
    told = [each for each in found.differences if not each.table.endswith(".cache")]
    assert not told and found.tables == tables + 1, (found.tables, told)


def _refusals(found: list[Finding]) -> set[tuple[str, str]]:
    return {(one.object, one.code) for one in found if one.severity is Severity.REFUSED}


async def _lived(follower: Follower, chance: random.Random) -> int:
    """Apply everything, through sessions that are killed on their way; how often."""
    deaths = 0
    for _ in range(3):
        left = chance.randint(5, 60)
        try:
            await follower.apply(limits=random_limits(chance), target=partial(DyingTarget, follower, left))
        except TargetUnreachable:
            deaths += 1
    await follower.apply()
    return deaths


async def test_a_schema_and_a_table_get_other_names_and_all_that_is_theirs_follows(pair: Pair) -> None:
    pair.source(_APP.format("sales", "c") + "; CREATE TABLE public.plain (id int PRIMARY KEY)")
    pair.target(
        "CREATE SCHEMA sales; CREATE TABLE sales.account (other int); INSERT INTO sales.account VALUES (1)"
    )
    rename = {"sales.*": "Sales EU.*", "sales.entry": "archive.entry_2026"}
    stream = pair.stream(seed=_CREATE, rename=rename)
    assert _refusals(await KIND.check(stream)) == set()
    await seeded(stream)
    named = {"sales.*": '"Sales EU".*', "sales.entry": "archive.entry_2026"}
    _equal(pair, pair, named, _TABLES + 1)
    # what stood there under the source's name is untouched, and nothing is left aside
    assert pair.target("SELECT * FROM sales.account") == [(1,)]
    assert pair.target("SELECT nspname FROM pg_namespace WHERE nspname ~ 'aside|new'") == []
    index = "SELECT pg_get_indexdef('archive.entry_note'::regclass)"
    assert " ON archive.entry_2026 " in pair.target(index)[0][0]
    follower = _follower(pair, stream)
    for number in range(3):
        pair.source(_WORK.format("sales", number))
    await follower.capture()
    assert await _lived(follower, random.Random(3)) > 0
    pair.source(_WORK.format("sales", 8) + "; TRUNCATE sales.keyless")
    await follower.follow()
    _equal(pair, pair, named, _TABLES + 1)
    assert [one.table for one in compare(pair.east.dsn(pair.name), pair.west.dsn(pair.name)).differences]
    # its definitions are the same, but for what they are called
    differ = [one for one in await KIND.compare_schema(stream) if one.object.startswith(_SCHEMA_KINDS)]
    assert {one.object for one in differ} <= {"table sales"}, differ
    # a second copy finds everything under its names
    await seeded(stream)
    _equal(pair, pair, named, _TABLES + 1)
    done = await KIND.copy_left_behind(stream)
    assert [(one.object, one.problem) for one in done] == [("sales.cache", ""), ("sales.kept", "")]
    assert pair.target('SELECT v FROM "Sales EU".cache') == [("c",)]


_SCHEMA_KINDS = ("table", "column", "constraint", "index", "view", "function", "type", "sequence", "comment")


async def test_sequences_go_on_under_their_names(plain: Pair) -> None:
    plain.source(_APP.format("sales", "c"))
    stream = plain.stream(
        seed=_CREATE, rename={"sales.*": "eu.*", "sales.account": "archive.account"}, sequence_margin=10
    )
    await seeded(stream)
    plain.source("SELECT nextval('sales.lonely') FROM generate_series(1, 100)")
    follower = _follower(plain, stream)

    async def told() -> bool:
        async with captured(stream, follower.journal) as capture:
            await until(lambda: capture.report()["beside"]["sequences"]["told_ns"] is not None)
            await follower.journal.read_until(capture, plain.end_of_log())
        await follower.apply()
        return bool(plain.target("SELECT last_value FROM eu.lonely")[0][0] >= 186)

    await until(told)
    # the one that a table owns goes with the table, also to another schema than its own
    assert plain.target("SELECT last_value FROM archive.account_id_seq")[0][0] >= 1210
    assert follower.reports[-1]["warnings"] == []


async def test_two_sources_with_the_same_tables_fill_two_schemas_of_one_target(
    plain: Pair, other: Pair
) -> None:
    """Many-to-one: each through deaths of its own, each compared with its own source."""
    for pair, letter in ((plain, "a"), (other, "b")):
        pair.source(_APP.format("app", letter))
        pair.source(
            "CREATE TABLE public.setting (k text PRIMARY KEY, v text); INSERT INTO setting VALUES ('k', 'v')"
        )
    streams = [
        plain.stream(seed=_CREATE, rename={"app.*": "app_east.*", "public.*": "public_east.*"}),
        _into(other.stream(seed=_CREATE, rename={"app.*": "app_west.*", "public.*": "public_west.*"}), plain),
    ]
    await asyncio.gather(*(seeded(stream) for stream in streams))
    one, two = _follower(plain, streams[0]), _follower(other, streams[1])
    for number in range(4):
        plain.source(_WORK.format("app", number))
        other.source(_WORK.format("app", number * 3 + 1))
    await asyncio.gather(one.capture(), two.capture())
    chance = random.Random(9)
    assert sum(await asyncio.gather(_lived(one, chance), _lived(two, chance))) > 0
    _equal(plain, plain, streams[0].settings.rename, _TABLES + 1)
    _equal(other, plain, streams[1].settings.rename, _TABLES + 1)
    # the comparison is of different rows: each against the other's schema is not equal
    with pytest.raises(AssertionError):
        _equal(plain, plain, streams[1].settings.rename, _TABLES + 1)
    # a new copy of one leaves the other alone
    other.source("UPDATE app.account SET name = 'anew'")
    await seeded(streams[1])
    _equal(other, plain, streams[1].settings.rename, _TABLES + 1)
    _equal(plain, plain, streams[0].settings.rename, _TABLES + 1)


async def test_a_table_is_held_released_and_copied_anew_by_its_name_on_the_target(plain: Pair) -> None:
    plain.source(
        "CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t SELECT i, 0 FROM generate_series(1, 50) i"
    )
    stream = plain.stream(seed=_CREATE, rename={"public.t": "far.renamed"}, on_error="hold")
    await seeded(stream)
    follower = _follower(plain, stream)
    plain.source("UPDATE t SET v = 1")
    assert await asked(follower, "hold", "far.renamed") == ["asked"]
    await follower.capture()
    await applied(follower)
    assert [one.part for one in await held(follower)] == ["far.renamed"]
    assert plain.target("SELECT DISTINCT v FROM far.renamed") == [(0,)]
    assert await asked(follower, "resync", "far.renamed") == ["asked"]
    await applied(follower)
    plain.source("DELETE FROM t WHERE id > 40")
    assert await copied(follower)
    plain.source("INSERT INTO t VALUES (99, 99)")
    await follower.capture()
    await applied(follower)
    assert await held(follower) == []
    _equal(plain, plain, stream.settings.rename, 0)


async def test_columns_of_a_type_that_is_called_otherwise_fit(plain: Pair) -> None:
    plain.source(
        "CREATE TYPE public.mood AS ENUM ('calm'); CREATE TABLE t (id int PRIMARY KEY, m mood, l mood[])"
    )
    stream = plain.stream(seed=_CREATE, rename={"public.*": "eu.*"})
    await seeded(stream)
    assert _refusals(await KIND.check(stream)) == set()
    plain.target("ALTER TABLE eu.t ALTER l TYPE text")
    assert _refusals(await KIND.check(stream)) == {("public.t", "column-type")}


async def test_other_rules_than_the_copys_are_refused(plain: Pair) -> None:
    plain.source("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY)")
    plain.target("CREATE TABLE x (id int PRIMARY KEY); CREATE TABLE y (id int PRIMARY KEY)")
    stream = plain.stream(seed=_EXPECT, rename={"public.a": "public.x", "public.b": "public.y"})
    await seeded(stream)
    swapped = {"public.a": "public.y", "public.b": "public.x"}
    changed = Stream(
        stream.group, stream.backup, msgspec.structs.replace(stream.settings, rename=swapped), stream.config
    )
    target = KIND.target(changed)
    with pytest.raises(TargetForeign, match="other rules in `rename`"):
        await target.open()
    await target.close()
    # nor do two ends with different rules begin a copy
    async with ends(stream) as (seed, _), ends(changed) as (_, receiver):
        await seed.begin()
        from tests.real.pg_cast import BulkTo

        with pytest.raises(TargetError, match="different rules in `rename`"):
            await seed.run(BulkTo(receiver))


async def test_what_can_not_get_its_name_is_refused_by_name(plain: Pair) -> None:
    plain.source(
        "CREATE SCHEMA one; CREATE SCHEMA two; CREATE TABLE one.t (id int PRIMARY KEY);"
        "CREATE TABLE two.t (id int PRIMARY KEY); CREATE EXTENSION citext SCHEMA one"
    )
    plain.target("CREATE SCHEMA common")
    rename = {"one.*": "common.*", "two.*": "common.*", "three.*": "four.*", "one.gone": "one.x"}
    found = await KIND.check(plain.stream(seed=_CREATE, rename=rename))
    assert _refusals(found) >= {
        ("two.t", "rename-clash"),
        ("extension citext", "rename-extension"),
        ("schema common", "schema-on-target"),
    }
    assert {one.object for one in found if one.code == "rename-unused"} == {"three.*", "one.gone"}
    found = await KIND.check(plain.stream(seed=_EXPECT, rename={"one.t": "common.one"}))
    (missing,) = [one for one in found if one.code == "not-on-target" and one.object == "one.t"]
    assert "as common.one" in missing.message
