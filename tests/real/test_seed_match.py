"""A first copy into tables that hold rows already: what is equal stays, what differs is copied."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from tests.real.pg_cast import Pair, database_pair
from tests.real.seed_cast import Copying, Cut

from castling.config import SeedSettings
from castling.errors import TargetNotEmpty
from castling.kinds.postgres import seed_match, seed_read
from castling.kinds.postgres.seed_plan import Chunk, Finish, Keys, Match, Patch, Renew
from castling.testing.servers import EmbeddedServer

_TABLES = """
    CREATE TABLE big (id int PRIMARY KEY, v text, f float8, b bytea, at timestamptz, u int UNIQUE);
    CREATE TABLE child (id int PRIMARY KEY, big int NOT NULL REFERENCES big);
    CREATE TABLE names (k text COLLATE "C", part numeric, doc jsonb, list text[], PRIMARY KEY (k, part));
    CREATE TABLE heap (v text);
    CREATE TABLE empty (id int PRIMARY KEY, v text);
    CREATE TABLE same (id int PRIMARY KEY);
"""
_ROWS = """
    INSERT INTO big
    SELECT i, nullif(i % 3, 0)::text, i / 7.0, '\\x00ff', timestamptz '2025-01-01' + i * '1 s'::interval, i
      FROM generate_series(1, 3000) i;
    INSERT INTO child SELECT i, i FROM generate_series(1, 1000) i;
    INSERT INTO names
    SELECT E'a "b" \\\\ ' || i, i + 0.50, jsonb_build_object('k', i), ARRAY['x', NULL, i::text]
      FROM generate_series(1, 1000) i;
    INSERT INTO heap SELECT (i % 5)::text FROM generate_series(1, 500) i;
    INSERT INTO same SELECT generate_series(1, 2000);
"""
#: as by a restore of yesterday, and by somebody who has written there
_SPOILT = """
    SET session_replication_role = replica;
    UPDATE big SET v = 'old' WHERE id % 100 = 0;
    UPDATE big SET v = '' WHERE id = 3;
    UPDATE big SET u = -u WHERE id IN (10, 20); UPDATE big SET u = 20 WHERE id = 10;
    UPDATE big SET u = 10 WHERE id = 20;
    DELETE FROM big WHERE id BETWEEN 500 AND 519;
    INSERT INTO big SELECT i, 'not there' FROM generate_series(9001, 9010) i;
    UPDATE names SET part = 3.5000 WHERE part = 3.5;
    UPDATE names SET list = ARRAY['x', '', '7'] WHERE part = 7.5;
    DELETE FROM child WHERE id > 990; INSERT INTO child VALUES (5000, 9001);
    INSERT INTO heap VALUES ('not there')
"""
_WORK = """
    UPDATE big SET v = v || 'w' WHERE id % 300 = {0}; COMMIT;
    UPDATE big SET id = id + 100000 WHERE id = 2000 + {0}; COMMIT;
    DELETE FROM big WHERE id = 2500 + {0}; INSERT INTO big VALUES (200000 + {0}, 'new'); COMMIT;
    UPDATE names SET k = k || {0}, doc = 'null' WHERE part = 100 + {0} + 0.5;
    INSERT INTO empty VALUES ({0}, 'e'); INSERT INTO heap VALUES ('h')
"""


@pytest.fixture
def pair(east: EmbeddedServer, west: EmbeddedServer, tmp_path: Path) -> Iterator[Pair]:
    with database_pair(east, west, tmp_path) as made:
        made.source(_TABLES + _ROWS)
        made.target(_TABLES + _ROWS + _SPOILT)
        yield made


def _copying(pair: Pair, existing: str = "match") -> Copying:
    seed = SeedSettings(schema="expect", existing=existing, chunk_rows=400, jobs=1)  # type: ignore[arg-type]
    return Copying(pair, pair.stream(seed=seed))


async def test_only_what_differs_is_copied(pair: Pair) -> None:
    copying = _copying(pair)
    progress = await copying.attempt()
    assert progress is not None and copying.differences() == []
    # 29 old, 1 that is '' for null, 2 whose values were exchanged, 20 gone, 10 of child, 2 of names
    assert copying.copied == {"Patch": 64, "Chunk": 500}, "heap has no key, and was copied whole"
    assert (progress.rows_kept, progress.rows_renewed) == (3000 - 52 + 990 + 998 + 2000, 0)
    assert progress.rows == sum(pair.source(f"SELECT count(*) FROM {each}")[0][0] for each in _NAMES)
    pair.source(_WORK.format(1))
    await copying.apply()
    assert copying.differences() == []


_NAMES = ("big", "child", "names", "heap", "empty", "same")


async def test_rows_of_others_are_refused_unless_asked_otherwise(pair: Pair) -> None:
    before = pair.target("SELECT * FROM big ORDER BY id")
    with pytest.raises(TargetNotEmpty, match=r"public\.big.*") as refused:
        await _copying(pair, "refuse").attempt()
    assert 'existing = "match"' in refused.value.hint
    assert pair.target("SELECT * FROM big ORDER BY id") == before


async def test_it_goes_on_wherever_it_breaks_off(pair: Pair) -> None:
    copying = _copying(pair)
    cuts: Sequence[tuple[type, str, int]] = [
        (Renew, "after", 1),
        (Match, "before", 1),
        (Match, "within", 1),
        (Match, "after", 2),
        (Keys, "before", 1),
        (Patch, "within", 1),
        (Patch, "after", 1),
        (Chunk, "after", 1),
        (Finish, "before", 1),
    ]
    for at, (kind, where, call) in enumerate(cuts):
        cut = Cut(kind, where, call)
        assert await copying.attempt(cut) is None and cut.happened, f"{kind.__name__} {where} was never met"
        pair.source(_WORK.format(at + 1))
    assert await copying.attempt() is not None and copying.begun == 1
    await copying.apply()
    assert copying.differences() == []


async def test_a_second_copy_moves_what_differs(pair: Pair) -> None:
    """What Castling filled itself is matched too, not emptied."""
    copying = _copying(pair)
    await copying.attempt()
    await copying.apply()
    pair.source(_WORK.format(1))
    again = _copying(pair)
    progress = await again.attempt()
    assert progress is not None and progress.rows_kept > 6900
    assert again.copied["Patch"] < 30
    await again.apply()
    assert again.differences() == []


async def test_a_digest_that_does_not_see_a_column_is_noticed(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the comparison at the end sees what such a digest would leave."""
    whole = seed_match.digest_of
    monkeypatch.setattr(seed_match, "digest_of", lambda columns: whole(columns[:1]))
    assert seed_read.read_digests is seed_match.read_digests
    copying = _copying(pair)
    await copying.attempt()
    assert copying.differences() != []
