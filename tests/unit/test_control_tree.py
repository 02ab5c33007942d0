"""The report tree never makes a group look better than it is."""

from __future__ import annotations

from typing import Any

import pytest

from castling.config import parse
from castling.control.metrics import render
from castling.control.supervisor import EndStatus
from castling.control.tree import STATES, end_view, group_tree, unknown_end
from castling.errors import AgentUnreachable

_TEXT = """\
[installation]
name = "shop"
[nodes.east]
api = "east:1"
link = "east:2"
[nodes.west]
api = "west:1"
link = "west:2"
[groups.orders]
kind = "postgres"
primary = "east"
backups = ["west"]
[groups.orders.databases.east]
host = "e"
dbname = "d"
user = "u"
[groups.orders.databases.west]
host = "w"
dbname = "d"
user = "u"
"""
CONFIG = parse(_TEXT)


def ends(**changes: Any) -> dict[tuple[str, str], dict[str, Any]]:
    source = {
        "state": "running",
        "rpo_s": 0.0,
        "link": {"state": "up", "rtt_s": None},
        "positions": {"captured": "1/9", "hardened": "1/8", "applied": "1/6"},
        "desired": "running",
    }
    receive = {
        "state": "running",
        "positions": {"hardened": "1/9"},
        "journal": {"bytes": 5, "full_in_s": None},
    }
    apply = {"state": "running", "apply_lag_s": 0.0, "positions": {"applied": "1/7"}}
    found = {"source": source, "receive": receive, "apply": apply}
    for name, change in changes.items():
        found[name] = {**found[name], **change}
    return {("west", name): view for name, view in found.items()}


def stream(**changes: Any) -> dict[str, Any]:
    tree = group_tree(CONFIG, "orders", ends(**changes))
    found: dict[str, Any] = tree["streams"][0]
    assert tree["state"] == found["state"]
    return found


def test_a_healthy_stream() -> None:
    found = stream()
    assert found["state"] == "running" and found["link"] == "up" and found["mode"] == "async"
    assert found["rpo_s"] == 0.0 and found["apply_lag_s"] == 0.0
    told = {"captured": "1/9", "hardened": "1/9", "applied": "1/7", "released": None}
    assert found["positions"] == told, "each stage is told by the end that does it"


def test_the_worst_end_is_the_state() -> None:
    for state in set(STATES) - {"journal-full"}:
        assert stream(apply={"state": state})["state"] == state
    assert stream(apply={"state": "waiting"}, receive={"state": "failed"})["state"] == "failed"
    assert stream(apply={"state": "something new"})["state"] == "something new"


def test_a_full_journal_is_said_and_is_over_when_the_end_is() -> None:
    full = {"link": {"state": "journal-full"}}
    assert stream(receive=full)["state"] == "journal-full"
    assert stream(receive={**full, "state": "stopped"})["state"] == "stopped"


def told(state: str, pid: int = 7, **figures: Any) -> dict[str, Any]:
    """A source end's report as the process `pid` wrote it, with figures that speak about now."""
    now = {
        "rpo_s": 0.0,
        "apply_lag_s": 0.0,
        "capture": {"sync": {"state": "protected"}, "source": "up"},
        "link": {"state": "up", "rtt_s": 0.001},
        "warnings": [],
    }
    lasting = {"positions": {"captured": "1/9"}, "holds": [], "rpo": {"p50": 0.1}, "error": None}
    return {"state": state, "pid": pid, **now, **lasting, **figures}


def seen(state: str, pid: int | None = None, restarts: int = 0) -> EndStatus:
    return EndStatus(state, pid, restarts)


_OF_NOW = ("rpo_s", "apply_lag_s", "capture", "link", "warnings")
_TEXT_SYNC = _TEXT.replace(
    "[groups.orders.databases.east]",
    'delivery = "sync"\non_sync_loss = "degrade"\n[groups.orders.databases.east]',
)


