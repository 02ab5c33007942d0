"""What the backlogs of the comparison are made of: each segment is one kind of work."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

import psycopg

from castling.testing.servers import EmbeddedServer, embedded_bin

__all__ = ["SCHEMA", "SEGMENTS", "Segment", "fill"]

Connection = psycopg.Connection[tuple[object, ...]]

#: the tables of all segments
SCHEMA = """
    CREATE TABLE narrow (id bigint PRIMARY KEY, a int NOT NULL, b text);
    CREATE TABLE wide (id bigint PRIMARY KEY, small int, body text);
    ALTER TABLE wide ALTER body SET STORAGE EXTERNAL;
    CREATE TABLE sentinel (round int, segment text, PRIMARY KEY (round, segment));
    CREATE TABLE pgbench_branches (bid int PRIMARY KEY, bbalance int, filler char(88));
    CREATE TABLE pgbench_tellers (tid int PRIMARY KEY, bid int, tbalance int, filler char(84));
    CREATE TABLE pgbench_accounts (aid int PRIMARY KEY, bid int, abalance int, filler char(84));
    CREATE TABLE pgbench_history (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, tid int, bid int,
                                  aid int, delta int, mtime timestamp, filler char(22));
"""


@dataclass(frozen=True, slots=True)
class Segment:
    """`write(server, database, number, scale)` commits the backlog: (transactions, row changes)."""

    name: str
    what: str
    write: Callable[[EmbeddedServer, str, int, float], tuple[int, int]]


def fill(connection: Connection, branches: int) -> None:
    """pgbench's own rows."""
    connection.execute(
        f"""
        INSERT INTO pgbench_branches SELECT i, 0, '' FROM generate_series(1, {branches}) i;
        INSERT INTO pgbench_tellers SELECT i, (i - 1) / 10 + 1, 0, ''
            FROM generate_series(1, {branches * 10}) i;
        INSERT INTO pgbench_accounts
            SELECT i, (i - 1) / 100000 + 1, 0, '' FROM generate_series(1, {branches * 100000}) i;
        """.encode()
    )


def _base(number: int) -> int:
    return number * 1_000_000_000


def _run(server: EmbeddedServer, database: str, *statements: str) -> None:
    with psycopg.connect(server.dsn(database), autocommit=True) as connection:
        connection.execute("SET synchronous_commit = off")
        for statement in statements:
            connection.execute(statement.encode())


def _tpcb(server: EmbeddedServer, database: str, number: int, scale: float) -> tuple[int, int]:
    per_client = int(2500 * scale)
    subprocess.run(
        [
            str(embedded_bin() / "pgbench"),
            *("-h", "127.0.0.1", "-p", str(server.port), "-U", server.USER),
            *(
                "-n",
                "-b",
                "tpcb-like",
                "-c",
                "8",
                "-j",
                "2",
                "-t",
                str(per_client),
                "-M",
                "prepared",
                database,
            ),
        ],
        env=os.environ | {"PGPASSWORD": server.PASSWORD, "PGOPTIONS": "-c synchronous_commit=off"},
        check=True,
        capture_output=True,
    )
    return 8 * per_client, 32 * per_client


def _insert_one(server: EmbeddedServer, database: str, number: int, scale: float) -> tuple[int, int]:
    rows = int(250_000 * scale)
    _run(
        server,
        database,
        f"INSERT INTO narrow SELECT {_base(number)} + i, i, 'row ' || i FROM generate_series(1, {rows}) i",
    )
    return 1, rows


def _insert_many(server: EmbeddedServer, database: str, number: int, scale: float) -> tuple[int, int]:
    batches = int(2_500 * scale)
    base = _base(number) + 100_000_000
    _run(
        server,
        database,
        f"""DO $$ BEGIN
              FOR i IN 1..{batches} LOOP
                INSERT INTO narrow SELECT {base} + i * 100 + j, j, 'batch' FROM generate_series(1, 100) j;
                COMMIT;
              END LOOP;
            END $$""",
    )
    return batches, batches * 100


def _update(server: EmbeddedServer, database: str, number: int, scale: float) -> tuple[int, int]:
    rows = int(250_000 * scale)
    base = _base(number)
    _run(server, database, f"UPDATE narrow SET a = a + 1 WHERE id > {base} AND id <= {base + rows}")
    return 1, rows


def _delete(server: EmbeddedServer, database: str, number: int, scale: float) -> tuple[int, int]:
    rows = int(250_000 * scale)
    base = _base(number)
    _run(server, database, f"DELETE FROM narrow WHERE id > {base} AND id <= {base + rows}")
    return 1, rows


def _wide(server: EmbeddedServer, database: str, number: int, scale: float) -> tuple[int, int]:
    rows = int(5_000 * scale)
    base = _base(number)
    _run(
        server,
        database,
        f"INSERT INTO wide SELECT {base} + i, i, (SELECT string_agg(md5((i * j)::text), '')"
        f" FROM generate_series(1, 500) j) FROM generate_series(1, {rows}) i",
        f"UPDATE wide SET small = small + 1 WHERE id > {base} AND id <= {base + rows}",
    )
    return 2, 2 * rows


def _mix(server: EmbeddedServer, database: str, number: int, scale: float) -> tuple[int, int]:
    """Its rows have numbers of their own: beside those of the round's other segments."""
    counts = [
        segment.write(server, database, number + 500, scale / 2)
        for segment in SEGMENTS
        if segment.name != "mix"
    ]
    return sum(count[0] for count in counts), sum(count[1] for count in counts)


SEGMENTS = (
    Segment("mix", "all of the others, at half of their sizes", _mix),
    Segment("tpcb", "pgbench TPC-B, 8 clients", _tpcb),
    Segment("insert-one", "narrow rows in one transaction", _insert_one),
    Segment("insert-many", "narrow rows, 100 a transaction", _insert_many),
    Segment("update", "a quarter of a million rows (times scale) in one transaction", _update),
    Segment("delete", "as many, in one transaction", _delete),
    Segment("wide", "16 kB rows, then updates that leave the TOAST alone", _wide),
)
