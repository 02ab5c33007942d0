"""How fast an audit reads, beside the plain way: `md5(t::text)` of both tables on both ends at once.

    make bench-audit ARGS="--rows 500000 --rounds 5"

Both are run in turn, round by round, on the same two servers, with nothing else of ours at work; the plain
way only counts its digests, which is less than comparing them. Figures: seconds, rows a second and ratios,
each as median with the least and the greatest.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Sequence

import psycopg

from castling.config import load
from castling.kinds import load as load_kind
from castling.kinds.base import Stream
from castling.testing.cluster import GROUP, Cluster

TABLES = {
    "narrow": "CREATE TABLE narrow AS SELECT i AS id, i % 100 AS branch, i * 7 AS balance FROM {rows} i",
    "wide": "CREATE TABLE wide AS SELECT i AS id, md5(i::text) AS a, repeat('x', 200) AS b,"
    " i / 3.0::float8 AS c, now() AS at, i::numeric / 7 AS d, md5((-i)::text) AS e FROM {rows} i",
    "heap": "CREATE TABLE heap AS SELECT md5((i / 2)::text) AS a, i / 2 AS n FROM {rows} i",
}


class _Free:
    async def spent(self, *, seconds: float, size: int, rows: int) -> None:
        return


async def _plain(cluster: Cluster, table: str) -> float:
    async def one(node: str) -> None:
        async with await psycopg.AsyncConnection.connect(cluster.dsn(node)) as connection:
            await connection.execute(f"SELECT count(md5(t::text)) FROM {table} t".encode())

    begun_s = time.perf_counter()
    await asyncio.gather(one("east"), one("west"))
    return time.perf_counter() - begun_s


async def _measure(cluster: Cluster, rounds: int) -> None:
    config = load(cluster.homes["east"] / "deployed.toml")
    auditor = load_kind("postgres").auditor(Stream(GROUP, "west", config.groups[GROUP], config))
    plain: dict[str, list[float]] = {name: [] for name in TABLES}
    audit: dict[str, list[float]] = {name: [] for name in TABLES}
    views, pauses, rows = [], [], {}
    for number in range(rounds + 1):
        begun_s = time.perf_counter()
        async with auditor.at_one_position() as view:
            views.append(time.perf_counter() - begun_s)
            pauses.append(view.paused_s() or 0.0)
            for name in TABLES:
                ways = [False, True] if number % 2 else [True, False]
                for is_audit in ways:
                    begun_s = time.perf_counter()
                    if is_audit:
                        compared = await view.compare(f"public.{name}", _Free())
                        assert compared.result == "equal", compared
                        rows[name] = compared.rows_source or 0
                        audit[name].append(time.perf_counter() - begun_s)
                    else:
                        plain[name].append(await _plain(cluster, name))
    print("| table | rows | md5(t::text), s | audit, s | rows/s of the audit | audit : md5 |")
    print("| --- | --: | --: | --: | --: | --: |")
    for name in TABLES:
        a, p = audit[name][1:], plain[name][1:]  # the first round warms up
        ratios = [one / other for one, other in zip(a, p, strict=True)]
        speed = [rows[name] / each for each in a]
        print(
            f"| {name} | {rows[name]} | {_spread(p)} | {_spread(a)}"
            f" | {_spread(speed, 0)} | {_spread(ratios)} |"
        )
    print(f"\nto open a view: {_spread(views)} s; apply stood still: {_spread(pauses, 3)} s")


def _spread(values: Sequence[float], digits: int = 2) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    with Cluster(direct=True) as cluster:
        with psycopg.connect(cluster.dsn("east"), autocommit=True) as source:
            for statement in TABLES.values():
                source.execute(statement.format(rows=f"generate_series(1, {chosen.rows})").encode())
            source.execute("ALTER TABLE narrow ADD PRIMARY KEY (id); ALTER TABLE wide ADD PRIMARY KEY (id)")
            source.execute("ALTER TABLE heap REPLICA IDENTITY FULL")
            source.execute("CREATE TABLE acked (client int, n bigint, PRIMARY KEY (client, n))")
        cluster.start_group(within_s=900)
        for node in ("east", "west"):
            cluster.servers[node].execute("VACUUM ANALYZE", cluster.database)
        asyncio.run(_measure(cluster, chosen.rounds))


if __name__ == "__main__":
    main()
