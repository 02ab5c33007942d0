"""Tasks that live and end together, and which of their failures to tell.

A task group would be the usual form. It is not used for connections, because a group
whose tasks fail at the moment in which it is cancelled from outside tells only of the
failures: the cancellation is lost, and a link that is just breaking could not be stopped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from castling.errors import CastlingError, LinkError

__all__ = ["run_together"]


async def run_together(*works: Coroutine[Any, Any, None]) -> None:
    """Run all until the first ends, then cancel the others and wait for them.

    Raises CancelledError whenever the caller was cancelled; else the most telling failure.
    """
    tasks = [asyncio.ensure_future(work) for work in works]
    cancelled = False
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        cancelled = True
    for task in tasks:
        task.cancel()
    while running := [task for task in tasks if not task.done()]:
        try:
            await asyncio.wait(running)
        except asyncio.CancelledError:
            cancelled = True
    errors = [error for task in tasks if not task.cancelled() and (error := task.exception())]
    if cancelled:
        raise asyncio.CancelledError
    if errors:
        found = min(errors, key=_rank)
        raise found from found.__cause__


def _rank(error: BaseException) -> int:
    """A mistake of ours before a typed error, a reason before the bare loss of the connection."""
    if not isinstance(error, CastlingError):
        return 0
    return 2 if type(error) is LinkError else 1
