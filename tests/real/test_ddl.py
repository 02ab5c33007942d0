"""What carries changes of the schema keeps its promises when something goes wrong, or somebody means ill."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.real.apply_cast import Follower
from tests.real.pg_cast import BulkTo, Pair, captured, database_pair
from tests.real.resync_cast import applied, asked, copied, held

from castling.apply.schedule import Limits
from castling.config import SeedSettings
from castling.errors import ContinuityLost, TargetError
from castling.kinds.base import Severity
from castling.kinds.postgres.changes import Message
from castling.kinds.postgres.facts import SourceFacts
from castling.kinds.postgres.judge import judge_source
from castling.kinds.postgres.kind import KIND
from castling.kinds.postgres.lanes_target import LanesTarget
from castling.testing.servers import EmbeddedServer

_TABLES = "CREATE TABLE good (id int PRIMARY KEY, v text); CREATE TABLE bad (id int PRIMARY KEY, v text)"


@pytest.fixture
def pair(east: EmbeddedServer, west: EmbeddedServer, tmp_path: Path) -> Iterator[Pair]:
    with database_pair(east, west, tmp_path) as made:
        made.source(_TABLES)
        made.target(_TABLES)
        yield made


async def _follower(pair: Pair, **settings: Any) -> Follower:
    settings.setdefault("on_error", "hold")
    follower = Follower(pair, ddl="carry", **settings)
    await follower.begin()
    return follower


async def _follow(follower: Follower) -> None:
    """All that was committed is applied, and what has to be copied is."""
    for _ in range(8):
        await follower.capture()
        await applied(follower)
        if not await copied(follower):
            return
    raise AssertionError("tables are copied for ever")


async def _arrived(follower: Follower) -> None:
    await _follow(follower)
    assert await held(follower) == []
    follower.assert_equal()


def _told(follower: Follower) -> list[Message]:
    return [
        change
        for _, changes in follower.journal.commits()
        for change in changes
        if isinstance(change, Message) and change.prefix == "castling:ddl"
    ]


def _aside(pair: Pair) -> list[str]:
    return [row[0] for row in pair.target("SELECT reason FROM castling.schema_changes_aside ORDER BY 1")]


@contextlib.contextmanager
def _role(pair: Pair, name: str) -> Iterator[None]:
    for server in (pair.east, pair.west):
        server.execute(f"CREATE ROLE {name}")
    try:
        yield
    finally:
        for server in (pair.east, pair.west):
            server.execute(f"DROP OWNED BY {name}", pair.name)
            server.execute(f"DROP ROLE {name}")


# --- the beginning and the end ----------------------------------------------------------------


async def test_a_first_copy_leaves_the_triggers_where_they_belong(pair: Pair) -> None:
    pair.target("DROP TABLE good, bad")
    follower = Follower(pair, ddl="carry", seed=SeedSettings(schema="create"), on_error="hold")
    found = {(each.object, each.code): each for each in await KIND.check(follower.stream)}
    change = found["schema", "installs-schema-triggers"]
    assert (
        change.severity is Severity.CHANGE
        and "CREATE EVENT TRIGGER castling_ddl_end" in change.context["sql"]
    )
    source, target = KIND.seed_source(follower.stream), follower.seed_target
    await source.begin()
    await source.run(BulkTo(target))
    await source.close()
    assert ("schema", "ddl-carried") in {
        (each.object, each.code) for each in await KIND.check(follower.stream)
    }
    pair.source("CREATE TABLE later (id int PRIMARY KEY); INSERT INTO later VALUES (1)")
    await _arrived(follower)
    assert pair.target("SELECT 1 FROM pg_event_trigger") == []
    assert pair.target("SELECT to_regnamespace('castling_ddl')") == [(None,)]
    assert pair.target("SELECT tables FROM castling.seed") == [
        (["public.bad", "public.good", "public.later"],)
    ]
    assert [each.object for each in await KIND.compare_schema(follower.stream)] == ["schema"]
    await source.begin()  # a second copy may empty what came since
    await source.run(BulkTo(target))
    await source.close()
    follower.journal.records.clear()
    pair.source("INSERT INTO later VALUES (2); ALTER TABLE later ADD v int")
    await _arrived(follower)
    await KIND.forget(follower.stream)
    assert pair.source("SELECT 1 FROM pg_event_trigger") == []
    assert pair.source("SELECT to_regnamespace('castling_ddl')") == [(None,)]
    pair.source("CREATE TABLE afterwards (id int PRIMARY KEY)")  # nothing is left that could refuse it


async def test_a_user_who_can_not_make_event_triggers_is_refused_by_name(pair: Pair) -> None:
    found = judge_source(
        SourceFacts(version=180000, may_replicate=True), "g", Follower(pair, ddl="carry").stream.settings
    )
    assert ("schema", "no-superuser") in {(each.object, each.code) for each in found}


async def test_a_running_group_begins_to_carry_and_ends_it(pair: Pair) -> None:
    plain = Follower(pair, ddl="stop", on_error="hold")
    await plain.begin()
    await plain.follow()
    assert pair.source("SELECT 1 FROM pg_event_trigger") == []
    carrying = Follower(pair, ddl="carry", on_error="hold")
    carrying.journal = plain.journal
    await carrying.capture()
    pair.source("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
    await _arrived(carrying)
    plain = Follower(pair, ddl="stop", on_error="hold")
    plain.journal = carrying.journal
    await plain.capture()
    assert pair.source("SELECT 1 FROM pg_event_trigger") == []
    pair.source("INSERT INTO t VALUES (2)")
    await _arrived(plain)


# --- who may say what -------------------------------------------------------------------------


async def test_a_message_that_somebody_else_wrote_is_not_believed(pair: Pair) -> None:
    follower = await _follower(pair)
    pair.source("CREATE TABLE t (id int PRIMARY KEY)")
    await follower.capture()
    (real,) = _told(follower)
    forged = real.content.replace(b"CREATE TABLE t", b"CREATE TABLE u").hex()
    pair.source(f"SELECT pg_logical_emit_message(true, 'castling:ddl', '\\x{forged}'::bytea)")
    async with captured(follower.stream, follower.journal) as capture:
        await follower.journal.read_until(capture, pair.end_of_log())
        assert [each["code"] for each in capture.report()["warnings"]] == ["schema-changes-forged"]
    assert _told(follower) == [real]
    await _arrived(follower)


async def test_nobody_calls_what_tells(pair: Pair) -> None:
    await _follower(pair)
    pair.source("CREATE ROLE castling_mallory")
    try:
        with pytest.raises(psycopg.errors.Error):
            pair.source(
                "SET ROLE castling_mallory;"
                " SELECT castling_ddl.tell('ddl_command_end', 'CREATE TABLE', 'castling', '{}')"
            )
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            pair.source("SET ROLE castling_mallory; SELECT key FROM castling_ddl.key")
    finally:
        pair.source("DROP ROLE castling_mallory")


_EVIL = """
    CREATE FUNCTION evil() RETURNS int LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM castling_ddl.tell('ddl_command_end', 'CREATE TABLE', 'castling', '{public}');
        RETURN 1;
    END $$;
    CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1);
    ALTER TABLE t ADD c int DEFAULT evil()
