"""Sequences, purely: where the target's have to be by what the source says."""

from __future__ import annotations

import random

import msgspec
import pytest

from castling.errors import DecodeError
from castling.kinds.postgres.sequences import (
    Known,
    SequenceMessage,
    Standing,
    Told,
    ahead,
    decode_sequences,
    encode_sequences,
    moved,
    standing,
)


def _told(last: int, *, margin: int = 10, called: bool = True, **more: object) -> Told:
    fields: dict[str, object] = {"increment": 1, "min": 1, "max": 1000, "cycle": False, "file": 1, **more}
    return msgspec.convert(
        {"schema": "s", "name": "n", "last": last, "called": called, "margin": margin, **fields}, Told
    )


def _handed_out(told: Told, count: int) -> list[int]:
    """What `count` times nextval gives, by the plain rules; stops where the sequence ends."""
    found: list[int] = []
    last, called = told.last, told.called
    for _ in range(count):
        value = last + told.increment if called else last
        called = True
        if not told.min <= value <= told.max:
            if not told.cycle:
                break
            value = told.min if told.increment > 0 else told.max
        found.append(value)
        last = value
    return found


@pytest.mark.parametrize("seed", range(300))
def test_ahead_is_where_the_source_stands_after_its_margin(seed: int) -> None:
    chance = random.Random(seed)
    least = chance.randint(-50, 50)
    most = least + chance.randint(1, 60)
    told = _told(
        chance.randint(least, most),
        margin=chance.randint(0, 200),
        called=chance.random() < 0.8,
        increment=chance.choice([1, 1, -1, 2, 7, -5, 61]),
        min=least,
        max=most,
        cycle=chance.random() < 0.5,
    )
    # a sequence that was not called yet hands out its own value first: it does not count
    values = _handed_out(msgspec.structs.replace(told, called=True), told.margin)
    found = ahead(told)
    assert found.last == (values[-1] if values else told.last)
    assert found.called == told.called or told.cycle


def test_a_sequence_stays_ahead_of_the_biggest_value_there_is() -> None:
    most = (1 << 63) - 1
    assert ahead(_told(most - 3, min=1, max=most)) == Standing(most, True)
    assert ahead(_told(1 - most, min=-most - 1, max=-1, increment=-1)) == Standing(-most - 1, True)


def test_the_target_goes_forward_and_not_back() -> None:
    told = _told(100)
    assert standing(told, None, Standing(5, True)) == Standing(110, True)
    assert standing(told, None, None) == Standing(110, True)
    assert standing(told, None, Standing(110, True)) is None
    assert standing(told, Known(90, True, 1), Standing(500, True)) is None


def test_it_goes_back_where_the_source_did() -> None:
    assert standing(_told(1, called=False, file=2), Known(90, True, 1), Standing(100, True)) == Standing(
        11, False
    )
    assert standing(_told(50), Known(90, True, 1), Standing(100, True)) == Standing(60, True)
    assert standing(_told(50, called=False), Known(50, True, 1), Standing(60, True)) == Standing(60, False)
    descending = _told(-50, increment=-1, min=-1000, max=-1)
    assert standing(descending, Known(-90, True, 1), Standing(-100, True)) == Standing(-60, True)
    assert standing(descending, Known(-40, True, 1), Standing(-100, True)) is None


def test_one_that_cycles_follows_exactly() -> None:
    told = _told(995, cycle=True)
    assert standing(told, Known(990, True, 1), Standing(1000, True)) == Standing(5, True)


def test_only_what_moved_is_news_and_the_margin_follows_the_rate() -> None:
    first = moved(_told(100), None, margin=10, cache=1)
    assert first is not None
    assert first.margin == 10
    assert moved(_told(100), first, margin=10, cache=1) is None
    later = moved(_told(400), first, margin=10, cache=1)
    assert later is not None
    assert later.margin == 600
    cached = moved(_told(401), later, margin=10, cache=50)
    assert cached is not None
    assert cached.margin == 50
    restarted = moved(_told(1, called=False, file=2), later, margin=10, cache=1)
    assert restarted is not None
    assert restarted.margin == 10


def test_a_message_is_read_back_and_nonsense_is_refused() -> None:
    message = SequenceMessage(group="g", at_ns=5, sequences=[_told(5)])
    assert decode_sequences(encode_sequences(message)) == message
    for wrong in (
        b"",
        b"{}",
        b"\xff",
        encode_sequences(SequenceMessage(group="g", at_ns=5, sequences=[_told(5000)])),
        encode_sequences(SequenceMessage(group="g", at_ns=5, sequences=[_told(5, increment=0)])),
        encode_sequences(SequenceMessage(group="g", at_ns=5, sequences=[], v=2)),
    ):
        with pytest.raises(DecodeError):
            decode_sequences(wrong)
