"""Which blocks of a table are left to copy, and which of its rows have changed since: pure, and exact."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from castling.config import DatabaseSettings, GroupSettings
from castling.errors import LinkProtocol
from castling.journal.record import Position
from castling.kinds.base import Commit, Piece
from castling.kinds.postgres.catalog import Table
from castling.kinds.postgres.changes import Delete, Insert, Message, Truncate, Update
from castling.kinds.postgres.mapping import Found
from castling.kinds.postgres.messages import Column, Relation, Row
from castling.kinds.postgres.seed_plan import (
    Begin,
    Chunk,
    Keys,
    Range,
    chosen_by,
    chunks,
    cut,
    decode_request,
    encode_request,
    gaps,
    merged,
    within,
)
from castling.kinds.postgres.seed_read import of_keys
from castling.kinds.postgres.seed_renew import ChangedKeys

_TABLE = Table(
    1, "public", "big", "r", "p", "d", False, False, 10_000, 1 << 20, True, True, False, False, (), (), ()
)
_BLOCKS = range(60)

ranges = st.lists(
    st.tuples(st.integers(0, 50), st.one_of(st.none(), st.integers(1, 20))).map(
        lambda each: (each[0], None if each[1] is None else each[0] + each[1])
    ),
    max_size=8,
)


def _blocks(found: list[Range]) -> list[int]:
    return [block for first, last in found for block in _BLOCKS if first <= block < (last or 1000)]


@given(ranges)
def test_gaps_and_ranges_are_all_blocks_each_once(done: list[Range]) -> None:
    assert sorted({*_blocks(done)}) == _blocks(merged(done))
    assert sorted(_blocks(merged(done)) + _blocks(gaps(done))) == list(_BLOCKS)
    assert any(last is None for _, last in done) is not any(last is None for _, last in gaps(done))


@given(ranges, st.integers(0, 70), st.integers(0, 10_000), st.integers(1, 500))
def test_what_is_left_is_cut_without_overlap_or_hole(
    done: list[Range], pages: int, rows: int, chunk_rows: int
) -> None:
    left = gaps(done)
    parts = list(cut(left, replace(_TABLE, rows=rows), pages, chunk_rows=chunk_rows))
    assert _blocks(parts) == _blocks(left)
    assert merged(parts) == merged(left)


def test_a_table_is_cut_by_its_rows() -> None:
    assert list(chunks(_TABLE, 100, chunk_rows=5000)) == [
        "WHERE ctid >= '(0,0)' AND ctid < '(50,0)'",
        "WHERE ctid >= '(50,0)'",
    ]
    assert list(chunks(_TABLE, 100, chunk_rows=10_000)) == [""]
    assert list(chunks(_TABLE, 0, chunk_rows=5)) == [""]


def test_places_of_rows() -> None:
    assert within([(0, None)]) == ""
    assert within([(3, 7)], "t.ctid") == "t.ctid >= '(3,0)' AND t.ctid < '(7,0)'"
    assert within([(0, 2), (4, None)]) == "(ctid >= '(0,0)' AND ctid < '(2,0)') OR (ctid >= '(4,0)')"
    assert within([]) == "false", "nothing is not everything"


def test_rows_of_keys_whatever_stands_in_them() -> None:
    key = [
        Found("a b", "text", 25, False, False),
        Found("n", "bigint", 20, False, False, equals="OPERATOR(x.=)"),
    ]
    assert of_keys(_TABLE, key, [["it's \\", "1"], ["%s", "2"]]) == (
        "EXISTS (SELECT FROM unnest(ARRAY[E'it''s \\\\'::pg_catalog.text, E'%s'::pg_catalog.text],"
        " ARRAY[E'1'::pg_catalog.text, E'2'::pg_catalog.text]) s(c0, c1)"
        ' WHERE t."a b" = s.c0::text AND t."n" OPERATOR(x.=) s.c1::bigint)'
    )


def test_requests_come_back_as_they_went() -> None:
    for request in (
        Begin([("a", "b")], True, 5, "n", 6, "x"),
        Chunk("s", "t", ["c"], 9, 0, None, True),
        Keys("s", "t", 1),
    ):
        assert decode_request(encode_request(request)) == request
    with pytest.raises(LinkProtocol):
        decode_request(b"\xc1")


def test_another_choice_is_told() -> None:
    database = DatabaseSettings(host="h", dbname="d", user="u")
    one = GroupSettings(kind="postgres", primary="a", backups=["b"], databases={"a": database, "b": database})
    other = GroupSettings(
        kind="postgres", primary="a", backups=["b"], databases={"a": database, "b": database}, exclude=["x.*"]
    )
    assert chosen_by(one) == chosen_by(one) != chosen_by(other)


# --- which rows have changed ------------------------------------------------------------------


def _relation(name: str, *, key: tuple[str, ...] = ("id",), identity: str = "d") -> Relation:
    columns = tuple(Column(each, 23, -1, each in key) for each in ("id", "v", "w"))
    return Relation(7, "public", name, identity, columns)


def _row(*values: bytes | None, text: int = 0b111) -> Row:
    return Row(list(values), text)


def _piece(offset: int, *changes: object) -> Piece:
    return Piece(list(changes), 1, Commit(offset + 1, 0, Position(1, 1)), offset)


_BIG = _relation("big")
_SINCE = {("public", "big"): 100}


def _keys(found: ChangedKeys) -> set[bytes | None]:
    return {row.fields[0] for _, _, rows in found.hand_over() for row in rows}


def test_old_and_new_keys_of_what_came_since() -> None:
    found = ChangedKeys(_SINCE)
    found.take(_piece(99, Insert(_BIG, _row(b"0", b"", b""))))
    found.take(_piece(100, Insert(_BIG, _row(b"1", b"", b""))))
    found.take(
        _piece(110, Update(_BIG, _row(b"2", b"", None), _row(b"3", None, None)), Message("castling:x", b""))
    )
    found.take(_piece(120, Update(_BIG, _row(b"4", b"", None), None), Delete(_BIG, _row(b"5", None, None))))
    found.take(_piece(120, Insert(_relation("other"), _row(b"6", b"", b""))))
    found.take(_piece(130, Delete(_BIG, _row(b"5", None, None))))
    assert found.waiting == 5
    assert _keys(found) == {b"1", b"2", b"3", b"4", b"5"}
    assert (found.waiting, found.hand_over(), found.anew) == (0, [], {})


def test_a_key_that_was_not_sent_is_in_the_old_row() -> None:
    found = ChangedKeys(_SINCE)
    found.take(_piece(100, Update(_BIG, _row(None, b"x", b""), _row(b"1", None, None))))
    assert _keys(found) == {b"1"} and not found.anew


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (Truncate((_BIG,), False, False), "truncated"),
        (Insert(_relation("big", identity="f"), _row(b"9", b"", b"")), "no key"),
        (Insert(_relation("big", key=("v",)), _row(b"9", b"v", b"")), "key was changed"),
        (Update(_BIG, _row(None, b"x", b""), None), "no key"),
    ],
)
def test_what_keys_can_not_tell_begins_anew_and_is_not_looked_at_any_more(change: object, why: str) -> None:
    found = ChangedKeys(_SINCE)
    found.take(_piece(100, Insert(_BIG, _row(b"1", b"", b""))))
    found.take(_piece(110, change))
    found.take(_piece(120, Insert(_BIG, _row(b"2", b"", b""))))
    assert why in found.anew["public", "big"]
    assert (found.hand_over(), found.waiting) == ([], 0)


def test_a_truncate_before_is_none_and_of_others_neither() -> None:
    found = ChangedKeys(_SINCE)
    found.take(_piece(99, Truncate((_BIG,), False, False)))
    found.take(_piece(100, Truncate((_relation("other"),), False, False)))
    assert not found.anew


def test_keys_by_name_wherever_their_columns_stand() -> None:
    """A column was added in front on the source: the key is the same."""
    found = ChangedKeys(_SINCE)
    found.take(_piece(100, Insert(_BIG, _row(b"1", b"", b""))))
    moved = Relation(7, "public", "big", "d", (Column("w", 23, -1, False), Column("id", 23, -1, True)))
    found.take(_piece(110, Insert(moved, _row(b"", b"2", text=0b10))))
    ((_, relation, rows),) = found.hand_over()
    assert relation is moved and {row.fields[1] for row in rows} == {b"1", b"2"} and not found.anew
    assert {row.text for row in rows} == {0b10}
