"""Synchronous delivery: when commits on the source wait for the backup, and when they stop waiting.

The stream's connection is a synchronous standby by its application_name. Commits are made
to wait only once the stream has caught up, because before that each would wait for the
whole backlog. When the backup stops acknowledging, the group's declared choice holds:

    wait       commits go on waiting; nothing is lost, nothing moves
    degrade    after `degrade_after` seconds commits stop waiting; the state says so, loudly,
               until the stream has caught up again

`decide` is pure; the guard carries out what it says. What a commit that was cancelled
while it waited means is in docs/postgres.md.
"""

from __future__ import annotations

import asyncio
import enum
import time
from typing import Any

import psycopg

from castling.config import DatabaseSettings, GroupSettings
from castling.errors import CastlingError, NotReplicable
from castling.kinds.postgres.connect import connect
from castling.kinds.postgres.session import slot_name
from castling.observe import events

__all__ = ["SyncGuard", "SyncState", "decide", "release_commits", "standby_names"]

_SETTING = "synchronous_standby_names"


class SyncState(enum.StrEnum):
    OFF = "off"  #: the group delivers asynchronously
    CATCHING_UP = "catching-up"  #: commits do not wait yet
    PROTECTED = "protected"  #: a commit returns when the backup holds it
    DEGRADED = "degraded"  #: commits have stopped waiting, by the group's choice


def decide(
    state: SyncState, *, caught_up: bool, silent_s: float, on_loss: str, degrade_after_s: float
) -> SyncState:
    """The next state. `silent_s`: since the last acknowledgement; `caught_up`: as of that one."""
    if state is SyncState.OFF:
        return state
    if state is SyncState.PROTECTED:
        if on_loss == "degrade" and silent_s > degrade_after_s:
            return SyncState.DEGRADED
        return state
    if caught_up and silent_s <= min(2.0, degrade_after_s):
        return SyncState.PROTECTED
    return state


def standby_names(group: str, backups: list[str]) -> str:
    """What `synchronous_standby_names` is set to: any one of the group's backups."""
    names = ", ".join(f'"{slot_name(group, backup)}"' for backup in backups)
    return f"ANY 1 ({names})"


class SyncGuard:
    """Keeps the source's setting in step with the state. One per stream; told by the capture."""

    TICK_S = 0.5

    def __init__(self, group: str, backup: str, settings: GroupSettings, database: DatabaseSettings) -> None:
        self._group = group
        self._settings = settings
        self._database = database
        self._names = standby_names(group, settings.backups)
        self._caught_up = False
        self._last_s = time.monotonic()
        self._log = events("sync").bind(group=group, backup=backup)
        self.state = SyncState.OFF if settings.delivery != "sync" else SyncState.CATCHING_UP

    def acknowledged(self, *, caught_up: bool) -> None:
        """The backup has acknowledged; `caught_up`: nothing captured is left to acknowledge."""
        self._caught_up = caught_up
        self._last_s = time.monotonic()

    async def run(self) -> None:
        """Until cancelled. A change that fails is tried again at the next tick."""
        await self._learn()
        while True:
            await asyncio.sleep(self.TICK_S)
            after = decide(
                self.state,
                caught_up=self._caught_up,
                silent_s=time.monotonic() - self._last_s,
                on_loss=self._settings.on_sync_loss or "wait",
                degrade_after_s=self._settings.degrade_after,
            )
            if after is self.state:
                continue
            try:
                await self._set(self._names if after is SyncState.PROTECTED else "")
            except (CastlingError, psycopg.Error) as error:
                self._log.warning("sync.change_failed", wanted=str(after), error=str(error))
                continue
            self.state = after
            event = "sync.degraded" if after is SyncState.DEGRADED else "sync.protected"
            self._log.warning(event)

    async def _learn(self) -> None:
        """Commits may still be waiting for us since before this process: then they are protected, and
        the time until they stop waiting runs."""
        self._last_s = time.monotonic()
        while self.state is SyncState.CATCHING_UP:
            try:
                connection = await connect(self._database, application_name=f"castling sync {self._group}")
                try:
                    cursor = await connection.execute(f"SHOW {_SETTING}".encode())
                    row = await cursor.fetchone()
                finally:
                    await connection.close()
            except (CastlingError, psycopg.Error) as error:
                self._log.warning("sync.look_failed", error=str(error))
                await asyncio.sleep(self.TICK_S)
                continue
            if row and row[0] == self._names:
                self.state = SyncState.PROTECTED
            return

    async def _set(self, names: str) -> None:
        connection = await connect(self._database, application_name=f"castling sync {self._group}")
        try:
            await _change(connection, names, ours=self._names)
        finally:
            await connection.close()

    def report(self) -> dict[str, Any]:
        return {
            "state": str(self.state),
            "on_loss": self._settings.on_sync_loss,
            "silent_s": round(time.monotonic() - self._last_s, 1),
        }


async def _change(connection: psycopg.AsyncConnection[Any], names: str, *, ours: str) -> None:
    cursor = await connection.execute(f"SHOW {_SETTING}".encode())
    row = await cursor.fetchone()
    now = row[0] if row else ""
    if now not in ("", ours):
        raise NotReplicable(
            f"{_SETTING} on the source is {now!r}, which is not Castling's",
            hint="add the group's name to it by hand, or remove it, before delivery can be synchronous",
        )
    if now != names:
        quoted = names.replace("'", "''")
        await connection.execute(f"ALTER SYSTEM SET {_SETTING} = '{quoted}'".encode())
        await connection.execute("SELECT pg_catalog.pg_reload_conf()")


async def release_commits(group: str, settings: GroupSettings, database: DatabaseSettings) -> None:
    """Let commits on the source wait no longer: the group is being stopped or removed. Repeatable."""
    connection = await connect(database, application_name=f"castling sync {group}")
    try:
        ours = standby_names(group, settings.backups)
        cursor = await connection.execute(f"SHOW {_SETTING}".encode())
        row = await cursor.fetchone()
        if row and row[0] == ours:
            await _change(connection, "", ours=ours)
    finally:
        await connection.close()
