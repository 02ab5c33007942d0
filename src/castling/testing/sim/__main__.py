"""`python -m castling.testing.sim`: simulate whole groups by seed, or replay one."""

from __future__ import annotations

import argparse
import os
import sys
import time

from castling.testing.sim.batch import Summary, be_quiet, run_batch
from castling.testing.sim.world import World

#: seconds between two lines of progress
_EVERY_S = 10.0


class _Progress:
    """Tells each violation at once, and how far it is now and then."""

    def __init__(self, seeds: int) -> None:
        self._seeds = seeds
        self._told = 0
        self._next_s = time.monotonic() + _EVERY_S

    def __call__(self, summary: Summary) -> None:
        for seed, why in summary.broken[self._told :]:
            print(f"VIOLATION in seed {seed}: {why}\n  replay: {_replay(seed)}", flush=True)
        self._told = len(summary.broken)
        if time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + _EVERY_S
            rate = summary.seeds / summary.real_s
            print(
                f"{summary.seeds}/{self._seeds} seeds, {rate:.0f}/s, {len(summary.broken)} violations",
                flush=True,
            )


def _replay(seed: int) -> str:
    return f"{os.path.relpath(sys.executable)} -m castling.testing.sim --seed {seed} -v"


def _one(seed: int, *, verbose: bool) -> int:
    result = World(seed, verbose=verbose).run()
    for what, times in sorted(result.met.items()):
        print(f"{times:8}  {what}")
    print(f"seed {seed}: {result.txns} transactions, {result.virtual_s:.1f} virtual seconds")
    print("every promise was kept" if result.broken is None else f"VIOLATION: {result.broken}")
    return 0 if result.broken is None else 1


def _many(start: int, seeds: int, jobs: int | None) -> int:
    summary = run_batch(start, seeds, jobs=jobs, tell=_Progress(seeds))
    print("met:")
    for what, times in sorted(summary.met.items()):
        print(f"{times:8}  {what}")
    for what in summary.missed:
        print(f"   NEVER  {what}: these seeds prove less than they should")
    print(
        f"{summary.seeds} seeds from {start}, {summary.txns} transactions, {summary.virtual_s / 3600:.1f}"
        f" virtual hours in {summary.real_s:.0f} s: {len(summary.broken)} violations"
    )
    return 0 if summary.is_good else 1


def main(arguments: list[str] | None = None) -> int:
    """Entry point; 0 when every promise was kept and everything worth meeting was met."""
    parser = argparse.ArgumentParser(prog="castling.testing.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many worlds")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, help="processes; left out: one per core")
    parser.add_argument("--seed", type=int, help="one world only")
    parser.add_argument("-v", "--verbose", action="store_true", help="with --seed: tell what happens")
    chosen = parser.parse_args(arguments)
    if not chosen.verbose:
        be_quiet()
    if chosen.seed is not None:
        return _one(chosen.seed, verbose=chosen.verbose)
    return _many(chosen.start, chosen.seeds, chosen.jobs)


if __name__ == "__main__":
    sys.exit(main())
