"""A host for the tests of the journal: a disk in memory that forgets what is not synced, and fails.

Every change of the disk is written down (`log`), so that a test can ask in which order things were done.
`before`, when set, sees each operation before it is done and may raise an OSError in its place.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NoReturn

from castling.host import Bell, Disk, File, Network
from castling.testing.sim.disk import Inode, SimDisk

__all__ = ["MemoryHost", "Operation"]

#: what is done ("write", "sync", "rename", …) and to which file, by its name in its folder
Operation = tuple[str, str]


class MemoryHost:
    def __init__(self, disk: SimDisk | None = None) -> None:
        self.sim = SimDisk(random.Random(1)) if disk is None else disk
        self.disk: Disk = _Disk(self)
        self.random = random.Random(1)
        self.log: list[Operation] = []
        self.before: Callable[[str, str], None] | None = None
        self.now_s = 0.0

    def door(self, what: str, path: str) -> None:
        name = path.rpartition("/")[2]
        if self.before is not None:
            self.before(what, name)
        self.log.append((what, name))

    def after_power_loss(self) -> MemoryHost:
        """The machine as the worst crash now would leave it: without everything that was not synced."""
        return MemoryHost(self.sim.surely())

    def files(self, directory: str) -> dict[str, bytes]:
        """All files of a folder with what processes see in them."""
        paths = [f"{directory}/{name}" for name in self.sim.listdir(directory)]
        return {path: bytes(self.sim.find(path).data) for path in paths}

    @classmethod
    def of(cls, directory: str, files: dict[str, bytes]) -> MemoryHost:
        """A machine with these files, all of them durable."""
        host = cls()
        host.sim.makedirs(directory)
        for path, content in files.items():
            inode = host.sim.find(path, create=True)
            inode.write(0, content)
            inode.sync()
        host.sim.sync_dir(directory)
        return host

    # --- the rest of a host -------------------------------------------------------------------

    @property
    def network(self) -> Network:
        raise NotImplementedError("a journal does not speak to anyone")

    def bell(self, path: str) -> Bell:
        raise NotImplementedError("a journal does not wait for anyone")

    def wall_ns(self) -> int:
        return int(self.now_s * 1e9)

    def monotonic(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> NoReturn:
        raise NotImplementedError("a journal does not sleep")

    async def sync(self, files: Sequence[File]) -> None:
        for file in files:
            file.sync()


class _File:
    def __init__(self, host: MemoryHost, path: str, inode: Inode) -> None:
        self._host = host
        self._path = path
        self._inode = inode

    def read_at(self, offset: int, length: int) -> bytes:
        return bytes(self._inode.data[offset : offset + length])

    def write_at(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        self._host.door("write", self._path)
        self._host.sim.write(self._inode, offset, data)

    def sync(self) -> None:
        try:
            self._host.door("sync", self._path)
        except OSError:
            self._inode.lose(self._host.random)
            raise
        self._inode.sync()

    def size(self) -> int:
        return len(self._inode.data)

    def truncate(self, size: int) -> None:
        self._host.door("truncate", self._path)
        self._inode.resize(size)

    def allocate(self, size: int) -> None:
        self._host.door("allocate", self._path)
        self._host.sim.allocate(self._inode, size)

    def close(self) -> None:
        pass


class _Disk:
    def __init__(self, host: MemoryHost) -> None:
        self._host = host

    def open(self, path: str, *, create: bool = False) -> File:
        if create and not self._host.sim.exists(path):
            self._host.door("create", path)
        return _File(self._host, path, self._host.sim.find(path, create=create))

    def exists(self, path: str) -> bool:
        return self._host.sim.exists(path)

    def listdir(self, path: str) -> list[str]:
        return self._host.sim.listdir(path)

    def makedirs(self, path: str) -> None:
        self._host.sim.makedirs(path)

    def rename(self, old: str, new: str) -> None:
        self._host.door("rename", new)
        self._host.sim.rename(old, new)

    def remove(self, path: str) -> None:
        self._host.door("remove", path)
        self._host.sim.remove(path)

    def sync_dir(self, path: str) -> None:
        self._host.door("sync_dir", path)
        self._host.sim.sync_dir(path)

    def free_bytes(self, path: str) -> int:
        return self._host.sim.free_bytes()
