"""Real servers, started once for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

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
