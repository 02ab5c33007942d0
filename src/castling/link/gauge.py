"""How near and how fast the other side of a link is, as the sending shows it. Pure.

Compressing takes more processor time than all else that is done with a byte on its way. Where
the link is scarce (far away, slow, or limited on purpose) it is worth that; between
two machines of one room it only slows both ends down.
"""

from __future__ import annotations

from typing import Final

__all__ = ["Gauge"]

#: a round trip of more than this leads out of the house, seconds
NEAR_S: Final = 0.005
#: a link that takes less than this is a bottleneck, bytes per second
SLOW: Final = 16 << 20
#: the rate is told by so much that was sent in large frames, bytes
_ENOUGH: Final = 8 << 20
_LARGE: Final = 256 << 10


class Gauge:
    """`is_limited`: a bandwidth limit is set."""

    def __init__(self, *, is_limited: bool) -> None:
        self._is_limited = is_limited
        self._trip_s: float | None = None
        self._bytes = 0
        self._took_s = 0.0
        #: what the link takes while there is more to send, bytes per second; None: not known yet
        self.rate: float | None = None

    def trip(self, seconds: float) -> None:
        """A question was answered after so long: the quickest tells how far the other side is."""
        self._trip_s = seconds if self._trip_s is None else min(self._trip_s, seconds)

    def sent(self, size: int, seconds: float) -> None:
        """A frame was handed to the connection, which took so long to have room for all of it."""
        if size < _LARGE:
            return
        self._bytes += size
        self._took_s += seconds
        if self._bytes >= _ENOUGH:
            self.rate = self._bytes / max(self._took_s, 1e-6)
            self._bytes, self._took_s = 0, 0.0

    @property
    def is_scarce(self) -> bool:
        """Bytes are worth more than processor time. What is not known yet is taken for scarce."""
        if self._is_limited or self._trip_s is None or self._trip_s > NEAR_S:
            return True
        return self.rate is not None and self.rate < SLOW
