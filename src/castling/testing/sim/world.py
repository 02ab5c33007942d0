"""One world: two machines, the real ends of one stream, a workload, faults, and a judge.

    east: ledger ─▶ SourceEnd ═══ network ═══▶ west: ReceiveEnd ─▶ journal ─▶ ApplyEnd ─▶ replica

The ends are the product's own, unchanged; only their host, and the source and target at the
two far ends, are simulated. A run has three acts: the workload writes while faults happen;
everything heals and must drain within a deadline; the two sides are compared. In some worlds
the source's machine never comes back instead, and what was promised must be on the replica.
"""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from castling.config import (
    Config,
    GroupSettings,
    InstallationSettings,
    LinkSettings,
    RetentionSettings,
    SpoolSettings,
)
from castling.errors import CastlingError, JournalError, StaleEpoch
from castling.groups.apply import ApplyEnd
from castling.groups.receive import ReceiveEnd
from castling.groups.source import SourceEnd
from castling.groups.spool import Spool
from castling.groups.stream import SeedState, StreamState
from castling.journal.record import Record
from castling.kinds.base import Abandon, Piece, Stream
from castling.link.feed import CaptureFeed
from castling.testing.sim.faults import heal, power_off, rain, rain_on_spool, rot
from castling.testing.sim.host import Machine, SimHost, SimKilled
from castling.testing.sim.ledger import LedgerCapture, LedgerDecoder, LedgerSeedSource, LedgerServer
from castling.testing.sim.loop import SimLoop, Stuck
from castling.testing.sim.network import SimNetwork
from castling.testing.sim.oracle import Oracle
from castling.testing.sim.replica import LedgerSeedTarget, LedgerTarget, Replica
from castling.testing.sim.service import End, Service

__all__ = ["Result", "World"]

