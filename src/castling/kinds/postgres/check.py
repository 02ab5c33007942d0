"""The pre-flight check: asks both servers, changes nothing on them, and judges what they say."""

from __future__ import annotations

import secrets
from typing import Any

from psycopg import AsyncConnection

from castling.errors import TargetUnreachable, ToolMissing
from castling.kinds.base import Finding, Severity, Stream
from castling.kinds.postgres.catalog import (
    Table,
    is_chosen,
    partition_sizes,
    read_tables,
    table_name,
    types_agree,
)
from castling.kinds.postgres.connect import questions
from castling.kinds.postgres.costs import judge_copy, judge_locks
from castling.kinds.postgres.ddl_source import is_up
from castling.kinds.postgres.facts import Activity, SourceFacts, TargetFacts, refused, warning
from castling.kinds.postgres.judge import judge_source, judge_table, judge_target
from castling.kinds.postgres.judge_beside import (
    judge_needed,
    judge_outside,
    judge_target_sequences,
    judge_watching,
)
from castling.kinds.postgres.judge_naming import judge_created_names, judge_naming, judge_narrowing
from castling.kinds.postgres.naming import Naming
from castling.kinds.postgres.narrowing import read_column_lists
from castling.kinds.postgres.narrowing_trial import try_narrowing
from castling.kinds.postgres.neighbours import read_taken
from castling.kinds.postgres.outside_read import read_available_extensions, read_outside, read_roles_needed
from castling.kinds.postgres.publication import identity_problems, partition_problems, published
from castling.kinds.postgres.sequence_watch import read_sequences
from castling.kinds.postgres.session import slot_name
from castling.kinds.postgres.standby_facts import judge_standbys, read_standbys
from castling.kinds.postgres.tools import find_tool

__all__ = ["check_stream"]

#: names are written with their schema, whatever path the user has on either side
_QUALIFIED = b"SET search_path = pg_catalog"
#: tables asked whether they hold rows with one statement
_ASKED_AT_ONCE = 200

_SETTINGS = (
    "wal_level",
    "max_wal_senders",
    "max_replication_slots",
    "synchronous_standby_names",
    "max_slot_wal_keep_size",
    "max_prepared_transactions",
    "max_locks_per_transaction",
    "max_connections",
)


_SAME = "the backup's database is the primary's own database: a copy onto itself"
_SAME_HINT = "correct host, port or dbname of one of the two; drop and empty nothing"


async def check_stream(stream: Stream) -> list[Finding]:
    """All findings about one stream: the source, its tables, the target."""
    source = await _ask_source(stream)
    found, tables = _judge_source(source, stream)
    sizes = partition_sizes(source.tables)
    if tables:
        found.append(judge_copy(tables))
    found += _check_tools(source.version, stream)
    return await _judge_target(found, source, tables, sizes, stream)


async def check_new_source(stream: Stream) -> list[Finding]:
    """What speaks against the stream's source becoming one, as far as it alone knows."""
    found, _ = _judge_source(await _ask_source(stream), stream)
    return [each for each in found if each.severity in (Severity.REFUSED, Severity.WARNING)]


def _judge_source(source: SourceFacts, stream: Stream) -> tuple[list[Finding], list[Table]]:
    """All findings about the source, and the tables that would be published. Pure."""
    settings = stream.settings
    found = judge_source(source, stream.group, settings)
    addresses = len(settings.databases[settings.primary].places)
    found += judge_standbys(source.version, source.standbys, addresses)
    chosen = [table for table in source.tables if is_chosen(table, settings)]
    for table in chosen:
        found += judge_table(table, settings, source.activity)
    tables = published(source.tables, settings)
    for root, reason, hint in partition_problems(tables, source.tables, settings):
        found.append(refused(str(root), "partitions-unfit", reason, hint))
    for table, reason, hint in identity_problems(tables, source.tables):
        found.append(refused(str(table), "identity-unpublished", reason, hint))
    found += judge_naming(tables, source, settings)
    found += judge_narrowing(tables, source, settings)
    if not tables:
        found.append(
            refused("group", "no-tables", "the patterns choose no table", "look at include and exclude")
        )
    if tables and not types_agree(tables):
        found.append(
            warning("group", "text-transfer", "some column types differ by server: values travel as text")
        )
    return found, tables


