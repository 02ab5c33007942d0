"""The preflight's judgement: what is unknown does not pass, and what can't be right can't be passed over."""

from __future__ import annotations

from typing import Any

from castling.config import ApplicationSettings
from castling.switch.gates import Facts, Gated, is_open, judge, last_audit

_FINDING = {"severity": "refused", "object": "group", "message": "it renames tables", "hint": "x"}


def _judged(gate: str, **facts: Any) -> Gated:
    (said,) = judge(
        (gate,),
        Facts(old="east", new="west", steps=(), trees={"g": None}, described={}, **facts),
        ApplicationSettings(groups=["g"]),
    )
    return said


def test_a_group_whose_kind_refuses_is_never_switched() -> None:
    for told in (None, [_FINDING]):
        said = _judged("switchable", switchable={"g": told})
        assert not is_open(said, {"switchable"}), said
    assert is_open(_judged("switchable", switchable={"g": [{**_FINDING, "severity": "ok"}]}), set())


def test_the_last_audit_counts_as_far_as_it_is_known() -> None:
    def tree(result: str, age_s: float | None) -> dict[str, Any]:
        return {"streams": [{"backup": "west", "audit": {"result": result, "full_age_s": age_s}}]}

    unknown = (None, {"streams": []}, tree("equal", None), tree("unknown", 5.0))
    for each in unknown:
        assert last_audit(each, "west") is None
        assert _judged("audit", audits={"g": last_audit(each, "west")}).severity == "unknown"
    assert _judged("audit", audits={"g": last_audit(tree("equal", 60.0), "west")}).severity == "ok"
    assert _judged("audit", audits={"g": last_audit(tree("differs", 60.0), "west")}).severity == "refused"
    old = _judged("audit", audits={"g": last_audit(tree("equal", 1e9), "west")})
    assert old.severity == "refused" and is_open(old, {"audit"}), "a person may decide that"
