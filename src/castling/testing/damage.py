"""Damage that an audit has to find: done to a target behind replication's back, one class at a time.

Each class says how much of it there can be, does the n-th of it, and knows what an audit must tell: one
finding a piece, with the rule, the part and, where there is one, the key. Nothing here knows how an audit
works.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

__all__ = [
    "CLASSES",
    "SCHEMA",
    "Damage",
    "Expected",
    "Judged",
    "definitions",
    "judge",
    "keep_writing",
    "keep_writing_oddly",
]

#: rows of each table in which damage is done; writers leave keys below this alone
QUIET_ROWS = 2000

#: tables on the source; `work` is for writers
SCHEMA = f"""
    CREATE TABLE things (
        id int PRIMARY KEY, word text, amount numeric, ratio float8, at timestamptz, note text, raw bytea,
        doc jsonb, days interval, tags text[], flag boolean
    );
    INSERT INTO things
    SELECT i, 'word ' || i, i * 1.10, i / 7.0, '2026-01-01 00:00+00'::timestamptz + i * interval '1 hour',
           '', decode(md5(i::text), 'hex'), jsonb_build_object('n', i), i * interval '1 day',
           ARRAY['a', i::text],
           i % 2 = 0
      FROM generate_series(1, {2 * QUIET_ROWS}) i;
    UPDATE things SET ratio = 0 WHERE id % 10 = 5;
    CREATE TABLE large (id int PRIMARY KEY, body text);
    ALTER TABLE large ALTER body SET STORAGE EXTERNAL;
    INSERT INTO large SELECT i, repeat(md5(i::text), 300) FROM generate_series(1, 200) i;
    CREATE TABLE heap (word text, n int);
    ALTER TABLE heap REPLICA IDENTITY FULL;
    INSERT INTO heap SELECT 'heap ' || i / 2, i / 2 FROM generate_series(1, {QUIET_ROWS}) i;
    CREATE TABLE "Odd.name" ("Key %s" uuid PRIMARY KEY, "a.b" text);
    INSERT INTO "Odd.name" SELECT md5(i::text)::uuid, i::text FROM generate_series(1, 200) i;
    CREATE TABLE work (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text, n int NOT NULL DEFAULT 0);
    INSERT INTO work (v) SELECT 'w' || i FROM generate_series(1, 2000) i;
    CREATE TABLE cleared (id int PRIMARY KEY, v text);
    CREATE TABLE acked (client int, n bigint, PRIMARY KEY (client, n));
    CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
"""


@dataclass(frozen=True, slots=True)
class Expected:
    """What an audit has to tell of one piece of damage. `key` None: the part alone says which."""

    rule: str
    part: str
    what: str
    key: dict[str, str] | None = None


Do = Callable[[psycopg.Connection[Any], int], list[Expected]]


@dataclass(frozen=True, slots=True)
class Damage:
    """`do(target, n)`: the n-th piece (from 1 to 50), and what has to be found for it."""

    name: str
    do: Do


def _things(
    n: int, what: str, change: str, *, offset: int
) -> Callable[[psycopg.Connection[Any]], list[Expected]]:
    def run(target: psycopg.Connection[Any]) -> list[Expected]:
        key = offset + 10 * n
        done = target.execute(change.encode(), {"id": key})
        assert done.rowcount == 1, change
        return [Expected("rows", "public.things", what, {"id": str(key)})]

    return run


def _update(column: str, value: str, *, offset: int) -> Do:
    statement = f"UPDATE things SET {column} = {value} WHERE id = %(id)s"
    return lambda target, n: _things(n, "different", statement, offset=offset)(target)


def _missing(target: psycopg.Connection[Any], n: int) -> list[Expected]:
    return _things(n, "missing", "DELETE FROM things WHERE id = %(id)s", offset=1001)(target)


def _extra(target: psycopg.Connection[Any], n: int) -> list[Expected]:
    target.execute("INSERT INTO things (id, word) VALUES (%s, 'nobody wrote this')", (-n,))
    return [Expected("rows", "public.things", "extra", {"id": str(-n)})]


def _swapped(target: psycopg.Connection[Any], n: int) -> list[Expected]:
    """Two rows that have each other's content: as many rows, and the same values in them."""
    a, b = 1002 + 10 * n, 1003 + 10 * n
    target.execute(
        "UPDATE things t SET word = o.word, amount = o.amount, ratio = o.ratio, at = o.at, raw = o.raw,"
        " doc = o.doc, days = o.days, tags = o.tags, flag = o.flag"
        " FROM things o WHERE t.id IN (%(a)s, %(b)s) AND o.id = %(a)s + %(b)s - t.id",
        {"a": a, "b": b},
    )
    return [Expected("rows", "public.things", "different", {"id": str(key)}) for key in (a, b)]


