"""The copies of this node's replicas that rehearsals write into: opened, found again, ended at their time.

What is open is kept in the store before the copy is begun, so an agent that was killed at any moment knows
what it has to end: a copy that was never told to be open goes at the next start, and one that is open when
its time is over. Applying stops while the files are copied, receiving never does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import msgspec

from castling import kinds
from castling.control.store import Store
from castling.errors import CastlingError, NotFound, StateError
from castling.kinds.base import Clone, Stream
from castling.observe import events

__all__ = ["LIMIT_MOST_S", "Rehearsals"]

#: how often it is looked whether one is over, seconds
LOOK_S = 1.0
#: how long one may be, at most, seconds: a copy holds room, and is no replica
LIMIT_MOST_S = 7 * 24 * 3600.0
#: how many that have ended are remembered
KEPT = 1000

Json = dict[str, Any]
#: the stream of a group to this node, whatever its role is now; NotFound when it is no node of the group
Find = Callable[[str], Stream]
#: the apply end is away as long as the context lasts
Away = Callable[[Stream], AbstractAsyncContextManager[None]]


class Rehearsals:
    """`now_ns`: wall clock, in which the time limits are kept."""

    def __init__(self, store: Store, find: Find, away: Away, now_ns: Callable[[], int]) -> None:
        self._store = store
        self._find = find
        self._away = away
        self._now_ns = now_ns
        self._log = events("agent")
        #: one copy is made or removed at a time
        self._changing = asyncio.Lock()

    async def open(self, group: str, identity: str, limit_s: float, by: str) -> Json:
        """Make the copy `identity`, to be ended after `limit_s`. Repeatable. StateError once it has ended."""
        async with self._changing:
            stream = self._find(group)
            if stream.backup not in stream.settings.backups:
                raise StateError(f"{stream.backup} has no replica of {group}: it is its primary")
            known = self._known(group, identity)
            if known is not None and known["state"] in ("closing", "closed"):
                raise StateError(f"rehearsal {identity} of {group} has ended", hint="open another one")
            if known is None or known["state"] == "opening":
                self._begin(stream, identity, limit_s, by)
                try:
                    clone, paused_s = await self._make(stream, identity)
                except CastlingError as error:
                    await self._end(stream, identity, f"it could not be opened: {error}")
                    raise
                self._opened(group, identity, clone, paused_s)
            found = self._known(group, identity)
            assert found is not None
            return found

    async def close(self, group: str, identity: str, why: str) -> Json:
        """End it; `result`: closed or already_closed."""
        async with self._changing:
            stream = self._find(group)
            known = self._known(group, identity)
            if known is None:
                raise NotFound(f"there is no rehearsal {identity!r} of {group} on this node")
            if known["state"] == "closed":
                return {"result": "already_closed", **known}
            await self._end(stream, identity, why)
            return {"result": "closed", **(self._known(group, identity) or {})}

    def listed(self, group: str) -> list[Json]:
        """All that are remembered, the newest first."""
        return [
            _told(row)
            for row in self._store.rows("SELECT * FROM rehearsal WHERE grp = ? ORDER BY begun_ns DESC", group)
        ]

    async def close_all(self, group: str, why: str) -> None:
        """End every one of the group."""
        for each in self.listed(group):
            if each["state"] != "closed":
                await self.close(group, each["id"], why)

    async def run(self) -> None:
        """End what is over, until cancelled."""
        self._store_interrupted()
        while True:
            for row in self._store.rows("SELECT * FROM rehearsal WHERE state <> 'closed'"):
                over = row["state"] == "closing" or (
                    row["state"] == "open" and row["until_ns"] <= self._now_ns()
                )
                if over and not self._changing.locked():
                    await self._try_to_end(row)
            await asyncio.sleep(LOOK_S)

    def _store_interrupted(self) -> None:
        """What was being opened when the last agent died is nobody's."""
        with self._store.write() as db:
            db.execute("UPDATE rehearsal SET state = 'closing' WHERE state = 'opening'")

    async def _try_to_end(self, row: Json) -> None:
        why = (
            "its time was over" if row["until_ns"] <= self._now_ns() else "the agent died while it was opened"
        )
        try:
            async with self._changing:
                await self._end(self._find(row["grp"]), row["id"], why)
        except CastlingError as error:
            self._log.warning("rehearsal.end_failed", group=row["grp"], id=row["id"], error=str(error))

    # --- what is kept -------------------------------------------------------------------------

    def _known(self, group: str, identity: str) -> Json | None:
        rows = self._store.rows("SELECT * FROM rehearsal WHERE grp = ? AND id = ?", group, identity)
        return _told(rows[0]) if rows else None

    def _begin(self, stream: Stream, identity: str, limit_s: float, by: str) -> None:
        now_ns = self._now_ns()
        with self._store.write() as db:
            db.execute(
                "INSERT OR REPLACE INTO rehearsal VALUES (?, ?, ?, 'opening', ?, ?, NULL, ?, NULL, '', '{}')",
                (identity, stream.group, stream.backup, by, now_ns, now_ns + int(limit_s * 1e9)),
            )
            db.execute(
                "DELETE FROM rehearsal WHERE state = 'closed' AND id NOT IN"
                " (SELECT id FROM rehearsal ORDER BY begun_ns DESC LIMIT ?)",
                (KEPT,),
            )

    async def _make(self, stream: Stream, identity: str) -> tuple[Clone, float]:
        kind = kinds.load(stream.settings.kind)
        began = time.monotonic()
        async with self._away(stream):
            clone = await kind.open_clone(stream, identity)
        return clone, time.monotonic() - began

    def _opened(self, group: str, identity: str, clone: Clone, paused_s: float) -> None:
        facts = {**msgspec.to_builtins(clone), "apply_paused_s": round(paused_s, 3)}
        with self._store.write() as db:
            db.execute(
                "UPDATE rehearsal SET state = 'open', opened_ns = ?, facts = ? WHERE grp = ? AND id = ?",
                (self._now_ns(), msgspec.json.encode(facts).decode(), group, identity),
            )
        self._store.add_event("rehearsal.opened", {"group": group, "id": identity, **facts})

    async def _end(self, stream: Stream, identity: str, why: str) -> None:
        with self._store.write() as db:
            db.execute(
                "UPDATE rehearsal SET state = 'closing', why = ? WHERE grp = ? AND id = ?",
                (why, stream.group, identity),
            )
        await kinds.load(stream.settings.kind).close_clone(stream, identity)
        with self._store.write() as db:
            db.execute(
                "UPDATE rehearsal SET state = 'closed', closed_ns = ? WHERE grp = ? AND id = ?",
                (self._now_ns(), stream.group, identity),
            )
        self._store.add_event("rehearsal.closed", {"group": stream.group, "id": identity, "why": why})


def _told(row: Json) -> Json:
    facts = msgspec.json.decode(row["facts"])
    return {
        "id": row["id"],
        "group": row["grp"],
        "backup": row["backup"],
        "state": row["state"],
        "by": row["by"],
        "begun_ns": row["begun_ns"],
        "opened_ns": row["opened_ns"],
        "until_ns": row["until_ns"],
        "closed_ns": row["closed_ns"],
        "why": row["why"],
        "database": facts.get("database"),
        "position": facts.get("position"),
        "shares_blocks": facts.get("shares_blocks"),
        "size": facts.get("size"),
        "opened_s": facts.get("opened_s"),
        "apply_paused_s": facts.get("apply_paused_s"),
    }
