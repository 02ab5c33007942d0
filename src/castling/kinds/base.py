"""What a kind of group must provide; everything else is the same for all kinds.

A kind is one folder. It captures changes of its source as `Draft` records, decodes
records back into changes (purely), applies changes to its target and makes the first
copy. The journal, the link, the apply loop and the procedures know only what is
written here. One contract suite (tests/contract) runs against every kind.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from castling.config import Config, GroupSettings, PoolerSettings
from castling.journal.record import Draft, Position, Record

__all__ = [
    "Abandon",
    "AuditGuard",
    "AuditPart",
    "AuditView",
    "Auditor",
    "Bulk",
    "BulkCall",
    "Capture",
    "Clone",
    "Commit",
    "Compared",
    "Copied",
    "Decoder",
    "Discrepancy",
    "Finding",
    "Held",
    "Kind",
    "Moves",
    "PartAction",
    "PartProgress",
    "Piece",
    "PoolAction",
    "Records",
    "Repaired",
    "SeedProgress",
    "SeedSource",
    "SeedTarget",
    "Severity",
    "Stream",
    "Target",
]


# --- capture ----------------------------------------------------------------------------------


class Capture(Protocol):
    """The source of one stream of changes. One reader at a time.

    `session` below is the continuity token: everything by which the source can be
    recognised (system identity, timeline, slot identity). It is stored in the journal
    as the payload of a SESSION record, which is always the first draft after `open`.
    """

    async def open(self, *, resume: int, session: bytes | None) -> None:
        """Begin after source position `resume`, which the far journal holds.

        `session` None: the journal is empty and the stream begins where the slot was
        created. Raises ContinuityLost when the source is not the one of `session`, or
        can't give what follows `resume`; SourceUnreachable when it may come back.
        """

    async def read(self) -> list[Draft]:
        """The next drafts, in order; waits for at least one, returns at most about 1 MiB.

        Each draft's `offset` never decreases: it is the source position from which
        capture would resume if the journal ended with that draft. Raises
        SourceUnreachable when the source goes away.
        """

    async def acknowledge(self, offset: int) -> None:
        """The far side holds, durably, everything up to source position `offset`."""

    def waiting_bytes(self) -> int | None:
        """What the source keeps of its own log because it was not acknowledged; None: that is not known."""

    async def guard(self) -> None:
        """Keep up, until cancelled, what must not depend on whether a stream is open: that commits wait for
        the backup, and stop waiting when that is the group's choice; and that the source keeps no more of its
        log than the group allows (LogGivenUp). Runs as long as the source end does."""

    async def leave(self) -> None:
        """The source end ends: it was told to, or can't go on. Where the group chose not to be waited for,
        what waits goes on now, for nobody may be left to say so later. Repeatable."""

    async def close(self) -> None: ...

    def report(self) -> dict[str, Any]:
        """Figures for the report tree; what is not known is None."""


# --- decoding and apply -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Commit:
    """The end of a source transaction.

    `offset`: source position just after it (what progress stores); `committed_ns`: the
    source's own commit time, wall clock, nanoseconds; `position`: the record that held it.
    """

    offset: int
    committed_ns: int
    position: Position


@dataclass(slots=True)
class Piece:
    """A run of changes of one source transaction, in order.

    `commit` None: the transaction goes on in the next piece (it is too large to hold in
    memory whole). `changes` are the kind's own objects; `size` estimates their bytes.
    `offset`: where the transaction stands in the source's order, known from its first
    piece: below its own Commit.offset and not below that of the transaction before it.
    So a transaction is already applied exactly when `offset` < the target's progress. `alone`: it shares
    its target transaction with no other.
    """

    changes: list[Any]
    size: int
    commit: Commit | None
    offset: int
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Abandon:
    """The transaction begun by earlier pieces without commit will be sent again in full."""


#: what can be asked for a part of a target
PartAction = Literal["hold", "release", "resync"]
#: what can be asked of a pooler in front of a group's data
PoolAction = Literal["pause", "resume"]


@dataclass(frozen=True, slots=True)
class Held:
    """A part of the target (a table, say) that stands behind the rest.

    `state`: held, releasing (its changes are being caught up with), lost (the journal no longer has
    them) or copying (it is copied anew, beside the stream). `offset`: the source position up to which the
    part is whole, or from which its new copy needs the journal; the journal keeps what follows.
    """

    part: str
    state: str
    offset: int
    since_ns: int
    reason: str
    sqlstate: str | None


class Decoder(Protocol):
    """Pure: records in, pieces of source transactions out, in commit order."""

    def feed(self, record: Record) -> Iterable[Piece | Abandon]:
        """Decode one record. Must start at a record flagged KEYFRAME. Raises DecodeError."""


class Target(Protocol):
    """The replica. At most one target transaction is open at a time.

    Progress is committed in the same target transaction as the changes it stands for. A part of
    the replica may be on hold: its changes are left out, and `durable` does not pass its position.
    Whenever parts are put on hold or released, PartsMoved ends the session, and the next one begins
    where the parts need it; what a part has already is left out again.
    """

    async def open(self) -> int:
        """Connect; the source position up to which everything is already applied (0: nothing)."""

    def held(self) -> Sequence[Held]:
        """The parts that stand behind, oldest first."""

    async def give_up(self, part: str) -> None:
        """The journal will not keep what a part on hold lacks: it needs a new copy."""

    async def apply(self, pieces: Sequence[Piece]) -> None:
        """Add changes to the open target transaction, opening one if there is none.

        Raises TargetDiverged when the target lacks a row that the source changed,
        TargetUnreachable when it may come back; the transaction is then rolled back.
        """

    async def commit(self, commit: Commit) -> None:
        """Store progress `commit.offset` and commit the target transaction. A target that writes several at
        once may return before that is done: `applied` tells; an error then comes from a later call."""

    def applied(self) -> int:
        """The source position up to which all that was handed over is committed, as far as is known."""

    async def settle(self) -> None:
        """Wait until all that was handed over is committed."""

    async def rollback(self) -> None: ...

    async def durable(self) -> int:
        """The source position whose apply would survive a crash of the target right now."""

    async def close(self) -> None: ...

    def report(self) -> dict[str, Any]: ...


# --- the first copy ---------------------------------------------------------------------------

#: One call over the link's bulk channel: a small description and a body of any length,
#: answered by a small result. Errors of the far side are raised as their own class.
BulkCall = Callable[[bytes, AsyncIterator[bytes] | None], Awaitable[bytes]]


class Bulk(Protocol):
    """Opens bulk connections beside the record stream; each serves one call at a time."""

    async def open(self) -> BulkCall: ...
    async def close(self) -> None: ...


@dataclass(slots=True)
class SeedProgress:
    """How far the first copy is; totals are estimates until `done`."""

    phase: str = "planning"  # planning | schema | renewing | data | indexes | done
    rows: int = 0
    rows_total: int | None = None
    bytes: int = 0
    bytes_total: int | None = None
    started_ns: int = 0
    tables_done: int = 0
    tables_total: int = 0
    eta_s: float | None = None
    #: how often this copy was begun or gone on with; of `rows`, those that attempts before have brought; and
    #: rows that were read once more, because they have changed since
    attempts: int = 1
    rows_kept: int = 0
    rows_renewed: int = 0


@dataclass(slots=True)
class PartProgress:
    """How far the copy of a single part is; `bytes_total` is an estimate."""

    part: str
    bytes_total: int
    started_ns: int
    rows: int = 0
    bytes: int = 0


class SeedSource(Protocol):
    """Makes the first copy from a consistent view of the source, or from one after the other."""

    progress: SeedProgress
    #: the single parts that are copied anew right now
    parts: list[PartProgress]

    async def begin(self) -> None:
        """Create the stream's beginning (slot) and hold a view of the source at exactly that point."""

    async def resume(self) -> None:
        """Take up the copy that was begun and not completed: hold a view of the source as it is now.
        Raises SeedLost when the stream's beginning is gone."""

    async def run(self, bulk: Bulk) -> None:
        """Send what the target lacks. After any failure that may pass the copy goes on with `resume`; after
        SeedLost, with `begin`."""

    async def copy_parts(self, wanted: bytes, bulk: Bulk) -> None:
        """Copy single parts anew, from a view of now, while the stream goes on. `wanted`: what the target
        has answered. What one part's copy meets keeps no other back; what is not done is wanted again."""

    async def close(self) -> None: ...


