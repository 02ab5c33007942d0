"""Unlogged tables and materialized views: listed, and copied on demand as they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.real.apply_cast import Follower
from tests.real.pg_cast import Pair, database_pair

from castling.kinds.postgres.kind import KIND
from castling.testing.servers import EmbeddedServer

_TABLES = """
CREATE TYPE mood AS ENUM ('calm', 'so so'); CREATE TYPE couple AS (a int, b text);
CREATE TABLE carried (id int PRIMARY KEY);
CREATE UNLOGGED TABLE plain (id int PRIMARY KEY, v text, up text GENERATED ALWAYS AS (upper(v)) STORED);
CREATE UNLOGGED TABLE own_types (id int GENERATED ALWAYS AS IDENTITY, m mood, c couple, d date);
CREATE MATERIALIZED VIEW made AS SELECT count(*) AS n FROM carried;
"""


@pytest.fixture
def pair(east: EmbeddedServer, west: EmbeddedServer, tmp_path: Path) -> Iterator[Pair]:
    with database_pair(east, west, tmp_path) as made:
        made.source(_TABLES)
        made.target(_TABLES)
        yield made


async def test_they_are_copied_on_demand_and_not_before(pair: Pair) -> None:
    follower = Follower(pair)
    await follower.begin()
    pair.source(
        "INSERT INTO plain SELECT i, repeat('v', i) FROM generate_series(1, 2000) i;"
        "INSERT INTO carried VALUES (1), (2);"
        "INSERT INTO own_types (m, c, d)"
        " VALUES ('so so', ROW(1, 'x,''y'), '2026-01-31'), (NULL, NULL, '0044-03-15 BC')"
    )
    await follower.follow()
    assert pair.target("SELECT count(*) FROM plain") == [(0,)]
    copied = await KIND.copy_left_behind(pair.stream())
    assert [(each.object, each.rows, each.problem) for each in copied] == [
        ("public.own_types", 2, ""),
        ("public.plain", 2000, ""),
        ("public.made", None, ""),
    ]
    for table in ("plain", "own_types"):
        everything = f"SELECT t::text FROM {table} t ORDER BY id"
        assert pair.target(everything) == pair.source(everything)
    assert pair.target("SELECT n FROM made") == [(2,)]
    # again: what the source has now, and nothing of before
    pair.source("DELETE FROM plain WHERE id > 5")
    await KIND.copy_left_behind(pair.stream())
    assert pair.target("SELECT count(*) FROM plain") == [(5,)]


async def test_one_that_fails_keeps_its_rows_and_no_other_back(pair: Pair) -> None:
    pair.target(
        "INSERT INTO plain VALUES (9, 'before'); ALTER TABLE plain ADD CHECK (id <> 7); DROP TABLE own_types"
    )
    pair.source("INSERT INTO plain SELECT i, 'v' FROM generate_series(1, 10) i")
    copied = {each.object: each for each in await KIND.copy_left_behind(pair.stream())}
    assert "violates check constraint" in copied["public.plain"].problem
    assert copied["public.own_types"].problem == "is not on the target"
    assert copied["public.made"].problem == ""
    assert pair.target("SELECT id FROM plain") == [(9,)]


async def test_only_the_groups_are_copied(pair: Pair) -> None:
    pair.source("INSERT INTO plain VALUES (1, 'v')")
    copied = await KIND.copy_left_behind(pair.stream(exclude=["public.plain", "public.made"]))
    assert [each.object for each in copied] == ["public.own_types"]
    assert pair.target("SELECT count(*) FROM plain") == [(0,)]
