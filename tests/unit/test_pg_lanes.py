"""Lanes: what has to keep an order shares one; the assignment is a function of the target alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from castling.kinds.postgres.changes import Change, Delete, Insert, Message, Truncate
from castling.kinds.postgres.lanes import Table, assign, split
from castling.kinds.postgres.messages import Column, Relation, Row

NAMES = st.sampled_from([("public", f"t{number}") for number in range(12)])
WEIGHTS = st.dictionaries(NAMES, st.integers(0, 1000))
LINKS = st.lists(st.tuples(NAMES, NAMES), max_size=12)


@given(WEIGHTS, LINKS, st.integers(1, 5))
def test_each_table_has_a_lane_and_shares_it_with_all_that_it_is_joined_to(
    weights: dict[Table, int], links: list[tuple[Table, Table]], lanes: int
) -> None:
    found = assign(weights, links, lanes)
    assert found.keys() == weights.keys()
    assert all(0 <= lane < lanes for lane in found.values())
    assert all(found[one] == found[other] for one, other in links if one in found and other in found)


@given(WEIGHTS, LINKS, st.integers(1, 5), st.randoms())
def test_the_order_in_which_things_are_told_changes_nothing(
    weights: dict[Table, int], links: list[tuple[Table, Table]], lanes: int, chance: object
) -> None:
    turned = dict(sorted(weights.items(), reverse=True))
    other = [(b, a) for a, b in reversed(links)]
    assert assign(weights, links, lanes) == assign(turned, other, lanes)


def test_what_is_written_most_is_spread() -> None:
    weights = {("p", "big"): 100, ("p", "small"): 30, ("p", "other"): 40, ("p", "rest"): 20}
    found = assign(weights, [], 2)
    assert found == {("p", "big"): 0, ("p", "other"): 1, ("p", "small"): 1, ("p", "rest"): 1}
    joined = assign(weights, [(("p", "big"), ("p", "rest"))], 3)
    assert joined[("p", "big")] == joined[("p", "rest")] == 0
    assert {joined[("p", "small")], joined[("p", "other")]} == {1, 2}


def test_tables_without_writes_are_spread_too() -> None:
    found = assign({("p", f"t{number}"): 0 for number in range(9)}, [], 3)
    assert sorted(found.values()) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def _relation(name: str) -> Relation:
    return Relation(hash(name) & 0xFFFF, "public", name, "d", (Column("id", 23, -1, True),))


A, B, C = _relation("a"), _relation("b"), _relation("c")
LANES = {("public", "a"): 0, ("public", "b"): 1}
FIELD = b"\0\0\0\1x"


def _insert(relation: Relation) -> Insert:
    return Insert(relation, Row([FIELD], 0))


def test_changes_are_split_and_keep_their_order() -> None:
    changes: list[Change] = [_insert(A), _insert(B), Delete(A, Row([FIELD], 0)), _insert(A), _insert(B)]
    parts = split(changes, LANES, 3)
    assert parts is not None
    assert [[changes.index(each) if each is not changes[3] else 3 for each in part] for part in parts] == [
        [0, 2, 3],
        [1, 1],
        [],
    ]
    assert parts[0] == [changes[0], changes[2], changes[3]]
    assert parts[1] == [changes[1], changes[4]]


def test_what_concerns_all_tables_is_not_split() -> None:
    for barrier in (Truncate((A,), False, False), Message("castling:sequences", b""), _insert(C)):
        assert split([_insert(A), barrier, _insert(B)], LANES, 3) is None
