"""Keeps what this node knows of roles true: asks the groups' other members, at start and at intervals.

A node that was away during a role change learns of it here. It believes a later epoch at once, because epochs
only rise and each is made durable by the node that becomes primary before anything else happens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from castling.control.nodes import LocalNode, Node, ask_all
from castling.errors import CastlingError
from castling.groups.role import Role
from castling.groups.topology import members
from castling.observe import events

__all__ = ["RoleKeeper", "later_roles"]

#: seconds between two rounds of questions
LOOK_S = 2.0


def later_roles(mine: dict[str, Role], told: dict[str, Any]) -> dict[str, Role]:
    """Of what another node said, the roles of a later epoch than those known here. Pure."""
    found = {}
    for group, said in told.items():
        if group in mine and said["epoch"] > mine[group].epoch:
            found[group] = Role(int(said["epoch"]), str(said["primary"]))
    return found


class RoleKeeper:
    """`reach`: the node of that name and API address."""

    def __init__(self, local: LocalNode, reach: Callable[[str, str], Node]) -> None:
        self._local = local
        self._reach = reach
        self._log = events("agent")
        self._told: dict[str, str] = {}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Ask every other member of this node's groups once, and believe what is later."""
        config = self._local.config
        if config is None:
            return
        mine = await self._local.roles()
        others = {node for group in mine for node in members(config.groups[group])} - {self._local.name}
        nodes = [self._reach(name, config.nodes[name].api) for name in sorted(others)]
        for name, said in (await ask_all(nodes, lambda node: node.roles())).items():
            if not isinstance(said, CastlingError):
                await self._believe(name, said)

    async def _believe(self, node: str, said: dict[str, Any]) -> None:
        known = self._local.all_roles
        for group, role in later_roles(known, said).items():
            try:
                await self._local.take_role(group, role.epoch, role.primary, f"what {node} said")
            except CastlingError as error:
                if self._told.get(group) != str(error):
                    self._log.error("agent.role_not_taken", group=group, epoch=role.epoch, error=str(error))
                self._told[group] = str(error)
