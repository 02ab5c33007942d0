"""The use-cases around groups: check, start, stop, status, remove.

Written once, whichever node is asked: each step is done by the node that it concerns.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from castling.control.access import Caller
from castling.control.nodes import LocalNode, Node, ask_all
from castling.control.rehearsals import LIMIT_MOST_S
from castling.control.tree import group_tree, unknown_end
from castling.errors import AgentUnreachable, CastlingError, NotFound, NotReplicable, StateError, UsageError
from castling.groups.topology import capture_node, ends_on, group_settings
from castling.kinds.base import PartAction

__all__ = ["Groups"]

Json = dict[str, Any]
Reach = Callable[[str, str], Node]


class Groups:
    """`changing`: one change of groups or deployment at a time; looking is always possible."""

    def __init__(self, local: LocalNode, reach: Reach, changing: asyncio.Lock) -> None:
        self._local = local
        self._reach = reach
        self._changing = changing

    # --- looking ------------------------------------------------------------------------------

    async def trees(self) -> list[Json]:
        """The tree of every deployed group; none when nothing is deployed."""
        if self._local.config is None:
            return []
        return [await self.tree(group) for group in sorted(self._local.config.groups)]

    async def tree(self, group: str) -> Json:
        config = self._local.deployed()
        group_settings(config, group)
        ends: dict[tuple[str, str], Json] = {}
        answers = await ask_all(self._nodes(group), lambda node: node.ends(group))
        for name, said in answers.items():
            if isinstance(said, CastlingError):
                lost = [end for end in ends_on(config, name) if end.group == group]
                ends.update({(end.backup, str(end.end)): unknown_end(said) for end in lost})
            else:
                ends.update({(end["backup"], end["end"]): end for end in said})
        configured = self._local.configured
        primary = None if configured is None else configured.groups[group].primary
        tree = group_tree(config, group, ends, role=self._local.role(group), configured=primary)
        return {**tree, "node": self._local.name}

    async def ready(self, group: str, *, rpo_s: float, lag_s: float) -> tuple[bool, Json]:
        """Whether every stream runs, with RPO and apply lag known and at most `rpo_s` and `lag_s`."""
        tree = await self.tree(group)
        reasons = []
        for stream in tree["streams"]:
            if stream["state"] != "running":
                reasons.append(f"{stream['backup']}: {stream['state']}")
            reasons += [
                f"{stream['backup']}: {warning['message']}" for warning in stream.get("warnings") or ()
            ]
            for figure, most in (("rpo_s", rpo_s), ("apply_lag_s", lag_s)):
                value = stream[figure]
                if value is None:
                    reasons.append(f"{stream['backup']}: {figure} is unknown")
                elif value > most:
                    reasons.append(f"{stream['backup']}: {figure} is {value:.1f}")
        return not reasons, {
            "group": group,
            "ready": not reasons,
            "rpo_s": rpo_s,
            "lag_s": lag_s,
            "reasons": reasons,
        }

    async def check(self, group: str) -> Json:
        """What can't be replicated and why, by the node that captures. Changes nothing."""
        settings = group_settings(self._local.deployed(), group)
        node = self._node(capture_node(settings))
        findings = await node.check(group)
        refused = sum(finding["severity"] == "refused" for finding in findings)
        return {"group": group, "node": node.name, "refused": refused, "findings": findings}

    async def compare_schema(self, group: str) -> Json:
        """How definitions differ between source and target, by the node that captures. Changes nothing."""
        settings = group_settings(self._local.deployed(), group)
        node = self._node(capture_node(settings))
        findings = await node.compare_schema(group)
        differing = sum(finding["severity"] != "ok" for finding in findings)
        return {"group": group, "node": node.name, "differences": differing, "findings": findings}

    async def foreign_writes(
        self, group: str, *, since_s: float | None = None, acknowledge: Caller | None = None
    ) -> Json:
        """Writes on every backup that are not the group's: of the last `since_s` seconds, or those that
        nobody has acknowledged. `acknowledge`: who has seen what is returned."""
        settings = group_settings(self._local.deployed(), group)
        nodes = [self._node(backup) for backup in settings.backups]
        by = None if acknowledge is None else str(acknowledge)
        told = _all(await ask_all(nodes, lambda node: node.foreign_writes(group, since_s, by)))
        writes = [each for said in told.values() for each in said]
        is_open = sum(each["acknowledged_ns"] is None for each in writes)
        return {"group": group, "acknowledged": by is not None, "open": is_open, "writes": writes}

    async def rehearsals(self, group: str) -> list[Json]:
        """Those of every backup, the newest first."""
        settings = group_settings(self._local.deployed(), group)
        nodes = [self._node(backup) for backup in settings.backups]
        told = _all(await ask_all(nodes, lambda node: node.rehearsals(group)))
        return sorted((each for said in told.values() for each in said), key=lambda one: -one["begun_ns"])

    async def rehearsal_open(self, group: str, backup: str | None, limit_s: float, caller: Caller) -> Json:
        """A copy of the replica of `backup` (None: of the only one) that can be written for `limit_s`."""
        if not 1 <= limit_s <= LIMIT_MOST_S:
            raise UsageError(f"the time limit is from 1 s to {LIMIT_MOST_S / 86400:.0f} days")
        backups = group_settings(self._local.deployed(), group).backups
        if backup is None and len(backups) > 1:
            raise UsageError(f"group {group} has several backups", hint=f"one of: {', '.join(backups)}")
        if (backup or backups[0]) not in backups:
            raise UsageError(
                f"{backup} is not a backup of {group}", hint=f"its backups: {', '.join(backups)}"
            )
        node = self._node(backup or backups[0])
        return await node.rehearsal_open(group, secrets.token_hex(4), limit_s, str(caller))

    async def rehearsal_close(self, group: str, identity: str, caller: Caller) -> Json:
        """End a rehearsal before its time."""
        for each in await self.rehearsals(group):
            if each["id"] == identity:
                return await self._node(each["backup"]).rehearsal_close(group, identity, str(caller))
        raise NotFound(f"there is no rehearsal {identity!r} of group {group}")

    # --- changing -----------------------------------------------------------------------------

    async def copy_left_behind(self, group: str) -> Json:
        """Copy what is not carried as it changes, by the node that captures."""
        async with self._changing:
            settings = group_settings(self._local.deployed(), group)
            node = self._node(capture_node(settings))
            copied = await node.copy_left_behind(group)
            failed = sum(bool(each["problem"]) for each in copied)
            return {"group": group, "node": node.name, "failed": failed, "copied": copied}

    async def start(self, group: str, caller: Caller) -> Json:
        """Check, then run the group on all its nodes. NotReplicable names what would be lost."""
        async with self._changing:
            nodes = self._nodes(group)
            if await self._same_deployment(group, nodes) and await self._unbroken(group):
                return {"group": group, "result": "already_running", "node": "", "refused": 0, "findings": []}
            checked = await self._checked(group)
            await self._desire(group, "running", caller, nodes)
            return {"group": group, "result": "started", **checked}

    async def reseed(self, group: str, caller: Caller) -> Json:
        """Throw the copy and its journals away and make the first copy anew; the source is only read.

        Nothing is thrown away before the check has passed.
        """
        async with self._changing:
            nodes = self._nodes(group)
            await self._same_deployment(group, nodes)
            checked = await self._checked(group)
            await self._desire(group, "stopped", caller, nodes)
            _all(await ask_all(nodes, lambda node: node.forget(group, keep_role=True)))
            await self._desire(group, "running", caller, nodes)
            return {"group": group, "result": "reseeding", **checked}

    async def _checked(self, group: str) -> Json:
        """What the check found; NotReplicable when it refuses."""
        checked = await self.check(group)
        refused = [each for each in checked["findings"] if each["severity"] == "refused"]
        if refused:
            first = "; ".join(f"{each['object']}: {each['message']}" for each in refused[:3])
            raise NotReplicable(
                f"the check refuses the start ({len(refused)} found): {first}",
                hint=refused[0]["hint"] or f"`castling check {group}` shows all of them",
                findings=refused,
            )
        return checked

    async def stop(self, group: str, caller: Caller) -> Json:
        """End the group's processes on all nodes. What was acknowledged stays; start goes on from there."""
        async with self._changing:
            changed = await self._desire(group, "stopped", caller, self._nodes(group))
            return {"group": group, "result": "stopped" if changed else "already_stopped"}

    async def move_parts(self, group: str, action: PartAction, parts: list[str], reason: str) -> Json:
        """Ask for parts (tables, say) of the group to be held or released on every backup."""
        settings = group_settings(self._local.deployed(), group)
        async with self._changing:
            nodes = [self._node(backup) for backup in settings.backups]
            told = _all(await ask_all(nodes, lambda node: node.move_parts(group, action, parts, reason)))
        return {"group": group, "action": action, "parts": [each for said in told.values() for each in said]}

    async def remove(self, group: str, caller: Caller, without: list[str]) -> Json:
        """Forget the group: slot and publication, progress, journals. The data of both databases stays.

        `without`: nodes that are gone for good; nothing is asked of them or done on them. Should one come
        back, what it has of the group belongs to nobody, and the source refuses it: its slot is gone.
        """
        async with self._changing:
            nodes = self._nodes(group)
            unknown = sorted(set(without) - {node.name for node in nodes})
            if unknown:
                raise UsageError(
                    f"{unknown[0]} is not a node of group {group}",
                    hint=f"its nodes: {', '.join(node.name for node in nodes)}",
                )
            nodes = [node for node in nodes if node.name not in without]
            told = _told(await ask_all(nodes, lambda node: node.describe()))
            states = [said["desired"].get(group) for said in told.values()]
            if "running" in states:
                raise StateError(f"group {group} is running", hint=f"`castling group stop {group}` first")
            if not any(states):
                return {"group": group, "result": "already_removed"}
            captures = capture_node(group_settings(self._local.deployed(), group))
            await (self._local if captures in without else self._node(captures)).forget_kind(group, without)
            _all(await ask_all(nodes, lambda node: node.forget(group, keep_role=False)))
            return {"group": group, "result": "removed"}

    async def _desire(self, group: str, state: str, caller: Caller, nodes: list[Node]) -> bool:
        """True when any node had to change something. All nodes are asked even if one does not answer."""
        answers = await ask_all(nodes, lambda node: node.desire(group, state, str(caller)))
        return any(said["changed"] for said in _all(answers).values())

    async def _unbroken(self, group: str) -> bool:
        """No end of the group waits for a person."""
        tree = await self.tree(group)
        return all(end["state"] != "failed" for each in tree["streams"] for end in each["ends"].values())

    async def _same_deployment(self, group: str, nodes: list[Node]) -> bool:
        """True when the group should run on all of them; StateError where something else is deployed."""
        told = _told(await ask_all(nodes, lambda node: node.describe()))
        mine = told.get(self._local.name) or await self._local.describe()
        for name, said in sorted(told.items()):
            if said["digest"] != mine["digest"]:
                raise StateError(
                    f"node {name} runs another configuration than {self._local.name}",
                    hint="`castling deploy` brings all nodes to the same",
                )
        return all(said["desired"].get(group) == "running" for said in told.values())

    def captures(self, group: str) -> Node:
        """The node that captures the group."""
        return self._node(capture_node(group_settings(self._local.deployed(), group)))

    def _nodes(self, group: str) -> list[Node]:
        """The nodes that run ends of the group."""
        settings = group_settings(self._local.deployed(), group)
        return [self._node(name) for name in dict.fromkeys([capture_node(settings), *settings.backups])]

    def _node(self, name: str) -> Node:
        if name == self._local.name:
            return self._local
        return self._reach(name, self._local.deployed().nodes[name].api)


def _told(answers: dict[str, Json | CastlingError]) -> dict[str, Any]:
    """Every node's answer to a question; if some have none, the first one's error: nothing was changed."""
    for _, said in sorted(answers.items()):
        if isinstance(said, AgentUnreachable):
            raise AgentUnreachable(f"{said}; nothing was changed", hint=said.hint, **said.context) from said
    return _all(answers)


def _all(answers: Mapping[str, Json | list[Json] | CastlingError | None]) -> dict[str, Any]:
    """Every node's answer; if some have none, the first one's error, saying which others did answer."""
    lost = {name: said for name, said in answers.items() if isinstance(said, CastlingError)}
    for name, error in sorted(lost.items()):
        done = sorted(answers.keys() - lost.keys())
        if isinstance(error, AgentUnreachable) and done:
            raise AgentUnreachable(
                f"{error} (done on {', '.join(done)})", hint=error.hint, node=name
            ) from error
        raise error
    return {name: said for name, said in answers.items() if not isinstance(said, CastlingError)}
