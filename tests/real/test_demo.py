"""`castling demo` as a newcomer runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from castling.cli.demo import Outcome, verdict
from castling.testing.compare import Comparison, Difference

_SMALL = ("--rows", "6000", "--seconds", "6")


def _start(*arguments: str, temporary: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "castling.cli.main", "demo", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"CASTLING_DEMO_FOLDER": str(temporary)},
        start_new_session=True,
    )


def _left_behind(folder: Path) -> list[str]:
    """Processes that name the folder, and what is in it."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if str(folder) in command and state != "Z":
                found.append(command)
    return found + [str(path) for path in folder.iterdir()]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user may pass through."""
    with tempfile.TemporaryDirectory(prefix="castling-test-", dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_the_demonstration_proves_that_nothing_is_lost(folder: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    process = _start(*_SMALL, "--report", str(report), temporary=folder)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, out + err
    found = json.loads(report.read_text())
    assert found["ok"] is True and found["lost"] == 0 and found["differences"] == 0
    assert found["rows_seeded"] >= 6000 and found["transactions"] > 0 and found["changes"] > 0
    assert [fault["fault"] for fault in found["faults"]] == ["link cut", "kill -9 of the apply"]
    assert found["rpo_s"]["max"] >= found["rpo_s"]["p99"] >= found["rpo_s"]["p50"] > 0
    assert found["rpo_s"]["max"] > 1, "the link was cut for longer than that"
    assert found["tables_compared"] == 8 and found["rows_compared"] > 6000
    assert "equal, nothing lost" in out
    assert _left_behind(folder) == []


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_nothing_behind(folder: Path, sign: signal.Signals) -> None:
    process = _start(*_SMALL, temporary=folder)
    deadline = time.monotonic() + 60
    assert process.stderr is not None
    while "group start" not in (line := process.stderr.readline()):
        assert line and time.monotonic() < deadline, "it never got as far"
    assert _left_behind(folder) != [], "there was nothing to clean up"
    process.send_signal(sign)
    _, err = process.communicate(timeout=60)
    assert process.returncode not in (0, None) and "Traceback" not in err
    assert _left_behind(folder) == []


def _outcome() -> Outcome:
    return Outcome(
        rows_seeded=1,
        transactions=1,
        comparison=Comparison(tables=1, rows=1),
        balances=("5", "5"),
        faults=[{"fault": "x", "healed": True, "seconds": 1.0}],
    )


def test_the_verdict_is_not_ok_when_anything_is_wrong() -> None:
    assert verdict(_outcome())["ok"]
    lost, differs, money, idle, unhealed, uncompared = (_outcome() for _ in range(6))
    lost.lost = [(1, 1)]
    differs.comparison.differences = [Difference("t", "differs")]
    money.balances = ("5", "6")
    idle.transactions = 0
    unhealed.faults = [{"fault": "x", "healed": False, "seconds": 1.0}]
    uncompared.comparison = Comparison()
    assert not any(verdict(wrong)["ok"] for wrong in (lost, differs, money, idle, unhealed, uncompared))
