"""A quick disk is waited for where we are; a slow one keeps nothing else waiting."""

from __future__ import annotations

import asyncio
import threading

import pytest

from castling.host import RealHost


class _Disk:
    """A file whose sync takes as long as the test says, and knows on which thread it ran."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []
        self.release = threading.Event()
        self.release.set()

    def sync(self) -> None:
        self.threads.append(threading.current_thread())
        assert self.release.wait(20)


async def test_a_quick_disk_is_waited_for_on_the_event_loop() -> None:
    host, disk = RealHost(), _Disk()
    host.QUICK_SYNC_S = 20.0
    for _ in range(3):
        await host.sync([disk])  # type: ignore[list-item]
    assert set(disk.threads) == {threading.current_thread()}


async def test_a_slow_disk_keeps_nothing_else_waiting() -> None:
    host, disk = RealHost(), _Disk()
    host.QUICK_SYNC_S = 0.0  # no sync was as quick as that
    disk.release.clear()
    syncing = asyncio.create_task(host.sync([disk]))  # type: ignore[list-item]
    while not disk.threads:
        await asyncio.sleep(0)  # the loop goes on while the disk works
    assert not syncing.done()
    disk.release.set()
    await asyncio.wait_for(syncing, 20)
    assert disk.threads[0] is not threading.current_thread()


async def test_a_sync_that_fails_is_told_and_the_next_is_tried() -> None:
    class Broken(_Disk):
        def sync(self) -> None:
            raise OSError(5, "Input/output error")

    host = RealHost()
    with pytest.raises(OSError, match="Input/output"):
        await host.sync([Broken()])  # type: ignore[list-item]
    disk = _Disk()
    await host.sync([disk])  # type: ignore[list-item]
    assert len(disk.threads) == 1
