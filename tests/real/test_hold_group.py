"""A table on hold as an operator meets it: by status, commands and `kill -9`, with agents and processes."""

from __future__ import annotations

from typing import Any

from castling.testing.cluster import GROUP, Cluster, wait_for
from castling.testing.compare import compare

_TABLES = "CREATE TABLE good (id int PRIMARY KEY, v text); CREATE TABLE bad (id int PRIMARY KEY, v text)"


def _stream(cluster: Cluster) -> dict[str, Any]:
    found: dict[str, Any] = cluster.cli("east", "group", "status", GROUP)["data"]["streams"][0]
    return found


def _count(cluster: Cluster, table: str) -> object:
    return cluster.servers["west"].execute(f"SELECT count(*) FROM {table}", cluster.database)[0][0]


def test_one_bad_table_is_shown_and_comes_back() -> None:
    with Cluster(group={"on_error": "hold"}) as cluster:
        east, west = cluster.servers["east"], cluster.servers["west"]
        east.execute(_TABLES, cluster.database)
        east.execute("INSERT INTO bad SELECT i, 'x' FROM generate_series(1, 100) i", cluster.database)
        cluster.start_group()
        wait_for(lambda: _stream(cluster)["holds"] == [], "the target has said that nothing is on hold")
        west.execute("DELETE FROM bad WHERE id = 50", cluster.database)
        east.execute("UPDATE bad SET v = 'y' WHERE id BETWEEN 40 AND 60", cluster.database)
        wait_for(lambda: _stream(cluster)["state"] == "on-hold", "the state says that not all is well")
        (hold,) = _stream(cluster)["holds"]
        assert (hold["part"], hold["state"]) == ("public.bad", "held")
        assert any(each["code"] == "part-on-hold" for each in _stream(cluster)["warnings"])
        east.execute("INSERT INTO good SELECT i, 'x' FROM generate_series(1, 500) i", cluster.database)
        wait_for(lambda: _count(cluster, "good") == 500, "the other table goes on")
        dead = cluster.kill("apply")
        east.execute("DELETE FROM bad WHERE id > 90; INSERT INTO bad VALUES (200, 'z')", cluster.database)
        cluster.wait_for_new("apply", dead)
        wait_for(lambda: bool(cluster.report("apply").get("holds")), "and still knows of the hold")
        west.execute("INSERT INTO bad VALUES (50, 'x')", cluster.database)
        told = cluster.cli("east", "group", "release", GROUP)["data"]["parts"]
        assert [each["result"] for each in told] == ["asked"]
        cluster.kill("apply")
        wait_for(lambda: cluster.report("apply").get("holds") == [], "it is released")
        wait_for(lambda: _stream(cluster)["state"] == "running", "and all is well")
        wait_for(lambda: _count(cluster, "bad") == 91, "what was kept has been applied")
        assert compare(cluster.dsn("east"), cluster.dsn("west"), schemas=["public"]).equal
        held = cluster.cli("west", "group", "hold", GROUP, "public.good", "--reason", "maintenance")
        assert held["data"]["parts"][0]["result"] == "asked"
        wait_for(lambda: bool(_stream(cluster)["holds"]), "held by hand")
        east.execute("INSERT INTO good VALUES (1000, 'x')", cluster.database)
        assert _stream(cluster)["holds"][0]["reason"] == "maintenance"
        cluster.cli("west", "group", "release", GROUP, "public.good")
        wait_for(lambda: _count(cluster, "good") == 501, "released by hand")
