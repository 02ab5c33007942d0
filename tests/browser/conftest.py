"""One installation, one bank and one browser for all tests of the portal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from castling.testing.bank import Bank, create_bank
from castling.testing.cluster import Cluster

sys.path.insert(0, str(Path(__file__).parent))

from browser_cast import CHROMIUM, add_users, chromium

pytestmark = pytest.mark.real
#: how long a page may take to show what is expected says how busy the machine is; milliseconds
expect.set_options(timeout=120_000)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail("Chromium is not here: install Debian's chromium")
        pytest.skip("Chromium is not here")
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster() as found:
        create_bank(found.dsn("east"), accounts=500)
        found.start_group()
        for node in ("east", "west"):
            add_users(found, node)
        bank = Bank(found.dsn("east"), accounts=500, clients=1, pause_s=0.2).start()
        try:
            yield found
        finally:
            bank.stop()
