"""A process of a world: built on a machine, killed, and started again as the agent's supervisor does.

Each life has a `SimHost` of its own, so that nothing of an earlier life can act any more.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from castling.testing.sim.host import Machine, SimHost, SimKilled
from castling.testing.sim.loop import PROCESS

if TYPE_CHECKING:
    from castling.testing.sim.world import World

__all__ = ["End", "Service"]


class End(Protocol):
    """One end of a stream, as the product has them."""

    async def run(self) -> None: ...


class Service:
    """A process that is started again when it dies, as the agent's supervisor does."""

    def __init__(self, world: World, name: str, machine: Machine, build: Callable[[SimHost], End]) -> None:
        self._world = world
        self.name = name
        self.machine = machine
        self._build = build
        self.is_wanted = True
        self.host: SimHost | None = None
        self.end: Any = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        if not (self.is_wanted and self.machine.up) or self.host is not None:
            return
        self.host = host = SimHost(self.machine, self.name, self._dying)
        context = contextvars.Context()
        context.run(PROCESS.set, host)
        self._world.say(f"{self.name} starts")
        self._task = self._world.loop.create_task(self._main(host), context=context)
        self._task.add_done_callback(self._ended, context=contextvars.Context())

    async def _main(self, host: SimHost) -> None:
        self.end = None
        end = self.end = self._build(host)
        await end.run()

    def _dying(self) -> None:
        assert self.host is not None
        self._world.autopsy(self)

    def _ended(self, task: asyncio.Task[None]) -> None:
        host = self.host
        assert host is not None
        error = None if task.cancelled() else task.exception()
        host.kill()
        self.host = None
        if error is None or isinstance(error, SimKilled):
            self._world.say(f"{self.name} is gone after {host.last!r}")
        else:
            self._world.say(f"{self.name} ends: {type(error).__name__}: {error}")
            self._world.judge_end(self, error)
        self._world.loop.call_later(self._world.random.uniform(0.05, 1.0), self.start)

    def kill(self) -> None:
        if self.host is not None:
            self.host.kill()

    def arm(self, calls: int) -> None:
        """Die at the `calls`-th thing it does."""
        if self.host is not None:
            self.host.arm(calls)

    async def until(self, found: Callable[[], bool], *, within_s: float) -> bool:
        """Wait until the running process is in that state; False when it does not come to it."""
        deadline_s = self._world.loop.time() + within_s
        while self._world.loop.time() < deadline_s:
            if self.host is not None and self.end is not None and found():
                return True
            await asyncio.sleep(0.0015)
        return False

    def stop_gently(self) -> None:
        """What SIGTERM does; it starts again by itself."""
        if self._task is not None:
            self._task.cancel()
