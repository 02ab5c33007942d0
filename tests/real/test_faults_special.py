"""Faults that a person has to know of: each stops the group loudly, or is waited out, and loses nothing."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.real.fault_cast import bank_cluster, proven_equal, state

from castling.cli.results import undocumented
from castling.groups.role import Role, save_role
from castling.host import RealHost
from castling.journal.journal import Journal
from castling.testing.bank import Bank, lost
from castling.testing.cluster import Cluster, wait_for
from castling.testing.compare import compare

_SLOT = "castling_bank_west"


def _failed_with(cluster: Cluster, end: str, code: str, *, within_s: float = 120.0) -> dict[str, Any]:
    """Wait until the group has failed because of this error of this end; the error."""

    def failed() -> bool:
        found = state(cluster)["ends"][end]
        return found["state"] == "failed" and (found.get("error") or {}).get("code") == code

    wait_for(failed, f"{end} fails with {code}", within_s=within_s)
    assert state(cluster)["group_state"] == "failed"
    error: dict[str, Any] = state(cluster)["ends"][end]["error"]
    return error


def _drop_slot(cluster: Cluster) -> None:
    """The capture comes back within moments and takes the slot again: end it until the drop has won."""

    def dropped() -> bool:
        server = cluster.servers["east"]
        server.execute(
            f"SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{_SLOT}'"
        )
        try:
            server.execute(f"SELECT pg_drop_replication_slot('{_SLOT}')")
        except psycopg.errors.ObjectInUse:
            return False
        return True

    wait_for(dropped, "the slot is dropped")


def _journal(cluster: Cluster) -> Path:
    return cluster.homes["west"] / "groups" / "bank" / "east-west" / "journal"


# --- the source -------------------------------------------------------------------------------


def test_a_slot_dropped_behind_our_back_stops_the_group_and_a_new_copy_heals_it() -> None:
    with bank_cluster() as (cluster, bank):
        cluster.wait_until_applied()
        _drop_slot(cluster)
        error = _failed_with(cluster, "source", "continuity-lost")
        assert "--reseed" in error["hint"] and state(cluster)["rpo_s"] is None
        # starting it again does not pretend that nothing has happened
        cluster.start_group_now()
        _failed_with(cluster, "source", "continuity-lost")
        cluster.cli("east", "group", "start", "bank", "--reseed", "--yes")
        proven_equal(cluster, bank)


def test_the_first_copy_goes_on_when_its_process_dies() -> None:
    with bank_cluster(start=False, link={"bandwidth": "200KB/s"}) as (cluster, bank):
        cluster.start_group_now()
        for _ in range(2):
            wait_for(
                lambda: (cluster.report("source").get("seed") or {}).get("rows", 0) > 0, "rows are copied"
            )
            cluster.kill("source")
        proven_equal(cluster, bank)
        assert cluster.report("receive")["stream"]["seeds"] == 1, "the copy was begun from its beginning"


def test_a_dead_source_never_shows_zero() -> None:
    with bank_cluster() as (cluster, _):
        wait_for(lambda: state(cluster)["rpo_s"] is not None, "the RPO is known")
        cluster.servers["east"].stop(signal.SIGQUIT)
        dead_ns = time.time_ns()
        looks: list[Any] = []

        def unknown() -> bool:
            report = cluster.report("source")
            # half a second: the report of an instant before the death may be written an instant after it
            if report.get("at_ns", 0) > dead_ns + 500_000_000:
                looks.append(report.get("rpo_s"))
            return looks.count(None) >= 5

        wait_for(unknown, "the RPO is unknown")
        assert 0.0 not in looks, "a source that is dead has shown a figure that says all is well"
        cluster.servers["east"].start_again()
        wait_for(lambda: state(cluster)["rpo_s"] is not None, "the RPO is known again")


def test_a_table_made_while_the_group_runs_is_named_as_unprotected() -> None:
    with bank_cluster() as (cluster, _):
        cluster.servers["east"].execute("CREATE TABLE late (id int PRIMARY KEY)", cluster.database)
        cluster.kill("source")  # what is published is looked at when capture opens, and every half minute

        def named() -> bool:
            tree = cluster.cli("east", "group", "status", "bank")["data"]
            return any(
                warning["code"] == "tables-unprotected" and "public.late" in warning["message"]
                for stream in tree["streams"]
                for warning in stream["warnings"]
            )

        wait_for(named, "the status names the table")


# --- the journal ------------------------------------------------------------------------------


def test_a_full_disk_is_a_state_and_loses_nothing(small_disk: Any) -> None:
    retention = {"segment": "1MiB", "min_free": "2MiB"}
    with bank_cluster(start=False, pause_s=0.0, retention=retention) as (cluster, bank):
        groups = cluster.homes["west"] / "groups"
        small_disk(groups, "12M")
        cluster.start_group()
        apply = cluster.pid("apply")
        assert apply is not None
        os.kill(apply, signal.SIGSTOP)  # what is not applied is kept, so the journal grows
        wait_for(lambda: state(cluster)["group_state"] == "journal-full", "the journal is full")
        hardened = cluster.report("receive")["positions"]["hardened"]
        wait_for(lambda: (state(cluster)["rpo_s"] or 0) > 2, "the RPO grows and is shown")
        assert cluster.report("receive")["positions"]["hardened"] == hardened
        small_disk(groups, "400M")
        os.kill(apply, signal.SIGCONT)
        proven_equal(cluster, bank)


def test_rot_in_the_journal_is_refused_not_applied() -> None:
    retention = {"segment": "1MiB"}
    with bank_cluster(pause_s=0.0, retention=retention) as (cluster, bank):
        cluster.wait_until_applied()
        apply = cluster.pid("apply")
        assert apply is not None
        os.kill(apply, signal.SIGSTOP)
        before = set(_journal(cluster).glob("*.seg"))
        wait_for(lambda: len(set(_journal(cluster).glob("*.seg")) - before) >= 3, "the journal grows")
        rotten = sorted(set(_journal(cluster).glob("*.seg")) - before)[0]
        with rotten.open("r+b") as file:
            file.seek(rotten.stat().st_size // 2)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 0x10]))
        os.kill(apply, signal.SIGKILL)
        error = _failed_with(cluster, "apply", "journal-corrupt")
        assert rotten.name in error["message"]
        # receiving goes on: the newest changes are still made safe
        hardened = cluster.report("receive")["positions"]["hardened"]
        wait_for(lambda: cluster.report("receive")["positions"]["hardened"] != hardened, "receiving goes on")
        cluster.cli("east", "group", "start", "bank", "--reseed", "--yes")
        proven_equal(cluster, bank)


def test_an_epoch_that_is_over_is_refused() -> None:
    with bank_cluster() as (cluster, bank):
        cluster.wait_until_applied()
        (found,) = cluster.cli("west", "journal", "inspect", "bank", "--records")["data"]
        assert found["epoch"] == 1 and found["damage"] == [] and found["records"]
        assert undocumented("journal inspect", [found]) == []
        cluster.stop_group()
        journal = Journal.open(RealHost(), str(_journal(cluster)), group="bank", segment_bytes=64 << 20)
        journal.raise_epoch(2)
        journal.close()
        cluster.start_group_now()
        _failed_with(cluster, "source", "stale-epoch")
        save_role(RealHost(), str(cluster.homes["east"] / "groups" / "bank"), Role(2, "east"))
        cluster.start_group_now()
        proven_equal(cluster, bank)


# --- the target -------------------------------------------------------------------------------


def test_a_row_missing_on_the_target_stops_apply_and_names_it() -> None:
    with bank_cluster(on_error="stop") as (cluster, bank):
        cluster.wait_until_applied()
        bank.stop()
        cluster.wait_until_applied()
        cluster.servers["west"].execute("DELETE FROM account WHERE id = 77", "bank")
        cluster.servers["east"].execute("UPDATE account SET owner = 'x' WHERE id = 77", "bank")
        error = _failed_with(cluster, "apply", "target-diverged")
        assert error["context"]["table"] == "public.account" and "77" in error["context"]["key"]
        cluster.servers["west"].execute(
            "INSERT INTO account VALUES (77, 1, 0, 'will be overwritten')", "bank"
        )
        cluster.start_group_now()
        wait_for(cluster.is_running, "the group runs")
        cluster.wait_until_applied()
        found = compare(cluster.dsn("east"), cluster.dsn("west"))
        assert found.equal, found.differences  # an update carries the whole row


# --- what delivery promises -------------------------------------------------------------------


def _lose_the_primary(cluster: Cluster, bank: Bank) -> list[tuple[int, int]]:
    """East burns down under load. What the bank was told was committed and west does not have."""
    cluster.kill_agent("east")
    cluster.kill("source")
    cluster.servers["east"].kill()
    bank.stop()

    def drained() -> bool:
        hardened = cluster.report("receive")["positions"]["hardened"]
        return cluster.report("apply")["positions"]["applied"] == hardened

    wait_for(drained, "west has applied what it holds")
    return lost(bank, cluster.dsn("west"))


def test_sync_delivery_loses_nothing_with_the_primary() -> None:
    with bank_cluster(delivery="sync", on_sync_loss="wait") as (cluster, bank):
        wait_for(lambda: state(cluster)["mode"] == "sync", "commits wait for the backup")
        # what was acknowledged before commits waited is another promise: let it pass
        cluster.wait_until_applied()
        before = bank.transactions
        wait_for(lambda: bank.transactions > before + 200, "the bank writes")
        cluster.proxy.cut()  # the moment before the fire the link is gone: commits wait
        time.sleep(1.0)
        assert _lose_the_primary(cluster, bank) == []


def test_async_delivery_does_lose_and_that_is_noticed() -> None:
    """The control of the test above: the same fire, without the promise."""
    with bank_cluster() as (cluster, bank):
        cluster.wait_until_applied()
        cluster.proxy.cut()
        before = bank.transactions
        wait_for(lambda: bank.transactions > before + 50, "the bank writes")
        assert len(_lose_the_primary(cluster, bank)) >= 50


def test_degrading_sync_lets_the_bank_go_on_and_says_so() -> None:
    with bank_cluster(delivery="sync", on_sync_loss="degrade", degrade_after=1.0) as (cluster, bank):
        wait_for(lambda: state(cluster)["mode"] == "sync", "commits wait for the backup")
        cluster.proxy.cut()
        wait_for(lambda: state(cluster)["mode"] == "sync:degraded", "the loss of protection is shown")
        before = bank.transactions
        wait_for(lambda: bank.transactions > before + 50, "the bank goes on")
        cluster.proxy.heal()
        wait_for(lambda: state(cluster)["mode"] == "sync", "commits wait again")
        proven_equal(cluster, bank)


# --- where capture runs -----------------------------------------------------------------------


def test_capture_may_run_on_the_backups_node() -> None:
    with bank_cluster(capture_on="west") as (cluster, bank):
        assert state(cluster)["nodes"]["source"] == "west"
        assert cluster.pid("source") is not None
        cluster.kill("source")
        proven_equal(cluster, bank)


def test_the_oracle_notices_a_lost_and_a_changed_row() -> None:
    """The control of `proven_equal` itself."""
    with bank_cluster() as (cluster, bank):
        proven_equal(cluster, bank)
        client, number = max((client, max(numbers)) for client, numbers in bank.acked.items() if numbers)
        with psycopg.connect(cluster.dsn("west"), autocommit=True) as west:
            west.execute("DELETE FROM acked WHERE client = %s AND n = %s", (client, number))
        assert lost(bank, cluster.dsn("west")) == [(client, number)]
        with pytest.raises(AssertionError):
            proven_equal(cluster, bank)
