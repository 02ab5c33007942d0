"""Random transactions, applied in random portions by sessions that end at random: the source's rows."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.real.apply_cast import Follower, random_limits
from tests.real.pg_cast import Pair, captured, database_pair

from castling.errors import TargetError
from castling.kinds.postgres.replication import ReplicationConnection
from castling.kinds.postgres.target import PostgresTarget
from castling.testing.servers import EmbeddedServer

_TABLES = """
    CREATE TABLE a (id int PRIMARY KEY, v text, n numeric, u int UNIQUE DEFERRABLE INITIALLY IMMEDIATE);
    CREATE TABLE b (x int, y text, PRIMARY KEY (x, y));
    CREATE TABLE k (x int, y text);
    CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, big text, other int, j jsonb,
                    arr int[], ts timestamptz);
    ALTER TABLE t ALTER big SET STORAGE EXTERNAL;
    CREATE TABLE u (id int PRIMARY KEY, val int UNIQUE);
    CREATE TABLE p (id int, part int, v text, PRIMARY KEY (part, id)) PARTITION BY LIST (part);
    CREATE TABLE p0 PARTITION OF p FOR VALUES IN (0);
    CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1, 2);
"""


@pytest.fixture
def pair(east: EmbeddedServer, west: EmbeddedServer, tmp_path: Path) -> Iterator[Pair]:
    with database_pair(east, west, tmp_path) as made:
        made.source(_TABLES)
        made.target(_TABLES)
        yield made


def _statement(chance: random.Random) -> tuple[str, tuple[object, ...]]:
    i, j = chance.randrange(20), chance.randrange(20)
    some_k = "ctid IN (SELECT ctid FROM k WHERE x = %s LIMIT 1)"
    return chance.choice(
        [
            (
                "INSERT INTO a VALUES (%s, %s, %s, %s)",
                (i, "v" * chance.randrange(40), chance.randrange(10) / 7, chance.randrange(1000)),
            ),
            ("UPDATE a SET v = %s WHERE id = %s", ("x" * i, i)),
            ("UPDATE a SET v = NULL, n = 'NaN' WHERE id = %s", (i,)),
            ("DELETE FROM a WHERE id = %s", (i,)),
            ("UPDATE a SET id = id + %s WHERE id = %s", (j, i)),
            ("INSERT INTO b VALUES (%s, %s)", (i, "k" * (i % 3))),
            ("UPDATE b SET y = y || 'z' WHERE x = %s", (i,)),
            ("DELETE FROM b WHERE x = %s", (i,)),
            ("INSERT INTO k VALUES (%s, %s)", (i % 4, "k" * (i % 2))),
            (f"DELETE FROM k WHERE {some_k}", (i % 4,)),
            (f"UPDATE k SET y = NULL WHERE {some_k}", (i % 4,)),
            (
                "INSERT INTO t (big, other, j, arr, ts)"
                " VALUES (repeat(%s, 5000), %s, '{\"a\": 1}', '{1, 2, NULL}', clock_timestamp())",
                (chance.choice("abc"), i),
            ),
            ("UPDATE t SET other = other + 1 WHERE id %% 20 = %s", (i,)),
            ("DELETE FROM t WHERE id %% 20 = %s", (i,)),
            ("UPDATE u SET val = val + 1", ()),
            ("INSERT INTO u VALUES (%s, %s)", (i, i * 10)),
            ("UPDATE u SET val = -val WHERE id = %s", (i,)),
            ("UPDATE u SET id = id + 100 WHERE id = %s", (i,)),
            ("INSERT INTO p VALUES (%s, %s, 'p')", (i, j % 3)),
            ("UPDATE p SET part = (part + 1) %% 3 WHERE id = %s", (i,)),
            ("DELETE FROM p WHERE id = %s", (i,)),
            *([("TRUNCATE k", ()), ("TRUNCATE p1", ()), ("TRUNCATE p", ())] if chance.random() < 0.1 else []),
        ]
    )


def _work(pair: Pair, chance: random.Random, transactions: int) -> int:
    """Random transactions; how many were committed."""
    done = 0
    with psycopg.connect(pair.east.dsn(pair.name)) as connection:
        for _ in range(transactions):
            try:
                for _ in range(chance.randrange(1, 8)):
                    connection.execute(*_statement(chance))
                connection.commit()
                done += 1
            except psycopg.errors.IntegrityError:
                connection.rollback()
    return done


@pytest.mark.parametrize("seed", range(8))
async def test_the_target_becomes_the_source(pair: Pair, seed: int) -> None:
    chance = random.Random(seed)
    follower = Follower(pair)
    await follower.begin()
    committed = 0
    for _ in range(3):
        committed += _work(pair, chance, 30)
        await follower.capture()
        how = {"limits": random_limits(chance), "piece_bytes": chance.choice([200, 3000, 1 << 20])}
        await follower.apply(**how, ended=lambda: chance.random() < 0.1)
        if chance.random() < 0.5:
            await follower.apply(**how)
            follower.assert_equal()
    await follower.apply()
    follower.assert_equal()
    assert committed > 20


async def test_the_comparison_would_see_one_change_left_out(pair: Pair) -> None:
    """The control: the same run with one record's last transaction missing."""
    follower = Follower(pair)
    await follower.begin()
    pair.source("INSERT INTO a VALUES (1, 'x', 1, 1)")
    await follower.follow()
    follower.assert_equal()
    pair.source("UPDATE a SET n = 2 WHERE id = 1")
    assert not follower.compared().equal
    await follower.follow()
    follower.assert_equal()


