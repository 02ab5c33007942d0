"""What a sender sends: continuous runs of encoded records, and who remembers them.

A feed keeps what the far side has not acknowledged, so that a link that merely broke is
resumed from memory and the source is not asked twice. Only when the far tail lies outside
of what is kept is the capture opened anew, at the far tail.

Invariants: positions are dense; a record's time never goes back; nothing is forgotten
before it is acknowledged; a far journal that lacks what it had acknowledged is a gap,
told loudly.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from castling.errors import CastlingError, JournalGap, LinkProtocol, SourceUnreachable, StaleEpoch
from castling.host import Host
from castling.journal.record import Draft, Position, RecordType, Tail
from castling.journal.segment import encode
from castling.kinds.base import Capture
from castling.link.frames import SESSION_MAX

__all__ = ["CaptureFeed", "Feed", "Run", "foreign"]


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive records as they stand in a journal.

    `offset` and `t_ns` are those of the last record; `commits` the source's commit times
    of the transactions that end in the run (for lag figures only).
    """

    first: Position
    last: Position
    offset: int
    t_ns: int
    data: bytes
    commits: tuple[int, ...]


def foreign(tail: Tail) -> JournalGap:
    """The far journal ends with a record that never left from here."""
    return JournalGap(
        f"the far journal's record {tail.position} is not the one sent from here",
        hint="another node has written to it; check which node is the primary",
    )


class Feed(Protocol):
    """What a sender sends. One sender at a time; it opens the feed before each stream."""

    async def open(self, tail: Tail) -> None:
        """The next run begins right after `tail`, the far side's durable tail."""

    async def next(self) -> Run:
        """The next run; waits for it. Cancelling loses nothing."""

    async def acknowledge(self, tail: Tail) -> None:
        """Everything up to `tail` is hardened on the far side."""

    async def close(self) -> None:
        """Forget everything; `open` begins anew."""


@dataclass(frozen=True, slots=True)
class _End:
    """Where one record of a run ends."""

    byte: int
    offset: int
    t_ns: int


@dataclass(frozen=True, slots=True)
class _Kept:
    """A run that is not acknowledged, with the ends of its records, so that it can be cut."""

    run: Run
    ends: tuple[_End, ...]

    def after(self, seq: int) -> Run:
        """The part of the run behind record `seq`, which lies in it but is not its last."""
        count = seq - self.run.first.seq + 1
        first = replace(self.run.first, seq=seq + 1)
        return replace(self.run, first=first, data=self.run.data[self.ends[count - 1].byte :])


