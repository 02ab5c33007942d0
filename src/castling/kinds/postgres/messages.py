"""pgoutput's messages as values. Pure; protocol version 1: whole transactions in commit order.

Source: PostgreSQL's documentation, "Logical Replication Message Formats". Integers are big
endian, strings end with a zero byte, times are microseconds since 2000-01-01 UTC.

A row's fields are each exactly as COPY BINARY wants it: a four-byte length and the
value, or the length -1 for NULL. So applying a row is splicing bytes. A TOASTed value that
an update left alone is not sent; its field is None.

One of the modules that are compiled where a compiler is at hand (see setup.py); it runs as it stands
elsewhere. That is why its inner loops spell integers out and its classes are plain.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple, final

from mypy_extensions import i64

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

NULL: Final = b"\xff\xff\xff\xff"

_LENGTH = struct.Struct("<I")
#: the lengths of most messages, packed
_SHORT: Final = [_LENGTH.pack(size) for size in range(1024)]
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


@final
class Row:
    """One tuple: its fields, and which columns came as text (bit i stands for column i).

    One that was read from a message is cut into fields only when they are asked for: most rows go to the
    target with nothing but their key looked at. `width`: its columns; `whole`: all of them were sent.
    """

    __slots__ = ("_at", "_fields", "_message", "text", "whole", "width")

    def __init__(
        self,
        fields: Fields | None,
        text: int,
        message: bytes = b"",
        at: i64 = 0,
        width: i64 = 0,
        whole: bool = True,
    ) -> None:
        """Of fields, or uncut: of what `parse_row` found in order in `message` from byte `at` on."""
        self._fields = fields
        self._message = message
        self._at: i64 = at
        self.text = text
        if fields is not None:
            width = len(fields)
            whole = None not in fields
        self.width: i64 = width
        self.whole = whole

    @property
    def fields(self) -> Fields:
        found = self._fields
        if found is None:
            found = []
            _cut(self._message, self._at, self.width, found)
            self._fields = found
        return found

    @property
    def size(self) -> int:
        """Bytes of it, about."""
        if self._fields is not None:
            return sum([len(value) for value in self._fields if value is not None])
        return len(self._message)

    def field(self, index: int) -> bytes | None:
        """One of its fields, without cutting the others."""
        if self._fields is not None:
            return self._fields[index]
        return _field(self._message, self._at, index)

    def splice(self, parts: list[bytes | None]) -> None:
        """Add all its fields to `parts`."""
        if self._fields is not None:
            parts.extend(self._fields)
        else:
            _cut(self._message, self._at, self.width, parts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Row) and self.fields == other.fields and self.text == other.text

    def __hash__(self) -> int:
        return hash((tuple(self.fields), self.text))

    def __repr__(self) -> str:
        return f"Row(fields={self.fields!r}, text={self.text!r})"


def _cut(message: bytes, at: i64, width: i64, found: list[bytes | None]) -> None:
    """The fields of a row that was found to be in order (`parse_row`)."""
    while width > 0:
        kind: i64 = message[at]
        if kind == 0x6E:
            found.append(NULL)
            at += 1
        elif kind == 0x75:
            found.append(None)
            at += 1
        else:
            end: i64 = _end(message, at)
            found.append(message[at + 1 : end])
            at = end
        width -= 1


def _field(message: bytes, at: i64, index: i64) -> bytes | None:
    while index > 0:
        at = _end(message, at)
        index -= 1
    kind: i64 = message[at]
    if kind == 0x6E:
        return NULL
    return None if kind == 0x75 else message[at + 1 : _end(message, at)]


def _end(message: bytes, at: i64) -> i64:
    """Where the column at byte `at` of a row that is in order ends."""
    kind: i64 = message[at]
    if kind == 0x6E or kind == 0x75:
        return at + 1
    top: i64 = message[at + 1]
    high: i64 = message[at + 2]
    middle: i64 = message[at + 3]
    low: i64 = message[at + 4]
    return at + 5 + (top << 24 | high << 16 | middle << 8 | low)


class Column(NamedTuple):
    """`key`: part of the replica identity. `type_oid` is the source's."""

    name: str
    type_oid: int
    type_modifier: int
    key: bool


