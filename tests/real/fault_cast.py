"""What the fault tests share: a cluster under a bank, and the proof at the end."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from castling.errors import StateError
from castling.testing.bank import Bank, create_bank, lost, total_balance
from castling.testing.cluster import Cluster, wait_for
from castling.testing.compare import compare
from castling.testing.faults import Fault, inject

__all__ = ["ACCOUNTS", "bank_cluster", "injected", "proven_equal", "state"]

ACCOUNTS = 2000


@contextlib.contextmanager
def bank_cluster(
    *, start: bool = True, pause_s: float = 0.01, **group: Any
) -> Iterator[tuple[Cluster, Bank]]:
    """Two nodes, a bank that writes; `start`: the group is started and seeded."""
    with Cluster(group={"heartbeat": 0.3, **group}) as cluster:
        create_bank(cluster.dsn("east"), accounts=ACCOUNTS)
        bank = Bank(cluster.dsn("east"), accounts=ACCOUNTS, pause_s=pause_s).start()
        try:
            if start:
                cluster.start_group()
            yield cluster, bank
        finally:
            bank.stop()


def injected(cluster: Cluster, faults: list[Fault]) -> Counter[str]:
    """Do them one after the other; how often each really happened."""
    done: Counter[str] = Counter()
    for fault in faults:
        if inject(cluster, fault):
            done[str(fault.kind)] += 1
    return done


def proven_equal(cluster: Cluster, bank: Bank, *, within_s: float = 180.0) -> None:
    """Stop the bank, let everything drain: nothing acknowledged may be missing, nothing may differ."""
    bank.stop()
    try:
        wait_for(cluster.is_running, "the group runs", within_s=within_s)
    except StateError as error:
        raise AssertionError(f"{error}: {json.dumps(state(cluster), indent=1)}") from error
    cluster.wait_until_applied(within_s=within_s)
    east, west = cluster.dsn("east"), cluster.dsn("west")
    assert bank.transactions > 0, "the bank has not written anything"
    assert lost(bank, west) == []
    found = compare(east, west)
    assert found.equal, found.differences
    assert total_balance(east) == total_balance(west)


def state(cluster: Cluster) -> dict[str, Any]:
    """The group's stream as `castling group status` tells it."""
    tree = cluster.cli("east", "group", "status", "bank")["data"]
    stream: dict[str, Any] = tree["streams"][0]
    return {**stream, "group_state": tree["state"]}
