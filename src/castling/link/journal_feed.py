"""A feed that reads a local journal: of what was captured here first, and is sent from the disk.

Only what is hardened here is sent: a record that a crash could still take back, and that would then be
written anew with other bytes, has never left. So the far journal is always a beginning of the local one,
whoever died when; a far tail that does not lie in the local journal is another history, told loudly.

The records are sent as they were written: a record read back and encoded again has the same bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque

from castling.errors import JournalGap, LinkProtocol, StaleEpoch
from castling.host import Host
from castling.journal.reader import JournalReader
from castling.journal.record import Draft, Position, Record, Tail
from castling.journal.segment import encode
from castling.link.feed import Run, foreign

__all__ = ["JournalFeed"]


class JournalFeed:
    """Implements `link.feed.Feed`. `begins`: what the journal's first record ever comes right after.

    Another task or process writes the journal; one of this process calls `ring` when there is more.
    """

    #: bytes of one run, about; a larger record is one of its own
    RUN_BYTES = 1 << 20
    #: how often it is looked for more though nobody rang, seconds
    LOOK_S = 1.0

    def __init__(self, host: Host, directory: str, *, epoch: int, begins: Tail | None = None) -> None:
        self._host = host
        self._directory = directory
        self._epoch = epoch
        self._begins = begins or Tail()
        self._reader: JournalReader | None = None
        self._more = asyncio.Event()
        self._sent_seq = 0
        self._on_their_way: deque[Tail] = deque()
        #: what the far side holds, as it has told
        self.acked = self._begins

    async def open(self, tail: Tail) -> None:
        """Raises JournalGap when `tail` is not a place in the local journal, and StaleEpoch."""
        if tail.position.epoch > self._epoch:
            raise StaleEpoch(
                f"the far journal is in epoch {tail.position.epoch}, this node was primary of {self._epoch}"
            )
        await self.close()
        reader = self._reader = JournalReader(self._host, self._directory)
        here = self._begins if tail.position.seq == self._begins.position.seq else None
        here = here or reader.tail_at(tail.position.seq)
        if here is None:
            raise JournalGap(
                f"the far journal ends at {tail.position}, which is not a place in {self._directory}",
                hint="one of the two has lost records: find out which disk did, then seed the backup again",
                tail=str(tail.position),
            )
        if (here.position, here.offset, here.t_ns) != (tail.position, tail.offset, tail.t_ns):
            raise foreign(tail)
        reader.seek(Position(self._epoch, tail.position.seq + 1))
        self.acked, self._sent_seq = tail, tail.position.seq

    def ring(self) -> None:
        """More was hardened."""
        self._more.set()

    async def next(self) -> Run:
        while (run := self._read()) is None:
            self._more.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.LOOK_S):
                    await self._more.wait()
        return run

    def _read(self) -> Run | None:
        assert self._reader is not None, "next was called on a feed that is not open"
        records = self._reader.read(self.RUN_BYTES)
        if not records:
            return None
        last = records[-1]
        if records[0].position.epoch != self._epoch or last.position.epoch != self._epoch:
            raise StaleEpoch(f"{self._directory} holds records of an epoch that is not {self._epoch}")
        self._sent_seq = last.position.seq
        self._on_their_way.append(Tail(last.position, last.offset, last.t_ns))
        data = b"".join(map(_encoded, records))
        return Run(records[0].position, last.position, last.offset, last.t_ns, data, ())

    async def acknowledge(self, tail: Tail) -> None:
        if tail.position.seq <= self.acked.position.seq:
            return
        if tail.position.seq > self._sent_seq:
            raise LinkProtocol(f"the far side acknowledges {tail.position}, which was never sent")
        while self._on_their_way and self._on_their_way[0].position.seq <= tail.position.seq:
            sent = self._on_their_way.popleft()
            if sent.position.seq == tail.position.seq and sent != Tail(tail.position, tail.offset, tail.t_ns):
                raise foreign(tail)
        self.acked = tail

    async def close(self) -> None:
        self._on_their_way.clear()
        if self._reader is not None:
            self._reader.close()
            self._reader = None


def _encoded(record: Record) -> bytes:
    draft = Draft(
        record.type,
        record.payload,
        record.offset,
        record.flags,
        object=record.object,
        length=record.length,
    )
    return encode(draft, record.position, record.t_ns)
