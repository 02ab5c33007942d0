"""Takes new copies of single tables, beside the apply that goes on with all others.

The table is on hold meanwhile (`holds`: `copying`), so nobody else of ours writes it. It is emptied and
filled in one transaction, together with its new position and the wish to be released from there: a copy that
dies anywhere has changed nothing, and the table is copied again. Rows are deleted, not truncated:
readers go on to see the table as it was, and tables that refer to it are no obstacle.

A copy counts only if the table still wants one and the journal still holds what follows the copy's position;
that is asked in the statement that notes it, so a copy that comes late is thrown away.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import psycopg
from psycopg import AsyncConnection

from castling.config import DatabaseSettings
from castling.errors import SeedFailed, StateError, TargetError, TargetUnreachable
from castling.kinds.postgres import progress
from castling.kinds.postgres.connect import TEXT_FORM, connect
from castling.kinds.postgres.emptied import CREATE_EMPTIED
from castling.kinds.postgres.holds import CREATE_POSITIONS
from castling.kinds.postgres.lsn import lsn_text
from castling.kinds.postgres.naming import OTHER_NAMING, OTHER_NAMING_HINT
from castling.kinds.postgres.resync_plan import Anew, Refused, decode_part, encode_wanted
from castling.kinds.postgres.statements import column_list, quoted

__all__ = ["TableCopies", "only"]

_SESSION = (
    "SET session_replication_role = replica",
    *TEXT_FORM,
    "SET statement_timeout = 0",
    "SET idle_in_transaction_session_timeout = 0",
    "SET row_security = off",
    "SET lock_timeout = '30s'",
    "SET synchronous_commit = on",
)
_WANTED = """
    SELECT 1 FROM castling.table_positions
     WHERE stream = %(s)s AND schema = %(n)s AND name = %(t)s AND copying AND lsn <= %(l)s::pg_lsn
"""
_DONE = """
    UPDATE castling.table_positions SET state = 'held', copying = false, wanted = 'release', lsn = %(l)s
     WHERE stream = %(s)s AND schema = %(n)s AND name = %(t)s AND copying AND lsn <= %(l)s::pg_lsn
"""
_REFUSED = """
    UPDATE castling.table_positions SET copying = false, reason = %(r)s, sqlstate = %(c)s
     WHERE stream = %(s)s AND schema = %(n)s AND name = %(t)s AND copying
"""


class TableCopies:
    """The tables of one stream on its target that are to be copied anew."""

    def __init__(self, group: str, settings: DatabaseSettings, *, naming: str = "") -> None:
        self._group = group
        self._naming = naming
        self._settings = settings
        #: by table: the position of a copy that was refused, before the stream had come there
        self._refused: dict[tuple[str, str], int] = {}

    async def _connect(self) -> AsyncConnection[Any]:
        connection = await connect(
            self._settings, application_name=f"castling resync {self._group}", error=TargetUnreachable
        )
        for statement in _SESSION:
            await connection.execute(statement.encode())
        await connection.execute((progress.CREATE_PROGRESS + CREATE_EMPTIED + CREATE_POSITIONS).encode())
        return connection

    async def wanted(self) -> bytes:
        connection = await self._connect()
        try:
            cursor = await connection.execute(
                "SELECT schema, name FROM castling.table_positions WHERE stream = %s AND copying"
                " AND wanted IS NULL ORDER BY since, schema, name",
                (self._group,),
            )
            return encode_wanted([(str(schema), str(name)) for schema, name in await cursor.fetchall()])
        finally:
            await connection.close()

    async def handle(self, meta: bytes, body: AsyncIterator[bytes]) -> bytes:
        request = decode_part(meta)
        if isinstance(request, Anew) and request.naming != self._naming:
            raise SeedFailed(OTHER_NAMING, hint=OTHER_NAMING_HINT)
        connection = await self._connect()
        applied = await progress.read(connection, self._group)
        try:
            if isinstance(request, Refused):
                if request.lsn and self._is_early(request, applied):
                    raise SeedFailed(f"{request.schema}.{request.table}: {request.reason}; it is asked again")
                await self._note(connection, request, None)
                return b""
            return str(await self._take(connection, request, body)).encode()
        except psycopg.OperationalError as error:
            raise TargetUnreachable(
                f"the target broke off while {request.table} was copied anew: {error}"
            ) from error
        except psycopg.Error as error:
            reason = f"its new copy was refused: {error.diag.message_primary or error}"
            if isinstance(request, Anew) and self._is_early(request, applied):
                again = f"{request.schema}.{request.table}: {reason}; it is tried once more"
                raise SeedFailed(again) from error
            await self._note(connection, Refused(request.schema, request.table, reason), error.sqlstate)
            raise TargetError(
                f"{request.schema}.{request.table}: {reason}",
                hint="mend the cause on the target, then `castling group resync`",
                sqlstate=error.sqlstate,
            ) from error
        finally:
            await connection.close()

    def _is_early(self, request: Anew | Refused, applied: int) -> bool:
        """Whether a refused copy is to be tried once more. It is of a later moment than what was `applied`
        when it began, and what came between may be what it lacks (a column, say); not so one that began
        after the stream had passed an earlier refused one."""
        table = (request.schema, request.table)
        if applied >= self._refused.setdefault(table, request.lsn):
            del self._refused[table]
            return False
        return True

    async def _note(self, connection: AsyncConnection[Any], refused: Refused, sqlstate: str | None) -> None:
        """The table stays as it is, with the reason; it is not wanted again by itself."""
        row = {
            "s": self._group,
            "n": refused.schema,
            "t": refused.table,
            "r": refused.reason[:1000],
            "c": sqlstate,
        }
        await connection.execute(_REFUSED, row)

    async def _take(self, connection: AsyncConnection[Any], request: Anew, body: AsyncIterator[bytes]) -> int:
        table = f"{quoted(request.schema)}.{quoted(request.table)}"
        key = {"s": self._group, "n": request.schema, "t": request.table, "l": lsn_text(request.lsn)}
        async with connection.transaction(), connection.cursor() as cursor:
            await cursor.execute(_WANTED, key)
            if cursor.rowcount != 1:  # asked again at the end: here it spares the work
                raise StateError(f"no copy of {request.schema}.{request.table} is wanted now")
            # against others that write; those who read see the table as it was, until the commit
            await cursor.execute(f"LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE".encode())
            await cursor.execute(f"DELETE FROM {await only(connection, table)}{table}".encode())
            async with cursor.copy(f"COPY {table}{column_list(request.columns)} FROM STDIN".encode()) as copy:
                async for data in body:
                    await copy.write(data)
            rows = cursor.rowcount
            await cursor.execute(
                "DELETE FROM castling.seed_emptied WHERE stream = %(s)s AND schema = %(n)s AND name = %(t)s",
                key,
            )
            await cursor.execute(_DONE, key)
            if cursor.rowcount != 1:
                raise StateError(
                    f"a new copy of {request.schema}.{request.table} came that is not wanted any longer",
                    hint="it was called off, or took so long that the journal could not keep what follows it:"
                    " then raise retention.hold",
                )
        self._refused.pop((request.schema, request.table), None)
        return rows


async def only(connection: AsyncConnection[Any], table: str) -> str:
    """Children of a plain table are tables of their own; partitions are not."""
    cursor = await connection.execute(
        "SELECT relkind = 'p' FROM pg_catalog.pg_class WHERE oid = %s::pg_catalog.regclass", (table,)
    )
    row = await cursor.fetchone()
    return "" if row is not None and row[0] else "ONLY "
