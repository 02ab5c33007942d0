"""Deploying: from what is written in castling.toml to what every node runs.

Two passes over the nodes. The first asks all of them and changes nothing; only when all
answered and nothing is refused, the second hands out the text. A node lost between the
two is named, and deploying again completes it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from castling import config as settings
from castling.config import Config
from castling.control import plan as planning
from castling.control.access import Caller
from castling.control.nodes import LocalNode, Node, ask_all
from castling.control.plan import Plan
from castling.control.store import Store
from castling.errors import CastlingError, ConfigError, DeployRefused
from castling.groups.topology import ends_on

__all__ = ["Deployment"]

Json = dict[str, Any]
#: the node of that name and API address
Reach = Callable[[str, str], Node]


class Deployment:
    """The use-cases around deployed settings."""

    def __init__(self, local: LocalNode, store: Store, reach: Reach, changing: asyncio.Lock) -> None:
        self._local = local
        self._store = store
        self._reach = reach
        self._changing = changing

    def current(self) -> Json:
        """What is deployed: its text, digest and version."""
        self._local.deployed()
        assert self._local.text is not None
        newest = self._store.deployments()[:1]
        return {
            "text": self._local.text,
            "digest": planning.digest(self._local.text),
            "version": newest[0]["version"] if newest else None,
        }

    async def plan(self, text: str) -> Json:
        """What deploying `text` would do; changes nothing."""
        found, told, _ = await self._look(text)
        return {**_as_json(found, told, planning.digest(text)), "running": self._running()}

    async def deploy(self, text: str, caller: Caller, expect: str | None) -> Json:
        """Make `text` run everywhere. `expect`: digest of what ran when the plan was shown."""
        async with self._changing:
            return await self._deploy(text, caller, expect)

    async def _deploy(self, text: str, caller: Caller, expect: str | None) -> Json:
        found, told, config = await self._look(text)
        if expect is not None and expect != self._running():
            raise DeployRefused(
                "something else was deployed since the plan was made", hint="look at the new plan"
            )
        digest = planning.digest(text)
        if all(said.get("digest") == digest for said in told.values()):
            return {"result": "already_deployed", **_as_json(found, told, digest)}
        if found.refused:
            raise DeployRefused("\n".join(found.refused), refused=found.refused)
        nodes = [node for node in self._nodes(config) if node.name in told]
        answers = await ask_all(nodes, lambda node: node.deploy(text, str(caller)))
        failed = {name: error for name, error in answers.items() if isinstance(error, CastlingError)}
        if failed:
            done = ", ".join(sorted(answers.keys() - failed.keys())) or "no node"
            name, error = sorted(failed.items())[0]
            raise type(error)(
                f"deployed on {done}; not on {name}: {error}",
                hint="`castling deploy` again completes it; nothing has to be undone",
            ) from error
        return {"result": "deployed", **_as_json(found, told, digest)}

    def _running(self) -> str:
        """Digest of what is deployed here, "" for nothing."""
        return "" if self._local.text is None else planning.digest(self._local.text)

    async def _look(self, text: str) -> tuple[Plan, dict[str, Json], Config]:
        """The plan, what every node said of itself, and the settings in `text`."""
        config = settings.parse(text)
        if self._local.name not in config.nodes:
            raise ConfigError(
                f"castling.toml: nodes: this node, {self._local.name}, is not among them",
                hint=f"add [nodes.{self._local.name}]",
            )
        answers = await ask_all(self._nodes(config), lambda node: node.describe())
        told: dict[str, Json] = {}
        notes = []
        for name, said in sorted(answers.items()):
            if not isinstance(said, CastlingError):
                told[name] = said
            elif name in config.nodes and ends_on(config, name):
                raise said
            elif name in config.nodes:
                notes.append(f"nodes.{name}: does not answer; it has nothing to run")
            else:
                notes.append(f"nodes.{name}: does not answer; what it still runs was not stopped")
        desired = [state for said in told.values() for state in said["desired"].items()]
        found = planning.plan(
            self._local.configured,
            config,
            installation=self._local.installation_name,
            begun={group for group, _ in desired},
            running={group for group, state in desired if state == "running"},
            roles=self._local.all_roles,
        )
        found.notes += notes
        return found, told, config

    def _nodes(self, config: Config) -> list[Node]:
        """Every node that has something to start, change or stop."""
        old = {} if self._local.config is None else self._local.config.nodes
        nodes = {**old, **config.nodes}
        return [
            self._local if name == self._local.name else self._reach(name, node.api)
            for name, node in nodes.items()
        ]


def _as_json(found: Plan, told: dict[str, Json], digest: str) -> Json:
    return {
        "digest": digest,
        "changes": [asdict(change) for change in found.changes],
        "restarts": [asdict(end) for end in found.restarts],
        "added": [asdict(end) for end in found.added],
        "removed": [asdict(end) for end in found.removed],
        "refused": found.refused,
        "notes": found.notes,
        "nodes": {
            name: {"version": said["version"], "current": said["digest"] == digest}
            for name, said in told.items()
        },
    }
