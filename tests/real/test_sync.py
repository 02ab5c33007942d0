"""Synchronous delivery on a real server: a COMMIT returns when the backup holds it, and not before."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from tests.real.pg_cast import Journal, Pair, captured, database_pair, until

from castling.errors import SettingOverridden, SourceRefused
from castling.journal.record import Draft
from castling.kinds.base import Capture, Stream
from castling.kinds.postgres.forget import forget_stream
from castling.kinds.postgres.kind import KIND
from castling.kinds.postgres.standby import standby_names
from castling.testing.servers import EmbeddedServer


@pytest.fixture(scope="module")
def own_server() -> Iterator[EmbeddedServer]:
    """What is set here makes every commit of the server wait."""
    with EmbeddedServer(name="sync") as server:
        yield server


@pytest.fixture
def pair(own_server: EmbeddedServer, west: EmbeddedServer, tmp_path: Path) -> Iterator[Pair]:
    with database_pair(own_server, west, tmp_path) as found:
        found.source("CREATE TABLE numbers (n int PRIMARY KEY)")
        yield found


class Backup:
    """Reads what is captured; hardens and acknowledges it only while it is let."""

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self.journal = Journal()
        self.acknowledging = True
        self.early = False  #: the mistake: acknowledge first, harden some time

    async def run(self) -> None:
        late: list[Draft] = []
        while True:
            late += await self._capture.read()
            if self.early:
                await self._capture.acknowledge(late[-1].offset)
                continue
            self.journal.add(late)
            late = []
            if self.acknowledging:
                await self._capture.acknowledge(self.journal.offset)

    def state(self) -> str:
        return str(self._capture.report()["sync"]["state"])

    def warnings(self) -> list[dict[str, Any]]:
        return [each for each in self._capture.report()["warnings"] if each["code"] == "sync-troubled"]

    def holds(self, number: int) -> bool:
        """Whether a commit with this number is in what was read."""
        wanted = number.to_bytes(4, "big")
        return any(wanted in record.payload for record in self.journal.records)


@contextlib.asynccontextmanager
async def backup_of(stream: Stream) -> AsyncIterator[Backup]:
    seed = KIND.seed_source(stream)
    await seed.begin()
    await seed.close()
    async with captured(stream) as capture:
        backup = Backup(capture)
        running = asyncio.create_task(backup.run())
        try:
            await until(lambda: backup.state() == "protected")
            yield backup
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await KIND.release(stream, failed=False)


def _insert(pair: Pair, number: int) -> asyncio.Task[Any]:
    return asyncio.create_task(asyncio.to_thread(pair.source, f"INSERT INTO numbers VALUES ({number})"))


def _waiting(pair: Pair) -> bool:
    found = pair.east.execute("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
    return bool(found[0][0])


async def test_a_commit_returns_only_when_it_was_acknowledged(pair: Pair) -> None:
    async with backup_of(pair.stream(delivery="sync", on_sync_loss="wait")) as backup:
        await _insert(pair, 1000001)
        assert backup.holds(1000001), "the commit has returned, so the backup holds it"
        backup.acknowledging = False
        commit = _insert(pair, 1000002)
        await until(lambda: backup.holds(1000002))
        await until(lambda: _waiting(pair))
        await asyncio.sleep(1.0)  # several status updates and heartbeats go by
        assert not commit.done(), "read is not hardened"
        assert pair.source("SELECT count(*) FROM numbers WHERE n = 1000002") == [(0,)]
        backup.acknowledging = True
        await asyncio.wait_for(commit, 60)


async def test_a_commit_that_waits_with_a_lock_does_not_keep_its_stream_from_opening(pair: Pair) -> None:
    """A TRUNCATE holds its lock until the backup has it; a new source end must not wait for that lock."""
    stream = pair.stream(delivery="sync", on_sync_loss="wait")
    async with backup_of(stream) as backup:
        backup.acknowledging = False
        truncate = asyncio.create_task(asyncio.to_thread(pair.source, "TRUNCATE numbers"))
        await until(lambda: _waiting(pair))
        held = Journal()  # what the first one still reads until it is ended does not belong in it
        held.records = list(backup.journal.records)
        async with asyncio.timeout(60), captured(stream, held) as capture:
            again = Backup(capture)
            again.journal = held
            running = asyncio.create_task(again.run())
            await truncate
            running.cancel()
            await asyncio.wait((running,))


async def test_an_acknowledgement_before_hardening_would_be_noticed(pair: Pair) -> None:
    """The negative control: a backup that acknowledges what it does not hold lets the commit go too early."""
    async with backup_of(pair.stream(delivery="sync", on_sync_loss="wait")) as backup:
        backup.early = True
        await asyncio.wait_for(_insert(pair, 1000003), 60)
        assert not backup.holds(1000003)
        backup.early = False
        await _insert(pair, 1000004)
        assert backup.holds(1000003) and backup.holds(1000004)


async def test_waiting_means_waiting(pair: Pair) -> None:
    stream = pair.stream(delivery="sync", on_sync_loss="wait", degrade_after=0.5)
    async with backup_of(stream) as backup:
        backup.acknowledging = False
        commit = _insert(pair, 1)
        await until(lambda: _waiting(pair))
        await asyncio.sleep(2.0)  # four times the limit of the other choice
        assert not commit.done() and backup.state() == "protected"
        backup.acknowledging = True
        await asyncio.wait_for(commit, 60)


async def test_degrading_is_a_choice_and_is_told(pair: Pair) -> None:
    stream = pair.stream(delivery="sync", on_sync_loss="degrade", degrade_after=1.0)
    async with backup_of(stream) as backup:
        backup.acknowledging = False
        commit = _insert(pair, 1)
        await asyncio.wait_for(commit, 60)
        assert backup.state() == "degraded"
        assert pair.east.execute("SHOW synchronous_standby_names") == [("",)]
        await _insert(pair, 2)  # does not wait
        backup.acknowledging = True
        await until(lambda: backup.state() == "protected")


def _in_force(pair: Pair) -> str:
    return str(pair.east.execute("SHOW synchronous_standby_names")[0][0])


async def _hold(pair: Pair, stream: Stream) -> None:
    """What a source end that was killed leaves behind."""
    names = standby_names(stream.group, ["west"])
    pair.east.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
    pair.east.execute("SELECT pg_reload_conf()")
    await until(lambda: _in_force(pair) == names)


@contextlib.asynccontextmanager
async def guarding(stream: Stream) -> AsyncIterator[Capture]:
    """A source end that never reaches its backup."""
    capture = KIND.capture(stream)
    guard = asyncio.create_task(capture.guard())
    try:
        yield capture
    finally:
        guard.cancel()
        await asyncio.wait((guard,))


async def test_a_source_end_that_never_reaches_the_backup_degrades(pair: Pair) -> None:
    """It was killed, and starts again while the backup is away: no stream is opened, and commits wait."""
    stream = pair.stream(delivery="sync", on_sync_loss="degrade", degrade_after=1.0)
    await _hold(pair, stream)
    async with guarding(stream) as capture:
        await asyncio.wait_for(_insert(pair, 1), 60)
        await until(lambda: capture.report()["sync"]["state"] == "degraded")


async def test_a_setting_that_somebody_else_takes_away_is_noticed(pair: Pair) -> None:
    async with backup_of(pair.stream(delivery="sync", on_sync_loss="wait")) as backup:
        backup.acknowledging = False  # so that it is not set again before we look
        pair.east.execute("ALTER SYSTEM RESET synchronous_standby_names")
        pair.east.execute("SELECT pg_reload_conf()")
        await until(lambda: backup.state() == "catching-up")
        assert "somebody has set" in backup.warnings()[0]["message"]
        backup.acknowledging = True
        await until(lambda: backup.state() == "protected")
        assert backup.warnings() == []


class _Stubborn(EmbeddedServer):
    """What its command line says goes before ALTER SYSTEM."""

    def _command(self, program: str, *arguments: str) -> list[str]:
        more = ("-c", "synchronous_standby_names=") if program == "postgres" else ()
        return super()._command(program, *arguments, *more)


async def test_protected_is_what_the_server_does_and_not_what_was_set(
    west: EmbeddedServer, tmp_path: Path
) -> None:
    with _Stubborn(name="stubborn") as server, database_pair(server, west, tmp_path) as pair:
        pair.source("CREATE TABLE numbers (n int PRIMARY KEY)")
        stream = pair.stream(delivery="sync", on_sync_loss="wait")
        seed = KIND.seed_source(stream)
        await seed.begin()
        await seed.close()
        async with captured(stream) as capture:
            backup = Backup(capture)
            running = asyncio.create_task(backup.run())
            try:
                await until(lambda: bool(backup.warnings()))
                assert backup.state() == "catching-up"
                assert "stays ''" in backup.warnings()[0]["message"]
                assert "comes from the command line" in backup.warnings()[0]["hint"]
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)


async def test_stopping_on_purpose_lets_commits_go(pair: Pair) -> None:
    stream = pair.stream(delivery="sync", on_sync_loss="wait")
    async with backup_of(stream) as backup:
        backup.acknowledging = False
        commit = _insert(pair, 1)
        await until(lambda: _waiting(pair))
        assert not await KIND.release(stream, failed=True), "who chose to wait goes on waiting"
        assert _waiting(pair)
        assert await KIND.release(stream, failed=False)
        await asyncio.wait_for(commit, 60)
    assert pair.east.execute("SHOW synchronous_standby_names") == [("",)]


async def test_a_dead_capture_leaves_commits_waiting_and_forgetting_lets_them_go(pair: Pair) -> None:
    """What `wait` means when nobody is there any more, and the way out."""
    stream = pair.stream(delivery="sync", on_sync_loss="wait")
    async with backup_of(stream) as backup:
        await backup._capture.close()  # as if it had been killed: nothing was said to the source
        commit = _insert(pair, 1)
        await until(lambda: _waiting(pair))
        await asyncio.sleep(1.0)
        assert not commit.done()
        await forget_stream(stream)
        await asyncio.wait_for(commit, 60)


async def test_a_commit_cancelled_while_it_waits_is_committed_and_says_so(pair: Pair) -> None:
    """PostgreSQL's own hole in the promise, as docs/postgres.md describes it."""
    async with backup_of(pair.stream(delivery="sync", on_sync_loss="wait")) as backup:
        backup.acknowledging = False
        notices: list[str] = []

        def commit() -> None:
            with psycopg.connect(pair.east.dsn(pair.name), autocommit=True) as connection:
                connection.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
                connection.execute("INSERT INTO numbers VALUES (7)")

        committing = asyncio.create_task(asyncio.to_thread(commit))
        await until(lambda: _waiting(pair))
        pair.east.execute("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
        await asyncio.wait_for(committing, 60)
        assert any("canceling wait for synchronous replication" in text for text in notices)
        assert pair.source("SELECT n FROM numbers") == [(7,)]


async def test_a_commit_that_waits_for_a_write_waits_for_hardening_too(pair: Pair) -> None:
    async with backup_of(pair.stream(delivery="sync", on_sync_loss="wait")) as backup:
        backup.acknowledging = False
        insert = "SET synchronous_commit = remote_write; INSERT INTO numbers VALUES (1000008)"
        commit = asyncio.create_task(asyncio.to_thread(pair.source, insert))
        await until(lambda: backup.holds(1000008))
        await until(lambda: _waiting(pair))
        await asyncio.sleep(1.5)  # a status update goes by
        assert not commit.done()
        backup.acknowledging = True
        await asyncio.wait_for(commit, 60)


async def test_a_source_that_is_away_is_no_silence_of_the_backup(pair: Pair) -> None:
    """Nothing commits meanwhile; when it is back the backup has its whole time to come back too."""
    stream = pair.stream(delivery="sync", on_sync_loss="degrade", degrade_after=10.0)
    await _hold(pair, stream)
    async with guarding(stream) as capture:
        seen: list[float] = []

        def begun_anew() -> int:
            seen.append(capture.report()["sync"]["silent_s"])
            return sum(after < before for before, after in itertools.pairwise(seen))

        await until(lambda: capture.report()["sync"]["state"] == "protected")
        pair.east.stop()
        try:
            # whenever the source does not answer, the backup's time begins anew
            await until(lambda: begun_anew() >= 5)
            assert capture.report()["sync"]["state"] != "degraded"
        finally:
            pair.east.start()
        await until(lambda: capture.report()["sync"]["state"] == "degraded")


# --- what is left behind is taken away ---------------------------------------------------------------


async def test_what_an_earlier_synchronous_delivery_left_is_taken_away(pair: Pair) -> None:
    """Its last process was killed, then `async` was deployed: no commit may wait for it for ever."""
    await _hold(pair, pair.stream(delivery="sync", on_sync_loss="wait"))
    commit = _insert(pair, 1)
    await until(lambda: _waiting(pair))
    async with guarding(pair.stream(delivery="async")):
        await until(lambda: _in_force(pair) == "")
        await asyncio.wait_for(commit, 60)


async def test_stopping_a_group_that_was_synchronous_lets_go_too(pair: Pair) -> None:
    await _hold(pair, pair.stream(delivery="sync", on_sync_loss="wait"))
    assert await KIND.release(pair.stream(delivery="async"), failed=False)
    assert _in_force(pair) == ""


async def test_a_release_takes_away_what_is_written_and_not_yet_in_force(pair: Pair) -> None:
    """A reload that was never done would else come true with the server's next start."""
    stream = pair.stream(delivery="sync", on_sync_loss="wait")
    names = standby_names(stream.group, ["west"])
    pair.east.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
    assert await KIND.release(stream, failed=False)
    question = "SELECT setting FROM pg_file_settings WHERE name = 'synchronous_standby_names'"
    assert pair.east.execute(question) in ([], [("",)])


async def test_a_release_leaves_another_ones_setting_alone(pair: Pair) -> None:
    pair.east.execute("ALTER SYSTEM SET synchronous_standby_names = 'somebody'")
    pair.east.execute("SELECT pg_reload_conf()")
    await until(lambda: _in_force(pair) == "somebody")
    assert await KIND.release(pair.stream(delivery="sync", on_sync_loss="wait"), failed=False)
    assert _in_force(pair) == "somebody"


async def test_a_change_that_the_server_does_not_follow_is_not_taken_for_done(pair: Pair) -> None:
    """A mistake in the server's files: a reload changes nothing, and everything answers as if it did."""
    stream = pair.stream(delivery="sync", on_sync_loss="wait")
    await _hold(pair, stream)
    file = pair.east.data / "postgresql.conf"
    sound = file.read_text()
    file.write_text(sound + "\nno_such_setting = 1\n")
    try:
        with pytest.raises(SettingOverridden, match="stays 'ANY 1"):
            await KIND.release(stream, failed=False)
    finally:
        file.write_text(sound)
    assert await KIND.release(stream, failed=False) and _in_force(pair) == ""


async def test_a_user_who_may_not_release_is_told_so(pair: Pair) -> None:
    """A bare error of the driver would end the agent that asks."""
    stream = pair.stream(delivery="sync", on_sync_loss="wait")
    pair.east.execute(f"CREATE ROLE plain LOGIN PASSWORD '{EmbeddedServer.PASSWORD}'")
    await _hold(pair, stream)
    database = msgspec.structs.replace(stream.settings.databases["east"], user="plain")
    databases = {**stream.settings.databases, "east": database}
    settings = msgspec.structs.replace(stream.settings, databases=databases)
    with pytest.raises(SourceRefused, match="permission denied"):
        await KIND.release(dataclasses.replace(stream, settings=settings), failed=False)
    assert await KIND.release(stream, failed=False)
    pair.east.execute("DROP ROLE plain")


async def test_nobody_is_said_to_wait_where_nobody_does(pair: Pair) -> None:
    """A stream that failed before commits began to wait."""
    stream = pair.stream(delivery="sync", on_sync_loss="wait")
    assert await KIND.release(stream, failed=True)
    await _hold(pair, stream)
    assert not await KIND.release(stream, failed=True)


@pytest.mark.parametrize(("on_loss", "held"), [("wait", True), ("degrade", False)])
async def test_a_source_end_that_leaves_lets_go_only_by_choice(pair: Pair, on_loss: str, held: bool) -> None:
    stream = pair.stream(delivery="sync", on_sync_loss=on_loss)
    await _hold(pair, stream)
    await KIND.capture(stream).leave()
    assert (_in_force(pair) != "") is held
