"""The faulty line itself: every fault is really met, and healing really heals."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from castling.testing.proxy import FaultProxy


@pytest.fixture
def echo() -> Iterator[str]:
    """A server that sends back what it gets."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve(connection: socket.socket) -> None:
            with connection:
                try:
                    while data := connection.recv(65536):
                        connection.sendall(data)
                except OSError:
                    pass

        def accept() -> None:
            try:
                while True:
                    threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()
            except OSError:
                pass  # the test is over

        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)


def connect(proxy: FaultProxy) -> socket.socket:
    host, _, port = proxy.address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=10)


def exchange(line: socket.socket, data: bytes) -> bytes:
    line.sendall(data)
    found = b""
    while len(found) < len(data):
        piece = line.recv(65536)
        if not piece:
            raise ConnectionError("the line ended")
        found += piece
    return found


def test_without_a_fault_everything_passes(echo: str) -> None:
    with FaultProxy(0, echo) as proxy, connect(proxy) as line:
        data = bytes(range(256)) * 400
        assert exchange(line, data) == data
        assert proxy.connections == 1 and proxy.bytes == 2 * len(data) and proxy.corrupted == 0


def test_a_cut_ends_lines_and_refuses_new_ones_until_healed(echo: str) -> None:
    with FaultProxy(0, echo) as proxy:
        with connect(proxy) as line:
            exchange(line, b"before")
            proxy.cut()
            with pytest.raises(OSError):
                exchange(line, b"after")
        with pytest.raises(OSError), connect(proxy) as line:
            exchange(line, b"still cut")
        proxy.heal()
        with connect(proxy) as line:
            assert exchange(line, b"healed") == b"healed"


def test_a_stall_keeps_everything_and_heals(echo: str) -> None:
    with FaultProxy(0, echo) as proxy, connect(proxy) as line:
        exchange(line, b"before")
        proxy.stall()
        line.settimeout(0.3)
        with pytest.raises(TimeoutError):
            exchange(line, b"held")
        proxy.heal()
        line.settimeout(10)
        assert line.recv(100) == b"held"


def test_damage_is_one_bit_in_as_many_pieces_as_told(echo: str) -> None:
    with FaultProxy(0, echo) as proxy, connect(proxy) as line:
        proxy.corrupt_next()
        assert exchange(line, b"data") == b"dat" + bytes((ord("a") ^ 0x10,))
        assert exchange(line, b"data") == b"data"
        assert proxy.corrupted == 1


def test_delay_and_limit_slow_the_line_down(echo: str) -> None:
    with FaultProxy(0, echo) as proxy, connect(proxy) as line:
        proxy.delay(0.1)
        begun = time.monotonic()
        exchange(line, b"x")
        assert time.monotonic() - begun >= 0.2
        proxy.heal()
        proxy.limit(100_000)
        begun = time.monotonic()
        exchange(line, bytes(20_000))
        assert time.monotonic() - begun >= 0.2


def test_a_taken_port_is_told(echo: str) -> None:
    with FaultProxy(0, echo) as proxy:
        port = int(proxy.address.rpartition(":")[2])
        with pytest.raises(OSError), FaultProxy(port, echo):
            pass
