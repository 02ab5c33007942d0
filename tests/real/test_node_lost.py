"""A backup that is gone for good: the group is forgotten without it, and production is free again."""

from __future__ import annotations

import pytest

from castling.errors import StateError
from castling.testing.cluster import GROUP, Cluster


def _left_on_source(cluster: Cluster) -> list[tuple[object, ...]]:
    east = cluster.servers["east"]
    return [
        *east.execute("SELECT slot_name FROM pg_replication_slots", cluster.database),
        *east.execute("SELECT pubname FROM pg_publication", cluster.database),
    ]


def test_a_group_is_removed_without_a_node_that_is_gone_for_good() -> None:
    with Cluster() as cluster:
        cluster.servers["east"].execute("CREATE TABLE t (id int PRIMARY KEY)", cluster.database)
        cluster.start_group()
        assert len(_left_on_source(cluster)) == 2
        cluster.kill_agent("west")
        for name in ("receive", "apply"):
            cluster.kill(name)
        cluster.servers["west"].kill()
        with pytest.raises(StateError, match="west"):
            cluster.cli("east", "group", "stop", GROUP, "--yes")
        with pytest.raises(StateError, match="nothing was changed"):
            cluster.cli("east", "group", "remove", GROUP, "--yes")
        assert len(_left_on_source(cluster)) == 2
        with pytest.raises(StateError, match="not a node of group"):
            cluster.cli("east", "group", "remove", GROUP, "--yes", "--without", "north")
        told = cluster.cli("east", "group", "remove", GROUP, "--yes", "--without", "west")
        assert told["data"]["result"] == "removed"
        assert _left_on_source(cluster) == []
        again = cluster.cli("east", "group", "remove", GROUP, "--yes", "--without", "west")
        assert again["data"]["result"] == "already_removed"
        (cluster.homes["east"] / "castling.toml").write_text(
            f'[installation]\nname = "demo"\n[nodes.east]\napi = "127.0.0.1:{cluster.api["east"]}"\n'
            f'link = "127.0.0.1:{cluster.link["east"]}"\n'
        )
        assert cluster.cli("east", "deploy", "--yes")["data"]["result"] == "deployed"