def _duplicate(target: psycopg.Connection[Any], n: int) -> list[Expected]:
    target.execute("INSERT INTO heap VALUES (%s, %s)", (f"heap {n}", n))
    return [Expected("rows", "public.heap", "extra", {"word": f"heap {n}"})]


def _one_of_two(target: psycopg.Connection[Any], n: int) -> list[Expected]:
    at = 500 + n
    target.execute(
        "DELETE FROM heap WHERE ctid = (SELECT ctid FROM heap WHERE n = %s AND word = %s LIMIT 1)",
        (at, f"heap {at}"),
    )
    return [Expected("rows", "public.heap", "missing", {"word": f"heap {at}"})]


def _toast(target: psycopg.Connection[Any], n: int) -> list[Expected]:
    target.execute("UPDATE large SET body = left(body, -1) || '#' WHERE id = %s", (n,))
    return [Expected("rows", "public.large", "different", {"id": str(n)})]


def _odd(target: psycopg.Connection[Any], n: int) -> list[Expected]:
    row = target.execute(
        'UPDATE "Odd.name" SET "a.b" = \'%%\' WHERE "a.b" = %s RETURNING "Key %%s"::text', (str(n),)
    ).fetchone()
    assert row is not None
    return [Expected("rows", 'public."Odd.name"', "different", {"Key %s": str(row[0])})]


def _sequence(target: psycopg.Connection[Any], n: int) -> list[Expected]:
    target.execute("SELECT setval(%s::regclass, 3)", (f"public.still_{n}",))
    return [Expected("sequences", f"public.still_{n}", "behind")]


def _index(target: psycopg.Connection[Any], n: int) -> list[Expected]:
    target.execute(f"DROP INDEX public.things_{n}".encode())
    return [Expected("definitions", f"index public.things_{n}", "not-on-target")]


def _trigger(target: psycopg.Connection[Any], n: int) -> list[Expected]:
    target.execute(f"ALTER TABLE things ENABLE ALWAYS TRIGGER t_{n}".encode())
    return [Expected("definitions", f"trigger public.things.t_{n}", "differs")]


def _grant(target: psycopg.Connection[Any], n: int) -> list[Expected]:
    target.execute(f"REVOKE SELECT ON public.view_{n} FROM PUBLIC".encode())
    return [Expected("grants", f"grant public.view_{n} to PUBLIC", "not-on-target")]


#: name, and how the n-th piece is done; every piece touches rows or objects that no other one touches
CLASSES: Sequence[Damage] = (
    Damage("one byte of text", _update("word", "overlay(word placing '#' from 3 for 1)", offset=1)),
    Damage("NULL instead of ''", _update("note", "NULL", offset=2)),
    Damage("a row that is missing", _missing),
    Damage("a row that is extra", _extra),
    Damage("rows that were swapped", _swapped),
    Damage("a duplicate in a table without a key", _duplicate),
    Damage("one of two equal rows gone", _one_of_two),
    Damage("-0.0 instead of 0", _update("ratio", "'-0'::float8", offset=5)),
    Damage("a time zone", _update("at", "at + interval '1 hour'", offset=6)),
    Damage("the scale of a numeric", _update("amount", "amount * 1.0", offset=7)),
    Damage("the last character of a TOASTed value", _toast),
    Damage("a byte of bytea", _update("raw", "set_byte(raw, 0, (get_byte(raw, 0) + 1) & 255)", offset=8)),
    Damage("trailing blanks", _update("word", "word || ' '", offset=9)),
    Damage("an odd name", _odd),
    Damage("a sequence that went back", _sequence),
    Damage("an index that was dropped", _index),
    Damage("a trigger that was enabled", _trigger),
    Damage("a grant that was revoked", _grant),
)


def definitions(pieces: int) -> str:
    """What is on the source of which definitions and sequences are to be damaged, so many of each."""
    return "\n".join(
        f"CREATE INDEX things_{n} ON things (id) WHERE id = {n};"
        f"CREATE TRIGGER t_{n} AFTER DELETE ON things FOR EACH ROW WHEN (OLD.id = -{n})"
        " EXECUTE FUNCTION nothing();"
        f"CREATE VIEW view_{n} AS SELECT {n} AS n; GRANT SELECT ON view_{n} TO PUBLIC;"
        f"CREATE SEQUENCE still_{n}; SELECT setval('still_{n}', 5000);"
        for n in range(1, pieces + 1)
    )


