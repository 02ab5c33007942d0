"""The spool: what was captured while the backup could not take it, in a journal on the capture's node.

What lies in it has been taken from the source, which has forgotten it: until the backup holds it, it is
nowhere else. So a record counts only after an fsync, and a spool that can't be read is a gap, told loudly.

The folder holds a journal as on a backup, which goes on behind the backup's, and `spool.json`: behind what.
That file makes it a spool: it is written last and removed first (docs/formats/spool.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from castling.config import RetentionSettings, SpoolSettings
from castling.errors import ContinuityLost, JournalError, JournalFull
from castling.groups.role import write_durably
from castling.host import Host
from castling.journal.journal import Journal
from castling.journal.record import Position, Tail
from castling.journal.retention import forecast_full_s
from castling.link.feed import Run
from castling.link.journal_feed import JournalFeed
from castling.observe import Throughput

__all__ = ["Spool"]

_FILE = "spool.json"
_FILE_MAX = 256 << 10
#: what the backup holds goes at once
_NOTHING_KEPT = RetentionSettings(size=0, age=0.0)


class _Begins(msgspec.Struct, frozen=True):
    """`spool.json`: the tail of the backup's journal that the spool goes on behind, and in which epoch."""

    group: str
    in_epoch: int
    epoch: int
    seq: int
    offset: int
    t_ns: int
    session: bytes | None
    v: int = 1

    @property
    def tail(self) -> Tail:
        return Tail(Position(self.epoch, self.seq), self.offset, self.t_ns, self.session)


