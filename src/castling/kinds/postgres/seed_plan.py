"""How the first copy is cut into chunks, and what is said about each over the bulk channel. Pure.

A chunk is a range of a table's blocks: that is read in the order of the disk, whatever the keys are. What a
copy that broke off has brought is known as such ranges, and what is left are the gaps between them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import msgspec

from castling.config import GroupSettings
from castling.errors import LinkProtocol
from castling.kinds.postgres.catalog import Table

__all__ = [
    "Begin",
    "Chunk",
    "Emptied",
    "Finish",
    "Have",
    "Keys",
    "Match",
    "Part",
    "Patch",
    "Range",
    "Renew",
    "Renewed",
    "Request",
    "Resume",
    "Resumed",
    "Schema",
    "There",
    "chosen_by",
    "chunks",
    "cut",
    "decode",
    "decode_request",
    "encode",
    "encode_request",
    "gaps",
    "likely_rows",
    "merged",
    "within",
]

#: what a row takes in a table that nobody has analysed, bytes, about
_ROW_BYTES = 100

#: blocks of a table: the first, and the one after the last; None: whatever follows
Range = tuple[int, int | None]
_T = TypeVar("_T")


# --- what is said -----------------------------------------------------------------------------


class Begin(msgspec.Struct, frozen=True, tag="begin"):
    """A first copy begins. `tables`: [schema, name] each; `create`: their definitions come first. `lock`:
    key of an advisory lock that the source end holds on the source; where it is held, there is the source.
    `naming`: digest of the rules by which the source's tables got the names that all requests use. `lsn`:
    where its stream begins, by which the copy is known; `chosen`: see `chosen_by`."""

    tables: list[tuple[str, str]]
    create: bool
    lock: int
    naming: str = ""
    lsn: int = 0
    chosen: str = ""
    #: rows that are there are compared with the source's, not refused
    match: bool = False


class Resume(msgspec.Struct, frozen=True, tag="resume"):
    """The copy of the stream that begins at `lsn` is gone on with; the answer is Resumed."""

    tables: list[tuple[str, str]]
    create: bool
    naming: str
    lsn: int
    chosen: str


class Resumed(msgspec.Struct, frozen=True):
    """`finished`: nothing is left to do. `indexed`: indexes and constraints are there. `attempt`: counts."""

    attempt: int
    finished: bool
    indexed: bool


class Schema(msgspec.Struct, frozen=True, tag="schema"):
    """The body is an archive of pg_dump of a server of this version. `owners`: restore owners and grants."""

    server_version: int
    owners: bool = False


class Part(msgspec.Struct, frozen=True, array_like=True):
    """A table of the copy, by its name on the target, as a view of the source has it. `file`: which of its
    files holds the rows."""

    schema: str
    name: str
    oid: int
    file: int
    columns: list[str]


class Renew(msgspec.Struct, frozen=True, tag="renew"):
    """All that is there is to be brought up to a view of the source at `lsn`. The body: its Parts.
    The answer is Renewed: what has to be read once more for that."""

    lsn: int


class Renewed(msgspec.Struct, frozen=True):
    """`restarted`: tables that are empty again, and why. `keyed`: tables of which rows are wanted, told by
    these columns, so many. `filled`: tables that hold rows of others, which are to be compared."""

    restarted: list[tuple[str, str, str]]
    keyed: list[tuple[str, str, list[str], int]]
    filled: list[tuple[str, str]] = []


class Have(msgspec.Struct, frozen=True, tag="have"):
    """What is there of the tables behind `after` (schema, name)? The answer: some There; none at the end."""

    after: tuple[str, str]


class There(msgspec.Struct, frozen=True, array_like=True):
    schema: str
    name: str
    ranges: list[Range]
    rows: int
    bytes: int


class Keys(msgspec.Struct, frozen=True, tag="keys"):
    """Which rows of the table are wanted next? The answer: the last one's number, and the keys, as text."""

    schema: str
    table: str
    lsn: int


class Patch(msgspec.Struct, frozen=True, tag="patch"):
    """The body is COPY data: those rows of the keys up to number `upto` that there are."""

    schema: str
    table: str
    columns: list[str]
    lsn: int
    upto: int
    binary: bool


