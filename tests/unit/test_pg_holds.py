"""Where a table stands, and what it still needs of the stream."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

import pytest

from castling.errors import LinkProtocol, StateError, TargetDiverged, TargetError
from castling.kinds.postgres.holds import Place, concerns_table, copy_mends, due
from castling.kinds.postgres.parts import answer_to
from castling.kinds.postgres.resync_plan import (
    Anew,
    PartRequest,
    Refused,
    decode_part,
    decode_wanted,
    encode_part,
    encode_wanted,
)

#: the stream's progress
_HERE = 1000


@pytest.mark.parametrize(
    ("state", "position", "needed", "has"),
    [
        (None, 0, _HERE, _HERE - 1),
        ("live", 500, _HERE, _HERE - 1),
        ("releasing", 500, 500, 499),  # behind the stream: the journal is read again for it
        ("releasing", 1500, 1500, 1499),  # copied anew at a later position
        ("ahead", 1500, 1500, 1499),
    ],
)
def test_a_table_needs_what_lies_at_its_position_and_after_and_nothing_before(
    state: str | None, position: int, needed: int, has: int
) -> None:
    place = None if state is None else Place(state, position, datetime.now(UTC), "", None)
    assert due(place, needed, _HERE)
    assert not due(place, has, _HERE)


@pytest.mark.parametrize("state", ["held", "lost"])
def test_a_table_that_stands_still_takes_nothing(state: str) -> None:
    place = Place(state, 500, datetime.now(UTC), "", None)
    assert not any(due(place, offset, _HERE) for offset in (0, 500, _HERE, 5000))


@pytest.mark.parametrize(
    ("error", "mends"),
    [
        (TargetDiverged("a row is missing"), True),
        (TargetDiverged("a row is there already", sqlstate="23505"), True),
        (TargetDiverged("it overlaps another", sqlstate="23P01"), True),
        (TargetDiverged("a check objects", sqlstate="23514"), False),
        (TargetError("the target has no such table"), False),
        (TargetError("a trigger objects", sqlstate="P0001"), False),
    ],
)
def test_a_copy_is_made_only_where_other_rows_are_all_that_is_wrong(error: TargetError, mends: bool) -> None:
    assert concerns_table(error.context.get("sqlstate"))
    assert copy_mends(error) is mends


@pytest.mark.parametrize(
    ("action", "state", "wanted", "copying", "told"),
    [
        ("resync", None, None, False, "asked"),
        ("resync", "held", None, False, "asked"),
        ("resync", "lost", None, False, "asked"),
        ("resync", "releasing", None, False, "asked"),
        ("resync", "held", "resync", False, "already_asked"),
        ("resync", "held", None, True, "already_copying"),
        ("release", "held", None, True, "already_copying"),
        ("release", "held", None, False, "asked"),
        ("release", None, None, False, "not_held"),
        ("hold", "held", None, True, "asked"),  # it calls the copy off
        ("hold", "held", None, False, "already_held"),
    ],
)
def test_what_comes_of_a_wish(
    action: Literal["hold", "release", "resync"],
    state: str | None,
    wanted: str | None,
    copying: bool,
    told: str,
) -> None:
    assert answer_to(action, "public.t", state, wanted, copying=copying) == told


def test_a_lost_table_is_not_released_and_the_way_out_is_a_copy() -> None:
    with pytest.raises(StateError) as told:
        answer_to("release", "public.t", "lost", None, copying=False)
    assert "group resync GROUP public.t" in told.value.hint


@pytest.mark.parametrize(
    "request_", [Anew("a b", 'c"d', ["é", "x"], 1 << 40), Refused("a", "b", "no such table")]
)
def test_what_the_ends_say_arrives(request_: PartRequest) -> None:
    assert decode_part(encode_part(request_)) == request_
    assert decode_wanted(encode_wanted([("a", "b")])) == [("a", "b")]
    assert decode_wanted(encode_wanted([])) == []
    for data in (b"\xff", b"\x80", encode_part(request_)[:-1]):
        with pytest.raises(LinkProtocol):
            decode_part(data)
    with pytest.raises(LinkProtocol):
        decode_wanted(b"\x91\x01")
