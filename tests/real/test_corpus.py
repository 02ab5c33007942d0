"""The corpus of hard cases (corpus_cast.py), between versions, applied one by one and from a backlog.

One by one: every source transaction is a target transaction. From a backlog: all in one, or a few. Both with
sessions that are terminated in the middle. In the end an independent comparison of every table, and of the
definitions. Whole processes that die: test_corpus_processes.py.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from tests.real.apply_cast import DyingTarget, Follower, watch_for_others
from tests.real.corpus_cast import (
    EXTENSIONS,
    Case,
    definitions,
    differing_lines,
    fitting,
    own_columns,
    run_script,
)
from tests.real.pg_cast import BulkTo, database_pair

from castling.apply.schedule import Limits
from castling.config import SeedSettings
from castling.errors import TargetUnreachable
from castling.kinds.base import Severity
from castling.kinds.postgres.kind import KIND
from castling.testing.compare import compare
from castling.testing.servers import EmbeddedServer


@pytest.fixture(scope="module", params=["18 to 18", "15 to 18", "18 to 15", "15 to 15"])
def servers(request: pytest.FixtureRequest, bin15: Path) -> Iterator[tuple[EmbeddedServer, EmbeddedServer]]:
    source, _, target = request.param.partition(" to ")
    made = [
        EmbeddedServer(
            name=f"corpus{number}",
            bin_folder=bin15 if version == "15" else None,
            settings={"max_prepared_transactions": "20"},
        )
        for number, version in enumerate((source, target))
    ]
    with made[0] as east, made[1] as west:
        yield east, west


async def _apply_through_deaths(follower: Follower, limits: Limits) -> int:
    chance, deaths = random.Random(7), 0
    while deaths < 300:
        try:
            dying = partial(DyingTarget, follower, chance.randrange(5, 20 * 3**deaths))
            await follower.apply(limits=limits, target=dying if deaths < 5 else None)
        except TargetUnreachable:
            deaths += 1
            continue
        return deaths
    raise AssertionError("it never got to the end")


async def _seeded(follower: Follower) -> None:
    source, target = KIND.seed_source(follower.stream), KIND.seed_target(follower.stream)
    try:
        await source.begin()
        await source.run(BulkTo(target))
    finally:
        await source.close()
        await target.close()


def _cases(east: EmbeddedServer, west: EmbeddedServer, bin15: Path) -> list[Case]:
    """Between two old servers only what others can't hold: the rest is tried between the others."""
    cases = fitting(east, west)
    return [case for case in cases if case.built] if east.bin == west.bin == bin15 else cases


@pytest.mark.parametrize("changes", [1, 50_000], ids=["live", "backlog"])
async def test_every_hard_case(
    servers: tuple[EmbeddedServer, EmbeddedServer], bin15: Path, tmp_path: Path, changes: int
) -> None:
    east, west = servers
    with database_pair(east, west, tmp_path) as pair:
        cases = _cases(east, west, bin15)
        assert cases, "these servers can hold none of the cases"
        for number in range(5):  # so that no type has the same identifier on both sides
            pair.target(f"CREATE TYPE other_{number} AS ENUM ('x')")
        pair.source("; ".join(f"CREATE EXTENSION {name}" for name in EXTENSIONS))
        for case in cases:
            pair.source(f'CREATE SCHEMA "{case.schema}"')
            run_script(east, pair.name, case, "schema")
            run_script(east, pair.name, case, "before")
        follower = Follower(pair, seed=SeedSettings(schema="create", chunk_rows=200))
        refused = [each for each in await KIND.check(follower.stream) if each.severity is Severity.REFUSED]
        assert refused == []
        await _seeded(follower)
        for case in cases:
            run_script(west, pair.name, case, "target")
        await watch_for_others(follower.stream)
        for case in cases:
            run_script(east, pair.name, case, "live")
        await follower.capture()
        deaths = await _apply_through_deaths(follower, Limits(changes=changes))
        assert deaths > 0, "nothing has died"
        noted = pair.target("SELECT part, operation, application FROM castling.foreign_writes")
        assert noted == [], "what Castling writes is not of others"
        assert pair.target("SELECT count(*) FROM castling.watched")[0][0] >= 3 * len(cases) // 2
        extra = {f'"{case.schema}".{table}' for case in cases for table in case.extra}
        found = compare(east.dsn(pair.name), west.dsn(pair.name))
        differing = [
            each
            for each in found.differences
            if each.table.replace('"', "") not in {name.replace('"', "") for name in extra}
        ]
        assert differing == [] and found.tables >= 3 * len(cases) // 2
        for case in cases:
            here, there = (own_columns(side, pair.name, case, east) for side in (east, west))
            assert here == there
        newest = west.bin if east.bin == bin15 else east.bin
        here, there = (definitions(side, pair.name, cases, newest) for side in (east, west))
        assert differing_lines(here, there, loosely=east.bin != west.bin) == [] and len(here) > 20
        otherwise = ["public.other_", *(case.schema for case in cases if case.is_altered)]
        if east.bin != west.bin:
            otherwise.append("extension ")  # each server has its own versions of them
        told = [each.object for each in await KIND.compare_schema(follower.stream)]
        assert [each for each in told if not any(name in each for name in otherwise)] in ([], ["schema"]), (
            told
        )
        unvalidated = "SELECT conrelid::regclass::text, conname FROM pg_constraint WHERE NOT convalidated"
        assert pair.target(unvalidated) == pair.source(unvalidated)
