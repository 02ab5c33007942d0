"""A promoted standby is gone on with only where its past holds all that the journal does."""

from __future__ import annotations

import pytest

from castling.config import DatabaseSettings
from castling.kinds.base import Severity
from castling.kinds.postgres.connect import told, where
from castling.kinds.postgres.facts import StandbyFacts
from castling.kinds.postgres.promotion import promotion_problem, switch_point
from castling.kinds.postgres.standby_facts import judge_standbys

_HISTORY = "1\t0/3000158\tno recovery target specified\n\n2\t0/A0000000\tbefore 2026-01-01\n"


def test_the_history_says_where_a_timeline_was_left() -> None:
    assert switch_point(_HISTORY, 1) == 0x3000158
    assert switch_point(_HISTORY, 2) == 0xA0000000
    assert switch_point(_HISTORY, 3) is None and switch_point("", 1) is None


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({}, None),
        ({"resume": 500}, None),  # it ends exactly where the standby left
        ({"resume": 501}, "the new primary never got"),
        ({"server": 1, "journal": 2}, "an old primary has come back"),
        ({"left_at": None}, "not in the source's past"),
        ({"has_slot": False}, "has no copy of the stream's slot"),
        ({"is_synced": False}, "not one that was kept in step"),
    ],
)
def test_what_is_not_proven_is_refused(changed: dict[str, int | None], told: str | None) -> None:
    facts = {"journal": 1, "server": 2, "left_at": 500, "resume": 400, "has_slot": True, "is_synced": True}
    problem = promotion_problem(**(facts | changed))  # type: ignore[arg-type]
    if told is None:
        assert problem is None
    else:
        assert problem is not None and told in problem and "timeline" in problem


_GOOD = StandbyFacts("second", "second", feeds_back=True, is_awaited=True, syncs=True)


@pytest.mark.parametrize(
    ("version", "standby", "addresses", "codes"),
    [
        (180000, _GOOD, 2, ["failover-ready"]),
        (180000, _GOOD, 1, ["one-address"]),
        (160000, _GOOD, 2, ["no-failover-slots"]),
        (
            170000,
            StandbyFacts("s", None, False, False, False),
            2,
            ["slots-not-synchronized", "standby-not-awaited"],
        ),
        (170000, StandbyFacts("s", "s", True, True, False), 2, ["slots-not-synchronized"]),
        (170000, StandbyFacts("s", "s", False, True, True), 2, ["slots-not-synchronized"]),
    ],
)
def test_the_check_says_what_a_promotion_would_mean(
    version: int, standby: StandbyFacts, addresses: int, codes: list[str]
) -> None:
    found = judge_standbys(version, [standby], addresses)
    assert [each.code for each in found] == codes
    assert all(each.hint for each in found if each.severity is Severity.WARNING)


@pytest.mark.parametrize(
    ("host", "places"),
    [
        ("db", [("db", 5432)]),
        ("/run/postgresql", [("/run/postgresql", 5432)]),
        ("::1", [("::1", 5432)]),
        ("a,b", [("a", 5432), ("b", 5432)]),
        ("a:5433, b", [("a", 5433), ("b", 5432)]),
        ("[fd00::1]:5433,fd00::2", [("fd00::1", 5433), ("fd00::2", 5432)]),
    ],
)
def test_a_database_may_be_in_several_places(host: str, places: list[tuple[str, int]]) -> None:
    database = DatabaseSettings(host=host, dbname="db", user="u")
    assert database.places == places
    found = where(database)
    assert found["host"] == ",".join(name for name, _ in places)
    assert found["port"] == ",".join(str(port) for _, port in places)
    assert found.get("target_session_attrs") == ("read-write" if len(places) > 1 else None)
    assert told(database) == (host if "," in host else f"{host}:5432")
