"""The source's log is protected in the declared order: an alarm, a spool, giving the backup up."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.real.fault_cast import bank_cluster, proven_equal, state

from castling.testing.cluster import Cluster, wait_for

_SLOT = "castling_bank_west"
_SPOOL = {"segment": "1MiB", "min_free": "1MiB", "size": "512MiB"}
_SPOOLING: dict[str, Any] = {"wal_alarm": "256KiB", "wal_spool": "512KiB", "spool": _SPOOL}


def _folder(cluster: Cluster) -> Path:
    return cluster.homes["east"] / "groups" / "bank" / "east-west" / "spool"


def _spool(cluster: Cluster) -> dict[str, Any]:
    return cluster.report("source").get("spool") or {}


def _kept(cluster: Cluster) -> tuple[int, int]:
    """What the slot keeps of the log, and what of it was not acknowledged; after the server has had reason
    to look what it still needs."""
    cluster.servers["east"].execute("CHECKPOINT")
    found = cluster.servers["east"].execute(
        "SELECT (pg_current_wal_flush_lsn() - restart_lsn)::int8,"
        " (pg_current_wal_flush_lsn() - confirmed_flush_lsn)::int8"
        f" FROM pg_replication_slots WHERE slot_name = '{_SLOT}'"
    )
    return tuple(found[0])  # type: ignore[return-value]


def _codes(cluster: Cluster) -> list[str]:
    return [warning["code"] for warning in state(cluster)["warnings"]]


def _failed_with(cluster: Cluster, code: str) -> dict[str, Any]:
    """Wait until the source end has failed because of this error; the error."""

    def failed() -> bool:
        end = state(cluster)["ends"]["source"]
        return end["state"] == "failed" and (end.get("error") or {}).get("code") == code

    wait_for(failed, f"the source end fails with {code}")
    error: dict[str, Any] = state(cluster)["ends"]["source"]["error"]
    return error


@pytest.mark.timeout(300)
def test_the_log_shrinks_while_the_backup_is_away_and_nothing_is_lost() -> None:
    chance = random.Random(5)
    with bank_cluster(pause_s=0.002, **_SPOOLING) as (cluster, bank):
        cluster.wait_until_applied()
        assert _spool(cluster)["state"] == "empty" and not list(_folder(cluster).glob("*.seg"))
        cluster.proxy.cut()
        wait_for(lambda: _spool(cluster).get("state") == "filling", "the source end spools")
        assert "spooling" in _codes(cluster)
        for _ in range(2):
            before = bank.transactions
            wait_for(lambda least=before: bank.transactions > least + 500, "the bank goes on")
            killed = cluster.kill("source")
            wait_for(lambda dead=killed: cluster.pid("source") not in (None, dead), "it is started again")
            wait_for(
                lambda: (
                    cluster.pid("source") == cluster.report("source").get("pid")
                    and _spool(cluster).get("state") == "filling"
                ),
                "it spools on, though it has never heard the backup",
            )
        hardened = cluster.report("receive")["positions"]["hardened"]
        before = bank.transactions
        wait_for(lambda: bank.transactions > before + 500, "the bank goes on")
        wait_for(lambda: max(_kept(cluster)) < 512 << 10, "the source keeps less than waits for the backup")
        spooled = sum(path.stat().st_size for path in _folder(cluster).glob("*.seg"))
        assert spooled > 512 << 10, "the log was freed and what was in it is nowhere"
        assert cluster.report("receive")["positions"]["hardened"] == hardened, "the link was not cut"
        cluster.proxy.heal()
        for _ in range(2):
            killed = cluster.kill("source")
            wait_for(lambda dead=killed: cluster.pid("source") not in (None, dead), "it is started again")
            target = bank.transactions + chance.randint(10, 300)
            wait_for(lambda least=target: bank.transactions > least, "the bank goes on")
        proven_equal(cluster, bank)
        wait_for(lambda: _spool(cluster).get("state") == "empty", "the spool is sent and removed")
        assert not list(_folder(cluster).iterdir())
        assert "spooling" not in _codes(cluster)


@pytest.mark.faults
@pytest.mark.timeout(240)
def test_a_spool_that_is_lost_is_a_gap_and_told() -> None:
    """The control: what the source has forgotten was in the spool and nowhere else."""
    with bank_cluster(pause_s=0.002, **_SPOOLING) as (cluster, bank):
        cluster.wait_until_applied()
        cluster.proxy.cut()
        wait_for(lambda: _spool(cluster).get("state") == "filling", "the source end spools")
        before = bank.transactions
        wait_for(lambda: bank.transactions > before + 500, "the bank goes on")
        cluster.stop_group()
        shutil.rmtree(_folder(cluster))
        cluster.proxy.heal()
        cluster.start_group_now()
        error = _failed_with(cluster, "continuity-lost")
        assert "--reseed" in error["hint"]
        cluster.cli("east", "group", "start", "bank", "--reseed", "--yes")
        proven_equal(cluster, bank)


@pytest.mark.faults
@pytest.mark.timeout(300)
def test_a_full_spool_leaves_the_rest_with_the_source(small_disk: Any) -> None:
    with bank_cluster(start=False, pause_s=0.0, **_SPOOLING) as (cluster, bank):
        groups = cluster.homes["east"] / "groups"
        small_disk(groups, "6M")
        cluster.start_group()
        cluster.wait_until_applied()
        cluster.proxy.cut()
        wait_for(lambda: _spool(cluster).get("state") == "full", "the spool's disk is full")
        assert "spool-full" in _codes(cluster)
        wait_for(lambda: _kept(cluster)[1] > 1 << 20, "the source keeps what comes now")
        killed = cluster.kill("source")
        wait_for(lambda: cluster.pid("source") not in (None, killed), "it is started again")
        wait_for(lambda: _spool(cluster).get("state") == "full", "it is still full")
        small_disk(groups, "600M")
        wait_for(lambda: _spool(cluster).get("state") == "filling", "it goes on by itself")
        cluster.proxy.heal()
        proven_equal(cluster, bank)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("after", ["reseed", pytest.param("stop", marks=pytest.mark.faults)])
def test_a_backup_that_keeps_too_much_is_given_up_on_purpose(after: str) -> None:
    limits = {"wal_alarm": "1MiB", "wal_limit": "32MiB", "on_wal_limit": after}
    with bank_cluster(**limits) as (cluster, bank):
        cluster.wait_until_applied()
        cluster.proxy.cut()
        server = cluster.servers["east"]
        for _ in range(5):  # of another database: it is the whole server's log that fills the disk
            server.execute("SELECT pg_logical_emit_message(false, 'other', repeat('x', 8 << 20))")
        wait_for(lambda: not server.execute("SELECT FROM pg_replication_slots"), "the slot is given up")
        if after == "stop":
            error = _failed_with(cluster, "log-given-up")
            assert "wal_limit" in error["message"] and "--reseed" in error["hint"]
            cluster.proxy.heal()
            cluster.start_group_now()  # starting it again does not pretend that nothing has happened
            _failed_with(cluster, "log-given-up")
            cluster.cli("east", "group", "start", "bank", "--reseed", "--yes")
        else:
            wait_for(lambda: state(cluster)["group_state"] == "given-up", "the state says so")
            found = state(cluster)
            assert found["rpo_s"] is None and "log-given-up" in _codes(cluster)
            killed = cluster.kill("source")  # the next process knows it too
            wait_for(lambda: cluster.pid("source") not in (None, killed), "it is started again")
            wait_for(lambda: state(cluster)["group_state"] == "given-up", "the state says so")
            cluster.proxy.heal()
        proven_equal(cluster, bank)
        assert "log-given-up" not in _codes(cluster)
