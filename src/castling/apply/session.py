"""Applies a remote journal to a replica: read, decode, batch, commit, tell.

Two tasks share the work, so that decoding goes on while the target is busy: the
reader decodes what is hardened into a bounded queue, the writer turns the queue into
target transactions. Where to begin is the target's own progress: decoding restarts at
the last keyframe at or before it, and what the target already holds is passed over.

Invariants: only hardened records are read; progress is committed with its changes;
the `applied` mark is published after the commit, `released` only for what would survive
a crash of the target.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from castling.apply.schedule import Batcher, Discard, Limits, Write
from castling.errors import JournalGap
from castling.host import Bell, Host
from castling.journal.marks import Mark, Marks
from castling.journal.reader import JournalReader
from castling.journal.record import START, Position, Record
from castling.kinds.base import Abandon, Commit, Decoder, Held, Piece, Target
from castling.observe import CommitLag
from castling.together import run_together

__all__ = ["ApplySession", "Figures"]


@dataclass(slots=True)
class _Decoded:
    """What one read of the journal gave: pieces, and how far it reaches."""

    pieces: list[Piece | Abandon]
    size: int
    reached: list[tuple[int, Position]]  # (source position, record) for each record read


@dataclass(frozen=True, slots=True)
class _Handed:
    """A batch that the target was given, and what is counted when it is committed."""

    commit: Commit
    transactions: int
    changes: int


class Figures:
    """Counters and lag of the apply, kept across sessions of one process."""

    def __init__(self) -> None:
        self.lag = CommitLag()
        self.transactions = 0
        self.changes = 0
        self.commits = 0
        self.sessions = 0
        #: the parts on hold and the bytes of the journal that each keeps, as last seen; None: not known yet
        self.held: list[tuple[Held, int]] | None = None

    def counters(self) -> dict[str, int]:
        return {
            "transactions": self.transactions,
            "changes": self.changes,
            "target_transactions": self.commits,
            "sessions": self.sessions,
        }


class ApplySession:
    """One connection's worth of applying; ends only by an error or by being cancelled."""

    #: bytes of records read at once
    READ_BYTES = 4 << 20
    #: seconds between looks at the journal when no bell rings
    POLL_S = 0.5
    #: a batch of so many changes tells of a backlog: it waits for more, while more comes within `NEXT_S`
    #: (longer than the source end's reader pauses), until it is full or `GATHER_S` old: each has its price
    MANY = 2000
    NEXT_S = 0.06
    GATHER_S = 0.5
    #: seconds between two questions to the target what would survive its crash
    RELEASE_S = 2.0

    def __init__(
        self,
        host: Host,
        reader: JournalReader,
        decoder: Decoder,
        target: Target,
        marks: Marks,
        *,
        hardened: Bell,
        applied: Bell,
        limits: Limits,
        memory: int,
        hold_bytes: int,
        figures: Figures,
    ) -> None:
        self._host = host
        self._reader = reader
        self._decoder = decoder
        self._target = target
        self._marks = marks
        self._hardened_bell = hardened
        self._applied_bell = applied
        self._limits = limits
        self._memory = memory
        self._hold_bytes = hold_bytes
        #: parts that are to be copied anew, as the mark says; None: not looked yet
        self._copying: int | None = None
        self.figures = figures
        self._queue: deque[_Decoded] = deque()
        self._queued_bytes = 0
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._handed: deque[_Handed] = deque()
        #: (source position, record) not yet at or below the applied and the released progress
        self._unapplied: deque[tuple[int, Position]] = deque()
        self._unreleased: deque[tuple[int, Position]] = deque()
        self._applied = Mark(START, 0, 0)
        self._last_read: Record | None = None
        self._last_release_s = float("-inf")
        self._on_commit: Callable[[], None] = lambda: None
        self._gathering_since_s = float("-inf")

    @property
    def applied(self) -> Position:
        return self._applied.position

    async def run(self, *, on_commit: Callable[[], None] = lambda: None) -> None:
        """Apply until cancelled. Raises what the target, the journal or the decoder raises."""
        self._on_commit = on_commit
        progress = await self._target.open()
        self.figures.sessions += 1
        self.figures.lag.forget()
        start = self._reader.keyframe_at_or_before(progress)
        if start is None:
            start = self._first_record(progress)
        if start is not None:
            self._reader.seek(start)
        self._applied = Mark(START, progress, 0)
        await self._release()
        await run_together(self._read(started=start is not None, progress=progress), self._write(progress))

    def _first_record(self, progress: int) -> Position | None:
        """No keyframe lies at or before the progress: legal only while nothing is hardened that the
        target does not have already."""
        tail = self._reader.hardened()
        if tail is None or tail.position == START:
            return None
        if tail.offset < progress:
            return None  # a mark from before a crash: the receive end will say how far the journal is
        raise JournalGap(
            "the journal no longer reaches back to what the target has applied",
            hint="the target must be seeded again: `castling group start GROUP --reseed`",
            progress=progress,
            hardened=str(tail.position),
        )

    # --- reading ------------------------------------------------------------------------------

    async def _read(self, *, started: bool, progress: int) -> None:
        while True:
            await self._room.wait()
            if not started:
                start = self._reader.keyframe_at_or_before(progress) or self._first_record(progress)
                if start is None:
                    await self._hardened_bell.wait(self.POLL_S)
                    continue
                self._reader.seek(start)
                started = True
            records = self._reader.read(self.READ_BYTES)
            if not records:
                await self._hardened_bell.wait(self.POLL_S)
                continue
            await self._decode(records)

    async def _decode(self, records: Iterable[Record]) -> None:
        for record in records:
            pieces = list(self._decoder.feed(record))
            self._last_read = record
            size = sum(piece.size for piece in pieces if isinstance(piece, Piece))
            self._enqueue(_Decoded(pieces, size, [(record.offset, record.position)]))
            await asyncio.sleep(0)  # decoding is CPU: let the writer have its turn
            await self._room.wait()

    def _enqueue(self, decoded: _Decoded) -> None:
        self._queue.append(decoded)
        self._queued_bytes += decoded.size
        for piece in decoded.pieces:
            if isinstance(piece, Piece) and piece.commit and piece.commit.offset > self._applied.offset:
                self.figures.lag.passed(piece.commit.offset, (piece.commit.committed_ns,))
        if self._queued_bytes > self._memory:
            self._room.clear()
        self._arrived.set()

    # --- writing ------------------------------------------------------------------------------

    async def _write(self, progress: int) -> None:
        batcher = Batcher(self._limits, progress)
        try:
            while True:
                while self._queue:
                    decoded = self._queue.popleft()
                    self._queued_bytes -= decoded.size
                    if self._queued_bytes <= self._memory:
                        self._room.set()
                    self._unapplied.extend(decoded.reached)
                    for piece in decoded.pieces:
                        for action in batcher.add(piece):
                            await self._do(action)
                if await self._more_comes(batcher):
                    continue
                for action in batcher.flush():
                    await self._do(action)
                await self._target.settle()
                self._note_applied()
                self._advance(self._applied.offset, self._applied.t_ns)
                self._arrived.clear()
                await self._wait_for_more()
                await self._release()
        finally:
            await self._target.rollback()

    async def _more_comes(self, batcher: Batcher) -> bool:
        """Whether a batch that is not full is to be kept open: there is more in the queue now."""
        now_s = self._host.monotonic()
        if batcher.changes < self.MANY:
            self._gathering_since_s = now_s
            return False
        if now_s - self._gathering_since_s > self.GATHER_S:
            self._gathering_since_s = now_s
            return False
        self._arrived.clear()
        if self._queue:
            return True
        try:
            async with asyncio.timeout(self.NEXT_S):
                await self._arrived.wait()
        except TimeoutError:
            return False
        return True

    async def _wait_for_more(self) -> None:
        if self._queue:
            return
        try:
            async with asyncio.timeout(self.RELEASE_S):
                await self._arrived.wait()
        except TimeoutError:
            return

    async def _do(self, action: Write | Discard) -> None:
        if isinstance(action, Discard):
            await self._target.rollback()
            return
        await self._target.apply(action.pieces)
        if action.commit is not None:
            await self._target.commit(action.commit)
            transactions = sum(piece.commit is not None for piece in action.pieces)
            changes = sum(len(piece.changes) for piece in action.pieces)
            self._handed.append(_Handed(action.commit, transactions, changes))
            self._note_applied()
            await self._release()

    def _note_applied(self) -> None:
        """What of the batches that were handed over the target has committed by now."""
        applied = self._target.applied()
        while self._handed and self._handed[0].commit.offset <= applied:
            done = self._handed.popleft()
            self.figures.commits += 1
            self.figures.transactions += done.transactions
            self.figures.changes += done.changes
            self.figures.lag.reached(done.commit.offset, self._host.wall_ns())
            self._on_commit()
            self._advance(done.commit.offset, done.commit.committed_ns)

    def _advance(self, offset: int, committed_ns: int) -> None:
        """The target holds everything up to source position `offset`: say so."""
        assert offset >= self._applied.offset, "applied progress went back"
        position = self._applied.position
        while self._unapplied and self._unapplied[0][0] <= offset:
            entry = self._unapplied.popleft()
            position = entry[1]
            self._unreleased.append(entry)
        if (position, offset) == (self._applied.position, self._applied.offset):
            return
        self._applied = Mark(position, offset, committed_ns)
        self._marks.publish("applied", self._applied)
        self._applied_bell.ring()

    async def _release(self) -> None:
        """Every RELEASE_S seconds: what the target would keep in a crash need not stay in the journal."""
        now_s = self._host.monotonic()
        if now_s - self._last_release_s < self.RELEASE_S:
            return
        self._last_release_s = now_s
        durable = await self._durable()
        position = None
        while self._unreleased and self._unreleased[0][0] <= durable:
            position = self._unreleased.popleft()[1]
        if position is not None:
            self._marks.publish("released", Mark(position, durable, self._host.wall_ns()))

    async def _durable(self) -> int:
        """The target's answer, after it has given up the parts that keep too much of the journal."""
        durable = await self._target.durable()
        if durable == 0:
            return 0  # in the middle of a transaction, or nothing is there yet
        lost = False
        for part, pinned in self._look_at_held():
            if part.state != "lost" and pinned > self._hold_bytes:
                await self._target.give_up(part.part)
                lost = True
        if not lost:
            return durable
        self._look_at_held()
        return await self._target.durable()  # the note is durable before the journal lets go

    def _look_at_held(self) -> list[tuple[Held, int]]:
        self.figures.held = [
            (part, 0 if part.state == "lost" else self._reader.bytes_after(part.offset))
            for part in self._target.held()
        ]
        copying = sum(part.state == "copying" for part, _ in self.figures.held)
        if copying != self._copying:
            self._copying = copying  # the receive end reads it, and tells the source end
            self._marks.publish("wanted", Mark(START, copying, self._host.wall_ns()))
        return self.figures.held

    # --- figures ------------------------------------------------------------------------------

    def lag_s(self) -> float | None:
        """Age of the oldest hardened commit that is not applied; 0 when all is; None if not known."""
        tail = self._reader.hardened()
        if tail is None:
            return None
        now_ns = self._host.wall_ns()
        oldest = self.figures.lag.oldest_s(now_ns)
        if oldest is not None:
            return oldest
        if self._applied.offset >= tail.offset:
            return 0.0
        last = self._last_read
        return None if last is None else max(0.0, (now_ns - last.t_ns) / 1e9)

    def report(self) -> dict[str, Any]:
        return {
            "applied": str(self._applied.position),
            "applied_offset": self._applied.offset,
            "queued_bytes": self._queued_bytes,
        }