"""


async def test_a_function_that_runs_meanwhile_can_not_speak_for_another_role(pair: Pair) -> None:
    await _follower(pair)
    with pytest.raises(psycopg.errors.RaiseException, match=r"called by castling_ddl\.ended only"):
        pair.source(_EVIL)


_CLIMBS = """
    GRANT CREATE ON SCHEMA public TO {role}; SET ROLE {role};
    CREATE FUNCTION climb() RETURNS int LANGUAGE plpgsql AS $$
    BEGIN
        BEGIN
            PERFORM set_config('role', 'none', false);
            EXECUTE 'CREATE ROLE castling_climbed SUPERUSER';
        EXCEPTION WHEN OTHERS THEN NULL;
        END;
        RETURN 1;
    END $$;
    CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1);
    ALTER TABLE t ADD c int DEFAULT climb(); RESET ROLE
"""


async def test_code_of_the_sources_users_runs_as_they_do(pair: Pair) -> None:
    """In a session of their own it could become nobody else; nor may it on the target, where the session is a
    superuser's. The rows that it computed are copied."""
    follower = await _follower(pair)
    with _role(pair, "castling_climber"):
        dsn = pair.east.dsn(pair.name)
        with psycopg.connect(dsn, autocommit=True) as session:
            for statement in _CLIMBS.format(role="castling_climber").split(";\n    CREATE TABLE"):
                session.execute((("CREATE TABLE" if "int PRIMARY" in statement else "") + statement).encode())
        pair.source("DROP ROLE IF EXISTS castling_climbed")  # there the session's own user may
        await _follow(follower)
        assert pair.target("SELECT 1 FROM pg_roles WHERE rolname = 'castling_climbed'") == []
        assert pair.target("SELECT relowner::regrole::text FROM pg_class WHERE relname = 't'") == [
            ("castling_climber",)
        ]
        pair.source("DROP TABLE t; DROP FUNCTION climb()")
        await _arrived(follower)


