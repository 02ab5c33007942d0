"""The receive end: hardens what the source end sends into the remote journal.

It works whether or not apply does. It also guards the journal's room (retention),
takes the first copy over the bulk channel and tells the source end how far apply is.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

from castling.errors import BackupApart, LinkProtocol, SeedFailed, StateError
from castling.groups.stream import BulkRequest, SeedState, StreamState, load_stream, save_stream
from castling.host import Host, TlsContexts
from castling.journal.journal import Journal
from castling.journal.marks import Mark, Marks
from castling.journal.reader import JournalReader
from castling.journal.record import Record, Tail
from castling.journal.retention import forecast_full_s
from castling.kinds.base import SeedTarget, Stream
from castling.link.receiver import Receiver
from castling.observe import Throughput
from castling.together import run_together

__all__ = ["ReceiveEnd"]


class ReceiveEnd:
    """One backup's receiving half of a stream."""

    #: seconds between two looks at what may be released from the journal
    RELEASE_S = 5.0
    #: seconds between two looks at whether parts are to be copied anew
    LOOK_S = 1.0
    #: seconds between two looks at how far apply is, to tell it with acknowledgements
    APPLIED_S = 0.1
    #: how long a copy that goes on waits for a journal that does not grow, seconds
    COME_S = 60.0
    #: bytes of the journal read at once
    READ_BYTES = 1 << 20

    def __init__(
        self,
        host: Host,
        folder: str,
        stream: Stream,
        *,
        listen: str,
        tls: TlsContexts | None,
        installation: str,
        node: str,
        allowed: set[str],
        epoch: int = 0,
        seed_target: SeedTarget,
    ) -> None:
        """`epoch`: the group's, as this node knows it; a sender of an earlier one is refused."""
        self._host = host
        self._folder = folder
        self._settings = stream.settings
        self._seed_target = seed_target
        journal_folder = f"{folder}/journal"
        host.disk.makedirs(journal_folder)
        host.disk.sync_dir(folder)  # what a predecessor wrote while it died must not be taken back later
        self.stream_state = load_stream(host, folder)
        retention = self._settings.retention
        self.journal = Journal.open(
            host,
            journal_folder,
            group=stream.group,
            segment_bytes=retention.segment,
            min_free=retention.min_free,
        )
        if epoch > max(self.journal.epoch, 1):
            self.journal.raise_epoch(epoch)
        self._reader = JournalReader(host, journal_folder)
        self._marks = Marks(host, journal_folder)
        self._apply_bell = host.bell(f"{folder}/apply.bell")
        seed_target.records = self._records
        self._rate = Throughput()
        #: parts that are to be copied anew, as the apply end has told
        self._wanted = False
        self._looked_s = float("-inf")
        self._applied_mark: Mark | None = None
        self._applied_s = float("-inf")
        #: up to where the journal may forget, as it was last looked at
        self._released: str | None = None
        self.receiver = Receiver(
            host,
            listen,
            tls,
            group=stream.group,
            installation=installation,
            node=node,
            allowed=allowed,
            journal=self.journal,
            bulk=self._bulk,
            state=self._state,
            applied=self._applied,
            on_hardened=self._on_hardened,
        )

    async def run(self) -> None:
        """Receive until cancelled. Raises only what can't heal: rot, a failed disk."""
        try:
            await run_together(self.receiver.run(), self._retain())
        finally:
            await self._seed_target.close()
            self._reader.close()
            self._apply_bell.close()
            self.journal.close()

    # --- what the receiver asks ---------------------------------------------------------------

    def _state(self) -> dict[str, Any]:
        stream = self.stream_state
        state = {"seed": str(stream.seed), "seeds": stream.seeds, "seed_begun": stream.begun}
        return state | {"parts_wanted": True} if self._is_wanted() else state

    def _is_wanted(self) -> bool:
        """Asked with every acknowledgement, looked at once a second."""
        now_s = self._host.monotonic()
        if now_s - self._looked_s >= self.LOOK_S:
            self._looked_s = now_s
            mark = self._marks.read("wanted")
            self._wanted = mark is not None and mark.offset > 0
        return self._wanted

    def _applied(self) -> Mark | None:
        """Asked with every acknowledgement, of which there may be thousands a second."""
        now_s = self._host.monotonic()
        if now_s - self._applied_s >= self.APPLIED_S:
            self._applied_s = now_s
            self._applied_mark = self._marks.read("applied")
        return self._applied_mark

    def _on_hardened(self, tail: Tail) -> None:
        self._apply_bell.ring()

    async def _bulk(self, meta: bytes, body: AsyncIterator[bytes]) -> bytes:
        request = BulkRequest.decode(meta)
        handlers: dict[str, Callable[[], None]] = {
            "seed.begin": self._begin_seed,
            "seed.finish": self._finish_seed,
        }
        if request.op == "kind":
            if self.stream_state.seed is not SeedState.SEEDING:
                raise StateError("a first copy was sent though none was begun")
            return await self._seed_target.handle(request.meta, body)
        if request.op.startswith("parts."):
            return await self._parts(request, body)
        if self.stream_state.seed is SeedState.APART:
            raise BackupApart("this node holds what nobody else may have: no copy is made over it")
        if request.op not in handlers:
            raise LinkProtocol(f"a bulk request asks for {request.op[:40]!r}, which is not known")
        async for _ in body:
            raise LinkProtocol(f"the bulk request {request.op} has no body")
        handlers[request.op]()
        return b""

    async def _parts(self, request: BulkRequest, body: AsyncIterator[bytes]) -> bytes:
        """Copies of single parts, beside the stream of a finished first copy."""
        if self.stream_state.seed is not SeedState.SEEDED:
            raise StateError("parts are copied anew only where there is a finished first copy")
        if request.op == "parts.wanted":
            return await self._seed_target.wanted()
        if request.op == "parts.copy":
            return await self._seed_target.handle_part(request.meta, body)
        raise LinkProtocol(f"a bulk request asks for {request.op[:40]!r}, which is not known")

    def _begin_seed(self) -> None:
        """Forget the journal. The state is saved first: a crash in between leaves `seeding` without
        `begun`, which nobody applies or goes on with, and the seed is begun again."""
        seeds = self.stream_state.seeds + 1
        epoch = self.stream_state.epoch
        self._save(StreamState(SeedState.SEEDING, seeds, epoch=epoch))
        self.journal.reset()
        for name in ("applied", "released", "wanted"):
            self._marks.clear(name)
        self._applied_mark = None
        self._save(StreamState(SeedState.SEEDING, seeds, begun=True, epoch=epoch))
        self._apply_bell.ring()

    def _finish_seed(self) -> None:
        if self.stream_state.seed is not SeedState.SEEDING:
            raise StateError("a first copy was finished though none was begun")
        self._save(StreamState(SeedState.SEEDED, self.stream_state.seeds, epoch=self.stream_state.epoch))
        self._apply_bell.ring()

    async def _records(self, since: int, until: int) -> AsyncIterator[Record]:
        """For a copy that goes on: the stream's records from a keyframe at or before source position `since`
        to position `until`. SeedFailed when the journal does not come so far."""
        await self._come(until)
        reader = JournalReader(self._host, f"{self._folder}/journal")
        try:
            position = reader.keyframe_at_or_before(since)
            if position is None:
                raise SeedFailed("the journal does not reach back to what was copied")
            reader.seek(position)
            while records := reader.read(self.READ_BYTES):
                for record in records:
                    yield record
                    await self._host.sleep(0)  # receiving goes on
                    if record.offset >= until:
                        return
        finally:
            reader.close()

    async def _come(self, until: int) -> None:
        """Wait until source position `until` is hardened, as long as there is some progress."""
        seen, moved_s = -1, 0.0
        while (here := self.journal.hardened.offset) < until:
            now_s = self._host.monotonic()
            if here != seen:
                seen, moved_s = here, now_s
            elif now_s - moved_s > self.COME_S:
                raise SeedFailed("the journal does not get what the copy has to be brought up with")
            await self._host.sleep(0.1)

    def _save(self, state: StreamState) -> None:
        save_stream(self._host, self._folder, state)
        self.stream_state = state

    # --- room ---------------------------------------------------------------------------------

    async def _retain(self) -> None:
        while True:
            await self._host.sleep(self.RELEASE_S)
            self._rate.add(self._host.monotonic(), self.journal.bytes_appended)
            released = self._marks.read("released")
            if released is None or self.stream_state.seed is not SeedState.SEEDED:
                continue
            self._released = str(released.position)
            keyframe = self._reader.keyframe_at_or_before(released.offset)
            self.journal.release(
                released.position,
                keyframe=keyframe,
                retention=self._settings.retention,
                now_ns=self._host.wall_ns(),
            )

    def _free_bytes(self) -> int | None:
        try:
            return self._host.disk.free_bytes(self._folder)
        except OSError:
            return None

    def report(self) -> dict[str, Any]:
        """Figures for the report tree."""
        hardened = self.journal.hardened
        rate = self._rate.per_second()
        free = self._free_bytes()
        min_free = self._settings.retention.min_free
        return {
            "positions": {"hardened": str(hardened.position), "released": self._released},
            "offsets": {"hardened": hardened.offset},
            "stream": self._state(),
            "link": self.receiver.report(),
            "journal": {
                "bytes": self.journal.size_bytes(),
                "free_bytes": free,
                "bytes_per_s": rate,
                "full_in_s": None
                if free is None
                else forecast_full_s(free_bytes=free, min_free=min_free, bytes_per_s=rate),
                "epoch": self.journal.epoch,
            },
        }
