"""A backlog that comes in portions is applied in few target transactions; a little work at once."""

from __future__ import annotations

import asyncio

import pytest
from tests.sim.test_found import FOLDER, Place, replica_at, session_on

from castling.journal.reader import JournalReader
from castling.journal.record import Position
from castling.testing.sim.ledger import LedgerCapture

PORTIONS = 40


async def _follow(place: Place, many: int) -> tuple[int, float]:
    """Target transactions for a backlog that comes in portions, each 20 ms behind the last; and how long
    after the last of them everything was applied, seconds."""
    journal = place.open_journal()
    capture = LedgerCapture(place.host, place.ledger)
    await capture.open(resume=0, session=None)
    place.write(1)
    await place.ship(journal, capture)
    await journal.harden()
    reader = JournalReader(place.host, FOLDER)
    reader.seek(Position(journal.epoch, 1))
    replica = replica_at(place, reader.read(1)[0].offset)
    session = session_on(place, replica)
    session.MANY = many  # type: ignore[misc]
    applying = asyncio.ensure_future(session.run())
    bell = place.host.bell("/h")
    await asyncio.sleep(1)
    before = session.figures.commits
    for _ in range(PORTIONS):
        place.write(5)
        await place.ship(journal, capture)
        await journal.harden()
        bell.ring()
        await asyncio.sleep(0.02)
    last_s = place.loop.time()
    while replica.rows != place.ledger.rows:
        assert place.loop.time() < last_s + 10, "it did not follow"
        await asyncio.sleep(0.001)
    took_s = place.loop.time() - last_s
    applying.cancel()
    await asyncio.wait((applying,))
    journal.close()
    return session.figures.commits - before, took_s


@pytest.mark.parametrize("seed", range(5))
def test_a_backlog_is_gathered_and_its_end_does_not_wait(seed: int) -> None:
    place = Place(seed)

    async def story() -> None:
        commits, took_s = await _follow(place, many=4)
        assert commits <= PORTIONS / 4, f"{commits} target transactions"
        assert took_s < 0.5

    place.run(story())


def test_little_work_is_applied_as_it_comes() -> None:
    """The control: nothing of it is enough to be gathered."""
    place = Place()

    async def story() -> None:
        commits, _ = await _follow(place, many=1000)
        assert commits > PORTIONS / 2

    place.run(story())
