"""The SQL that applies changes: names quoted, columns told, identity columns never set."""

from __future__ import annotations

import pytest

from castling.kinds.postgres.copying import array_of, copy_rows, in_order
from castling.kinds.postgres.messages import NULL, Row, parse_row
from castling.kinds.postgres.statements import (
    COPY_END,
    COPY_START,
    Shape,
    TargetColumn,
    TargetTable,
    delete_listed,
    delete_row,
    is_listed,
    quoted,
    replace_row,
    resets_identity,
    truncate,
    update_from_stage,
    update_row,
)

TABLE = TargetTable(
    "my schema",
    'o"dd',
    (
        TargetColumn("id", "bigint", 20, True),
        TargetColumn("Value", "text", 25, False),
        TargetColumn("state", "app.state", 17000, False),
    ),
)
WHOLE = Shape((0, 1, 2), 0)
ONE, TWO = b"\0\0\0\1" + b"1", b"\0\0\0\1" + b"2"


@pytest.mark.parametrize(("name", "sql"), [("a", '"a"'), ('a"; DROP TABLE b; --', '"a""; DROP TABLE b; --"')])
def test_names_are_quoted(name: str, sql: str) -> None:
    assert quoted(name) == sql


def test_an_ordinary_table_means_its_own_rows() -> None:
    parts = TargetTable("s", "p", TABLE.columns, is_partitioned=True)
    assert (
        truncate([TABLE, parts], restart_identity=False) == 'TRUNCATE TABLE ONLY "my schema"."o""dd", "s"."p"'
    )
    assert delete_row(TABLE, WHOLE, (0,)) == (
        'DELETE FROM ONLY "my schema"."o""dd" t WHERE t."id" = %b::bigint'
    )
    assert delete_row(parts, WHOLE, (0,)).startswith('DELETE FROM "s"."p" t')


def test_an_update_sets_no_identity_and_asks_for_the_one_it_expects() -> None:
    statement, taken = update_row(TABLE, Shape((0, 1), 2), WHOLE, (0,))
    assert taken == (1,)
    assert statement == 'UPDATE ONLY "my schema"."o""dd" t SET "Value" = %t::text WHERE t."id" = %b::bigint'
    assert update_from_stage("s1", TABLE, Shape((0, 1), 2), (1,)) == (
        'SELECT FROM ONLY "my schema"."o""dd" t JOIN s1 s ON t."Value" = s.c1::text AND t."id" = s.c0'
    )
    assert update_from_stage("s1", TABLE, WHOLE, (1,)).endswith('WHERE t."Value" = s.c1 AND t."id" = s.c0')


def test_an_update_with_nothing_to_set_looks_for_its_row() -> None:
    statement, taken = update_row(TABLE, Shape((0,), 0), WHOLE, (0,))
    assert (statement, taken) == ('SELECT FROM ONLY "my schema"."o""dd" t WHERE t."id" = %b::bigint', ())


def test_a_replaced_row_keeps_what_was_not_sent() -> None:
    statement = replace_row(TABLE, Shape((0, 2), 4), WHOLE, (0,))
    assert statement.endswith(
        ' OVERRIDING SYSTEM VALUE SELECT %b::bigint, gone."Value", %t::app.state FROM gone'
    )


@pytest.mark.parametrize(
    ("new", "old", "keys", "expected"),
    [
        ([ONE, ONE, ONE], None, (0,), False),  # the key did not change
        ([ONE, ONE, ONE], [ONE, NULL, NULL], (0,), False),
        ([TWO, ONE, ONE], [ONE, NULL, NULL], (0,), True),
        ([ONE, ONE, ONE], None, (1,), True),  # beside the key: may have changed
        ([ONE, ONE, ONE], [ONE, ONE, TWO], (), False),  # the whole old row tells
        ([TWO, ONE, ONE], [ONE, ONE, ONE], (), True),
    ],
)
def test_a_new_identity_is_noticed(
    new: list[bytes | None], old: list[bytes | None] | None, keys: tuple[int, ...], expected: bool
) -> None:
    assert resets_identity(TABLE, new, old, keys) is expected


def test_rows_are_copied_as_they_came() -> None:
    rows = [Row([ONE, NULL, TWO], 0), Row([TWO, None, NULL], 0)]
    assert copy_rows(rows[:1], (0, 1, 2), 3) == b"\0\3" + ONE + NULL + TWO
    assert copy_rows(rows, (0, 2), 3) == b"\0\2" + ONE + TWO + b"\0\2" + TWO + NULL
    assert COPY_START.startswith(b"PGCOPY\n\xff\r\n\0")
    assert len(COPY_START) == 19
    assert COPY_END == b"\xff\xff"


def test_a_row_is_the_same_cut_or_uncut() -> None:
    fields = [ONE, NULL, None, TWO]
    told = b"b" + ONE + b"n" + b"u" + b"t" + TWO
    row, end = parse_row(b"head\0\4" + told + b"rest", 4)
    assert end == 6 + len(told)
    assert [row.field(index) for index in range(4)] == fields
    assert (row.width, row.whole, row.text) == (4, False, 8)
    assert copy_rows([row], (0, 3), 4) == b"\0\2" + ONE + TWO
    assert (row.fields, row) == (fields, Row(fields, 8))
    assert copy_rows([row], (0, 3), 4) == b"\0\2" + ONE + TWO
    whole, _ = parse_row(b"\0\3b" + ONE + b"n" + b"t" + TWO, 0)
    assert whole.whole
    assert copy_rows([whole], (0, 1, 2), 3) == b"\0\3" + ONE + NULL + TWO


def test_keys_are_listed_as_an_array_where_their_type_is_the_same_everywhere() -> None:
    rows = [Row([ONE, NULL], 0), Row([TWO, NULL], 0)]
    head = b"\0\0\0\1" + b"\0\0\0\0" + b"\0\0\0\x14" + b"\0\0\0\2" + b"\0\0\0\1"
    assert array_of(rows, 0, 20) == head + ONE + TWO
    assert is_listed(TABLE, Shape((0,), 0), (0,))
    assert not is_listed(TABLE, Shape((0,), 1), (0,)), "text"
    assert not is_listed(TABLE, Shape((2,), 0), (2,)), "a type of the user's"
    assert not is_listed(TABLE, Shape((0, 1), 0), (0, 1))
    assert delete_listed(TABLE, (0,)) == (
        'DELETE FROM ONLY "my schema"."o""dd" t WHERE t."id" = ANY (%b::bigint[])'
    )


def test_rows_are_brought_into_the_order_of_their_keys() -> None:
    rows = [Row([TWO, ONE], 0), Row([ONE, TWO], 0), Row([ONE, ONE], 0)]
    in_order(rows, (1, 0))
    assert [row.fields for row in rows] == [[ONE, ONE], [TWO, ONE], [ONE, TWO]]
    in_order(rows, (0,))
    assert [row.fields for row in rows] == [[ONE, ONE], [ONE, TWO], [TWO, ONE]]
