"""A bank that writes: the workload of the demonstration and of the fault runs.

Every transaction ends with a row of its own in `acked`, numbered by its client, and the
client remembers the number only after COMMIT has returned. So what was acknowledged is
known without asking either database: a number that is remembered and not on the target is
a lost transaction, whatever any replication says. Money is only ever moved, so the sum of all
balances is the same in every state that the bank was ever in.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg

__all__ = ["Bank", "create_bank", "lost", "total_balance"]

_SCHEMA = """
    CREATE TABLE branch (id int PRIMARY KEY, name text NOT NULL UNIQUE);
    CREATE TABLE account (
        id int PRIMARY KEY, branch int NOT NULL REFERENCES branch, balance numeric(14, 2) NOT NULL,
        owner text NOT NULL, opened timestamptz NOT NULL DEFAULT now());
    CREATE INDEX account_owner ON account (owner);
    CREATE TABLE history (
        account int, delta numeric(14, 2), at timestamptz DEFAULT clock_timestamp(), note text);
    CREATE TABLE letter (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, account int, body text, tags int[], facts jsonb,
        size int GENERATED ALWAYS AS (length(body)) STORED);
    CREATE TABLE card (number uuid PRIMARY KEY, pin int NOT NULL UNIQUE, limits int4range, active boolean);
    CREATE TABLE scratch (id serial PRIMARY KEY, v text);
    CREATE TABLE "Odd ""Names"" here" ("Key of" text, "Größe" double precision, PRIMARY KEY ("Key of"));
    CREATE TABLE acked (client int, n bigint, PRIMARY KEY (client, n));
"""


def create_bank(dsn: str, *, accounts: int) -> int:
    """Make the tables and `accounts` accounts with some history; how many rows that is."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(_SCHEMA.encode())
        connection.execute("INSERT INTO branch SELECT i, 'branch ' || i FROM generate_series(1, 20) i")
        connection.execute(
            "INSERT INTO account (id, branch, balance, owner)"
            " SELECT i, 1 + i %% 20, 1000, 'owner ' || md5(i::text) FROM generate_series(1, %s) i",
            [accounts],
        )
        connection.execute(
            "INSERT INTO history (account, delta, note)"
            " SELECT i, i %% 100, 'opening' FROM generate_series(1, %s) i",
            [accounts],
        )
        connection.execute("ANALYZE")
    return 20 + 2 * accounts


