"""The use-cases around procedures: plan, start, resume, approve, override, abort, acknowledge, history.

A run lives on its coordinator, the node that is the new primary: so a planned switch and one after a
disaster are the same, and nobody needs the old primary to decide anything. Any agent can be asked; it passes
the question on.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from castling.config import ApplicationSettings
from castling.control.doors import ControlDoors
from castling.control.nodes import LocalNode
from castling.control.outside import application_settings
from castling.control.store import Store
from castling.errors import (
    AgentUnreachable,
    CastlingError,
    NotFound,
    NotSwitchable,
    StateError,
    SwitchBusy,
    SwitchRefused,
    UsageError,
)
from castling.groups.topology import group_settings, members
from castling.switch.catalog import PROCEDURES, procedure
from castling.switch.evidence import SUMMARY, evidence, summary
from castling.switch.gates import Facts, Gated, is_open, judge, last_audit
from castling.switch.procedure import Place, Procedure
from castling.switch.run import Event, Happened, Run, UnitState, begin
from castling.switch.runner import Runner
from castling.switch.scripts import NOT_NEEDED
from castling.switch.steps import nodes_of

__all__ = ["Switches"]

Json = dict[str, Any]
#: how many runs of each node the history looks at
HISTORY_MOST = 1000
#: how long the coordinator may take for the preflight, seconds
START_S = 60.0

#: procedures whose steps the nodes can do; all are planned and shown
_ABLE = frozenset(("start", "end-immediate", "planned", "failback"))

#: what a person may say of a run, and of which of its steps
_SAID = {
    "resume": (Happened.RESUMED, ()),
    "abort": (Happened.ABORTED, ()),
    "acknowledge": (Happened.ACKNOWLEDGED, ()),
    "approve": (Happened.APPROVED, (UnitState.WAITING,)),
    "override": (Happened.OVERRIDDEN, (UnitState.FAILED, UnitState.WAITING)),
}


class Asked(Protocol):
    """Another agent, asked by path."""

    async def ask(self, method: str, path: str, body: Any = None, timeout_s: float = 5.0) -> Any: ...


class Switches:
    """`reach`: the agent of that name and API address."""

    def __init__(
        self,
        local: LocalNode,
        store: Store,
        doors: ControlDoors,
        runner: Runner,
        reach: Callable[[str, str], Asked],
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._local = local
        self._store = store
        self._doors = doors
        self._reach = reach
        self._now_ns = now_ns
        self._starting = asyncio.Lock()
        self.runner = runner

    # --- before it begins ---------------------------------------------------------------------

    async def plan(self, application: str, name: str, to: str | None = None) -> Json:
        """The whole list of steps and what the preflight finds. Changes nothing."""
        wanted = procedure(name)
        settings = application_settings(self._local.deployed(), application)
        old, new = self._nodes(wanted, settings, to)
        findings = await self._findings(wanted, application, settings, old, new)
        run = self._run(wanted, application, settings, old, new, "", findings, ())
        return {
            "application": application,
            "procedure": wanted.id,
            "title": wanted.title,
            "clients": wanted.clients,
            "groups": settings.groups,
            "old": old,
            "new": new,
            "coordinator": new,
            "findings": [msgspec.to_builtins(each) for each in findings],
            "refused": sum(not is_open(each, set()) for each in findings),
            "steps": [
                {
                    **msgspec.to_builtins(unit.step),
                    "group": unit.group,
                    "nodes": list(nodes_of(run, unit.step)),
                    "opens": unit.step.name == wanted.opens,
                    "scripts": [
                        f"{when}:{unit.step.name}"
                        for when in ("before", "after")
                        if self._doors.script(application, f"{when}:{unit.step.name}")
                        not in (None, NOT_NEEDED)
                    ],
                }
                for unit in run.units
            ],
        }

    async def start(self, application: str, name: str, to: str | None, overrides: list[str], by: str) -> Json:
        """Begin a run on its coordinator. SwitchRefused names the gates that are not passed."""
        wanted = procedure(name)
        if wanted.id not in _ABLE:
            raise NotSwitchable(f"{wanted.title}: the nodes of this version can't do its steps yet")
        unknown = sorted(set(overrides) - set(wanted.gates))
        if unknown:
            raise UsageError(
                f"{wanted.id} has no gate {unknown[0]!r}", hint=f"gates: {', '.join(wanted.gates) or 'none'}"
            )
        settings = application_settings(self._local.deployed(), application)
        old, new = self._nodes(wanted, settings, to)
        if new != self._local.name:
            body = {
                "application": application,
                "procedure": name,
                "to": old if wanted.id == "reintroduce" else new,
                "overrides": overrides,
                "by": by,
            }
            found: Json = await self._agent(new).ask("POST", "/v1/node/switches", body, START_S)
            return found
        async with self._starting:
            self._refuse_if_busy(wanted, application, settings)
            findings = await self._findings(wanted, application, settings, old, new)
            closed = [each for each in findings if not is_open(each, set(overrides))]
            if closed:
                told = "; ".join(f"{each.gate}: {each.object}: {each.message}" for each in closed[:3])
                can = sorted({each.gate for each in closed if each.overridable})
                raise SwitchRefused(
                    f"the preflight refuses ({len(closed)} found): {told}",
                    hint=closed[0].hint
                    or (f"`--override {can[0]}` goes on without that gate, for this run" if can else ""),
                    findings=[msgspec.to_builtins(each) for each in closed],
                )
            run = self._run(wanted, application, settings, old, new, by, findings, tuple(overrides))
            return evidence(self.runner.start(run))

    # --- while it runs ------------------------------------------------------------------------

    async def tell(
        self,
        identity: str,
        word: str,
        by: str,
        *,
        step: str | None = None,
        group: str | None = None,
        reason: str = "",
    ) -> Json:
        """What a person says of a run, wherever it lives."""
        found = await self._find(identity)
        if found["coordinator"] != self._local.name:
            body = {"word": word, "by": by, "step": step, "group": group, "reason": reason}
            path = f"/v1/node/switches/{identity}"
            answer: Json = await self._agent(found["coordinator"]).ask("POST", path, body, START_S)
            return answer
        return self.tell_here(identity, word, by, step=step, group=group, reason=reason)

    def tell_here(
        self, identity: str, word: str, by: str, *, step: str | None, group: str | None, reason: str
    ) -> Json:
        """The same, of a run of this node."""
        what, states = _SAID[word]
        unit = None
        if states:
            if step is None:
                raise UsageError(f"which step? `castling switch {word} {identity} STEP`")
            unit = self.runner.place(identity, step, group, *states)
        event = Event(what=what, at_ns=self._now_ns(), unit=unit, by=by, reason=reason)
        return evidence(self.runner.tell(identity, event))

    # --- looking ------------------------------------------------------------------------------

    def here(self, limit: int) -> list[Json]:
        """The runs of this node, newest first."""
        return [evidence(run) for run in self._store.runs(limit)]

    def one_here(self, identity: str) -> Json:
        """A run of this node; NotFound when it is another's."""
        return evidence(self.runner.look(identity))

    async def history(self, limit: int) -> Json:
        """The runs of all nodes, newest first; `unknown` names the nodes that did not answer."""
        runs, unknown = [summary(run) for run in self._store.runs(limit)], {}
        answers = await asyncio.gather(
            *(self._asked(name, f"/v1/node/switches?limit={limit}") for name in self._others())
        )
        for name, said in zip(self._others(), answers, strict=True):
            if isinstance(said, CastlingError):
                unknown[name] = str(said)
            else:
                runs += [{key: each[key] for key in SUMMARY} for each in said]
        runs.sort(key=lambda each: each["created_ns"], reverse=True)
        return {"runs": runs[:limit], "unknown": unknown}

    async def show(self, identity: str) -> Json:
        """All that is known of a run, its evidence included."""
        return await self._find(identity)

    async def _find(self, identity: str) -> Json:
        try:
            return evidence(self.runner.look(identity))
        except NotFound:
            pass
        silent = []
        for name in self._others():
            said = await self._asked(name, f"/v1/node/switches/{identity}")
            if not isinstance(said, CastlingError):
                found: Json = said
                return found
            if isinstance(said, AgentUnreachable):
                silent.append(name)
        if silent:
            raise AgentUnreachable(
                f"there is no run {identity!r} on the nodes that answer; {', '.join(silent)} did not"
            )
        raise NotFound(f"there is no run {identity!r}", hint="`castling switch history` lists them")

    # --- small things -------------------------------------------------------------------------

    def _others(self) -> list[str]:
        config = self._local.config
        return [] if config is None else sorted(config.nodes.keys() - {self._local.name})

    def _agent(self, name: str) -> Asked:
        return self._reach(name, self._local.deployed().nodes[name].api)

    async def _asked(self, name: str, path: str) -> Any:
        try:
            return await self._agent(name).ask("GET", path)
        except CastlingError as error:
            return error

    def _nodes(self, wanted: Procedure, settings: ApplicationSettings, to: str | None) -> tuple[str, str]:
        """The old and the new primary of a run; `to`: the node that was named."""
        config = self._local.deployed()
        groups = [group_settings(config, group) for group in settings.groups]
        primaries = sorted({group.primary for group in groups})
        if len(primaries) > 1:
            raise StateError(
                f"the groups do not have one primary: {', '.join(primaries)}",
                hint="switch the groups that are behind, one by one, first",
            )
        primary, known = primaries[0], members(groups[0])
        if to is not None and to not in known:
            raise UsageError(f"{to} is not a node of the application", hint=f"nodes: {', '.join(known)}")
        if wanted.id == "reintroduce":
            old = to or next(node for node in known if node != primary)
            if old == primary:
                raise StateError(f"{old} is the primary; there is nothing to reintroduce")
            return old, primary
        new = to or (self._configured(settings) if wanted.failback else groups[0].backups[0])
        if new == primary:
            raise StateError(f"{new} is the primary already")
        return primary, new

    def _configured(self, settings: ApplicationSettings) -> str:
        configured = self._local.configured
        assert configured is not None, "something is deployed"
        return configured.groups[settings.groups[0]].primary

    def _refuse_if_busy(self, wanted: Procedure, application: str, settings: ApplicationSettings) -> None:
        for run in self._store.blocking_runs():
            if not run.ended and set(run.groups) & set(settings.groups):
                raise SwitchBusy(
                    f"run {run.id} ({run.title}) is {run.status}",
                    hint=f"`castling switch show {run.id}`; resume or abort it first",
                    run=run.id,
                )
            if run.procedure == wanted.id and run.application == application:
                raise SwitchBusy(
                    f"run {run.id} ({run.title}) is {run.status}, and nobody has acknowledged that",
                    hint=f"`castling switch show {run.id}` says why; `castling switch acknowledge {run.id}`",
                    run=run.id,
                )

    def _run(
        self,
        wanted: Procedure,
        application: str,
        settings: ApplicationSettings,
        old: str,
        new: str,
        by: str,
        findings: list[Gated],
        overrides: tuple[str, ...],
    ) -> Run:
        now_ns = self._now_ns()
        raises = 1 if wanted.opens else 0
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now_ns // 10**9))
        return begin(
            wanted,
            identity=f"{stamp}-{secrets.token_hex(3)}",
            application=application,
            groups=settings.groups,
            old=old,
            new=new,
            coordinator=new,
            epochs={group: self._local.role(group).epoch + raises for group in settings.groups},
            by=by,
            at_ns=now_ns,
            findings=[msgspec.to_builtins(each) for each in findings],
            overrides=overrides,
        )

    # --- the preflight ------------------------------------------------------------------------

    async def _findings(
        self, wanted: Procedure, application: str, settings: ApplicationSettings, old: str, new: str
    ) -> list[Gated]:
        gates = set(wanted.gates)
        nodes = [old, new]
        trees = await asyncio.gather(*(self._tree(group) for group in settings.groups))
        described = await asyncio.gather(*(self._described(node) for node in nodes))
        facts = Facts(
            old=old,
            new=new,
            steps=tuple(step.name for step in wanted.steps),
            trees=dict(zip(settings.groups, trees, strict=True)),
            described=dict(zip(nodes, described, strict=True)),
            audits={group: last_audit(tree, new) for group, tree in zip(settings.groups, trees, strict=True)},
        )
        if "scripts" in gates:
            facts.scripts = await self._script_problems(wanted, application, settings, old, new)
        if "switchable" in gates:
            facts.switchable = {group: await self._against(group, nodes, new) for group in settings.groups}
        return judge(wanted.gates, facts, settings)

    async def _tree(self, group: str) -> Json | None:
        try:
            return await self._doors.tree(group)
        except CastlingError:
            return None

    async def _described(self, node: str) -> Json | None:
        asked_ns = self._now_ns()
        try:
            said = await self._doors.agent(node).describe()
        except CastlingError:
            return None
        return {**said, "asked_ns": asked_ns, "told_ns": self._now_ns()}

    async def _against(self, group: str, nodes: list[str], new: str) -> list[Json] | None:
        """What the group's kind has against `new` becoming the primary; None: not known."""
        try:
            told = [await self._doors.node(node).switch_check(group, new) for node in nodes]
        except CastlingError:
            return None
        return [each for said in told for each in said["findings"]]

    async def _script_problems(
        self, wanted: Procedure, application: str, settings: ApplicationSettings, old: str, new: str
    ) -> dict[str, dict[str, str] | None]:
        """By node, which of the scripts that it is to run can't be called there."""
        places = {"stop-application": {old}, "start-application": {new}, "move-users": {new}}
        if wanted.reverts:
            places["start-application"] = {old, new}
        for step in wanted.steps:
            at = old if step.place is Place.OLD else new
            places |= {f"{when}:{step.name}": {at} for when in ("before", "after")}
        known = {step.name for each in PROCEDURES.values() for step in each.steps}
        found: dict[str, dict[str, str] | None] = {
            "castling.toml": {
                name: f"there is no step {name.partition(':')[2]!r} in any procedure"
                for name in settings.scripts
                if ":" in name and name.partition(":")[2] not in known
            }
        }
        wanted_steps = {step.name for step in wanted.steps}
        for node in (old, new):
            mine = [
                name
                for name, path in settings.scripts.items()
                if path != NOT_NEEDED
                and node in places.get(name, set())
                and (":" in name or name in wanted_steps or name == "start-application")
            ]
            try:
                said = await self._doors.agent(node).look_scripts(application, mine)
                found[node] = {str(name): str(what) for name, what in said.items()}
            except CastlingError:
                found[node] = None if mine and wanted.id != "unplanned" else {}
        return found
