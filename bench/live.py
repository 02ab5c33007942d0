"""What both systems do while the source is at work: what it costs the source, and how far behind they are."""

from __future__ import annotations

import argparse
import bisect
import sys
import threading
import time

import psycopg
from figures import Contest, quantile, spread, table
from load import pgbench
from sides import Peaks, Side, attach, contestants, cpu_s

from castling.testing.servers import EmbeddedServer

__all__ = ["source_overhead", "unprotected_time"]

CLIENTS = 8
#: more rounds tell no more here: each is thousands of transactions
_ROUNDS_MAX = 3
#: seconds between two looks at what is written and what is safe
_LOOK_S = 0.005


def source_overhead(
    source: EmbeddedServer, database: str, sides: list[Side], chosen: argparse.Namespace, peaks: Peaks
) -> tuple[str, dict[str, object]]:
    """Transactions a second of pgbench's TPC-B, 8 clients, with nothing, native, and Castling attached."""
    alone: list[float] = []
    rate, costs = Contest("transactions/s"), Contest("processor s at the source per 10,000 transactions")
    for number in range(1, min(chosen.rounds, _ROUNDS_MAX) + 1):
        alone.append(pgbench(source, database, clients=CLIENTS, seconds=chosen.seconds + 1).tps)
        for side in contestants(sides, number):
            side.start()
            attach(source, side)
            before = cpu_s(side.processes())
            load = pgbench(source, database, clients=CLIENTS, seconds=chosen.seconds + 1)
            used = {name: s - before.get(name, 0.0) for name, s in cpu_s(side.processes()).items()}
            rate.add(side.name, load.tps)
            # the walsender, and for Castling the source end, which may also run elsewhere (`capture_on`)
            at_source = sum(s for name, s in used.items() if name.startswith("source"))
            costs.add(side.name, at_source * 10_000 / len(load.times_ms))
            peaks.look(side)
            side.stop()
        print(
            f"overhead, round {number}: {alone[-1]:.0f} tps alone, {rate.castling[-1]:.0f} with castling,"
            f" {rate.native[-1]:.0f} with native",
            file=sys.stderr,
        )
    head = ["source under 8 clients", "alone", "castling", "native", "castling as good as native"]
    rows = []
    for contest, form, less, nothing in (
        (rate, ".0f", False, spread(alone, ".0f")),
        (costs, ".2f", True, ""),
    ):
        name, ours, native, ratio = contest.row(form, less_is_better=less)
        rows.append([name, nothing, ours, native, ratio])
    figures = {"tps": vars(rate) | {"alone": alone}, "processor": vars(costs)}
    return table(head, rows), {"overhead": figures}


def unprotected_time(
    source: EmbeddedServer, database: str, sides: list[Side], chosen: argparse.Namespace, peaks: Peaks
) -> tuple[str, dict[str, object]]:
    """How long what was committed was on the source alone, at half of the rate that the machine can do.

    Asked of the source, in the same way for both: when its log had come so far, and when the standby had
    said that it holds that much durably (pg_stat_replication.flush_lsn).
    """
    fastest: list[float] = []
    found = {share: Contest(f"RPO p{share}, ms") for share in (50, 99)}
    for number in range(1, min(chosen.rounds, _ROUNDS_MAX) + 1):
        for side in contestants(sides, number):
            side.start()
            attach(source, side)
            if not fastest:
                fastest.append(pgbench(source, database, clients=CLIENTS, seconds=chosen.seconds).tps)
                attach(source, side)
            with _Watch(source, side.application) as watch:
                pgbench(source, database, clients=CLIENTS, seconds=chosen.seconds + 1, rate=fastest[0] / 2)
            for share, contest in found.items():
                contest.add(side.name, quantile(watch.lags_s(), share / 100) * 1000)
            peaks.look(side)
            side.stop()
        shown = ", ".join(
            f"p{share} {each.castling[-1]:.1f} ms (native {each.native[-1]:.1f})"
            for share, each in found.items()
        )
        print(f"rpo, round {number}: {shown}", file=sys.stderr)
    head = [
        f"at {fastest[0] / 2:.0f} transactions/s",
        "castling",
        "native",
        "native / castling",
    ]
    return table(head, [each.row(".1f") for each in found.values()]), {
        "rpo": {f"p{share}": vars(each) for share, each in found.items()} | {"fastest_tps": fastest[0]}
    }


class _Watch:
    """Looks, every few milliseconds, at what the source has written and what its standby holds."""

    _QUESTION = (
        "SELECT pg_current_wal_flush_lsn() - '0/0'::pg_lsn, COALESCE(max(flush_lsn) - '0/0'::pg_lsn, 0)"
        " FROM pg_stat_replication WHERE application_name = %s"
    )

    def __init__(self, source: EmbeddedServer, application: str) -> None:
        self._dsn = source.dsn()
        self._application = application
        self._looks: list[tuple[float, int, int]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        time.sleep(1.0)  # for what was written last
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            while not self._over.wait(_LOOK_S):
                row = connection.execute(self._QUESTION, [self._application], prepare=True).fetchone()
                assert row is not None
                self._looks.append((time.monotonic(), int(row[0]), int(row[1])))

    def lags_s(self) -> list[float]:
        """Of each look at which more had been written than before: how much later that was safe."""
        safe = [held for _, _, held in self._looks]
        found, before = [], 0
        for at_s, written, _ in self._looks:
            if written > before:
                later = bisect.bisect_left(safe, written)
                if later < len(safe):
                    found.append(max(0.0, self._looks[later][0] - at_s))
                before = written
        return found or [float("nan")]
