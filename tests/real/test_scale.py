"""Large things take bounded memory in every process, and arrive whole. Long: `make test-scale`."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from tests.real.scale_cast import LIMIT, Peaks, peaks_of

from castling.testing.cluster import Cluster, wait_for
from castling.testing.compare import compare

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

_COLUMNS = 1000
_TABLES = """
    CREATE TABLE big (id int PRIMARY KEY, v text, n bigint);
    CREATE TABLE small (id int PRIMARY KEY);
    CREATE TABLE wide (id int PRIMARY KEY, v bytea);
    ALTER TABLE wide ALTER v SET STORAGE EXTERNAL;
    CREATE TABLE many (id bigserial PRIMARY KEY, v text);
    CREATE TABLE account (id int PRIMARY KEY, n int, v text);
    INSERT INTO account SELECT i, 0, '' FROM generate_series(1, 10000) i;
"""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster() as made:
        for server in made.servers.values():
            server.execute("ALTER SYSTEM SET max_wal_size = '8GB'")
            server.execute("SELECT pg_reload_conf()")
        made.servers["east"].execute(_TABLES, made.database)
        yield made


def _wait_applied(cluster: Cluster, question: str, *, within_s: float = 900.0) -> None:
    """Until the answer on the target is the source's, which stands still."""
    wanted = cluster.servers["east"].execute(question, cluster.database)
    west = cluster.servers["west"]
    wait_for(lambda: west.execute(question, cluster.database) == wanted, question, within_s=within_s)


def _is_bounded(cluster: Cluster, peaks: Peaks, limit: int = LIMIT) -> None:
    """Also that nobody died, and that every row arrived."""
    print(f"peak memory: {peaks.told()}")
    assert set(peaks.found) == {"source", "receive", "apply"}
    assert {name: peak >> 20 for name, peak in peaks.found.items() if peak > limit} == {}
    found = compare(cluster.dsn("east"), cluster.dsn("west"), schemas=["public"])
    assert found.equal, found.differences


def test_five_million_rows_in_one_transaction_hold_nobody_back(cluster: Cluster) -> None:
    """While it is open, what others commit is on the backup; its own changes lie in the spool."""
    cluster.start_group()
    with Peaks(cluster) as peaks:
        with psycopg.connect(cluster.dsn("east")) as session:
            session.execute(
                "INSERT INTO big SELECT i, 'row number ' || i, i * 2 FROM generate_series(1, 5000000) i"
            )

            def spooled() -> int:
                found = (cluster.report("source").get("capture") or {}).get("spool") or {}
                return int(found.get("disk_bytes", 0)) + int(found.get("memory_bytes", 0))

            wait_for(lambda: spooled() > 200 << 20, "what is open is streamed and spooled", within_s=300)
            for number in range(3):
                cluster.servers["east"].execute(f"INSERT INTO small VALUES ({number})", cluster.database)
                _wait_applied(cluster, "SELECT count(*) FROM small", within_s=120)
            assert cluster.servers["west"].execute("SELECT count(*) FROM big", cluster.database) == [(0,)]
        _wait_applied(cluster, "SELECT count(*) FROM big")
    assert len(peaks.seen) == 3, "a process has died"
    _is_bounded(cluster, peaks)


def test_one_gigabyte_of_large_rows_in_one_transaction(cluster: Cluster) -> None:
    cluster.start_group()
    with Peaks(cluster) as peaks:
        cluster.servers["east"].execute(
            "INSERT INTO wide SELECT i, convert_to(repeat(md5(i::text), 524288), 'UTF8')"
            " FROM generate_series(1, 64) i",  # 16 MiB each
            cluster.database,
        )
        cluster.servers["east"].execute(
            "INSERT INTO wide VALUES (1000, convert_to(repeat(md5('x'), 1048576), 'UTF8'))", cluster.database
        )
        _wait_applied(cluster, "SELECT count(*) FROM wide")
    assert len(peaks.seen) == 3, "a process has died"
    _is_bounded(cluster, peaks)


def test_a_value_of_nearly_a_quarter_of_a_gigabyte_arrives(cluster: Cluster) -> None:
    """A row is never cut: one of more than about 50 MiB takes more memory than is promised."""
    cluster.start_group()
    size = 250 << 20
    with Peaks(cluster) as peaks:
        cluster.servers["east"].execute(
            f"INSERT INTO wide VALUES (1, convert_to(repeat(md5('x'), {size // 32}), 'UTF8'))",
            cluster.database,
        )
        _wait_applied(cluster, "SELECT count(*), sum(length(v)) FROM wide")
    _is_bounded(cluster, peaks, limit=5 * size)


