"""What is said of writes that are not Castling's."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from castling.kinds.postgres.foreign_writes import (
    WATCH_REMOVED,
    ForeignWrite,
    PartWrites,
    foreign_warnings,
    who,
)

_AT = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
_WRITE = ForeignWrite(
    number=7,
    part="public.t",
    operation="UPDATE",
    at=_AT,
    login="bob",
    role=None,
    application="psql",
    client=None,
    pid=4711,
    inserted=0,
    updated=3,
    deleted=1,
)


def test_who_is_told_with_what_is_known() -> None:
    assert who("bob", None, "psql", "10.0.0.5") == "bob (psql, 10.0.0.5)"
    assert who("bob", "clerk", "", None) == "bob as clerk (local)"
    assert who(None, None, None, None) == "unknown"


def test_rows_that_are_not_known_are_no_zero() -> None:
    assert _WRITE.what == "3 updated, 1 deleted"
    assert replace(_WRITE, inserted=None, updated=None, deleted=None).what == "UPDATE, rows unknown"
    assert replace(_WRITE, operation="TRUNCATE", inserted=None).what == "TRUNCATE"
    assert replace(_WRITE, operation=WATCH_REMOVED, login=None).as_json()["who"] == "unknown"


def test_the_latest_tables_are_named_and_the_rest_is_counted() -> None:
    parts = [
        PartWrites(
            part=f"public.t{number}",
            transactions=2,
            inserted=number,
            updated=0,
            deleted=0,
            uncounted=1,
            others=("TRUNCATE",),
            first=_AT,
            last=_AT + timedelta(seconds=number),
            last_by="bob (psql, local)",
        )
        for number in range(1, 8)
    ]
    told = [each["message"] for each in foreign_warnings(parts, "orders")]
    assert told[0] == (
        "public.t7 was changed by others: 7 inserted, 1 times rows unknown, TRUNCATE;"
        " last 2026-05-04 03:02:08Z by bob (psql, local)"
    )
    assert len(told) == 6 and told[-1] == "2 more tables were changed by others"
    assert foreign_warnings([], "orders") == []
