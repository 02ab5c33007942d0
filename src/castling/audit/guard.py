"""Keeps an audit within its limits: the load of the source, the lag of the stream, its time.

The source works for the audit no more than a share of the time (`load`) and reads no more than `bandwidth`.
When the stream falls behind, when it is not known whether it does, or when the audit is told to stop, it lets
go at its next piece of work.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from castling.errors import AuditYields

__all__ = ["Guard", "Limits"]

#: seconds between two looks at the lag
LOOK_S = 1.0
#: how long the lag may be unknown before that counts as too much, seconds
UNKNOWN_S = 15.0


@dataclass(frozen=True, slots=True)
class Limits:
    """`load`: share of the time, at most 1; `bandwidth`: bytes per second, None for no limit; `lag_s`: at
    most."""

    load: float = 1.0
    bandwidth: int | None = None
    lag_s: float = 30.0


class Guard:
    """Implements `kinds.base.AuditGuard`. `lag`: seconds that the stream is behind; None: not known."""

    def __init__(self, limits: Limits, lag: Callable[[], Awaitable[float | None]]) -> None:
        self._limits = limits
        self._lag = lag
        self._looked_s = float("-inf")
        self._known_s = time.monotonic()
        #: why the audit is to end; empty: it is not
        self.stop_why = ""
        self.rows = 0
        self.bytes = 0
        self.busy_s = 0.0

    def stop(self, why: str) -> None:
        self.stop_why = why

    async def spent(self, *, seconds: float, size: int, rows: int) -> None:
        self.rows += rows
        self.bytes += size
        self.busy_s += seconds
        pause_s = seconds * (1 / self._limits.load - 1)
        if self._limits.bandwidth is not None:
            pause_s = max(pause_s, size / self._limits.bandwidth - seconds)
        if pause_s > 0:
            await asyncio.sleep(pause_s)
        await self.look()

    async def look(self) -> None:
        """AuditYields when the audit has to let go."""
        if self.stop_why:
            raise AuditYields(self.stop_why)
        now_s = time.monotonic()
        if now_s - self._looked_s < LOOK_S:
            return
        self._looked_s = now_s
        lag_s = await self._lag()
        if lag_s is not None:
            self._known_s = time.monotonic()
            if lag_s > self._limits.lag_s:
                raise AuditYields(f"the stream is {lag_s:.0f} s behind, and may be {self._limits.lag_s:g}")
        elif time.monotonic() - self._known_s > UNKNOWN_S:
            raise AuditYields("it is not known how far the stream is behind")
