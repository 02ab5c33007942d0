"""The nodes of an installation as the service sees them: this one and the others, one face.

`LocalNode` does what one node does for itself: keeps the deployed settings, runs its
ends, reports them. `RemoteNode` asks another agent for the same over mutual TLS. So the
service never cares which node it runs on.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import httpx
import msgspec

import castling
from castling import config as settings
from castling import kinds
from castling.config import Config, GroupSettings
from castling.control import plan as planning
from castling.control.audits import Audits
from castling.control.client import CONNECT_S, unreachable, unwrap
from castling.control.home import Home, write_private
from castling.control.moves import LocalMoves, MoveNode, RemoteMoves
from castling.control.outside import LocalOutside, OutsideNode, RemoteOutside
from castling.control.rehearsals import Rehearsals
from castling.control.releases import Releases, Resting
from castling.control.store import Store
from castling.control.supervisor import EndStatus, Supervisor
from castling.control.tree import end_view
from castling.errors import CastlingError, LinkForeign, NotFound, NotInitialised, StateError
from castling.groups.role import ROLE_FILE, Role, load_roles, save_role
from castling.groups.stream import SeedState, StreamState, load_stream, save_stream
from castling.groups.topology import (
    End,
    EndName,
    end_paths,
    ends_on,
    group_settings,
    in_roles,
    members,
    stream_folder,
    streams,
)
from castling.host import RealHost
from castling.kinds.base import Finding, PartAction, Stream
from castling.link.authority import name_of_authority
from castling.observe import read_report

__all__ = ["LocalNode", "Node", "RemoteNode", "ask_all"]

#: how long the kind may take to look at both ends, seconds
CHECK_S = 120.0
#: how long another agent may take to say how it is, seconds
QUICK_S = 5.0
#: how long another agent may take to start or stop processes, seconds
SLOW_S = 60.0

#: how long another agent may take to copy what is not carried, seconds
COPY_S = 3600.0

Json = dict[str, Any]
Answer = TypeVar("Answer")


class Node(OutsideNode, MoveNode, Protocol):
    """What one agent does at another's request. Every call is safe to repeat."""

    name: str

    async def describe(self) -> Json:
        """node, version, digest of what is deployed (None: nothing), desired state by group; its clock
        (`now_ns`), and what the disk of its home has free (`free_bytes`)."""

    async def roles(self) -> Json:
        """By group of which the node is a member: the role that it knows, `epoch` and `primary`."""

    async def take_role(self, group: str, epoch: int, primary: str, by: str) -> Json:
        """Know from now on that `primary` is the primary of `epoch`: durable, then the ends of the former
        roles end and those of the new ones begin. StaleEpoch when a later epoch is known."""

    async def deploy(self, text: str, by: str) -> Json:
        """Make `text` what runs here; restarts exactly the ends it concerns."""

    async def desire(self, group: str, state: str, by: str) -> Json:
        """`running` or `stopped`; returns when the processes of a stopped group are gone."""

    async def ends(self, group: str) -> list[Json]:
        """The views of the ends that this node runs, each with its `backup` and `end`."""

    async def check(self, group: str) -> list[Json]:
        """The kind's findings about every stream of the group."""

    async def copy_left_behind(self, group: str) -> list[Json]:
        """Copy what the group does not carry as it changes; what was done with each object."""

    async def compare_schema(self, group: str) -> list[Json]:
        """How definitions differ between the ends of every stream, as findings."""

    async def foreign_writes(self, group: str, since_s: float | None, acknowledge: str | None) -> list[Json]:
        """Writes on this node's copy that are not the group's, each with its `backup`; see `Kind`."""

    async def rehearsal_open(self, group: str, identity: str, limit_s: float, by: str) -> Json:
        """Make a copy of this node's replica that can be written; see `Rehearsals`."""

    async def rehearsal_close(self, group: str, identity: str, by: str) -> Json:
        """End it."""

    async def rehearsals(self, group: str) -> list[Json]:
        """Those of this node, the newest first."""

    async def move_parts(self, group: str, action: PartAction, parts: list[str], reason: str) -> list[Json]:
        """Ask the group's apply on this node to hold or release parts: `backup`, `part`, `result` each."""

    async def audit(self, group: str, action: str, options: Json, by: str) -> Any:
        """Audits of the streams that this node captures: see `audits.Audits.answer`."""

    async def forget_kind(self, group: str, without: list[str]) -> None:
        """Remove what the kind left on sources, and on targets but those of the nodes in `without`."""

    async def forget(self, group: str, *, keep_role: bool) -> None:
        """Remove the group's folder and that it was ever started; StateError while it should run.
        `keep_role`: it begins anew in its current role, and not as castling.toml has it."""


