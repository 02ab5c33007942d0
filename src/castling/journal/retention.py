"""Which closed segments may go, and when the disk will be full. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from castling.config import RetentionSettings

__all__ = ["Closed", "forecast_full_s", "releasable"]


@dataclass(frozen=True, slots=True)
class Closed:
    """A closed segment: positions, wall clock of its last record, bytes on disk."""

    first_seq: int
    last_seq: int
    last_ns: int
    size: int


def releasable(
    segments: list[Closed], *, needed_seq: int, retention: RetentionSettings, now_ns: int
) -> list[int]:
    """First positions of the segments to remove, oldest first.

    A segment with a record at or after `needed_seq` stays whatever its size and age. The
    rest goes, oldest first, while it is too old or all that is kept beside it too large.
    """
    free = [segment for segment in segments if segment.last_seq < needed_seq]
    kept = sum(segment.size for segment in free)
    removed = []
    for segment in free:
        too_old = now_ns - segment.last_ns > retention.age * 1e9
        if not too_old and kept <= retention.size:
            break
        removed.append(segment.first_seq)
        kept -= segment.size
    return removed


def forecast_full_s(*, free_bytes: int, min_free: int, bytes_per_s: float | None) -> float | None:
    """Seconds until the disk has no room left at the present rate; None: not in sight or unknown."""
    if free_bytes <= min_free:
        return 0.0
    if bytes_per_s is None or bytes_per_s <= 0:
        return None
    return max(0.0, (free_bytes - min_free) / bytes_per_s)
