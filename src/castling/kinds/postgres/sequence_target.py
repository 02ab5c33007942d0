"""The target's side of sequences: sets them to what a message of the stream says, with a margin.

What the source said last stands in `castling.sequences`, written by the same transaction as the progress;
by it a source that went back is told from a message that is applied a second time. A sequence is not
transactional: after a rollback it may stand where the message, which comes again, will set it.

One that the target lacks, or that can't take the value, is no reason to stop: it is listed as a warning until
a message finds it there.
"""

from __future__ import annotations

from typing import Any

from psycopg import AsyncConnection

from castling.kinds.postgres.catalog import table_name
from castling.kinds.postgres.neighbours import MAKE_ALONE
from castling.kinds.postgres.sequences import (
    Known,
    SequenceMessage,
    Standing,
    Told,
    decode_sequences,
    standing,
)

__all__ = ["CREATE_SEQUENCES", "SequenceTarget"]

CREATE_SEQUENCES = (
    MAKE_ALONE
    + """
    CREATE TABLE IF NOT EXISTS castling.sequences (
        stream text NOT NULL,
        schema text NOT NULL,
        name text NOT NULL,
        last_value bigint NOT NULL,
        is_called boolean NOT NULL,
        file bigint NOT NULL,
        told_at timestamptz NOT NULL,
        problem text,
        PRIMARY KEY (stream, schema, name)
    );
"""
)

# `unnest` takes several arrays only by its bare name; the session's search_path is pg_catalog
#: those told of, in the order told: the target's own, and what was said before
_FOUND = """
SELECT s.seqrelid, s.seqmin, s.seqmax, {value}, b.last_value, b.is_called, b.file
  FROM unnest(%s::text[], %s::text[]) WITH ORDINALITY t(schema, name, place)
  LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = t.schema
  LEFT JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = t.name AND c.relkind = 'S'
  LEFT JOIN pg_catalog.pg_sequence s ON s.seqrelid = c.oid
  LEFT JOIN castling.sequences b ON b.stream = %s AND b.schema = t.schema AND b.name = t.name
 ORDER BY t.place
"""
#: NULL for one from which nothing was taken yet
_VALUE = "CASE WHEN s.seqrelid IS NOT NULL THEN pg_catalog.pg_sequence_last_value(s.seqrelid) END"

_SET = """
SELECT pg_catalog.setval(t.sequence, t.value, t.called)
  FROM unnest(%s::regclass[], %s::bigint[], %s::boolean[]) t(sequence, value, called)
"""

_REMEMBER = """
INSERT INTO castling.sequences (stream, schema, name, last_value, is_called, file, told_at, problem)
SELECT %s, t.schema, t.name, t.last, t.called, t.file,
       pg_catalog.to_timestamp(0) + pg_catalog.make_interval(secs => 0.000001) * %s::float8, t.problem
  FROM unnest(%s::text[], %s::text[], %s::bigint[], %s::boolean[], %s::bigint[], %s::text[])
       t(schema, name, last, called, file, problem)
    ON CONFLICT (stream, schema, name) DO UPDATE
   SET last_value = excluded.last_value, is_called = excluded.is_called, file = excluded.file,
       told_at = excluded.told_at, problem = excluded.problem
"""


class SequenceTarget:
    """Handles messages of sequences on the connection that applies."""

    def __init__(self, group: str) -> None:
        self._group = group
        self._told_ns: int | None = None
        self._problems: dict[str, str] = {}

    async def load(self, connection: AsyncConnection[Any]) -> None:
        """What was said before this session, for the report."""
        await connection.execute(CREATE_SEQUENCES.encode())
        cursor = await connection.execute(
            "SELECT schema, name, problem, (EXTRACT(epoch FROM told_at) * 1000000000)::int8"
            " FROM castling.sequences WHERE stream = %s",
            (self._group,),
        )
        rows = await cursor.fetchall()
        self._problems = {table_name(row[0], row[1]): row[2] for row in rows if row[2] is not None}
        self._told_ns = max((int(row[3]) for row in rows), default=None)

    async def take(self, connection: AsyncConnection[Any], content: bytes) -> None:
        """Set what a message tells of, in the open transaction. DecodeError when it can't be read."""
        message = decode_sequences(content)
        if message.group != self._group:
            return
        await self._forget(connection, message)
        if not message.sequences:
            return
        told = message.sequences
        found = await self._find(connection, told)
        sets: list[tuple[int, Standing]] = []
        problems: list[str | None] = []
        for one, (oid, least, most, now, *before) in zip(told, found, strict=True):
            known = None if before[0] is None else Known(*before)
            at = None if now is None else Standing(int(now), True)
            to = standing(one, known, at)
            problem = _problem(one, oid, least, most, to)
            problems.append(problem)
            if to is not None and problem is None:
                sets.append((int(oid), to))
        if sets:
            await connection.execute(
                _SET.encode(),
                (
                    [oid for oid, _ in sets],
                    [to.last for _, to in sets],
                    [to.called for _, to in sets],
                ),
            )
        await self._remember(connection, told, problems, message.at_ns)

    async def _forget(self, connection: AsyncConnection[Any], message: SequenceMessage) -> None:
        """What the source no longer has is no problem any more; nor is anything, when all are told anew."""
        if message.begins:
            self._problems.clear()
            await connection.execute(
                "UPDATE castling.sequences SET problem = NULL WHERE stream = %s AND problem IS NOT NULL",
                (self._group,),
            )
        for schema, name in message.gone:
            self._problems.pop(table_name(schema, name), None)
            await connection.execute(
                "DELETE FROM castling.sequences WHERE stream = %s AND schema = %s AND name = %s",
                (self._group, schema, name),
            )

    async def _find(self, connection: AsyncConnection[Any], told: list[Told]) -> list[tuple[Any, ...]]:
        cursor = await connection.execute(
            _FOUND.format(value=_VALUE).encode(),
            ([one.schema for one in told], [one.name for one in told], self._group),
        )
        return await cursor.fetchall()

    async def _remember(
        self, connection: AsyncConnection[Any], told: list[Told], problems: list[str | None], at_ns: int
    ) -> None:
        await connection.execute(
            _REMEMBER.encode(),
            (
                self._group,
                at_ns // 1000,
                [one.schema for one in told],
                [one.name for one in told],
                [one.last for one in told],
                [one.called for one in told],
                [one.file for one in told],
                problems,
            ),
        )
        self._told_ns = at_ns
        for one, problem in zip(told, problems, strict=True):
            name = table_name(one.schema, one.name)
            self._problems.pop(name, None)
            if problem is not None:
                self._problems[name] = problem

    def warnings(self) -> list[dict[str, Any]]:
        if not self._problems:
            return []
        told = [f"{name} {problem}" for name, problem in sorted(self._problems.items())]
        return [
            {
                "code": "sequences-not-carried",
                "message": f"{len(told)} sequences can't be carried: {', '.join(told[:5])}"
                + (", …" if len(told) > 5 else ""),
                "hint": "make each on the target as it is on the source; it is set when it moves again,"
                " or when the group is stopped and started",
            }
        ]

    def report(self) -> dict[str, Any]:
        """`applied_ns`: when the source was asked for what was applied last."""
        return {"applied_ns": self._told_ns, "problems": len(self._problems)}


def _problem(told: Told, oid: int | None, least: int, most: int, to: Standing | None) -> str | None:
    if oid is None:
        return "is not on the target"
    if to is not None and not least <= to.last <= most:
        return f"ends at {least if to.last < least else most} on the target, {told.last} on the source"
    return None
