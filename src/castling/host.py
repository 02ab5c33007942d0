"""The core's only door to clock, disk, network and randomness.

The journal, the link and the apply loop never call `time`, `os`, `socket` or
`random`: they take a `Host`. `RealHost` is the machine; `castling.testing.sim` has a
host whose time is virtual, whose disks lose what was not synced and whose network
cuts and stalls by seed, so that a whole group runs in one process.

Contracts every host keeps:
* A write is visible to every reader of the host at once, and durable only after
  `File.sync` has returned. A rename, creation or removal is durable only after
  `Disk.sync_dir` of its folder.
* After `sync` has raised, nothing about the file's unsynced writes is known; callers
  fail rather than retry (a kernel reports a lost write once).
* `wall_ns` may jump either way; `monotonic` never goes back.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol

from castling.errors import LinkError, LinkForeign
from castling.wire import Wire

__all__ = ["Bell", "Connection", "Disk", "File", "Host", "Listener", "Network", "RealHost", "TlsContexts"]


class File(Protocol):
    """An open file. Offsets and lengths in bytes."""

    def read_at(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; shorter only at the end of the file."""

    def write_at(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data`, or raise OSError (ENOSPC when the disk is full)."""

    def sync(self) -> None:
        """Make the data written so far durable. Blocks; use `Host.sync` on the event loop."""

    def size(self) -> int: ...
    def truncate(self, size: int) -> None: ...
    def allocate(self, size: int) -> None:
        """Reserve room up to `size`, so that later writes below it can't meet a full disk."""

    def close(self) -> None: ...


class Disk(Protocol):
    """Paths are plain strings; a missing file raises FileNotFoundError."""

    def open(self, path: str, *, create: bool = False) -> File: ...
    def exists(self, path: str) -> bool: ...
    def listdir(self, path: str) -> list[str]: ...
    def makedirs(self, path: str) -> None: ...
    def rename(self, old: str, new: str) -> None: ...
    def remove(self, path: str) -> None: ...
    def sync_dir(self, path: str) -> None: ...
    def free_bytes(self, path: str) -> int: ...


class Connection(Protocol):
    """An ordered byte stream to a peer whose certificate, where TLS is used, was verified."""

    @property
    def peer_node(self) -> str | None:
        """The node name in the peer's verified certificate; None without TLS."""

    async def read_exactly(self, length: int) -> bytes:
        """`length` bytes, or LinkError when the stream ends first."""

    def write(self, data: bytes | memoryview) -> None:
        """Take `data`, which must not change any more."""

    async def drain(self) -> None:
        """Wait until the outgoing buffer has room (back-pressure)."""

    def close(self) -> None: ...


class Listener(Protocol):
    @property
    def address(self) -> str: ...
    async def close(self) -> None: ...


class TlsContexts(Protocol):
    """What a network needs to authenticate both sides; None in the simulator."""

    def client(self) -> ssl.SSLContext: ...
    def server(self) -> ssl.SSLContext: ...
    def peer_node(self, certificate: bytes) -> str:
        """The node name of a verified DER certificate; LinkForeign if it is not one of ours."""


Handler = Callable[[Connection], Awaitable[None]]


class Network(Protocol):
    """Addresses are `host:port`."""

    async def connect(self, address: str, tls: TlsContexts | None, *, timeout_s: float) -> Connection: ...
    async def listen(self, address: str, tls: TlsContexts | None, handler: Handler) -> Listener: ...


class Bell(Protocol):
    """Wakes one process of this host that waits on the same path. Rings may be lost or merged:
    whoever waits looks for itself afterwards, and passes a timeout."""

    def ring(self) -> None:
        """Wake the waiter, if there is one. Never blocks, never fails."""

    async def wait(self, timeout_s: float) -> bool:
        """True when rung, False after `timeout_s`. At most one waiter per path."""

    def close(self) -> None: ...


class Host(Protocol):
    disk: Disk
    network: Network
    random: random.Random

    def wall_ns(self) -> int:
        """Nanoseconds since 1970 by the wall clock."""

    def monotonic(self) -> float:
        """Seconds, never going back, origin unspecified."""

    async def sleep(self, seconds: float) -> None: ...
    async def sync(self, files: Sequence[File]) -> None:
        """`File.sync` of each, in order. The event loop is not kept waiting by a disk that is slow."""

    def bell(self, path: str) -> Bell: ...


# --- the real machine -------------------------------------------------------------------------


class _RealFile:
    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read_at(self, offset: int, length: int) -> bytes:
        parts = []
        while length > 0:
            part = os.pread(self._fd, length, offset)
            if not part:
                break
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write_at(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._fd, view, offset)
            view = view[written:]
            offset += written

    def sync(self) -> None:
        os.fdatasync(self._fd)

    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def truncate(self, size: int) -> None:
        os.ftruncate(self._fd, size)

    def allocate(self, size: int) -> None:
        try:
            os.posix_fallocate(self._fd, 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class _RealDisk:
    def open(self, path: str, *, create: bool = False) -> File:
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
        return _RealFile(os.open(path, flags, 0o600))

    def exists(self, path: str) -> bool:
        return Path(path).exists()

    def listdir(self, path: str) -> list[str]:
        return sorted(os.listdir(path))

    def makedirs(self, path: str) -> None:
        Path(path).mkdir(mode=0o700, parents=True, exist_ok=True)

    def rename(self, old: str, new: str) -> None:
        os.replace(old, new)

    def remove(self, path: str) -> None:
        os.unlink(path)

    def sync_dir(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def free_bytes(self, path: str) -> int:
        found = os.statvfs(path)
        return found.f_bavail * found.f_frsize


class _RealListener:
    def __init__(self, server: asyncio.Server) -> None:
        self._server = server

    @property
    def address(self) -> str:
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"{host}:{port}"

    async def close(self) -> None:
        self._server.close()


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _known(wire: Wire, tls: TlsContexts | None) -> Wire:
    """`wire`, with its peer's name and without delays for the sake of fuller packets."""
    found = wire.extra("socket")
    if found is not None and found.family in (socket.AF_INET, socket.AF_INET6):
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if tls is not None:
        certificate = wire.extra("ssl_object").getpeercert(binary_form=True)
        if certificate is None:
            raise LinkForeign("the other side showed no certificate")
        wire.peer_node = tls.peer_node(certificate)
    return wire


class _RealNetwork:
    async def connect(self, address: str, tls: TlsContexts | None, *, timeout_s: float) -> Connection:
        host, port = _split(address)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_s):
                _, wire = await loop.create_connection(Wire, host, port, ssl=tls.client() if tls else None)
        except ssl.SSLCertVerificationError as error:
            raise LinkForeign(
                f"{address} showed a certificate of another installation ({error.verify_message})",
                hint="both nodes must be of one installation: `castling join` adds a node",
            ) from error
        except (OSError, TimeoutError) as error:
            raise LinkError(f"{address} can't be reached: {error or 'timed out'}") from error
        return _known(wire, tls)

    async def listen(self, address: str, tls: TlsContexts | None, handler: Handler) -> Listener:
        host, port = _split(address)
        loop = asyncio.get_running_loop()
        serving: set[asyncio.Task[None]] = set()

        async def serve(wire: Wire) -> None:
            try:
                await handler(_known(wire, tls))
            except LinkForeign:  # it is told nothing
                return
            finally:
                wire.close()

        def made(wire: Wire) -> None:
            task = loop.create_task(serve(wire))
            serving.add(task)
            task.add_done_callback(serving.discard)

        server = await loop.create_server(lambda: Wire(made), host, port, ssl=tls.server() if tls else None)
        return _RealListener(server)


class _RealBell:
    """A datagram socket in the file system; the waiter binds it, ringers send one byte."""

    def __init__(self, path: str) -> None:
        folder, name = os.path.split(path)
        # a socket's path is at most 107 bytes: name it through the folder's descriptor
        self._folder = os.open(folder or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._path = f"/proc/self/fd/{self._folder}/{name}"
        self._socket: socket.socket | None = None
        self._sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sender.setblocking(False)

    def ring(self) -> None:
        with contextlib.suppress(OSError):
            self._sender.sendto(b"!", self._path)

    async def wait(self, timeout_s: float) -> bool:
        if self._socket is None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)
            self._socket.bind(self._path)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_s):
                await loop.sock_recv(self._socket, 16)
        except TimeoutError:
            return False
        with contextlib.suppress(BlockingIOError):
            while True:
                self._socket.recv(16)
        return True

    def close(self) -> None:
        self._sender.close()
        if self._socket is not None:
            self._socket.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
        os.close(self._folder)


class RealHost:
    """The machine this process runs on."""

    #: a disk whose last sync was quicker than this is waited for on the event loop, seconds: to hand the
    #: sync to a thread and to hear of its end takes about as long, and a commit may be waiting for it
    QUICK_SYNC_S = 0.002

    def __init__(self) -> None:
        self._last_sync_s = 0.0
        self.disk: Disk = _RealDisk()
        self.network: Network = _RealNetwork()
        self.random = random.Random()  # jitter only; nothing secret is drawn from it

    def wall_ns(self) -> int:
        return time.time_ns()

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def sync(self, files: Sequence[File]) -> None:
        loop = asyncio.get_running_loop()
        for file in files:
            began = time.monotonic()
            if self._last_sync_s < self.QUICK_SYNC_S:
                file.sync()
            else:
                await loop.run_in_executor(None, file.sync)
            self._last_sync_s = time.monotonic() - began

    def bell(self, path: str) -> Bell:
        return _RealBell(path)