class CaptureFeed:
    """Makes records of what a capture reads: gives positions and times, encodes, remembers.

    `window`: how many bytes may wait for their acknowledgement; `next` waits beyond it.
    """

    #: a run is closed at this size, so that a batch stays far below the frame's limit
    RUN_BYTES = 4 << 20

    def __init__(self, host: Host, capture: Capture, *, epoch: int, window: int) -> None:
        self._host = host
        self._capture = capture
        self._epoch = epoch
        self._window = window
        #: the last position given to a record; None before the first `open` and after `close`
        self.last: Position | None = None
        #: figures: how often an `open` went on from memory, and how often it asked the capture
        self.resumed = 0
        self.reopened = 0
        self._acked = Tail()
        self._t_ns = 0
        self._kept: deque[_Kept] = deque()
        #: the continuity token in force at what is acknowledged, and where later ones are
        self._session: bytes | None = None
        self._sessions: deque[tuple[int, bytes]] = deque()
        self._kept_bytes = 0
        self._unsent: deque[Run] = deque()
        self._reading: asyncio.Task[list[Draft]] | None = None
        self._running = False  # the capture is open and has not failed
        self._touched = False  # the capture was opened, if only in part
        self._room = asyncio.Event()

    # --- where the stream goes on -------------------------------------------------------------

    async def open(self, tail: Tail) -> None:
        if tail.position.epoch > self._epoch:
            raise StaleEpoch(
                f"the far journal is in epoch {tail.position.epoch}, this node was primary of {self._epoch}"
            )
        if self._can_resume(tail):
            await self._resume(tail)
        else:
            await self._reopen(tail)

    def _can_resume(self, tail: Tail) -> bool:
        if not self._running or self.last is None:
            return False
        if self._reading is not None and self._reading.done() and self._failed(self._reading):
            return False
        if tail.position.seq < self._acked.position.seq:
            raise JournalGap(
                f"the far journal ends at {tail.position} though it had acknowledged {self._acked.position}:"
                " it has lost records",
                hint="find out what happened to its disk, then seed the backup again",
                tail=str(tail.position),
                acknowledged=str(self._acked.position),
            )
        return tail.position.seq <= self.last.seq

    @staticmethod
    def _failed(task: asyncio.Task[list[Draft]]) -> bool:
        return task.cancelled() or task.exception() is not None

    async def _resume(self, tail: Tail) -> None:
        self._verify_same(tail)
        if tail.position.seq > self._acked.position.seq:
            await self._advance(tail)
        self._unsent = deque(self._runs_after(tail.position.seq))
        self.resumed += 1

    def _runs_after(self, seq: int) -> list[Run]:
        return [kept.after(seq) if kept.run.first.seq <= seq else kept.run for kept in self._kept]

    def _verify_same(self, tail: Tail) -> None:
        """The far tail must be the very record that was sent under its position."""
        acked = self._acked
        if tail.position.seq == acked.position.seq:
            if tail.position != acked.position or (tail.offset, tail.t_ns) != (acked.offset, acked.t_ns):
                raise foreign(tail)
            return
        for kept in self._kept:
            if kept.run.first.seq <= tail.position.seq <= kept.run.last.seq:
                end = kept.ends[tail.position.seq - kept.run.first.seq]
                if (end.offset, end.t_ns) != (tail.offset, tail.t_ns) or tail.position.epoch != self._epoch:
                    raise foreign(tail)

    async def _reopen(self, tail: Tail) -> None:
        await self.close()
        self._acked, self._session = tail, tail.session
        self._t_ns = tail.t_ns
        self.last = tail.position
        self._touched = True
        await self._capture.open(resume=tail.offset, session=tail.session)
        self._running = True
        self.reopened += 1

    def unacknowledged(self) -> tuple[Tail, list[Run]]:
        """What the far side is not known to hold, and the tail that comes before it. Not after `close`."""
        assert self.last is not None, "it is not known where the far journal ends"
        return replace(self._acked, session=self._session), [kept.run for kept in self._kept]

    async def close(self) -> None:
        await self._stop_reading()
        self._running = False
        self._kept.clear()
        self._sessions.clear()
        self._unsent.clear()
        self._kept_bytes = 0
        self._acked, self.last = Tail(), None
        if self._touched:
            self._touched = False
            await self._capture.close()

    async def _stop_reading(self) -> None:
        if self._reading is not None:
            reading, self._reading = self._reading, None
            reading.cancel()
            await asyncio.wait((reading,))
            if not reading.cancelled():
                reading.exception()  # looked at: what it failed with no longer matters

    # --- runs ---------------------------------------------------------------------------------

    async def next(self) -> Run:
        while not self._unsent:
            while self._kept_bytes >= self._window:
                self._room.clear()
                await self._room.wait()
            self._keep(await self._read())
        return self._unsent.popleft()

    async def _read(self) -> list[Draft]:
        """What the capture reads next. The read goes on when its waiter is cancelled, so that what
        it has taken from the source is not lost with a link."""
        if self._reading is None:
            assert self._touched, "next was called on a feed that was never opened"
            if not self._running:  # it failed beside us, while it was told how far the far side is
                raise SourceUnreachable("the capture is not open any more")
            self._reading = asyncio.create_task(self._capture.read())
        await asyncio.wait((self._reading,))
        reading, self._reading = self._reading, None
        try:
            return reading.result()
        except CastlingError:
            self._running = False  # the next open asks the capture anew
            raise

    def _keep(self, drafts: Sequence[Draft]) -> None:
        now_ns = self._host.wall_ns()
        parts: list[bytes] = []
        ends: list[_End] = []
        commits: list[int] = []
        size = 0
        for draft in drafts:
            assert self.last is not None
            if draft.type is RecordType.SESSION:
                assert len(draft.payload) <= SESSION_MAX, "a continuity token is over its limit"
            if parts and size + len(draft.payload) > self.RUN_BYTES:
                self._close_run(parts, ends, commits)
                parts, ends, commits, size = [], [], [], 0
            self.last = Position(self._epoch, self.last.seq + 1)
            if draft.type is RecordType.SESSION:
                self._sessions.append((self.last.seq, draft.payload))
            self._t_ns = max(self._t_ns, now_ns)
            data = encode(draft, self.last, self._t_ns)
            size += len(data)
            parts.append(data)
            ends.append(_End(size, draft.offset, self._t_ns))
            commits.extend(draft.commits)
        if parts:
            self._close_run(parts, ends, commits)

    def _close_run(self, parts: list[bytes], ends: list[_End], commits: list[int]) -> None:
        assert self.last is not None
        first = Position(self._epoch, self.last.seq - len(parts) + 1)
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        run = Run(first, self.last, ends[-1].offset, ends[-1].t_ns, data, tuple(commits))
        self._kept.append(_Kept(run, tuple(ends)))
        self._kept_bytes += len(data)
        self._unsent.append(run)

    async def acknowledge(self, tail: Tail) -> None:
        if tail.position.seq <= self._acked.position.seq:
            return  # an older figure, e.g. the periodic one
        if self.last is None or tail.position.seq > self.last.seq:
            raise LinkProtocol(f"the far side acknowledges {tail.position}, which was never sent")
        self._verify_same(tail)
        await self._advance(tail)

    async def _advance(self, tail: Tail) -> None:
        self._acked = tail
        while self._sessions and self._sessions[0][0] <= tail.position.seq:
            self._session = self._sessions.popleft()[1]
        while self._kept and self._kept[0].run.last.seq <= tail.position.seq:
            self._kept_bytes -= len(self._kept.popleft().run.data)
        self._room.set()
        if self._running:
            try:
                await self._capture.acknowledge(tail.offset)
            except CastlingError:
                self._running = False
                raise
