"""Both ends of a stream at exactly one position, while writers run.

    auditor: a row `asked` on the target ─▶ a message in the source's log ─▶ a snapshot of the source
    (`source_view`): position P apply:   comes to the message, waits for P ─▶ applies all before P ─▶ stands
    still: `reached` auditor: a snapshot of the target in which the row still says `reached` ─▶ `taken`: apply
    goes on

The source's snapshot holds exactly the transactions whose commit lies before P in the log, by PostgreSQL's
own making; the target's holds exactly those too, because progress and rows are one transaction and nothing is
committed while the row says `reached`. Each reader then works in short transactions of the snapshots.

The source makes a snapshot when all transactions that write at that moment have ended. Long ones are waited
for before apply is asked to stop, and told by name when they do not end.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import AsyncConnection

from castling.config import DatabaseSettings
from castling.errors import AuditCannotBegin, SourceUnreachable, TargetUnreachable
from castling.kinds.base import Stream
from castling.kinds.postgres.audit_marks import CREATE_MARKS, MARK_PREFIX
from castling.kinds.postgres.connect import TEXT_FORM, connect
from castling.kinds.postgres.lsn import lsn_text
from castling.kinds.postgres.source_view import View, open_view

__all__ = ["Pair", "Reader", "open_pair"]

#: how long writers that were there before may take to end, seconds; how long the snapshot may then take
QUIET_S = 20.0
SNAPSHOT_S = 8.0
#: how long the target may take to come to the position
COME_S = 60.0
_OLD_S = 1.0
_TRIES = 5
_POLL_S = 0.002
#: seconds between two looks at who is still writing
_WRITERS_POLL_S = 0.1
_BEGIN = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"

_SESSION = (
    *TEXT_FORM,
    "SET statement_timeout = 0",
    "SET idle_in_transaction_session_timeout = 0",
    "SET row_security = off",
)
_WRITERS = """
SELECT pid::text, application_name, EXTRACT(epoch FROM clock_timestamp() - xact_start)::float8
  FROM pg_catalog.pg_stat_activity
 WHERE backend_xid IS NOT NULL AND pid <> pg_catalog.pg_backend_pid()
   AND clock_timestamp() - xact_start > pg_catalog.make_interval(secs => %(old)s::float8)
UNION ALL
SELECT 'prepared ' || gid, owner, EXTRACT(epoch FROM clock_timestamp() - prepared)::float8
  FROM pg_catalog.pg_prepared_xacts
 WHERE clock_timestamp() - prepared > pg_catalog.make_interval(secs => %(old)s::float8)
 ORDER BY 3 DESC
"""


#: whether tables (oids) lie in the files that the snapshot knows: one that was truncated or rewritten since
#: looks empty to it. While the lock of the statement before is still held
_AS_SEEN = """
SELECT COALESCE(bool_and(COALESCE(c.relfilenode = pg_relation_filenode(c.oid), false)), false)
  FROM pg_catalog.pg_class c
 WHERE c.oid = ANY (%s::oid[]) AND c.relkind <> 'p'