_INSTALLATION = "5" * 32
_GROUP = "ledger"
_FOLDER = "/var/ledger/west"
_SOURCE_FOLDER = "/var/ledger/east"
_JOURNAL = f"{_FOLDER}/journal"
_ADDRESS = "west:7410"
#: virtual seconds in which a healed world must have drained
DRAIN_S = 90.0


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one seed. `broken` None: every promise was kept. `virtual_s`: how long it lived."""

    seed: int
    broken: str | None
    met: dict[str, int]
    txns: int
    virtual_s: float
    trace: tuple[str, ...]


class _Receive(ReceiveEnd):
    RELEASE_S = 1.0  # a world lives for seconds


class _CountedDecoder(LedgerDecoder):
    def __init__(self, world: World, piece_rows: int) -> None:
        super().__init__(piece_rows)
        self._world = world

    def feed(self, record: Record) -> Iterable[Piece | Abandon]:  # type: ignore[override]  # wider on purpose
        for item in super().feed(record):
            if isinstance(item, Abandon):
                self._world.met("session restarted inside a transaction")
            yield item


class World:
    """See the module. `is_calm`: no faults at all."""

    def __init__(self, seed: int, *, is_calm: bool = False, verbose: bool = False) -> None:
        self.seed = seed
        self.is_calm = is_calm
        self._verbose = verbose
        self.random = random.Random(seed)
        self.loop = SimLoop(seed)
        self.network = SimNetwork(self.loop, self._fork())
        self.network.latency_most_s = self.random.choice((0.001, 0.01, 0.05))
        self.east = Machine("east", self.loop, self.network, self._fork())
        self.west = Machine("west", self.loop, self.network, self._fork())
        self.north = Machine("north", self.loop, self.network, self._fork())
        self.machines = (self.east, self.west, self.north)
        self.server = LedgerServer(self.loop, self._fork())
        self.is_sync = self.random.random() < 0.3
        self.trace: list[str] = []
        self.oracle = Oracle(self.loop, self.server, self.west, group=_GROUP, journal=_JOURNAL)
        self.oracle.on_broken = self._stop_now
        self.oracle.hardened_offset = self._hardened_offset
        self.server.watch = self.oracle.acknowledged
        # drawn apart from the rest: a world without a spool is what its seed has always made
        self.spool_random = random.Random(f"spool {seed}")
        self.spools = not self.is_sync and not is_calm and self.spool_random.random() < 0.4
        if self.spools:
            self.oracle.spool = (self.east, f"{_SOURCE_FOLDER}/spool")
        self.replica = Replica(self.loop.time, self._fork(), self._look)
        self.stream = Stream(_GROUP, "west", self._settings(), _config())
        self.piece_rows = self.random.choice((3, 20, 1000))
        self.source = Service(self, "source", self.east, self._source_of(self.server, "east", 1))
        self.receive = Service(self, "receive", self.west, self._receive)
        self.apply = Service(self, "apply", self.west, self._apply)
        self.services = [self.source, self.receive, self.apply]
        self._over: asyncio.Future[None] | None = None
        self.txns_wanted = self.random.randint(60, 260)
        self.writes_for_s = self.random.uniform(6.0, 16.0)
        #: the largest source position that a source end has heard the backup acknowledge
        self.told_most = 0
        #: the source's machine is gone for good; what was promised must be on the backup
        self.is_lost = False
        self.deposed: list[Service] = []
        #: synchronous delivery: transactions whose commit has returned, and where they end
        self.promised: dict[int, int] = {}
        self.ends_lost = not is_calm and self.random.random() < 0.15
        #: a bit of the journal will flip; it has
        self.will_rot = not is_calm and not self.ends_lost and self.random.random() < 0.08
        self.is_rotten = False

    def _fork(self) -> random.Random:
        return random.Random(self.random.random())

    def _settings(self) -> GroupSettings:
        rng = self.random
        return GroupSettings(
            kind="postgres",
            primary="east",
            backups=["west"],
            databases={},
            delivery="sync" if self.is_sync else "async",
            on_sync_loss="wait" if self.is_sync else None,
            batch_changes=rng.choice((1, 10, 100)),
            apply_memory=rng.choice((1_000, 10_000, 1_000_000)),
            retention=RetentionSettings(size=0, min_free=2048, segment=rng.choice((6_144, 8_192, 16_384))),
            link=LinkSettings(compression=rng.choice((0, 1)), window=rng.choice((2_000, 20_000, 200_000))),
            **self._spool_settings(),
        )

    def _spool_settings(self) -> dict[str, Any]:
        if not self.spools:
            return {}
        rng = self.spool_random
        spool = SpoolSettings(
            size=rng.choice((25_000, 60_000, 1 << 20)), min_free=2048, segment=rng.choice((6_144, 12_288))
        )
        return {"wal_spool": rng.choice((0, 200, 1500)), "spool": spool}

    # --- the ends -----------------------------------------------------------------------------

    def _source_of(self, server: LedgerServer, node: str, epoch: int) -> Callable[[SimHost], End]:
        def build(host: SimHost) -> SourceEnd:
            return SourceEnd(
                host,
                self.stream,
                address=_ADDRESS,
                tls=None,
                installation=_INSTALLATION,
                node=node,
                epoch=epoch,
                capture=LedgerCapture(host, server),
                seed_source=LedgerSeedSource(host, server),
                folder=_SOURCE_FOLDER,
            )

        def build_and_look(host: SimHost) -> End:
            end = build(host)
            self.met("spool found by the next process", spool_of(end) is not None)
            return end

        return build_and_look

    def _receive(self, host: SimHost) -> End:
        end = _Receive(
            host,
            _FOLDER,
            self.stream,
            listen=_ADDRESS,
            tls=None,
            installation=_INSTALLATION,
            node="west",
            allowed={"east", "north"},
            seed_target=LedgerSeedTarget(host, self.replica, self.met),
        )
        if end.journal.cut_bytes is not None:
            self.met("torn tail cut at recovery")
        return end

    def _apply(self, host: SimHost) -> End:
        return ApplyEnd(
            host,
            _FOLDER,
            self.stream,
            decoder=lambda: _CountedDecoder(self, self.piece_rows),
            target=lambda: LedgerTarget(host, self.replica),
        )

    def machine(self, name: str) -> Machine:
        return next(found for found in self.machines if found.name == name)

    def is_gone(self, machine: Machine) -> bool:
        """It will never come back."""
        return self.is_lost and machine is self.source.machine

    def weak_moments(self) -> list[tuple[Service, str, Callable[[], bool]]]:
        """Where dying is most delicate."""
        spooling = [(self.source, "while it spools", lambda: self._spool_state() == "filling")]
        return [
            *(spooling if self.spools else ()),
            (self.receive, "between append and harden", self.is_unhardened),
            (self.apply, "inside a target transaction", lambda: bool(self.replica.open)),
            (self.apply, "between commit and mark", self._is_unmarked),
            (self.source, "during the first copy", lambda: self.source.end.state == "seeding"),
            (self.source, "within a large transaction", lambda: self.source.end._capture._row > 0),
        ]

    def _spool_state(self) -> str:
        spooling = None if self.source.end is None else self.source.end._spooling
        return "none" if spooling is None else str(spooling.state)

    def is_unhardened(self) -> bool:
        journal = self.receive.end.journal
        return bool(journal.tail.position > journal.hardened.position)

    def _is_unmarked(self) -> bool:
        session = self.apply.end._session
        return session is not None and session._applied.offset < (self.replica.progress or 0)

    # --- telling ------------------------------------------------------------------------------

    def say(self, what: str) -> None:
        line = f"{self.loop.time():9.3f}  {what}"
        self.trace.append(line)
        if self._verbose:
            print(line)  # noqa: T201 - that is what --verbose asks for

    def met(self, what: str, times: int = 1) -> None:
        """Something worth meeting has been met."""
        if times > 0:
            self.oracle.met[what] += times

    def _look(self) -> None:
        self.oracle.look_at(self.replica)

    def _hardened_offset(self) -> int | None:
        end = self.receive.end
        return None if self.receive.host is None or end is None else int(end.journal.hardened.offset)

    def autopsy(self, service: Service) -> None:
        """A process is dying: in the middle of what?"""
        end = service.end
        if end is None:
            return
        if service is self.receive:
            if self.is_unhardened():
                self.met("receive end died between append and harden")
        elif service is self.apply:
            if self.replica.open:
                self.met("apply end died inside a target transaction")
            if self._is_unmarked():
                self.met("apply end died between commit and mark")
        else:
            if getattr(end, "state", "") == "seeding":
                self.met("source end died during the first copy")
            self._count_source(end)

    def _count_source(self, end: SourceEnd) -> None:
        """What one life of a source end came to."""
        self.told_most = max(self.told_most, end._hardened.offset if end._hardened is not None else 0)
        spooling = end._spooling
        feed = end._feed if spooling is None else spooling._feed
        assert isinstance(feed, CaptureFeed)
        self.met("link resumed from memory", feed.resumed)
        self.met("capture opened again in one process", feed.reopened - 1)
        if spooling is not None:
            self.met("spool begun", spooling.begun)
            self.met("spool filled", spooling.filled)
            self.met("spool sent to its end", spooling.emptied)

    def judge_end(self, service: Service, error: BaseException) -> None:
        """An end gave up by itself: is that one of the reasons for which it may?"""
        if isinstance(error, StaleEpoch) and service in self.deposed:
            self.met("stale epoch refused")
            return
        if type(error) is JournalError and service in (self.receive, self.source):
            self.met("journal given up after a failed sync")
            return
        if isinstance(error, CastlingError) and error.retryable:
            return
        if self.is_rotten and isinstance(error, CastlingError):
            self.met("rot noticed")
            self._stop_now()
            return
        self.oracle.fail(f"{service.name} ended with {type(error).__name__}: {error}")

    def _stop_now(self) -> None:
        if self._over is not None and not self._over.done():
            self._over.set_result(None)

    # --- the run ------------------------------------------------------------------------------

    def run(self) -> Result:
        """Live through it all; never raises for what the world did wrong."""
        gc.disable()  # what a collection ends would end at another moment in each run
        self.loop.set_exception_handler(self._mishap)
        try:
            self.loop.run_until_complete(self._live())
        except Stuck as error:
            self.oracle.broken = self.oracle.broken or error
        finally:
            self._bury()
            gc.enable()
        broken = self.oracle.broken
        return Result(
            self.seed,
            None if broken is None else str(broken),
            dict(self.oracle.met),
            len(self.server.txns),
            self.loop.time(),
            tuple(self.trace),
        )

    def _mishap(self, _: Any, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, SimKilled | asyncio.CancelledError):
            self.oracle.fail(f"a task failed unheard: {context.get('message')}: {error!r}")

    async def _live(self) -> None:
        self._over = self.loop.create_future()
        story = self.loop.create_task(self._story())
        await asyncio.wait((story, self._over), return_when=asyncio.FIRST_COMPLETED)
        if story.done():
            story.result()
        else:
            story.cancel()

    async def _story(self) -> None:
        for _ in range(self.random.randint(0, 40)):  # what the first copy will find
            self.write()
        for service in self.services:
            self.loop.call_later(self.random.uniform(0.0, 0.5), service.start)
        faults = self.loop.create_task(rain(self, self.writes_for_s)) if not self.is_calm else None
        if self.spools:
            spooling = self.loop.create_task(rain_on_spool(self, self.writes_for_s))
        if self.will_rot:
            rotting = self.loop.create_task(rot(self, self.writes_for_s))
        await self._workload()
        if self.ends_lost and self._is_seeded():
            await self._lose_source()
            return
        if faults is not None:
            await faults
            if self.spools:
                await spooling
            if self.will_rot:
                await rotting
            self.say("everything heals")
            heal(self)
        await self._drain()
        self._compare()
        self._count()

    def _is_seeded(self) -> bool:
        """The first copy is complete, whatever crashes now: from here on promises hold."""
        raw = self.west.disk.sure_bytes(f"{_FOLDER}/stream.json")
        return bool(raw) and msgspec.json.decode(raw, type=StreamState).seed is SeedState.SEEDED

    async def _lose_source(self) -> None:
        """The source's machine is gone for good: what it was told is safe is on the backup."""
        self.is_lost = True
        self.met("source lost for good")
        primary = self.source.machine
        self.say(f"{primary.name} burns down")
        power_off(self, primary)
        if self.random.random() < 0.5:
            self.say("west loses power with it")
            power_off(self, self.west)
        heal(self)
        # what lies in a spool has burnt with it: the backup's own word is what was promised
        promised = self.told_most if self.spools else self.server.confirmed_most
        await self._reach(promised, "what was acknowledged")
        there = {row[0] for row in self.replica.rows}
        for number, end in self.promised.items():
            if number not in there:
                self.oracle.fail(f"the commit at {end} had returned to its writer as safe; it is lost")
        self.met("synchronous commit kept though the source burnt down", len(self.promised))

    async def _workload(self) -> None:
        writers = 4 if self.is_sync else 1
        await asyncio.gather(*(self._writer(self.txns_wanted // writers) for _ in range(writers)))

    async def _writer(self, txns: int) -> None:
        pause_s = 2 * self.writes_for_s / txns
        until_s = self.loop.time() + self.writes_for_s
        for _ in range(txns):
            await asyncio.sleep(self.random.random() * pause_s)
            if self.is_sync:
                await self._write_and_wait(within_s=2.0)
                if self.loop.time() > until_s:
                    return
            else:
                self.write()

    def write(self) -> None:
        """One transaction, when there is a source; with synchronous delivery its writer waits."""
        if not self.server.is_up:
            return
        rng = self.random
        count = rng.randint(20, 250) if rng.random() < 0.04 else rng.randint(1, 4)
        self.server.commit([rng.randbytes(rng.randint(1, 40)) for _ in range(count)], self.east.wall_ns())

    async def _write_and_wait(self, within_s: float) -> None:
        """A commit with synchronous delivery returns when the source was told that it is safe."""
        server = self.server
        before = len(server.txns)
        self.write()
        if len(server.txns) == before:
            return
        txn = server.txns[-1]
        deadline_s = self.loop.time() + within_s
        while self.loop.time() < deadline_s and not self.is_lost:
            if server.is_up and server.confirmed_most >= txn.end:
                self.promised[txn.number] = txn.end
                return
            await asyncio.sleep(0.005)

    # --- another primary ----------------------------------------------------------------------

    async def depose(self) -> None:
        """North takes the role over from east, which does not know it, goes on and must not be heard."""
        # with a spool the past of a promoted source is not all on the backup: it refuses, rightly
        if self.deposed or self.is_lost or self.spools or not (self._is_seeded() and self.server.is_up):
            return
        self.say("north takes over from east")
        old, deposed = self.server, self.source
        common_end = old.ends[-1]
        self.server = self.oracle.truth = old.fork()
        self.server.watch = self.oracle.acknowledged

        def watch_ghosts(offset: int) -> None:
            if offset > common_end:
                self.oracle.fail(f"the deposed primary was told that {offset} is safe")

        old.watch = watch_ghosts
        self.deposed.append(deposed)
        self.source = Service(self, "source of north", self.north, self._source_of(self.server, "north", 2))
        self.services.append(self.source)
        self.source.start()
        while self.receive.host is None or self.receive.end is None or self.receive.end.journal.epoch < 2:
            if self.is_lost:
                return
            await asyncio.sleep(0.05)
        for _ in range(10):
            old.commit([b"written by a primary that is none"], self.east.wall_ns())
            await asyncio.sleep(0.3)

    async def _drain(self) -> None:
        await self._reach(self.server.ends[-1], "the source's end")

    async def _reach(self, offset: int, what: str) -> None:
        deadline_s = self.loop.time() + DRAIN_S
        while (self.replica.progress or 0) < offset:
            if self.loop.time() > deadline_s:
                at = self.replica.progress
                self.oracle.fail(f"not drained: {what} is {offset}, the replica at {at}")
                return
            await asyncio.sleep(0.2)

    def _compare(self) -> None:
        if self.replica.rows != self.server.rows:
            self.oracle.fail("the replica does not equal the source")

    def _count(self) -> None:
        """What the whole run shows."""
        disk = self.west.disk
        seqs = sorted(int(name[:-4]) for name in disk.listdir(_JOURNAL) if name.endswith(".seg"))
        self.met("segment rolled", seqs[-1] > 1)
        self.met("segment released", seqs[0] > 1)
        self.met("half-open connection superseded", self.network.half_open)
        self.met("link cut within a batch", self.network.cut_within)
        if self.source.end is not None:
            self._count_source(self.source.end)
        if self.receive.end is not None:
            self.met("first copy begun again", self.receive.end.stream_state.seeds - 1)

    def _bury(self) -> None:
        """End what still runs, without consequences."""
        for service in self.services:
            service.is_wanted = False
            if service.host is not None:
                service.host.kill()
        rest = asyncio.all_tasks(self.loop)
        for task in rest:
            task.cancel()
        self.loop.set_exception_handler(lambda *_: None)
        if rest:
            self.loop.run_until_complete(asyncio.wait(rest))
        self.loop.close()


def spool_of(end: SourceEnd) -> Spool | None:
    """The spool that an end has on its disk now."""
    spooling = end._spooling
    return spooling._spool if spooling is not None and spooling._spool.is_there else None


def _config() -> Config:
    return Config(installation=InstallationSettings(name="simulated"), nodes={})
