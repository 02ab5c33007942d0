"""What a node does for a change of roles: the kind's moves, with the folders, ends and roles they concern.

`LocalMoves` does it on this node, `RemoteMoves` asks another agent for the same. Each call is a step of a
procedure and may be repeated after any crash: it finds what it has done before. Nothing here decides in which
order they come; what would be harmful out of order is refused.
"""

from __future__ import annotations

import asyncio
import shutil
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from castling import kinds
from castling.config import GroupSettings
from castling.errors import CastlingError, NotDrained, StaleEpoch, StateError, UsageError
from castling.groups.role import Role, write_durably
from castling.groups.stream import SeedState, StreamState, load_stream, save_stream
from castling.groups.topology import group_settings, in_role, members, stream_folder
from castling.host import RealHost
from castling.journal.marks import Mark, Marks
from castling.kinds.base import Finding, Moves, Severity, Stream

if TYPE_CHECKING:
    from castling.control.nodes import LocalNode

__all__ = ["MOVES", "LocalMoves", "MoveBody", "MoveNode", "RemoteMoves"]

Json = dict[str, Any]
#: in the group's folder: what was carried, until the new primary is open
_FINAL = "carried.json"
#: seconds between two looks at how far a journal and its apply are
DRAIN_LOOK_S = 0.02
#: how long another agent may take for a move, seconds, beside what the move itself may wait
MOVE_S = 60.0


class MoveBody(msgspec.Struct, forbid_unknown_fields=True):
    """What a move needs; each takes its own of it. `epoch`, `to`: the role to come."""

    epoch: int = 0
    to: str = ""
    by: str = ""
    grace_s: float = 5.0
    wait_s: float = 0.0
    offset: int = 0
    final: Json = {}
    begin: Json = {}


class MoveNode(Protocol):
    """One node's part in a change of roles."""

    async def switch_state(self, group: str) -> Json:
        """`epoch`, `primary`; of the node's database: `fenced`, `prepared_epoch`, `open`; None: not known."""

    async def switch_check(self, group: str, to: str) -> Json:
        """`findings` against `to` becoming the primary, as far as this node sees."""

    async def fence(self, group: str, epoch: int, to: str, grace_s: float) -> Json:
        """No client writes here any more. On the backups first, on the primary last: clients that look for a
        server that can be written must not find one in between."""

    async def unfence(self, group: str) -> Json: ...
    async def mark(self, group: str) -> Json:
        """`offset`: behind all that clients have committed; `final`: for `carry`."""

    async def drained(self, group: str, offset: int, wait_s: float) -> Json:
        """`hardened` and `applied` of this node's copy, both beyond `offset`; NotDrained if not in time."""

    async def carry(self, group: str, final: Json) -> Json: ...
    async def prepare_source(self, group: str, epoch: int) -> Json:
        """`begin`: by backup, for `prepare_target`."""

    async def prepare_target(self, group: str, epoch: int, to: str, begin: Json) -> Json: ...
    async def unprepare(self, group: str, epoch: int, to: str) -> Json: ...
    async def promote(self, group: str, epoch: int, by: str) -> Json:
        """This node is the primary of `epoch`: durable, then its database is open. No way back."""

    async def leave(self, group: str) -> Json:
        """Remove what the role before has left here."""