async def ask_all(
    nodes: Iterable[Node], question: Callable[[Node], Awaitable[Answer]]
) -> dict[str, Answer | CastlingError]:
    """The answer of every node, or why there is none; all are asked at once."""
    answers: dict[str, Answer | CastlingError] = {}

    async def ask(node: Node) -> None:
        try:
            answers[node.name] = await question(node)
        except CastlingError as error:
            answers[node.name] = error

    async with asyncio.TaskGroup() as asking:
        for node in nodes:
            asking.create_task(ask(node))
    return answers


class LocalNode(LocalOutside, LocalMoves):
    """This node. Its `supervisor` must be running."""

    def __init__(self, home: Home, store: Store, supervisor: Supervisor, now_ns: Callable[[], int]) -> None:
        LocalOutside.__init__(self, self)
        LocalMoves.__init__(self, self)
        self.name = home.node()
        self.installation_name = name_of_authority(home.ca_cert.read_bytes())
        self._home = home
        self._store = store
        self._supervisor = supervisor
        self._now_ns = now_ns
        self.releases = Releases(self._resting)
        #: ends that run but are away for a moment, at the word of this agent alone
        self._away: set[End] = set()
        self.audits = Audits(store, self._captured)
        self.audits.groups = lambda: () if self.config is None else sorted(self.config.groups)
        self.copies = Rehearsals(store, self._own_stream, self._apply_away, now_ns)
        self.text = home.deployed.read_text(encoding="utf-8") if home.deployed.exists() else None
        #: as castling.toml has it
        self.configured = None if self.text is None else settings.parse(self.text, str(home.deployed))
        self._roles = self._load_roles()

    @property
    def config(self) -> Config | None:
        """What is deployed, as the current roles make it."""
        return None if self.configured is None else in_roles(self.configured, self._roles)

    def _load_roles(self) -> dict[str, Role]:
        groups = {} if self.configured is None else self.configured.groups
        primaries = {name: group.primary for name, group in groups.items()}
        return load_roles(RealHost(), str(self._home.groups), primaries)

    def role(self, group: str) -> Role:
        """The group's current role, as this node knows it."""
        group_settings(self.deployed(), group)
        return self._roles[group]

    @property
    def all_roles(self) -> dict[str, Role]:
        return dict(self._roles)

    @property
    def folder(self) -> Path:
        """The node's home."""
        return self._home.folder

    def wanted(self) -> list[End]:
        """The ends that should be running here."""
        desired = self._store.desired()
        running = (end for end in self.own_ends() if desired.get(end.group) == "running")
        return [end for end in running if end not in self._away]

    def own_ends(self) -> list[End]:
        """The ends that are this node's, running or not."""
        config = self.config
        return [] if config is None or self.name not in config.nodes else ends_on(config, self.name)

    def deployed(self) -> Config:
        config = self.config
        if config is None:
            raise NotInitialised(
                "nothing is deployed yet", hint="write castling.toml and run `castling deploy`"
            )
        return config

    async def describe(self) -> Json:
        return {
            "node": self.name,
            "version": castling.__version__,
            "digest": None if self.text is None else planning.digest(self.text),
            "desired": self._store.desired(),
            "now_ns": self._now_ns(),
            "free_bytes": RealHost().disk.free_bytes(str(self._home.folder)),
        }

    async def deploy(self, text: str, by: str) -> Json:
        config = settings.parse(text, "castling.toml")
        digest = planning.digest(text)
        if self.text is not None and digest == planning.digest(self.text):
            return {"result": "already_deployed"}
        before = self.own_ends()
        found = planning.plan(
            self.configured,
            config,
            installation=self.installation_name,
            begun=set(),
            running=set(self._store.desired()),
            roles=self._roles,
        )
        write_private(self._home.deployed, text.encode())
        version = self._store.add_deployment(digest, text, by)
        self.text, self.configured = text, config
        self._roles = self._load_roles()
        wanted = self.wanted()
        self._supervisor.keep(wanted, again=set(found.restarts) & set(wanted))
        await self._supervisor.settled(set(before) - set(wanted))
        return {"result": "deployed", "version": version}

    async def roles(self) -> Json:
        groups = {} if self.configured is None else self.configured.groups
        mine = {name for name, group in groups.items() if self.name in members(group)}
        return {name: msgspec.to_builtins(role) for name, role in self._roles.items() if name in mine}

    async def take_role(self, group: str, epoch: int, primary: str, by: str) -> Json:
        role, known = Role(epoch, primary), self.role(group)
        if primary not in members(group_settings(self.deployed(), group)):
            raise StateError(f"{primary} is not a node of group {group}")
        before = {end for end in self.own_ends() if end.group == group}
        if primary != known.primary:
            self._set_apart(group, role)
        save_role(RealHost(), str(self._home.groups / group), role)
        self._roles[group] = role
        if role != known:
            fields = {"group": group, "epoch": epoch, "primary": primary, "by": by}
            self._store.add_event("group.role_changed", fields)
            wanted = self.wanted()
            again = {end for end in wanted if end in before}
            self._supervisor.keep(wanted, again=again if primary != known.primary else ())
        after = {end for end in self.own_ends() if end.group == group}
        await self._supervisor.settled(before - after)
        return {"changed": role != known}

    async def at_rest(self, group: str, backup: str) -> None:
        """Let the ends of the stream to `backup` end, if they run here; `look_again` starts them."""
        mine = [end for end in self.own_ends() if (end.group, end.backup) == (group, backup)]
        self._supervisor.keep(set(self.wanted()) - set(mine))
        await self._supervisor.settled(mine)

    def look_again(self, group: str) -> None:
        """Let every end of this node run that should, those of `group` also after an error."""
        mine = [end for end in self.wanted() if end.group == group]
        failed = [end for end in mine if self._supervisor.status(end).state in ("failed", "pausing")]
        self._supervisor.keep(self.wanted(), again=failed)

    def _set_apart(self, group: str, role: Role) -> None:
        """This node's copy waits to be reintroduced, unless the role change itself has made it ready."""
        configured = self.configured
        assert configured is not None
        config = in_roles(configured, {**self._roles, group: role})
        for stream in streams(config, group):
            folder = str(stream_folder(self._home.folder, stream))
            if stream.backup == self.name and load_stream(RealHost(), folder).epoch < role.epoch:
                save_stream(RealHost(), folder, StreamState(SeedState.APART, epoch=role.epoch))

    async def desire(self, group: str, state: str, by: str) -> Json:
        group_settings(self.deployed(), group)
        begun = group in self._store.desired()
        changed = (begun or state == "running") and self._store.set_desired(group, state, by)
        mine = [end for end in ends_on(self.deployed(), self.name) if end.group == group]
        failed = [end for end in mine if self._supervisor.status(end).state in ("failed", "pausing")]
        self._supervisor.keep(self.wanted(), again=failed)
        if state == "stopped":
            await self._supervisor.settled(mine)
            await self.releases.look(group)
        return {"changed": changed or bool(failed)}

    async def ends(self, group: str) -> list[Json]:
        found = []
        desired = self._store.desired().get(group)
        for end in ends_on(self.deployed(), self.name):
            if end.group == group:
                report = read_report(end_paths(self._home.folder, end).report, self._now_ns())
                status = self._supervisor.status(end)
                view = end_view(report, status)
                place = {"backup": end.backup, "end": str(end.end), "node": self.name, "desired": desired}
                if end.end is EndName.SOURCE:
                    released = self.releases.warnings(group, end.backup)
                    view["warnings"] = [*(view.get("warnings") or ()), *released]
                    view["audit"] = self.audits.latest(group, end.backup)
                found.append({**view, **place})
        return found

    def _captured(self, group: str) -> list[Stream]:
        """The streams of the group that this node captures."""
        if self.config is None or group not in self.config.groups:
            return []
        here = {end.backup for end in self.own_ends() if end.group == group and end.end is EndName.SOURCE}
        return [stream for stream in streams(self.config, group) if stream.backup in here]

    async def audit(self, group: str, action: str, options: Json, by: str) -> Any:
        group_settings(self.deployed(), group)
        return await self.audits.answer(group, action, options, by)

    def _resting(self) -> Iterator[Resting]:
        """The streams that this node captures and that have no source end now, though they once had."""
        desired = self._store.desired()
        for end in self.own_ends():
            if end.end is not EndName.SOURCE or end.group not in desired:
                continue
            settings = group_settings(self.deployed(), end.group)
            status = self._supervisor.status(end)
            is_stopped = status.state == "stopped" and desired[end.group] == "stopped"
            if is_stopped or _is_lost(status, settings):
                stream = Stream(end.group, end.backup, settings, self.deployed())
                yield Resting(stream, failed=not is_stopped)

    async def check(self, group: str) -> list[Json]:
        kind = kinds.load(group_settings(self.deployed(), group).kind)
        return await self._findings(group, kind.check)

    async def copy_left_behind(self, group: str) -> list[Json]:
        kind = kinds.load(group_settings(self.deployed(), group).kind)
        found: list[Json] = []
        for stream in streams(self.deployed(), group):
            copied = await kind.copy_left_behind(stream)
            found += [{"backup": stream.backup, **msgspec.to_builtins(each)} for each in copied]
        return found

    async def compare_schema(self, group: str) -> list[Json]:
        kind = kinds.load(group_settings(self.deployed(), group).kind)
        return await self._findings(group, kind.compare_schema)

    async def _findings(self, group: str, look: Callable[[Stream], Awaitable[list[Finding]]]) -> list[Json]:
        found: list[Json] = []
        try:
            async with asyncio.timeout(CHECK_S):
                for stream in streams(self.deployed(), group):
                    findings = await look(stream)
                    found += [{"backup": stream.backup, **msgspec.to_builtins(each)} for each in findings]
        except TimeoutError:
            raise StateError(f"the check took longer than {CHECK_S:.0f} s") from None
        return found

    async def move_parts(self, group: str, action: PartAction, parts: list[str], reason: str) -> list[Json]:
        config = self.deployed()
        kind = kinds.load(group_settings(config, group).kind)
        found: list[Json] = []
        for stream in streams(config, group):
            if stream.backup == self.name:
                moved = await kind.move_parts(stream, action, parts, reason)
                found += [{"backup": stream.backup, **each} for each in moved]
        return found

    async def foreign_writes(self, group: str, since_s: float | None, acknowledge: str | None) -> list[Json]:
        config = self.deployed()
        kind = kinds.load(group_settings(config, group).kind)
        found: list[Json] = []
        for stream in streams(config, group):
            if stream.backup == self.name:
                told = await kind.foreign_writes(stream, since_s=since_s, acknowledge=acknowledge)
                found += [{"backup": stream.backup, **each} for each in told]
        return found

    async def rehearsal_open(self, group: str, identity: str, limit_s: float, by: str) -> Json:
        return await self.copies.open(group, identity, limit_s, by)

    async def rehearsal_close(self, group: str, identity: str, by: str) -> Json:
        return await self.copies.close(group, identity, f"ended by {by}")

    async def rehearsals(self, group: str) -> list[Json]:
        return self.copies.listed(group)

    def _own_stream(self, group: str) -> Stream:
        """The group's stream to this node, whatever its role is now."""
        settings = group_settings(self.deployed(), group)
        if self.name not in (settings.primary, *settings.backups):
            raise NotFound(f"{self.name} is no node of group {group}")
        return Stream(group, self.name, settings, self.deployed())

    @contextlib.asynccontextmanager
    async def _apply_away(self, stream: Stream) -> AsyncIterator[None]:
        end = End(stream.group, stream.backup, EndName.APPLY)
        self._away.add(end)
        try:
            self._supervisor.keep(self.wanted())
            await self._supervisor.settled([end])
            yield
        finally:
            self._away.discard(end)
            self._supervisor.keep(self.wanted())

    async def forget_kind(self, group: str, without: list[str]) -> None:
        config = self.deployed()
        kind = kinds.load(group_settings(config, group).kind)
        for stream in streams(config, group):
            await kind.forget(stream, target=stream.backup not in without)

    async def forget(self, group: str, *, keep_role: bool) -> None:
        if self._store.desired().get(group) == "running":
            raise StateError(f"group {group} is running", hint=f"`castling group stop {group}` first")
        group_settings(self.deployed(), group)
        await self.copies.close_all(group, "the group was removed or copied anew")
        kept = {ROLE_FILE} if keep_role else set()
        await asyncio.to_thread(_empty, self._home.groups / group, kept)
        self._roles = self._load_roles()
        self.audits.store.forget(group)
        self._store.forget_desired(group)


