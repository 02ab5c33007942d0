"""How long a commit on the source takes when it waits for the copy, beside a native synchronous subscription.

A single row is updated by key, over and over, by pgbench with one client and with eight; the time of every
transaction is logged. "alone" is the same server when no commit waits for anybody.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from figures import Contest, quantile, spread, table
from load import pgbench
from sides import Native, Peaks, Side, attach, contestants

from castling.testing.servers import EmbeddedServer

__all__ = ["commit_latency"]

CLIENTS = (1, 8)
_SCRIPT = """\\set aid random(1, 100000)
UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid = :aid;
"""


def commit_latency(
    source: EmbeddedServer, database: str, sides: list[Side], chosen: argparse.Namespace, peaks: Peaks
) -> tuple[str, dict[str, object]]:
    """The part's page, and its figures. The group of Castling delivers synchronously."""
    found = {(clients, share): Contest("") for clients in CLIENTS for share in (50, 99)}
    alone: dict[tuple[int, int], list[float]] = {key: [] for key in found}
    with tempfile.TemporaryDirectory(prefix="castling-bench-") as folder:
        script = Path(folder) / "update.sql"
        script.write_text(_SCRIPT)
        for number in range(1, chosen.rounds + 1):
            for clients in CLIENTS:
                _measure(
                    source, database, script, clients, chosen.seconds, lambda key, ms: alone[key].append(ms)
                )
            for side in contestants(sides, number):
                _wait_for(source, database, side)
                for clients in CLIENTS:
                    _measure(
                        source,
                        database,
                        script,
                        clients,
                        chosen.seconds,
                        lambda key, ms, name=side.name: found[key].add(name, ms),
                    )
                peaks.look(side)
                _let_go(source, side)
            shown = ", ".join(
                f"{clients} clients p{share} {contest.castling[-1]:.2f} ms (native {contest.native[-1]:.2f})"
                for (clients, share), contest in found.items()
            )
            print(f"sync, round {number}: {shown}", file=sys.stderr)
    head = ["commit latency", "alone ms", "castling ms", "native ms", "native / castling"]
    rows = []
    for (clients, share), contest in found.items():
        _, ours, native, ratio = contest.row()
        rows.append(
            [
                f"{clients} client{'s' * (clients > 1)}, p{share}",
                spread(alone[clients, share]),
                ours,
                native,
                ratio,
            ]
        )
    figures = {
        f"{clients}, p{share}": vars(each) | {"alone": alone[clients, share]}
        for (clients, share), each in found.items()
    }
    return table(head, rows), {"sync": figures}


def _measure(source: EmbeddedServer, database: str, script: Path, clients: int, seconds: float, add) -> None:
    times_ms = pgbench(source, database, clients=clients, seconds=seconds, script=script).times_ms
    for share in (50, 99):
        add((clients, share), quantile(times_ms, share / 100))


def _wait_for(source: EmbeddedServer, database: str, side: Side) -> None:
    """Start it, and return when commits wait for it."""
    side.start()
    attach(source, side)
    if isinstance(side, Native):
        _set_names(source, side.application)
    _until(
        source,
        "SELECT count(*) = 1 FROM pg_stat_replication"
        f" WHERE application_name = '{side.application}' AND sync_state IN ('sync', 'quorum')",
    )


def _let_go(source: EmbeddedServer, side: Side) -> None:
    if isinstance(side, Native):
        _set_names(source, "")
    side.stop()
    _until(source, "SELECT pg_catalog.current_setting('synchronous_standby_names') = ''")


def _set_names(source: EmbeddedServer, names: str) -> None:
    source.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
    source.execute("SELECT pg_reload_conf()")


def _until(source: EmbeddedServer, question: str) -> None:
    deadline = time.monotonic() + 60
    while not source.execute(question)[0][0]:
        if time.monotonic() > deadline:
            raise TimeoutError(question)
        time.sleep(0.05)
