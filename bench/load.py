"""pgbench against the source: a load of a given number of clients, and what each transaction took."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from castling.testing.servers import EmbeddedServer, embedded_bin

__all__ = ["Load", "pgbench"]


@dataclass(frozen=True, slots=True)
class Load:
    """`tps`: transactions a second; `times_ms`: of every transaction, where they were logged."""

    tps: float
    times_ms: list[float]


def pgbench(
    server: EmbeddedServer,
    database: str,
    *,
    clients: int,
    seconds: float,
    script: Path | None = None,
    rate: float | None = None,
) -> Load:
    """Run TPC-B-like transactions, or `script`; as fast as can be, or `rate` a second."""
    what = ["-b", "tpcb-like"] if script is None else ["-f", str(script)]
    paced = [] if rate is None else ["-R", f"{rate:.0f}"]
    with tempfile.TemporaryDirectory(prefix="castling-bench-") as folder:
        done = subprocess.run(
            [
                str(embedded_bin() / "pgbench"),
                *("-h", "127.0.0.1", "-p", str(server.port), "-U", server.USER),
                *("-n", "-M", "prepared", "-c", str(clients), "-j", str(min(clients, 2))),
                *("-T", f"{max(1, round(seconds))}", "-l", "--log-prefix", f"{folder}/log"),
                *what,
                *paced,
                database,
            ],
            env=os.environ | {"PGPASSWORD": server.PASSWORD},
            check=True,
            capture_output=True,
            text=True,
        )
        times_ms = [
            int(line.split()[2]) / 1000
            for log in Path(folder).iterdir()
            for line in log.read_text().splitlines()
        ]
    tps = re.search(r"^tps = ([0-9.]+)", done.stdout, re.MULTILINE)
    assert tps is not None, done.stdout
    return Load(float(tps[1]), times_ms)
