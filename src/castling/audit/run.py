"""Runs one audit: opens a view of both ends, compares part after part, makes room and goes on.

A view holds a snapshot on the source; so it is renewed after a while, between two parts. When the guard wants
room (AuditYields) the view is let go at once, and the part that was under way is begun again later, with
another.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from castling.audit.guard import Guard
from castling.errors import AuditCannotBegin, AuditYields
from castling.kinds.base import Auditor, AuditPart, Compared

__all__ = ["Result", "run_audit"]

#: how long one view is used for further parts, seconds
VIEW_S = 600.0
#: how long to wait before a view is tried again, and how often in a row that may fail, seconds
AGAIN_S = 5.0
TRIES = 3
#: seconds between two looks whether there is room again
ROOM_S = 1.0


@dataclass(frozen=True, slots=True)
class Result:
    """What one part came to, and at which position. `changes`: the source's counter when it was begun."""

    compared: Compared
    position: str
    paused_s: float | None
    changes: int | None


async def run_audit(
    auditor: Auditor,
    parts: Sequence[AuditPart],
    rules: Iterable[str],
    guard: Guard,
    tell: Callable[[Result], None],
) -> None:
    """Compare `parts` and look at the other `rules`, telling each result as it comes. AuditYields when it was
    told to stop; AuditCannotBegin when there can be no view."""
    waiting = deque((part, 0) for part in parts if not part.blocked)
    for part in parts:
        if part.blocked:
            tell(Result(Compared("rows", part.part, problem=part.blocked), "", None, None))
    failures = 0
    while waiting:
        try:
            await _compare(auditor, waiting, guard, tell)
            failures = 0
        except AuditYields:
            if guard.stop_why:
                raise
            await _room(guard)
        except AuditCannotBegin:
            failures += 1
            if failures == TRIES:
                raise
            await asyncio.sleep(AGAIN_S)
    for rule in rules:
        await guard.look()
        for compared in await auditor.look(rule):
            tell(Result(compared, "", None, None))


async def _compare(
    auditor: Auditor, waiting: deque[tuple[AuditPart, int]], guard: Guard, tell: Callable[[Result], None]
) -> None:
    """As many parts as one view is good for."""
    await guard.look()
    async with auditor.at_one_position() as view:
        begun_s = time.monotonic()
        is_fresh = True
        while waiting and time.monotonic() - begun_s < VIEW_S:
            part, tried = waiting[0]
            if tried and not is_fresh:
                return  # what this view could not tell, another one may
            is_fresh = False
            compared = await view.compare(part.part, guard)
            waiting.popleft()
            if compared.problem and not tried:
                waiting.append((part, tried + 1))  # rewritten meanwhile, say
                continue
            tell(Result(compared, view.position, view.paused_s(), part.changes))


async def _room(guard: Guard) -> None:
    """Until the stream has caught up, or the audit is to stop."""
    while True:
        await asyncio.sleep(ROOM_S)
        try:
            await guard.look()
            return
        except AuditYields:
            if guard.stop_why:
                raise
