"""What an audit looks at beside the rows: sequences, definitions, and what nobody protects.

A sequence is judged by what the stream has told of it: a target that would hand out a value that the source
is known to have handed out is behind. Definitions are what `compare_schema` finds. Protection is
configuration against reality: what the group chooses and the stream has not is a finding; what nobody chose
is a note.
"""

from __future__ import annotations

import re
from typing import Any

import psycopg
from psycopg import AsyncConnection

from castling.kinds.base import Compared, Discrepancy, Stream
from castling.kinds.postgres.catalog import is_chosen, read_tables, table_name
from castling.kinds.postgres.definitions import Difference
from castling.kinds.postgres.schema_compare import code_of, read_differences
from castling.kinds.postgres.sequence_watch import read_sequences
from castling.kinds.postgres.session import slot_name

__all__ = ["look_beside", "mending_statement"]

#: definitions that the target can be given by the statement that makes them
_MADE = (
    "index",
    "constraint",
    "trigger",
    "rule",
    "statistics",
    "grant",
    "owner",
    "comment",
    "function",
    "schema",
)
_TRIGGER = re.compile(r'(?P<table>.*)\.(?P<name>"(?:[^"]|"")+"|[^".]+)')
_ENDING = re.compile(r"(?P<made>.*\))(?: (?P<state>[DAR]))?", re.DOTALL)
_ENABLED = {"": "ENABLE", "D": "DISABLE", "A": "ENABLE ALWAYS", "R": "ENABLE REPLICA"}

_SEQUENCES = """
SELECT t.schema, t.name, s.seqincrement, pg_sequence_last_value(s.seqrelid), s.seqstart,
       b.last_value, b.is_called
  FROM unnest(%s::text[], %s::text[]) t(schema, name)
  LEFT JOIN pg_namespace n ON n.nspname = t.schema
  LEFT JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.name AND c.relkind = 'S'
  LEFT JOIN pg_sequence s ON s.seqrelid = c.oid
  LEFT JOIN castling.sequences b ON b.stream = %s AND b.schema = t.schema AND b.name = t.name
"""


async def look_beside(
    stream: Stream, rule: str, source: AsyncConnection[Any], target: AsyncConnection[Any]
) -> list[Compared]:
    if rule == "sequences":
        return [await _sequences(stream, source, target)]
    if rule == "definitions":
        return [await _definitions(stream)]
    return [await _protection(stream, source)]


# --- sequences --------------------------------------------------------------------------------


async def _sequences(stream: Stream, source: AsyncConnection[Any], target: AsyncConnection[Any]) -> Compared:
    found = Compared("sequences", "sequences")
    sequences = await read_sequences(source, stream.settings, values=False)
    there = {one.there: one for one in sequences}
    try:
        cursor = await target.execute(
            _SEQUENCES, ([name[0] for name in there], [name[1] for name in there], stream.group)
        )
    except psycopg.errors.UndefinedTable:
        found.problem = "the target was never told of any sequence"
        return found
    for schema, name, increment, last, start, told, called in await cursor.fetchall():
        one = there[str(schema), str(name)]
        if increment is None:
            message = f"sequence {table_name(schema, name)} is not on the target"
            found.found.append(Discrepancy(rule="sequences", part=str(one), what="missing", message=message))
        elif told is None:
            if one.readable:
                found.notes.append(f"sequence {one}: nothing was told of it yet")
        elif not one.cycle and _behind(increment, last, start, told, called):
            found.found.append(
                Discrepancy(
                    rule="sequences",
                    part=str(one),
                    what="behind",
                    message=f"sequence {table_name(schema, name)} would hand out what the source already has",
                    source={"last_value": str(told)},
                    target={"last_value": None if last is None else str(last)},
                    mend="sequence",
                    token={"schema": one.schema, "name": one.name},
                )
            )
    return found


def _behind(increment: int, last: int | None, start: int, told: int, called: bool) -> bool:
    """Whether the target hands out, next, a value that the source had handed out."""
    next_there = start if last is None else last + increment
    next_here = told + (increment if called else 0)
    return next_there < next_here if increment > 0 else next_there > next_here


# --- definitions ------------------------------------------------------------------------------


async def _definitions(stream: Stream) -> Compared:
    found = Compared("definitions", "definitions")
    differences, _ = await read_differences(stream)
    for each in differences:
        statement = mending_statement(each)
        found.found.append(
            Discrepancy(
                rule="grants" if each.kind in ("grant", "owner", "default privileges") else "definitions",
                part=f"{each.kind} {each.name}",
                what=code_of(each),
                message=each.message,
                source=None if each.source is None else {"definition": each.source},
                target=None if each.target is None else {"definition": each.target},
                mend="statement" if statement else "",
                statement=statement,
            )
        )
    return found


def mending_statement(each: Difference) -> str:
    """What makes the target's definition that of the source; empty where a person has to decide. Pure."""
    if each.source is None or each.kind not in _MADE:
        return ""
    if each.target is None or each.kind in ("grant", "owner", "comment"):
        return each.make
    if each.kind == "trigger":
        return _set_trigger(each.name, each.source, each.target)
    return ""


def _set_trigger(name: str, source: str, target: str) -> str:
    """Of a trigger that differs only in whether it is enabled."""
    here, there, place = _ENDING.fullmatch(source), _ENDING.fullmatch(target), _TRIGGER.fullmatch(name)
    if here is None or there is None or place is None or here["made"] != there["made"]:
        return ""
    return f"ALTER TABLE {place['table']} {_ENABLED[here['state'] or '']} TRIGGER {place['name']}"


# --- protection -------------------------------------------------------------------------------


async def _protection(stream: Stream, source: AsyncConnection[Any]) -> Compared:
    found = Compared("protection", "protection")
    cursor = await source.execute(
        "SELECT schemaname, tablename FROM pg_publication_tables WHERE pubname = %s",
        (slot_name(stream.group, stream.backup),),
    )
    streamed = {(str(schema), str(name)) for schema, name in await cursor.fetchall()}
    for table in await read_tables(source, measured=False):
        if (table.schema, table.name) in streamed or table.kind == "p":
            continue
        chosen = is_chosen(table, stream.settings)
        if chosen and table.kind == "r" and table.persistence == "p":
            message = f"{table} is chosen by the group, and the stream does not carry it"
            found.found.append(
                Discrepancy(rule="protection", part=str(table), what="unprotected", message=message)
            )
            continue
        why = {"f": "a foreign table", "m": "a materialized view"}.get(table.kind, "unlogged")
        if not chosen:
            why = "not chosen by the group"
        found.notes.append(f"{table}: {why}")
    return found
