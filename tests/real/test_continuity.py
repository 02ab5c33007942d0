"""Capture goes on exactly where the journal ends, or not at all."""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from pg_cast import Journal, Pair, captured, database_pair, until

from castling.errors import ContinuityLost, SourceUnreachable
from castling.journal.record import Flag, RecordType
from castling.kinds.base import Stream
from castling.kinds.postgres.changes import Insert
from castling.kinds.postgres.kind import KIND
from castling.kinds.postgres.session import slot_name
from castling.testing.servers import EmbeddedServer

pytestmark = pytest.mark.real


@pytest.fixture
def pair(east: EmbeddedServer, west: EmbeddedServer, tmp_path: Path) -> Iterator[Pair]:
    with database_pair(east, west, tmp_path) as found:
        found.source("CREATE TABLE numbers (n int PRIMARY KEY, filler text)")
        yield found


@pytest.fixture
def lonely(tmp_path: Path) -> Iterator[Pair]:
    """A server of its own, for what would disturb others: being stopped, copied and set back."""
    with EmbeddedServer(name="lonely") as server, database_pair(server, server, tmp_path) as found:
        found.source("CREATE TABLE numbers (n int PRIMARY KEY, filler text)")
        yield found


async def begun(stream: Stream) -> None:
    """Slot and publication, as the first copy makes them."""
    seed = KIND.seed_source(stream)
    await seed.begin()
    await seed.close()


def numbers(journal: Journal, *, start: int = 0) -> list[int]:
    """The numbers that were inserted, in the order of their commits."""
    return [
        int(change.new.fields[0][4:])
        if change.new.text & 1
        else int.from_bytes(change.new.fields[0][4:], "big")
        for _, changes in journal.commits(start=start)
        for change in changes
        if isinstance(change, Insert)
    ]


def insert(pair: Pair, first: int, last: int, filler: str = "") -> None:
    pair.source(f"INSERT INTO numbers SELECT g, '{filler}' FROM generate_series({first}, {last}) g")


async def lost(stream: Stream, journal: Journal) -> ContinuityLost:
    """What opening and reading raises; within a few heartbeats."""
    capture = KIND.capture(stream)
    try:
        with pytest.raises(ContinuityLost) as raised:
            async with asyncio.timeout(60):
                await capture.open(resume=journal.offset, session=journal.session)
                while True:
                    journal.add(await capture.read())
        assert "reseed" in raised.value.hint
        return raised.value
    finally:
        await capture.close()


# --- going on ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2])
async def test_resumes_without_gap_or_repetition(pair: Pair, seed: int) -> None:
    chance = random.Random(seed)
    stream = pair.stream()
    await begun(stream)
    journal, done = Journal(), 0
    for _ in range(8):
        async with captured(stream, journal) as capture:
            for _ in range(chance.randint(1, 4)):
                rows = chance.choice([1, 3, 500, 10_000])
                insert(pair, done + 1, done + rows, "x" * 50)
                done += rows
                for _ in range(chance.randint(0, 3)):
                    async with asyncio.timeout(60):
                        journal.add(await capture.read())
                if chance.random() < 0.5:
                    await capture.acknowledge(journal.offset)
        # the link was cut before the last records were hardened
        keep = chance.randint(max(0, len(journal.records) - 3), len(journal.records))
        acknowledged = pair.source(
            f"SELECT (confirmed_flush_lsn - '0/0')::int8 FROM pg_replication_slots"
            f" WHERE slot_name = '{slot_name(stream.group, stream.backup)}'"
        )[0][0]
        while keep < len(journal.records) and (not keep or journal.records[keep - 1].offset < acknowledged):
            keep += 1
        del journal.records[keep:]
    async with captured(stream, journal) as capture:
        await journal.read_until(capture, pair.end_of_log())
    assert numbers(journal) == list(range(1, done + 1))


