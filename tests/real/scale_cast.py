"""The cast of the scale tests: the greatest memory that each process of a group has taken."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from types import TracebackType

from castling.groups.topology import EndName
from castling.testing.cluster import Cluster

__all__ = ["LIMIT", "Peaks", "peaks_of"]

#: what is promised of each process, bytes
LIMIT = 256 << 20


def peaks_of(pid: int) -> int | None:
    """The greatest resident memory that a process has had, bytes (VmHWM); None when it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    return None


class Peaks:
    """Looks at a cluster's ends until it is left, those that were started anew among them. By end: bytes."""

    LOOK_S = 0.5

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look_on, daemon=True)
        self.found: dict[str, int] = {}
        #: processes seen: more than three means that one has died
        self.seen: set[int] = set()

    def __enter__(self) -> Peaks:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._look()
        self._ended.set()
        self._thread.join()

    def _look_on(self) -> None:
        while not self._ended.wait(self.LOOK_S):
            self._look()

    def _look(self) -> None:
        for name in EndName:
            pid = self._cluster.pid(name)
            peak = None if pid is None else peaks_of(pid)
            if pid is not None and peak is not None:
                self.seen.add(pid)
                self.found[str(name)] = max(self.found.get(str(name), 0), peak)

    def told(self) -> str:
        return ", ".join(f"{name} {peak >> 20} MiB" for name, peak in sorted(self.found.items()))
