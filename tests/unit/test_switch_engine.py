"""The engine over a world of its own: every death between two writes, every failure of every step."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.unit.switch_cast import Keeper, Killed, World, refusal

from castling.errors import AgentUnreachable, NotNow
from castling.switch.catalog import PROCEDURES
from castling.switch.run import Event, Happened, Run, RunStatus, UnitState, begin
from castling.switch.runner import CARRY_ON_S, Runner

GROUPS = ("orders", "billing")
NOW_NS = 10**18
PLANNED = PROCEDURES["planned"]


def new_run(groups: tuple[str, ...] = GROUPS, procedure: str = "planned") -> Run:
    return begin(
        PROCEDURES[procedure],
        identity="r1",
        application="shop",
        groups=groups,
        old="east",
        new="west",
        coordinator="west",
        epochs=dict.fromkeys(groups, 2),
        by="ann",
        at_ns=NOW_NS,
    )


async def drive(keeper: Keeper, world: Any, *, run: Run | None = None, events: tuple[Event, ...] = ()) -> Run:
    """An agent's life: takes up what is kept (or starts `run`), is told `events`, until the run rests."""
    runner = Runner(keeper, world, now_ns=lambda: NOW_NS)
    living = asyncio.create_task(runner.run())
    await asyncio.sleep(0)
    try:
        if run is not None:
            runner.start(run)
        for event in events:
            runner.tell("r1", event)
        while True:
            if living.done():
                living.result()
            found = keeper.runs.get("r1")
            resting = found is not None and found.status not in (RunStatus.ACTIVE, RunStatus.ROLLING_BACK)
            if resting and not any(not task.done() for task in runner._drivers.values()):
                for _ in range(5):
                    await asyncio.sleep(0)
                if living.done():
                    living.result()
                assert found is not None
                return found
            await asyncio.sleep(0)
    finally:
        living.cancel()
        await asyncio.gather(living, return_exceptions=True)


def told(what: Happened, unit: int | None = None) -> Event:
    return Event(what=what, at_ns=NOW_NS, unit=unit, by="ann")


def assert_switched(world: World) -> None:
    for group in world.groups:
        assert world.writable(group) == ["west"]
        assert world.role[group, "east"] == world.role[group, "west"] == (2, "west")
    assert not world.paused and world.application == "running on west"


def assert_as_before(world: World) -> None:
    for group in world.groups:
        assert world.writable(group) == ["east"]
        assert world.role[group, "east"] == world.role[group, "west"] == (1, "east")
    assert not world.paused and not world.prepared and world.application == "running on east"


async def test_a_planned_switch_moves_all_groups() -> None:
    world, keeper = World(*GROUPS), Keeper()
    run = await drive(keeper, world, run=new_run())
    assert run.status is RunStatus.COMPLETED
    assert_switched(world)
    promoted = [call for call in world.calls if call.startswith("promote")]
    last_prepared = max(place for place, call in enumerate(world.calls) if call == "prepare_target@east")
    assert len(promoted) == 2 and world.calls.index("promote@west") > last_prepared, "the barrier holds"
    assert run.units[0].outputs[0]["output"] == "said so"


async def writes_of(run: Run, world: World) -> int:
    keeper = Keeper()
    await drive(keeper, world, run=run)
    return keeper.writes


async def test_a_death_at_any_write_is_gone_on_from() -> None:
    writes = await writes_of(new_run(), World(*GROUPS))
    assert writes > 2 * len(PLANNED.steps)
    for die_at in range(2, writes + 1):
        for when in ("before", "after"):
            world, keeper = World(*GROUPS), Keeper(die_at, when)
            with pytest.raises(Killed):
                await drive(keeper, world, run=new_run())
            run = await drive(keeper, world)
            assert run.status is RunStatus.COMPLETED, (die_at, when, run.status)
            assert_switched(world)


async def test_a_death_before_and_after_any_call_of_a_node_is_gone_on_from() -> None:
    world = World("orders")
    await drive(Keeper(), world, run=new_run(("orders",)))
    calls = list(world.calls)
    for wanted in range(len(calls)):
        for when in ("before", "after"):
            world, keeper = World("orders"), Keeper()
            seen = [0]

            def around(at: str, call: str, when: str = when, wanted: int = wanted, seen: Any = seen) -> None:
                if at == when:
                    seen[0] += 1
                    if seen[0] == wanted + 1:
                        raise Killed

            world.around = around
            with pytest.raises(Killed):
                await drive(keeper, world, run=new_run(("orders",)))
            run = await drive(keeper, world)
            assert run.status is RunStatus.COMPLETED, (calls[wanted], when)
            assert_switched(world)


async def test_a_death_at_any_write_and_then_an_abort() -> None:
    writes = await writes_of(new_run(), World(*GROUPS))
    refused = 0
    for die_at in range(2, writes):
        world, keeper = World(*GROUPS), Keeper(die_at)
        with pytest.raises(Killed):
            await drive(keeper, world, run=new_run())
        opened = keeper.runs["r1"].opened
        if opened:
            with pytest.raises(NotNow, match="may be the primary"):
                await drive(keeper, world, events=(told(Happened.ABORTED),))
            refused += 1
            assert (await drive(keeper, world)).status is RunStatus.COMPLETED
            assert_switched(world)
        else:
            run = await drive(keeper, world, events=(told(Happened.ABORTED),))
            assert run.status is RunStatus.ABORTED, die_at
            assert_as_before(world)
            assert not run.blocks, "what a person has aborted needs no acknowledgement"
    assert refused, "some deaths came behind the point of no return"


