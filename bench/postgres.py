"""Castling beside PostgreSQL's own logical replication: the same backlog, one after the other, in one run.

    make bench-postgres ARGS="--rounds 5 --scale 1"

One source, two targets, all PostgreSQL 18 on loopback TCP. Both systems are seeded and then
stopped; a backlog is written; each is started in turn (the order alternates by round) and timed
until a sentinel row of the backlog is on its target. Every round ends with a comparison of all
tables of both targets with the source, so a fast wrong copy does not count. Wall times on a shared
machine are noisy: read the ratios of one run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psycopg

from castling.testing.cluster import Cluster
from castling.testing.compare import compare
from castling.testing.servers import EmbeddedServer

DATABASE = "bank"
PUBLICATION = "native_bench"


def schema(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    connection.execute(
        """
        CREATE TABLE narrow (id bigint PRIMARY KEY, a int NOT NULL, b text);
        CREATE TABLE wide (id bigint PRIMARY KEY, body text);
        CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL, filler text);
        CREATE TABLE ledger (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, account int, delta int);
        CREATE TABLE sentinel (round int PRIMARY KEY, at timestamptz DEFAULT clock_timestamp());
        """
    )


def fill(connection: psycopg.Connection[tuple[object, ...]], scale: float) -> None:
    connection.execute(
        "INSERT INTO account SELECT i, 1000, repeat('x', 80) FROM generate_series(1, %s) i",
        [int(50_000 * scale)],
    )


def backlog(dsn: str, number: int, scale: float) -> dict[str, int]:
    """One round of changes, the same shape each time; the last commit is the sentinel."""
    rows = int(100_000 * scale)
    base = number * 100_000_000
    small = int(6_000 * scale)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("SET synchronous_commit = off")
        connection.execute(
            f"""
            DO $$ BEGIN
              FOR i IN 1..{small} LOOP
                UPDATE account SET balance = balance - 1 WHERE id = 1 + (i * 7919) % {int(50_000 * scale)};
                INSERT INTO ledger (account, delta) VALUES (i, -1);
                COMMIT;
              END LOOP;
            END $$
            """.encode()
        )
        connection.execute(
            "INSERT INTO narrow SELECT %s + i, i, 'row ' || i FROM generate_series(1, %s) i", [base, rows]
        )
        connection.execute(
            f"""
            DO $$ BEGIN
              FOR i IN 1..{rows // 100} LOOP
                INSERT INTO narrow
                  SELECT {base + 10_000_000} + i * 100 + j, j, 'batch' FROM generate_series(1, 100) j;
                COMMIT;
              END LOOP;
            END $$
            """.encode()
        )
        connection.execute("UPDATE narrow SET a = a + 1 WHERE id > %s AND id <= %s", [base, base + rows // 2])
        connection.execute("DELETE FROM narrow WHERE id > %s AND id <= %s", [base, base + rows // 2])
        connection.execute(
            """
            INSERT INTO wide
            SELECT %s + i, (SELECT string_agg(md5((i * j)::text), '') FROM generate_series(1, 250) j)
            FROM generate_series(1, %s) i
            """,
            [base, int(1_000 * scale)],
        )
        connection.execute("INSERT INTO sentinel (round) VALUES (%s)", [number])
    return {"transactions": small + rows // 100 + 5, "row_changes": 2 * small + 3 * rows + int(1_000 * scale)}


def wait_for_sentinel(dsn: str, number: int, limit_s: float = 600) -> None:
    deadline = time.monotonic() + limit_s
    with psycopg.connect(dsn, autocommit=True) as connection:
        while not connection.execute("SELECT 1 FROM sentinel WHERE round = %s", [number]).fetchone():
            if time.monotonic() > deadline:
                raise TimeoutError(f"round {number} did not arrive in {limit_s:.0f} s")
            time.sleep(0.02)


def timed(start: Callable[[], object], dsn: str, number: int) -> float:
    began = time.perf_counter()
    start()
    wait_for_sentinel(dsn, number)
    return time.perf_counter() - began


class Native:
    """PostgreSQL's own subscription, with the options of a careful administrator."""

    name = "native"

    def __init__(self, source: EmbeddedServer) -> None:
        self.server = EmbeddedServer(name="native").start()
        self.server.execute(f"CREATE DATABASE {DATABASE}")
        self.dsn = self.server.dsn(DATABASE)
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            schema(connection)
        source.execute(f"CREATE PUBLICATION {PUBLICATION} FOR TABLES IN SCHEMA public", DATABASE)
        self.server.execute(
            f"CREATE SUBSCRIPTION {PUBLICATION} "
            f"CONNECTION '{source.tcp_dsn(DATABASE)} password={source.PASSWORD}' "
            f"PUBLICATION {PUBLICATION} WITH (binary = true, streaming = parallel)",
            DATABASE,
        )
        self._until("SELECT count(*) = 0 FROM pg_subscription_rel WHERE srsubstate <> 'r'")
        self.stop()

    def _until(self, question: str) -> None:
        deadline = time.monotonic() + 120
        while not self.server.execute(question, DATABASE)[0][0]:
            if time.monotonic() > deadline:
                raise TimeoutError(question)
            time.sleep(0.05)

    def start(self) -> None:
        self.server.execute(f"ALTER SUBSCRIPTION {PUBLICATION} ENABLE", DATABASE)

    def stop(self) -> None:
        self.server.execute(f"ALTER SUBSCRIPTION {PUBLICATION} DISABLE", DATABASE)
        self._until("SELECT count(*) = 0 FROM pg_stat_subscription WHERE pid IS NOT NULL")


def table(
    rows: list[dict[str, object]], counts: dict[str, int], version: str, starting: dict[str, float]
) -> str:
    castling = [float(str(row["castling_s"])) for row in rows]
    native = [float(str(row["native_s"])) for row in rows]
    ratios = [n / c for n, c in zip(native, castling, strict=True)]
    lines = [
        f"{version}; {counts['transactions']} transactions, {counts['row_changes']} row changes a round; "
        f"{os.cpu_count()} cores, everything on one machine",
        "",
        "| system | median s | least – most | row changes/s | to start, with nothing to do, s |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, times in (("castling", castling), ("native", native)):
        rate = counts["row_changes"] / statistics.median(times)
        lines.append(
            f"| {name} | {statistics.median(times):.2f} | {min(times):.2f} – {max(times):.2f} | {rate:,.0f} |"
            f" {starting[name]:.2f} |"
        )
    lines += [
        "",
        f"native / castling: median {statistics.median(ratios):.2f}, {min(ratios):.2f} – {max(ratios):.2f}",
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    rows: list[dict[str, object]] = []
    counts: dict[str, int] = {}
    with Cluster(database=DATABASE) as cluster:
        source = cluster.servers["east"]
        with psycopg.connect(source.dsn(DATABASE), autocommit=True) as connection:
            schema(connection)
            fill(connection, chosen.scale)
        native = Native(source)
        try:
            cluster.start_group()
            cluster.stop_group()
            starting: dict[str, float] = {}
            for number in range(chosen.rounds + 1):
                contest = {
                    "native": lambda n=number: timed(native.start, native.dsn, n),
                    "castling": lambda n=number: timed(
                        cluster.start_group_now, cluster.servers["west"].dsn(DATABASE), n
                    ),
                }
                if number == 0:  # what it costs to start at all
                    source.execute("INSERT INTO sentinel (round) VALUES (0)", DATABASE)
                    for name, run in contest.items():
                        starting[name] = run()
                        (native.stop if name == "native" else cluster.stop_group)()
                    continue
                counts = backlog(source.dsn(DATABASE), number, chosen.scale)
                order = list(contest) if number % 2 else list(reversed(list(contest)))
                row: dict[str, object] = {"round": number, "first": order[0]}
                for name in order:
                    row[f"{name}_s"] = round(contest[name](), 3)
                    (native.stop if name == "native" else cluster.stop_group)()
                for name, dsn in (
                    ("native", native.dsn),
                    ("castling", cluster.servers["west"].dsn(DATABASE)),
                ):
                    found = compare(source.dsn(DATABASE), dsn, schemas=["public"])
                    if found.differences:
                        sys.exit(f"{name} differs after round {number}: {found.differences[:3]}")
                rows.append(row)
                print(json.dumps(row), file=sys.stderr)
            version = str(source.execute("SHOW server_version")[0][0])
        finally:
            native.server.remove()
    print(table(rows, counts, f"PostgreSQL {version}", starting))
    if chosen.json:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        ).stdout
        chosen.json.write_text(
            json.dumps({"commit": commit.strip(), "rounds": rows, "starting": starting, **counts}, indent=1)
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
