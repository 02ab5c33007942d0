"""One run of a procedure, and the pure function (run, event) -> run. No clock, no I/O.

A run carries its own copy of the steps, so that one which is resumed after an upgrade goes on as it was
begun. A *unit* is one step for one group (or once for the application). Which units may begin follows from
the data: a unit waits for all before it that concern its group or the whole application, and at a barrier
for all.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from castling.errors import NotNow
from castling.switch.procedure import OnError, Procedure, Step

__all__ = [
    "Event",
    "Happened",
    "Run",
    "RunStatus",
    "Unit",
    "UnitState",
    "advance",
    "begin",
    "ready",
    "to_undo",
]

Json = dict[str, Any]


class UnitState(enum.StrEnum):
    PENDING = "pending"
    WAITING = "waiting"  #: for a person's approval
    ACTIVE = "active"
    DONE = "done"
    FAILED = "failed"
    OVERRIDDEN = "overridden"
    SKIPPED = "skipped"
    ROLLED_BACK = "rolled-back"


class RunStatus(enum.StrEnum):
    ACTIVE = "active"
    WAITING = "waiting"  #: for a person: `asks` says for what
    ROLLING_BACK = "rolling-back"
    FAILED = "failed"  #: can be resumed, or acknowledged and so ended
    COMPLETED = "completed"
    COMPLETED_WITH_ERRORS = "completed-with-errors"
    ROLLED_BACK = "rolled-back"  #: after a failure; all that was done is undone
    ABORTED = "aborted"  #: the same, because a person said so


_OVER = (UnitState.DONE, UnitState.OVERRIDDEN, UnitState.SKIPPED)
_ENDED = (RunStatus.COMPLETED, RunStatus.COMPLETED_WITH_ERRORS, RunStatus.ROLLED_BACK, RunStatus.ABORTED)


class Unit(msgspec.Struct, frozen=True, kw_only=True):
    """`evidence`: what the step found and did, from its own words; later steps may need it. `outputs`: of the
    user's scripts. `attempts`: how often it was begun."""

    step: Step
    group: str | None
    state: UnitState = UnitState.PENDING
    attempts: int = 0
    began_ns: int | None = None
    ended_ns: int | None = None
    evidence: Json = {}
    error: Json | None = None
    outputs: tuple[Json, ...] = ()
    approved_by: str = ""
    overridden_by: str = ""
    reason: str = ""


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """`old`, `new`: the primary before and after; `epochs`: by group, that of the new primary. `back`: the
    run is on its way back. `findings`: what the preflight said when it was started."""

    id: str
    application: str
    procedure: str
    title: str
    opens: str
    reverts: bool
    groups: tuple[str, ...]
    old: str
    new: str
    coordinator: str
    epochs: dict[str, int]
    by: str
    created_ns: int
    units: tuple[Unit, ...]
    findings: tuple[Json, ...] = ()
    overrides: tuple[str, ...] = ()
    status: RunStatus = RunStatus.ACTIVE
    back: bool = False
    asked_back_by: str = ""
    asks: str = ""
    changed_ns: int = 0
    ended_ns: int | None = None
    acknowledged_by: str = ""

    @property
    def ended(self) -> bool:
        """Nothing more will happen to it, but that it is acknowledged."""
        return self.status in _ENDED or (self.status is RunStatus.FAILED and bool(self.acknowledged_by))

    @property
    def blocks(self) -> bool:
        """No other run of the same procedure and application may start before a person has looked at it."""
        went_wrong = self.status in (RunStatus.FAILED, RunStatus.ROLLED_BACK)
        return not self.ended or (went_wrong and not self.acknowledged_by)

    @property
    def opened(self) -> bool:
        """The point of no return is behind it, or may be, for at least one group."""
        return any(unit.step.name == self.opens and unit.attempts > 0 for unit in self.units)

    def facts(self, group: str | None) -> Json:
        """By step name, what the ended steps of the group and of the whole application found."""
        return {
            unit.step.name: unit.evidence
            for unit in self.units
            if unit.evidence and unit.group in (group, None)
        }


