"""Writes of others on the target as an operator meets them: status, list, a new copy, the alarm's end."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from castling.errors import StateError
from castling.testing.cluster import GROUP, Cluster, wait_for
from castling.testing.compare import compare


def _stream(cluster: Cluster) -> dict[str, Any]:
    found: dict[str, Any] = cluster.cli("east", "group", "status", GROUP)["data"]["streams"][0]
    return found


def _watched(cluster: Cluster) -> bool:
    said = _stream(cluster)["foreign_writes"]
    return said is not None and said["unwatched"] == 0 and said["open"] == 0


def test_tampering_is_told_mended_and_acknowledged() -> None:
    with Cluster() as cluster:
        east, west = cluster.servers["east"], cluster.servers["west"]
        east.execute("CREATE TABLE t (id int PRIMARY KEY, v text)", cluster.database)
        east.execute("INSERT INTO t SELECT i, 'x' FROM generate_series(1, 100) i", cluster.database)
        cluster.start_group()
        wait_for(lambda: _watched(cluster), "every table is watched")
        assert cluster.cli("west", "group", "foreign-writes", GROUP)["data"]["writes"] == []
        with psycopg.connect(cluster.dsn("west"), application_name="by hand") as session:
            session.execute("UPDATE t SET v = 'tampered' WHERE id <= 7")
        wait_for(lambda: (_stream(cluster)["foreign_writes"] or {}).get("open") == 1, "it is noticed")
        (warning,) = [each for each in _stream(cluster)["warnings"] if each["code"] == "foreign-writes"]
        assert "public.t was changed by others: 7 updated" in warning["message"]
        assert f"castling group resync {GROUP} public.t" in warning["hint"]
        with pytest.raises(StateError, match=r'(?s)failed with 3: .*"login": "castling".*"updated": 7'):
            cluster.cli("east", "group", "foreign-writes", GROUP)
        cluster.cli("east", "group", "resync", GROUP, "public.t", "--yes")

        def is_mended() -> bool:
            return compare(cluster.dsn("east"), cluster.dsn("west"), schemas=["public"]).equal

        wait_for(is_mended, "the new copy has the source's rows")
        wait_for(lambda: _stream(cluster)["holds"] == [], "and is live")
        assert _stream(cluster)["foreign_writes"]["open"] == 1, "a new copy is nobody's write"
        seen = cluster.cli("east", "group", "foreign-writes", GROUP, "--acknowledge", "--yes")["data"]
        assert [(each["updated"], each["application"]) for each in seen["writes"]] == [(7, "by hand")]
        assert seen["writes"][0]["acknowledged_by"] and seen["open"] == 0
        wait_for(lambda: _stream(cluster)["foreign_writes"]["open"] == 0, "the alarm has ended")
        assert all(each["code"] != "foreign-writes" for each in _stream(cluster)["warnings"])
        listed = cluster.cli("west", "group", "foreign-writes", GROUP, "--since", "1h")["data"]
        assert len(listed["writes"]) == 1
        west.execute("UPDATE t SET v = 'again' WHERE id = 1", cluster.database)
        cluster.stop_group()
        cluster.cli("east", "group", "remove", GROUP, "--yes")
        left = "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'castling%'"
        assert west.execute(left, cluster.database) == [(0,)]
