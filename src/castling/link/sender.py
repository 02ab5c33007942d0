"""The sending side of a link: pipelined batches out, acknowledged positions in.

    feed ─▶ window ─▶ zstd ─▶ bandwidth limit ─▶ TLS ═══▶ receiver
     ◀──────────── acknowledge (after the far side's sync) ◀═══

Three tasks live as long as a stream: one sends, one listens, one keeps time. The first
that fails ends the others; nothing is retried here: who calls `stream` connects again
and the feed goes on behind the far side's tail.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from castling.config import LinkSettings
from castling.errors import CastlingError, LinkError, LinkProtocol
from castling.host import Host, TlsContexts
from castling.journal.marks import Mark
from castling.journal.record import Position, Tail
from castling.link.bulk import BulkClient
from castling.link.channel import Channel, Clocks
from castling.link.codec import Packer
from castling.link.feed import Feed, Run
from castling.link.frames import AckBody, FrameType, Purpose, batch_head, decode
from castling.link.handshake import HelloInfo, Welcome, dial
from castling.link.pace import Pace
from castling.together import run_together

__all__ = ["Ack", "BulkClient", "HelloInfo", "Sender", "Welcome"]


@dataclass(frozen=True, slots=True)
class Ack:
    """What the far side has done. `hardened` is durable there (its `session` is not repeated);
    `received` is appended; `applied` None: not known. `wall_ns`: the far side's clock."""

    hardened: Tail
    received: Position
    applied: Mark | None
    state: dict[str, Any]
    wall_ns: int