@pytest.mark.parametrize(
    ("report", "status", "state"),
    [
        (told("running"), seen("pausing", restarts=3), "pausing"),
        (told("running"), seen("stopped"), "stopped"),
        (told("running"), seen("failed"), "failed"),
        (told("running"), seen("running", pid=8, restarts=1), "starting"),
        (told("stopped"), seen("running", pid=8), "starting"),
        (told("unknown", last_state="running"), seen("running", pid=7), "unknown"),
    ],
    ids=["killed", "stopped", "failed", "another process", "another after a stop", "silent"],
)
def test_a_report_that_outlived_its_process_says_nothing_about_now(
    report: dict[str, Any], status: EndStatus, state: str
) -> None:
    view = end_view(report, status)
    assert view["state"] == state and view["pid"] == status.pid
    assert not [figure for figure in _OF_NOW if figure in view], "of a former process, shown as now"
    assert view["positions"] == {"captured": "1/9"} and view["holds"] == [], "what a death does not change"
    tree = group_tree(parse(_TEXT_SYNC), "orders", {**ends(), ("west", "source"): view})
    found = tree["streams"][0]
    assert found["mode"] == "sync:unknown" and found["rpo_s"] is None and found["link"] != "up"


def test_the_report_of_the_process_that_runs_is_believed() -> None:
    view = end_view(told("running"), seen("running", pid=7, restarts=2))
    assert view == {**told("running"), "supervisor": "running", "restarts": 2}
    tree = group_tree(parse(_TEXT_SYNC), "orders", {**ends(), ("west", "source"): view})
    assert tree["streams"][0]["mode"] == "sync"


def test_what_an_end_was_is_said_of_one_that_pauses() -> None:
    assert end_view(told("waiting"), seen("pausing"))["last_state"] == "waiting"
    assert "last_state" not in end_view(None, seen("pausing"))


def test_an_old_failure_is_not_told_of_a_process_that_runs() -> None:
    view = end_view(told("failed", error={"code": "x"}), seen("running", pid=8))
    assert view["state"] == "starting" and view["error"] is None


def test_an_end_that_is_started_again_and_again_says_why() -> None:
    view = end_view(told("failed", error={"code": "x"}), seen("running", pid=8, restarts=3))
    assert view["state"] == "starting" and view["error"] == {"code": "x"}
    waited = end_view(told("waiting", error={"code": "x"}), seen("running", pid=8, restarts=3))
    assert waited["error"] is None, "what it waited for is not why it was started again"


def test_no_stage_is_ahead_of_the_one_before() -> None:
    """Reports are of different moments; what a later stage has, the earlier ones had."""
    late = {"captured": "1/9", "hardened": "1/8", "applied": "1/6"}
    told = stream(
        source={"positions": late},
        receive={"positions": {"hardened": "1/11"}},
        apply={"positions": {"applied": "2/1"}},
    )["positions"]
    assert (told["captured"], told["hardened"], told["applied"]) == ("2/1", "2/1", "2/1")
    assert stream(source={"positions": None})["positions"]["captured"] is None, "unknown stays unknown"


def test_a_failure_keeps_its_error_and_a_stopped_end_has_none() -> None:
    assert end_view(told("failed", error={"code": "x"}), seen("failed"))["error"] == {"code": "x"}
    assert end_view(told("running", error={"code": "x"}), seen("stopped"))["error"] is None


def test_a_node_that_does_not_answer_is_unknown_and_has_no_figures() -> None:
    lost = unknown_end(AgentUnreachable("the agent at west:1 does not answer"))
    found = group_tree(CONFIG, "orders", {**ends(), ("west", "apply"): lost})["streams"][0]
    assert found["state"] == "unknown" and found["apply_lag_s"] is None
    assert found["ends"]["apply"]["error"]["code"] == "agent-unreachable"


def test_a_source_that_is_down_has_no_link() -> None:
    assert stream(source={"state": "stopped"})["link"] == "down"
    assert stream(source={"state": "unknown"})["link"] == "unknown"


