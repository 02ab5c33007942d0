"""What an UPDATE or DELETE on the target can't say as the source said it.

A column GENERATED ALWAYS AS IDENTITY can be set to DEFAULT and to nothing else; a statement on a
table also means the tables that inherit from it; a narrower column takes values and rounds them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.real.pg_cast import BulkTo, Journal, Pair, captured, database_pair

from castling.config import SeedSettings
from castling.errors import TargetDiverged, TargetError
from castling.kinds.base import Piece, Stream
from castling.kinds.postgres.kind import KIND
from castling.testing.compare import compare
from castling.testing.servers import EmbeddedServer

_TABLES = """
    CREATE TABLE keyed (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text, long text);
    CREATE TABLE beside (k int PRIMARY KEY, id int GENERATED ALWAYS AS IDENTITY UNIQUE, v text);
    CREATE TABLE whole (id int GENERATED ALWAYS AS IDENTITY, v text);
    ALTER TABLE whole REPLICA IDENTITY FULL;
    CREATE TABLE lone (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY);
    ALTER TABLE keyed ALTER long SET STORAGE EXTERNAL;
    CREATE TABLE bare (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, long text);
    ALTER TABLE bare ALTER long SET STORAGE EXTERNAL;
    CREATE TABLE priced (id int PRIMARY KEY, price numeric(10, 2));
    INSERT INTO priced VALUES (1, 0);
    CREATE TABLE parent (id int PRIMARY KEY, v text);
    CREATE TABLE child (PRIMARY KEY (id)) INHERITS (parent);
    CREATE TABLE loose (id int, v text);
    CREATE TABLE looser () INHERITS (loose);
    INSERT INTO looser SELECT i, 'same' FROM generate_series(1, 30) i;
    INSERT INTO loose SELECT i, 'same' FROM generate_series(1, 30) i;
    INSERT INTO child SELECT i, 'before' FROM generate_series(1, 30) i;
    INSERT INTO parent SELECT i, 'before' FROM generate_series(1, 30) i;
    INSERT INTO bare (long) SELECT repeat('x', 5000) FROM generate_series(1, 30) i;
    INSERT INTO keyed (v, long) SELECT i, repeat('x', 5000) FROM generate_series(1, 30) i;
    INSERT INTO beside (k, v) SELECT i, i FROM generate_series(1, 30) i;
    INSERT INTO whole (v) SELECT i % 3 FROM generate_series(1, 30) i;
    INSERT INTO lone SELECT FROM generate_series(1, 30);
"""


@pytest.fixture
def pair(east: EmbeddedServer, west: EmbeddedServer, tmp_path: Path) -> Iterator[Pair]:
    with database_pair(east, west, tmp_path) as made:
        made.source(_TABLES)
        yield made


@pytest.fixture
async def stream(pair: Pair) -> Stream:
    made = pair.stream(seed=SeedSettings(schema="create", chunk_rows=1000))
    seed, target = KIND.seed_source(made), KIND.seed_target(made)
    try:
        await seed.begin()
        await seed.run(BulkTo(target))
    finally:
        await seed.close()
        await target.close()
    return made


async def _apply(stream: Stream, pair: Pair) -> None:
    """All that the source has committed since, each transaction applied for itself."""
    journal = Journal()
    async with captured(stream, journal) as capture:
        await journal.read_until(capture, pair.end_of_log())
    target = KIND.target(stream)
    try:
        progress = await target.open()
        for commit, changes in journal.commits():
            if commit.offset > progress:
                await target.apply([Piece(changes, len(changes), commit, commit.offset)])
                await target.commit(commit)
    finally:
        await target.close()


def _differences(pair: Pair) -> object:
    found = compare(pair.east.dsn(pair.name), pair.west.dsn(pair.name))
    return found.differences if not found.equal else None


@pytest.mark.parametrize("rows", [3, 20])  # row by row, and as a set
async def test_an_identity_that_is_set_anew_is_carried(pair: Pair, stream: Stream, rows: int) -> None:
    for table in ("keyed", "beside", "whole"):
        for change in ("id = DEFAULT", "id = DEFAULT, v = 'moved'", "v = 'stayed'"):
            pair.source(f"UPDATE {table} SET {change} WHERE id IN (SELECT id FROM {table} LIMIT {rows})")
    pair.source(f"UPDATE lone SET id = DEFAULT WHERE id <= {rows}")
    assert _differences(pair) is not None
    await _apply(stream, pair)
    assert _differences(pair) is None


@pytest.mark.parametrize("rows", [3, 20])
async def test_an_update_that_changes_nothing_is_no_error(pair: Pair, stream: Stream, rows: int) -> None:
    """All that could be set was not sent, because it is TOASTed and did not change."""
    pair.source(f"UPDATE bare SET long = long WHERE id <= {rows}")
    await _apply(stream, pair)
    assert _differences(pair) is None
    pair.target("DELETE FROM bare WHERE id = 2")
    pair.source(f"UPDATE bare SET long = long WHERE id <= {rows}")
    with pytest.raises(TargetDiverged, match="bare"):
        await _apply(stream, pair)


_FAMILY = """
    DELETE FROM parent WHERE id % 3 = 1;
    UPDATE parent SET v = 'parent' WHERE id % 3 = 2;
    UPDATE child SET v = 'child' WHERE id = 5;
    DELETE FROM ONLY loose WHERE v = 'same';
"""


@pytest.mark.parametrize("rows", [6, 30])
async def test_a_table_and_those_that_inherit_from_it_stay_apart(
    pair: Pair, stream: Stream, rows: int
) -> None:
    """They hold rows of the same keys, and of the same values."""
    for statement in _FAMILY.split(";"):
        if statement.strip():
            limited = statement.replace("WHERE", f"WHERE id <= {rows} AND")
            pair.source(
                limited.replace("FROM parent", "FROM ONLY parent").replace("UPDATE p", "UPDATE ONLY p")
            )
    assert _differences(pair) is not None
    await _apply(stream, pair)
    assert _differences(pair) is None
    pair.source("TRUNCATE ONLY parent")
    await _apply(stream, pair)
    assert _differences(pair) is None
    assert pair.target("SELECT count(*) FROM parent") == pair.source("SELECT count(*) FROM child")


async def test_a_target_column_made_narrower_stops_the_group(pair: Pair, stream: Stream) -> None:
    """The server would round without a word."""
    pair.source("UPDATE priced SET price = 1.25")
    pair.target("ALTER TABLE priced ALTER price TYPE numeric(12, 4)")
    await _apply(stream, pair)
    assert pair.target("SELECT price::text FROM priced") == [("1.2500",)]
    pair.target("ALTER TABLE priced ALTER price TYPE numeric(10, 1)")
    pair.source("UPDATE priced SET price = 2.75")
    with pytest.raises(TargetError, match=r"public\.priced\.price is numeric\(10,1\)"):
        await _apply(stream, pair)
