"""What one setting demands of another. Pure: settings in, problems with their paths out."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from castling.config.names import EVERY, split_name, sql_problem
from castling.config.places import Path
from castling.config.settings import (
    ApplicationSettings,
    Config,
    DatabaseSettings,
    GroupSettings,
    NodeSettings,
)
from castling.config.window import window_problem

__all__ = ["NAME", "SCRIPTS", "address_problem", "is_loopback", "problems"]

#: names of installations, nodes and groups: they become folder, slot and certificate names
NAME = re.compile(r"[a-z0-9_-]{1,40}")
_NAME_TOLD = "a name has 1 to 40 of a-z, 0-9, _ and -"
#: the user's scripts that are steps of their own; those around a step are named after it
SCRIPTS = ("stop-application", "move-users", "start-application")
SCRIPT = re.compile(rf"{'|'.join(SCRIPTS)}|(?:before|after):[a-z-]{{1,40}}")
_PATTERN = re.compile(r"[^.\s]+\.[^.\s]+")

Problem = tuple[Path, str]


def problems(config: Config) -> list[Problem]:
    """Everything about `config` that can't be meant, in the order of the file's parts."""
    found = list(_names(config))
    for name, node in config.nodes.items():
        found += _node(name, node)
    if not config.nodes:
        found.append((("nodes",), "there must be at least one node"))
    for name, group in config.groups.items():
        found += _members(config, name, group)
        found += _databases(name, group)
        found += _delivery(name, group)
        found += _source_log(name, group)
        found += _seed(name, group)
        found += _schema_changes(name, group)
        found += _figures(name, group)
        found += _renames(name, group)
        found += _narrowing(name, group)
        found += _audit(name, group)
        found += _poolers(config, name, group)
    found += _applications(config)
    if not found:
        found += _listeners(config)
    return found


def address_problem(address: str) -> str | None:
    """What is wrong with `host:port`, or None."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 1 <= int(port) <= 65535 or re.search(r"\s|/", host):
        return "an address is `host:port`, such as east.example.com:7431"
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        return "an IPv6 address stands in brackets, such as [fd00::1]:7431"
    return None


def is_loopback(address: str) -> bool:
    """Whether `host:port`, a host or the folder of a socket leads every machine to itself."""
    host, _, port = address.rpartition(":")
    host = host if port.isdecimal() and host not in ("", ":") else address
    return host.startswith(("/", "127.")) or host in ("localhost", "::1", "[::1]")


def _names(config: Config) -> Iterator[Problem]:
    if not NAME.fullmatch(config.installation.name):
        yield ("installation", "name"), _NAME_TOLD
    named = (("nodes", config.nodes), ("groups", config.groups), ("applications", config.applications))
    for part, names in named:
        for name in names:
            if not NAME.fullmatch(name):
                yield (part, name), _NAME_TOLD


def _node(name: str, node: NodeSettings) -> Iterator[Problem]:
    for key in ("api", "link", "api_listen", "link_listen"):
        address = getattr(node, key)
        wrong = None if address is None else address_problem(address)
        if wrong:
            yield ("nodes", name, key), wrong
    if (node.api_listen or node.api) == (node.link_listen or node.link):
        yield ("nodes", name, "link"), "the agent and the receiver can't listen on the same address"


def _members(config: Config, name: str, group: GroupSettings) -> Iterator[Problem]:
    at = ("groups", name)
    known = ", ".join(sorted(config.nodes))
    if group.primary not in config.nodes:
        yield (*at, "primary"), f"there is no node {group.primary!r}; nodes: {known}"
    if not group.backups:
        yield (*at, "backups"), "a group has at least one backup"
    for backup in group.backups:
        if backup not in config.nodes:
            yield (*at, "backups"), f"there is no node {backup!r}; nodes: {known}"
        if backup == group.primary:
            yield (*at, "backups"), f"{backup} is the primary; it can't be its own backup"
    if len(set(group.backups)) != len(group.backups):
        yield (*at, "backups"), "a node is named twice"
    members = {group.primary, *group.backups}
    if group.capture_on is not None and group.capture_on not in members:
        yield (*at, "capture_on"), f"must be a node of the group: {', '.join(sorted(members))}"


