"""`castling check` on real servers: each finding provoked once, nothing changed by looking."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.real.pg_cast import Pair, captured, database_pair, until

from castling.config import DatabaseSettings, SeedSettings
from castling.errors import NotReplicable
from castling.kinds.base import Finding, Severity
from castling.kinds.postgres.facts import SourceFacts, TargetFacts
from castling.kinds.postgres.judge import judge_source, judge_target
from castling.kinds.postgres.kind import KIND
from castling.testing.servers import EmbeddedServer

_CREATE = SeedSettings(schema="create")
_EXPECT = SeedSettings(schema="expect")
_CLEAN = "CREATE TABLE good (id int PRIMARY KEY, v text); INSERT INTO good VALUES (1, 'x');"


@pytest.fixture
def pair(east: EmbeddedServer, west: EmbeddedServer, tmp_path: Path) -> Iterator[Pair]:
    with database_pair(east, west, tmp_path) as made:
        made.source(_CLEAN)
        yield made


async def _check(pair: Pair, seed: SeedSettings = _CREATE, **settings: Any) -> dict[tuple[str, str], Finding]:
    """Findings by object and code."""
    found = await KIND.check(pair.stream(seed=seed, **settings))
    return {(finding.object, finding.code): finding for finding in found}


def _refused(found: dict[tuple[str, str], Finding]) -> set[tuple[str, str]]:
    return {key for key, finding in found.items() if finding.severity is Severity.REFUSED}


async def test_a_clean_database_is_refused_nothing(pair: Pair) -> None:
    found = await _check(pair)
    assert _refused(found) == set()
    assert found["public.good", "replicated"].severity is Severity.OK
    assert "not counted yet" in found["public.good", "replicated"].message  # and not: 0
    pair.source("ANALYZE good")
    assert "about 1 rows" in (await _check(pair))["public.good", "replicated"].message
    assert found["schema", "ddl-not-carried"].severity is Severity.WARNING


@pytest.mark.parametrize(
    ("statement", "object_", "code", "severity"),
    [
        ("CREATE UNLOGGED TABLE t (id int PRIMARY KEY)", "public.t", "unlogged", Severity.WARNING),
        ("CREATE TABLE t ()", "public.t", "no-columns", Severity.REFUSED),
        ("SELECT lo_create(0)", "large objects", "large-objects-compared", Severity.WARNING),
        ("CREATE TABLE t (v int)", "public.t", "sets-identity-full", Severity.CHANGE),
        ("CREATE TABLE t (v int)", "public.t", "whole-row-identity", Severity.WARNING),
        (
            "CREATE TABLE t (id int PRIMARY KEY); ALTER TABLE t REPLICA IDENTITY NOTHING",
            "public.t",
            "sets-identity-full",
            Severity.CHANGE,
        ),
        (
            "CREATE TABLE t (id int PRIMARY KEY DEFERRABLE)",
            "public.t",
            "sets-identity-full",
            Severity.CHANGE,
        ),
        (
            "CREATE TYPE c AS (a int); CREATE TABLE t (id int PRIMARY KEY, v c)",
            "group",
            "text-transfer",
            Severity.WARNING,
        ),
        ("CREATE SEQUENCE s", "sequences", "sequences-carried", Severity.OK),
        ("CREATE MATERIALIZED VIEW m AS SELECT 1 AS x", "public.m", "materialized-view", Severity.WARNING),
        (
            "CREATE TABLE t (id int PRIMARY KEY); ALTER TABLE t ENABLE ROW LEVEL SECURITY",
            "public.t",
            "row-security",
            Severity.WARNING,
        ),
        (
            "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u () INHERITS (t)",
            "public.t",
            "inheritance",
            Severity.WARNING,
        ),
        (
            "CREATE EXTENSION IF NOT EXISTS file_fdw; CREATE SERVER f FOREIGN DATA WRAPPER file_fdw;"
            " CREATE FOREIGN TABLE t (v text) SERVER f OPTIONS (filename '/dev/null')",
            "public.t",
            "foreign-table",
            Severity.REFUSED,
        ),
    ],
)
async def test_what_can_not_be_carried_is_named(
    pair: Pair, statement: str, object_: str, code: str, severity: Severity
) -> None:
    before = await _check(pair)
    assert (object_, code) not in before, "it was there before it was provoked"
    pair.source(statement)
    found = await _check(pair)
    assert found[object_, code].severity is severity
    assert found[object_, code].message
    assert _refused(found) == ({(object_, code)} if severity is Severity.REFUSED else set())


async def test_excluding_a_table_takes_its_refusal_away(pair: Pair) -> None:
    pair.source("CREATE TABLE t ()")
    assert _refused(await _check(pair)) == {("public.t", "no-columns")}
    assert _refused(await _check(pair, exclude=["public.t"])) == set()


async def test_a_foreign_key_out_of_the_group_is_refused(pair: Pair) -> None:
    pair.source("CREATE TABLE child (id int PRIMARY KEY, good int REFERENCES good)")
    assert _refused(await _check(pair)) == set()
    assert _refused(await _check(pair, exclude=["public.good"])) == {
        ("public.child", "foreign-key-leads-out")
    }


async def test_patterns_that_choose_nothing_are_refused(pair: Pair) -> None:
    assert ("group", "no-tables") in _refused(await _check(pair, include=["nothing.*"]))


# --- the target -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "seed", "object_", "code"),
    [
        ("", _EXPECT, "public.good", "not-on-target"),
        ("CREATE TABLE good (id int PRIMARY KEY, v text)", _CREATE, "public.good", "already-on-target"),
        (_CLEAN, _EXPECT, "public.good", "target-not-empty"),
        ("CREATE TABLE good (id int PRIMARY KEY)", _EXPECT, "public.good", "column-missing"),
        ("CREATE TABLE good (id int PRIMARY KEY, v bytea)", _EXPECT, "public.good", "column-type"),
        (
            "CREATE TABLE good (id int PRIMARY KEY, v text GENERATED ALWAYS AS ('x') STORED)",
            _EXPECT,
            "public.good",
            "column-generated",
        ),
    ],
)
async def test_a_target_that_does_not_fit_is_refused(
    pair: Pair, statement: str, seed: SeedSettings, object_: str, code: str
) -> None:
    if statement:
        pair.target(statement)
    assert (object_, code) in _refused(await _check(pair, seed))


async def test_a_target_that_fits_is_not(pair: Pair) -> None:
    pair.target("CREATE TABLE good (v text, more int NOT NULL DEFAULT 1, id int PRIMARY KEY)")
    found = await _check(pair, _EXPECT)
    assert _refused(found) == set() and ("public.good", "column-extra") in found


# --- servers and users ------------------------------------------------------------------------


async def test_a_server_that_can_not_be_a_source_is_refused(tmp_path: Path, west: EmbeddedServer) -> None:
    settings = {
        "wal_level": "replica",
        "max_wal_senders": "1",
        "max_replication_slots": "0",
        "max_prepared_transactions": "2",
    }
    with (
        EmbeddedServer(name="plain", settings=settings) as plain,
        database_pair(plain, west, tmp_path) as pair,
    ):
        pair.source(_CLEAN)
        pair.source("BEGIN; INSERT INTO good VALUES (2, 'y'); PREPARE TRANSACTION 'both'")
        found = await _check(pair)
        pair.source("ROLLBACK PREPARED 'both'")
        limits = {("source", "wal-level"), ("source", "no-sender-free"), ("source", "no-slot-free")}
        assert _refused(found) == limits
        assert found["source", "prepared-transactions"].severity is Severity.WARNING
        plain.stop()
        (plain.data / "standby.signal").touch()
        plain.start_again()
        assert _refused(await _check(pair)) == limits | {("source", "source-is-standby")}
        (plain.data / "standby.signal").unlink()
        plain.restart()


async def test_servers_of_old_are_refused(pair: Pair) -> None:
    """The one finding that no server here can provoke: the facts are made up."""
    settings = pair.stream(seed=_CREATE).settings
    ends = {
        version: (
            judge_source(SourceFacts(version=version), "bank", settings),
            judge_target([], TargetFacts(version=version), settings, seeded=False),
        )
        for version in (139999, 140000)
    }
    for found in ends[139999]:
        assert "server-too-old" in {finding.code for finding in found}
    for found in ends[140000]:
        assert "server-too-old" not in {finding.code for finding in found}


async def test_users_without_the_rights_are_refused(pair: Pair) -> None:
    name = f"weak_{pair.name}"
    for server in (pair.east, pair.west):
        server.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{EmbeddedServer.PASSWORD}'")
    try:
        stream = pair.stream(seed=_CREATE, delivery="sync", on_sync_loss="wait")
        weak = {
            node: DatabaseSettings(**{**_as_dict(database), "user": name})
            for node, database in stream.settings.databases.items()
        }
        stream.settings.databases.update(weak)
        refused = {
            (finding.object, finding.code)
            for finding in await KIND.check(stream)
            if finding.severity is Severity.REFUSED
        }
    finally:
        for server in (pair.east, pair.west):
            server.execute(f"DROP ROLE {name}")
    assert refused >= {
        ("source", "no-replication-privilege"),
        ("source", "no-alter-system"),
        ("public.good", "not-readable"),
        ("target", "no-superuser"),
    }


def _as_dict(settings: DatabaseSettings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in settings.__struct_fields__}


async def test_a_target_that_does_not_answer_is_named(pair: Pair) -> None:
    stream = pair.stream(seed=_CREATE)
    gone = {**_as_dict(stream.settings.databases["west"]), "port": 1}
    stream.settings.databases["west"] = DatabaseSettings(**gone)
    (refused,) = [finding for finding in await KIND.check(stream) if finding.severity is Severity.REFUSED]
    assert refused.object == "target" and str(pair.password_file) in refused.hint


async def test_a_copy_onto_itself_is_refused_and_nothing_is_to_be_dropped_for_it(pair: Pair) -> None:
    """By another name of the same server: the settings alone do not show it."""
    stream = pair.stream(seed=_CREATE)
    east = _as_dict(stream.settings.databases["east"])
    stream.settings.databases["west"] = DatabaseSettings(**{**east, "host": "localhost"})
    (refused,) = [finding for finding in await KIND.check(stream) if finding.severity is Severity.REFUSED]
    assert (refused.object, refused.code) == ("target", "same-database")
    assert "drop and empty nothing" in refused.hint


async def test_a_login_that_is_refused_is_told_from_a_server_that_is_away(pair: Pair) -> None:
    stream = pair.stream(seed=_CREATE)
    west = _as_dict(stream.settings.databases["west"])
    stream.settings.databases["west"] = DatabaseSettings(**{**west, "dbname": "no_such"})
    (refused,) = [finding for finding in await KIND.check(stream) if finding.severity is Severity.REFUSED]
    assert (refused.object, refused.code) == ("target", "target-refused")
    stream.settings.databases["west"] = DatabaseSettings(**{**west, "port": 1})
    (refused,) = [finding for finding in await KIND.check(stream) if finding.severity is Severity.REFUSED]
    assert (refused.object, refused.code) == ("target", "target-unreachable")


async def test_a_table_that_is_refused_is_not_said_to_be_changed(pair: Pair) -> None:
    pair.source("CREATE TABLE t ()")
    assert [code for object_, code in await _check(pair) if object_ == "public.t"] == ["no-columns"]


@pytest.mark.parametrize("first", ["", "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (500);"])
async def test_a_partitioned_table_without_a_key_is_refused_beforehand(pair: Pair, first: str) -> None:
    """Its next partition would have no identity, and once published refuse the source's own updates."""
    pair.source(f"CREATE TABLE p (id int) PARTITION BY RANGE (id); {first}")
    found = await _check(pair)
    assert ("public.p", "partitions-unfit") in _refused(found)
    assert ("public.p", "sets-identity-full") not in found


