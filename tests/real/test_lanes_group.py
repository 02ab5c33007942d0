"""Lanes in a running group: agents, processes, `kill -9` of the apply, and what an operator sees."""

from __future__ import annotations

from castling.testing.cluster import GROUP, Cluster, wait_for
from castling.testing.compare import compare

_TABLES = ("a", "b", "c", "d")


def _tables_by_lane(cluster: Cluster) -> int:
    stream = cluster.cli("east", "group", "status", GROUP)["data"]["streams"][0]
    lanes = (stream["ends"]["apply"].get("target") or {}).get("lanes") or []
    assert len(lanes) in (0, 3)
    return sum(lane["tables"] for lane in lanes)


def test_a_group_with_lanes_survives_the_death_of_its_apply() -> None:
    with Cluster(group={"lanes": 3, "on_error": "stop", "batch_changes": 20}) as cluster:
        east, west = cluster.servers["east"], cluster.servers["west"]
        for table in _TABLES:
            east.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, n int)", cluster.database)
        cluster.start_group()
        for run in range(3):
            for number in range(60):
                key = run * 60 + number
                inserts = "".join(f"INSERT INTO {table} VALUES ({key}, 0);" for table in _TABLES)
                updates = "".join(
                    f"UPDATE {table} SET n = n + 1 WHERE id % 7 = {number % 7};" for table in _TABLES
                )
                east.execute(inserts + updates, cluster.database)
            dead = cluster.kill("apply")
            east.execute("TRUNCATE d; INSERT INTO d SELECT -1, 1", cluster.database)
            cluster.wait_for_new("apply", dead)
        east.execute("INSERT INTO d VALUES (-2, 2)", cluster.database)
        wait_for(
            lambda: west.execute("SELECT count(*) FROM d WHERE id = -2", cluster.database) == [(1,)],
            "the last row is there",
        )
        wait_for(
            lambda: compare(cluster.dsn("east"), cluster.dsn("west"), schemas=["public"]).equal,
            "both are equal",
        )
        # a process tells of the tables that it was given changes of, and the last one maybe of none yet
        for table in _TABLES:
            east.execute(f"INSERT INTO {table} VALUES (-3, 0)", cluster.database)
        wait_for(lambda: _tables_by_lane(cluster) >= len(_TABLES), "the status tells of every table")
        found = west.execute("SELECT count(DISTINCT lane) FROM castling.lane_tables", cluster.database)
        assert found == [(3,)]
