"""A planned switch and a failback under load: nothing lost, nothing twice, never two writable primaries."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from castling.errors import StateError
from castling.testing.bank import Bank, create_bank, lost, total_balance
from castling.testing.cluster import GROUP, Cluster, wait_for
from castling.testing.compare import compare

pytestmark = pytest.mark.real
_SCRIPTS = "".join(
    f'{name} = "not needed"\n' for name in ("stop-application", "move-users", "start-application")
)


class WhoIsWritable:
    """Asks both servers all the time, as a client would: who takes a write right now? Two at once count.

    Before the first change of roles a copy has no guard (what others write there is told as foreign), so it
    is counted from when only one was seen to take writes, several times in a row.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._dsns = {node: cluster.dsn(node) for node in ("east", "west")}
        self._stopping = threading.Event()
        self.looks, self.both, self.seen = 0, 0, set[tuple[str, ...]]()
        self.is_guarded = False
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> WhoIsWritable:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(20)

    def _watch(self) -> None:
        single = 0
        while not self._stopping.is_set():
            first = {node for node in self._dsns if self._takes_writes(node)}
            # a server that was writable before and after the other's answer was so at that moment
            both = len(first) == 2 and self._takes_writes(min(first))
            self.looks += 1
            single = single + 1 if len(first) == 1 else 0
            self.is_guarded = self.is_guarded or single >= 3
            self.both += both and self.is_guarded
            self.seen.add(tuple(sorted(first)))
            time.sleep(0.01)

    def _takes_writes(self, node: str) -> bool:
        try:
            with psycopg.connect(self._dsns[node], connect_timeout=2, autocommit=True) as connection:
                connection.execute("BEGIN READ WRITE")
                connection.execute("INSERT INTO branch SELECT 0 - pg_backend_pid(), 'x' || pg_backend_pid()")
                connection.execute("ROLLBACK")
                return True
        except psycopg.Error:
            return False


@contextlib.contextmanager
def _stopping(bank: Bank) -> Iterator[None]:
    try:
        yield
    finally:
        bank.stop()


def switch(cluster: Cluster, node: str, *more: str) -> dict[str, Any]:
    found: dict[str, Any] = cluster.cli(node, "switch", "start", GROUP, "--yes", *more)["data"]
    return found


def test_there_and_back_under_load() -> None:
    with Cluster(direct=True) as cluster:
        create_bank(cluster.dsn("east"), accounts=500)
        toml = (
            cluster.toml() + f'[applications.{GROUP}]\ngroups = ["{GROUP}"]\n[applications.{GROUP}.scripts]\n'
        )
        (cluster.homes["east"] / "castling.toml").write_text(toml + _SCRIPTS)
        cluster.cli("east", "deploy", "--yes")
        cluster.start_group()
        parts = [psycopg.conninfo.conninfo_to_dict(cluster.dsn(node)) for node in ("east", "west")]
        several = {key: ",".join(str(part[key]) for part in parts) for key in ("host", "port")}
        both = psycopg.conninfo.make_conninfo(**(parts[0] | several), target_session_attrs="read-write")
        balance = total_balance(cluster.dsn("east"))
        bank = Bank(both, accounts=500).start()
        with WhoIsWritable(cluster) as watched, _stopping(bank):
            wait_for(lambda: bank.transactions > 50, "the bank works")
            with pytest.raises(StateError, match="no full audit has shown"):
                switch(cluster, "east")
            there = switch(cluster, "east", "--override", "audit")
            assert there["status"] == "completed" and there["rpo_s"] == 0 and there["pause_s"] < 60
            so_far = bank.transactions
            wait_for(lambda: bank.transactions > so_far + 50, "the bank works on west")
            back = switch(cluster, "west", "--failback", "--override", "audit")
            assert back["status"] == "completed" and back["new"] == "east"
            so_far = bank.transactions
            wait_for(lambda: bank.transactions > so_far + 50, "the bank works on east again")
        print("pause", there["pause_s"], back["pause_s"], "looks", watched.looks, watched.seen)
        assert watched.is_guarded and watched.both == 0, "two nodes took writes at once"
        assert {("east",), ("west",)} <= watched.seen, "the control: each was seen to take writes"
        assert lost(bank, cluster.dsn("east")) == [] and total_balance(cluster.dsn("east")) == balance
        wait_for(
            lambda: compare(cluster.dsn("east"), cluster.dsn("west"), ["public"]).equal,
            "both sides are equal",
        )
