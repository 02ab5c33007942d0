"""A feed that spools: from the capture straight to the link, and through a spool while the backup is away.

    capture ──────────────────────▶ sender        direct: what is not acknowledged is in memory
    capture ─▶ spool ═══fsync═══▶ sender          spooled: the source forgets what the spool holds

When the link has been away for a moment, what was on its way is kept in the spool: from then on it is known,
whatever dies, where the backup's journal can end. The rest stays in the source's log until more than
`wal_spool` of it waits; then it is captured into the spool. When the backup has nearly all of it, the
capture pauses, the rest is sent, the spool is removed, and the stream goes on from memory.

Invariant: while a spool is there, all that is sent comes from it. So where it ends, nothing else was sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from castling.errors import CastlingError, ContinuityLost, JournalError, JournalFull, StateUnsaved
from castling.groups.spool import Spool
from castling.host import Host
from castling.journal.record import Position, Tail
from castling.link.feed import CaptureFeed, Run
from castling.link.journal_feed import JournalFeed
from castling.observe import events

__all__ = ["SpoolFeed"]


class SpoolFeed:
    """Implements `link.feed.Feed`; `run` works beside it. `begin_at`: bytes that may wait in the source's
    log; `waiting`: how many do, None when that is not known; `window`: so much unsent is soon sent."""

    #: seconds between two looks at what waits
    LOOK_S = 1.0
    #: seconds without a link before what was on its way is kept
    AWAY_S = 3.0
    #: seconds before capturing or a full disk is tried again
    RETRY_S = 2.0
    #: with a link: seconds in which what waits must not have shrunk
    PATIENCE_S = 10.0

    def __init__(
        self,
        host: Host,
        feed: CaptureFeed,
        spool: Spool,
        *,
        begin_at: int,
        window: int,
        waiting: Callable[[], int | None],
    ) -> None:
        self._host = host
        self._feed = feed
        self._spool = spool
        self._begin_at = begin_at
        self._window = window
        self._waiting = waiting
        self._log = events("spool")
        #: whoever reads from the capture feed holds it
        self._capturing = asyncio.Lock()
        self._moved = asyncio.Event()
        self._filling = False
        self._sending: JournalFeed | None = None
        self._is_linked = False
        self._lost_s = host.monotonic()
        #: the backup holds a finished copy: only then is there something to go on from
        self.may_begin = spool.is_there
        self._returned = Tail()
        self._acked = Tail()
        #: bytes that were put in behind each position and are not acknowledged
        self._unacked: list[tuple[int, int]] = (
            [(spool.tail.position.seq, spool.size)] if spool.is_there else []
        )
        self._high: tuple[float, int] | None = None
        self._problem: CastlingError | None = None
        #: figures: how often a spool was begun, filled, and sent to its end
        self.begun = self.filled = self.emptied = 0

    @property
    def last(self) -> Position | None:
        """The last position given to a record."""
        if self._spool.is_there and not self._filling:
            return self._spool.tail.position
        return self._feed.last

    # --- the feed -----------------------------------------------------------------------------

    async def open(self, tail: Tail) -> None:
        self._is_linked = True
        if not self._spool.is_there:
            async with self._capturing:
                if not self._spool.is_there:
                    await self._open_directly(tail)
                    return
        if self._is_passed(tail):
            self._stop_filling()
            async with self._capturing:
                self._spool.forget()
                await self._open_directly(tail)
            return
        if not self._spool.is_of_this_epoch:
            raise ContinuityLost(
                f"the spool ends at {self._spool.tail.position} and is of another epoch, the backup's journal"
                f" ends at {tail.position}: what lies between was never there",
                hint="find out which node was the primary; then `castling group start GROUP --reseed`",
            )
        await self._send_from(tail)
        self._acked = self._returned = tail

    async def _send_from(self, tail: Tail) -> None:
        if self._sending is not None:
            await self._sending.close()
        self._sending = self._spool.feed()
        await self._sending.open(tail)

    def _is_passed(self, tail: Tail) -> bool:
        """The backup has more than the spool: records that came from elsewhere, after it was of any use."""
        end = self._spool.tail.position
        return tail.position.seq > end.seq or (
            tail.position.seq == end.seq and not self._spool.is_of_this_epoch
        )

    async def _open_directly(self, tail: Tail) -> None:
        await self._feed.open(tail)
        self._acked = self._returned = tail

    def lost(self) -> None:
        """The link is away."""
        if self._is_linked:
            self._is_linked, self._lost_s = False, self._host.monotonic()

    async def next(self) -> Run:
        while True:
            run = await (self._next_spooled() if self._spool.is_there else self._next_directly())
            if run is not None:
                self._returned = Tail(run.last, run.offset, run.t_ns)
                return run

    async def _next_directly(self) -> Run | None:
        async with self._capturing:
            if self._spool.is_there:
                return None
            return await self._unless_moved(self._feed.next())

    async def _next_spooled(self) -> Run | None:
        assert self._sending is not None
        if not self._filling and self._is_all_held():
            await self._leave()
            return None
        return await self._unless_moved(self._sending.next())

    async def acknowledge(self, tail: Tail) -> None:
        if not self._spool.is_there:
            await self._feed.acknowledge(tail)
        if tail.position.seq <= self._acked.position.seq:
            return
        if self._spool.is_there:
            assert self._sending is not None
            await self._sending.acknowledge(tail)
            self._spool.release(tail.position)
        self._acked = tail
        self._unacked = [each for each in self._unacked if each[0] > tail.position.seq]
        if self._filling and self._is_nearly_through():
            self._filling = False
        self._move()

    def _is_all_held(self) -> bool:
        """The backup holds all that is in the spool."""
        return self._acked.position.seq == self._spool.tail.position.seq

    def _is_nearly_through(self) -> bool:
        waiting = self._waiting()
        unsent = sum(size for _, size in self._unacked)
        return waiting is not None and waiting <= self._begin_at and unsent <= self._window

    async def _leave(self) -> None:
        """The backup holds all of the spool, and nothing goes into it: on from memory."""
        async with self._capturing:
            if self._filling:
                return
            await self._feed.open(self._spool.tail)
            sending, self._sending = self._sending, None
            assert sending is not None
            await sending.close()
            self._spool.forget()
            self._problem = None
            self.emptied += 1
            self._log.info("spool.emptied", position=str(self._acked.position))

    async def close(self) -> None:
        """The spool stays on the disk, and is found by the next process."""
        self._stop_filling()
        async with self._capturing:
            await self._close_feeds()

    async def _close_feeds(self) -> None:
        if self._sending is not None:
            await self._sending.close()
            self._sending = None
        await self._feed.close()

    async def discard(self) -> None:
        """The backup is seeded anew: what the spool holds belongs to the copy before."""
        self.may_begin = False
        self._stop_filling()
        async with self._capturing:
            await self._close_feeds()
            self._spool.forget()
            self._unacked, self._problem = [], None

    # --- between tasks ------------------------------------------------------------------------

    def _move(self) -> None:
        """Whoever waits looks again."""
        self._moved.set()
        self._moved = asyncio.Event()

    async def _unless_moved(self, work: Coroutine[Any, Any, Run]) -> Run | None:
        """What `work` gives; None when there was a move before."""
        doing = asyncio.ensure_future(work)
        moving = asyncio.ensure_future(self._moved.wait())
        try:
            await asyncio.wait((doing, moving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (doing, moving):
                task.cancel()
            await asyncio.wait((doing, moving))
            if not doing.cancelled():
                doing.exception()  # looked at: our waiter may be cancelled too
        return None if doing.cancelled() else doing.result()

    def _stop_filling(self) -> None:
        self._filling = False
        self._move()

    # --- beside the feed ----------------------------------------------------------------------

    async def run(self) -> None:
        """Begin a spool and fill it, when that is due. Raises only what trying again can't heal."""
        while True:
            await self._host.sleep(self.LOOK_S)
            if not self._spool.is_there:
                if self._is_due():
                    await self._begin()
                else:
                    self._problem = None
            elif self._spool.is_of_this_epoch and self._is_too_much():
                await self._fill()

    def _is_due(self) -> bool:
        if not self.may_begin or self._feed.last is None:
            return False
        if not self._is_linked:
            return self._host.monotonic() - self._lost_s > self.AWAY_S
        return self._is_too_much() and self._does_not_shrink()

    def _is_too_much(self) -> bool:
        waiting = self._waiting()
        if waiting is None or waiting <= self._begin_at:
            self._high = None
            return False
        return True

    def _does_not_shrink(self) -> bool:
        """With a link the backup may be about to take it all."""
        now_s, waiting = self._host.monotonic(), self._waiting() or 0
        if self._high is None or waiting < self._high[1]:
            self._high = (now_s, waiting)
        return now_s - self._high[0] > self.PATIENCE_S

    async def _begin(self) -> None:
        self._move()
        async with self._capturing:
            if not self._is_due():
                return
            after, runs = self._feed.unacknowledged()
            try:
                await self._spool.begin(after, runs)
            except (JournalError, StateUnsaved) as error:
                self._note(error)  # nothing was taken from the source: it keeps all
                return
            self._unacked = [(run.last.seq, len(run.data)) for run in runs]
            if self._is_linked:
                await self._send_from(self._returned)
            self.begun += 1
            self._problem = None
            self._log.info("spool.begun", after=str(after.position), to=str(self._spool.tail.position))
            try:
                await self._feed.acknowledge(self._spool.tail)
            except CastlingError as error:
                await self._trouble(error)

    async def _fill(self) -> None:
        self._filling = True
        self.filled += 1
        self._log.warning("spool.filling", waiting_bytes=self._waiting())
        async with self._capturing:
            while self._filling and self._spool.is_there:
                try:
                    await self._fill_on()
                except CastlingError as error:
                    if isinstance(error, JournalFull) and self._is_linked and self._is_all_held():
                        self._stop_filling()  # the room that it takes is the room that it lacks
                    await self._trouble(error)

    async def _fill_on(self) -> None:
        """Take from the capture what it gives. JournalFull, SourceUnreachable: not now."""
        tail = await self._spool.settle()
        await self._feed.open(tail)
        while self._filling:
            run = await self._unless_moved(self._feed.next())
            if run is None:
                continue
            tail = await self._spool.add(run)
            self._problem = None
            self._unacked.append((run.last.seq, len(run.data)))
            await self._feed.acknowledge(tail)
            if self._sending is not None:
                self._sending.ring()

    async def _trouble(self, error: CastlingError) -> None:
        if not error.retryable:
            raise error
        self._note(error)
        await self._host.sleep(self.RETRY_S)

    def _note(self, error: CastlingError) -> None:
        if self._problem is None or self._problem.code != error.code:
            self._log.warning("spool.troubled", code=error.code, error=str(error))
        self._problem = error

    # --- figures ------------------------------------------------------------------------------

    def oldest_ns(self) -> int | None:
        """Wall clock up to which the backup surely has what was captured, while a spool holds more."""
        if not self._spool.is_there or self._acked.position.seq >= self._spool.tail.position.seq:
            return None
        return self._acked.t_ns or None

    @property
    def state(self) -> str:
        if isinstance(self._problem, JournalFull):
            return "full"
        if not self._spool.is_there:
            return "empty"
        if self._filling:
            return "filling"
        return "sending" if self._is_linked else "kept"

    def report(self) -> dict[str, Any]:
        problem = self._problem
        return {
            "state": self.state,
            **self._spool.report(),
            "unsent_bytes": sum(size for _, size in self._unacked) if self._spool.is_there else 0,
            "problem": None if problem is None else str(problem),
        }

    def warnings(self) -> list[dict[str, Any]]:
        if self.state == "full":
            assert self._problem is not None
            return [
                {
                    "code": "spool-full",
                    "message": f"{self._problem}: the source keeps what comes now",
                    "hint": self._problem.hint,
                }
            ]
        if self.state != "filling":
            return []
        return [
            {
                "code": "spooling",
                "message": "the backup does not take the changes: they wait in a spool on the capture's node,"
                " and are nowhere else",
                "hint": "bring the backup or the link back; what the spool holds is sent then by itself",
            }
        ]
