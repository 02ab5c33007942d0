"""pgoutput's messages as values. Pure; protocol version 1: whole transactions in commit order.

Source: PostgreSQL's documentation, "Logical Replication Message Formats". Integers are big
endian, strings end with a zero byte, times are microseconds since 2000-01-01 UTC.

A row is a list of fields, each exactly as COPY BINARY wants it: a four-byte length and the
value, or the length -1 for NULL. So applying a row is splicing bytes. A TOASTed value that
an update left alone is not sent; its field is None.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from castling.errors import DecodeError

__all__ = [
    "FRAME_MAX",
    "NULL",
    "Column",
    "Fields",
    "Relation",
    "Row",
    "frames",
    "pack_frames",
    "parse_relation",
    "parse_row",
    "unix_ns",
]

#: a field: COPY BINARY length and value; None where the server did not send it
Fields = list[bytes | None]

NULL = b"\xff\xff\xff\xff"

_LENGTH = struct.Struct("<I")
_I16 = struct.Struct(">H")
_I32 = struct.Struct(">I")
_RELATION = struct.Struct(">cH")
_COLUMN = struct.Struct(">Ii")

#: nanoseconds between 1970-01-01 and 2000-01-01
_Y2000_NS = 946_684_800_000_000_000
#: no message is longer: the server's own limit for one
FRAME_MAX = 1 << 30


def unix_ns(pg_microseconds: int) -> int:
    """A PostgreSQL timestamp as nanoseconds since 1970."""
    return pg_microseconds * 1000 + _Y2000_NS


class Row(NamedTuple):
    """One tuple: its fields, and which columns came as text (bit i stands for column i)."""

    fields: Fields
    text: int


@dataclass(frozen=True, slots=True)
class Column:
    """`key`: part of the replica identity. `type_oid` is the source's."""

    name: str
    type_oid: int
    type_modifier: int
    key: bool


@dataclass(frozen=True, slots=True)
class Relation:
    """A table as the source described it before its first change.

    `identity`: d default, n nothing, f full, i index. Two descriptions are the same table
    with the same shape exactly when they are equal.
    """

    oid: int
    schema: str
    name: str
    identity: str
    columns: tuple[Column, ...]

    @property
    def keys(self) -> tuple[int, ...]:
        """Indexes of the replica identity's columns; empty when a row can only be told by all of it."""
        if self.identity in "nf":
            return ()
        return tuple(index for index, column in enumerate(self.columns) if column.key)

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


def pack_frames(messages: list[bytes]) -> bytes:
    """The payload of a DATA record: each message behind its length."""
    parts: list[bytes] = []
    for message in messages:
        parts.append(_LENGTH.pack(len(message)))
        parts.append(message)
    return b"".join(parts)


def frames(payload: bytes) -> Iterator[bytes]:
    """The messages of a DATA record's payload. Raises DecodeError when it is not made of whole ones."""
    at, end = 0, len(payload)
    while at < end:
        if end - at < 4:
            raise DecodeError("a message's length is cut off")
        (length,) = _LENGTH.unpack_from(payload, at)
        at += 4
        if length == 0 or length > FRAME_MAX or at + length > end:
            raise DecodeError("a message is cut off")
        yield payload[at : at + length]
        at += length


def _text(message: bytes, at: int) -> tuple[str, int]:
    end = message.find(b"\0", at)
    if end < 0:
        raise DecodeError("a name in a message has no end")
    return message[at:end].decode(), end + 1


def parse_relation(message: bytes) -> Relation:
    """A Relation message ('R')."""
    try:
        (oid,) = _I32.unpack_from(message, 1)
        schema, at = _text(message, 5)
        name, at = _text(message, at)
        identity, count = _RELATION.unpack_from(message, at)
        at += _RELATION.size
        columns = []
        for _ in range(count):
            flags = message[at]
            column, at = _text(message, at + 1)
            type_oid, modifier = _COLUMN.unpack_from(message, at)
            at += _COLUMN.size
            columns.append(Column(column, type_oid, modifier, bool(flags & 1)))
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise DecodeError("a Relation message is cut off or garbled") from error
    if at != len(message):
        raise DecodeError("a Relation message is longer than it says")
    if identity not in (b"d", b"n", b"f", b"i"):
        raise DecodeError(f"a table of unknown replica identity {identity!r}")
    return Relation(oid, schema or "pg_catalog", name, identity.decode(), tuple(columns))


def parse_row(message: bytes, at: int) -> tuple[Row, int]:
    """The TupleData at byte `at` of a message, and where it ends. Raises DecodeError."""
    try:
        (count,) = _I16.unpack_from(message, at)
        at += 2
        fields: Fields = []
        append = fields.append
        text = 0
        unpack = _I32.unpack_from
        for index in range(count):
            kind = message[at]
            if kind == 0x62 or kind == 0x74:  # b: binary, t: text
                end = at + 5 + unpack(message, at + 1)[0]
                append(message[at + 1 : end])
                at = end
                if kind == 0x74:
                    text |= 1 << index
            elif kind == 0x6E:  # n: NULL
                append(NULL)
                at += 1
            elif kind == 0x75:  # u: unchanged, not sent
                append(None)
                at += 1
            else:
                raise DecodeError(f"a column of unknown form {kind:#x}")
    except (struct.error, IndexError) as error:
        raise DecodeError("a row is cut off") from error
    if at > len(message):
        raise DecodeError("a row is cut off")
    return Row(fields, text), at
