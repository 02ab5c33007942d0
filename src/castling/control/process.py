"""One end's process as the agent sees it: prepared, started or adopted, watched, ended.

An end runs in a session of its own and outlives the agent. It is known by the lock it
holds, so an agent that comes back finds the process that another agent started. The
end of a process is an event (a pidfd becomes readable), whoever started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

from castling.errors import StateError
from castling.groups.topology import End, EndPaths

__all__ = ["EndProcess", "Prepared", "adopt", "lock_holder", "prepared_command", "spawn", "worker_command"]

#: longer than an end needs to let go of its connections, seconds
TERM_S = 10.0
KILL_S = 5.0


class EndProcess:
    """A running process. `exit_code` is known once `ended` has returned, for our own children."""

    def __init__(self, pid: int, pidfd: int, child: subprocess.Popen[bytes] | None) -> None:
        self.pid = pid
        self.adopted = child is None
        self._pidfd = pidfd
        self._child = child
        self._over = asyncio.Event()
        asyncio.get_running_loop().add_reader(pidfd, self._ended)

    def _ended(self) -> None:
        self.release()
        if self._child is not None:
            self._child.wait()  # returns at once: the process has ended
        self._over.set()

    def release(self) -> None:
        """Stop watching; the process goes on."""
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    @property
    def exit_code(self) -> int | None:
        """None: still running, or not our child."""
        return None if self._child is None else self._child.returncode

    async def ended(self) -> None:
        await self._over.wait()

    async def end(self) -> None:
        """SIGTERM, then SIGKILL to its whole session; StateError if even that does not end it."""
        if await self._signal(signal.SIGTERM, TERM_S):
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # it leads its session; helpers it started go with it
        if not await self._signal(signal.SIGKILL, KILL_S):
            raise StateError(f"process {self.pid} does not end")

    async def _signal(self, sign: signal.Signals, deadline_s: float) -> bool:
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, sign)
        try:
            async with asyncio.timeout(deadline_s):
                await self._over.wait()
        except TimeoutError:
            return False
        return True


def lock_holder(lock: Path) -> int | None:
    """The pid of the process that holds `lock`, None when nobody does.

    The shared lock taken to find out is held for an instant only; nobody but the agent,
    which asks before it starts anything, takes it.
    """
    try:
        fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(fd, 32, 0).decode(errors="replace").strip()
        return int(text) if text.isdecimal() else None
    finally:
        os.close(fd)
    return None


def adopt(paths: EndPaths) -> EndProcess | None:
    """The process that already runs as this end, if there is one."""
    pid = lock_holder(paths.lock)
    if pid is None:
        return None
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    # the pid may have been reused between the two looks; the lock tells
    if lock_holder(paths.lock) != pid:
        os.close(pidfd)
        return None
    return EndProcess(pid, pidfd, None)


def worker_command(home: Path, end: End) -> list[str]:
    """What runs an end."""
    which = ["--home", str(home), "--group", end.group, "--end", str(end.end), "--backup", end.backup]
    return [sys.executable, "-m", "castling.groups.worker", *which]


def prepared_command(home: Path, end: End) -> list[str]:
    """What makes ready to run an end, and waits for the word (see `Prepared`)."""
    return [*worker_command(home, end), "--prepared"]


def spawn(command: list[str], paths: EndPaths) -> EndProcess:
    """Start the end in a session of its own, its output appended to its log."""
    child = _start(command, paths, subprocess.DEVNULL)
    return EndProcess(child.pid, os.pidfd_open(child.pid), child)


class Prepared:
    """A process that has loaded all that an end needs and waits, holding nothing, to be told to be it.

    Loading is most of the time from a start to the first change. Should its agent die, its standard
    input ends, and so does it.
    """

    def __init__(self, command: list[str], paths: EndPaths) -> None:
        self._child = _start(command, paths, subprocess.PIPE)
        self._paths = paths
        self._log = _identity(paths.log)

    def begin(self) -> EndProcess | None:
        """Let it be the end; None when it is not there any more, or its log is not."""
        word, child = self._child.stdin, self._child
        assert word is not None
        try:
            if self._log is None or self._log != _identity(self._paths.log):
                raise FileNotFoundError(self._paths.log)
            word.write(b"\n")
            word.close()
        except OSError:
            self.give_up()
            return None
        return EndProcess(child.pid, os.pidfd_open(child.pid), child)

    def give_up(self) -> None:
        """End it; nothing is lost."""
        assert self._child.stdin is not None
        with contextlib.suppress(OSError):
            self._child.stdin.close()
        self._child.kill()
        self._child.wait()


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file the path leads to; None when to none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _start(command: list[str], paths: EndPaths, given: int) -> subprocess.Popen[bytes]:
    paths.log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    log = os.open(paths.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        return subprocess.Popen(
            command,
            stdin=given,
            stdout=log,
            stderr=log,
            cwd="/",
            start_new_session=True,
        )
    finally:
        os.close(log)
