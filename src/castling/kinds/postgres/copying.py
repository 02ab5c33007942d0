"""Rows as COPY BINARY takes them: grouped by which of their columns were sent, and spliced. Pure.

Compiled where a compiler is at hand, like `messages`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from castling.kinds.postgres.messages import Row

__all__ = ["Group", "array_of", "copy_rows", "groups_of", "in_order", "keys_of", "row_parts"]


@final
class Group:
    """Rows that carry the same columns in the same form.

    `sent`: the columns' indexes; `text`: which columns came as text (bit i: column i).
    """

    __slots__ = ("rows", "sent", "text")

    def __init__(self, sent: tuple[int, ...], text: int) -> None:
        self.sent = sent
        self.text = text
        self.rows: list[Row] = []


def groups_of(rows: list[Row], width: int) -> list[Group]:
    """Rows of `width` columns, some of which may not have been sent, in groups that keep their order."""
    found: dict[tuple[int, int], Group] = {}
    whole = tuple(range(width))
    last: Group | None = None  # mostly the group of the row before, of whole rows
    for row in rows:
        if not row.whole:
            _sparse(found, row).rows.append(row)
            continue
        if last is None or row.text != last.text:
            last = found.get((-1, row.text))
            if last is None:
                last = Group(whole, row.text)
                found[(-1, row.text)] = last
        last.rows.append(row)
    return list(found.values())


def _sparse(found: dict[tuple[int, int], Group], row: Row) -> Group:
    mask = 0
    for index, value in enumerate(row.fields):
        if value is not None:
            mask |= 1 << index
    text = row.text & mask
    group = found.get((mask, text))
    if group is None:
        sent = tuple([index for index, value in enumerate(row.fields) if value is not None])
        group = Group(sent, text)
        found[(mask, text)] = group
    return group


def keys_of(rows: list[Row], keys: tuple[int, ...], mask: int) -> list[Group]:
    """Rows told by their key alone: whatever else is in them says nothing."""
    found: dict[int, Group] = {}
    for row in rows:
        text = row.text & mask
        group = found.get(text)
        if group is None:
            group = Group(keys, text)
            found[text] = group
        group.rows.append(row)
    return list(found.values())


def copy_rows(rows: Sequence[Row], sent: tuple[int, ...], width: int) -> bytes:
    """Rows as COPY BINARY tuples (without the stream's head and end)."""
    return b"".join(row_parts(rows, sent, width))


def row_parts(rows: Sequence[Row], sent: tuple[int, ...], width: int) -> list[bytes]:
    """The same, not joined: of a very large row it would be one more."""
    head = len(sent).to_bytes(2, "big")
    parts: list[bytes | None] = []
    if len(sent) == width:
        for row in rows:
            parts.append(head)
            row.splice(parts)
    else:
        for row in rows:
            parts.append(head)
            for index in sent:
                parts.append(row.field(index))
    return parts  # type: ignore[return-value]  # `sent` names only fields that are there


def array_of(rows: Sequence[Row], index: int, type_oid: int) -> bytes:
    """One column of the rows as a binary array: its elements have the form that fields have."""
    sizes = (
        1,
        0,
        type_oid,
        len(rows),
        1,
    )  # dimensions, NULLs among them, elements' type, their number, first index
    parts: list[bytes | None] = [size.to_bytes(4, "big") for size in sizes]
    for row in rows:
        parts.append(row.field(index))
    return b"".join(parts)  # type: ignore[arg-type]  # a key is always there


def in_order(rows: list[Row], keys: tuple[int, ...]) -> None:
    """Put rows into the order of their keys' bytes, which mostly brings neighbours of the target's table
    together: a page that is visited once for all of its rows costs less than one visit a row."""
    if len(keys) == 1:
        only = keys[0]
        rows.sort(key=lambda row: row.field(only) or b"")
    else:
        rows.sort(key=lambda row: [row.field(index) or b"" for index in keys])