class _Told(PostgresTarget):
    """Writes into a table what it is told by messages, and how many rows it sees then."""

    async def open(self) -> int:
        self._handlers["castling:test"] = self._take
        return await super().open()

    async def _take(self, connection: psycopg.AsyncConnection[Any], content: bytes) -> None:
        await connection.execute(
            "INSERT INTO public.told SELECT %s, count(*) FROM public.k", (content.decode(),)
        )


async def test_a_message_comes_in_order_with_the_rows_around_it(pair: Pair) -> None:
    pair.target("CREATE TABLE told (content text, rows int)")
    follower = Follower(pair)
    await follower.begin()
    for sql in (
        "BEGIN; INSERT INTO k SELECT i, 'a' FROM generate_series(1, 20) i;"
        " SELECT pg_logical_emit_message(true, 'castling:test', 'first');"
        " INSERT INTO k SELECT i, 'b' FROM generate_series(1, 20) i;"
        " SELECT pg_logical_emit_message(true, 'castling:test', 'second'); DELETE FROM k; COMMIT",
        "BEGIN; SELECT pg_logical_emit_message(true, 'castling:test', 'undone'); ROLLBACK",
        "SELECT pg_logical_emit_message(false, 'castling:test', 'of no transaction')",
    ):
        pair.source(sql)
    stream = follower.stream
    await follower.follow(target=lambda: _Told(stream.group, stream.settings.databases["west"]))
    assert pair.target("SELECT * FROM told ORDER BY rows") == [("first", 20), ("second", 40)]
    await follower.apply()
    assert pair.target("SELECT count(*) FROM told") == [(2,)]


async def test_a_message_that_nobody_knows_is_not_passed_over(pair: Pair) -> None:
    follower = Follower(pair)
    await follower.begin()
    pair.source("SELECT pg_logical_emit_message(true, 'castling:of-tomorrow', 'x')")
    with pytest.raises(TargetError, match="castling:of-tomorrow"):
        await follower.follow()


async def test_an_encrypted_stream_goes_through_libpq(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its path, taken here without encryption, which the server at hand does not have."""
    monkeypatch.setattr(ReplicationConnection, "PAST_LIBPQ", False)
    chance = random.Random(3)
    follower = Follower(pair)
    await follower.begin()
    for _ in range(3):
        _work(pair, chance, 30)
        await follower.follow()
        follower.assert_equal()


@pytest.mark.parametrize("seed", range(3))
async def test_transactions_that_are_streamed_while_open_come_to_the_same(pair: Pair, seed: int) -> None:
    """The server streams every change as it is decoded, of transactions that overlap and undo parts."""
    pair.source(f"ALTER DATABASE {pair.name} SET debug_logical_replication_streaming = immediate")
    chance = random.Random(seed)
    follower = Follower(pair)
    await follower.begin()
    others = [psycopg.connect(pair.east.dsn(pair.name)) for _ in range(2)]
    try:
        for number in range(4):
            for at, other in enumerate(others):
                low = 1000 * (at + 1) + 100 * number
                other.execute(
                    f"INSERT INTO u SELECT i, i FROM generate_series({low}, {low + 20}) i;"
                    f" SAVEPOINT part; DELETE FROM u WHERE id > {low + 10}; ROLLBACK TO part;"
                    f" SAVEPOINT kept; UPDATE u SET val = -val WHERE id = {low}; RELEASE kept"
                )
            _work(pair, chance, 20)
            if number == 2:
                await follower.capture()  # one of the open transactions is seen in part, then anew
            others[0].rollback() if chance.random() < 0.3 else others[0].commit()
        others[1].commit()
    finally:
        for other in others:
            other.close()
    async with captured(follower.stream, follower.journal) as capture:
        await follower.journal.read_until(capture, pair.end_of_log())
        assert capture.report()["spool"]["committed"] > 0
    await follower.apply()
    follower.assert_equal()


async def _streamed(pair: Pair, **settings: Any) -> int:
    """How many transactions came while they were open, of one that takes some megabytes to decode."""
    follower = Follower(pair, **settings)
    await follower.begin()
    pair.source("INSERT INTO u SELECT i, i FROM generate_series(1, 20000) i")
    async with captured(follower.stream, follower.journal) as capture:
        await follower.journal.read_until(capture, pair.end_of_log())
        found = int(capture.report()["spool"]["committed"])
    await follower.apply()
    follower.assert_equal()
    return found


async def test_a_large_transaction_is_kept_by_the_server_in_the_memory_it_was_given(pair: Pair) -> None:
    assert await _streamed(pair, decoding_memory=64 << 20) == 0


async def test_one_beyond_that_memory_is_streamed(pair: Pair) -> None:
    assert await _streamed(pair, decoding_memory=1 << 20) == 1


async def test_memory_that_the_administrator_has_set_is_left_as_it_is(pair: Pair) -> None:
    pair.source(f"ALTER DATABASE {pair.name} SET logical_decoding_work_mem = '1MB'")
    assert await _streamed(pair) == 1
