"""What a journal takes and what it refuses; and a long random life of one, compared with a list."""

from __future__ import annotations

import random
import sys
import zlib
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from journal_cast import open_journal, places, read_all, record, run
from journal_host import MemoryHost

from castling.config import RetentionSettings
from castling.errors import JournalCorrupt, JournalGap, JournalVersion, StateError
from castling.journal.journal import Journal
from castling.journal.reader import JournalReader
from castling.journal.record import Draft, Flag, Position, RecordType, Tail
from castling.journal.segment import PAYLOAD_MAX, Damage, encode, parse_record

_DIR = "/journal"
_SEGMENT = 4096 + 1000


def _with(seq: int, *, epoch: int = 1, t_ns: int = 0) -> bytes:
    return encode(Draft(RecordType.DATA, b"x", seq), Position(epoch, seq), t_ns or 1000 + seq)


_REFUSED = {
    "a position left out": (_with(4), JournalGap),
    "a position again": (_with(2), JournalGap),
    "left out within the run": (_with(3) + _with(5), JournalGap),
    "swapped": (_with(4) + _with(3), JournalGap),
    "again within the run": (_with(3) + _with(3), JournalGap),
    "an epoch that was not raised": (_with(3, epoch=2), JournalGap),
    "time goes back": (_with(3, t_ns=1001), JournalCorrupt),
    "time goes back within the run": (_with(3, t_ns=5000) + _with(4, t_ns=4999), JournalCorrupt),
    "cut off": ((_with(3) + _with(4))[:-1], JournalCorrupt),
    "zeros behind": (_with(3) + bytes(64), JournalCorrupt),
    "zeros before": (bytes(64) + _with(3), JournalCorrupt),
    "something else": (b"GET / HTTP/1.1\r\n" * 10, JournalCorrupt),
}


@pytest.mark.parametrize("what", _REFUSED)
async def test_a_run_that_does_not_fit_is_refused_as_a_whole(what: str) -> None:
    bad, error = _REFUSED[what]
    host = MemoryHost()
    journal = open_journal(host, _DIR)
    journal.append(run(1, 2))
    tail = await journal.harden()
    before = host.files(_DIR)
    with pytest.raises(error):
        journal.append(bad)
    assert host.files(_DIR) == before and journal.tail == tail
    journal.append(_with(3) + _with(4))
    assert (await journal.harden()).position == Position(1, 4)


def test_a_record_that_claims_too_much_is_refused_before_anything_is_reserved() -> None:
    whole = bytearray(encode(Draft(RecordType.DATA, b"", 0), Position(1, 1), 1))
    whole[36:40] = (PAYLOAD_MAX + 1).to_bytes(4, "little")
    whole[56:60] = _crc(whole[:56])
    with pytest.raises(Damage, match="impossible length"):
        parse_record(bytes(whole), 0)
    whole[36:40] = PAYLOAD_MAX.to_bytes(4, "little")
    whole[56:60] = _crc(whole[:56])
    with pytest.raises(Damage, match="cut off"):
        parse_record(bytes(whole), 0)


def _crc(raw: bytes | bytearray) -> bytes:
    return zlib.crc32(raw).to_bytes(4, "little")


@pytest.mark.parametrize("field", [(4, 6), (4, 0), (5, 2), (0, 0x44)])
def test_a_type_or_flag_of_another_version_is_not_guessed(field: tuple[int, int]) -> None:
    at, value = field
    whole = bytearray(_with(1))
    whole[at] = value
    whole[56:60] = _crc(whole[:56])
    with pytest.raises(Damage, match="does not know"):
        parse_record(bytes(whole), 0)


async def test_nothing_is_a_run_too() -> None:
    journal = open_journal(MemoryHost(), _DIR)
    assert journal.append(b"") == Tail() == await journal.harden()


async def test_a_record_never_straddles_two_segments() -> None:
    host = MemoryHost()
    journal = open_journal(host, _DIR, segment_bytes=_SEGMENT)
    sizes = [100, 5000, 0, 900, 36, 37, 935, 936, 937, 1, 20_000]
    for seq, size in enumerate(sizes, start=1):
        journal.append(record(seq, size=size))
    await journal.harden()
    assert journal.bytes_appended == sum(size + 64 for size in sizes)
    for path, entries in places(host, _DIR):
        used = sum(sizes[each.seq - 1] + 64 for each in entries)
        assert used <= _SEGMENT - 4096 or len(entries) == 1, path
    assert [len(each.payload) for each in read_all(host, _DIR, Position(1, 1))] == sizes


async def test_another_groups_journal_and_another_format_are_refused() -> None:
    host = MemoryHost()
    open_journal(host, _DIR).close()
    files = host.files(_DIR)
    with pytest.raises(StateError):
        Journal.open(host, _DIR, group="other", segment_bytes=_SEGMENT)
    path = next(path for path in files if path.endswith(".seg"))
    newer = MemoryHost.of(_DIR, {**files, path: files[path][:8] + b"\x02" + files[path][9:]})
    with pytest.raises(JournalVersion):
        open_journal(newer, _DIR)
    with pytest.raises(JournalCorrupt):
        open_journal(MemoryHost.of(_DIR, {path: b"short"}), _DIR)


