"""The role of a group as one node knows it. The only writer of roles.

The epoch counts role changes and is the fencing token: a receiver refuses records of
an epoch that is over. It never goes back, and it is durable before anybody acts on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from castling.errors import StaleEpoch, StateError, StateUnsaved
from castling.host import Host

__all__ = ["ROLE_FILE", "Role", "load_role", "load_roles", "save_role"]

ROLE_FILE = "role.json"
_FILE_MAX = 64 << 10


@dataclass(frozen=True, slots=True)
class Role:
    """`primary`: the node that is primary in `epoch`; epoch 1 is that of the first deployment."""

    epoch: int
    primary: str


def load_role(host: Host, folder: str, *, default: Role) -> Role:
    """The role kept in the group's `folder`, or `default` when none was ever saved."""
    path = f"{folder}/{ROLE_FILE}"
    if not host.disk.exists(path):
        return default
    host.disk.sync_dir(folder)  # whoever wrote it may have died before its name was durable
    file = host.disk.open(path)
    try:
        return msgspec.json.decode(file.read_at(0, _FILE_MAX), type=Role)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StateError(
            f"{path} can't be read; the epoch of the group is not known",
            hint="restore the file from the other node; never guess an epoch",
        ) from error
    finally:
        file.close()


def load_roles(host: Host, groups: str, primaries: Mapping[str, str]) -> dict[str, Role]:
    """By group: the role in its folder below `groups`, else that of epoch 1. `primaries`: as configured."""
    return {
        name: load_role(host, f"{groups}/{name}", default=Role(1, primary))
        for name, primary in primaries.items()
    }


def save_role(host: Host, folder: str, role: Role) -> None:
    """Make `role` durable. StaleEpoch when a later epoch, or another primary of this one, is known."""
    known = load_role(host, folder, default=Role(0, role.primary))
    if role.epoch < known.epoch or (role.epoch == known.epoch and role.primary != known.primary):
        raise StaleEpoch(
            f"epoch {role.epoch} of {role.primary} is over: epoch {known.epoch} belongs to {known.primary}"
        )
    write_durably(host, folder, ROLE_FILE, msgspec.json.encode(role))


def write_durably(host: Host, folder: str, name: str, data: bytes) -> None:
    """Replace `folder/name` by `data` so that a crash leaves the old content or the new one.

    StateUnsaved when the disk is full or fails.
    """
    scratch = f"{folder}/{name}.new"
    try:
        host.disk.makedirs(folder)
        file = host.disk.open(scratch, create=True)
        try:
            file.truncate(0)
            file.write_at(0, data)
            file.sync()
        finally:
            file.close()
        host.disk.rename(scratch, f"{folder}/{name}")
        host.disk.sync_dir(folder)
    except OSError as error:
        raise StateUnsaved(f"{folder}/{name} can't be written: {error.strerror or error}") from error
