"""Tables whose place in the stream is not the stream's: on hold, on the way back, or copied later.

Progress says what the target holds of every table but those noted here. A table on *hold* has everything
up to its own position and nothing after; its changes are left out until it is *releasing*: then the
session begins at the oldest such position, every other table leaves out what it has already, and the
table's position is committed with its changes until it has reached the stream's. A table that is *ahead*
(copied later than the stream's progress) leaves out what its copy has. A *lost* table was on hold for so
long that the journal could not keep its changes any more: only a new copy heals it. Any of them may be
*copied anew* meanwhile (`copying`, see `resync_target`): the journal keeps what follows its position, the
copy takes it to the copy's own position, and a release from there makes it live.

One rule tells all of it: a transaction at `offset` is left out of a table whose position lies after it.
Positions change only in the target's transactions, by the one session that applies; others only say
what they want (`wanted`), and the session does it between two transactions (see `parts`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from psycopg import AsyncConnection

from castling.errors import TargetDiverged, TargetError
from castling.kinds.base import Held, Piece
from castling.kinds.postgres.changes import Change, Message, Truncate
from castling.kinds.postgres.lsn import lsn_text, parse_lsn
from castling.kinds.postgres.messages import Relation
from castling.kinds.postgres.neighbours import MAKE_ALONE

__all__ = ["CREATE_POSITIONS", "Place", "TablePositions", "concerns_table", "copy_mends", "due", "stand"]

CREATE_POSITIONS = (
    MAKE_ALONE
    + """
    CREATE TABLE IF NOT EXISTS castling.table_positions (
        stream text NOT NULL,
        schema text NOT NULL,
        name text NOT NULL,
        state text NOT NULL CHECK (state IN ('live', 'held', 'releasing', 'ahead', 'lost')),
        lsn pg_lsn NOT NULL DEFAULT '0/0',
        shape pg_lsn,
        since timestamptz NOT NULL DEFAULT pg_catalog.now(),
        reason text NOT NULL DEFAULT '',
        sqlstate text,
        wanted text CHECK (wanted IN ('hold', 'release', 'resync')),
        copying boolean NOT NULL DEFAULT false,
        tries int NOT NULL DEFAULT 0,
        PRIMARY KEY (stream, schema, name)
    );
"""
)

#: classes of SQLSTATE that speak of a table or its rows: data, constraints, names and rights, what a
#: trigger says, damage of an index. Others speak of the server, and every table would be put on hold.
_OF_A_TABLE = re.compile(r"(0A|21|22|23|27|2F|38|39|42|44|P0|XX)...")
#: a unique or an exclusion constraint is violated
_ROWS_THERE = ("23505", "23P01")
#: copies anew that errors may cause by themselves within a day; after that the table stays on hold
COPIES_MAX = 3

#: states in which the journal must keep what comes after the position
_PINNING = ("held", "releasing")

_OF_TABLE = "WHERE stream = %s AND schema = %s AND name = %s"
#: a table that has reached the stream; what others want meanwhile is kept, and how often it was copied
_LIVE = f"UPDATE castling.table_positions SET state = 'live' {_OF_TABLE}"
_FORGET = f"DELETE FROM castling.table_positions {_OF_TABLE} AND wanted IS NULL AND tries = 0"
_RECENT = (
    "CASE WHEN t.state = 'live' AND t.since < pg_catalog.now() - interval '1 day' THEN 0 ELSE t.tries END"
)

Table = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a table stands. `offset`: the source position up to which it is whole."""

    state: str
    offset: int
    since: datetime
    reason: str
    sqlstate: str | None
    #: a new copy of it is wanted or under way
    copying: bool = False
    #: it is in no row of `table_positions`: its lane was ahead when the session began
    by_lane: bool = False
    #: the position up to which the schema's changes of it are made; of a copied table that is another than
    #: that of its rows
    shape: int = 0


def concerns_table(sqlstate: object) -> bool:
    """Whether an error speaks of the table it came from. One without SQLSTATE is our own judgment."""
    return sqlstate is None or bool(_OF_A_TABLE.fullmatch(str(sqlstate)))


def copy_mends(error: TargetError) -> bool:
    """Whether other rows are all that is wrong: rows that are missing, or there already."""
    return isinstance(error, TargetDiverged) and error.context.get("sqlstate") in (None, *_ROWS_THERE)


