"""A toy source, after the manner of a database with a log and one slot.

`LedgerServer` commits transactions of a few to many rows; each has a place in the log where
it begins to be known (`at`) and where it ends (`end`). A slot remembers what was confirmed,
and what is confirmed is forgotten: a capture that asks for it is refused. So an
acknowledgement that was given too early can't be made good any more, and shows.

What reaches the decoder is made as a database's log is: a transaction larger than one draft
is spread over several, a new conversation sends it again from its beginning, and the place to
resume from is always the end of a whole transaction.
"""

from __future__ import annotations

import asyncio
import random
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from castling.errors import ContinuityLost, SeedLost, SourceUnreachable
from castling.journal.record import Draft, Flag, Record, RecordType
from castling.kinds.base import Abandon, Bulk, BulkCall, Commit, PartProgress, Piece, SeedProgress
from castling.testing.sim.host import SimHost
from castling.testing.sim.loop import SimLoop

__all__ = [
    "LedgerCapture",
    "LedgerDecoder",
    "LedgerSeedSource",
    "LedgerServer",
    "Row",
    "Txn",
    "committed_between",
]

#: transaction, number within it, value
Row = tuple[int, int, bytes]


@dataclass(frozen=True, slots=True)
class Txn:
    """A committed transaction. `at` < `end`; the next one's `at` is not below this one's `end`."""

    number: int
    at: int
    end: int
    committed_ns: int
    rows: tuple[Row, ...]


@dataclass(slots=True)
class _Slot:
    number: int
    start: int
    confirmed: int
    #: what a crash of the source leaves of `confirmed`
    saved: int


class LedgerServer:
    """The source. Commits are durable when they return; what the slot knows may go back in a crash."""

    def __init__(self, loop: SimLoop, rng: random.Random) -> None:
        self._loop = loop
        self.random = rng
        self.txns: list[Txn] = []
        self.rows: list[Row] = []
        #: ends of the transactions and how many rows there are up to each
        self.ends: list[int] = []
        self._counts: list[int] = []
        self.slot: _Slot | None = None
        self._slots = 0
        self.is_up = True
        self.sessions = 0
        #: the largest position ever acknowledged in the present slot
        self.confirmed_most = 0
        #: told each acknowledged position
        self.watch: Callable[[int], None] = lambda _: None
        self._waiters: list[asyncio.Future[None]] = []

    def fork(self) -> LedgerServer:
        """Another server with the same past: what a promotion makes."""
        found = LedgerServer(self._loop, random.Random(self.random.random()))
        found.txns, found.rows = list(self.txns), list(self.rows)
        found.ends, found._counts = list(self.ends), list(self._counts)
        if self.slot is not None:
            old = self.slot
            found.slot = _Slot(old.number, old.start, old.confirmed, old.saved)
        found._slots, found.confirmed_most = self._slots, self.confirmed_most
        return found

    # --- writing ------------------------------------------------------------------------------

    def commit(self, values: list[bytes], now_ns: int) -> Txn:
        number = len(self.txns) + 1
        at = self._end() + self.random.randint(1, 40)
        end = at + self.random.randint(1, 40)
        rows = tuple((number, index, value) for index, value in enumerate(values))
        txn = Txn(number, at, end, now_ns, rows)
        self.txns.append(txn)
        self.rows.extend(rows)
        self.ends.append(end)
        self._counts.append(len(self.rows))
        self._wake()
        return txn

    def _end(self) -> int:
        return self.ends[-1] if self.ends else 100

    def count_upto(self, offset: int) -> int:
        """How many rows the transactions that end at or before `offset` have."""
        found = bisect_right(self.ends, offset)
        return self._counts[found - 1] if found else 0

    # --- the slot -----------------------------------------------------------------------------

    def create_slot(self) -> _Slot:
        """A new slot in place of the old one; it begins at the end of what is committed."""
        self._slots += 1
        end = self._end()
        self.slot = _Slot(self._slots, end, end, end)
        self.confirmed_most = end
        self.sessions += 1
        self._wake()
        return self.slot

    def confirm(self, offset: int) -> None:
        assert self.slot is not None
        self.watch(offset)
        self.slot.confirmed = max(self.slot.confirmed, offset)
        self.confirmed_most = max(self.confirmed_most, offset)
        if self.random.random() < 0.2:
            self.slot.saved = self.slot.confirmed
        self._wake()

    def restart(self) -> None:
        """It crashed and came back: sessions are over, the slot stands where it was last saved."""
        self.is_up = True
        self.sessions += 1
        if self.slot is not None:
            self.slot.confirmed = self.slot.saved
        self._wake()

    def stop(self) -> None:
        self.is_up = False
        self.sessions += 1
        self._wake()

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def change(self) -> None:
        """Wait until something happened here."""
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters.append(waiter)
        await waiter


