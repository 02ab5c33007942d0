"""Schema changes as the source's triggers tell them: the content of a `castling:ddl` message. Pure.

The form is docs/formats/postgres-stream.md. Anybody may write logical messages, and what these say is
executed on the target: so each is sealed with a key that only Castling's user can read on the source,
and capture lets no other into the journal. `untold` ones have no seal: they ask for nothing, and only say
that a statement was made that could not be told.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator, Sequence

import msgspec

from castling.errors import DecodeError
from castling.kinds.base import Piece
from castling.kinds.postgres.changes import Change, Message

__all__ = [
    "DDL_PREFIX",
    "Dropped",
    "SchemaChange",
    "Shape",
    "changes_schema",
    "decode_ddl",
    "is_sealed",
    "runs",
]

DDL_PREFIX = "castling:ddl"
_UNTOLD = b"untold:"
_SEAL = 32
_VERSION = 1


class Shape(msgspec.Struct, frozen=True):
    """A table or view after the statement. `was`: its name before; `roots`: what it is a partition of.

    `columns`: name, type, how it is generated. `filled`: what new columns hold in the rows from before.
    `untold`: it has rows that the stream was never told; `unfit`: it can't be published;
    `rewritten`: why all its rows were written anew.
    """

    schema: str
    name: str
    kind: str
    columns: list[tuple[str, str, str]] = []
    was: tuple[str, str] | None = None
    roots: list[tuple[str, str]] = []
    filled: dict[str, str] = {}
    untold: bool = False
    unfit: bool = False
    rewritten: int = 0

    @property
    def table(self) -> tuple[str, str]:
        return self.schema, self.name


class Dropped(msgspec.Struct, frozen=True):
    """What a DROP named: of one type; each as PostgreSQL writes it, with the table or view it is or is of.
    `tables`: all tables that went with it."""

    type: str
    cascade: bool
    objects: list[tuple[str, list[str] | None]]
    tables: list[list[str]] | None = None


class SchemaChange(msgspec.Struct, frozen=True):
    """One statement. `query`: the whole text of which it is the `nth` of its tag; `stack`: the call stack
    where it was called from a function; `bare`, `index`: the object as the source's catalog has it.
    `objects`: type, identity, and names and arguments by which any server finds it."""

    v: int
    tag: str
    role: str = ""
    path: str = ""
    settings: dict[str, str] = {}
    query: str | None = None
    nth: int = 1
    stack: str | None = None
    bare: str | None = None
    index: str | None = None
    objects: list[tuple[str, str | None, tuple[list[str], list[str]] | None]] = []
    tables: list[Shape] = []
    drop: Dropped | None = None
    #: why it could not be told
    untold: str | None = None


def is_sealed(content: bytes, key: bytes) -> bool:
    """Whether the source's own triggers wrote this, or it is one that asks for nothing."""
    if content.startswith(_UNTOLD):
        return True
    seal, body = content[:_SEAL], content[_SEAL:]
    inner = hashlib.sha256(key + body).digest()
    return hmac.compare_digest(seal, hashlib.sha256(key + inner).digest())


def decode_ddl(content: bytes) -> SchemaChange:
    """DecodeError when it can't be read, or is of a version that this release does not know."""
    if content.startswith(_UNTOLD):
        told = content[len(_UNTOLD) :].decode(errors="replace")
        return SchemaChange(v=_VERSION, tag=told.partition(":")[0], untold=told)
    try:
        found = msgspec.json.decode(content[_SEAL:], type=SchemaChange)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DecodeError("a message about a schema change can't be read") from error
    if found.v != _VERSION:
        raise DecodeError(f"a message about a schema change is of version {found.v}, not {_VERSION}")
    return found


def changes_schema(pieces: Sequence[Piece]) -> bool:
    """Whether a change of the schema is among them."""
    return any(_is_ddl(change) for piece in pieces for change in piece.changes)


def runs(pieces: Sequence[Piece]) -> Iterator[tuple[Sequence[Piece], Message | None]]:
    """Pieces, cut behind each schema change: what comes behind it may depend on it."""
    if not changes_schema(pieces):
        yield pieces, None
        return
    run: list[Piece] = []
    for piece in pieces:
        changes: list[Change] = []
        for change in piece.changes:
            if isinstance(change, Message) and change.prefix == DDL_PREFIX:
                run.append(Piece(changes, 0, None, piece.offset))
                yield run, change
                run, changes = [], []
            else:
                changes.append(change)
        run.append(Piece(changes, 0, None, piece.offset))
    yield run, None


def _is_ddl(change: Change) -> bool:
    return isinstance(change, Message) and change.prefix == DDL_PREFIX
