"""Brings what a first copy has up to a later view of the source: how a copy that broke off goes on.

The rows that are there are of the view at position *q1*, what is left is read from a view at *q2*. A row
that no transaction between the two has touched is the same in both views, in the same place of the same
file: it was read from that place, or will be. The rows that were touched are told by the journal, which
holds every change from the stream's beginning on: their keys, old and new. So the rows of those keys are
deleted on the target, and of those among them that lie in what is there, as the view at *q2* has them, the
source reads them once more. After that all that is there is of the view at *q2*, exactly.

It does no harm to take too many keys: each row of them is read from *q2*. That is why nothing depends on
where exactly a transaction lies, and why it may break off anywhere: the next time all keys from *q1* on are
looked for again. Deletes come first and in the transaction that notes the keys, so that no row of *q2* meets
one that has its unique value no longer.

What can't be told so begins anew, each table alone: one without a key in which something was changed, one
that was truncated, rewritten or made anew, whose columns or key have changed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import psycopg
from psycopg import AsyncConnection

from castling.journal.record import Record
from castling.kinds.base import Piece
from castling.kinds.postgres.changes import Delete, Insert, Message, Oversized, Truncate, Update
from castling.kinds.postgres.copying import copy_rows, keys_of
from castling.kinds.postgres.decoder import PostgresDecoder
from castling.kinds.postgres.mapping import Mapping as Tables
from castling.kinds.postgres.messages import Relation, Row
from castling.kinds.postgres.resync_target import only
from castling.kinds.postgres.seed_parts import KnownPart, SeedParts
from castling.kinds.postgres.seed_plan import Part, Renewed
from castling.kinds.postgres.statements import (
    COPY_END,
    COPY_START,
    Shape,
    TargetTable,
    create_stage,
    quoted,
    staged,
)

__all__ = ["ChangedKeys", "Renewal", "empty"]

#: keys in memory at most, of all tables together
KEYS_MAX = 50_000

_TRUNCATED = "it was truncated"
_KEYLESS = "it has no key, and was changed"
_OTHER_KEY = "its key was changed"
_OVERSIZED = "a row of it that was changed is larger than row_max"
_OTHER = "it was made anew or rewritten, or has other columns"

Table = tuple[str, str]


class ChangedKeys:
    """Which rows were touched, as the journal tells it. Pure. `since`: by table, from where on it matters."""

    def __init__(self, since: Mapping[Table, int]) -> None:
        self._since = since
        #: why a table has to begin anew
        self.anew: dict[Table, str] = {}
        self.relations: dict[Table, Relation] = {}
        self._rows: dict[Table, set[tuple[int, tuple[bytes | None, ...]]]] = {}
        self.waiting = 0

    def take(self, piece: Piece) -> None:
        for change in piece.changes:
            if isinstance(change, Message):
                continue
            if isinstance(change, Truncate):
                for relation in change.relations:
                    self._restart(relation, piece.offset)
                continue
            table = (change.relation.schema, change.relation.name)
            since = self._since.get(table)
            if since is None or piece.offset < since or table in self.anew:
                continue
            if isinstance(change, Oversized):
                self._give_up(table, _OVERSIZED)
            elif self._is_told(table, change.relation):
                self._add(table, change)

    def _restart(self, relation: Relation, offset: int) -> None:
        table = (relation.schema, relation.name)
        if offset >= self._since.get(table, offset + 1):
            self._give_up(table, _TRUNCATED)

    def _is_told(self, table: Table, relation: Relation) -> bool:
        """Whether the rows of the table are told by a key, and by the same one all the time."""
        known = self.relations.setdefault(table, relation)
        if not relation.keys:
            self._give_up(table, _KEYLESS)
        elif known is not relation and _key_names(known) != _key_names(relation):
            self._give_up(table, _OTHER_KEY)
        else:
            self.relations[table] = relation
        return table not in self.anew

    def _give_up(self, table: Table, reason: str) -> None:
        self.anew[table] = reason
        self.waiting -= len(self._rows.pop(table, ()))

    def _add(self, table: Table, change: Insert | Update | Delete) -> None:
        rows = self._rows.setdefault(table, set())
        before = len(rows)
        images = [
            None if isinstance(change, Delete) else change.new,
            None if isinstance(change, Insert) else change.old,
        ]
        found = [_key(change.relation, image) for image in images if image is not None]
        # one that was not sent, because it was not changed, is in the old row
        whole = [key for key in found if None not in key[1]]
        rows.update(whole)
        self.waiting += len(rows) - before
        if not whole:
            self._give_up(table, _KEYLESS)

    def hand_over(self) -> list[tuple[Table, Relation, list[Row]]]:
        """What has been found since the last time; a row's fields are only those of its key."""
        found, self._rows, self.waiting = self._rows, {}, 0
        return [
            (table, self.relations[table], [_row(self.relations[table], *each) for each in rows])
            for table, rows in found.items()
            if rows
        ]


