"""Figures: what is unknown stays unknown, what is old says so."""

from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st

from castling.observe import CommitLag, Quantiles, Throughput, read_report, write_report

SECOND = 1_000_000_000


@given(st.lists(st.floats(0, 1e5), min_size=1), st.floats(0.01, 1.0))
def test_a_quantile_is_at_most_two_percent_above_the_truth_and_never_below(samples, q):
    quantiles = Quantiles()
    for sample in samples:
        quantiles.add(sample)
    ordered = sorted(samples)
    rank = next(i for i in range(1, len(ordered) + 1) if i >= q * len(ordered))
    truth = ordered[rank - 1]
    found = quantiles.quantile(q)
    assert found is not None
    assert truth - 1e-9 <= found <= max(truth * 1.021, 1.1e-6)


def test_no_samples_is_unknown_not_zero():
    assert Quantiles().as_json() == {"p50": None, "p99": None, "max": None, "samples": 0}
    assert CommitLag().oldest_s(SECOND) is None
    assert Throughput().per_second() is None


def test_the_oldest_pending_commit_gives_the_lag():
    lag = CommitLag()
    lag.passed(10, (1 * SECOND, 2 * SECOND))
    lag.passed(20, ())
    lag.passed(30, (3 * SECOND,))
    assert lag.oldest_s(5 * SECOND) == 4.0
    lag.reached(10, 5 * SECOND)
    assert lag.oldest_s(5 * SECOND) == 2.0
    lag.reached(30, 6 * SECOND)
    assert lag.oldest_s(9 * SECOND) is None
    assert lag.taken.count == 3
    assert lag.taken.max_s == 4.0


def test_many_pending_commits_stay_bounded_and_keep_the_oldest():
    lag = CommitLag()
    lag.PENDING_MAX = 10
    for run in range(100):
        lag.passed(run, tuple(SECOND * (run + 1) for _ in range(20)))
    assert lag._held < 200
    assert lag.oldest_s(2 * SECOND) == 1.0


def test_an_old_report_is_unknown(tmp_path):
    path = tmp_path / "west.source.json"
    write_report(path, {"at_ns": 100 * SECOND, "state": "running", "rpo_s": 0.0})
    fresh = read_report(path, 101 * SECOND)
    assert fresh is not None and fresh["state"] == "running" and fresh["rpo_s"] == 0.0
    old = read_report(path, 200 * SECOND)
    assert old is not None and old["state"] == "unknown" and old["rpo_s"] is None
    assert old["last_state"] == "running"


def test_a_stopped_end_stays_stopped(tmp_path):
    path = tmp_path / "west.source.json"
    write_report(path, {"at_ns": 0, "state": "failed"})
    found = read_report(path, 1000 * SECOND)
    assert found is not None and found["state"] == "failed"


def test_a_report_from_the_future_is_unknown(tmp_path):
    """The clock was set back: how old it is, nobody knows."""
    path = tmp_path / "end.json"
    write_report(path, {"at_ns": 4000 * SECOND, "state": "running", "rpo_s": 0.0})
    found = read_report(path, 400 * SECOND)
    assert (found["state"], found["last_state"], found["rpo_s"]) == ("unknown", "running", None)


def test_a_missing_or_damaged_report_is_none(tmp_path):
    path = tmp_path / "west.source.json"
    assert read_report(path, 0) is None
    path.write_bytes(b'{"at_ns": 1')
    assert read_report(path, 0) is None


def test_a_report_that_cant_be_written_does_not_stop_the_end(tmp_path):
    write_report(tmp_path / "missing" / "report.json", {"at_ns": 1})
    assert os.listdir(tmp_path) == []


def test_a_rate_needs_two_points():
    rate = Throughput(window_s=10)
    rate.add(0, 0)
    rate.add(5, 500)
    assert rate.per_second() == 100
    rate.add(14, 500)
    assert rate.per_second() == 0
