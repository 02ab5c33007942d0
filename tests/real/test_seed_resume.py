"""A first copy that breaks off goes on where it was, and ends exact: at every step of its protocol."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.real.pg_cast import Pair, database_pair
from tests.real.seed_cast import Copying, Cut

from castling.config import SeedSettings
from castling.errors import CastlingError
from castling.journal.record import Record
from castling.kinds.postgres.kind import KIND
from castling.kinds.postgres.seed_plan import (
    Begin,
    Chunk,
    Finish,
    Have,
    Keys,
    Patch,
    Renew,
    Resume,
    Schema,
    encode_request,
)
from castling.testing.servers import EmbeddedServer

_TABLES = """
    CREATE TABLE big (id int PRIMARY KEY, v text, n int NOT NULL);
    CREATE TABLE swaps (id int PRIMARY KEY, u int NOT NULL UNIQUE, big int REFERENCES big);
    CREATE TABLE wide (k text COLLATE "C", part int, long text, doc jsonb, PRIMARY KEY (part, k));
    ALTER TABLE wide ALTER long SET STORAGE EXTERNAL;
    CREATE TABLE odd (id numeric PRIMARY KEY, at timestamptz UNIQUE, raw bytea, f float8);
    CREATE TABLE heap (v text);
    CREATE TABLE still (id int PRIMARY KEY);
    CREATE TABLE root (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
    CREATE TABLE root_low PARTITION OF root FOR VALUES FROM (0) TO (500);
    CREATE TABLE root_high PARTITION OF root FOR VALUES FROM (500) TO (1000000);
"""
_ROWS = """
    INSERT INTO big SELECT i, 'v' || i, 0 FROM generate_series(1, 6000) i;
    INSERT INTO swaps SELECT i, i, i FROM generate_series(1, 3000) i;
    INSERT INTO wide SELECT 'k' || i, i % 7, repeat(md5(i::text), 100), jsonb_build_object('i', i)
      FROM generate_series(1, 900) i;
    INSERT INTO odd SELECT i + 0.50, timestamptz '2025-01-01' + i * interval '1 s', '\\x00ff', i / 7.0
      FROM generate_series(1, 1500) i;
    INSERT INTO heap SELECT (i % 5)::text FROM generate_series(1, 1500) i;
    INSERT INTO still SELECT generate_series(1, 1500);
    INSERT INTO root SELECT i, 'r' FROM generate_series(1, 1000) i;
    ANALYZE;
"""
#: rows move between blocks, keys change, values that are out of line stay, unique values change hands
_WORK = """
    UPDATE big SET n = n + 1, v = v || 'x' WHERE id % 97 = {0} % 97;
    INSERT INTO big SELECT 100000 + {0} * 10 + i, 'new', {0} FROM generate_series(1, 5) i; COMMIT;
    UPDATE big SET id = id + 1000000 WHERE id % 211 = {0} % 211 AND id > 3000 AND id < 100000; COMMIT;
    DELETE FROM big WHERE id % 197 = {0} % 197 AND id > 3000; COMMIT;
    UPDATE swaps SET u = -u WHERE id IN ({0} * 2 + 1, {0} * 2 + 2);
    UPDATE swaps a SET u = -b.u FROM swaps b
     WHERE (a.id, b.id) IN (({0} * 2 + 1, {0} * 2 + 2), ({0} * 2 + 2, {0} * 2 + 1)); COMMIT;
    UPDATE swaps SET u = u + 10000 WHERE id = 3000 - {0}; COMMIT;
    INSERT INTO swaps SELECT 50000 + {0}, 3000 - {0}
     WHERE NOT EXISTS (SELECT FROM swaps WHERE u = 3000 - {0});
    UPDATE wide SET doc = doc || '{{"w": {0}}}' WHERE k IN ('k{0}', 'k9{0}', 'k{0}0'); COMMIT;
    UPDATE wide SET k = k || 'moved', part = part + 1 WHERE k = 'k2{0}'; COMMIT;
    DELETE FROM wide WHERE k = 'k3{0}';
    INSERT INTO wide VALUES ('k3{0}', 5, repeat('n', 5000), 'null'); COMMIT;
    UPDATE odd SET id = id + 10000.00, at = at + interval '1 day' WHERE id = {0} + 0.5 + 1400; COMMIT;
    UPDATE odd SET f = 'NaN', raw = '' WHERE id % 50 = {0} % 50; COMMIT;
    UPDATE root SET v = v || {0}, id = CASE WHEN id < 500 THEN id + 1000 ELSE id END WHERE id % 60 = {0};
    COMMIT
"""


@pytest.fixture
def pair(east: EmbeddedServer, west: EmbeddedServer, tmp_path: Path) -> Iterator[Pair]:
    with database_pair(east, west, tmp_path) as made:
        made.source(_TABLES + _ROWS)
        yield made


def _copying(pair: Pair, schema: str = "create") -> Copying:
    if schema == "expect":
        pair.target(_TABLES)
    return Copying(pair, pair.stream(seed=SeedSettings(schema=schema, chunk_rows=300, jobs=1)))  # type: ignore[arg-type]


def _rows(pair: Pair) -> int:
    tables = ("big", "swaps", "wide", "odd", "heap", "still", "root")
    return sum(int(pair.source(f"SELECT count(*) FROM {table}")[0][0]) for table in tables)


#: an interruption at each step, the work that is done in between, and some of it twice
_CUTS = [
    (Begin, "before", 1),
    (Begin, "after", 1),
    (Schema, "before", 1),
    (Schema, "within", 1),
    (Schema, "after", 1),
    (Renew, "before", 1),
    (Renew, "after", 1),
    (Chunk, "within", 3),
    (Chunk, "after", 4),
    (Resume, "before", 1),
    (Resume, "after", 1),
    (Renew, "within", 1),
    (Renew, "after", 1),
    (Have, "after", 1),
    (Keys, "before", 1),
    (Patch, "within", 1),
    (Patch, "after", 1),
    (Keys, "after", 2),
    (Patch, "after", 2),
    (Chunk, "before", 1),
    (Chunk, "after", 8),
    (Patch, "within", 2),
    (Chunk, "within", 12),
    (Chunk, "after", 20),
    (Finish, "before", 1),
    (Finish, "after", 1),
]


@pytest.mark.parametrize("schema", ["create", "expect"])
async def test_a_copy_interrupted_at_every_step_goes_on_and_is_exact(pair: Pair, schema: str) -> None:
    copying = _copying(pair, schema)
    cuts = [each for each in _CUTS if schema == "create" or each[0] is not Schema]
    for at, (kind, where, call) in enumerate(cuts):
        cut = Cut(kind, where, call)
        found = await copying.attempt(cut)
        assert cut.happened and found is None, f"{kind.__name__} {where} was never met"
        pair.source(_WORK.format(at))
    assert copying.begun <= 2, "only what never reached the target is begun anew"
    progress = await copying.attempt()
    assert progress is not None and progress.attempts > 15
    await copying.apply()
    assert copying.differences() == []
    pair.source(_WORK.format(77))
    await copying.apply()
    assert copying.differences() == []
    rows = _rows(pair)
    assert copying.copied["Chunk"] < rows + 4 * 300 + 2 * 1500, f"of {rows} rows: {copying.copied}"
    assert copying.copied["Patch"] > 0


async def test_finished_parts_are_not_copied_again(pair: Pair) -> None:
    """Exactly: with nothing written meanwhile each row travels once, but for the chunk under way."""
    copying = _copying(pair)
    assert await copying.attempt(Cut(Chunk, "within", 9)) is None
    before = copying.copied["Chunk"]
    assert before > 8 * 200
    progress = await copying.attempt()
    assert progress is not None
    assert (progress.attempts, progress.rows_kept, progress.rows_renewed) == (2, before, 0)
    assert copying.copied == {"Chunk": _rows(pair)}
    assert progress.rows == _rows(pair)
    assert copying.differences() == []


async def _control(pair: Pair, copying: Copying) -> bool:
    """Whether what the copy comes to is told from what the source has, at once or by apply."""
    try:
        await copying.attempt()
        await copying.apply()
    except CastlingError:
        return True
    return bool(copying.differences())


async def test_a_position_that_is_forgotten_is_noticed(pair: Pair) -> None:
    """The control: were the position not remembered with the rows, what changed since would be wrong."""
    copying = _copying(pair)
    assert await copying.attempt(Cut(Chunk, "after", 9)) is None
    pair.source(_WORK.format(1))
    pair.target("UPDATE castling.seed_part SET lsn = 'FFFFFFFF/0'")
    assert await _control(pair, copying)


async def test_a_range_that_is_forgotten_is_noticed(pair: Pair) -> None:
    copying = _copying(pair)
    assert await copying.attempt(Cut(Chunk, "after", 9)) is None
    pair.target("DELETE FROM castling.seed_range WHERE name = 'big' AND first = 0")
    assert await _control(pair, copying)


async def test_a_journal_with_a_hole_is_noticed(pair: Pair) -> None:
    copying = _copying(pair)
    assert await copying.attempt(Cut(Chunk, "after", 9)) is None
    pair.source(_WORK.format(1))
    whole = copying.records

    async def first_only(since: int, until: int) -> AsyncIterator[Record]:
        async for record in whole(since, until):
            yield record
            return

    copying.records = first_only  # type: ignore[method-assign]
    assert await _control(pair, copying)


async def test_what_can_not_be_told_by_keys_begins_anew_alone(pair: Pair) -> None:
    copying = _copying(pair)
    assert await copying.attempt(Cut(Finish, "before")) is None
    pair.source("UPDATE swaps SET u = -u WHERE id = 7")
    pair.source("ALTER TABLE swaps DROP CONSTRAINT swaps_pkey, ADD PRIMARY KEY (u)")
    pair.source("UPDATE swaps SET id = id + 1 WHERE id < 100; DELETE FROM heap WHERE v = '3'")
    pair.source("TRUNCATE root; COMMIT; INSERT INTO root SELECT i, 'after' FROM generate_series(1, 700) i")
    pair.source("UPDATE big SET n = 7")
    pair.source("VACUUM FULL odd")
    progress = await copying.attempt()
    assert progress is not None and progress.attempts == 2 and copying.begun == 1
    assert {name: why for _, name, why in copying.restarted} == {
        "swaps": "its key was changed",
        "heap": "it has no key, and was changed",
        "root_low": "it was made anew or rewritten, or has other columns",
        "root_high": "it was made anew or rewritten, or has other columns",
        "odd": "it was made anew or rewritten, or has other columns",
    }
    assert progress.rows_kept >= 6000 and progress.rows_renewed >= 6000, "the others are kept"
    pair.source(_WORK.format(3))
    await copying.apply()
    assert copying.differences() == []


async def test_a_table_dropped_between_two_attempts_is_no_obstacle(pair: Pair) -> None:
    copying = _copying(pair)
    assert await copying.attempt(Cut(Chunk, "after", 34)) is None
    pair.source("DROP TABLE swaps")
    assert await copying.attempt() is not None
    assert copying.begun == 1
    await copying.apply()
    assert [each for each in copying.differences() if "swaps" not in str(each)] == []


async def test_another_choice_of_tables_is_another_copy(pair: Pair) -> None:
    copying = _copying(pair)
    assert await copying.attempt(Cut(Chunk, "after", 9)) is None
    seed = copying.stream.settings.seed
    copying.stream = pair.stream(seed=seed, exclude=["public.heap"])
    assert await copying.attempt() is not None
    assert copying.begun == 2


async def test_what_an_attempt_before_still_sends_is_refused(pair: Pair) -> None:
    """Its rows are of a view that is over: taken now, they would be there twice, or be old."""
    copying = _copying(pair)
    assert await copying.attempt(Cut(Chunk, "after", 9)) is None
    attempt = pair.target("SELECT attempt FROM castling.seed_attempt")[0][0]
    pair.target("UPDATE castling.seed_attempt SET attempt = attempt + 1")
    target = KIND.seed_target(copying.stream)
    target._parts.attempt = attempt  # as its process knew it
    lsn = pair.target("SELECT (lsn - '0/0')::int8 FROM castling.seed_part WHERE name = 'still'")[0][0]
    request = Chunk("public", "still", ["id"], lsn, 0, None, False)

    async def body() -> AsyncIterator[bytes]:
        yield b"99999\n"

    with pytest.raises(CastlingError, match="later attempt"):
        await target.handle(encode_request(request), body())
    await target.close()
    assert await copying.attempt() is not None
    assert copying.differences() == []


@pytest.mark.parametrize("seed", [0, *(pytest.param(each, marks=pytest.mark.faults) for each in (1, 2, 3))])
async def test_a_target_that_crashes_takes_back_what_it_has_not_made_durable(pair: Pair, seed: int) -> None:
    chance = random.Random(seed)
    copying = _copying(pair, chance.choice(["create", "expect"]))
    for at in range(3):
        assert await copying.attempt(Cut(Chunk, "after", chance.randint(2, 12))) is None
        pair.west.kill()
        pair.west.start_again()
        pair.source(_WORK.format(at))
    assert await copying.attempt() is not None
    await copying.apply()
    assert copying.differences() == [] and copying.begun == 1


async def test_under_other_names_with_some_rows_and_columns(pair: Pair) -> None:
    """Rows are read under the source's names and written under the target's; they come and go by a filter."""
    pair.source("ALTER TABLE swaps DROP CONSTRAINT swaps_big_fkey")
    stream = pair.stream(
        seed=SeedSettings(schema="create", chunk_rows=300, jobs=1),
        include=["public.big", "public.wide"],
        rename={"public.big": "public.large", "public.wide": "public.broad"},
        rows={"public.big": "id < 200000 AND id % 11 <> 3"},
        columns={"public.wide": ["k", "part", "doc"]},
    )
    copying = Copying(pair, stream)
    changes = ((9, "n = n + 1"), (6, "id = id + 200000"), (2, "id = id + 120001"), (3, "v = 'x'"))
    for at, (call, change) in enumerate(changes):
        assert await copying.attempt(Cut(Chunk, "after", call)) is None
        pair.source(f"UPDATE big SET {change} WHERE id % 7 = {at} AND id < 60000; COMMIT; {_WORK.format(at)}")
    assert await copying.attempt() is not None and copying.begun == 1
    assert copying.copied["Patch"] > 400 and not copying.restarted
    await copying.apply()
    rows = "SELECT id, v, n FROM {0} WHERE id < 200000 AND id % 11 <> 3 ORDER BY id"
    assert pair.target(rows.format("large")) == pair.source(rows.format("big"))
    assert pair.target("SELECT count(*) FROM large WHERE NOT (id < 200000 AND id % 11 <> 3)") == [(0,)]
    broad = "SELECT k, part, doc FROM {0} ORDER BY part, k"
    assert pair.target(broad.format("broad")) == pair.source(broad.format("wide"))
