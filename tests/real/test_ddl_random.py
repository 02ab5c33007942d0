"""Random changes of the schema between random rows, through captures that begin anew and applies that die.

In the end the rows of both sides are compared, and a dump of both sides' definitions. Seeds: `make test` runs
a few, `make test-faults` hundreds.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.real.apply_cast import DyingTarget, Follower, random_limits
from tests.real.pg_cast import database_pair
from tests.real.random_ddl import ROLES, SCHEMA, RandomSchema
from tests.real.resync_cast import copied, held
from tests.real.test_ddl_corpus import definitions

from castling.errors import PartsMoved, SeedFailed, TargetUnreachable
from castling.kinds.postgres.ddl_target import DdlTarget
from castling.testing.servers import EmbeddedServer

STEPS = 25


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[EmbeddedServer, EmbeddedServer]]:
    """The source streams transactions that are still open as soon as they hold anything worth it."""
    with (
        EmbeddedServer(name="ddleast", settings={"logical_decoding_work_mem": "64kB"}) as east,
        EmbeddedServer(name="ddlwest") as west,
    ):
        for server in (east, west):
            for role in ROLES:
                server.execute(f"CREATE ROLE {role}")
        yield east, west


async def _apply(follower: Follower, chance: random.Random) -> bool:
    """Whether it came to the end of what was captured."""
    dies = chance.random() < 0.4
    target: Any = partial(DyingTarget, follower, chance.randrange(5, 400)) if dies else None
    try:
        await follower.apply(
            limits=random_limits(chance), piece_bytes=chance.choice([200, 1 << 20]), target=target
        )
    except (TargetUnreachable, PartsMoved):
        return False
    return True


async def _copied(follower: Follower) -> bool:
    try:
        return await copied(follower)
    except SeedFailed:  # rewritten or changed meanwhile: it is wanted again
        return True


async def _differences(
    servers: tuple[EmbeddedServer, EmbeddedServer], folder: Path, seed: int, *, steps: int = STEPS
) -> list[str]:
    east, west = servers
    chance = random.Random(seed)
    work = RandomSchema(chance)
    with database_pair(east, west, folder) as pair:
        pair.target("CREATE TYPE shifts_identifiers AS ENUM ('x')")
        for side in (pair.source, pair.target):
            side(SCHEMA)
        follower = Follower(pair, ddl="carry", on_error="hold")
        await follower.begin()
        dsn = east.dsn(pair.name)
        with psycopg.connect(dsn, autocommit=True) as one, psycopg.connect(dsn, autocommit=True) as two:
            for session in (one, two):
                session.execute("SET lock_timeout = '100ms'")
            for _ in range(steps):
                work.step([one, one, one, two])
                if chance.random() < 0.2:
                    await follower.capture()
                if chance.random() < 0.2:
                    await _apply(follower, chance)
                if chance.random() < 0.1:
                    await _copied(follower)
        await follower.capture()  # looks for what no trigger has published, and tells of it
        for _ in range(40):
            await follower.capture()
            while not await _apply(follower, chance):
                pass
            if not await _copied(follower):
                break
        pair.target("DROP TYPE shifts_identifiers")
        (folder / "work.sql").write_text(SCHEMA + "\n".join(work.done))
        behind = await held(follower)
        # PostgreSQL would refuse everybody's updates if these were published: they are held by name
        unfit = {each.part.replace('"', "") for each in behind if "generated columns" in each.reason}
        found = [f"{each.part}: {each.reason}" for each in behind if each.part.replace('"', "") not in unfit]
        found += [
            f"aside: {row[0]}" for row in pair.target("SELECT reason FROM castling.schema_changes_aside")
        ]
        found += [
            f"{each.table}: {each.what} {each.rows[:2]}"
            for each in follower.compared().differences
            if each.table.replace('"', "") not in unfit
        ]
        mine, theirs = definitions(east, pair.name), definitions(west, pair.name)
        found += [f"only on the source: {line}" for line in mine if line not in theirs]
        found += [f"only on the target: {line}" for line in theirs if line not in mine]
        return found


@pytest.mark.parametrize("seed", range(8))
async def test_random_changes_arrive(
    servers: tuple[EmbeddedServer, EmbeddedServer], tmp_path: Path, seed: int
) -> None:
    assert await _differences(servers, tmp_path, seed) == []


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(1000, 1300))
async def test_many_random_changes_arrive(
    servers: tuple[EmbeddedServer, EmbeddedServer], tmp_path: Path, seed: int
) -> None:
    assert await _differences(servers, tmp_path, seed) == []


async def test_the_comparison_notices_what_is_not_made(
    servers: tuple[EmbeddedServer, EmbeddedServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Changes of the schema that are taken as made, and are not."""

    async def nothing(*_: object) -> None:
        return None

    monkeypatch.setattr(DdlTarget, "make", nothing)
    assert await _differences(servers, tmp_path, 3) != []
