"""What the stream says of large objects: the messages, and how they are written. Pure.

Logical decoding does not show large objects, so they are compared: the source end digests them at intervals
and writes those that have changed, whole and in pieces, as messages into the source's log. All pieces of one
object stand in one transaction. `All` lists what there is, so that what was removed while nobody looked goes.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from castling.errors import DecodeError

__all__ = [
    "CONTENT",
    "GRANTS",
    "LARGE_OBJECTS_PREFIX",
    "PIECE_BYTES",
    "All",
    "Grant",
    "Message",
    "Piece",
    "State",
    "decode_large",
    "encode_large",
    "runs",
]

LARGE_OBJECTS_PREFIX = "castling:lo"
#: content of one message, about
PIECE_BYTES = 1 << 20
#: as far as PostgreSQL lets a large object grow
_OFFSET_MAX = 1 << 43
_OID_MAX = (1 << 32) - 1


#: a digest of the content of each object
CONTENT = """
SELECT loid, pg_catalog.sha256(pg_catalog.string_agg(
           pg_catalog.int4send(pageno) || pg_catalog.sha256(data), ''::bytea ORDER BY pageno)) AS content
  FROM pg_catalog.pg_largeobject {where} GROUP BY loid
"""
#: who may do what with one object, the owner by default
GRANTS = """
SELECT COALESCE(r.rolname, ''), a.privilege_type, a.is_grantable
  FROM pg_catalog.pg_largeobject_metadata m
 CROSS JOIN LATERAL pg_catalog.aclexplode(COALESCE(m.lomacl, pg_catalog.acldefault('L', m.lomowner))) a
  LEFT JOIN pg_catalog.pg_roles r ON r.oid = a.grantee
 WHERE m.oid = %s ORDER BY 1, 2
"""


class Grant(msgspec.Struct, frozen=True):
    """One entry of an access list. `role` empty: everybody."""

    role: str
    privilege: str  # SELECT | UPDATE
    grantable: bool


class State(msgspec.Struct, frozen=True, tag="state", kw_only=True):
    """Comes before the pieces: the object is to be made, or emptied, unless it has this content already."""

    group: str
    at_ns: int
    oid: int
    content: bytes
    owner: str
    grants: list[Grant] = []
    comment: str | None = None


class Piece(msgspec.Struct, frozen=True, tag="piece", kw_only=True):
    """A run of bytes of the object of the State before it. What no run covers is a hole of zeros."""

    group: str
    oid: int
    offset: int
    data: bytes


class All(msgspec.Struct, frozen=True, tag="all", kw_only=True):
    """Of the objects whose number is from `first` to `last`, only these are there."""

    group: str
    at_ns: int
    first: int
    last: int
    oids: list[int]


Message = State | Piece | All
_DECODER: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)
_VERSION = b"\x01"


def encode_large(message: Message) -> bytes:
    return _VERSION + msgspec.msgpack.encode(message)


def decode_large(content: bytes) -> Message:
    """DecodeError for what is no message of large objects, or one that this release does not know."""
    if content[:1] != _VERSION:
        raise DecodeError(f"a {LARGE_OBJECTS_PREFIX} message is of a version that is not known here")
    try:
        found = _DECODER.decode(content[1:])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DecodeError(f"a {LARGE_OBJECTS_PREFIX} message can't be read: {error}") from error
    numbers = [found.first, found.last, *found.oids] if isinstance(found, All) else [found.oid]
    if not all(0 <= number <= _OID_MAX for number in numbers):
        raise DecodeError(f"a {LARGE_OBJECTS_PREFIX} message names what can't be a large object")
    if isinstance(found, Piece) and not 0 <= found.offset <= _OFFSET_MAX:
        raise DecodeError(f"a {LARGE_OBJECTS_PREFIX} message goes beyond what a large object can hold")
    if isinstance(found, State) and any(
        grant.privilege not in ("SELECT", "UPDATE") for grant in found.grants
    ):
        raise DecodeError(f"a {LARGE_OBJECTS_PREFIX} message grants what is no right on a large object")
    return found


def runs(pages: list[tuple[int, bytes]], *, page_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Pages (number, content; in order) as runs of bytes without a hole, of about PIECE_BYTES each."""
    parts: list[bytes] = []
    start = size = 0
    for number, data in pages:
        offset = number * page_bytes
        if parts and (offset != start + size or size >= PIECE_BYTES):
            yield start, b"".join(parts)
            parts = []
        if not parts:
            start, size = offset, 0
        parts.append(data)
        size += len(data)
    if parts:
        yield start, b"".join(parts)