_GENERATED = "g int GENERATED ALWAYS AS (a * 2) STORED"


@pytest.mark.parametrize(
    "table",
    [
        f"CREATE TABLE t (a int, {_GENERATED})",
        f"CREATE TABLE t (a int PRIMARY KEY, {_GENERATED}); ALTER TABLE t REPLICA IDENTITY FULL",
        f"CREATE TABLE t (a int, {_GENERATED}, PRIMARY KEY (g))",
        f"CREATE TABLE t (a int NOT NULL, {_GENERATED} NOT NULL); CREATE UNIQUE INDEX i ON t (g);"
        "ALTER TABLE t REPLICA IDENTITY USING INDEX i",
        f"CREATE TABLE t (a int PRIMARY KEY, {_GENERATED}) PARTITION BY RANGE (a);"
        "CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (9); ALTER TABLE t1 REPLICA IDENTITY FULL",
    ],
)
async def test_a_row_told_by_a_generated_column_is_refused_and_never_published(
    pair: Pair, table: str
) -> None:
    """Published, the table would refuse its own users' updates."""
    pair.source(f"{table}; INSERT INTO t (a) VALUES (1)")
    found = await _check(pair)
    assert ("public.t", "identity-unpublished") in _refused(found)
    assert ("public.t", "sets-identity-full") not in found
    seed = KIND.seed_source(pair.stream())
    with pytest.raises(NotReplicable, match="generated column"):
        await seed.begin()
    await seed.close()
    pair.source("UPDATE t SET a = 2; DELETE FROM t")


