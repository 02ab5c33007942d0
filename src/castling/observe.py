"""What a group's ends say about themselves: figures, the report tree, events.

A figure that is not known is None and is shown as unknown, never as zero. Reports
carry the time at which they were written; whoever reads an old one sees the state
`unknown`. The report tree is the only source for status, API, metrics and portal.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections import deque
from pathlib import Path
from typing import Any

import msgspec
import structlog

__all__ = [
    "CommitLag",
    "Quantiles",
    "Throughput",
    "configure_events",
    "events",
    "read_report",
    "write_report",
]

#: a report older than this says nothing about now, seconds
STALE_S = 5.0


class Quantiles:
    """A histogram of durations in seconds: 2 % wide logarithmic buckets from 1 µs to about 10^5 s.

    The quantile of a bucket is its upper edge, so it is never below the truth by more
    than nothing and never above it by more than 2 %.
    """

    _FLOOR_S = 1e-6
    _WIDTH = math.log(1.02)

    def __init__(self) -> None:
        self._buckets: dict[int, int] = {}
        self.count = 0
        self.max_s = 0.0

    def add(self, seconds: float, times: int = 1) -> None:
        seconds = max(seconds, 0.0)
        bucket = 0 if seconds <= self._FLOOR_S else math.ceil(math.log(seconds / self._FLOOR_S) / self._WIDTH)
        self._buckets[bucket] = self._buckets.get(bucket, 0) + times
        self.count += times
        self.max_s = max(self.max_s, seconds)

    def quantile(self, q: float) -> float | None:
        """The smallest bucket edge that `q` of all durations do not exceed; None without samples."""
        if self.count == 0:
            return None
        wanted = q * self.count
        seen = 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= wanted:
                return min(self._FLOOR_S * math.exp(bucket * self._WIDTH), self.max_s)
        return self.max_s

    def as_json(self) -> dict[str, Any]:
        return {
            "p50": _rounded(self.quantile(0.50)),
            "p99": _rounded(self.quantile(0.99)),
            "max": _rounded(self.max_s) if self.count else None,
            "samples": self.count,
        }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)


class CommitLag:
    """The age of the oldest source commit that has not reached a stage, and how long each took.

    Pure: times are wall-clock nanoseconds given by the caller. `passed` and `reached`
    must be told in order of source position.
    """

    #: commits remembered one by one; beyond that only the oldest of a run is kept
    PENDING_MAX = 200_000

    def __init__(self) -> None:
        self._pending: deque[tuple[int, tuple[int, ...]]] = deque()
        self._held = 0
        self.taken = Quantiles()

    def passed(self, offset: int, commits: tuple[int, ...]) -> None:
        """A run that ends at source position `offset` entered the stage before."""
        if not commits:
            return
        if self._held > self.PENDING_MAX:
            commits = (min(commits),)
        self._pending.append((offset, commits))
        self._held += len(commits)

    def reached(self, offset: int, now_ns: int) -> None:
        """Everything up to source position `offset` has reached the stage."""
        while self._pending and self._pending[0][0] <= offset:
            _, commits = self._pending.popleft()
            self._held -= len(commits)
            for committed_ns in commits:
                self.taken.add((now_ns - committed_ns) / 1e9)

    def forget(self) -> None:
        """What is pending will be told again (the stage before starts anew)."""
        self._pending.clear()
        self._held = 0

    def forget_after(self, offset: int) -> None:
        """The same behind source position `offset`: what is before it is kept, and will not be told again."""
        while self._pending and self._pending[-1][0] > offset:
            self._held -= len(self._pending.pop()[1])

    def oldest_s(self, now_ns: int) -> float | None:
        """Age in seconds of the oldest commit that is pending; None when there is none."""
        if not self._pending:
            return None
        return max(0.0, (now_ns - min(self._pending[0][1])) / 1e9)


class Throughput:
    """A rate over a sliding window. Pure: the caller gives monotonic seconds."""

    def __init__(self, window_s: float = 60.0) -> None:
        self._window_s = window_s
        self._points: deque[tuple[float, int]] = deque()

    def add(self, now_s: float, total: int) -> None:
        self._points.append((now_s, total))
        while self._points and self._points[0][0] < now_s - self._window_s:
            self._points.popleft()

    def per_second(self) -> float | None:
        if len(self._points) < 2:
            return None
        (first_s, first), (last_s, last) = self._points[0], self._points[-1]
        return (last - first) / (last_s - first_s) if last_s > first_s else None


# --- reports ----------------------------------------------------------------------------------


def write_report(path: Path, report: dict[str, Any]) -> None:
    """Replace the report at `path` in one step; a reader sees the old one or the new one.

    A disk that is full must not stop the data plane: the report is then left to grow old,
    and its age says so.
    """
    scratch = path.with_suffix(f".{os.getpid()}.new")
    with contextlib.suppress(OSError):
        scratch.write_bytes(msgspec.json.encode(report))
        os.replace(scratch, path)


def read_report(path: Path, now_ns: int, stale_s: float = STALE_S) -> dict[str, Any] | None:
    """The report at `path`; None when there is none or it can't be read.

    One that is older than `stale_s`, or comes from the future, and does not say that its end has stopped
    comes back with the state `unknown` and without the figures that speak about now.
    """
    try:
        report: dict[str, Any] = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    if not isinstance(report, dict):
        return None
    age_s = (now_ns - int(report.get("at_ns", 0))) / 1e9
    report["age_s"] = round(age_s, 3)
    if not -1 <= age_s <= stale_s and report.get("state") not in ("stopped", "failed"):
        report["last_state"] = report.get("state")
        report["state"] = "unknown"
        report["detail"] = (
            f"no word from this end for {age_s:.0f} s"
            if age_s > 0
            else "this end's last word is from the future: the clock was set back"
        )
        report["rpo_s"] = None
        report["apply_lag_s"] = None
    return report


# --- events -----------------------------------------------------------------------------------


def configure_events(*, json: bool) -> None:
    """Send events to stderr, one a line: JSON for files and collectors, else for people."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer()
            if json
            else structlog.dev.ConsoleRenderer(
                colors=False,
                # rich tracebacks print local variables, and those may be secrets
                exception_formatter=structlog.dev.plain_traceback,
            ),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def events(area: str) -> Any:
    """A logger whose events are called `area.verb_past`, with fields."""
    return structlog.get_logger(area=area)
