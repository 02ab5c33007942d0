"""A replica that several sessions write: lanes (see `lanes`) beside each other, a main session for the rest.

A batch is split by lane and handed over; each lane commits its share with its own progress, in its own
time. What concerns all tables (TRUNCATE, messages, a transaction too large to come in one piece, tables on
their way back from a hold) is done by the main session alone, when every lane has ended: its transaction
takes all lanes along. So is every look at what a crash would leave.

When a lane fails, what the others have begun ends; the lane's table goes on hold where that lane stands, or
the session ends with the error. The next one begins at the slowest lane (see `lane_rows`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any

from castling.config import DatabaseSettings
from castling.errors import TargetError
from castling.kinds.base import Commit, Held, Piece
from castling.kinds.postgres.audit_marks import MARK_PREFIX, REPAIR_PREFIX
from castling.kinds.postgres.changes import Change
from castling.kinds.postgres.ddl_message import changes_schema
from castling.kinds.postgres.lane import Lane
from castling.kinds.postgres.lanes import Table, are_known, split
from castling.kinds.postgres.large_objects import LARGE_OBJECTS_PREFIX
from castling.kinds.postgres.sequences import SEQUENCES_PREFIX
from castling.kinds.postgres.target import PostgresTarget

__all__ = ["LanesTarget"]

#: batches that are handed over and not yet committed by all of their lanes
BATCHES_MAX = 2
#: messages after which every table is what it was
_HARMLESS = {SEQUENCES_PREFIX, LARGE_OBJECTS_PREFIX, MARK_PREFIX, REPAIR_PREFIX}


class LanesTarget:
    """Implements `kinds.base.Target`: `main` and `lanes` sessions beside it."""

    def __init__(self, main: PostgresTarget, group: str, settings: DatabaseSettings, lanes: int) -> None:
        self._main = main
        self._lanes = [Lane(group, number, settings, main.lanes.holder) for number in range(lanes)]
        self._opened = False
        #: the lane of each table, while lanes are at work
        self._lane_of: dict[Table, int] = {}
        #: a table without a lane was met
        self._is_new = False
        self._last: list[asyncio.Task[None] | None] = [None] * lanes
        self._batches: deque[tuple[int, list[asyncio.Task[None]]]] = deque()
        #: handed to `apply`, by lane, until `commit` says where it ends; None: the main session has it
        self._parts: list[list[Change]] | None = None
        #: everything before it is handed over, and everything before it is committed
        self._offset = 0
        self._done = 0
        self.handed_over = 0

    async def open(self) -> int:
        start = await self._main.open()
        self._offset = self._done = self._main.applied()
        return start

    # --- transactions -------------------------------------------------------------------------

    async def apply(self, pieces: Sequence[Piece]) -> None:
        self._parts = None
        changed = changes_schema(pieces)
        together = changed or self._main.stops(pieces)  # for an audit all tables stand at one position
        if pieces[-1].commit is not None and self._main.is_even and not together:
            changes = self._main.kept(pieces)
            if not self._lane_of:
                await self._begin()
            self._parts = split(changes, self._lane_of, len(self._lanes))
            self._is_new = self._parts is None and not are_known(changes, self._lane_of)
        if self._parts is None:
            await self._settle_for_main()
            if changed:
                for lane in self._lanes:
                    await lane.forget_tables()
            await self._main.apply(pieces)

    async def commit(self, commit: Commit) -> None:
        parts, self._parts = self._parts, None
        if parts is None:
            await self._commit_main(commit)
            return
        await self._make_room(BATCHES_MAX - 1)
        tasks = [
            self._hand_over(lane, changes, commit.offset)
            for lane, changes in zip(self._lanes, parts, strict=True)
            if changes
        ]
        self._batches.append((commit.offset, tasks))
        self._offset = commit.offset
        self.handed_over += 1

    async def _commit_main(self, commit: Commit) -> None:
        await self._settle_for_main()
        await self._main.commit(commit)
        self._offset = self._done = self._main.applied()
        for lane in self._lanes:
            lane.offset = self._offset
        if self._main.heard - _HARMLESS or self._is_new:
            self._main.heard.clear()
            self._lane_of, self._is_new = {}, False

    def _hand_over(self, lane: Lane, changes: list[Change], offset: int) -> asyncio.Task[None]:
        task = asyncio.create_task(self._write(lane, self._last[lane.number], changes, offset))
        self._last[lane.number] = task
        return task

    @staticmethod
    async def _write(
        lane: Lane, before: asyncio.Task[None] | None, changes: list[Change], offset: int
    ) -> None:
        if before is not None:
            await asyncio.wait((before,))
            before.result()  # what comes behind a failure is not written
        await lane.write(changes, offset)

    async def _make_room(self, most: int) -> None:
        """Wait until no more than `most` batches are under way. Raises what a lane has met."""
        while len(self._batches) > most:
            offset, tasks = self._batches[0]
            if tasks:
                await asyncio.wait(tasks)
            if any(task.exception() for task in tasks):
                await self._fail()
            self._batches.popleft()
            self._done = offset

    async def _fail(self) -> None:
        """A lane has failed. Raises its error, or that its tables are on hold."""
        tasks = [task for _, some in self._batches for task in some]
        await asyncio.wait(tasks)
        errors = [error for error in (task.exception() for task in tasks) if error is not None]
        for lane, task in zip(self._lanes, self._last, strict=True):
            error = None if task is None else task.exception()
            if isinstance(error, TargetError):
                await self._main.hold(error, lane.at, lane.offset)  # raises PartsMoved
        raise errors[0]

    async def settle(self) -> None:
        await self._make_room(0)

    async def _settle_for_main(self) -> None:
        await self.settle()
        self._main.reach(self._offset)

    async def _begin(self) -> None:
        """Give each table its lane, at a moment when all of them are as far."""
        await self._settle_for_main()
        if not self._opened:
            for lane in self._lanes:
                await lane.open()
            self._opened = True
        self._lane_of = await self._main.begin_lanes(len(self._lanes))
        for lane in self._lanes:
            lane.renew()
            lane.offset = self._offset

    async def rollback(self) -> None:
        """What lanes have not committed yet is given up with their sessions."""
        tasks = [task for _, some in self._batches for task in some if not task.done()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._batches.clear()
        self._parts = None
        await self._main.rollback()

    async def durable(self) -> int:
        if self._main.in_transaction:
            return 0
        await self._settle_for_main()
        await self._main.align()
        return await self._main.durable()

    def applied(self) -> int:
        return self._done

    # --- parts --------------------------------------------------------------------------------

    def held(self) -> list[Held]:
        return self._main.held()

    async def give_up(self, part: str) -> None:
        await self._main.give_up(part)

    async def close(self) -> None:
        await self.rollback()
        for lane in self._lanes:
            await lane.close()
        await self._main.close()

    def report(self) -> dict[str, Any]:
        found = self._main.report()
        tables = [0] * len(self._lanes)
        for lane in self._lane_of.values():
            tables[lane] += 1
        counts = [lane.counts() for lane in self._lanes]
        return found | {
            "sets": (found["sets"] or 0) + sum(sets for sets, _ in counts),
            "replays": (found["replays"] or 0) + sum(replays for _, replays in counts),
            "lanes": [
                {
                    "lane": lane.number,
                    "tables": tables[lane.number],
                    "applied_offset": lane.offset,
                    "busy": (task := self._last[lane.number]) is not None and not task.done(),
                }
                for lane in self._lanes
            ],
        }
