"""What a repair says to the target through the stream, and the target's side of it.

A repair travels as a message in the source's log, in a transaction that holds the rows locked: so it has one
place among all changes of these rows, and what it says is true at that place. The target carries it out with
its progress, like any change: exactly once, between what came before and after it.

Anybody may write messages on the source; so only those are carried out whose digest Castling has noted,
before, in `castling.audit_repairs` of the target. A repair that the target refuses is noted there, and harms
no other change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import psycopg
from psycopg import AsyncConnection

from castling.errors import DecodeError
from castling.kinds.postgres.audit_sql import Hashed, hashed
from castling.kinds.postgres.mapping import Found, find_columns
from castling.kinds.postgres.statements import quoted

__all__ = ["AuditMend", "MendMessage", "RowMend", "digest", "encode_mend", "key_condition"]


class RowMend(msgspec.Struct, frozen=True, kw_only=True):
    """One row of a table, by the target's name. With a `key`: it is `row` at this place of the stream, or,
    with `row` None, it is not there, and goes if its hash is `hash` (another one came by the stream). Without
    a key: `times` more of `row`, or, with `row` None, `times` fewer of those whose hash is `hash`.

    `columns`: of `row`; `hashed`: those that the hash is of. Values as text."""

    schema: str
    name: str
    columns: list[str]
    hashed: list[Hashed]
    key: dict[str, str] | None = None
    row: list[str | None] | None = None
    hash: int | None = None
    times: int = 1


class MendMessage(msgspec.Struct, frozen=True):
    group: str
    nonce: str
    rows: list[RowMend]
    v: int = 1


def encode_mend(message: MendMessage) -> bytes:
    return msgspec.json.encode(message)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _decode(content: bytes) -> MendMessage:
    try:
        return msgspec.json.decode(content, type=MendMessage)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DecodeError("a message about a repair can't be read") from error


class AuditMend:
    """Handles repairs on the connection that applies. `elsewhere`: the tables that stand still."""

    def __init__(self, group: str, elsewhere: Callable[[], set[tuple[str, str]]]) -> None:
        self._group = group
        self._elsewhere = elsewhere

    async def take(self, connection: AsyncConnection[Any], content: bytes) -> None:
        """Mend what was asked for by Castling, in the open transaction; what others wrote is passed over."""
        cursor = await connection.execute(
            "SELECT FROM castling.audit_repairs WHERE stream = %s AND digest = %s AND state = 'asked'",
            (self._group, digest(content)),
        )
        if await cursor.fetchone() is None:
            return
        message = _decode(content)
        detail = ""
        try:
            async with connection.transaction():
                detail = await self._mend(connection, message.rows)
                if detail:
                    raise psycopg.Rollback
        except psycopg.OperationalError:
            raise
        except psycopg.Error as error:
            detail = error.diag.message_primary or str(error)
        await connection.execute(
            "UPDATE castling.audit_repairs SET state = %s, detail = %s WHERE stream = %s AND digest = %s",
            ("refused" if detail else "done", detail[:1000], self._group, digest(content)),
        )

    async def _mend(self, connection: AsyncConnection[Any], rows: list[RowMend]) -> str:
        """Why it could not be done; empty: it is. All rows that go, then all that come: two may change
        places."""
        tables: dict[tuple[str, str], list[Found]] = {}
        for each in rows:
            table = (each.schema, each.name)
            if table in self._elsewhere():
                return f"{each.schema}.{each.name} stands still: its rows come with the rest"
            if table not in tables:
                tables[table] = await find_columns(connection, *table)
            if not tables[table]:
                return f"{each.schema}.{each.name} is not on the target"
        for each in rows:
            await self._remove(connection, each, tables[each.schema, each.name])
        for each in rows:
            if each.row is not None:
                await self._insert(connection, each, tables[each.schema, each.name])
        return ""

    async def _remove(self, connection: AsyncConnection[Any], each: RowMend, found: list[Found]) -> None:
        table = _named(each, found).replace("%", "%%")
        same = f"{hashed(each.hashed)} = %s".replace("%", "%%").replace("%%s", "%s")
        if each.key is not None:
            where, values = key_condition(each.key, found)
            if each.row is None:
                where, values = f"{where} AND {same}", [*values, str(each.hash)]
            await connection.execute(f"DELETE FROM {table} WHERE {where}".encode(), values)
        elif each.row is None:
            await connection.execute(
                f"DELETE FROM {table} WHERE (tableoid, ctid) IN"
                f" (SELECT tableoid, ctid FROM {table} WHERE {same} LIMIT %s::int8)".encode(),
                (str(each.hash), each.times),
            )

    async def _insert(self, connection: AsyncConnection[Any], each: RowMend, found: list[Found]) -> None:
        table = f"{quoted(each.schema)}.{quoted(each.name)}"
        columns = ", ".join(map(quoted, each.columns)).replace("%", "%%")
        values = ", ".join(["%s"] * len(each.columns))
        statement = (
            f"INSERT INTO {table.replace('%', '%%')} ({columns}) OVERRIDING SYSTEM VALUE VALUES ({values})"
        )
        for _ in range(1 if each.key is not None else each.times):
            await connection.execute(statement.encode(), each.row)


def _named(each: RowMend, found: Iterable[Found]) -> str:
    table = f"{quoted(each.schema)}.{quoted(each.name)}"
    return table if any(column.in_partitioned for column in found) else f"ONLY {table}"


def key_condition(key: dict[str, str], found: Iterable[Found]) -> tuple[str, list[str]]:
    """A condition by the operators of the key's types, and its parameters."""
    equals = {column.name: column.equals or "=" for column in found}
    parts = [f"{quoted(name).replace('%', '%%')} {equals.get(name, '=')} %s" for name in key]
    return " AND ".join(parts), list(key.values())