def _poolers(config: Config, name: str, group: GroupSettings) -> Iterator[Problem]:
    for node, pooler in group.pooler.items():
        at = ("groups", name, "pooler", node)
        if node not in config.nodes:
            yield at, f"there is no node {node!r}; nodes: {', '.join(sorted(config.nodes))}"
        ways = [key for key in ("password_file", "password_env", "passfile") if getattr(pooler, key)]
        if len(ways) > 1:
            yield (*at, ways[1]), f"{ways[0]} already says where the password is"
        if not pooler.file.startswith("/"):
            yield (*at, "file"), "is an absolute path"
        for member in (group.primary, *group.backups):
            if member not in pooler.addresses:
                yield (*at, "addresses", member), "is missing: every node of the group may become its primary"
        for member, address in pooler.addresses.items():
            wrong = address_problem(address)
            if wrong:
                yield (*at, "addresses", member), wrong


def _applications(config: Config) -> Iterator[Problem]:
    """Each group belongs to at most one application, and all groups of one live on the same nodes."""
    taken: dict[str, str] = {}
    for name, application in config.applications.items():
        at = ("applications", name)
        if not application.groups:
            yield (*at, "groups"), "an application has at least one group"
        nodes: set[frozenset[str]] = set()
        for group in application.groups:
            if group not in config.groups:
                known = ", ".join(sorted(config.groups)) or "none"
                yield (*at, "groups"), f"there is no group {group!r}; groups: {known}"
                continue
            if taken.setdefault(group, name) != name or application.groups.count(group) > 1:
                yield (*at, "groups"), f"group {group} is named twice; it belongs to one application"
            settings = config.groups[group]
            nodes.add(frozenset((settings.primary, *settings.backups)))
        if len(nodes) > 1:
            yield (*at, "groups"), "groups that switch together have the same nodes"
        if name in config.groups and application.groups != [name]:
            yield at, f"there is a group {name}; an application of that name has that group alone"
        yield from _scripts(name, application)


def _scripts(name: str, application: ApplicationSettings) -> Iterator[Problem]:
    for script, path in application.scripts.items():
        at = ("applications", name, "scripts", script)
        if not SCRIPT.fullmatch(script):
            yield at, f"scripts are {', '.join(SCRIPTS)}, before:STEP and after:STEP"
        if path != "not needed" and not path.startswith("/"):
            yield at, 'is an absolute path, or "not needed"'
    for key in ("script_limit", "lag_limit", "audit_age", "clock_limit"):
        if getattr(application, key) <= 0:
            yield ("applications", name, key), "must be more than 0"


def _databases(name: str, group: GroupSettings) -> Iterator[Problem]:
    at = ("groups", name, "databases")
    members = [group.primary, *group.backups]
    for node in members:
        if node not in group.databases:
            yield (
                (*at, node),
                f"is missing: every node of the group has a database ([{'.'.join((*at, node))}])",
            )
    for node, database in group.databases.items():
        if node not in members:
            yield (*at, node), "is not a node of this group"
        ways = [key for key in ("password_file", "password_env", "passfile") if getattr(database, key)]
        if len(ways) > 1:
            yield (*at, node, ways[1]), f"{ways[0]} already says where the password is"
        if not 1 <= database.port <= 65535:
            yield (*at, node, "port"), "must be from 1 to 65535"
        elif not all(host and 1 <= port <= 65535 for host, port in database.places):
            yield (
                (*at, node, "host"),
                "several are `one,other` or `one:5432,other:5433`, ports from 1 to 65535",
            )
    for node in group.backups:
        if node in group.databases and _same(group.databases.get(group.primary), group.databases[node]):
            yield (*at, node), f"is the same database as that of {group.primary}: a copy onto itself"


