"""The auditor's side of a repair.

Rows are read anew on the source, locked (FOR SHARE), and told in a message of that very transaction (see
`audit_mend`): no other change of them can come between what was read and its place in the stream. What came
right meanwhile is told as it is now, which changes nothing. Locks are held for the time of a commit.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterator, Sequence
from typing import Any

import psycopg
from psycopg import AsyncConnection

from castling.kinds.base import Discrepancy, Repaired, Stream
from castling.kinds.postgres.audit_marks import CREATE_MARKS, REPAIR_PREFIX
from castling.kinds.postgres.audit_mend import MendMessage, RowMend, digest, encode_mend, key_condition
from castling.kinds.postgres.audit_sql import hashed
from castling.kinds.postgres.audit_tables import Published
from castling.kinds.postgres.catalog import table_name
from castling.kinds.postgres.mapping import Found, find_columns
from castling.kinds.postgres.parts import move_parts
from castling.kinds.postgres.sequence_watch import read_sequences, read_uncalled
from castling.kinds.postgres.sequences import SEQUENCES_PREFIX, SequenceMessage, encode_sequences, moved
from castling.kinds.postgres.statements import quoted

__all__ = ["Repairs"]

#: rows told in one message, and the bytes of their values, at most
ROWS = 100
ROW_BYTES = 4 << 20
#: how long the target may take, seconds
DONE_S = 120.0
_POLL_S = 0.02
#: seconds between two looks at a table that is copied anew: that takes longer
_COPY_POLL_S = 0.2
#: a definition is not waited for longer than this while others use the table
_LOCK_TIMEOUT = "10s"


class Repairs:
    """Mends what was found, on a connection to each end (autocommit, text form)."""

    def __init__(
        self,
        stream: Stream,
        tables: dict[str, Published],
        source: AsyncConnection[Any],
        target: AsyncConnection[Any],
    ) -> None:
        self._stream = stream
        self._tables = tables
        self._source = source
        self._target = target

    async def run(self, found: Sequence[Discrepancy]) -> list[Repaired]:
        await self._target.execute(CREATE_MARKS.encode())
        await self._target.execute(
            "DELETE FROM castling.audit_repairs WHERE stream = %s AND at < now() - interval '7 days'",
            (self._stream.group,),
        )
        await self._source.execute(f"SET lock_timeout = '{_LOCK_TIMEOUT}'".encode())
        await self._target.execute(f"SET lock_timeout = '{_LOCK_TIMEOUT}'".encode())
        results: list[Repaired] = []
        copied = {each.part for each in found if each.mend == "copy"}
        rows = [(at, each) for at, each in enumerate(found) if each.mend == "row" and each.part not in copied]
        for lot in _lots(rows):
            results += await self._mend_rows(lot)
        for at, each in enumerate(found):
            if each.mend == "row" and each.part in copied:
                results.append(Repaired(at, "sent", "its table is copied anew"))
            elif each.mend == "copy":
                results.append(await self._copy(at, each))
            elif each.mend == "sequence":
                results.append(await self._sequence(at, each))
            elif each.mend == "statement":
                results.append(await self._statement(at, each))
            elif not each.mend:
                results.append(Repaired(at, "refused", "only a person can decide how to mend this"))
        return sorted(results, key=lambda each: each.index)

    # --- rows ---------------------------------------------------------------------------------

    async def _mend_rows(self, lot: list[tuple[int, Discrepancy]]) -> list[Repaired]:
        """The rows of one table, as one message; in several when they are large."""
        published = self._tables.get(lot[0][1].part)
        if published is None:
            return [Repaired(at, "refused", "is no table of the stream any more") for at, _ in lot]
        columns = await find_columns(self._source, published.table.schema, published.table.name)
        results: list[Repaired] = []
        while lot:
            told: list[tuple[int, Discrepancy]] = []
            try:
                async with self._source.transaction():
                    content, told, lot = await self._tell(published, columns, lot)
            except psycopg.Error as error:
                reason = error.diag.message_primary or str(error)
                hint = "; the table can be copied anew (`castling group resync`)"
                return results + [Repaired(at, "refused", reason + hint) for at, _ in (*told, *lot)]
            result, detail = await self._outcome(digest(content))
            results += [Repaired(at, result, detail) for at, _ in told]
        return results

    async def _tell(
        self, published: Published, columns: list[Found], lot: list[tuple[int, Discrepancy]]
    ) -> tuple[bytes, list[tuple[int, Discrepancy]], list[tuple[int, Discrepancy]]]:
        """In the open transaction: what was told, of which, and what is left."""
        mends: list[RowMend] = []
        size = 0
        for _, each in lot:
            mend = await self._mend_of(published, columns, each)
            mends.append(mend)
            size += sum(len(value or "") for value in mend.row or ())
            if size > ROW_BYTES:
                break
        content = encode_mend(MendMessage(self._stream.group, secrets.token_hex(16), mends))
        await self._target.execute(
            "INSERT INTO castling.audit_repairs (stream, digest) VALUES (%s, %s)",
            (self._stream.group, digest(content)),
        )
        await self._source.execute("SELECT pg_logical_emit_message(true, %s, %b)", (REPAIR_PREFIX, content))
        return content, lot[: len(mends)], lot[len(mends) :]

    async def _mend_of(self, published: Published, columns: list[Found], each: Discrepancy) -> RowMend:
        carried = [each.name for each in published.columns if not _is_generated(each.name, columns)]
        listed = ", ".join(f"{quoted(name)}::text" for name in carried).replace("%", "%%")
        table = f"ONLY {published.table.sql}".replace("%", "%%")
        filtered = f" AND ({published.where})".replace("%", "%%") if published.where else ""
        hash_ = each.token.get("target")
        key = None
        row = None
        if published.key:
            key = {name: str(value) for name, value in (each.key or {}).items()}
            where, values = key_condition(key, columns)
            row = await self._one(f"SELECT {listed} FROM {table} WHERE {where}{filtered} FOR SHARE", values)
        elif each.what == "missing":
            same = f"{hashed(published.columns)} = %s".replace("%", "%%").replace("%%s", "%s")
            value = str(each.token["source"])
            row = await self._one(f"SELECT {listed} FROM {table} WHERE {same}{filtered} LIMIT 1", [value])
        schema, name = published.there
        return RowMend(
            schema=schema,
            name=name,
            columns=carried,
            hashed=list(published.columns),
            key=key,
            row=row,
            # a row that the source lacks goes only as it was found; no row has this hash twice by chance
            hash=hash_ if hash_ is not None else 0,
            times=each.times if row is not None or each.what == "extra" else 0,
        )

    async def _one(self, statement: str, values: list[str]) -> list[str | None] | None:
        cursor = await self._source.execute(statement.encode(), values)
        row = await cursor.fetchone()
        return None if row is None else list(row)

    async def _outcome(self, told: str) -> tuple[str, str]:
        """What the target has made of a message."""
        deadline_s = time.monotonic() + DONE_S
        while time.monotonic() < deadline_s:
            cursor = await self._target.execute(
                "SELECT state, detail FROM castling.audit_repairs WHERE stream = %s AND digest = %s",
                (self._stream.group, told),
            )
            row = await cursor.fetchone()
            if row is not None and row[0] != "asked":
                return str(row[0]), str(row[1])
            await asyncio.sleep(_POLL_S)
        return "sent", f"the target has not come to it within {DONE_S:.0f} s"

    # --- everything else ----------------------------------------------------------------------

    async def _copy(self, at: int, each: Discrepancy) -> Repaired:
        published = self._tables.get(each.part)
        if published is None:
            return Repaired(at, "refused", "is no table of the stream any more")
        there = table_name(*published.there)
        await move_parts(self._stream, "resync", [there], "an audit found it different")
        deadline_s = time.monotonic() + DONE_S
        while time.monotonic() < deadline_s:
            cursor = await self._target.execute(
                "SELECT FROM castling.table_positions WHERE stream = %s AND schema = %s AND name = %s"
                " AND (wanted IS NOT NULL OR copying OR state NOT IN ('live', 'ahead'))",
                (self._stream.group, *published.there),
            )
            if await cursor.fetchone() is None:
                return Repaired(at, "done", "was copied anew")
            await asyncio.sleep(_COPY_POLL_S)
        return Repaired(at, "sent", "is being copied anew")

    async def _sequence(self, at: int, each: Discrepancy) -> Repaired:
        """Say once more, in the stream, where the source's sequence stands."""
        name = (each.token.get("schema"), each.token.get("name"))
        found = await read_sequences(self._source, self._stream.settings)
        one = next((one for one in found if (one.schema, one.name) == name), None)
        if one is not None and one.last is None:
            one = next(iter(await read_uncalled(self._source, [one])), None)
        if one is None or one.last is None:
            return Repaired(at, "refused", "the source's sequence can't be read now")
        margin = self._stream.settings.sequence_margin
        told = moved(one.told(one.last, one.called), None, margin=margin, cache=one.cache)
        assert told is not None, "what nobody was told is news"
        at_ns = time.time_ns() // 1000 * 1000
        message = SequenceMessage(group=self._stream.group, at_ns=at_ns, sequences=[told])
        await self._source.execute(
            "SELECT pg_logical_emit_message(true, %s, %s::text)",
            (SEQUENCES_PREFIX, encode_sequences(message).decode()),
        )
        deadline_s = time.monotonic() + DONE_S
        while time.monotonic() < deadline_s:
            cursor = await self._target.execute(
                "SELECT FROM castling.sequences WHERE stream = %s AND schema = %s AND name = %s"
                " AND (EXTRACT(epoch FROM told_at) * 1000000)::int8 >= %s",
                (self._stream.group, *one.there, at_ns // 1000),
            )
            if await cursor.fetchone() is not None:
                return Repaired(at, "done", "")
            await asyncio.sleep(_POLL_S)
        return Repaired(at, "sent", "the target has not come to it yet")

    async def _statement(self, at: int, each: Discrepancy) -> Repaired:
        try:
            await self._target.execute(each.statement.encode())
        except psycopg.Error as error:
            return Repaired(at, "refused", error.diag.message_primary or str(error))
        return Repaired(at, "done", "")


def _is_generated(name: str, columns: list[Found]) -> bool:
    return any(column.name == name and column.generated for column in columns)


def _lots(rows: list[tuple[int, Discrepancy]]) -> Iterator[list[tuple[int, Discrepancy]]]:
    """By table, at most ROWS each."""
    by_part: dict[str, list[tuple[int, Discrepancy]]] = {}
    for at, each in rows:
        by_part.setdefault(each.part, []).append((at, each))
    for some in by_part.values():
        for first in range(0, len(some), ROWS):
            yield some[first : first + ROWS]
