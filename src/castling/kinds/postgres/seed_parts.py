"""What the target remembers of a first copy that is not complete, so that it can be gone on with.

Each table of the copy is a *part*: which table of the source it is, which of its files was read, and the
position of the view that its rows are of. Each *range* of its blocks is noted by the transaction that brings
its rows. So whatever dies, what is noted is there and what is not noted is not.

All ranges of a part are of one view, always: nothing of a later view is added before what is there has been
brought up to it (`seed_renew`). And only the latest *attempt* writes: each transaction keeps the row that
counts them from being changed, so what an attempt before has not committed by then is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from psycopg import AsyncConnection

from castling.errors import SeedFailed
from castling.kinds.postgres.lsn import lsn_text, parse_lsn
from castling.kinds.postgres.neighbours import MAKE_ALONE
from castling.kinds.postgres.seed_plan import Chunk, Emptied, Part, Range, There, gaps, merged

__all__ = ["CREATE_PARTS", "PARTS_TABLES", "KnownPart", "SeedParts"]

CREATE_PARTS = (
    MAKE_ALONE
    + """
    CREATE TABLE IF NOT EXISTS castling.seed_attempt (
        stream text PRIMARY KEY,
        begun pg_lsn NOT NULL,
        chosen text NOT NULL,
        attempt int NOT NULL DEFAULT 1,
        first int NOT NULL DEFAULT 1,
        indexed boolean NOT NULL DEFAULT false,
        match boolean NOT NULL DEFAULT false
    );
    CREATE TABLE IF NOT EXISTS castling.seed_part (
        stream text NOT NULL,
        schema text NOT NULL,
        name text NOT NULL,
        oid bigint NOT NULL,
        file bigint NOT NULL,
        columns text[] NOT NULL,
        lsn pg_lsn NOT NULL,
        renewing pg_lsn,
        PRIMARY KEY (stream, schema, name)
    );
    CREATE TABLE IF NOT EXISTS castling.seed_range (
        stream text NOT NULL,
        schema text NOT NULL,
        name text NOT NULL,
        first bigint NOT NULL,
        last bigint,
        row_count bigint NOT NULL,
        byte_count bigint NOT NULL,
        PRIMARY KEY (stream, schema, name, first)
    );
    CREATE TABLE IF NOT EXISTS castling.seed_key (
        stream text NOT NULL,
        schema text NOT NULL,
        name text NOT NULL,
        number bigint NOT NULL,
        key text[] NOT NULL,
        PRIMARY KEY (stream, schema, name, number)
    );
