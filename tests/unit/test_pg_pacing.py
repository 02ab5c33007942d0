"""Reads are immediate while little comes, and spaced further the more there was."""

from __future__ import annotations

from castling.kinds.postgres.pacing import FEW, FULL, LONGEST, MANY, SHORTEST, Pacing


def test_a_message_now_and_then_is_read_at_once() -> None:
    pacing = Pacing()
    for _ in range(20):
        pacing.gathered(500, 0.05)
        assert pacing.pause_s == 0.0 and not pacing.is_behind


def test_a_backlog_that_comes_in_single_messages_is_noticed() -> None:
    """One change at each look, because the reader is always there: that is what has to end."""
    pacing = Pacing()
    pacing.gathered(90, 0.0001)
    assert pacing.pause_s == SHORTEST


def test_a_stream_of_small_commits_is_gathered_for_a_moment() -> None:
    """Three hundred a second, read one by one, cost each end of the stream half as much again."""
    pacing = Pacing()
    for _ in range(20):
        pacing.gathered(400, 1 / 300)
    assert pacing.pause_s == SHORTEST


def test_pauses_grow_to_their_limit_and_shrink_again() -> None:
    pacing = Pacing()
    seen = []
    for _ in range(8):
        pacing.gathered(MANY + 1, 0.001)
        seen.append(pacing.pause_s)
    assert seen == sorted(seen) and seen[0] == SHORTEST and seen[-1] == LONGEST and pacing.is_behind
    for _ in range(8):
        pacing.gathered(FEW - 1, 0.001)
    assert pacing.pause_s == SHORTEST
    pacing.gathered(0, 0.02)
    assert pacing.pause_s == 0.0


def test_a_full_buffer_is_not_left_waiting() -> None:
    """The walsender stands still while it is full: wide rows come as fast as they can be read."""
    pacing = Pacing()
    for _ in range(8):
        pacing.gathered(MANY + 1, 0.001)
    seen = []
    for _ in range(8):
        pacing.gathered(FULL + 1, 0.001)
        assert pacing.is_behind
        seen.append(pacing.pause_s)
    assert seen == sorted(seen, reverse=True) and seen[-1] == 0.0
    pacing.gathered(MANY + 1, 0.001)
    assert pacing.pause_s == SHORTEST
