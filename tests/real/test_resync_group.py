"""A table is copied anew as an operator meets it: by commands and status, under load and `kill -9`."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from castling.errors import StateError
from castling.testing.cluster import GROUP, Cluster, wait_for
from castling.testing.compare import compare

_TABLES = """
    CREATE TABLE good (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text);
    CREATE TABLE bad (id int PRIMARY KEY, v text, n int NOT NULL DEFAULT 0);
    CREATE TABLE heap (v text);
    CREATE TABLE acked (client int, n bigint, PRIMARY KEY (client, n));
"""


def _stream(cluster: Cluster) -> dict[str, Any]:
    found: dict[str, Any] = cluster.cli("east", "group", "status", GROUP)["data"]["streams"][0]
    return found


def _holds(cluster: Cluster) -> list[dict[str, Any]] | None:
    found: list[dict[str, Any]] | None = cluster.report("apply").get("holds")
    return found


def _asked(cluster: Cluster, *tables: str) -> list[str]:
    told = cluster.cli("east", "group", "resync", GROUP, *tables, "--yes")["data"]["parts"]
    return [each["result"] for each in told]


@contextmanager
def _busy(cluster: Cluster) -> Iterator[Callable[[], int]]:
    """Writers on all three tables until the block ends; gives how many transactions were committed."""
    stop, done = threading.Event(), [0]

    def write(seed: int) -> None:
        chance = random.Random(seed)
        with psycopg.connect(cluster.dsn("east"), autocommit=True) as connection:
            while not stop.wait(0.005):
                at = chance.randrange(20_000)
                with connection.transaction():
                    connection.execute("INSERT INTO good (v) VALUES ('g')")
                    connection.execute("UPDATE bad SET n = n + 1, v = %s WHERE id = %s", (str(at), at))
                    connection.execute("DELETE FROM bad WHERE id = %s", (chance.randrange(20_000),))
                    connection.execute(
                        "INSERT INTO bad VALUES (%s, 'again') ON CONFLICT (id) DO UPDATE SET n = 1",
                        (at // 2,),
                    )
                    connection.execute("INSERT INTO heap VALUES ('h')")
                done[0] += 1

    threads = [threading.Thread(target=write, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield lambda: done[0]
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@contextmanager
def _cluster(**group: Any) -> Iterator[Cluster]:
    with Cluster(group={"heartbeat": 0.3, **group}) as cluster:
        east = cluster.servers["east"]
        east.execute(_TABLES, cluster.database)
        east.execute(
            "INSERT INTO bad SELECT i, repeat(md5(i::text), 20) FROM generate_series(0, 19999) i;"
            "INSERT INTO heap SELECT 'h' FROM generate_series(1, 5000)",
            cluster.database,
        )
        cluster.start_group()
        yield cluster


def _equal(cluster: Cluster) -> None:
    wait_for(lambda: _stream(cluster)["holds"] == [], "nothing is on hold")
    cluster.wait_until_applied()
    found = compare(cluster.dsn("east"), cluster.dsn("west"), schemas=["public"])
    assert found.equal, found.differences


def test_a_table_is_copied_anew_by_itself_and_by_hand() -> None:
    with _cluster() as cluster:
        east, west = cluster.servers["east"], cluster.servers["west"]
        with _busy(cluster):
            west.execute(f"{_ALONE}; DELETE FROM bad WHERE id % 3 = 0; COMMIT", cluster.database)
            wait_for(lambda: bool(_holds(cluster)), "it is noticed")
            wait_for(lambda: _holds(cluster) == [], "and comes back by itself")
            # of rows that are there once too often no change ever speaks
            west.execute("INSERT INTO heap VALUES ('not from us')", cluster.database)
            assert _asked(cluster, "public.heap") == ["asked"]
            wait_for(
                lambda: not west.execute("SELECT 1 FROM heap WHERE v = 'not from us'", cluster.database),
                "the table is as on the source",
            )
        _equal(cluster)
        # behind a held table the others go on, and without a name all that are on hold are copied
        cluster.cli("east", "group", "hold", GROUP, "public.bad")
        wait_for(lambda: bool(_holds(cluster)), "held by hand")
        east.execute("UPDATE bad SET n = 7; INSERT INTO good (v) VALUES ('last')", cluster.database)
        with pytest.raises(StateError, match=r"nothing was changed\. Copied anew would be public\.bad"):
            cluster.cli("east", "group", "resync", GROUP)
        assert _asked(cluster) == ["asked"]
        _equal(cluster)


#: the apply has the table open, and would wait for us as we for it
_ALONE = "BEGIN; LOCK TABLE bad IN SHARE ROW EXCLUSIVE MODE"
#: each row that is written by a copy takes its time, so that the copy can be met in its middle
_SLOW = """
    CREATE FUNCTION public.slow() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN IF NEW.id % 10 = 0 THEN PERFORM pg_sleep(0.002); END IF; RETURN NEW; END';
    CREATE TRIGGER slow BEFORE INSERT ON public.bad FOR EACH ROW EXECUTE FUNCTION public.slow();
    ALTER TABLE public.bad ENABLE REPLICA TRIGGER slow
"""
_FAST = "DROP TRIGGER slow ON public.bad; DROP FUNCTION public.slow()"
_TAKEN = "SELECT 1 FROM pg_stat_progress_copy WHERE relid = 'public.bad'::regclass AND tuples_processed > {}"


@pytest.mark.parametrize(
    ("seed", "deaths"), [(1, 2), *(pytest.param(each, 5, marks=pytest.mark.faults) for each in (2, 3, 4))]
)
def test_every_process_may_die_while_a_table_is_copied(seed: int, deaths: int) -> None:
    chance = random.Random(seed)
    with _cluster() as cluster:
        west = cluster.servers["west"]
        with _busy(cluster) as committed:
            for end in chance.sample(["source", "receive", "apply", "agent", "target"], deaths):
                spoil = f"UPDATE bad SET v = 'spoilt' WHERE id % 2 = 0; {_SLOW}"
                west.execute(f"{_ALONE}; {spoil}; COMMIT", cluster.database)
                assert _asked(cluster, "public.bad") == ["asked"]
                _wait_for_the_middle(cluster, chance.randrange(8_000))
                before = committed()
                _kill(cluster, end)
                west.execute(_FAST, cluster.database)  # waits until the copy has come in or is gone
                wait_for(lambda before=before: committed() > before, "the source is not disturbed")
                wait_for(lambda: _holds(cluster) == [] and not _spoilt(cluster), "the table is back")
        _equal(cluster)


def _wait_for_the_middle(cluster: Cluster, rows: int) -> None:
    """Until a copy has brought so many rows, or was so quick that it is over."""
    question = _TAKEN.format(rows)
    wait_for(
        lambda: bool(cluster.servers["west"].execute(question, cluster.database)) or not _spoilt(cluster),
        "a copy comes in",
    )


def _kill(cluster: Cluster, end: str) -> None:
    if end == "agent":
        cluster.kill_agent("west")
        cluster.start_agent("west")
    elif end == "target":
        cluster.servers["west"].kill()
        cluster.servers["west"].start()
    else:
        cluster.kill(end)


def _spoilt(cluster: Cluster) -> bool:
    return bool(cluster.servers["west"].execute("SELECT 1 FROM bad WHERE v = 'spoilt'", cluster.database))
