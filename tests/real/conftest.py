"""Real servers, started once for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from castling.testing.servers import EmbeddedServer


@pytest.fixture(scope="session")
def east() -> Iterator[EmbeddedServer]:
    with EmbeddedServer(name="east") as server:
        yield server


@pytest.fixture(scope="session")
def west() -> Iterator[EmbeddedServer]:
    with EmbeddedServer(name="west") as server:
        yield server


@pytest.fixture(scope="session")
def bin15() -> Path:
    """The programs of Debian's PostgreSQL 15, which has TLS and ICU too."""
    found = Path("/usr/lib/postgresql/15/bin")
    if not (found / "postgres").exists():
        pytest.skip("there is no PostgreSQL 15: `make test` as root on Debian 12 installs postgresql-15")
    return found
