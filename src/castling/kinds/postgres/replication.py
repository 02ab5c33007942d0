"""A replication connection on the event loop: commands, then a stream both ways.

libpq does authentication, TLS and the protocol; what can block (connecting, commands) runs
in a thread, the stream itself is non-blocking.

A walsender flushes its socket after every change, so a reader that is always ready pays a
wake-up for each. One that sleeps a few milliseconds and then takes all that has gathered
is more than twice as fast; so `gather` is paced while there is a backlog, and immediate
otherwise.
"""

from __future__ import annotations

import asyncio
import struct
from typing import NamedTuple

import psycopg
from psycopg import pq
from psycopg.conninfo import make_conninfo

from castling.config import DatabaseSettings
from castling.errors import DecodeError, SourceError, SourceUnreachable
from castling.kinds.postgres.connect import parameters, scrubbed

__all__ = ["Keepalive", "ReplicationConnection", "WalData"]

_WAL = struct.Struct(">cQQq")
_KEEPALIVE = struct.Struct(">cQqB")
_STATUS = struct.Struct(">cQQQqB")
#: values that travel as text have one form, in which names of the server's objects come with their
#: schema, and nothing but us ends an idle or long connection
_OPTIONS = " ".join(
    f"-c {setting}"
    for setting in (
        "search_path=pg_catalog",
        "DateStyle=ISO",
        "IntervalStyle=postgres",
        "TimeZone=UTC",
        "extra_float_digits=1",
        "bytea_output=hex",
        "lc_monetary=C",
        "statement_timeout=0",
        "lock_timeout=0",
        "idle_session_timeout=0",
        "idle_in_transaction_session_timeout=0",
    )
)
_MICROSECONDS_1970_TO_2000 = 946_684_800_000_000


class WalData(NamedTuple):
    """One message of the output plugin."""

    message: bytes


class Keepalive(NamedTuple):
    """The server has sent everything before `wal_end`; `reply`: it wants to hear from us now."""

    wal_end: int
    reply: bool


class ReplicationConnection:
    """One connection in replication mode. Not shared between tasks."""

    def __init__(self, settings: DatabaseSettings, *, application_name: str) -> None:
        self._settings = settings
        self._application = application_name
        self._connection: pq.abc.PGconn | None = None
        self._more = False  # libpq's buffer holds messages that no socket event will tell of

    async def open(self) -> None:
        """Connect. SourceUnreachable when that fails."""
        found = parameters(
            self._settings, application_name=self._application, replication="database", options=_OPTIONS
        )
        conninfo = make_conninfo("", **found).encode()
        loop = asyncio.get_running_loop()
        connection = await loop.run_in_executor(None, pq.PGconn.connect, conninfo)
        if connection.status != pq.ConnStatus.OK:
            message = self._error(connection)
            connection.finish()
            raise SourceUnreachable(f"{self._settings.host}:{self._settings.port}: {message}")
        self._connection = connection

    def _error(self, connection: pq.abc.PGconn) -> str:
        return scrubbed(connection.error_message.decode(errors="replace"), self._settings)

    async def query(self, command: str) -> list[list[str | None]]:
        """Run one command; its rows as text. SourceError with the server's words when it refuses."""
        result = await self._run(command)
        if result.status not in (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK):
            self._refused(result)
        return [
            [
                None if (value := result.get_value(row, column)) is None else value.decode()
                for column in range(result.nfields)
            ]
            for row in range(result.ntuples)
        ]

    async def _run(self, command: str) -> pq.abc.PGresult:
        connection = self._connection
        if connection is None or connection.status != pq.ConnStatus.OK:
            raise SourceUnreachable("the replication connection is gone")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, connection.exec_, command.encode())

    def _refused(self, result: pq.abc.PGresult) -> None:
        connection = self._connection
        assert connection is not None
        message = scrubbed(result.error_message.decode(errors="replace"), self._settings)
        state = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
        if connection.status != pq.ConnStatus.OK or state[:2] in ("08", "57", "53", "55") or not state:
            raise SourceUnreachable(f"the source could not go on: {message}", sqlstate=state)
        raise SourceError(f"the source refused: {message}", sqlstate=state)

    # --- the stream ---------------------------------------------------------------------------

    async def start(self, command: str) -> None:
        """START_REPLICATION; from then on only `gather` and `tell`."""
        result = await self._run(command)
        if result.status != pq.ExecStatus.COPY_BOTH:
            self._refused(result)
        connection = self._connection
        assert connection is not None
        connection.nonblocking = 1

    async def wait(self, timeout_s: float) -> None:
        """Until something can be read, or `timeout_s`."""
        connection = self._connection
        if connection is None or connection.status != pq.ConnStatus.OK:
            raise SourceUnreachable("the replication connection is gone")
        if self._more:
            return
        loop = asyncio.get_running_loop()
        readable, watched = asyncio.Event(), connection.socket
        # watched only while somebody waits: what stays unread would wake the loop without end
        loop.add_reader(watched, readable.set)
        try:
            async with asyncio.timeout(timeout_s):
                await readable.wait()
        except TimeoutError:
            return
        finally:
            loop.remove_reader(watched)

    def gather(self, max_bytes: int) -> list[WalData | Keepalive]:
        """Everything that has arrived, up to about `max_bytes`. SourceUnreachable when the stream ended."""
        connection = self._connection
        if connection is None:
            raise SourceUnreachable("the replication connection is closed")
        found: list[WalData | Keepalive] = []
        size = before = 0
        self._more = True
        try:
            while size < max_bytes:
                length, data = connection.get_copy_data(1)
                if length > 0:
                    found.append(_parse(data))
                    size += length
                elif length < 0:
                    self._ended(connection)
                elif not self._more and size == before:
                    return found
                else:  # libpq takes a few kilobytes at a time: ask until nothing more comes
                    before, self._more = size, False
                    connection.consume_input()
        except psycopg.Error as error:
            raise SourceUnreachable(f"the stream broke: {scrubbed(str(error), self._settings)}") from None
        self._more = True
        return found

    def _ended(self, connection: pq.abc.PGconn) -> None:
        result = connection.get_result()
        message = "" if result is None else result.error_message.decode(errors="replace")
        raise SourceUnreachable(
            f"the source ended the stream: {scrubbed(message, self._settings) or 'it shut down'}"
        )

    def tell(self, *, received: int, confirmed: int, now_ns: int) -> None:
        """A status update: what was received, and up to where the source may forget."""
        connection = self._connection
        if connection is None:
            return
        micro = now_ns // 1000 - _MICROSECONDS_1970_TO_2000
        try:
            connection.put_copy_data(_STATUS.pack(b"r", received, confirmed, confirmed, micro, 0))
            connection.flush()
        except psycopg.Error as error:
            raise SourceUnreachable(f"the stream broke: {scrubbed(str(error), self._settings)}") from None

    def close(self) -> None:
        self._more = False
        if self._connection is not None:
            self._connection.finish()
            self._connection = None


def _parse(data: bytes | memoryview) -> WalData | Keepalive:
    kind = data[0]
    if kind == 0x77 and len(data) > _WAL.size:
        return WalData(bytes(data[_WAL.size :]))
    if kind == 0x6B and len(data) == _KEEPALIVE.size:
        _, wal_end, _, reply = _KEEPALIVE.unpack(data)
        return Keepalive(wal_end, bool(reply))
    raise DecodeError(f"the replication stream holds a message of unknown kind {kind:#x}")
