"""What an audit compares, in which order. Pure.

Never audited first, then what differed or could not be told, then what has changed since, then the rest in
rotation: longest ago first, as soon as its last audit is older than `every`. To choose nothing is normal.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from castling.audit.state import Known
from castling.kinds.base import AuditPart

__all__ = ["Chosen", "Why", "choose"]


class Why(enum.IntEnum):
    """The lower, the sooner."""

    NEVER = 0
    DIFFERED = 1
    CHANGED = 2
    ROTATION = 3
    ASKED = 4


@dataclass(frozen=True, slots=True)
class Chosen:
    part: AuditPart
    why: Why


def choose(
    parts: Sequence[AuditPart],
    known: Mapping[str, Known],
    *,
    now_ns: int,
    every_s: float,
    everything: bool = False,
    only: Iterable[str] = (),
) -> list[Chosen]:
    """`known`: by part. `everything`: also what is not due. `only`: these parts, due or not; empty: no
    choice."""
    wanted = set(only)
    found = []
    for part in parts:
        if wanted and part.part not in wanted:
            continue
        why = _why(part, known.get(part.part), now_ns=now_ns, every_s=every_s)
        if why is None and (everything or wanted):
            why = Why.ASKED
        if why is not None:
            found.append(Chosen(part, why))
    return sorted(found, key=lambda each: (each.why, _compared(known.get(each.part.part)), each.part.part))


def _compared(known: Known | None) -> int:
    return 0 if known is None or known.compared_ns is None else known.compared_ns


def _why(part: AuditPart, known: Known | None, *, now_ns: int, every_s: float) -> Why | None:
    if known is None or known.compared_ns is None:
        return Why.NEVER
    if known.result != "equal" or known.problem:
        return Why.DIFFERED
    # a counter that nobody keeps, or that began anew, tells of no rest
    if part.changes is None or known.changes is None or part.changes != known.changes:
        return Why.CHANGED
    if now_ns - known.compared_ns >= every_s * 1e9:
        return Why.ROTATION
    return None
