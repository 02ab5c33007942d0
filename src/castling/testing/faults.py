"""Faults of a running cluster: what to break is drawn from a seed, breaking it is real.

The schedule is pure, so that a run that found something can be had again. Each fault is left
to heal by what the product does by itself; only what a person has to do (start a
server again, plug the cable back in) is done here.
"""

from __future__ import annotations

import enum
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import psycopg

from castling.errors import StateError
from castling.testing.cluster import Cluster

__all__ = ["KILLS", "Fault", "FaultKind", "StrictReader", "inject", "schedule"]


class FaultKind(enum.StrEnum):
    KILL_SOURCE = "kill -9 of the source end"
    KILL_RECEIVE = "kill -9 of the receive end"
    KILL_APPLY = "kill -9 of the apply end"
    KILL_AGENT_EAST = "kill -9 of east's agent"
    KILL_AGENT_WEST = "kill -9 of west's agent"
    CUT = "link cut"
    STALL = "link stalled"
    CORRUPT = "bytes on the link flipped"
    CRASH_EAST = "PostgreSQL on east crashes"
    CRASH_WEST = "PostgreSQL on west crashes"
    END_BACKENDS_EAST = "Castling's sessions on east are terminated"
    END_BACKENDS_WEST = "Castling's sessions on west are terminated"


#: the kinds that are a `kill -9`
KILLS = frozenset(
    kind for kind in FaultKind if kind.value.startswith("kill -9") or kind.value.endswith("crashes")
)
#: how long a process to kill is waited for, seconds
BACK_S = 45.0

_WEIGHTS = {
    FaultKind.KILL_SOURCE: 6,
    FaultKind.KILL_RECEIVE: 6,
    FaultKind.KILL_APPLY: 6,
    FaultKind.KILL_AGENT_EAST: 1,
    FaultKind.KILL_AGENT_WEST: 1,
    FaultKind.CUT: 3,
    FaultKind.STALL: 2,
    FaultKind.CORRUPT: 3,
    FaultKind.CRASH_EAST: 1,
    FaultKind.CRASH_WEST: 2,
    FaultKind.END_BACKENDS_EAST: 2,
    FaultKind.END_BACKENDS_WEST: 2,
}


@dataclass(frozen=True, slots=True)
class Fault:
    """Wait `before_s`, then do it; what has a length (a cut, a stall) lasts `lasts_s`."""

    kind: FaultKind
    before_s: float
    lasts_s: float


def schedule(seed: int, number: int) -> list[Fault]:
    """`number` faults. Each kind comes once before any comes by chance, if there are enough."""
    chance = random.Random(seed)
    kinds = list(FaultKind)
    chance.shuffle(kinds)
    more = max(0, number - len(kinds))
    kinds = kinds[:number] + chance.choices(list(_WEIGHTS), list(_WEIGHTS.values()), k=more)
    # short pauses: a process that has only just come back is hit again
    return [
        Fault(kind, chance.choice((0.1, 0.3, 0.8, 1.5)), chance.choice((0.2, 0.5, 1.5))) for kind in kinds
    ]


def inject(cluster: Cluster, fault: Fault) -> bool:
    """Do it. False when there was nothing to break: the process to kill did not come back in time."""
    time.sleep(fault.before_s)
    return _INJECT[fault.kind](cluster, fault)


def _kill(end: str) -> Callable[[Cluster, Fault], bool]:
    def kill(cluster: Cluster, fault: Fault) -> bool:
        # a process that has only just died is waited for, and hit as soon as it is back
        try:
            cluster.kill(end, within_s=BACK_S)
        except StateError:
            return False
        return True

    return kill


def _kill_agent(node: str) -> Callable[[Cluster, Fault], bool]:
    def kill(cluster: Cluster, fault: Fault) -> bool:
        cluster.kill_agent(node)
        time.sleep(fault.lasts_s)
        cluster.start_agent(node)
        return True

    return kill


def _cut(cluster: Cluster, fault: Fault) -> bool:
    cluster.proxy.cut()
    time.sleep(fault.lasts_s)
    cluster.proxy.heal()
    return True


def _stall(cluster: Cluster, fault: Fault) -> bool:
    cluster.proxy.stall()
    time.sleep(fault.lasts_s * 2)
    cluster.proxy.heal()
    return True


def _corrupt(cluster: Cluster, fault: Fault) -> bool:
    cluster.proxy.corrupt_next()
    return True


def _crash(node: str) -> Callable[[Cluster, Fault], bool]:
    def crash(cluster: Cluster, fault: Fault) -> bool:
        server = cluster.servers[node]
        server.kill()
        time.sleep(fault.lasts_s)
        server.start_again()
        return True

    return crash


def _end_backends(node: str) -> Callable[[Cluster, Fault], bool]:
    def end(cluster: Cluster, fault: Fault) -> bool:
        ended = cluster.servers[node].execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name LIKE 'castling%' AND pid <> pg_backend_pid()"
        )
        return bool(ended)

    return end


_INJECT: dict[FaultKind, Callable[[Cluster, Fault], bool]] = {
    FaultKind.KILL_SOURCE: _kill("source"),
    FaultKind.KILL_RECEIVE: _kill("receive"),
    FaultKind.KILL_APPLY: _kill("apply"),
    FaultKind.KILL_AGENT_EAST: _kill_agent("east"),
    FaultKind.KILL_AGENT_WEST: _kill_agent("west"),
    FaultKind.CUT: _cut,
    FaultKind.STALL: _stall,
    FaultKind.CORRUPT: _corrupt,
    FaultKind.CRASH_EAST: _crash("east"),
    FaultKind.CRASH_WEST: _crash("west"),
    FaultKind.END_BACKENDS_EAST: _end_backends("east"),
    FaultKind.END_BACKENDS_WEST: _end_backends("west"),
}


class StrictReader:
    """Reads a question of the replica all the time and remembers every answer it ever saw.

    For a question whose answer is the same in every state of the source (the sum of all balances),
    a second answer is a state that the source never had.
    """

    def __init__(self, dsn: str, question: str) -> None:
        self._dsn = dsn
        self._question = question
        self._stopping = threading.Event()
        self.answers: set[object] = set()
        self.reads = 0
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> StrictReader:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(15)

    def _read(self) -> None:
        while not self._stopping.is_set():
            try:
                with psycopg.connect(self._dsn, autocommit=True, connect_timeout=5) as connection:
                    while not self._stopping.wait(0.02):
                        row = connection.execute(self._question.encode()).fetchone()
                        self.answers.add(None if row is None else row[0])
                        self.reads += 1
            except psycopg.OperationalError:
                time.sleep(0.1)  # crashed on purpose
