"""A replication connection on the event loop: commands, then a stream both ways.

libpq does authentication, TLS and commands; what can block (connecting, commands) runs
in a thread, the stream itself is non-blocking.

A walsender flushes its socket after every change, so a reader that is always ready pays a
wake-up for each. One that sleeps a few milliseconds and then takes all that has gathered
is more than twice as fast; so `pump` is paced while there is a backlog, and immediate
otherwise.

Where the connection is not encrypted, the stream is read from libpq's socket directly, in large portions:
libpq hands out one message at a time, each a call and a copy. It is idle then, and never learns of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from typing import NoReturn

import psycopg
from psycopg import pq
from psycopg.conninfo import make_conninfo

from castling.config import DatabaseSettings
from castling.errors import DecodeError, SourceError, SourceUnreachable
from castling.kinds.postgres.connect import parameters, scrubbed, told
from castling.kinds.postgres.copystream import WAL_HEAD, CopyStream, Keepalive, keepalive_of
from castling.kinds.postgres.drafts import DraftMaker

__all__ = ["ReplicationConnection"]

#: bytes read from the socket at once
_PORTION = 128 << 10
#: seconds for a command to end that was cancelled
_CANCEL_S = 5.0
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


class ReplicationConnection:
    """One connection in replication mode. Not shared between tasks."""

    #: read an unencrypted stream from the socket itself
    PAST_LIBPQ = True

    def __init__(self, settings: DatabaseSettings, *, application_name: str) -> None:
        self._settings = settings
        self._application = application_name
        self._connection: pq.abc.PGconn | None = None
        self._more = False  # a buffer holds messages that no socket event will tell of
        #: libpq's own socket and what was read from it, while the stream goes past libpq
        self._socket: socket.socket | None = None
        self._copy = CopyStream()
        self._unsent = b""

    async def open(self) -> None:
        """Connect. SourceUnreachable when that fails."""
        found = parameters(
            self._settings, application_name=self._application, replication="database", options=_OPTIONS
        )
        if os.environ.get("PGGSSENCMODE") != "require":
            found["gssencmode"] = "disable"  # its encryption is libpq's own matter and can't be gone past
        conninfo = make_conninfo("", **found).encode()
        loop = asyncio.get_running_loop()
        connection = await loop.run_in_executor(None, pq.PGconn.connect, conninfo)
        if connection.status != pq.ConnStatus.OK:
            message = self._error(connection)
            connection.finish()
            raise SourceUnreachable(f"{told(self._settings)}: {message}")
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
        running = loop.run_in_executor(None, connection.exec_, command.encode())
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            # its thread is still in libpq: freed under it, the connection would take the process with it
            await _ended(connection, running)
            raise

    def _refused(self, result: pq.abc.PGresult) -> NoReturn:
        message = result.error_message.decode(errors="replace")
        self._refuse((result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode(), message)

    def _refuse(self, state: str, words: str) -> NoReturn:
        connection = self._connection
        assert connection is not None
        message = scrubbed(words, self._settings)
        if connection.status != pq.ConnStatus.OK or state[:2] in ("08", "57", "53", "55") or not state:
            raise SourceUnreachable(f"the source could not go on: {message}", sqlstate=state)
        raise SourceError(f"the source refused: {message}", sqlstate=state)

    # --- the stream ---------------------------------------------------------------------------

    async def start(self, command: str) -> None:
        """START_REPLICATION; from then on only `wait`, `pump` and `tell`."""
        connection = self._connection
        if connection is None or connection.status != pq.ConnStatus.OK:
            raise SourceUnreachable("the replication connection is gone")
        self._more, self._copy, self._unsent = True, CopyStream(), b""
        if connection.ssl_in_use or not self.PAST_LIBPQ or os.environ.get("PGGSSENCMODE") == "require":
            result = await self._run(command)
            if result.status != pq.ExecStatus.COPY_BOTH:
                self._refused(result)
            connection.nonblocking = 1
            return
        found = socket.socket(fileno=os.dup(connection.socket))
        found.setblocking(False)
        try:
            await self._start_past_libpq(found, command)
        except BaseException:
            found.close()
            raise
        self._socket = found

    async def _start_past_libpq(self, found: socket.socket, command: str) -> None:
        loop = asyncio.get_running_loop()
        body = command.encode() + b"\0"
        stream = self._copy
        try:
            await loop.sock_sendall(found, b"Q" + (len(body) + 4).to_bytes(4, "big") + body)
            while not stream.streaming:
                # a refused command leaves the server waiting for the next, which libpq may send
                if stream.refusal is not None and stream.ready:
                    self._refuse(stream.refusal.sqlstate, stream.refusal.message)
                data = await loop.sock_recv(found, _PORTION)
                if not data:
                    raise SourceUnreachable("the source closed the connection")
                stream.feed(data)
                stream.begin()
        except OSError as error:
            raise SourceUnreachable(f"the connection broke: {error.strerror}") from None

    async def wait(self, timeout_s: float) -> None:
        """Until something can be read, or `timeout_s`."""
        connection = self._connection
        if connection is None or (self._socket is None and connection.status != pq.ConnStatus.OK):
            raise SourceUnreachable("the replication connection is gone")
        if self._more:
            return
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        watched = connection.socket if self._socket is None else self._socket.fileno()
        # watched only while somebody waits: what stays unread would wake the loop without end
        loop.add_reader(watched, readable.set)
        try:
            async with asyncio.timeout(timeout_s):
                await readable.wait()
        except TimeoutError:
            return
        finally:
            loop.remove_reader(watched)

    def pump(self, maker: DraftMaker, max_bytes: int) -> Keepalive | None:
        """Give what has arrived to `maker`: until a keepalive, which is returned, or about `max_bytes`,
        or all of it. SourceUnreachable when the stream ended."""
        if self._connection is None:
            raise SourceUnreachable("the replication connection is closed")
        found = self._pump_socket if self._socket is not None else self._pump_libpq
        return found(maker, max_bytes)

    def _pump_socket(self, maker: DraftMaker, max_bytes: int) -> Keepalive | None:
        assert self._socket is not None
        stream, limit = self._copy, maker.bytes + max_bytes
        self._more = True
        while maker.bytes < limit:
            keepalive = stream.pump(maker, limit - maker.bytes)
            if keepalive is not None:
                return keepalive
            if stream.refusal is not None or stream.ended:
                self._ended("" if stream.refusal is None else stream.refusal.message)
            if maker.bytes >= limit or maker.is_full:
                return None
            try:
                data = self._socket.recv(_PORTION)
            except BlockingIOError:
                self._more = False
                return None
            except OSError as error:
                raise SourceUnreachable(f"the stream broke: {error.strerror}") from None
            if not data:
                self._ended("")
            stream.feed(data)
        return None

    def _pump_libpq(self, maker: DraftMaker, max_bytes: int) -> Keepalive | None:
        connection = self._connection
        assert connection is not None
        limit, before = maker.bytes + max_bytes, maker.bytes
        self._more = True
        try:
            while maker.bytes < limit and not maker.is_full:
                length, data = connection.get_copy_data(1)
                if length > 0:
                    body = bytes(data)
                    if body[0] == 0x6B:  # k
                        return keepalive_of(body)
                    if body[0] != 0x77 or length <= WAL_HEAD:  # w
                        raise DecodeError(
                            f"the replication stream holds a message of unknown kind {body[0]:#x}"
                        )
                    maker.take(body[WAL_HEAD:])
                elif length < 0:
                    result = connection.get_result()
                    self._ended("" if result is None else result.error_message.decode(errors="replace"))
                elif not self._more and maker.bytes == before:
                    return None
                else:  # libpq takes a few kilobytes at a time: ask until nothing more comes
                    before, self._more = maker.bytes, False
                    connection.consume_input()
        except psycopg.Error as error:
            raise SourceUnreachable(f"the stream broke: {scrubbed(str(error), self._settings)}") from None
        self._more = True
        return None

    def _ended(self, words: str) -> NoReturn:
        raise SourceUnreachable(
            f"the source ended the stream: {scrubbed(words, self._settings) or 'it shut down'}"
        )

    def tell(self, *, received: int, confirmed: int, now_ns: int) -> None:
        """A status update: what was received, and up to where the source may forget."""
        connection = self._connection
        if connection is None:
            return
        micro = now_ns // 1000 - _MICROSECONDS_1970_TO_2000
        status = _STATUS.pack(b"r", received, confirmed, confirmed, micro, 0)
        if self._socket is not None:
            self._send(self._socket, b"d" + (len(status) + 4).to_bytes(4, "big") + status)
            return
        try:
            connection.put_copy_data(status)
            connection.flush()
        except psycopg.Error as error:
            raise SourceUnreachable(f"the stream broke: {scrubbed(str(error), self._settings)}") from None

    def _send(self, found: socket.socket, message: bytes) -> None:
        """What the server does not take now goes out before the next, which says all that it said."""
        try:
            if self._unsent:
                self._unsent = self._unsent[found.send(self._unsent) :]
            if not self._unsent:
                self._unsent = message[found.send(message) :]
        except BlockingIOError:
            return
        except OSError as error:
            raise SourceUnreachable(f"the stream broke: {error.strerror}") from None

    def close(self) -> None:
        self._more = False
        if self._socket is not None:
            # the server is told at once: libpq's goodbye would not be read in the middle of a stream
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()
            self._socket = None
        if self._connection is not None:
            self._connection.finish()
            self._connection = None


async def _ended(connection: pq.abc.PGconn, running: asyncio.Future[pq.abc.PGresult]) -> None:
    """The command is cancelled on the server, where it may wait for others; unheard, it is hung up on."""
    asyncio.get_running_loop().run_in_executor(None, _cancel, connection.get_cancel())
    while not running.done():
        with contextlib.suppress(asyncio.CancelledError):  # once more; it ends all the same
            await asyncio.wait([running], timeout=_CANCEL_S)
        if not running.done():
            with (
                contextlib.suppress(OSError, psycopg.OperationalError),
                socket.socket(fileno=os.dup(connection.socket)) as heard,
            ):
                heard.shutdown(socket.SHUT_RDWR)
    running.exception()  # nobody else looks


def _cancel(command: pq.abc.PGcancel) -> None:
    with contextlib.suppress(psycopg.OperationalError):
        command.cancel()