def _same(one: DatabaseSettings | None, other: DatabaseSettings) -> bool:
    """Whether both are one database. A loopback address or a socket is another one on each node."""
    if one is None or one.dbname != other.dbname:
        return False
    return any(place in other.places for place in one.places if not is_loopback(place[0]))


def _delivery(name: str, group: GroupSettings) -> Iterator[Problem]:
    at = ("groups", name, "on_sync_loss")
    if group.delivery == "sync" and group.on_sync_loss is None:
        yield (
            at,
            'is missing: with delivery = "sync" say what commits do when no backup answers: "wait" '
            '(production stands still, nothing unprotected) or "degrade" (production goes on, unprotected)',
        )
    if group.delivery == "sync" and len(group.backups) > 1:
        yield (
            ("groups", name, "delivery"),
            f'"sync" is for one backup, and this group has {len(group.backups)} '
            f"({', '.join(group.backups)}): which of them a commit waited for, and for which it no longer "
            "waits, would not be the same for all; name one backup, or use a group for each further one, "
            'with "async"',
        )
    if group.delivery == "async" and group.on_sync_loss is not None:
        yield at, 'is for delivery = "sync"; with "async" commits never wait'


def _source_log(name: str, group: GroupSettings) -> Iterator[Problem]:
    """The order in which the source's log is protected: an alarm, a spool, giving the backup up."""
    at = ("groups", name)
    steps = [("wal_alarm", group.wal_alarm), ("wal_spool", group.wal_spool), ("wal_limit", group.wal_limit)]
    taken = [(key, size) for key, size in steps if size is not None]
    for (before, least), (key, size) in itertools.pairwise(taken):
        if size < least:
            told = f"is less than {before} ({least}): the order is wal_alarm, then wal_spool, then wal_limit"
            yield (*at, key), f"{size} bytes {told}"
    if group.wal_limit is not None and group.on_wal_limit is None:
        yield (
            (*at, "on_wal_limit"),
            'is missing: with wal_limit say what comes after giving the backup up: "stop" (a person decides) '
            'or "reseed" (a new copy by itself when the backup is back)',
        )
    if group.wal_limit is None and group.on_wal_limit is not None:
        yield (*at, "on_wal_limit"), "is for wal_limit; without it a backup is never given up"
    if group.wal_spool is not None and group.delivery == "sync":
        yield (
            (*at, "wal_spool"),
            'is for delivery = "async": the source frees its log when it is told that commits are safe on '
            'the backup, and with "sync" that is what commits wait for; use wal_limit',
        )


_QUALIFIED = "a `schema.table`, with parts in double quotes where they hold a dot or a quote"


def _renames(name: str, group: GroupSettings) -> Iterator[Problem]:
    at = ("groups", name, "rename")
    taken: dict[tuple[str, str], str] = {}
    for old, new in group.rename.items():
        here, there = split_name(old), split_name(new)
        if here is None or there is None:
            wrong = old if here is None else new
            yield (*at, old), f"{wrong!r} is not {_QUALIFIED}, nor a `schema.*`"
            continue
        if (here[1] == EVERY) != (there[1] == EVERY):
            yield (*at, old), "a schema (`sales.*`) becomes a schema (`sales_eu.*`), a table a table"
        if "castling" in (here[0], there[0]):
            yield (*at, old), "the schema castling is Castling's own"
        other = taken.setdefault(there, old)
        if other != old and there[1] != EVERY:
            yield (*at, old), f"{new} on the target is {other} already: a table has one source"


def _narrowing(name: str, group: GroupSettings) -> Iterator[Problem]:
    for key in ("rows", "columns"):
        for table in getattr(group, key):
            found = split_name(table)
            if found is None or found[1] == EVERY:
                yield ("groups", name, key, table), f"{table!r} is not {_QUALIFIED}"
    for table, condition in group.rows.items():
        wrong = sql_problem(condition)
        if wrong:
            yield ("groups", name, "rows", table), wrong
    for table, columns in group.columns.items():
        if not columns or len(set(columns)) != len(columns):
            yield ("groups", name, "columns", table), "names the columns that are carried, each once"