def stand(place: Place | None, offset: int, progress: int) -> Literal["due", "behind", "past"]:
    """What a change of the schema at `offset` is to a table that stands at `place`. Pure.

    One that is to be copied anew, or was, is elsewhere in its rows only: its shape goes with the stream. One
    on hold is behind: what it lacks was made for the shape that it has.
    """
    if place is None or place.state == "live":
        return "due" if offset >= progress else "past"
    if offset < place.shape:
        return "past"
    return "behind" if place.state == "held" and not place.copying else "due"


def due(place: Place | None, offset: int, progress: int) -> bool:
    """Whether a table that stands at `place` still needs a transaction at `offset`. Pure."""
    if place is None or place.state == "live":
        return offset >= progress
    return place.state in ("releasing", "ahead") and offset >= place.offset


class TablePositions:
    """The tables of one stream that are not where the stream is; as of the target's last commit."""

    def __init__(self, stream: str) -> None:
        self._stream = stream
        self._places: dict[Table, Place] = {}
        #: tables whose lane was ahead of the stream when the session began, and by how much
        self._ahead: dict[Table, int] = {}
        self._settled = 0
        #: what the open transaction will make of them; None: the table is where the stream is
        self._next: dict[Table, Place | None] = {}
        #: those that it has put somewhere else before its end
        self._moved: dict[Table, Place | None] = {}

    async def load(self, connection: AsyncConnection[Any]) -> None:
        cursor = await connection.execute(
            "SELECT schema, name, state, lsn::text, since, reason, sqlstate, copying,"
            " COALESCE(shape, lsn)::text"
            " FROM castling.table_positions WHERE stream = %s",
            (self._stream,),
        )
        self._places = {
            (schema, name): Place(
                state, parse_lsn(lsn), since, reason, sqlstate, copying, shape=parse_lsn(shape)
            )
            for schema, name, state, lsn, since, reason, sqlstate, copying, shape in await cursor.fetchall()
        }
        for table, offset in self._ahead.items():
            if table not in self._places or self._places[table].state == "live":
                self._places[table] = Place(
                    "ahead", offset, datetime.now(UTC), "", None, by_lane=True, shape=offset
                )
        self._next, self._moved = {}, {}

    @property
    def are_still(self) -> bool:
        """No table is on its way to the stream."""
        return not any(place.state in ("releasing", "ahead") for place in self._places.values())

    def start(self, progress: int) -> int:
        """Where a session has to begin so that every table gets what it needs: its changes, or those of its
        shape before it is copied anew."""
        places = self._places.values()
        rows = [each.offset for each in places if each.state == "releasing"]
        shapes = [each.shape for each in places if each.state == "releasing" or each.copying]
        return min([progress, *rows, *shapes])

    def pinned(self, progress: int) -> int:
        """The position after which the journal must be kept."""
        places = self._places.values()
        needed = [each for each in places if each.state in _PINNING or each.copying]
        return min([progress, *(min(each.offset, each.shape) for each in needed)])

    # --- in a transaction ---------------------------------------------------------------------

    def keep(self, pieces: Sequence[Piece], progress: int) -> list[Change]:
        """The changes that their tables still need, in order."""
        if not self._places and not self._moved and all(piece.offset >= progress for piece in pieces):
            return [change for piece in pieces for change in piece.changes]
        kept: list[Change] = []
        for piece in pieces:
            for change in piece.changes:
                found = self._kept(change, piece.offset, progress)
                if found is not None:
                    kept.append(found)
        return kept

    def _kept(self, change: Change, offset: int, progress: int) -> Change | None:
        if isinstance(change, Message):
            return change if offset >= progress else None
        if not isinstance(change, Truncate):
            return change if self._due(change.relation, offset, progress) else None
        relations = tuple(each for each in change.relations if self._due(each, offset, progress))
        return Truncate(relations, change.cascade, change.restart_identity) if relations else None

    def _due(self, relation: Relation, offset: int, progress: int) -> bool:
        return due(self._place((relation.schema, relation.name)), offset, progress)

    def _place(self, table: Table) -> Place | None:
        return self._moved[table] if table in self._moved else self._places.get(table)

    def stands(self, table: Table, offset: int, progress: int) -> Literal["due", "behind", "past"]:
        """What a change of the schema at `offset` is to `table`."""
        if self._moved.get(table) is not None:
            return "due"  # by this very transaction: a copy of it comes later
        return stand(self._place(table), offset, progress)

    def is_copied(self, table: Table) -> bool:
        """Whether it is to be copied anew."""
        place = self._place(table)
        return place is not None and place.copying

    async def copy_from(
        self,
        connection: AsyncConnection[Any],
        table: Table,
        offset: int,
        reason: str | None,
        *,
        now: bool = True,
    ) -> None:
        """In the open transaction: its rows are to be copied, from a view of the source that is later than
        `offset`; changes of it are left out from here. `reason` None: as it was. `now` False: it can't be
        copied yet, and the stream has nothing of it."""
        before = self._place(table)
        reason = reason if before is None or reason is not None else before.reason
        state = "held" if now else "lost"
        await connection.execute(
            "INSERT INTO castling.table_positions AS t"
            " (stream, schema, name, state, lsn, shape, reason, copying)"
            " VALUES (%s, %s, %s, %s, %s::pg_catalog.pg_lsn, %s::pg_catalog.pg_lsn, %s, %s)"
            " ON CONFLICT (stream, schema, name) DO UPDATE SET state = excluded.state, lsn = excluded.lsn,"
            " shape = excluded.shape, reason = excluded.reason, copying = excluded.copying, sqlstate = NULL",
            (self._stream, *table, state, lsn_text(offset), lsn_text(offset), reason or "", now),
        )
        since = datetime.now(UTC) if before is None else before.since
        self._moved[table] = Place(state, offset, since, reason or "", None, copying=now, shape=offset)

    def rows_are_later(self, table: Table, offset: int) -> bool:
        """Whether its rows are of a later moment than a change of the schema at `offset`."""
        place = self._place(table)
        return place is not None and not place.copying and place.offset > offset

    async def shaped(self, connection: AsyncConnection[Any], table: Table, offset: int) -> None:
        """In the open transaction: the schema's changes of it are made up to `offset`."""
        place = self._place(table)
        if place is None or place.state == "live":
            return
        await connection.execute(
            f"UPDATE castling.table_positions SET shape = %s::pg_catalog.pg_lsn {_OF_TABLE}".encode(),
            (lsn_text(offset), self._stream, *table),
        )
        self._moved[table] = replace(place, shape=offset)

    async def forget(self, connection: AsyncConnection[Any], table: Table) -> None:
        """In the open transaction: the table is gone, and nothing of it is lacking."""
        await connection.execute(
            f"DELETE FROM castling.table_positions {_OF_TABLE}".encode(), (self._stream, *table)
        )
        self._moved[table] = None

    def elsewhere(self) -> set[Table]:
        """The tables that are not where the stream is."""
        places = self._places | self._moved
        return {table for table, place in places.items() if place is not None and place.state != "live"}

    async def settle(self, connection: AsyncConnection[Any], offset: int, progress: int) -> None:
        """Before the commit that takes the target to `offset`, in the same transaction: the tables that are
        on their way are there too; those that have reached the stream are forgotten."""
        self._next = {}
        self._settled = offset
        for table, place in (self._places | self._moved).items():
            if place is None or place.state not in ("releasing", "ahead") or offset < place.offset:
                continue
            if offset >= progress:
                self._next[table] = None
                if place.by_lane:
                    continue
                await connection.execute(_LIVE, (self._stream, *table))
                await connection.execute(_FORGET, (self._stream, *table))
            elif place.state == "releasing":
                self._next[table] = replace(place, offset=offset, shape=offset)
                await connection.execute(
                    "UPDATE castling.table_positions SET lsn = %s::pg_catalog.pg_lsn,"
                    " shape = %s::pg_catalog.pg_lsn WHERE stream = %s AND schema = %s AND name = %s",
                    (lsn_text(offset), lsn_text(offset), self._stream, *table),
                )

    def committed(self) -> None:
        for table, place in (self._moved | self._next).items():
            if place is None:
                self._places.pop(table, None)
            else:
                self._places[table] = place
        self._ahead = {table: offset for table, offset in self._ahead.items() if offset > self._settled}
        self._next, self._moved = {}, {}

    def rolled_back(self) -> None:
        self._next, self._moved = {}, {}

    # --- between transactions -----------------------------------------------------------------

    async def hold(
        self,
        connection: AsyncConnection[Any],
        tables: Sequence[Relation],
        progress: int,
        reason: str,
        sqlstate: str | None,
        *,
        copy: bool,
    ) -> None:
        """Note, in a transaction of its own, that the tables have what they have and nothing after it.
        `copy`: they shall be copied anew, if that has not been tried too often."""
        async with connection.transaction():
            for relation in tables:
                await connection.execute(
                    "INSERT INTO castling.table_positions AS t"
                    " (stream, schema, name, state, lsn, shape, reason, sqlstate, copying, tries)"
                    " VALUES (%(s)s, %(n)s, %(t)s, 'held', %(l)s::pg_catalog.pg_lsn,"
                    " %(l)s::pg_catalog.pg_lsn, %(r)s, %(c)s, %(a)s, %(a)s::int)"
                    " ON CONFLICT (stream, schema, name) DO UPDATE SET state = 'held', wanted = NULL,"
                    " reason = excluded.reason, sqlstate = excluded.sqlstate,"
                    f" copying = excluded.copying AND ({_RECENT}) < {COPIES_MAX},"
                    f" tries = ({_RECENT}) + excluded.tries,"
                    " since = CASE WHEN t.state = 'live' THEN excluded.since ELSE t.since END,"
                    " shape = CASE WHEN t.state = 'live' THEN excluded.lsn ELSE t.shape END,"
                    " lsn = CASE WHEN t.state = 'live' THEN excluded.lsn ELSE t.lsn END",
                    {
                        "s": self._stream,
                        "n": relation.schema,
                        "t": relation.name,
                        "l": lsn_text(max(progress, self._ahead.get((relation.schema, relation.name), 0))),
                        "r": reason,
                        "c": sqlstate,
                        "a": copy,
                    },
                )
        await self.load(connection)

    async def do_wanted(self, connection: AsyncConnection[Any], progress: int) -> list[str]:
        """What others want, done: the tables that it concerned. Not while lanes are unequal: then the
        stream's progress is not that of all the tables that are nowhere noted."""
        if self._ahead:
            return []
        cursor = await connection.execute(
            "UPDATE castling.table_positions SET wanted = NULL,"
            " since = CASE WHEN state = 'live' THEN pg_catalog.now() ELSE since END,"
            " shape = CASE WHEN state = 'live' THEN %s::pg_catalog.pg_lsn ELSE COALESCE(shape, lsn) END,"
            " lsn = CASE WHEN state = 'live' OR (state = 'lost' AND wanted = 'resync')"
            " THEN %s::pg_catalog.pg_lsn ELSE lsn END,"
            " tries = CASE wanted WHEN 'resync' THEN 0 ELSE tries END,"
            " copying = CASE wanted WHEN 'resync' THEN true WHEN 'hold' THEN false ELSE copying END,"
            " state = CASE WHEN wanted <> 'release' AND state IN ('live', 'releasing', 'ahead') THEN 'held'"
            " WHEN wanted = 'release' AND state = 'held' AND NOT copying THEN 'releasing' ELSE state END"
            " WHERE stream = %s AND wanted IS NOT NULL RETURNING schema, name",
            (lsn_text(progress), lsn_text(progress), self._stream),
        )
        return sorted(f"{schema}.{name}" for schema, name in await cursor.fetchall())

    async def do_wanted_and_load(
        self, connection: AsyncConnection[Any], progress: int, ahead: dict[Table, int]
    ) -> None:
        """For a session that begins: what is wanted, and what is. `ahead`: tables whose lane has more than
        the stream."""
        self._ahead = ahead
        await connection.execute(CREATE_POSITIONS.encode())
        await self.do_wanted(connection, progress)
        await self.load(connection)

    async def give_up(self, connection: AsyncConnection[Any], part: str, progress: int) -> None:
        """The journal does not keep the table's changes any longer: what a new copy needs of it follows
        `progress`, and one that is behind even that is lost too."""
        await connection.execute(
            "UPDATE castling.table_positions SET state = 'lost', copying = copying AND state <> 'lost',"
            " shape = %s::pg_catalog.pg_lsn,"
            " lsn = CASE WHEN copying THEN %s::pg_catalog.pg_lsn ELSE lsn END"
            " WHERE stream = %s AND schema || '.' || name = %s AND wanted IS NULL"
            " AND (state IN ('held', 'releasing') OR copying)",
            (lsn_text(progress), lsn_text(progress), self._stream, part),
        )
        await self.load(connection)

    def held(self) -> list[Held]:
        """For the report: the tables that are behind, oldest first."""
        found = [
            Held(
                part=f"{schema}.{name}",
                state="copying" if place.copying else place.state,
                offset=place.offset,
                since_ns=int(place.since.timestamp() * 1e9),
                reason=place.reason,
                sqlstate=place.sqlstate,
            )
            for (schema, name), place in self._places.items()
            if place.state in ("held", "releasing", "lost")
        ]
        return sorted(found, key=lambda each: (each.since_ns, each.part))
