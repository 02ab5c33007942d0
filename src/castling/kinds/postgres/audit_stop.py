"""Apply's side of a view at one position: stops exactly there, for a moment, and goes on.

Only what the auditor has announced in the target's own database makes apply wait: anybody may write logical
messages on the source, but not that row. Every wait has its limit, after which apply goes on and the auditor
tries again. Receiving and hardening know nothing of it.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from psycopg import AsyncConnection

from castling.kinds.postgres.audit_marks import CREATE_MARKS
from castling.kinds.postgres.lsn import parse_lsn

__all__ = ["AuditStop"]

#: how long apply waits to be told where to stop, and then for the snapshot to be taken, seconds
TOLD_S = 2.0
TAKEN_S = 3.0
_POLL_S = 0.002


class AuditStop:
    """The stop that one stream's apply session is making; calls are between two target transactions."""

    def __init__(self, stream: str) -> None:
        self._stream = stream
        self._id = ""
        #: the first position that must not be applied before the snapshot is taken; None: no stop is near
        self.until: int | None = None
        self._waited_s = 0.0
        self.stops = 0
        self.last_paused_s: float | None = None

    async def load(self, connection: AsyncConnection[Any]) -> None:
        """A session begins, and may go past what one before it had stopped at."""
        await connection.execute(CREATE_MARKS.encode())
        await connection.execute(
            "UPDATE castling.audit_marks SET state = 'passed'"
            " WHERE stream = %s AND state IN ('armed', 'reached')",
            (self._stream,),
        )
        self.until = None

    async def arm(self, connection: AsyncConnection[Any], mark: str) -> None:
        """The stream has come to a mark: wait until it is said where to stop. Nothing when nobody asked."""
        begun_s = time.monotonic()
        cursor = await connection.execute(
            "UPDATE castling.audit_marks SET state = 'armed'"
            " WHERE stream = %s AND id = %s AND state = 'asked'",
            (self._stream, mark),
        )
        if cursor.rowcount != 1:
            return
        while True:
            cursor = await connection.execute(
                "SELECT until::text FROM castling.audit_marks WHERE id = %s AND state = 'armed'", (mark,)
            )
            row = await cursor.fetchone()
            if row is not None and row[0] is not None:
                self._id, self.until = mark, parse_lsn(str(row[0]))
                break
            if row is None or time.monotonic() - begun_s > TOLD_S:
                await self._pass(connection, mark)
                break
            await asyncio.sleep(_POLL_S)
        self._waited_s = time.monotonic() - begun_s

    async def reached(self, connection: AsyncConnection[Any]) -> None:
        """All before `until` is committed, and nothing else: let the auditor take its snapshot."""
        mark, self.until = self._id, None
        begun_s = time.monotonic()
        await connection.execute(
            "UPDATE castling.audit_marks SET state = 'reached' WHERE id = %s AND state = 'armed'", (mark,)
        )
        while True:
            cursor = await connection.execute("SELECT state FROM castling.audit_marks WHERE id = %s", (mark,))
            row = await cursor.fetchone()
            if row is None or row[0] != "reached" or time.monotonic() - begun_s > TAKEN_S:
                break
            await asyncio.sleep(_POLL_S)
        self.stops += 1
        self.last_paused_s = self._waited_s + time.monotonic() - begun_s
        await self._pass(connection, mark, self.last_paused_s)

    async def _pass(self, connection: AsyncConnection[Any], mark: str, paused_s: float | None = None) -> None:
        """Committed before anything that comes later; one that was taken stays so."""
        await connection.execute(
            "UPDATE castling.audit_marks SET paused_s = %s,"
            " state = CASE WHEN state = 'taken' THEN state ELSE 'passed' END WHERE id = %s",
            (paused_s, mark),
        )