#: the stream's own records: from source position `since` (or before it) on, as far as position `until`,
#: which is waited for
Records = Callable[[int, int], AsyncIterator[Record]]


class SeedTarget(Protocol):
    """Receives the first copy, and later copies of single parts."""

    #: given by the end that keeps the journal; by it a copy that broke off is brought up to a later view
    records: Records | None

    async def handle(self, meta: bytes, body: AsyncIterator[bytes]) -> bytes: ...
    async def wanted(self) -> bytes:
        """The parts that are to be copied anew, in the kind's words; empty: none."""

    async def handle_part(self, meta: bytes, body: AsyncIterator[bytes]) -> bytes:
        """Take the copy of a part that is wanted: all of it, with its position, or nothing."""

    async def close(self) -> None: ...


# --- audits -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AuditPart:
    """What can be compared on its own (a table, say), by the source's name. `rows`, `bytes`: estimates.

    `changes`: a counter of the source that never stands still while the part changes; None: there is none.
    `blocked`: why it can't be compared now; empty: it can.
    """

    part: str
    rows: int | None
    bytes: int
    changes: int | None = None
    blocked: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Discrepancy:
    """One thing that is not on the target as it is on the source, at one position.

    `what`: missing, extra, different, behind, ... `source`, `target`: what each end has, by column, as text
    (None is NULL); None where it has nothing. `times`: how often, where equal rows can't be told apart.
    `mend`: how a repair would go about it: row, copy, sequence, statement; empty: only a person can.
    `token`: what the kind needs for that.
    """

    rule: str
    part: str
    what: str
    message: str
    key: dict[str, str | None] | None = None
    source: dict[str, str | None] | None = None
    target: dict[str, str | None] | None = None
    columns: list[str] = field(default_factory=list)
    times: int = 1
    mend: str = ""
    statement: str = ""
    token: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Compared:
    """What comparing one part by one rule came to.

    `problem` not empty: it could not be told, and why; then nothing else counts. `more`: discrepancies
    beyond those listed. `notes`: what is so by intent, such as what no group protects.
    """

    rule: str
    part: str
    rows_source: int | None = None
    rows_target: int | None = None
    bytes: int = 0
    found: list[Discrepancy] = field(default_factory=list)
    more: int = 0
    problem: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def result(self) -> str:
        """equal, differs or unknown."""
        if self.problem:
            return "unknown"
        return "differs" if self.found or self.more else "equal"