async def test_nothing_is_confirmed_beyond_what_was_acknowledged(pair: Pair) -> None:
    stream = pair.stream()
    await begun(stream)
    journal = Journal()
    async with captured(stream, journal) as capture:
        insert(pair, 1, 10)
        await journal.read_until(capture, pair.end_of_log())
        middle = journal.offset
        await capture.acknowledge(middle)
        insert(pair, 11, 20)
        await journal.read_until(capture, pair.end_of_log())
        confirmed = (
            "SELECT (confirmed_flush_lsn - '0/0')::int8 FROM pg_replication_slots"
            f" WHERE slot_name = '{slot_name(stream.group, stream.backup)}'"
        )
        await until(lambda: pair.source(confirmed)[0][0] == middle)
        for _ in range(3):  # idle reads, status updates among them
            journal.add(await capture.read())
        assert pair.source(confirmed)[0][0] == middle


async def test_an_idle_slot_moves_on(pair: Pair) -> None:
    stream = pair.stream()
    await begun(stream)
    journal = Journal()
    async with captured(stream, journal) as capture:
        pair.east.execute("CREATE TABLE elsewhere AS SELECT generate_series(1, 50000)")
        pair.east.execute("DROP TABLE elsewhere")
        end = pair.end_of_log()
        await journal.read_until(capture, end)
        await capture.acknowledge(journal.offset)
        await until(
            lambda: pair.source(
                f"SELECT (confirmed_flush_lsn - '0/0')::int8 >= {end} FROM pg_replication_slots"
                f" WHERE slot_name = '{slot_name(stream.group, stream.backup)}'"
            )[0][0]
        )


async def test_decoding_can_begin_at_any_keyframe(pair: Pair) -> None:
    stream = pair.stream()
    await begun(stream)
    journal = Journal()
    async with captured(stream, journal) as capture:
        for batch in range(20):
            insert(pair, batch * 3000 + 1, batch * 3000 + 3000, "y" * 900)
        await journal.read_until(capture, pair.end_of_log())
    whole = numbers(journal)
    assert whole == list(range(1, 60_001))
    keyframes = [
        index
        for index, record in enumerate(journal.records)
        if record.flags & Flag.KEYFRAME and record.type is RecordType.DATA
    ]
    assert len(keyframes) >= 2, "54 MB gave no keyframe in the middle"
    for index in keyframes:
        found = numbers(journal, start=index)
        assert found and found == whole[-len(found) :]


async def test_a_row_larger_than_a_batch_of_the_link_is_carried(pair: Pair) -> None:
    stream = pair.stream()
    await begun(stream)
    journal = Journal()
    async with captured(stream, journal) as capture:
        pair.source(
            "INSERT INTO numbers SELECT 1, string_agg(md5(g::text), '') FROM generate_series(1, 800000) g"
        )
        insert(pair, 2, 3)
        await journal.read_until(capture, pair.end_of_log())
    assert numbers(journal) == [1, 2, 3]
    assert max(len(record.payload) for record in journal.records) <= 8 << 20
    (big,) = [
        change.new.fields[1]
        for _, changes in journal.commits()
        for change in changes
        if isinstance(change, Insert) and len(change.new.fields[1]) > 100
    ]
    assert len(big) == 4 + 25_600_000


# --- not going on -----------------------------------------------------------------------------


async def _journal_of(pair: Pair, stream: Stream, rows: int = 100) -> Journal:
    """A journal with some of the stream, acknowledged up to its end."""
    await begun(stream)
    journal = Journal()
    async with captured(stream, journal) as capture:
        insert(pair, 1, rows)
        await journal.read_until(capture, pair.end_of_log())
        await capture.acknowledge(journal.offset)
    return journal


async def test_a_dropped_slot_is_noticed(pair: Pair) -> None:
    stream = pair.stream()
    journal = await _journal_of(pair, stream)
    await until(lambda: _dropped(pair, stream))
    assert "is gone" in str(await lost(stream, journal))


def _dropped(pair: Pair, stream: Stream) -> bool:
    name = slot_name(stream.group, stream.backup)
    if pair.source(f"SELECT FROM pg_replication_slots WHERE slot_name = '{name}' AND active"):
        return False
    pair.source(f"SELECT pg_drop_replication_slot('{name}')")
    return True


async def test_a_slot_made_anew_is_noticed(pair: Pair) -> None:
    stream = pair.stream()
    journal = await _journal_of(pair, stream)
    await until(lambda: _dropped(pair, stream))
    insert(pair, 101, 110)  # this is what would be lost
    pair.source(
        f"SELECT pg_create_logical_replication_slot('{slot_name(stream.group, stream.backup)}', 'pgoutput')"
    )
    assert "made anew" in str(await lost(stream, journal))


