"""What audits choose, what they know, and the limits they keep, without a server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from castling.audit.guard import Guard, Limits
from castling.audit.plan import Why, choose
from castling.audit.run import Result, run_audit
from castling.audit.state import Known, coverage
from castling.config.window import is_open, window_problem
from castling.control.audit_store import AuditStore
from castling.control.store import Store
from castling.errors import AuditCannotBegin, AuditYields
from castling.kinds.base import AuditGuard, AuditPart, Compared, Discrepancy, Repaired

DAY_NS = 86_400 * 10**9


def _part(name: str, changes: int | None = 5) -> AuditPart:
    return AuditPart(name, 10, 100, changes)


def _known(name: str, *, ago_days: float = 1, result: str = "equal", changes: int | None = 5) -> Known:
    return Known("rows", name, int((100 - ago_days) * DAY_NS), result, changes)


def test_never_audited_then_unequal_then_changed_then_rotation() -> None:
    parts = [_part(name) for name in ("calm", "new", "bad", "changed", "old", "older", "lost")]
    known = {
        "calm": _known("calm"),
        "bad": _known("bad", result="differs"),
        "changed": _known("changed", changes=4),
        "old": _known("old", ago_days=8),
        "older": _known("older", ago_days=9),
        "lost": Known("rows", "lost", 1, "equal", 5, 0, "could not be read"),
    }
    chosen = choose(parts, known, now_ns=100 * DAY_NS, every_s=7 * 86_400)
    assert [(each.part.part, each.why) for each in chosen] == [
        ("new", Why.NEVER),
        ("lost", Why.DIFFERED),
        ("bad", Why.DIFFERED),
        ("changed", Why.CHANGED),
        ("older", Why.ROTATION),
        ("old", Why.ROTATION),
    ]
    whole = choose(parts, known, now_ns=100 * DAY_NS, every_s=7 * 86_400, everything=True)
    assert whole[-1].part.part == "calm" and len(whole) == len(parts)
    one = choose(parts, known, now_ns=100 * DAY_NS, every_s=7 * 86_400, only=["calm"])
    assert [each.part.part for each in one] == ["calm"]


def test_a_counter_that_nobody_keeps_tells_of_no_rest() -> None:
    for here, there in ((None, 5), (5, None), (None, None)):
        chosen = choose(
            [_part("a", here)], {"a": _known("a", changes=there)}, now_ns=100 * DAY_NS, every_s=1e9
        )
        assert [each.why for each in chosen] == [Why.CHANGED]


def test_what_was_never_compared_makes_the_age_unknown() -> None:
    assert coverage([]).result == "unknown" and coverage([]).age_s(DAY_NS) is None
    some = coverage([_known("a"), Known("rows", "b")])
    assert (some.result, some.full_ns, some.never) == ("unknown", None, 1)
    every = coverage([_known("a", ago_days=3), _known("b", ago_days=1)])
    assert every.result == "equal" and every.age_s(100 * DAY_NS) == pytest.approx(3 * 86_400)
    assert coverage([_known("a"), _known("b", result="differs")]).result == "differs"
    assert coverage([_known("a"), Known("rows", "b", 5, "equal", 1, 0, "gone")]).result == "unknown"


@pytest.mark.parametrize(
    ("window", "hour", "found"),
    [("22:00-04:00", 23, True), ("22:00-04:00", 3, True), ("22:00-04:00", 12, False),
     ("08:30-09:30", 9, True), ("08:30-09:30", 8, False), ("00:00-00:00", 5, True)],
)  # fmt: skip
def test_windows(window: str, hour: int, found: bool) -> None:
    assert window_problem(window) is None
    assert is_open(window, hour * 3600 * 10**9) is found


def test_what_is_no_window() -> None:
    for text in ("", "22-04", "24:00-01:00", "1:00-2:00", "22:00"):
        assert window_problem(text)


# --- limits -----------------------------------------------------------------------------------


def _guard(*lags: float | None, limits: Limits | None = None) -> Guard:
    told = list(lags)

    async def lag() -> float | None:
        return told.pop(0) if len(told) > 1 else told[0]

    return Guard(limits or Limits(lag_s=10), lag)


async def test_it_makes_room_when_the_stream_is_behind_and_when_it_is_told_to_stop() -> None:
    await _guard(1.0).spent(seconds=0, size=0, rows=1)
    with pytest.raises(AuditYields, match="11 s behind"):
        await _guard(11.0).look()
    guard = _guard(1.0)
    guard.stop("enough")
    with pytest.raises(AuditYields, match="enough"):
        await guard.spent(seconds=0, size=0, rows=0)


async def test_the_source_works_for_a_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    await _guard(0.0, limits=Limits(load=0.25)).spent(seconds=1.0, size=0, rows=0)
    await _guard(0.0, limits=Limits(bandwidth=1000)).spent(seconds=1.0, size=5000, rows=0)
    await _guard(0.0).spent(seconds=1.0, size=5000, rows=0)
    assert slept == [3.0, 4.0]


# --- running ----------------------------------------------------------------------------------


class _Auditor:
    """A kind whose tables are words: what each view tells of them is written down beforehand."""

    rules = ("rows", "other")

    def __init__(self, *views: dict[str, str] | Exception) -> None:
        self._views = list(views)
        self.opened = 0

    async def parts(self) -> list[AuditPart]:
        return []

    @contextlib.asynccontextmanager
    async def at_one_position(self) -> AsyncIterator[_View]:
        self.opened += 1
        told = self._views.pop(0)
        if isinstance(told, Exception):
            raise told
        yield _View(told)

    async def look(self, rule: str) -> list[Compared]:
        return [Compared(rule, rule)]

    async def repair(self, found: Sequence[Discrepancy]) -> list[Repaired]:
        return []


class _View:
    position = "1"

    def __init__(self, told: dict[str, str]) -> None:
        self._told = told

    def paused_s(self) -> float | None:
        return 0.01

    async def compare(self, part: str, guard: AuditGuard) -> Compared:
        said = self._told[part]
        if said == "yields":
            raise AuditYields("make room")
        return Compared("rows", part, problem="rewritten" if said == "problem" else "")


async def _told(auditor: _Auditor, *names: str) -> list[tuple[str, str]]:
    found: list[Result] = []
    await run_audit(auditor, [_part(name) for name in names], ["other"], _guard(0.0), found.append)
    return [(each.compared.part, each.compared.result) for each in found]


async def test_what_one_view_can_not_tell_another_one_may() -> None:
    auditor = _Auditor({"a": "problem", "b": ""}, {"a": ""})
    assert await _told(auditor, "a", "b") == [("b", "equal"), ("a", "equal"), ("other", "equal")]
    auditor = _Auditor({"a": "problem"}, {"a": "problem"})
    assert await _told(auditor, "a") == [("a", "unknown"), ("other", "equal")]


async def test_after_making_room_it_goes_on_with_another_view(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("castling.audit.run.ROOM_S", 0.0)
    auditor = _Auditor({"a": "", "b": "yields"}, {"b": ""})
    assert await _told(auditor, "a", "b") == [("a", "equal"), ("b", "equal"), ("other", "equal")]
    assert auditor.opened == 2


async def test_a_view_that_can_not_be_had_is_tried_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("castling.audit.run.AGAIN_S", 0.0)
    auditor = _Auditor(AuditCannotBegin(), AuditCannotBegin(), {"a": ""})
    assert ("a", "equal") in await _told(auditor, "a")
    with pytest.raises(AuditCannotBegin):
        await _told(_Auditor(*[AuditCannotBegin()] * 3), "a")


async def test_a_part_that_stands_still_is_unknown() -> None:
    found: list[Result] = []
    blocked = AuditPart("a", 1, 1, 1, "is held")
    await run_audit(_Auditor(), [blocked], [], _guard(0.0), found.append)
    assert [(each.compared.result, each.compared.problem) for each in found] == [("unknown", "is held")]


# --- what is kept -----------------------------------------------------------------------------


def test_findings_are_closed_by_the_next_comparison(tmp_path: Path) -> None:
    with Store(tmp_path / "state.sqlite") as store:
        audits = AuditStore(store)
        assert (
            audits.latest("g", "west")["result"] == "unknown" and audits.latest("g", "west")["open"] is None
        )
        audits.expect("g", "west", [_part("a")], ["other"])
        found = Discrepancy(rule="rows", part="a", what="extra", message="m", key={"id": "1"}, token={"x": 1})
        bad = Compared("rows", "a", found=[found])
        for run, compared in (("01", bad), ("02", Compared("other", "other")), ("03", Compared("rows", "a"))):
            audits.begin(run, "g", "west", "all", "me")
            audits.note(run, "g", "west", Result(compared, "1", None, 7))
            audits.end(run, "done", "", {})
            if run == "02":
                assert audits.latest("g", "west")["result"] == "differs"
                (kept,) = audits.findings("g", backup="west")
                assert audits.discrepancies([kept]) == [found]
        assert audits.latest("g", "west")["result"] == "equal" and audits.latest("g", "west")["open"] == 0
        assert [each["state"] for each in audits.findings("g", run="01")] == ["gone"]
        # a comparison that could not tell leaves what was known, and says so
        audits.note("03", "g", "west", Result(Compared("rows", "a", problem="gone"), "", None, None))
        assert audits.latest("g", "west")["result"] == "unknown"
        audits.expect("g", "west", [_part("b")], ["other"])
        assert audits.latest("g", "west")["never"] == 1
        audits.interrupt()
        assert [each["id"] for each in audits.runs("g", 10)] == ["03", "02", "01"]
