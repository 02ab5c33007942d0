"""What must hold at every instant, and what must have been met at all.

The oracle knows the truth (the source's own list of rows) and looks at everything that
others could rely on: each committed state of the replica, each acknowledgement that reaches
the source, and what the worst crash at that moment would leave of the remote journal. It
judges by content, never by what the ends say of themselves.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

from castling.config import SpoolSettings
from castling.errors import CastlingError
from castling.groups.spool import Spool
from castling.journal.journal import Journal
from castling.journal.record import Tail
from castling.testing.sim.host import Machine, SimHost
from castling.testing.sim.ledger import LedgerServer
from castling.testing.sim.loop import SimLoop
from castling.testing.sim.network import SimNetwork
from castling.testing.sim.replica import Replica

__all__ = ["Oracle", "Violation"]


class Violation(Exception):
    """A promise was broken."""


class Oracle:
    """Judges one world. `journal`: the folder of the remote journal on `backup`."""

    def __init__(
        self, loop: SimLoop, truth: LedgerServer, backup: Machine, *, group: str, journal: str
    ) -> None:
        self._loop = loop
        self.truth = truth
        self._backup = backup
        self._group = group
        self._journal = journal
        self._random = random.Random(0)
        #: the source's machine and the folder of its spool, where the source is told of what lies there
        self.spool: tuple[Machine, str] | None = None
        #: a bit of the journal has flipped
        self.is_rotten = False
        self.broken: Exception | None = None
        self.on_broken: Callable[[], None] = lambda: None
        #: interesting things that really happened
        self.met: Counter[str] = Counter()
        #: what `far_tail` said of the running receive end; None while there is none
        self.hardened_offset: Callable[[], int | None] = lambda: None
        self._checked = 0
        self._was_complete = False
        self._seeded_at = 0

    def fail(self, what: str) -> None:
        """Note the first violation and end the world."""
        if self.broken is None:
            self.broken = Violation(f"at {self._loop.time():.3f} s: {what}")
            self.on_broken()

    # --- the replica --------------------------------------------------------------------------

    def look_at(self, replica: Replica) -> None:
        """Called after each commit of the replica, and after its crash."""
        progress = replica.progress
        if progress is None:  # the first copy is under way: nobody reads this
            self._checked, self._was_complete = 0, False
            return
        if not self._was_complete:
            self._was_complete, self._seeded_at = True, progress
        self._check_rows(replica, progress)
        hardened = self.hardened_offset()
        if hardened is not None and not self.is_rotten and progress > max(hardened, self._seeded_at):
            self.fail(f"the replica is at {progress}, hardened is only {hardened}")

    def _check_rows(self, replica: Replica, progress: int) -> None:
        rows, truth = replica.rows, self.truth.rows
        self._checked = min(self._checked, len(rows))
        if len(rows) != self.truth.count_upto(progress):
            self.fail(
                f"the replica says {progress} and has {len(rows)} rows, the source had "
                f"{self.truth.count_upto(progress)} there"
            )
        for index in range(self._checked, len(rows)):
            if index >= len(truth) or rows[index] != truth[index]:
                wanted = truth[index][:2] if index < len(truth) else None
                self.fail(f"row {index} of the replica is {rows[index][:2]}, of the source {wanted}")
                return
        self._checked = len(rows)

    # --- acknowledgements ---------------------------------------------------------------------

    def acknowledged(self, offset: int) -> None:
        """The source was told that everything up to `offset` is safe, and has forgotten it."""
        if self._random.random() < 0.08:
            self.check_durable(offset)

    def after_crash(self) -> None:
        """The backup lost power: what was acknowledged must still be there, whatever else went."""
        if self.truth.slot is not None and self.truth.confirmed_most > self.truth.slot.start:
            self.check_durable(self.truth.confirmed_most)

    def check_durable(self, offset: int) -> None:
        """Recover the remote journal as the worst crash right now would leave it: `offset` must be there,
        or in a spool that goes on from a place in it."""
        if self.is_rotten:
            return  # what is damaged may refuse to be read; the replica is still judged
        found = self._recovered_tail()
        if found.offset >= offset:
            return
        spooled = self._recovered_spool(found)
        if spooled < offset:
            self.fail(
                f"{offset} was acknowledged; a crash now would leave the journal at {found.offset},"
                f" the spool at {spooled}"
            )

    def _examiner(self, of: Machine) -> SimHost:
        """A machine with the disk that the worst crash would leave."""
        machine = Machine("examiner", self._loop, SimNetwork(self._loop, random.Random(0)), random.Random(0))
        machine.disk = of.disk.surely()
        return SimHost(machine, "examiner", lambda: None)

    def _recovered_tail(self) -> Tail:
        """The tail of the journal after the worst crash now."""
        try:
            journal = Journal.open(
                self._examiner(self._backup), self._journal, group=self._group, segment_bytes=1 << 14
            )
        except CastlingError as error:
            self.fail(f"the journal would not recover from a crash now: {error}")
            return Tail(offset=-1)
        tail = journal.tail
        journal.close()
        return tail

    def _recovered_spool(self, journal: Tail) -> int:
        """The source position at the end of the spool after the worst crash now, if what it holds goes on
        from a place in the journal that ends with that tail; -1: there is none, or a gap before it."""
        if self.spool is None:
            return -1
        machine, folder = self.spool
        spool = Spool(
            self._examiner(machine),
            folder,
            group=self._group,
            epoch=1,
            settings=SpoolSettings(segment=1 << 14),
        )
        try:
            spool.recover()
        except CastlingError as error:
            self.fail(f"the spool would not recover from a crash now: {error}")
            return -1
        if not spool.is_there or not spool.holds(journal.position):
            return -1
        return spool.tail.offset
