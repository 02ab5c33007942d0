"""Ends are started, adopted, watched and ended; what only a person can heal is left alone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from castling.control import process, supervisor
from castling.control.process import lock_holder
from castling.control.supervisor import Supervisor
from castling.groups.topology import End, EndName, end_paths

END = End("orders", "west", EndName.APPLY)

#: keeps the contract of an end's process (lock with pid inside, report, exit) and does nothing else
STAND_IN = """
import fcntl, json, os, signal, sys, time
home, behaviour = sys.argv[1], sys.argv[2]
folder = os.path.join(home, "groups", "orders"); os.makedirs(folder, exist_ok=True)
lock = os.open(os.path.join(folder, "west.apply.lock"), os.O_RDWR | os.O_CREAT)
fcntl.flock(lock, fcntl.LOCK_EX)  # it waits: the tests look, too, and that takes the lock for an instant
os.ftruncate(lock, 0)
with open(os.path.join(home, "starts"), "a") as file: file.write("x")
os.pwrite(lock, b"%d\\n" % os.getpid(), 0)  # from now on it can be seen, and killed: it has been counted
def report(state, retryable=None):
    error = None if retryable is None else {"code": "x", "message": "m", "retryable": retryable}
    path = os.path.join(folder, "west.apply.json")
    with open(path + ".new", "w") as file:
        json.dump({"pid": os.getpid(), "at_ns": time.time_ns(), "state": state, "error": error}, file)
    os.replace(path + ".new", path)
if behaviour == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if behaviour == "refuses":
    report("failed", False); sys.exit(32)
if behaviour == "hiccups":
    report("failed", True); sys.exit(31)
report("running")
time.sleep(60)
"""


class World:
    def __init__(self, home: Path, behaviour: str) -> None:
        self.home = home
        self.behaviour = behaviour
        self.told: list[str] = []
        self.script = home / "end.py"
        self.script.write_text(STAND_IN)

    @contextlib.asynccontextmanager
    async def agent(self, wanted: set[End], known: tuple[End, ...] = ()) -> AsyncIterator[Supervisor]:
        """A supervisor that is cancelled at the end, as an agent that is stopped."""
        found = Supervisor(
            self.home,
            lambda name, fields: self.told.append(name),
            lambda home, end: [sys.executable, str(self.script), str(home), self.behaviour],
        )
        task = asyncio.create_task(found.run(wanted, known))
        await asyncio.sleep(0)
        try:
            yield found
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    @property
    def starts(self) -> int:
        file = self.home / "starts"
        return len(file.read_text()) if file.exists() else 0

    @property
    def holder(self) -> int | None:
        return lock_holder(end_paths(self.home, END).lock)


async def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        await asyncio.sleep(0.02)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path, "works")
    yield made
    pid = made.holder
    if pid is not None:
        os.kill(pid, signal.SIGKILL)


async def test_an_end_outlives_the_agent_and_is_adopted_by_the_next(world: World) -> None:
    async with world.agent({END}):
        await until(lambda: world.holder, "started")
        first = world.holder
    assert world.holder == first, "the agent went, the end stays"
    async with world.agent({END}) as agent:
        await until(lambda: agent.status(END).state == "running", "adopted")
        assert agent.status(END).pid == first
        assert world.starts == 1
    assert "agent.end_adopted" in world.told


async def test_a_killed_end_is_started_anew(world: World) -> None:
    async with world.agent({END}) as agent:
        for round_ in range(1, 3):
            await until(lambda: world.holder and agent.status(END).state == "running", "runs")
            assert world.holder is not None
            os.kill(world.holder, signal.SIGKILL)
            await until(lambda wanted=round_ + 1: world.starts == wanted, "started anew")
        assert agent.status(END).restarts == 2


async def test_an_adopted_end_that_is_killed_is_started_anew(world: World) -> None:
    async with world.agent({END}):
        await until(lambda: world.holder, "started")
    async with world.agent({END}) as agent:
        await until(lambda: agent.status(END).state == "running", "adopted")
        assert world.holder is not None
        os.kill(world.holder, signal.SIGKILL)
        await until(lambda: world.starts == 2, "started anew")


async def test_what_only_a_person_can_heal_is_not_started_again(world: World) -> None:
    world.behaviour = "refuses"
    async with world.agent({END}) as agent:
        await until(lambda: agent.status(END).state == "failed", "failed")
    async with world.agent({END}) as agent:
        await until(lambda: agent.status(END).state == "failed", "another agent sees that it failed")
        assert world.starts == 1
        agent.keep({END})
        await asyncio.sleep(0)
        assert world.starts == 1, "wanting it still is no reason"
        world.behaviour = "works"
        agent._wards[END]._start[-1] = "works"
        agent.keep({END}, again={END})
        await until(lambda: agent.status(END).state == "running" and world.holder, "started by a person")
    assert world.starts == 2


async def test_what_may_heal_is_started_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "PAUSE_MOST_S", 0.1)
    world.behaviour = "hiccups"
    async with world.agent({END}) as agent:
        await until(lambda: world.starts >= 3, "started again and again")
        assert agent.status(END).state != "failed"


async def test_how_long_an_end_is_away_goes_on_over_short_lives(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the agent goes by when nobody of a source end lives long enough to keep the group's choice."""
    monkeypatch.setattr(supervisor, "PAUSE_MOST_S", 0.1)
    world.behaviour = "hiccups"
    async with world.agent({END}) as agent:
        await until(lambda: agent.status(END).away_s > 0, "it has ended")
        lives = world.starts
        await until(lambda: world.starts >= lives + 2 and agent.status(END).away_s > 0.5, "and again")
        agent._wards[END]._start[-1] = "works"
        agent.keep({END}, again={END})
        await until(lambda: agent.status(END).state == "running", "mended")
        assert agent.status(END).away_s == 0


