"""Giving the stream's slot up on purpose, so that the source's disk does not fill (`wal_limit`).

The publication's comment is changed before the slot is dropped: whoever finds no slot then knows that it was
no accident, and a giving up that was broken off is finished by the next process.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any

import psycopg
from psycopg import AsyncConnection

from castling.errors import LogGivenUp, SourceUnreachable

__all__ = ["drop_slot", "give_up", "given_up", "given_up_size"]

_COMMENT = "castling: given up with {} bytes of log kept"
_FOUND = re.compile(r"castling: given up with ([0-9]+) bytes of log kept")
_NOTED = (
    "SELECT pg_catalog.obj_description(oid, 'pg_publication') FROM pg_catalog.pg_publication"
    " WHERE pubname = %s"
)
_STILL_NOTED = (
    "(%s::text IS NULL OR EXISTS (SELECT FROM pg_catalog.pg_publication WHERE pubname = %s"
    " AND pg_catalog.obj_description(oid, 'pg_publication') = %s))"
)
#: how long the slot's walsender may take to let go, seconds
_LETS_GO_S = 20.0


def given_up_size(comment: str | None) -> int | None:
    """How much log was kept for the slot when it was given up; None: it was not."""
    found = _FOUND.fullmatch(comment or "")
    return int(found.group(1)) if found else None


def given_up(slot: str, kept: int, *, earlier: bool = False) -> LogGivenUp:
    """What a stream ends with that was given up; `earlier`: by a process before this one."""
    return LogGivenUp(
        f"the slot {slot} was given up: the source kept {kept >> 20} MiB of log for it, more than wal_limit;"
        " what the backup has not taken by then can't be told any more",
        hint="bring the backup back, then make a new copy: `castling group start GROUP --reseed`"
        ' (with on_wal_limit = "reseed" that is done by itself)',
        retained_bytes=kept,
        earlier=earlier,
    )


async def give_up(connection: AsyncConnection[Any], slot: str, kept: int) -> None:
    """Note it, then drop the slot. Repeatable."""
    exists = await connection.execute("SELECT FROM pg_catalog.pg_publication WHERE pubname = %s", (slot,))
    if await exists.fetchone() is not None:
        await connection.execute(f"COMMENT ON PUBLICATION {slot} IS '{_COMMENT.format(kept)}'".encode())
    await drop_slot(connection, slot, within_s=_LETS_GO_S)


async def finish(connection: AsyncConnection[Any], slot: str) -> int | None:
    """An earlier process has given the slot up, or died while it did: how much log was kept; None: neither.

    A slot that was made since, for a new copy, stays: its publication says nothing of the kind.
    """
    cursor = await connection.execute(_NOTED, (slot,))
    row = await cursor.fetchone()
    kept = given_up_size(row[0]) if row is not None else None
    if kept is not None:
        await drop_slot(connection, slot, within_s=_LETS_GO_S, noted=_COMMENT.format(kept))
    return kept


async def drop_slot(
    connection: AsyncConnection[Any], slot: str, *, within_s: float, noted: str | None = None
) -> None:
    """Drop it if it is there, ending the walsender that holds it; SourceUnreachable: that does not let go.
    `noted`: only while the publication's comment is that."""
    asked = (slot, noted, slot, noted)
    deadline = time.monotonic() + within_s
    while True:
        try:
            await connection.execute(
                b"SELECT pg_catalog.pg_terminate_backend(active_pid) FROM pg_catalog.pg_replication_slots"
                + f" WHERE slot_name = %s AND active_pid IS NOT NULL AND {_STILL_NOTED}".encode(),
                asked,
            )
            await connection.execute(
                b"SELECT pg_catalog.pg_drop_replication_slot(slot_name)"
                + f" FROM pg_catalog.pg_replication_slots WHERE slot_name = %s AND {_STILL_NOTED}".encode(),
                asked,
            )
            return
        except psycopg.errors.ObjectInUse as error:
            if time.monotonic() > deadline:
                raise SourceUnreachable(
                    f"the slot {slot} is still in use", hint="stop the group if that lasts"
                ) from error
            await asyncio.sleep(0.1)
