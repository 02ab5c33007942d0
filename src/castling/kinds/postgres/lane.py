"""One lane's session on the target: whole transactions of its own tables, each with the lane's progress."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from psycopg import AsyncConnection

from castling.config import DatabaseSettings
from castling.kinds.postgres import progress
from castling.kinds.postgres.changes import Change, coalesce
from castling.kinds.postgres.lane_rows import note_lane
from castling.kinds.postgres.mapping import Mapping
from castling.kinds.postgres.messages import Relation
from castling.kinds.postgres.target_session import explained, open_session
from castling.kinds.postgres.writer import Writer

__all__ = ["Lane"]


class Lane:
    """`offset`: everything of its tables before it is committed. After an error it is only closed."""

    def __init__(self, group: str, number: int, settings: DatabaseSettings, holder: str) -> None:
        self.number = number
        self.offset = 0
        self._group = group
        self._settings = settings
        self._holder = holder
        self._connection: AsyncConnection[Any] | None = None
        self._writer: Writer | None = None

    async def open(self) -> None:
        application = progress.application_name(self._group, self.number)
        self._connection = await open_session(self._settings, application)
        with explained():
            await progress.take_origin(self._connection, self._group, self.number)
        self.renew()

    def renew(self) -> None:
        """What the lane knows of tables may be wrong now."""
        assert self._connection is not None
        self._writer = Writer(self._connection, Mapping(self._connection))

    async def forget_tables(self) -> None:
        """Tables are about to change, and this session's staging tables have columns of their types."""
        if self._connection is not None:
            with explained():
                await self._connection.execute(b"DISCARD TEMP")
            self.renew()

    @property
    def at(self) -> tuple[Relation, ...]:
        """The tables that are being written: whose an error is."""
        return () if self._writer is None else self._writer.at

    async def write(self, changes: Sequence[Change], offset: int) -> None:
        """Apply changes of the lane's tables as one transaction, after which it is at `offset`."""
        connection, writer = self._connection, self._writer
        assert connection is not None and writer is not None
        with explained():
            await connection.execute(b"BEGIN ISOLATION LEVEL READ COMMITTED; SET CONSTRAINTS ALL DEFERRED")
            await writer.write(coalesce(changes))
            await note_lane(connection, self._group, self.number, offset, self._holder)
            await connection.execute(b"COMMIT")
        self.offset = offset

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    def counts(self) -> tuple[int, int]:
        """Steps written as sets, and those that had to be replayed."""
        return (0, 0) if self._writer is None else (self._writer.sets, self._writer.replays)
