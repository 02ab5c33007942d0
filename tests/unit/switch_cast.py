"""Both ends of the world for the engine: two nodes that know who may write, and that can fail when told
to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from castling.control.doors import ControlDoors
from castling.control.switches import Switches
from castling.errors import CastlingError, StepFailed
from castling.switch.run import Run
from castling.switch.runner import Runner

Json = dict[str, Any]


class World:
    """Two nodes, any number of groups. `writable` is asked after every call: never both of a group.

    `fails`: by name of a call, an error that it raises as often as there are entries.
    """

    def __init__(self, *groups: str) -> None:
        self.groups = groups
        self.role = {(group, node): (1, "east") for group in groups for node in ("east", "west")}
        self.fenced: set[tuple[str, str]] = set()
        self.opened = {(group, "east") for group in groups}
        self.paused: set[str] = set()
        self.prepared: set[tuple[str, str]] = set()
        self.application = "running on east"
        self.calls: list[str] = []
        self.fails: dict[str, list[CastlingError]] = {}
        self.scripts = {
            "stop-application": "/stop",
            "start-application": "/start",
            "move-users": "not needed",
        }
        #: called before a call does anything, and after it has done it
        self.around: Callable[[str, str], None] = lambda when, call: None

    def writable(self, group: str) -> list[str]:
        return [
            node
            for node in ("east", "west")
            if (group, node) in self.opened and (group, node) not in self.fenced
        ]

    def assert_one_primary(self) -> None:
        for group in self.groups:
            assert len(self.writable(group)) <= 1, f"two writable primaries of {group}"

    # --- Doors --------------------------------------------------------------------------------

    def node(self, name: str) -> Any:
        return _Node(self, name)

    def members(self, group: str) -> list[str]:
        return ["east", "west"]

    def poolers(self, group: str) -> list[str]:
        return ["east"]

    def script(self, application: str, name: str) -> str | None:
        return self.scripts.get(name)

    async def check(self, group: str) -> Json:
        return {"findings": [], "refused": 0}

    async def desire(self, group: str, state: str, by: str) -> None:
        self.calls.append(f"desire {group} {state}")

    async def tree(self, group: str) -> Json:
        primary = self.role[group, "west"][1]
        backup = "west" if primary == "east" else "east"
        agreed = self.role[group, "east"][1] == primary
        stream = {"backup": backup, "state": "running" if agreed else "waiting", "left_behind": []}
        return {"group": group, "state": stream["state"], "streams": [stream]}


class _Node:
    def __init__(self, world: World, name: str) -> None:
        self._world = world
        self._name = name

    def __getattr__(self, call: str) -> Any:
        work = getattr(self, f"_{call}")

        async def called(*arguments: Any) -> Any:
            world, label = self._world, f"{call}@{self._name}"
            world.around("before", label)
            if world.fails.get(call):
                raise world.fails[call].pop(0)
            world.calls.append(label)
            answer = work(*arguments)
            world.assert_one_primary()
            world.around("after", label)
            return answer

        return called

    def _switch_state(self, group: str) -> Json:
        epoch, primary = self._world.role[group, self._name]
        is_open = (group, self._name) in self._world.opened
        return {
            "epoch": epoch,
            "primary": primary,
            "fenced": (group, self._name) in self._world.fenced,
            "open": is_open and (group, self._name) not in self._world.fenced,
        }

    def _take_role(self, group: str, epoch: int, primary: str, by: str) -> Json:
        assert epoch >= self._world.role[group, self._name][0], "an epoch never goes back"
        self._world.role[group, self._name] = (epoch, primary)
        return {"changed": True}

    def _fence(self, group: str, epoch: int, to: str, grace_s: float) -> Json:
        self._world.fenced.add((group, self._name))
        return {"fenced": True, "ended": 0, "superusers": [], "left": []}

    def _unfence(self, group: str) -> Json:
        assert self._world.role[group, "west"][1] == self._name, "another node is the primary already"
        self._world.fenced.discard((group, self._name))
        return {}

    def _mark(self, group: str) -> Json:
        assert (group, self._name) in self._world.fenced, "a mark without a fence is not the end"
        return {"offset": 100, "final": {"s": 7}}

    def _drained(self, group: str, offset: int, wait_s: float) -> Json:
        return {"drained": True, "hardened": offset, "applied": offset}

    def _carry(self, group: str, final: Json) -> Json:
        assert final == {"s": 7}
        return {"sequences": 1}

    def _copy_left_behind(self, group: str) -> list[Json]:
        return []

    def _prepare_source(self, group: str, epoch: int) -> Json:
        self._world.prepared.add((group, self._name))
        return {"begin": {"east": 5}}

    def _prepare_target(self, group: str, epoch: int, to: str, begin: Any) -> Json:
        assert begin == {"east": 5}
        self._world.prepared.add((group, self._name))
        return {"prepared": True}

    def _unprepare(self, group: str, epoch: int, to: str) -> Json:
        assert self._world.role[group, "west"][0] < epoch, "it is too late for that"
        self._world.prepared.discard((group, self._name))
        if self._name == to:
            self._world.fenced.discard((group, self._name))
        return {}

    def _promote(self, group: str, epoch: int, by: str) -> Json:
        assert (group, "east") in self._world.fenced and (group, "east") in self._world.prepared
        self._world.role[group, self._name] = (epoch, self._name)
        self._world.opened.add((group, self._name))
        self._world.fenced.discard((group, self._name))
        return {"open": True}

    def _leave(self, group: str) -> Json:
        return {"left": True}

    def _pool(self, group: str, action: str, primary: str) -> Json:
        if action == "pause":
            self._world.paused.add(group)
        else:
            assert self._world.writable(group) == [primary], "clients would be let go into nothing"
            self._world.paused.discard(group)
        return {"state": action}

    def _call_script(self, application: str, name: str, values: dict[str, str]) -> Json:
        if name == "stop-application":
            self._world.application = "stopped"
        if name == "start-application":
            self._world.application = f"running on {self._name}"
        assert values["CASTLING_SCRIPT"] == name
        return {"script": name, "exit_code": 0, "output": "said so"}


class Killed(BaseException):
    """The agent is dead: nothing of it runs on."""


class Keeper:
    """Keeps runs as the store does, and dies when told to: at its nth write, before or after it is
    durable."""

    def __init__(self, die_at: int = 0, when: str = "after") -> None:
        self.runs: dict[str, Run] = {}
        self.writes = 0
        self.die_at, self.when = die_at, when
        self.forgets = False

    def put_run(self, run: Run) -> None:
        self.writes += 1
        dies = self.writes == self.die_at
        if dies and self.when == "before":
            raise Killed
        if not self.forgets:
            self.runs[run.id] = run
        if dies:
            raise Killed

    def run(self, identity: str) -> Run:
        return self.runs[identity]

    def unfinished_runs(self) -> list[Run]:
        return [run for run in self.runs.values() if not run.ended]


def switches(local: Any, store: Any, groups: Any, reach: Any) -> Switches:
    """The use-cases of procedures over what a test has of a control plane."""
    doors = ControlDoors(local, reach, groups)
    return Switches(local, store, doors, Runner(store, doors), reach)


def refusal(message: str = "it does not work") -> StepFailed:
    return StepFailed(message)