async def test_a_slot_that_somebody_advanced_is_noticed(pair: Pair) -> None:
    stream = pair.stream()
    journal = await _journal_of(pair, stream)
    insert(pair, 101, 110)
    name = slot_name(stream.group, stream.backup)
    await until(
        lambda: not pair.source(f"SELECT FROM pg_replication_slots WHERE slot_name = '{name}' AND active")
    )
    pair.source(f"SELECT pg_replication_slot_advance('{name}', pg_current_wal_lsn())")
    assert "advanced" in str(await lost(stream, journal))


async def test_an_emptied_journal_is_noticed(pair: Pair) -> None:
    stream = pair.stream()
    await _journal_of(pair, stream)
    assert "is empty" in str(await lost(stream, Journal()))


async def test_a_stream_begun_anew_is_not_the_old_journals(pair: Pair) -> None:
    stream = pair.stream()
    journal = await _journal_of(pair, stream)
    await begun(stream)
    await lost(stream, journal)


@pytest.mark.parametrize(
    "change",
    [
        "ALTER PUBLICATION {name} DROP TABLE numbers",
        "ALTER PUBLICATION {name} ADD TABLE later",
        "ALTER PUBLICATION {name} SET (publish = 'insert')",
        "ALTER PUBLICATION {name} SET TABLE numbers WHERE (n > 5), TABLE other",
        "DROP PUBLICATION {name}",
    ],
)
async def test_a_changed_publication_is_noticed(pair: Pair, change: str) -> None:
    pair.source("CREATE TABLE other (n int PRIMARY KEY)")
    stream = pair.stream()
    journal = await _journal_of(pair, stream)
    pair.source("CREATE TABLE later (n int PRIMARY KEY)")
    pair.source(change.format(name=slot_name(stream.group, stream.backup)))
    assert "publication" in str(await lost(stream, journal))


async def test_a_dropped_table_ends_nothing_and_a_new_one_is_told(pair: Pair) -> None:
    pair.source("CREATE TABLE other (n int PRIMARY KEY)")
    stream = pair.stream()
    journal = await _journal_of(pair, stream)
    pair.source("DROP TABLE other; CREATE TABLE newcomer (n int PRIMARY KEY)")
    insert(pair, 101, 110)
    async with captured(stream, journal) as capture:
        await journal.read_until(capture, pair.end_of_log())
        assert capture.report()["unprotected"] == ["public.newcomer"]
    assert numbers(journal) == list(range(1, 111))


async def test_another_server_is_noticed(pair: Pair) -> None:
    stream = pair.stream()
    journal = await _journal_of(pair, stream)
    elsewhere = Pair(pair.west, pair.west, pair.name, pair.password_file.parent)
    elsewhere.source("CREATE TABLE numbers (n int PRIMARY KEY, filler text)")
    await begun(elsewhere.stream())
    assert "another server" in str(await lost(elsewhere.stream(), journal))


def _copy(server: EmbeddedServer, to: Path) -> None:
    server.stop()
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(server.data, to, symlinks=True, copy_function=shutil.copy2)


def _set_back(server: EmbeddedServer, saved: Path) -> None:
    server.kill()
    owner = server.data.stat()
    shutil.rmtree(server.data)
    shutil.copytree(saved, server.data, symlinks=True)
    for path in (server.data, *server.data.rglob("*")):
        import os

        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
    (server.data / "postmaster.pid").unlink(missing_ok=True)


async def _restored(pair: Pair, tmp_path: Path) -> tuple[Stream, Journal]:
    """A journal that is ahead of its source, which was set back to an older copy of its files."""
    stream = pair.stream()
    journal = await _journal_of(pair, stream)
    saved = tmp_path / "saved"
    _copy(pair.east, saved)
    pair.east.start_again()
    async with captured(stream, journal) as capture:
        insert(pair, 101, 200)
        await journal.read_until(capture, pair.end_of_log())
        await capture.acknowledge(journal.offset)
    _set_back(pair.east, saved)
    return stream, journal


async def test_a_source_set_back_to_an_older_copy_is_noticed(lonely: Pair, tmp_path: Path) -> None:
    stream, journal = await _restored(lonely, tmp_path)
    lonely.east.start_again()
    assert "older state" in str(await lost(stream, journal))


