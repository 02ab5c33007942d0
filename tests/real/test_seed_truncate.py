"""A TRUNCATE does not wait for the first copy, and the first copy notices it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.real.pg_cast import BulkTo, Journal, Pair, captured, database_pair

from castling.config import SeedSettings
from castling.errors import PartsMoved, SeedFailed, TargetDiverged
from castling.kinds.base import BulkCall, Piece, SeedTarget, Stream
from castling.kinds.postgres.kind import KIND
from castling.kinds.postgres.seed_plan import Chunk, decode_request
from castling.testing.compare import compare
from castling.testing.servers import EmbeddedServer

_TABLES = """
    CREATE TABLE scratch (id int PRIMARY KEY, v text);
    CREATE TABLE ledger (id int PRIMARY KEY, v text);
    INSERT INTO scratch SELECT i, 'before' FROM generate_series(1, 1000) i;
    INSERT INTO ledger SELECT i, 'before' FROM generate_series(1, 1000) i;
"""


@pytest.fixture
def pair(east: EmbeddedServer, west: EmbeddedServer, tmp_path: Path) -> Iterator[Pair]:
    with database_pair(east, west, tmp_path) as made:
        made.source(_TABLES)
        yield made


@pytest.fixture
def stream(pair: Pair) -> Stream:
    return pair.stream(seed=SeedSettings(schema="create", chunk_rows=1000))


class _Paused(BulkTo):
    """Stops in the middle of the body of each chunk until it is let go."""

    def __init__(self, target: SeedTarget) -> None:
        super().__init__(target)
        self.reached, self.go = asyncio.Event(), asyncio.Event()

    async def open(self) -> BulkCall:
        call = await super().open()

        async def slow(meta: bytes, body: AsyncIterator[bytes] | None) -> bytes:
            paused = body is not None and isinstance(decode_request(meta), Chunk)
            return await call(meta, self._body(body) if body is not None and paused else body)

        return slow

    async def _body(self, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for data in body:
            yield data
            self.reached.set()
            await self.go.wait()


async def _seeded(stream: Stream, pair: Pair, meanwhile: str) -> None:
    """A first copy, with statements on the source between its snapshot and its first look at a table."""
    seed, target = KIND.seed_source(stream), KIND.seed_target(stream)
    try:
        await seed.begin()
        await asyncio.to_thread(pair.source, meanwhile)
        await seed.run(BulkTo(target))
    finally:
        await seed.close()
        await target.close()


async def _apply(stream: Stream, pair: Pair, *, one_by_one: bool = False) -> None:
    """Everything the source has, through decoder and target; a new session for each commit if so asked."""
    journal = Journal()
    async with captured(stream, journal) as capture:
        await journal.read_until(capture, pair.end_of_log())
    commits = journal.commits()
    while commits:
        target = KIND.target(stream)
        try:
            progress = await target.open()
            commits = [found for found in commits if found[0].offset > progress]
            for commit, changes in commits[: 1 if one_by_one else None]:
                size = sum(1 for _ in changes)
                await target.apply([Piece(changes, size, commit, commit.offset)])
                await target.commit(commit)
            commits = commits[1:] if one_by_one else []
        finally:
            await target.close()


_TRUNCATED = """
    UPDATE scratch SET v = 'gone' WHERE id <= 500;
    DELETE FROM scratch WHERE id > 900;
    TRUNCATE scratch;
    INSERT INTO scratch SELECT i, 'after' FROM generate_series(1, 50) i;
    UPDATE ledger SET v = 'changed' WHERE id % 2 = 0;