class Bank:
    """Clients, each a thread with a connection; a client whose connection breaks makes a new one."""

    def __init__(
        self, dsn: str, *, accounts: int, clients: int = 3, seed: int = 1, pause_s: float = 0.002
    ) -> None:
        self._dsn = dsn
        self._accounts = accounts
        self._pause_s = pause_s
        self._stopping = threading.Event()
        #: by client: numbers whose COMMIT has returned
        self.acked: dict[int, set[int]] = {client: set() for client in range(clients)}
        self.failures: list[str] = []
        self._threads = [
            threading.Thread(
                target=self._work, args=(client, random.Random(seed * 1000 + client)), daemon=True
            )
            for client in range(clients)
        ]

    def start(self) -> Bank:
        for thread in self._threads:
            thread.start()
        return self

    def stop(self) -> None:
        """Finish what is under way; clients that hang in a COMMIT are given up after a while."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(15)

    @property
    def transactions(self) -> int:
        return sum(len(numbers) for numbers in self.acked.values())

    def _work(self, client: int, rnd: random.Random) -> None:
        number = 0
        while not self._stopping.is_set():
            try:
                with psycopg.connect(self._dsn, connect_timeout=5) as connection:
                    while not self._stopping.is_set():
                        number += 1
                        self._transaction(connection, client, number, rnd)
                        time.sleep(self._pause_s * rnd.random() * 2)
            except (psycopg.OperationalError, psycopg.errors.ReadOnlySqlTransaction):
                # the server is away, was killed, or is fenced: connect again, to whoever may be written
                time.sleep(0.2)

    def _transaction(
        self, connection: psycopg.Connection[Any], client: int, number: int, rnd: random.Random
    ) -> None:
        operation = rnd.choices(*zip(*_OPERATIONS, strict=True))[0]
        try:
            operation(connection, self._accounts, rnd)
            connection.execute("INSERT INTO acked VALUES (%s, %s)", (client, number))
            connection.commit()
        except (psycopg.errors.IntegrityError, psycopg.errors.DeadlockDetected, psycopg.errors.DataError):
            connection.rollback()  # the bank's own affair: nothing was promised
            return
        self.acked[client].add(number)


Operation = Callable[[psycopg.Connection[Any], int, random.Random], None]


def _transfer(connection: psycopg.Connection[Any], accounts: int, rnd: random.Random) -> None:
    source, target, amount = rnd.randint(1, accounts), rnd.randint(1, accounts), rnd.randint(1, 50)
    for account, delta in sorted(((source, -amount), (target, amount))):
        connection.execute("UPDATE account SET balance = balance + %s WHERE id = %s", (delta, account))
        connection.execute(
            "INSERT INTO history (account, delta, note) VALUES (%s, %s, 'transfer')", (account, delta)
        )


def _write_letter(connection: psycopg.Connection[Any], accounts: int, rnd: random.Random) -> None:
    body = "".join(rnd.choices("abcdefghij ", k=rnd.choice((20, 200, 9000))))
    connection.execute(
        "INSERT INTO letter (account, body, tags, facts)"
        " VALUES (%s, %s, %s, jsonb_build_object('n', %s::int))",
        (rnd.randint(1, accounts), body, [rnd.randint(0, 9) for _ in range(3)], rnd.randint(0, 99)),
    )


def _edit_letters(connection: psycopg.Connection[Any], accounts: int, rnd: random.Random) -> None:
    connection.execute(  # the long bodies stay where they are, unsent
        "UPDATE letter SET tags = tags || 7, facts = facts || '{\"read\": true}'"
        " WHERE id IN (SELECT id FROM letter ORDER BY id DESC LIMIT %s) AND cardinality(tags) < 20",
        (rnd.randint(1, 5),),
    )


def _drop_letters(connection: psycopg.Connection[Any], accounts: int, rnd: random.Random) -> None:
    connection.execute("DELETE FROM letter WHERE id IN (SELECT id FROM letter ORDER BY id LIMIT 2)")


def _issue_card(connection: psycopg.Connection[Any], accounts: int, rnd: random.Random) -> None:
    connection.execute(
        "INSERT INTO card VALUES (gen_random_uuid(), %s, int4range(0, %s), true)",
        (rnd.randint(1, 1_000_000), rnd.randint(1, 5000)),
    )


def _swap_pins(connection: psycopg.Connection[Any], accounts: int, rnd: random.Random) -> None:
    rows = connection.execute("SELECT number, pin FROM card ORDER BY number LIMIT 2 FOR UPDATE").fetchall()
    if len(rows) == 2:  # a unique value changes hands within one transaction
        (first, pin), (second, other) = rows
        connection.execute("UPDATE card SET pin = %s WHERE number = %s", (-pin - 1, first))
        connection.execute("UPDATE card SET pin = %s WHERE number = %s", (pin, second))
        connection.execute("UPDATE card SET pin = %s WHERE number = %s", (other, first))


def _renumber_card(connection: psycopg.Connection[Any], accounts: int, rnd: random.Random) -> None:
    connection.execute(
        "UPDATE card SET number = gen_random_uuid()"
        " WHERE number = (SELECT number FROM card ORDER BY pin LIMIT 1)"
    )


def _scribble(connection: psycopg.Connection[Any], accounts: int, rnd: random.Random) -> None:
    connection.execute(
        "INSERT INTO scratch (v) SELECT 'v' || i FROM generate_series(1, %s) i", (rnd.randint(1, 20),)
    )
    if rnd.random() < 0.1:
        connection.execute("TRUNCATE scratch RESTART IDENTITY")


def _think_again(connection: psycopg.Connection[Any], accounts: int, rnd: random.Random) -> None:
    connection.execute("SAVEPOINT thought")
    connection.execute("UPDATE account SET owner = 'nobody' WHERE id = %s", (rnd.randint(1, accounts),))
    connection.execute("ROLLBACK TO SAVEPOINT thought")
    connection.execute(
        'INSERT INTO "Odd ""Names"" here" VALUES (%s, %s) ON CONFLICT ("Key of") DO UPDATE SET "Größe" = %s',
        (f"käse {rnd.randint(0, 50)}", rnd.random(), rnd.choice((0.0, -0.0, float("nan"), float("inf")))),
    )


def _pay_interest(connection: psycopg.Connection[Any], accounts: int, rnd: random.Random) -> None:
    low = rnd.randint(1, accounts)
    connection.execute(  # a large transaction that moves no money in sum
        "UPDATE account SET owner = owner || '.' WHERE id BETWEEN %s AND %s AND length(owner) < 60",
        (low, low + 2000),
    )


_OPERATIONS: list[tuple[Operation, int]] = [
    (_transfer, 60),
    (_write_letter, 10),
    (_edit_letters, 8),
    (_drop_letters, 3),
    (_issue_card, 6),
    (_swap_pins, 3),
    (_renumber_card, 3),
    (_scribble, 5),
    (_think_again, 4),
    (_pay_interest, 1),
]


def lost(bank: Bank, dsn: str) -> list[tuple[int, int]]:
    """Transactions, as (client, number), whose COMMIT had returned and that are not in the database."""
    with psycopg.connect(dsn) as connection:
        there = {(int(client), int(n)) for client, n in connection.execute("SELECT client, n FROM acked")}
    return sorted(
        (client, number)
        for client, numbers in bank.acked.items()
        for number in numbers
        if (client, number) not in there
    )


def total_balance(dsn: str) -> Any:
    """The sum that no state of the bank ever changes."""
    with psycopg.connect(dsn) as connection:
        row = connection.execute("SELECT sum(balance) FROM account").fetchone()
    return None if row is None else row[0]
