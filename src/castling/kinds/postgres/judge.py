"""What can't be replicated and why, what will be changed, what costs: facts in, findings out. Pure.

What would be lost in silence is refused by name, with the way out.
"""

from __future__ import annotations

from castling.config import GroupSettings
from castling.kinds.base import Finding, Severity
from castling.kinds.postgres.catalog import Table
from castling.kinds.postgres.costs import identity_cost, judge_rows
from castling.kinds.postgres.facts import Activity, SourceFacts, TargetFacts, refused, warning
from castling.kinds.postgres.judge_beside import (
    judge_large_objects,
    judge_schema_changes,
    judge_sequences,
)
from castling.kinds.postgres.judge_log import judge_log
from castling.kinds.postgres.naming import Naming
from castling.kinds.postgres.naming_definitions import named_text
from castling.kinds.postgres.narrowing import named_columns
from castling.kinds.postgres.neighbours import TAKEN_HINT
from castling.kinds.postgres.publication import published
from castling.kinds.postgres.standby import standby_names

__all__ = [
    "judge_source",
    "judge_table",
    "judge_target",
]

OLDEST = 140000


def judge_source(facts: SourceFacts, group: str, settings: GroupSettings) -> list[Finding]:
    """The server as a whole."""
    found: list[Finding] = []
    add = found.append
    if facts.version < OLDEST:
        add(refused("source", "server-too-old", "PostgreSQL 14 is the oldest"))
    if facts.in_recovery:
        add(
            refused(
                "source",
                "source-is-standby",
                "the source is a standby: nothing can be published there, nor sequences be told of",
                "name the primary server",
            )
        )
    if facts.settings.get("wal_level") != "logical":
        add(
            refused(
                "source",
                "wal-level",
                f"wal_level is {facts.settings.get('wal_level')}, it must be logical",
                "ALTER SYSTEM SET wal_level = logical; then restart the server",
            )
        )
    if not facts.may_replicate:
        add(
            refused(
                "source",
                "no-replication-privilege",
                "the user may not replicate",
                "ALTER ROLE … REPLICATION (and let it create publications on the database)",
            )
        )
    if not facts.has_slot and facts.slots_free < 1:
        add(refused("source", "no-slot-free", "no replication slot is free", "raise max_replication_slots"))
    if facts.senders_free < 2 and not facts.has_slot:
        add(
            refused(
                "source", "no-sender-free", "fewer than two WAL senders are free", "raise max_wal_senders"
            )
        )
    found += _judge_delivery(facts, group, settings)
    found += judge_log(facts.settings, settings)
    found += _judge_beside_tables(facts, settings)
    return found