class AuditGuard(Protocol):
    """Keeps an audit within its limits; asked after each piece of work on the source."""

    async def spent(self, *, seconds: float, size: int, rows: int) -> None:
        """A statement took `seconds` on the source and read `size` bytes, `rows` rows. May wait (pace);
        raises AuditYields when the audit has to let go of what it holds."""


class AuditView(Protocol):
    """Both ends at exactly one position of the stream, however much is written meanwhile."""

    position: str

    def paused_s(self) -> float | None:
        """How long apply stood still for it; None: not known."""

    async def compare(self, part: str, guard: AuditGuard) -> Compared: ...


@dataclass(frozen=True, slots=True)
class Repaired:
    """What a repair did about the discrepancy of this index. `result`: done, sent, refused."""

    index: int
    result: str
    detail: str = ""


class Auditor(Protocol):
    """Compares the two ends of a stream. `rules`: what it can look at; "rows" needs a view, the others
    don't."""

    rules: tuple[str, ...]

    async def parts(self) -> list[AuditPart]: ...

    def at_one_position(self) -> AbstractAsyncContextManager[AuditView]:
        """Raises AuditCannotBegin when there can be no such view now."""

    async def look(self, rule: str) -> list[Compared]:
        """What any other rule comes to."""

    async def repair(self, found: Sequence[Discrepancy]) -> list[Repaired]:
        """Mend, through the stream where rows are concerned; returns when the target has done it, or has
        refused. Nothing is mended that has come right meanwhile."""


