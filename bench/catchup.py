"""How long a stopped copy takes to catch up with a backlog, by kind of work.

Both systems are seeded and stopped; a backlog of one kind of work is written; each is started in turn
and timed until the backlog's last row is on its target. Every round ends with a comparison of all tables
of our target with the source, the last one of both, so a fast wrong copy does not count.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field

from figures import Contest, table
from segments import SEGMENTS, Segment
from sides import Peaks, Side, contestants, cpu_s, wait_for_sentinel

from castling.testing.compare import compare
from castling.testing.servers import EmbeddedServer

__all__ = ["catch_up"]


@dataclass
class Result:
    """What one segment took, by round. `cpu`: processor seconds by system and process."""

    segment: Segment
    transactions: int = 0
    row_changes: int = 0
    seconds: Contest = field(init=False)
    cpu: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        self.seconds = Contest(f"{self.segment.name}: {self.segment.what}")


def catch_up(
    source: EmbeddedServer, database: str, sides: list[Side], chosen: argparse.Namespace, peaks: Peaks
) -> tuple[str, dict[str, object]]:
    """The part's page, and its figures."""
    picked = [each for each in SEGMENTS if not chosen.segments or each.name in chosen.segments]
    results = [Result(each) for each in picked]
    starting = Contest("to start, with nothing to do (part of each time)")
    for number in range(chosen.rounds + 1):
        _mark(source, database, number, "start")
        for side in contestants(sides, number):
            took, _ = _timed(side, number, "start", Peaks())
            if number:
                starting.add(side.name, took)
        for result in results if number else ():
            segment = result.segment
            result.transactions, result.row_changes = segment.write(source, database, number, chosen.scale)
            _mark(source, database, number, segment.name)
            for side in contestants(sides, number):
                took, used = _timed(side, number, segment.name, peaks)
                result.seconds.add(side.name, took)
                for process, seconds in used.items():
                    result.cpu[f"{side.name}: {process}"].append(round(seconds, 2))
            shown = f"{result.seconds.castling[-1]:.2f} s, native {result.seconds.native[-1]:.2f} s"
            print(f"catch-up, round {number}, {segment.name}: {shown}", file=sys.stderr)
        if number:
            last = number == chosen.rounds
            _prove_equal(
                source, database, [each for each in sides if last or each.name == "castling"], number
            )
    return _page(results, starting), {
        "catchup": {each.segment.name: vars(each.seconds) | {"cpu": dict(each.cpu)} for each in results},
        "starting": vars(starting),
    }


def _mark(source: EmbeddedServer, database: str, number: int, segment: str) -> None:
    source.execute(f"INSERT INTO sentinel VALUES ({number}, '{segment}')", database)


def _timed(side: Side, number: int, segment: str, peaks: Peaks) -> tuple[float, dict[str, float]]:
    """Seconds from the command to start until the backlog is on the target; and what its processes used."""
    began = time.perf_counter()
    side.start()
    wait_for_sentinel(side.dsn, number, segment)
    took = time.perf_counter() - began
    used = cpu_s(side.processes())
    peaks.look(side)
    side.stop()
    return took, used


def _prove_equal(source: EmbeddedServer, database: str, sides: list[Side], number: int) -> None:
    for side in sides:
        found = compare(source.dsn(database), side.dsn, schemas=["public"])
        if found.differences:
            sys.exit(f"{side.name} differs after round {number}: {found.differences[:3]}")


def _page(results: list[Result], starting: Contest) -> str:
    head = [
        "backlog",
        "row changes",
        "castling s (least – most)",
        "native s (least – most)",
        "native / castling",
    ]
    rows = []
    for each in results:
        name, ours, native, ratio = each.seconds.row()
        rows.append([name, f"{each.row_changes:,}", ours, native, ratio])
    name, ours, native, _ = starting.row()
    rows.append([name, "0", ours, native, ""])
    lines = [table(head, rows), "", "Processor seconds of each process, medians (since it was loaded):", ""]
    for each in results:
        used = [f"{process} {statistics.median(rounds):.2f}" for process, rounds in sorted(each.cpu.items())]
        lines.append(f"* {each.segment.name}: " + "; ".join(used))
    return "\n".join(lines)
