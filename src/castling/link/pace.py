"""The bandwidth limit: a token bucket in bytes on the wire, shared by all connections of a stream."""

from __future__ import annotations

from castling.host import Host

__all__ = ["Pace"]


class Pace:
    """Over any span of t seconds at most `rate * t + burst` bytes pass; `rate` None: no limit.

    `burst` is a quarter of a second's worth. Bytes that must not wait (heartbeats) are
    charged and paid for by the next that can.
    """

    #: bytes asked for at once by whoever sends something large
    SLICE = 64 << 10

    def __init__(self, host: Host, rate: int | None) -> None:
        assert rate is None or rate > 0, "a bandwidth of 0 would never send anything"
        self._host = host
        self.rate = rate
        self._burst = max(rate / 4, 1.0) if rate is not None else 0.0
        self._tokens = self._burst
        self._at = host.monotonic()

    @property
    def slice(self) -> int:
        """How much to ask for at once: small enough that the limit is smooth."""
        return self.SLICE if self.rate is None else max(1024, min(self.SLICE, self.rate // 4))

    def charge(self, size: int) -> None:
        """Count `size` bytes that do not wait."""
        if self.rate is not None:
            self._refill(self.rate)
            self._tokens -= size

    async def take(self, size: int) -> None:
        """Wait until `size` bytes may be sent, and count them.

        More than `burst` at once is let through on credit when the bucket is full.
        """
        if self.rate is None:
            return
        while True:
            self._refill(self.rate)
            missing = min(size, self._burst) - self._tokens
            if missing <= 0:
                self._tokens -= size
                return
            await self._host.sleep(missing / self.rate + 1e-6)

    def _refill(self, rate: int) -> None:
        now = self._host.monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * rate)
        self._at = now
