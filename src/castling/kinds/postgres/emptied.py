"""Tables that were emptied on the source while the first copy read them.

TRUNCATE does not wait for snapshots: a copy that reads the table afterwards finds nothing of what
its snapshot should show. To lock every table for as long as the copy lasts would make TRUNCATE,
and all who queue behind it, wait for hours. So the copy locks a table only while it reads a chunk,
notices that the table has another file than in the snapshot, and says up to which position of
the stream the TRUNCATE must have come. Until it has come, changes of that table's former rows have
no rows to go to, and are left out; with it the table is right again. A table that reaches the
position without a TRUNCATE was rewritten by something else (ALTER TABLE), and has to be copied anew.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from psycopg import AsyncConnection

from castling.errors import TargetDiverged
from castling.kinds.postgres.changes import Change, Message, Truncate
from castling.kinds.postgres.lsn import parse_lsn
from castling.kinds.postgres.neighbours import MAKE_ALONE

__all__ = ["CREATE_EMPTIED", "EmptiedTables", "rewritten"]

CREATE_EMPTIED = (
    MAKE_ALONE
    + """
    CREATE TABLE IF NOT EXISTS castling.seed_emptied (
        stream text NOT NULL,
        schema text NOT NULL,
        name text NOT NULL,
        until pg_lsn NOT NULL,
        PRIMARY KEY (stream, schema, name)
    );
"""
)


def rewritten(tables: Sequence[tuple[str, str]]) -> TargetDiverged:
    names = [f"{schema}.{name}" for schema, name in tables]
    return TargetDiverged(
        "while the first copy read them, tables were rewritten on the source, and not by TRUNCATE: "
        + ", ".join(names),
        hint="copy them anew: `castling group resync`",
        tables=names,
    )


class EmptiedTables:
    """What of one stream still waits for its TRUNCATE; as of the target's last commit, and as of now."""

    def __init__(self, stream: str) -> None:
        self._stream = stream
        self._committed: dict[tuple[str, str], int] = {}
        self._now: dict[tuple[str, str], int] = {}

    async def load(self, connection: AsyncConnection[Any]) -> None:
        """Read what the first copy has noted."""
        self._committed = {}
        cursor = await connection.execute(b"SELECT pg_catalog.to_regclass('castling.seed_emptied')")
        row = await cursor.fetchone()
        if row is not None and row[0] is not None:
            cursor = await connection.execute(
                "SELECT schema, name, until::text FROM castling.seed_emptied WHERE stream = %s",
                (self._stream,),
            )
            self._committed = {
                (schema, name): parse_lsn(until) for schema, name, until in await cursor.fetchall()
            }
        self._now = dict(self._committed)

    @property
    def are_none(self) -> bool:
        return not self._now

    def keep(self, changes: Sequence[Change]) -> list[Change]:
        """The changes that have rows to go to. A TRUNCATE settles its tables."""
        if not self._now:
            return list(changes)
        kept: list[Change] = []
        for change in changes:
            if isinstance(change, Truncate):
                for relation in change.relations:
                    self._now.pop((relation.schema, relation.name), None)
                kept.append(change)
            elif (
                isinstance(change, Message) or (change.relation.schema, change.relation.name) not in self._now
            ):
                kept.append(change)
        return kept

    def forget(self, table: tuple[str, str]) -> bool:
        """Something else than a TRUNCATE makes the table right; whether it was waiting for one."""
        return self._now.pop(table, None) is not None

    def late(self, offset: int, elsewhere: Collection[tuple[str, str]]) -> list[tuple[str, str]]:
        """The tables whose TRUNCATE must have come before `offset`, and has not; but those that are
        `elsewhere` (see `holds`) have not come so far."""
        return sorted(
            table for table, until in self._now.items() if until < offset and table not in elsewhere
        )

    async def settle(self, connection: AsyncConnection[Any]) -> None:
        """Before a commit: forget, in the same transaction, the tables that are right again."""
        for schema, name in self._committed.keys() - self._now.keys():
            await connection.execute(
                "DELETE FROM castling.seed_emptied WHERE stream = %s AND schema = %s AND name = %s",
                (self._stream, schema, name),
            )

    def committed(self) -> None:
        self._committed = dict(self._now)

    def rolled_back(self) -> None:
        self._now = dict(self._committed)
