"""The questions of an audit, as SQL: the same on both ends, so that equal rows have equal answers. Pure.

A row is the text of its columns, in the form that `connect.TEXT_FORM` makes the same on every server. Its
hash is 64 bits of that: columns of plain built-in types stand there as they are, those of all others by a
hash of their own (no text of theirs can be taken for the end of it, and long values are read once).

Rows are not cut by ranges of keys: two servers may order a key differently (collations), and to read in the
order of keys is not to read in the order of the disk. Each end is read block after block, and the hashes are
added up: equal rows have equal sums in any order, duplicates included. Where the sums of a table differ, they
are taken anew by bucket, by the hash of the key (without a key: of the whole row), and only buckets that
differ are looked at row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from castling.kinds.postgres.statements import FIRST_USER_OID, quoted

__all__ = ["Blocks", "Hashed", "Side", "buckets_for", "hashed", "how_hashed"]

#: the first block and the one after the last; None: whatever follows
Blocks = tuple[int, int | None]

#: a value that is longer is shown by its beginning and its digest
SHOWN_MAX = 400
_KEY_SEED = 7
_ROWS_IN_BUCKET = 128
_BUCKETS = (16, 4096)

#: types whose text has no comma in it, and is never `N`: bool, int8, int2, int4, oid, float4, float8, date,
#: time, timestamp, timestamptz, timetz, numeric, uuid
_PLAIN = frozenset((16, 20, 21, 23, 26, 700, 701, 1082, 1083, 1114, 1184, 1266, 1700, 2950))
#: char(n): a cast to text would cut its blanks
_BLANK_PADDED = 1042


class Hashed(NamedTuple):
    """A column as it goes into the hash of a row. Decided by the source's type, and the same on both ends."""

    name: str
    how: Literal["plain", "text", "output"]


def how_hashed(name: str, type_oid: int) -> Hashed:
    if type_oid in _PLAIN:
        return Hashed(name, "plain")
    # somebody's own type may have a cast to text of its own, which may say less than the type's output
    is_own = type_oid >= FIRST_USER_OID or type_oid == _BLANK_PADDED
    return Hashed(name, "output" if is_own else "text")


def buckets_for(rows: int) -> int:
    """A power of two: few enough to be sent with every answer, enough to narrow a difference down."""
    wanted = max(1, rows // _ROWS_IN_BUCKET)
    return int(min(max(1 << (wanted - 1).bit_length(), _BUCKETS[0]), _BUCKETS[1]))


def hashed(columns: Sequence[Hashed], seed: int = 0) -> str:
    """64 bits of the row's text."""
    parts = ", ".join(_part(*column) for column in columns)
    return f"hashtextextended(concat_ws(',', {parts}) COLLATE \"C\", {seed})"


def _part(name: str, how: str) -> str:
    column = quoted(name)
    if how == "plain":
        return f"coalesce({column}::text, 'N')"
    if how == "text":
        return f'coalesce(hashtextextended({column}::text COLLATE "C", 1), 0)'
    # of a row value, IS NULL asks for its fields: this asks for the value itself
    text = f'hashtextextended(concat({column}) COLLATE "C", 1)'
    return f"CASE WHEN num_nulls({column}) = 1 THEN 0 ELSE {text} END"


def _shown(name: str) -> str:
    text = f"{quoted(name)}::text"
    return (
        f"CASE WHEN octet_length({text}) > {SHOWN_MAX} THEN left({text}, {SHOWN_MAX // 2}) || '… ('"
        f" || octet_length({text}) || ' bytes, md5 ' || md5({text}) || ')' ELSE {text} END"
    )


@dataclass(frozen=True, slots=True)
class Side:
    """A table on one end. `table`: as it stands behind FROM; `where`: what of it is carried, or empty."""

    table: str
    columns: tuple[Hashed, ...]
    key: tuple[Hashed, ...]
    where: str = ""

    def _from(self, blocks: Blocks, more: str = "") -> str:
        first, last = blocks
        conditions = [f"({self.where})"] if self.where else []
        if first:
            conditions.append(f"ctid >= '({first},0)'::tid")
        if last is not None:
            conditions.append(f"ctid < '({last},0)'::tid")
        if more:
            conditions.append(more)
        return f"FROM {self.table}" + (f" WHERE {' AND '.join(conditions)}" if conditions else "")

    def _bucket(self, buckets: int) -> str:
        of = hashed(self.key, _KEY_SEED) if self.key else hashed(self.columns)
        return f"({of} & {buckets - 1})::int4"

    def sums(self, blocks: Blocks, buckets: int) -> str:
        """Of each bucket (with 1: of all): how many rows, and the sum of their hashes."""
        if buckets == 1:
            return f"SELECT 0, count(*), coalesce(sum({hashed(self.columns)}), 0)::text {self._from(blocks)}"
        return (
            f"SELECT {self._bucket(buckets)}, count(*), sum({hashed(self.columns)})::text"
            f" {self._from(blocks)} GROUP BY 1"
        )

    def rows(self, blocks: Blocks, buckets: int, chosen: Sequence[int]) -> str:
        """The rows of some buckets: what groups them (the key, or the hash), hash, and where each lies."""
        wanted = ",".join(map(str, chosen))
        condition = f"{self._bucket(buckets)} = ANY ('{{{wanted}}}'::int4[])"
        names = ", ".join(quoted(column.name) for column in self.key)
        group = f"ROW({names})::text" if self.key else f"{hashed(self.columns)}::text"
        listed = f"{group}, {hashed(self.columns)}, tableoid::int8, ctid::text"
        return f"SELECT {listed} {self._from(blocks, condition)}"

    def shown(self, table: int, place: str) -> str:
        """One row by where it lies (tableoid and ctid): its values to be shown."""
        return f"SELECT {', '.join(_shown(column.name) for column in self.columns)} {self._at(table, place)}"

    def keys(self, table: int, place: str) -> str:
        """The key's values, whole."""
        listed = ", ".join(f"{quoted(column.name)}::text" for column in self.key)
        return f"SELECT {listed} {self._at(table, place)}"

    def _at(self, table: int, place: str) -> str:
        return f"FROM {self.table} WHERE ctid = '{place}'::tid AND tableoid::int8 = {table}"
