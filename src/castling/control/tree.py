"""The report tree of a group: one form for status, API, metrics. Pure.

Built from what each end says of itself. A figure that nobody knows is None and is shown
as unknown; a node that does not answer makes its ends unknown, never healthy.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from castling.config import Config
from castling.control.supervisor import EndStatus
from castling.errors import CastlingError
from castling.groups.role import Role
from castling.groups.topology import EndName, capture_node, group_settings
from castling.journal.record import Position

__all__ = ["STATES", "end_view", "group_tree", "unknown_end"]

#: worst first: a stream is as well as its worst end, a group as its worst stream
STATES = (
    "failed",
    "given-up",
    "journal-full",
    "unknown",
    "on-hold",
    "pausing",
    "seeding",
    "waiting",
    "starting",
    "stopped",
    "running",
)

Report = dict[str, Any]


def end_view(report: Report | None, status: EndStatus) -> Report:
    """One end: its report, made true by what the supervisor of its node sees.

    A report outlives its process. It speaks about now only if the process that wrote it is the one that
    runs, and has been heard of lately; else what stays is what a death does not change (`_LASTING`).
    """
    seen: Report = dict(report or {})
    said = seen.get("state")
    if status.state != "running":
        seen = _lasting(seen)
        seen["state"] = status.state
        if said not in ("failed", "stopped", None):
            seen["last_state"] = said
        if status.state == "stopped":
            seen["error"] = None
    elif seen.get("pid") != status.pid:
        # the process is there and has not written a report of its own yet: why it was started again stays
        cause = seen.get("error") if said == "failed" and status.restarts else None
        seen = {**_lasting(seen), "state": "starting", "detail": "", "error": cause}
    elif said == "unknown":
        seen = {**_lasting(seen), "state": said}
    seen["pid"] = status.pid
    seen["supervisor"] = status.state
    seen["restarts"] = status.restarts
    return seen


#: what is true of an end whose process is gone: how far it came, what it met, what stands on the target
_LASTING = (
    *("v", "group", "backup", "end", "node", "at_ns", "age_s", "last_state", "detail", "error"),
    *("positions", "offsets", "rpo", "apply_lag", "holds"),
)


def _lasting(report: Report) -> Report:
    return {name: report[name] for name in _LASTING if name in report}


def unknown_end(error: CastlingError) -> Report:
    return {"state": "unknown", "detail": str(error), "error": error.as_json(), "restarts": None}


def group_tree(
    config: Config,
    group: str,
    ends: dict[tuple[str, str], Report],
    *,
    role: Role | None = None,
    configured: str | None = None,
) -> Report:
    """`config`: as the current roles make it; `role`: the group's; `configured`: the primary that
    castling.toml names. `ends`: by (backup, end name). The documented form is `group` in
    docs/reference/json.md."""
    settings = group_settings(config, group)
    streams = [_stream(settings.delivery, backup, ends) for backup in settings.backups]
    for stream in streams:
        stream["nodes"] = {
            EndName.SOURCE: capture_node(settings),
            EndName.RECEIVE: stream["backup"],
            EndName.APPLY: stream["backup"],
        }
    return {
        "group": group,
        "kind": settings.kind,
        "primary": settings.primary,
        "backups": settings.backups,
        "configured_primary": configured or settings.primary,
        "epoch": None if role is None else role.epoch,
        "capture_on": capture_node(settings),
        "delivery": settings.delivery,
        "desired": next((end["desired"] for end in ends.values() if end.get("desired")), "new"),
        "state": _worst(stream["state"] for stream in streams),
        "streams": streams,
    }


def _stream(delivery: str, backup: str, ends: dict[tuple[str, str], Report]) -> Report:
    found = {name: ends.get((backup, name), {"state": "unknown"}) for name in EndName}
    source, receive, apply = (found[name] for name in EndName)
    states = [str(end["state"]) for end in found.values()]
    if receive["state"] == "running" and (receive.get("link") or {}).get("state") == "journal-full":
        states.append("journal-full")
    holds = _holds(apply, source)
    if holds:
        states.append("on-hold")
    return {
        "backup": backup,
        "state": _worst(states),
        "link": _link(source),
        "mode": _mode(delivery, source),
        "positions": _positions(source, receive, apply),
        "rpo_s": source.get("rpo_s"),
        "rpo": source.get("rpo"),
        "apply_lag_s": apply.get("apply_lag_s"),
        "apply_lag": apply.get("apply_lag"),
        "seed": source.get("seed"),
        "beside": _beside(found),
        "left_behind": (found[EndName.SOURCE].get("capture") or {}).get("left_behind"),
        "definitions": _definitions(found),
        "holds": holds,
        "audit": source.get("audit"),
        "foreign_writes": (apply.get("target") or {}).get("foreign_writes"),
        "warnings": _warnings(found) + [_held(hold) for hold in holds or ()],
        "ends": {str(name): end for name, end in found.items()},
    }


def _warnings(ends: dict[EndName, Report]) -> list[Report]:
    """What does not stop the stream, but leaves something unprotected or will stop it."""
    parts = [end.get(part) or {} for end in ends.values() for part in ("capture", "target")]
    parts += ends.values()
    return [warning for part in parts for warning in part.get("warnings") or ()]


#: by state of a part: code, what it does, the way out
_HELD = {
    "held": (
        "part-on-hold",
        "stands still",
        "mend the cause on the target, then `castling group release GROUP`;"
        " or copy it anew: `castling group resync GROUP`",
    ),
    "copying": ("part-on-hold", "is being copied anew", "it comes back by itself"),
    "releasing": ("part-on-hold", "is catching up", "it comes back by itself"),
    "lost": (
        "part-lost",
        "can come back by a new copy only",
        "`castling group resync GROUP`, or exclude it",
    ),
}


def _holds(apply: Report, source: Report) -> list[Report] | None:
    """The parts that stand behind, each with how far its new copy is (`copy`: None while there is none)."""
    holds = apply.get("holds")
    if holds is None:
        return None
    copies = {copy["part"]: copy for copy in source.get("copies") or ()}
    return [{**hold, "copy": copies.get(hold["part"])} for hold in holds]


def _held(hold: Report) -> Report:
    code, way, hint = _HELD.get(str(hold["state"]), _HELD["held"])
    return {"code": code, "message": f"{hold['part']} {way}: {hold['reason']}", "hint": hint}


def _beside(ends: dict[EndName, Report]) -> Report:
    """What is carried beside the changes themselves, by name: the source's figures and the target's."""
    found: Report = {}
    for end, part in ((EndName.SOURCE, "capture"), (EndName.APPLY, "target")):
        for name, figures in ((ends[end].get(part) or {}).get("beside") or {}).items():
            found[name] = {**found.get(name, {}), **figures}
    at_ns = ends[EndName.SOURCE].get("at_ns")
    for figures in found.values():
        figures["as_of_s"] = _age_s(figures, at_ns)
    return found


def _age_s(figures: Report, at_ns: int | None) -> float | None:
    """How old what the target has of it is, by the source's clock: as the source was when it was asked
    last, if all that it told has been applied; else as when it was asked for what was."""
    looked, told, applied = (figures.get(key) for key in ("looked_ns", "told_ns", "applied_ns"))
    is_current = told is None or (applied is not None and applied >= told)
    as_of = looked if is_current else applied
    return None if as_of is None or at_ns is None else max(0.0, (at_ns - as_of) / 1e9)


def _definitions(ends: dict[EndName, Report]) -> Report:
    """In what the target's definitions are not the source's; `differ` None when not both are known.

    Things outside of the schema are compared by name, and the target may have more of them.
    """
    source = (ends[EndName.SOURCE].get("capture") or {}).get("definitions")
    target = (ends[EndName.APPLY].get("target") or {}).get("definitions")
    if not source or not target:
        return {"differ": None, "as_of_ns": None}
    differ = []
    for kind, mine in sorted(source["outside"].items()):
        other = target["outside"].get(kind) or {}
        if isinstance(mine, dict) and isinstance(other, dict):
            differ += [f"{kind} {name}" for name, text in sorted(mine.items()) if other.get(name) != text]
        elif mine != other:
            differ.append(kind)
    # two versions of a server write the same definition differently
    by = "schema" if source.get("version") == target.get("version") else "schema_loosely"
    here, there = source[by], target[by]
    kinds = sorted(here.keys() | there.keys())
    differ += [f"{kind} definitions" for kind in kinds if here.get(kind) != there.get(kind)]
    return {"differ": differ, "as_of_ns": min(source["at_ns"], target["at_ns"])}


def _worst(states: Iterable[str]) -> str:
    return min(
        states, key=lambda state: STATES.index(state if state in STATES else "unknown"), default="unknown"
    )


def _positions(source: Report, receive: Report, apply: Report) -> Report:
    """What is applied was hardened, and what is hardened was captured, though the end that knows it first
    told it last."""
    applied = _position("applied", apply, source)
    hardened = _latest(_position("hardened", receive, source), applied)
    return {
        "captured": _latest(_position("captured", source), hardened) if source.get("positions") else None,
        "hardened": hardened,
        "applied": applied,
        "released": _position("released", apply, receive),
    }


def _latest(*positions: str | None) -> str | None:
    known = [each for each in positions if each is not None]
    return max(known, key=Position.parse, default=None)


def _position(name: str, *ends: Report) -> str | None:
    for end in ends:
        found = (end.get("positions") or {}).get(name)
        if found is not None:
            return str(found)
    return None


def _link(source: Report) -> str:
    if source["state"] in ("stopped", "failed", "pausing"):
        return "down"
    if source["state"] == "unknown":
        return "unknown"
    return str((source.get("link") or {}).get("state") or "unknown")


def _mode(delivery: str, source: Report) -> str:
    """`async`; of sync delivery what it protects now: `sync` only while commits wait for the backup."""
    if delivery == "async":
        return "async"
    sync = ((source.get("capture") or {}).get("sync")) or {}
    state = sync.get("state")
    return "sync" if state == "protected" else f"sync:{state or 'unknown'}"
