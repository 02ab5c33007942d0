"""Which tables a group's patterns choose, and which of the target's columns stand for the source's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from castling.config import GroupSettings
from castling.errors import TargetError
from castling.kinds.postgres.catalog import Table, is_chosen
from castling.kinds.postgres.mapping import Found, matched
from castling.kinds.postgres.messages import Column, Relation
from castling.kinds.postgres.statements import TargetColumn

RELATION = Relation(
    16400,
    "public",
    "orders",
    "d",
    (
        Column("id", 20, -1, True),
        Column("Total", 1700, -1, False),
        Column("state", 16500, -1, False),
    ),
)
FOUND = [
    Found("id", "bigint", 20, True, False),
    Found("Total", "numeric", 1700, False, False),
    Found("state", "app.order_state", 20500, False, False),
]


# --- columns ----------------------------------------------------------------------------------


@given(st.permutations([*FOUND, Found("only_here", "text", 25, False, False)]))
def test_columns_are_found_by_name_in_the_sources_order(found: list[Found]) -> None:
    table = matched(RELATION, found)
    assert str(table) == "public.orders"
    assert table.columns == (
        TargetColumn("id", "bigint", 20, True),
        TargetColumn("Total", "numeric", 1700, False),
        TargetColumn("state", "app.order_state", 20500, False),
    )


def _with_columns(columns: tuple[Column, ...]) -> Relation:
    return Relation(RELATION.oid, RELATION.schema, RELATION.name, RELATION.identity, columns)


def test_the_order_is_the_descriptions_and_not_the_targets() -> None:
    turned = _with_columns(RELATION.columns[::-1])
    assert [column.name for column in matched(turned, FOUND).columns] == ["state", "Total", "id"]


def test_a_column_dropped_on_the_source_is_left_alone_on_the_target() -> None:
    narrower = _with_columns(RELATION.columns[:1])
    assert [column.name for column in matched(narrower, FOUND).columns] == ["id"]


@pytest.mark.parametrize("missing", ["id", "Total", "state"])
def test_a_column_dropped_on_the_target_is_named(missing: str) -> None:
    with pytest.raises(TargetError, match="no column") as caught:
        matched(RELATION, [column for column in FOUND if column.name != missing])
    assert caught.value.context == {"table": "public.orders", "column": missing}


def test_names_differ_by_case() -> None:
    with pytest.raises(TargetError, match="no column 'Total'"):
        matched(RELATION, [column._replace(name=column.name.lower()) for column in FOUND])


def test_a_column_that_the_target_computes_can_not_be_written() -> None:
    with pytest.raises(TargetError, match="can be written"):
        matched(RELATION, [FOUND[0], FOUND[1]._replace(generated=True), FOUND[2]])


@pytest.mark.parametrize(("index", "oid"), [(0, 23), (1, 701), (1, 16600), (2, 25)])
def test_another_type_is_refused(index: int, oid: int) -> None:
    found = [*FOUND]
    found[index] = found[index]._replace(type_oid=oid)
    with pytest.raises(TargetError, match="is of type") as caught:
        matched(RELATION, found)
    assert caught.value.context["column"] == RELATION.columns[index].name


def numeric(precision: int, scale: int) -> int:
    return (precision << 16 | scale & 0x7FF) + 4


@pytest.mark.parametrize(
    ("oid", "source", "target", "fits"),
    [
        (1700, numeric(10, 2), numeric(10, 2), True),
        (1700, numeric(10, 2), numeric(12, 4), True),
        (1700, numeric(10, 2), -1, True),
        (1700, numeric(10, 2), numeric(12, 1), False),
        (1700, numeric(10, 0), numeric(10, -2), False),
        (1700, -1, numeric(30, 20), False),
        (1231, numeric(10, 2), numeric(10, 1), False),
        (1184, -1, 6, True),
        (1184, 3, 3, True),
        (1184, -1, 3, False),
        (1114, 3, 0, False),
        (1043, 14, 24, True),
        (1043, 14, -1, True),
        (1043, 24, 14, False),
        (1043, -1, 14, False),
        (1186, -1, 0x7FFF0003, False),
        (1186, 0x7FFF0003, -1, True),
        (1560, 8, 4, True),  # bit(8) into bit(4) is refused by the server
        (20, -1, -1, True),
    ],
)
def test_a_column_that_would_round_or_cut_is_refused(oid: int, source: int, target: int, fits: bool) -> None:
    described = Relation(1, "s", "t", "d", (Column("c", oid, source, True),))
    found = [Found("c", "some type", oid, False, False, target)]
    if fits:
        assert matched(described, found).columns[0].name == "c"
    else:
        with pytest.raises(TargetError, match="narrower") as caught:
            matched(described, found)
        assert caught.value.context["column"] == "c"


def test_a_missing_table_is_named() -> None:
    with pytest.raises(TargetError, match="has no table public"):
        matched(RELATION, [])


# --- patterns ---------------------------------------------------------------------------------


def table(name: str, *, ancestors: tuple[str, ...] = ()) -> Table:
    schema, _, relname = name.partition(".")
    return Table(
        oid=1,
        schema=schema,
        name=relname,
        kind="r",
        persistence="p",
        identity="d",
        is_partition=bool(ancestors),
        row_security=False,
        rows=0,
        bytes=0,
        readable=True,
        primary_key_usable=True,
        has_identity_index=False,
        has_children=False,
        ancestors=ancestors,
        columns=(),
        primary_key=("id",),
    )


def chosen(one: Table, include: list[str], exclude: list[str] | None = None) -> bool:
    settings = GroupSettings(
        kind="postgres",
        primary="east",
        backups=["west"],
        databases={},
        include=include,
        exclude=exclude or [],
    )
    return is_chosen(one, settings)


@pytest.mark.parametrize(
    ("name", "include", "exclude", "expected"),
    [
        ("public.orders", ["*.*"], [], True),
        ("public.orders", ["public"], [], True),  # a schema
        ("publicity.orders", ["public"], [], False),
        ("public.orders", ["public.orders"], [], True),
        ("public.orders", ["public.o*"], [], True),
        ("public.Orders", ["public.o*"], [], False),  # names differ by case
        ("app.orders", ["public.*"], [], False),
        ("public.orders", ["*.*"], ["public.orders"], False),  # exclude wins
        ("public.orders", ["public.orders"], ["public"], False),
        ("public.orders_old", ["public.*"], ["*.*_old"], False),
        ("public.orders", ["public.*"], ["*.*_old"], True),
        ("public.orders", [], [], False),
        ("public.a.b", ['public."a.b"'], [], True),  # a name that holds a dot is quoted
        ("public.a.b", ["public.a.b"], [], False),
    ],
)
def test_patterns(name: str, include: list[str], exclude: list[str], expected: bool) -> None:
    assert chosen(table(name), include, exclude) is expected


def test_a_partition_follows_its_root() -> None:
    part = table("parts.orders_2026", ancestors=("public.orders",))
    assert chosen(part, ["public.orders"])
    assert not chosen(part, ["*.*"], ["public.orders"])
    assert not chosen(part, ["public.orders"], ["parts.orders_2026"])
    assert not chosen(part, ["public.customers"])
