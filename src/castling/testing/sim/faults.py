"""What goes wrong in a world, and when: drawn from the seed.

Each fault is a coroutine that does its damage, heals what would not heal by itself and says
what it does. Faults overlap freely. `MIX` says how often each is drawn; a world gets a few.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from castling.testing.sim.host import Machine
    from castling.testing.sim.service import Service
    from castling.testing.sim.world import World

__all__ = ["MIX", "heal", "power_off", "rain", "rain_on_spool", "rot"]

Fault = Callable[["World"], Awaitable[None]]


async def rain(world: World, seconds: float) -> None:
    """Some faults, spread over so many virtual seconds; returns when the last has healed."""
    rng = world.random
    faults = rng.choices([fault for fault, _ in MIX], [weight for _, weight in MIX], k=rng.randint(1, 9))
    await asyncio.gather(*(_later(world, fault, rng.uniform(0.0, seconds)) for fault in faults))


async def _later(world: World, fault: Fault, seconds: float) -> None:
    await asyncio.sleep(seconds)
    await fault(world)


async def rain_on_spool(world: World, seconds: float) -> None:
    """The backup is away for long, and meanwhile something happens to the source's machine."""
    rng = world.spool_random
    beside = rng.choices(SPOOL_MIX, k=rng.randint(0, 3))
    at_s = rng.uniform(0.5, max(1.0, seconds - 4.0))
    away = [_later(world, _go_away, at_s)]
    await asyncio.gather(*away, *(_later(world, fault, at_s + rng.uniform(2.0, 9.0)) for fault in beside))


def heal(world: World) -> None:
    """Everything that is broken works again; processes come back by themselves."""
    for machine in world.machines:
        machine.disk.room = None
        machine.failing_syncs = 0
        if not machine.up and not world.is_gone(machine):
            _power_on(world, machine)
    if not world.server.is_up and not world.is_lost:
        world.server.restart()
    world.network.heal()
    for service in world.services:
        if service.host is not None:
            service.host.disarm()


# --- processes --------------------------------------------------------------------------------


def _any_service(world: World) -> Service:
    return world.random.choice(world.services)


async def _kill(world: World) -> None:
    service = _any_service(world)
    world.say(f"kill {service.name}")
    service.kill()


async def _kill_at_call(world: World) -> None:
    """Die between two particular lines, soon."""
    service = _any_service(world)
    calls = world.random.choice((world.random.randint(1, 12), world.random.randint(1, 120)))
    world.say(f"kill {service.name} at its call {calls}")
    service.arm(calls)


async def _kill_inside(world: World) -> None:
    """Die where it matters most, as soon as that comes: see `World.weak_moments`."""
    service, what, when = world.random.choice(world.weak_moments())
    world.say(f"kill {service.name} {what}")
    if await service.until(when, within_s=4.0):
        service.kill()


async def _restart_gently(world: World) -> None:
    service = _any_service(world)
    world.say(f"restart {service.name}")
    service.stop_gently()


# --- machines ---------------------------------------------------------------------------------


async def _crash(world: World, machine: Machine) -> None:
    if not machine.up:
        return
    world.say(f"{machine.name} loses power")
    power_off(world, machine)
    await asyncio.sleep(world.random.uniform(0.1, 4.0))
    if not machine.up and not world.is_gone(machine):
        _power_on(world, machine)


async def _crash_backup(world: World) -> None:
    await _crash(world, world.west)


async def _crash_backup_unhardened(world: World) -> None:
    """Power goes with much in the journal that no sync has covered."""
    if await world.receive.until(world.is_unhardened, within_s=4.0):
        await _crash(world, world.west)


async def _crash_source(world: World) -> None:
    await _crash(world, world.source.machine)


def power_off(world: World, machine: Machine) -> None:
    """The machine, its processes, its disk's unsynced data and its database go at once; nobody is told."""
    machine.up = False
    for host in list(machine.processes):
        host.kill(silently=True)
    if machine is world.west:
        world.met("crash lost or tore unsynced data", machine.disk.crash())
        world.met("crash of the replica took commits back", world.replica.crash())
        world.oracle.look_at(world.replica)
        world.oracle.after_crash()
    elif machine is world.source.machine:
        world.server.stop()
        if world.spools:
            world.met("crash of the source's machine lost unsynced data", machine.disk.crash())
            world.oracle.after_crash()


def _power_on(world: World, machine: Machine) -> None:
    world.say(f"{machine.name} is back")
    machine.up = True
    machine.skew_ns = world.random.randint(-(10**9), 10**9)
    if machine is world.source.machine:
        world.server.restart()
    for service in world.services:
        if service.machine is machine:
            world.loop.call_later(world.random.uniform(0.05, 0.5), service.start)


async def _jump_clock(world: World) -> None:
    machine = world.random.choice((world.east, world.west))
    machine.skew_ns += world.random.randint(-(10**10), 10**10)
    world.say(f"the clock of {machine.name} jumps")


# --- disk -------------------------------------------------------------------------------------


