"""Every error that Castling raises on purpose.

    CastlingError
    ├── UsageError        2       how a command was called
    ├── FindingsExist     3       a check ran and found something
    ├── AuditCannotBegin  4       both ends can't be seen at one position now
    ├── AuditYields       5       an audit made room
    ├── ConfigError       10-19   configuration and local state
    ├── SourceError       20-29   the system that is captured
    ├── TargetError       30-39   the system that is written
    ├── JournalError      40-44   the journal on disk
    ├── LinkError         45-49   the link between nodes
    ├── RoleError         50-59   roles, epochs, fencing
    └── ProcedureError    60-69   procedures and their steps

The docstring of a class is its default message; `code` is stable and documented
(docs/reference/errors.md is generated from this file); `exit_code` says whose fault
it is; `retryable` says whether the same call may succeed later without anybody
acting. Messages never hold a password or a token: those who raise see to it.
"""

from __future__ import annotations

import inspect
from typing import Any, ClassVar


class CastlingError(Exception):
    """Castling could not do what was asked."""

    code: ClassVar[str] = "unexpected"
    exit_code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False

    def __init__(self, message: str | None = None, *, hint: str = "", **context: object) -> None:
        super().__init__(message or inspect.getdoc(type(self)))
        self.hint = hint
        self.context = context

    def as_json(self) -> dict[str, Any]:
        """The documented form of an error: code, message, hint, retryable, exit_code, context."""
        return {
            "code": self.code,
            "message": str(self),
            "hint": self.hint,
            "retryable": self.retryable,
            "exit_code": self.exit_code,
            "context": {key: _plain(value) for key, value in self.context.items()},
        }


def _plain(value: object) -> object:
    return value if isinstance(value, str | int | float | bool | list | dict | None) else str(value)


class UsageError(CastlingError):
    """The command was called in a way it does not understand."""

    code = "usage"
    exit_code = 2


class FindingsExist(CastlingError):
    """The check ran and found something that needs attention."""

    code = "findings-exist"
    exit_code = 3


class AuditCannotBegin(CastlingError):
    """The two ends can't be seen at one position now."""

    code = "audit-cannot-begin"
    exit_code = 4
    retryable = True


class AuditYields(CastlingError):
    """The audit lets go for now: the stream has to catch up, its time is over, or it was told to stop."""

    code = "audit-yields"
    exit_code = 5
    retryable = True


# --- configuration and local state ------------------------------------------------------------


class ConfigError(CastlingError):
    """The configuration can't be used."""

    code = "config-invalid"
    exit_code = 10


class StateError(CastlingError):
    """The local state of this node does not allow that."""

    code = "state-invalid"
    exit_code = 11


class NotInitialised(StateError):
    """This node has no Castling home yet."""

    code = "not-initialised"
    exit_code = 11


class SecretMissing(ConfigError):
    """A password was needed and none of its declared sources has one."""

    code = "secret-missing"
    exit_code = 12


class AccessDenied(CastlingError):
    """The caller is not known, or its role does not allow that."""

    code = "access-denied"
    exit_code = 13


class TooManyAttempts(AccessDenied):
    """Too many failed logins, or pages at once; wait a few minutes."""

    code = "too-many-attempts"
    exit_code = 13
    retryable = True


class AgentUnreachable(CastlingError):
    """The agent of a node does not answer."""

    code = "agent-unreachable"
    exit_code = 14
    retryable = True


class ToolMissing(StateError):
    """A program that this needs is not installed."""

    code = "tool-missing"
    exit_code = 15


class NotFound(CastlingError):
    """There is nothing of that name."""

    code = "not-found"
    exit_code = 16


class AlreadyRunning(StateError):
    """Another process already holds this end of the group."""

    code = "already-running"
    exit_code = 17
    retryable = True


class DeployRefused(StateError):
    """Something that the new configuration changes can't change now."""

    code = "deploy-refused"
    exit_code = 18


class StateUnsaved(StateError):
    """The local state could not be made durable; what it was before still holds."""

    code = "state-unsaved"
    exit_code = 19
    retryable = True


# --- source -----------------------------------------------------------------------------------


class SourceError(CastlingError):
    """The source can't be captured."""

    code = "source-error"
    exit_code = 20


class SourceUnreachable(SourceError):
    """The source does not answer."""

    code = "source-unreachable"
    exit_code = 21
    retryable = True


class SourceRefused(SourceUnreachable):
    """The source answers and does not let us in: user, password, database, or its rules for both."""

    code = "source-refused"
    exit_code = 28


class SpoolFailed(SourceError):
    """A large open transaction can't be kept on disk until it commits."""

    code = "spool-failed"
    exit_code = 27
    retryable = True


class ContinuityLost(SourceError):
    """The source is not the one, or not at the place, that the journal was written from."""

    code = "continuity-lost"
    exit_code = 22


class LogGivenUp(ContinuityLost):
    """The source has let its log go on purpose, for its own sake: the backup had not taken it (wal_limit)."""

    code = "log-given-up"
    exit_code = 26


class NotReplicable(SourceError):
    """Something in the source can't be replicated as configured."""

    code = "not-replicable"
    exit_code = 23


class SettingOverridden(SourceError):
    """A setting of the source is given by somebody else, and does not become what the group needs."""

    code = "setting-overridden"
    exit_code = 29


class DecodeError(SourceError):
    """A captured message does not follow its protocol; it is not guessed at."""

    code = "decode-failed"
    exit_code = 24


