"""What a node does for a procedure beside its groups: it calls the user's scripts, and speaks to its poolers.

`LocalOutside` does it on this node, `RemoteOutside` asks another agent for the same. Which program a script
is stands in the deployed settings of the node that calls it; nobody can name another one through the API.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from castling import kinds
from castling.config import ApplicationSettings, Config
from castling.errors import NotFound, StateError
from castling.groups.topology import group_settings
from castling.kinds.base import PoolAction
from castling.switch.scripts import NOT_NEEDED, problem, run_script

if TYPE_CHECKING:
    from castling.control.nodes import LocalNode

__all__ = ["LocalOutside", "OutsideNode", "RemoteOutside", "application_settings"]

Json = dict[str, Any]
#: how long a pooler may take, seconds
POOL_S = 30.0
BESIDE_S = 10.0
#: no script may take longer; each has its own limit on the node that calls it
SCRIPT_MOST_S = 86_400.0


def application_settings(config: Config, application: str) -> ApplicationSettings:
    """What castling.toml says of it; a group of no application is one by itself."""
    if application in config.applications:
        return config.applications[application]
    of = [name for name, each in config.applications.items() if application in each.groups]
    if of:
        raise NotFound(f"group {application} belongs to application {of[0]}", hint=f"name {of[0]} instead")
    if application in config.groups:
        return ApplicationSettings(groups=[application])
    known = ", ".join(sorted({*config.applications, *config.groups})) or "none"
    raise NotFound(f"there is no application {application!r}", hint=f"applications and groups: {known}")


class OutsideNode(Protocol):
    async def look_scripts(self, application: str, names: list[str]) -> Json:
        """By name, why the script can't be called on this node; those that can are not in it."""

    async def call_script(self, application: str, name: str, values: dict[str, str]) -> Json:
        """Run it and wait: what it said. StepFailed when it fails, or is not done in time."""

    async def pool(self, group: str, action: PoolAction, primary: str) -> Json:
        """Let this node's pooler of the group hold its clients back, or lead them to `primary`."""


class LocalOutside:
    """Of one node."""

    def __init__(self, local: LocalNode) -> None:
        self._this = local

    async def look_scripts(self, application: str, names: list[str]) -> Json:
        scripts = application_settings(self._this.deployed(), application).scripts
        told = {name: problem(scripts[name]) for name in names if scripts.get(name, NOT_NEEDED) != NOT_NEEDED}
        return {name: what for name, what in told.items() if what is not None}

    async def call_script(self, application: str, name: str, values: dict[str, str]) -> Json:
        settings = application_settings(self._this.deployed(), application)
        path = settings.scripts.get(name, NOT_NEEDED)
        if path == NOT_NEEDED:
            raise StateError(f"castling.toml names no script {name} of {application}")
        folder = self._this.folder / "scripts"
        said = await run_script(name, path, values, limit_s=settings.script_limit, folder=folder)
        found: Json = msgspec.to_builtins(said)
        return found

    async def pool(self, group: str, action: PoolAction, primary: str) -> Json:
        settings = group_settings(self._this.deployed(), group)
        if self._this.name not in settings.pooler:
            raise NotFound(f"castling.toml names no pooler of {group} on {self._this.name}")
        kind = kinds.load(settings.kind)
        return await kind.pool(settings.pooler[self._this.name], action, primary)


class RemoteOutside(ABC):
    """The same of another node, by its `_call`."""

    @abstractmethod
    async def _call(self, method: str, path: str, body: Any = None, timeout_s: float = 0) -> Any:
        """The other agent's answer."""

    async def look_scripts(self, application: str, names: list[str]) -> Json:
        path = f"/v1/node/applications/{application}/scripts/look"
        found: Json = await self._call("POST", path, {"names": names}, BESIDE_S)
        return found

    async def call_script(self, application: str, name: str, values: dict[str, str]) -> Json:
        path = f"/v1/node/applications/{application}/scripts"
        found: Json = await self._call("POST", path, {"name": name, "values": values}, SCRIPT_MOST_S)
        return found

    async def pool(self, group: str, action: PoolAction, primary: str) -> Json:
        body = {"action": action, "primary": primary}
        found: Json = await self._call("POST", f"/v1/node/groups/{group}/pool", body, POOL_S)
        return found
