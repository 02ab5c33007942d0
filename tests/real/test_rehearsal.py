"""Rehearsals through real agents: production goes on, nothing gets out, and each ends by itself."""

from __future__ import annotations

import threading
import time
from typing import Any

import psycopg
import pytest

from castling.errors import StateError
from castling.kinds.postgres.clone import PREFIX
from castling.testing.cluster import GROUP, Cluster, wait_for
from castling.testing.compare import compare


def _copies(cluster: Cluster) -> list[str]:
    rows = cluster.servers["west"].execute(
        f"SELECT datname FROM pg_database WHERE datname LIKE '{PREFIX}%' ORDER BY 1"
    )
    return [str(name) for (name,) in rows]


def _equal(cluster: Cluster) -> bool:
    return compare(cluster.dsn("east"), cluster.dsn("west"), schemas=["public"]).equal


def _state(cluster: Cluster, identity: str) -> str:
    listed = cluster.cli("east", "rehearsal", "list", GROUP)["data"]
    return next(str(each["state"]) for each in listed if each["id"] == identity)


class _Writing:
    """Somebody who commits on the primary all the time."""

    def __init__(self, cluster: Cluster) -> None:
        self._stop = threading.Event()
        self._dsn = cluster.dsn("east")
        self.written = 0
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with psycopg.connect(self._dsn, autocommit=True) as session:
            while not self._stop.wait(0.01):
                session.execute("INSERT INTO t (v) VALUES ('production')")
                self.written += 1

    def __enter__(self) -> _Writing:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()


def test_a_rehearsal_from_its_opening_to_its_end() -> None:
    with Cluster() as cluster:
        east = cluster.servers["east"]
        east.execute(
            "CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text)", cluster.database
        )
        east.execute("INSERT INTO t (v) SELECT 'x' FROM generate_series(1, 5000)", cluster.database)
        cluster.start_group()
        with _Writing(cluster) as writing:
            opened = cluster.cli("east", "rehearsal", "open", GROUP, "--for", "1h")["data"]
            assert opened["state"] == "open" and _copies(cluster) == [opened["database"]]
            written = writing.written
            _test_it(cluster, opened)
            wait_for(lambda: writing.written > written + 20, "production goes on beside it")
            wait_for(cluster.is_running, "and applying does")
        wait_for(lambda: _equal(cluster), "all of production is on the replica, and nothing else")
        assert cluster.servers["west"].execute(
            "SELECT count(*) FROM t WHERE v = 'test'", cluster.database
        ) == [(0,)]
        closed = cluster.cli("west", "rehearsal", "close", GROUP, opened["id"])["data"]
        assert closed["result"] == "closed" and _copies(cluster) == []
        again = cluster.cli("west", "rehearsal", "close", GROUP, opened["id"])["data"]
        assert again["result"] == "already_closed"
        _it_ends_by_itself(cluster)
        _an_agent_that_dies_leaves_none(cluster)
        _who_reads_the_replica_is_named(cluster)
        left = cluster.cli("east", "rehearsal", "open", GROUP)["data"]
        cluster.stop_group()
        cluster.cli("east", "group", "remove", GROUP, "--yes")
        assert left["database"] and _copies(cluster) == [], "what is removed leaves no copy"


def _test_it(cluster: Cluster, opened: dict[str, Any]) -> None:
    """As a user's own test would: it writes, as an application does, and undoes nothing."""
    dsn = cluster.dsn("west").replace(f"dbname={cluster.database}", f"dbname={opened['database']}")
    with psycopg.connect(dsn, autocommit=True) as session:
        (there,) = session.execute("SELECT count(*) FROM t").fetchone() or (None,)
        assert there is not None and there >= 5000
        session.execute("INSERT INTO t (v) VALUES ('test')")
        session.execute("UPDATE t SET v = 'test'")
        session.execute("DROP TABLE t")


def _it_ends_by_itself(cluster: Cluster) -> None:
    opened = cluster.cli("east", "rehearsal", "open", GROUP, "--for", "2s")["data"]
    wait_for(lambda: _state(cluster, opened["id"]) == "closed", "its time is over")
    assert _copies(cluster) == []
    with pytest.raises(StateError, match="not-found"):
        cluster.cli("east", "rehearsal", "close", GROUP, "00000000")


def _an_agent_that_dies_leaves_none(cluster: Cluster) -> None:
    """Killed while it is open, and its time passes; and killed while the copy is made."""
    opened = cluster.cli("east", "rehearsal", "open", GROUP, "--for", "3s")["data"]
    cluster.kill_agent("west")
    time.sleep(3.2)
    assert _copies(cluster) == [opened["database"]], "the control: nobody is there to end it"
    cluster.start_agent("west")
    wait_for(lambda: _copies(cluster) == [], "the next agent ends it")

    def ask() -> None:
        with pytest.raises(StateError):
            cluster.cli("east", "rehearsal", "open", GROUP)

    asking = threading.Thread(target=ask)
    asking.start()
    wait_for(lambda: cluster.pid("apply") is None, "apply is away for the copy")
    cluster.kill_agent("west")
    asking.join()
    cluster.start_agent("west")
    wait_for(cluster.is_running, "applying goes on")
    wait_for(lambda: _copies(cluster) == [], "what was begun is gone")
    listed = cluster.cli("east", "rehearsal", "list", GROUP)["data"]
    assert {each["state"] for each in listed} == {"closed"} and listed[0]["why"]


def _who_reads_the_replica_is_named(cluster: Cluster) -> None:
    with (
        psycopg.connect(cluster.dsn("west"), application_name="report"),
        pytest.raises(StateError, match=r"(?s)clone-failed.*report"),
    ):
        cluster.cli("east", "rehearsal", "open", GROUP)
    wait_for(cluster.is_running, "applying goes on")
    assert _copies(cluster) == []
