"""An audit as an operator meets it: run, looked at, repaired, under load and `kill -9`."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from castling.cli.results import undocumented
from castling.errors import StateError
from castling.testing.cluster import GROUP, Cluster, wait_for
from castling.testing.compare import compare
from castling.testing.damage import SCHEMA, keep_writing


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(direct=True, group={"audit": {"load": 1.0}}) as made:
        with psycopg.connect(made.dsn("east"), autocommit=True) as source:
            source.execute(SCHEMA.encode())
            source.execute("CREATE UNLOGGED TABLE scratch (id int)")
        made.start_group()
        yield made


def _audit(cluster: Cluster, *words: str, node: str = "east") -> tuple[int, dict[str, Any]]:
    """Exit code and data of `castling audit`; its fields are documented."""
    done = subprocess.run(
        [sys.executable, "-m", "castling.cli.main", "audit", *words, "--json"],
        env=cluster._environment(node),
        capture_output=True,
        text=True,
        check=False,
    )
    said = json.loads(done.stdout)
    assert said["ok"], said
    assert undocumented(f"audit {words[0]}", said["data"]) == []
    return done.returncode, said["data"]


def _latest(cluster: Cluster) -> dict[str, Any]:
    found: dict[str, Any] = cluster.cli("east", "group", "status", GROUP)["data"]["streams"][0]["audit"]
    return found


def _damage(cluster: Cluster, *statements: str) -> None:
    with psycopg.connect(cluster.dsn("west"), autocommit=True) as target:
        target.execute("SET session_replication_role = replica")
        for statement in statements:
            target.execute(statement.encode())


def test_unknown_until_all_was_compared_then_equal_then_found_then_repaired(cluster: Cluster) -> None:
    before = _latest(cluster)
    assert (before["result"], before["full_age_s"], before["open"]) == ("unknown", None, None)
    with keep_writing(cluster.dsn("east")):
        code, data = _audit(cluster, "run", GROUP, "--table", "public.things")
        assert code == 0 and data["audits"][0]["facts"]["parts_done"] == 1
        some = _latest(cluster)
        assert some["result"] == "unknown" and some["full_age_s"] is None and some["never"] > 0

        code, data = _audit(cluster, "run", GROUP, node="west")  # whichever node is asked
        assert code == 0, data
        assert data["audits"][0]["facts"]["apply_paused_s"] is not None
        whole = _latest(cluster)
        assert whole["result"] == "equal" and whole["full_age_s"] is not None and whole["open"] == 0

        _damage(
            cluster,
            "UPDATE things SET note = NULL WHERE id = 7",
            "DELETE FROM heap WHERE n = 9",
            "INSERT INTO large VALUES (-1, 'nobody')",
        )
        code, data = _audit(cluster, "run", GROUP)
        assert code == 3
        found = sorted(data["audits"][0]["findings"], key=lambda each: str(each["part"]))
        assert [(each["part"], each["what"], each["times"]) for each in found] == [
            ("public.heap", "missing", 2),
            ("public.large", "extra", 1),
            ("public.things", "different", 1),
        ]
        assert found[2]["key"] == {"id": "7"} and found[2]["columns"] == ["note"]
        assert (found[2]["source"]["note"], found[2]["target"]["note"]) == ("", None)
        assert _latest(cluster)["result"] == "differs" and _latest(cluster)["open"] == 3

        code, plan = _audit(cluster, "repair", GROUP, "--dry-run")
        assert code == 0 and plan["dry_run"] and len(plan["streams"][0]["plan"]) == 3
        assert _audit(cluster, "show", GROUP)[0] == 3  # nothing was changed by that
        code, done = _audit(cluster, "repair", GROUP, str(found[0]["id"]), "--yes")
        assert code == 3 and done["open"] == 2
        code, done = _audit(cluster, "repair", GROUP, "--yes")
        assert code == 0 and done["open"] == 0, done
    assert _latest(cluster)["result"] == "equal"
    cluster.wait_until_applied()
    # `scratch` is not carried: the audit says so, and the comparison is of what is
    assert compare(cluster.dsn("east"), cluster.dsn("west")).equal
    assert "public.scratch: unlogged" in _notes(cluster)


def _notes(cluster: Cluster) -> list[str]:
    path = cluster.homes["east"] / "state.sqlite"
    with sqlite3.connect(path) as db:
        (facts,) = db.execute("SELECT facts FROM audit_part WHERE rule = 'protection'").fetchone()
    notes: list[str] = json.loads(facts)["notes"]
    return notes


def test_what_the_policy_says_happens_by_itself_in_the_window(cluster: Cluster) -> None:
    pids = {end: cluster.pid(end) for end in ("source", "receive", "apply")}
    cluster._group["audit"] = {"load": 1.0, "repair": "auto", "window": "00:00-00:00"}
    (cluster.homes["east"] / "castling.toml").write_text(cluster.toml())
    cluster.cli("east", "deploy", "--yes")
    assert {end: cluster.pid(end) for end in pids} == pids  # audits are the agent's: nothing restarts
    _damage(cluster, "UPDATE things SET note = NULL WHERE id = 9")
    with psycopg.connect(cluster.dsn("east"), autocommit=True) as source:
        source.execute("UPDATE things SET flag = true WHERE id = 3001")  # so that the table is due

    def is_repaired() -> bool:
        audits = cluster.cli("east", "audit", "list", GROUP)["data"]["audits"]
        by_window = [each for each in audits if each["by"] == "window" and each["state"] == "done"]
        told = cluster.servers["west"].execute("SELECT note FROM things WHERE id = 9", cluster.database)
        return bool(by_window) and told == [("",)]

    wait_for(is_repaired, "an audit began by itself, found it and repaired it")
    assert _latest(cluster)["result"] == "equal"


def test_an_agent_that_dies_leaves_an_audit_that_was_stopped(cluster: Cluster) -> None:
    data = cluster.cli("east", "audit", "run", GROUP, "--detach")["data"]
    identity = data["audits"][0]["id"]
    cluster.kill_agent("east")
    cluster.start_agent("east")
    shown = {each["id"]: each for each in _audit(cluster, "list", GROUP)[1]["audits"]}
    assert shown[identity]["state"] in ("stopped", "done")
    assert _audit(cluster, "run", GROUP, "--due")[0] == 0


def test_a_long_transaction_is_named_and_harms_nothing(cluster: Cluster) -> None:
    with psycopg.connect(cluster.dsn("east")) as writer:
        pid = writer.info.backend_pid
        writer.execute("INSERT INTO work (v) VALUES ('open')")
        data = cluster.cli("east", "audit", "run", GROUP, "--detach", "--table", "public.work")["data"]
        with keep_writing(cluster.dsn("east"), 1):
            cluster.wait_until_applied(within_s=60)  # apply goes on all the while
        cluster.cli("east", "audit", "stop", GROUP)
        identity = data["audits"][0]["id"]
        writer.rollback()
    ended: dict[str, Any] = {}

    def is_over() -> bool:
        ended.update(cluster.cli("east", "audit", "list", GROUP)["data"]["audits"][0])
        return ended["state"] != "running"

    wait_for(is_over, "the audit ends")
    assert ended["id"] == identity and (ended["state"] == "stopped" or str(pid) in ended["why"])


def test_what_can_not_be_is_told(cluster: Cluster) -> None:
    for words in (
        ["run", GROUP, "--rule", "colour"],
        ["repair", GROUP, "999999", "--yes"],
        ["show", GROUP, "ffff"],
    ):
        with pytest.raises(StateError, match=r"rule|finding|no audit"):
            cluster.cli("east", "audit", *words)
