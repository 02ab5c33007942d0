"""Keeps the processes of this node's ends running, and nothing else.

One `Ward` per end, each a loop of its own: adopt the process that is there or start
one (that of a stopped end is prepared in advance), wait until it ends, decide. A crash,
or an error that trying again may heal, starts it anew after a growing pause. An error
that only a person can heal leaves it ended, with the error in its report, until somebody
starts the group or deploys a change.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from castling.control.process import EndProcess, Prepared, adopt, spawn, worker_command
from castling.errors import StateError
from castling.groups.topology import End, EndPaths, end_paths
from castling.observe import events, read_report

__all__ = ["EndStatus", "Supervisor"]

PAUSE_FIRST_S = 0.5
PAUSE_MOST_S = 30.0
#: an end that ran this long starts with the first pause again
STEADY_S = 60.0
#: a log is cut at this size; one older part is kept
LOG_MAX = 8 << 20
LOG_LOOK_S = 10.0
#: how many processes of stopped ends are prepared in advance: each takes memory
PREPARED_MAX = 4
#: longer than ending a process takes
SETTLE_S = 20.0

Notice = Callable[[str, dict[str, Any]], None]
#: the command that runs an end of the home
Command = Callable[[Path, End], list[str]]


@dataclass(frozen=True, slots=True)
class EndStatus:
    """`state`: stopped | running | pausing (starts again soon) | failed (a person has to act)."""

    state: str
    pid: int | None = None
    restarts: int = 0
    #: while pausing: how long no process of it has run steadily, seconds
    away_s: float = 0.0


class Room:
    """How many processes may still be prepared in advance."""

    def __init__(self, most: int) -> None:
        self._left = most

    def take(self) -> bool:
        if self._left == 0:
            return False
        self._left -= 1
        return True

    def give_back(self) -> None:
        self._left += 1


class Ward:
    """One end. `want` and `again` may be called at any time; `run` makes it so.

    `prepared`: the command that prepares its process, None where none is, as far as there is `room`.
    """

    def __init__(
        self, home: Path, end: End, notice: Notice, command: Command, prepared: Command | None, room: Room
    ) -> None:
        self.end = end
        self.paths: EndPaths = end_paths(home, end)
        self.restarts = 0
        self._start = command(home, end)
        self._prepare = None if prepared is None else prepared(home, end)
        self._prepared: Prepared | None = None
        self._room = room
        self._notice = notice
        self._wanted = False
        self._again = False
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._process: EndProcess | None = None
        self._pause_s = PAUSE_FIRST_S
        #: since when, by the monotonic clock, no process has run for STEADY_S
        self._away_at_s: float | None = None
        #: it ended with an error that only a person can heal, maybe under an earlier agent
        self.failed = self._failed_before()

    @property
    def status(self) -> EndStatus:
        if self._process is not None:
            return EndStatus("running", self._process.pid, self.restarts)
        if self.failed and self._wanted:
            return EndStatus("failed", None, self.restarts)
        if not self._wanted:
            return EndStatus("stopped", None, self.restarts)
        away_s = 0.0 if self._away_at_s is None else time.monotonic() - self._away_at_s
        return EndStatus("pausing", None, self.restarts, away_s)

    def want(self, wanted: bool, *, again: bool = False) -> None:
        """`again`: end the process that runs and begin anew, also after a failure."""
        if again:
            self.failed, self._pause_s = False, PAUSE_FIRST_S
        if again or not wanted:
            self._away_at_s = None
        self._again = self._again or (again and self._process is not None)
        self._wanted = wanted
        self._idle.clear()
        self._wake.set()

    async def settled(self) -> None:
        """Returns when no process of this end is left after `want(False)`."""
        await self._idle.wait()

    async def run(self) -> None:
        try:
            while True:
                if not self._wanted or self.failed:
                    await self._rest()
                else:
                    await self._live()
        finally:
            if self._process is not None:
                self._process.release()
            self._give_up_prepared()

    async def _rest(self) -> None:
        if not self._wanted:
            # an end whose group was stopped while no agent ran is still there
            try:
                self._process = self._process or adopt(self.paths)
            except OSError as error:
                self._tell("agent.end_unknown", message=str(error))
                await self._pause()
                return
            if self._process is not None:
                await self._end()
            self._idle.set()
            self._make_ready()
        await self._woken()

    def _make_ready(self) -> None:
        """Prepare the process of the next start. Where that fails, the start itself will tell why."""
        if self._prepare is not None and self._prepared is None and self._room.take():
            try:
                self._prepared = Prepared(self._prepare, self.paths)
            except OSError:
                self._room.give_back()

    def _take_prepared(self) -> EndProcess | None:
        prepared, self._prepared = self._prepared, None
        if prepared is None:
            return None
        self._room.give_back()
        return prepared.begin()

    def _give_up_prepared(self) -> None:
        if self._prepared is not None:
            self._prepared.give_up()
            self._prepared = None
            self._room.give_back()

    async def _woken(self, timeout_s: float | None = None) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                await self._wake.wait()
        except TimeoutError:
            return False
        self._wake.clear()
        return True

    async def _live(self) -> None:
        if not await self._begin():
            return
        assert self._process is not None
        began = time.monotonic()
        self._again = False
        if not await self._watch(self._process):
            await self._end()
            return
        ended, self._process = self._process, None
        if time.monotonic() - began > STEADY_S:
            self._pause_s, self._away_at_s = PAUSE_FIRST_S, None
        await self._after(ended)

    async def _begin(self) -> bool:
        """Adopt or start; False, after a pause, where the system has no room for a process or its log."""
        try:
            self._process = adopt(self.paths)
            adopted = self._process is not None
            self._process = self._process or self._take_prepared() or spawn(self._start, self.paths)
        except OSError as error:
            self._tell("agent.end_unstartable", message=str(error))
            await self._pause()
            return False
        self._tell("agent.end_adopted" if adopted else "agent.end_started", pid=self._process.pid)
        return True

    async def _pause(self) -> None:
        self._away_at_s = self._away_at_s or time.monotonic()
        await self._woken(self._pause_s)
        self._pause_s = min(self._pause_s * 2, PAUSE_MOST_S)

    async def _watch(self, process: EndProcess) -> bool:
        """True when it ended by itself, False when it is to be ended."""
        over = asyncio.create_task(process.ended())
        try:
            while self._wanted and not self._again:
                woken = asyncio.create_task(self._wake.wait())
                await asyncio.wait((over, woken), return_when=asyncio.FIRST_COMPLETED)
                woken.cancel()
                if over.done():
                    return True
                self._wake.clear()
            return False
        finally:
            over.cancel()

    async def _end(self) -> None:
        assert self._process is not None
        pid = self._process.pid
        try:
            await self._process.end()
        except StateError as error:
            self._tell("agent.end_stuck", pid=pid, message=str(error))
            await self._process.ended()
        self._process = None
        self._tell("agent.end_stopped", pid=pid)

    async def _after(self, process: EndProcess) -> None:
        """The process ended without being asked to."""
        error = self._last_error(process.pid)
        self.failed = error is not None and not error["retryable"]
        self._tell(
            "agent.end_failed" if self.failed else "agent.end_died",
            pid=process.pid,
            exit_code=process.exit_code,
            error=error and error["code"],
        )
        if not self.failed:
            self.restarts += 1
            await self._pause()

    def _last_error(self, pid: int) -> dict[str, Any] | None:
        """What the process `pid` said when it gave up; None when it could say nothing."""
        report = read_report(self.paths.report, time.time_ns())
        if report is None or report.get("pid") != pid or report.get("state") not in ("failed", "stopped"):
            return None
        error = report.get("error")
        return error if isinstance(error, dict) and "retryable" in error and "code" in error else None

    def _failed_before(self) -> bool:
        report = read_report(self.paths.report, time.time_ns())
        error = None if report is None else self._last_error(report.get("pid", 0))
        return error is not None and not error["retryable"]

    def _tell(self, name: str, **fields: Any) -> None:
        place = {"group": self.end.group, "backup": self.end.backup, "end": str(self.end.end)}
        self._notice(name, {**place, **fields})

    def bound_log(self) -> None:
        """Keep the log below LOG_MAX. The process appends, so cutting the file loses no place in it.

        A log that can't be cut now (there is none yet, the disk is full) is cut at a later look.
        """
        log = self.paths.log
        with contextlib.suppress(OSError):
            if log.stat().st_size > LOG_MAX:
                with log.open("rb") as file:
                    file.seek(-LOG_MAX // 2, os.SEEK_END)
                    kept = file.read()
                older = log.with_name(log.name + ".1")
                older.write_bytes(kept)
                older.chmod(0o600)
                os.truncate(log, 0)


class Supervisor:
    """All ends of this node. `run` until cancelled; cancelling leaves the processes running."""

    def __init__(
        self,
        home: Path,
        notice: Notice | None = None,
        command: Command = worker_command,
        prepared: Command | None = None,
    ) -> None:
        self._home = home
        self._command = command
        self._prepared = prepared
        self._room = Room(PREPARED_MAX)
        self._notice = notice or (lambda name, fields: None)
        self._wards: dict[End, Ward] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._log = events("agent")

    async def run(self, wanted: Iterable[End], known: Iterable[End] = ()) -> None:
        """`known`: ends that may still run from before and shall not, unless they are wanted."""
        async with asyncio.TaskGroup() as self._tasks:
            for end in known:
                self._ward(end)
            self.keep(wanted)
            while True:
                await asyncio.sleep(LOG_LOOK_S)
                for ward in self._wards.values():
                    ward.bound_log()

    def keep(self, wanted: Iterable[End], *, again: Iterable[End] = ()) -> None:
        """From now on exactly the ends `wanted` run; those of `again` begin anew."""
        wanted, again = set(wanted), set(again)
        for end in wanted | self._wards.keys():
            self._ward(end).want(end in wanted, again=end in again)

    async def settled(self, ends: Iterable[End]) -> None:
        """Wait until the processes of `ends`, which are no longer wanted, are gone; StateError if not."""
        try:
            async with asyncio.timeout(SETTLE_S):
                for end in ends:
                    if end in self._wards:
                        await self._wards[end].settled()
        except TimeoutError:
            raise StateError("a process of the group does not end", hint="see the agent's log") from None

    def status(self, end: End) -> EndStatus:
        return self._wards[end].status if end in self._wards else EndStatus("stopped")

    def _ward(self, end: End) -> Ward:
        if end not in self._wards:
            assert self._tasks is not None, "the supervisor is not running"
            ward = self._wards[end] = Ward(
                self._home, end, self._told, self._command, self._prepared, self._room
            )
            self._tasks.create_task(ward.run(), name=f"ward {end.group} {end.backup} {end.end}")
        return self._wards[end]

    def _told(self, name: str, fields: dict[str, Any]) -> None:
        self._log.info(name, **fields)
        self._notice(name, fields)