async def test_a_key_beside_a_generated_column_is_none_of_it(pair: Pair) -> None:
    pair.source(f"CREATE TABLE t (a int PRIMARY KEY, {_GENERATED})")
    assert ("public.t", "identity-unpublished") not in _refused(await _check(pair))


async def test_a_partitioned_table_is_as_large_as_its_partitions(pair: Pair) -> None:
    pair.source(
        "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id);"
        "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (500);"
        "CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (500) TO (1000);"
        "INSERT INTO p SELECT generate_series(0, 999); ANALYZE p1, p2"
    )
    told = (await _check(pair))["public.p", "replicated"].message
    assert told.startswith("about 1000 rows, ") and not told.endswith(" 0 KiB")


async def test_somebody_elses_standbys_are_not_overwritten(tmp_path: Path, west: EmbeddedServer) -> None:
    with EmbeddedServer(name="standbys") as server, database_pair(server, west, tmp_path) as pair:
        pair.source(_CLEAN)
        server.execute("ALTER SYSTEM SET synchronous_standby_names = 'other'")
        server.execute("SELECT pg_reload_conf()")
        await until(lambda: server.execute("SHOW synchronous_standby_names") == [("other",)])
        found = await _check(pair, delivery="sync", on_sync_loss="wait")
        assert ("source", "foreign-standby-names") in _refused(found)
        assert ("source", "foreign-standby-names") not in _refused(await _check(pair))
        server.execute("ALTER SYSTEM RESET synchronous_standby_names")
        server.execute("SELECT pg_reload_conf()")
        await until(lambda: server.execute("SHOW synchronous_standby_names") == [("",)])
        found = await _check(pair, delivery="sync", on_sync_loss="wait")
        assert found["source", "sets-standby-names"].severity is Severity.CHANGE


