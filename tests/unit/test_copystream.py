"""The replication stream's bytes, however they arrive, are the messages that were sent, in order."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.test_pgoutput import begin, commit, logical

from castling.errors import DecodeError
from castling.kinds.postgres.copystream import CopyStream, Keepalive
from castling.kinds.postgres.drafts import DraftMaker
from castling.kinds.postgres.messages import frames


def message(kind: bytes, body: bytes) -> bytes:
    return kind + (len(body) + 4).to_bytes(4, "big") + body


def change(body: bytes) -> bytes:
    return message(b"d", b"w" + bytes(24) + body)


def keepalive(wal_end: int, reply: bool) -> bytes:
    return message(b"d", b"k" + wal_end.to_bytes(8, "big") + bytes(8) + bytes([reply]))


STARTED = message(b"W", b"\0\0\0")
NOTICE = message(b"N", b"SNOTICE\0\0")


def fresh() -> DraftMaker:
    return DraftMaker(resume=0, begins=0, any_commit=True)


def portions(data: bytes, chance: random.Random) -> list[bytes]:
    found = []
    while data:
        size = chance.choice([1, 3, 7, 50, 1000, len(data)])
        found.append(data[:size])
        data = data[size:]
    return found


def taken(maker: DraftMaker) -> list[bytes]:
    return [said for draft in maker.ready() for said in frames(draft.payload)]


def read(stream: CopyStream, maker: DraftMaker, limit: int = 1 << 30) -> list[Keepalive]:
    """All that can be read now."""
    found = []
    while True:
        before = maker.bytes
        came = stream.pump(maker, limit)
        if came is not None:
            found.append(came)
        elif maker.bytes == before:
            return found


@given(
    st.lists(st.binary(min_size=1, max_size=300), max_size=30),
    st.randoms(use_true_random=False),
    st.integers(1, 500),
)
def test_what_was_sent_is_what_is_taken(bodies: list[bytes], chance: random.Random, limit: int) -> None:
    said = [begin(100), *(logical("x", body) for body in bodies), commit(100, 110)]
    sent = STARTED
    alive = []
    for one in said:
        if chance.random() < 0.3:
            alive.append(Keepalive(chance.randrange(1 << 60), chance.random() < 0.5))
            sent += keepalive(*alive[-1])
        if chance.random() < 0.1:
            sent += NOTICE
        sent += change(one)
    stream, maker, seen = CopyStream(), fresh(), []
    for portion in portions(sent, chance):
        stream.feed(portion)
        stream.begin()
        if stream.streaming:
            seen += read(stream, maker, limit)
    assert taken(maker) == said
    assert seen == alive


def test_a_keepalive_is_told_between_the_changes_around_it() -> None:
    stream, maker = CopyStream(), fresh()
    stream.feed(STARTED + change(begin(1)) + keepalive(7, True) + change(commit(1, 2)))
    stream.begin()
    assert stream.pump(maker, 1 << 20) == Keepalive(7, True)
    assert maker.in_transaction
    assert stream.pump(maker, 1 << 20) is None
    assert not maker.in_transaction


def test_a_large_message_in_very_many_portions_is_joined_once() -> None:
    stream, maker = CopyStream(), fresh()
    body = random.Random(1).randbytes(8_000_000)
    stream.feed(STARTED + change(begin(1)))
    stream.begin()
    read(stream, maker)
    sent = change(logical("x", body)) + change(commit(1, 2))
    for at in range(0, len(sent), 1000):
        stream.feed(sent[at : at + 1000])
        read(stream, maker, 100)
    assert not maker.in_transaction
    assert taken(maker)[1] == logical("x", body)


def test_a_refusal_is_told_and_the_next_command_may_come() -> None:
    stream = CopyStream()
    error = message(b"E", b"SERROR\0C55006\0Mslot is active\0\0") + message(b"Z", b"I")
    for byte in error:
        stream.feed(bytes([byte]))
        stream.begin()
    assert stream.refusal == ("55006", "slot is active")
    assert stream.ready and not stream.streaming


def test_an_error_in_the_stream_ends_it() -> None:
    stream, maker = CopyStream(), fresh()
    stream.feed(STARTED + message(b"E", b"C57P01\0Mgoing down\0\0"))
    stream.begin()
    assert stream.pump(maker, 100) is None
    assert stream.refusal == ("57P01", "going down")


@pytest.mark.parametrize(
    "garbled",
    [
        b"d\0\0\0\3",
        b"d\x7f\xff\xff\xff",
        message(b"d", b""),
        message(b"d", b"x" + bytes(40)),
        message(b"d", b"w" + bytes(24)),
        message(b"d", b"k" + bytes(4)),
        message(b"?", b"what"),
    ],
)
def test_what_no_server_sends_is_refused(garbled: bytes) -> None:
    stream = CopyStream()
    stream.feed(STARTED + garbled)
    stream.begin()
    with pytest.raises(DecodeError):
        stream.pump(fresh(), 1 << 20)


@given(st.binary(max_size=60))
def test_noise_is_a_decode_error_and_nothing_else(noise: bytes) -> None:
    stream = CopyStream()
    stream.feed(STARTED + noise)
    try:
        stream.begin()
        read(stream, fresh())
    except DecodeError:
        pass