async def _judge_target(
    found: list[Finding],
    source: SourceFacts,
    tables: list[Table],
    sizes: dict[str, tuple[int, int]],
    stream: Stream,
) -> list[Finding]:
    settings = stream.settings
    naming = Naming(settings.rename)
    try:
        target = await _ask_target(stream, {naming.target_name(table) for table in tables})
    except TargetUnreachable as error:
        found.append(refused("target", error.code, str(error), error.hint))
        return found
    if await _is_same(stream):
        return [*found, refused("target", "same-database", _SAME, _SAME_HINT)]
    found += judge_target(tables, target, settings, seeded=bool(target.ours))
    found += judge_watching(target, settings)
    if settings.seed.schema == "create" and not target.ours:
        found += judge_needed(source, target, settings)
        found += judge_locks(tables, source.settings, target.settings)
        found += judge_created_names(tables, source, target, settings)
    refused_already = {finding.object for finding in found if finding.severity is Severity.REFUSED}
    found += [
        each
        for each in judge_outside(source.outside, target.outside, target.extensions)
        if each.object not in refused_already
    ]
    found += judge_target_sequences(source.sequences, target, settings, seeded=bool(target.ours))
    listed = {finding.object for finding in found}
    found += [
        Finding(
            Severity.OK, str(table), "replicated", _size(*sizes.get(str(table), (table.rows, table.bytes)))
        )
        for table in tables
        if str(table) not in listed
    ]
    return found


def _size(rows: int, size: int) -> str:
    """The server's own estimate; before the first ANALYZE it has none."""
    known = f"about {rows} rows" if rows else "rows not counted yet (ANALYZE counts them)"
    return f"{known}, {size >> 10} KiB"


def _check_tools(version: int, stream: Stream) -> list[Finding]:
    if stream.settings.seed.schema != "create":
        return []
    node = stream.settings.capture_on or stream.settings.primary
    try:
        find_tool("pg_dump", server_version=version, configured=stream.config.nodes[node].postgres_bin)
    except ToolMissing as error:
        return [refused(f"node {node}", error.code, str(error), error.hint)]
    return []


async def _one(connection: AsyncConnection[Any], question: str, *parameters: Any) -> tuple[Any, ...]:
    cursor = await connection.execute(question.encode(), parameters)
    row = await cursor.fetchone()
    assert row is not None
    return tuple(row)


async def _ask_source(stream: Stream) -> SourceFacts:
    settings = stream.settings.databases[stream.settings.primary]
    async with questions(settings, application_name=f"castling check {stream.group}") as connection:
        await connection.execute(_QUALIFIED)
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
            " (SELECT count(*) FROM pg_catalog.pg_largeobject_metadata),"
            " pg_catalog.has_table_privilege('pg_catalog.pg_largeobject', 'SELECT'),"
            " (SELECT count(*) FROM pg_catalog.pg_prepared_xacts"
            "   WHERE database = pg_catalog.current_database())"
            " FROM pg_catalog.pg_roles WHERE rolname = current_user",
            slot_name(stream.group, stream.backup),
        )
        facts.may_replicate, facts.may_set_names, facts.in_recovery = row[0], row[1], row[2]
        facts.senders_free = int(facts.settings["max_wal_senders"]) - row[3]
        facts.slots_free = int(facts.settings["max_replication_slots"]) - row[4]
        facts.has_slot, facts.large_objects, facts.may_read_large_objects = row[5], row[6], row[7]
        facts.prepared = row[8]
        name = slot_name(stream.group, stream.backup)
        facts.has_schema_triggers = await is_up(connection, name, stream.settings)
        facts.tables = await read_tables(connection)
        facts.sequences = await read_sequences(connection, stream.settings, values=False)
        outside = await read_outside(
            connection, target_database=stream.settings.databases[stream.backup].dbname
        )
        facts.outside = outside
        makes = {each.name: each.make for each in outside if each.kind == "role"}
        needed = await read_roles_needed(connection, owners=stream.settings.seed.owners == "carry")
        facts.roles_needed = {name: makes.get(name, f"CREATE ROLE {name}") for name in needed}
        facts.tablespaces = [each.name for each in outside if each.kind == "tablespace"]
        facts.extension_schemas = await _extension_schemas(connection)
        facts.column_lists = await read_column_lists(connection)
        facts.tried = await try_narrowing(
            connection, published(facts.tables, stream.settings), stream.settings
        )
        facts.foreign_keys = await _foreign_keys(connection)
        facts.activity = await _activity(connection)
        facts.standbys = await read_standbys(connection)
        return facts


async def _is_same(stream: Stream) -> bool:
    """Whether both ends' settings lead to one database, whatever their addresses say: what one session
    locks there, the other finds locked."""
    settings = stream.settings
    name = f"castling check {stream.group}"
    source_there = questions(settings.databases[settings.primary], application_name=name)
    target_there = questions(
        settings.databases[stream.backup], application_name=name, error=TargetUnreachable
    )
    question, key = "SELECT pg_catalog.pg_try_advisory_xact_lock(%s)", secrets.randbits(62)
    async with source_there as source, source.transaction():
        await _one(source, question, key)
        async with target_there as target, target.transaction():
            return not (await _one(target, question, key))[0]


