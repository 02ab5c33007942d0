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
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
from psycopg import AsyncConnection

from castling.config import DatabaseSettings, GroupSettings
from castling.errors import CastlingError, NotReplicable, SourceError, SourceUnreachable
from castling.kinds.postgres.connect import connect
from castling.kinds.postgres.session import slot_name
from castling.kinds.postgres.standby import (
    SETTING,
    change,
    names_in_force,
    release_commits,
    standby_names,
)
from castling.observe import events

__all__ = ["SyncGuard", "SyncState", "decide"]


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


class SyncGuard:
    """Keeps the source's setting in step with the state. One per stream; told by the capture, and at work
    as long as the source end is, whether a stream is open or not."""

    TICK_S = 0.5
    #: between two looks whether commits really wait
    LOOK_S = 2.0
    #: how long a change of the setting may take to be seen
    APPLIED_S = 5.0
    #: how long one look or change may take
    TRY_S = 12.0

    def __init__(self, group: str, backup: str, settings: GroupSettings, database: DatabaseSettings) -> None:
        self._group = group
        self._settings = settings
        self._database = database
        self._standby = slot_name(group, backup)
        self._names = standby_names(group, settings.backups)
        self._caught_up = False
        self._last_s = self._looked_s = time.monotonic()
        self._problem: CastlingError | None = None
        self._log = events("sync").bind(group=group, backup=backup)
        self.state = SyncState.OFF if settings.delivery != "sync" else SyncState.CATCHING_UP

    def acknowledged(self, *, caught_up: bool) -> None:
        """The backup has acknowledged; `caught_up`: nothing captured is left to acknowledge."""
        self._caught_up = caught_up
        self._last_s = time.monotonic()

    async def run(self) -> None:
        """Until cancelled. A change that fails is tried again."""
        if self.state is SyncState.OFF:
            await self._free_former()
            await asyncio.get_running_loop().create_future()
        await self._learn()
        while True:
            await asyncio.sleep(self.TICK_S)
            if self.state is SyncState.PROTECTED and time.monotonic() - self._looked_s > self.LOOK_S:
                await self._try(self._look)
            after = decide(
                self.state,
                caught_up=self._caught_up,
                silent_s=time.monotonic() - self._last_s,
                on_loss=self._settings.on_sync_loss or "wait",
                degrade_after_s=self._settings.degrade_after,
            )
            if after is SyncState.PROTECTED and self.state is not after:
                if not await self._try(self._protect):
                    await asyncio.sleep(self.LOOK_S)
            elif after is SyncState.DEGRADED and self.state is not after:
                await self._try(self._degrade)

    async def _learn(self) -> None:
        """Commits may still be waiting for us since before this process: then they are protected, and
        the time until they stop waiting runs."""
        self._last_s = time.monotonic()
        while self.state is SyncState.CATCHING_UP and not await self._try(self._see):
            await asyncio.sleep(self.TICK_S)

    async def _free_former(self) -> None:
        """The group may have delivered synchronously before, and commits still wait by what it left."""
        while True:
            try:
                await release_commits(self._group, self._settings.backups, self._database)
                self._problem = None
                return
            except CastlingError as error:
                self._trouble(error)
            await asyncio.sleep(self.LOOK_S)

    async def _try(self, work: Callable[[AsyncConnection[Any]], Awaitable[None]]) -> bool:
        """Do it with a connection of its own; False, with the problem kept, when it can't be done."""
        try:
            async with asyncio.timeout(self.TRY_S):
                connection = await connect(self._database, application_name=f"castling sync {self._group}")
                try:
                    await work(connection)
                finally:
                    await connection.close()
        except psycopg.Error as error:
            self._trouble(SourceError(f"the source refused: {error.diag.message_primary or error}"))
            return False
        except TimeoutError:
            self._trouble(SourceUnreachable("the source does not answer whether commits wait"))
            return False
        except CastlingError as error:
            self._trouble(error)
            return False
        return True

    def _trouble(self, error: CastlingError) -> None:
        if isinstance(error, SourceUnreachable):
            self._last_s = time.monotonic()  # nothing commits there: the backup is not silent meanwhile
        if self._problem is None or str(self._problem) != str(error):
            self._log.warning("sync.troubled", error=str(error))
        self._problem = error

    async def _see(self, connection: AsyncConnection[Any]) -> None:
        self._problem = None
        if await names_in_force(connection) == self._names:
            self._move(SyncState.PROTECTED)

    async def _look(self, connection: AsyncConnection[Any]) -> None:
        """Protected is only what the server itself does: others may change the setting."""
        now = await names_in_force(connection)
        self._looked_s, self._problem = time.monotonic(), None
        if now != self._names:
            self.state = SyncState.CATCHING_UP
            raise NotReplicable(
                f"commits do not wait for the backup: somebody has set {SETTING} to {now!r}",
                hint="it is set again when the stream has caught up, unless delivery is set to async",
            )

    async def _protect(self, connection: AsyncConnection[Any]) -> None:
        await change(connection, self._names, ours=self._names)
        until_s = time.monotonic() + self.APPLIED_S
        while not await self._is_waited_for(connection):
            if time.monotonic() > until_s:
                raise NotReplicable(
                    f"commits do not wait for the backup: {SETTING} was set, but does not count",
                    hint="is it given on the server's command line? That goes before ALTER SYSTEM",
                )
            await asyncio.sleep(0.05)
        self._move(SyncState.PROTECTED)

    async def _is_waited_for(self, connection: AsyncConnection[Any]) -> bool:
        """The setting counts, and the walsender of the stream is one that commits wait for."""
        cursor = await connection.execute(
            "SELECT EXISTS (SELECT FROM pg_catalog.pg_stat_replication"
            " WHERE application_name = %s AND sync_state IN ('sync', 'quorum'))",
            (self._standby,),
        )
        row = await cursor.fetchone()
        return bool(row and row[0]) and await names_in_force(connection) == self._names

    async def _degrade(self, connection: AsyncConnection[Any]) -> None:
        before, self.state = self.state, SyncState.DEGRADED  # said before it is so: never protected and not
        try:
            await change(connection, "", ours=self._names)
        except BaseException:
            self.state = before
            raise
        self._move(SyncState.DEGRADED)

    def _move(self, state: SyncState) -> None:
        self.state, self._problem, self._looked_s = state, None, time.monotonic()
        self._log.warning("sync.degraded" if state is SyncState.DEGRADED else "sync.protected")

    def report(self) -> dict[str, Any]:
        """`state` is unknown while commits should be waiting and the source can't be asked about it."""
        unseen = time.monotonic() - self._looked_s > self.LOOK_S + self.APPLIED_S
        return {
            "state": "unknown" if self.state is SyncState.PROTECTED and unseen else str(self.state),
            "on_loss": self._settings.on_sync_loss,
            "silent_s": round(time.monotonic() - self._last_s, 1),
        }

    def warnings(self) -> list[dict[str, Any]]:
        """Why commits do not wait though they should, in the form of a report's warnings."""
        if self._problem is None or self.state is SyncState.OFF:
            return []
        hint = self._problem.hint
        return [{"code": "sync-troubled", "message": str(self._problem), "hint": hint}]
