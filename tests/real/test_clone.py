"""A copy of the replica beside it: what it holds, what it can't do, and that the replica has none of it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from castling.config import DatabaseSettings
from castling.errors import CloneFailed
from castling.kinds.postgres.clone import (
    clone_environment,
    clone_names,
    close_clone,
    database_name,
    open_clone,
)
from castling.kinds.postgres.lsn import parse_lsn
from castling.testing.servers import EmbeddedServer

NAME = "replica"


@pytest.fixture(scope="module", params=["18", "15"])
def any_server(request: pytest.FixtureRequest) -> Iterator[EmbeddedServer]:
    folder = None if request.param == "18" else request.getfixturevalue("bin15")
    with EmbeddedServer(name="west", bin_folder=folder) as found:
        yield found


@pytest.fixture
def server(any_server: EmbeddedServer) -> Iterator[EmbeddedServer]:
    """With a fenced replica that holds a copy of group g."""
    any_server.execute(f"CREATE DATABASE {NAME}")
    with psycopg.connect(any_server.dsn(NAME), autocommit=True) as session:
        for statement in (
            "CREATE SCHEMA castling",
            "CREATE TABLE castling.progress (stream text, lsn pg_lsn)",
            "INSERT INTO castling.progress VALUES ('g', '0/1234')",
            "CREATE TABLE public.t (id int PRIMARY KEY, v text)",
            "INSERT INTO public.t SELECT i, 'x' FROM generate_series(1, 1000) i",
            "CREATE FUNCTION castling.refuse() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN RAISE EXCEPTION ''guarded''; END'",
            "CREATE TRIGGER guard BEFORE INSERT ON public.t EXECUTE FUNCTION castling.refuse()",
            f"ALTER DATABASE {NAME} SET default_transaction_read_only = on",
            f'ALTER DATABASE {NAME} SET search_path = public, "Weird, one"',
            f"ALTER ROLE castling IN DATABASE {NAME} SET myapp.setting = 'it''s'",
        ):
            session.execute(statement.encode())
    yield any_server
    for (name,) in any_server.execute(f"SELECT datname FROM pg_database WHERE datname ~ '{NAME}|rehearsal'"):
        any_server.execute(f"DROP DATABASE {name} WITH (FORCE)")


def _settings(server: EmbeddedServer, tmp_path: Path) -> DatabaseSettings:
    secret = tmp_path / "secret"
    secret.write_text(server.PASSWORD + "\n")
    return DatabaseSettings(
        host="127.0.0.1", port=server.port, dbname=NAME, user="castling", password_file=str(secret)
    )


def _write(server: EmbeddedServer, statement: str) -> None:
    """In the replica, by somebody who does not care that it is fenced."""
    with psycopg.connect(server.dsn(NAME), autocommit=True) as session:
        session.execute("SET default_transaction_read_only = off")
        session.execute(statement.encode())


async def test_a_copy_can_be_written_and_the_replica_has_none_of_it(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    database = _settings(server, tmp_path)
    clone = await open_clone("g", database, "a1")
    assert clone.database == database_name("g", "a1") and clone.position == parse_lsn("0/1234")
    assert clone.size > 0 and clone.shares_blocks is not None
    found = await open_clone("g", database, "a1")
    assert found.database == clone.database and found.position == clone.position, "it is not made twice"
    variables = clone_environment(database, clone.database, tmp_path / "pass")
    assert (tmp_path / "pass").stat().st_mode & 0o077 == 0 and server.PASSWORD not in str(variables)
    done = subprocess.run(
        [
            server.bin / "psql",
            "-XAtc",
            "INSERT INTO t VALUES (0, 'new'); SELECT count(*) FROM t; SHOW search_path; SHOW myapp.setting",
        ],
        env={"PATH": os.environ["PATH"], **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[1:4] == ["1001", 'public, "Weird, one"', "it's"]
    assert server.execute("SELECT count(*) FROM t", NAME) == [(1000,)]
    with pytest.raises(psycopg.errors.RaiseException, match="guarded"):
        _write(server, "INSERT INTO t VALUES (0, 'x')")
    assert await clone_names("g", database) == ["a1"]
    with psycopg.connect(server.dsn(clone.database)):
        assert await close_clone("g", database, "a1"), "although somebody is in it"
    assert not await close_clone("g", database, "a1") and await clone_names("g", database) == []


async def test_who_is_connected_to_the_replica_is_named_and_stays(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    database = _settings(server, tmp_path)
    with psycopg.connect(server.dsn(NAME), application_name="monthly report") as reader:
        with pytest.raises(CloneFailed, match=r"castling \(process .*monthly report"):
            await open_clone("g", database, "b2")
        assert reader.execute("SELECT count(*) FROM t").fetchone() == (1000,)
    assert await clone_names("g", database) == []


async def test_a_copy_that_was_not_completed_is_made_anew(server: EmbeddedServer, tmp_path: Path) -> None:
    database = _settings(server, tmp_path)
    server.execute(f"CREATE DATABASE {database_name('g', 'c3')}")
    clone = await open_clone("g", database, "c3")
    assert server.execute("SELECT count(*) FROM t", clone.database) == [(1000,)]


async def test_passwords_for_other_servers_are_not_in_the_copy(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    """A rehearsal that uses a foreign table would else write into production."""
    with psycopg.connect(server.dsn(NAME), autocommit=True) as session:
        session.execute("SET default_transaction_read_only = off")
        try:
            session.execute("CREATE EXTENSION postgres_fdw")
        except psycopg.errors.FeatureNotSupported:
            pytest.fail("the server has no postgres_fdw")
        session.execute(
            f"CREATE SERVER production FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1',"
            f" port '{server.port}', dbname '{NAME}')".encode()
        )
        for whom in ("PUBLIC", "castling"):
            session.execute(
                f"CREATE USER MAPPING FOR {whom} SERVER production OPTIONS (user 'castling',"
                f" password '{server.PASSWORD}')".encode()
            )
        session.execute(
            "CREATE FOREIGN TABLE there (id int, v text) SERVER production OPTIONS (table_name 't')"
        )
        assert session.execute("SELECT count(*) FROM there").fetchone() == (1000,), (
            "the control: it would work"
        )
    clone = await open_clone("g", _settings(server, tmp_path), "d4")
    with pytest.raises(psycopg.errors.UndefinedObject, match="user mapping not found"):
        server.execute("SELECT count(*) FROM there", clone.database)


async def test_a_database_that_is_no_replica_is_refused(server: EmbeddedServer, tmp_path: Path) -> None:
    with pytest.raises(CloneFailed, match="no copy of group other"):
        await open_clone("other", _settings(server, tmp_path), "e5")