def _empty(folder: Path, kept: set[str]) -> None:
    """Remove the folder with what is in it; only the latter, where something is `kept`."""
    for each in folder.iterdir() if folder.exists() else ():
        if each.name not in kept:
            shutil.rmtree(each) if each.is_dir() else each.unlink()
    if not kept:
        shutil.rmtree(folder, ignore_errors=True)


def _is_lost(status: EndStatus, settings: GroupSettings) -> bool:
    """Whether nobody of a source end is there to keep the group's choice: it has failed, or is started
    again and again and lives for less than the time after which commits shall stop waiting."""
    if status.state == "pausing" and settings.on_sync_loss == "degrade":
        return status.away_s > settings.degrade_after
    return status.state == "failed"


class RemoteNode(RemoteOutside, RemoteMoves):
    """Another agent, asked with this node's certificate."""

    def __init__(self, name: str, address: str, tls: ssl.SSLContext) -> None:
        self.name = name
        self.address = address
        self._tls = tls

    async def ask(self, method: str, path: str, body: Any = None, timeout_s: float = QUICK_S) -> Any:
        """The answer of any path of the other agent's API for nodes."""
        return await self._call(method, path, body, timeout_s)

    async def _call(self, method: str, path: str, body: Any = None, timeout_s: float = QUICK_S) -> Any:
        try:
            async with httpx.AsyncClient(
                base_url=f"https://{self.address}",
                verify=self._tls,
                trust_env=False,
                timeout=httpx.Timeout(timeout_s, connect=min(CONNECT_S, timeout_s)),
            ) as http:
                answer = await http.request(method, path, json=body)
                return unwrap(answer.status_code, answer.content, self.address)
        except (httpx.HTTPError, OSError) as error:
            raise _named(self.name, unreachable(self.address, error)) from error
        except LinkForeign as error:
            raise _named(self.name, error) from error

    async def describe(self) -> Json:
        found: Json = await self._call("GET", "/v1/node")
        return found

    async def roles(self) -> Json:
        found: Json = await self._call("GET", "/v1/node/roles")
        return found

    async def take_role(self, group: str, epoch: int, primary: str, by: str) -> Json:
        body = {"epoch": epoch, "primary": primary, "by": by}
        found: Json = await self._call("POST", f"/v1/node/groups/{group}/role", body, SLOW_S)
        return found

    async def deploy(self, text: str, by: str) -> Json:
        found: Json = await self._call("POST", "/v1/node/deploy", {"text": text, "by": by}, SLOW_S)
        return found

    async def desire(self, group: str, state: str, by: str) -> Json:
        body = {"state": state, "by": by}
        found: Json = await self._call("POST", f"/v1/node/groups/{group}/desire", body, SLOW_S)
        return found

    async def ends(self, group: str) -> list[Json]:
        found: list[Json] = await self._call("GET", f"/v1/node/groups/{group}/ends")
        return found

    async def check(self, group: str) -> list[Json]:
        found: list[Json] = await self._call(
            "POST", f"/v1/node/groups/{group}/check", None, CHECK_S + QUICK_S
        )
        return found

    async def copy_left_behind(self, group: str) -> list[Json]:
        path = f"/v1/node/groups/{group}/copy-unlogged"
        found: list[Json] = await self._call("POST", path, None, COPY_S)
        return found

    async def compare_schema(self, group: str) -> list[Json]:
        path = f"/v1/node/groups/{group}/compare-schema"
        found: list[Json] = await self._call("POST", path, None, CHECK_S + QUICK_S)
        return found

    async def move_parts(self, group: str, action: PartAction, parts: list[str], reason: str) -> list[Json]:
        body = {"action": action, "parts": parts, "reason": reason}
        found: list[Json] = await self._call("POST", f"/v1/node/groups/{group}/parts", body, SLOW_S)
        return found

    async def foreign_writes(self, group: str, since_s: float | None, acknowledge: str | None) -> list[Json]:
        body = {"since_s": since_s, "acknowledge": acknowledge}
        found: list[Json] = await self._call("POST", f"/v1/node/groups/{group}/foreign-writes", body, SLOW_S)
        return found

    async def audit(self, group: str, action: str, options: Json, by: str) -> Any:
        body = {"action": action, "options": options, "by": by}
        timeout_s = COPY_S if action == "repair" else SLOW_S
        return await self._call("POST", f"/v1/node/groups/{group}/audit", body, timeout_s)

    async def rehearsal_open(self, group: str, identity: str, limit_s: float, by: str) -> Json:
        body = {"id": identity, "limit_s": limit_s, "by": by}
        path = f"/v1/node/groups/{group}/rehearsals"
        found: Json = await self._call("POST", path, body, COPY_S)
        return found

    async def rehearsal_close(self, group: str, identity: str, by: str) -> Json:
        path = f"/v1/node/groups/{group}/rehearsals/close"
        found: Json = await self._call("POST", path, {"id": identity, "by": by}, COPY_S)
        return found

    async def rehearsals(self, group: str) -> list[Json]:
        found: list[Json] = await self._call("GET", f"/v1/node/groups/{group}/rehearsals")
        return found

    async def forget_kind(self, group: str, without: list[str]) -> None:
        await self._call("POST", f"/v1/node/groups/{group}/forget-kind", {"without": without}, SLOW_S)

    async def forget(self, group: str, *, keep_role: bool) -> None:
        await self._call("POST", f"/v1/node/groups/{group}/forget", {"keep_role": keep_role}, SLOW_S)


def _named(node: str, error: CastlingError) -> CastlingError:
    named = type(error)(f"node {node}: {error}", hint=error.hint)
    named.context = {**error.context, "node": node}
    return named