async def test_looking_changes_nothing(pair: Pair) -> None:
    pair.source("CREATE TABLE keyless (v int); CREATE SEQUENCE s")

    def everything() -> list[Any]:
        return [
            *(_dumped(server, pair.name) for server in (pair.east, pair.west)),
            pair.source("SELECT slot_name FROM pg_replication_slots ORDER BY 1"),
            pair.source("SELECT pubname FROM pg_publication"),
            pair.target("SELECT roname FROM pg_replication_origin ORDER BY 1"),
            pair.source("SELECT * FROM pg_file_settings ORDER BY sourcefile, sourceline"),
        ]

    before = everything()
    await _check(pair)
    await _check(pair, delivery="sync", on_sync_loss="wait")
    assert everything() == before
    pair.source("ALTER TABLE keyless REPLICA IDENTITY FULL")
    assert everything() != before, "the control: a change would have been seen"


def _dumped(server: EmbeddedServer, database: str) -> str:
    command = [
        str(server.bin / "pg_dump"),
        "--schema-only",
        "--restrict-key=fixed",
        "-d",
        server.dsn(database),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


async def test_the_check_asks_as_much_of_many_tables_as_of_one(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a thousand tables take no longer than their rows in the catalogs."""
    asked = []
    execute = psycopg.AsyncConnection.execute

    async def counted(connection: Any, query: Any, *args: Any, **more: Any) -> Any:
        asked.append(query)
        return await execute(connection, query, *args, **more)

    monkeypatch.setattr(psycopg.AsyncConnection, "execute", counted)
    pair.target("CREATE TABLE good (id int PRIMARY KEY, v text)")
    await _check(pair, _EXPECT)
    few = len(asked)
    many = "; ".join(f"CREATE TABLE t{number} (id serial PRIMARY KEY)" for number in range(300))
    pair.source(many)
    pair.target(f"{many}; INSERT INTO t7 DEFAULT VALUES")
    asked.clear()
    found = await _check(pair, _EXPECT)
    assert len(asked) <= few + 2
    assert _refused(found) == {("public.t7", "target-not-empty")}


async def test_what_stands_around_the_databases_is_told(pair: Pair) -> None:
    pair.source("CREATE EXTENSION hstore; CREATE ROLE check_outside CREATEDB")
    try:
        found = await _check(pair)
        assert "CREATE EXTENSION hstore" in found["extension hstore", "outside-differs"].hint
        assert "CREATEDB" in found["role check_outside", "outside-differs"].hint
        assert found["group", "first-copy"].context["tables"] == 1
    finally:
        pair.source("DROP ROLE check_outside")


async def test_a_capture_lists_what_it_does_not_carry(pair: Pair) -> None:
    pair.source("CREATE UNLOGGED TABLE u (id int PRIMARY KEY); CREATE MATERIALIZED VIEW m AS SELECT 1 AS one")
    stream = pair.stream()
    seed = KIND.seed_source(stream)
    await seed.begin()
    await seed.close()
    async with captured(stream) as capture:
        assert capture.report()["left_behind"] == ["public.m", "public.u"]