"""


@dataclass(slots=True)
class Reader:
    """Reads in short transactions of a snapshot: they keep the locks they take, and a TRUNCATE that waits for
    them makes everybody behind it wait."""

    connection: AsyncConnection[Any]
    snapshot: str

    async def ask(self, statement: str, tables: Sequence[int] = ()) -> list[tuple[Any, ...]]:
        """The answer as of the snapshot. AuditCannotBegin when one of `tables` was rewritten since."""
        try:
            await self.connection.execute(f"{_BEGIN}; SET TRANSACTION SNAPSHOT '{self.snapshot}'".encode())
            cursor = await self.connection.execute(statement.encode())
            found: list[tuple[Any, ...]] = await cursor.fetchall()
            if tables:
                cursor = await self.connection.execute(_AS_SEEN.encode(), (list(tables),))
                row = await cursor.fetchone()
                if row is None or row[0] is not True:
                    raise AuditCannotBegin("a table was rewritten while it was compared; it is tried again")
        finally:
            await self.connection.execute(b"ROLLBACK")
        return found


@dataclass(slots=True)
class Pair:
    """`lsn`: the position. `target` keeps the target's snapshot alive; `snapshot` is its name."""

    mark: str
    source: View
    database: DatabaseSettings
    application: str
    target: AsyncConnection[Any]
    snapshot: str
    paused_s: float | None = None

    @property
    def lsn(self) -> int:
        return self.source.lsn

    @contextlib.asynccontextmanager
    async def target_reader(self) -> AsyncIterator[Reader]:
        connection = await _session(self.database, self.application, target=True)
        try:
            yield Reader(connection, self.snapshot)
        finally:
            await connection.close()

    @contextlib.asynccontextmanager
    async def source_reader(self) -> AsyncIterator[Reader]:
        async with self.source.session() as connection:
            yield Reader(connection, self.source.snapshot)


@contextlib.asynccontextmanager
async def open_pair(stream: Stream) -> AsyncIterator[Pair]:
    """AuditCannotBegin when there is no such view now."""
    database = stream.settings.databases[stream.settings.primary]
    target = stream.settings.databases[stream.backup]
    application = f"castling audit {stream.group}"
    async with contextlib.AsyncExitStack() as stack:
        source_talk = await _session(database, application, target=False)
        stack.push_async_callback(source_talk.close)
        target_talk = await _session(target, application, target=True)
        stack.push_async_callback(target_talk.close)
        await source_talk.execute(b"SET synchronous_commit = local")
        await target_talk.execute(CREATE_MARKS.encode())
        last = AuditCannotBegin()
        for _ in range(_TRIES):
            await _until_quiet(source_talk)
            async with contextlib.AsyncExitStack() as attempt:
                try:
                    pair = await _attempt(stream, application, source_talk, target_talk, attempt)
                except AuditCannotBegin as error:
                    last = error
                    continue
                stack.push_async_callback(attempt.pop_all().aclose)
                break
        else:
            raise last
        try:
            yield pair
        finally:
            with contextlib.suppress(psycopg.Error):
                await target_talk.execute(
                    "DELETE FROM castling.audit_marks"
                    " WHERE stream = %s AND (id = %s OR at < now() - interval '1 day')",
                    (stream.group, pair.mark),
                )


async def _attempt(
    stream: Stream,
    application: str,
    source_talk: AsyncConnection[Any],
    target_talk: AsyncConnection[Any],
    stack: contextlib.AsyncExitStack,
) -> Pair:
    mark = secrets.token_hex(16)
    await target_talk.execute(
        "INSERT INTO castling.audit_marks (stream, id, state) VALUES (%s, %s, 'asked')", (stream.group, mark)
    )
    await _emit(source_talk, mark)
    database = stream.settings.databases[stream.settings.primary]
    try:
        async with asyncio.timeout(SNAPSHOT_S):
            view = await stack.enter_async_context(open_view(application, database))
    except TimeoutError:
        writers = await _writers(source_talk, 0.0)
        raise AuditCannotBegin(
            f"the source made no snapshot within {SNAPSHOT_S:.0f} s: transactions that write are open",
            hint=f"they have to end first: {_told(writers)}; the audit is tried again",
        ) from None
    await target_talk.execute(
        "UPDATE castling.audit_marks SET until = %s::pg_lsn WHERE id = %s AND state IN ('asked', 'armed')",
        (lsn_text(view.lsn), mark),
    )
    await _emit(source_talk, "")  # so that there is something behind the position, whoever writes
    await _reached(target_talk, mark)
    target = stream.settings.databases[stream.backup]
    keeper = await _session(target, application, target=True)
    stack.push_async_callback(keeper.close)
    snapshot = await _take(keeper, stream.group, mark, view.lsn)
    await target_talk.execute("UPDATE castling.audit_marks SET state = 'taken' WHERE id = %s", (mark,))
    pair = Pair(mark, view, target, application, keeper, snapshot)
    pair.paused_s = await _paused(target_talk, mark)
    return pair


