"""Where bytes are worth more than processor time: a link that is far, slow or limited."""

from __future__ import annotations

import random

import pytest

from castling.link.codec import PLAIN, ZSTD, Packer
from castling.link.gauge import SLOW, Gauge

MIB = 1 << 20


def near() -> Gauge:
    gauge = Gauge(is_limited=False)
    gauge.trip(0.0005)
    return gauge


def test_a_near_link_is_not_scarce_and_an_unknown_far_or_limited_one_is() -> None:
    assert not near().is_scarce
    assert Gauge(is_limited=False).is_scarce, "nothing is known of it"
    far = Gauge(is_limited=False)
    far.trip(0.03)
    assert far.is_scarce
    limited = Gauge(is_limited=True)
    limited.trip(0.0005)
    assert limited.is_scarce


def test_the_quickest_trip_tells_how_far_it_is() -> None:
    gauge = Gauge(is_limited=False)
    for seconds in (0.3, 0.001, 0.2):  # answers wait for a busy process, never the other way round
        gauge.trip(seconds)
    assert not gauge.is_scarce


@pytest.mark.parametrize(("rate", "scarce"), [(SLOW // 2, True), (SLOW * 2, False)])
def test_a_near_link_that_is_slow_is_scarce_until_it_is_quick(rate: int, scarce: bool) -> None:
    gauge = near()
    for _ in range(20):
        gauge.sent(MIB, MIB / rate)
    assert gauge.is_scarce is scarce and gauge.rate == pytest.approx(rate)
    for _ in range(20):
        gauge.sent(MIB, MIB / (SLOW * 4))
    assert not gauge.is_scarce


def test_small_frames_say_nothing_about_the_rate() -> None:
    gauge = near()
    for _ in range(10_000):
        gauge.sent(2000, 1.0)
    assert gauge.rate is None and not gauge.is_scarce


def test_auto_compresses_where_the_link_is_scarce_and_a_level_always_does() -> None:
    text = b"the same words again and again " * 1000
    auto, always, never = Packer("auto"), Packer(1), Packer(0)
    assert auto.pack(text, is_scarce=False) == (PLAIN, text) and auto.tried_bytes == 0
    assert auto.pack(text, is_scarce=True)[0] == ZSTD
    assert always.pack(text, is_scarce=False)[0] == ZSTD
    assert never.pack(text, is_scarce=True)[0] == PLAIN


def test_a_link_that_becomes_scarce_is_not_held_up_by_noise_sent_before() -> None:
    packer, noise = Packer("auto"), random.Random(1)
    for _ in range(100):
        assert packer.pack(noise.randbytes(100_000), is_scarce=False)[0] == PLAIN
    assert packer.pack(b"text " * 20_000, is_scarce=True)[0] == ZSTD
