"""A fenced database takes no client's write, whatever the client is, says or had begun."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection

from castling.config import DatabaseSettings, GroupSettings
from castling.errors import NotFenced
from castling.kinds.postgres.connect import connect
from castling.kinds.postgres.fence import fence, lift, read_fence, remove_guard
from castling.testing.cluster import wait_for
from castling.testing.servers import EmbeddedServer

SCHEMA = """
    CREATE TABLE plain (id int PRIMARY KEY, v text);
    CREATE TABLE parted (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
    CREATE TABLE part_1 PARTITION OF parted FOR VALUES FROM (0) TO (1000);
    CREATE TABLE parent (id int PRIMARY KEY);
    CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent ON DELETE CASCADE);
    CREATE TABLE "Odd ""Name" (id int PRIMARY KEY);
    INSERT INTO plain VALUES (0, 'there'); INSERT INTO parted VALUES (0, 'there');
    INSERT INTO parent VALUES (1); INSERT INTO child VALUES (1, 1);
    CREATE ROLE app LOGIN PASSWORD 'app';
    GRANT ALL ON ALL TABLES IN SCHEMA public TO app; GRANT CREATE ON SCHEMA public TO app;
"""
NAME = "fenced"


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer(name="fenced", settings={"max_prepared_transactions": "4"}) as server:
        server.execute(f"CREATE DATABASE {NAME}")
        server.execute(SCHEMA, NAME)
        yield server


def database(server: EmbeddedServer) -> DatabaseSettings:
    return DatabaseSettings(host="127.0.0.1", port=server.port, dbname=NAME, user=EmbeddedServer.USER)


def group(server: EmbeddedServer) -> GroupSettings:
    return GroupSettings(
        kind="postgres", primary="east", backups=["west"], databases={"east": database(server)}
    )


@pytest.fixture(autouse=True)
def password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", EmbeddedServer.PASSWORD)


def up(server: EmbeddedServer, *, epoch: int = 2, grace_s: float = 1.0) -> dict[str, Any]:
    return asyncio.run(
        fence("g", group(server), database(server), epoch=epoch, primary="west", grace_s=grace_s)
    )


def down(server: EmbeddedServer) -> None:
    asyncio.run(lift("g", database(server)))


def client(server: EmbeddedServer, *, user: str = "app", **more: Any) -> psycopg.Connection[Any]:
    password = "app" if user == "app" else EmbeddedServer.PASSWORD
    return psycopg.connect(
        host="127.0.0.1", port=server.port, dbname=NAME, user=user, password=password, **more
    )


def copy_in(connection: psycopg.Connection[Any]) -> None:
    with connection.cursor() as cursor, cursor.copy("COPY plain FROM STDIN") as copy:
        copy.write_row((77, "copied"))


WRITES: dict[str, Callable[[psycopg.Connection[Any]], object]] = {
    "insert": lambda c: c.execute("INSERT INTO plain VALUES (77, 'x')"),
    "update": lambda c: c.execute("UPDATE plain SET v = 'changed'"),
    "delete": lambda c: c.execute("DELETE FROM plain"),
    "truncate": lambda c: c.execute("TRUNCATE plain"),
    "copy": copy_in,
    "merge of nothing": lambda c: c.execute("INSERT INTO plain SELECT 1, 'x' WHERE false"),
    "a cascade": lambda c: c.execute("DELETE FROM parent"),
    "through the root": lambda c: c.execute("INSERT INTO parted VALUES (5, 'x')"),
    "into the partition": lambda c: c.execute("INSERT INTO part_1 VALUES (5, 'x')"),
    "an odd name": lambda c: c.execute('INSERT INTO "Odd ""Name" VALUES (5)'),
    "a schema change": lambda c: c.execute("CREATE TABLE made (id int)"),
    "in a block": lambda c: c.execute("DO $$ BEGIN INSERT INTO plain VALUES (77, 'x'); END $$"),
}


@pytest.mark.parametrize("user", ["app", EmbeddedServer.USER])
def test_no_kind_of_write_passes_the_guard_not_even_a_superusers(server: EmbeddedServer, user: str) -> None:
    for what, write in WRITES.items():  # negative control: without the guard each is a write
        with client(server, user=user) as connection:
            write(connection)
            connection.rollback()
            assert what
    up(server)
    try:
        for write in WRITES.values():
            with client(server, user=user) as connection:
                connection.execute("SET TRANSACTION READ WRITE")
                with pytest.raises(psycopg.Error) as refused:
                    write(connection)
                assert refused.value.sqlstate == "25006"
                connection.rollback()
        if user != "app":
            with client(server, user=user) as connection:
                connection.execute("SET session_replication_role = replica; SET TRANSACTION READ WRITE")
                with pytest.raises(
                    psycopg.errors.ReadOnlySqlTransaction, match="group g is fenced in epoch 2"
                ):
                    connection.execute("INSERT INTO plain VALUES (77, 'x')")
                connection.rollback()
        with client(server, user="app") as connection:  # saying so is not enough to be Castling
            connection.execute("SET castling.session = on; SET TRANSACTION READ WRITE")
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                connection.execute("INSERT INTO plain VALUES (77, 'x')")
            connection.rollback()
        assert server.execute("SELECT count(*) FROM plain", NAME)[0][0] == 1
    finally:
        down(server)


def test_sessions_opened_before_are_refused_and_ended_and_new_ones_begin_read_only(
    server: EmbeddedServer,
) -> None:
    before = client(server, user=EmbeddedServer.USER, application_name="old session")
    before.execute("SELECT 1")
    before.commit()
    try:
        told = up(server)
        assert told["ended"] >= 1 and any("old session" in each for each in told["superusers"])
        with pytest.raises(psycopg.OperationalError):
            before.execute("INSERT INTO plain VALUES (78, 'x')")
        with client(server) as connection:
            shown = connection.execute("SHOW default_transaction_read_only").fetchone()
            assert shown == ("on",)
        dsn = f"host=127.0.0.1 port={server.port} dbname={NAME} user=app password=app"
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(dsn, target_session_attrs="read-write")
    finally:
        down(server)
    with client(server, target_session_attrs="read-write") as connection:
        connection.execute("INSERT INTO plain VALUES (79, 'x')")
        connection.rollback()


def test_a_long_transaction_commits_within_the_grace_and_is_ended_after_it(server: EmbeddedServer) -> None:
    quick = client(server)
    quick.execute("INSERT INTO plain VALUES (100, 'quick')")
    done: dict[str, Any] = {}
    fencing = threading.Thread(target=lambda: done.update(up(server, grace_s=60)))
    fencing.start()
    time.sleep(1.0)
    assert not done, "the fence did not wait for a writer"
    quick.commit()
    fencing.join(30)
    try:
        assert done["fenced"]
        assert server.execute("SELECT count(*) FROM plain WHERE id = 100", NAME)[0][0] == 1
    finally:
        down(server)
    slow = client(server)
    slow.execute("INSERT INTO plain VALUES (101, 'slow')")
    try:
        assert up(server, grace_s=0.2)["fenced"]
        with pytest.raises(psycopg.OperationalError):
            slow.commit()
        assert server.execute("SELECT count(*) FROM plain WHERE id = 101", NAME)[0][0] == 0
    finally:
        down(server)


def test_a_snapshot_from_before_is_no_way_around_it(server: EmbeddedServer) -> None:
    """Not even where an earlier guard was lifted and its triggers are still there."""
    up(server)
    down(server)
    old = client(server, user=EmbeddedServer.USER, application_name="castling pretender")
    old.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    old.execute("SELECT count(*) FROM pg_class")  # its snapshot; it holds no table of the group
    try:
        up(server)
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            old.execute("INSERT INTO plain VALUES (102, 'old')")
        old.rollback()
    finally:
        down(server)


def test_a_prepared_transaction_keeps_it_from_being_fenced_and_is_named(server: EmbeddedServer) -> None:
    with client(server) as connection:
        connection.execute("INSERT INTO plain VALUES (103, 'prepared')")
        connection.execute("PREPARE TRANSACTION 'half-way'")
    import castling.kinds.postgres.fence as module

    module._GONE_S, kept = 1.0, module._GONE_S
    try:
        with pytest.raises(NotFenced, match="half-way"):
            up(server, grace_s=0.1)
        with client(server) as connection:  # and everything is as before
            assert connection.execute("SHOW default_transaction_read_only").fetchone() == ("off",)
            connection.execute("INSERT INTO part_1 VALUES (6, 'x')")
            connection.rollback()
    finally:
        module._GONE_S = kept
        server.execute("ROLLBACK PREPARED 'half-way'", NAME)


def test_castling_passes_and_what_stands_is_told_and_taken_away(server: EmbeddedServer) -> None:
    async def look() -> None:
        connection: AsyncConnection[Any] = await connect(database(server), application_name="castling test")
        try:
            assert not (await read_fence(connection, "g", group(server))).is_up
            await fence("g", group(server), database(server), epoch=5, primary="west", grace_s=1)
            found = await read_fence(connection, "g", group(server))
            assert found.is_up and found.epoch == 5
            await connection.execute("INSERT INTO plain VALUES (200, 'applied')")
            await connection.execute("CREATE TABLE public.later (id int)")
            assert (await read_fence(connection, "g", group(server))).missing == ("public.later",)
            await fence("g", group(server), database(server), epoch=5, primary="west", grace_s=1)
            assert (await read_fence(connection, "g", group(server))).is_up
            await lift("g", database(server))
            assert await remove_guard(connection, "g")
            cursor = await connection.execute("SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'castling%'")
            assert await cursor.fetchone() == (0,)
            cursor = await connection.execute("SELECT count(*) FROM pg_event_trigger")
            assert await cursor.fetchone() == (0,)
        finally:
            await connection.close()

    asyncio.run(look())


def test_under_load_every_acknowledged_write_is_before_the_fence(server: EmbeddedServer) -> None:
    server.execute("CREATE TABLE public.load (client int, n int, PRIMARY KEY (client, n))", NAME)
    server.execute("GRANT ALL ON public.load TO app", NAME)
    acknowledged: set[tuple[int, int]] = set()
    stop = threading.Event()

    def write(number: int) -> None:
        n = 0
        while not stop.is_set():
            try:
                with client(server) as connection:
                    while not stop.is_set():
                        connection.execute("INSERT INTO load VALUES (%s, %s)", (number, n))
                        connection.commit()
                        acknowledged.add((number, n))
                        n += 1
            except psycopg.Error:
                n += 1
                time.sleep(0.01)

    threads = [threading.Thread(target=write, args=(each,)) for each in range(4)]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: len(acknowledged) > 200, "there is load")
        up(server)
        rows = set(server.execute("SELECT client, n FROM public.load", NAME))
        time.sleep(0.5)
        assert set(server.execute("SELECT client, n FROM public.load", NAME)) == rows, (
            "written behind the fence"
        )
        assert acknowledged <= rows, "acknowledged and lost"
        down(server)
        before = len(acknowledged)
        wait_for(lambda: len(acknowledged) > before, "clients write again")
    finally:
        stop.set()
        down(server)
        for thread in threads:
            thread.join()
