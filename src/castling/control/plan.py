"""What a deployment changes: a pure comparison of running and written settings.

Names every key that was added, removed or changed, the ends that have to restart for
it, and what can't be done to a group that holds a copy. An end that no changed key
concerns keeps running untouched.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from castling.config import Config
from castling.groups.role import Role
from castling.groups.topology import End, EndName, ends_on, in_roles, members

__all__ = ["Change", "ChangeKind", "Plan", "all_ends", "digest", "plan"]

Path = tuple[str, ...]

#: can't change while the group holds a copy: the copy would silently be of something else
_IDENTITY = ("kind", "primary", "include", "exclude", "rename", "rows", "columns")
#: can't change while the group runs
_DATABASE_IDENTITY = ("host", "port", "dbname")


class ChangeKind(enum.StrEnum):
    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True)
class Change:
    """One key that differs. `old`, `new`: None where there is none."""

    path: str
    kind: ChangeKind
    old: Any
    new: Any


@dataclass(slots=True)
class Plan:
    changes: list[Change] = field(default_factory=list)
    #: ends that run on but must begin anew with the new settings
    restarts: list[End] = field(default_factory=list)
    added: list[End] = field(default_factory=list)
    removed: list[End] = field(default_factory=list)
    #: why this can't be deployed now, each with what to do first
    refused: list[str] = field(default_factory=list)
    #: what the user has to do besides
    notes: list[str] = field(default_factory=list)


def digest(text: str) -> str:
    """By which nodes tell whether they run the same settings."""
    return hashlib.sha256(text.encode()).hexdigest()


def all_ends(config: Config | None) -> set[End]:
    return set() if config is None else {end for node in config.nodes for end in ends_on(config, node)}


def plan(
    old: Config | None,
    new: Config,
    *,
    installation: str,
    begun: set[str],
    running: set[str],
    roles: Mapping[str, Role] | None = None,
) -> Plan:
    """`installation`: the name in the CA's certificate. `begun`: groups that hold a copy (started, not
    removed since); `running`: those that should run; `roles`: the current ones of the groups."""
    found = Plan(changes=list(_changes(old, new)))
    refused = [] if old is None else list(_refusals(old, new, found, begun, running))
    roles = _still_members(new, roles or {})
    old, new = old and in_roles(old, roles), in_roles(new, roles)
    before, after = all_ends(old), all_ends(new)
    found.added, found.removed = sorted(after - before), sorted(before - after)
    touched: set[End] = set()
    for change in found.changes:
        touched |= set(_touched(new, tuple(change.path.split("."))))
    found.restarts = sorted(end for end in touched & before & after if end.group in running)
    if installation != new.installation.name:
        found.refused.append(
            f"installation.name: the certificates of this installation say {installation}; it can't change"
        )
    found.refused += refused
    found.notes = list(_notes(old, found.changes))
    return found


def _still_members(config: Config, roles: Mapping[str, Role]) -> dict[str, Role]:
    """The roles whose primary `config` still knows; another is refused where it holds a copy."""
    groups = config.groups
    return {
        name: role for name, role in roles.items() if name in groups and role.primary in members(groups[name])
    }


def _changes(old: Config | None, new: Config) -> Iterator[Change]:
    before = {} if old is None else dict(_leaves(msgspec.to_builtins(old), ()))
    after = dict(_leaves(msgspec.to_builtins(new), ()))
    for path in sorted(before.keys() | after.keys()):
        name = ".".join(path)
        if path not in before:
            # a key that is added with a whole group or node is told once, with its value
            if after[path] is not None:
                yield Change(name, ChangeKind.ADDED, None, after[path])
        elif path not in after:
            if before[path] is not None:
                yield Change(name, ChangeKind.REMOVED, before[path], None)
        elif before[path] != after[path]:
            yield Change(name, ChangeKind.CHANGED, before[path], after[path])


def _leaves(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    if isinstance(value, dict) and (value or not path):
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    elif not isinstance(value, dict):
        yield path, value


def _touched(config: Config, path: Path) -> Iterator[End]:
    """The ends that read the setting at `path`."""
    for end in all_ends(config):
        group = config.groups[end.group]
        if path[0] == "groups" and path[1] == end.group:
            if _reads(end, group.primary, path[2:]):
                yield end
        elif path[0] == "nodes" and path[1] == end.backup and path[2] in ("link", "link_listen"):
            if end.end in (EndName.SOURCE, EndName.RECEIVE):
                yield end
        elif path[0] == "nodes" and path[2] == "postgres_bin":
            on_backup = end.end is not EndName.SOURCE
            if path[1] == (end.backup if on_backup else (group.capture_on or group.primary)):
                yield end


def _reads(end: End, primary: str, path: Path) -> bool:
    """Whether `end` reads the setting at `path` of its own group; those not named here all ends read."""
    source, receive, apply = (end.end is name for name in (EndName.SOURCE, EndName.RECEIVE, EndName.APPLY))
    match path:
        case ("databases", node, *_):
            # the first copy is written by the receive end
            return source if node == primary else (receive or apply) and node == end.backup
        case ("retention", *_):
            return receive
        case ("seed", "bandwidth"):
            return source
        case ("link", *_) | ("seed", *_) | ("capture_on",):
            return source or receive
        case ("apply_memory",) | ("batch_changes",) | ("row_max",):
            return apply
        case ("wal_spool",) | ("wal_limit",) | ("on_wal_limit",) | ("spool", *_):
            return source
        case ("heartbeat",) | ("wal_alarm",) | ("delivery",) | ("on_sync_loss",) | ("degrade_after",):
            return source
        case ("backups",) | ("audit", *_) | ("pooler", *_):
            return False  # the agent reads them as they are deployed
    return True


def _refusals(old: Config, new: Config, found: Plan, begun: set[str], running: set[str]) -> Iterator[str]:
    for name in sorted(begun & old.groups.keys()):
        if name not in new.groups:
            yield f"groups.{name}: holds a copy; `castling group remove {name}` first"
            continue
        for gone in sorted(set(old.groups[name].backups) - set(new.groups[name].backups)):
            yield f"groups.{name}.backups: {gone} holds a copy; `castling group remove {name}` first"
    for change in found.changes:
        path = tuple(change.path.split("."))
        if path[0] != "groups" or path[1] not in old.groups or path[1] not in new.groups:
            continue
        group, key = path[1], path[2]
        if key in _IDENTITY and group in begun:
            yield (
                f"{change.path}: can't change while the group holds a copy; "
                f"`castling group remove {group}`, deploy, and start it again"
            )
        held = (old.groups[group].primary, *old.groups[group].backups)
        if key == "databases" and path[3] in held and path[-1] in _DATABASE_IDENTITY and group in running:
            yield f"{change.path}: can't change while the group runs; `castling group stop {group}` first"


def _notes(old: Config | None, changes: list[Change]) -> Iterator[str]:
    if old is None:
        return
    for change in changes:
        path = change.path.split(".")
        if path[0] == "nodes" and path[1] in old.nodes and path[2] in ("api", "api_listen"):
            yield f"{change.path}: takes effect when the agent of {path[1]} is started again"
