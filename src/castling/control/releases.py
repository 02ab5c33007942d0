"""Lets go what waits on a source for a stream that does not run.

With synchronous delivery commits on the source wait for the backup, also when no process of ours is left:
the wait is a setting of the server. So whoever captures looks after it as long as its agent runs: a group
that was stopped is released, and so is one whose source end has failed for good, if the group's own choice
says so. A source that does not answer is asked again until it does; until then that is said.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from castling import kinds
from castling.errors import CastlingError
from castling.kinds.base import Stream
from castling.observe import events

__all__ = ["Releases", "Resting"]

Json = dict[str, Any]
#: seconds between two looks, and how long a source that did not answer is left alone at most
LOOK_S = 1.0
#: between two looks at a stream that goes on being waited for: somebody may let go by hand
AGAIN_S = 5.0
PAUSE_MOST_S = 60.0


_AGAIN = "it is tried again until it is done; how to do it by hand is in the page of the group's kind"
_CHOICE = (
    'on_sync_loss = "wait" says so: mend the cause and start the group again;'
    " `castling group stop {group}` lets commits go, unprotected"
)


@dataclass(frozen=True, slots=True)
class Resting:
    """A stream without a source end. `failed`: it should run, and can't."""

    stream: Stream
    failed: bool

    @property
    def key(self) -> tuple[str, str, bool]:
        return (self.stream.group, self.stream.backup, self.failed)


@dataclass(slots=True)
class _State:
    #: True: nothing waits; False: by the group's choice it goes on waiting; None: not known yet
    released: bool | None = None
    is_sync: bool = True
    error: CastlingError | None = None
    pause_s: float = LOOK_S
    due_s: float = 0.0


class Releases:
    """`resting`: the streams of this node that have no source end now."""

    def __init__(self, resting: Callable[[], Iterable[Resting]]) -> None:
        self._resting = resting
        self._states: dict[tuple[str, str, bool], _State] = {}
        self._one = asyncio.Lock()
        self._log = events("release")

    async def run(self) -> None:
        """Look after them until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_S)

    async def look(self, group: str | None = None) -> None:
        """Release what rests and is due; of `group`, if named, also what is not due."""
        async with self._one:
            found = {each.key: each for each in self._resting()}
            self._states = {key: self._states.get(key) or _State() for key in found}
            now_s = asyncio.get_running_loop().time()
            for key, each in found.items():
                state = self._states[key]
                named = group is not None and key[0] == group
                if named or (state.released is not True and group is None and now_s >= state.due_s):
                    await self._release(each, state)

    async def _release(self, each: Resting, state: _State) -> None:
        stream = each.stream
        state.is_sync = stream.settings.delivery == "sync"
        try:
            state.released = await kinds.load(stream.settings.kind).release(stream, failed=each.failed)
            state.error = None
            state.due_s = asyncio.get_running_loop().time() + AGAIN_S
        except CastlingError as error:
            if state.error is None or state.error.code != error.code:
                self._log.warning(
                    "release.failed", group=stream.group, backup=stream.backup, error=str(error)
                )
            state.released, state.error = None, error
            state.due_s = asyncio.get_running_loop().time() + state.pause_s
            state.pause_s = min(state.pause_s * 2, PAUSE_MOST_S)

    def warnings(self, group: str, backup: str) -> list[Json]:
        """What may still wait on the source, in the form of a report's warnings."""
        found = []
        for key, state in self._states.items():
            if key[:2] != (group, backup):
                continue
            if state.error is not None and not state.is_sync:
                continue  # what an earlier delivery may have left is looked for; that it is there is unlikely
            if state.error is not None:
                message = f"commits on the source may still wait for {backup}: {state.error}"
                found.append(_warning("commits-may-wait", message, _AGAIN))
            elif state.released is False:
                message = f"commits on the source wait for {backup}, whose stream has failed"
                found.append(_warning("commits-wait", message, _CHOICE.format(group=group)))
        return found


def _warning(code: str, message: str, hint: str) -> Json:
    return {"code": code, "message": message, "hint": hint}
