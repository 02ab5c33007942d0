"""The source end's part in carrying changes of the schema: that the triggers are there, and whom to believe.

Whenever a capture looks at what is published, it looks at the triggers too. Those that are missing are made
again, and the status says that changes may have been missed meanwhile. A table that no trigger could publish
(its lock was taken, or the session that made it fires none) is published here, and copied.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import psycopg
from psycopg import AsyncConnection

from castling.config import GroupSettings
from castling.errors import NotReplicable
from castling.kinds.postgres.catalog import Table
from castling.kinds.postgres.ddl_message import is_sealed
from castling.kinds.postgres.ddl_source import catch_up, ddl_key, install, is_up, uninstall
from castling.kinds.postgres.publication import published
from castling.kinds.postgres.session import Published
from castling.observe import events

__all__ = ["DdlWatch"]


class DdlWatch:
    """Of one stream, whose publication is `publication`."""

    def __init__(self, group: str, publication: str, settings: GroupSettings) -> None:
        self._publication = publication
        self._settings = settings
        self._key: bytes | None = None
        self._was_up = False
        self._missed = False
        self._forged = 0
        self._log = events("capture").bind(group=group)

    @contextlib.asynccontextmanager
    async def looking(self, connection: AsyncConnection[Any]) -> AsyncIterator[None]:
        """One view of what is published, at whose end the triggers are as the settings say. What is wrong
        with the publication is found by the body, before anything is noted of it."""
        carry = self._settings.ddl == "carry"
        up = await is_up(connection, self._publication, self._settings) if carry else True
        await connection.execute(b"BEGIN ISOLATION LEVEL REPEATABLE READ")
        try:
            yield
            if not up:
                await self._install(connection)
        except BaseException:
            if not connection.closed:
                await connection.execute(b"ROLLBACK")
            raise
        await connection.execute(b"COMMIT")
        self._missed = self._missed or (self._was_up and not up)
        self._was_up = carry
        if carry:
            self._key = await ddl_key(connection)
        else:
            await uninstall(connection, self._publication)

    async def _install(self, connection: AsyncConnection[Any]) -> None:
        try:
            await connection.execute(b"SET LOCAL session_replication_role = replica")
            await install(connection, self._publication, self._settings)
        except psycopg.errors.InsufficientPrivilege as error:
            raise NotReplicable(
                f"schema changes can't be carried: {error.diag.message_primary}",
                hint='the source\'s user must be a superuser to make event triggers; or set ddl = "stop"',
            ) from error
        self._log.info("capture.schema_triggers_made", publication=self._publication)

    async def catch_up(self, connection: AsyncConnection[Any], tables: list[Table], found: Published) -> None:
        """Publish what the patterns choose and no trigger has published."""
        if self._settings.ddl != "carry":
            return
        listed = set(found.tables)
        missing = [table.oid for table in published(tables, self._settings) if table.oid not in listed]
        try:
            await catch_up(connection, missing)
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
            self._log.info("capture.table_locked", tables=len(missing))  # at the next look

    def trusts(self, content: bytes) -> bool:
        """Whether a message about the schema comes from the source's own triggers."""
        if self._key is not None and is_sealed(content, self._key):
            return True
        self._forged += 1
        return False

    def warnings(self) -> list[dict[str, Any]]:
        found = []
        if self._missed:
            found.append(
                {
                    "code": "schema-changes-missed",
                    "message": "the event triggers on the source were removed or disabled and are made"
                    " again: schema changes may have been missed",
                    "hint": "`castling group compare-schema` shows what differs",
                }
            )
        if self._forged and self._settings.ddl == "carry":
            found.append(
                {
                    "code": "schema-changes-forged",
                    "message": f"{self._forged} messages about schema changes were not written by Castling's"
                    " triggers, and were left out",
                    "hint": "somebody on the source calls pg_logical_emit_message(…, 'castling:ddl', …)",
                }
            )
        return found
