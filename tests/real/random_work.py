"""Random schemas and random transactions on them, as SQL, from a seed.

types x keys x identities x TOAST x savepoints x prepared transactions x sessions that run side by side.
What is drawn is SQL only: what it means is left to PostgreSQL, and the model of the outcome is the source's
own database. A statement that PostgreSQL refuses (a key that is there already, a lock that another session
has) is undone by itself, and the transaction goes on.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import psycopg

__all__ = ["EXTENSIONS", "RandomWork"]

EXTENSIONS = ("hstore", "citext", "ltree")
Draw = Callable[[random.Random], str]

_LETTERS = "aAbBzZ09 éßяЖ中😀\\'\"%$\t\n"


def _text(chance: random.Random, longest: int = 12) -> str:
    text = "".join(chance.choice(_LETTERS) for _ in range(chance.randrange(longest)))
    return "'" + text.replace("'", "''") + "'"


def _toast(chance: random.Random) -> str:
    """Small, or so large that an update leaves it out of the log."""
    if chance.random() < 0.5:
        return _text(chance)
    return f"(SELECT string_agg(md5(i::text), '') FROM generate_series({chance.randrange(9)}, 300) i)"


def _number(chance: random.Random) -> str:
    special = ["0", "-0.0", "'NaN'", "1e-30", "1.50", "1.5", "-99999999999999999999.000001", "'Infinity'"]
    return chance.choice(special) if chance.random() < 0.5 else str(chance.randrange(-20, 20))


def _json(chance: random.Random) -> str:
    return chance.choice(
        [
            "'{}'",
            "'[1, 1.0, 1e2]'",
            "'null'",
            '\'{"a": {"b": [null, "\\u0041", true]}, "a ": ""}\'',
            "'\"x\"'",
        ]
    )


def _one_of(*values: str) -> Draw:
    return lambda chance: chance.choice(values)


def _whole(limit: int) -> Draw:
    return lambda chance: str(chance.randrange(-limit, limit))


#: types by what draws a value of them; the second: of those that can be part of a key
_PLAIN: dict[str, Draw] = {
    "boolean": _one_of("true", "false"),
    "double precision": _number,
    "real": _one_of("'-0'", "1.1", "'NaN'", "'-Infinity'", "3e-40"),
    "json": _json,
    "jsonb": _json,
    "bytea": lambda chance: f"'\\x{chance.randbytes(chance.randrange(9)).hex()}'",
    "interval": _one_of("'1 day'", "'24:00'", "'-1 mon 3 days 00:00:00.000001'", "'178000000 years'"),
    "timetz": _one_of("'12:00+05:30'", "'24:00:00-15:59'"),
    "money": _one_of("'12.34'", "'-0.01'"),
    "bit varying(20)": _one_of("B''", "B'1'", "B'0101010101'"),
    "integer[]": _one_of("'{}'", "'{1,NULL,3}'", "'[0:1][2:3]={{1,2},{3,4}}'"),
    "text[]": _one_of("'{}'", '\'{"a,b",NULL,"NULL"}\''),
    "int4range": _one_of("'empty'", "'[1,5)'", "'(,)'"),
    "nummultirange": _one_of("'{}'", "'{[1,2),[3,4.5]}'"),
    "tsvector": _one_of("''", "'a:1A b:2,3'"),
    "point": _one_of("'(0,-0)'", "'(1e300,NaN)'"),
    "polygon": _one_of("'((0,0),(1,1),(2,0))'"),
    "xid8": _one_of("'0'", "'18446744073709551615'"),
    "pg_lsn": _one_of("'0/0'", "'FFFFFFFF/FFFFFFFF'"),
    "regclass": _one_of("'pg_class'", "0"),
    "hstore": _one_of("''", "'a=>1, b=>NULL'"),
    "mood": _one_of("'sad'", "'ok'", "'happy'"),
    "mood[]": _one_of("'{sad,ok}'", "'{}'"),
    "pair": _one_of("'(1,\"a,b\")'", "'(,)'"),
    "pair[]": _one_of("ARRAY['(1,x)', NULL]::pair[]"),
    "positive": _one_of("1", "200"),
    "span": _one_of("'[1,2)'", "'empty'"),
    "jsonpath": _one_of("'$.a[*] ? (@ > 1)'"),
    "macaddr8": _one_of("'08:00:2b:01:02:03:04:05'"),
    "tsquery": _one_of("''", "'a & !b'"),
}
_KEYS: dict[str, Draw] = {
    "integer": _whole(30),
    "bigint": _whole(1 << 62),
    "smallint": _whole(30),
    "text": _text,
    "varchar(20)": _text,
    "character(14)": _text,
    "citext": _one_of("'a'", "'A'", "'bB'", "'Bb'", "'c'"),
    "numeric": _number,
    "numeric(30,6)": _whole(40),
    "uuid": lambda chance: f"md5('{chance.randrange(40)}')::uuid",
    "date": _one_of("'infinity'", "'4713-01-01 BC'", "'2026-02-28'", "'5874897-12-31'"),
    "timestamptz": _one_of("'-infinity'", "'2026-10-25 02:30:00.000001+02'", "'0001-01-01 BC'", "now()"),
    "inet": _one_of("'10.0.0.1/8'", "'::1'", "'10.0.0.1'"),
    "ltree": _one_of("'a.b'", "'a'", "'b.c.d'"),
    "name": _one_of("'x'", "'yy'", "'Z'"),
    '"char"': _one_of("'a'", "''", "'Z'"),
    "oid": _one_of("0", "4294967295", "7"),
}
_DRAWN = _PLAIN | _KEYS
_TYPES = """
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE TYPE pair AS (a int, b text);
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE TYPE span AS RANGE (subtype = numeric);
"""
_BACK = "ROLLBACK TO SAVEPOINT s"
_WORK = ["insert"] * 4 + ["rows"] + ["update"] * 4 + ["key", "delete", "delete", "truncate"]
_NAMES = ("t", "Order", "naïve таблица", 'q"uote', "per%cent %s", "select")


@dataclass
class _Table:
    sql: str
    columns: dict[str, str] = field(default_factory=dict)  #: settable ones: name as SQL, type
    keys: list[str] = field(default_factory=list)
    identity: str | None = None


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


class RandomWork:
    """`schema`: what both sides begin with. `step`: one piece of work on the source."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._tables: list[_Table] = []
        self._prepared = 0
        self.schema = _TYPES + "".join(self._table(number) for number in range(chance.randint(2, 5)))
        #: what was done, for whoever has to look into a failure
        self.done: list[str] = []

    # --- schema -------------------------------------------------------------------------------

    def _table(self, number: int) -> str:
        chance = self._chance
        table = _Table(_quoted(f"{chance.choice(_NAMES)}{number}"))
        kind = chance.choice(["key", "key", "key", "index", "full", "partitioned"])
        if kind != "full":
            for place in range(chance.choice([1, 1, 2, 3])):
                name = _quoted(f"k{place}")
                table.columns[name] = chance.choice(list(_KEYS))
                table.keys.append(name)
        for place in range(chance.randint(1, 6)):
            table.columns[_quoted(f"c {place}")] = chance.choice(list(_DRAWN))
        table.columns["big"] = "text"
        lines = [f"{name} {type_}" for name, type_ in table.columns.items()]
        if kind == "index":
            lines = [f"{line} NOT NULL" if line.split(" ")[0] in table.keys else line for line in lines]
        if chance.random() < 0.3:
            table.identity = "self"
            lines.append(f"self int GENERATED {chance.choice(['ALWAYS', 'BY DEFAULT'])} AS IDENTITY")
        whole = kind == "full" or chance.random() < 0.2
        if not whole and chance.random() < 0.3:
            lines.append("computed int GENERATED ALWAYS AS (length(big)) STORED")
        if chance.random() < 0.4:
            lines.append("n int UNIQUE" if kind != "partitioned" else "n int")
            table.columns["n"] = "integer"
        chance.shuffle(lines)
        listed = ", ".join(table.keys)
        if kind in ("key", "partitioned"):
            lines.append(f"PRIMARY KEY ({listed})")
        tail = f" PARTITION BY HASH ({listed})" if kind == "partitioned" else ""
        sql = f"CREATE TABLE {table.sql} ({', '.join(lines)}){tail};\n"
        names = [table.sql]
        if kind == "partitioned":
            names = [_quoted(f"part {number} {place}") for place in range(2)]
            for place, name in enumerate(names):
                sql += f"CREATE TABLE {name} PARTITION OF {table.sql}"
                sql += f" FOR VALUES WITH (MODULUS 2, REMAINDER {place});\n"
        if kind == "index":
            sql += f"CREATE UNIQUE INDEX {_quoted(f'i{number}')} ON {table.sql} ({listed});\n"
            sql += f"ALTER TABLE {table.sql} REPLICA IDENTITY USING INDEX {_quoted(f'i{number}')};\n"
        if whole:
            sql += "".join(f"ALTER TABLE {name} REPLICA IDENTITY FULL;\n" for name in names)
        sql += "".join(f"ALTER TABLE {name} ALTER big SET STORAGE EXTERNAL;\n" for name in names)
        self._tables.append(table)
        return sql

    # --- work ---------------------------------------------------------------------------------

    def step(self, sessions: list[psycopg.Connection[object]]) -> None:
        """A transaction or two, side by side where there are two sessions."""
        chance = self._chance
        used = chance.sample(sessions, chance.randint(1, len(sessions)))
        for session in used:
            self._run(session, "BEGIN")
            self._run(session, "SET LOCAL lock_timeout = '20ms'")
        for _ in range(chance.randint(1, 12)):
            self._statement(chance.choice(used))
        for session in used:
            ending = chance.choice(["COMMIT"] * 8 + ["ROLLBACK", "PREPARE"])
            if ending == "PREPARE":
                self._prepared += 1
                self._run(session, f"PREPARE TRANSACTION 'p{self._prepared}'")
                ending = f"{chance.choice(['COMMIT', 'COMMIT', 'ROLLBACK'])} PREPARED 'p{self._prepared}'"
            self._run(session, ending)

    def _run(self, session: psycopg.Connection[object], sql: str) -> None:
        self.done.append(f"{session.info.backend_pid}: {sql}")
        session.execute(sql.encode())

    def _statement(self, session: psycopg.Connection[object]) -> None:
        chance = self._chance
        self._run(session, "SAVEPOINT s")
        try:
            self._run(session, self._drawn())
        except (psycopg.DataError, psycopg.IntegrityError, psycopg.OperationalError) as error:
            if session.closed:
                raise
            self.done.append(f"  {type(error).__name__}")
            self._run(session, _BACK)
        else:
            self._run(
                session,
                chance.choice(["RELEASE SAVEPOINT s"] * 5 + ["ROLLBACK TO SAVEPOINT s", "SAVEPOINT s"]),
            )

    def _value(self, type_: str) -> str:
        if self._chance.random() < 0.1:
            return "NULL"
        return f"{_DRAWN[type_](self._chance)}::{type_}"

    def _drawn(self) -> str:
        chance = self._chance
        table = chance.choice(self._tables)
        values = {
            name: _toast(chance) if name == "big" else self._value(type_)
            for name, type_ in table.columns.items()
        }
        work = chance.choice(
            ["insert"] * 4 + ["rows"] + ["update"] * 4 + ["key", "delete", "delete", "truncate"]
        )
        if work == "insert":
            return f"INSERT INTO {table.sql} ({', '.join(values)}) VALUES ({', '.join(values.values())})"
        if work == "rows":
            chosen = ", ".join(values.values())
            return (
                f"INSERT INTO {table.sql} ({', '.join(values)})"
                f" SELECT {chosen} FROM generate_series(1, 3) ON CONFLICT DO NOTHING"
            )
        where = self._where(table)
        if work == "delete":
            return f"DELETE FROM {table.sql} WHERE {where}"
        if work == "truncate":
            if chance.random() < 0.7:
                return f"DELETE FROM {table.sql} WHERE {where}"
            return f"TRUNCATE {table.sql}{chance.choice(['', ' RESTART IDENTITY', ' CASCADE'])}"
        names = [name for name in values if (name in table.keys) == (work == "key")] or ["big"]
        set_ = chance.sample(names, chance.randint(1, len(names)))
        listed = ", ".join(f"{name} = {values[name]}" for name in set_)
        if table.identity and chance.random() < 0.1:
            listed += f", {table.identity} = DEFAULT"
        return f"UPDATE {table.sql} SET {listed} WHERE {where}"

    def _where(self, table: _Table) -> str:
        """A few rows, whatever they hold; sometimes all of them."""
        chance = self._chance
        if chance.random() < 0.1:
            return "true"
        some = f"SELECT tableoid, ctid FROM {table.sql} ORDER BY md5({chance.random()}::text || big)"
        return f"(tableoid, ctid) IN ({some} LIMIT {chance.randint(1, 3)})"
