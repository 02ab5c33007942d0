"""Changes of the schema that the target refused and that concern no table: put aside by name.

A view or a function that can't be made is no reason to let all rows wait. What was put aside stays listed,
with the statement and why, until somebody has made it or says that it is not wanted.
"""

from __future__ import annotations

from typing import Any

from psycopg import AsyncConnection

from castling.errors import TargetError
from castling.kinds.postgres.ddl_message import SchemaChange
from castling.kinds.postgres.neighbours import MAKE_ALONE

__all__ = ["CREATE_ASIDE", "SetAside"]

CREATE_ASIDE = (
    MAKE_ALONE
    + """
    CREATE TABLE IF NOT EXISTS castling.schema_changes_aside (
        stream text NOT NULL,
        number bigint GENERATED ALWAYS AS IDENTITY,
        since timestamptz NOT NULL DEFAULT pg_catalog.now(),
        tag text NOT NULL,
        statement text,
        role text NOT NULL,
        search_path text NOT NULL,
        reason text NOT NULL,
        PRIMARY KEY (stream, number)
    );
"""
)
_SHOWN = 3


class SetAside:
    """What of one stream is aside; as of the target's last commit, and of the open transaction."""

    def __init__(self, group: str) -> None:
        self._group = group
        self._committed: list[str] = []
        self._now: list[str] = []

    async def load(self, connection: AsyncConnection[Any]) -> None:
        await connection.execute(CREATE_ASIDE.encode())
        cursor = await connection.execute(
            "SELECT reason FROM castling.schema_changes_aside WHERE stream = %s ORDER BY number",
            (self._group,),
        )
        self._committed = [str(row[0]) for row in await cursor.fetchall()]
        self._now = list(self._committed)

    async def put(
        self,
        connection: AsyncConnection[Any],
        change: SchemaChange,
        statement: str | None,
        error: TargetError,
    ) -> None:
        """Note it in the open transaction."""
        await connection.execute(
            "INSERT INTO castling.schema_changes_aside (stream, tag, statement, role, search_path, reason)"
            " VALUES (%s, %s, %s, %s, %s, %s)",
            (self._group, change.tag, statement, change.role, change.path, str(error)),
        )
        self._now.append(str(error))

    def committed(self) -> None:
        self._committed = list(self._now)

    def rolled_back(self) -> None:
        self._now = list(self._committed)

    @property
    def count(self) -> int:
        return len(self._committed)

    def warnings(self) -> list[dict[str, Any]]:
        found = self._committed
        if not found:
            return []
        shown = "; ".join(found[:_SHOWN]) + ("; …" if len(found) > _SHOWN else "")
        return [
            {
                "code": "schema-changes-aside",
                "message": f"{len(found)} schema changes were not made on the target: {shown}",
                "hint": "make each there by hand (castling.schema_changes_aside has them whole), then delete"
                " its row in that table",
            }
        ]
