"""Castling beside PostgreSQL's own logical replication: the same backlogs, one after the other, in one run.

    make bench-postgres ARGS="--rounds 5 --scale 1"

One source, two targets, all PostgreSQL 18 on loopback TCP. Both systems are seeded and then
stopped; a backlog of one kind of work is written; each is started in turn (the order alternates) and
timed until the backlog's last row is on its target. Every round ends with a comparison of all
tables of both targets with the source, so a fast wrong copy does not count. Wall times on a shared
machine are noisy: read the ratios of one run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psycopg
from segments import SCHEMA, SEGMENTS, Segment, fill
from sides import Castling, Native, Side, cores, wait_for_sentinel

from castling.testing.cluster import Cluster
from castling.testing.compare import compare
from castling.testing.servers import EmbeddedServer

DATABASE = "bank"


@dataclass
class Result:
    """What one segment took, by round."""

    segment: str
    what: str
    transactions: int = 0
    row_changes: int = 0
    castling_s: list[float] = field(default_factory=list)
    native_s: list[float] = field(default_factory=list)

    def add(self, side: str, seconds: float) -> None:
        (self.castling_s if side == "castling" else self.native_s).append(round(seconds, 3))

    def ratios(self) -> list[float]:
        return [n / c for n, c in zip(self.native_s, self.castling_s, strict=True)]


def timed(side: Side, number: int, segment: str, peaks: dict[str, int]) -> float:
    """Seconds from the command to start until the backlog is on the target."""
    began = time.perf_counter()
    side.start()
    wait_for_sentinel(side.dsn, number, segment)
    took = time.perf_counter() - began
    for name, peak in side.peaks().items():
        peaks[f"{side.name} {name}"] = max(peak, peaks.get(f"{side.name} {name}", 0))
    side.stop()
    return took


def mark(source: EmbeddedServer, number: int, segment: str) -> None:
    source.execute(f"INSERT INTO sentinel VALUES ({number}, '{segment}')", DATABASE)


def contest(sides: list[Side], number: int, segment: str, peaks: dict[str, int]) -> dict[str, float]:
    order = sides if number % 2 else list(reversed(sides))
    return {side.name: timed(side, number, segment, peaks) for side in order}


def proven_equal(source: EmbeddedServer, sides: list[Side], number: int) -> None:
    for side in sides:
        found = compare(source.dsn(DATABASE), side.dsn, schemas=["public"])
        if found.differences:
            sys.exit(f"{side.name} differs after round {number}: {found.differences[:3]}")


def table(results: list[Result], starting: dict[str, float]) -> str:
    lines = [
        "| backlog | transactions | row changes | castling s (least – most) | native s (least – most)"
        " | native / castling |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for each in results:
        cells = [
            f"{statistics.median(times):.2f} ({min(times):.2f} – {max(times):.2f})"
            for times in (each.castling_s, each.native_s)
        ]
        ratios = each.ratios()
        ratio = f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f} – {max(ratios):.2f})"
        lines.append(
            f"| {each.segment}: {each.what} | {each.transactions:,} | {each.row_changes:,} |"
            f" {cells[0]} | {cells[1]} | {ratio} |"
        )
    lines += [
        "",
        "To start, with nothing to do (part of each time above): "
        + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in sorted(starting.items())),
    ]
    return "\n".join(lines)


def run(chosen: argparse.Namespace, source: EmbeddedServer, sides: list[Side]) -> dict[str, object]:
    picked: list[Segment] = [each for each in SEGMENTS if not chosen.segments or each.name in chosen.segments]
    results = [Result(each.name, each.what) for each in picked]
    peaks: dict[str, int] = {}
    mark(source, 0, "start")
    starting = contest(sides, 0, "start", {})
    for number in range(1, chosen.rounds + 1):
        for segment, result in zip(picked, results, strict=True):
            result.transactions, result.row_changes = segment.write(source, DATABASE, number, chosen.scale)
            mark(source, number, segment.name)
            row = contest(sides, number, segment.name, peaks)
            for name, seconds in row.items():
                result.add(name, seconds)
            shown = {name: round(seconds, 2) for name, seconds in row.items()}
            print(json.dumps({"round": number, "segment": segment.name} | shown), file=sys.stderr)
        proven_equal(source, sides, number)
    version = str(source.execute("SHOW server_version")[0][0])
    print(f"PostgreSQL {version}; {chosen.rounds} rounds, scale {chosen.scale:g}; {cores()} cores\n")
    print(table(results, starting))
    print("\nPeak memory, MiB: " + ", ".join(f"{name} {peak >> 20}" for name, peak in sorted(peaks.items())))
    return {"rounds": [asdict(each) for each in results], "starting": starting, "peaks": peaks}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--segments", nargs="*", choices=[each.name for each in SEGMENTS])
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    with Cluster(database=DATABASE, direct=True) as cluster:
        source = cluster.servers["east"]
        with psycopg.connect(source.dsn(DATABASE), autocommit=True) as connection:
            connection.execute(SCHEMA.encode())
            fill(connection, max(1, int(10 * chosen.scale)))
            connection.execute("VACUUM ANALYZE")
        cluster.start_group()
        cluster.stop_group()
        native = Native(source, DATABASE, [SCHEMA])
        try:
            found = run(chosen, source, [native, Castling(cluster)])
        finally:
            native.remove()
    if chosen.json:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        ).stdout
        chosen.json.write_text(json.dumps({"commit": commit.strip(), **found}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
