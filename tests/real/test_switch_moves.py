"""The planned change of roles by its moves: there, back, and taken back half-way, with clients writing."""

from __future__ import annotations

import asyncio

import psycopg
import pytest
from tests.real.switch_cast import Clients, finish, leave, prepare, switch

from castling.errors import CastlingError, StaleEpoch
from castling.testing.bank import create_bank
from castling.testing.cluster import GROUP, Cluster, wait_for
from castling.testing.compare import compare


def run_again(cluster: Cluster) -> None:
    wait_for(cluster.is_running, f"the stream from {cluster.primary} runs")
    cluster.wait_until_applied()


def equal(cluster: Cluster) -> None:
    """Nothing on the new primary is missing on the backup, and nothing is there that it does not have."""
    cluster.wait_until_applied()
    found = compare(cluster.dsn(cluster.primary), cluster.dsn(cluster.backup))
    assert found.equal, found


def test_roles_change_there_and_back_under_load_and_nothing_is_lost() -> None:
    with Cluster(group={"ddl": "carry"}) as cluster:
        create_bank(cluster.dsn("east"), accounts=200)
        cluster.servers["east"].execute("CREATE SEQUENCE public.numbers", cluster.database)
        cluster.start_group()
        with Clients(cluster) as clients:
            wait_for(lambda: len(clients.acknowledged) > 100, "clients write")
            for number in range(4):
                value = cluster.servers[cluster.primary].execute(
                    "SELECT nextval('public.numbers')", cluster.database
                )[0][0]
                told = switch(cluster)
                print(told["old"], "to", told["new"], told["took"])
                assert cluster.primary == told["new"]
                before = len(clients.acknowledged)
                wait_for(lambda before=before: len(clients.acknowledged) > before, "clients go on")
                # a sequence goes on exactly where it was
                assert (
                    cluster.servers[cluster.primary].execute(
                        "SELECT nextval('public.numbers')", cluster.database
                    )[0][0]
                    == value + 1
                )
                run_again(cluster)
                leave(cluster)
                # the old primary takes nothing
                with psycopg.connect(cluster.dsn(cluster.backup)) as stale:
                    stale.execute("SET TRANSACTION READ WRITE")
                    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction, match="is fenced in epoch"):
                        stale.execute("INSERT INTO public.acked VALUES (1, 1)")
                # a schema change is carried in the new direction
                cluster.servers[cluster.primary].execute(
                    f"CREATE TABLE public.made_{number} (id int PRIMARY KEY);"
                    f" INSERT INTO public.made_{number} VALUES (1)",
                    cluster.database,
                )
            tree = cluster.cli("east", "group", "status", GROUP)["data"]
            assert (tree["primary"], tree["epoch"]) == ("east", 5)
        print("errors", len(clients.errors), set(clients.errors), "longest", clients.longest_s)
        rows = clients.rows(cluster, cluster.primary)
        assert not clients.acknowledged - rows and not rows - clients.maybe
        equal(cluster)
        for node in ("east", "west"):  # nothing of the former direction is left
            slots = cluster.servers[node].execute("SELECT slot_name FROM pg_replication_slots")
            assert slots == ([(f"castling_{GROUP}_west",)] if node == "east" else [])
        triggers = cluster.servers["east"].execute(
            "SELECT DISTINCT tgname FROM pg_trigger WHERE tgname LIKE 'castling%'", cluster.database
        )
        assert triggers == []


def test_a_change_that_is_taken_back_leaves_the_old_direction_as_it_was() -> None:
    with Cluster() as cluster:
        create_bank(cluster.dsn("east"), accounts=200)
        cluster.start_group()
        with Clients(cluster) as clients:
            wait_for(lambda: len(clients.acknowledged) > 50, "clients write")
            told = asyncio.run(prepare(cluster))
            state = asyncio.run(cluster.node("east").switch_state(GROUP))
            assert state["fenced"] is True and state["open"] is False and state["prepared_epoch"] == 2
            east, west = cluster.node("east"), cluster.node("west")
            for _ in range(2):  # each may be repeated
                asyncio.run(west.unprepare(GROUP, 2, "west"))
                asyncio.run(east.unprepare(GROUP, 2, "west"))
                asyncio.run(east.unfence(GROUP))
            before = len(clients.acknowledged)
            wait_for(lambda: len(clients.acknowledged) > before, "clients go on")
            with pytest.raises(CastlingError, match="not prepared"):
                asyncio.run(west.promote(GROUP, 2, "a test"))
            state = asyncio.run(east.switch_state(GROUP))
            assert state == {
                "epoch": 1,
                "primary": "east",
                "fenced": False,
                "prepared_epoch": None,
                "open": True,
            }
            run_again(cluster)
            # and it can be done after all; each move twice
            told = asyncio.run(prepare(cluster))
            asyncio.run(east.fence(GROUP, 2, "west", 1))
            assert asyncio.run(west.prepare_source(GROUP, 2))["begin"] == told["begin"]
            asyncio.run(east.prepare_target(GROUP, 2, "west", told["begin"]))
            asyncio.run(finish(cluster, told))
            asyncio.run(west.promote(GROUP, 2, "a test"))
            with pytest.raises(StaleEpoch):
                asyncio.run(west.unprepare(GROUP, 2, "west"))
            with pytest.raises(CastlingError):
                asyncio.run(east.unfence(GROUP))
            before = len(clients.acknowledged)
            wait_for(lambda: len(clients.acknowledged) > before, "clients go on")
            run_again(cluster)
        rows = clients.rows(cluster, "west")
        assert not clients.acknowledged - rows and not rows - clients.maybe
        equal(cluster)
