"""The daily window in which audits begin by themselves: `22:00-04:00`, in UTC. Pure."""

from __future__ import annotations

import re
from datetime import UTC, datetime

__all__ = ["is_open", "window_problem"]

_WINDOW = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")


def window_problem(text: str) -> str | None:
    """What is wrong with it, or None."""
    if not _WINDOW.fullmatch(text):
        return "a window is `HH:MM-HH:MM` in UTC, such as 22:00-04:00"
    return None


def is_open(window: str, now_ns: int) -> bool:
    """Whether it is open now. One that begins and ends at the same time always is."""
    found = _WINDOW.fullmatch(window)
    assert found is not None, "config.rules lets no other through"
    now = datetime.fromtimestamp(now_ns / 1e9, UTC)
    at = now.hour * 60 + now.minute
    begin, end = int(found[1]) * 60 + int(found[2]), int(found[3]) * 60 + int(found[4])
    if begin == end:
        return True
    return begin <= at < end if begin < end else at >= begin or at < end
