"""With synchronous delivery production never waits for somebody who will not come, unless that was chosen.

Nodes, agents and processes as a user has them; what dies, dies by `kill -9`.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from castling.groups.topology import End, EndName, end_paths
from castling.testing.cluster import GROUP, Cluster, wait_for


@pytest.fixture(scope="module")
def degrading() -> Iterator[Cluster]:
    with _cluster({"on_sync_loss": "degrade", "degrade_after": 2.0}) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def waiting() -> Iterator[Cluster]:
    with _cluster({"on_sync_loss": "wait"}) as cluster:
        yield cluster


def _cluster(group: dict[str, Any]) -> Cluster:
    return Cluster(group={"delivery": "sync", **group})


def _begin(cluster: Cluster) -> None:
    """Started, and commits wait for the backup."""
    east = cluster.servers["east"]
    east.execute("CREATE TABLE IF NOT EXISTS t (id bigint PRIMARY KEY)", cluster.database)
    if cluster.pid("source") is None:
        cluster.start_group()
    _wait_for_sync(cluster)


def _wait_for_sync(cluster: Cluster) -> None:
    """Until the status says that commits wait; then they do.

    On a machine that is busy the backup may be silent for long enough that they have just ceased to: then
    the next report says so.
    """
    wait_for(lambda: _stream(cluster)["mode"] == "sync", "commits wait for the backup")
    if _names(cluster) == "":
        wait_for(
            lambda: _stream(cluster)["mode"] != "sync" or _names(cluster) != "",
            "it is no longer said that commits wait",
            within_s=5.0,
        )
        _wait_for_sync(cluster)


def _stream(cluster: Cluster) -> dict[str, Any]:
    found: dict[str, Any] = cluster.cli("east", "group", "status", GROUP)["data"]["streams"][0]
    return found


def _names(cluster: Cluster) -> str:
    return str(cluster.servers["east"].execute("SHOW synchronous_standby_names")[0][0])


def _warnings(cluster: Cluster) -> list[str]:
    return [warning["code"] for warning in _stream(cluster)["warnings"]]


class _Commit(threading.Thread):
    """One INSERT, which may wait."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(daemon=True)
        self._cluster = cluster
        self.start()

    def run(self) -> None:
        statement = f"INSERT INTO t VALUES ({time.time_ns()})"
        self._cluster.servers["east"].execute(statement, self._cluster.database)

    def waits(self) -> bool:
        found = self._cluster.servers["east"].execute(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        )
        return self.is_alive() and bool(found[0][0])

    def returned(self, within_s: float = 60.0) -> bool:
        self.join(within_s)
        return not self.is_alive()


def test_a_source_end_that_starts_while_the_backup_is_away_degrades(degrading: Cluster) -> None:
    cluster = degrading
    _begin(cluster)
    cluster.proxy.cut()
    try:
        cluster.kill("source")
        commit = _Commit(cluster)
        assert commit.returned(), "commits hang for a backup that is away, against the group's choice"
        wait_for(lambda: _stream(cluster)["mode"] == "sync:degraded", "the state says so")
    finally:
        cluster.proxy.heal()
    _wait_for_sync(cluster)


def test_a_source_end_that_can_not_be_started_degrades(degrading: Cluster) -> None:
    """It would start again by itself, and never does: nobody of it is there to count the seconds."""
    cluster = degrading
    _begin(cluster)
    log = end_paths(cluster.homes["east"], End(GROUP, "west", EndName.SOURCE)).log
    log.unlink()
    log.mkdir()  # no process can be started that can't write its log
    try:
        cluster.kill("source")
        assert _Commit(cluster).returned(), "commits hang for a process that never comes"
        told = _stream(cluster)
        assert told["ends"]["source"]["state"] == "pausing"
        assert (told["mode"], told["link"]) == ("sync:unknown", "down"), "what a dead process said, as now"
    finally:
        log.rmdir()
    cluster.start_group_now()
    _wait_for_sync(cluster)


def test_a_source_end_that_is_told_to_end_leaves_nobody_waiting(degrading: Cluster) -> None:
    """A node that shuts down: its agent is gone, and the source end gets a SIGTERM from somebody else."""
    cluster = degrading
    _begin(cluster)
    cluster.kill_agent("east")
    pid = cluster.pid("source")
    assert pid is not None
    os.kill(pid, signal.SIGTERM)
    assert _Commit(cluster).returned(), "commits hang for a node that has left"
    cluster.start_agent("east")
    _wait_for_sync(cluster)


def test_a_stream_that_has_failed_for_good_degrades(degrading: Cluster) -> None:
    cluster = degrading
    _begin(cluster)
    east, slot = cluster.servers["east"], f"castling_{GROUP}_west"

    def dropped() -> bool:
        east.execute(
            f"SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{slot}'"
        )
        left = east.execute(
            "SELECT count(pg_drop_replication_slot(slot_name)) FROM pg_replication_slots"
            f" WHERE slot_name = '{slot}' AND active_pid IS NULL"
        )
        return left == [(1,)]

    wait_for(dropped, "the slot is dropped")
    assert _Commit(cluster).returned(), "commits hang for a stream that can't come back"
    wait_for(lambda: _stream(cluster)["state"] == "failed", "the stream has failed")
    wait_for(lambda: _names(cluster) == "", "the names are reset")
    cluster.cli("east", "group", "start", GROUP, "--reseed", "--yes")


def test_a_stop_lets_commits_go_though_nobody_is_left(waiting: Cluster) -> None:
    """The source end is dead and its agent too; then the agent comes back and the group is stopped."""
    cluster = waiting
    _begin(cluster)
    cluster.kill_agent("east")
    cluster.kill("source")
    commit = _Commit(cluster)
    wait_for(commit.waits, "the commit waits, as was chosen")
    cluster.start_agent("east")
    cluster.stop_group()
    assert commit.returned() and _names(cluster) == ""
    cluster.start_group_now()


def test_a_stop_while_the_source_is_down_is_carried_out_when_it_is_back(waiting: Cluster) -> None:
    cluster = waiting
    _begin(cluster)
    cluster.servers["east"].kill()
    cluster.stop_group()
    assert "commits-may-wait" in _warnings(cluster), "what is not known to be done is said"
    cluster.servers["east"].start_again()
    assert _Commit(cluster).returned()
    wait_for(lambda: _names(cluster) == "" and not _warnings(cluster), "it is done, and said no longer")
    cluster.start_group_now()


def test_who_chose_to_wait_is_told_who_is_waited_for(waiting: Cluster) -> None:
    cluster = waiting
    _begin(cluster)
    east = cluster.servers["east"]
    east.execute(f"DROP PUBLICATION castling_{GROUP}_west", cluster.database)
    cluster.kill("source")
    wait_for(lambda: _stream(cluster)["state"] == "failed", "the stream has failed")
    commit = _Commit(cluster)
    wait_for(commit.waits, "the commit waits, as was chosen")
    wait_for(lambda: "commits-wait" in _warnings(cluster), "the status says who waits, and what frees them")
    # somebody lets go by hand
    east.execute("ALTER SYSTEM RESET synchronous_standby_names")
    east.execute("SELECT pg_reload_conf()")
    assert commit.returned()
    wait_for(lambda: "commits-wait" not in _warnings(cluster), "it is said no longer")
    cluster.stop_group()
