"""What the slot keeps of the source's log is seen, who has it kept is named, lost log is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.real.pg_cast import Journal, Pair, captured, database_pair, until

from castling.errors import ContinuityLost, LogGivenUp
from castling.kinds.postgres import pins
from castling.kinds.postgres.kind import KIND
from castling.kinds.postgres.slot_watch import SlotWatch
from castling.testing.servers import EmbeddedServer

_GROW = "INSERT INTO t SELECT i, repeat('x', 900) FROM generate_series({0}, {0} + 4999) i"


async def _begun(pair: Pair) -> None:
    pair.source("CREATE TABLE t (id int PRIMARY KEY, v text)")
    seed = KIND.seed_source(pair.stream())
    await seed.begin()
    await seed.close()


def _warnings(capture: Any) -> dict[str, dict[str, Any]]:
    return {each["code"]: each for each in capture.report()["warnings"]}


async def test_a_forgotten_transaction_is_named_until_it_ends(
    west: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pins, "OLD_S", 0.5)
    monkeypatch.setattr(pins, "WORTH_BYTES", 1 << 20)
    monkeypatch.setattr(SlotWatch, "LOOK_S", 0.1)
    settings = {"max_prepared_transactions": "5"}
    with (
        EmbeddedServer(name="pins", settings=settings) as server,
        database_pair(server, west, tmp_path) as pair,
    ):
        await _begun(pair)
        journal = Journal()
        async with captured(pair.stream(), journal) as capture:
            await until(lambda: capture.report()["wal"]["retained_bytes"] is not None)
            pair.source(_GROW.format(0))
            with psycopg.connect(server.dsn(pair.name), application_name="forgetful") as session:
                session.execute("INSERT INTO t VALUES (-1, 'open')")
                pair.source("BEGIN; INSERT INTO t VALUES (-2, 'p'); PREPARE TRANSACTION 'left'")
                pair.source(_GROW.format(10_000))
                await journal.read_until(capture, pair.end_of_log())
                await capture.acknowledge(journal.offset)
                both = "prepared transaction 'left'"
                await until(lambda: both in _warnings(capture).get("wal-pinned", {}).get("message", ""))
                told = _warnings(capture)["wal-pinned"]["message"]
                assert f"process {session.info.backend_pid} " in told and "forgetful" in told
                assert capture.report()["wal"]["oldest_transaction_s"] > 0.5
            pair.source("ROLLBACK PREPARED 'left'")

            async def is_free() -> bool:
                """The slot moves on when the server has noted who is open, and has heard from us."""
                pair.source("CHECKPOINT")
                await journal.read_until(capture, pair.end_of_log())
                await capture.acknowledge(journal.offset)
                return "wal-pinned" not in _warnings(capture)

            await until(is_free)


async def test_a_source_that_is_away_is_not_known_to_keep_anything(
    east: EmbeddedServer, west: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SlotWatch, "LOOK_S", 0.1)
    with database_pair(east, west, tmp_path) as pair:
        await _begun(pair)
        async with captured(pair.stream()) as capture:
            await until(lambda: capture.report()["wal"]["retained_bytes"] is not None)
            east.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                f" WHERE application_name = 'castling log {pair.name}'"
            )
            await until(lambda: capture.report()["wal"]["retained_bytes"] is None)
            await until(lambda: capture.report()["wal"]["retained_bytes"] is not None)


async def test_an_idle_database_pins_no_log_of_the_others(
    west: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of ours is written but the heartbeat, and the slot moves on all the same."""
    monkeypatch.setattr(SlotWatch, "LOOK_S", 0.1)
    with EmbeddedServer(name="idle") as server, database_pair(server, west, tmp_path) as pair:
        await _begun(pair)
        journal = Journal()
        async with captured(pair.stream(), journal) as capture:
            for _ in range(4):
                server.execute("SELECT pg_logical_emit_message(false, 'other', repeat('x', 8 << 20))")
            await until(lambda: (capture.report()["wal"]["retained_bytes"] or 0) > 32 << 20)

            async def is_free() -> bool:
                server.execute("CHECKPOINT")
                await journal.read_until(capture, pair.end_of_log())
                await capture.acknowledge(journal.offset)
                return (capture.report()["wal"]["retained_bytes"] or 1 << 40) < 1 << 20

            await until(is_free)


async def test_a_slot_that_was_given_up_is_known_later_and_a_new_one_is_left_alone(
    west: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SlotWatch, "LOOK_S", 0.1)
    slots = "SELECT slot_name FROM pg_replication_slots"
    with EmbeddedServer(name="full") as server, database_pair(server, west, tmp_path) as pair:
        await _begun(pair)
        stream = pair.stream(wal_alarm=1 << 20, wal_limit=16 << 20, on_wal_limit="stop")
        first = KIND.capture(stream)
        await first.open(resume=0, session=None)  # a stream that is open is no obstacle
        for _ in range(3):
            server.execute("SELECT pg_logical_emit_message(false, 'other', repeat('x', 8 << 20))")
        with pytest.raises(LogGivenUp) as told:
            await first.guard()
        await first.close()
        assert told.value.context["earlier"] is False and not server.execute(slots)
        with pytest.raises(LogGivenUp) as told:  # the next process, which was not there
            await KIND.capture(stream).guard()
        assert told.value.context["earlier"] is True
        with pytest.raises(LogGivenUp):
            async with captured(stream):
                pass
        seed = KIND.seed_source(pair.stream())
        await seed.begin()
        await seed.close()
        async with captured(stream) as capture:
            await until(lambda: capture.report()["wal"]["retained_bytes"] is not None)
            assert len(server.execute(slots)) == 1


async def test_log_that_the_server_took_away_is_told(west: EmbeddedServer, tmp_path: Path) -> None:
    settings = {"max_slot_wal_keep_size": "1MB"}
    with (
        EmbeddedServer(name="short", settings=settings) as server,
        database_pair(server, west, tmp_path) as pair,
    ):
        await _begun(pair)
        for number in range(4):
            pair.source(_GROW.format(number * 5000))
            pair.source("SELECT pg_switch_wal()")
        pair.source("CHECKPOINT")
        assert pair.source("SELECT wal_status FROM pg_replication_slots") == [("lost",)]
        with pytest.raises(ContinuityLost):
            async with captured(pair.stream()):
                pass
