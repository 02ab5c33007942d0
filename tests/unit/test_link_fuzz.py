"""Hostile bytes: whatever comes, the receiver refuses or hangs up, and goes on receiving.

A receiver runs in a thread of its own; the tests speak to it with plain sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from link_cast import INSTALLATION, Backup, Source, make_sender, until

from castling.host import RealHost
from castling.journal.record import Draft, Flag, Position, RecordType
from castling.journal.segment import encode as encode_record
from castling.link.feed import CaptureFeed
from castling.link.frames import (
    HEADER_BYTES,
    FrameType,
    Hello,
    PingBody,
    Purpose,
    Refusal,
    batch_head,
    data_head,
    decode,
    decode_header,
    encode,
    encode_header,
)


class Running:
    """A backup whose receiver runs in a thread."""

    def __init__(self, folder: Path) -> None:
        self.backup = Backup(folder)
        self.address = ""
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        async with self.backup.running() as self.address:
            self._ready.set()
            await self._stop.wait()

    def __enter__(self) -> Running:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def say(self, data: bytes, *, stay_for: FrameType | None = None) -> list[tuple[FrameType, bytes]]:
        """Send `data` and then nothing more; every frame that is answered until the other side hangs up.

        `stay_for`: the line is held open until a frame of this type has come."""
        host, _, port = self.address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=8) as connection:
            with contextlib.suppress(OSError):  # it may hang up before it has read everything
                connection.sendall(data)
                if stay_for is None:
                    connection.shutdown(socket.SHUT_WR)
            answer = b""
            while stay_for is not None and stay_for not in dict(frames(answer)):
                answer += connection.recv(65536)
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionError):
                while piece := connection.recv(65536):  # a timeout fails the test: it must hang up
                    answer += piece
        return frames(answer)

    def works(self) -> None:
        """A rightful sender is still welcome and its changes are still taken."""
        source = Source()

        async def run() -> None:
            sender = make_sender(self.address, epoch=max(self.backup.journal.epoch, 1))
            welcome = await sender.connect()
            source.log = [b""] * welcome.tail.offset
            feed = CaptureFeed(RealHost(), source, epoch=self.backup.journal.epoch, window=1 << 20)
            await feed.open(welcome.tail)
            task = asyncio.create_task(sender.stream(feed))
            source.write(b"a change")
            await until(lambda: source.confirmed == welcome.tail.offset + 1, "the change")
            task.cancel()
            await asyncio.wait((task,))
            await feed.close()
            await sender.close()

        asyncio.run(run())


def frames(data: bytes) -> list[tuple[FrameType, bytes]]:
    found = []
    while len(data) >= HEADER_BYTES:
        type, length = decode_header(data[:HEADER_BYTES])
        found.append((type, data[HEADER_BYTES : HEADER_BYTES + length]))
        data = data[HEADER_BYTES + length :]
    return found


def refusal(answer: list[tuple[FrameType, bytes]]) -> Refusal | None:
    return next((decode(body, Refusal) for type, body in answer if type is FrameType.REFUSE), None)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Running(tmp_path_factory.mktemp("fuzz")) as running:
        yield running
        running.works()


def frame(type: FrameType, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return encode_header(type, len(body)) + body


def hello(purpose: Purpose, epoch: int = 1) -> bytes:
    body = Hello(
        magic="castling-link",
        version_min=1,
        version_max=1,
        installation=INSTALLATION,
        group="orders",
        node="east",
        epoch=epoch,
        purpose=purpose,
        journal_format=1,
    )
    return frame(FrameType.HELLO, encode(body))


def batch(seq: int, epoch: int = 1) -> bytes:
    draft = Draft(RecordType.SESSION, b"session", 0, Flag.KEYFRAME)
    data = encode_record(draft, Position(epoch, seq), 1 << 62)
    return frame(FrameType.BATCH, batch_head(epoch, seq, seq, data, 0), data)


def conversation(purpose: Purpose, seq: int, epoch: int) -> bytes:
    ping = frame(FrameType.PING, encode(PingBody(mono_ns=1, wall_ns=2)))
    if purpose is Purpose.RECORDS:
        return hello(purpose, epoch) + ping + batch(seq, epoch) + batch(seq + 1, epoch) + ping
    call = frame(FrameType.CALL, b"about") + frame(FrameType.DATA, data_head(b"body", 0), b"body")
    return hello(purpose, epoch) + call + frame(FrameType.END) + ping


many = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@many
@given(st.binary(max_size=400))
def test_any_bytes_are_answered_by_hanging_up(running: Running, data: bytes) -> None:
    for type, _ in running.say(data):
        assert type is FrameType.REFUSE


@many
@given(st.binary(max_size=200), st.sampled_from(list(Purpose)), st.sampled_from(list(FrameType)))
def test_any_frame_after_a_welcome_is_survived(
    running: Running, data: bytes, purpose: Purpose, type: FrameType
) -> None:
    body = data if type not in (FrameType.BYE, FrameType.END) else b""
    epoch = max(running.backup.journal.epoch, 1)
    running.say(hello(purpose, epoch) + frame(type, body) + data)


@many
@given(st.sampled_from(list(Purpose)), st.integers(0, 1 << 30))
def test_a_mutated_conversation_is_survived(running: Running, purpose: Purpose, seed: int) -> None:
    journal, luck = running.backup.journal, random.Random(seed)
    raw = bytearray(conversation(purpose, journal.tail.position.seq + 1, max(journal.epoch, 1)))
    for _ in range(luck.randint(1, 4)):
        at = luck.randrange(len(raw))
        luck.choice(
            (
                lambda at=at: raw.__setitem__(at, raw[at] ^ 1 << luck.randrange(8)),
                lambda at=at: raw.__delitem__(slice(at, at + luck.randint(1, 9))),
                lambda at=at: raw.__setitem__(slice(at, at), luck.randbytes(luck.randint(1, 9))),
                lambda at=at: raw.__setitem__(slice(at, at), raw[at : at + 40]),
            )
        )()
        if not raw:
            break
    running.say(bytes(raw))


def test_the_conversation_itself_is_fine(tmp_path: Path) -> None:
    """The control of the mutations: unmutated, everything in it is taken."""
    with Running(tmp_path) as running:
        answer = running.say(conversation(Purpose.RECORDS, 1, 1))
        assert refusal(answer) is None and answer[0][0] is FrameType.WELCOME
        assert running.backup.journal.tail.position == Position(1, 2)
        running.say(conversation(Purpose.BULK, 1, 1), stay_for=FrameType.RESULT)
        assert running.backup.calls == [(b"about", b"body")]
        running.works()


@pytest.mark.parametrize(
    ("after", "length"),
    [(None, 0xFFFFFFFF), (None, (64 << 10) + 1), (Purpose.RECORDS, (24 << 20) + 1), (Purpose.BULK, 1 << 30)],
)
def test_a_length_over_the_limit_is_refused_by_the_header_alone(
    running: Running, after: Purpose | None, length: int
) -> None:
    """No byte of the body is sent, so an answer means that the reader did not wait for it."""
    types = {None: FrameType.HELLO, Purpose.RECORDS: FrameType.BATCH, Purpose.BULK: FrameType.CALL}
    first = b"" if after is None else hello(after, max(running.backup.journal.epoch, 1))
    header = bytes((types[after], 0, 0, 0)) + length.to_bytes(4, "little")
    found = refusal(running.say(first + header))
    assert found is not None and found.code == "link-protocol" and "announces" in found.message


def test_before_the_welcome_nothing_but_hello_is_even_allocated(running: Running) -> None:
    header = bytes((FrameType.BATCH, 0, 0, 0)) + (20 << 20).to_bytes(4, "little")
    tracemalloc.start()
    try:
        found = refusal(running.say(header))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found is not None and "first frame" in found.message
    assert peak < 2 << 20


def test_damaged_records_under_a_right_sum_are_refused_by_the_journal(running: Running) -> None:
    journal = running.backup.journal
    epoch, seq = max(journal.epoch, 1), journal.tail.position.seq + 1
    draft = Draft(RecordType.DATA, b"payload", 0)
    good = encode_record(draft, Position(epoch, seq), 1 << 62)
    bad = good[:-1] + b"!"
    head = batch_head(epoch, seq, seq, bad, 0)
    found = refusal(running.say(hello(Purpose.RECORDS, epoch) + frame(FrameType.BATCH, head, bad)))
    assert found is not None and found.code == "journal-corrupt"
    gap = frame(FrameType.BATCH, batch_head(epoch, seq + 1, seq + 1, good, 0), good)
    found = refusal(running.say(hello(Purpose.RECORDS, epoch) + gap))
    assert found is not None and found.code == "journal-gap"
    assert journal.tail.position.seq == seq - 1
