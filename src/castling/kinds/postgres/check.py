"""The pre-flight check: what can't be replicated and why, what will be changed, what costs.

`judge` functions are pure: facts in, findings out. Asking the servers changes nothing on
them. What would be lost in silence is refused by name, with the way out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from psycopg import AsyncConnection

from castling.config import GroupSettings
from castling.errors import TargetUnreachable, ToolMissing
from castling.kinds.base import Finding, Severity, Stream
from castling.kinds.postgres.catalog import Table, is_chosen, read_tables, table_name, types_agree
from castling.kinds.postgres.connect import connect
from castling.kinds.postgres.publication import published
from castling.kinds.postgres.session import slot_name
from castling.kinds.postgres.sync import standby_names
from castling.kinds.postgres.tools import find_tool

__all__ = ["SourceFacts", "TargetFacts", "check_stream", "judge_source", "judge_table", "judge_target"]

OLDEST = 140000


@dataclass(slots=True)
class SourceFacts:
    """What was asked of the source. Settings as PostgreSQL writes them."""

    version: int = 0
    settings: dict[str, str] = field(default_factory=dict)
    senders_free: int = 0
    slots_free: int = 0
    may_replicate: bool = False
    may_set_names: bool = False
    in_recovery: bool = False
    has_slot: bool = False
    tables: list[Table] = field(default_factory=list)
    sequences: list[str] = field(default_factory=list)
    large_objects: bool = False
    foreign_keys: list[tuple[str, str, str]] = field(default_factory=list)
    prepared: int = 0


@dataclass(slots=True)
class TargetFacts:
    version: int = 0
    may_replicate: bool = False
    tables: dict[str, Table] = field(default_factory=dict)
    filled: set[str] = field(default_factory=set)
    ours: set[str] = field(default_factory=set)


_SETTINGS = (
    "wal_level",
    "max_wal_senders",
    "max_replication_slots",
    "synchronous_standby_names",
    "max_slot_wal_keep_size",
    "max_prepared_transactions",
)


# --- judging: pure ----------------------------------------------------------------------------


def _refused(object_: str, code: str, message: str, hint: str = "") -> Finding:
    return Finding(Severity.REFUSED, object_, code, message, hint)


def _warning(object_: str, code: str, message: str, hint: str = "") -> Finding:
    return Finding(Severity.WARNING, object_, code, message, hint)


def judge_source(facts: SourceFacts, group: str, settings: GroupSettings) -> list[Finding]:
    """The server as a whole."""
    found: list[Finding] = []
    add = found.append
    if facts.version < OLDEST:
        add(_refused("source", "server-too-old", "PostgreSQL 14 is the oldest"))
    if facts.in_recovery:
        add(_refused("source", "source-is-standby", "the source is a standby", "name the primary server"))
    if facts.settings.get("wal_level") != "logical":
        add(
            _refused(
                "source",
                "wal-level",
                f"wal_level is {facts.settings.get('wal_level')}, it must be logical",
                "ALTER SYSTEM SET wal_level = logical; then restart the server",
            )
        )
    if not facts.may_replicate:
        add(
            _refused(
                "source",
                "no-replication-privilege",
                "the user may not replicate",
                "ALTER ROLE … REPLICATION (and let it create publications on the database)",
            )
        )
    if not facts.has_slot and facts.slots_free < 1:
        add(_refused("source", "no-slot-free", "no replication slot is free", "raise max_replication_slots"))
    if facts.senders_free < 2 and not facts.has_slot:
        add(
            _refused(
                "source", "no-sender-free", "fewer than two WAL senders are free", "raise max_wal_senders"
            )
        )
    found += _judge_delivery(facts, group, settings)
    found += _judge_beside_tables(facts, settings)
    return found


def _judge_delivery(facts: SourceFacts, group: str, settings: GroupSettings) -> list[Finding]:
    if settings.delivery != "sync":
        return []
    names = facts.settings.get("synchronous_standby_names", "")
    ours = standby_names(group, settings.backups)
    if names not in ("", ours):
        return [
            _refused(
                "source",
                "foreign-standby-names",
                f"synchronous_standby_names is {names!r}, which is not Castling's",
                "remove it, or deliver asynchronously",
            )
        ]
    if not facts.may_set_names:
        return [
            _refused("source", "no-alter-system", "the user may not ALTER SYSTEM, which sync delivery needs")
        ]
    return [
        Finding(
            Severity.CHANGE,
            "source",
            "sets-standby-names",
            f"once caught up, synchronous_standby_names is set to {ours}; commits then wait for the backup",
        )
    ]


def _judge_beside_tables(facts: SourceFacts, settings: GroupSettings) -> list[Finding]:
    found = []
    if facts.sequences:
        shown = ", ".join(facts.sequences[:5]) + (" …" if len(facts.sequences) > 5 else "")
        found.append(
            _warning(
                "sequences",
                "sequences-not-carried",
                f"the positions of {len(facts.sequences)} sequences are not carried: {shown}",
                "before the target is used, set each beyond the source's value",
            )
        )
    if facts.large_objects:
        found.append(
            _refused(
                "large objects",
                "large-objects",
                "the database holds large objects, which logical decoding does not show",
                "move them to bytea columns; they would be missing from the replica",
            )
        )
    if facts.prepared:
        found.append(
            _warning(
                "source",
                "prepared-transactions",
                f"{facts.prepared} prepared transactions are open; a first copy begins when they have ended",
                "COMMIT PREPARED or ROLLBACK PREPARED each",
            )
        )
    found.append(
        _warning(
            "schema",
            "ddl-not-carried",
            "changes of the schema are not carried; a change that no longer fits stops the apply by name",
            "make the same change on the target first (adding) or last (removing)",
        )
    )
    chosen = {str(table) for table in published(facts.tables, settings)}
    for name, child, parent in facts.foreign_keys:
        if settings.seed.schema == "create" and child in chosen and parent not in chosen:
            found.append(
                _refused(
                    child,
                    "foreign-key-leads-out",
                    f"its foreign key {name} refers to {parent}, which is not in the group",
                    f"include {parent}, or exclude {child}",
                )
            )
    return found


def judge_table(table: Table, settings: GroupSettings) -> list[Finding]:
    """One table of the source that the patterns choose."""
    name = str(table)
    exclude = f'exclude it: exclude = ["{name}"]'
    if table.kind == "f":
        return [_refused(name, "foreign-table", "is a foreign table; its rows are elsewhere", exclude)]
    if table.kind == "m":
        return [
            _warning(name, "materialized-view", "is a materialized view; refresh it on the target", exclude)
        ]
    if table.is_partition:
        return []
    if table.persistence == "u":
        return [
            _refused(
                name, "unlogged", "is unlogged: its rows are not in the log and would be missing", exclude
            )
        ]
    found: list[Finding] = []
    if not table.readable:
        found.append(
            _refused(name, "not-readable", "the user may not read it", "GRANT SELECT, or exclude it")
        )
    if not table.columns:
        found.append(_refused(name, "no-columns", "has no columns", exclude))
    if not table.has_identity:
        found.append(_judge_identity(table))
    if table.identity == "f" or not table.has_identity:
        found.append(
            _warning(
                name,
                "whole-row-identity",
                "has no key: each update or delete searches the target's whole table",
                "a primary key makes it fast",
            )
        )
    if table.has_children:
        found.append(
            _warning(name, "inheritance", "other tables inherit from it; each is replicated on its own")
        )
    if table.row_security:
        found.append(
            _warning(
                name, "row-security", "has row security; the user must be allowed to bypass it (BYPASSRLS)"
            )
        )
    return found


def _judge_identity(table: Table) -> Finding:
    why = {
        "n": "has REPLICA IDENTITY NOTHING",
        "i": "names an index that can't serve as its replica identity",
        "d": "has a deferrable primary key" if table.primary_key else "has no primary key",
    }[table.identity]
    return Finding(
        Severity.CHANGE,
        str(table),
        "sets-identity-full",
        f"{why}: it gets REPLICA IDENTITY FULL before it is published; its log entries grow by the old row",
        "give it a primary key, or exclude it, if that is not wanted",
    )


def judge_target(
    source: list[Table], target: TargetFacts, settings: GroupSettings, *, seeded: bool
) -> list[Finding]:
    """The target against the tables that will be published."""
    found: list[Finding] = []
    if target.version < OLDEST:
        found.append(_refused("target", "server-too-old", "PostgreSQL 14 is the oldest"))
    if not target.may_replicate:
        found.append(
            _refused(
                "target",
                "no-superuser",
                "the user may not set session_replication_role and replication origins",
                "use a superuser on the target",
            )
        )
    create = settings.seed.schema == "create" and not seeded
    for table in source:
        name = str(table)
        there = target.tables.get(name)
        if there is None:
            if not create:
                found.append(
                    _refused(
                        name,
                        "not-on-target",
                        "is not on the target",
                        'create it there, or set seed.schema = "create" for an empty target',
                    )
                )
        elif name in target.ours:
            found += _judge_columns(table, there)
        elif create:
            found.append(_refused(name, "already-on-target", "is on the target already", "drop it there"))
        elif name in target.filled:
            found.append(
                _refused(
                    name, "target-not-empty", "already has rows on the target", "empty it; rows are kept"
                )
            )
        else:
            found += _judge_columns(table, there)
    return found


def _judge_columns(source: Table, target: Table) -> list[Finding]:
    name = str(source)
    there = {column.name: column for column in target.columns}
    found = []
    for column in source.copied_columns:
        other = there.get(column.name)
        if other is None:
            found.append(
                _refused(name, "column-missing", f"column {column.name} is not on the target", "add it there")
            )
        elif other.generated:
            found.append(
                _refused(name, "column-generated", f"column {column.name} is generated on the target only")
            )
        elif other.type != column.type:
            found.append(
                _refused(
                    name,
                    "column-type",
                    f"column {column.name} is {column.type} on the source and {other.type} on the target",
                    "give it the same type",
                )
            )
    for column in target.columns:
        if column.name not in {mine.name for mine in source.columns} and column.not_null:
            found.append(
                _warning(name, "column-extra", f"the target's column {column.name} is filled by its default")
            )
    return found


# --- asking -----------------------------------------------------------------------------------


async def check_stream(stream: Stream) -> list[Finding]:
    """All findings about one stream: the source, its tables, the target."""
    settings = stream.settings
    source = await _ask_source(stream)
    found = judge_source(source, stream.group, settings)
    chosen = [table for table in source.tables if is_chosen(table, settings)]
    for table in chosen:
        found += judge_table(table, settings)
    tables = published(source.tables, settings)
    if not tables:
        found.append(
            _refused("group", "no-tables", "the patterns choose no table", "look at include and exclude")
        )
    if tables and not types_agree(tables):
        found.append(
            _warning("group", "text-transfer", "some column types differ by server: values travel as text")
        )
    found += _check_tools(source.version, stream)
    try:
        target = await _ask_target(stream, {str(table) for table in tables})
    except TargetUnreachable as error:
        found.append(_refused("target", error.code, str(error), error.hint))
        return found
    found += judge_target(tables, target, settings, seeded=bool(target.ours))
    listed = {finding.object for finding in found}
    found += [
        Finding(Severity.OK, str(table), "replicated", f"about {table.rows} rows, {table.bytes >> 10} KiB")
        for table in tables
        if str(table) not in listed
    ]
    return found


def _check_tools(version: int, stream: Stream) -> list[Finding]:
    if stream.settings.seed.schema != "create":
        return []
    node = stream.settings.capture_on or stream.settings.primary
    try:
        find_tool("pg_dump", server_version=version, configured=stream.config.nodes[node].postgres_bin)
    except ToolMissing as error:
        return [_refused(f"node {node}", error.code, str(error), error.hint)]
    return []


async def _one(connection: AsyncConnection[Any], question: str, *parameters: Any) -> tuple[Any, ...]:
    cursor = await connection.execute(question.encode(), parameters)
    row = await cursor.fetchone()
    assert row is not None
    return tuple(row)


async def _ask_source(stream: Stream) -> SourceFacts:
    settings = stream.settings.databases[stream.settings.primary]
    connection = await connect(settings, application_name=f"castling check {stream.group}")
    try:
        facts = SourceFacts(version=connection.info.server_version)
        for name in _SETTINGS:
            row = await _one(connection, "SELECT pg_catalog.current_setting(%s, true)", name)
            facts.settings[name] = row[0] or ""
        row = await _one(
            connection,
            "SELECT rolsuper OR rolreplication, rolsuper, pg_catalog.pg_is_in_recovery(),"
            " (SELECT count(*) FROM pg_catalog.pg_stat_replication),"
            " (SELECT count(*) FROM pg_catalog.pg_replication_slots),"
            " EXISTS (SELECT FROM pg_catalog.pg_replication_slots WHERE slot_name = %s),"
            " EXISTS (SELECT FROM pg_catalog.pg_largeobject_metadata),"
            " (SELECT count(*) FROM pg_catalog.pg_prepared_xacts"
            "   WHERE database = pg_catalog.current_database())"
            " FROM pg_catalog.pg_roles WHERE rolname = current_user",
            slot_name(stream.group, stream.backup),
        )
        facts.may_replicate, facts.may_set_names, facts.in_recovery = row[0], row[1], row[2]
        facts.senders_free = int(facts.settings["max_wal_senders"]) - row[3]
        facts.slots_free = int(facts.settings["max_replication_slots"]) - row[4]
        facts.has_slot, facts.large_objects, facts.prepared = row[5], row[6], row[7]
        facts.tables = await read_tables(connection)
        facts.sequences = await _sequences(connection)
        facts.foreign_keys = await _foreign_keys(connection)
        return facts
    finally:
        await connection.close()


async def _sequences(connection: AsyncConnection[Any]) -> list[str]:
    cursor = await connection.execute(
        "SELECT schemaname || '.' || sequencename FROM pg_catalog.pg_sequences"
        " WHERE schemaname <> 'castling' ORDER BY 1"
    )
    return [row[0] for row in await cursor.fetchall()]


async def _foreign_keys(connection: AsyncConnection[Any]) -> list[tuple[str, str, str]]:
    cursor = await connection.execute(
        "SELECT k.conname, cn.nspname, c.relname, pn.nspname, p.relname"
        " FROM pg_catalog.pg_constraint k"
        " JOIN pg_catalog.pg_class c ON c.oid = k.conrelid"
        " JOIN pg_catalog.pg_namespace cn ON cn.oid = c.relnamespace"
        " JOIN pg_catalog.pg_class p ON p.oid = k.confrelid"
        " JOIN pg_catalog.pg_namespace pn ON pn.oid = p.relnamespace"
        " WHERE k.contype = 'f' AND k.conparentid = 0"
    )
    return [
        (row[0], table_name(row[1], row[2]), table_name(row[3], row[4])) for row in await cursor.fetchall()
    ]


async def _ask_target(stream: Stream, names: set[str]) -> TargetFacts:
    connection = await connect(
        stream.settings.databases[stream.backup],
        application_name=f"castling check {stream.group}",
        error=TargetUnreachable,
    )
    try:
        facts = TargetFacts(version=connection.info.server_version)
        row = await _one(connection, "SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user")
        facts.may_replicate = row[0]
        facts.tables = {str(table): table for table in await read_tables(connection)}
        row = await _one(connection, "SELECT pg_catalog.to_regclass('castling.seed') IS NOT NULL")
        if row[0]:
            cursor = await connection.execute(
                "SELECT pg_catalog.unnest(tables) FROM castling.seed WHERE stream = %s", (stream.group,)
            )
            facts.ours = {found[0] for found in await cursor.fetchall()}
        for name in sorted(names & set(facts.tables) - facts.ours):
            row = await _one(connection, f"SELECT EXISTS (SELECT FROM {facts.tables[name].sql})")
            if row[0]:
                facts.filled.add(name)
        return facts
    finally:
        await connection.close()
