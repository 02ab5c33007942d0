"""What is looked at before a procedure moves anything. Pure: facts in, findings out.

A fact that is missing is unknown, and unknown does not pass a gate: a person may override it for one run. So
may they most of what is refused; what can't be right whatever a person says has no `overridable`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from castling.config import ApplicationSettings
from castling.config.rules import SCRIPTS
from castling.switch.scripts import NOT_NEEDED

__all__ = ["Facts", "Gated", "is_open", "judge", "last_audit"]

Json = dict[str, Any]


class Gated(msgspec.Struct, frozen=True, kw_only=True):
    """What one gate says about `object`: ok, refused, unknown, or information for who decides."""

    gate: str
    severity: str  # ok | refused | unknown | info
    object: str
    message: str
    hint: str = ""
    overridable: bool = True


class Facts(msgspec.Struct, kw_only=True):
    """What was gathered. None: could not be found out.

    `trees`: by group, as in its status; `described`: by node, what its agent says of itself, with `asked_ns`
    and `told_ns`, between which it was asked; `audits`: by group, `age_s` and `equal` of the last full one;
    `losses`: by group, what may be lost; `switchable`: by group, what its kind has against
    the change; `scripts`: by node, why one of them can't be called there, by name.
    """

    old: str
    new: str
    steps: tuple[str, ...]
    trees: dict[str, Json | None]
    described: dict[str, Json | None]
    audits: dict[str, Json | None] = {}
    losses: dict[str, Json | None] = {}
    switchable: dict[str, list[Json] | None] = {}
    scripts: dict[str, dict[str, str] | None] = {}


def judge(gates: tuple[str, ...], facts: Facts, settings: ApplicationSettings) -> list[Gated]:
    """What every gate says, in the order of the gates."""
    return [said for gate in gates for said in _GATES[gate](facts, settings)]


def last_audit(tree: Json | None, backup: str) -> Json | None:
    """`age_s` and `equal` of the last full audit of the stream to `backup`, from its status; None: not
    known."""
    told = (_stream(tree, backup) or {}).get("audit")
    if told is None or told["full_age_s"] is None or told["result"] == "unknown":
        return None
    return {"age_s": told["full_age_s"], "equal": told["result"] == "equal"}


def is_open(said: Gated, overrides: set[str]) -> bool:
    """Whether what was said keeps nothing from starting."""
    return said.severity in ("ok", "info") or (said.overridable and said.gate in overrides)


# --- the gates --------------------------------------------------------------------------------


def _streams(facts: Facts, settings: ApplicationSettings) -> Iterator[Gated]:
    for group, tree in facts.trees.items():
        stream = _stream(tree, facts.new)
        if stream is None:
            yield _unknown("streams", group, "how the stream is, is not known", overridable=False)
        elif stream["state"] != "running":
            yield Gated(
                gate="streams",
                severity="refused",
                object=group,
                message=f"the stream to {facts.new} does not run: {stream['state']}",
                hint=f"`castling group status {group}` says why",
                overridable=stream["state"] == "on-hold",
            )
        else:
            yield _ok("streams", group, f"the stream to {facts.new} runs")


def _lag(facts: Facts, settings: ApplicationSettings) -> Iterator[Gated]:
    for group, tree in facts.trees.items():
        stream = _stream(tree, facts.new)
        lags = [stream["rpo_s"], stream["apply_lag_s"]] if stream else [None]
        known = [lag for lag in lags if lag is not None]
        if len(known) < 2:
            yield _unknown("lag", group, "the lag is not known")
        elif max(known) > settings.lag_limit:
            yield Gated(
                gate="lag",
                severity="refused",
                object=group,
                message=f"{max(known):.1f} s behind; the limit is {settings.lag_limit:g} s",
                hint="wait until it has caught up: clients would wait for it",
            )
        else:
            yield _ok("lag", group, f"{max(known):.1f} s behind")


def _holds(facts: Facts, settings: ApplicationSettings) -> Iterator[Gated]:
    for group, tree in facts.trees.items():
        stream = _stream(tree, facts.new)
        holds = None if stream is None else stream.get("holds")
        if holds is None:
            yield _unknown("holds", group, "what is on hold is not known")
        elif holds:
            names = ", ".join(str(hold["part"]) for hold in list(holds)[:5])
            yield Gated(
                gate="holds",
                severity="refused",
                object=group,
                message=f"{len(holds)} parts stand still on {facts.new}: {names}",
                hint=f"`castling group release {group}` or `castling group resync {group}`",
                overridable=False,
            )
        else:
            yield _ok("holds", group, "nothing is on hold")


def _sequences(facts: Facts, settings: ApplicationSettings) -> Iterator[Gated]:
    for group, tree in facts.trees.items():
        stream = _stream(tree, facts.new)
        beside = (stream or {}).get("beside") or {}
        carried = beside.get("sequences")
        if not carried or carried.get("carried") is None:
            yield _unknown("sequences", group, "whether sequences are carried is not known")
        else:
            yield _ok("sequences", group, "sequences are carried")


def _foreign(facts: Facts, settings: ApplicationSettings) -> Iterator[Gated]:
    for group, tree in facts.trees.items():
        stream = _stream(tree, facts.new)
        told = (stream or {}).get("foreign_writes") or {}
        written = told.get("open")
        if told.get("mode") == "ignore":
            yield _unknown("foreign-writes", group, "writes of others on the backup are not watched")
        elif written is None:
            yield _unknown("foreign-writes", group, "whether others wrote on the backup is not known")
        elif written:
            yield Gated(
                gate="foreign-writes",
                severity="refused",
                object=group,
                message=f"others wrote on {facts.new}: {written} transactions that nobody has acknowledged",
                hint=f"`castling group foreign-writes {group}` lists them",
            )
        else:
            yield _ok("foreign-writes", group, f"nobody else wrote on {facts.new}")


def _audit(facts: Facts, settings: ApplicationSettings) -> Iterator[Gated]:
    for group in facts.trees:
        last = facts.audits.get(group)
        if last is None or last.get("age_s") is None:
            yield Gated(
                gate="audit",
                severity="unknown",
                object=group,
                message="no full audit has shown that both sides are equal",
                hint=f"`castling audit run {group}`",
            )
        elif not last["equal"]:
            yield Gated(
                gate="audit", severity="refused", object=group, message="the last audit found differences"
            )
        elif last["age_s"] > settings.audit_age:
            yield Gated(
                gate="audit",
                severity="refused",
                object=group,
                message=f"the last full audit is {last['age_s'] / 86400:.1f} days old",
                hint=f"the limit is {settings.audit_age / 86400:g} days (audit_age)",
            )
        else:
            yield _ok("audit", group, f"equal {last['age_s'] / 3600:.1f} hours ago")


def _nodes(facts: Facts, settings: ApplicationSettings) -> Iterator[Gated]:
    for node, said in facts.described.items():
        if said is None:
            yield Gated(
                gate="nodes",
                severity="refused",
                object=node,
                message="its agent does not answer",
                hint="start it, or use the unplanned switch if the node is lost",
                overridable=False,
            )
        else:
            yield _ok("nodes", node, "its agent answers")


def _switchable(facts: Facts, settings: ApplicationSettings) -> Iterator[Gated]:
    for group in facts.trees:
        told = facts.switchable.get(group)
        if told is None:
            yield _unknown(
                "switchable", group, "whether its roles can change is not known", overridable=False
            )
            continue
        refused = [each for each in told if each["severity"] == "refused"]
        for each in refused:
            yield Gated(
                gate="switchable",
                severity="refused",
                object=f"{group}: {each['object']}",
                message=each["message"],
                hint=each["hint"],
                overridable=False,
            )
        if not refused:
            yield _ok("switchable", group, "its roles can change")


def _disk(facts: Facts, settings: ApplicationSettings) -> Iterator[Gated]:
    for node, said in facts.described.items():
        free = (said or {}).get("free_bytes")
        if free is None:
            yield _unknown("disk", node, "how much its disk has free is not known")
        elif free < settings.min_free:
            yield Gated(
                gate="disk",
                severity="refused",
                object=node,
                message=f"{free >> 20} MiB free; {settings.min_free >> 20} MiB are wanted (min_free)",
            )
        else:
            yield _ok("disk", node, f"{free >> 20} MiB free")


def _clocks(facts: Facts, settings: ApplicationSettings) -> Iterator[Gated]:
    for node, said in facts.described.items():
        if said is None or said.get("now_ns") is None:
            yield _unknown("clocks", node, "its clock is not known")
            continue
        early, late = said["asked_ns"], said["told_ns"]
        off_s = max(0, early - said["now_ns"], said["now_ns"] - late) / 1e9
        if off_s > settings.clock_limit:
            yield Gated(
                gate="clocks",
                severity="refused",
                object=node,
                message=f"its clock is {off_s:.1f} s off that of this node",
                hint="measured figures would be wrong; set the clocks (NTP)",
            )
        else:
            yield _ok("clocks", node, f"its clock is right within {(late - early) / 1e9 + off_s:.3f} s")


def _scripts(facts: Facts, settings: ApplicationSettings) -> Iterator[Gated]:
    for name in SCRIPTS:
        if name not in facts.steps:
            continue
        written = settings.scripts.get(name)
        if written is None:
            yield Gated(
                gate="scripts",
                severity="refused",
                object=name,
                message="is neither written nor declared not needed",
                hint=f'in castling.toml, below scripts: {name} = "/path" or "{NOT_NEEDED}"',
            )
        elif written == NOT_NEEDED:
            yield _ok("scripts", name, NOT_NEEDED)
    for node, problems in facts.scripts.items():
        if problems is None:
            yield _unknown("scripts", node, "whether its scripts can be called is not known")
        for name, problem in sorted((problems or {}).items()):
            yield Gated(gate="scripts", severity="refused", object=f"{name} on {node}", message=problem)


def _loss(facts: Facts, settings: ApplicationSettings) -> Iterator[Gated]:
    for group in facts.trees:
        loss = facts.losses.get(group)
        if loss is None:
            yield _unknown("loss", group, "what would be lost is not known")
        else:
            yield Gated(gate="loss", severity="info", object=group, message=str(loss["message"]))


_GATES: dict[str, Callable[[Facts, ApplicationSettings], Iterator[Gated]]] = {
    "streams": _streams,
    "lag": _lag,
    "holds": _holds,
    "sequences": _sequences,
    "foreign-writes": _foreign,
    "audit": _audit,
    "nodes": _nodes,
    "switchable": _switchable,
    "disk": _disk,
    "clocks": _clocks,
    "scripts": _scripts,
    "loss": _loss,
}


# --- small things -----------------------------------------------------------------------------


def _stream(tree: Json | None, backup: str) -> Json | None:
    streams = [] if tree is None else tree["streams"]
    return next((stream for stream in streams if stream["backup"] == backup), None)


def _ok(gate: str, what: str, message: str) -> Gated:
    return Gated(gate=gate, severity="ok", object=what, message=message)


def _unknown(gate: str, what: str, message: str, *, overridable: bool = True) -> Gated:
    return Gated(gate=gate, severity="unknown", object=what, message=message, overridable=overridable)