# --- capture ----------------------------------------------------------------------------------


class _Token(msgspec.Struct, array_like=True):
    slot: int
    start: int


class LedgerCapture:
    """Implements `kinds.base.Capture`."""

    #: bytes of one draft, about; of one read, about
    DRAFT_BYTES = 400
    READ_BYTES = 3000

    def __init__(self, host: SimHost, server: LedgerServer) -> None:
        self._host = host
        self._server = server
        self._session = -1
        self._resume = 0
        self._fresh: list[Draft] = []
        self._next = 0  # index of the next transaction
        self._row = 0  # and how many of its rows were sent
        self._since_keyframe = 0

    def _check(self, what: str) -> None:
        self._host.door(what)
        if not self._server.is_up or self._session != self._server.sessions:
            raise SourceUnreachable("the ledger ended the session")

    async def open(self, *, resume: int, session: bytes | None) -> None:
        self._host.door("capture open")
        await self._host.sleep(self._server.random.random() * 0.02)
        slot = self._server.slot
        if not self._server.is_up:
            raise SourceUnreachable("the ledger is down")
        if slot is None:
            raise ContinuityLost("there is no slot")
        if session is None:
            resume = slot.start
        elif msgspec.msgpack.decode(session, type=_Token).slot != slot.number:
            raise ContinuityLost("the journal was written from another slot")
        if resume < slot.confirmed:
            raise ContinuityLost(f"asked for {resume}, and up to {slot.confirmed} is forgotten")
        if resume > self._server._end():
            raise ContinuityLost(f"asked for {resume}, and there is nothing behind {self._server._end()}")
        self._server.sessions += 1  # one reader at a time: the one before is ended
        self._session = self._server.sessions
        self._server._wake()
        self._resume = resume
        token = msgspec.msgpack.encode(_Token(slot.number, resume))
        self._fresh = [Draft(RecordType.SESSION, token, resume, Flag.KEYFRAME)]
        self._next, self._row = bisect_right(self._server.ends, resume), 0

    async def read(self) -> list[Draft]:
        self._check("capture read")
        while not self._fresh and self._next >= len(self._server.txns):
            await self._server.change()
            self._check("capture read")
        drafts, self._fresh = self._fresh, []
        size = 0
        while size < self.READ_BYTES and self._next < len(self._server.txns):
            drafts.append(self._draft())
            size += len(drafts[-1].payload)
        return drafts

    def _draft(self) -> Draft:
        """Messages up to the size of one draft: whole small transactions, or a part of a large one."""
        messages: list[tuple[Any, ...]] = []
        commits: list[int] = []
        starts_whole = self._row == 0
        size = 0
        while size < self.DRAFT_BYTES and self._next < len(self._server.txns):
            txn = self._server.txns[self._next]
            if self._row == 0:
                messages.append(("B", txn.at))
            while self._row < len(txn.rows) and size < self.DRAFT_BYTES:
                row = txn.rows[self._row]
                messages.append(("R", *row))
                size += len(row[2]) + 8
                self._row += 1
            if self._row == len(txn.rows) and size < self.DRAFT_BYTES:
                messages.append(("C", txn.end, txn.committed_ns))
                commits.append(txn.committed_ns)
                self._resume = txn.end
                self._next, self._row = self._next + 1, 0
                size += 8
        self._since_keyframe += 1
        is_keyframe = starts_whole and self._since_keyframe >= 8
        if is_keyframe:
            self._since_keyframe = 0
        return Draft(
            RecordType.DATA,
            msgspec.msgpack.encode(messages),
            self._resume,
            Flag.KEYFRAME if is_keyframe else Flag.NONE,
            commits=tuple(commits),
        )

    async def acknowledge(self, offset: int) -> None:
        self._check("capture acknowledge")
        self._server.confirm(offset)

    def waiting_bytes(self) -> int | None:
        slot = self._server.slot
        return self._server._end() - slot.confirmed if self._server.is_up and slot is not None else None

    async def guard(self) -> None:
        await asyncio.get_running_loop().create_future()

    async def leave(self) -> None:
        self._host.door("capture leave")

    async def close(self) -> None:
        self._session = -1

    def report(self) -> dict[str, Any]:
        return {}


