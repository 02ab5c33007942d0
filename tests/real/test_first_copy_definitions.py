"""A first copy that makes tables brings owners, grants, comments, statistics, and asks for what it needs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from tests.real.pg_cast import BulkTo, Pair, database_pair

from castling.config import SeedSettings
from castling.kinds.base import Severity, Stream
from castling.kinds.postgres.kind import KIND
from castling.testing.servers import EmbeddedServer

_SCHEMA = """
CREATE SCHEMA app AUTHORIZATION copy_owner;
CREATE TABLE app.t (id int PRIMARY KEY, kind text, v text);
INSERT INTO app.t SELECT i, i % 3, 'v' || i FROM generate_series(1, 3000) i;
ALTER TABLE app.t OWNER TO copy_owner;
GRANT SELECT, INSERT ON app.t TO copy_reader WITH GRANT OPTION;
GRANT UPDATE (v) ON app.t TO copy_reader;
GRANT USAGE ON SCHEMA app TO copy_reader;
ALTER DEFAULT PRIVILEGES FOR ROLE copy_owner IN SCHEMA app GRANT SELECT ON TABLES TO copy_reader;
COMMENT ON TABLE app.t IS 'the table';
COMMENT ON COLUMN app.t.v IS 'it''s v';
COMMENT ON CONSTRAINT t_pkey ON app.t IS 'the key';
ALTER TABLE app.t ALTER v SET STATISTICS 300;
CREATE STATISTICS app.linked ON kind, v FROM app.t;
ALTER STATISTICS app.linked OWNER TO copy_owner;
CREATE FUNCTION app.f(int) RETURNS int LANGUAGE sql AS 'SELECT $1';
REVOKE EXECUTE ON FUNCTION app.f FROM PUBLIC;
GRANT EXECUTE ON FUNCTION app.f TO copy_reader;
COMMENT ON FUNCTION app.f IS 'a function';
CREATE TYPE app.mood AS ENUM ('a'); ALTER TYPE app.mood OWNER TO copy_owner;
CREATE SEQUENCE app.s; GRANT USAGE ON SEQUENCE app.s TO copy_reader;
CREATE VIEW app.view AS SELECT id FROM app.t; ALTER VIEW app.view OWNER TO copy_owner;
CREATE MATERIALIZED VIEW app.made AS SELECT count(*) AS n FROM app.t;
CREATE UNLOGGED TABLE app.unlogged (id int PRIMARY KEY);
ALTER TABLE app.t ENABLE ROW LEVEL SECURITY;
CREATE POLICY mine ON app.t TO copy_reader USING (kind = '1');
"""
_ROLES = ("copy_owner", "copy_reader")


@pytest.fixture
def pair(east: EmbeddedServer, west: EmbeddedServer, tmp_path: Path) -> Iterator[Pair]:
    for role in _ROLES:
        east.execute(f"CREATE ROLE {role}")
    try:
        with database_pair(east, west, tmp_path) as made:
            made.source(_SCHEMA)
            yield made
    finally:
        for server in (east, west):
            for role in _ROLES:
                server.execute(f"DROP ROLE IF EXISTS {role}")


def _stream(pair: Pair, **seed: str) -> Stream:
    return pair.stream(seed=SeedSettings(schema="create", **seed))  # type: ignore[arg-type]


async def _seeded(stream: Stream) -> None:
    seed, target = KIND.seed_source(stream), KIND.seed_target(stream)
    try:
        await seed.begin()
        await seed.run(BulkTo(target))
    finally:
        await seed.close()
        await target.close()


async def test_what_is_missing_is_asked_for_beforehand_and_then_all_is_the_same(pair: Pair) -> None:
    stream = _stream(pair)
    refused = [each for each in await KIND.check(stream) if each.severity is Severity.REFUSED]
    assert {(each.object, each.code) for each in refused} == {
        (f"role {role}", "role-not-on-target") for role in _ROLES
    }
    for each in refused:
        pair.target(each.hint.removeprefix("on the target: ").partition(";")[0])
    assert not [each for each in await KIND.check(stream) if each.severity is Severity.REFUSED]
    await _seeded(stream)
    found = {each.object: each for each in await KIND.compare_schema(stream)}
    assert list(found) == ["schema"], found
    counted = "SELECT count(*) FROM pg_stats WHERE schemaname = 'app' AND tablename = 't'"
    assert pair.target(counted) == [(3,)]
    assert pair.target("SELECT count(*) FROM pg_stats_ext WHERE statistics_name = 'linked'") == [(1,)]


async def test_a_grant_that_gets_lost_is_noticed(pair: Pair) -> None:
    """The negative control: with "leave" the target's user owns it all, and the comparison says so."""
    stream = _stream(pair, owners="leave")
    # a policy names one of the roles: that one is needed all the same
    refused = [each for each in await KIND.check(stream) if each.severity is Severity.REFUSED]
    assert [each.object for each in refused] == ["role copy_reader"]
    pair.target("CREATE ROLE copy_reader")
    await _seeded(stream)
    objects = {each.object for each in await KIND.compare_schema(stream)}
    assert {"owner app.t", "grant app.t to copy_reader", "grant app.t.v to copy_reader"} <= objects


async def test_a_tablespace_that_is_missing_is_asked_for(pair: Pair) -> None:
    with psycopg.connect(pair.east.dsn("postgres"), autocommit=True) as connection:
        connection.execute("SET allow_in_place_tablespaces = on")
        connection.execute("CREATE TABLESPACE aside LOCATION ''")
    try:
        pair.source("CREATE TABLE app.aside (id int PRIMARY KEY) TABLESPACE aside")
        found = {(each.object, each.code) for each in await KIND.check(_stream(pair))}
        assert ("tablespace aside", "tablespace-not-on-target") in found
    finally:
        pair.source("DROP TABLE app.aside")
        pair.east.execute("DROP TABLESPACE aside")