def _judge_delivery(facts: SourceFacts, group: str, settings: GroupSettings) -> list[Finding]:
    if settings.delivery != "sync":
        return []
    names = facts.settings.get("synchronous_standby_names", "")
    ours = standby_names(group, settings.backups)
    if names not in ("", ours):
        return [
            refused(
                "source",
                "foreign-standby-names",
                f"synchronous_standby_names is {names!r}, which is not Castling's",
                "remove it, or deliver asynchronously",
            )
        ]
    if not facts.may_set_names:
        return [
            refused("source", "no-alter-system", "the user may not ALTER SYSTEM, which sync delivery needs")
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
    found = judge_sequences(facts.sequences, settings)
    if facts.large_objects:
        found.append(judge_large_objects(facts, settings))
    if facts.prepared:
        found.append(
            warning(
                "source",
                "prepared-transactions",
                f"{facts.prepared} prepared transactions are open; a first copy begins when they have ended",
                "COMMIT PREPARED or ROLLBACK PREPARED each",
            )
        )
    found += judge_schema_changes(facts, settings)
    chosen = {str(table) for table in published(facts.tables, settings)}
    for name, child, parent in facts.foreign_keys:
        if settings.seed.schema == "create" and child in chosen and parent not in chosen:
            found.append(
                refused(
                    child,
                    "foreign-key-leads-out",
                    f"its foreign key {name} refers to {parent}, which is not in the group",
                    f"include {parent}, or exclude {child}",
                )
            )
    return found


def judge_table(
    table: Table, settings: GroupSettings, activity: dict[int, Activity] | None = None
) -> list[Finding]:
    """One table of the source that the patterns choose. `activity`: by table, what its counters say."""
    name = str(table)
    exclude = f'exclude it: exclude = ["{name}"]'
    if table.kind == "f":
        return [refused(name, "foreign-table", "is a foreign table; its rows are elsewhere", exclude)]
    if table.kind == "m":
        return [
            warning(
                name,
                "materialized-view",
                "is a materialized view: its rows are not carried; the first copy makes it, empty",
                "`castling group copy-unlogged` refreshes it when the target is to be used; or " + exclude,
            )
        ]
    if table.persistence == "u":
        return [
            warning(
                name,
                "unlogged",
                "is unlogged: its rows are not in the log; the target's table stays as it is",
                "`castling group copy-unlogged` copies it when the target is to be used; or make it logged",
            )
        ]
    found = judge_rows(table, settings.row_max)
    if table.is_partition:
        return found
    if not table.readable:
        found.append(refused(name, "not-readable", "the user may not read it", "GRANT SELECT, or exclude it"))
    if not table.columns:
        found.append(refused(name, "no-columns", "has no columns", exclude))
    if any(each.severity is Severity.REFUSED for each in found):
        return found  # nothing will be done to it
    is_plain = table.kind == "r"  # of a partitioned table its partitions decide: see partition_problems
    if is_plain and not table.has_identity and table.identity_problem is None:
        found.append(_judge_identity(table, (activity or {}).get(table.oid)))
    if table.identity == "f" or (is_plain and not table.has_identity):
        found.append(
            warning(
                name,
                "whole-row-identity",
                "has no key: each update or delete searches the target's whole table",
                "a primary key makes it fast",
            )
        )
    if table.has_children:
        found.append(
            warning(name, "inheritance", "other tables inherit from it; each is replicated on its own")
        )
    if table.row_security:
        found.append(
            warning(
                name, "row-security", "has row security; the user must be allowed to bypass it (BYPASSRLS)"
            )
        )
    return found


def _judge_identity(table: Table, activity: Activity | None) -> Finding:
    why = {
        "n": "has REPLICA IDENTITY NOTHING",
        "i": "names an index that can't serve as its replica identity",
        "d": "has a deferrable primary key" if table.primary_key else "has no primary key",
    }[table.identity]
    cost = identity_cost(table, activity)
    return Finding(
        Severity.CHANGE,
        str(table),
        "sets-identity-full",
        f"{why}: it gets REPLICA IDENTITY FULL before it is published; its log entries grow by the old row"
        + cost.told,
        "give it a primary key, or exclude it, if that is not wanted",
        {"row_bytes": cost.row_bytes, "log_bytes_a_day": cost.log_bytes_a_day},
    )


def judge_target(
    source: list[Table], target: TargetFacts, settings: GroupSettings, *, seeded: bool
) -> list[Finding]:
    """The target against the tables that will be published."""
    found: list[Finding] = []
    if target.version < OLDEST:
        found.append(refused("target", "server-too-old", "PostgreSQL 14 is the oldest"))
    if not target.may_replicate:
        found.append(
            refused(
                "target",
                "no-superuser",
                "the user may not set session_replication_role and replication origins",
                "use a superuser on the target",
            )
        )
    create = settings.seed.schema == "create" and not seeded
    if create and target.version < 180000:
        found += _judge_virtual(source)
    naming, columns = Naming(settings.rename), named_columns(settings)
    for table in source:
        name, name_there = str(table), naming.target_name(table)
        there = target.tables.get(name_there)
        also = "" if name_there == name else f", as {name_there},"
        if name_there in target.taken:
            message = f"is filled on the target{also} by group {target.taken[name_there]}"
            found.append(refused(name, "target-taken", message, TAKEN_HINT))
        elif there is None:
            if not create:
                found.append(
                    refused(
                        name,
                        "not-on-target",
                        f"is not on the target{also.rstrip(',')}",
                        'create it there, or set seed.schema = "create" for an empty target',
                    )
                )
        elif create and name_there not in target.ours:
            message = f"is on the target{also} already"
            found.append(refused(name, "already-on-target", message, "drop it there"))
        elif name_there in target.filled and settings.seed.existing != "match":
            message = f"already has rows on the target{also.rstrip(',')}"
            way_out = 'empty it, or compare and replace what differs: seed.existing = "match"'
            found.append(refused(name, "target-not-empty", message, way_out))
        else:
            if name_there in target.filled:
                message = (
                    "has rows on the target: those that are not as on the source are replaced or removed"
                )
                found.append(Finding(Severity.CHANGE, name, "target-matched", message))
            chosen = columns.get((table.schema, table.name))
            found += _judge_columns(table, there, naming, chosen)
    return found


def _judge_virtual(source: list[Table]) -> list[Finding]:
    """Definitions that an older target can't have."""
    return [
        refused(
            str(table),
            "column-virtual",
            f"column {column.name} is a virtual generated one, which PostgreSQL has since version 18",
            'create the table on the target, with a stored one or none; seed.schema = "expect"',
        )
        for table in source
        for column in table.columns
        if column.generated == "v"
    ]


def _judge_columns(source: Table, target: Table, naming: Naming, chosen: list[str] | None) -> list[Finding]:
    """`chosen`: the columns that are carried, where not all are."""
    name = str(source)
    carried = [each for each in source.copied_columns if chosen is None or each.name in chosen]
    there = {column.name: column for column in target.columns}
    found = []
    for column in carried:
        other = there.get(column.name)
        if other is None:
            found.append(
                refused(name, "column-missing", f"column {column.name} is not on the target", "add it there")
            )
        elif other.generated:
            found.append(
                refused(name, "column-generated", f"column {column.name} is generated on the target only")
            )
        elif other.type != named_text(column.type, naming):
            found.append(
                refused(
                    name,
                    "column-type",
                    f"column {column.name} is {column.type} on the source and {other.type} on the target",
                    "give it the same type",
                )
            )
    for column in target.columns:
        if column.not_null and column.name not in {
            mine.name for mine in (source.columns if chosen is None else carried)
        }:
            found.append(
                warning(name, "column-extra", f"the target's column {column.name} is filled by its default")
            )
    return found
