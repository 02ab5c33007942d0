"""Messages of large objects, purely."""

from __future__ import annotations

import random

import pytest

from castling.errors import DecodeError
from castling.kinds.postgres.large_objects import (
    PIECE_BYTES,
    All,
    Grant,
    Message,
    Piece,
    State,
    decode_large,
    encode_large,
    runs,
)

_STATE = State(group="g", at_ns=1, oid=7, content=b"c", owner="o", grants=[Grant("", "SELECT", False)])


@pytest.mark.parametrize(
    "message",
    [
        _STATE,
        Piece(group="g", oid=7, offset=1 << 40, data=b"d"),
        All(group="g", at_ns=1, first=0, last=9, oids=[7]),
    ],
)
def test_a_message_is_read_back(message: Message) -> None:
    assert decode_large(encode_large(message)) == message


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"\x01",
        b"\x02" + encode_large(_STATE)[1:],
        encode_large(_STATE)[:-1],
        encode_large(Piece(group="g", oid=-1, offset=0, data=b"")),
        encode_large(Piece(group="g", oid=1, offset=-1, data=b"")),
        encode_large(Piece(group="g", oid=1, offset=1 << 60, data=b"")),
        encode_large(All(group="g", at_ns=1, first=0, last=1 << 40, oids=[])),
        encode_large(
            State(group="g", at_ns=1, oid=7, content=b"", owner="o", grants=[Grant("r", "ALL; DROP", False)])
        ),
    ],
)
def test_what_can_not_be_is_refused(wrong: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_large(wrong)


@pytest.mark.parametrize("seed", range(30))
def test_runs_are_the_pages_without_the_holes(seed: int) -> None:
    chance = random.Random(seed)
    page_bytes = chance.choice([16, 2048])
    pages: list[tuple[int, bytes]] = []
    for number in range(chance.randint(0, 1200)):
        if chance.random() < 0.98:
            full = chance.random() < 0.99
            pages.append((number, chance.randbytes(page_bytes if full else chance.randint(0, page_bytes))))
    whole = bytearray(1201 * page_bytes)
    for number, data in pages:
        whole[number * page_bytes : number * page_bytes + len(data)] = data
    written = bytearray(1201 * page_bytes)
    for offset, data in runs(pages, page_bytes=page_bytes):
        assert len(data) <= PIECE_BYTES + page_bytes
        written[offset : offset + len(data)] = data
    assert written == whole
