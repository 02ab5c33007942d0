"""The source end: captures the source and sends it to one backup.

    connect ─▶ is the far side seeded? ── yes ─▶ stream from where its journal ends
                       │ no
                       ├─▶ begun? ─▶ stream from where its journal ends ∥ go on with the copy ─▶ finish
                       └─▶ begin (slot, snapshot) ─▶ copy ∥ stream ─▶ finish

Records are streamed into the far journal while the first copy still runs, so that the
source's own log does not pile up behind it. What breaks the copy does not break the stream, and a
copy that broke off goes on; it begins anew only when its own beginning is gone.
Whatever can heal (a cut link, a source that restarts) is tried again with growing waits; whatever
can't (lost continuity, a stale epoch) ends the end loudly.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from castling.errors import BackupApart, CastlingError, ContinuityLost, LogGivenUp, SeedLost
from castling.groups.backoff import Backoff
from castling.groups.spool import Spool
from castling.groups.spooling import SpoolFeed
from castling.groups.stream import BulkRequest, SeedState
from castling.host import Host, TlsContexts
from castling.journal.record import Draft, Tail
from castling.kinds.base import Bulk, BulkCall, Capture, SeedSource, Stream
from castling.link.feed import CaptureFeed
from castling.link.pace import Pace
from castling.link.sender import Ack, BulkClient, HelloInfo, Sender
from castling.observe import CommitLag, events
from castling.together import run_together

__all__ = ["KindBulk", "SourceEnd"]

#: how long a heartbeat may be late, at most, before the source's state is unknown, seconds
PATIENCE_S = 5.0
#: how long the capture may take to leave, seconds: less than the agent waits for the process to end
LEAVE_S = 5.0


class KindBulk:
    """The kind's view of the bulk channel: its calls are wrapped so that the far end can tell them
    from the stream's own, and what they send is no faster than `pace`, all of them together."""

    def __init__(self, bulk: Bulk, pace: Pace, op: str = "kind") -> None:
        self._bulk = bulk
        self._pace = pace
        self._op = op

    async def open(self) -> BulkCall:
        call = await self._bulk.open()

        async def wrapped(meta: bytes, body: AsyncIterator[bytes] | None) -> bytes:
            return await call(BulkRequest(self._op, meta).encode(), body and self._paced(body))

        return wrapped

    async def _paced(self, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for block in body:
            await self._pace.take(len(block))
            yield block

    async def close(self) -> None:
        await self._bulk.close()


class _Tracked:
    """A capture that tells the lag figures when each commit was captured."""

    def __init__(self, capture: Capture, lag: CommitLag) -> None:
        self._capture = capture
        self._lag = lag

    async def open(self, *, resume: int, session: bytes | None) -> None:
        self._lag.forget_after(resume)  # that will be captured again
        await self._capture.open(resume=resume, session=session)

    async def read(self) -> list[Draft]:
        drafts = await self._capture.read()
        for draft in drafts:
            self._lag.passed(draft.offset, draft.commits)
        return drafts

    async def acknowledge(self, offset: int) -> None:
        await self._capture.acknowledge(offset)

    def waiting_bytes(self) -> int | None:
        return self._capture.waiting_bytes()

    async def guard(self) -> None:
        await self._capture.guard()

    async def leave(self) -> None:
        await self._capture.leave()

    async def close(self) -> None:
        await self._capture.close()

    def report(self) -> dict[str, Any]:
        return self._capture.report()


class SourceEnd:
    """One stream's capturing and sending half."""

    #: seconds between two tries to copy parts anew
    COPY_S = 5.0

    def __init__(
        self,
        host: Host,
        stream: Stream,
        *,
        address: str,
        tls: TlsContexts | None,
        installation: str,
        node: str,
        epoch: int,
        capture: Capture,
        seed_source: SeedSource,
        folder: str,
    ) -> None:
        """`folder`: the stream's, on this node. Raises ContinuityLost when the spool in it can't be read."""
        self._host = host
        self._stream = stream
        self._settings = stream.settings
        self._capture = capture
        self._seed_source = seed_source
        hello = HelloInfo(
            group=stream.group, node=node, epoch=epoch, installation=installation, peer=stream.backup
        )
        self._sender = Sender(host, address, tls, hello, stream.settings.link)
        self._bulk_client = BulkClient(
            host, address, tls, hello, stream.settings.link, pace=self._sender.pace
        )
        self._copy_pace = Pace(host, stream.settings.seed.bandwidth)
        self.lag = CommitLag()
        feed = CaptureFeed(host, _Tracked(capture, self.lag), epoch=epoch, window=stream.settings.link.window)
        self._spooling = self._build_spooling(feed, f"{folder}/spool", epoch)
        self._feed = self._spooling or feed
        self._log = events("group").bind(group=stream.group, backup=stream.backup)
        self.state = "starting"
        self.error: CastlingError | None = None
        self._hardened: Tail | None = None
        self._applied: dict[str, Any] = {}
        self._connected = False
        #: whether the far side holds a finished copy, as far as it was told
        self._is_copied = False
        #: the unfinished copy of the far side can't be gone on with
        self._is_lost = False
        #: parts of the far side are to be copied anew
        self._wanted = asyncio.Event()
        self._copy_error: CastlingError | None = None
        #: why the backup needs a new copy, which is made as soon as it is back
        self._given_up: LogGivenUp | None = None

    def _build_spooling(self, feed: CaptureFeed, folder: str, epoch: int) -> SpoolFeed | None:
        """None where changes never wait on this node."""
        settings = self._settings
        spool = Spool(self._host, folder, group=self._stream.group, epoch=epoch, settings=settings.spool)
        spool.recover()
        if settings.wal_spool is None and not spool.is_there:
            return None
        return SpoolFeed(
            self._host,
            feed,
            spool,
            # not set any more: what is there is sent, and nothing more goes into it
            begin_at=settings.wal_spool if settings.wal_spool is not None else 1 << 62,
            window=settings.link.window,
            waiting=self._capture.waiting_bytes,
        )

    async def run(self) -> None:
        """Capture and send until cancelled, or until an error that trying again can't heal."""
        try:
            while True:
                try:
                    await self._work()
                except LogGivenUp as error:
                    if self._settings.on_wal_limit == "reseed":
                        await self._begin_anew(error)
                    elif not error.context.get("earlier"):
                        raise
                    # else the backup says whether its copy is the one from before, or is being begun anew
        except (asyncio.CancelledError, CastlingError):
            await self._feed.close()
            await self._leave()  # the guard is over: else it might undo that
            raise
        finally:
            await self._feed.close()
            await self._seed_source.close()

    async def _work(self) -> None:
        beside = [self._capture.guard()]
        if self._spooling is not None:
            beside.append(self._spooling.run())
        await run_together(self._stream_for_ever(), *beside)

    async def _begin_anew(self, error: LogGivenUp) -> None:
        """The source no longer has what the backup lacks: a new copy, as soon as the backup is there."""
        self._log.error("group.backup_given_up", message=str(error))
        self._given_up, self._is_copied = error, False
        self.state, self.error = "given-up", error
        self.lag.forget()
        await self._discard()

    async def _discard(self) -> None:
        """What was captured for the copy before is of no use for the next."""
        if self._spooling is not None:
            await self._spooling.discard()
        await self._feed.close()

    async def _leave(self) -> None:
        """As well as can be: the agent, where there is one, lets go of what is left."""
        try:
            async with asyncio.timeout(LEAVE_S):
                await self._capture.leave()
        except (CastlingError, TimeoutError) as error:
            self._log.warning("group.leave_failed", error=str(error) or "no answer")

    async def _stream_for_ever(self) -> None:
        # where both ends are started together, the other one listens a moment later
        backoff = Backoff(self._host, first_s=0.05)
        while True:
            try:
                await self._session(backoff)
            except CastlingError as error:
                if not error.retryable:
                    raise
                self.state, self.error = "waiting" if self._given_up is None else "given-up", error
            finally:
                self._connected = False
                if self._spooling is not None:
                    self._spooling.lost()
                await self._sender.close()
            await backoff.wait()

    async def _session(self, backoff: Backoff) -> None:
        welcome = await self._sender.connect()
        self._connected = True
        if welcome.state.get("seed") == SeedState.APART:
            raise BackupApart(
                f"{self._stream.backup} was the primary, and may hold commits that nobody else has"
            )
        if welcome.state.get("seed") == SeedState.SEEDED and self._given_up is None:
            self.lag.reached(welcome.tail.offset, self._host.wall_ns())
            await self._feed.open(welcome.tail)
            self._settle(backoff)
            try:
                await run_together(
                    self._sender.stream(self._feed, on_ack=self._on_ack), self._copy_parts_for_ever()
                )
            finally:
                await self._bulk_client.close()
        elif welcome.state.get("seed_begun") is True and not self._is_lost and self._given_up is None:
            await self._go_on(welcome.tail, backoff)
        else:
            if self._given_up is not None:
                await self._end_copy()
            await self._sender.close()  # beginning can take long: the source waits for old transactions
            await self._seed(backoff)

    async def _end_copy(self) -> None:
        """The far side is told that its copy is over before the source's new beginning is made: whoever dies
        in between leaves a copy that is begun again, and not a journal that belongs to no slot."""
        try:
            call = await self._bulk_client.open()
            await call(BulkRequest("seed.begin").encode(), None)
        finally:
            await self._bulk_client.close()

    def _settle(self, backoff: Backoff) -> None:
        self.state, self.error, self._is_copied = "running", None, True
        self._given_up = None
        if self._spooling is not None:
            self._spooling.may_begin = True
        backoff.reset()

    async def _seed(self, backoff: Backoff) -> None:
        """The first copy, from its very beginning, with the stream running beside it."""
        self.state, self._is_copied = "seeding", False
        await self._discard()
        self.lag.forget()
        try:
            await self._seed_source.begin()
            await self._sender.connect()
            call = await self._bulk_client.open()
            await call(BulkRequest("seed.begin").encode(), None)
            self._is_lost = False
            await self._feed.open(Tail())
            await self._stream_and_copy(backoff, has_begun=True)
        finally:
            await self._bulk_client.close()
            await self._seed_source.close()

    async def _go_on(self, tail: Tail, backoff: Backoff) -> None:
        """The first copy, from where it broke off. SeedLost when the stream does not lead there any more."""
        self.state, self._is_copied = "seeding", False
        try:
            await self._feed.open(tail)
            await self._stream_and_copy(backoff, has_begun=False)
        except (ContinuityLost, SeedLost) as error:
            if self._is_copied or isinstance(error, LogGivenUp):
                raise
            self._is_lost = True
            self._log.warning("group.seed_lost", detail=str(error))
            raise SeedLost(f"the first copy is begun anew: {error}") from error
        finally:
            await self._bulk_client.close()
            await self._seed_source.close()

    async def _stream_and_copy(self, backoff: Backoff, *, has_begun: bool) -> None:
        await run_together(
            self._sender.stream(self._feed, on_ack=self._on_ack), self._copy(backoff, has_begun=has_begun)
        )

    async def _copy(self, backoff: Backoff, *, has_begun: bool) -> None:
        """Send the first copy, in as many attempts as it takes, then stay: the stream beside it goes on."""
        pause = Backoff(self._host)
        while not await self._attempt(has_begun=has_begun):
            has_begun = False
            await pause.wait()
        self._settle(backoff)
        await self._copy_parts_for_ever()

    async def _attempt(self, *, has_begun: bool) -> bool:
        """Whether the copy is complete. Raises what another attempt can't heal."""
        try:
            if not has_begun:
                await self._seed_source.resume()
            self.error = None
            await self._seed_source.run(KindBulk(self._bulk_client, self._copy_pace))
            call = await self._bulk_client.open()
            await call(BulkRequest("seed.finish").encode(), None)
        except SeedLost:
            raise
        except CastlingError as error:
            if not error.retryable:
                raise
            self.error = error
            self._log.warning("group.seed_broke_off", code=error.code, detail=str(error))
            return False
        finally:
            await self._bulk_client.close()
            await self._seed_source.close()
        return True

    async def _copy_parts_for_ever(self) -> None:
        """Copy anew what the far side wants. Whatever becomes of it, the stream beside it goes on."""
        while True:
            await self._wanted.wait()
            try:
                call = await self._bulk_client.open()
                wanted = await call(BulkRequest("parts.wanted").encode(), None)
                if wanted:
                    bulk = KindBulk(self._bulk_client, self._copy_pace, "parts.copy")
                    await self._seed_source.copy_parts(wanted, bulk)
                self._copy_error = None
            except CastlingError as error:
                self._copy_error = error
            finally:
                await self._bulk_client.close()
            await self._host.sleep(self.COPY_S)

    def _on_ack(self, ack: Ack) -> None:
        now_ns = self._host.wall_ns()
        self._hardened = ack.hardened
        self.lag.reached(ack.hardened.offset, now_ns)
        if ack.state.get("parts_wanted") is True:
            self._wanted.set()
        else:
            self._wanted.clear()
            self._copy_error = None
        if ack.applied is not None:
            self._applied = {"position": str(ack.applied.position), "offset": ack.applied.offset}

    # --- figures ------------------------------------------------------------------------------

    def rpo_s(self) -> float | None:
        """Age of the oldest source commit that is not hardened on the backup, in seconds.

        0 only while the source is there, its heartbeats arrive and nothing is outstanding; None (unknown)
        as soon as it is known to be away, or has not been heard for as long as it should have been, and
        while there is no finished copy that a commit could be saved by.
        """
        if not self._is_copied:
            return None
        now_ns = self._host.wall_ns()
        capture = self._capture.report()
        sent_ns, seen_ns = capture.get("heartbeat_sent_ns"), capture.get("heartbeat_seen_ns")
        heartbeat = self._settings.heartbeat
        patience_s = heartbeat + min(2 * heartbeat + 1, PATIENCE_S)
        if (
            capture.get("source") != "up"
            or sent_ns is None
            or not -1 <= (now_ns - sent_ns) / 1e9 <= patience_s
        ):
            return None
        ages = [age for age in (self.lag.oldest_s(now_ns),) if age is not None]
        spooled_ns = self._spooling.oldest_ns() if self._spooling is not None else None
        if spooled_ns is not None:  # an earlier process may have captured what waits there
            ages.append(max(0.0, (now_ns - spooled_ns) / 1e9))
        if seen_ns is None or seen_ns < sent_ns:
            if seen_ns is None and not ages:
                return None
            # commits since the last heartbeat that came through may still be in the source's log
            ages.append((now_ns - (seen_ns or sent_ns)) / 1e9)
        return max(ages, default=0.0)

    def report(self) -> dict[str, Any]:
        """Figures for the report tree; what is not known is None."""
        hardened = self._hardened
        progress = self._seed_source.progress
        return {
            "positions": {
                "captured": None if self._feed.last is None else str(self._feed.last),
                "hardened": None if hardened is None else str(hardened.position),
                "applied": self._applied.get("position"),
            },
            "offsets": {
                "hardened": None if hardened is None else hardened.offset,
                "applied": self._applied.get("offset"),
            },
            "rpo_s": self.rpo_s(),
            "rpo": self.lag.taken.as_json(),
            "seed": None if progress.phase == "planning" else progress,
            "link": self._sender.report(),
            "capture": self._capture.report(),
            "spool": None if self._spooling is None else self._spooling.report(),
            "copies": list(self._seed_source.parts),
            "warnings": self._warnings(),
        }

    def _warnings(self) -> list[dict[str, Any]]:
        spooling = [] if self._spooling is None else self._spooling.warnings()
        return spooling + self._copy_warnings() + self._given_up_warnings()

    def _given_up_warnings(self) -> list[dict[str, Any]]:
        error = self._given_up
        if error is None:
            return []
        hint = "nothing that is committed now is on the backup; a new copy is made when the backup is back"
        return [{"code": error.code, "message": str(error), "hint": hint}]

    def _copy_warnings(self) -> list[dict[str, Any]]:
        error = self._copy_error
        if error is None:
            return []
        message = f"parts could not be copied anew yet, it is tried again: {error}"
        return [{"code": "copy-waits", "message": message, "hint": error.hint}]
