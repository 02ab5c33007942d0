"""A transaction that was streamed while it was open is told as if it had come whole."""

from __future__ import annotations

import errno
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.test_pgoutput import begin, commit, i32, i64

from castling.errors import DecodeError, SpoolFailed
from castling.kinds.postgres import drafts as drafts_module
from castling.kinds.postgres import spool as spool_module
from castling.kinds.postgres.drafts import DraftMaker
from castling.kinds.postgres.messages import frames
from castling.kinds.postgres.spool import Spool


def start(xid: int, *, first: bool = False) -> bytes:
    return b"S" + i32(xid) + bytes([first])


STOP = b"E"


def streamed(xid: int, content: bytes) -> bytes:
    return b"I" + i32(xid) + content


def whole(content: bytes) -> bytes:
    return b"I" + content


def stream_commit(xid: int, final: int, end: int) -> bytes:
    return b"c" + i32(xid) + b"\0" + i64(final) + i64(end) + i64(0)


def abort(xid: int, subxid: int) -> bytes:
    return b"A" + i32(xid) + i32(subxid)


def told(
    messages: list[bytes], *, portion: int = 1 << 20, chance: random.Random | None = None
) -> list[bytes]:
    """`chance`: more is taken while a transaction is being told."""
    maker = DraftMaker(resume=0, begins=0, any_commit=True)
    for message in messages:
        maker.take(message)
        while maker.is_unspooling and (chance is None or maker.is_full or chance.random() < 0.4):
            maker.unspool(portion)
    while maker.is_unspooling:
        maker.unspool(portion)
    assert maker.spool.transactions == 0 and maker.spool.in_memory == 0 and maker.spool.on_disk == 0
    return [said for draft in maker.ready() for said in frames(draft.payload)]


@given(st.randoms(use_true_random=False), st.integers(1, 400), st.sampled_from([200, 3000, 1 << 20]))
def test_interleaved_transactions_come_whole_in_the_order_of_their_commits(
    chance: random.Random, portion: int, memory: int
) -> None:
    was = spool_module.MEMORY
    spool_module.MEMORY = memory
    try:
        _check_history(chance, portion)
    finally:
        spool_module.MEMORY = was


def _check_history(chance: random.Random, portion: int) -> None:
    sent: list[bytes] = []
    expected: list[bytes] = []
    at, number = 100, 0
    #: by transaction: its changes with their subtransaction, and which of those were rolled back
    changes: dict[int, list[tuple[int, bytes]]] = {}
    gone: dict[int, set[int]] = {}
    for _ in range(chance.randrange(40)):
        what = chance.choice(["open", "more", "more", "more", "commit", "abort", "undo", "plain"])
        if what == "open":
            number += 10
            changes[number], gone[number] = [], set()
            sent += [start(number, first=True), STOP]
        elif what == "plain":
            plain = [begin(at), whole(b"plain"), commit(at, at + 5)]
            sent += plain
            expected += plain
            at += 10
        elif changes:
            xid = chance.choice(list(changes))
            kept = [sub for sub in range(xid, xid + 4) if sub not in gone[xid]]
            if what == "more":
                sent.append(start(xid))
                for _ in range(chance.randrange(6)):
                    changes[xid].append((chance.choice(kept), chance.randbytes(chance.randrange(200))))
                    sent.append(streamed(*changes[xid][-1]))
                sent.append(STOP)
            elif what == "undo" and len(kept) > 1:
                gone[xid].add(kept[-1])
                sent.append(abort(xid, kept[-1]))
            elif what == "abort":
                del changes[xid]
                sent.append(abort(xid, xid))
            elif what == "commit":
                expected.append(begin(at, xid=xid))
                expected += [whole(content) for sub, content in changes.pop(xid) if sub not in gone[xid]]
                expected.append(commit(at, at + 5))
                sent.append(stream_commit(xid, at, at + 5))
                at += 10
    sent += [abort(xid, xid) for xid in changes]
    assert told(sent, portion=portion) == expected
    assert told(sent, portion=portion, chance=chance) == expected


def test_what_is_too_large_for_memory_is_on_disk_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "MEMORY", 100_000)
    rows = [random.Random(i).randbytes(500) for i in range(4000)]
    maker = DraftMaker(resume=0, begins=0, any_commit=True)
    maker.take(start(7, first=True))
    for row in rows:
        maker.take(streamed(7, row))
    assert maker.spool.on_disk > 1_500_000 and maker.spool.in_memory <= 100_000
    maker.take(STOP)
    maker.take(stream_commit(7, 100, 105))
    portions = 0
    while maker.is_unspooling:
        maker.unspool(50_000)
        portions += 1
    said = [one for draft in maker.ready() for one in frames(draft.payload)]
    assert said == [begin(100, xid=7), *map(whole, rows), commit(100, 105)]
    assert portions > 20 and maker.spool.on_disk == 0


@pytest.mark.parametrize("sizes", [(10, 50, 10), (50,), (1, 1, 50, 50), (50, 1)])
def test_large_messages_among_small_ones_come_back(
    monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, ...]
) -> None:
    """Around the size of a block, where one message is a block of its own."""
    monkeypatch.setattr(spool_module, "MEMORY", 100)
    contents = [bytes([65 + n]) * (size * (1 << 20) // 20) for n, size in enumerate(sizes)]
    messages = [start(7, first=True), *(streamed(7, each) for each in contents), STOP]
    messages.append(stream_commit(7, 100, 110))
    maker = DraftMaker(resume=0, begins=0, any_commit=True)
    for message in messages:
        maker.take(message)
    assert maker.spool.on_disk > 1 << 20
    while maker.is_unspooling:
        maker.unspool(1 << 20)
    parts = b"".join(draft.payload for draft in maker.ready())
    assert list(frames(parts))[1:-1] == [whole(each) for each in contents]


def test_what_waits_behind_a_transaction_that_is_told_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafts_module, "BEHIND_BYTES", 10_000)
    maker = DraftMaker(resume=0, begins=0, any_commit=True)
    for message in (start(7, first=True), streamed(7, b"x"), STOP, stream_commit(7, 100, 105)):
        maker.take(message)
    taken = 0
    while not maker.is_full:
        for message in (begin(110 + taken), whole(b"y" * 1000), commit(110 + taken, 111 + taken)):
            maker.take(message)
        taken += 2
        assert taken < 100, "it is never full"
    while maker.is_unspooling:
        maker.unspool(3000)
    assert not maker.is_full and maker.resume == 109 + taken


def test_a_full_disk_is_an_error_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    monkeypatch.setattr(spool_module, "MEMORY", 10)
    spool = Spool()
    spool.start(start(1, first=True))
    with pytest.raises(SpoolFailed, match="No space left"):
        spool.add(streamed(1, b"x"))


def test_nothing_is_left_in_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(spool_module, "MEMORY", 10)
    spool = Spool(str(tmp_path))
    spool.start(start(1, first=True))
    spool.add(streamed(1, b"x" * 100))
    assert spool.on_disk and list(tmp_path.iterdir()) == []
    spool.close()
    assert not spool.on_disk


@pytest.mark.parametrize(
    "messages",
    [
        [stream_commit(5, 1, 2)],
        [start(5, first=True), STOP, b"c" + i32(5)],
        [b"S" + i32(5)],
        [b"A" + i32(5)],
    ],
)
def test_what_no_server_sends_is_refused(messages: list[bytes]) -> None:
    with pytest.raises(DecodeError):
        told(messages)
