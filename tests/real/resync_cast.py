"""What the tests of a new copy of one table share: the two ends without agents, link and processes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from tests.real.apply_cast import Follower

from castling.errors import PartsMoved
from castling.kinds.base import BulkCall, Held, PartAction
from castling.kinds.postgres.kind import KIND

__all__ = ["Between", "applied", "asked", "copied", "held"]

#: what is done on the source in the middle of a copy
Between = Callable[[], Awaitable[None]]


class _Bulk:
    """The bulk channel without a network. `between` runs when the copy of a table has begun."""

    def __init__(self, target: Any, between: Between | None = None) -> None:
        self._target = target
        self._between = between

    async def open(self) -> BulkCall:
        return self._call

    async def _call(self, meta: bytes, body: AsyncIterator[bytes] | None) -> bytes:
        found: bytes = await self._target.handle_part(meta, self._passed(body))
        return found

    async def _passed(self, body: AsyncIterator[bytes] | None) -> AsyncIterator[bytes]:
        if body is None:
            return
        if self._between is not None:
            between, self._between = self._between, None
            await between()
        async for block in body:
            yield block

    async def close(self) -> None:
        return None


async def applied(follower: Follower) -> None:
    """Apply the whole journal, through as many sessions as parts are moved."""
    for _ in range(50):
        try:
            await follower.apply()
        except PartsMoved:
            continue
        return
    raise AssertionError("parts are moved for ever")


async def copied(follower: Follower, between: Between | None = None) -> bool:
    """One turn of the source end; whether anything was wanted."""
    target, source = follower.seed_target, KIND.seed_source(follower.stream)
    wanted = await target.wanted()
    if wanted:
        await source.copy_parts(wanted, _Bulk(target, between))
    return bool(wanted)


async def asked(follower: Follower, action: PartAction, *parts: str) -> list[str]:
    return [each["result"] for each in await KIND.move_parts(follower.stream, action, parts, "a test")]


async def held(follower: Follower) -> list[Held]:
    target = follower.target()
    try:
        await target.open()
        return target.held()
    finally:
        await target.close()
