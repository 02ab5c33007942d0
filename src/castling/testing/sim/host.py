"""Machines and processes: the simulated side of the door `castling.host.Host`.

A `Machine` has a disk, a wall clock and bells, and outlives its processes. A `SimHost` is
one process of it, from its start to its death; whatever the process does to the world goes
through it. Killing a process marks its host dead and cancels its tasks: from then on every
call through the door raises `SimKilled`, so that code in a `finally` can't act on the world
either. That is what SIGKILL means.

A kill can be armed to strike at the n-th call through the door from now, so that a process
dies between any two lines whose order matters.
"""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from castling.host import Bell, Connection, Disk, File, Listener, Network, TlsContexts
from castling.host import Handler as ConnectionHandler
from castling.testing.sim.disk import Inode, SimDisk
from castling.testing.sim.loop import SimLoop

if TYPE_CHECKING:
    from castling.testing.sim.network import SimNetwork

__all__ = ["Machine", "SimHost", "SimKilled"]

#: the wall clock when a world begins: some day in 2026, nanoseconds
_EPOCH_NS = 1_780_000_000 * 10**9


class SimKilled(BaseException):
    """This process is dead. No `except Exception` may stop that."""


class Machine:
    """A computer. `up` False: it has no power."""

    def __init__(self, name: str, loop: SimLoop, network: SimNetwork, rng: random.Random) -> None:
        self.name = name
        self.loop = loop
        self.network = network
        self.random = rng
        self.disk = SimDisk(random.Random(rng.random()))
        self.skew_ns = rng.randint(-(10**9), 10**9)
        self.up = True
        self.processes: list[SimHost] = []
        self.bells: dict[str, asyncio.Future[bool]] = {}
        #: how many of the next syncs fail
        self.failing_syncs = 0

    def wall_ns(self) -> int:
        return _EPOCH_NS + self.skew_ns + int(self.loop.time() * 1e9)


class SimHost:
    """One process's door to its machine. `on_death`: called once, when it is killed."""

    def __init__(self, machine: Machine, name: str, on_death: Callable[[], None]) -> None:
        self.machine = machine
        self.name = name
        self.alive = True
        self.random = random.Random(machine.random.random())
        self.disk: Disk = _Disk(self)
        self.network: Network = _Network(self)
        self._on_death = on_death
        self._fuse: int | None = None
        #: the last thing it did, for the story of a failed seed
        self.last = "start"
        machine.processes.append(self)

    # --- life and death -----------------------------------------------------------------------

    def door(self, what: str) -> None:
        """Every call of the process to the outside begins here."""
        if not self.alive:
            raise SimKilled
        self.last = what
        if self._fuse is not None:
            self._fuse -= 1
            if self._fuse <= 0:
                self.kill()
                raise SimKilled

    def arm(self, calls: int) -> None:
        """Die at the `calls`-th call through the door from now."""
        self._fuse = calls

    def disarm(self) -> None:
        self._fuse = None

    def kill(self, *, silently: bool = False) -> None:
        """Die now. `silently`: the machine dies with it, so nobody closes its connections."""
        if not self.alive:
            return
        self._on_death()
        self.alive = False
        self.machine.processes.remove(self)
        self.machine.network.forget(self, silently=silently)
        for task in self.machine.loop.tasks_of(self):
            task.cancel()

    # --- clock --------------------------------------------------------------------------------

    def wall_ns(self) -> int:
        return self.machine.wall_ns()

    def monotonic(self) -> float:
        return self.machine.loop.time()

    async def sleep(self, seconds: float) -> None:
        self.door("sleep")
        await asyncio.sleep(seconds)

    async def sync(self, files: Sequence[File]) -> None:
        for file in files:
            self.door("sync")
            slow = self.machine.random.random()
            await asyncio.sleep(0.3 if slow < 0.01 else slow * 0.004)
            file.sync()
            self.door("synced")

    def bell(self, path: str) -> Bell:
        return _SimBell(self, path)


class _SimBell:
    def __init__(self, host: SimHost, path: str) -> None:
        self._host = host
        self._path = path

    def ring(self) -> None:
        self._host.door("ring")
        waiter = self._host.machine.bells.get(self._path)
        lost = self._host.machine.random.random() < 0.05
        if waiter is not None and not waiter.done() and not lost:
            waiter.set_result(True)

    async def wait(self, timeout_s: float) -> bool:
        self._host.door("wait")
        loop = self._host.machine.loop
        waiter: asyncio.Future[bool] = loop.create_future()
        bells = self._host.machine.bells
        bells[self._path] = waiter
        timer = loop.call_later(timeout_s, _quit, waiter)
        try:
            return await waiter
        finally:
            timer.cancel()
            if bells.get(self._path) is waiter:
                del bells[self._path]

    def close(self) -> None:
        pass


def _quit(waiter: asyncio.Future[bool]) -> None:
    if not waiter.done():
        waiter.set_result(False)


class _File:
    def __init__(self, host: SimHost, inode: Inode, path: str) -> None:
        self._host = host
        self._inode: Inode | None = inode
        self._path = path

    def _open(self, what: str) -> Inode:
        self._host.door(what)
        assert self._inode is not None, f"{self._path} was used after it was closed"
        return self._inode

    def read_at(self, offset: int, length: int) -> bytes:
        return bytes(self._open("read").data[offset : offset + length])

    def write_at(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        self._host.machine.disk.write(self._open("write"), offset, data)

    def sync(self) -> None:
        inode = self._open("fsync")
        machine = self._host.machine
        if machine.failing_syncs > 0 and inode.is_dirty:
            machine.failing_syncs -= 1
            inode.lose(machine.random)
            raise OSError(errno.EIO, "input/output error")
        inode.sync()

    def size(self) -> int:
        return len(self._open("size").data)

    def truncate(self, size: int) -> None:
        self._open("truncate").resize(size)

    def allocate(self, size: int) -> None:
        self._host.machine.disk.allocate(self._open("allocate"), size)

    def close(self) -> None:
        self._inode = None


class _Disk:
    """The machine's disk as one process reaches it."""

    def __init__(self, host: SimHost) -> None:
        self._host = host

    def _disk(self, what: str) -> SimDisk:
        self._host.door(what)
        return self._host.machine.disk

    def open(self, path: str, *, create: bool = False) -> File:
        return _File(self._host, self._disk("open").find(path, create=create), path)

    def exists(self, path: str) -> bool:
        return self._disk("exists").exists(path)

    def listdir(self, path: str) -> list[str]:
        return self._disk("listdir").listdir(path)

    def makedirs(self, path: str) -> None:
        self._disk("makedirs").makedirs(path)

    def rename(self, old: str, new: str) -> None:
        self._disk("rename").rename(old, new)

    def remove(self, path: str) -> None:
        self._disk("remove").remove(path)

    def sync_dir(self, path: str) -> None:
        self._disk("sync_dir").sync_dir(path)

    def free_bytes(self, path: str) -> int:
        return self._disk("free").free_bytes()


class _Network:
    """The network as one process reaches it."""

    def __init__(self, host: SimHost) -> None:
        self._host = host

    async def connect(self, address: str, tls: TlsContexts | None, *, timeout_s: float) -> Connection:
        assert tls is None, "a simulated network has no certificates"
        return await self._host.machine.network.connect(self._host, address, timeout_s)

    async def listen(self, address: str, tls: TlsContexts | None, handler: ConnectionHandler) -> Listener:
        assert tls is None, "a simulated network has no certificates"
        return self._host.machine.network.listen(self._host, address, handler)
