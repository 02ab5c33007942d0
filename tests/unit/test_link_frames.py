"""The bytes of the link: limits, damage, codecs, errors that travel. Every check has its control."""

from __future__ import annotations

import contextlib
import random

import msgspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from castling.errors import (
    CastlingError,
    JournalGap,
    LinkError,
    LinkProtocol,
    LinkRefused,
    SourceUnreachable,
    StaleEpoch,
)
from castling.link.codec import PLAIN, ZSTD, Packer, unpack
from castling.link.frames import (
    BATCH_MAX,
    CONTROL_MAX,
    HEADER_BYTES,
    AckBody,
    FrameType,
    Hello,
    PingBody,
    Refusal,
    WelcomeBody,
    batch_head,
    data_head,
    decode,
    decode_batch,
    decode_data,
    decode_header,
    encode,
    encode_header,
)


@given(st.sampled_from(list(FrameType)))
def test_a_header_comes_back(type: FrameType) -> None:
    assert decode_header(encode_header(type, 0)) == (type, 0)


@given(st.binary(min_size=HEADER_BYTES, max_size=HEADER_BYTES))
def test_any_header_is_within_limits_or_refused(data: bytes) -> None:
    try:
        _, length = decode_header(data)
    except LinkProtocol:
        return
    assert length <= BATCH_MAX


def test_a_length_over_the_limit_is_refused() -> None:
    fine = bytes((FrameType.HELLO, 0, 0, 0)) + CONTROL_MAX.to_bytes(4, "little")
    assert decode_header(fine) == (FrameType.HELLO, CONTROL_MAX)
    over = bytes((FrameType.HELLO, 0, 0, 0)) + (CONTROL_MAX + 1).to_bytes(4, "little")
    with pytest.raises(LinkProtocol, match="announces"):
        decode_header(over)


@pytest.mark.parametrize("at", [1, 2, 3])
def test_reserved_bytes_are_not_for_now(at: int) -> None:
    raw = bytearray(encode_header(FrameType.PING, 0))
    raw[at] = 1
    with pytest.raises(LinkProtocol):
        decode_header(bytes(raw))


@given(st.binary(max_size=200))
@pytest.mark.parametrize("type", [Hello, WelcomeBody, AckBody, PingBody, Refusal])
def test_a_control_body_is_understood_or_refused(type: type[msgspec.Struct], data: bytes) -> None:
    with contextlib.suppress(LinkProtocol):
        assert isinstance(decode(data, type), type)


def test_deep_nesting_and_odd_keys_are_refused_too() -> None:
    body = {"code": "x", "message": "m"}
    head = msgspec.msgpack.encode({**body, "context": {}})[:-1]
    assert decode(head + b"\x80", Refusal).code == "x"
    for context in (b"\x81\xa1a" + b"\x91" * 60_000 + b"\xc0", b"\x81\x93\x01\x02\x03\xc0", b"\x81\xa1a\xc1"):
        with pytest.raises(LinkProtocol):
            decode(head + context, Refusal)


def test_unknown_keys_are_ignored() -> None:
    raw = msgspec.msgpack.encode({"mono_ns": 1, "wall_ns": 2, "phase_of_moon": "full"})
    assert decode(raw, PingBody) == PingBody(mono_ns=1, wall_ns=2)


# --- batches ----------------------------------------------------------------------------------


def batch(data: bytes, codec: int = PLAIN) -> bytes:
    packed = zstandard.ZstdCompressor().compress(data) if codec == ZSTD else data
    return batch_head(3, 10, 12, data, codec) + packed


@given(st.binary(max_size=4000), st.sampled_from([PLAIN, ZSTD]))
def test_a_batch_comes_back(data: bytes, codec: int) -> None:
    found = decode_batch(batch(data, codec))
    assert (found.epoch, found.first, found.last, found.data) == (3, 10, 12, data)