class LocalMoves:
    """Of one node."""

    def __init__(self, local: LocalNode) -> None:
        self._local = local
        self._host = RealHost()

    # --- who is concerned ---------------------------------------------------------------------

    def _configured(self, group: str) -> GroupSettings:
        group_settings(self._local.deployed(), group)
        assert self._local.configured is not None
        return self._local.configured.groups[group]

    def _streams(self, group: str, primary: str) -> list[Stream]:
        """The group's flows while `primary` is the primary."""
        configured = self._configured(group)
        if primary not in members(configured):
            raise UsageError(f"{primary} is not a node of group {group}")
        settings = in_role(configured, Role(0, primary))
        return [Stream(group, backup, settings, self._local.deployed()) for backup in settings.backups]

    def _moves(self, group: str) -> Moves:
        return kinds.load(self._configured(group).kind).moves

    def _mine(self, group: str) -> Stream:
        """A flow with this node's database as its source, for what concerns that database alone."""
        return self._streams(group, self._local.name)[0]

    def _to_me(self, group: str, primary: str) -> Stream:
        for stream in self._streams(group, primary):
            if stream.backup == self._local.name:
                return stream
        raise UsageError(f"{self._local.name} is no backup of group {group} while {primary} is its primary")

    def _folder(self, stream: Stream) -> str:
        return str(stream_folder(self._local.folder, stream))

    # --- looking ------------------------------------------------------------------------------

    async def switch_state(self, group: str) -> Json:
        role, moves, mine = self._local.role(group), self._moves(group), self._mine(group)
        found: Json = {"epoch": role.epoch, "primary": role.primary}
        try:
            fenced = await moves.fenced(mine)
            prepared = await moves.prepared(mine)
        except CastlingError as error:
            return found | {"fenced": None, "prepared_epoch": None, "open": None, "problem": str(error)}
        is_open = role.primary == self._local.name and not fenced
        if prepared is not None and prepared[0] == role.epoch:
            is_open = is_open and prepared[1] and prepared[2]
        return found | {
            "fenced": fenced,
            "prepared_epoch": None if prepared is None else prepared[0],
            "open": is_open,
        }

    async def switch_check(self, group: str, to: str) -> Json:
        configured = self._configured(group)
        found = []
        if configured.capture_on not in (None, configured.primary):
            message = f"it is captured on {configured.capture_on}: {configured.primary} could not be a backup"
            hint = "run an agent beside the primary's database and leave out `capture_on`"
            found.append(Finding(Severity.REFUSED, "group", "not-switchable", message, hint))
        if to == self._local.name:
            role = self._local.role(group)
            if role.primary == to:
                found.append(Finding(Severity.REFUSED, "group", "already-primary", f"{to} is the primary"))
            else:
                found += await self._check_copy(group, role.primary)
            found += await self._moves(group).switchable(self._streams(group, to)[0])
        return {"findings": [msgspec.to_builtins(each) for each in found]}

    async def _check_copy(self, group: str, primary: str) -> list[Finding]:
        stream = self._to_me(group, primary)
        state = load_stream(self._host, self._folder(stream)).seed
        if state is not SeedState.SEEDED:
            message = f"the copy here is not complete: it is {state}"
            return [Finding(Severity.REFUSED, "group", "no-copy", message)]
        try:
            await self._moves(group).settled(stream)
        except NotDrained as error:
            return [Finding(Severity.REFUSED, "group", "parts-behind", str(error), error.hint)]
        return []

    # --- the old primary ----------------------------------------------------------------------

    async def fence(self, group: str, epoch: int, to: str, grace_s: float) -> Json:
        role = self._local.role(group)
        if epoch <= role.epoch and role.primary == self._local.name:
            raise StaleEpoch(
                f"{role.primary} is the primary of epoch {role.epoch}: not to be fenced for {epoch}"
            )
        return await self._moves(group).fence(
            self._mine(group),
            epoch=epoch,
            to=to,
            grace_s=grace_s,
            ending=role.primary == self._local.name,  # who reads a copy reads on
        )

    async def unfence(self, group: str) -> Json:
        role = self._local.role(group)
        if role.primary != self._local.name:
            raise StateError(f"{role.primary} is the primary of group {group}: only its database is written")
        await self._moves(group).unfence(self._mine(group))
        return {"fenced": False}

    async def mark(self, group: str) -> Json:
        offset, final = await self._moves(group).mark(self._mine(group))
        return {"offset": offset, "final": final}

    # --- the new primary ----------------------------------------------------------------------

    async def drained(self, group: str, offset: int, wait_s: float) -> Json:
        stream = self._to_me(group, self._local.role(group).primary)
        deadline = asyncio.get_running_loop().time() + wait_s
        while True:
            hardened, applied = self._reached(stream)
            if min(hardened, applied) > offset:
                await self._moves(group).settled(stream)
                return {"drained": True, "hardened": hardened, "applied": applied}
            if asyncio.get_running_loop().time() >= deadline:
                raise NotDrained(
                    f"{self._local.name} does not have everything yet: hardened {hardened}, applied"
                    f" {applied}, and the source is at {offset}",
                    hint="`castling group status` says what holds it up",
                    hardened=hardened,
                    applied=applied,
                )
            await asyncio.sleep(DRAIN_LOOK_S)

    def _reached(self, stream: Stream) -> tuple[int, int]:
        """Source positions up to which this node's journal and its copy are, 0 where that is not known."""
        marks = Marks(self._host, f"{self._folder(stream)}/journal")
        found: list[Mark | None] = [marks.read(name) for name in ("hardened", "applied")]
        hardened, applied = (0 if mark is None else mark.offset for mark in found)
        return hardened, applied

    async def carry(self, group: str, final: Json) -> Json:
        stream = self._to_me(group, self._local.role(group).primary)
        write_durably(self._host, self._groups(group), _FINAL, msgspec.json.encode(final))
        return await self._moves(group).carry(stream, final)

    async def _carry_again(self, group: str) -> None:
        """Apply may have gone on behind what was carried: now that it has ended, it is carried for good."""
        path = Path(self._groups(group)) / _FINAL
        if path.exists():
            other = next(name for name in members(self._configured(group)) if name != self._local.name)
            final = msgspec.json.decode(path.read_bytes())
            await self._moves(group).carry(self._to_me(group, other), final)

    def _groups(self, group: str) -> str:
        return str(self._local.folder / "groups" / group)

    async def prepare_source(self, group: str, epoch: int) -> Json:
        self._is_to_come(group, epoch)
        begin = {}
        for stream in self._streams(group, self._local.name):
            begin[stream.backup] = await self._moves(group).prepare_source(stream, epoch=epoch)
        return {"begin": begin}

    async def prepare_target(self, group: str, epoch: int, to: str, begin: Json) -> Json:
        stream = self._to_me(group, to)
        folder = self._folder(stream)
        known = load_stream(self._host, folder)
        role = self._local.role(group)
        if epoch < role.epoch or known.epoch > epoch:
            raise StaleEpoch(f"epoch {epoch} is over: it is {max(role.epoch, known.epoch)} now")
        if known.epoch == epoch and known.seed is SeedState.SEEDED:
            return {"prepared": True}
        if stream.backup not in begin:
            raise UsageError(f"nothing says where the stream to {stream.backup} begins")
        await self._moves(group).prepare_target(stream, epoch=epoch, begin=begin[stream.backup])
        await self._local.at_rest(group, stream.backup)
        await asyncio.to_thread(shutil.rmtree, folder, True)
        # apply may begin before receive has made its journal: a seeded stream has the place of one
        self._host.disk.makedirs(f"{folder}/journal")
        save_stream(self._host, folder, StreamState(SeedState.SEEDED, epoch=epoch))
        self._local.look_again(group)
        return {"prepared": True}

    async def unprepare(self, group: str, epoch: int, to: str) -> Json:
        self._is_to_come(group, epoch)
        streams = self._streams(group, to)
        for stream in streams:
            if self._local.name == to:
                await self._moves(group).unprepare(stream, source=True)
                # its guard stays: clients that look for a server to write must not find the copy
                (Path(self._groups(group)) / _FINAL).unlink(missing_ok=True)
            elif stream.backup == self._local.name:
                await self._moves(group).unprepare(stream, source=False)
                await asyncio.to_thread(shutil.rmtree, self._folder(stream), True)
        return {"prepared": False}

    def _is_to_come(self, group: str, epoch: int) -> None:
        role = self._local.role(group)
        if epoch <= role.epoch:
            raise StaleEpoch(f"epoch {epoch} is no longer to come: {role.primary} is primary of {role.epoch}")

    async def promote(self, group: str, epoch: int, by: str) -> Json:
        moves, mine = self._moves(group), self._mine(group)
        role = Role(epoch, self._local.name)
        if self._local.role(group) != role:
            prepared = await moves.prepared(mine)
            if prepared is None or prepared[:2] != (epoch, True):
                raise StateError(f"{self._local.name} is not prepared for epoch {epoch}")
            await self._local.take_role(group, epoch, self._local.name, by)
        if not (await self.switch_state(group))["open"]:
            await self._carry_again(group)
            await moves.open(mine, epoch=epoch)
        (Path(self._groups(group)) / _FINAL).unlink(missing_ok=True)
        return {"open": True}

    # --- afterwards ---------------------------------------------------------------------------

    async def leave(self, group: str) -> Json:
        role = self._local.role(group)
        is_primary = role.primary == self._local.name
        if not is_primary:
            state = load_stream(self._host, self._folder(self._to_me(group, role.primary)))
            if state.seed is SeedState.APART:
                raise StateError("what this node has committed alone is still to be looked at")
        for stream in self._streams(group, self._local.name) if not is_primary else [self._mine(group)]:
            await self._moves(group).leave(stream, source=not is_primary)
        kept = {self._folder(stream) for stream in self._streams(group, role.primary)}
        for former in members(self._configured(group)):
            for stream in self._streams(group, former):
                if self._folder(stream) not in kept:
                    await asyncio.to_thread(shutil.rmtree, self._folder(stream), True)
        return {"left": True}