"""


@pytest.mark.parametrize("one_by_one", [False, True])
async def test_a_table_emptied_during_the_copy_comes_right(
    pair: Pair, stream: Stream, one_by_one: bool
) -> None:
    statements = [text.strip() for text in _TRUNCATED.split(";") if text.strip()]
    await _seeded(stream, pair, "; COMMIT; ".join(statements))
    assert pair.target("SELECT count(*) FROM scratch") == [(0,)], "the copy can't see what TRUNCATE removed"
    pair.source("UPDATE scratch SET v = 'later' WHERE id = 7")
    await _apply(stream, pair, one_by_one=one_by_one)
    found = compare(pair.east.dsn(pair.name), pair.west.dsn(pair.name))
    assert found.equal, found.differences
    assert pair.target("SELECT count(*) FROM castling.seed_emptied") == [(0,)]


@pytest.mark.parametrize("packs", ["VACUUM FULL scratch", "CLUSTER scratch USING scratch_pkey"])
async def test_a_table_packed_anew_is_read_anew(pair: Pair, stream: Stream, packs: str) -> None:
    """Its rows are there, in other places: the next attempt reads it from its beginning."""
    seed, target = KIND.seed_source(stream), KIND.seed_target(stream)
    bulk = BulkTo(target)
    await seed.begin()
    pair.source("DELETE FROM scratch WHERE id % 2 = 0")
    await asyncio.to_thread(pair.source, packs)
    with pytest.raises(SeedFailed, match=r"public\.scratch was packed anew"):
        await seed.run(bulk)
    await seed.close()
    pair.source("UPDATE scratch SET v = 'changed' WHERE id = 1")
    seed = KIND.seed_source(stream)
    await seed.begin()
    await seed.run(bulk)
    await seed.close()
    await target.close()
    assert pair.target("SELECT count(*), min(v) FROM scratch") == [(500, "before")]
    pair.source("UPDATE scratch SET v = 'later' WHERE id = 3")
    await _apply(stream, pair)
    found = compare(pair.east.dsn(pair.name), pair.west.dsn(pair.name))
    assert found.equal, found.differences


_REWRITES = "ALTER TABLE scratch ALTER v TYPE varchar USING v || 'x'"


async def test_a_table_rewritten_otherwise_stops_the_group_that_wants_it(pair: Pair, stream: Stream) -> None:
    """Its changes must not be left out for ever."""
    stream = pair.stream(seed=stream.settings.seed, on_error="stop")
    await _seeded(stream, pair, _REWRITES)
    pair.source("UPDATE scratch SET v = 'lost?' WHERE id = 1")
    with pytest.raises(TargetDiverged, match=r"public\.scratch"):
        await _apply(stream, pair)


async def test_a_table_rewritten_otherwise_is_copied_anew(pair: Pair, stream: Stream) -> None:
    """It alone is put on hold for that; the others go on."""
    stream = pair.stream(seed=stream.settings.seed, on_error="resync")
    await _seeded(stream, pair, _REWRITES)
    pair.source("UPDATE scratch SET v = 'lost?' WHERE id = 1; UPDATE ledger SET v = 'on' WHERE id = 2")
    with pytest.raises(PartsMoved):
        await _apply(stream, pair)
    await _apply(stream, pair)
    assert pair.target("SELECT v FROM ledger WHERE id = 2") == [("on",)]
    held = pair.target("SELECT name, state, copying FROM castling.table_positions")
    assert held == [("scratch", "held", True)]


async def test_without_the_note_the_target_would_diverge(pair: Pair, stream: Stream) -> None:
    """The negative control: what the note is for."""
    await _seeded(stream, pair, "UPDATE scratch SET v = 'gone'; COMMIT; TRUNCATE scratch")
    pair.target("DELETE FROM castling.seed_emptied")
    with pytest.raises(TargetDiverged, match="lacks a row"):
        await _apply(stream, pair, one_by_one=True)


async def test_truncate_waits_for_a_chunk_only(pair: Pair, stream: Stream) -> None:
    """A TRUNCATE that comes while a chunk is read gets its lock when the chunk ends, and the copy, which
    reads other tables and that one again, does not wait for it in turn."""
    seed, target = KIND.seed_source(stream), KIND.seed_target(stream)
    bulk = _Paused(target)
    await seed.begin()
    copying = asyncio.create_task(seed.run(bulk))
    try:
        async with asyncio.timeout(60):
            await bulk.reached.wait()
            truncating = asyncio.create_task(asyncio.to_thread(pair.source, "TRUNCATE scratch, ledger"))
            while not pair.source("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"):
                await asyncio.sleep(0.02)
            bulk.go.set()
            await truncating
            await copying
    finally:
        bulk.go.set()
        await asyncio.gather(copying, return_exceptions=True)
        await seed.close()
        await target.close()
    pair.source("INSERT INTO ledger VALUES (1, 'after')")
    await _apply(stream, pair)
    assert compare(pair.east.dsn(pair.name), pair.west.dsn(pair.name)).equal
