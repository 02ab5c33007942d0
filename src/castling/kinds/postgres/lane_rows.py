"""What each lane has applied: a row a lane, written by the transaction whose changes it counts.

While lanes are at work, `castling.lane_progress` says how far each one is, and `castling.lane_tables` which
tables it has; the stream's own progress is that of a moment when all were as far. A session that begins
takes the rows over: what the stream has is then what the slowest lane has, and the tables of the others are
ahead of it (see `holds`) until it has passed them all. So the number of lanes may be another one each time.

A session that has been taken over can't commit any more: its transactions look for rows with its own
name as their holder. One that has done so already, and has not ended, is waited for.
"""

from __future__ import annotations

import uuid
from typing import Any

from psycopg import AsyncConnection

from castling.errors import TargetUnreachable
from castling.kinds.postgres.lanes import Table
from castling.kinds.postgres.lsn import lsn_text, parse_lsn
from castling.kinds.postgres.neighbours import MAKE_ALONE

__all__ = ["CREATE_LANES", "LaneRows", "note_lane", "read_families"]

CREATE_LANES = (
    MAKE_ALONE
    + """
    CREATE TABLE IF NOT EXISTS castling.lane_progress (
        stream text NOT NULL,
        lane int NOT NULL,
        lsn pg_lsn NOT NULL,
        holder text NOT NULL,
        PRIMARY KEY (stream, lane)
    ) WITH (fillfactor = 50);
    CREATE TABLE IF NOT EXISTS castling.lane_tables (
        stream text NOT NULL,
        schema text NOT NULL,
        name text NOT NULL,
        lane int NOT NULL,
        PRIMARY KEY (stream, schema, name)
    );
"""
)

_TAKEN_OVER = "another session has taken over what this one applies"

_TABLES = """
    SELECT n.nspname, c.relname, coalesce(s.n_tup_ins + s.n_tup_upd + s.n_tup_del, 0)
      FROM pg_catalog.pg_class c
      JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
      LEFT JOIN pg_catalog.pg_stat_all_tables s ON s.relid = c.oid
     WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't'
       AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'castling')
"""
#: foreign keys, inheritance and partitions; and all tables whose triggers fire in a replica, one to the next
#: (Castling's own do nothing in its own sessions)
_LINKS = """
    WITH pairs(one, other) AS (
        SELECT conrelid, confrelid FROM pg_catalog.pg_constraint WHERE contype = 'f'
        UNION ALL
        SELECT inhrelid, inhparent FROM pg_catalog.pg_inherits
        UNION ALL
        SELECT tgrelid, lag(tgrelid) OVER (ORDER BY tgrelid)
          FROM pg_catalog.pg_trigger
          JOIN pg_catalog.pg_proc p ON p.oid = tgfoid
         WHERE tgenabled IN ('A', 'R') AND NOT tgisinternal
           AND p.pronamespace IS DISTINCT FROM pg_catalog.to_regnamespace('castling')::oid
    )
    SELECT an.nspname, a.relname, bn.nspname, b.relname
      FROM pairs
      JOIN pg_catalog.pg_class a ON a.oid = pairs.one
      JOIN pg_catalog.pg_namespace an ON an.oid = a.relnamespace
      JOIN pg_catalog.pg_class b ON b.oid = pairs.other
      JOIN pg_catalog.pg_namespace bn ON bn.oid = b.relnamespace
     WHERE a.oid <> b.oid AND a.relkind IN ('r', 'p')
"""


async def read_families(
    connection: AsyncConnection[Any],
) -> tuple[dict[Table, int], list[tuple[Table, Table]]]:
    """For `lanes.assign`: every table of the target with what was written to it, and what joins them."""
    cursor = await connection.execute(_TABLES.encode())
    weights = {(schema, name): int(written) for schema, name, written in await cursor.fetchall()}
    cursor = await connection.execute(_LINKS.encode())
    links = [((a, b), (c, d)) for a, b, c, d in await cursor.fetchall()]
    return weights, links