@final
class Relation:
    """A table as the source described it before its first change.

    `identity`: d default, n nothing, f full, i index. `keys`: indexes of the replica identity's
    columns; empty when a row can only be told by all of it. Two descriptions are the same table
    with the same shape exactly when they are equal.
    """

    __slots__ = ("columns", "identity", "key_mask", "keys", "name", "oid", "schema")

    def __init__(self, oid: int, schema: str, name: str, identity: str, columns: tuple[Column, ...]) -> None:
        self.oid = oid
        self.schema = schema
        self.name = name
        self.identity = identity
        self.columns = columns
        found = () if identity in "nf" else tuple(index for index, column in enumerate(columns) if column.key)
        self.keys: tuple[int, ...] = found
        #: the same as bits
        self.key_mask: int = sum(1 << index for index in found)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Relation) and (
            self.oid == other.oid
            and self.schema == other.schema
            and self.name == other.name
            and self.identity == other.identity
            and self.columns == other.columns
        )

    def __hash__(self) -> int:
        return hash((self.oid, self.schema, self.name, self.identity, self.columns))

    def __repr__(self) -> str:
        return f"Relation({self.oid}, {self.schema!r}, {self.name!r}, {self.identity!r}, {self.columns!r})"

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


def pack_frames(messages: list[bytes]) -> bytes:
    """The payload of a DATA record: each message behind its length."""
    parts: list[bytes] = []
    for message in messages:
        size = len(message)
        parts.append(_SHORT[size] if size < 1024 else _LENGTH.pack(size))
        parts.append(message)
    return b"".join(parts)


def frames(payload: bytes) -> Iterator[bytes]:
    """The messages of a DATA record's payload. Raises DecodeError when it is not made of whole ones."""
    return iter(split(payload))


def split(payload: bytes) -> list[bytes]:
    """`frames` as a list."""
    found: list[bytes] = []
    at: i64 = 0
    end: i64 = len(payload)
    while at < end:
        if end - at < 4:
            raise DecodeError("a message's length is cut off")
        low: i64 = payload[at]
        middle: i64 = payload[at + 1]
        high: i64 = payload[at + 2]
        top: i64 = payload[at + 3]
        length: i64 = low | middle << 8 | high << 16 | top << 24
        at += 4
        if length == 0 or length > FRAME_MAX or at + length > end:
            raise DecodeError("a message is cut off")
        found.append(payload[at : at + length])
        at += length
    return found


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


def parse_row(message: bytes, at: i64) -> tuple[Row, i64]:
    """The TupleData at byte `at` of a message, and where it ends. Raises DecodeError."""
    size: i64 = len(message)
    if at < 0 or at + 2 > size:
        raise DecodeError("a row is cut off")
    top: i64 = message[at]
    low: i64 = message[at + 1]
    count: i64 = top << 8 | low
    at += 2
    begin: i64 = at
    whole = True
    text = 0
    index: i64 = 0
    while index < count:
        if at >= size:
            raise DecodeError("a row is cut off")
        kind: i64 = message[at]
        if kind == 0x62 or kind == 0x74:  # b: binary, t: text
            if at + 5 > size:
                raise DecodeError("a row is cut off")
            at = _end(message, at)
            if at > size:
                raise DecodeError("a row is cut off")
            if kind == 0x74:
                text |= 1 << int(index)
        elif kind == 0x6E:  # n: NULL
            at += 1
        elif kind == 0x75:  # u: unchanged, not sent
            whole = False
            at += 1
        else:
            raise DecodeError(f"a column of unknown form {int(kind):#x}")
        index += 1
    return Row(None, text, message, begin, count, whole), at
