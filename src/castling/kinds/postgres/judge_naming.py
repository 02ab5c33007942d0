"""Judges `rename`, `rows` and `columns`: what would meet under one name, what filters ask of tables. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from castling.config import GroupSettings
from castling.config.names import split_name
from castling.kinds.base import Finding, Severity
from castling.kinds.postgres.catalog import Table, table_name
from castling.kinds.postgres.costs import identity_cost
from castling.kinds.postgres.facts import SourceFacts, TargetFacts, refused, warning
from castling.kinds.postgres.naming import CLASH, Naming, clashes
from castling.kinds.postgres.narrowing import (
    identity_conflicts,
    named_columns,
    narrowing_problems,
    needing_identity,
)
from castling.kinds.postgres.narrowing_trial import Tried

__all__ = ["judge_created_names", "judge_naming", "judge_narrowing"]

_FILTER = "correct it in `rows`; functions must be built in and immutable"


def judge_naming(tables: Sequence[Table], facts: SourceFacts, settings: GroupSettings) -> list[Finding]:
    """The rules against the source's tables. `tables`: those that will be published."""
    naming = Naming(settings.rename)
    found = [
        refused(
            str(table),
            "rename-clash",
            f"would be {naming.target_name(table)} on the target, as {first}",
            CLASH,
        )
        for table, first in clashes(tables, naming)
    ]
    known = {(table.schema, table.name) for table in facts.tables}
    known |= {(one.schema, one.name) for one in facts.sequences}
    schemas = {schema for schema, _ in known}
    for schema in sorted(naming.schemas.keys() - schemas):
        found.append(_unused(f"{schema}.*", "the source has no table in it"))
    for name in sorted(naming.tables.keys() - known):
        found.append(_unused(table_name(*name), "the source has no such table or sequence"))
    return found


def _unused(rule: str, why: str) -> Finding:
    return warning(rule, "rename-unused", f"has a rule in `rename`, and {why}", "correct or remove the rule")


def judge_created_names(
    tables: Sequence[Table], source: SourceFacts, target: TargetFacts, settings: GroupSettings
) -> list[Finding]:
    """What stands in the way of a first copy that makes the target's tables under other names."""
    naming, way_out = Naming(settings.rename), 'make the tables on the target, and set seed.schema = "expect"'
    found = [
        refused(
            f"extension {name}",
            "rename-extension",
            f"lives in the schema {schema}, which is renamed; an extension has one schema only",
            f"move it on the source (ALTER EXTENSION … SET SCHEMA); or {way_out}",
        )
        for name, schema in sorted(source.extension_schemas.items())
        if schema in naming.schemas
    ]
    found += [
        refused(
            f"schema {new}",
            "schema-on-target",
            f"is on the target already, and {old} is to be made there under this name",
            f"drop it there if it is not wanted; or {way_out}",
        )
        for old, new in sorted(naming.schemas.items())
        if new in target.schemas and new not in naming.schemas
    ]
    found += [
        refused(
            str(table),
            "already-on-target",
            "is on the target under the name that the new one has until it is renamed",
            f"drop it there; or {way_out}",
        )
        for table in tables
        if (table.schema, table.name) in naming.tables
        and table.schema not in naming.schemas
        and str(table) in target.tables
    ]
    return found


def judge_narrowing(tables: Sequence[Table], facts: SourceFacts, settings: GroupSettings) -> list[Finding]:
    """What `rows` and `columns` ask of the source's tables."""
    problems = narrowing_problems(tables, settings, facts.version)
    found = [refused(name, "narrowing-unfit", reason, hint) for name, reason, hint in problems]
    unfit = {name for name, _, _ in problems}
    tried = [one for one in facts.tried if str(one.table) not in unfit]
    for one in tried:
        if one.refused is not None:
            message = f"the source would not publish it so: {one.refused}"
            found.append(refused(str(one.table), "narrowing-refused", message, _FILTER))
        elif one.locked:
            message = "is locked by another session: what its condition asks of it could not be found out"
            found.append(warning(str(one.table), "narrowing-unknown", message, "run the check again"))
    needing = needing_identity([one.narrowed for one in tried if one.narrowed], tables)
    conflicts = identity_conflicts(
        [
            *(table for table, _ in needing),
            *(table for table in tables if table.kind == "r" and not table.has_identity),
        ],
        facts.column_lists,
    )
    found += [refused(name, "identity-conflict", reason, hint) for name, reason, hint in conflicts]
    refused_already = {name for name, _, _ in conflicts} | unfit
    found += [
        _sets_identity(table, why, facts) for table, why in needing if str(table) not in refused_already
    ]
    if settings.seed.schema == "create":
        found += _judge_created([one for one in tried if not one.refused], tables, facts, settings)
    return found


def _sets_identity(table: Table, why: str, facts: SourceFacts) -> Finding:
    cost = identity_cost(table, facts.activity.get(table.oid))
    return Finding(
        Severity.CHANGE,
        str(table),
        "sets-identity-full",
        f"{why}: it gets REPLICA IDENTITY FULL before it is published; its log entries grow by the old row"
        + cost.told,
        "filter by columns of its key, or give it a REPLICA IDENTITY USING INDEX that holds them",
        {"row_bytes": cost.row_bytes, "log_bytes_a_day": cost.log_bytes_a_day},
    )


def _judge_created(
    tried: Sequence[Tried], tables: Sequence[Table], facts: SourceFacts, settings: GroupSettings
) -> list[Finding]:
    """The target gets whole definitions, also of what is not carried."""
    found = []
    columns = named_columns(settings)
    for one in tried:
        chosen = columns.get((one.table.schema, one.table.name))
        missing = [name for name in one.required if chosen is not None and name not in chosen]
        if missing:
            found.append(
                refused(
                    str(one.table),
                    "column-required",
                    f"column {', '.join(missing)} is not carried, may not be NULL and has no default: no row"
                    " could be copied",
                    'make the table on the target without it, and set seed.schema = "expect"',
                )
            )
    filtered = {table_name(*name) for name in map(split_name, settings.rows) if name is not None}
    chosen_names = {str(table) for table in tables}
    found += [
        warning(
            child,
            "foreign-key-to-filtered",
            f"its foreign key {name} refers to {parent}, of which only some rows are carried; a row"
            " that refers to another would let the first copy fail at its end",
            f"filter {child} alike in `rows`",
        )
        for name, child, parent in facts.foreign_keys
        if parent in filtered and child in chosen_names and child != parent
    ]
    return found
