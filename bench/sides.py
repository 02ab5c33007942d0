"""The two systems of the comparison: each can be started, stopped, and asked what it has used."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import psycopg

from castling.testing.cluster import GROUP, Cluster
from castling.testing.servers import EmbeddedServer

__all__ = ["Castling", "Native", "Peaks", "Side", "attach", "contestants", "cores", "wait_for_sentinel"]

PUBLICATION = "native_bench"
_TICK = os.sysconf("SC_CLK_TCK")
#: after an end: Castling's agents make the processes of the next start ready, which is not the other's to pay
SETTLE_S = 0.8


class Side(Protocol):
    name: str
    dsn: str
    #: by which pg_stat_replication on the source knows its walsender
    application: str

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def processes(self) -> dict[str, int]:
        """The processes that work now, by name; its walsender is among them, its target's session too."""


class Peaks(dict[str, int]):
    """Peak resident memory of every process that was seen, bytes, by its name."""

    def look(self, side: Side) -> None:
        for name, pid in side.processes().items():
            if "server's" not in name:
                key = f"{side.name} {name}"
                self[key] = max(_peak(pid), self.get(key, 0))


def cpu_s(pids: dict[str, int]) -> dict[str, float]:
    """Processor seconds of each process since it began; of those that still are."""
    found = {}
    for name, pid in pids.items():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        found[name] = (int(fields[11]) + int(fields[12])) / _TICK
    return found


def wait_for_sentinel(dsn: str, number: int, segment: str, limit_s: float = 900) -> None:
    """Return when the backlog's last row is on the target."""
    deadline = time.monotonic() + limit_s
    with psycopg.connect(dsn, autocommit=True) as connection:
        question = "SELECT 1 FROM sentinel WHERE round = %s AND segment = %s"
        while not connection.execute(question, [number, segment]).fetchone():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{segment} of round {number} did not arrive in {limit_s:.0f} s")
            time.sleep(0.01)


def contestants(sides: list[Side], number: int) -> list[Side]:
    """Both, in turns: who was last is first in the next round."""
    return sides if number % 2 else list(reversed(sides))


def attach(source: EmbeddedServer, side: Side) -> None:
    """Return when it is connected and has caught up."""
    question = (
        "SELECT COALESCE(bool_and(state = 'streaming' AND flush_lsn >= %s::pg_lsn), false)"
        f" FROM pg_stat_replication WHERE application_name = '{side.application}'"
    )
    mark = source.execute("SELECT pg_current_wal_insert_lsn()")[0][0]
    deadline = time.monotonic() + 300
    while not source.execute(question.replace("%s", f"'{mark}'"))[0][0]:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{side.name} does not catch up")
        source.execute("SELECT pg_logical_emit_message(false, 'bench', '')")
        time.sleep(0.1)


def _peak(pid: int) -> int:
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def _walsender(source: EmbeddedServer, application: str) -> dict[str, int]:
    rows = source.execute(f"SELECT pid FROM pg_stat_replication WHERE application_name = '{application}'")
    return dict(zip(("source server's walsender",), (int(str(row[0])) for row in rows), strict=False))


class Castling:
    """A cluster as a user would set it up; the link does not pass through the fault proxy."""

    name = "castling"
    application = f"castling_{GROUP}_west"

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.dsn = cluster.servers["west"].dsn(cluster.database)

    def start(self) -> None:
        self.cluster.start_group_now()

    def stop(self) -> None:
        self.cluster.stop_group()
        time.sleep(SETTLE_S)

    def processes(self) -> dict[str, int]:
        found = {}
        for name in ("source", "receive", "apply"):
            pid = self.cluster.pid(name)
            if pid is not None:
                found[name] = pid
        rows = self.cluster.servers["west"].execute(
            f"SELECT pid FROM pg_stat_activity WHERE application_name = 'castling apply {GROUP}'"
        )
        found |= {f"target server's session {n}": int(str(row[0])) for n, row in enumerate(rows, 1)}
        return found | _walsender(self.cluster.servers["east"], self.application)


class Native:
    """PostgreSQL's own subscription, with the options of a careful administrator: binary, large
    transactions applied in parallel while they still run; where commits wait for it, its own are
    durable too, or else each of those would wait for its walwriter."""

    name = "native"
    application = PUBLICATION

    def __init__(
        self,
        source: EmbeddedServer,
        database: str,
        schema: Iterable[str],
        *,
        synchronous: bool = False,
        seeded: bool = True,
    ) -> None:
        self._database = database
        self._source = source
        self._synchronous = synchronous
        self.server = EmbeddedServer(name="native").start()
        self.server.execute(f"CREATE DATABASE {database}")
        self.dsn = self.server.dsn(database)
        for statement in schema:
            self.server.execute(statement, database)
        source.execute(f"CREATE PUBLICATION {PUBLICATION} FOR TABLES IN SCHEMA public", database)
        if seeded:
            self.subscribe()
            self.until_copied()
            self.stop()

    def subscribe(self) -> None:
        """Make the subscription, which copies all rows and goes on from there."""
        commits = ", synchronous_commit = on" if self._synchronous else ""
        self.server.execute(
            f"CREATE SUBSCRIPTION {PUBLICATION} "
            f"CONNECTION '{self._source.tcp_dsn(self._database)} password={self._source.PASSWORD}' "
            f"PUBLICATION {PUBLICATION} WITH (binary = true, streaming = parallel{commits})",
            self._database,
        )

    def unsubscribe(self) -> None:
        self.server.execute(f"DROP SUBSCRIPTION {PUBLICATION}", self._database)

    def until_copied(self) -> None:
        self._until("SELECT count(*) = 0 FROM pg_subscription_rel WHERE srsubstate <> 'r'")

    def _until(self, question: str) -> None:
        deadline = time.monotonic() + 900
        while not self.server.execute(question, self._database)[0][0]:
            if time.monotonic() > deadline:
                raise TimeoutError(question)
            time.sleep(0.02)

    def start(self) -> None:
        self.server.execute(f"ALTER SUBSCRIPTION {PUBLICATION} ENABLE", self._database)

    def stop(self) -> None:
        self.server.execute(f"ALTER SUBSCRIPTION {PUBLICATION} DISABLE", self._database)
        self._until("SELECT count(*) = 0 FROM pg_stat_subscription WHERE pid IS NOT NULL")
        time.sleep(SETTLE_S)

    def processes(self) -> dict[str, int]:
        rows = self.server.execute(
            "SELECT pid FROM pg_stat_subscription WHERE pid IS NOT NULL", self._database
        )
        found = {f"apply {number}": int(str(row[0])) for number, row in enumerate(rows, 1)}
        return found | _walsender(self._source, self.application)

    def remove(self) -> None:
        self.server.remove()


def cores() -> int:
    return os.cpu_count() or 1
