"""The two systems of the comparison: each can be started, stopped, and asked what it has used."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import psycopg

from castling.testing.cluster import Cluster
from castling.testing.servers import EmbeddedServer

__all__ = ["Castling", "Native", "Side", "wait_for_sentinel"]

PUBLICATION = "native_bench"


class Side(Protocol):
    name: str
    dsn: str

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def peaks(self) -> dict[str, int]:
        """Peak resident memory of each process that works now, bytes, by its name."""


def wait_for_sentinel(dsn: str, number: int, segment: str, limit_s: float = 900) -> None:
    """Return when the backlog's last row is on the target."""
    deadline = time.monotonic() + limit_s
    with psycopg.connect(dsn, autocommit=True) as connection:
        question = "SELECT 1 FROM sentinel WHERE round = %s AND segment = %s"
        while not connection.execute(question, [number, segment]).fetchone():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{segment} of round {number} did not arrive in {limit_s:.0f} s")
            time.sleep(0.01)


def _peak(pid: int) -> int:
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


class Castling:
    """A cluster as a user would set it up; the link does not pass through the fault proxy."""

    name = "castling"

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.dsn = cluster.servers["west"].dsn(cluster.database)

    def start(self) -> None:
        self.cluster.start_group_now()

    def stop(self) -> None:
        self.cluster.stop_group()

    def peaks(self) -> dict[str, int]:
        pids = {name: self.cluster.pid(name) for name in ("source", "receive", "apply")}
        return {name: _peak(pid) for name, pid in pids.items() if pid is not None}


class Native:
    """PostgreSQL's own subscription, with the options of a careful administrator: binary, large
    transactions applied in parallel while they still run."""

    name = "native"

    def __init__(self, source: EmbeddedServer, database: str, schema: Iterable[str]) -> None:
        self._database = database
        self.server = EmbeddedServer(name="native").start()
        self.server.execute(f"CREATE DATABASE {database}")
        self.dsn = self.server.dsn(database)
        for statement in schema:
            self.server.execute(statement, database)
        source.execute(f"CREATE PUBLICATION {PUBLICATION} FOR TABLES IN SCHEMA public", database)
        self.server.execute(
            f"CREATE SUBSCRIPTION {PUBLICATION} "
            f"CONNECTION '{source.tcp_dsn(database)} password={source.PASSWORD}' "
            f"PUBLICATION {PUBLICATION} WITH (binary = true, streaming = parallel)",
            database,
        )
        self._until("SELECT count(*) = 0 FROM pg_subscription_rel WHERE srsubstate <> 'r'")
        self.stop()

    def _until(self, question: str) -> None:
        deadline = time.monotonic() + 600
        while not self.server.execute(question, self._database)[0][0]:
            if time.monotonic() > deadline:
                raise TimeoutError(question)
            time.sleep(0.05)

    def start(self) -> None:
        self.server.execute(f"ALTER SUBSCRIPTION {PUBLICATION} ENABLE", self._database)

    def stop(self) -> None:
        self.server.execute(f"ALTER SUBSCRIPTION {PUBLICATION} DISABLE", self._database)
        self._until("SELECT count(*) = 0 FROM pg_stat_subscription WHERE pid IS NOT NULL")

    def peaks(self) -> dict[str, int]:
        rows = self.server.execute(
            "SELECT pid FROM pg_stat_subscription WHERE pid IS NOT NULL", self._database
        )
        return {f"apply {number}": _peak(int(str(row[0]))) for number, row in enumerate(rows)}

    def remove(self) -> None:
        self.server.remove()


def cores() -> int:
    return os.cpu_count() or 1
