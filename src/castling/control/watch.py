"""Looks at all groups again and again, so that pages can be live and figures have a past.

One look serves everybody: while somebody watches it is taken every `WATCHED_S`, else every `KEPT_S`, which
is also how often figures are kept. What is kept is bounded by age. A figure that was not known when it was
looked at is kept as not known, and a time at which nobody looked has no figures: neither becomes a zero.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from castling.control.group import Groups
from castling.control.store import Store
from castling.errors import CastlingError
from castling.journal.record import Position
from castling.observe import events

__all__ = ["FIGURES", "KEPT_S", "STAGES", "Look", "Watch", "figures", "rates"]

Json = dict[str, Any]
WATCHED_S = 2.0
KEPT_S = 30.0
#: how long figures are kept, seconds
PAST_S = 24 * 3600.0
#: looks of late from which rates are made
RECENT = 16
#: spans into which a past is divided, at most
POINTS = 240
STAGES = ("captured", "hardened", "applied", "released")
#: the columns of the store's table
FIGURES = ("rpo_s", "apply_lag_s", *STAGES, "backlog_bytes", "journal_bytes")


class Look:
    """All groups as they were at one time."""

    def __init__(self, at_ns: int, trees: list[Json]) -> None:
        self.at_ns = at_ns
        self.trees = trees


def figures(stream: Json) -> Json:
    """What is kept of a stream: each figure, or None where it is not known. Pure."""
    receive = stream["ends"].get("receive") or {}
    return {
        "rpo_s": stream["rpo_s"],
        "apply_lag_s": stream["apply_lag_s"],
        **{stage: _seq(stream["positions"].get(stage)) for stage in STAGES},
        "backlog_bytes": backlog_bytes(stream),
        "journal_bytes": (receive.get("journal") or {}).get("bytes"),
    }


def backlog_bytes(stream: Json) -> int | None:
    """Source bytes that are not applied yet: not hardened on the backup, or waiting there to be applied.

    None when either is not known.
    """
    source = stream["ends"].get("source") or {}
    offsets = source.get("offsets") or {}
    waiting = ((source.get("capture") or {}).get("wal") or {}).get("waiting_bytes")
    hardened, applied = offsets.get("hardened"), offsets.get("applied")
    if waiting is None or hardened is None or applied is None:
        return None
    return int(waiting) + max(0, int(hardened) - int(applied))


def _seq(position: str | None) -> int | None:
    return None if position is None else Position.parse(position).seq


def rates(points: list[tuple[int, Json]]) -> Json:
    """Records per second of each stage between the first and the last point (time in ns, figures). Pure."""
    found: Json = dict.fromkeys(STAGES)
    for stage in STAGES:
        known = [(at_ns, each[stage]) for at_ns, each in points if each[stage] is not None]
        if len(known) > 1 and known[-1][0] > known[0][0] and known[-1][1] >= known[0][1]:
            found[stage] = (known[-1][1] - known[0][1]) / ((known[-1][0] - known[0][0]) / 1e9)
    return found


class Watch:
    """`run` until cancelled. `looks` for pages that are live, `past` and `rates` for figures."""

    def __init__(
        self,
        groups: Groups,
        store: Store,
        now_ns: Callable[[], int] = time.time_ns,
        *,
        watched_s: float = WATCHED_S,
        kept_s: float = KEPT_S,
    ) -> None:
        self._groups = groups
        self._store = store
        self._now_ns = now_ns
        self._watched_s = watched_s
        self._kept_s = kept_s
        self._recent: deque[tuple[int, dict[tuple[str, str], Json]]] = deque(maxlen=RECENT)
        self._kept_ns = 0
        self._watching = 0
        self._somebody = asyncio.Event()
        self._looked = asyncio.Condition()
        self.latest: Look | None = None
        self.closed = False

    # --- looking ------------------------------------------------------------------------------

    async def run(self) -> None:
        log = events("agent")
        while True:
            try:
                await self._look()
            except CastlingError as error:
                log.warning("agent.look_failed", error=error.code)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._kept_s):
                    await self._somebody.wait()
                    await asyncio.sleep(self._watched_s)

    async def _look(self) -> None:
        trees = await self._groups.trees()
        now_ns = self._now_ns()
        seen = {(tree["group"], s["backup"]): figures(s) for tree in trees for s in tree["streams"]}
        self._recent.append((now_ns, seen))
        if now_ns - self._kept_ns >= int(self._kept_s * 0.9e9):
            self._kept_ns = now_ns
            self._keep(now_ns, seen)
        async with self._looked:
            self.latest = Look(now_ns, trees)
            self._looked.notify_all()

    def close(self) -> None:
        """Every `looks` ends: the agent stops."""
        self.closed = True

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        self._watching += 1
        self._somebody.set()
        try:
            yield
        finally:
            self._watching -= 1
            if not self._watching:
                self._somebody.clear()

    async def looks(self) -> AsyncIterator[Look]:
        """Each look from now on, while somebody listens, until `close`."""
        with self._watched():
            last: Look | None = None
            while not self.closed:
                if self.latest is not None and self.latest is not last:
                    last = self.latest
                    yield last
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.5), self._looked:
                        await self._looked.wait_for(lambda: self.latest is not last)  # noqa: B023 - awaited here

    # --- figures ------------------------------------------------------------------------------

    def _keep(self, now_ns: int, seen: dict[tuple[str, str], Json]) -> None:
        """Figures that find no room on the disk are not kept: the agent goes on."""
        rows = [(*key, now_ns, *(each[name] for name in FIGURES)) for key, each in seen.items()]
        marks = ", ".join("?" for _ in range(3 + len(FIGURES)))
        with contextlib.suppress(sqlite3.OperationalError), self._store.write() as db:
            db.executemany(f"INSERT OR REPLACE INTO figure VALUES ({marks})", rows)
            db.execute("DELETE FROM figure WHERE at_ns < ?", (now_ns - int(PAST_S * 1e9),))

    def rates(self, group: str, backup: str) -> Json:
        """Records per second of each stage, of late; None where that is not known."""
        points = [(at_ns, seen[group, backup]) for at_ns, seen in self._recent if (group, backup) in seen]
        newest = points[-1][0] if points else 0
        return rates([point for point in points if newest - point[0] <= 10e9 or len(points) <= 2])

    def past(self, group: str, backup: str, hours: float) -> Json:
        """Figures of the last `hours`, as at most POINTS spans of equal length, oldest first.

        Of a span the worst of lags and the last of the others; None where nothing was known in it.
        """
        now_ns = self._now_ns()
        since_ns = now_ns - int(hours * 3600e9)
        points = max(1, min(POINTS, int(hours * 3600 / (2 * self._kept_s))))  # each span has been looked at
        span_ns = max(1, (now_ns - since_ns) // points)
        worst = ("rpo_s", "apply_lag_s", "backlog_bytes")
        spans: list[Json | None] = [None] * points
        for row in self._store.rows(
            "SELECT * FROM figure WHERE grp = ? AND backup = ? AND at_ns > ? ORDER BY at_ns",
            *(group, backup, since_ns),
        ):
            index = min(points - 1, (row["at_ns"] - since_ns) // span_ns)
            before = spans[index] or dict.fromkeys(FIGURES)
            spans[index] = {
                name: _worst(before[name], row[name]) if name in worst else row[name] for name in FIGURES
            }
        columns = {name: [None if span is None else span[name] for span in spans] for name in FIGURES}
        return {"since_ns": since_ns, "until_ns": now_ns, "span_s": span_ns / 1e9, "figures": columns}


def _worst(one: float | None, other: float | None) -> float | None:
    known = [each for each in (one, other) if each is not None]
    return max(known, default=None)
