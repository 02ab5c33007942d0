"""Controls of the simulation: with a promise broken on purpose, some seed must say so soon.

Each mutant changes the product's own code in this process. A mutant that lives through all
its seeds means that the simulation would not notice that mistake, so it fails the test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from castling.apply.schedule import Batcher
from castling.groups.spool import Spool
from castling.groups.spooling import SpoolFeed
from castling.host import File
from castling.journal import recovery, segment
from castling.journal.journal import Journal
from castling.journal.marks import Mark
from castling.journal.record import Record, Tail
from castling.journal.segment import parse_header
from castling.kinds.base import Abandon, Commit, Piece
from castling.link import handshake, receiver
from castling.link.feed import CaptureFeed, Run
from castling.link.frames import Batch, Hello
from castling.link.intake import Intake
from castling.testing.sim.batch import run_seed
from castling.testing.sim.host import SimHost, _Disk
from castling.testing.sim.ledger import LedgerDecoder
from castling.testing.sim.replica import LedgerTarget

Patch = pytest.MonkeyPatch
SEEDS = 300
#: where to begin with those that only a rare world shows; the others are found within a few
BEGIN = {
    "unsynced_records_trusted_after_a_failed_sync": 90,
    "retried_after_a_failed_sync": 90,
    "payloads_unchecked": 45,
    "released_before_it_is_durable": 45,
}


def fsync_removed(patch: Patch) -> None:
    async def harden(self: Journal) -> Tail:
        self.hardened = self.tail
        self._publish()
        return self.hardened

    patch.setattr(Journal, "harden", harden)


def acknowledged_before_it_is_hardened(patch: Patch) -> None:
    harden = Journal.harden

    async def early(self: Journal) -> Tail:
        self.hardened = self.tail
        self._publish()
        await self._host.sleep(0.01)
        return await harden(self)

    patch.setattr(Journal, "harden", early)


def told_to_readers_before_it_is_hardened(patch: Patch) -> None:
    append = Journal.append

    def tell(self: Journal, run: bytes) -> Tail:
        tail = append(self, run)
        self._marks.publish("hardened", Mark(tail.position, tail.offset, tail.t_ns, self.journal_id))
        return tail

    patch.setattr(Journal, "append", tell)


def closed_segment_not_synced(patch: Patch) -> None:
    patch.setattr(Journal, "_sync_now", lambda self, file: None)


def names_not_synced(patch: Patch) -> None:
    patch.setattr(_Disk, "sync_dir", lambda self, path: self._host.door("sync_dir"))


def unsynced_records_trusted_after_a_failed_sync(patch: Patch) -> None:
    patch.setattr(recovery, "write_again", lambda *_: None)


def retried_after_a_failed_sync(patch: Patch) -> None:
    async def sync(self: SimHost, files: Iterable[File]) -> None:
        for file in files:
            try:
                file.sync()
            except OSError:
                file.sync()

    patch.setattr(SimHost, "sync", sync)


def payloads_unchecked(patch: Patch) -> None:
    patch.setattr(segment, "_xxh3", lambda payload: 0)


def progress_apart_from_the_data(patch: Patch) -> None:
    async def commit(self: LedgerTarget, commit: Commit) -> None:
        rows, self._replica.open = self._replica.open or [], None
        before = self._replica.progress
        self._replica.rows.extend(rows)  # visible and kept, whatever comes of the progress
        self._replica._history[-1].rows = len(self._replica.rows)
        await self._host.sleep(0.01)
        self._check("target committed")
        assert before is not None
        self._replica.commit([], commit.offset)

    patch.setattr(LedgerTarget, "commit", commit)


def applied_twice(patch: Patch) -> None:
    init = Batcher.__init__
    patch.setattr(Batcher, "__init__", lambda self, limits, progress: init(self, limits, 0))


def transactions_torn(patch: Patch) -> None:
    """Parts of a source transaction become visible before the rest."""
    add = Batcher.add

    def torn(self: Batcher, item: Piece | Abandon) -> Any:
        for action in add(self, item):
            if getattr(action, "commit", 0) is None:
                piece = action.pieces[-1]
                action = type(action)(action.pieces, Commit(piece.offset, 0, None))  # type: ignore[arg-type]
            yield action

    patch.setattr(Batcher, "add", torn)


def abandoned_transaction_kept(patch: Patch) -> None:
    feed = LedgerDecoder.feed

    def keep(self: LedgerDecoder, record: Record) -> Any:
        return (item for item in feed(self, record) if isinstance(item, Piece))

    patch.setattr(LedgerDecoder, "feed", keep)


def released_before_it_is_durable(patch: Patch) -> None:
    async def durable(self: LedgerTarget) -> int:
        return self._replica.progress or 0

    patch.setattr(LedgerTarget, "durable", durable)


def resumed_one_late(patch: Patch) -> None:
    after = CaptureFeed._runs_after
    patch.setattr(CaptureFeed, "_runs_after", lambda self, seq: after(self, seq + 1))


def capture_resumed_too_far(patch: Patch) -> None:
    reopen = CaptureFeed._reopen

    async def further(self: CaptureFeed, tail: Tail) -> None:
        capture_open = self._capture.open

        async def skip(*, resume: int, session: bytes | None) -> None:
            await capture_open(resume=resume, session=session)
            inner = self._capture._capture  # type: ignore[attr-defined]
            if session is not None:
                inner._next += 1

        self._capture.open = skip  # type: ignore[method-assign]
        try:
            await reopen(self, tail)
        finally:
            self._capture.open = capture_open  # type: ignore[method-assign]

    patch.setattr(CaptureFeed, "_reopen", further)


def every_epoch_taken(patch: Patch) -> None:
    verify, check_place, check = handshake.verify, Intake._check_place, Journal._verify

    def verify_without(hello: Hello, **rest: Any) -> int:
        return verify(hello, **{**rest, "epoch": 0})

    async def open_without(self: CaptureFeed, tail: Tail) -> None:
        if self._can_resume(tail):
            self._unsent.extend(self._runs_after(tail.position.seq))
        else:
            await self._reopen(tail)

    def place_without(self: Intake, batch: Batch) -> None:
        self._journal.epoch = batch.epoch
        check_place(self, batch)

    def check_without(self: Journal, run: Any) -> Any:
        self.epoch = parse_header(run, 0).epoch
        return check(self, run)

    patch.setattr(receiver, "verify", verify_without)
    patch.setattr(CaptureFeed, "open", open_without)
    patch.setattr(Intake, "_check_place", place_without)
    patch.setattr(Journal, "_verify", check_without)


def spool_not_synced(patch: Patch) -> None:
    async def add(self: Spool, run: Run) -> Tail:
        assert self._journal is not None
        self._check_room(len(run.data))
        self._journal.append(run.data)
        self._journal.hardened = self._journal.tail
        self._journal._publish()
        return self._journal.tail

    patch.setattr(Spool, "add", add)


def spool_removed_before_it_was_sent(patch: Patch) -> None:
    acknowledge = SpoolFeed.acknowledge

    async def early(self: SpoolFeed, tail: Tail) -> None:
        await acknowledge(self, tail)
        if self._spool.is_there and not self._filling:
            self._acked = self._spool.tail

    patch.setattr(SpoolFeed, "acknowledge", early)


MUTANTS: list[Callable[[Patch], None]] = [
    fsync_removed,
    acknowledged_before_it_is_hardened,
    told_to_readers_before_it_is_hardened,
    closed_segment_not_synced,
    names_not_synced,
    unsynced_records_trusted_after_a_failed_sync,
    retried_after_a_failed_sync,
    payloads_unchecked,
    progress_apart_from_the_data,
    applied_twice,
    transactions_torn,
    abandoned_transaction_kept,
    released_before_it_is_durable,
    resumed_one_late,
    capture_resumed_too_far,
    every_epoch_taken,
    spool_not_synced,
    spool_removed_before_it_was_sent,
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_mutant_is_found(mutant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    mutant(monkeypatch)
    begin = BEGIN.get(mutant.__name__, 0)
    for seed in range(begin, begin + SEEDS):
        broken = run_seed(seed).broken
        if broken is not None:
            print(f"{mutant.__name__}: seed {seed}: {broken}")
            return
    pytest.fail(f"{SEEDS} worlds with {mutant.__name__} and no violation")
