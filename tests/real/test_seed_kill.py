"""`kill -9` of all that takes part in a first copy, while the source is written: it goes on, work is kept."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from tests.real.fault_cast import proven_equal

from castling.testing.bank import Bank, create_bank
from castling.testing.cluster import Cluster, wait_for
from castling.testing.faults import Fault, FaultKind, inject

_ROWS, _CHUNK = 60_000, 2000
_TABLES = f"""
    CREATE TABLE bulk (id int PRIMARY KEY, v text NOT NULL, n int NOT NULL DEFAULT 0, u int UNIQUE);
    CREATE TABLE detail (id int PRIMARY KEY, bulk int NOT NULL REFERENCES bulk);
    INSERT INTO bulk SELECT i, repeat(md5(i::text), 4), 0, i FROM generate_series(1, {_ROWS}) i;
    INSERT INTO detail SELECT i, i FROM generate_series(1, {_ROWS // 3}) i;
    CREATE INDEX ON bulk (v);
    ANALYZE
"""
#: beside the bank: rows move between blocks, keys change, unique values change hands
_WORK = (
    "UPDATE bulk SET n = n + 1 WHERE id % 1999 = {0} % 1999",
    "UPDATE bulk SET id = id + 10000000 WHERE id = 40000 + {0}",
    "UPDATE bulk SET u = -u WHERE u IN (50001 + 2 * {0}, 50002 + 2 * {0});"
    "UPDATE bulk SET u = 100003 + 4 * {0} + u WHERE u IN (-50001 - 2 * {0}, -50002 - 2 * {0})",
    "INSERT INTO bulk SELECT 20000000 + {0}, 'new'; INSERT INTO detail SELECT 20000000 + {0}, 20000000 + {0}",
    "DELETE FROM bulk WHERE id = 30000 + {0}",
)
_DEADLY = (FaultKind.KILL_SOURCE, FaultKind.KILL_RECEIVE, FaultKind.CRASH_WEST, FaultKind.CRASH_EAST)


@contextmanager
def _copied() -> Iterator[tuple[Cluster, Callable[[], None]]]:
    """A group whose first copy takes a while, under writers; what stops them, and proves the copy equal."""
    seed = {"schema": "create", "chunk_rows": _CHUNK, "bandwidth": "2MB/s"}
    with Cluster(group={"heartbeat": 0.3, "seed": seed}) as cluster:
        create_bank(cluster.dsn("east"), accounts=2000)
        cluster.servers["east"].execute(_TABLES, cluster.database)
        bank = Bank(cluster.dsn("east"), accounts=2000, pause_s=0.02).start()
        stop = threading.Event()
        worker = threading.Thread(target=_work, args=(cluster, stop))
        worker.start()

        def proven() -> None:
            stop.set()
            worker.join()
            proven_equal(cluster, bank, within_s=150)
            seeds = cluster.report("receive")["stream"]["seeds"]
            assert seeds == 1, "the copy was begun from its very beginning"

        try:
            cluster.start_group_now()
            yield cluster, proven
        finally:
            stop.set()
            worker.join()
            bank.stop()


def _work(cluster: Cluster, stop: threading.Event) -> None:
    at = 0
    while not stop.wait(0.05):
        at += 1
        # the source's server may be down, on purpose
        with (
            contextlib.suppress(psycopg.OperationalError),
            psycopg.connect(cluster.dsn("east")) as connection,
        ):
            for statement in _WORK:
                connection.execute(statement.format(at).encode())
                connection.commit()


def _noted(cluster: Cluster) -> int | None:
    """Rows of the large table that are there, as the target has noted them; None: not known, or complete."""
    try:
        found = cluster.servers["west"].execute(
            "SELECT sum(row_count)::int8 FROM castling.seed_range WHERE name = 'bulk'", cluster.database
        )
    except psycopg.Error:
        return None
    return None if found[0][0] is None else int(found[0][0])


def _seed(cluster: Cluster) -> dict[str, Any]:
    return cluster.report("source").get("seed") or {}


def _is_over(cluster: Cluster) -> bool:
    return bool(_seed(cluster).get("phase") == "done" or cluster.report("source").get("state") == "running")


def _interrupt(cluster: Cluster, kind: FaultKind, more: int) -> bool:
    """Break it when so many more rows are there, and wait until it goes on; False when it was over before."""
    goal = (_noted(cluster) or 0) + more
    wait_for(lambda: (_noted(cluster) or 0) >= goal or _is_over(cluster), "rows come", within_s=90)
    before = _noted(cluster)
    if before is None:
        return False
    assert inject(cluster, Fault(kind, 0.0, 0.5))
    wait_for(lambda: (_noted(cluster) or 0) > before or _is_over(cluster), "it goes on", within_s=90)
    after = _noted(cluster)
    # what a crash of the target takes back is what it had not made durable: less than a second's work
    assert after is None or after >= before
    return True


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "seed", [pytest.param(1), *(pytest.param(each, marks=pytest.mark.faults) for each in range(2, 8))]
)
def test_a_copy_goes_on_whatever_dies_and_keeps_what_it_has(seed: int) -> None:
    chance = random.Random(seed)
    with _copied() as (cluster, proven):
        kinds = list(_DEADLY) if seed == 1 else chance.choices(list(FaultKind), k=8)
        chance.shuffle(kinds)
        done = [kind for kind in kinds if _interrupt(cluster, kind, chance.randrange(0, 8000))]
        assert len(done) >= 3, f"the copy was over too soon: {done}"
        proven()


@pytest.mark.timeout(240)
def test_the_stream_runs_on_while_the_target_is_away_and_the_copy_goes_on_with_it() -> None:
    with _copied() as (cluster, proven):
        wait_for(lambda: (_noted(cluster) or 0) > 2 * _CHUNK, "rows are copied")
        before = _noted(cluster)
        assert before is not None
        cluster.servers["west"].stop()

        def hardened() -> int:
            return int((cluster.report("receive").get("offsets") or {}).get("hardened") or 0)

        wait_for(lambda: bool(cluster.report("source").get("error")), "it is told")
        start = hardened()
        end = cluster.servers["east"].execute("SELECT (pg_current_wal_flush_lsn() - '0/0')::int8")[0][0]
        wait_for(lambda: hardened() > end > start, "what is committed now is in the journal")
        assert cluster.report("source")["state"] == "seeding"
        cluster.servers["west"].start_again()
        wait_for(lambda: _seed(cluster).get("attempts", 1) > 1, "another attempt")
        wait_for(lambda: _seed(cluster).get("rows_kept", 0) >= before or _is_over(cluster), "rows are kept")
        proven()