class Match(msgspec.Struct, frozen=True, tag="match"):
    """The body is COPY text: of each row in the view at `lsn` its key, these columns, and the digest of all
    `columns`. The answer: how many rows are wanted. Without a key there is no body: the table is emptied."""

    schema: str
    table: str
    key: list[str]
    columns: list[str]
    lsn: int


class Chunk(msgspec.Struct, frozen=True, tag="chunk"):
    """The body is COPY data of these columns, of blocks `first` to `last`, as the view at `lsn` has them.
    `binary`: its format."""

    schema: str
    table: str
    columns: list[str]
    lsn: int
    first: int
    last: int | None
    binary: bool


class Emptied(msgspec.Struct, frozen=True, tag="emptied"):
    """The table was emptied on the source before it was read: nothing of it is left to copy. `until`: the
    last possible position of the TRUNCATE (see `emptied`)."""

    schema: str
    table: str
    lsn: int
    until: int


class Finish(msgspec.Struct, frozen=True, tag="finish"):
    """All is there, as the view at `lsn` has it. `begun`: where the stream begins."""

    lsn: int
    begun: int
    server_version: int


Request = Begin | Resume | Schema | Renew | Have | Keys | Match | Patch | Chunk | Emptied | Finish


def encode_request(request: Request) -> bytes:
    return msgspec.msgpack.encode(request)


def decode_request(data: bytes) -> Request:
    return decode(data, Request)  # type: ignore[arg-type]  # a union


def encode(value: Any) -> bytes:
    """An answer, or the parts of a `Renew`."""
    return msgspec.msgpack.encode(value)


def decode(data: bytes, type: type[_T]) -> _T:
    try:
        return msgspec.msgpack.decode(data, type=type)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise LinkProtocol("what was said about a first copy can't be read") from error


def chosen_by(settings: GroupSettings) -> str:
    """Stands for what the settings choose to copy: a copy of something else can't be gone on with."""
    said = msgspec.json.encode(
        [settings.include, settings.exclude, settings.rename, settings.rows, settings.columns]
    )
    return hashlib.sha256(said).hexdigest()[:16]


# --- chunks -----------------------------------------------------------------------------------


def likely_rows(table: Table) -> int:
    """How many rows there are, about; by the size where the server has not counted yet."""
    return table.rows or table.bytes // _ROW_BYTES


def merged(ranges: Iterable[Range]) -> list[Range]:
    """The same blocks in as few ranges as can be, in order."""
    found: list[Range] = []
    for first, last in sorted(ranges, key=lambda each: each[0]):
        if found and (found[-1][1] is None or first <= found[-1][1]):
            before = found[-1][1]
            end = None if before is None or last is None else max(before, last)
            found[-1] = (found[-1][0], end)
        else:
            found.append((first, last))
    return found


def gaps(ranges: Iterable[Range]) -> list[Range]:
    """The blocks of a table that are in none of the ranges."""
    found: list[Range] = []
    at: int | None = 0
    for first, last in merged(ranges):
        assert at is not None, "nothing follows an open end"
        if first > at:
            found.append((at, first))
        at = last
    return found if at is None else [*found, (at, None)]


def cut(left: Iterable[Range], table: Table, pages: int, *, chunk_rows: int) -> Iterator[Range]:
    """The ranges, in parts of about `chunk_rows`. An open end stays one, whatever the estimates are worth."""
    rows = likely_rows(table)
    step = None if pages <= 0 or rows <= chunk_rows else max(1, pages * chunk_rows // rows)
    for first, last in left:
        end = max(pages, first) if last is None else last
        starts = [first] if step is None else list(range(first, end, step)) or [first]
        yield from zip(starts, [*starts[1:], last], strict=True)


def within(ranges: Iterable[Range], place: str = "ctid") -> str:
    """A condition on the physical place of a row; empty where all are meant."""
    told = []
    for first, last in ranges:
        if first == 0 and last is None:
            return ""
        upper = "" if last is None else f" AND {place} < '({last},0)'"
        told.append(f"{place} >= '({first},0)'{upper}")
    return f"({') OR ('.join(told)})" if len(told) > 1 else told[0] if told else "false"


def chunks(table: Table, pages: int, *, chunk_rows: int) -> Iterator[str]:
    """Conditions that cut the table into parts of about `chunk_rows`: they cover every row exactly once."""
    for each in cut([(0, None)], table, pages, chunk_rows=chunk_rows):
        condition = within([each])
        yield f"WHERE {condition}" if condition else ""