# --- what the target refuses ------------------------------------------------------------------


async def test_a_refused_change_holds_its_table_and_a_release_makes_it(pair: Pair) -> None:
    follower = await _follower(pair)
    pair.target("CREATE VIEW uses AS SELECT v FROM bad")
    pair.source("INSERT INTO bad VALUES (1, 'x'); ALTER TABLE bad DROP COLUMN v; INSERT INTO bad VALUES (2)")
    pair.source("INSERT INTO good VALUES (1, 'x')")
    await _follow(follower)
    (hold,) = await held(follower)
    assert hold.part == "public.bad" and "ALTER TABLE bad DROP COLUMN v" in hold.reason
    assert pair.target("SELECT count(*) FROM good") == [(1,)]
    pair.source("ALTER TABLE bad ADD w int DEFAULT 4; INSERT INTO bad VALUES (3)")
    await _follow(follower)
    pair.target("DROP VIEW uses")
    await asked(follower, "release")
    await _arrived(follower)


async def test_a_change_that_was_made_by_hand_is_taken_as_made(pair: Pair) -> None:
    follower = await _follower(pair)
    pair.target("ALTER TABLE good ADD w int; CREATE TABLE t (id int PRIMARY KEY, v text)")
    pair.source("ALTER TABLE good ADD w int; CREATE TABLE t (id int PRIMARY KEY, v text)")
    pair.source("INSERT INTO good VALUES (1, 'x', 2); INSERT INTO t VALUES (1, 'y')")
    await _arrived(follower)


async def test_one_that_was_made_otherwise_is_not(pair: Pair) -> None:
    follower = await _follower(pair)
    pair.target("ALTER TABLE good ADD w text")
    pair.source("ALTER TABLE good ADD w int")
    await _follow(follower)
    (hold,) = await held(follower)
    assert "already exists" in hold.reason


async def test_a_view_that_can_not_be_made_lets_the_rows_go_on(pair: Pair) -> None:
    follower = await _follower(pair)
    pair.target("CREATE TYPE v AS (a int)")  # its name is taken
    pair.source("CREATE VIEW v AS SELECT * FROM good; INSERT INTO good VALUES (1, 'x')")
    await _arrived(follower)
    (reason,) = _aside(pair)
    assert "CREATE VIEW v AS SELECT * FROM good" in reason
    assert [each["code"] for each in follower.reports[-1]["warnings"]] == ["schema-changes-aside"]


async def test_on_error_stop_stops_and_names_the_statement(pair: Pair) -> None:
    follower = await _follower(pair, on_error="stop")
    pair.target("CREATE TYPE v AS (a int)")
    pair.source("CREATE VIEW v AS SELECT * FROM good")
    await follower.capture()
    with pytest.raises(TargetError, match="CREATE VIEW v AS"):
        await follower.apply()


# --- tables that do not stand where the stream is ---------------------------------------------


async def test_a_change_of_a_table_on_hold_waits_with_its_rows(pair: Pair) -> None:
    follower = await _follower(pair)
    pair.source("INSERT INTO bad VALUES (1, 'x')")
    await _follow(follower)
    await asked(follower, "hold", "public.bad")
    pair.source("INSERT INTO bad VALUES (2, 'y'); COMMIT; ALTER TABLE bad RENAME v TO w; COMMIT")
    pair.source("UPDATE bad SET w = 'z' WHERE id = 2; INSERT INTO good VALUES (1, 'g')")
    await _follow(follower)
    assert pair.target("SELECT id, v FROM bad") == [(1, "x")]
    assert pair.target("SELECT count(*) FROM good") == [(1,)]
    await asked(follower, "release")
    await _arrived(follower)


