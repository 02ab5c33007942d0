"""Castling beside PostgreSQL's own logical replication, in one run, on one machine over loopback TCP.

    make bench-postgres                                        # everything, about 20 minutes on two cores
    make bench-postgres ARGS="--parts catchup --scale 4"       # one part
    make bench-postgres ARGS="--parts sync seed --rounds 3"

Parts: catchup (a stopped copy and a backlog, by kind of work), apply (from a hardened journal), sync (commit
latency), seed (the first copy), rpo (at half of the machine's rate), overhead (what the source loses). Runs
of both systems alternate; told are medians, least and most, and the median of the rounds' ratios. Wall
times on a shared machine are noisy: read the ratios of one run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
from catchup import catch_up
from firstcopy import first_copy
from latency import commit_latency
from live import source_overhead, unprotected_time
from segments import SCHEMA, SEGMENTS, fill
from sides import Castling, Native, Peaks, Side, cores

import castling
from castling.testing.cluster import Cluster
from castling.testing.servers import EmbeddedServer

DATABASE = "bank"
PARTS = ("catchup", "apply", "sync", "seed", "rpo", "overhead")
#: the parts that share servers, and what measures them
_ASYNCHRONOUS = {"catchup": catch_up, "rpo": unprotected_time, "overhead": source_overhead}

Found = dict[str, object]


@contextlib.contextmanager
def both(scale: float, *, synchronous: bool = False) -> Iterator[tuple[EmbeddedServer, list[Side]]]:
    """The source, and both systems, seeded and stopped."""
    group = {"delivery": "sync", "on_sync_loss": "wait"} if synchronous else {}
    with Cluster(database=DATABASE, direct=True, group=group) as cluster:
        source = cluster.servers["east"]
        with psycopg.connect(source.dsn(DATABASE), autocommit=True) as connection:
            connection.execute(SCHEMA.encode())
            fill(connection, max(1, int(10 * scale)))
            connection.execute("VACUUM ANALYZE")
        cluster.start_group()
        cluster.stop_group()
        native = Native(source, DATABASE, [SCHEMA], synchronous=synchronous)
        try:
            yield source, [native, Castling(cluster)]
        finally:
            native.remove()


def apply_alone(chosen: argparse.Namespace) -> tuple[str, Found]:
    """`bench/apply.py`, which has processes of its own."""
    script = Path(__file__).with_name("apply.py")
    rounds, scale = str(min(chosen.rounds, 3)), str(chosen.scale)
    command = [sys.executable, str(script), "--native", "--rounds", rounds, "--scale", scale]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip(), {}


def run(chosen: argparse.Namespace, peaks: Peaks) -> Iterator[tuple[str, str, Found]]:
    """Each wanted part's name, page and figures."""
    shared = [part for part in chosen.parts if part in _ASYNCHRONOUS]
    if shared:
        with both(chosen.scale) as (source, sides):
            for part in shared:
                yield part, *_ASYNCHRONOUS[part](source, DATABASE, sides, chosen, peaks)
    if "sync" in chosen.parts:
        with both(0.1, synchronous=True) as (source, sides):
            yield "sync", *commit_latency(source, DATABASE, sides, chosen, peaks)
    if "seed" in chosen.parts:
        yield "seed", *first_copy(chosen, peaks)
    if "apply" in chosen.parts:
        yield "apply", *apply_alone(chosen)


def versions() -> str:
    with EmbeddedServer(name="version").start() as server:
        found = server.execute("SHOW server_version")[0][0]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return (
        f"Castling {castling.__version__} ({commit.stdout.strip() or 'no commit'}), PostgreSQL {found},"
        f" Python {platform.python_version()}, Linux {platform.release()}, {cores()} cores"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--scale", type=float, default=2.0, help="size of the backlogs and of pgbench's tables"
    )
    parser.add_argument("--segments", nargs="*", choices=[each.name for each in SEGMENTS])
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement under load")
    parser.add_argument("--big-rounds", type=int, default=1, help="rounds of the copy of 20 million rows")
    parser.add_argument("--json", type=Path, help="write all figures there")
    chosen = parser.parse_args()
    began, peaks, figures = time.monotonic(), Peaks(), {}
    head = versions()
    print(head, file=sys.stderr)
    pages = []
    for part, page, found in run(chosen, peaks):
        pages.append(f"{part}:\n\n{page}\n")
        figures |= found
        print(f"-- {part} is measured, {time.monotonic() - began:.0f} s so far", file=sys.stderr)
    print(
        f"{head}; {chosen.rounds} rounds, scale {chosen.scale:g}; {time.monotonic() - began:.0f} s in all\n"
    )
    print("\n".join(pages))
    if peaks:
        print(
            "Peak memory, MiB: " + ", ".join(f"{name} {peak >> 20}" for name, peak in sorted(peaks.items()))
        )
    if chosen.json:
        chosen.json.write_text(json.dumps({"of": head, "peaks": peaks, **figures}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