def _seed(name: str, group: GroupSettings) -> Iterator[Problem]:
    if group.seed.existing == "match" and group.seed.schema == "create":
        yield (
            ("groups", name, "seed", "existing"),
            '"match" is for tables that are there: it goes with seed.schema = "expect"',
        )


def _schema_changes(name: str, group: GroupSettings) -> Iterator[Problem]:
    if group.ddl == "carry" and group.seed.owners == "leave":
        yield (
            ("groups", name, "ddl"),
            '"carry" goes with seed.owners = "carry": a statement is run on the target as the role that gave'
            " it, and not as the target's user, who may do anything",
        )
    if group.ddl == "carry" and (group.rename or group.rows or group.columns):
        yield (
            ("groups", name, "ddl"),
            '"carry" makes what the source makes; it does not go with rename, rows or columns yet',
        )


def _figures(name: str, group: GroupSettings) -> Iterator[Problem]:
    at: Path = ("groups", name)
    for key in ("include", "exclude"):
        for pattern in getattr(group, key):
            if not _PATTERN.fullmatch(pattern):
                yield (
                    (*at, key),
                    f"{pattern!r} is not a `schema.table` pattern, such as public.* or sales.order?",
                )
    if not group.include:
        yield (*at, "include"), "nothing would be replicated"
    compression = group.link.compression
    bounds: list[tuple[Path, float, float, float]] = [
        (("heartbeat",), group.heartbeat, 0.05, 3600),
        (("degrade_after",), group.degrade_after, 0.5, 86400),
        (("sequence_margin",), group.sequence_margin, 0, 1 << 40),
        (("compare_every",), group.compare_every, 0.05, 86400),
        (("batch_changes",), group.batch_changes, 1, 10_000_000),
        (("lanes",), group.lanes, 1, 32),
        (("decoding_memory",), group.decoding_memory or 1 << 16, 1 << 16, 1 << 40),
        (("apply_memory",), group.apply_memory, 1 << 20, 1 << 40),
        (("row_max",), group.row_max, 8 << 20, 1 << 30),
        (("retention", "segment"), group.retention.segment, 1 << 20, 1 << 30),
        (("spool", "segment"), group.spool.segment, 1 << 20, 1 << 30),
        (("spool", "size"), group.spool.size, 2 * group.spool.segment, 1 << 60),
        (("link", "compression"), 1 if compression == "auto" else compression, 0, 19),
        (("link", "window"), group.link.window, 1 << 20, 1 << 30),
        (("link", "port"), 1 if group.link.port is None else group.link.port, 1, 65535),
        (("audit", "every"), group.audit.every, 60, 366 * 86400),
        (("audit", "max_lag"), group.audit.max_lag, 0.5, 86400),
        (("audit", "load"), group.audit.load, 0.01, 1),
        (("seed", "jobs"), group.seed.jobs, 1, 64),
        (("seed", "chunk_rows"), group.seed.chunk_rows, 1, 1 << 32),
    ]
    for path, value, least, most in bounds:
        if not least <= value <= most:
            yield (*at, *path), f"must be from {least:g} to {most:g}"


def _audit(name: str, group: GroupSettings) -> Iterator[Problem]:
    wrong = None if group.audit.window is None else window_problem(group.audit.window)
    if wrong:
        yield ("groups", name, "audit", "window"), wrong


def _listeners(config: Config) -> Iterator[Problem]:
    """Two streams can't be received on one address; the fix is a port of its own for one of them."""
    taken: dict[tuple[str, str], str] = {}
    for name, group in config.groups.items():
        for backup in group.backups:
            node = config.nodes[backup]
            host, _, port = node.link.rpartition(":")
            address = node.link_listen or f"{host}:{group.link.port or port}"
            other = taken.setdefault((backup, address), name)
            if other != name:
                told = f"{address} of {backup} already receives group {other}; give one of them its own port"
                if node.link_listen:
                    told += f" (nodes.{backup}.link_listen binds one address whatever the port)"
                yield ("groups", name, "link", "port"), told