class Happened(enum.StrEnum):
    BEGAN = "began"
    DONE = "done"
    FAILED = "failed"
    UNDONE = "undone"
    UNDO_FAILED = "undo-failed"
    APPROVED = "approved"
    OVERRIDDEN = "overridden"
    RESUMED = "resumed"
    INTERRUPTED = "interrupted"
    ABORTED = "aborted"
    ACKNOWLEDGED = "acknowledged"


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """`unit`: its place in the run, where the event is about one. `untouched`: the step failed, and it is
    certain that it has changed nothing."""

    what: Happened
    at_ns: int
    unit: int | None = None
    by: str = ""
    reason: str = ""
    evidence: Json = {}
    error: Json | None = None
    outputs: tuple[Json, ...] = ()
    untouched: bool = False


def begin(
    procedure: Procedure,
    *,
    identity: str,
    application: str,
    groups: Sequence[str],
    old: str,
    new: str,
    coordinator: str,
    epochs: dict[str, int],
    by: str,
    at_ns: int,
    findings: Sequence[Json] = (),
    overrides: Sequence[str] = (),
) -> Run:
    """A run that has not done anything yet."""
    units = tuple(
        Unit(step=step, group=group)
        for step in procedure.steps
        for group in (groups if step.per_group else (None,))
    )
    run = Run(
        id=identity,
        application=application,
        procedure=procedure.id,
        title=procedure.title,
        opens=procedure.opens,
        reverts=procedure.reverts,
        groups=tuple(groups),
        old=old,
        new=new,
        coordinator=coordinator,
        epochs=dict(epochs),
        by=by,
        created_ns=at_ns,
        changed_ns=at_ns,
        units=units,
        findings=tuple(findings),
        overrides=tuple(overrides),
    )
    return _settled(run, at_ns)


def ready(run: Run) -> list[int]:
    """The units that may begin now; of an active run also those that were interrupted."""
    if run.status is not RunStatus.ACTIVE or _broken(run):
        return []
    return [
        place
        for place, unit in enumerate(run.units)
        if unit.state in (UnitState.PENDING, UnitState.ACTIVE) and _may_begin(run, place)
    ]


def to_undo(run: Run) -> int | None:
    """The unit that is undone next; None when nothing is left of what the run did."""
    if not run.back:
        return None
    for place in range(len(run.units) - 1, -1, -1):
        unit = run.units[place]
        touched = unit.state in (UnitState.DONE, UnitState.FAILED, UnitState.ACTIVE, UnitState.OVERRIDDEN)
        if touched and unit.attempts and unit.step.undo:
            return place
    return None


def advance(run: Run, event: Event) -> Run:
    """The run after `event`; NotNow when the event can't be in this state."""
    return _settled(_changed(run, event), event.at_ns)


# --- one event --------------------------------------------------------------------------------


