"""Random changes of the schema between random changes of rows, as SQL, from a seed.

What is there is asked of the source's own catalog before each statement, in the session that will give it, so
nothing is kept here that could be wrong. A statement that PostgreSQL refuses is undone by itself, and the
transaction goes on. Statements come alone, several in one text, and out of functions.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg

__all__ = ["ROLES", "SCHEMA", "RandomSchema"]

Session = psycopg.Connection[Any]

ROLES = ("castling_draws_a", "castling_draws_b")
SCHEMA = """
CREATE SCHEMA one; CREATE SCHEMA "Two, too";
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE TABLE first (id int PRIMARY KEY, v text, n int DEFAULT 3);
CREATE TABLE second (a int, b text);
"""
_SCHEMAS = ("public", "one", '"Two, too"')
_NAMES = ("t", "u", '"Odd ""name"""', "таблица", '"semi;colon"', "w")
_COLUMNS = ("a", "b", "c", '"Col umn"', "d", "e")
_TYPES: dict[str, Callable[[random.Random], str]] = {
    "integer": lambda chance: str(chance.randrange(-50, 50)),
    "bigint": lambda chance: str(chance.randrange(1 << 40)),
    "text": lambda chance: chance.choice(["''", "'x; y'", "'it''s'", "'Ж'", "repeat('long', 900)"]),
    "numeric(12,2)": lambda chance: chance.choice(["1.50", "-0.01", "99"]),
    "timestamp with time zone": lambda chance: chance.choice(["'2026-01-01 12:00+02'", "'infinity'"]),
    "boolean": lambda chance: chance.choice(["true", "false"]),
    "uuid": lambda chance: f"md5('{chance.randrange(20)}')::uuid",
    "jsonb": lambda chance: chance.choice(["'{}'", "'{\"a\": [1, null]}'"]),
    "mood": lambda chance: chance.choice(["'sad'", "'ok'", "'happy'"]),
    "positive": lambda chance: str(chance.randrange(1, 9)),
    "integer[]": lambda chance: chance.choice(["'{}'", "'{1,NULL}'"]),
}
_DEFAULTS = ("5", "'x'", "now()", "clock_timestamp()", "gen_random_uuid()", "random() * 100", "NULL", "'{}'")
_TABLES = """
SELECT c.oid::int8, format('%I.%I', n.nspname, c.relname), c.relkind::text, c.relispartition,
       ARRAY(SELECT quote_ident(a.attname) || E'\\x01' || format_type(a.atttypid, NULL) FROM pg_attribute a
              WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
                AND a.attidentity <> 'a' ORDER BY a.attnum)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p' AND n.nspname IN ('public', 'one', 'Two, too')
 ORDER BY 2
"""


@dataclass(frozen=True)
class _Table:
    sql: str
    kind: str
    is_partition: bool
    columns: dict[str, str]


