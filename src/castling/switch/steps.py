"""What each step does, by asking nodes. Each can be asked whether it is done, and be done again.

`Doors` is all that a step may use of the installation, and `Hands` all that it may ask of one node; the
control plane gives both. So no kind of group is known here, and a test can be both ends of the world.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

from castling.errors import NotDone, StepFailed
from castling.switch.procedure import Place, Step
from castling.switch.run import Run, Unit
from castling.switch.scripts import NOT_NEEDED

__all__ = ["ACTIONS", "Action", "At", "Doors", "Hands", "given", "nodes_of"]

Json = dict[str, Any]
#: how long transactions that are open when the fence comes may go on, at most, seconds
GRACE_S = 5.0


class Hands(Protocol):
    """What a step asks of one node. Every call may be repeated; errors say whether to try again."""

    async def switch_state(self, group: str) -> Json: ...
    async def switch_check(self, group: str, to: str) -> Json: ...
    async def take_role(self, group: str, epoch: int, primary: str, by: str) -> Json: ...
    async def fence(self, group: str, epoch: int, to: str, grace_s: float) -> Json: ...
    async def unfence(self, group: str) -> Json: ...
    async def mark(self, group: str) -> Json: ...
    async def drained(self, group: str, offset: int, wait_s: float) -> Json: ...
    async def carry(self, group: str, final: Json) -> Json: ...
    async def copy_left_behind(self, group: str) -> list[Json]: ...
    async def prepare_source(self, group: str, epoch: int) -> Json: ...
    async def prepare_target(self, group: str, epoch: int, to: str, begin: Json) -> Json: ...
    async def unprepare(self, group: str, epoch: int, to: str) -> Json: ...
    async def promote(self, group: str, epoch: int, by: str) -> Json: ...
    async def leave(self, group: str) -> Json: ...
    async def loss(self, group: str) -> Json: ...
    async def drain_journal(self, group: str, wait_s: float) -> Json: ...
    async def keep_orphans(self, group: str) -> Json: ...
    async def reintroduce(self, group: str) -> Json: ...
    async def pool(self, group: str, action: Literal["pause", "resume"], primary: str) -> Json: ...
    async def call_script(self, application: str, name: str, values: dict[str, str]) -> Json: ...


class Doors(Protocol):
    """The installation, as steps see it."""

    def node(self, name: str) -> Hands: ...
    def members(self, group: str) -> list[str]:
        """The nodes that hold the group's data."""

    def poolers(self, group: str) -> list[str]:
        """The nodes that have a pooler in front of the group's database."""

    def script(self, application: str, name: str) -> str | None:
        """What castling.toml says of the script: a path, "not needed", or None for nothing."""

    async def check(self, group: str) -> Json:
        """What the check found; NotReplicable when it refuses the start."""

    async def desire(self, group: str, state: str, by: str) -> None:
        """All nodes of the group shall run it, or stop it."""

    async def tree(self, group: str) -> Json:
        """The group, as in its status."""


@dataclass(frozen=True, slots=True)
class At:
    """Where a step is: its run, its unit, and what it may use."""

    run: Run
    unit: Unit
    doors: Doors

    @property
    def group(self) -> str:
        assert self.unit.group is not None, "a step of the whole application has no group"
        return self.unit.group

    @property
    def epoch(self) -> int:
        return self.run.epochs[self.group]

    @property
    def old(self) -> Hands:
        return self.doors.node(self.run.old)

    @property
    def new(self) -> Hands:
        return self.doors.node(self.run.new)

    def fact(self, step: str) -> Json:
        """What an earlier step of the same group found; StepFailed when it was passed over."""
        found: Json | None = self.run.facts(self.group).get(step)
        if found is None:
            raise StepFailed(f"step {step} of {self.group} left nothing to go on with")
        return found


class Action(Protocol):
    """`look`: what was done, or None when it is not done. `do` may follow a `do` that was cut off."""

    async def look(self, at: At) -> Json | None: ...
    async def do(self, at: At) -> Json: ...
    async def undo(self, at: At) -> Json: ...
    async def untouched(self, at: At) -> bool:
        """After `do` has failed: whether it is certain that it changed nothing. Asked of the step that
        opens."""


