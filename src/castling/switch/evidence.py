"""What a run has shown, in one JSON: measured figures, who decided what, what each step found. Pure.

Nothing is estimated: what was not measured is None. `pause_s` is the longest that a client may have been
kept from writing: from the first pooler's pause, or else from the fence, until clients were let go, or else
until the new primary was open; when the run was rolled back, until the fence was undone.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from castling.switch.run import Run, RunStatus, Unit
from castling.switch.steps import nodes_of

__all__ = ["SUMMARY", "evidence", "figures", "summary"]

Json = dict[str, Any]
#: the fields of a line of the history
SUMMARY = (
    "run", "application", "procedure", "title", "status", "acknowledged_by", "blocks", "asks", "old", "new",
    "coordinator", "by", "created_ns", "ended_ns", "duration_s", "pause_s", "rto_s", "rpo_s",
)  # fmt: skip


def summary(run: Run) -> Json:
    """A line of the history."""
    return {
        "run": run.id,
        "application": run.application,
        "procedure": run.procedure,
        "title": run.title,
        "status": run.status.value,
        "acknowledged_by": run.acknowledged_by,
        "blocks": run.blocks,
        "asks": run.asks,
        "old": run.old,
        "new": run.new,
        "coordinator": run.coordinator,
        "by": run.by,
        "created_ns": run.created_ns,
        "ended_ns": run.ended_ns,
        **figures(run),
    }


def figures(run: Run) -> Json:
    """Seconds, as measured on the coordinator: `duration_s`, `pause_s`, `rto_s`; and `rpo_s`, what was
    lost."""
    over_ns = run.ended_ns or (run.changed_ns if run.status is RunStatus.FAILED else None)
    opened_ns = _last_ended(run, run.opens) if run.opens else None
    return {
        "duration_s": _seconds(run.created_ns, over_ns),
        "pause_s": _pause(run, opened_ns),
        "rto_s": _seconds(run.created_ns, opened_ns),
        "rpo_s": _rpo(run, opened_ns),
    }


def evidence(run: Run) -> Json:
    """The whole report; `digest` is the SHA-256 of the rest, encoded with sorted keys."""
    report: Json = {
        **summary(run),
        "groups": list(run.groups),
        "epochs": run.epochs,
        "aborted_by": run.asked_back_by,
        "overrides": list(run.overrides),
        "findings": list(run.findings),
        "steps": [_step(run, unit) for unit in run.units],
    }
    encoded = msgspec.json.encode(report, order="deterministic")
    return {**report, "digest": hashlib.sha256(encoded).hexdigest()}


def _step(run: Run, unit: Unit) -> Json:
    step = unit.step
    return {
        "number": step.number,
        "name": step.name,
        "title": step.title,
        "group": unit.group,
        "nodes": list(nodes_of(run, step)),
        "state": unit.state.value,
        "attempts": unit.attempts,
        "began_ns": unit.began_ns,
        "ended_ns": unit.ended_ns,
        "duration_s": _seconds(unit.began_ns, unit.ended_ns),
        "overridable": step.overridable,
        "approved_by": unit.approved_by,
        "overridden_by": unit.overridden_by,
        "reason": unit.reason,
        "evidence": unit.evidence,
        "error": unit.error,
        "outputs": list(unit.outputs),
    }


def _pause(run: Run, opened_ns: int | None) -> float | None:
    if run.procedure not in ("planned", "failback"):
        return None
    paused = [unit.began_ns for unit in _named(run, "pause") if (unit.evidence or {}).get("poolers")]
    fenced = [unit.began_ns for unit in _named(run, "fence")]
    began = [ns for ns in (paused or fenced) if ns is not None]
    let_go_ns = _last_ended(run, "resume") if paused else opened_ns
    if run.back:
        let_go_ns = run.ended_ns
    return _seconds(min(began), let_go_ns) if began else None


def _rpo(run: Run, opened_ns: int | None) -> float | None:
    """Nothing is lost where the two positions were proven equal; else what the loss was said to be at
    most."""
    if opened_ns is None:
        return None
    if all(unit.evidence for unit in _named(run, "prove")) and _named(run, "prove"):
        return 0.0
    windows = [unit.evidence.get("window_s") for unit in _named(run, "loss")]
    known = [float(window) for window in windows if window is not None]
    return max(known) if known and len(known) == len(windows) else None


def _named(run: Run, step: str) -> list[Unit]:
    return [unit for unit in run.units if unit.step.name == step]


def _last_ended(run: Run, step: str) -> int | None:
    ended = [unit.ended_ns for unit in _named(run, step)]
    return None if not ended or None in ended else max(ns for ns in ended if ns is not None)


def _seconds(began_ns: int | None, ended_ns: int | None) -> float | None:
    return None if began_ns is None or ended_ns is None else round((ended_ns - began_ns) / 1e9, 3)
