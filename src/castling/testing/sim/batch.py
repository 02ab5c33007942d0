"""Many seeds, on all cores: what broke, what was met, and how to see it again.

A batch is only worth what it reached: `MUST_MEET` names what a batch of `ENOUGH` seeds has
to have met at least once; one that has not is a failure, because it proved less than it says.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import structlog

from castling.testing.sim.world import Result, World

__all__ = ["ENOUGH", "MUST_MEET", "Summary", "be_quiet", "run_batch", "run_seed"]

#: a batch of so many seeds must have met everything
ENOUGH = 1000
MUST_MEET = (
    "apply end died between commit and mark",
    "apply end died inside a target transaction",
    "capture opened again in one process",
    "crash lost or tore unsynced data",
    "crash of the replica took commits back",
    "first copy begun again",
    "first copy brought up to a later view from the journal",
    "first copy gone on with",
    "half-open connection superseded",
    "journal full",
    "journal given up after a failed sync",
    "link cut within a batch",
    "link resumed from memory",
    "receive end died between append and harden",
    "rot noticed",
    "segment released",
    "segment rolled",
    "session restarted inside a transaction",
    "source end died during the first copy",
    "source lost for good",
    "spool filled",
    "spool found by the next process",
    "spool full",
    "spool sent to its end",
    "stale epoch refused",
    "synchronous commit kept though the source burnt down",
    "torn tail cut at recovery",
)
_CHUNK = 10


@dataclass(slots=True)
class Summary:
    """What a batch came to. `broken`: seed and why, for each world that broke a promise."""

    seeds: int = 0
    txns: int = 0
    virtual_s: float = 0.0
    real_s: float = 0.0
    broken: list[tuple[int, str]] = field(default_factory=list)
    met: Counter[str] = field(default_factory=Counter)

    def add(self, result: Result) -> None:
        self.seeds += 1
        self.txns += result.txns
        self.virtual_s += result.virtual_s
        self.met.update(result.met)
        if result.broken is not None:
            self.broken.append((result.seed, result.broken))

    @property
    def missed(self) -> list[str]:
        """What should have been met and was not; nothing is asked of a small batch."""
        return [what for what in MUST_MEET if not self.met[what]] if self.seeds >= ENOUGH else []

    @property
    def is_good(self) -> bool:
        return not self.broken and not self.missed


def be_quiet() -> None:
    """What the ends log is of interest in one world, not in thousands."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


def run_seed(seed: int) -> Result:
    """One world from its beginning to its end, without its trace."""
    result = World(seed).run()
    if seed % _CHUNK == 0:
        gc.collect()  # a world is a knot of tasks: nothing of it goes away by itself
    return Result(seed, result.broken, result.met, result.txns, result.virtual_s, ())


def run_batch(
    start: int, seeds: int, *, jobs: int | None = None, tell: Callable[[Summary], None] = lambda _: None
) -> Summary:
    """Run the seeds `start` to `start + seeds - 1`; `tell` hears the state after each."""
    summary = Summary()
    began_s = time.monotonic()
    for result in _results(range(start, start + seeds), jobs or os.cpu_count() or 1):
        summary.add(result)
        summary.real_s = time.monotonic() - began_s
        tell(summary)
    return summary


def _results(seeds: range, jobs: int) -> Iterator[Result]:
    if jobs == 1:
        yield from map(run_seed, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(jobs, initializer=be_quiet) as pool:
        yield from pool.imap(run_seed, seeds, chunksize=_CHUNK)