async def _fill_disk(world: World) -> None:
    disk = world.west.disk
    disk.room = disk.used() + world.random.randint(0, 30_000)
    world.say("west has no room left")
    for _ in range(10):
        await asyncio.sleep(world.random.uniform(0.1, 0.6))
        end = world.receive.end
        if world.receive.host is not None and end is not None:
            world.met("journal full", end.receiver.report()["state"] == "journal-full")
    disk.room = None
    world.say("west has room again")


async def _fail_sync(world: World) -> None:
    world.say("the next sync of west fails")
    world.west.failing_syncs += 1


async def rot(world: World, seconds: float) -> None:
    """Some time in so many seconds a bit of the journal flips. Then it need not go on, but must not lie."""
    await asyncio.sleep(world.random.uniform(0.3, 1.0) * seconds)
    for _ in range(40):
        name = world.west.disk.rot(".seg")
        if name is not None:
            world.say(f"a bit of {name} flips")
            world.is_rotten = world.oracle.is_rotten = True
            return
        await asyncio.sleep(0.1)


# --- network ----------------------------------------------------------------------------------


async def _cut(world: World) -> None:
    client, server = world.random.choice(((True, True), (True, True), (True, False), (False, True)))
    world.say(f"cut (source told: {client}, backup told: {server})")
    world.network.cut(client_told=client, server_told=server)


async def _cut_within(world: World) -> None:
    """Cut as soon as much is on its way."""
    world.say("cut when a batch is on its way")
    for _ in range(400):
        if world.network.is_busy():
            world.network.cut(client_told=True, server_told=world.random.random() < 0.5)
            return
        await asyncio.sleep(0.003)


async def _stall(world: World) -> None:
    way = world.random.choice(((world.source.machine.name, "west"), ("west", world.source.machine.name)))
    seconds = world.random.choice((world.random.uniform(0.05, 2.0), world.random.uniform(8.0, 14.0)))
    world.say(f"nothing arrives from {way[0]} at {way[1]} for {seconds:.1f} s")
    world.network.stall(way, seconds)


async def _go_away(world: World) -> None:
    """No connection between the two for longer than a spool waits."""
    seconds = world.spool_random.uniform(4.0, 14.0)
    world.say(f"the backup can't be reached for {seconds:.1f} s")
    here = world.source.machine.name
    for way in ((here, "west"), ("west", here)):
        world.network.stall(way, seconds)
    world.network.cut(client_told=True, server_told=True)
    await asyncio.sleep(seconds)


# --- the spool --------------------------------------------------------------------------------


async def _fill_spool_disk(world: World) -> None:
    disk = world.east.disk
    disk.room = disk.used() + world.spool_random.randint(0, 20_000)
    world.say("east has no room left")
    for _ in range(8):
        await asyncio.sleep(0.5)
        world.met("spool full", world.source.host is not None and world._spool_state() == "full")
    disk.room = None
    world.say("east has room again")


async def _fail_spool_sync(world: World) -> None:
    world.say("the next sync of east fails")
    world.east.failing_syncs += 1


async def _kill_source(world: World) -> None:
    world.say("kill source")
    world.source.kill()


async def _kill_source_at_call(world: World) -> None:
    calls = world.spool_random.randint(1, 60)
    world.say(f"kill source at its call {calls}")
    world.source.arm(calls)


# --- source and target ------------------------------------------------------------------------


async def _restart_source(world: World) -> None:
    server = world.server
    if not server.is_up:
        return
    world.say("the ledger restarts")
    server.stop()
    await asyncio.sleep(world.random.uniform(0.05, 1.5))
    if not server.is_up and not world.is_lost and (server is not world.server or world.source.machine.up):
        server.restart()


async def _disconnect_target(world: World) -> None:
    world.say("the replica ends its sessions")
    world.replica.disconnect()


async def _burst(world: World) -> None:
    """Much at once."""
    for _ in range(world.random.randint(5, 40)):
        world.write()
    await asyncio.sleep(0)


async def _depose(world: World) -> None:
    """The role goes to a new incarnation of the primary, while the old one does not know it yet."""
    await world.depose()


MIX: tuple[tuple[Fault, float], ...] = (
    (_kill, 2),
    (_kill_at_call, 6),
    (_kill_inside, 4),
    (_restart_gently, 1),
    (_crash_backup, 4),
    (_crash_backup_unhardened, 2),
    (_crash_source, 2),
    (_jump_clock, 1),
    (_fill_disk, 2),
    (_fail_sync, 1.5),
    (_cut, 3),
    (_cut_within, 2),
    (_stall, 2),
    (_restart_source, 2),
    (_disconnect_target, 2),
    (_burst, 2),
    (_depose, 1.5),
)

#: what happens to a source end that spools
SPOOL_MIX: tuple[Fault, ...] = (
    _kill_source,
    _kill_source_at_call,
    _kill_source_at_call,
    _crash_source,
    _fill_spool_disk,
    _fail_spool_sync,
    _burst,
    _restart_source,
)