# --- what an audit has told -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Judged:
    """Of what was done, what was found and what was missed; and what was told that nobody did."""

    found: list[Expected]
    missed: list[Expected]
    imagined: list[dict[str, Any]]


def judge(done: Sequence[Expected], told: Sequence[Mapping[str, Any]]) -> Judged:
    """`told`: the findings of an audit in their JSON form. Pure."""
    left = [dict(each) for each in told]
    found, missed = [], []
    for one in done:
        match = next((each for each in left if _is(one, each)), None)
        if match is None:
            missed.append(one)
        else:
            found.append(one)
            left.remove(match)
    return Judged(found, missed, left)


def _is(one: Expected, told: Mapping[str, Any]) -> bool:
    if (one.rule, one.part, one.what) != (told["rule"], told["part"], told["what"]):
        return False
    if one.key is None:
        return True
    values = told["key"] or told["source"] or told["target"] or {}
    return all(values.get(name) == value for name, value in one.key.items())


@contextlib.contextmanager
def keep_writing(dsn: str, writers: int = 2, pause_s: float = 0.01) -> Iterator[Callable[[], int]]:
    """Load on the source beside what is damaged: in every table, and in rows of `things` that are not
    touched. Gives how many transactions were committed."""
    stop, done = threading.Event(), [0] * writers

    def write(number: int) -> None:
        chance = random.Random(number)
        with psycopg.connect(dsn, autocommit=True) as connection:
            while not stop.wait(pause_s):
                at = QUIET_ROWS + 1 + chance.randrange(QUIET_ROWS)
                with connection.transaction():
                    connection.execute("INSERT INTO work (v) VALUES (%s)", (str(at),))
                    connection.execute("UPDATE work SET n = n + 1 WHERE id = %s", (at % 2000,))
                    connection.execute("UPDATE things SET note = note || 'x' WHERE id = %s", (at,))
                    connection.execute("DELETE FROM work WHERE id = %s", (chance.randrange(2000),))
                    connection.execute("INSERT INTO heap VALUES ('new', %s)", (at,))
                done[number] += 1

    threads = [threading.Thread(target=write, args=(number,)) for number in range(writers)]
    for thread in threads:
        thread.start()
    try:
        yield lambda: sum(done)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@contextlib.contextmanager
def keep_writing_oddly(dsn: str) -> Iterator[None]:
    """What makes positions hard, beside `keep_writing`: TRUNCATE, prepared transactions, subtransactions that
    are rolled back, large transactions, values that are TOASTed. The server must allow prepared
    transactions."""
    stop = threading.Event()

    def write() -> None:
        chance = random.Random(5)
        number = 0
        with psycopg.connect(dsn, autocommit=True) as connection:
            while not stop.wait(0.05):
                number += 1
                chance.choice(_ODD)(connection, number)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _truncate(connection: psycopg.Connection[Any], number: int) -> None:
    if number % 5 == 0:
        connection.execute("TRUNCATE cleared")


def _roll_back_inside(connection: psycopg.Connection[Any], number: int) -> None:
    with connection.transaction():
        connection.execute(
            "INSERT INTO cleared SELECT i, 'x' FROM generate_series(%s::int, %s::int) i"
            " ON CONFLICT DO NOTHING",
            (number, number + 9),
        )
        with connection.transaction() as inner:
            connection.execute("INSERT INTO heap VALUES ('rolled back', 1)")
            raise psycopg.Rollback(inner)


def _prepare(connection: psycopg.Connection[Any], number: int) -> None:
    connection.execute("BEGIN")
    connection.execute("INSERT INTO heap VALUES ('prepared', %s)", (number,))
    connection.execute("UPDATE work SET n = n + 1 WHERE id = %s", (number % 2000,))
    connection.execute(f"PREPARE TRANSACTION 'odd {number}'".encode())
    connection.execute("SELECT pg_sleep(0.02)")
    connection.execute(f"COMMIT PREPARED 'odd {number}'".encode())


def _all_at_once(connection: psycopg.Connection[Any], number: int) -> None:
    connection.execute("UPDATE things SET note = note || 'q' WHERE id > %s", (QUIET_ROWS,))


def _toasted(connection: psycopg.Connection[Any], number: int) -> None:
    connection.execute("UPDATE large SET body = body || 'z' WHERE id = %s", (number % 200 + 1,))


_ODD = (_truncate, _roll_back_inside, _prepare, _all_at_once, _toasted)