def nodes_of(run: Run, step: Step) -> tuple[str, ...]:
    """The nodes that the step is done on, in order."""
    match step.place:
        case Place.OLD:
            return (run.old,)
        case Place.NEW:
            return (run.new,)
        case Place.BOTH:
            return (run.new, run.old)
        case Place.COORDINATOR:
            return (run.coordinator,)


def given(run: Run, unit: Unit, name: str, node: str) -> dict[str, str]:
    """The documented environment of a script (docs/procedures.md)."""
    return {
        "CASTLING_RUN": run.id,
        "CASTLING_PROCEDURE": run.procedure,
        "CASTLING_APPLICATION": run.application,
        "CASTLING_GROUPS": " ".join(run.groups),
        "CASTLING_GROUP": unit.group or "",
        "CASTLING_STEP": unit.step.name,
        "CASTLING_STEP_NUMBER": str(unit.step.number),
        "CASTLING_ATTEMPT": str(unit.attempts),
        "CASTLING_SCRIPT": name,
        "CASTLING_NODE": node,
        "CASTLING_OLD_PRIMARY": run.old,
        "CASTLING_NEW_PRIMARY": run.new,
        "CASTLING_ROLLING_BACK": "yes" if run.back else "no",
    }


# --- the kinds of steps -----------------------------------------------------------------------


class _Step:
    """Not known to be done, and with nothing to undo, unless a step says otherwise."""

    async def look(self, at: At) -> Json | None:
        return None

    async def undo(self, at: At) -> Json:
        return {}

    async def untouched(self, at: At) -> bool:
        return False


class _Fence(_Step):
    """The backups first, where only new writers are kept out: else clients that look for a server to write to
    would find one before it is open. Then the primary, where open transactions get a moment to end by
    themselves.
    """

    async def look(self, at: At) -> Json | None:
        """Not by the state alone: to fence again ends who came meanwhile, and says who could not be ended."""
        return None

    async def do(self, at: At) -> Json:
        grace_s = min(GRACE_S, at.unit.step.limit_s / 3)
        for name in _others(at):
            await at.doors.node(name).fence(at.group, at.epoch, at.run.new, grace_s)
        return await at.old.fence(at.group, at.epoch, at.run.new, grace_s)

    async def undo(self, at: At) -> Json:
        for name in _others(at):
            await at.doors.node(name).unprepare(at.group, at.epoch, at.run.new)
        return await at.old.unfence(at.group)


class _FencedItself(_Step):
    """A node that came back hears of the epoch that it missed, and is fenced by that."""

    async def look(self, at: At) -> Json | None:
        state = await at.old.switch_state(at.group)
        done = state["epoch"] >= at.epoch and state["primary"] == at.run.new and state["fenced"]
        return state if done else None

    async def do(self, at: At) -> Json:
        await at.old.take_role(at.group, at.epoch, at.run.new, at.run.id)
        found = await self.look(at)
        if found is None:
            raise NotDone(f"{at.run.old} is not fenced yet")
        return found


class _Mark(_Step):
    async def do(self, at: At) -> Json:
        return await at.old.mark(at.group)


class _Drain(_Step):
    async def do(self, at: At) -> Json:
        offset = int(at.fact("mark")["offset"])
        found = await at.new.drained(at.group, offset, at.unit.step.limit_s)
        if not found["drained"]:
            raise NotDone(f"{at.run.new} has not applied yet what {at.run.old} has committed")
        return {**found, "offset": offset}


class _Prove(_Step):
    """The backup has applied the mark, and behind the mark nothing can have been committed."""

    async def do(self, at: At) -> Json:
        mark, drained = int(at.fact("mark")["offset"]), at.fact("drain")
        state = await at.old.switch_state(at.group)
        if state["fenced"] is not True:
            raise StepFailed(f"{at.run.old} is not fenced any more: it may have committed behind the mark")
        if int(drained["applied"]) < mark or int(drained["hardened"]) < mark:
            raise StepFailed(f"{at.run.new} has not applied the mark at {mark}")
        return {"source": mark, "hardened": drained["hardened"], "applied": drained["applied"]}


