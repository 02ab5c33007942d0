"""Random transactions on random tables, through captures that begin anew and applies that die anywhere.

In the end every table of both sides is compared. Seeds: `make test` runs a few, `make test-faults` hundreds.
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
from tests.real.random_work import EXTENSIONS, RandomWork

from castling.errors import TargetUnreachable
from castling.kinds.postgres.writer import Writer
from castling.testing.compare import Comparison
from castling.testing.servers import EmbeddedServer

STEPS = 12


@pytest.fixture(scope="module")
def source() -> Iterator[EmbeddedServer]:
    """It streams transactions that are still open as soon as they hold anything worth it."""
    settings = {"logical_decoding_work_mem": "64kB", "max_prepared_transactions": "10"}
    with EmbeddedServer(name="random", settings=settings) as server:
        yield server


async def _replicated(source: EmbeddedServer, west: EmbeddedServer, folder: Path, seed: int) -> Comparison:
    chance = random.Random(seed)
    work = RandomWork(chance)
    with database_pair(source, west, folder) as pair:
        pair.target("CREATE TYPE shifts_identifiers AS ENUM ('x')")
        for side in (pair.source, pair.target):
            side("; ".join(f"CREATE EXTENSION {name}" for name in EXTENSIONS))
            side(work.schema)
        follower = Follower(pair)
        await follower.begin()
        dsn = source.dsn(pair.name)
        with psycopg.connect(dsn, autocommit=True) as one, psycopg.connect(dsn, autocommit=True) as two:
            for _ in range(STEPS):
                work.step([one, two])
                if chance.random() < 0.3:
                    await follower.capture()
                if chance.random() < 0.3:
                    await _apply(follower, chance)
        await follower.capture()
        while not await _apply(follower, chance):
            pass
        found = follower.compared()
        if not found.equal:
            (folder / "work.sql").write_text(work.schema + "\n".join(work.done))
        return found


async def _apply(follower: Follower, chance: random.Random) -> bool:
    """Whether it came to the end of what was captured."""
    dies = chance.random() < 0.5
    target: Any = partial(DyingTarget, follower, chance.randrange(5, 200)) if dies else None
    try:
        await follower.apply(
            limits=random_limits(chance), piece_bytes=chance.choice([200, 1 << 20]), target=target
        )
    except TargetUnreachable:
        return False
    return True


@pytest.mark.parametrize("seed", range(20))
async def test_random_work_arrives(
    source: EmbeddedServer, west: EmbeddedServer, tmp_path: Path, seed: int
) -> None:
    found = await _replicated(source, west, tmp_path, seed)
    assert found.equal, (found.differences, tmp_path / "work.sql")


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(1000, 1500))
async def test_much_random_work_arrives(
    source: EmbeddedServer, west: EmbeddedServer, tmp_path: Path, seed: int
) -> None:
    found = await _replicated(source, west, tmp_path, seed)
    assert found.equal, (found.differences, tmp_path / "work.sql")


async def test_an_update_that_gets_lost_is_noticed(
    source: EmbeddedServer, west: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: a writer that leaves out what fails row by row, and one change in each set."""
    write = Writer.write

    async def forgetful(self: Writer, steps: Any) -> None:
        await write(self, list(steps)[:-1])

    monkeypatch.setattr(Writer, "write", forgetful)
    differing = 0
    for seed in range(3):
        try:
            differing += not (await _replicated(source, west, tmp_path, seed)).equal
        except Exception as error:  # noqa: BLE001
            assert "on the target" in str(error)
            differing += 1
    assert differing == 3
