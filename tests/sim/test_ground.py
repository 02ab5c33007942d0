"""The ground that the simulation stands on: time, disks, networks and deaths do what their models say."""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import Coroutine
from typing import Any

import pytest

from castling.errors import LinkError
from castling.host import Connection
from castling.testing.sim.disk import SimDisk
from castling.testing.sim.host import Machine, SimHost, SimKilled
from castling.testing.sim.loop import PROCESS, SimLoop, Stuck
from castling.testing.sim.network import SimNetwork
from castling.testing.sim.world import World


class Ground:
    """Two machines with a process each."""

    def __init__(self, seed: int = 1) -> None:
        self.loop = SimLoop(seed)
        self.network = SimNetwork(self.loop, random.Random(seed))
        self.east = Machine("east", self.loop, self.network, random.Random(seed))
        self.west = Machine("west", self.loop, self.network, random.Random(seed))
        self.here = SimHost(self.east, "here", lambda: None)
        self.there = SimHost(self.west, "there", lambda: None)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        found = self.loop.run_until_complete(work)
        rest = asyncio.all_tasks(self.loop)
        for task in rest:
            task.cancel()
        self.loop.run_until_complete(asyncio.gather(*rest, return_exceptions=True)) if rest else None
        self.loop.close()
        return found

    def in_process(self, host: SimHost, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        context = contextvars.Context()
        context.run(PROCESS.set, host)
        return self.loop.create_task(work, context=context)


# --- time -------------------------------------------------------------------------------------


def order_of(seed: int) -> list[int]:
    order: list[int] = []

    async def note(number: int) -> None:
        await asyncio.sleep(3600)
        order.append(number)

    async def all_of_them() -> None:
        await asyncio.gather(*(note(number) for number in range(20)))

    loop = SimLoop(seed)
    loop.run_until_complete(all_of_them())
    assert 3600 <= loop.time() < 3601
    loop.close()
    return order


def test_an_order_belongs_to_its_seed() -> None:
    assert order_of(7) == order_of(7)
    assert order_of(7) != order_of(8)
    assert order_of(7) != list(range(20))


def test_nothing_left_to_happen_is_told() -> None:
    async def wait_for_ever() -> None:
        await asyncio.get_running_loop().create_future()

    loop = SimLoop(1)
    with pytest.raises(Stuck):
        loop.run_until_complete(wait_for_ever())
    for task in asyncio.all_tasks(loop):
        task.cancel()
        loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
    loop.close()


def test_a_world_is_the_same_each_time() -> None:
    for seed in (3, 11, 42):
        first, second = World(seed).run(), World(seed).run()
        assert first == second
        assert len(first.trace) > 5
    assert World(3).run().trace != World(4).run().trace


# --- disks ------------------------------------------------------------------------------------


def disk_with(seed: int, *, sync: bool, sync_dir: bool = True) -> SimDisk:
    disk = SimDisk(random.Random(seed))
    disk.makedirs("/d")
    old = disk.find("/d/f", create=True)
    disk.write(old, 0, b"old " * 500)
    old.sync()
    disk.sync_dir("/d")
    inode = disk.find("/d/f.new", create=True)
    disk.write(inode, 0, b"new " * 500)
    if sync:
        inode.sync()
    disk.rename("/d/f.new", "/d/f")
    if sync_dir:
        disk.sync_dir("/d")
    disk.crash()
    return disk


def test_what_was_synced_survives_every_crash() -> None:
    for seed in range(200):
        disk = disk_with(seed, sync=True)
        assert disk.listdir("/d") == ["f"]
        assert disk.find("/d/f").data == b"new " * 500


def test_what_was_not_synced_may_be_kept_lost_or_torn() -> None:
    found = {bytes(disk_with(seed, sync=False).find("/d/f").data) for seed in range(200)}
    assert b"new " * 500 in found
    assert any(data and b"\0" * 512 in data for data in found)
    assert any(data and data.rstrip(b"\0")[-4:] != b"new " and len(data) == 2000 for data in found)
    assert b"" in found


def test_names_without_a_synced_folder_may_be_the_old_ones() -> None:
    found = {tuple(disk_with(seed, sync=True, sync_dir=False).listdir("/d")) for seed in range(50)}
    assert found == {("f",), ("f", "f.new")}
    data = {bytes(disk_with(seed, sync=True, sync_dir=False).find("/d/f").data[:4]) for seed in range(50)}
    assert data == {b"old ", b"new "}


def test_after_a_failed_sync_the_next_one_vouches_for_what_is_lost() -> None:
    lost = 0
    for seed in range(50):
        disk = SimDisk(random.Random(seed))
        disk.makedirs("/d")
        inode = disk.find("/d/f", create=True)
        disk.sync_dir("/d")
        disk.write(inode, 0, b"x" * 4096)
        inode.lose(random.Random(seed))
        inode.sync()
        assert inode.data == b"x" * 4096
        disk.crash()
        lost += disk.find("/d/f").data != b"x" * 4096
    assert lost > 10


def test_a_cut_file_stays_cut_once_it_is_synced() -> None:
    for seed in range(100):
        disk = SimDisk(random.Random(seed))
        disk.makedirs("/d")
        inode = disk.find("/d/f", create=True)
        disk.write(inode, 0, b"x" * 3000)
        inode.sync()
        disk.sync_dir("/d")
        inode.resize(700)
        disk.write(inode, 1000, b"y" * 100)
        inode.sync()
        disk.crash()
        assert disk.find("/d/f").data == b"x" * 700 + b"\0" * 300 + b"y" * 100


def test_a_full_disk_says_so_and_may_leave_a_part() -> None:
    ground = Ground()
    ground.west.disk.makedirs("/d")
    ground.west.disk.room = 1000
    file = ground.there.disk.open("/d/f", create=True)
    file.write_at(0, b"x" * 900)
    with pytest.raises(OSError, match="no space"):
        file.write_at(900, b"y" * 200)
    assert file.read_at(0, 900) == b"x" * 900
    file.write_at(0, b"z" * 900)  # in place there is room
    ground.loop.close()


# --- networks ---------------------------------------------------------------------------------


def test_a_stream_arrives_whole_and_in_order() -> None:
    ground = Ground()
    sent = random.Random(1).randbytes(50_000)

    async def story() -> None:
        taken: asyncio.Future[bytes] = ground.loop.create_future()

        async def serve(connection: Connection) -> None:
            taken.set_result(await connection.read_exactly(len(sent)))

        await ground.there.network.listen("west:1", None, serve)
        connection = await ground.here.network.connect("west:1", None, timeout_s=5)
        at, rng = 0, random.Random(2)
        while at < len(sent):
            size = rng.randint(1, 3000)
            connection.write(sent[at : at + size])
            await connection.drain()
            at += size
        assert await taken == sent

    ground.run(story())


def test_a_cut_loses_what_is_on_its_way_and_silence_is_no_end() -> None:
    ground = Ground()

    async def story() -> None:
        silent: asyncio.Future[str] = ground.loop.create_future()

        async def serve(connection: Connection) -> None:
            try:
                async with asyncio.timeout(60):
                    await connection.read_exactly(1)
            except TimeoutError:
                silent.set_result("nothing")

        await ground.there.network.listen("west:1", None, serve)
        connection = await ground.here.network.connect("west:1", None, timeout_s=5)
        connection.write(b"lost")
        ground.network.cut(client_told=True, server_told=False)
        with pytest.raises(LinkError):
            await connection.read_exactly(1)
        assert await silent == "nothing"

    ground.run(story())


def test_a_stall_delays_one_way_only() -> None:
    ground = Ground()

    async def story() -> None:
        async def serve(connection: Connection) -> None:
            connection.write(b"answer")
            await connection.read_exactly(1)
            assert ground.loop.time() >= 30
            connection.write(b"!")

        await ground.there.network.listen("west:1", None, serve)
        connection = await ground.here.network.connect("west:1", None, timeout_s=5)
        ground.network.stall(("east", "west"), 30)
        connection.write(b"?")
        assert await connection.read_exactly(6) == b"answer"
        assert ground.loop.time() < 1
        assert await connection.read_exactly(1) == b"!"
        with pytest.raises(LinkError):
            ground.network.stall(("west", "east"), 30)
            await ground.here.network.connect("west:1", None, timeout_s=5)

    ground.run(story())


# --- deaths -----------------------------------------------------------------------------------


def test_the_dead_can_do_nothing_not_even_finally() -> None:
    ground = Ground()
    ground.east.disk.makedirs("/d")

    async def work() -> None:
        file = ground.here.disk.open("/d/f", create=True)
        try:
            file.write_at(0, b"before")
            await ground.here.sleep(1000)
        finally:
            file.write_at(0, b"AFTER!")

    async def story() -> None:
        task = ground.in_process(ground.here, work())
        await asyncio.sleep(1)
        ground.here.kill()
        await asyncio.wait((task,))
        assert isinstance(task.exception(), SimKilled)

    ground.run(story())
    assert ground.east.disk.find("/d/f").data == b"before"


def test_a_fuse_kills_at_the_call_it_was_set_for() -> None:
    ground = Ground()
    ground.east.disk.makedirs("/d")
    done: list[int] = []

    async def work() -> None:
        for number in range(10):
            ground.here.disk.exists("/d")
            done.append(number)

    async def story() -> None:
        ground.here.arm(4)
        await asyncio.wait((ground.in_process(ground.here, work()),))

    ground.run(story())
    assert done == [0, 1, 2]
    assert not ground.here.alive


def test_who_listens_dies_with_its_connections() -> None:
    ground = Ground()

    async def story() -> None:
        async def serve(connection: Connection) -> None:
            await connection.read_exactly(1)

        async def listen() -> None:
            await ground.there.network.listen("west:1", None, serve)
            await ground.there.sleep(1000)

        ground.in_process(ground.there, listen())
        await asyncio.sleep(1)
        connection = await ground.here.network.connect("west:1", None, timeout_s=5)
        ground.there.kill()
        with pytest.raises(LinkError):
            await connection.read_exactly(1)
        with pytest.raises(LinkError):
            await ground.here.network.connect("west:1", None, timeout_s=5)

    ground.run(story())
