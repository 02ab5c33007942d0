"""The questions of an audit, as SQL: the same on both ends, so that equal rows have equal answers. Pure.

A row is the text of its columns, in the form that `connect.TEXT_FORM` makes the same on every server; its
hash is 64 bits of that. Rows are not cut by ranges of keys: two servers may order a key differently
(collations), and to read in the order of keys is not to read in the order of the disk. Each end is read block
after block, and each row counted into a bucket by the hash of its key (without a key: of the whole row). The
sums of a bucket say whether both ends have the same rows in it, in any order, duplicates included; only
buckets that differ are looked at row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from castling.kinds.postgres.statements import quoted

__all__ = ["Side", "buckets_for", "hashed", "values_shown"]

#: a value that is longer is shown by its beginning and its digest
SHOWN_MAX = 400
_KEY_SEED = 7
_ROWS_IN_BUCKET = 128
_BUCKETS = (16, 4096)


def buckets_for(rows: int) -> int:
    """A power of two: few enough to be sent with every answer, enough to narrow a difference down."""
    wanted = max(1, rows // _ROWS_IN_BUCKET)
    return int(min(max(1 << (wanted - 1).bit_length(), _BUCKETS[0]), _BUCKETS[1]))


def hashed(columns: Sequence[str]) -> str:
    """64 bits of the row's text; the columns by name."""
    return f'hashtextextended({_row(columns)} COLLATE "C", 0)'


def _row(columns: Sequence[str]) -> str:
    return f"ROW({', '.join(map(quoted, columns))})::text"


def values_shown(columns: Sequence[str]) -> str:
    """Each value as text; a long one so that two that differ are told apart."""
    return ", ".join(
        f"CASE WHEN octet_length({name}::text) > {SHOWN_MAX} THEN"
        f" left({name}::text, {SHOWN_MAX // 2}) || '… (' || octet_length({name}::text) || ' bytes, md5 '"
        f" || md5({name}::text) || ')' ELSE {name}::text END"
        for name in map(quoted, columns)
    )


@dataclass(frozen=True, slots=True)
class Side:
    """A table on one end. `table`: as it stands behind FROM; `where`: what of it is carried, or empty."""

    table: str
    columns: tuple[str, ...]
    key: tuple[str, ...]
    where: str = ""

    def _from(self, blocks: tuple[int, int | None], more: str = "") -> str:
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
        of = (
            f'hashtextextended({_row(self.key)} COLLATE "C", {_KEY_SEED})'
            if self.key
            else hashed(self.columns)
        )
        return f"({of} & {buckets - 1})::int4"

    def sums(self, blocks: tuple[int, int | None], buckets: int) -> str:
        """Of each bucket: how many rows, and the sum of their hashes."""
        if not self.key:  # the hash is taken once
            return (
                f"SELECT (h & {buckets - 1})::int4, count(*), sum(h)::text"
                f" FROM (SELECT {hashed(self.columns)} AS h {self._from(blocks)} OFFSET 0) r GROUP BY 1"
            )
        return (
            f"SELECT {self._bucket(buckets)}, count(*), sum({hashed(self.columns)})::text"
            f" {self._from(blocks)} GROUP BY 1"
        )

    def rows(self, blocks: tuple[int, int | None], buckets: int, chosen: Sequence[int]) -> str:
        """The rows of some buckets: what groups them (the key, or the hash), hash, and where each lies."""
        wanted = ",".join(map(str, chosen))
        condition = f"{self._bucket(buckets)} = ANY ('{{{wanted}}}'::int4[])"
        group = _row(self.key) if self.key else f"{hashed(self.columns)}::text"
        listed = f"{group}, {hashed(self.columns)}, tableoid::int8, ctid::text"
        return f"SELECT {listed} {self._from(blocks, condition)}"

    def shown(self, table: int, place: str) -> str:
        """One row by where it lies (tableoid and ctid): its values to be shown."""
        return f"SELECT {values_shown(self.columns)} {self._at(table, place)}"

    def keys(self, table: int, place: str) -> str:
        """The key's values, whole."""
        listed = ", ".join(f"{quoted(name)}::text" for name in self.key)
        return f"SELECT {listed} {self._at(table, place)}"

    def _at(self, table: int, place: str) -> str:
        return f"FROM {self.table} WHERE ctid = '{place}'::tid AND tableoid::int8 = {table}"
