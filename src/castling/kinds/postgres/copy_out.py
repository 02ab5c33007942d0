"""The output of a COPY, in large blocks.

libpq hands out one row at a time, each a call and a turn of the event loop: for small rows that costs
several times what the server spends on them. So where the connection is not encrypted, the rows are read
from libpq's socket directly, in large portions. libpq is idle then, and never learns of it: before and
after it does all else.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from typing import Any

import psycopg
from psycopg import AsyncConnection

from castling.kinds.postgres.copystream import CopyOut, Refusal

__all__ = ["PAST_LIBPQ", "gss_parameters", "read_blocks"]

#: read an unencrypted connection's rows from the socket itself
PAST_LIBPQ = True
#: COPY data handed on at once, bytes
_BLOCK = 256 << 10
#: bytes read from the socket at once
_PORTION = 256 << 10
#: a reader that is always ready is woken for every 8 KiB that the server sends; once so many bytes
#: have come, it gives it this many seconds to send more
_LARGE, _GATHER_S = 1 << 20, 0.002


def gss_parameters() -> dict[str, str]:
    """For connections that are read past libpq: an encryption of libpq's own can't be gone past."""
    return {} if _needs_gss() else {"gssencmode": "disable"}


def _needs_gss() -> bool:
    return os.environ.get("PGGSSENCMODE") == "require"


async def read_blocks(reader: AsyncConnection[Any], statement: str) -> AsyncIterator[bytes]:
    """The output of a COPY, in blocks. `reader` was opened with `gss_parameters`; when this ends early, it is
    of no more use. Raises psycopg's errors."""
    found = _past_libpq if PAST_LIBPQ and not reader.pgconn.ssl_in_use and not _needs_gss() else _by_libpq
    size, waiting = 0, []
    async for data in found(reader, statement.encode()):
        waiting.append(data)
        size += len(data)
        if size >= _BLOCK:
            yield b"".join(waiting)
            size, waiting = 0, []
    if waiting:
        yield b"".join(waiting)


async def _by_libpq(reader: AsyncConnection[Any], statement: bytes) -> AsyncIterator[bytes]:
    async with reader.cursor() as cursor, cursor.copy(statement) as copy:
        async for data in copy:
            yield bytes(data)


async def _past_libpq(reader: AsyncConnection[Any], statement: bytes) -> AsyncIterator[bytes]:
    loop, answer, came = asyncio.get_running_loop(), CopyOut(), 0
    body = statement + b"\0"
    with socket.socket(fileno=os.dup(reader.pgconn.socket)) as found:
        found.setblocking(False)
        try:
            await loop.sock_sendall(found, b"Q" + (len(body) + 4).to_bytes(4, "big") + body)
            while not answer.ready:
                if came > _LARGE:
                    await asyncio.sleep(_GATHER_S)
                data = await loop.sock_recv(found, _PORTION)
                if not data:
                    raise psycopg.OperationalError("the server closed the connection")
                came += len(data)
                if rows := answer.take(data):
                    yield rows
        except OSError as error:
            raise psycopg.OperationalError(f"the connection broke: {error.strerror}") from None
    if answer.refusal is not None:
        raise _error(answer.refusal)


def _error(refusal: Refusal) -> psycopg.Error:
    """As psycopg would raise it, its words apart from the rest."""
    try:
        return psycopg.errors.lookup(refusal.sqlstate)(refusal.message)
    except KeyError:
        return psycopg.DatabaseError(refusal.message)
