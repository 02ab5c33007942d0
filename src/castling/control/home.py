"""The folder in which a node keeps what it is: identity, settings, state, groups.

Files are readable by their owner alone (0600, folders 0700) and replaced in one step,
so that neither a crash nor a neighbour sees half a key.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

import msgspec

from castling.errors import NotInitialised, StateError, StateUnsaved
from castling.link.tls import NodeTls

__all__ = ["Address", "Home", "default_home", "node_tls", "write_private"]


T = TypeVar("T", bound=msgspec.Struct)


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """Where this node is reached and what it binds, as given to `init` or `join`.

    What is deployed later counts more; this is how a node without a deployment is found.
    """

    api: str = "127.0.0.1:7430"
    link: str = "127.0.0.1:7431"
    api_listen: str | None = None
    link_listen: str | None = None


class RunningAgent(msgspec.Struct, frozen=True, kw_only=True):
    """Written by an agent when it listens; valid only while it holds the agent's lock."""

    pid: int
    address: str


def default_home() -> Path:
    """Where a node lives when nobody says otherwise."""
    return Path("/var/lib/castling") if os.geteuid() == 0 else Path.home() / ".castling"


def write_private(path: Path, data: bytes) -> None:
    """Replace `path` by `data` in one step, durably, readable by its owner alone. StateUnsaved if not."""
    try:
        _write_private(path, data)
    except OSError as error:
        raise StateUnsaved(f"{path} can't be written: {error.strerror or error}") from error


def _write_private(path: Path, data: bytes) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}.new")
    fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class Home:
    """Names of the files in a home folder, and the few that are read everywhere."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.written = self.folder / "castling.toml"
        self.deployed = self.folder / "deployed.toml"
        self.ca_cert = self.folder / "ca" / "ca.pem"
        self.ca_key = self.folder / "ca" / "ca.key"
        self.node_name = self.folder / "node" / "name"
        self.node_cert = self.folder / "node" / "node.pem"
        self.node_key = self.folder / "node" / "node.key"
        self.address_file = self.folder / "node" / "address.json"
        self.state = self.folder / "state.sqlite"
        self.admin_token = self.folder / "admin.token"
        self.agent_lock = self.folder / "agent.lock"
        self.agent_file = self.folder / "agent.json"
        self.groups = self.folder / "groups"

    @property
    def initialised(self) -> bool:
        """The node's name is the last file that `init` and `join` write."""
        return self.node_name.exists()

    def create(self) -> None:
        """Make the folders; repeatable."""
        for folder in (self.folder, self.ca_cert.parent, self.node_name.parent, self.groups):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def node(self) -> str:
        """The name of the node that lives here; NotInitialised when there is none."""
        if not self.initialised:
            raise NotInitialised(
                f"{self.folder} has no node",
                hint="`castling init` makes an installation, `castling join` adds a node to one",
            )
        return self.node_name.read_text(encoding="utf-8").strip()

    def address(self) -> Address:
        return _decode(self.address_file, Address)

    def running_agent(self) -> RunningAgent | None:
        """What an agent wrote when it began to listen; None when none ever did."""
        return _decode(self.agent_file, RunningAgent) if self.agent_file.exists() else None


def _decode(path: Path, wanted: type[T]) -> T:
    try:
        return msgspec.json.decode(path.read_bytes(), type=wanted)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StateError(f"{path} can't be read: {error}") from error


def node_tls(home: Home) -> NodeTls:
    """What the node shows to others, and by which it knows them."""
    return NodeTls(home.ca_cert, home.node_cert, home.node_key)