class RemoteMoves(ABC):
    """The same of another node, by its `_call`."""

    @abstractmethod
    async def _call(self, method: str, path: str, body: Any = None, timeout_s: float = 0) -> Any:
        """The other agent's answer."""

    async def _move(self, group: str, name: str, patience_s: float = 0.0, **body: Any) -> Json:
        path = f"/v1/node/groups/{group}/switch/{name}"
        found: Json = await self._call("POST", path, body, MOVE_S + patience_s)
        return found

    async def switch_state(self, group: str) -> Json:
        return await self._move(group, "switch_state")

    async def switch_check(self, group: str, to: str) -> Json:
        return await self._move(group, "switch_check", to=to)

    async def fence(self, group: str, epoch: int, to: str, grace_s: float) -> Json:
        return await self._move(group, "fence", grace_s, epoch=epoch, to=to, grace_s=grace_s)

    async def unfence(self, group: str) -> Json:
        return await self._move(group, "unfence")

    async def mark(self, group: str) -> Json:
        return await self._move(group, "mark", 600.0)

    async def drained(self, group: str, offset: int, wait_s: float) -> Json:
        return await self._move(group, "drained", wait_s, offset=offset, wait_s=wait_s)

    async def carry(self, group: str, final: Json) -> Json:
        return await self._move(group, "carry", final=final)

    async def prepare_source(self, group: str, epoch: int) -> Json:
        return await self._move(group, "prepare_source", epoch=epoch)

    async def prepare_target(self, group: str, epoch: int, to: str, begin: Json) -> Json:
        return await self._move(group, "prepare_target", epoch=epoch, to=to, begin=begin)

    async def unprepare(self, group: str, epoch: int, to: str) -> Json:
        return await self._move(group, "unprepare", epoch=epoch, to=to)

    async def promote(self, group: str, epoch: int, by: str) -> Json:
        return await self._move(group, "promote", epoch=epoch, by=by)

    async def leave(self, group: str) -> Json:
        return await self._move(group, "leave")


#: by name: which parts of a body the move takes
MOVES: dict[str, tuple[str, ...]] = {
    "switch_state": (),
    "switch_check": ("to",),
    "fence": ("epoch", "to", "grace_s"),
    "unfence": (),
    "mark": (),
    "drained": ("offset", "wait_s"),
    "carry": ("final",),
    "prepare_source": ("epoch",),
    "prepare_target": ("epoch", "to", "begin"),
    "unprepare": ("epoch", "to"),
    "promote": ("epoch", "by"),
    "leave": (),
}
