"""Records of a PostgreSQL stream back into transactions. Pure.

See docs/formats/postgres-stream.md: a DATA record's payload is pgoutput messages, each
behind its length; a SESSION record begins a new conversation with the server, in which
every table is described anew and a transaction that was under way is sent again in full.

Whatever does not follow the protocol is a DecodeError: a change that was guessed at would be
applied. After one, the decoder is of no more use.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import Final, final

from mypy_extensions import i64

from castling.errors import DecodeError
from castling.journal.record import Position, Record, RecordType
from castling.kinds.base import Abandon, Commit, Piece
from castling.kinds.postgres.changes import (
    Change,
    Delete,
    Insert,
    Message,
    Oversized,
    Truncate,
    Update,
)
from castling.kinds.postgres.drafts import PART, PART_LAST
from castling.kinds.postgres.messages import (
    FRAME_MAX,
    Relation,
    Row,
    parse_relation,
    parse_row,
    split,
    unix_ns,
)

__all__ = ["PostgresDecoder"]

_BEGIN = struct.Struct(">cQqI")  # final lsn, commit time, xid
_COMMIT = struct.Struct(">cBQQq")  # flags, commit lsn, end lsn, commit time
#: bytes before the first row of a change: kind, table, and what the row is: new, an old key, or an old row
_HEAD: Final = 6
_NEW: Final = 0x4E
_KEY: Final = 0x4B
_OLD: Final = 0x4F
_TRUNCATE = struct.Struct(">cIB")
_OID = struct.Struct(">I")
_MESSAGE = struct.Struct(">cBQ")
#: prefix of the logical messages that carry something to the target
CARRIED = b"castling:"
#: prefix of those that say how the schema changed: their transactions stand alone (a value that was added to
#: an enum, say, can't be used before that is committed)
_SCHEMA: Final = b"castling:ddl"
#: what a change costs in memory beside its bytes, about
_OVERHEAD = 300
#: of a message that is too large so much is kept: its key is mostly in front
_KEPT: Final = 64 << 10


def _whole(row: Row, relation: Relation) -> Row:
    if not row.whole:
        raise DecodeError(f"a row of {relation} was sent without all its values")
    return row


@final
class PostgresDecoder:
    """Implements `kinds.base.Decoder`. `piece_bytes`: a transaction larger than this comes in parts. `named`:
    schema and name of a table on the target, by those on the source. `filtered`: rows come and go by a
    condition; one that came by a change of its key lacks what else was TOASTed and stayed the same.
    `row_max`: a change of more bytes is not put together, and comes as `Oversized`."""

    def __init__(
        self,
        *,
        piece_bytes: int = 8 << 20,
        named: Callable[[str, str], tuple[str, str]] | None = None,
        filtered: bool = False,
        row_max: int = FRAME_MAX,
    ) -> None:
        self._piece_bytes = piece_bytes
        self._named = named
        self._filtered = filtered
        self._row_max = row_max
        self._relations: dict[int, Relation] = {}
        self._last: Relation | None = None
        self._last_table = b""
        self._changes: list[Change] = []
        self._size = 0
        #: final LSN of the open transaction; None between transactions
        self._open: int | None = None
        self._handed_out = False
        self._alone = False
        #: where the transaction or session before ended: progress counts on this order
        self._ended = 0
        self._parts: list[bytes] = []
        self._parts_size = 0
        #: only the beginning of the message in parts is kept
        self._is_oversized = False

    def feed(self, record: Record) -> list[Piece | Abandon]:
        found: list[Piece | Abandon] = []
        if record.type is RecordType.SESSION:
            if self._handed_out:
                found.append(Abandon())
            self._forget()
            self._ended = record.offset
            # the source had nothing more before this: an empty transaction moves progress on
            found.append(Piece([], 0, Commit(record.offset, record.t_ns, record.position), record.offset - 1))
        elif record.type is RecordType.DATA:
            position = record.position
            for message in self._messages(record):
                piece = self._message(message, position)
                if piece is not None:
                    found.append(piece)
        return found

    def _forget(self) -> None:
        """A new conversation begins."""
        self._relations, self._last = {}, None
        self._changes, self._size = [], 0
        self._open, self._handed_out, self._ended = None, False, 0
        self._alone = False
        self._parts, self._parts_size = [], 0

    def _messages(self, record: Record) -> Iterable[bytes]:
        """The record's messages; none while the parts of a large one are not all there."""
        if not record.object:
            if self._parts:
                raise DecodeError("the end of a message in parts is missing")
            return split(record.payload)
        if record.object not in (PART, PART_LAST):
            raise DecodeError(f"a record of unknown kind {record.object}")
        if not self._parts:
            self._is_oversized = self._exceeds(record.payload)
            self._parts.append(record.payload[: 4 + _KEPT] if self._is_oversized else record.payload)
        elif not self._is_oversized:
            self._parts.append(record.payload)
        self._parts_size += len(record.payload)
        if self._parts_size > FRAME_MAX + 4:
            raise DecodeError("a message in parts is longer than a message can be")
        if record.object == PART:
            return []
        parts, self._parts = self._parts, []
        size, self._parts_size = self._parts_size, 0
        if len(parts[0]) <= 4 or int.from_bytes(parts[0][:4], "little") != size - 4:
            raise DecodeError("a message in parts is not as long as it says")
        if self._is_oversized:
            self._add_oversized(parts[0][4:], size - 4)
            return []
        parts[0] = parts[0][4:]
        return [b"".join(parts)]

    def _exceeds(self, payload: bytes) -> bool:
        """Whether this begins a change that is larger than is allowed."""
        return (
            len(payload) > 4
            and payload[4] in b"IUD"
            and int.from_bytes(payload[:4], "little") > self._row_max
        )

    def _add_oversized(self, head: bytes, size: int) -> None:
        self._add(Oversized(self._described(head), size, head), len(head))

    def _message(self, message: bytes, position: Position) -> Piece | None:
        kind = message[0]
        if kind == 0x49:  # I
            self._add(self._insert(message), len(message))
        elif kind == 0x55:  # U
            self._add(self._update(message), len(message))
        elif kind == 0x44:  # D
            self._add(self._delete(message), len(message))
        elif kind == 0x42:  # B
            self._begin(message)
        elif kind == 0x43:  # C
            return self._commit(message, position)
        elif kind == 0x52:  # R
            relation = self._renamed(parse_relation(message))
            self._relations[relation.oid] = relation
            self._last = None
        elif kind == 0x54:  # T
            self._add(self._truncate(message), len(message))
        elif kind == 0x4D:  # M
            self._logical_message(message)
        elif kind not in b"YO":  # type names, origins: nothing to apply
            raise DecodeError(f"a message of unknown kind {kind:#x}")
        if self._size >= self._piece_bytes and self._open is not None:
            return self._part()
        return None

    # --- transactions -------------------------------------------------------------------------

    def _begin(self, message: bytes) -> None:
        if self._open is not None:
            raise DecodeError("a transaction begins inside another")
        if len(message) != _BEGIN.size:
            raise DecodeError("a Begin message has the wrong length")
        final = _BEGIN.unpack(message)[1]
        if final < self._ended:
            raise DecodeError("a transaction comes before the end of the one before it")
        self._open = final

    def _commit(self, message: bytes, position: Position) -> Piece:
        if self._open is None or len(message) != _COMMIT.size:
            raise DecodeError("a Commit message comes outside a transaction or is garbled")
        _, _, commit_lsn, end_lsn, time = _COMMIT.unpack(message)
        if commit_lsn != self._open:
            raise DecodeError("a Commit message does not belong to the transaction that was begun")
        if end_lsn <= commit_lsn:
            raise DecodeError("a transaction ends before its commit")
        self._ended = end_lsn
        commit = Commit(end_lsn, unix_ns(time), position)
        piece = Piece(self._changes, self._size, commit, self._open, self._alone)
        self._changes, self._size, self._open, self._handed_out = [], 0, None, False
        self._alone = False
        return piece

    def _part(self) -> Piece:
        assert self._open is not None
        piece = Piece(self._changes, self._size, None, self._open)
        self._changes, self._size, self._handed_out = [], 0, True
        return piece

    def _add(self, change: Change, size: int) -> None:
        if self._open is None:
            raise DecodeError("a change comes outside a transaction")
        self._changes.append(change)
        self._size += size + _OVERHEAD

    # --- changes ------------------------------------------------------------------------------
    #
    # An update may leave TOASTed values out. Inserted and old rows are whole, and one of an update's
    # rows holds the whole key: a change that can't be made for lack of it is found here.

    def _renamed(self, relation: Relation) -> Relation:
        if self._named is None:
            return relation
        schema, name = self._named(relation.schema, relation.name)
        return Relation(relation.oid, schema, name, relation.identity, relation.columns)

    def _relation(self, oid: int) -> Relation:
        found = self._relations.get(oid)
        if found is None:
            raise DecodeError(f"a change of table {oid} comes before its description")
        return found

    def _described(self, message: bytes) -> Relation:
        """The table of a change, which is mostly that of the change before."""
        if len(message) < _HEAD:
            raise DecodeError("a change is cut off")
        table = message[1:5]
        if self._last is None or table != self._last_table:
            self._last = self._relation(int.from_bytes(table, "big"))
            self._last_table = table
        return self._last

    def _row(self, message: bytes, at: i64, relation: Relation) -> tuple[Row, i64]:
        row, end = parse_row(message, at)
        if row.width != len(relation.columns):
            raise DecodeError(f"a row of {relation} has {row.width} columns")
        return row, end

    def _last_row(self, message: bytes, at: i64, relation: Relation) -> Row:
        row, end = self._row(message, at, relation)
        if end != len(message):
            raise DecodeError(f"a change of {relation} is longer than its row")
        return row

    def _insert(self, message: bytes) -> Insert:
        relation = self._described(message)
        if message[5] != _NEW:
            raise DecodeError("an Insert message without a new row")
        row = self._last_row(message, _HEAD, relation)
        return Insert(relation, row if self._filtered and relation.keys else _whole(row, relation))

    def _update(self, message: bytes) -> Update:
        relation = self._described(message)
        marker: i64 = message[5]
        at: i64 = _HEAD
        old: Row | None = None
        if marker in (_KEY, _OLD):
            row, end = self._row(message, at, relation)
            old = _whole(row, relation)
            if end >= len(message):
                raise DecodeError("a change is cut off")
            marker = message[end]
            at = end + 1
        if marker != _NEW:
            raise DecodeError("an Update message without a new row")
        new = self._last_row(message, at, relation)
        if old is None:
            if not relation.keys:
                raise DecodeError(f"an update of {relation} does not say of which row")
            for index in () if new.whole else relation.keys:
                if new.field(index) is None:
                    raise DecodeError(f"an update of {relation} does not say of which row")
        return Update(relation, new, old)

    def _delete(self, message: bytes) -> Delete:
        relation = self._described(message)
        marker: i64 = message[5]
        if marker not in (_KEY, _OLD):
            raise DecodeError("a Delete message without an old row")
        return Delete(relation, _whole(self._last_row(message, _HEAD, relation), relation))

    def _logical_message(self, message: bytes) -> None:
        """Ours are kept, if they belong to the transaction; other people's are not for us."""
        if len(message) < _MESSAGE.size:
            raise DecodeError("a logical message is cut off")
        _, flags, _ = _MESSAGE.unpack_from(message)
        end = message.find(b"\0", _MESSAGE.size)
        if end < 0 or len(message) < end + 5:
            raise DecodeError("a logical message is cut off")
        prefix = message[_MESSAGE.size : end]
        if not flags & 1 or not prefix.startswith(CARRIED):
            return
        if int.from_bytes(message[end + 1 : end + 5], "big") != len(message) - end - 5:
            raise DecodeError("a logical message is not as long as it says")
        self._alone = self._alone or prefix == _SCHEMA
        self._add(Message(prefix.decode(errors="replace"), message[end + 5 :]), len(message))

    def _truncate(self, message: bytes) -> Truncate:
        if len(message) < _TRUNCATE.size:
            raise DecodeError("a Truncate message is cut off")
        _, count, options = _TRUNCATE.unpack_from(message)
        if not count or len(message) != _TRUNCATE.size + count * _OID.size:
            raise DecodeError("a Truncate message has the wrong length")
        oids = (found[0] for found in _OID.iter_unpack(message[_TRUNCATE.size :]))
        return Truncate(tuple(self._relation(oid) for oid in oids), bool(options & 1), bool(options & 2))