def _changed(run: Run, event: Event) -> Run:
    match event.what:
        case Happened.BEGAN:
            unit = _unit(run, event, UnitState.PENDING, UnitState.ACTIVE)
            return _with(
                run,
                event,
                state=UnitState.ACTIVE,
                attempts=unit.attempts + 1,
                began_ns=unit.began_ns or event.at_ns,
                ended_ns=None,
                error=None,
            )
        case Happened.DONE:
            unit = _unit(run, event, UnitState.ACTIVE)
            outputs = unit.outputs + event.outputs
            return _with(
                run,
                event,
                state=UnitState.DONE,
                ended_ns=event.at_ns,
                evidence=event.evidence,
                outputs=outputs,
            )
        case Happened.FAILED:
            unit = _unit(run, event, UnitState.ACTIVE)
            outputs = unit.outputs + event.outputs
            return _with(
                run,
                event,
                state=UnitState.FAILED,
                attempts=0 if event.untouched else unit.attempts,
                ended_ns=event.at_ns,
                error=event.error,
                outputs=outputs,
            )
        case Happened.UNDONE:
            _refuse_unless(run.back, run, "is not on its way back")
            outputs = _at(run, event).outputs + event.outputs
            return _with(run, event, state=UnitState.ROLLED_BACK, outputs=outputs)
        case Happened.UNDO_FAILED:
            _refuse_unless(run.back, run, "is not on its way back")
            outputs = _at(run, event).outputs + event.outputs
            run = _with(run, event, error=event.error, outputs=outputs)
            return msgspec.structs.replace(run, status=RunStatus.FAILED)
        case Happened.APPROVED:
            _unit(run, event, UnitState.WAITING)
            return _with(run, event, state=UnitState.PENDING, approved_by=event.by, reason=event.reason)
        case Happened.OVERRIDDEN:
            return _overridden(run, event)
        case Happened.RESUMED:
            return _resumed(run, event)
        case Happened.INTERRUPTED:
            _refuse_unless(not run.ended, run, f"is {run.status}")
            return msgspec.structs.replace(run, status=RunStatus.WAITING, asks=event.reason)
        case Happened.ABORTED:
            return _aborted(run, event)
        case Happened.ACKNOWLEDGED:
            allowed = run.status in (RunStatus.FAILED, *_ENDED)
            _refuse_unless(allowed, run, f"is {run.status}; `abort` or `resume` ends it")
            ended_ns = run.ended_ns or event.at_ns
            return msgspec.structs.replace(run, acknowledged_by=event.by, ended_ns=ended_ns)


def _overridden(run: Run, event: Event) -> Run:
    unit = _unit(run, event, UnitState.FAILED, UnitState.WAITING)
    _refuse_unless(not run.back, run, "is on its way back")
    if not unit.step.overridable:
        raise NotNow(
            f"step {unit.step.number} {unit.step.name} is required: nobody can go on without it",
            hint="mend the cause and resume, or abort",
        )
    run = _with(
        run,
        event,
        state=UnitState.OVERRIDDEN,
        overridden_by=event.by,
        reason=event.reason,
        ended_ns=event.at_ns,
    )
    return msgspec.structs.replace(run, status=RunStatus.ACTIVE, asks="")


def _resumed(run: Run, event: Event) -> Run:
    """Again from where it stands: a unit that failed is tried once more."""
    waits = run.status in (RunStatus.FAILED, RunStatus.WAITING) and not run.acknowledged_by
    _refuse_unless(waits, run, f"is {run.status}")
    if run.back:
        return msgspec.structs.replace(run, status=RunStatus.ROLLING_BACK)
    units = tuple(
        msgspec.structs.replace(unit, state=UnitState.PENDING)
        if unit.state is UnitState.FAILED and unit.step.on_error is not OnError.CONTINUE
        else unit
        for unit in run.units
    )
    return msgspec.structs.replace(run, status=RunStatus.ACTIVE, asks="", units=units)


def _aborted(run: Run, event: Event) -> Run:
    _refuse_unless(not run.ended, run, f"is {run.status}")
    if run.opened:
        raise NotNow(
            f"run {run.id} can't be aborted: step {run.opens} was begun, and {run.new} may be the primary",
            hint="`castling switch resume` completes it; a switch back is a run of its own",
        )
    return msgspec.structs.replace(
        run, back=True, status=RunStatus.ROLLING_BACK, asked_back_by=event.by, asks=""
    )


# --- what follows from the units --------------------------------------------------------------


def _settled(run: Run, at_ns: int) -> Run:
    """`run` with the status that its units make, and with those waiting that need an approval now."""
    run = msgspec.structs.replace(run, changed_ns=at_ns)
    if run.ended or run.status is RunStatus.FAILED:
        return run
    if any(unit.state is UnitState.ACTIVE for unit in run.units) and not run.back:
        return run
    if run.back:
        return _settled_back(run, at_ns)
    broken = _broken(run)
    if broken is not None:
        return _settled_broken(run, broken, at_ns)
    if run.status is RunStatus.WAITING and run.asks:
        return run  # interrupted
    if all(unit.state in _OVER or unit.state is UnitState.FAILED for unit in run.units):
        return _completed(run, at_ns)
    units = tuple(
        msgspec.structs.replace(unit, state=UnitState.WAITING)
        if unit.state is UnitState.PENDING
        and unit.step.approval
        and not unit.approved_by
        and _may_begin(run, place)
        else unit
        for place, unit in enumerate(run.units)
    )
    run = msgspec.structs.replace(run, units=units, status=RunStatus.ACTIVE)
    can_go_on = bool(ready(run))
    return msgspec.structs.replace(run, status=RunStatus.ACTIVE if can_go_on else RunStatus.WAITING)


