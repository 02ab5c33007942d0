"""What is known of a stream's parts from their audits, and how old that is. Pure.

Age and result are two things: a part may have been equal long ago. The age of the last *full* audit is that
of the part that was compared longest ago; as long as one was never compared there is none, and that is
unknown. A comparison that could not tell counts as none.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Coverage", "Known", "coverage"]


@dataclass(frozen=True, slots=True)
class Known:
    """One part (or one rule of the whole) as it was compared last. `compared_ns` None: it never was.

    `changes`: the source's counter when it was compared; `equal_runs`: how often in a row it was equal.
    `problem`: why the last try could not tell; `compared_ns` and `result` are of the one before then.
    """

    rule: str
    part: str
    compared_ns: int | None = None
    result: str = "unknown"
    changes: int | None = None
    equal_runs: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Coverage:
    """Of all parts. `full_ns`: when the one was compared that was compared longest ago; None: some never
    was."""

    parts: int
    never: int
    differing: int
    unknown: int
    full_ns: int | None

    @property
    def result(self) -> str:
        """differs wins over unknown, unknown over equal; with nothing to compare nothing is known."""
        if self.differing:
            return "differs"
        return "unknown" if self.never or self.unknown or not self.parts else "equal"

    def age_s(self, now_ns: int) -> float | None:
        return None if self.full_ns is None else max(0.0, (now_ns - self.full_ns) / 1e9)


def coverage(known: Iterable[Known]) -> Coverage:
    every = list(known)
    times = [each.compared_ns for each in every]
    compared = [at for at in times if at is not None]
    return Coverage(
        parts=len(every),
        never=len(every) - len(compared),
        differing=sum(each.result == "differs" for each in every),
        unknown=sum(bool(each.problem) for each in every),
        full_ns=min(compared) if compared and len(compared) == len(every) else None,
    )
