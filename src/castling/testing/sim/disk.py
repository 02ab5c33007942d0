"""A disk that forgets what was not synced. The model:

* A write lands in the page cache. Every process of the machine sees it at once; a process
  that is killed takes nothing with it.
* When the machine crashes, each sector (512 bytes) that was written and not synced is, by
  seed, kept, lost or torn (its beginning new, its end old), each independently of the others.
  A changed size that was not synced is kept or lost as a whole.
* Names: creations, renames and removals are durable after `sync_dir` of their folder. A crash
  keeps, in each folder, a beginning of the operations since then, in their order, as file
  systems with a metadata journal do. A rename is one operation. Folders themselves are durable
  at once: they are made when a stream is deployed.
* A disk has a size, when it is given one: a write beyond it leaves a part of itself behind and
  raises ENOSPC.
* A sync can fail (EIO). Some of the sectors are then on the disk, all of them count as clean,
  and the next sync reports success: what real kernels do.

* Rot: a bit flips, on the disk and in what is read.

Not modelled: writes that are lost though their sync returned (lying hardware).
"""

from __future__ import annotations

import errno
import random
from dataclasses import dataclass, field

__all__ = ["Inode", "SimDisk"]

SECTOR = 512


class Inode:
    """One file: what processes see (`data`) and what a crash surely leaves (`stable`)."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.stable = bytearray()
        self._dirty: set[int] = set()
        #: the smallest size since the last sync: what lay behind it has been cut off
        self._low = 0

    @property
    def is_dirty(self) -> bool:
        return bool(self._dirty) or self._low < len(self.stable) or len(self.data) != len(self.stable)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        size = len(data)
        if not size:
            return
        if offset > len(self.data):
            self.data.extend(bytes(offset - len(self.data)))
        self.data[offset : offset + size] = data
        self._dirty.update(range(offset // SECTOR, (offset + size - 1) // SECTOR + 1))

    def resize(self, size: int) -> None:
        if size > len(self.data):
            self.data.extend(bytes(size - len(self.data)))
        else:
            del self.data[size:]
            self._low = min(self._low, size)
            self._dirty = {sector for sector in self._dirty if sector * SECTOR < size}

    def sync(self) -> None:
        self._settle_size(self.stable)
        for sector in self._dirty:
            at = sector * SECTOR
            self.stable[at : at + SECTOR] = self.data[at : at + SECTOR]
        self._clean()

    def _settle_size(self, image: bytearray) -> None:
        del image[self._low :]
        image.extend(bytes(len(self.data) - len(image)))
        at = self._low - self._low % SECTOR
        image[at : self._low] = self.data[at : self._low]

    def _clean(self) -> None:
        self._dirty.clear()
        self._low = len(self.stable)

    def lose(self, rng: random.Random) -> None:
        """A sync failed: some of it is there, and nobody will ever write the rest."""
        self._settle_size(self.stable)  # metadata has a journal of its own
        self._land(rng)
        self._clean()

    def crash(self, rng: random.Random) -> None:
        """Power went: what is left is what anybody sees from now on."""
        if self.is_dirty and rng.random() < 0.5:
            self._settle_size(self.stable)
        self._land(rng)
        self.data = bytearray(self.stable)
        self._clean()

    def _land(self, rng: random.Random) -> None:
        image = self.stable
        for sector in sorted(self._dirty):
            at = sector * SECTOR
            new = self.data[at : min(at + SECTOR, len(image))]
            fate = rng.random()
            if fate < 0.4 or not new:
                continue
            if fate < 0.6:  # torn: only its beginning
                new = new[: rng.randrange(len(new))]
            image[at : at + len(new)] = new


@dataclass(slots=True)
class _Folder:
    """Operations on the names of one folder that are not durable: each sets names to inodes or None."""

    pending: list[dict[str, Inode | None]] = field(default_factory=list)


class SimDisk:
    """One machine's disk. Paths are plain strings with `/`. `room`: its size in bytes, None: endless."""

    def __init__(self, rng: random.Random) -> None:
        self._random = rng
        self.room: int | None = None
        self._names: dict[str, Inode] = {}
        self._stable: dict[str, Inode] = {}
        self._folders: dict[str, _Folder] = {}

    # --- names --------------------------------------------------------------------------------

    @staticmethod
    def _parent(path: str) -> str:
        return path.rpartition("/")[0]

    def _change(self, folder: str, names: dict[str, Inode | None]) -> None:
        if folder not in self._folders:
            raise FileNotFoundError(errno.ENOENT, "no such folder", folder)
        self._folders[folder].pending.append(names)
        _apply(self._names, names)

    def find(self, path: str, *, create: bool = False) -> Inode:
        inode = self._names.get(path)
        if inode is None:
            if not create:
                raise FileNotFoundError(errno.ENOENT, "no such file", path)
            inode = Inode()
            self._change(self._parent(path), {path: inode})
        return inode

    def exists(self, path: str) -> bool:
        return path in self._names or path in self._folders

    def listdir(self, path: str) -> list[str]:
        if path not in self._folders:
            raise FileNotFoundError(errno.ENOENT, "no such folder", path)
        head = path + "/"
        found = [name[len(head) :] for name in (*self._names, *self._folders) if name.startswith(head)]
        return sorted(name for name in found if "/" not in name)

    def makedirs(self, path: str) -> None:
        while path and path not in self._folders:
            self._folders[path] = _Folder()
            path = self._parent(path)

    def rename(self, old: str, new: str) -> None:
        self._change(self._parent(new), {old: None, new: self.find(old)})

    def remove(self, path: str) -> None:
        self.find(path)
        self._change(self._parent(path), {path: None})

    def sync_dir(self, path: str) -> None:
        folder = self._folders[path]
        for names in folder.pending:
            _apply(self._stable, names)
        folder.pending.clear()

    # --- room ---------------------------------------------------------------------------------

    def used(self) -> int:
        return sum(len(inode.data) for inode in self._names.values())

    def free_bytes(self) -> int:
        return 1 << 40 if self.room is None else max(0, self.room - self.used())

    def write(self, inode: Inode, offset: int, data: bytes | bytearray | memoryview) -> None:
        grows = max(0, offset + len(data) - len(inode.data))
        if grows and self.room is not None and grows > self.free_bytes():
            inode.write(offset, bytes(data)[: self._random.randrange(len(data))])
            raise OSError(errno.ENOSPC, "no space left on device")
        inode.write(offset, data)

    def allocate(self, inode: Inode, size: int) -> None:
        grows = max(0, size - len(inode.data))
        if grows and self.room is not None and grows > self.free_bytes():
            raise OSError(errno.ENOSPC, "no space left on device")
        if grows:
            inode.resize(size)

    # --- power --------------------------------------------------------------------------------

    def crash(self) -> bool:
        """The machine lost power. True when something was lost or torn."""
        before = {name: bytes(inode.data) for name, inode in self._names.items()}
        for folder in self._folders.values():
            for names in folder.pending[: self._random.randint(0, len(folder.pending))]:
                _apply(self._stable, names)
            folder.pending.clear()
        for inode in {id(inode): inode for inode in (*self._names.values(), *self._stable.values())}.values():
            inode.crash(self._random)
        self._names = dict(self._stable)
        return before != {name: bytes(inode.data) for name, inode in self._names.items()}

    def sure_bytes(self, path: str) -> bytes:
        """What the worst crash now would leave in a file; nothing when it would not be there."""
        return bytes(self._stable[path].stable) if path in self._stable else b""

    def rot(self, suffix: str) -> str | None:
        """Flip one bit, for good, in one of the files so named that hold anything; which one."""
        names = sorted(
            name for name, inode in self._names.items() if name.endswith(suffix) and any(inode.stable)
        )
        if not names:
            return None
        name = self._random.choice(names)
        inode = self._names[name]
        at = self._random.randrange(len(inode.stable.rstrip(b"\0")))
        bit = 1 << self._random.randrange(8)
        inode.stable[at] ^= bit
        if at < len(inode.data):
            inode.data[at] ^= bit
        return name

    def surely(self) -> SimDisk:
        """A disk as the worst crash right now would leave it: nothing that is not synced."""
        found = SimDisk(random.Random(0))
        found._folders = {path: _Folder() for path in self._folders}
        for name, inode in self._stable.items():
            copy = found._names[name] = found._stable[name] = Inode()
            copy.data, copy.stable = bytearray(inode.stable), bytearray(inode.stable)
            copy._clean()
        return found


def _apply(names: dict[str, Inode], changes: dict[str, Inode | None]) -> None:
    for path, inode in changes.items():
        if inode is None:
            names.pop(path, None)
        else:
            names[path] = inode