def _key_names(relation: Relation) -> list[tuple[str, int]]:
    return [(relation.columns[index].name, relation.columns[index].type_oid) for index in relation.keys]


def _key(relation: Relation, row: Row) -> tuple[int, tuple[bytes | None, ...]]:
    """By place within the key: where the columns stand in the table may change."""
    text = sum(1 << place for place, index in enumerate(relation.keys) if row.text >> index & 1)
    return text, tuple(row.fields[index] for index in relation.keys)


def _row(relation: Relation, text: int, key: tuple[bytes | None, ...]) -> Row:
    fields: list[bytes | None] = [None] * len(relation.columns)
    for index, value in zip(relation.keys, key, strict=True):
        fields[index] = value
    return Row(fields, sum(1 << index for place, index in enumerate(relation.keys) if text >> place & 1))


class Renewal:
    """One renewal, in one transaction of `connection`."""

    def __init__(
        self,
        connection: AsyncConnection[Any],
        parts: SeedParts,
        lsn: int,
        *,
        decoder: Callable[[], PostgresDecoder] = PostgresDecoder,
    ) -> None:
        self._decoder = decoder
        self._connection = connection
        self._parts = parts
        self._lsn = lsn
        self._tables = Tables(connection)
        self._emptied: set[Table] = set()
        #: by table: the temporary table of its keys
        self._stages: dict[Table, tuple[str, TargetTable, Relation]] = {}

    async def run(self, wanted: list[Part], records: AsyncIterator[Record] | None) -> Renewed:
        """`records`: the journal, from the earliest position of a part on and up to the view's."""
        await self._parts.hold(self._connection)
        known = await self._parts.known(self._connection)
        self._emptied = await self._parts.emptied(self._connection)
        parts = {(part.schema, part.name): part for part in wanted}
        known = {table: await self._compared(found) for table, found in known.items()}
        for schema, name in known.keys() - parts.keys():  # gone on the source
            await self._parts.drop(self._connection, schema, name, part=True)
        anew = {table: _OTHER for table, part in parts.items() if self._is_other(known.get(table), part)}
        since = {
            table: found.lsn
            for table, found in known.items()
            if table in parts and found.has_rows and table not in anew
        }
        keys = ChangedKeys(since)
        if since and records is not None:
            await self._collect(keys, records)
        anew |= keys.anew
        renewed = await self._settle(parts, anew)
        if not await self._parts.matches(self._connection):
            return renewed
        fresh = [
            table for table in parts if table not in anew and not (table in known and known[table].has_rows)
        ]
        filled = [table for table in fresh if await self._is_filled(*table)]
        return Renewed(renewed.restarted, renewed.keyed, filled)

    async def _is_filled(self, schema: str, name: str) -> bool:
        table = f"{quoted(schema)}.{quoted(name)}"
        table = f"{await only(self._connection, table)}{table}"
        cursor = await self._connection.execute(f"SELECT EXISTS (SELECT FROM {table})".encode())
        row = await cursor.fetchone()
        return bool(row and row[0])

    async def _compared(self, found: KnownPart) -> KnownPart:
        """One whose rows were compared, and not all brought that were missing, is as if it never was."""
        if found.lsn:
            return found
        await self._parts.drop(self._connection, found.part.schema, found.part.name)
        return KnownPart(found.part, 0, has_rows=False)

    def _is_other(self, known: KnownPart | None, part: Part) -> bool:
        if known is None or not known.has_rows:
            return False
        return known.part != part or (part.schema, part.name) in self._emptied

    @staticmethod
    def begins(known: Mapping[Table, KnownPart]) -> int | None:
        """From where on the journal is needed; None: nothing is there that could be brought up."""
        return min((found.lsn for found in known.values() if found.has_rows and found.lsn), default=None)

    # --- the keys -----------------------------------------------------------------------------

    async def _collect(self, keys: ChangedKeys, records: AsyncIterator[Record]) -> None:
        decoder = self._decoder()
        async for record in records:
            for piece in decoder.feed(record):
                if isinstance(piece, Piece):
                    keys.take(piece)
            if keys.waiting >= KEYS_MAX:
                await self._stage_all(keys)
        await self._stage_all(keys)
        for table in keys.anew:
            self._stages.pop(table, None)

    async def _stage_all(self, keys: ChangedKeys) -> None:
        for table, relation, rows in keys.hand_over():
            target = await self._tables.table(relation)
            name = (
                self._stages[table][0] if table in self._stages else await self._make(table, target, relation)
            )
            self._stages[table] = (name, target, relation)
            for group in keys_of(rows, relation.keys, relation.key_mask):
                shape = Shape(group.sent, group.text)
                await self._connection.execute(b"DROP TABLE IF EXISTS pg_temp.castling_came")
                await self._connection.execute(create_stage("castling_came", target, shape).encode())
                async with (
                    self._connection.cursor() as cursor,
                    cursor.copy(b"COPY castling_came FROM STDIN (FORMAT binary)") as copy,
                ):
                    await copy.write(COPY_START)
                    await copy.write(copy_rows(group.rows, group.sent, len(relation.columns)))
                    await copy.write(COPY_END)
                values = ", ".join(staged(target, shape, index) for index in relation.keys)
                await self._connection.execute(
                    f"INSERT INTO {name} SELECT {values} FROM castling_came s".encode()
                )

    async def _make(self, table: Table, target: TargetTable, relation: Relation) -> str:
        name = f"pg_temp.castling_keys_{len(self._stages) + 1}"
        columns = ", ".join(
            f"k{place} {target.columns[index].type}" for place, index in enumerate(relation.keys)
        )
        await self._connection.execute(f"CREATE TEMPORARY TABLE {name} ({columns}) ON COMMIT DROP".encode())
        return name

    # --- what becomes of each part ------------------------------------------------------------

    async def _settle(self, parts: Mapping[Table, Part], anew: Mapping[Table, str]) -> Renewed:
        restarted, keyed = [], []
        for table, part in parts.items():
            reason = anew.get(table)
            if reason is not None:
                await empty(self._connection, part.schema, part.name)
                await self._parts.drop(self._connection, *table)
                restarted.append((*table, reason))
            count = 0 if reason is not None or table not in self._stages else await self._take_out(table)
            if count:
                relation = self._stages[table][2]
                keyed.append((*table, [name for name, _ in _key_names(relation)], count))
                await self._parts.note_renewing(self._connection, part, self._lsn)
            else:
                await self._parts.note(self._connection, part, self._lsn)
        return Renewed(restarted, keyed)

    async def _take_out(self, table: Table) -> int:
        """Delete the rows of the keys, and note the keys; how many there are."""
        name, target, relation = self._stages[table]
        same = " AND ".join(
            f"t.{quoted(target.columns[index].name)} {target.columns[index].equals} s.k{place}"
            for place, index in enumerate(relation.keys)
        )
        await self._connection.execute(f"ANALYZE {name}".encode())
        await self._connection.execute(f"DELETE FROM {target.only} t USING {name} s WHERE {same}".encode())
        columns = [f"k{place}" for place in range(len(relation.keys))]
        key = f"ARRAY[{', '.join(f'{column}::pg_catalog.text' for column in columns)}]"
        await self._connection.execute(
            b"DELETE FROM castling.seed_key WHERE stream = %s AND schema = %s AND name = %s",
            (self._parts.stream, *table),
        )
        cursor = await self._connection.execute(
            "INSERT INTO castling.seed_key (stream, schema, name, number, key)"
            f" SELECT %s, %s, %s, pg_catalog.row_number() OVER (), {key}"
            f" FROM {name} GROUP BY {', '.join(columns)}".encode(),
            (self._parts.stream, *table),
        )
        return cursor.rowcount


async def empty(connection: AsyncConnection[Any], schema: str, name: str) -> None:
    """TRUNCATE where it can be: a table that another refers to can't, and its rows are deleted."""
    table = f"{quoted(schema)}.{quoted(name)}"
    table = f"{await only(connection, table)}{table}"
    try:
        async with connection.transaction():
            await connection.execute(f"TRUNCATE {table}".encode())
    except psycopg.errors.FeatureNotSupported:
        await connection.execute(f"DELETE FROM {table}".encode())
