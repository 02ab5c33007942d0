"""The corpus of schema changes, a script each, between versions, live and from a backlog.

    ddl/CASE.sql   statements that are replicated; `alone.sql` holds those that can't stand in one text

psql runs them, as a person would: statement by statement, and as one text, whose parts the server tells
nobody apart. Live: every source transaction is a target transaction, applied one by one. From a backlog: as
few as can be. Both with sessions that are terminated in the middle. In the end an independent comparison of
every table, and of a dump of both ends' definitions.
"""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from tests.real.apply_cast import DyingTarget, Follower
from tests.real.pg_cast import Pair, database_pair
from tests.real.resync_cast import copied, held

from castling.apply.schedule import Limits
from castling.errors import PartsMoved, TargetUnreachable
from castling.testing.servers import EmbeddedServer

CASES = sorted((Path(__file__).parent / "ddl").glob("*.sql"))
_ROLES = "CREATE ROLE castling_owner; CREATE ROLE castling_reader"


VERSIONS = ("18 to 18", "15 to 18", "18 to 15")
WAYS = ("one text", "live", "backlog")


@pytest.fixture(scope="module", params=VERSIONS)
def servers(
    request: pytest.FixtureRequest, bin15: Path
) -> Iterator[tuple[str, EmbeddedServer, EmbeddedServer]]:
    source, _, target = request.param.partition(" to ")
    made = [
        EmbeddedServer(name=f"ddl{number}", bin_folder=bin15 if version == "15" else None)
        for number, version in enumerate((source, target))
    ]
    with made[0] as east, made[1] as west:
        for server in made:
            server.execute(_ROLES)
        yield request.param, east, west


def _run(server: EmbeddedServer, database: str, script: Path, *, whole: bool) -> None:
    text = ["-c", script.read_text()] if whole else ["-f", str(script)]
    done = subprocess.run(
        [
            *(str(server.bin / "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-o", "/dev/null"),
            *(*text, server.dsn(database)),
        ],
        env={"PATH": "/usr/bin:/bin", "PGCLIENTENCODING": "UTF8"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and "WARNING" not in done.stderr, f"{script.name}: {done.stderr}"


async def _apply(follower: Follower, chance: random.Random, limits: Limits) -> None:
    deaths = 0
    for _ in range(300):
        dies = partial(DyingTarget, follower, chance.randrange(5, 40 * 3**deaths)) if deaths < 4 else None
        try:
            await follower.apply(limits=limits, target=dies)
        except TargetUnreachable:
            deaths += 1
        except PartsMoved:
            continue
        else:
            return
    raise AssertionError("it never got to the end")


async def arrived(follower: Follower, chance: random.Random, limits: Limits) -> None:
    """All is captured and applied, and what has to be copied is."""
    for _ in range(30):
        await follower.capture()
        await _apply(follower, chance, limits)
        if not await copied(follower):
            break
    assert await held(follower) == []


def definitions(server: EmbeddedServer, database: str) -> list[str]:
    """Owners and grants too; not what publishes and tells."""
    dumped = subprocess.run(
        [
            *(str(server.bin / "pg_dump"), "--schema-only", "--exclude-schema=castling*"),
            *("--no-publications", server.dsn(database)),
        ],
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    return [
        line
        for line in dumped
        if line
        and not line.startswith(("--", "\\"))
        and "REPLICA IDENTITY" not in line
        and "castling_ddl" not in line
        and not line.lstrip().startswith("START WITH")
    ]


async def _replicated(pair: Pair, case: Path, *, whole: bool, limits: Limits) -> None:
    pair.target("CREATE TYPE other_identifiers AS ENUM ('x'); DROP TYPE other_identifiers")
    for side in (pair.source, pair.target):
        side("CREATE TABLE there (id int PRIMARY KEY)")
    follower = Follower(pair, ddl="carry", on_error="resync")
    await follower.begin()
    _run(pair.east, pair.name, case, whole=whole)
    await arrived(follower, random.Random(case.name), limits)
    assert follower.reports[-1]["warnings"] == []
    follower.assert_equal()
    if pair.east.bin == pair.west.bin:
        assert definitions(pair.east, pair.name) == definitions(pair.west, pair.name)


async def _all_arrive(
    servers: tuple[str, EmbeddedServer, EmbeddedServer], folder: Path, case: Path, way: str
) -> None:
    limits = Limits(changes=1 if way == "live" else 50_000)
    whole = way == "one text" and case.stem != "alone"
    with database_pair(*servers[1:], folder) as pair:
        await _replicated(pair, case, whole=whole, limits=limits)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("case", CASES, ids=[case.stem for case in CASES])
async def test_every_change(
    servers: tuple[str, EmbeddedServer, EmbeddedServer], tmp_path: Path, case: Path
) -> None:
    """Each in one way, another for each pair of versions."""
    await _all_arrive(servers, tmp_path, case, WAYS[VERSIONS.index(servers[0])])


@pytest.mark.faults
@pytest.mark.timeout(120)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES, ids=[case.stem for case in CASES])
async def test_every_change_in_every_way(
    servers: tuple[str, EmbeddedServer, EmbeddedServer], tmp_path: Path, case: Path, way: str
) -> None:
    await _all_arrive(servers, tmp_path, case, way)