async def _emit(connection: AsyncConnection[Any], content: str) -> None:
    await connection.execute("SELECT pg_logical_emit_message(true, %s, %s::text)", (MARK_PREFIX, content))


async def _reached(connection: AsyncConnection[Any], mark: str) -> None:
    """Until apply stands at the position. AuditCannotBegin when it does not come there."""
    try:
        async with asyncio.timeout(COME_S):
            while True:
                cursor = await connection.execute(
                    "SELECT state FROM castling.audit_marks WHERE id = %s", (mark,)
                )
                row = await cursor.fetchone()
                if row is not None and row[0] == "reached":
                    return
                if row is None or row[0] in ("passed", "taken"):
                    raise AuditCannotBegin("apply went on before both ends were seen; it is tried again")
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        raise AuditCannotBegin(
            f"apply did not come to the audit's position within {COME_S:.0f} s",
            hint="is the group running, and how far is apply behind? `castling group status` says",
        ) from None


async def _take(keeper: AsyncConnection[Any], stream: str, mark: str, lsn: int) -> str:
    """The target's snapshot, proven to stand at the position."""
    await keeper.execute(_BEGIN.encode())
    cursor = await keeper.execute(
        "SELECT m.state, p.lsn <= %(lsn)s::pg_lsn,"
        " NOT EXISTS (SELECT FROM castling.lane_progress l"
        " WHERE l.stream = %(s)s AND l.lsn > %(lsn)s::pg_lsn),"
        " pg_export_snapshot()"
        " FROM castling.audit_marks m JOIN castling.progress p ON p.stream = m.stream WHERE m.id = %(m)s",
        {"lsn": lsn_text(lsn), "s": stream, "m": mark},
    )
    row = await cursor.fetchone()
    if row is None or row[:3] != ("reached", True, True):
        raise AuditCannotBegin("the target had gone on when its snapshot was taken; it is tried again")
    return str(row[3])


async def _paused(connection: AsyncConnection[Any], mark: str) -> float | None:
    """Apply says how long it stood still when it goes on, which is at once."""
    for _ in range(100):
        cursor = await connection.execute("SELECT paused_s FROM castling.audit_marks WHERE id = %s", (mark,))
        row = await cursor.fetchone()
        if row is None or row[0] is not None:
            return None if row is None else float(row[0])
        await asyncio.sleep(_POLL_S)
    return None


# --- the source's writers ---------------------------------------------------------------------


async def _until_quiet(connection: AsyncConnection[Any]) -> None:
    """Until no transaction that has been writing for a while is open."""
    for _ in range(int(QUIET_S / _WRITERS_POLL_S)):
        if not await _writers(connection, _OLD_S):
            return
        await asyncio.sleep(_WRITERS_POLL_S)
    raise AuditCannotBegin(
        f"a snapshot waits for transactions that have been writing for more than {QUIET_S:.0f} s",
        hint=f"they have to end first: {_told(await _writers(connection, _OLD_S))}",
    )


async def _writers(connection: AsyncConnection[Any], old_s: float) -> list[tuple[Any, ...]]:
    cursor = await connection.execute(_WRITERS, {"old": old_s})
    return await cursor.fetchall()


def _told(writers: list[tuple[Any, ...]]) -> str:
    told = [f"process {pid} ({name}), open for {age:.0f} s" for pid, name, age in writers[:5]]
    return "; ".join(told) or "none is left"


async def _session(settings: DatabaseSettings, application: str, *, target: bool) -> AsyncConnection[Any]:
    away = TargetUnreachable if target else SourceUnreachable
    connection = await connect(settings, application_name=application, error=away)
    try:
        for statement in _SESSION:
            await connection.execute(statement.encode())
    except BaseException:
        await connection.close()
        raise
    return connection
