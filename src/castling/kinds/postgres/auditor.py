"""Implements `kinds.base.Auditor` for PostgreSQL: what can be compared, how, and how it is mended."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import psycopg
from psycopg import AsyncConnection

from castling.errors import AuditCannotBegin, SourceError, SourceUnreachable, TargetUnreachable, UsageError
from castling.kinds.base import AuditGuard, AuditPart, Compared, Discrepancy, Repaired, Stream
from castling.kinds.postgres.audit_beside import look_beside
from castling.kinds.postgres.audit_repair import Repairs
from castling.kinds.postgres.audit_rows import End, compare_rows
from castling.kinds.postgres.audit_sql import Side
from castling.kinds.postgres.audit_tables import Published, read_published_tables
from castling.kinds.postgres.audit_view import Pair, Reader, open_pair
from castling.kinds.postgres.catalog import table_name
from castling.kinds.postgres.connect import TEXT_FORM, connect
from castling.kinds.postgres.lsn import lsn_text
from castling.kinds.postgres.naming import Name
from castling.kinds.postgres.seed_plan import likely_rows
from castling.kinds.postgres.statements import quoted

__all__ = ["PostgresAuditor"]

RULES = ("rows", "sequences", "definitions", "protection")

_CHANGES = """
SELECT relid::int8, n_tup_ins + n_tup_upd + n_tup_del FROM pg_catalog.pg_stat_all_tables
"""
_BLOCKED = """
SELECT schema, name, state, copying FROM castling.table_positions
 WHERE stream = %s AND (state NOT IN ('live', 'ahead') OR copying)
