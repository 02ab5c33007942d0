"""The continuity token: everything by which a source, and a place in it, can be recognised.

It is the payload of each SESSION record, so the journal itself says which server, which
timeline and which slot its records came from.

PostgreSQL gives a slot no identity of its own. What is acknowledged to the source never exceeds
what the journal holds, so a slot that stands beyond the journal's end was made anew or moved by
somebody else; and the publication carries, as its comment, where the stream's slot began.
"""

from __future__ import annotations

import hashlib
import re

import msgspec

from castling.errors import ContinuityLost, DecodeError
from castling.kinds.postgres.giving_up import given_up
from castling.kinds.postgres.lsn import lsn_text, parse_lsn
from castling.kinds.postgres.promotion import promotion_problem

__all__ = [
    "RESEED",
    "Published",
    "Session",
    "Source",
    "check_continuity",
    "check_published",
    "created_comment",
    "created_lsn",
    "remembered",
    "slot_name",
]

RESEED = "find out what happened to the source; then seed anew: `castling group start GROUP --reseed`"

#: more published tables than this are remembered by a digest alone (a token is limited to 32 KiB)
_TABLES_MAX = 4000
_VERSION = 1


class Session(msgspec.Struct, frozen=True):
    """`start_lsn`: where this session of capture began. `created_lsn`: where the slot was made.

    `tables`: identifiers of the published tables, empty when there are too many; `tables_digest` of all.
    `rests`: it begins where the source had nothing more for us, and not at a commit's end; the last commit
    before it ended at `last_commit`.
    """

    system_id: str
    timeline: int
    database: str
    slot: str
    publication: str
    server_version: int
    start_lsn: int
    binary: bool
    created_lsn: int | None = None
    tables: list[int] = []
    tables_digest: str = ""
    rests: bool = False
    last_commit: int | None = None
    v: int = _VERSION

    def encode(self) -> bytes:
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> Session:
        """DecodeError when it is no token, or one of a version that this release does not know."""
        try:
            found = msgspec.msgpack.decode(data, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise DecodeError("the continuity token in the journal can't be read") from error
        if found.v != _VERSION:
            raise DecodeError(f"the continuity token in the journal is of version {found.v}, not {_VERSION}")
        return found


class Source(msgspec.Struct, frozen=True):
    """What the server says of itself and of the slot now. LSNs as integers; None: no such slot."""

    system_id: str
    timeline: int
    database: str
    server_version: int
    flush_lsn: int
    slot_plugin: str | None
    slot_database: str | None
    confirmed_lsn: int | None
    wal_status: str | None
    created_lsn: int | None = None
    #: how much log was kept for the slot when it was given up on purpose
    given_up: int | None = None
    #: the slot was kept in step by a standby, which this server was
    slot_synced: bool = False
    #: the slot is kept in step by standbys that are set to
    slot_failover: bool = False
    #: where the server left the timeline that the journal was written from
    left_at: int | None = None


class Published(msgspec.Struct, frozen=True):
    """What the publication holds now, by table identifier. `existing`: of those that were asked for,
    the tables that are still there; `whole`: it publishes every operation, and every row and column but what
    the group was to leave out when it was made. `noted`: what it should hold, as the triggers of carried
    schema changes have noted it; None: they have not."""

    tables: list[int]
    existing: list[int]
    whole: bool
    noted: list[int] | None = None


def slot_name(group: str, backup: str) -> str:
    """What a stream is called on the source: its slot, its publication and its standby name.

    PostgreSQL allows lower case letters, digits and underscores, 63 of them. A name that has to be
    changed for that, or could be read in two ways (group `a_b` to `c`, group `a` to `b_c`), gets a
    digest, so that no two streams meet in one name.
    """
    name = re.sub(r"[^a-z0-9]", "_", f"castling_{group}_{backup}")
    if re.fullmatch(r"castling_[a-z0-9]+_[a-z0-9]+", f"castling_{group}_{backup}") and len(name) <= 63:
        return name
    return f"{name[:54]}_{hashlib.sha256(f'{group}/{backup}'.encode()).hexdigest()[:8]}"


def created_comment(lsn: int, narrowing: str = "") -> str:
    """The publication's comment: where the slot of its stream began, and what is said of narrowed tables."""
    return f"castling: the stream begins at {lsn_text(lsn)}{narrowing}"


def created_lsn(comment: str | None) -> int | None:
    """The reverse of `created_comment`; None for anything else."""
    found = re.fullmatch(r"castling: the stream begins at ([0-9A-F]+/[0-9A-F]+)(; .*)?", comment or "")
    return parse_lsn(found.group(1)) if found else None


def _digest(tables: list[int]) -> str:
    return hashlib.sha256(",".join(map(str, sorted(tables))).encode()).hexdigest()[:16]


def remembered(tables: list[int]) -> tuple[list[int], str]:
    """What a token says of the published tables: identifiers, unless too many, and a digest."""
    return sorted(tables) if len(tables) <= _TABLES_MAX else [], _digest(tables)


def check_continuity(source: Source, *, slot: str, resume: int, session: Session | None) -> None:
    """Whether capture may go on after log position `resume`. Pure. ContinuityLost says what differs,
    LogGivenUp that it was on purpose.

    `session` None: the journal is empty, so the slot must not have moved since it was made.
    """
    if session is not None:
        _check_server(source, session, resume)
    if source.given_up is not None:
        raise given_up(slot, source.given_up)
    if source.confirmed_lsn is None:
        raise ContinuityLost(
            f"the replication slot {slot} is gone; what was committed since can't be told any more",
            hint=RESEED,
        )
    if source.slot_plugin != "pgoutput" or source.slot_database != source.database:
        raise ContinuityLost(f"the slot {slot} is not the one made for this group", hint=RESEED)
    if source.wal_status == "lost":
        raise ContinuityLost(
            f"the source has removed log that the slot {slot} still needed (max_slot_wal_keep_size)",
            hint=RESEED,
        )
    if session is None:
        if source.created_lsn is not None and source.confirmed_lsn != source.created_lsn:
            raise ContinuityLost(
                f"the journal on the backup is empty, but its stream began at {lsn_text(source.created_lsn)}"
                f" and the slot {slot} stands at {lsn_text(source.confirmed_lsn)} already",
                hint=RESEED,
            )
        return
    if source.confirmed_lsn > resume:
        raise ContinuityLost(
            f"the slot {slot} begins at {lsn_text(source.confirmed_lsn)}, the journal ends at"
            f" {lsn_text(resume)}: the slot was made anew or advanced by somebody else",
            hint=RESEED,
        )
    if source.flush_lsn < resume:
        raise ContinuityLost(
            f"the source's log ends at {lsn_text(source.flush_lsn)}, before the journal's end at"
            f" {lsn_text(resume)}: it was restored to an older state",
            hint=RESEED,
        )


def _check_server(source: Source, session: Session, resume: int) -> None:
    if session.system_id != source.system_id:
        raise ContinuityLost(
            f"the source is another server: system {source.system_id}, not {session.system_id}",
            hint=RESEED,
        )
    if session.timeline != source.timeline:
        problem = promotion_problem(
            journal=session.timeline,
            server=source.timeline,
            left_at=source.left_at,
            resume=resume,
            has_slot=source.confirmed_lsn is not None,
            is_synced=source.slot_synced and source.slot_failover,
        )
        if problem is not None:
            raise ContinuityLost(problem, hint=RESEED)
    if session.database != source.database:
        raise ContinuityLost(
            f"the journal is of database {session.database}, not {source.database}", hint=RESEED
        )
    if session.created_lsn != source.created_lsn and None not in (session.created_lsn, source.created_lsn):
        raise ContinuityLost(
            "the stream was begun anew since this journal was written: it belongs to an older slot",
            hint=RESEED,
        )


def check_published(found: Published, *, publication: str, session: Session) -> None:
    """Whether the publication still is what the journal was written from. Pure. Raises ContinuityLost.

    A table that was dropped takes itself out of a publication; one that is still there and no
    longer published has lost changes.
    """
    if not found.whole:
        raise ContinuityLost(
            f"the publication {publication} was changed: it no longer publishes everything that it did of its"
            " tables",
            hint=RESEED,
        )
    if found.noted is not None:
        _check_listed(set(found.tables), set(found.noted), set(found.noted), publication)
        return
    if not session.tables:
        if session.tables_digest and session.tables_digest != _digest(found.tables):
            raise ContinuityLost(
                f"the publication {publication} was changed: other tables are published", hint=RESEED
            )
        return
    _check_listed(set(found.tables), set(session.tables), set(found.existing), publication)


def _check_listed(tables: set[int], known: set[int], needed: set[int], publication: str) -> None:
    if tables - known:
        raise ContinuityLost(
            f"tables were added to the publication {publication} that were never copied", hint=RESEED
        )
    if needed - tables:
        raise ContinuityLost(
            f"tables were taken out of the publication {publication}; their changes since are lost",
            hint=RESEED,
        )