class LedgerDecoder:
    """Implements `kinds.base.Decoder`. `piece_rows`: a larger transaction comes in parts."""

    def __init__(self, piece_rows: int) -> None:
        self._piece_rows = piece_rows
        self._rows: list[Row] = []
        self._at: int | None = None
        self._handed_out = False

    def feed(self, record: Record) -> Iterator[Piece | Abandon]:
        if record.type is RecordType.SESSION:
            if self._handed_out:
                yield Abandon()
            self._rows, self._at, self._handed_out = [], None, False
            yield Piece([], 0, Commit(record.offset, record.t_ns, record.position), record.offset - 1)
            return
        for message in msgspec.msgpack.decode(record.payload):
            if message[0] == "B":
                assert self._at is None, "a transaction begins inside another"
                self._at = message[1]
            elif message[0] == "R":
                self._rows.append((message[1], message[2], message[3]))
                if len(self._rows) >= self._piece_rows:
                    yield self._piece(None)
            else:
                yield self._piece(Commit(message[1], message[2], record.position))

    def _piece(self, commit: Commit | None) -> Piece:
        assert self._at is not None, "a change or a commit outside a transaction"
        rows, self._rows = self._rows, []
        piece = Piece(rows, 60 * len(rows), commit, self._at)
        self._handed_out = commit is None
        if commit is not None:
            self._at = None
        return piece


# --- the first copy ---------------------------------------------------------------------------


async def committed_between(records: AsyncIterator[Record], since: int, until: int) -> list[Row]:
    """The rows of the transactions that are in a view at `until` and not in one at `since`, each once."""
    decoder, progress = LedgerDecoder(piece_rows=1_000_000), since
    found: list[Row] = []
    async for record in records:
        for piece in decoder.feed(record):
            if isinstance(piece, Piece) and piece.commit is not None and progress <= piece.offset < until:
                found.extend(piece.changes)
                progress = piece.commit.offset
    return found


class LedgerSeedSource:
    """Implements `kinds.base.SeedSource`: the rows that were there when the slot began, or later."""

    CHUNK_ROWS = 40

    def __init__(self, host: SimHost, server: LedgerServer) -> None:
        self._host = host
        self._server = server
        self.progress = SeedProgress()
        self.parts: list[PartProgress] = []
        self._slot = 0
        self._view = 0
        self._is_new = True
        self._rows: list[Row] = []

    async def begin(self) -> None:
        await self._look()
        slot = self._server.create_slot()
        self._slot, self._view, self._is_new = slot.start, slot.start, True
        self._rows = list(self._server.rows)

    async def resume(self) -> None:
        await self._look()
        if self._server.slot is None:
            raise SeedLost("there is no slot")
        self._slot, self._view, self._is_new = self._server.slot.start, self._server._end(), False
        self._rows = list(self._server.rows)

    async def _look(self) -> None:
        await self._host.sleep(self._server.random.random() * 0.1)
        if not self._server.is_up:
            raise SourceUnreachable("the ledger is down")

    async def copy_parts(self, wanted: bytes, bulk: Bulk) -> None:
        raise AssertionError("a ledger has no parts to copy")

    async def run(self, bulk: Bulk) -> None:
        self.progress = SeedProgress("data")
        call = await bulk.open()
        view, count, is_finished = await self._ask(call, "begin" if self._is_new else "resume", self._slot)
        if not is_finished:
            self.progress.rows_kept = count
            end = self._server.count_upto(view)
            middle = (count + end) // 2
            await call(f"rows {view}".encode(), self._chunks(count, middle))
            await call(f"rows {view}".encode(), self._chunks(middle, end))
            if not self._is_new:
                await self._ask(call, "renew", self._view)
            await self._ask(call, "finish", len(self._rows))
        self.progress.phase = "done"

    async def _ask(self, call: BulkCall, word: str, *numbers: int) -> tuple[int, int, int]:
        """The view that the replica's rows are of, how many there are, and whether the copy is finished."""
        answer = await call(f"{word} {' '.join(map(str, numbers))}".encode(), None)
        view, rows, is_finished = map(int, answer.split())
        return view, rows, is_finished

    async def _chunks(self, first: int, last: int) -> AsyncIterator[bytes]:
        for at in range(first, last, self.CHUNK_ROWS):
            await self._host.sleep(self._server.random.random() * 0.02)
            if not self._server.is_up:
                raise SourceUnreachable("the ledger went down")
            yield msgspec.msgpack.encode(self._rows[at : min(at + self.CHUNK_ROWS, last)])

    async def close(self) -> None:
        self._rows = []
