"""Judges what is beside tables: sequences, large objects, and what stands around the two databases. Pure."""

from __future__ import annotations

from castling.config import GroupSettings
from castling.kinds.base import Finding, Severity
from castling.kinds.postgres.catalog import table_name
from castling.kinds.postgres.ddl_source import installation
from castling.kinds.postgres.definitions import Thing, differences, finding, judge_extensions
from castling.kinds.postgres.facts import SourceFacts, TargetFacts, refused, warning
from castling.kinds.postgres.sequence_watch import SourceSequence

__all__ = [
    "judge_large_objects",
    "judge_needed",
    "judge_outside",
    "judge_schema_changes",
    "judge_sequences",
    "judge_target_sequences",
    "judge_watching",
]


def judge_large_objects(facts: SourceFacts, settings: GroupSettings) -> Finding:
    count = f"the database holds {facts.large_objects} large objects"
    if settings.large_objects == "ignore":
        return warning("large objects", "large-objects-ignored", f"{count}, which are left behind")
    if not facts.may_read_large_objects:
        return refused(
            "large objects",
            "large-objects-unreadable",
            f"{count}, which the user may not read",
            'GRANT pg_read_all_data TO it, or set large_objects = "ignore" to leave them behind',
        )
    return warning(
        "large objects",
        "large-objects-compared",
        f"{count}: read whole every {settings.compare_every:g} s or more; one that changed goes through the"
        " source's log, whole",
        "as of when they are on the target is in `castling group status`",
    )


def judge_schema_changes(facts: SourceFacts, settings: GroupSettings) -> list[Finding]:
    if settings.ddl == "stop":
        return [
            warning(
                "schema",
                "ddl-not-carried",
                "changes of the schema are not carried; a table that no longer fits goes the way of on_error",
                'make the same change on the target first (adding) or last (removing); or set ddl = "carry"',
            )
        ]
    if not facts.may_set_names:
        return [
            refused(
                "schema",
                "no-superuser",
                "the source's user is no superuser, which making event triggers needs",
                'use a superuser on the source, or set ddl = "stop"',
            )
        ]
    if facts.has_schema_triggers:
        return [Finding(Severity.OK, "schema", "ddl-carried", "changes of the schema are carried")]
    return [
        Finding(
            Severity.CHANGE,
            "schema",
            "installs-schema-triggers",
            "three event triggers (castling_ddl_end, castling_ddl_drop, castling_ddl_rewrite) and the schema"
            " castling_ddl with their functions are installed on the source, to tell of schema changes",
            "the SQL is in the finding's context (--json); `castling group remove` takes it away",
            {"sql": installation()},
        )
    ]


def judge_sequences(sequences: list[SourceSequence], settings: GroupSettings) -> list[Finding]:
    """The group's sequences on the source."""
    found = [
        warning(
            str(one),
            "sequence-not-readable",
            "the user may not read it: the target's would stay where it is",
            f"GRANT SELECT ON SEQUENCE {one.sql} TO it",
        )
        for one in sequences
        if not one.readable
    ]
    carried = len(sequences) - len(found)
    if carried:
        message = f"{carried} are carried; the target's stay {settings.sequence_margin} values or more ahead"
        found.append(Finding(Severity.OK, "sequences", "sequences-carried", message))
    return found


def judge_target_sequences(
    sequences: list[SourceSequence], target: TargetFacts, settings: GroupSettings, *, seeded: bool
) -> list[Finding]:
    """Sequences that the target lacks don't stop the group: nothing of a row depends on them there."""
    if settings.seed.schema == "create" and not seeded:
        return []
    return [
        warning(
            str(one),
            "sequence-not-on-target",
            f"is not on the target{_as(one)}: it can't be carried",
            "create it there as on the source, or exclude it",
        )
        for one in sequences
        if table_name(*one.there) not in target.sequences
    ]


def _as(one: SourceSequence) -> str:
    there = table_name(*one.there)
    return "" if there == str(one) else f" as {there}"


def judge_needed(source: SourceFacts, target: TargetFacts, settings: GroupSettings) -> list[Finding]:
    """What a first copy with seed.schema = "create" needs on the target before it begins."""
    way_out = '; or set seed.owners = "leave"' if settings.seed.owners == "carry" else ""
    found = [
        refused(
            f"role {name}",
            "role-not-on-target",
            "owns or may do something in the database, and is not on the target",
            f"on the target: {make}{way_out}",
        )
        for name, make in sorted(source.roles_needed.items())
        if name not in target.roles
    ]
    found += [
        refused(f"tablespace {name}", "tablespace-not-on-target", "is used, and is not on the target")
        for name in source.tablespaces
        if name not in target.tablespaces
    ]
    return found


def judge_outside(source: list[Thing], target: list[Thing], extensions: dict[str, set[str]]) -> list[Finding]:
    """What stands around the source's database and not, or otherwise, around the target's. `extensions`:
    the versions that the target could install."""
    found = judge_extensions(differences(source, target), extensions)
    return [finding(each, code="outside-differs") for each in found]


def judge_watching(target: TargetFacts, settings: GroupSettings) -> list[Finding]:
    """What notices writes of others on the target: what is put there for it."""
    if settings.foreign_writes == "ignore" or target.watched:
        return []
    if not target.may_watch:
        return [
            warning(
                "target",
                "foreign-writes-unknown",
                "the database has no language plpgsql: writes of others are not noticed",
                'CREATE EXTENSION plpgsql, or set foreign_writes = "ignore"',
            )
        ]
    return [
        Finding(
            Severity.CHANGE,
            "target",
            "watches-writes",
            "each of the group's tables on the target gets a trigger (castling_watch) and the database two"
            " event triggers, by which writes of others are noticed",
            'set foreign_writes = "ignore" if that is not wanted; `castling group remove` takes them away',
        )
    ]