async def test_a_source_set_back_that_has_gone_on_is_noticed(lonely: Pair, tmp_path: Path) -> None:
    """Its log has grown past the journal's end, so no position tells that it is another history."""
    stream, journal = await _restored(lonely, tmp_path)
    lonely.east.start_again()
    while lonely.end_of_log() <= journal.offset + 100_000:
        lonely.source("INSERT INTO numbers SELECT max(n) + 1, repeat('z', 900) FROM numbers")
    error = await lost(stream, journal)
    assert "no commit that ends at" in str(error)
    error = await lost(stream, journal)  # and again: finding it out has changed nothing
    assert "no commit that ends at" in str(error)


async def test_a_promoted_source_is_noticed(lonely: Pair) -> None:
    stream = lonely.stream()
    journal = await _journal_of(lonely, stream)
    lonely.east.stop()
    (lonely.east.data / "recovery.signal").touch()
    with (lonely.east.data / "postgresql.conf").open("a") as conf:
        conf.write("restore_command = 'false'\n")
    lonely.east.start_again()
    await until(lambda: not lonely.source("SELECT pg_is_in_recovery()")[0][0])
    assert "timeline" in str(await lost(stream, journal))


# --- the source goes away ---------------------------------------------------------------------


async def _read_for_ever(capture: Any, journal: Journal, *, acknowledge: bool) -> None:
    """Until it fails; then it lets go of the source, as the source end does."""
    try:
        while True:
            journal.add(await capture.read())
            if acknowledge:
                await capture.acknowledge(journal.offset)
    finally:
        await capture.close()


@pytest.mark.parametrize("acknowledge", [True, False])
async def test_a_source_that_shuts_down_is_not_kept_from_it(lonely: Pair, acknowledge: bool) -> None:
    stream = lonely.stream()
    await begun(stream)
    journal = Journal()
    async with captured(stream, journal) as capture:
        insert(lonely, 1, 100)
        reading = asyncio.create_task(_read_for_ever(capture, journal, acknowledge=acknowledge))
        await until(lambda: len(numbers(journal)) == 100)
        began = time.monotonic()
        await asyncio.to_thread(lonely.east.stop, signal.SIGINT)
        assert time.monotonic() - began < 20
        with pytest.raises(SourceUnreachable):
            await reading
    lonely.east.start_again()
    insert(lonely, 101, 110)
    async with captured(stream, journal) as capture:
        await journal.read_until(capture, lonely.end_of_log())
    assert numbers(journal) == list(range(1, 111))


async def test_a_source_that_only_looks_whether_we_are_there_does_not_shut_down(lonely: Pair) -> None:
    """With a short wal_sender_timeout it asks every other second, with nothing new between."""
    lonely.source("ALTER SYSTEM SET wal_sender_timeout = '5s'")
    lonely.source("SELECT pg_reload_conf()")
    stream = lonely.stream(heartbeat=3600.0)
    await begun(stream)
    journal = Journal()
    async with captured(stream, journal) as capture:
        reading = asyncio.create_task(_read_for_ever(capture, journal, acknowledge=False))
        done, _ = await asyncio.wait((reading,), timeout=12)
        assert not done, reading.exception()
        insert(lonely, 1, 10)
        await until(lambda: len(numbers(journal)) == 10)
        reading.cancel()
        await asyncio.wait((reading,))


async def test_a_source_that_crashes_is_gone_on_with(lonely: Pair) -> None:
    """After a crash the slot stands where it was last saved: what the journal holds is passed over."""
    stream = lonely.stream()
    await begun(stream)
    journal = Journal()
    async with captured(stream, journal) as capture:
        for batch in range(5):
            insert(lonely, batch * 100 + 1, batch * 100 + 100)
            await journal.read_until(capture, lonely.end_of_log())
            await capture.acknowledge(journal.offset)
        lonely.east.kill()
        with pytest.raises(SourceUnreachable):
            async with asyncio.timeout(60):
                while True:
                    journal.add(await capture.read())
    lonely.east.start_again()
    insert(lonely, 501, 600)
    async with captured(stream, journal) as capture:
        await journal.read_until(capture, lonely.end_of_log())
    assert numbers(journal) == list(range(1, 601))
