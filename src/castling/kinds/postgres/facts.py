"""What the check asked the two servers, as plain values, and the words in which it answers."""

from __future__ import annotations

from dataclasses import dataclass, field

from castling.kinds.base import Finding, Severity
from castling.kinds.postgres.catalog import Table
from castling.kinds.postgres.definitions import Thing
from castling.kinds.postgres.narrowing_trial import Tried
from castling.kinds.postgres.sequence_watch import SourceSequence

__all__ = ["Activity", "SourceFacts", "StandbyFacts", "TargetFacts", "refused", "warning"]


@dataclass(frozen=True, slots=True)
class Activity:
    """Updates and deletes of a table, and over how many seconds they were counted."""

    changes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class StandbyFacts:
    """A physical standby that streams. `slot` None: without one. `feeds_back`: it holds back the primary's
    clean-up. `is_awaited`: no failover slot gets ahead of it. `syncs`: some standby keeps slots in step."""

    name: str
    slot: str | None
    feeds_back: bool
    is_awaited: bool
    syncs: bool


@dataclass(slots=True)
class SourceFacts:
    """What was asked of the source. Settings as PostgreSQL writes them."""

    version: int = 0
    settings: dict[str, str] = field(default_factory=dict)
    senders_free: int = 0
    slots_free: int = 0
    may_replicate: bool = False
    may_set_names: bool = False
    in_recovery: bool = False
    has_slot: bool = False
    tables: list[Table] = field(default_factory=list)
    sequences: list[SourceSequence] = field(default_factory=list)
    outside: list[Thing] = field(default_factory=list)
    #: what the definitions need outside of the database, with the statements that make it
    roles_needed: dict[str, str] = field(default_factory=dict)
    tablespaces: list[str] = field(default_factory=list)
    large_objects: int = 0
    may_read_large_objects: bool = True
    activity: dict[int, Activity] = field(default_factory=dict)
    foreign_keys: list[tuple[str, str, str]] = field(default_factory=list)
    prepared: int = 0
    #: physical standbys that stream from it
    standbys: list[StandbyFacts] = field(default_factory=list)
    #: what publishing only some rows or columns of a table would ask of it
    tried: list[Tried] = field(default_factory=list)
    #: tables of which a publication, whosever, publishes some columns only
    column_lists: dict[int, str] = field(default_factory=dict)
    #: by extension
    extension_schemas: dict[str, str] = field(default_factory=dict)
    #: what tells of schema changes is installed for this stream
    has_schema_triggers: bool = False


@dataclass(slots=True)
class TargetFacts:
    version: int = 0
    settings: dict[str, str] = field(default_factory=dict)
    may_replicate: bool = False
    outside: list[Thing] = field(default_factory=list)
    extensions: dict[str, set[str]] = field(default_factory=dict)
    roles: set[str] = field(default_factory=set)
    tablespaces: set[str] = field(default_factory=set)
    sequences: set[str] = field(default_factory=set)
    schemas: set[str] = field(default_factory=set)
    tables: dict[str, Table] = field(default_factory=dict)
    filled: set[str] = field(default_factory=set)
    ours: set[str] = field(default_factory=set)
    #: tables that other groups fill, and which group
    taken: dict[str, str] = field(default_factory=dict)
    #: the triggers that notice writes of others are there
    watched: bool = False
    #: the server has the language in which they are written
    may_watch: bool = True


def refused(object_: str, code: str, message: str, hint: str = "") -> Finding:
    return Finding(Severity.REFUSED, object_, code, message, hint)


def warning(object_: str, code: str, message: str, hint: str = "") -> Finding:
    return Finding(Severity.WARNING, object_, code, message, hint)
