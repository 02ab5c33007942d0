"""A promoted standby is gone on with where that is proven to lose nothing, and nowhere else."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tests.real.fault_cast import ACCOUNTS
from tests.real.pg_cast import Journal, Pair, captured, until
from tests.real.test_continuity import begun, insert, lost, numbers

from castling.kinds.base import Stream
from castling.kinds.postgres.check import check_stream
from castling.kinds.postgres.session import slot_name
from castling.testing.bank import Bank, create_bank, total_balance
from castling.testing.cluster import Cluster, wait_for
from castling.testing.compare import compare
from castling.testing.servers import EmbeddedServer

pytestmark = [pytest.mark.real, pytest.mark.timeout(240)]

#: the primary is not quick to end a standby that is only slow
_PATIENT = {"wal_sender_timeout": "'60s'"}


@contextlib.contextmanager
def _standby_of(server: EmbeddedServer, *, awaited: bool = True, **settings: str) -> Iterator[EmbeddedServer]:
    """`awaited`: the primary lets no failover slot get ahead of it."""
    standby = server.standby("second", **settings)
    try:
        standby.start()
        if awaited:
            server.execute("ALTER SYSTEM SET synchronized_standby_slots = 'second'")
            server.execute("SELECT pg_reload_conf()")
        yield standby
    finally:
        standby.remove()


def _both(stream: Stream, first: EmbeddedServer, second: EmbeddedServer) -> Stream:
    """The stream of a group that knows both addresses of its source."""
    settings = stream.settings
    host = f"127.0.0.1:{first.port},127.0.0.1:{second.port}"
    databases = {**settings.databases, "east": msgspec.structs.replace(settings.databases["east"], host=host)}
    return Stream(
        stream.group, stream.backup, msgspec.structs.replace(settings, databases=databases), stream.config
    )


def _is_in_step(primary: EmbeddedServer, standby: EmbeddedServer, slot: str) -> bool:
    """The standby has a lasting copy of the slot. The slot moves on when the server notes who is open."""
    primary.execute("CHECKPOINT")
    found = standby.execute(
        f"SELECT FROM pg_replication_slots WHERE slot_name = '{slot}' AND synced AND NOT temporary"
        " AND invalidation_reason IS NULL"
    )
    return bool(found)


def _promote(standby: EmbeddedServer) -> None:
    standby.execute("SELECT pg_promote(true, 60)")


@pytest.fixture
def primary() -> Iterator[EmbeddedServer]:
    with EmbeddedServer(name="first", settings=_PATIENT) as server:
        yield server


@pytest.fixture
def pair(primary: EmbeddedServer, west: EmbeddedServer, tmp_path: Path) -> Iterator[Pair]:
    """The primary dies in these tests, and goes with its folder."""
    name = f"db_{uuid.uuid4().hex[:8]}"
    for server in (primary, west):
        server.execute(f"CREATE DATABASE {name}")
    found = Pair(primary, west, name, tmp_path)
    found.source("CREATE TABLE numbers (n int PRIMARY KEY, filler text)")
    yield found
    west.execute(f"DROP DATABASE {name} WITH (FORCE)")


async def _in_step(pair: Pair, stream: Stream, standby: EmbeddedServer, journal: Journal) -> None:
    """Capture, acknowledge, until the standby keeps the slot."""
    name = slot_name(stream.group, stream.backup)
    async with captured(stream, journal) as capture:

        async def has_it() -> bool:
            await journal.read_until(capture, pair.end_of_log())
            await capture.acknowledge(journal.offset)
            return _is_in_step(pair.east, standby, name)

        await until(has_it, within_s=60)


async def test_the_stream_goes_on_with_a_promoted_standby(pair: Pair) -> None:
    await begun(pair.stream())
    journal = Journal()
    insert(pair, 1, 100)
    with _standby_of(pair.east) as standby:
        stream = _both(pair.stream(), pair.east, standby)
        await _in_step(pair, stream, standby, journal)
        (finding,) = [each for each in await check_stream(stream) if each.object.startswith("standby")]
        assert finding.code == "failover-ready", finding
        async with captured(stream, journal) as capture:
            insert(pair, 101, 200)
            await journal.read_until(capture, pair.end_of_log())  # not acknowledged: the slot stays behind
            assert numbers(journal) == list(range(1, 201))
        pair.east.kill()
        _promote(standby)
        promoted = Pair(standby, pair.west, pair.name, pair.password_file.parent)
        insert(promoted, 201, 300)
        async with captured(stream, journal) as capture:
            await journal.read_until(capture, promoted.end_of_log())
            await capture.acknowledge(journal.offset)
        assert numbers(journal) == list(range(1, 301))
        # the old primary comes back beside it, and is found first: it is not taken for the source
        pair.east.start_again()
        assert "old primary has come back" in str(await lost(stream, journal))
        pair.east.kill()
        insert(promoted, 301, 310)
        async with captured(stream, journal) as capture:
            await journal.read_until(capture, promoted.end_of_log())
        assert numbers(journal) == list(range(1, 311))


async def test_a_standby_that_lacks_what_the_journal_has_is_refused(pair: Pair) -> None:
    """The control: nothing holds the slot back for an asynchronous standby."""
    await begun(pair.stream())
    journal = Journal()
    insert(pair, 1, 100)
    with _standby_of(pair.east, awaited=False) as standby:
        stream = _both(pair.stream(), pair.east, standby)
        await _in_step(pair, stream, standby, journal)
        codes = {each.code for each in await check_stream(stream) if each.object.startswith("standby")}
        assert codes == {"standby-not-awaited"}
        standby.execute("ALTER SYSTEM SET primary_conninfo = ''")
        standby.execute("SELECT pg_reload_conf()")
        await until(lambda: not standby.execute("SELECT FROM pg_stat_wal_receiver"))
        async with captured(stream, journal) as capture:
            insert(pair, 101, 200)
            await journal.read_until(capture, pair.end_of_log())
        assert numbers(journal) == list(range(1, 201))
        pair.east.kill()
        _promote(standby)
        assert not standby.execute("SELECT FROM numbers WHERE n > 100", pair.name)
        error = await lost(stream, journal)
        assert "the backup has changes that the new primary never got" in str(error)
        # also when its log has long grown past the journal's end
        promoted = Pair(standby, pair.west, pair.name, pair.password_file.parent)
        while promoted.end_of_log() <= journal.offset + 100_000:
            insert(promoted, 1001, 1100, "z" * 900)
            promoted.source("DELETE FROM numbers WHERE n > 1000")
        assert "never got" in str(await lost(stream, journal))


async def test_a_standby_without_the_slot_is_refused(pair: Pair) -> None:
    await begun(pair.stream())
    journal = Journal()
    insert(pair, 1, 100)
    with _standby_of(pair.east, sync_replication_slots="off") as standby:
        stream = _both(pair.stream(), pair.east, standby)
        async with captured(stream, journal) as capture:
            await journal.read_until(capture, pair.end_of_log())
            await capture.acknowledge(journal.offset)
        codes = {each.code for each in await check_stream(stream) if each.object.startswith("standby")}
        assert codes == {"slots-not-synchronized"}
        end = pair.end_of_log()
        await until(
            lambda: standby.execute(f"SELECT pg_last_wal_replay_lsn() - '0/0' >= {end}")[0][0] is True
        )
        pair.east.kill()
        _promote(standby)
        assert "has no copy of the stream's slot" in str(await lost(stream, journal))
        # a slot of that name that somebody makes there is not the primary's
        name = slot_name(stream.group, stream.backup)
        standby.execute(
            f"SELECT pg_create_logical_replication_slot('{name}', 'pgoutput', failover => true)", pair.name
        )
        assert "not one that was kept in step" in str(await lost(stream, journal))


async def test_a_slot_of_before_is_made_a_failover_slot(pair: Pair) -> None:
    stream = pair.stream()
    await begun(stream)
    name = slot_name(stream.group, stream.backup)
    kept = f"SELECT failover FROM pg_replication_slots WHERE slot_name = '{name}'"
    assert pair.source(kept) == [(True,)]
    await until(lambda: not pair.source(f"{kept} AND active"))
    pair.source(f"SELECT pg_drop_replication_slot('{name}')")
    pair.source(f"SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')")
    pair.source(f"COMMENT ON PUBLICATION {name} IS ''")
    assert pair.source(kept) == [(False,)]
    async with captured(stream):
        assert pair.source(kept) == [(True,)]


# --- a whole group ----------------------------------------------------------------------------


class _TwoAddresses(Cluster):
    """The group knows both addresses of its source."""

    standby: EmbeddedServer

    def toml(self) -> str:
        east = self.servers["east"]
        self.standby = east.standby("second")
        one = f'host = "127.0.0.1"\nport = {east.port}'
        assert super().toml().count(one) == 1
        both = f'host = "127.0.0.1:{east.port},127.0.0.1:{self.standby.port}"\nport = {east.port}'
        return super().toml().replace(one, both)


@pytest.mark.faults
def test_a_group_goes_on_by_itself_when_its_source_fails_over() -> None:
    with _TwoAddresses(group={"heartbeat": 0.3}, server_settings=_PATIENT) as cluster:
        east, standby = cluster.servers["east"], cluster.standby
        try:
            standby.start()
            east.execute("ALTER SYSTEM SET synchronized_standby_slots = 'second'")
            east.execute("SELECT pg_reload_conf()")
            create_bank(cluster.dsn("east"), accounts=ACCOUNTS)
            bank = Bank(cluster.dsn("east"), accounts=ACCOUNTS, pause_s=0.01).start()
            cluster.start_group()
            cluster.wait_until_applied()
            wait_for(lambda: _is_in_step(east, standby, "castling_bank_west"), "the slot is kept in step")
            before = bank.transactions
            wait_for(lambda: bank.transactions > before + 200, "the bank writes")
            east.kill()
            bank.stop()
            _promote(standby)
            cluster.servers["east"] = standby
            standby.execute("UPDATE account SET owner = 'after' WHERE id <= 100", cluster.database)
            cluster.wait_until_applied()
            wait_for(cluster.is_running, "the group runs")
            found = compare(cluster.dsn("east"), cluster.dsn("west"))
            assert found.equal, found.differences
            assert total_balance(cluster.dsn("east")) == total_balance(cluster.dsn("west"))
        finally:
            cluster.servers["east"] = east
            standby.remove()
