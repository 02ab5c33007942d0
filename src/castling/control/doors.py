"""The installation as the steps of a procedure see it (`switch.steps.Doors`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from castling.control.access import Caller
from castling.control.group import Groups
from castling.control.nodes import LocalNode, Node
from castling.control.outside import application_settings
from castling.errors import NotReplicable
from castling.groups.topology import group_settings, members
from castling.switch.steps import Hands

__all__ = ["ControlDoors"]

Json = dict[str, Any]


class ControlDoors:
    """`reach`: the node of that name and API address."""

    def __init__(self, local: LocalNode, reach: Callable[[str, str], Node], groups: Groups) -> None:
        self._local = local
        self._reach = reach
        self._groups = groups

    def node(self, name: str) -> Hands:
        return cast(Hands, self.agent(name))

    def agent(self, name: str) -> Node:
        if name == self._local.name:
            return self._local
        return self._reach(name, self._local.deployed().nodes[name].api)

    def members(self, group: str) -> list[str]:
        return members(group_settings(self._local.deployed(), group))

    def poolers(self, group: str) -> list[str]:
        return sorted(group_settings(self._local.deployed(), group).pooler)

    def script(self, application: str, name: str) -> str | None:
        return application_settings(self._local.deployed(), application).scripts.get(name)

    async def check(self, group: str) -> Json:
        found = await self._groups.check(group)
        refused = [each for each in found["findings"] if each["severity"] == "refused"]
        if refused:
            raise NotReplicable(
                f"the check refuses the start: {refused[0]['object']}: {refused[0]['message']}",
                hint=refused[0]["hint"],
                findings=refused,
            )
        return found

    async def desire(self, group: str, state: str, by: str) -> None:
        caller = Caller(by)
        if state == "running":
            await self._groups.start(group, caller)
        else:
            await self._groups.stop(group, caller)

    async def tree(self, group: str) -> Json:
        return await self._groups.tree(group)
