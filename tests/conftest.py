"""What every run of the tests needs, wherever it was started from."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import hypothesis
import pytest

#: how long an example takes says how busy the machine is, and nothing about the code
hypothesis.settings.register_profile("castling", deadline=None)
hypothesis.settings.load_profile("castling")


def pytest_configure() -> None:
    """A shell without job control starts what it puts into the background with Ctrl-C ignored, and
    whatever is started from there ignores it too: the tests of Ctrl-C would interrupt nothing."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[pytest.TestReport]:
    """On the machine that decides (CI=true) a test that is skipped is a test that failed."""
    report: pytest.TestReport = yield
    if report.skipped and os.environ.get("CI") == "true":
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"no test may be skipped here: {reason}"
    return report
