"""A toy target: a store with transactions, whose progress is a row like the others.

Commits are asynchronous, as a fast apply makes them: a crash of its machine takes the newest
ones back, each whole or not at all, in order. `watch` is called after each commit, which is
how the world looks at every state that a reader could see.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from castling.errors import SeedFailed, SeedLost, TargetDiverged, TargetUnreachable
from castling.kinds.base import Commit, Held, Piece, Records
from castling.testing.sim.host import SimHost
from castling.testing.sim.ledger import Row, committed_between

__all__ = ["LedgerSeedTarget", "LedgerTarget", "Replica"]


@dataclass(slots=True)
class _State:
    """What one commit left: how many rows, and the progress that came with them; before there is any, of
    which view of the source the rows are, and of which copy."""

    rows: int
    progress: int | None
    at_s: float
    view: int = 0
    copy: int = 0


class Replica:
    """The store on one machine. `progress` None: the first copy is not complete."""

    def __init__(self, now_s: Callable[[], float], rng: random.Random, watch: Callable[[], None]) -> None:
        self._now_s = now_s
        self.random = rng
        self._watch = watch
        #: seconds after which a commit is durable
        self._flush_s = rng.choice((0.1, 0.5, 4.0))
        self.rows: list[Row] = []
        self._history = [_State(0, None, 0.0)]
        #: rows of the open transaction; None when there is none
        self.open: list[Row] | None = None
        self.sessions = 0

    @property
    def progress(self) -> int | None:
        return self._history[-1].progress

    @property
    def copied(self) -> tuple[int, int]:
        """Of which copy, and of which view of the source, the rows are while the first copy is made."""
        return self._history[-1].copy, self._history[-1].view

    def commit(self, rows: Sequence[Row], progress: int | None, *, view: int | None = None) -> None:
        """Make `rows` and `progress` (or `view`) visible at once."""
        self.rows.extend(rows)
        copy, before = self.copied
        view = before if view is None else view
        self._history.append(_State(len(self.rows), progress, self._now_s(), view, copy))
        self._forget()
        self._watch()

    def _durable(self) -> int:
        """The index of the newest state that a crash would surely leave."""
        flushed_s = self._now_s() - self._flush_s
        found = 0
        while found + 1 < len(self._history) and self._history[found + 1].at_s <= flushed_s:
            found += 1
        return found

    def _forget(self) -> None:
        del self._history[: self._durable()]

    def durable(self) -> int | None:
        return self._history[self._durable()].progress

    def clear(self, copy: int) -> None:
        """Begin a first copy: nothing is there and nothing of it was ever complete."""
        self.rows = []
        self._history = [_State(0, None, self._now_s(), copy, copy)]
        self.sessions += 1
        self.open = None

    def flush(self) -> None:
        self._history = self._history[-1:]
        self._history[0].at_s = self._now_s() - self._flush_s

    def crash(self) -> bool:
        """Power went. True when commits were lost."""
        durable = self._durable()
        kept = self.random.randint(durable, len(self._history) - 1)
        lost = kept < len(self._history) - 1
        del self._history[kept + 1 :]
        del self.rows[self._history[-1].rows :]
        self.disconnect()
        self.flush()
        return lost

    def disconnect(self) -> None:
        """Every session is over; what was not committed is gone."""
        self.sessions += 1
        self.open = None


class LedgerTarget:
    """Implements `kinds.base.Target`."""

    def __init__(self, host: SimHost, replica: Replica) -> None:
        self._host = host
        self._replica = replica
        self._session = -1

    def _check(self, what: str) -> None:
        self._host.door(what)
        if self._session != self._replica.sessions:
            raise TargetUnreachable("the replica ended the session")

    async def open(self) -> int:
        await self._host.sleep(self._replica.random.random() * 0.01)
        self._host.door("target open")
        self._replica.disconnect()  # a predecessor that died in the middle
        self._session = self._replica.sessions
        progress = self._replica.progress
        assert progress is not None, "applied to a replica whose first copy is not complete"
        return progress

    async def apply(self, pieces: Sequence[Piece]) -> None:
        self._check("target apply")
        rng = self._replica.random
        if rng.random() < 0.3:
            await self._host.sleep(rng.random() * 0.02)
            self._check("target apply")
        if self._replica.open is None:
            self._replica.open = []
        self._replica.open.extend(row for piece in pieces for row in piece.changes)

    async def commit(self, commit: Commit) -> None:
        self._check("target commit")
        rows, self._replica.open = self._replica.open or [], None
        if rows and self._replica.rows and rows[0][:2] <= self._replica.rows[-1][:2]:
            raise TargetDiverged(f"row {rows[0][:2]} is there already")
        self._store(rows, commit.offset)
        if self._replica.random.random() < 0.1:
            await self._host.sleep(self._replica.random.random() * 0.02)
        self._check("target committed")

    def _store(self, rows: list[Row], progress: int) -> None:
        self._replica.commit(rows, progress)

    def applied(self) -> int:
        return self._replica.progress or 0

    async def settle(self) -> None:
        return  # a commit is done when it returns

    async def rollback(self) -> None:
        if self._session == self._replica.sessions:
            self._host.door("target rollback")
            self._replica.open = None

    async def durable(self) -> int:
        self._check("target durable")
        return self._replica.durable() or 0

    def held(self) -> Sequence[Held]:
        return ()  # a ledger is one part

    async def give_up(self, part: str) -> None:
        raise AssertionError("a ledger has no parts to hold")

    async def close(self) -> None:
        self._session = -1

    def report(self) -> dict[str, Any]:
        return {}


class LedgerSeedTarget:
    """Implements `kinds.base.SeedTarget`. Of the ledger as a view shows it, the rows up to some point are
    there; when all are, those of a later view follow them."""

    def __init__(self, host: SimHost, replica: Replica, met: Callable[[str], None]) -> None:
        self._host = host
        self._replica = replica
        self._met = met
        self.records: Records | None = None

    async def handle(self, meta: bytes, body: AsyncIterator[bytes]) -> bytes:
        word, *told = meta.decode().split()
        self._host.door(f"seed {word}")
        numbers = [int(each) for each in told]
        if word == "begin":
            self._replica.clear(numbers[0])
        elif word == "resume":
            self._resume(numbers[0])
        elif word == "renew":
            await self._renew(numbers[0])
        elif word == "rows":
            await self._take(body, view=numbers[0])
        else:
            self._finish(numbers[0])
        is_finished = int(self._replica.progress is not None)
        return f"{self._replica.copied[1]} {len(self._replica.rows)} {is_finished}".encode()

    def _resume(self, copy: int) -> None:
        if self._replica.copied[0] != copy:
            raise SeedLost("the replica holds another copy")
        self._met("first copy gone on with")
        self._replica.sessions += 1  # what an attempt before still sends is not taken any more

    async def _renew(self, view: int) -> None:
        """What has been committed since follows, when all of the view before is there."""
        before = self._replica.copied[1]
        session = self._replica.sessions
        assert self.records is not None
        rows = await committed_between(self.records(before, view), before, view) if view > before else []
        if rows:
            self._met("first copy brought up to a later view from the journal")
        if session != self._replica.sessions:
            raise SeedFailed("the replica went down")
        self._replica.commit(rows, None, view=view)

    async def _take(self, body: AsyncIterator[bytes], view: int) -> None:
        session = self._replica.sessions
        async for chunk in body:
            await self._host.sleep(self._replica.random.random() * 0.01)
            if session != self._replica.sessions or self._replica.copied[1] != view:
                raise SeedFailed("the replica went down")
            rows: list[Any] = msgspec.msgpack.decode(chunk)
            if rows and self._replica.rows and tuple(rows[0][:2]) <= self._replica.rows[-1][:2]:
                raise SeedFailed("rows came that are there")
            self._replica.commit([(row[0], row[1], row[2]) for row in rows], None)

    def _finish(self, count: int) -> None:
        if len(self._replica.rows) != count:  # a crash has taken some back
            raise SeedFailed("the copy is not whole")
        self._replica.commit([], self._replica.copied[1])
        self._replica.flush()  # what the journal will never hold must be durable before it is `seeded`

    async def wanted(self) -> bytes:
        return b""  # a ledger is one part

    async def handle_part(self, meta: bytes, body: AsyncIterator[bytes]) -> bytes:
        raise AssertionError("a ledger has no parts to copy")

    async def close(self) -> None: ...