"""
)
#: of them, those that are forgotten when a copy begins or is complete
PARTS_TABLES = ("seed_part", "seed_range", "seed_key")
#: parts told at once
_PAGE = 2000

_OF = "stream = %(s)s AND schema = %(n)s AND name = %(t)s"


@dataclass(frozen=True, slots=True)
class KnownPart:
    """`lsn`: of what view its rows are, 0: of none; `has_rows`: whether any range was brought."""

    part: Part
    lsn: int
    has_rows: bool


class SeedParts:
    """The notes of one stream. Every method belongs into a transaction of its caller."""

    def __init__(self, stream: str) -> None:
        self.stream = stream
        #: the attempt that this end works for
        self.attempt = 0

    def _key(self, schema: str, name: str, **more: object) -> dict[str, object]:
        return {"s": self.stream, "n": schema, "t": name, **more}

    # --- attempts -----------------------------------------------------------------------------

    async def begin(self, connection: AsyncConnection[Any], begun: int, chosen: str, *, match: bool) -> None:
        """A copy from its very beginning. `match`: into tables that may hold rows."""
        cursor = await connection.execute(
            "INSERT INTO castling.seed_attempt AS a (stream, begun, chosen, match)"
            " VALUES (%(s)s, %(l)s, %(c)s, %(m)s) ON CONFLICT (stream)"
            " DO UPDATE SET begun = %(l)s, chosen = %(c)s, indexed = false, match = %(m)s,"
            " attempt = a.attempt + 1, first = a.attempt + 1 RETURNING attempt",
            {"s": self.stream, "l": lsn_text(begun), "c": chosen, "m": match},
        )
        row = await cursor.fetchone()
        assert row is not None
        self.attempt = int(row[0])
        await self.forget(connection)

    async def resume(
        self, connection: AsyncConnection[Any], begun: int, chosen: str
    ) -> tuple[int, bool] | None:
        """The next attempt of the same copy: the how manieth, and whether indexes are there. None when it is
        not the same."""
        cursor = await connection.execute(
            "UPDATE castling.seed_attempt SET attempt = attempt + 1"
            " WHERE stream = %s AND begun = %s::pg_catalog.pg_lsn AND chosen = %s"
            " RETURNING attempt, attempt - first + 1, indexed",
            (self.stream, lsn_text(begun), chosen),
        )
        row = await cursor.fetchone()
        if row is None:
            return None
        self.attempt = int(row[0])
        return int(row[1]), bool(row[2])

    async def matches(self, connection: AsyncConnection[Any]) -> bool:
        """Whether the copy is one into tables that may hold rows."""
        cursor = await connection.execute(
            "SELECT match FROM castling.seed_attempt WHERE stream = %s", (self.stream,)
        )
        row = await cursor.fetchone()
        return bool(row and row[0])

    async def hold(self, connection: AsyncConnection[Any]) -> None:
        """Until the transaction ends, no later attempt begins. SeedFailed when one has."""
        cursor = await connection.execute(
            "SELECT FROM castling.seed_attempt WHERE stream = %s AND attempt = %s FOR SHARE",
            (self.stream, self.attempt),
        )
        if cursor.rowcount != 1:
            raise SeedFailed("a later attempt at the first copy has taken over")

    async def forget(self, connection: AsyncConnection[Any]) -> None:
        for table in PARTS_TABLES:
            await connection.execute(
                f"DELETE FROM castling.{table} WHERE stream = %s".encode(), (self.stream,)
            )

    async def note_indexed(self, connection: AsyncConnection[Any]) -> None:
        await connection.execute(
            "UPDATE castling.seed_attempt SET indexed = true WHERE stream = %s AND attempt = %s",
            (self.stream, self.attempt),
        )

    # --- parts --------------------------------------------------------------------------------

    async def known(self, connection: AsyncConnection[Any]) -> dict[tuple[str, str], KnownPart]:
        cursor = await connection.execute(
            "SELECT schema, name, oid, file, columns, lsn::text, EXISTS (SELECT FROM castling.seed_range r"
            " WHERE (r.stream, r.schema, r.name) = (p.stream, p.schema, p.name))"
            " FROM castling.seed_part p WHERE stream = %s",
            (self.stream,),
        )
        return {
            (row[0], row[1]): KnownPart(Part(*row[:5]), parse_lsn(row[5]), bool(row[6]))
            for row in await cursor.fetchall()
        }

    async def emptied(self, connection: AsyncConnection[Any]) -> set[tuple[str, str]]:
        """The parts that wait for their TRUNCATE."""
        cursor = await connection.execute(
            "SELECT schema, name FROM castling.seed_emptied WHERE stream = %s", (self.stream,)
        )
        return {(str(schema), str(name)) for schema, name in await cursor.fetchall()}

    async def note(self, connection: AsyncConnection[Any], part: Part, lsn: int) -> None:
        """The part is what it is in the view at `lsn`, with all that is there of it."""
        await connection.execute(
            "INSERT INTO castling.seed_part VALUES (%(s)s, %(n)s, %(t)s, %(o)s, %(f)s, %(c)s, %(l)s)"
            " ON CONFLICT (stream, schema, name) DO UPDATE SET oid = excluded.oid, file = excluded.file,"
            " columns = excluded.columns, lsn = excluded.lsn, renewing = NULL",
            self._key(part.schema, part.name, o=part.oid, f=part.file, c=part.columns, l=lsn_text(lsn)),
        )

    async def note_renewing(self, connection: AsyncConnection[Any], part: Part, lsn: int) -> None:
        """The part will be of the view at `lsn` when the rows of its keys have come."""
        await connection.execute(
            f"UPDATE castling.seed_part SET renewing = %(l)s WHERE {_OF}",
            self._key(part.schema, part.name, l=lsn_text(lsn)),
        )

    async def drop(
        self, connection: AsyncConnection[Any], schema: str, name: str, *, part: bool = False
    ) -> None:
        """Nothing is there of the part; with `part`, it is none any more."""
        tables = ("seed_range", "seed_key", "seed_emptied", *(("seed_part",) if part else ()))
        for table in tables:
            await connection.execute(
                f"DELETE FROM castling.{table} WHERE {_OF}".encode(), self._key(schema, name)
            )

    async def is_at(
        self, connection: AsyncConnection[Any], schema: str, name: str, lsn: int, *, renewing: bool = False
    ) -> None:
        """SeedFailed unless the part is of the view at `lsn`, or is being brought up to it: a crash of the
        target may have taken back what was told to be done."""
        column = "renewing" if renewing else "lsn"
        cursor = await connection.execute(
            f"SELECT FROM castling.seed_part WHERE {_OF} AND {column} = %(l)s::pg_catalog.pg_lsn".encode(),
            self._key(schema, name, l=lsn_text(lsn)),
        )
        if cursor.rowcount != 1:
            raise SeedFailed(
                f"the target no longer has {schema}.{name} as it was told; it is looked at again"
            )

    # --- ranges -------------------------------------------------------------------------------

    async def add(self, connection: AsyncConnection[Any], chunk: Chunk, rows: int, size: int) -> None:
        """The chunk's rows are there with this transaction. One of a table that was emptied meanwhile is
        covered already."""
        await connection.execute(
            "INSERT INTO castling.seed_range VALUES (%(s)s, %(n)s, %(t)s, %(f)s, %(e)s, %(r)s, %(b)s)"
            " ON CONFLICT (stream, schema, name, first) DO NOTHING",
            self._key(chunk.schema, chunk.table, f=chunk.first, e=chunk.last, r=rows, b=size),
        )

    async def cover(self, connection: AsyncConnection[Any], request: Emptied) -> None:
        """Nothing more is read of the part."""
        key = self._key(request.schema, request.table, l=lsn_text(request.lsn))
        await connection.execute(
            "INSERT INTO castling.seed_range VALUES (%(s)s, %(n)s, %(t)s, 0, NULL, 0, 0)"
            " ON CONFLICT (stream, schema, name, first) DO UPDATE SET last = NULL",
            key,
        )
        await connection.execute(f"DELETE FROM castling.seed_key WHERE {_OF}".encode(), key)
        await connection.execute(
            f"UPDATE castling.seed_part SET lsn = %(l)s, renewing = NULL WHERE {_OF}".encode(), key
        )

    async def note_matched(
        self, connection: AsyncConnection[Any], schema: str, name: str, lsn: int, kept: int
    ) -> None:
        """What is in the part is as in the view at `lsn`; the rows of its keys are wanted still. Until they
        have come it is of no view: an attempt that breaks off before compares once more."""
        key = self._key(schema, name, l=lsn_text(lsn), r=kept)
        await connection.execute(
            "INSERT INTO castling.seed_range VALUES (%(s)s, %(n)s, %(t)s, 0, NULL, %(r)s, 0)", key
        )
        await connection.execute(
            f"UPDATE castling.seed_part SET lsn = '0/0', renewing = %(l)s WHERE {_OF}", key
        )

    async def there(self, connection: AsyncConnection[Any], after: tuple[str, str]) -> list[There]:
        """What is there of the next parts in order; nothing is left out of the last one told."""
        cursor = await connection.execute(
            "SELECT r.schema, r.name, r.first, r.last, r.row_count, r.byte_count FROM castling.seed_range r"
            " JOIN (SELECT DISTINCT schema, name FROM castling.seed_range WHERE stream = %(s)s AND"
            f" (schema, name) > (%(n)s, %(t)s) ORDER BY schema, name LIMIT {_PAGE}) p USING (schema, name)"
            " WHERE r.stream = %(s)s ORDER BY r.schema, r.name, r.first",
            self._key(*after),
        )
        found: dict[tuple[str, str], tuple[list[Range], int, int]] = {}
        for schema, name, first, last, rows, size in await cursor.fetchall():
            ranges, rows_before, size_before = found.get((schema, name), ([], 0, 0))
            found[schema, name] = ([*ranges, (first, last)], rows_before + rows, size_before + size)
        return [
            There(schema, name, merged(ranges), rows, size)
            for (schema, name), (ranges, rows, size) in found.items()
        ]

    async def is_whole(self, connection: AsyncConnection[Any], lsn: int) -> None:
        """SeedFailed unless every part is of the view at `lsn`, and all of it is there."""
        cursor = await connection.execute(
            "SELECT p.schema, p.name, p.lsn::text, p.renewing IS NULL, r.first, r.last"
            " FROM castling.seed_part p"
            " LEFT JOIN castling.seed_range r USING (stream, schema, name) WHERE p.stream = %s",
            (self.stream,),
        )
        ranges: dict[str, list[Range]] = {}
        wrong: set[str] = set()
        for schema, name, at, settled, first, last in await cursor.fetchall():
            found = ranges.setdefault(f"{schema}.{name}", [])
            if first is not None:
                found.append((first, last))
            if parse_lsn(at) != lsn or not settled:
                wrong.add(f"{schema}.{name}")
        wrong.update(name for name, found in ranges.items() if gaps(found))
        if wrong:
            raise SeedFailed(
                f"a crash of the target took back what it had of {', '.join(sorted(wrong)[:10])};"
                " that is copied once more"
            )

    # --- keys ---------------------------------------------------------------------------------

    async def keys(
        self, connection: AsyncConnection[Any], schema: str, name: str, *, limit: int, size: int
    ) -> tuple[int, list[list[str]]]:
        """The next keys of rows that are wanted, about `size` bytes of them, and the last one's number."""
        cursor = await connection.execute(
            f"SELECT number, key FROM castling.seed_key WHERE {_OF} ORDER BY number LIMIT %(m)s",
            self._key(schema, name, m=limit),
        )
        found: list[list[str]] = []
        upto = told = 0
        for number, key in await cursor.fetchall():
            told += sum(map(len, key)) * 4 + 8
            if found and told > size:
                break
            upto = int(number)
            found.append([str(value) for value in key])
        return upto, found

    async def patched(
        self, connection: AsyncConnection[Any], schema: str, name: str, lsn: int, upto: int
    ) -> None:
        """The rows of the keys up to that number have come. With the last, the part is of the new view."""
        key = self._key(schema, name, u=upto, l=lsn_text(lsn))
        await connection.execute(
            f"DELETE FROM castling.seed_key WHERE {_OF} AND number <= %(u)s".encode(), key
        )
        await connection.execute(
            f"UPDATE castling.seed_part SET lsn = renewing, renewing = NULL WHERE {_OF}"
            " AND renewing = %(l)s::pg_catalog.pg_lsn AND NOT EXISTS"
            f" (SELECT FROM castling.seed_key WHERE {_OF})".encode(),
            key,
        )