class RandomSchema:
    """`step`: one transaction, or one text, on one of the sessions."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._made = 0
        #: what was done, for whoever has to look into a failure
        self.done: list[str] = []

    def step(self, sessions: list[Session]) -> None:
        chance = self._chance
        session = chance.choice(sessions)
        way = chance.choice(["transaction"] * 4 + ["text", "text", "single", "single"])
        if way == "transaction":
            self._transaction(session)
        elif way == "text":
            drawn = [self._drawn(session) for _ in range(chance.randint(2, 4))]
            self._try(session, "; ".join(drawn))
        else:
            self._try(session, self._drawn(session))

    def _transaction(self, session: Session) -> None:
        chance = self._chance
        self._run(session, "BEGIN")
        for _ in range(chance.randint(1, 7)):
            self._run(session, "SAVEPOINT s")
            if not self._try(session, self._drawn(session)) or chance.random() < 0.12:
                self._run(session, "ROLLBACK TO SAVEPOINT s")
        self._run(session, chance.choice(["COMMIT"] * 7 + ["ROLLBACK"]))

    def _run(self, session: Session, sql: str) -> None:
        self.done.append(f"{session.info.backend_pid}: {sql}")
        session.execute(sql.encode())

    def _try(self, session: Session, sql: str) -> bool:
        try:
            self._run(session, sql)
        except psycopg.Error as error:
            if session.closed:
                raise
            self.done.append(f"  -- {type(error).__name__}: {error.diag.message_primary}")
            return False
        return True

    # --- drawing ------------------------------------------------------------------------------

    def _drawn(self, session: Session) -> str:
        chance = self._chance
        tables = [
            _Table(sql, kind, part, dict(column.split("\x01") for column in columns))
            for _, sql, kind, part, columns in session.execute(_TABLES.encode()).fetchall()
        ]
        if not tables or chance.random() < 0.1:
            statement = self._create()
        elif chance.random() < 0.45:
            return self._rows(chance.choice(tables))
        else:
            statement = self._change(chance.choice(tables), tables)
        return self._wrapped(statement)

    def _wrapped(self, statement: str) -> str:
        """As it is, or out of a function."""
        way = self._chance.random()
        if way < 0.1:
            return f"DO $do$ BEGIN {statement}; END $do$"
        if way < 0.2:
            quoted = statement.replace("'", "''")
            return f"DO $do$ BEGIN EXECUTE '{quoted}'; END $do$"
        return statement

    def _name(self) -> str:
        chance = self._chance
        return f"{chance.choice(_SCHEMAS)}.{chance.choice(_NAMES)}"

    def _column(self) -> str:
        chance = self._chance
        type_ = chance.choice(list(_TYPES))
        return f"{chance.choice(_COLUMNS)} {type_}" + chance.choice(
            ["", "", " NOT NULL", self._default(type_)]
        )

    def _default(self, type_: str) -> str:
        chance = self._chance
        if chance.random() < 0.6:
            return f" DEFAULT {_TYPES[type_](chance)}"
        return f" DEFAULT {chance.choice(_DEFAULTS)}"

    def _create(self) -> str:
        chance = self._chance
        name = self._name()
        self._made += 1
        listed = {
            column.split(" ")[0]: column for column in (self._column() for _ in range(chance.randint(1, 4)))
        }
        columns = ", ".join(listed.values())
        return chance.choice(
            [
                f"CREATE TABLE {name} (id int PRIMARY KEY, {columns})",
                f"CREATE TABLE {name} (id int PRIMARY KEY, {columns})",
                f"CREATE TABLE IF NOT EXISTS {name} ({columns})",
                f"CREATE TABLE {name} (id int GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, s serial,"
                f" {columns})",
                f"CREATE TABLE {name} (id int, twice int GENERATED ALWAYS AS (id * 2) STORED, {columns},"
                " PRIMARY KEY (id))",
                f"CREATE TABLE {name} (id int, {columns}, PRIMARY KEY (id)) PARTITION BY RANGE (id)",
                f"CREATE TABLE {name} AS SELECT i AS id, 'v' || i AS a, random() AS b"
                " FROM generate_series(1, 5) i",
                f"CREATE TEMP TABLE passing_{self._made} AS SELECT 1 AS a",
            ]
        )

    def _change(self, table: _Table, tables: list[_Table]) -> str:
        chance = self._chance
        sql, column = table.sql, chance.choice(list(table.columns) or ["a"])
        other, type_ = chance.choice(tables), chance.choice(list(_TYPES))
        start = chance.randrange(-3, 4) * 20
        drawn: list[str] = [
            f"ALTER TABLE {sql} ADD {self._column()}",
            f"ALTER TABLE {sql} ADD {self._column()}, ADD {self._column()}",
            f"ALTER TABLE {sql} ADD IF NOT EXISTS {self._column()}",
            f"ALTER TABLE {sql} DROP {column}{chance.choice(['', ' CASCADE'])}",
            f"ALTER TABLE {sql} RENAME {column} TO {chance.choice(_COLUMNS)}",
            f"ALTER TABLE {sql} ALTER {column} TYPE {chance.choice(['text', 'bigint', 'numeric(12,2)'])}",
            f"ALTER TABLE {sql} ALTER {column} TYPE text USING md5({column}::text || random())",
            f"ALTER TABLE {sql} ALTER {column} SET{self._default(type_)}",
            f"ALTER TABLE {sql} ALTER {column} {chance.choice(['SET', 'DROP'])} NOT NULL",
            f"ALTER TABLE {sql} ADD PRIMARY KEY ({column})",
            f"ALTER TABLE {sql} ADD CHECK ({column} IS NOT NULL)",
            f"ALTER TABLE {sql} ADD UNIQUE ({column})",
            f"ALTER TABLE {sql} ADD made bigint GENERATED ALWAYS AS (1 + 1) STORED",
            f"ALTER TABLE {sql} RENAME TO {chance.choice(_NAMES)}",
            f"ALTER TABLE {sql} SET SCHEMA {chance.choice(_SCHEMAS)}",
            f"ALTER TABLE {sql} OWNER TO {chance.choice(ROLES)}",
            f"ALTER TABLE {sql} SET (fillfactor = {chance.randrange(50, 100)})",
            f"CREATE INDEX ON {sql} ({column})",
            f"CREATE UNIQUE INDEX i{chance.randrange(5)} ON {sql} ({column})",
            f"COMMENT ON TABLE {sql} IS 'said; {chance.randrange(9)}'",
            f"GRANT SELECT ON {sql} TO {chance.choice(ROLES)}",
            f"CREATE OR REPLACE VIEW v{chance.randrange(3)} AS SELECT {column} FROM {sql}",
            f"DROP VIEW IF EXISTS v{chance.randrange(3)}",
            "CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql"
            f" AS 'SELECT {chance.randrange(9)}; SELECT 1'",
            "ALTER TYPE mood RENAME VALUE 'ok' TO 'ok'",
            f"DROP TABLE {sql}{chance.choice(['', ' CASCADE'])}",
            f"DROP TABLE {sql}, {other.sql} CASCADE",
            f"SELECT {column} AS kept INTO {self._name()} FROM {sql}",
            f"CREATE TABLE {self._name()} (LIKE {sql} INCLUDING ALL)",
        ]
        if table.kind == "p":
            bounds = f"FOR VALUES FROM ({start}) TO ({start + 20})"
            drawn += [f"CREATE TABLE {self._name()} PARTITION OF {sql} {bounds}"] * 8
            drawn += [f"ALTER TABLE {sql} ATTACH PARTITION {other.sql} {bounds}"] * 4
            drawn += [f"CREATE TABLE {self._name()} PARTITION OF {sql} DEFAULT"]
            drawn += [
                f"ALTER TABLE {sql} DETACH PARTITION {each.sql}" for each in tables if each.is_partition
            ]
        return chance.choice(drawn)

    def _rows(self, table: _Table) -> str:
        chance = self._chance
        values = {
            name: _TYPES.get(type_.replace("numeric", "numeric(12,2)"), lambda _: "NULL")(chance)
            for name, type_ in table.columns.items()
            if chance.random() < 0.9
        }
        if not values:
            return f"DELETE FROM {table.sql}"
        work = chance.choice(["insert"] * 5 + ["update"] * 3 + ["delete", "truncate"])
        some = f"(tableoid, ctid) IN (SELECT tableoid, ctid FROM {table.sql} LIMIT {chance.randint(1, 3)})"
        if work == "insert":
            return (
                f"INSERT INTO {table.sql} ({', '.join(values)}) VALUES ({', '.join(values.values())})"
                " ON CONFLICT DO NOTHING"
            )
        if work == "update":
            name = chance.choice(list(values))
            return f"UPDATE {table.sql} SET {name} = {values[name]} WHERE {some}"
        if work == "delete":
            return f"DELETE FROM {table.sql} WHERE {some}"
        return chance.choice([f"TRUNCATE {table.sql}", f"DELETE FROM {table.sql} WHERE {some}"])
