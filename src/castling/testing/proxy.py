"""A TCP proxy that misbehaves on request: cuts, stalls, corrupts, delays, slows down.

It runs in a thread with an event loop of its own, so that tests and the demonstration
use it from anywhere; every method may be called from any thread and has taken effect
when it returns. It never looks at what passes, except to damage it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any

__all__ = ["FaultProxy"]

_PIECE = 16 << 10
_READY_S = 10.0


class _Faults:
    """What is wrong with the line now. Touched on the proxy's loop only."""

    def __init__(self) -> None:
        self.refusing = False
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.corrupt = 0
        self.delay_s = 0.0
        self.rate: int | None = None


class FaultProxy:
    """Listens on loopback and passes everything on to `upstream` (`host:port`).

    `listen_port` 0: any free one. A context manager: leaving it closes every connection.
    """

    def __init__(self, listen_port: int, upstream: str) -> None:
        self._port = listen_port
        self._upstream = upstream
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._failure: OSError | None = None
        self._faults: _Faults
        self._stop: asyncio.Event
        self._pairs: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._run, name="fault-proxy", daemon=True)
        #: figures, for tests that need to know that a fault was really met
        self.connections = 0
        self.bytes = 0
        self.corrupted = 0

    @property
    def address(self) -> str:
        """What to connect to, `host:port`."""
        return f"127.0.0.1:{self._port}"

    # --- life ---------------------------------------------------------------------------------

    def start(self) -> FaultProxy:
        """Listen; OSError when the port is taken."""
        self._thread.start()
        if not self._ready.wait(_READY_S):
            raise OSError("the proxy did not start")
        if self._failure is not None:
            raise self._failure
        return self

    def stop(self) -> None:
        if self._thread.is_alive():
            self._call(lambda: self._stop.set())
            self._thread.join()

    def __enter__(self) -> FaultProxy:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    async def _serve(self) -> None:
        self._faults, self._stop = _Faults(), asyncio.Event()
        try:
            server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)
        except OSError as error:
            self._failure = error
            self._ready.set()
            return
        self._port = server.sockets[0].getsockname()[1]
        self._ready.set()
        try:
            await self._stop.wait()
        finally:
            server.close()
            await self._end_pairs()

    # --- faults -------------------------------------------------------------------------------

    def cut(self) -> None:
        """End every connection with a reset and refuse new ones, until `heal`."""

        async def cut() -> None:
            self._faults.refusing = True
            await self._end_pairs()

        self._wait(cut())

    def stall(self) -> None:
        """Pass nothing on, in either direction, without ending anything, until `heal`."""
        self._call(lambda: self._faults.flowing.clear())

    def heal(self) -> None:
        """End every fault."""

        def heal() -> None:
            faults = self._faults
            faults.refusing, faults.corrupt, faults.delay_s, faults.rate = False, 0, 0.0, None
            faults.flowing.set()

        self._call(heal)

    def corrupt_next(self, pieces: int = 1) -> None:
        """Flip one bit in each of the next `pieces` pieces that pass to the upstream."""
        self._call(lambda: setattr(self._faults, "corrupt", pieces))

    def delay(self, seconds: float) -> None:
        """Hold every piece back for this long, in each direction."""
        self._call(lambda: setattr(self._faults, "delay_s", seconds))

    def limit(self, bytes_per_s: int | None) -> None:
        """Pass at most this much per second per direction and connection; None: no limit."""
        self._call(lambda: setattr(self._faults, "rate", bytes_per_s))

    def _call(self, change: Callable[[], object]) -> None:
        async def run() -> None:
            change()

        self._wait(run())

    def _wait(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(_READY_S)

    # --- passing on ---------------------------------------------------------------------------

    async def _end_pairs(self) -> None:
        pairs = [pair for pair in self._pairs if not pair.done()]
        for pair in pairs:
            pair.cancel()
        if pairs:
            await asyncio.wait(pairs)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._faults.refusing:
            writer.transport.abort()
            return
        self.connections += 1
        pair = asyncio.create_task(self._pair(reader, writer))
        self._pairs.add(pair)
        pair.add_done_callback(self._pairs.discard)

    async def _pair(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self._upstream.rpartition(":")
        writers = [writer]
        try:
            with contextlib.suppress(OSError):
                far_reader, far_writer = await asyncio.open_connection(host, int(port))
                writers.append(far_writer)
                ways = [
                    asyncio.create_task(self._pass_on(reader, far_writer, outward=True)),
                    asyncio.create_task(self._pass_on(far_reader, writer, outward=False)),
                ]
                try:
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                    for each in writers:
                        each.close()  # an orderly end: what was already taken is still delivered
                    writers.clear()
                finally:
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)
        finally:
            for each in writers:
                each.transport.abort()

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, outward: bool
    ) -> None:
        while piece := await reader.read(_PIECE):
            faults = self._faults
            if faults.delay_s:
                await asyncio.sleep(faults.delay_s)
            if faults.rate:
                await asyncio.sleep(len(piece) / faults.rate)
            await faults.flowing.wait()
            if outward and faults.corrupt:
                faults.corrupt -= 1
                self.corrupted += 1
                piece = piece[:-1] + bytes((piece[-1] ^ 0x10,))
            self.bytes += len(piece)
            writer.write(piece)
            await writer.drain()