def _completed(run: Run, at_ns: int) -> Run:
    smooth = all(unit.state in (UnitState.DONE, UnitState.SKIPPED) for unit in run.units)
    status = RunStatus.COMPLETED if smooth else RunStatus.COMPLETED_WITH_ERRORS
    return msgspec.structs.replace(run, status=status, ended_ns=at_ns)


def _settled_broken(run: Run, unit: Unit, at_ns: int) -> Run:
    if unit.step.on_error is OnError.ASK:
        asks = f"step {unit.step.number} {unit.step.name} failed: resume, override or abort"
        return msgspec.structs.replace(run, status=RunStatus.WAITING, asks=asks)
    if run.reverts and not run.opened:
        return _settled_back(msgspec.structs.replace(run, back=True, status=RunStatus.ROLLING_BACK), at_ns)
    return msgspec.structs.replace(run, status=RunStatus.FAILED)


def _settled_back(run: Run, at_ns: int) -> Run:
    if run.status is not RunStatus.ROLLING_BACK or to_undo(run) is not None:
        return run
    units = tuple(
        msgspec.structs.replace(unit, state=UnitState.SKIPPED)
        if unit.state in (UnitState.PENDING, UnitState.WAITING, UnitState.ACTIVE)
        else unit
        for unit in run.units
    )
    status = RunStatus.ABORTED if run.asked_back_by else RunStatus.ROLLED_BACK
    return msgspec.structs.replace(run, units=units, status=status, ended_ns=at_ns)


def _broken(run: Run) -> Unit | None:
    """The first unit that failed and keeps the run from going on; one that asks counts last."""
    failed = [
        unit
        for unit in run.units
        if unit.state is UnitState.FAILED and unit.step.on_error is not OnError.CONTINUE
    ]
    return min(failed, key=lambda unit: unit.step.on_error is OnError.ASK, default=None)


def _may_begin(run: Run, place: int) -> bool:
    mine = run.units[place]
    return all(_is_behind(unit) for unit in _before(run, place) if _concerns(unit, mine))


def _before(run: Run, place: int) -> Iterator[Unit]:
    mine = run.units[place]
    return (unit for unit in run.units[:place] if unit.step.number < mine.step.number)


def _concerns(earlier: Unit, mine: Unit) -> bool:
    return mine.group is None or earlier.group is None or earlier.group == mine.group or mine.step.barrier


def _is_behind(unit: Unit) -> bool:
    tolerated = unit.state is UnitState.FAILED and unit.step.on_error is OnError.CONTINUE
    return unit.state in _OVER or tolerated


# --- small things -----------------------------------------------------------------------------


def _at(run: Run, event: Event) -> Unit:
    if event.unit is None or not 0 <= event.unit < len(run.units):
        raise NotNow(f"run {run.id} has no such step")
    return run.units[event.unit]


def _unit(run: Run, event: Event, *states: UnitState) -> Unit:
    unit = _at(run, event)
    if unit.state not in states:
        raise NotNow(f"step {unit.step.number} {unit.step.name} of run {run.id} is {unit.state}")
    return unit


def _with(run: Run, event: Event, **changes: Any) -> Run:
    assert event.unit is not None
    units = list(run.units)
    units[event.unit] = msgspec.structs.replace(units[event.unit], **changes)
    return msgspec.structs.replace(run, units=tuple(units))


def _refuse_unless(allowed: bool, run: Run, why: str) -> None:
    if not allowed:
        raise NotNow(f"run {run.id} {why}")
