"""Rows as COPY BINARY takes them: grouped by which of their columns were sent, and spliced. Pure.

Compiled where a compiler is at hand, like `messages`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from castling.kinds.postgres.messages import Fields, Row

__all__ = ["Group", "copy_rows", "groups_of", "keys_of"]


@final
class Group:
    """Rows that carry the same columns in the same form.

    `sent`: the columns' indexes; `text`: which columns came as text (bit i: column i).
    """

    __slots__ = ("rows", "sent", "text")

    def __init__(self, sent: tuple[int, ...], text: int) -> None:
        self.sent = sent
        self.text = text
        self.rows: list[Fields] = []


def groups_of(rows: list[Row], width: int) -> list[Group]:
    """Rows of `width` columns, some of which may not have been sent, in groups that keep their order."""
    found: dict[tuple[int, int], Group] = {}
    whole = tuple(range(width))
    last: Group | None = None  # mostly the group of the row before, of whole rows
    for row in rows:
        fields = row.fields
        if None in fields:
            _sparse(found, row).rows.append(fields)
            continue
        if last is None or row.text != last.text:
            last = found.get((-1, row.text))
            if last is None:
                last = Group(whole, row.text)
                found[(-1, row.text)] = last
        last.rows.append(fields)
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
        group.rows.append(row.fields)
    return list(found.values())


def copy_rows(rows: Sequence[Fields], sent: tuple[int, ...], width: int) -> bytes:
    """Rows as COPY BINARY tuples (without the stream's head and end)."""
    head = len(sent).to_bytes(2, "big")
    parts: list[bytes | None] = []
    if len(sent) == width:
        for fields in rows:
            parts.append(head)
            parts.extend(fields)
    else:
        for fields in rows:
            parts.append(head)
            for index in sent:
                parts.append(fields[index])
    return b"".join(parts)  # type: ignore[arg-type]  # `sent` names only fields that are there
