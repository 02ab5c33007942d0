"""A role change as agents see it: who runs which ends, who is told, and what is never copied over."""

from __future__ import annotations

import asyncio

import pytest

from castling.errors import StaleEpoch
from castling.testing.bank import create_bank
from castling.testing.cluster import GROUP, Cluster, wait_for


def test_a_role_change_moves_the_ends_and_reaches_a_node_that_was_away() -> None:
    with Cluster() as cluster:
        create_bank(cluster.dsn("east"), accounts=200)
        cluster.start_group()
        cluster.kill_agent("east")
        west = cluster.node("west")
        assert asyncio.run(west.take_role(GROUP, 2, "west", "a test")) == {"changed": True}
        assert asyncio.run(west.take_role(GROUP, 2, "west", "a test")) == {"changed": False}
        with pytest.raises(StaleEpoch):
            asyncio.run(west.take_role(GROUP, 1, "east", "a test"))
        assert cluster.primary == "west"
        tree = cluster.cli("west", "group", "status", GROUP)["data"]
        assert (tree["primary"], tree["backups"], tree["epoch"]) == ("west", ["east"], 2)
        assert tree["configured_primary"] == "east"

        # the one that was away hears of it by itself, and its ends turn
        cluster.start_agent("east")
        east = cluster.node("east")
        wait_for(
            lambda: asyncio.run(east.roles())[GROUP] == {"epoch": 2, "primary": "west"},
            "east has heard of epoch 2",
        )
        wait_for(lambda: cluster.pid("receive") is not None, "east receives")
        ends = {end["end"]: end for end in asyncio.run(east.ends(GROUP))}
        assert set(ends) == {"receive", "apply"}

        # what it may have committed is not copied over
        wait_for(
            lambda: (cluster.report("source").get("error") or {}).get("code") == "backup-apart",
            "the source waits for the reintroduction",
        )
        assert cluster.servers["east"].execute("SELECT count(*) FROM account", "bank")[0][0] > 0

        # the role outlives the agents
        for node in ("east", "west"):
            cluster.kill_agent(node)
            cluster.start_agent(node)
        tree = cluster.cli("east", "group", "status", GROUP)["data"]
        assert (tree["primary"], tree["epoch"]) == ("west", 2)