async def test_the_session_in_force_is_known_whatever_was_released() -> None:
    host = MemoryHost()
    journal = open_journal(host, _DIR, segment_bytes=_SEGMENT)
    token = Draft(RecordType.SESSION, b"token", 1, Flag.KEYFRAME)
    journal.append(encode(token, Position(1, 1), 1))
    for seq in range(2, 40):
        keyframe = Flag.KEYFRAME if seq == 30 else Flag.NONE
        journal.append(encode(Draft(RecordType.DATA, b"x" * 100, seq, keyframe), Position(1, seq), seq))
    await journal.harden()
    where = Position(1, 30)
    assert journal.release(where, keyframe=where, retention=RetentionSettings(size=0), now_ns=100)
    again = open_journal(host, _DIR, segment_bytes=_SEGMENT)
    assert again.tail == Tail(Position(1, 39), 39, 39, b"token")


class _Model:
    """A journal and the list that it should be."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.host = MemoryHost()
        self.segment_bytes = self.random.choice([4096 + 300, 9000, 50_000])
        self.journal = open_journal(self.host, _DIR, segment_bytes=self.segment_bytes)
        self.records: list[tuple[int, Draft]] = []
        self.hardened = 0
        self.first = 1

    def append(self) -> None:
        raw = b""
        for _ in range(self.random.randrange(1, 6)):
            seq = len(self.records) + 1
            session = self.random.random() < 0.1
            made = Draft(
                RecordType.SESSION if session else RecordType.DATA,
                self.random.randbytes(self.random.randrange(400)),
                seq * 10,
                Flag.KEYFRAME if session else Flag.NONE,
            )
            self.records.append((self.journal.epoch, made))
            raw += encode(made, Position(self.journal.epoch, seq), seq)
        self.journal.append(raw)

    async def harden(self) -> None:
        self.hardened = (await self.journal.harden()).position.seq
        assert self.hardened == len(self.records)

    def raise_epoch(self) -> None:
        self.journal.raise_epoch(self.journal.epoch + 1)
        self.hardened_at_least()

    def hardened_at_least(self) -> None:
        """A new segment is begun only after the one before it was synced."""
        assert self.journal.hardened.position.seq >= self.hardened

    def restart(self, *, power: bool) -> None:
        if power:
            self.host.sim._random = random.Random(self.random.random())
            self.host.sim.crash()
        epoch = self.journal.epoch
        self.journal = open_journal(self.host, _DIR, segment_bytes=self.segment_bytes)
        kept = self.journal.tail.position.seq
        assert self.journal.epoch == epoch
        assert kept >= self.hardened if power else kept == len(self.records)
        del self.records[kept:]
        self.hardened = kept
        sessions = [made.payload for _, made in self.records if made.type is RecordType.SESSION]
        assert self.journal.tail.session == (sessions[-1] if sessions else None)

    def release(self) -> None:
        applied = self.random.randint(0, self.hardened)
        keyframe = self.journal.keyframe_at_or_before(applied * 10)
        self.journal.release(
            Position(0, applied), keyframe=keyframe, retention=RetentionSettings(size=0), now_ns=0
        )
        if keyframe is not None:
            self.first = max(self.first, keyframe.seq)

    def compare(self) -> None:
        if self.hardened < self.first:
            return
        found = read_all(self.host, _DIR, Position(0, self.first), max_bytes=self.random.choice([1, 10**6]))
        assert [
            (each.position.epoch, each.type, each.flags, each.offset, each.payload) for each in found
        ] == [
            (epoch, made.type, made.flags, made.offset, made.payload)
            for epoch, made in self.records[self.first - 1 : self.hardened]
        ]
        offset = self.random.randint(self.first * 10, len(self.records) * 10)
        keyframes = [
            seq
            for seq, (_, made) in enumerate(self.records[: self.hardened], start=1)
            if made.flags and made.offset <= offset and seq >= self.first
        ]
        key = JournalReader(self.host, _DIR).keyframe_at_or_before(offset)
        if keyframes:
            assert key is not None and key.seq == keyframes[-1]


@pytest.mark.parametrize("seed", range(40))
async def test_a_random_life_is_that_of_a_list(seed: int) -> None:
    model = _Model(seed)
    for _ in range(60):
        fate = model.random.random()
        if fate < 0.5:
            model.append()
        elif fate < 0.8:
            await model.harden()
            model.compare()
        elif fate < 0.85:
            model.raise_epoch()
        elif fate < 0.9:
            model.restart(power=False)
        elif fate < 0.95:
            model.restart(power=True)
            model.compare()
        else:
            model.release()
    await model.harden()
    model.compare()


async def test_a_record_that_differs_from_the_list_would_be_noticed() -> None:
    model = _Model(1)
    model.append()
    await model.harden()
    epoch, made = model.records[-1]
    model.records[-1] = (epoch, Draft(made.type, made.payload + b"!", made.offset, made.flags))
    with pytest.raises(AssertionError):
        model.compare()