"""
#: a table by name: itself, or the leaves of a partitioned one; the largest's blocks
_THERE = """
SELECT c.relkind::text, array_agg(l.oid::int8),
       max(pg_relation_size(l.oid::regclass) / current_setting('block_size')::int8)::int8,
       (SELECT array_agg(a.attname::text) FROM pg_attribute a
         WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  CROSS JOIN LATERAL (SELECT c.oid WHERE c.relkind = 'r'
                      UNION ALL
                      SELECT t.relid FROM pg_partition_tree(c.oid) t WHERE c.relkind = 'p' AND t.isleaf) l
 WHERE n.nspname = {schema} AND c.relname = {name} AND c.relkind IN ('r', 'p')
 GROUP BY c.oid, c.relkind
"""


class PostgresAuditor:
    """Connects when it is asked, and keeps nothing open in between."""

    rules: tuple[str, ...] = RULES

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    async def parts(self) -> list[AuditPart]:
        async with self._source() as source:
            tables = await read_published_tables(source, self._stream)
            cursor = await source.execute(_CHANGES.encode())
            changes = {int(oid): int(number) for oid, number in await cursor.fetchall()}
        blocked = await self._blocked()
        return [
            AuditPart(
                name,
                rows=each.table.rows or None,
                bytes=each.table.bytes,
                changes=changes.get(each.table.oid),
                blocked=blocked.get(each.there, ""),
            )
            for name, each in sorted(tables.items())
        ]

    async def _blocked(self) -> dict[Name, str]:
        async with self._target() as target:
            try:
                cursor = await target.execute(_BLOCKED, (self._stream.group,))
            except psycopg.errors.UndefinedTable:
                return {}
            rows = await cursor.fetchall()
        return {
            (str(schema), str(name)): f"is {'being copied anew' if copying else state} and stands still"
            for schema, name, state, copying in rows
        }

    @contextlib.asynccontextmanager
    async def at_one_position(self) -> AsyncIterator[_View]:
        try:
            async with (
                open_pair(self._stream) as pair,
                pair.source_reader() as here,
                pair.target_reader() as there,
            ):
                tables = await read_published_tables(pair.source.keeper, self._stream)
                yield _View(self._stream, pair, here, there, tables)
        except psycopg.OperationalError as error:
            raise SourceUnreachable(f"an end broke off while it was audited: {error}") from error
        except psycopg.Error as error:
            raise SourceError(f"the ends can't be audited: {error.diag.message_primary or error}") from error

    async def look(self, rule: str) -> list[Compared]:
        if rule not in RULES or rule == "rows":
            raise UsageError(f"there is no rule {rule!r} of this kind", hint=f"rules: {', '.join(RULES)}")
        async with self._source() as source, self._target() as target:
            return await look_beside(self._stream, rule, source, target)

    async def repair(self, found: Sequence[Discrepancy]) -> list[Repaired]:
        async with self._source() as source, self._target() as target:
            tables = await read_published_tables(source, self._stream)
            return await Repairs(self._stream, tables, source, target).run(found)

    @contextlib.asynccontextmanager
    async def _source(self) -> AsyncIterator[AsyncConnection[Any]]:
        settings = self._stream.settings
        connection = await connect(
            settings.databases[settings.primary], application_name=f"castling audit {self._stream.group}"
        )
        async with _prepared(connection):
            yield connection

    @contextlib.asynccontextmanager
    async def _target(self) -> AsyncIterator[AsyncConnection[Any]]:
        connection = await connect(
            self._stream.settings.databases[self._stream.backup],
            application_name=f"castling audit {self._stream.group}",
            error=TargetUnreachable,
        )
        async with _prepared(connection):
            yield connection


@contextlib.asynccontextmanager
async def _prepared(connection: AsyncConnection[Any]) -> AsyncIterator[None]:
    try:
        for statement in (*TEXT_FORM, "SET row_security = off", "SET synchronous_commit = local"):
            await connection.execute(statement.encode())
        yield
    except psycopg.OperationalError as error:
        raise SourceUnreachable(f"an end broke off while it was audited: {error}") from error
    except psycopg.Error as error:
        raise SourceError(f"the ends can't be audited: {error.diag.message_primary or error}") from error
    finally:
        await connection.close()


class _View:
    """Implements `kinds.base.AuditView`."""

    def __init__(
        self, stream: Stream, pair: Pair, here: Reader, there: Reader, tables: dict[str, Published]
    ) -> None:
        self._stream = stream
        self._pair = pair
        self._here = here
        self._there = there
        self._tables = tables
        self.position = lsn_text(pair.lsn)

    def paused_s(self) -> float | None:
        return self._pair.paused_s

    async def compare(self, part: str, guard: AuditGuard) -> Compared:
        published = self._tables.get(part)
        if published is None:
            return Compared("rows", part, problem="is no table of the stream any more")
        if await self._is_blocked(published):
            return Compared("rows", part, problem="stands still on the target: it is not where the stream is")
        try:
            source = await self._end(self._here, (published.table.schema, published.table.name), published)
            target = await self._end(self._there, published.there, published)
            if source is None:
                return Compared("rows", part, problem="is gone from the source")
            if target is None:
                return _lacking(part, published)
            missing = {column.name for column in published.columns} - target.columns
            if missing:
                return _lacking(part, published, missing)
            return await compare_rows(part, source.end, target.end, likely_rows(published.table), guard)
        except AuditCannotBegin as error:
            return Compared("rows", part, problem=str(error))
        except psycopg.errors.QueryCanceled:
            raise
        except psycopg.Error as error:
            if error.sqlstate is None or isinstance(error, psycopg.OperationalError):
                raise
            return Compared("rows", part, problem=f"could not be read: {error.diag.message_primary}")

    async def _is_blocked(self, published: Published) -> bool:
        """As the target's snapshot knows it."""
        schema, name = (_literal(part) for part in published.there)
        rows = await self._there.ask(
            "SELECT FROM castling.table_positions WHERE"
            f" stream = {_literal(self._stream.group)} AND schema = {schema} AND name = {name}"
            f" AND (state NOT IN ('live', 'ahead') OR copying OR state = 'ahead' AND lsn > '{self.position}')"
        )
        return bool(rows)

    async def _end(self, reader: Reader, name: Name, published: Published) -> _Found | None:
        statement = _THERE.format(schema=_literal(name[0]), name=_literal(name[1]))
        rows = await reader.ask(statement)
        if not rows:
            return None
        kind, oids, blocks, columns = rows[0]
        is_source = reader is self._here
        table = f"{quoted(name[0])}.{quoted(name[1])}"
        side = Side(
            table if kind == "p" else f"ONLY {table}",
            published.columns,
            published.key,
            published.where if is_source else "",
        )
        return _Found(End(reader, side, int(blocks), [int(oid) for oid in oids], is_source), set(columns))


class _Found:
    def __init__(self, end: End, columns: set[str]) -> None:
        self.end = end
        self.columns = columns


def _lacking(part: str, published: Published, columns: set[str] | None = None) -> Compared:
    """The target has no such table, or not all of its columns."""
    there = table_name(*published.there)
    what = f"has no column {', '.join(sorted(columns))}" if columns else "is not there"
    return Compared(
        "rows",
        part,
        found=[
            Discrepancy(
                rule="rows", part=part, what="missing", message=f"{there} {what} on the target", mend=""
            )
        ],
    )


def _literal(text: str) -> str:
    """Of a name or another text as SQL; a backslash means itself."""
    return "'" + text.replace("'", "''") + "'"
