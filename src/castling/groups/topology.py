"""Which end of which stream runs where: pure functions of the configuration and the current roles.

A stream is one group's flow to one backup. It has three ends, each one process:
source (captures and sends), receive (hardens the remote journal), apply (writes the
replica). castling.toml has the *configured* roles; `in_roles` gives the settings that hold in the
current ones, and everything else here, and everything behind it, is asked about those.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from castling.config import Config, GroupSettings
from castling.errors import NotFound, RoleError
from castling.groups.role import Role
from castling.kinds.base import Stream

__all__ = [
    "End",
    "EndName",
    "capture_node",
    "end_paths",
    "ends_on",
    "group_settings",
    "in_role",
    "in_roles",
    "listen_address",
    "members",
    "receive_address",
    "stream_folder",
    "streams",
]


class EndName(enum.StrEnum):
    SOURCE = "source"
    RECEIVE = "receive"
    APPLY = "apply"


@dataclass(frozen=True, order=True, slots=True)
class End:
    """One data-plane process: `end` of the stream of `group` to `backup`."""

    group: str
    backup: str
    end: EndName


@dataclass(frozen=True, slots=True)
class EndPaths:
    """The files by which an end's process is known: its lock (pid inside), report and log."""

    lock: Path
    report: Path
    log: Path


def group_settings(config: Config, group: str) -> GroupSettings:
    if group not in config.groups:
        known = ", ".join(sorted(config.groups)) or "none"
        raise NotFound(f"there is no group {group!r}", hint=f"groups: {known}")
    return config.groups[group]


def members(group: GroupSettings) -> list[str]:
    """The nodes that hold the group's data; the same in every role."""
    return sorted({group.primary, *group.backups})


def in_role(group: GroupSettings, role: Role) -> GroupSettings:
    """The settings that hold while `role.primary` is the primary: every other node is a backup.

    The order of the backups is that of the configuration, with the configured primary before them. What is
    configured for the configured primary alone (`capture_on`) holds in its role only.
    """
    if role.primary == group.primary:
        return group
    nodes = [group.primary, *group.backups]
    if role.primary not in nodes:
        raise RoleError(
            f"the primary of epoch {role.epoch} is {role.primary}, which castling.toml does not name",
            hint="deploy a castling.toml that has all nodes of the group",
        )
    backups = [node for node in nodes if node != role.primary]
    return msgspec.structs.replace(group, primary=role.primary, backups=backups, capture_on=None)


def in_roles(config: Config, roles: Mapping[str, Role]) -> Config:
    """`config` with the settings of every group as its current role makes them."""
    groups = {
        name: in_role(group, roles[name]) if name in roles else group for name, group in config.groups.items()
    }
    return msgspec.structs.replace(config, groups=groups)


def capture_node(group: GroupSettings) -> str:
    """The node whose agent runs the source ends of the group."""
    return group.capture_on or group.primary


def streams(config: Config, group: str) -> list[Stream]:
    """The group's streams, one for each backup, in the order written."""
    settings = group_settings(config, group)
    return [Stream(group, backup, settings, config) for backup in settings.backups]


def ends_on(config: Config, node: str) -> list[End]:
    """Every end that `node` has to run, in a stable order."""
    ends = []
    for name, group in sorted(config.groups.items()):
        for backup in group.backups:
            if capture_node(group) == node:
                ends.append(End(name, backup, EndName.SOURCE))
            if backup == node:
                ends.append(End(name, backup, EndName.RECEIVE))
                ends.append(End(name, backup, EndName.APPLY))
    return ends


def _with_port(address: str, port: int | None) -> str:
    host, _, own = address.rpartition(":")
    return f"{host}:{port if port is not None else own}"


def receive_address(config: Config, group: str, backup: str) -> str:
    """Where the source end finds the receive end, `host:port`."""
    return _with_port(config.nodes[backup].link, group_settings(config, group).link.port)


def listen_address(config: Config, group: str, backup: str) -> str:
    """What the receive end binds, `host:port`: `link_listen` as written, else the node's `link`."""
    node = config.nodes[backup]
    if node.link_listen is not None:
        return node.link_listen
    return _with_port(node.link, group_settings(config, group).link.port)


def stream_folder(home: Path, stream: Stream) -> Path:
    """The folder of the stream on its backup: the journal, its marks and the seed's state."""
    return home / "groups" / stream.group / f"{stream.settings.primary}-{stream.backup}"


def end_paths(home: Path, end: End) -> EndPaths:
    folder = home / "groups" / end.group
    stem = f"{end.backup}.{end.end}"
    return EndPaths(folder / f"{stem}.lock", folder / f"{stem}.json", folder / f"{stem}.log")
