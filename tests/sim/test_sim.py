"""Whole groups in virtual time: a small batch for every day; `make sim SEEDS=10000` is the long one."""

from __future__ import annotations

from collections import Counter

import pytest

from castling.testing.sim.__main__ import main
from castling.testing.sim.batch import ENOUGH, MUST_MEET, Summary, run_batch, run_seed
from castling.testing.sim.world import Result, World

SEEDS = 200
#: met too seldom to be asked of a small batch
SELDOM = {
    "session restarted inside a transaction",
    "torn tail cut at recovery",
    "source end died during the first copy",
}


def test_every_promise_is_kept_and_the_worlds_were_rough() -> None:
    summary = run_batch(0, SEEDS, jobs=2)
    assert not summary.broken
    assert summary.seeds == SEEDS
    missed = [what for what in MUST_MEET if not summary.met[what] and what not in SELDOM]
    assert not missed, f"these worlds never met: {missed}"


def test_a_calm_world_ends_equal() -> None:
    for seed in range(10):
        result = World(seed, is_calm=True).run()
        assert result.broken is None
        assert "crash lost or tore unsynced data" not in result.met


def test_a_violation_is_told_with_its_replay(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def break_row(self: World) -> None:
        self.replica.rows[0] = (0, 0, b"wrong")
        self.oracle._checked = 0

    monkeypatch.setattr(World, "_count", lambda self: None)
    compare = World._compare
    monkeypatch.setattr(World, "_compare", lambda self: (break_row(self), compare(self)))
    assert main(["--seeds", "3", "--start", "0", "--jobs", "1"]) == 1
    out = capsys.readouterr().out
    assert "VIOLATION in seed 0" in out
    assert "--seed 0 -v" in out
    assert main(["--seed", "0"]) == 1


def test_a_batch_that_met_too_little_is_a_failure() -> None:
    calm = Result(0, None, {}, 1, 1.0, ())
    summary = Summary()
    for _ in range(ENOUGH - 1):
        summary.add(calm)
    assert summary.is_good
    summary.add(calm)
    assert summary.missed == list(MUST_MEET)
    assert not summary.is_good
    summary.met = Counter({what: 1 for what in MUST_MEET})
    assert summary.is_good


def test_one_seed_has_one_result_wherever_it_runs() -> None:
    assert run_batch(20, 4, jobs=2).met == run_batch(20, 4, jobs=1).met
    assert run_seed(21) == run_seed(21)
