"""A first copy of many small tables does not make a connection for each."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.real.pg_cast import BulkTo, Pair, database_pair

from castling.config import SeedSettings
from castling.kinds.postgres import seed_target
from castling.kinds.postgres.kind import KIND
from castling.testing.compare import compare
from castling.testing.servers import EmbeddedServer

TABLES = 60


@pytest.mark.parametrize("reused", [True, False])
def test_few_sessions_serve_many_tables(
    east: EmbeddedServer, west: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reused: bool
) -> None:
    if not reused:  # the negative control: each session serves one call, and that is seen
        monkeypatch.setattr(seed_target, "_SERVES_MOST", 0)
    with database_pair(east, west, tmp_path) as pair:
        for number in range(TABLES):
            pair.source(
                f"CREATE TABLE t{number} (id int PRIMARY KEY); INSERT INTO t{number} VALUES ({number})"
            )
        asyncio.run(_copy(pair))
        found = compare(east.dsn(pair.name), west.dsn(pair.name), schemas=["public"])
        assert not found.differences
        analyzed = pair.target("SELECT count(*) FROM pg_stats WHERE schemaname = 'public'")[0][0]
        assert analyzed == TABLES, "every table was analyzed"
        sessions = int(
            west.execute(f"SELECT sessions FROM pg_stat_database WHERE datname = '{pair.name}'")[0][0]
        )
        assert (sessions < TABLES // 2) is reused, f"{sessions} sessions"


async def _copy(pair: Pair) -> None:
    stream = pair.stream(seed=SeedSettings(schema="create"))
    source, target = KIND.seed_source(stream), KIND.seed_target(stream)
    try:
        await source.begin()
        await source.run(BulkTo(target))
    finally:
        await source.close()
        await target.close()