# --- the kind itself --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stream:
    """One group's flow to one backup: all that a kind needs to build either end of it."""

    group: str
    backup: str
    settings: GroupSettings
    config: Config


class Moves(Protocol):
    """What a change of a group's roles does to the data, move by move. Each may be repeated, and leaves what
    it has done when it is called again. `stream`: a flow in the role of which a move speaks: the current one,
    or that to come, in which the new primary is the source.

    What can't be done is raised typed (RoleError and below); what may pass is retryable.
    """

    async def switchable(self, stream: Stream) -> list[Finding]:
        """What speaks against the source of the stream to come becoming one. Only looks."""

    async def fenced(self, stream: Stream) -> bool:
        """Whether no client can write to the source."""

    async def prepared(self, stream: Stream) -> tuple[int, bool, bool] | None:
        """What the source's database was made ready for last: the epoch, whether as source, whether it was
        opened to clients since. None: nothing, ever."""

    async def fence(
        self, stream: Stream, *, epoch: int, to: str, grace_s: float, ending: bool
    ) -> dict[str, Any]:
        """From its return on no client can write what the group carries: every commit is before that. Who
        writes may go on for `grace_s` seconds and is ended then. `ending`: so are all other clients.
        NotFenced, with everything as before, if not. `fenced`, `ended` (sessions), `superusers` (of these),
        `left` (what could not be refused)."""

    async def unfence(self, stream: Stream) -> None: ...

    async def mark(self, stream: Stream) -> tuple[int, dict[str, Any]]:
        """Of a fenced source: a position behind everything that a client has committed, and what `carry`
        needs beside the stream."""

    async def settled(self, stream: Stream) -> None:
        """NotDrained where a part of the target stands behind the rest."""

    async def carry(self, stream: Stream, final: dict[str, Any]) -> dict[str, Any]:
        """Bring what `mark` has told exactly to the target, which has applied everything."""

    async def prepare_source(self, stream: Stream, *, epoch: int) -> dict[str, Any]:
        """Let the stream to come begin, on a target that has applied everything and that no client writes.
        What `prepare_target` needs."""

    async def prepare_target(self, stream: Stream, *, epoch: int, begin: dict[str, Any]) -> None:
        """The target of the stream to come has everything before its beginning: note that."""

    async def unprepare(self, stream: Stream, *, source: bool) -> None:
        """Take back what was prepared on the stream's source, or its target."""

    async def open(self, stream: Stream, *, epoch: int) -> None:
        """From now on clients write to the source of the stream to come. It must be prepared for `epoch`."""

    async def leave(self, stream: Stream, *, source: bool) -> None:
        """Remove what the role before has left in the database of `stream`'s source: `source`, where it was
        the primary; else where it was a target and is the primary now."""


