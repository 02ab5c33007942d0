"""Which of several failures to tell, when the tasks of a connection end together."""

from __future__ import annotations

import asyncio

from castling.errors import CastlingError, LinkError

__all__ = ["first_failure"]


def first_failure(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """A mistake of ours before a typed error, a reason before the bare loss of the connection.

    Raises CancelledError when the calling task itself was cancelled: a task group whose
    tasks fail at that very moment tells only of them, and the cancellation would be lost.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
    found: list[BaseException] = []
    waiting: list[BaseException] = [group]
    while waiting:
        error = waiting.pop(0)
        if isinstance(error, BaseExceptionGroup):
            waiting.extend(error.exceptions)
        else:
            found.append(error)
    return min(found, key=_rank)


def _rank(error: BaseException) -> int:
    if not isinstance(error, CastlingError):
        return 0
    return 2 if type(error) is LinkError else 1