@pytest.mark.parametrize(
    "call", ["fence", "mark", "drained", "carry", "prepare_source", "prepare_target", "promote"]
)
async def test_a_failure_before_open_rolls_back_by_itself(call: str) -> None:
    world, keeper = World(*GROUPS), Keeper()
    world.fails[call] = [refusal(), refusal()]
    run = await drive(keeper, world, run=new_run())
    assert run.status is RunStatus.ROLLED_BACK
    assert_as_before(world)
    assert run.blocks, "nobody has looked at it yet"
    keeper.runs["r1"] = run
    assert not (await drive(keeper, world, events=(told(Happened.ACKNOWLEDGED),))).blocks


async def test_what_failed_while_it_opened_is_not_rolled_back_unless_certainly_nothing_happened() -> None:
    world, keeper = World("orders"), Keeper()

    def around(when: str, call: str) -> None:
        if (when, call) == ("after", "promote@west"):
            world.around = lambda when, call: None
            raise refusal("the answer was lost")

    world.around = around
    run = await drive(keeper, world, run=new_run(("orders",)))
    assert run.status is RunStatus.FAILED, "the new primary is open: there is no way back"
    run = await drive(keeper, world, events=(told(Happened.RESUMED),))
    assert run.status is RunStatus.COMPLETED
    assert_switched(world)


async def test_what_may_pass_is_tried_again() -> None:
    world, keeper = World("orders"), Keeper()
    world.fails["drained"] = [AgentUnreachable("for a moment")]
    run = await drive(keeper, world, run=new_run(("orders",)))
    assert run.status is RunStatus.COMPLETED


async def test_after_open_a_failure_asks_and_can_be_overridden() -> None:
    world, keeper = World("orders"), Keeper()
    world.scripts["move-users"] = "/move"
    world.fails["call_script"] = []
    run = new_run(("orders",))
    place = next(i for i, unit in enumerate(run.units) if unit.step.name == "move-users")

    def around(when: str, call: str) -> None:
        if when == "before" and call == "call_script@west" and "promote@west" in world.calls:
            world.around = lambda when, call: None
            raise refusal("the load balancer does not answer")

    world.around = around
    run = await drive(keeper, world, run=run)
    assert run.status is RunStatus.WAITING and "move-users" in run.asks
    run = await drive(
        keeper,
        world,
        events=(Event(what=Happened.OVERRIDDEN, at_ns=NOW_NS, unit=place, by="ann", reason="DNS"),),
    )
    assert run.status is RunStatus.COMPLETED_WITH_ERRORS
    assert run.units[place].state is UnitState.OVERRIDDEN and run.units[place].reason == "DNS"
    assert_switched(world)


async def test_a_required_step_is_not_overridden() -> None:
    world, keeper = World("orders"), Keeper()
    world.fails["leave"] = [refusal()]
    world.fails["unfence"] = [refusal()]
    world.fails["mark"] = [refusal()]
    run = await drive(keeper, world, run=new_run(("orders",)))
    assert run.status is RunStatus.FAILED and run.back, "it could not be undone"
    assert world.writable("orders") == []
    fence = next(i for i, unit in enumerate(run.units) if unit.step.name == "fence")
    with pytest.raises(NotNow):
        await drive(keeper, world, events=(told(Happened.OVERRIDDEN, fence),))
    run = await drive(keeper, world, events=(told(Happened.RESUMED),))
    assert run.status is RunStatus.ROLLED_BACK, "resumed, it goes on with the way back"
    assert_as_before(world)


async def test_who_was_away_for_long_leaves_the_decision_to_a_person() -> None:
    world, keeper = World("orders"), Keeper(die_at=9)
    with pytest.raises(Killed):
        await drive(keeper, world, run=new_run(("orders",)))
    later_ns = NOW_NS + int((CARRY_ON_S + 1) * 1e9)
    runner = Runner(keeper, world, now_ns=lambda: later_ns)
    living = asyncio.create_task(runner.run())
    await asyncio.sleep(0)
    assert keeper.runs["r1"].status is RunStatus.WAITING and "away" in keeper.runs["r1"].asks
    living.cancel()
    await asyncio.gather(living, return_exceptions=True)
    run = await drive(keeper, world, events=(told(Happened.RESUMED),))
    assert run.status is RunStatus.COMPLETED


async def test_an_engine_that_forgets_to_keep_its_state_is_noticed() -> None:
    """The negative control of the deaths above: what was not kept can't be gone on from."""
    writes = await writes_of(new_run(("orders",)), World("orders"))
    world, keeper = World("orders"), Keeper()
    keeper.put_run(new_run(("orders",)))
    keeper.forgets, keeper.die_at, keeper.writes = True, writes - 1, 0
    with pytest.raises(Killed):
        await drive(keeper, world)
    again = World("orders")
    again.role, again.fenced, again.opened = world.role, world.fenced, world.opened
    keeper.forgets, keeper.die_at = False, 0
    await drive(keeper, again)
    assert "fence@east" in again.calls, "it fenced once more a node that is not the primary any more"