@given(st.binary(min_size=1, max_size=300), st.sampled_from([PLAIN, ZSTD]), st.data())
def test_a_flipped_bit_never_changes_the_records(data: bytes, codec: int, draw: st.DataObject) -> None:
    """A flip is refused, or it hit the positions (which the journal checks) or bytes that mean nothing."""
    raw = bytearray(batch(data, codec))
    bit = draw.draw(st.integers(0, len(raw) * 8 - 1))
    raw[bit // 8] ^= 1 << bit % 8
    try:
        found = decode_batch(bytes(raw))
    except LinkProtocol:
        return
    assert found.data == data


def test_a_flip_in_the_records_is_what_the_sum_is_for() -> None:
    raw = bytearray(batch(b"records" * 100))
    raw[-1] ^= 1
    with pytest.raises(LinkProtocol, match="damaged on the way"):
        decode_batch(bytes(raw))


def test_nothing_is_allocated_for_a_frame_that_lies_about_its_size() -> None:
    bomb = zstandard.ZstdCompressor().compress(b"\0" * (64 << 20))
    assert len(bomb) < 10_000
    with pytest.raises(LinkProtocol):
        unpack(memoryview(bomb), ZSTD, 64 << 20, limit=BATCH_MAX)
    with pytest.raises(LinkProtocol, match="another size"):
        unpack(memoryview(bomb), ZSTD, 1000, limit=BATCH_MAX)


def test_bytes_behind_a_compressed_body_are_refused() -> None:
    with pytest.raises(LinkProtocol):
        decode_batch(batch(b"records" * 100, ZSTD) + b"more")


def test_bulk_data_comes_back_and_damage_is_noticed() -> None:
    chunk = bytes(range(256)) * 10
    assert decode_data(data_head(chunk, PLAIN) + chunk) == chunk
    with pytest.raises(LinkProtocol):
        decode_data(data_head(chunk, PLAIN) + chunk[:-1] + b"x")
    with pytest.raises(LinkProtocol):
        decode_data(data_head(chunk, PLAIN)[:-1])


# --- compression ------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=500), max_size=30), st.integers(0, 3))
def test_what_is_packed_comes_back(chunks: list[bytes], level: int) -> None:
    packer = Packer(level)
    for chunk in chunks:
        codec, packed = packer.pack(chunk)
        assert unpack(memoryview(packed), codec, len(chunk), limit=500) == chunk


def test_compression_is_skipped_where_it_does_not_pay_and_taken_up_again() -> None:
    noise, text = random.Random(1), b"the same words again and again " * 40_000
    packer = Packer(1)
    for _ in range(100):
        assert packer.pack(noise.randbytes(1 << 20))[0] == PLAIN
    assert packer.tried_bytes < 5 << 20, "100 MiB of noise were compressed in vain"
    sent = [packer.pack(text)[0] for _ in range(60)]
    assert ZSTD in sent and sent[-1] == ZSTD, "it was never tried again"
    eager = Packer(1)
    for _ in range(100):  # the control: what pays is always compressed
        assert eager.pack(text)[0] == ZSTD
    assert eager.tried_bytes == 100 * len(text)


def test_level_0_never_compresses() -> None:
    packer = Packer(0)
    assert packer.pack(b"a" * 100_000) == (PLAIN, b"a" * 100_000)
    assert packer.tried_bytes == 0


# --- errors that travel -----------------------------------------------------------------------


def test_an_error_arrives_as_its_own_class() -> None:
    sent = JournalGap("a batch begins at seq 9", hint="seed again", first=9, expected=7)
    found = decode(encode(Refusal.of(sent)), Refusal).as_error()
    assert type(found) is JournalGap and found.as_json() == sent.as_json()


@pytest.mark.parametrize("error", [StaleEpoch, SourceUnreachable, LinkRefused, LinkError])
def test_every_class_of_error_travels(error: type[CastlingError]) -> None:
    assert type(Refusal.of(error()).as_error()) is error


def test_an_unknown_code_is_still_an_error_that_says_whether_to_try_again() -> None:
    later = Refusal(code="moon-is-full", message="later", retryable=True).as_error()
    never = Refusal(code="moon-is-full", message="never").as_error()
    assert type(later) is LinkError and later.retryable
    assert type(never) is LinkRefused and not never.retryable


def test_what_an_error_brings_along_is_bounded() -> None:
    huge = StaleEpoch("x" * 100_000, hint="y" * 100_000, context_of_doubt="z" * 100_000)
    assert len(encode(Refusal.of(huge))) < CONTROL_MAX


def test_the_magic_of_a_context_can_not_break_the_error() -> None:
    refusal = Refusal(
        code="stale-epoch", message="m", context={"message": "other", "hint": 3, "self": 1, "a b": 1}
    )
    assert str(refusal.as_error()) == "m"