class Spool:
    """One stream's. While it `is_there`, all that is sent to the backup comes from it."""

    def __init__(self, host: Host, folder: str, *, group: str, epoch: int, settings: SpoolSettings) -> None:
        self._host = host
        self._folder = folder
        self._group = group
        self._epoch = epoch
        self._settings = settings
        self._journal: Journal | None = None
        self._begins: _Begins | None = None
        self._rate = Throughput()

    @property
    def is_there(self) -> bool:
        return self._begins is not None

    @property
    def is_of_this_epoch(self) -> bool:
        """Only then may it be sent or go on: what another epoch's primary wrote is not ours to tell."""
        return self._begins is not None and self._begins.in_epoch == self._epoch

    @property
    def tail(self) -> Tail:
        """Where it ends: all up to here is durable, and forgotten by the source at most up to here."""
        assert self._journal is not None
        return self._journal.hardened

    @property
    def size(self) -> int:
        """Bytes on disk, about."""
        return 0 if self._journal is None else self._journal.size_bytes()

    def holds(self, place: Position) -> bool:
        """Whether the spool goes on without a gap behind a journal that ends there."""
        return self._begins is not None and self._begins.seq <= place.seq

    # --- being made, found and removed --------------------------------------------------------

    def recover(self) -> None:
        """Find what an earlier process left. ContinuityLost when it can't be read."""
        disk = self._host.disk
        if not disk.exists(self._folder):
            return
        disk.sync_dir(self._folder)  # whoever wrote or removed it may have died before that was durable
        if not disk.exists(f"{self._folder}/{_FILE}"):
            self._remove_rest()
            return
        try:
            begins = self._read()
            self._journal = self._open(begins.tail)
        except (JournalError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ContinuityLost(
                f"the spool in {self._folder} can't be read: {error}; what the source gave to it, and has"
                " forgotten, may not be on the backup",
                hint="keep the folder for examination, then seed anew: `castling group start GROUP --reseed`",
            ) from error
        self._begins = begins

    def _read(self) -> _Begins:
        file = self._host.disk.open(f"{self._folder}/{_FILE}")
        try:
            return msgspec.json.decode(file.read_at(0, _FILE_MAX), type=_Begins)
        finally:
            file.close()

    def _open(self, after: Tail) -> Journal:
        return Journal.open(
            self._host,
            self._folder,
            group=self._group,
            segment_bytes=self._settings.segment,
            min_free=self._settings.min_free,
            begins=after,
        )

    async def begin(self, after: Tail, runs: Sequence[Run]) -> None:
        """Make it, with `runs`, which come right after the tail `after`: all that was ever sent behind it.

        Done whole or not at all: JournalFull, StateUnsaved or JournalError leave nothing behind.
        """
        assert not self.is_there, "there is a spool already"
        disk = self._host.disk
        disk.makedirs(self._folder)
        disk.sync_dir(self._folder.rpartition("/")[0])
        self._remove_rest()
        try:
            journal = self._journal = self._open(after)
            journal.raise_epoch(self._epoch)
            for run in runs:
                self._check_room(len(run.data))
                journal.append(run.data)
            await journal.harden()
            at = after.position
            begins = _Begins(
                self._group, self._epoch, at.epoch, at.seq, after.offset, after.t_ns, after.session
            )
            write_durably(self._host, self._folder, _FILE, msgspec.json.encode(begins))
        except BaseException:
            self._close_journal()
            raise
        self._begins = begins

    def forget(self) -> None:
        """Remove it: the backup holds all of it, or is seeded anew."""
        self._begins = None
        self._close_journal()
        if self._host.disk.exists(self._folder):
            self._remove_rest()

    def _remove_rest(self) -> None:
        """The file that makes it a spool first; of the rest any part may stay."""
        disk = self._host.disk
        if disk.exists(f"{self._folder}/{_FILE}"):
            disk.remove(f"{self._folder}/{_FILE}")
            disk.sync_dir(self._folder)
        for name in disk.listdir(self._folder):
            disk.remove(f"{self._folder}/{name}")

    def _close_journal(self) -> None:
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def close(self) -> None:
        """Close its files; it stays on the disk."""
        self._begins = None
        self._close_journal()

    # --- filling and sending ------------------------------------------------------------------

    async def settle(self) -> Tail:
        """Make durable what an append that failed half-way has left; where the spool ends."""
        assert self._journal is not None
        return await self._journal.harden()

    async def add(self, run: Run) -> Tail:
        """Take a run; the new tail, durable. JournalFull: no room, and `settle` says what was taken."""
        assert self._journal is not None
        self._check_room(len(run.data))
        self._journal.append(run.data)
        tail = await self._journal.harden()
        self._rate.add(self._host.monotonic(), self._journal.bytes_appended)
        return tail

    def _check_room(self, more: int) -> None:
        assert self._journal is not None
        if self._journal.size_with(more) > self._settings.size:
            raise JournalFull(
                f"the spool in {self._folder} has reached spool.size ({self._settings.size >> 20} MiB)",
                hint="bring the backup back, or raise spool.size",
            )

    def feed(self) -> JournalFeed:
        """What sends it."""
        assert self._begins is not None
        return JournalFeed(self._host, self._folder, epoch=self._epoch, begins=self._begins.tail)

    def release(self, acked: Position) -> None:
        """The backup holds all up to `acked`. The segment with that record stays: it proves the place."""
        assert self._journal is not None
        self._journal.release(acked, keyframe=acked, retention=_NOTHING_KEPT, now_ns=self._host.wall_ns())

    # --- figures ------------------------------------------------------------------------------

    def report(self) -> dict[str, int | float | None]:
        """None: not known, or not so. `full_in_s`: until it takes nothing more, at the present rate."""
        size = self.size
        rate = self._rate.per_second() if self._journal is not None else None
        try:
            free = self._host.disk.free_bytes(self._folder.rpartition("/")[0])
        except OSError:
            free = None
        left = self._settings.size - size
        if free is not None:
            left = min(left, free - self._settings.min_free)
        return {
            "bytes": size,
            "free_bytes": free,
            "bytes_per_s": rate,
            "full_in_s": forecast_full_s(free_bytes=left, min_free=0, bytes_per_s=rate)
            if self._journal is not None
            else None,
        }
