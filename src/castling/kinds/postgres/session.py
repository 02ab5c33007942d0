"""The continuity token: everything by which a source, and a place in it, can be recognised.

It is the payload of each SESSION record, so the journal itself says which server, which
timeline and which slot its records came from.
"""

from __future__ import annotations

import msgspec

from castling.errors import ContinuityLost, DecodeError

__all__ = ["Session", "Source", "check_continuity", "slot_name"]


class Session(msgspec.Struct, frozen=True):
    """`start_lsn`: where this session of capture began; times and text are not part of it."""

    system_id: str
    timeline: int
    database: str
    slot: str
    publication: str
    server_version: int
    start_lsn: int
    binary: bool
    v: int = 1

    def encode(self) -> bytes:
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> Session:
        try:
            return msgspec.msgpack.decode(data, type=cls)
        except msgspec.DecodeError as error:
            raise DecodeError("the continuity token in the journal can't be read") from error


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


def slot_name(group: str, backup: str) -> str:
    """The slot of a stream: PostgreSQL allows lower case letters, digits and underscores, 63 of them."""
    name = f"castling_{group}_{backup}".replace("-", "_")
    assert len(name) <= 63, "a group's and a backup's name are too long for a slot's"
    return name


_RESEED = "find out what happened to the source; then seed anew: `castling group start GROUP --reseed`"


def check_continuity(source: Source, *, slot: str, resume: int, session: Session | None) -> None:
    """Whether capture may go on after log position `resume`. Pure. ContinuityLost says what differs.

    `session` None: nothing was captured yet, only the slot itself is looked at.
    """
    if session is not None:
        if session.system_id != source.system_id:
            raise ContinuityLost(
                f"the source is another server: system {source.system_id}, not {session.system_id}",
                hint=_RESEED,
            )
        if session.timeline != source.timeline:
            raise ContinuityLost(
                f"the source is on timeline {source.timeline}, the journal is of {session.timeline}:"
                " it was promoted or restored",
                hint=_RESEED,
            )
        if session.database != source.database:
            raise ContinuityLost(
                f"the journal is of database {session.database}, not {source.database}", hint=_RESEED
            )
    if source.confirmed_lsn is None:
        raise ContinuityLost(
            f"the replication slot {slot} is gone; what was committed since can't be told any more",
            hint=_RESEED,
        )
    if source.slot_plugin != "pgoutput" or source.slot_database != source.database:
        raise ContinuityLost(f"the slot {slot} is not the one made for this group", hint=_RESEED)
    if source.wal_status == "lost":
        raise ContinuityLost(
            f"the source has removed log that the slot {slot} still needed (max_slot_wal_keep_size)",
            hint=_RESEED,
        )
    if session is None:
        return
    if source.confirmed_lsn > resume:
        raise ContinuityLost(
            f"the slot {slot} begins at {_lsn(source.confirmed_lsn)}, the journal ends at {_lsn(resume)}:"
            " the slot was made anew or advanced by somebody else",
            hint=_RESEED,
        )
    if source.flush_lsn < resume:
        raise ContinuityLost(
            f"the source's log ends at {_lsn(source.flush_lsn)}, before the journal's end at {_lsn(resume)}:"
            " it was restored to an older state",
            hint=_RESEED,
        )


def _lsn(lsn: int) -> str:
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"