async def test_a_copy_of_a_table_on_hold_brings_its_shape_too(pair: Pair) -> None:
    follower = await _follower(pair)
    await asked(follower, "hold", "public.bad")
    pair.source("INSERT INTO bad VALUES (1, 'x'); COMMIT; ALTER TABLE bad ADD w int DEFAULT 1; COMMIT")
    pair.source("ALTER TABLE bad DROP v; INSERT INTO bad VALUES (3, 4)")
    await _follow(follower)
    pair.target("INSERT INTO bad VALUES (1, 'in the way')")
    await asked(follower, "resync", "public.bad")
    await _arrived(follower)


async def test_tables_that_one_change_concerns_wait_for_each_other(pair: Pair) -> None:
    parts = "CREATE TABLE p (a int PRIMARY KEY, v text) PARTITION BY RANGE (a)"
    for number in (0, 1):
        parts += f"; CREATE TABLE p{number} PARTITION OF p FOR VALUES FROM ({number}0) TO ({number + 1}0)"
    for side in (pair.source, pair.target):
        side(parts)
    follower = await _follower(pair)
    await _follow(follower)
    await asked(follower, "hold", "public.p0")
    pair.source("INSERT INTO p VALUES (1, 'x'), (11, 'y'); COMMIT; ALTER TABLE p ADD w int; COMMIT")
    pair.source("INSERT INTO p VALUES (2, 'x', 3), (12, 'y', 4); INSERT INTO good VALUES (1)")
    await _follow(follower)
    assert {each.part for each in await held(follower)} == {"public.p0", "public.p1"}
    assert pair.target("SELECT count(*) FROM good") == [(1,)]
    await asked(follower, "release", "public.p1")
    await _follow(follower)
    assert {each.part for each in await held(follower)} == {"public.p0", "public.p1"}
    await asked(follower, "release")
    await _arrived(follower)


async def test_a_table_on_hold_that_is_dropped_is_held_no_more(pair: Pair) -> None:
    follower = await _follower(pair)
    await _follow(follower)
    await asked(follower, "hold", "public.bad")
    pair.source("INSERT INTO bad VALUES (1, 'x'); DROP TABLE bad; CREATE TABLE bad (other text PRIMARY KEY)")
    pair.source("INSERT INTO bad VALUES ('new')")
    await _arrived(follower)


# --- what is published ------------------------------------------------------------------------


