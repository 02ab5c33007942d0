"""An audit compares both ends at one position while writers run, and mends what it finds."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import msgspec
import psycopg
import pytest

from castling.config import load
from castling.kinds import load as load_kind
from castling.kinds.base import Auditor, Compared, Discrepancy, Stream
from castling.testing.cluster import GROUP, Cluster, wait_for
from castling.testing.compare import compare
from castling.testing.damage import CLASSES, SCHEMA, Expected, definitions, judge, keep_writing

T = TypeVar("T")


class _Free:
    """An audit without limits."""

    async def spent(self, *, seconds: float, size: int, rows: int) -> None:
        return


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(direct=True, group={"lanes": 2, "delivery": "sync", "on_sync_loss": "wait"}) as made:
        with psycopg.connect(made.dsn("east"), autocommit=True) as source:
            source.execute(SCHEMA.encode())
            source.execute(definitions(2).encode())
        made.start_group()
        yield made


def _auditor(cluster: Cluster) -> Auditor:
    config = load(cluster.homes["east"] / "deployed.toml")
    return load_kind("postgres").auditor(Stream(GROUP, "west", config.groups[GROUP], config))


def _run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


async def _audit(auditor: Auditor, *, rules: bool = True) -> list[Compared]:
    found = []
    async with auditor.at_one_position() as view:
        for part in await auditor.parts():
            found.append(await view.compare(part.part, _Free()))
        paused_s = view.paused_s()
        assert paused_s is not None and paused_s < 6
    for rule in auditor.rules if rules else ():
        if rule != "rows":
            found += await auditor.look(rule)
    return found


def _found(results: list[Compared]) -> list[Discrepancy]:
    assert not [each for each in results if each.problem], results
    return [each for result in results for each in result.found]


def test_healthy_ends_are_equal_under_load(cluster: Cluster) -> None:
    auditor = _auditor(cluster)
    with keep_writing(cluster.dsn("east")) as written:
        for _ in range(3):
            before = written()
            results = _run(_audit(auditor))
            assert _found(results) == []
            rows = {each.part: (each.rows_source, each.rows_target) for each in results}
            assert rows["public.things"] == (4000, 4000)
            assert rows["public.heap"][0] == rows["public.heap"][1]
            wait_for(lambda before=before: written() > before, "writers go on")  # type: ignore[misc]


def test_all_damage_is_found_and_none_imagined_and_mended(cluster: Cluster) -> None:
    auditor = _auditor(cluster)
    done: list[Expected] = []
    with keep_writing(cluster.dsn("east")):
        with psycopg.connect(cluster.dsn("west"), autocommit=True) as target:
            target.execute("SET session_replication_role = replica")
            for damage in CLASSES:
                for number in (1, 2):
                    done += damage.do(target, number)
        found = _found(_run(_audit(auditor)))
        judged = judge(done, [msgspec.to_builtins(each) for each in found])
        assert not judged.missed and not judged.imagined, judged
        repaired = _run(auditor.repair(found))
        assert len(repaired) == len(found)
        refused = [(found[each.index], each.detail) for each in repaired if each.result != "done"]
        assert not refused, refused
        assert _found(_run(_audit(auditor))) == []
    cluster.wait_until_applied()
    assert compare(cluster.dsn("east"), cluster.dsn("west")).equal
