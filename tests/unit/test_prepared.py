"""The process of a stopped end is made ready in advance, and is the end as soon as it is told to be."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from castling.control import process, supervisor
from castling.control.process import Prepared, lock_holder
from castling.control.supervisor import Supervisor
from castling.errors import NotInitialised
from castling.groups import worker
from castling.groups.topology import End, EndName, end_paths

END = End("orders", "west", EndName.APPLY)
#: says in a file what it is, waits if it is prepared, then holds the end's lock as an end does
STAND_IN = """
import fcntl, os, sys, time
home, how = sys.argv[1], sys.argv[2]
with open(os.path.join(home, "made"), "a") as file: file.write(f"{how} {os.getpid()}\\n")
if how == "prepared" and not sys.stdin.buffer.readline(): sys.exit(0)
folder = os.path.join(home, "groups", "orders"); os.makedirs(folder, exist_ok=True)
lock = os.open(os.path.join(folder, "west.apply.lock"), os.O_RDWR | os.O_CREAT)
fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
os.ftruncate(lock, 0); os.pwrite(lock, b"%d\\n" % os.getpid(), 0)
time.sleep(60)
"""


async def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        await asyncio.sleep(0.02)


class World:
    def __init__(self, home: Path) -> None:
        self.home = home
        (home / "end.py").write_text(STAND_IN)

    def command(self, how: str) -> list[str]:
        return [sys.executable, str(self.home / "end.py"), str(self.home), how]

    @contextlib.asynccontextmanager
    async def agent(self, wanted: set[End]) -> AsyncIterator[Supervisor]:
        found = Supervisor(
            self.home,
            None,
            lambda home, end: self.command("plain"),
            lambda home, end: self.command("prepared"),
        )
        task = asyncio.create_task(found.run(wanted, (END,)))
        await asyncio.sleep(0)
        try:
            yield found
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def made(self, how: str) -> list[int]:
        file = self.home / "made"
        lines = file.read_text().split("\n") if file.exists() else []
        return [int(line.split()[1]) for line in lines if line.startswith(f"{how} ")]

    @property
    def holder(self) -> int | None:
        return lock_holder(end_paths(self.home, END).lock)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    yield made
    for pid in made.made("plain") + made.made("prepared"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


async def test_a_stopped_end_is_begun_by_the_process_that_was_prepared(world: World) -> None:
    async with world.agent(set()) as agent:
        await until(lambda: world.made("prepared"), "prepared")
        assert world.holder is None, "it holds nothing before it is told to"
        assert agent.status(END).state == "stopped"
        agent.keep({END})
        await until(lambda: world.holder, "begun")
        assert [world.holder] == world.made("prepared")
        assert not world.made("plain")
        agent.keep(set())
        await until(lambda: len(world.made("prepared")) == 2, "the next one is prepared")


async def test_a_prepared_process_that_died_is_no_loss(world: World) -> None:
    async with world.agent(set()) as agent:
        await until(lambda: world.made("prepared"), "prepared")
        os.kill(world.made("prepared")[0], signal.SIGKILL)
        await until(lambda: gone(world.made("prepared")[0]), "it is gone")
        agent.keep({END})
        await until(lambda: world.holder, "begun all the same")
        assert [world.holder] == world.made("plain")


async def test_one_whose_log_was_removed_is_not_used(world: World) -> None:
    async with world.agent(set()) as agent:
        await until(lambda: world.made("prepared"), "prepared")
        end_paths(world.home, END).log.unlink()
        agent.keep({END})
        await until(lambda: world.holder, "begun")
        assert [world.holder] == world.made("plain"), "what it says would be heard by nobody"
        await until(lambda: gone(world.made("prepared")[0]), "the other is given up")


async def test_it_goes_with_the_agent(world: World) -> None:
    async with world.agent(set()):
        await until(lambda: world.made("prepared"), "prepared")
    await until(lambda: gone(world.made("prepared")[0]), "gone")


async def test_it_goes_with_an_agent_that_was_killed(world: World) -> None:
    prepared = Prepared(world.command("prepared"), end_paths(world.home, END))
    await until(lambda: world.made("prepared"), "prepared")
    assert prepared._child.stdin is not None
    prepared._child.stdin.close()  # as the kernel does for a process that is killed
    await until(lambda: prepared._child.poll() is not None, "ended by itself")
    assert prepared._child.returncode == 0


async def test_no_more_are_prepared_than_there_is_room_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "PREPARED_MAX", 0)
    async with world.agent(set()) as agent:
        await asyncio.wait_for(agent._wards[END].settled(), 20)
        assert not world.made("prepared")


async def test_the_real_one_waits_for_the_word(tmp_path: Path) -> None:
    """It is not an end, and holds nothing, before it was told; what is wrong is told then."""
    ends = end_paths(tmp_path, END)
    prepared = Prepared(process.prepared_command(tmp_path, END), ends)
    child = prepared._child
    assert not select.select([os.pidfd_open(child.pid)], [], [], 1.5)[0], "it waits"
    assert lock_holder(ends.lock) is None
    begun = prepared.begin()
    assert begun is not None
    await asyncio.wait_for(begun.ended(), 30)
    assert begun.exit_code == NotInitialised.exit_code, "there is no node in this folder"
    assert "has no node" in ends.log.read_text()


def test_without_a_word_it_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        arguments = ["--home", str(tmp_path), "--group", "g", "--backup", "b", "--end", "apply", "--prepared"]
        assert worker.main(arguments) == 0
    assert not list(tmp_path.iterdir())