# --- target -----------------------------------------------------------------------------------


class TargetError(CastlingError):
    """The target can't be written."""

    code = "target-error"
    exit_code = 30


class TargetUnreachable(TargetError):
    """The target does not answer."""

    code = "target-unreachable"
    exit_code = 31
    retryable = True


class TargetRefused(TargetUnreachable):
    """The target answers and does not let us in: user, password, database, or its rules for both."""

    code = "target-refused"
    exit_code = 36


class TargetDiverged(TargetError):
    """The target does not hold the row that the source changed; applying on would hide it."""

    code = "target-diverged"
    exit_code = 32


class RowTooLarge(TargetError):
    """A row is larger than the group allows (`row_max`): applying it would take more memory than it may."""

    code = "row-too-large"
    exit_code = 30


class TargetForeign(TargetError):
    """The target's address leads to a database that is not the target: the source itself, or one that
    does not hold the copy."""

    code = "target-foreign"
    exit_code = 37


class PartsMoved(TargetError):
    """Parts of the target were put on hold or released; apply begins again where they need it."""

    code = "parts-moved"
    exit_code = 35
    retryable = True


class TargetNotEmpty(TargetError):
    """The target already holds rows that Castling did not put there."""

    code = "target-not-empty"
    exit_code = 33


class TargetTaken(TargetError):
    """Another group already fills a table of the target; two writers of one table would undo each other."""

    code = "target-taken"
    exit_code = 38


class SeedFailed(TargetError):
    """The first copy could not be completed."""

    code = "seed-failed"
    exit_code = 34
    retryable = True


class SeedLost(SeedFailed):
    """The unfinished first copy can't be gone on with; it is begun anew."""

    code = "seed-lost"
    exit_code = 39


class CloneFailed(TargetError):
    """The replica can't be copied for a rehearsal."""

    code = "clone-failed"
    exit_code = 30


# --- journal ----------------------------------------------------------------------------------


class JournalError(CastlingError):
    """The journal can't be read or written."""

    code = "journal-error"
    exit_code = 40


class JournalCorrupt(JournalError):
    """What was hardened in a journal is damaged or gone: this is rot, not a torn tail."""

    code = "journal-corrupt"
    exit_code = 41


class JournalGap(JournalError):
    """A position is missing from the journal; applying past it would lose changes."""

    code = "journal-gap"
    exit_code = 42


class JournalFull(JournalError):
    """The journal has no room left. What was acknowledged stays."""

    code = "journal-full"
    exit_code = 43
    retryable = True


class JournalVersion(JournalError):
    """The journal was written in a format that this version does not read."""

    code = "journal-version"
    exit_code = 44


# --- link -------------------------------------------------------------------------------------


class LinkError(CastlingError):
    """The link to the other node failed."""

    code = "link-failed"
    exit_code = 45
    retryable = True


class LinkForeign(LinkError):
    """The other side does not belong to this installation."""

    code = "link-foreign-certificate"
    exit_code = 46
    retryable = False


class LinkVersion(LinkError):
    """The other side speaks a protocol version that this one does not."""

    code = "link-version"
    exit_code = 47
    retryable = False


class LinkRefused(LinkError):
    """The other side refused the group or the node."""

    code = "link-refused"
    exit_code = 48
    retryable = False


class LinkProtocol(LinkError):
    """The other side broke the protocol; the connection was dropped."""

    code = "link-protocol"
    exit_code = 49


# --- procedures -------------------------------------------------------------------------------


class ProcedureError(CastlingError):
    """The procedure can't do that."""

    code = "procedure-error"
    exit_code = 60


class NotNow(ProcedureError):
    """The run is not in a state in which that can be done."""

    code = "not-now"
    exit_code = 61


class StepFailed(ProcedureError):
    """A step of the procedure failed, or was not done in its time."""

    code = "step-failed"
    exit_code = 62


class NotDone(ProcedureError):
    """A step is not done yet; it is looked at again until its time is over."""

    code = "not-done"
    exit_code = 63
    retryable = True


class SwitchRefused(ProcedureError):
    """The preflight found what has to be mended, or overridden for this one run, before anything moves."""

    code = "switch-refused"
    exit_code = 64


class SwitchBusy(ProcedureError):
    """A run concerns the same application or group and is not over, or failed and nobody has acknowledged
    it."""

    code = "switch-busy"
    exit_code = 65


class PoolerFailed(ProcedureError):
    """The pooler in front of the database does not do what a procedure asks of it."""

    code = "pooler-failed"
    exit_code = 66
    retryable = True


# --- roles ------------------------------------------------------------------------------------


class RoleError(CastlingError):
    """The role of this node does not allow that."""

    code = "role-error"
    exit_code = 50


class StaleEpoch(RoleError):
    """Records of an epoch that is over were refused: their sender is no longer the primary."""

    code = "stale-epoch"
    exit_code = 51


class BackupApart(RoleError):
    """The backup was the primary, and may hold commits that nobody else has: it waits to be reintroduced."""

    code = "backup-apart"
    exit_code = 52
    retryable = True


class NotFenced(RoleError):
    """The source still takes writes: it could not be fenced in time."""

    code = "not-fenced"
    exit_code = 53
    retryable = True


class NotDrained(RoleError):
    """The backup does not have yet what the source has committed."""

    code = "not-drained"
    exit_code = 54
    retryable = True


class NotSwitchable(RoleError):
    """The roles of this group can't be changed."""

    code = "not-switchable"
    exit_code = 55
