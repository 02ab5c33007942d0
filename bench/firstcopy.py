"""How long the first copy takes, beside native table sync: the table with its primary key, and usable.

One table as pgbench's accounts. Native's target has the table and its key before, as a subscription needs
it; Castling makes both. Timed from the command until the copy is complete and a row that was written
after its beginning has come through the stream.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
from figures import Contest, table
from sides import Castling, Native, Peaks, Side, contestants

from castling.groups.stream import SeedState, load_stream
from castling.host import RealHost
from castling.testing.cluster import GROUP, Cluster
from castling.testing.compare import compare
from castling.testing.servers import EmbeddedServer

__all__ = ["first_copy"]

SIZES = (2_000_000, 20_000_000)
DATABASE = "copies"
_TABLE = "CREATE TABLE accounts (aid int PRIMARY KEY, bid int, abalance int, filler char(84))"


def first_copy(chosen: argparse.Namespace, peaks: Peaks) -> tuple[str, dict[str, object]]:
    """The part's page, and its figures. Servers and nodes of its own."""
    found: list[Contest] = []
    with Cluster(database=DATABASE, direct=True) as cluster:
        source = cluster.servers["east"]
        source.execute(_TABLE, DATABASE)
        native = Native(source, DATABASE, [_TABLE], seeded=False)
        try:
            for rows in SIZES:
                rounds = chosen.rounds if rows == SIZES[0] else chosen.big_rounds
                if rounds:
                    found.append(_contest(cluster, native, rows, rounds, peaks))
        finally:
            native.remove()
    head = ["first copy", "castling s (least – most)", "native s (least – most)", "native / castling"]
    return table(head, [each.row() for each in found]), {"seed": {each.name: vars(each) for each in found}}


def _contest(cluster: Cluster, native: Native, rows: int, rounds: int, peaks: Peaks) -> Contest:
    source, contest = cluster.servers["east"], Contest(f"{rows:,} rows")
    _fill(source, rows)
    castling = Castling(cluster)
    sides: list[Side] = [native, castling]
    for number in range(1, rounds + 1):
        for side in contestants(sides, number):
            took = _castling(cluster, castling, peaks) if side is castling else _native(source, native, peaks)
            contest.add(side.name, took)
        print(
            f"first copy of {rows:,} rows, round {number}: {contest.castling[-1]:.2f} s,"
            f" native {contest.native[-1]:.2f} s",
            file=sys.stderr,
        )
    return contest


def _fill(source: EmbeddedServer, rows: int) -> None:
    with psycopg.connect(source.dsn(DATABASE), autocommit=True) as connection:
        connection.execute("SET synchronous_commit = off")
        connection.execute("TRUNCATE accounts")
        connection.execute(
            f"INSERT INTO accounts SELECT i, i / 100000, 0, '' FROM generate_series(1, {rows}) i".encode()
        )
        connection.execute("VACUUM (ANALYZE, FREEZE) accounts")
        connection.execute("CHECKPOINT")


def _timed(
    source: EmbeddedServer, dsn: str, start: Callable[[], None], is_copied: Callable[[], bool]
) -> float:
    """Seconds from `start` until the copy is complete and what was written since has arrived."""
    began = time.perf_counter()
    start()
    mark = -time.time_ns() % 1_000_000_000
    source.execute(f"INSERT INTO accounts VALUES (-{mark}, 0, 0, '')", DATABASE)
    while not is_copied():
        time.sleep(0.02)
    with psycopg.connect(dsn, autocommit=True) as connection:
        while not connection.execute("SELECT 1 FROM accounts WHERE aid = %s", [-mark]).fetchone():
            time.sleep(0.02)
    return time.perf_counter() - began


def _castling(cluster: Cluster, side: Castling, peaks: Peaks) -> float:
    source, target = cluster.servers["east"], cluster.servers["west"]
    folder = str(cluster.homes["west"] / "groups" / GROUP / "east-west")

    def is_copied() -> bool:
        return Path(folder).exists() and load_stream(RealHost(), folder).seed is SeedState.SEEDED

    took = _timed(source, side.dsn, side.start, is_copied)
    peaks.look(side)
    _prove_equal(source, side)
    side.stop()
    cluster.cli("east", "group", "remove", GROUP, "--yes")
    target.execute("DROP TABLE accounts", DATABASE)
    target.execute("CHECKPOINT", DATABASE)
    return took


def _native(source: EmbeddedServer, side: Native, peaks: Peaks) -> float:
    def is_copied() -> bool:
        rows = side.server.execute(
            "SELECT count(*) FROM pg_subscription_rel WHERE srsubstate <> 'r'", DATABASE
        )
        return rows[0][0] == 0

    took = _timed(source, side.dsn, side.subscribe, is_copied)
    peaks.look(side)
    _prove_equal(source, side)
    side.unsubscribe()
    side.server.execute("TRUNCATE accounts", DATABASE)
    side.server.execute("CHECKPOINT", DATABASE)
    return took


def _prove_equal(source: EmbeddedServer, side: Side) -> None:
    found = compare(source.dsn(DATABASE), side.dsn, schemas=["public"])
    if found.differences:
        sys.exit(f"{side.name}'s copy differs: {found.differences[:3]}")
