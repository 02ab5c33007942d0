"""How much of seeded damage an audit finds, what it imagines, and whether its repair makes both ends equal
again.

    make audit-power ARGS="--pieces 50"

Fifty pieces of each class of `castling.testing.damage` are done to the target behind replication's back,
under load, class by class: damage, audit, judge, repair, audit again. In the end writers stop, and a
comparison that shares no code with audits (`castling.testing.compare`) has the last word. Exits with 1 when
anything was missed, imagined or left.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time

import msgspec
import psycopg

from castling.config import load
from castling.kinds import load as load_kind
from castling.kinds.base import Auditor, Compared, Discrepancy, Stream
from castling.testing.cluster import GROUP, Cluster
from castling.testing.compare import compare
from castling.testing.damage import CLASSES, SCHEMA, definitions, judge, keep_writing, keep_writing_oddly


class _Free:
    async def spent(self, *, seconds: float, size: int, rows: int) -> None:
        return


async def _audit(auditor: Auditor) -> tuple[list[Discrepancy], float | None]:
    """What was found, and how long apply stood still."""
    found: list[Discrepancy] = []
    async with auditor.at_one_position() as view:
        for part in await auditor.parts():
            compared = await view.compare(part.part, _Free())
            assert not compared.problem, compared
            found += compared.found
        paused_s = view.paused_s()
    for rule in auditor.rules:
        for compared in await auditor.look(rule) if rule != "rows" else ():
            assert not compared.problem, compared
            found += compared.found
    return found, paused_s


def _measure(cluster: Cluster, pieces: int) -> bool:
    config = load(cluster.homes["east"] / "deployed.toml")
    auditor = load_kind("postgres").auditor(Stream(GROUP, "west", config.groups[GROUP], config))
    is_good = True
    healthy, _ = asyncio.run(_audit(auditor))
    print(f"before any damage: {len(healthy)} findings", file=sys.stderr)
    is_good = not healthy
    print("| class | done | found | missed | imagined | repaired | left | audit, s | apply stood still, ms |")
    print("| --- | --: | --: | --: | --: | --: | --: | --: | --: |")
    for damage in CLASSES:
        done = []
        with psycopg.connect(cluster.dsn("west"), autocommit=True) as target:
            target.execute("SET session_replication_role = replica")
            for number in range(1, pieces + 1):
                done += damage.do(target, number)
        begun_s = time.perf_counter()
        found, paused_s = asyncio.run(_audit(auditor))
        took_s = time.perf_counter() - begun_s
        judged = judge(done, [msgspec.to_builtins(each) for each in found])
        repaired = sum(each.result == "done" for each in asyncio.run(auditor.repair(found)))
        left, _ = asyncio.run(_audit(auditor))
        paused = "unknown" if paused_s is None else f"{paused_s * 1000:.0f}"
        print(
            f"| {damage.name} | {len(done)} | {len(judged.found)} | {len(judged.missed)}"
            f" | {len(judged.imagined)} | {repaired} | {len(left)} | {took_s:.1f} | {paused} |",
            flush=True,
        )
        is_good = is_good and not (judged.missed or judged.imagined or left) and repaired == len(found)
    return is_good


def _soak(cluster: Cluster, seconds: float) -> bool:
    """Healthy ends, audited again and again under load: whatever is found is imagined."""
    config = load(cluster.homes["east"] / "deployed.toml")
    auditor = load_kind("postgres").auditor(Stream(GROUP, "west", config.groups[GROUP], config))
    audits = compared = unknown = rows = 0
    imagined: list[Discrepancy] = []
    pauses: list[float] = []

    async def one() -> list[Compared]:
        async with auditor.at_one_position() as view:
            found = [await view.compare(part.part, _Free()) for part in await auditor.parts()]
            pauses.append(view.paused_s() or 0.0)
        return found + [each for rule in auditor.rules[1:] for each in await auditor.look(rule)]

    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        found = asyncio.run(one())
        audits, compared = audits + 1, compared + len(found)
        unknown += sum(bool(each.problem) for each in found)
        rows += sum(each.rows_source or 0 for each in found)
        imagined += [one for each in found for one in each.found]
    pauses.sort()
    told = ", ".join(f"{1000 * pauses[int(len(pauses) * at)]:.0f}" for at in (0.5, 0.99))
    print(
        f"{audits} audits, {compared} comparisons, {rows} rows: {len(imagined)} imagined, {unknown} unknown"
    )
    print(f"apply stood still, ms (p50, p99, max): {told}, {1000 * pauses[-1]:.0f}")
    for each in imagined:
        print(each)
    return not imagined


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pieces", type=int, default=50)
    parser.add_argument("--soak", type=float, metavar="SECONDS", help="no damage: what is found is imagined")
    chosen = parser.parse_args()
    with Cluster(
        direct=True, group={"lanes": 3}, server_settings={"max_prepared_transactions": "10"}
    ) as cluster:
        with psycopg.connect(cluster.dsn("east"), autocommit=True) as source:
            source.execute(SCHEMA.encode())
            source.execute(definitions(chosen.pieces).encode())
        cluster.start_group(within_s=900)
        if chosen.soak is not None:
            with (
                keep_writing(cluster.dsn("east"), 4, 0.004) as written,
                keep_writing_oddly(cluster.dsn("east")),
            ):
                is_good = _soak(cluster, chosen.soak)
                print(f"transactions of the load meanwhile: {written()}")
            return 0 if is_good else 1
        with keep_writing(cluster.dsn("east")) as written:
            is_good = _measure(cluster, chosen.pieces)
            print(f"\ntransactions of the load meanwhile: {written()}")
        cluster.wait_until_applied()
        last = compare(cluster.dsn("east"), cluster.dsn("west"))
        print(f"compared by another way: {last.tables} tables, {last.rows} rows, equal: {last.equal}")
        for difference in last.differences:
            print(difference)
    return 0 if is_good and last.equal else 1


if __name__ == "__main__":
    sys.exit(main())