class Kind(Protocol):
    """What a kind's folder gives to the ends of a group. Building connects to nothing."""

    @property
    def moves(self) -> Moves: ...
    def capture(self, stream: Stream) -> Capture: ...
    def seed_source(self, stream: Stream) -> SeedSource: ...
    def seed_target(self, stream: Stream) -> SeedTarget: ...
    def decoder(self, stream: Stream) -> Decoder: ...
    def target(self, stream: Stream) -> Target: ...
    async def check(self, stream: Stream) -> list[Finding]:
        """What can't be replicated and why, what `group start` will change, what costs; changes nothing."""

    async def copy_left_behind(self, stream: Stream) -> list[Copied]:
        """Copy to the target, once, what is not carried as it changes, such as unlogged tables."""

    async def move_parts(
        self, stream: Stream, action: PartAction, parts: Sequence[str], reason: str
    ) -> list[dict[str, Any]]:
        """Ask the apply of the stream to hold, release or copy parts anew; `part` and `result` of each."""

    async def foreign_writes(
        self, stream: Stream, *, since_s: float | None, acknowledge: str | None
    ) -> list[dict[str, Any]]:
        """Writes on the target that no stream of Castling's made, the newest first: of the last `since_s`
        seconds, or those that nobody has acknowledged. `acknowledge`: who has seen what is returned."""

    async def open_clone(self, stream: Stream, identity: str) -> Clone:
        """Make a copy of the replica that can be written, and from which nothing reaches production or the
        replica; the stream's apply is away. Repeatable: a complete copy of that identity is found.
        Raises CloneFailed."""

    async def close_clone(self, stream: Stream, identity: str) -> bool:
        """Remove that copy and end what works in it; False when there was none."""

    async def clones(self, stream: Stream) -> list[str]:
        """The identities of the copies there are, complete or not."""

    def clone_environment(self, stream: Stream, clone: str, secrets: Path) -> dict[str, str]:
        """Variables by which a program finds the copy `clone` (its `Clone.database`). A secret that it needs
        is written into the file `secrets`, readable by its owner alone."""

    def auditor(self, stream: Stream) -> Auditor: ...

    async def compare_schema(self, stream: Stream) -> list[Finding]:
        """How the target's definitions differ from the source's; one OK finding if they don't. Only looks."""

    async def pool(self, pooler: PoolerSettings, action: PoolAction, primary: str) -> dict[str, Any]:
        """`pause`: clients of the pooler wait, and none has a transaction open. `resume`: they go on, at the
        node `primary`. Repeatable."""

    async def release(self, stream: Stream, *, failed: bool) -> bool:
        """No source end of the stream runs: let go what waits for it on the source. Repeatable.

        `failed`: the group should run, and can't; then the group's own choice holds.
        False when by that choice it goes on waiting. Raises what reaching the source raises.
        """

    async def forget(self, stream: Stream, *, target: bool = True) -> None:
        """Remove what the kind left on the source and target (slot, publication, progress); repeatable.
        `target`: False when the target is gone for good and is not asked."""


# --- pre-flight -------------------------------------------------------------------------------


class Severity(enum.StrEnum):
    REFUSED = "refused"  #: would be lost or would stop the group: it does not start
    WARNING = "warning"  #: works, with a cost or a limit the user should know
    CHANGE = "change"  #: what `group start` will change on the source or target
    OK = "ok"


@dataclass(frozen=True, slots=True)
class Copied:
    """What a copy on demand did with one object. `rows` None: not counted. `problem` empty: it was copied."""

    object: str
    rows: int | None
    problem: str


@dataclass(frozen=True, slots=True)
class Clone:
    """A copy of the replica that can be written. `position`: the source position at which it was taken;
    `shares_blocks`: it takes room only for what is changed in it, None: not known; `size`: of the replica,
    bytes; `opened_s`: how long it took until it could be written."""

    database: str
    position: int
    shares_blocks: bool | None
    size: int
    opened_s: float


@dataclass(frozen=True, slots=True)
class Finding:
    """One answer of the pre-flight check, about one object."""

    severity: Severity
    object: str  #: e.g. `public.orders` or `server east`
    code: str  #: stable word, e.g. `no-replica-identity`
    message: str
    hint: str = ""
    context: dict[str, Any] = field(default_factory=dict)
