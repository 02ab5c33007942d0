"""Runs the runs of one node: whatever happens is kept before anything is done about it.

A run is driven by what its state says and by nothing else, so an agent that was killed at any line goes on
from the state that it finds: the step that was active is asked whether it is done, and done if not. An agent
that was away for longer than `CARRY_ON_S` leaves that decision to a person.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from castling.errors import CastlingError, NotFound, StepFailed
from castling.switch.run import Event, Happened, Run, RunStatus, UnitState, advance, ready, to_undo
from castling.switch.scripts import NOT_NEEDED
from castling.switch.steps import ACTIONS, At, Doors, given, nodes_of

__all__ = ["CARRY_ON_S", "RunKeeper", "Runner"]

#: a run that was active goes on by itself when its agent was away for less than this, seconds
CARRY_ON_S = 900.0
#: pauses before a step whose error may pass is tried again, seconds
_PAUSE_FIRST_S = 0.05
_PAUSE_MOST_S = 2.0
#: how long the undoing of one step may take, seconds
_UNDO_S = 120.0

Json = dict[str, Any]
Notice = Callable[[str, dict[str, Any]], None]


class RunKeeper(Protocol):
    """Where runs survive the agent."""

    def put_run(self, run: Run) -> None:
        """Durable when it returns."""

    def run(self, identity: str) -> Run:
        """NotFound when there is none."""

    def unfinished_runs(self) -> list[Run]: ...


class Runner:
    """`notice`: told of every change, by event name and fields."""

    def __init__(
        self,
        keeper: RunKeeper,
        doors: Doors,
        notice: Notice | None = None,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._keeper = keeper
        self._doors = doors
        self._notice = notice or (lambda name, fields: None)
        self._now_ns = now_ns
        self._runs: dict[str, Run] = {}
        self._drivers: dict[str, asyncio.Task[None]] = {}
        self._wakes: dict[str, asyncio.Event] = {}
        self._failed: asyncio.Future[None] | None = None

    async def run(self) -> None:
        """Go on with what was begun before, and drive what comes, until cancelled. Ends with the error of a
        driver that failed: an engine that can't keep its state must not go on."""
        self._failed = asyncio.get_running_loop().create_future()
        try:
            for run in self._keeper.unfinished_runs():
                self._take_up(run)
            await self._failed
        finally:
            for task in self._drivers.values():
                task.cancel()
            await asyncio.gather(*self._drivers.values(), return_exceptions=True)

    def _take_up(self, run: Run) -> None:
        self._runs[run.id] = run
        if run.status not in (RunStatus.ACTIVE, RunStatus.ROLLING_BACK):
            return
        away_s = (self._now_ns() - run.changed_ns) / 1e9
        if 0 <= away_s < CARRY_ON_S:
            self._drive(run.id)
            return
        why = f"the agent of {run.coordinator} was away for {away_s:.0f} s: resume or abort"
        self._happened(run.id, Event(what=Happened.INTERRUPTED, at_ns=self._now_ns(), reason=why))

    # --- from outside -------------------------------------------------------------------------

    def start(self, run: Run) -> Run:
        """Keep the run and begin it."""
        self._keeper.put_run(run)
        self._runs[run.id] = run
        self._notice("switch.started", {"run": run.id, "procedure": run.procedure, "by": run.by})
        self._drive(run.id)
        return run

    def tell(self, identity: str, event: Event) -> Run:
        """What a person says of a run. NotNow when it can't be now, NotFound when there is no such run."""
        if identity not in self._runs:
            self._runs[identity] = self._keeper.run(identity)
        run = self._happened(identity, event)
        self._drive(identity)
        return run

    def look(self, identity: str) -> Run:
        found = self._runs.get(identity)
        return found if found is not None else self._keeper.run(identity)

    def place(self, identity: str, step: str, group: str | None, *states: UnitState) -> int:
        """The unit of `step` (its name or number) in one of `states`; of `group` where that is said."""
        run = self.look(identity)
        named = [
            place
            for place, unit in enumerate(run.units)
            if step in (unit.step.name, str(unit.step.number)) and group in (None, unit.group)
        ]
        if not named:
            raise NotFound(f"run {identity} has no step {step!r}")
        return next((place for place in named if run.units[place].state in states), named[0])

    # --- driving ------------------------------------------------------------------------------

    def _drive(self, identity: str) -> None:
        """See to it that the run is driven, and that its driver looks at it anew."""
        self._wakes.setdefault(identity, asyncio.Event()).set()
        driver = self._drivers.get(identity)
        if driver is None or driver.done():
            self._drivers[identity] = asyncio.create_task(self._guarded(identity), name=f"run {identity}")

    async def _guarded(self, identity: str) -> None:
        try:
            await self._driven(identity)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            if self._failed is None or self._failed.done():
                raise
            self._failed.set_exception(error)

    async def _driven(self, identity: str) -> None:
        working: dict[int, asyncio.Task[None]] = {}
        wake = self._wakes[identity]
        try:
            while True:
                wake.clear()
                run = self._runs[identity]
                if run.back and working:
                    await _cancel(working)
                    working.clear()
                    continue
                undoing = to_undo(run) if run.status is RunStatus.ROLLING_BACK else None
                if undoing is not None:
                    await self._undo(identity, undoing)
                    continue
                for place in ready(run):
                    if place not in working:
                        working[place] = asyncio.create_task(self._do(identity, place))
                if not working:
                    return
                woken = asyncio.create_task(wake.wait())
                done, _ = await asyncio.wait({woken, *working.values()}, return_when=asyncio.FIRST_COMPLETED)
                woken.cancel()
                for place, task in list(working.items()):
                    if task in done:
                        del working[place]
                        task.result()
        finally:
            await _cancel(working)

    async def _do(self, identity: str, place: int) -> None:
        """One unit, from begun to done or failed."""
        run = self._happened(identity, Event(what=Happened.BEGAN, at_ns=self._now_ns(), unit=place))
        outputs: list[Json] = []
        what, error, evidence = Happened.DONE, None, dict[str, Any]()
        untouched = False
        try:
            evidence = await self._worked(run, place, outputs)
            _take_output(evidence, outputs)
        except CastlingError as failed:
            _take_output(failed.context, outputs)
            what, error = Happened.FAILED, failed.as_json()
            untouched = await self._is_untouched(run, place)
        event = Event(
            what=what,
            at_ns=self._now_ns(),
            unit=place,
            evidence=evidence,
            error=error,
            outputs=tuple(outputs),
            untouched=untouched,
        )
        self._happened(identity, event)

    async def _is_untouched(self, run: Run, place: int) -> bool:
        """Of the step that opens and has failed: whether there is still a way back. Not known is no."""
        unit = run.units[place]
        if unit.step.name != run.opens:
            return False
        try:
            return await ACTIONS[unit.step.name].untouched(At(run, unit, self._doors))
        except CastlingError:
            return False

    async def _worked(self, run: Run, place: int, outputs: list[Json]) -> Json:
        unit = run.units[place]
        at = At(run, unit, self._doors)
        await self._beside(at, "before", outputs)
        evidence = await self._until_done(at)
        await self._beside(at, "after", outputs)
        return evidence

    async def _beside(self, at: At, when: str, outputs: list[Json]) -> None:
        """The user's own script before or after a step, where one is written."""
        name = f"{when}:{at.unit.step.name}"
        written = self._doors.script(at.run.application, name)
        if written is None or written == NOT_NEEDED:
            return
        node = nodes_of(at.run, at.unit.step)[0]
        values = given(at.run, at.unit, name, node)
        outputs.append(await self._doors.node(node).call_script(at.run.application, name, values))

    async def _until_done(self, at: At) -> Json:
        """Is it done? Else do it."""
        action = ACTIONS[at.unit.step.name]

        async def work() -> Json:
            found = await action.look(at)
            return found if found is not None else await action.do(at)

        return await _tried(work, at.unit.step.limit_s, f"step {at.unit.step.name} was not done")

    async def _undo(self, identity: str, place: int) -> None:
        run = self._runs[identity]
        step = run.units[place].step
        at = At(run, run.units[place], self._doors)
        outputs: list[Json] = []
        what, error = Happened.UNDONE, None
        try:
            found = await _tried(
                lambda: ACTIONS[step.name].undo(at), _UNDO_S, f"step {step.name} was not undone"
            )
            _take_output(found, outputs)
        except CastlingError as failed:
            _take_output(failed.context, outputs)
            what, error = Happened.UNDO_FAILED, failed.as_json()
        event = Event(what=what, at_ns=self._now_ns(), unit=place, error=error, outputs=tuple(outputs))
        self._happened(identity, event)

    def _happened(self, identity: str, event: Event) -> Run:
        """The only place where a run changes: kept durably, then known, then told."""
        before = self._runs[identity]
        after = advance(before, event)
        self._keeper.put_run(after)
        self._runs[identity] = after
        fields: dict[str, Any] = {"run": identity, "application": after.application}
        if event.unit is not None:
            unit = after.units[event.unit]
            fields |= {"step": unit.step.name, "group": unit.group}
        if event.error is not None:
            fields["error"] = event.error["code"]
        self._notice(f"switch.step_{event.what.value.replace('-', '_')}", fields)
        if after.status is not before.status:
            self._notice("switch.run_changed", {"run": identity, "status": after.status.value})
        return after


async def _tried(work: Callable[[], Awaitable[Json]], limit_s: float, what: str) -> Json:
    """What `work` gives; an error that may pass is tried again until the time is over."""
    pause_s = _PAUSE_FIRST_S
    last: CastlingError | None = None
    try:
        async with asyncio.timeout(limit_s):
            while True:
                try:
                    return await work()
                except CastlingError as error:
                    if not error.retryable:
                        raise
                    last = error
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, _PAUSE_MOST_S)
    except TimeoutError:
        why = f": {last}" if last is not None else ""
        hint = last.hint if last is not None else ""
        raise StepFailed(f"{what} within {limit_s:g} s{why}", hint=hint) from last


def _take_output(found: Json, outputs: list[Json]) -> None:
    """What a script said belongs to the outputs of the step, not to its evidence."""
    said = found.pop("output", None)
    if isinstance(said, dict):
        outputs.append(said)


async def _cancel(working: dict[int, asyncio.Task[None]]) -> None:
    """Cut the units off; they stay active. An error that is none of a step's own is raised."""
    for task in working.values():
        task.cancel()
    for result in await asyncio.gather(*working.values(), return_exceptions=True):
        if isinstance(result, Exception):
            raise result