async def note_lane(
    connection: AsyncConnection[Any], stream: str, lane: int, offset: int, holder: str
) -> None:
    """Note in the lane's open transaction that with it the lane holds everything up to `offset`."""
    cursor = await connection.execute(
        "UPDATE castling.lane_progress SET lsn = %s::pg_catalog.pg_lsn"
        " WHERE stream = %s AND lane = %s AND holder = %s",
        (lsn_text(offset), stream, lane, holder),
    )
    if cursor.rowcount != 1:
        raise TargetUnreachable(_TAKEN_OVER)


class LaneRows:
    """The rows of one stream, as its main session knows them."""

    def __init__(self, stream: str) -> None:
        self._stream = stream
        #: by which the rows know the session whose lanes may write them
        self.holder = uuid.uuid4().hex
        #: the furthest lane of a session before: until the stream has passed it, its rows count
        self._furthest: int | None = None
        self._passed = False
        #: lanes of this session are at work
        self.live = False
        #: where all of them were when that was last committed, and where the open transaction takes them
        self.even_at = 0
        self._next = 0

    async def take_over(
        self, connection: AsyncConnection[Any], progress: int
    ) -> tuple[int, dict[Table, int]]:
        """Make the rows ours: what the stream has, and the tables that have more, with how much."""
        await connection.execute(CREATE_LANES.encode())
        cursor = await connection.execute(
            "UPDATE castling.lane_progress SET holder = %s WHERE stream = %s RETURNING lane, lsn::text",
            (self.holder, self._stream),
        )
        lanes = {int(lane): parse_lsn(lsn) for lane, lsn in await cursor.fetchall()}
        if not lanes:
            return progress, {}
        self._furthest = max(lanes.values())
        progress = max(progress, min(lanes.values()))
        cursor = await connection.execute(
            "SELECT schema, name, lane FROM castling.lane_tables WHERE stream = %s", (self._stream,)
        )
        tables = {(schema, name): lanes[lane] for schema, name, lane in await cursor.fetchall()}
        return progress, {table: offset for table, offset in tables.items() if offset > progress}

    async def settle(self, connection: AsyncConnection[Any], offset: int) -> None:
        """Before a commit that takes all tables to `offset`, in the same transaction."""
        self._next = offset
        if self.live:
            cursor = await connection.execute(
                "UPDATE castling.lane_progress SET lsn = %s::pg_catalog.pg_lsn"
                " WHERE stream = %s AND holder = %s",
                (lsn_text(offset), self._stream, self.holder),
            )
            if not cursor.rowcount:
                raise TargetUnreachable(_TAKEN_OVER)
        elif self._furthest is not None and offset >= self._furthest:
            await connection.execute("DELETE FROM castling.lane_progress WHERE stream = %s", (self._stream,))
            self._passed = True

    def committed(self) -> None:
        self.even_at = self._next
        if self._passed:
            self._furthest, self._passed = None, False

    def rolled_back(self) -> None:
        self._passed = False

    @property
    def passed(self) -> bool:
        """No lane of a session before is further than the stream."""
        return self._furthest is None

    async def begin(self, connection: AsyncConnection[Any], lane_of: dict[Table, int], lanes: int) -> None:
        """In a transaction that leaves all tables at the stream's progress: these are the lanes from its
        commit on (then `begun`)."""
        await connection.execute("DELETE FROM castling.lane_tables WHERE stream = %s", (self._stream,))
        await connection.execute("DELETE FROM castling.lane_progress WHERE stream = %s", (self._stream,))
        await connection.execute(
            "INSERT INTO castling.lane_progress (stream, lane, lsn, holder)"
            " SELECT p.stream, lane, p.lsn, %s FROM castling.progress p,"
            " pg_catalog.generate_series(0, %s - 1) lane WHERE p.stream = %s",
            (self.holder, lanes, self._stream),
        )
        schemas, names = [table[0] for table in lane_of], [table[1] for table in lane_of]
        await connection.execute(
            "INSERT INTO castling.lane_tables (stream, schema, name, lane)"
            " SELECT %s, t.* FROM ROWS FROM (pg_catalog.unnest(%s::text[]), pg_catalog.unnest(%s::text[]),"
            " pg_catalog.unnest(%s::int[])) t",
            (self._stream, schemas, names, list(lane_of.values())),
        )

    def begun(self) -> None:
        self.live, self._furthest = True, None
