"""Real servers, started once for all tests of this folder."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


@pytest.fixture
def small_disk() -> Iterator[Any]:
    """Puts a small file system of its own under a folder, or makes it larger."""
    mounted: list[Path] = []

    def mount(folder: Path, size: str) -> None:
        if os.geteuid() != 0:
            pytest.skip("mounting a small file system needs root")
        folder.mkdir(parents=True, exist_ok=True)
        how = (
            ["-o", f"remount,size={size}"]
            if folder in mounted
            else ["-t", "tmpfs", "-o", f"size={size}", "none"]
        )
        subprocess.run(["mount", *how, str(folder)], check=True)
        mounted.append(folder)

    yield mount
    for folder in set(mounted):
        subprocess.run(["umount", "-l", str(folder)], check=False)
