"""Procedures on two real nodes: preflight, scripts, a death of the coordinating agent around a step."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from castling.errors import StateError
from castling.switch.catalog import PROCEDURES
from castling.testing.bank import create_bank
from castling.testing.cluster import GROUP, Cluster, wait_for

pytestmark = pytest.mark.real

_SCRIPT = """#!/bin/sh
echo "$CASTLING_SCRIPT of $CASTLING_STEP on $CASTLING_NODE, attempt $CASTLING_ATTEMPT"
env | grep -c SECRET
[ -e {mark} ] || {{ touch {mark}; kill -9 {pid}; sleep 60; }}
exit 0
"""


def script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def deploy(cluster: Cluster, scripts: dict[str, Path]) -> None:
    lines = [f'[applications.{GROUP}]\ngroups = ["{GROUP}"]\n[applications.{GROUP}.scripts]']
    lines += [f"{json.dumps(name)} = {json.dumps(str(path))}" for name, path in scripts.items()]
    (cluster.homes["east"] / "castling.toml").write_text(cluster.toml() + "\n".join(lines) + "\n")
    cluster.cli("east", "deploy", "--yes")


def shown(cluster: Cluster, run: str) -> dict[str, Any]:
    found: dict[str, Any] = cluster.cli("west", "switch", "show", run)["data"]
    return found


@pytest.fixture(scope="module")
def cluster():
    with Cluster() as found:
        create_bank(found.dsn("east"), accounts=200)
        found.start_group()
        yield found


def test_the_plan_shows_every_step_and_what_refuses_it(cluster: Cluster) -> None:
    asked = [sys.executable, "-m", "castling.cli.main", "switch", "plan", GROUP, "--json"]
    done = subprocess.run(asked, env=cluster._environment("east"), capture_output=True, check=False)
    assert done.returncode == 3, done.stderr
    plan = json.loads(done.stdout)["data"]
    assert [step["name"] for step in plan["steps"]] == [step.name for step in PROCEDURES["planned"].steps]
    said = {(each["gate"], each["object"]): each["severity"] for each in plan["findings"]}
    assert said["scripts", "stop-application"] == "refused", "neither written nor declared not needed"
    assert said["audit", GROUP] == "unknown", "no audit is no equality"
    assert said["streams", GROUP] == said["clocks", "west"] == said["disk", "east"] == "ok"
    plan = cluster.cli("east", "switch", "plan", GROUP, "--procedure", "end-immediate")["data"]
    assert [step["name"] for step in plan["steps"]] == ["halt"] and plan["refused"] == 0


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_run_goes_on_when_its_agent_was_killed_around_a_step(
    cluster: Cluster, tmp_path: Path, when: str
) -> None:
    cluster.start_group()
    mark, pid = tmp_path / "killed", cluster.agents["west"].pid
    path = script(cluster.folder / f"{when}.sh", _SCRIPT.format(mark=mark, pid=pid))
    deploy(cluster, {f"{when}:halt": path})
    begun = cluster.cli(
        "east", "switch", "start", GROUP, "--procedure", "end-immediate", "--yes", "--no-wait"
    )
    run = begun["data"]["run"]
    assert begun["data"]["coordinator"] == "west", "east has passed it on"
    wait_for(lambda: cluster.agents["west"].poll() is not None, "the script has killed west's agent")
    cluster.start_agent("west")
    wait_for(lambda: shown(cluster, run)["status"] == "completed", "the run has gone on by itself")
    step = shown(cluster, run)["steps"][0]
    assert step["attempts"] == 2
    assert [said["output"] for said in step["outputs"]] == [f"{when}:halt of halt on east, attempt 2\n0\n"]
    assert not cluster._ends(), "the group is stopped"
    lines = cluster.cli("east", "switch", "history")["data"]["runs"]
    assert lines[0]["run"] == run and lines[0]["status"] == "completed"


def test_a_script_that_fails_stops_the_run_until_somebody_resumes_it(cluster: Cluster) -> None:
    cluster.start_group()
    path = script(cluster.folder / "fails.sh", "#!/bin/sh\necho no; exit 3\n")
    deploy(cluster, {"before:halt": path})
    with pytest.raises(StateError, match="ended with code 3"):
        cluster.cli("west", "switch", "start", GROUP, "--procedure", "end-immediate", "--yes")
    run = cluster.cli("west", "switch", "history")["data"]["runs"][0]
    assert run["status"] == "failed" and run["blocks"] is True
    with pytest.raises(StateError, match="switch-busy"):
        cluster.cli("west", "switch", "start", GROUP, "--procedure", "end-immediate", "--yes")
    script(path, "#!/bin/sh\necho yes\n")
    done = cluster.cli("east", "switch", "resume", run["run"])["data"]
    assert done["status"] == "completed"
    assert [said["output"] for said in done["steps"][0]["outputs"]] == ["no\n", "yes\n"]
