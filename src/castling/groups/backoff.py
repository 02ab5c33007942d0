"""How long to wait before trying again: twice as long each time, with jitter, bounded."""

from __future__ import annotations

from castling.host import Host

__all__ = ["Backoff"]


class Backoff:
    """Waits grow from `first_s` to `most_s`; success starts them anew."""

    def __init__(self, host: Host, *, first_s: float = 0.2, most_s: float = 10.0) -> None:
        self._host = host
        self._first_s = first_s
        self._most_s = most_s
        self._next_s = first_s

    def reset(self) -> None:
        """What was tried has succeeded."""
        self._next_s = self._first_s

    async def wait(self) -> None:
        """Wait before the next attempt: between half and all of the current bound."""
        await self._host.sleep(self._next_s * (0.5 + self._host.random.random() / 2))
        self._next_s = min(self._next_s * 2, self._most_s)
