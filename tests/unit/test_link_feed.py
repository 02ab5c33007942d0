"""The feed: whatever happens to the link, the far side sees every change once and in order."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from link_cast import Source

from castling.errors import JournalGap, LinkProtocol, SourceUnreachable, StaleEpoch
from castling.host import RealHost
from castling.journal.record import Position, RecordType, Tail
from castling.journal.segment import walk
from castling.link.feed import CaptureFeed, Run


class FarJournal:
    """What a receiver would hold: records with their tails; appending checks as a journal does."""

    def __init__(self) -> None:
        self.tails = [Tail()]
        self.payloads: list[bytes] = []

    def append(self, run: Run) -> None:
        records = list(walk(run.data))
        assert (records[0].position, records[-1].position) == (run.first, run.last)
        assert (records[-1].offset, records[-1].t_ns) == (run.offset, run.t_ns)
        for record in records:
            before = self.tails[-1]
            assert record.position.seq == before.position.seq + 1, "a gap or a repetition"
            assert record.t_ns >= before.t_ns, "time went back"
            session = record.payload if record.type is RecordType.SESSION else before.session
            self.tails.append(Tail(record.position, record.offset, record.t_ns, session))
            if record.type is RecordType.DATA:
                self.payloads.append(record.payload)

    def lose_after(self, seq: int) -> None:
        """A crash: what was not hardened is gone."""
        dropped = len(self.tails) - 1 - seq
        del self.tails[seq + 1 :]
        if dropped:
            changes = [tail for tail in self.tails[1:] if tail.offset > 0]
            self.payloads = self.payloads[: max((tail.offset for tail in changes), default=0)]

    def tail_at(self, seq: int) -> Tail:
        return self.tails[seq]


def make_feed(source: Source, *, window: int = 1 << 20, epoch: int = 1) -> CaptureFeed:
    return CaptureFeed(RealHost(), source, epoch=epoch, window=window)


async def next_or_none(feed: CaptureFeed) -> Run | None:
    """The next run, or None when there is none now; cancelling must lose nothing."""
    try:
        async with asyncio.timeout(0.001):
            return await feed.next()
    except TimeoutError:
        return None


@given(st.integers(0, 1 << 30))
def test_any_order_of_events_keeps_the_stream_whole(seed: int) -> None:
    asyncio.run(random_run(seed))


async def random_run(seed: int, feed_type: type[CaptureFeed] = CaptureFeed) -> None:
    luck = random.Random(seed)
    source, far = Source(), FarJournal()
    feed = feed_type(RealHost(), source, epoch=1, window=4000)
    hardened = 0
    await feed.open(far.tails[-1])

    async def write() -> None:
        source.write(*(b"%d:%d" % (len(source.log), luck.randrange(100)) for _ in range(luck.randrange(25))))

    async def send() -> None:
        if (run := await next_or_none(feed)) is not None:
            far.append(run)

    async def harden() -> None:
        nonlocal hardened
        hardened = luck.randint(hardened, len(far.tails) - 1)
        if luck.random() < 0.7:  # else the acknowledgement is lost on the way
            await feed.acknowledge(far.tail_at(hardened))

    async def lose_link() -> None:
        nonlocal hardened
        if luck.random() < 0.5:
            far.lose_after(luck.randint(hardened, len(far.tails) - 1))
        hardened = len(far.tails) - 1  # a tail that is told with a welcome is durable
        await feed.open(far.tail_at(hardened))

    async def lose_source() -> None:
        nonlocal hardened
        source.break_off()
        with contextlib.suppress(SourceUnreachable):
            while (run := await next_or_none(feed)) is not None:
                far.append(run)
        source.fail = None
        hardened = len(far.tails) - 1
        await feed.open(far.tails[-1])

    steps = [write, write, send, send, send, harden, lose_link, lose_source]
    for _ in range(40):
        await luck.choice(steps)()
    await feed.open(far.tails[-1])
    while far.payloads != source.log:
        if (run := await next_or_none(feed)) is None:
            await feed.acknowledge(far.tails[-1])
            run = await asyncio.wait_for(feed.next(), 5)
        far.append(run)
    await feed.close()


async def test_a_feed_that_forgets_too_early_is_noticed() -> None:
    """The control of the test above: a feed that drops what it has handed out."""

    class Forgetful(CaptureFeed):
        async def next(self) -> Run:
            run = await super().next()
            self._kept_bytes -= len(run.data)
            self._kept.pop()
            return run

    async def noticed() -> bool:
        for seed in range(60):
            try:
                await asyncio.wait_for(random_run(seed, Forgetful), 3)
            except (AssertionError, TimeoutError, IndexError):
                return True
        return False

    assert await noticed()


async def test_the_window_holds_reading_back_until_something_is_acknowledged() -> None:
    source, far = Source(), FarJournal()
    feed = make_feed(source, window=5000)
    await feed.open(Tail())
    source.write(*[b"x" * 100] * 1000)
    while (run := await next_or_none(feed)) is not None:
        far.append(run)
    held = len(far.payloads)
    assert 20 <= held <= 60, "about 5000 bytes, by whole runs"
    await feed.acknowledge(far.tails[-1])
    assert await next_or_none(feed) is not None
    assert source.confirmed == held
    await feed.close()


async def test_a_link_loss_does_not_ask_the_source_again() -> None:
    source, far = Source(), FarJournal()
    feed = make_feed(source)
    await feed.open(Tail())
    source.write(*[b"a", b"b", b"c"])
    far.append(await feed.next())
    for seq in range(len(far.tails)):
        await feed.open(far.tail_at(seq))
        again = FarJournal()
        again.tails, again.payloads = far.tails[: seq + 1], []
        if seq < 4:
            again.append(await feed.next())
        assert again.tails == far.tails
    assert source.opens == [0] and feed.resumed == 5 and feed.reopened == 1
    await feed.close()


async def test_a_far_journal_that_lost_what_it_acknowledged_is_a_gap() -> None:
    source, far = Source(), FarJournal()
    feed = make_feed(source)
    await feed.open(Tail())
    source.write(*[b"a"] * 5)
    far.append(await feed.next())
    await feed.acknowledge(far.tail_at(4))
    await feed.open(far.tail_at(4))  # the control: what it does hold is fine
    with pytest.raises(JournalGap, match="lost records"):
        await feed.open(far.tail_at(3))
    await feed.close()


async def test_another_s_record_under_our_position_is_a_gap() -> None:
    source, far = Source(), FarJournal()
    feed = make_feed(source)
    await feed.open(Tail())
    source.write(*[b"a"] * 5)
    far.append(await feed.next())
    ours = far.tail_at(3)
    for other in (
        Tail(ours.position, ours.offset + 1, ours.t_ns, ours.session),
        Tail(ours.position, ours.offset, ours.t_ns + 1, ours.session),
        Tail(Position(0, 3), ours.offset, ours.t_ns, ours.session),
    ):
        with pytest.raises(JournalGap, match="not the one sent from here"):
            await feed.open(other)
    await feed.close()


async def test_an_acknowledgement_of_the_future_is_refused() -> None:
    source, far = Source(), FarJournal()
    feed = make_feed(source)
    await feed.open(Tail())
    source.write(b"a")
    far.append(await feed.next())
    with pytest.raises(LinkProtocol, match="never sent"):
        await feed.acknowledge(Tail(Position(1, 9), 9, far.tails[-1].t_ns))
    await feed.close()


async def test_a_later_epoch_over_there_means_that_this_node_is_deposed() -> None:
    with pytest.raises(StaleEpoch):
        await make_feed(Source(), epoch=2).open(Tail(Position(3, 10), 10, 10, b"session"))


async def test_positions_go_on_and_time_never_goes_back_across_epochs() -> None:
    source, far_future = Source(), 1 << 62
    feed = make_feed(source, epoch=7)
    await feed.open(Tail(Position(6, 41), 0, far_future, None))
    source.write(b"a")
    run = await feed.next()
    assert (run.first, run.last, run.t_ns) == (Position(7, 42), Position(7, 43), far_future)
    assert feed.last == Position(7, 43)
    await feed.close()


async def test_a_large_read_becomes_several_runs_far_below_a_frame_s_limit() -> None:
    source = Source()
    feed = make_feed(source, window=1 << 30)
    await feed.open(Tail())
    source.write(*[bytes(3 << 20)] * 9)
    far = FarJournal()
    sizes: list[int] = []
    while len(far.payloads) < 9:
        run = await feed.next()
        far.append(run)
        sizes.append(len(run.data))
    assert max(sizes) < 8 << 20
    await feed.close()


async def test_closing_ends_the_reading_and_the_capture() -> None:
    source = Source()
    feed = make_feed(source)
    await feed.open(Tail())
    assert await next_or_none(feed) is not None
    assert await next_or_none(feed) is None
    await feed.close()
    tasks: set[Any] = asyncio.all_tasks() - {asyncio.current_task()}
    assert not tasks and source.closed == 1