def test_sync_is_only_said_while_commits_are_protected() -> None:
    config = parse(_TEXT_SYNC)
    for state, told in (("protected", "sync"), ("degraded", "sync:degraded"), (None, "sync:unknown")):
        views = ends(source={"capture": {"sync": {"state": state}}})
        assert group_tree(config, "orders", views)["streams"][0]["mode"] == told


def test_an_unknown_figure_has_no_sample() -> None:
    known = render([group_tree(CONFIG, "orders", ends())]).decode()
    assert 'castling_rpo_seconds{backup="west",group="orders"} 0.0' in known
    assert 'castling_end_running{backup="west",end="apply",group="orders"} 1.0' in known
    unknown = render([group_tree(CONFIG, "orders", ends(source={"rpo_s": None}))]).decode()
    assert "castling_rpo_seconds{" not in unknown
    assert "castling_link_rtt_seconds{" not in unknown


def test_what_is_carried_beside_the_changes_is_as_old_as_what_the_target_has() -> None:
    def age(source: dict[str, Any], target: dict[str, Any], at_ns: int | None = 10_000_000_000) -> Any:
        found = stream(
            source={"at_ns": at_ns, "capture": {"beside": {"sequences": source}}},
            apply={"target": {"beside": {"sequences": target}}},
        )
        return found["beside"]["sequences"]["as_of_s"]

    told = {"carried": 3, "looked_ns": 9_000_000_000, "told_ns": 5_000_000_000}
    assert age(told, {"applied_ns": 5_000_000_000}) == 1.0
    assert age(told, {"applied_ns": 4_000_000_000}) == 6.0
    assert age(told, {"applied_ns": None}) is None
    assert age({"looked_ns": None, "told_ns": None}, {}) is None
    assert age(told, {"applied_ns": 5_000_000_000}, at_ns=None) is None
    assert stream()["beside"] == {}


def test_definitions_of_both_ends_are_compared_and_what_is_not_known_is_not_equal() -> None:
    def told(source: Any, target: Any) -> Any:
        found = stream(source={"capture": {"definitions": source}}, apply={"target": {"definitions": target}})
        return found["definitions"]

    here = {
        "at_ns": 5,
        "schema": {"column": "1", "index": "2"},
        "outside": {"role": {"r": "1", "s": "2"}, "setting": "x"},
    }
    there = {**here, "at_ns": 4, "outside": {"role": {"r": "1", "s": "2", "more": "9"}, "setting": "x"}}
    assert told(here, there) == {"differ": [], "as_of_ns": 4}
    newer = {**there, "version": 18, "schema": {"column": "x"}, "schema_loosely": {"column": "l"}}
    assert told({**here, "version": 15, "schema_loosely": {"column": "l"}}, newer)["differ"] == []
    other = {"at_ns": 6, "schema": {"column": "7", "view": "1"}, "outside": {"role": {"r": "1", "s": "8"}}}
    assert told(here, other)["differ"] == [
        "role s",
        "setting",
        "column definitions",
        "index definitions",
        "view definitions",
    ]
    assert told(here, None) == told(None, here) == {"differ": None, "as_of_ns": None}


def test_a_part_that_is_copied_anew_shows_how_far_its_copy_is_and_each_state_its_way_out() -> None:
    def hold(part: str, state: str) -> dict[str, Any]:
        return {"part": part, "state": state, "reason": "a row is missing"}

    copy = {"part": "public.a", "rows": 5, "bytes": 50, "bytes_total": 100, "started_ns": 1}
    holds = [hold("public.a", "copying"), hold("public.b", "held"), hold("public.c", "lost")]
    found = stream(apply={"holds": holds}, source={"copies": [copy]})
    assert [each["copy"] for each in found["holds"]] == [copy, None, None]
    assert found["state"] == "on-hold"
    told = {each["message"].partition(" ")[0]: each for each in found["warnings"]}
    assert "by itself" in told["public.a"]["hint"]
    assert "group release" in told["public.b"]["hint"]
    assert told["public.c"]["code"] == "part-lost"
    assert "group resync" in told["public.c"]["hint"]
    assert stream()["holds"] is None  # not known yet
    assert stream(apply={"holds": []})["holds"] == []