class _Carry(_Step):
    """Sequences exactly as they ended, and, where there is any, what no stream carries."""

    async def do(self, at: At) -> Json:
        found = await at.new.carry(at.group, at.fact("mark")["final"])
        stream = _stream(await at.doors.tree(at.group), at.run.new)
        if stream is None or stream.get("left_behind") != []:
            copied = await at.old.copy_left_behind(at.group)
            failed = [each for each in copied if each["problem"]]
            if failed:
                raise StepFailed(f"{failed[0]['object']}: {failed[0]['problem']}", failed=failed)
            found = {**found, "left_behind": len(copied)}
        return found


class _PrepareNew(_Step):
    async def do(self, at: At) -> Json:
        return await at.new.prepare_source(at.group, at.epoch)

    async def undo(self, at: At) -> Json:
        return await at.new.unprepare(at.group, at.epoch, at.run.new)


class _PrepareOld(_Step):
    """The old primary, and every other backup, is ready to follow the new one."""

    async def do(self, at: At) -> Json:
        begin = at.fact("prepare-new")["begin"]
        told = {}
        for name in self._others(at):
            node = at.doors.node(name)
            told[name] = await node.prepare_target(at.group, at.epoch, at.run.new, begin)
        return told

    async def undo(self, at: At) -> Json:
        told = {}
        for name in reversed(self._others(at)):
            told[name] = await at.doors.node(name).unprepare(at.group, at.epoch, at.run.new)
        return told

    @staticmethod
    def _others(at: At) -> list[str]:
        return [name for name in at.doors.members(at.group) if name != at.run.new]


class _Open(_Step):
    """The point of no return: the new primary keeps the new epoch durably, and takes writes."""

    async def look(self, at: At) -> Json | None:
        state = await at.new.switch_state(at.group)
        done = state["epoch"] >= at.epoch and state["primary"] == at.run.new and state["open"] is True
        return {"epoch": state["epoch"], "primary": at.run.new} if done else None

    async def do(self, at: At) -> Json:
        found = await at.new.promote(at.group, at.epoch, at.run.id)
        if found["open"] is not True:
            raise NotDone(f"{at.run.new} does not take writes yet")
        return {"epoch": at.epoch, "primary": at.run.new}

    async def untouched(self, at: At) -> bool:
        state = await at.new.switch_state(at.group)
        return state["epoch"] < at.epoch and not state["open"]


class _Pause(_Step):
    """Every pooler holds its clients back; where there is none, clients will notice the switch themselves."""

    async def do(self, at: At) -> Json:
        return {
            "poolers": {
                node: await at.doors.node(node).pool(at.group, "pause", at.run.old)
                for node in at.doors.poolers(at.group)
            }
        }

    async def undo(self, at: At) -> Json:
        return await self._resume(at, at.run.old)

    @staticmethod
    async def _resume(at: At, primary: str) -> Json:
        return {
            "poolers": {
                node: await at.doors.node(node).pool(at.group, "resume", primary)
                for node in at.doors.poolers(at.group)
            }
        }


class _Resume(_Pause):
    async def do(self, at: At) -> Json:
        return await self._resume(at, at.run.new)

    async def undo(self, at: At) -> Json:
        return {}


class _Loss(_Step):
    async def do(self, at: At) -> Json:
        return await at.new.loss(at.group)


class _ApplyAll(_Step):
    async def do(self, at: At) -> Json:
        found = await at.new.drain_journal(at.group, at.unit.step.limit_s)
        if not found["drained"]:
            raise NotDone(f"{at.run.new} has not applied yet all that it received")
        return found

    async def undo(self, at: At) -> Json:
        found = await at.new.unprepare(at.group, at.epoch, at.run.new)
        await at.doors.desire(at.group, "running", at.run.by)
        return found


