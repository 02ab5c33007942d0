"""When commits begin to wait for the backup, and when they stop: the whole table."""

from __future__ import annotations

import itertools

import pytest

from castling.kinds.postgres.standby import standby_names
from castling.kinds.postgres.sync import SyncState, decide


def _decide(state: SyncState, *, caught_up: bool, silent_s: float, on_loss: str = "wait") -> SyncState:
    return decide(state, caught_up=caught_up, silent_s=silent_s, on_loss=on_loss, degrade_after_s=10.0)


@pytest.mark.parametrize(
    ("before", "caught_up", "silent_s", "on_loss", "after"),
    [
        (SyncState.OFF, True, 0.0, "degrade", SyncState.OFF),
        (SyncState.CATCHING_UP, False, 0.0, "wait", SyncState.CATCHING_UP),
        (SyncState.CATCHING_UP, True, 0.0, "wait", SyncState.PROTECTED),
        (SyncState.CATCHING_UP, True, 5.0, "wait", SyncState.CATCHING_UP),  # that was then
        (SyncState.PROTECTED, False, 0.0, "wait", SyncState.PROTECTED),
        (SyncState.PROTECTED, False, 1e6, "wait", SyncState.PROTECTED),  # for ever, as was chosen
        (SyncState.PROTECTED, True, 9.9, "degrade", SyncState.PROTECTED),
        (SyncState.PROTECTED, True, 10.1, "degrade", SyncState.DEGRADED),
        (SyncState.DEGRADED, False, 0.0, "degrade", SyncState.DEGRADED),
        (SyncState.DEGRADED, True, 0.1, "degrade", SyncState.PROTECTED),
    ],
)
def test_the_next_state(
    before: SyncState, caught_up: bool, silent_s: float, on_loss: str, after: SyncState
) -> None:
    assert _decide(before, caught_up=caught_up, silent_s=silent_s, on_loss=on_loss) is after


def test_who_chose_to_wait_is_never_degraded() -> None:
    for state, caught_up, silent_s in itertools.product(SyncState, (True, False), (0.0, 1.0, 1e9)):
        if state is not SyncState.DEGRADED:
            assert _decide(state, caught_up=caught_up, silent_s=silent_s) is not SyncState.DEGRADED


def test_any_one_of_the_backups_is_enough() -> None:
    assert standby_names("bank", ["west", "north"]) == 'ANY 1 ("castling_bank_west", "castling_bank_north")'
