"""The corpus of hard cases, a folder each, between versions, live and from a backlog.

    postgres/CASE/schema.sql   tables, in a schema of the case's name
    postgres/CASE/before.sql   rows that the first copy takes
    postgres/CASE/target.sql   what is then made otherwise on the target (optional)
    postgres/CASE/live.sql     the transactions that are replicated
    postgres/CASE/case.toml    needs: oldest source version; extra: tables with more columns on the target;
                               built: a query that is true on servers built so that they can hold it

psql runs them, as a person would. Live: every source transaction is a target transaction, applied one by
one. From a backlog: all in one, or a few. Both with sessions that are terminated in the middle. In the end an
independent comparison of every table, and of the definitions.
"""

from __future__ import annotations

import random
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.real.apply_cast import DyingTarget, Follower, watch_for_others
from tests.real.pg_cast import BulkTo, Pair, database_pair

from castling.apply.schedule import Limits
from castling.config import SeedSettings
from castling.errors import TargetUnreachable
from castling.kinds.base import Severity
from castling.kinds.postgres.kind import KIND
from castling.testing.compare import compare
from castling.testing.servers import EmbeddedServer

CASES = sorted(path for path in (Path(__file__).parent / "postgres").iterdir() if path.is_dir())
EXTENSIONS = ("hstore", "citext", "ltree", "cube", "seg", "isn")


@dataclass(frozen=True, slots=True)
class Case:
    folder: Path
    needs: int = 0
    built: str | None = None
    extra: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.folder.name


def _case(folder: Path) -> Case:
    settings = folder / "case.toml"
    found = tomllib.loads(settings.read_text()) if settings.exists() else {}
    return Case(folder, found.get("needs", 0), found.get("built"), tuple(found.get("extra", ())))


def _is_built(query: str, *servers: EmbeddedServer) -> bool:
    return all(server.execute(query) == [(True,)] for server in servers)


def _run(server: EmbeddedServer, database: str, case: Case, script: str) -> None:
    """The script by psql, in the case's schema; any error ends the test."""
    path = case.folder / f"{script}.sql"
    if not path.exists():
        return
    done = subprocess.run(
        [
            *(str(server.bin / "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-o", "/dev/null"),
            *("-c", f'SET search_path = "{case.name}", public', "-f", str(path), server.dsn(database)),
        ],
        env={"PATH": "/usr/bin:/bin", "PGCLIENTENCODING": "UTF8"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{case.name}/{script}.sql: {done.stderr}"


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


def _own_columns(pair: Pair, case: Case) -> list[tuple[str, Any, Any]]:
    """The rows of tables that have more columns on the target, by the columns of the source."""
    found = []
    for table in case.extra:
        columns = ", ".join(
            str(row[0])
            for row in pair.source(
                "SELECT quote_ident(attname) FROM pg_attribute WHERE attnum > 0 AND NOT attisdropped"
                f""" AND attrelid = '"{case.name}"."{table}"'::regclass ORDER BY attname"""
            )
        )
        rows = f'SELECT ROW({columns})::text FROM "{case.name}"."{table}" ORDER BY 1'
        found.append((table, pair.source(rows), pair.target(rows)))
    return found


def _definitions(server: EmbeddedServer, database: str, cases: list[Case]) -> list[str]:
    """Of all cases whose target was not made otherwise: owners and grants too."""
    chosen = [f'--schema="{case.name}"' for case in cases if not (case.folder / "target.sql").exists()]
    dumped = subprocess.run(
        [str(server.bin / "pg_dump"), "--schema-only", *chosen, server.dsn(database)],
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    kept = [line for line in dumped if line and not line.startswith(("--", "\\"))]
    return [line for line in kept if "TRIGGER castling_watch" not in line]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("changes", [1, 50_000], ids=["live", "backlog"])
async def test_every_hard_case(
    servers: tuple[EmbeddedServer, EmbeddedServer], tmp_path: Path, changes: int
) -> None:
    east, west = servers
    with database_pair(east, west, tmp_path) as pair:
        version = int(str(east.execute("SHOW server_version_num")[0][0]))
        both_15 = version < 160000 and int(str(west.execute("SHOW server_version_num")[0][0])) < 160000
        cases = [
            case
            for case in map(_case, CASES)
            if version >= case.needs
            and both_15 == (case.built is not None)
            and (case.built is None or _is_built(case.built, east, west))
        ]
        assert cases, "these servers can hold none of the cases"
        for number in range(5):  # so that no type has the same identifier on both sides
            pair.target(f"CREATE TYPE other_{number} AS ENUM ('x')")
        pair.source("; ".join(f"CREATE EXTENSION {name}" for name in EXTENSIONS))
        for case in cases:
            pair.source(f'CREATE SCHEMA "{case.name}"')
            _run(east, pair.name, case, "schema")
            _run(east, pair.name, case, "before")
        follower = Follower(pair, seed=SeedSettings(schema="create", chunk_rows=200))
        refused = [each for each in await KIND.check(follower.stream) if each.severity is Severity.REFUSED]
        assert refused == []
        await _seeded(follower)
        for case in cases:
            _run(west, pair.name, case, "target")
        await watch_for_others(follower.stream)
        for case in cases:
            _run(east, pair.name, case, "live")
        await follower.capture()
        deaths = await _apply_through_deaths(follower, Limits(changes=changes))
        assert deaths > 0, "nothing has died"
        noted = pair.target("SELECT part, operation, application FROM castling.foreign_writes")
        assert noted == [], "what Castling writes is not of others"
        watched = pair.target("SELECT count(*) FROM castling.watched")[0][0]
        assert watched > (5 if both_15 else 50)
        extra = {f'"{case.name}".{table}' for case in cases for table in case.extra}
        found = compare(east.dsn(pair.name), west.dsn(pair.name))
        differing = [
            each
            for each in found.differences
            if each.table.replace('"', "") not in {name.replace('"', "") for name in extra}
        ]
        assert differing == [] and found.tables > (5 if both_15 else 50)
        for case in cases:
            for table, here, there in _own_columns(pair, case):
                assert here == there, f"{case.name}.{table}"
        if east.bin == west.bin:
            definitions = _definitions(east, pair.name, cases)
            assert definitions == _definitions(west, pair.name, cases) and len(definitions) > 20
        otherwise = ["public.other_", *(case.name for case in cases if (case.folder / "target.sql").exists())]
        if east.bin != west.bin:
            otherwise.append("extension ")  # each server has its own versions of them
        told = [each.object for each in await KIND.compare_schema(follower.stream)]
        assert [each for each in told if not any(name in each for name in otherwise)] in ([], ["schema"]), (
            told
        )
        with psycopg.connect(west.dsn(pair.name)) as connection:
            invalid = connection.execute(
                "SELECT conrelid::regclass::text, conname FROM pg_constraint WHERE NOT convalidated"
            ).fetchall()
        assert invalid == []