async def _extension_schemas(connection: AsyncConnection[Any]) -> dict[str, str]:
    cursor = await connection.execute(
        "SELECT e.extname, n.nspname FROM pg_catalog.pg_extension e"
        " JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace WHERE e.extname <> 'plpgsql'"
    )
    return {str(name): str(schema) for name, schema in await cursor.fetchall()}


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


async def _activity(connection: AsyncConnection[Any]) -> dict[int, Activity]:
    """Counters since they were last reset, or since the server started to count them."""
    cursor = await connection.execute(
        "SELECT s.relid::int8, s.n_tup_upd + s.n_tup_del, EXTRACT(epoch FROM pg_catalog.now()"
        " - COALESCE(d.stats_reset, pg_catalog.pg_postmaster_start_time()))::float8"
        " FROM pg_catalog.pg_stat_user_tables s, pg_catalog.pg_stat_database d"
        " WHERE d.datname = pg_catalog.current_database()"
    )
    return {oid: Activity(int(changes), seconds) for oid, changes, seconds in await cursor.fetchall()}


async def _ask_target(stream: Stream, names: set[str]) -> TargetFacts:
    async with questions(
        stream.settings.databases[stream.backup],
        application_name=f"castling check {stream.group}",
        error=TargetUnreachable,
    ) as connection:
        await connection.execute(_QUALIFIED)
        facts = TargetFacts(version=connection.info.server_version)
        for name in ("max_prepared_transactions", "max_locks_per_transaction", "max_connections"):
            facts.settings[name] = (await _one(connection, "SELECT pg_catalog.current_setting(%s)", name))[0]
        row = await _one(connection, "SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user")
        facts.may_replicate = row[0]
        facts.tables = {str(table): table for table in await read_tables(connection)}
        cursor = await connection.execute("SELECT nspname FROM pg_catalog.pg_namespace")
        facts.schemas = {str(found[0]) for found in await cursor.fetchall()}
        cursor = await connection.execute("SELECT schemaname, sequencename FROM pg_catalog.pg_sequences")
        facts.sequences = {table_name(*found) for found in await cursor.fetchall()}
        facts.outside = await read_outside(connection, target_database="")
        facts.extensions = await read_available_extensions(connection)
        cursor = await connection.execute(
            "SELECT pg_catalog.quote_ident(rolname), true FROM pg_catalog.pg_roles UNION ALL"
            " SELECT pg_catalog.quote_ident(spcname), false FROM pg_catalog.pg_tablespace"
        )
        for name, is_role in await cursor.fetchall():
            (facts.roles if is_role else facts.tablespaces).add(name)
        row = await _one(connection, "SELECT pg_catalog.to_regclass('castling.seed') IS NOT NULL")
        if row[0]:
            cursor = await connection.execute(
                "SELECT pg_catalog.unnest(tables) FROM castling.seed WHERE stream = %s", (stream.group,)
            )
            facts.ours = {found[0] for found in await cursor.fetchall()}
            facts.taken = await read_taken(connection, stream.group)
        row = await _one(
            connection,
            "SELECT pg_catalog.to_regclass('castling.watched') IS NOT NULL,"
            " EXISTS (SELECT FROM pg_catalog.pg_language WHERE lanname = 'plpgsql')",
        )
        facts.may_watch = row[1]
        if row[0]:
            row = await _one(
                connection, "SELECT EXISTS (SELECT FROM castling.watched WHERE stream = %s)", stream.group
            )
            facts.watched = row[0]
        asked = sorted(names & set(facts.tables) - facts.ours)
        facts.filled = await _filled(connection, [facts.tables[name] for name in asked])
        return facts


async def _filled(connection: AsyncConnection[Any], tables: list[Table]) -> set[str]:
    """Which of them hold rows. Tables without a block are left alone; the rest are asked many at a time."""
    found: set[str] = set()
    worth = [table for table in tables if table.kind == "p" or table.bytes]
    for at in range(0, len(worth), _ASKED_AT_ONCE):
        part = worth[at : at + _ASKED_AT_ONCE]
        ask = " UNION ALL ".join(
            f"SELECT {number} WHERE EXISTS (SELECT FROM {table.sql})" for number, table in enumerate(part)
        )
        cursor = await connection.execute(ask.encode())
        found |= {str(part[row[0]]) for row in await cursor.fetchall()}
    return found