class _Orphans(_Step):
    async def do(self, at: At) -> Json:
        return await at.old.keep_orphans(at.group)


class _Revert(_Step):
    async def do(self, at: At) -> Json:
        return await at.old.reintroduce(at.group)


class _Leave(_Step):
    async def do(self, at: At) -> Json:
        return {name: await at.doors.node(name).leave(at.group) for name in nodes_of(at.run, at.unit.step)}


class _Script(_Step):
    """One of the user's scripts. What it does can't be looked at, so it is called again after a failure."""

    def __init__(self, name: str, undo: str = "") -> None:
        self._name = name
        self._undo = undo

    async def do(self, at: At) -> Json:
        return await self._call(at, self._name)

    async def undo(self, at: At) -> Json:
        return await self._call(at, self._undo) if self._undo else {}

    async def _call(self, at: At, name: str) -> Json:
        said = at.doors.script(at.run.application, name)
        if said is None:
            return {"script": "not written"}  # the preflight was overridden
        if said == NOT_NEEDED:
            return {"script": NOT_NEEDED}
        node = nodes_of(at.run, at.unit.step)[0]
        values = given(at.run, at.unit, name, node)
        return {"output": await at.doors.node(node).call_script(at.run.application, name, values)}


class _Reverse(_Step):
    """Every other node takes the role, if it has not heard of it yet; then the stream to the old primary
    runs."""

    async def look(self, at: At) -> Json | None:
        state = await at.old.switch_state(at.group)
        if state["primary"] != at.run.new:
            return None
        stream = _stream(await at.doors.tree(at.group), at.run.old)
        runs = stream is not None and stream["state"] == "running"
        return {"state": "running"} if runs else None

    async def do(self, at: At) -> Json:
        epoch = (await at.new.switch_state(at.group))["epoch"]
        for name in at.doors.members(at.group):
            if name != at.run.new:
                await at.doors.node(name).take_role(at.group, epoch, at.run.new, at.run.id)
        found = await self.look(at)
        if found is None:
            raise NotDone(f"the stream of {at.group} to {at.run.old} does not run yet")
        return found


class _Desire(_Step):
    def __init__(self, state: str) -> None:
        self._state = state

    async def do(self, at: At) -> Json:
        await at.doors.desire(at.group, self._state, at.run.by)
        return {"desired": self._state}


class _Check(_Step):
    async def do(self, at: At) -> Json:
        found = await at.doors.check(at.group)
        return {"findings": len(found["findings"]), "refused": found["refused"]}


class _Running(_Step):
    async def look(self, at: At) -> Json | None:
        tree = await at.doors.tree(at.group)
        return {"state": tree["state"]} if tree["state"] == "running" else None

    async def do(self, at: At) -> Json:
        found = await self.look(at)
        if found is None:
            raise NotDone(f"{at.group} does not run yet")
        return found


def _others(at: At) -> list[str]:
    """The nodes of the group that are not its primary now."""
    return [name for name in at.doors.members(at.group) if name != at.run.old]


def _stream(tree: Json, backup: str) -> Json | None:
    return next((stream for stream in tree["streams"] if stream["backup"] == backup), None)


#: by step name
ACTIONS: dict[str, Action] = {
    "stop-application": _Script("stop-application", undo="start-application"),
    "move-users": _Script("move-users"),
    "start-application": _Script("start-application"),
    "pause": _Pause(),
    "fence": _Fence(),
    "fenced": _FencedItself(),
    "mark": _Mark(),
    "drain": _Drain(),
    "prove": _Prove(),
    "carry": _Carry(),
    "prepare-new": _PrepareNew(),
    "prepare-old": _PrepareOld(),
    "open": _Open(),
    "resume": _Resume(),
    "reverse": _Reverse(),
    "leave": _Leave(),
    "loss": _Loss(),
    "apply-all": _ApplyAll(),
    "orphans": _Orphans(),
    "revert": _Revert(),
    "check": _Check(),
    "run": _Desire("running"),
    "halt": _Desire("stopped"),
    "running": _Running(),
}
