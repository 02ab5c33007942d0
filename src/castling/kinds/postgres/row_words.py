"""Which row it is, for people: names and values of its key. Pure."""

from __future__ import annotations

from castling.errors import RowTooLarge
from castling.kinds.postgres.changes import Delete, Insert, Oversized, Update
from castling.kinds.postgres.messages import Relation

__all__ = ["told_by", "told_by_head", "too_large"]

#: bytes of a value that are shown
_SHOWN = 64
#: bytes before the first column of a change: kind, table, what the row is, number of columns
_HEAD = 8


def too_large(change: Oversized) -> RowTooLarge:
    key, size = told_by_head(change.head, change.relation), change.size
    return RowTooLarge(
        f"a row of {change.relation} ({key}) has {size >> 20} MiB, more than row_max",
        hint="set row_max of the group above it, where apply may take twice as much memory, then"
        " `castling group release`; or exclude the table",
        table=str(change.relation),
        key=key,
        bytes=size,
    )


def told_by(change: Insert | Update | Delete) -> str:
    """The key of a change, for people: names and values as they came (binary ones in hex)."""
    row = change.new if isinstance(change, Insert) else change.old
    if row is None:
        assert isinstance(change, Update)
        row = change.new
    relation = change.relation
    shown = []
    for index in relation.keys or range(min(3, len(relation.columns))):
        value = row.fields[index]
        name = relation.columns[index].name
        if value is None:
            shown.append(f"{name} unchanged")
        elif value[:4] == b"\xff\xff\xff\xff":
            shown.append(f"{name} is null")
        elif row.text >> index & 1:
            shown.append(f"{name}={value[4 : 4 + _SHOWN].decode(errors='replace')}")
        else:
            shown.append(f"{name}={_readable(relation.columns[index].type_oid, value[4 : 4 + _SHOWN])}")
    return ", ".join(shown)


def _readable(type_oid: int, value: bytes) -> str:
    if type_oid in (20, 21, 23):  # bigint, smallint, integer
        return str(int.from_bytes(value, "big", signed=True))
    if type_oid in (25, 1042, 1043):  # text, character, character varying
        return value.decode(errors="replace")
    return f"\\x{value.hex()}"


def told_by_head(head: bytes, relation: Relation) -> str:
    """The key of a change of which only the beginning is there: as far as that reaches."""
    keys = relation.keys or range(min(3, len(relation.columns)))
    shown = []
    at, count = _HEAD, int.from_bytes(head[6:_HEAD], "big")
    for index, column in enumerate(relation.columns[:count]):
        kind, value = head[at : at + 1], head[at + 5 : at + 5 + _SHOWN]
        if kind in (b"n", b"u"):
            at += 1
            told = " is null" if kind == b"n" else " unchanged"
        elif kind in (b"b", b"t"):
            size = int.from_bytes(head[at + 1 : at + 5], "big")
            at += 5 + size
            value = value[:size]
            told = f"={value.decode(errors='replace') if kind == b't' else _readable(column.type_oid, value)}"
        else:
            break
        if index in keys:
            shown.append(column.name + told)
    return ", ".join(shown) if len(shown) == len(keys) else ", ".join([*shown, "the rest of its key unknown"])
