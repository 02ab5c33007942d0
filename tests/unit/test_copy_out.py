"""The rows of a COPY, however its answer arrives, are the bytes that were sent, and its end is seen."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.test_copystream import NOTICE, message, portions

from castling.errors import DecodeError
from castling.kinds.postgres.copystream import CopyOut

BEGINS = message(b"H", b"\1\0\0")
ENDS = message(b"c", b"") + message(b"C", b"COPY 1\0") + message(b"Z", b"T")


@given(st.lists(st.binary(max_size=300), max_size=30), st.randoms(use_true_random=False))
def test_what_was_sent_is_what_is_taken(rows: list[bytes], chance: random.Random) -> None:
    sent = BEGINS + b"".join((NOTICE if chance.random() < 0.1 else b"") + message(b"d", row) for row in rows)
    answer = CopyOut()
    found = [answer.take(portion) for portion in portions(sent, chance)]
    assert not answer.ready, "the end has not come"
    found += [answer.take(portion) for portion in portions(ENDS, chance)]
    assert b"".join(found) == b"".join(rows)
    assert answer.ready
    assert answer.refusal is None


def test_a_row_is_handed_on_as_it_comes() -> None:
    """So that a large one need not be held whole."""
    answer = CopyOut()
    sent = BEGINS + message(b"d", b"x" * 1000)
    assert answer.take(sent[: len(BEGINS) + 5 + 600]) == b"x" * 600
    assert answer.take(sent[len(BEGINS) + 5 + 600 :]) == b"x" * 400


def test_an_error_in_the_middle_is_told_when_the_server_waits_again() -> None:
    answer = CopyOut()
    refusal = message(b"E", b"SERROR\0C57014\0Mcanceled\0\0")
    assert answer.take(BEGINS + message(b"d", b"row") + refusal) == b"row"
    assert not answer.ready
    answer.take(message(b"Z", b"E"))
    assert answer.ready
    assert answer.refusal is not None
    assert tuple(answer.refusal) == ("57014", "canceled")


@pytest.mark.parametrize(
    "sent",
    [
        message(b"d", b"row")[:1] + (3).to_bytes(4, "big") + b"row",
        message(b"w", b"what no COPY answers"),
        b"N" + (1 << 30).to_bytes(4, "big"),
    ],
)
def test_what_no_server_sends_is_refused(sent: bytes) -> None:
    with pytest.raises(DecodeError):
        CopyOut().take(BEGINS + sent)