async def test_tables_that_the_patterns_do_not_choose_stay_away(pair: Pair) -> None:
    follower = await _follower(pair, exclude=["public.private*"])
    pair.source("CREATE TABLE private_one (id int PRIMARY KEY); INSERT INTO private_one VALUES (1)")
    pair.source(
        "ALTER TABLE private_one ADD v int; DROP TABLE private_one; CREATE TABLE t (id int PRIMARY KEY)"
    )
    pair.source("CREATE TABLE private_two (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
    await _follow(follower)
    assert await held(follower) == [] and _aside(pair) == []
    assert [each.table for each in follower.compared().differences] == ["public.private_two"]


async def test_a_publication_that_somebody_else_changed_is_noticed(pair: Pair) -> None:
    pair.source("CREATE TABLE private (id int PRIMARY KEY)")
    follower = await _follower(pair, exclude=["public.private"])
    pair.source("CREATE TABLE t (id int PRIMARY KEY)")
    await _follow(follower)
    name = pair.source("SELECT pubname FROM pg_publication")[0][0]
    for change in ("ADD TABLE private", "DROP TABLE t"):
        pair.source(f"ALTER PUBLICATION {name} {change}")
        with pytest.raises(ContinuityLost):
            await follower.capture()
        pair.source(
            f"ALTER PUBLICATION {name} {change.replace('ADD', 'DROP') if 'ADD' in change else 'ADD TABLE t'}"
        )
        await follower.capture()


async def test_a_table_that_no_trigger_saw_is_published_and_copied(pair: Pair) -> None:
    follower = await _follower(pair)
    pair.source("SET session_replication_role = replica; CREATE TABLE t (id int PRIMARY KEY, v text)")
    pair.source("INSERT INTO t VALUES (1, 'before')")
    await follower.capture()
    pair.source("INSERT INTO t VALUES (2, 'after')")
    await _arrived(follower)


async def test_triggers_that_are_gone_are_made_again_and_it_is_said(pair: Pair) -> None:
    follower = await _follower(pair)
    async with captured(follower.stream, follower.journal) as capture:
        pair.source("DROP EVENT TRIGGER castling_ddl_end")
        await capture._look(capture._session)
        assert [each["code"] for each in capture.report()["warnings"]] == ["schema-changes-missed"]
    pair.source("CREATE TABLE t (id int PRIMARY KEY)")
    await _arrived(follower)


async def test_a_statement_does_not_wait_for_the_publication(pair: Pair) -> None:
    """Another transaction that makes a table keeps the publication locked for as long as it lasts."""
    follower = await _follower(pair)
    with (
        psycopg.connect(pair.east.dsn(pair.name)) as first,
        psycopg.connect(pair.east.dsn(pair.name)) as second,
    ):
        first.execute("CREATE TABLE one (id int PRIMARY KEY)")
        second.execute("SET lock_timeout = '20s'")
        second.execute("CREATE TABLE two (id int PRIMARY KEY)")
        second.execute("INSERT INTO two VALUES (1)")
        second.commit()
        first.execute("INSERT INTO one VALUES (1)")
        first.commit()
    await follower.capture()
    pair.source("INSERT INTO two VALUES (2)")
    await _arrived(follower)


async def test_publishing_never_refuses_an_update_on_the_source(pair: Pair) -> None:
    """Rows without a key are told as a whole, and generated columns are not published."""
    follower = await _follower(pair)
    pair.source(
        "CREATE TABLE t (a int, twice int GENERATED ALWAYS AS (a * 2) STORED); INSERT INTO t VALUES (1)"
    )
    pair.source("ALTER TABLE good ADD made int GENERATED ALWAYS AS (id) STORED; INSERT INTO good VALUES (1)")
    pair.source("ALTER TABLE good DROP CONSTRAINT good_pkey; INSERT INTO good VALUES (2)")
    pair.source("UPDATE t SET a = 2; UPDATE good SET v = 'x'")
    await _follow(follower)
    assert {(each.part, each.state) for each in await held(follower)} == {
        ("public.t", "lost"),
        ("public.good", "lost"),
    }
    pair.source("ALTER TABLE t ADD PRIMARY KEY (a); ALTER TABLE good ADD PRIMARY KEY (id)")
    pair.source("UPDATE t SET a = 3; UPDATE good SET v = 'y' WHERE id = 1")
    await _arrived(follower)


async def test_a_change_between_a_copy_and_the_stream_is_made(pair: Pair) -> None:
    """The copy is of a later moment than the stream; what it jumps over are rows, not definitions."""
    follower = await _follower(pair)
    await _follow(follower)
    pair.source("INSERT INTO bad VALUES (1, 'x'), (2, 'y')")
    await asked(follower, "resync", "public.bad")
    await follower.capture()
    await applied(follower)
    pair.source("CREATE INDEX later ON bad (v); COMMENT ON TABLE bad IS 'later'; COMMIT")
    pair.source("ALTER TABLE bad DROP v; ALTER TABLE bad ADD v text; UPDATE bad SET v = 'new' WHERE id = 1")
    assert await copied(follower), "of a view that has all this already"
    await _arrived(follower)
    assert pair.target("SELECT obj_description('bad'::regclass), to_regclass('public.bad_pkey')::text") == [
        ("later", "bad_pkey")
    ]


# --- what breaks on the source ----------------------------------------------------------------


async def test_a_trigger_that_fails_refuses_nobody_and_is_loud(pair: Pair) -> None:
    follower = await _follower(pair)
    pair.source("ALTER TABLE castling_ddl.key RENAME TO keys")
    pair.source("ALTER TABLE good ADD w int; INSERT INTO good VALUES (1, 'x', 2)")  # made all the same
    pair.source("ALTER TABLE castling_ddl.keys RENAME TO key")
    await follower.capture()
    await applied(follower)
    assert any("can't be carried (ALTER TABLE)" in each for each in _aside(pair))
    assert [each.part for each in await held(follower)] == ["public.good"]


async def test_users_need_no_right_to_it(pair: Pair) -> None:
    follower = await _follower(pair)
    with _role(pair, "castling_user"):
        pair.source("GRANT CREATE ON SCHEMA public TO castling_user")
        pair.source(
            "SET ROLE castling_user; CREATE TABLE mine (id int PRIMARY KEY); INSERT INTO mine VALUES (1)"
        )
        pair.source("SET ROLE castling_user; ALTER TABLE mine ADD v int; INSERT INTO mine VALUES (2, 3)")
        await _arrived(follower)
        pair.source("DROP TABLE mine")
        await _arrived(follower)


async def test_what_is_temporary_is_not_told(pair: Pair) -> None:
    follower = await _follower(pair)
    pair.source(
        "CREATE TEMP TABLE t (id serial PRIMARY KEY); CREATE INDEX ON t (id);"
        "CREATE TEMP TABLE u AS SELECT 1 AS a;"
        "CREATE TEMP VIEW v AS SELECT * FROM t; ALTER TABLE t ADD w int DEFAULT random() * 5; DROP VIEW v;"
        "COMMENT ON TABLE t IS 'x'; GRANT SELECT ON t TO PUBLIC; DROP TABLE t; DISCARD TEMP"
    )
    await follower.capture()
    assert [message.content for message in _told(follower) if b"GRANT" not in message.content] == []


# --- the comparison itself --------------------------------------------------------------------


async def test_the_comparison_notices_a_message_that_is_left_out(pair: Pair) -> None:
    follower = await _follower(pair)
    pair.source("ALTER TABLE good ADD w int DEFAULT 3")
    await follower.capture()
    for record in follower.journal.records:
        object.__setattr__(record, "payload", record.payload.replace(b"castling:ddl", b"castling.ddl"))
    await applied(follower)
    assert [each.what for each in follower.compared().differences] == ["the columns differ"]


async def test_a_table_that_is_not_published_is_noticed(pair: Pair) -> None:
    follower = await _follower(pair)
    pair.source("SET session_replication_role = replica; CREATE TABLE t (id int PRIMARY KEY)")
    pair.target("CREATE TABLE t (id int PRIMARY KEY)")
    pair.source("INSERT INTO t VALUES (1)")
    stopped = Follower(pair, ddl="stop", on_error="hold")
    stopped.journal = follower.journal
    async with captured(stopped.stream, stopped.journal) as capture:
        assert capture.report()["unprotected"] == ["public.t"]
        await stopped.journal.read_until(capture, pair.end_of_log())
    await applied(stopped)
    assert [each.table for each in stopped.compared().differences] == ["public.t"]


async def test_lanes_end_before_a_change_and_begin_anew_after_it(pair: Pair) -> None:
    for side in (pair.source, pair.target):
        side("CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TABLE felt (id int PRIMARY KEY, m mood)")
    follower = await _follower(pair)
    many = "INSERT INTO felt SELECT i, 'ok' FROM generate_series({0}, {0} + 30) i; COMMIT;"
    many += "INSERT INTO good SELECT i, 'x' FROM generate_series({0}, {0} + 30) i; COMMIT;"
    many += "UPDATE felt SET m = 'sad' WHERE id % 2 = 0; COMMIT; DELETE FROM good WHERE id % 3 = 0; COMMIT"
    pair.source(many.format(100))
    pair.source("ALTER TABLE felt ALTER m TYPE text; DROP TYPE mood; CREATE TABLE t (id int PRIMARY KEY)")
    pair.source("INSERT INTO t VALUES (1)")
    pair.source(many.format(200))
    await follower.capture()
    settings = follower.stream.settings.databases["west"]

    def lanes() -> LanesTarget:
        return LanesTarget(follower.target(), follower.stream.group, settings, 2)

    await follower.apply(limits=Limits(changes=20), target=lanes)
    assert len(follower.reports[-1]["lanes"]) == 2
    follower.assert_equal()
