"""What happens to the records of one stream: append, sync, acknowledge.

    BATCH ─▶ append ─▶ (all that was appended meanwhile) one sync ─▶ ACK

Appending and syncing overlap: while the disk syncs, more is appended, and the next sync
covers all of it. `Hardening` belongs to the receiver and outlives connections, so that
ending a stream never interrupts a sync.

Invariant: an ACK tells what the journal's own `harden` has returned, nothing newer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from castling.errors import JournalFull, JournalGap, LinkError, LinkProtocol, StaleEpoch
from castling.host import Host
from castling.journal.journal import Journal
from castling.journal.marks import Mark
from castling.journal.record import Position, Tail
from castling.link.channel import BEAT_S, Channel
from castling.link.frames import AckBody, Batch, FrameType, Hello, Spot, decode_batch, encode
from castling.together import run_together

__all__ = ["UNHARDENED_MAX", "Hardening", "Intake"]

#: bytes appended and not yet synced before reading stops
UNHARDENED_MAX = 32 << 20


class Hardening:
    """Syncs the journal whenever something was appended, one sync for all of it."""

    #: seconds between two attempts while the disk is full
    FULL_S = 1.0

    def __init__(self, host: Host, journal: Journal, on_hardened: Callable[[Tail], None]) -> None:
        self._host = host
        self._journal = journal
        self._listeners = [on_hardened]
        self._dirty = asyncio.Event()
        self._moved = asyncio.Condition()
        self.appended_bytes = 0
        self.hardened_bytes = 0

    def appended(self, size: int) -> None:
        self.appended_bytes += size
        self._dirty.set()

    def listen(self, listener: Callable[[Tail], None]) -> None:
        """Call `listener` after each sync, until `unlisten`."""
        self._listeners.append(listener)

    def unlisten(self, listener: Callable[[Tail], None]) -> None:
        self._listeners.remove(listener)

    async def run(self) -> None:
        """Sync until cancelled. Raises JournalError when a sync failed: the journal is then over."""
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            covered = self.appended_bytes
            try:
                tail = await _to_its_end(self._journal)
            except JournalFull:
                self._dirty.set()
                await self._host.sleep(self.FULL_S)
                continue
            self.hardened_bytes = covered
            for listener in tuple(self._listeners):
                listener(tail)
            async with self._moved:
                self._moved.notify_all()

    async def settled(self) -> None:
        """Wait until all that is appended now is durable."""
        wanted = self.appended_bytes
        async with self._moved:
            await self._moved.wait_for(lambda: self.hardened_bytes >= wanted)

    async def room(self) -> None:
        """Wait until more may be appended."""
        if self.appended_bytes - self.hardened_bytes >= UNHARDENED_MAX:
            async with self._moved:
                await self._moved.wait_for(lambda: self.appended_bytes - self.hardened_bytes < UNHARDENED_MAX)


async def _to_its_end(journal: Journal) -> Tail:
    """`journal.harden()`; a cancelled caller waits for it too, so that no sync runs on a closed file."""
    hardening = asyncio.ensure_future(journal.harden())
    try:
        return await asyncio.shield(hardening)
    except asyncio.CancelledError:
        await asyncio.wait((hardening,))
        if not hardening.cancelled():
            hardening.exception()
        raise


class Intake:
    """One welcomed record stream, until it ends."""

    def __init__(
        self,
        host: Host,
        channel: Channel,
        hello: Hello,
        journal: Journal,
        hardening: Hardening,
        *,
        applied: Callable[[], Mark | None],
        state: Callable[[], dict[str, Any]],
        full: bool,
    ) -> None:
        self._host = host
        self._channel = channel
        self._hello = hello
        self._journal = journal
        self._hardening = hardening
        self._applied = applied
        self._state = state
        self._due = asyncio.Event()
        self.batches = 0
        #: the disk was full at the last attempt to append
        self.full = full

    async def run(self) -> None:
        """Receive until the stream ends. Raises why: LinkError when the other side went away."""
        self._hardening.listen(self._on_hardened)
        try:
            await run_together(self._channel.beat(), self._acknowledge(), self._receive())
        finally:
            self._hardening.unlisten(self._on_hardened)

    async def _receive(self) -> None:
        while True:
            await self._hardening.room()
            type, body = await self._channel.read(FrameType.BATCH, FrameType.BYE)
            if type is FrameType.BYE:
                raise LinkError("the other side said goodbye")
            self._append(decode_batch(body))

    def _append(self, batch: Batch) -> None:
        self._check_place(batch)
        try:
            tail = self._journal.append(batch.data)
        except JournalFull:
            self.full = True
            self._hardening.appended(len(batch.data))  # a part of it may be in the journal
            raise
        self.full = False
        self.batches += 1
        self._hardening.appended(len(batch.data))
        if tail.position != Position(batch.epoch, batch.last):
            raise LinkProtocol(f"a batch up to {batch.epoch}/{batch.last} held records up to {tail.position}")

    def _check_place(self, batch: Batch) -> None:
        if batch.epoch != self._hello.epoch:
            raise LinkProtocol(
                f"a batch of epoch {batch.epoch} came in a stream of epoch {self._hello.epoch}"
            )
        if batch.epoch < self._journal.epoch:
            raise StaleEpoch(
                f"records of epoch {batch.epoch} came, which is over: it is {self._journal.epoch} now"
            )
        expected = self._journal.tail.position.seq + 1
        if batch.first != expected:
            raise JournalGap(
                f"a batch begins at seq {batch.first}, the journal goes on at {expected}",
                first=batch.first,
                expected=expected,
            )

    # --- acknowledging ------------------------------------------------------------------------

    def _on_hardened(self, _: Tail) -> None:
        self._due.set()

    async def _acknowledge(self) -> None:
        """An ACK after each sync, and one now and then so that `applied` moves on without records."""
        while True:
            await self._channel.write_now(FrameType.ACK, encode(self._ack()))
            try:
                async with asyncio.timeout(BEAT_S):
                    await self._due.wait()
            except TimeoutError:
                continue
            self._due.clear()

    def _ack(self) -> AckBody:
        hardened = self._journal.hardened
        applied = self._applied()
        return AckBody(
            batches=self.batches,
            hardened=_spot(hardened.position, hardened.offset, hardened.t_ns),
            received_seq=self._journal.tail.position.seq,
            applied=None if applied is None else _spot(applied.position, applied.offset, applied.t_ns),
            state=self._state(),
            wall_ns=self._host.wall_ns(),
        )


def _spot(position: Position, offset: int, t_ns: int) -> Spot:
    return Spot(epoch=position.epoch, seq=position.seq, offset=offset, t_ns=t_ns)
