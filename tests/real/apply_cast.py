"""From a source to a target without the link: real capture, the real decoder, batcher and target."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

from tests.real.pg_cast import Journal, Pair, captured, until

from castling.apply.schedule import Batcher, Discard, Limits
from castling.kinds.base import Stream, Target
from castling.kinds.postgres.decoder import PostgresDecoder
from castling.kinds.postgres.foreign_watch import ForeignWatch
from castling.kinds.postgres.kind import KIND
from castling.kinds.postgres.naming import Naming
from castling.kinds.postgres.target import PostgresTarget
from castling.testing.compare import Comparison, compare

__all__ = ["DyingTarget", "Follower", "random_limits", "watch_for_others"]


class Follower:
    """One stream whose tables were made on both sides beforehand, so that there is nothing to copy."""

    def __init__(self, pair: Pair, **settings: Any) -> None:
        self.pair = pair
        self.stream: Stream = pair.stream(**settings)
        self.seed_target = KIND.seed_target(self.stream)
        self.journal = Journal()
        self.reports: list[dict[str, Any]] = []

    async def begin(self) -> None:
        """Slot and publication."""
        seed = KIND.seed_source(self.stream)
        await seed.begin()
        await seed.close()

    def target(self) -> PostgresTarget:
        """As the kind makes it, but for the first copy, which a follower has none of."""
        settings = self.stream.settings
        return PostgresTarget(
            self.stream.group,
            settings.databases[self.stream.backup],
            on_error=settings.on_error,
            schema=settings if settings.ddl == "carry" else None,
        )

    async def capture(self) -> None:
        """Take everything that is committed now into the journal, and let the source forget it."""
        async with captured(self.stream, self.journal) as capture:
            await self.journal.read_until(capture, self.pair.end_of_log())
            await capture.acknowledge(self.journal.offset)

    async def apply(
        self,
        *,
        limits: Limits | None = None,
        piece_bytes: int = 1 << 20,
        target: Callable[[], Target] | None = None,
        ended: Callable[[], bool] = lambda: False,
    ) -> None:
        """One apply session over the whole journal, from the target's own progress.

        `ended` is asked after each target transaction: True ends the session there.
        """
        naming, rows = Naming(self.stream.settings.rename), self.stream.settings.rows
        decoder = PostgresDecoder(
            piece_bytes=piece_bytes,
            named=naming.target,
            filtered=bool(rows),
            row_max=self.stream.settings.row_max,
        )
        target_ = target() if target else self.target()
        try:
            batcher = Batcher(limits or Limits(), await target_.open())
            for record in self.journal.records:
                for piece in decoder.feed(record):
                    for action in batcher.add(piece):
                        if await self._do(target_, action) and ended():
                            return
            for action in batcher.flush():
                await self._do(target_, action)
            await target_.settle()
            self.reports.append(target_.report())
        finally:
            await target_.rollback()
            await target_.close()

    async def _do(self, target: Target, action: Any) -> bool:
        if isinstance(action, Discard):
            await target.rollback()
            return False
        await target.apply(action.pieces)
        if action.commit is None:
            return False
        await target.commit(action.commit)
        return True

    async def follow(self, **how: Any) -> None:
        await self.capture()
        await self.apply(**how)

    def compared(self) -> Comparison:
        return compare(self.pair.east.dsn(self.pair.name), self.pair.west.dsn(self.pair.name))

    def assert_equal(self) -> None:
        found = self.compared()
        assert found.equal, found.differences


async def watch_for_others(stream: Stream) -> None:
    """Put on the target what notices writes that are not Castling's, and leave it there."""
    watch = ForeignWatch(stream.group, stream.settings.databases[stream.backup], watching=True)
    watching = asyncio.create_task(watch.run())
    try:
        await until(lambda: watch.report()["unwatched"] == 0)
    finally:
        watching.cancel()
        await asyncio.wait((watching,))


def random_limits(chance: random.Random) -> Limits:
    """From one transaction at a time to all at once."""
    return Limits(changes=chance.choice([1, 7, 50, 50_000]))


class DyingTarget(PostgresTarget):
    """Its server session is terminated before the statement numbered `left`."""

    def __init__(self, follower: Follower, left: int) -> None:
        settings = follower.stream.settings
        super().__init__(
            follower.stream.group,
            settings.databases["west"],
            on_error=settings.on_error,
            schema=settings if settings.ddl == "carry" else None,
        )
        self._west = follower.pair.west
        self._left = left

    async def open(self) -> int:
        progress = await super().open()
        connection = self._connection
        assert connection is not None
        execute = connection.execute

        async def dying(query: Any, *arguments: Any, **how: Any) -> Any:
            self._left -= 1
            if self._left == 0:
                self._west.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    f" WHERE application_name = '{self._application}'"
                )
            return await execute(query, *arguments, **how)

        connection.execute = dying  # type: ignore[method-assign]
        return progress
