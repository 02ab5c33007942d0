"""The comparison that every other proof rests on: it must notice whatever can differ."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.real.pg_cast import Pair, database_pair

from castling.testing.bank import create_bank
from castling.testing.compare import Comparison, compare
from castling.testing.servers import EmbeddedServer

_TABLES = """
    CREATE TABLE keyed (id int PRIMARY KEY, v text, n numeric);
    CREATE TABLE keyless (v text);
    CREATE TABLE "Ünusual ""name"" x" ("a column" timestamptz);
    INSERT INTO keyed SELECT i, 'v' || i, i * 0.1 FROM generate_series(1, 50) i;
    INSERT INTO keyless VALUES ('twice'), ('twice'), (NULL), ('');
    INSERT INTO "Ünusual ""name"" x" VALUES ('2026-01-01 12:00+02');
"""


@pytest.fixture
def pair(east: EmbeddedServer, west: EmbeddedServer, tmp_path: Path) -> Iterator[Pair]:
    with database_pair(east, west, tmp_path) as made:
        made.source(_TABLES)
        made.target(_TABLES)
        yield made


def _compared(pair: Pair) -> Comparison:
    return compare(pair.east.dsn(pair.name), pair.west.dsn(pair.name))


def test_equal_databases_are_equal(pair: Pair) -> None:
    found = _compared(pair)
    assert found.equal and found.tables == 3 and found.rows == 55


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE keyed SET v = 'other' WHERE id = 7",
        "UPDATE keyed SET v = NULL WHERE id = 7",
        "UPDATE keyed SET n = 0.70 WHERE id = 7",  # equal by type, not by text: scale is data
        "DELETE FROM keyed WHERE id = 50",
        "INSERT INTO keyed VALUES (51, NULL, NULL)",
        "UPDATE keyed SET id = 60 WHERE id = 50",
        "DELETE FROM keyless WHERE ctid = (SELECT min(ctid) FROM keyless WHERE v = 'twice')",
        "INSERT INTO keyless VALUES ('twice')",
        "UPDATE keyless SET v = '' WHERE v IS NULL",
        "UPDATE keyless SET v = NULL WHERE v = ''",
        'UPDATE "Ünusual ""name"" x" SET "a column" = "a column" + \'1 microsecond\'',
        "DROP TABLE keyless",
        "CREATE TABLE more (v int)",
        "ALTER TABLE keyed ADD COLUMN c int",
        "ALTER TABLE keyed RENAME COLUMN v TO w",
    ],
)
@pytest.mark.parametrize("side", ["first", "second"])
def test_every_difference_is_noticed(pair: Pair, change: str, side: str) -> None:
    (pair.source if side == "first" else pair.target)(change)
    found = _compared(pair)
    assert len(found.differences) == 1 and not found.equal


def test_two_rows_with_their_values_exchanged_are_noticed(pair: Pair) -> None:
    """What a sum over columns instead of over rows would not see."""
    pair.target("UPDATE keyed SET v = CASE id WHEN 1 THEN 'v2' ELSE 'v1' END WHERE id IN (1, 2)")
    rows = _compared(pair).differences[0].rows
    assert {(side, text.split(" #")[0]) for side, text, _ in rows} == {
        ("first", "(1,0.1,v1)"),
        ("first", "(2,0.2,v2)"),
        ("second", "(1,0.1,v2)"),
        ("second", "(2,0.2,v1)"),
    }


def test_the_order_of_columns_and_rows_is_no_difference(pair: Pair) -> None:
    pair.target("DROP TABLE keyed; CREATE TABLE keyed (n numeric, v text, id int PRIMARY KEY)")
    pair.target("INSERT INTO keyed (id, v, n) SELECT i, 'v' || i, i * 0.1 FROM generate_series(50, 1, -1) i")
    assert _compared(pair).equal


def test_nothing_compared_is_not_equal(east: EmbeddedServer, west: EmbeddedServer, tmp_path: Path) -> None:
    with database_pair(east, west, tmp_path) as pair:
        found = _compared(pair)
        assert found.tables == 0 and not found.equal


def test_the_bank_is_compared_whole(east: EmbeddedServer, west: EmbeddedServer, tmp_path: Path) -> None:
    with database_pair(east, west, tmp_path) as pair:
        for server in (east, west):
            create_bank(server.dsn(pair.name), accounts=100)
        found = _compared(pair)
        assert found.tables == 8
        # each side opened its accounts at its own time
        assert [difference.table for difference in found.differences] == ["public.account", "public.history"]