def test_a_row_beyond_the_bound_is_refused_by_name_and_takes_no_memory(cluster: Cluster) -> None:
    """Of a row above row_max the apply end says which it is; the others go on."""
    cluster.start_group()
    with Peaks(cluster) as peaks:
        cluster.servers["east"].execute(
            f"INSERT INTO wide VALUES (42, convert_to(repeat(md5('x'), {(300 << 20) // 32}), 'UTF8'))",
            cluster.database,
        )
        wait_for(lambda: bool(cluster.report("apply").get("holds")), "the table is on hold", within_s=300)
        cluster.servers["east"].execute("INSERT INTO small VALUES (1)", cluster.database)
        _wait_applied(cluster, "SELECT count(*) FROM small")
    print(f"peak memory: {peaks.told()}")
    (hold,) = cluster.report("apply")["holds"]
    assert "public.wide (id=42) has 300 MiB" in hold["reason"]
    assert {name: peaks.found[name] >> 20 for name in ("receive", "apply") if peaks.found[name] > LIMIT} == {}
    assert len(peaks.seen) == 3, "a process has died"


def test_a_backlog_of_many_small_transactions(cluster: Cluster) -> None:
    """Two gigabytes of log, of transactions of an insert and an update each, taken at once."""
    cluster.start_group()
    cluster.stop_group()
    east = cluster.servers["east"]

    def log() -> int:
        return int(east.execute("SELECT (pg_current_wal_lsn() - '0/0')::int8")[0][0])

    began = log()
    with psycopg.connect(cluster.dsn("east"), autocommit=True) as session:
        session.execute("SET synchronous_commit = off")
        while log() - began < 2 << 30:
            session.execute(
                "DO $$ BEGIN FOR i IN 1..5000 LOOP"
                " INSERT INTO many (v) VALUES (repeat('x', 200 + i % 400));"
                " UPDATE account SET n = n + 1, v = repeat('y', 300) WHERE id = 1 + (i * 7919) % 10000;"
                " COMMIT; END LOOP; END $$"
            )
    with Peaks(cluster) as peaks:
        cluster.start_group_now()
        _wait_applied(cluster, "SELECT count(*) FROM many")
        _wait_applied(cluster, "SELECT sum(n) FROM account")
    assert len(peaks.seen) == 3, "a process has died"
    _is_bounded(cluster, peaks)


def test_many_columns_in_the_tables_of_one_batch(cluster: Cluster) -> None:
    """Eight thousand columns in eight tables; updates that send some of them."""
    columns = ", ".join(f"c{number} int DEFAULT {number}" for number in range(_COLUMNS))
    east = cluster.servers["east"]
    for number in range(8):
        east.execute(f"CREATE TABLE columns{number} (id int PRIMARY KEY, {columns})", cluster.database)
    cluster.start_group()
    with Peaks(cluster) as peaks:
        for number in range(8):
            east.execute(
                f"INSERT INTO columns{number} (id) SELECT i FROM generate_series(1, 2000) i;"
                f" UPDATE columns{number} SET c5 = id, c900 = id WHERE id % 3 = 0;"
                f" DELETE FROM columns{number} WHERE id % 7 = 0",
                cluster.database,
            )
        for number in range(8):
            _wait_applied(cluster, f"SELECT count(*), sum(c5) FROM columns{number}")
    assert len(peaks.seen) == 3, "a process has died"
    _is_bounded(cluster, peaks)


def test_the_measure_notices_memory(cluster: Cluster) -> None:
    """The negative control: a limit that the work does exceed is seen to be exceeded."""
    cluster.start_group()
    with Peaks(cluster) as peaks:
        pid = cluster.pid("apply")
        before = peaks_of(pid or 0) or 0
        cluster.servers["east"].execute(
            "INSERT INTO wide VALUES (1, convert_to(repeat(md5('x'), 1048576), 'UTF8'))", cluster.database
        )
        _wait_applied(cluster, "SELECT count(*) FROM wide")
    assert before > 0 and peaks.found["apply"] > before + (32 << 20)
    with pytest.raises(AssertionError):
        _is_bounded(cluster, peaks, limit=before)
