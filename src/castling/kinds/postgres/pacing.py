"""How long a reader of a replication stream lets messages gather. Pure.

A walsender sends every change by itself. A reader that is always ready makes each one a wake-up, which costs
both processes more than the change does, and the slower both get, the less there is at each look; one that
sleeps while messages gather takes thousands at once. So: no pause while little comes, for the sake of
latency, and the longer a pause the more there was after the last one, up to what a socket's buffer holds:
one that is full makes the walsender wait for us.
"""

from __future__ import annotations

from typing import Final

__all__ = ["Pacing"]

#: at less than this, some hundred small commits a second, every message is read at once; bytes per second
QUIET: Final = 32 << 10
#: seconds
SHORTEST: Final = 0.005
LONGEST: Final = 0.05
#: bytes that gathered during a pause: more than `MANY` and the next is longer, less than `FEW`, shorter
MANY: Final = 64 << 10
FEW: Final = 16 << 10
#: as much as this, and the walsender may have had to wait
FULL: Final = 640 << 10


class Pacing:
    """`pause_s`: what to wait before the next read; 0: until there is something. `is_behind`: the last read
    found so much that more must be waiting."""

    def __init__(self) -> None:
        self.pause_s = 0.0
        self.is_behind = False

    def gathered(self, size: int, elapsed_s: float) -> None:
        """A read took `size` bytes, `elapsed_s` seconds after the one before."""
        self.is_behind = size > MANY
        if size <= QUIET * elapsed_s:
            self.pause_s = 0.0
        elif size > FULL:
            self.pause_s = self.pause_s / 2 if self.pause_s > SHORTEST else 0.0
        elif size > MANY:
            self.pause_s = min(max(self.pause_s * 2, SHORTEST), LONGEST)
        elif size < FEW:
            self.pause_s = max(self.pause_s / 2, SHORTEST)
        else:
            self.pause_s = max(self.pause_s, SHORTEST)
