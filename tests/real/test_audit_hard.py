"""What makes audits hard: other names, some rows, other versions, TRUNCATE, kills, and people who write
messages."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from castling.config import load
from castling.errors import AuditCannotBegin
from castling.kinds import load as load_kind
from castling.kinds.base import Auditor, Compared, Stream
from castling.testing.cluster import GROUP, Cluster, wait_for
from castling.testing.compare import compare

_RULES: dict[str, Any] = {
    "rename": {"public.plain": "other.renamed", "sales.*": "sales_eu.*"},
    "rows": {"public.several": "kind LIKE 'a%'"},
    "columns": {"public.few": ["id", "told"]},
}
_SCHEMA = """
    CREATE SCHEMA sales;
    CREATE TABLE plain (id int PRIMARY KEY, v text, f float8, m money, c char(5), i interval, x inet, b bytea,
                        twice int GENERATED ALWAYS AS (id * 2) STORED);
    INSERT INTO plain SELECT i, 'v' || i, i / 3.0, i, 'c', i * interval '1 month 1 day 1 second', '10.0.0.1',
                             decode(md5(i::text), 'hex') FROM generate_series(1, 500) i;
    CREATE TABLE several (id int PRIMARY KEY, kind text NOT NULL);
    ALTER TABLE several REPLICA IDENTITY FULL;
    INSERT INTO several SELECT i, CASE WHEN i % 2 = 0 THEN 'a' ELSE 'b' END FROM generate_series(1, 500) i;
    CREATE TABLE few (id int PRIMARY KEY, told text, secret text);
    INSERT INTO few SELECT i, 'told', 'secret' FROM generate_series(1, 500) i;
    CREATE TABLE sales.parts (id int, region text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
    CREATE TABLE sales.parts_a PARTITION OF sales.parts FOR VALUES IN ('a');
    CREATE TABLE sales.parts_b PARTITION OF sales.parts FOR VALUES IN ('b');
    INSERT INTO sales.parts SELECT i, CASE WHEN i % 3 = 0 THEN 'a' ELSE 'b' END
      FROM generate_series(1, 500) i;
    CREATE TYPE pair AS (a int, b text);
    CREATE TABLE typed (id int PRIMARY KEY, p pair, e text[], r int4range, j jsonb, d date, n numeric);
    INSERT INTO typed SELECT i, ROW(i, NULL)::pair, ARRAY[NULL, 'x'], int4range(i, NULL), '{"a": 1}',
                             'infinity', 'NaN' FROM generate_series(1, 100) i;
    INSERT INTO typed VALUES (0, ROW(NULL, NULL)::pair, '{}', 'empty', 'null', '0044-03-15 BC', 1.00),
                             (-1, NULL, NULL, NULL, NULL, NULL, NULL);
    CREATE TABLE acked (client int, n bigint, PRIMARY KEY (client, n));
    CREATE TABLE hot (id int PRIMARY KEY, n int NOT NULL DEFAULT 0, u int UNIQUE);
    INSERT INTO hot (id, u) SELECT i, i FROM generate_series(1, 300) i;
    CREATE TABLE cleared (id int PRIMARY KEY, v text);
"""


class _Free:
    async def spent(self, *, seconds: float, size: int, rows: int) -> None:
        return


def _auditor(cluster: Cluster) -> Auditor:
    config = load(cluster.homes["east"] / "deployed.toml")
    return load_kind("postgres").auditor(Stream(GROUP, "west", config.groups[GROUP], config))


async def _rows(auditor: Auditor, *only: str) -> list[Compared]:
    async with auditor.at_one_position() as view:
        return [
            await view.compare(part.part, _Free())
            for part in await auditor.parts()
            if not only or part.part in only
        ]


def _audit(cluster: Cluster, *only: str) -> list[Compared]:
    return asyncio.run(_rows(_auditor(cluster), *only))


def _told(results: list[Compared]) -> dict[str, list[str]]:
    return {each.part: [found.what for found in each.found] for each in results if each.result != "equal"}


@pytest.fixture(scope="module")
def cluster(bin15: Path) -> Iterator[Cluster]:
    """From PostgreSQL 15 to the embedded 18, with every rule of what is carried and how it is called."""
    with Cluster(direct=True, group=_RULES, bins={"east": bin15}) as made:
        with psycopg.connect(made.dsn("east"), autocommit=True) as source:
            source.execute(_SCHEMA.encode())
        made.start_group(within_s=120)
        yield made


def _target(cluster: Cluster, *statements: str) -> None:
    with psycopg.connect(cluster.dsn("west"), autocommit=True) as target:
        target.execute("SET session_replication_role = replica")
        for statement in statements:
            done = target.execute(statement.encode())
            assert done.rowcount == 1, statement


def test_other_names_some_rows_and_columns_other_versions(cluster: Cluster) -> None:
    healthy = _audit(cluster)
    assert _told(healthy) == {}, healthy
    rows = {each.part: (each.rows_source, each.rows_target) for each in healthy}
    assert rows["public.several"] == (250, 250) and rows["public.plain"] == (500, 500)
    assert {"sales.parts_a", "sales.parts_b"} <= rows.keys()
    auditor = _auditor(cluster)
    for rule in auditor.rules[1:]:
        assert [each.result for each in asyncio.run(auditor.look(rule))] == ["equal"], rule
    _target(
        cluster,
        "UPDATE other.renamed SET f = '-0' WHERE id = 1",
        "UPDATE other.renamed SET m = m + '0.01'::money WHERE id = 2",
        "UPDATE other.renamed SET i = i + '1 day - 24 hours'::interval WHERE id = 3",
        "UPDATE other.renamed SET c = '' WHERE id = 4",
        "UPDATE several SET kind = 'aa' WHERE id = 2",
        "INSERT INTO several VALUES (1, 'b')",
        "UPDATE few SET told = 'Told' WHERE id = 3",
        "DELETE FROM sales_eu.parts WHERE id = 3",
        "UPDATE typed SET p = NULL WHERE id = 0",
        "UPDATE typed SET p = ROW(NULL, NULL)::pair WHERE id = -1",
        "UPDATE typed SET n = 1.0 WHERE id = 0",
    )
    found = _audit(cluster)
    assert _told(found) == {
        "public.plain": ["different"] * 4,
        "public.several": ["extra", "different"],
        "public.few": ["different"],
        "sales.parts_a": ["missing"],
        "public.typed": ["different"] * 2,
    }
    repaired = asyncio.run(_auditor(cluster).repair([one for each in found for one in each.found]))
    assert {each.result for each in repaired} == {"done"}, repaired
    assert _told(_audit(cluster)) == {}
    named = _RULES["rename"]
    last = compare(
        cluster.dsn("east"), cluster.dsn("west"), named=named, rows=_RULES["rows"], columns=_RULES["columns"]
    )
    assert last.equal, last.differences


def test_a_table_of_many_blocks_is_read_in_many_statements(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row is read once, and none is left out, however the two ends lie on their disks."""
    source, target = cluster.servers["east"], cluster.servers["west"]
    source.execute(
        "INSERT INTO cleared SELECT i, repeat('x', 500) FROM generate_series(1, 3000) i", cluster.database
    )
    source.execute("DELETE FROM cleared WHERE id % 7 = 0", cluster.database)
    source.execute("UPDATE cleared SET v = v || 'y' WHERE id % 5 = 0", cluster.database)
    cluster.wait_until_applied()
    for server in (source, target):
        server.execute("VACUUM cleared", cluster.database)
    whole = _audit(cluster, "public.cleared")
    monkeypatch.setattr("castling.kinds.postgres.audit_rows._FIRST_BLOCKS", 1)
    monkeypatch.setattr("castling.kinds.postgres.audit_rows._BLOCKS", (1, 3))
    monkeypatch.setattr("castling.kinds.postgres.audit_rows.ROWS_AT_ONCE", 100)
    monkeypatch.setattr("castling.kinds.postgres.audit_rows.READINGS", 1000)
    parts = _audit(cluster, "public.cleared")
    assert whole[0].rows_source == parts[0].rows_source == parts[0].rows_target == 3000 - 428
    assert _told(parts) == {}
    _target(cluster, "DELETE FROM cleared WHERE id = 1", "UPDATE cleared SET v = '' WHERE id = 2999")
    found = _audit(cluster, "public.cleared")[0].found
    assert {(each.what, str(each.key)) for each in found} == {
        ("missing", "{'id': '1'}"),
        ("different", "{'id': '2999'}"),
    }
    assert len(found) == 2
    monkeypatch.setattr("castling.kinds.postgres.audit_rows.LISTED", 1)
    listed = _audit(cluster, "public.cleared")[0]
    assert len(listed.found) == 2 and listed.found[1].what == "more" and listed.more == 1
    # more than is listed: the table is copied anew
    repaired = asyncio.run(_auditor(cluster).repair(listed.found))
    assert {each.result for each in repaired} <= {"done", "sent"}, repaired
    wait_for(lambda: _told(_audit(cluster, "public.cleared")) == {}, "it was copied anew")
    source.execute("TRUNCATE cleared", cluster.database)


def test_messages_of_others_stop_nothing_and_change_nothing(cluster: Cluster) -> None:
    row = {"schema": "public", "name": "few", "columns": ["id", "told"], "hashed": [], "key": {"id": "5"}}
    forged = json.dumps({"group": GROUP, "nonce": "00", "rows": [{**row, "row": ["5", "forged"]}], "v": 1})
    with psycopg.connect(cluster.dsn("east"), autocommit=True) as source:
        for prefix, content in (
            ("castling:audit", "f" * 32),
            ("castling:audit", ""),
            ("castling:repair", forged),
        ):
            source.execute("SELECT pg_logical_emit_message(true, %s, %s::text)", (prefix, content))
        source.execute("SELECT pg_logical_emit_message(true, 'castling:repair', 'garbage')")
    cluster.wait_until_applied(within_s=30)
    told = cluster.servers["west"].execute("SELECT told FROM few WHERE id = 5", cluster.database)
    assert told == [("told",)]


def test_a_truncated_table_is_no_finding(cluster: Cluster) -> None:
    """A snapshot sees a table that was truncated after it as empty: on either end, that is no difference."""
    source = cluster.servers["east"]
    source.execute("INSERT INTO cleared SELECT i, 'x' FROM generate_series(1, 2000) i", cluster.database)

    async def run() -> tuple[Compared, Compared]:
        async with _auditor(cluster).at_one_position() as view:
            await asyncio.to_thread(source.execute, "TRUNCATE cleared", cluster.database)
            return await view.compare("public.cleared", _Free()), await view.compare("public.hot", _Free())

    compared, next_one = asyncio.run(run())
    assert next_one.result == "equal", next_one
    assert compared.result == "unknown" and "rewritten" in compared.problem, compared
    assert _told(_audit(cluster, "public.cleared")) == {}


def test_repairs_race_with_writers_of_the_same_rows(cluster: Cluster) -> None:
    stop = threading.Event()

    def write() -> None:
        number = 0
        with psycopg.connect(cluster.dsn("east"), autocommit=True) as source:
            while not stop.wait(0.002):
                number += 1
                source.execute("UPDATE hot SET n = n + 1 WHERE id = %s", (number % 290 + 11,))

    _target(cluster, *(f"UPDATE hot SET n = -{one} WHERE id = {one}" for one in range(11, 71)))
    # two rows that have each other's unique value: they can only be mended together
    with psycopg.connect(cluster.dsn("west")) as target:
        target.execute("SET session_replication_role = replica")
        for statement in ("u = -1 WHERE id = 7", "u = 7 WHERE id = 8", "u = 8 WHERE id = 7"):
            target.execute(f"UPDATE hot SET {statement}".encode())
    writer = threading.Thread(target=write)
    writer.start()
    try:
        found = _audit(cluster, "public.hot")
        assert found[0].result == "differs"
        repaired = asyncio.run(_auditor(cluster).repair(found[0].found))
        assert {each.result for each in repaired} == {"done"}, repaired
        assert _told(_audit(cluster, "public.hot")) == {}
    finally:
        stop.set()
        writer.join()


def _audit_that_succeeds(cluster: Cluster, *only: str) -> list[Compared]:
    found: list[Compared] = []

    def tried() -> bool:
        try:
            found[:] = _audit(cluster, *only)
        except AuditCannotBegin:
            return False
        return True

    wait_for(tried, "an audit succeeds", within_s=240)
    return found


def test_apply_that_dies_while_it_stands_still_or_mends_harms_nothing(cluster: Cluster) -> None:
    for number in range(2):
        _target(cluster, f"UPDATE hot SET n = -1 WHERE id = {100 + number}")
        killer = threading.Timer(0.05 * number, lambda: cluster.kill("apply"))
        killer.start()
        found = _audit_that_succeeds(cluster, "public.hot")
        killer.join()
        assert [each.key for each in found[0].found] == [{"id": str(100 + number)}]
        killer = threading.Timer(0.02 * number, lambda: cluster.kill("apply"))
        killer.start()
        asyncio.run(_auditor(cluster).repair(found[0].found))
        killer.join()
        cluster.wait_until_applied()
    wait_for(lambda: _told(_audit(cluster, "public.hot")) == {}, "all is mended")
