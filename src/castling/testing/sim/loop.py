"""An event loop whose time is virtual and whose order is drawn from a seed.

Nothing here waits: when no callback is ready the clock jumps to the next timer, so a minute
of the simulated world takes milliseconds. Callbacks that are ready at the same time run in
an order drawn from the seed, so that nothing can rely on the order of a real loop.

Every task belongs to the process that made it (`PROCESS`, inherited through the context), so
that a process can be killed with all that it does. Tasks are numbered and hashed by their
number: a set of tasks is iterated in the same order in each run of a seed.

Invariant: one seed, one trace. Nothing may block, use a thread or look at a real clock.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import random
from collections.abc import Coroutine
from typing import Any

__all__ = ["PROCESS", "SimLoop", "SimTask", "Stuck"]

#: whose code runs; the loop never looks into it
PROCESS: contextvars.ContextVar[object | None] = contextvars.ContextVar("process", default=None)


class Stuck(Exception):
    """Nothing can ever happen again, or things happen without end and without time passing."""


class SimTask(asyncio.Task[Any]):
    """A task that knows its process and hashes the same in each run."""

    def __init__(self, coro: Coroutine[Any, Any, Any], number: int, **options: Any) -> None:
        self.number = number
        context = options.get("context")
        self.process = PROCESS.get() if context is None else context.get(PROCESS)
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self.number

    __eq__ = object.__eq__


class SimLoop(asyncio.BaseEventLoop):
    """See the module. `steps_max`: rounds of callbacks after which the world counts as stuck."""

    def __init__(self, seed: int, *, steps_max: int = 2_000_000) -> None:
        super().__init__()
        self._random = random.Random(seed)
        self._now_s = 0.0
        self._numbers = 0
        self.steps = 0
        self._steps_max = steps_max

    def time(self) -> float:
        return self._now_s

    def create_task(self, coro: Any, *, name: object = None, context: Any = None) -> Any:
        self._check_closed()  # type: ignore[attr-defined]  # BaseEventLoop's own guard
        self._numbers += 1
        return SimTask(coro, self._numbers, loop=self, name=name, context=context)

    def tasks_of(self, process: object) -> list[SimTask]:
        """What the process is doing, oldest first."""
        tasks = [task for task in asyncio.all_tasks(self) if isinstance(task, SimTask)]
        return sorted((task for task in tasks if task.process is process), key=lambda task: task.number)

    def _run_once(self) -> None:
        ready, timers = self._ready, self._scheduled  # type: ignore[attr-defined]  # named so in 3.11 to 3.14
        self.steps += 1
        if self.steps > self._steps_max:
            raise Stuck(f"{self.steps} rounds of callbacks at {self._now_s:.3f} s")
        while timers and timers[0]._cancelled:
            heapq.heappop(timers)._scheduled = False
        if not ready:
            if not timers:
                raise Stuck(f"nothing can happen any more at {self._now_s:.3f} s")
            self._now_s = max(self._now_s, timers[0]._when)
        while timers and timers[0]._when <= self._now_s:
            handle = heapq.heappop(timers)
            handle._scheduled = False
            ready.append(handle)
        handles = list(ready)
        ready.clear()
        if len(handles) > 1:
            self._random.shuffle(handles)
        for handle in handles:
            if not handle._cancelled:
                handle._run()

    def _write_to_self(self) -> None:
        """There is no other thread, and nothing that would have to be woken."""