async def test_an_end_that_is_not_wanted_is_ended(world: World) -> None:
    async with world.agent({END}) as agent:
        await until(lambda: world.holder, "started")
        agent.keep(set())
        await agent.settled([END])
        assert world.holder is None
        assert agent.status(END).state == "stopped"


async def test_a_stubborn_end_is_killed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "TERM_S", 0.3)
    world.behaviour = "stubborn"
    async with world.agent({END}) as agent:
        await until(lambda: (world.home / "groups/orders/west.apply.json").exists(), "started")
        agent.keep(set())
        await agent.settled([END])
        assert world.holder is None


async def test_again_ends_and_begins_anew(world: World) -> None:
    async with world.agent({END}) as agent:
        await until(lambda: world.holder and agent.status(END).state == "running", "started")
        first = world.holder
        agent.keep({END}, again={END})
        await until(lambda: world.holder not in (None, first), "begun anew")
        await until(lambda: world.starts == 2, "it was started once more")


async def test_an_end_of_a_group_that_was_stopped_without_an_agent_is_ended(world: World) -> None:
    async with world.agent({END}):
        await until(lambda: world.holder, "started")
    async with world.agent(set(), known=(END,)) as agent:
        await agent.settled([END])
        assert world.holder is None


def test_a_lock_that_nobody_holds_has_no_holder(tmp_path: Path) -> None:
    lock = tmp_path / "x.lock"
    assert lock_holder(lock) is None
    lock.write_text(f"{os.getpid()}\n")
    assert lock_holder(lock) is None, "the pid in the file counts only while the lock is held"


async def test_the_log_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "LOG_MAX", 1000)
    async with world.agent({END}) as agent:
        await until(lambda: world.holder, "started")
        log = end_paths(world.home, END).log
        log.write_bytes(b"a" * 3000)
        agent._wards[END].bound_log()
        assert log.stat().st_size == 0
        assert log.with_name(log.name + ".1").stat().st_size == 500