class Sender:
    """One record stream to one receiver. `connect`, then `stream`; again after any LinkError.

    `pace`: a bandwidth limit to share with other connections; None: one by the settings.
    """

    def __init__(
        self,
        host: Host,
        address: str,
        tls: TlsContexts | None,
        hello: HelloInfo,
        settings: LinkSettings,
        *,
        pace: Pace | None = None,
    ) -> None:
        self._host = host
        self._address = address
        self._tls = tls
        self._hello = hello
        self._window = settings.window
        self._packer = Packer(settings.compression)
        self.pace = pace or Pace(host, settings.bandwidth)
        self._channel: Channel | None = None
        self._waiting: asyncio.Task[None] | None = None
        self._clocks = Clocks()
        self._flight: deque[tuple[int, int]] = deque()  # last seq and size of each batch on its way
        self._in_flight = 0
        self._sent_seq: int | None = None
        self._room = asyncio.Event()
        self._raw_bytes = 0
        self._wire_bytes = 0
        self._connects = 0
        self._error: CastlingError | None = None

    async def connect(self) -> Welcome:
        """A new connection, in place of the one before. The answer's tail is durable over there.

        Raises LinkError when trying again may help; LinkForeign, LinkVersion, StaleEpoch,
        LinkRefused when it won't.
        """
        await self.close()
        try:
            channel, welcome = await dial(
                self._host, self._address, self._tls, self._hello, Purpose.RECORDS, self.pace
            )
        except CastlingError as error:
            self._error = error
            raise
        self._channel, self._clocks = channel, channel.clocks
        self._flight.clear()
        self._in_flight, self._sent_seq = 0, None
        self._connects += 1
        self._waiting = asyncio.create_task(self._keep_alive(channel))
        return welcome

    @staticmethod
    async def _keep_alive(channel: Channel) -> None:
        """Opening a feed may take longer than the far side waits in silence."""
        with contextlib.suppress(LinkError):  # `stream` finds out for itself
            await channel.beat()

    async def stream(self, feed: Feed, *, on_ack: Callable[[Ack], None] | None = None) -> None:
        """Send what the (opened) feed gives until cancelled.

        Raises LinkError when the link fails, the far side's own error when it refuses, and
        whatever the feed raises. The connection is over then.
        """
        channel = self._channel
        if channel is None:
            raise LinkError(f"{self._address} is not connected")
        try:
            await self._stop_waiting()
            await run_together(self._send(channel, feed), self._listen(channel, feed, on_ack), channel.beat())
        except CastlingError as error:
            self._error = error
            raise
        finally:
            self._drop()

    async def _stop_waiting(self) -> None:
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            waiting.cancel()
            await asyncio.wait((waiting,))

    async def close(self) -> None:
        """Say goodbye, if there is anybody, and close. Never fails."""
        await self._stop_waiting()
        if self._channel is not None:
            try:
                with contextlib.suppress(LinkError, TimeoutError):  # it is being closed anyway
                    async with asyncio.timeout(1.0):
                        await self._channel.write_now(FrameType.BYE)
            finally:
                self._drop()

    def _drop(self) -> None:
        if self._channel is not None:
            self._wire_bytes += self._channel.sent_bytes
            self._channel.close()
            self._channel = None

    # --- out ----------------------------------------------------------------------------------

    async def _send(self, channel: Channel, feed: Feed) -> None:
        while True:
            run = await feed.next()
            while self._flight and self._in_flight + len(run.data) > self._window:
                self._room.clear()
                await self._room.wait()
            await self._send_run(channel, run)

    async def _send_run(self, channel: Channel, run: Run) -> None:
        self._follow(run)
        codec, packed = self._packer.pack(run.data, is_scarce=channel.gauge.is_scarce)
        head = batch_head(run.first.epoch, run.first.seq, run.last.seq, run.data, codec)
        await channel.write(FrameType.BATCH, head, packed)
        self._raw_bytes += len(run.data)

    def _follow(self, run: Run) -> None:
        assert run.first.epoch == run.last.epoch == self._hello.epoch, "a run of another epoch"
        assert self._sent_seq is None or run.first.seq == self._sent_seq + 1, "a feed left a gap"
        self._sent_seq = run.last.seq
        self._flight.append((run.last.seq, len(run.data)))
        self._in_flight += len(run.data)

    # --- in -----------------------------------------------------------------------------------

    async def _listen(self, channel: Channel, feed: Feed, on_ack: Callable[[Ack], None] | None) -> None:
        while True:
            _, body = await channel.read(FrameType.ACK)
            found = decode(body, AckBody)
            if found.batches == 0:
                continue  # it may be older than a reset of the far journal
            ack = _ack(found)
            self._land(ack.hardened.position.seq)
            await feed.acknowledge(ack.hardened)
            if on_ack is not None:
                on_ack(ack)

    def _land(self, seq: int) -> None:
        if self._sent_seq is None or seq > self._sent_seq:
            raise LinkProtocol(f"the far side acknowledges seq {seq}, which was never sent")
        while self._flight and self._flight[0][0] <= seq:
            self._in_flight -= self._flight.popleft()[1]
        self._room.set()

    # --- figures ------------------------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        """Figures for the report tree; what is not known is None."""
        up = self._channel is not None
        wire = self._wire_bytes + (self._channel.sent_bytes if self._channel else 0)
        error = self._error
        return {
            "state": "up" if up else "down",
            "address": self._address,
            "raw_bytes": self._raw_bytes,
            "wire_bytes": wire,
            "ratio": round(self._raw_bytes / wire, 3) if wire and self._raw_bytes else None,
            "rate_limit": self.pace.rate,
            "rtt_s": self._clocks.rtt_s if up else None,
            "clock_skew_s": self._clocks.skew_s if up else None,
            "in_flight_bytes": self._in_flight if up else None,
            "reconnects": max(self._connects - 1, 0),
            "last_error": None if error is None else {"code": error.code, "message": str(error)},
        }


def _ack(body: AckBody) -> Ack:
    hardened = Position(body.hardened.epoch, body.hardened.seq)
    applied = body.applied
    return Ack(
        hardened=Tail(hardened, body.hardened.offset, body.hardened.t_ns),
        received=Position(hardened.epoch, body.received_seq),
        applied=None
        if applied is None
        else Mark(Position(applied.epoch, applied.seq), applied.offset, applied.t_ns),
        state=body.state,
        wall_ns=body.wall_ns,
    )
