"""Histories that a set can't say directly, and targets that are not quite the source."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.real.apply_cast import Follower
from tests.real.pg_cast import Pair, captured, database_pair, until

from castling.apply.schedule import Limits
from castling.errors import TargetDiverged, TargetError
from castling.testing.servers import EmbeddedServer

#: rows of a change that is surely written as a set, and of one that is surely not
SIZES = pytest.mark.parametrize("rows", [2, 40], ids=["few", "many"])


@pytest.fixture
def pair(east: EmbeddedServer, west: EmbeddedServer, tmp_path: Path) -> Iterator[Pair]:
    with database_pair(east, west, tmp_path) as made:
        yield made


async def _follower(pair: Pair, tables: str, *, on_target: str | None = None) -> Follower:
    pair.source(tables)
    pair.target(tables if on_target is None else on_target)
    follower = Follower(pair)
    await follower.begin()
    return follower


def _replays(follower: Follower) -> int:
    return int(follower.reports[-1]["replays"])


# --- values that were not sent ------------------------------------------------------------------

_TOASTED = """
    CREATE TABLE t (id int PRIMARY KEY, big text, n int, huge text);
    ALTER TABLE t ALTER big SET STORAGE EXTERNAL, ALTER huge SET STORAGE EXTERNAL;
"""


@SIZES
async def test_an_update_beside_a_toasted_value_keeps_it(pair: Pair, rows: int) -> None:
    follower = await _follower(pair, _TOASTED)
    pair.source(
        f"INSERT INTO t SELECT i, repeat('b', 5000), 0, repeat('h', 9000) FROM generate_series(1, {rows}) i"
    )
    await follower.follow()
    pair.source(
        "UPDATE t SET n = 1; UPDATE t SET huge = 'small', n = 2 WHERE id % 2 = 0; UPDATE t SET n = n + 1"
    )
    await follower.follow()
    follower.assert_equal()
    assert _replays(follower) == 0
    assert pair.target("SELECT count(*), min(length(big)) FROM t") == [(rows, 5000)]


@SIZES
async def test_a_key_change_beside_a_toasted_value_keeps_it(pair: Pair, rows: int) -> None:
    follower = await _follower(pair, _TOASTED)
    pair.source(
        "INSERT INTO t SELECT i, repeat('b', 5000), 0, repeat(i::text, 9000)"
        f" FROM generate_series(1, {rows}) i"
    )
    await follower.follow()
    pair.source(
        "UPDATE t SET n = 5 WHERE id = 1; UPDATE t SET id = id + 100; UPDATE t SET id = id + 100, n = n + 1;"
        "INSERT INTO t VALUES (1, repeat('c', 5000), 9, NULL); UPDATE t SET id = -1 WHERE id = 1;"
        "DELETE FROM t WHERE id = 202"
    )
    await follower.follow()
    follower.assert_equal()
    assert pair.target("SELECT count(*), min(length(big)) FROM t") == [(rows, 5000)]


async def test_a_toasted_key_is_found(pair: Pair) -> None:
    tables = "CREATE TABLE t (k text PRIMARY KEY, n int); ALTER TABLE t ALTER k SET STORAGE EXTERNAL"
    follower = await _follower(pair, tables)
    pair.source("INSERT INTO t SELECT repeat(i::text, 2200) || i, 0 FROM generate_series(1, 9) i")
    await follower.follow()
    pair.source("UPDATE t SET n = 1; UPDATE t SET n = 2 WHERE k LIKE '3%'; DELETE FROM t WHERE k LIKE '4%'")
    await follower.follow()
    follower.assert_equal()


# --- unique values that change hands ----------------------------------------------------------

_UNIQUE = "CREATE TABLE u (id int PRIMARY KEY, val int UNIQUE)"


def _swap(i: int) -> str:
    """The rows `i` and `i + 1`, whose values are `i` and `i + 1`, exchange them."""
    return (
        f"UPDATE u SET val = NULL WHERE id = {i}; UPDATE u SET val = {i} WHERE id = {i + 1};"
        f"UPDATE u SET val = {i + 1} WHERE id = {i}"
    )


async def test_swapped_unique_values_are_replayed_in_the_sources_order(pair: Pair) -> None:
    follower = await _follower(pair, _UNIQUE)
    pair.source("INSERT INTO u SELECT i, i FROM generate_series(1, 40) i")
    await follower.follow()
    assert _replays(follower) == 0
    pair.source(";".join(_swap(i) for i in range(1, 40, 2)))
    await follower.follow()
    follower.assert_equal()
    assert _replays(follower) == 1, "the set form of a swap can't have been exact"


async def test_a_replay_takes_back_all_that_its_set_did_and_nothing_else(pair: Pair) -> None:
    """A table before it and a table behind it in the same batch."""
    follower = await _follower(pair, _UNIQUE + "; CREATE TABLE a (n int); CREATE TABLE z (n int)")
    pair.source("INSERT INTO u SELECT i, i FROM generate_series(1, 20) i")
    await follower.follow()
    pair.source("INSERT INTO a SELECT generate_series(1, 50)")
    pair.source(
        f"UPDATE u SET val = val + 100 WHERE id > 4; {_swap(1)}; DELETE FROM u WHERE id = 7; {_swap(3)}"
    )
    pair.source("INSERT INTO u VALUES (21, 7); INSERT INTO z SELECT generate_series(1, 50)")
    await follower.follow()
    follower.assert_equal()
    assert _replays(follower) == 1


async def test_keys_that_move_up_one_after_another(pair: Pair) -> None:
    follower = await _follower(pair, "CREATE TABLE c (id int PRIMARY KEY, v text)")
    pair.source("INSERT INTO c SELECT i, 'row ' || i FROM generate_series(1, 30) i")
    await follower.follow()
    pair.source(";".join(f"UPDATE c SET id = id + 1 WHERE id = {i}" for i in range(30, 0, -1)))
    pair.source(
        "UPDATE c SET id = 1 WHERE id = 31; DELETE FROM c WHERE id = 5; INSERT INTO c VALUES (5, 'new')"
    )
    pair.source(
        "UPDATE c SET id = 100 WHERE id = 5; UPDATE c SET id = 5 WHERE id = 100; DELETE FROM c WHERE id = 6"
    )
    await follower.follow()
    follower.assert_equal()


# --- constraints --------------------------------------------------------------------------------

_FAMILY = """
    CREATE TABLE child (id int PRIMARY KEY, parent int NOT NULL);
    CREATE TABLE parent (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
                         u int UNIQUE DEFERRABLE INITIALLY DEFERRED);
    ALTER TABLE child ADD FOREIGN KEY (parent) REFERENCES parent DEFERRABLE INITIALLY DEFERRED;
    CREATE TABLE pet (owner int REFERENCES child ON DELETE CASCADE ON UPDATE CASCADE, name text,
                      PRIMARY KEY (owner, name));
"""


@SIZES
async def test_children_and_parents_in_one_batch(pair: Pair, rows: int) -> None:
    """In any order, with cascades that the source has carried out already."""
    follower = await _follower(pair, _FAMILY)
    pair.source(
        f"INSERT INTO child SELECT i, i FROM generate_series(1, {rows}) i;"
        f"INSERT INTO parent (u) SELECT i FROM generate_series(1, {rows}) i;"
        f"INSERT INTO pet SELECT i, 'cat' FROM generate_series(1, {rows}) i"
    )
    pair.source("UPDATE parent SET u = 1 + u % (SELECT count(*) FROM parent)")
    await follower.follow()
    follower.assert_equal()
    pair.source("DELETE FROM child WHERE id % 2 = 0; DELETE FROM parent WHERE id % 2 = 0")
    pair.source("UPDATE parent SET u = -u; UPDATE child SET id = -id")
    await follower.follow()
    follower.assert_equal()
    assert pair.target("SELECT count(*) FROM pet") == [(rows // 2,)]


async def test_truncate_with_foreign_keys(pair: Pair) -> None:
    follower = await _follower(pair, _FAMILY + "; CREATE TABLE other (n int)")
    fill = "INSERT INTO parent (u) VALUES (1), (2); INSERT INTO other VALUES (1)"
    pair.source(
        fill + "; INSERT INTO child SELECT id, id FROM parent; INSERT INTO pet SELECT id, 'x' FROM child"
    )
    await follower.follow()
    pair.source(
        "INSERT INTO parent (u) VALUES (3); TRUNCATE parent CASCADE; INSERT INTO parent (u) VALUES (4)"
    )
    await follower.follow()
    follower.assert_equal()
    pair.source(
        "TRUNCATE parent, child, pet RESTART IDENTITY; INSERT INTO parent (u) VALUES (5); TRUNCATE other"
    )
    await follower.follow()
    follower.assert_equal()
    assert pair.target("SELECT id, u, (SELECT count(*) FROM other) FROM parent") == [(1, 5, 0)]


async def test_triggers_and_rules_of_the_target_stay_quiet(pair: Pair) -> None:
    """The source's triggers have run, and what they did comes as changes."""
    tables = """
        CREATE TABLE t (id int PRIMARY KEY, n int); CREATE TABLE log (id int, what text);
        CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN INSERT INTO public.log VALUES (COALESCE(NEW.id, OLD.id), TG_OP); RETURN NULL; END $$;
        CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION note();
        CREATE RULE never AS ON DELETE TO t WHERE old.n = 77 DO INSTEAD NOTHING;
    """
    follower = await _follower(pair, tables)
    pair.source("INSERT INTO t SELECT i, i FROM generate_series(1, 20) i; UPDATE t SET n = 0; DELETE FROM t")
    await follower.follow()
    follower.assert_equal()
    assert pair.target("SELECT count(*) FROM log") == [(60,)]


# --- rows without a key -------------------------------------------------------------------------


@SIZES
async def test_of_equal_rows_one_is_meant(pair: Pair, rows: int) -> None:
    follower = await _follower(pair, "CREATE TABLE k (x int, y text)")
    pair.source(f"INSERT INTO k SELECT 1, NULL FROM generate_series(1, {rows * 2})")
    await follower.follow()
    one = "ctid IN (SELECT ctid FROM k WHERE y IS NULL LIMIT {})"
    pair.source(f"DELETE FROM k WHERE {one.format(1)}; UPDATE k SET y = 'u' WHERE {one.format(rows)}")
    await follower.follow()
    follower.assert_equal()
    assert pair.target("SELECT count(*), count(y) FROM k") == [(rows * 2 - 1, rows)]


# --- a large transaction ------------------------------------------------------------------------


async def test_a_row_told_by_all_of_it_is_found_by_the_targets_key(pair: Pair) -> None:
    """As where a filter reads more than the key: no change searches the whole table."""
    follower = await _follower(
        pair,
        "CREATE TABLE t (a text, id bigint, f float8, PRIMARY KEY (id, a));"
        "ALTER TABLE t REPLICA IDENTITY FULL",
    )
    pair.source(
        "INSERT INTO t SELECT 'a', i, -0.0 FROM generate_series(1, 5000) i;"
        "INSERT INTO t VALUES ('%', 1, 'NaN')"
    )
    await follower.follow()
    pair.target("ANALYZE t")
    scans = "SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 't'"
    before = pair.target(scans)
    pair.source(
        "UPDATE t SET f = id WHERE id % 500 = 1; DELETE FROM t WHERE id % 500 = 2;"
        "UPDATE t SET id = -id WHERE id = 3"
    )
    await follower.follow()
    touched = "SELECT n_tup_upd + n_tup_del >= 22 FROM pg_stat_user_tables WHERE relname = 't'"
    await until(lambda: pair.target(touched) == [(True,)])
    assert pair.target(scans) == before
    follower.assert_equal()


async def test_a_large_transaction_in_parts_is_seen_whole(pair: Pair) -> None:
    follower = await _follower(pair, "CREATE TABLE b (id int PRIMARY KEY, v text)")
    pair.source(
        "BEGIN; INSERT INTO b SELECT i, repeat('x', 100) FROM generate_series(1, 3000) i;"
        "UPDATE b SET v = 'y' WHERE id % 3 = 0; DELETE FROM b WHERE id % 5 = 0;"
        "UPDATE b SET id = -id WHERE id > 2990; COMMIT"
    )
    await follower.capture()
    seen: list[int] = []

    def look() -> bool:
        seen.append(int(pair.target("SELECT count(*) FROM b")[0][0]))
        return False

    await follower.apply(piece_bytes=20_000, ended=look)
    follower.assert_equal()
    assert set(seen) <= {0, 2400}
    assert 2400 in seen


# --- a target that is not what it should be ---------------------------------------------------


@SIZES
@pytest.mark.parametrize(
    ("change", "damage"),
    [
        ("UPDATE d SET n = 1", "DELETE FROM d WHERE id = 2"),
        ("DELETE FROM d", "DELETE FROM d WHERE id = 2"),
        ("UPDATE d SET id = id + 1000", "DELETE FROM d WHERE id = 2"),
        ("INSERT INTO d SELECT id - 1000, 0 FROM d", "INSERT INTO d VALUES (-998, 5)"),
    ],
)
async def test_a_row_that_does_not_fit_stops_apply_and_is_named(
    pair: Pair, rows: int, change: str, damage: str
) -> None:
    follower = await _follower(pair, "CREATE TABLE d (id int PRIMARY KEY, n int)")
    pair.source(f"INSERT INTO d SELECT i, 0 FROM generate_series(1, {rows}) i")
    await follower.follow()
    pair.target(damage)
    before = pair.target("SELECT * FROM d ORDER BY id")
    pair.source(change)
    with pytest.raises(TargetDiverged) as found:
        await follower.follow()
    assert found.value.context["table"] == "public.d"
    assert found.value.context["key"] == ("id=-998" if "INSERT" in damage else "id=2")
    assert pair.target("SELECT * FROM d ORDER BY id") == before, "part of the batch was kept"


async def test_a_keyless_row_that_is_not_there_stops_apply(pair: Pair) -> None:
    follower = await _follower(pair, "CREATE TABLE k (x int, y text)")
    pair.source("INSERT INTO k VALUES (1, 'a'), (2, 'b')")
    await follower.follow()
    pair.target("UPDATE k SET y = 'changed' WHERE x = 2")
    pair.source("DELETE FROM k WHERE x = 2")
    with pytest.raises(TargetDiverged) as found:
        await follower.follow()
    assert found.value.context["key"] == "x=2, y=b"


@SIZES
async def test_a_unique_value_that_is_taken_on_the_target_stops_apply(pair: Pair, rows: int) -> None:
    follower = await _follower(pair, _UNIQUE)
    pair.target("INSERT INTO u VALUES (99, 2)")
    pair.source(f"INSERT INTO u SELECT i, i FROM generate_series(1, {rows}) i")
    with pytest.raises(TargetDiverged) as found:
        await follower.follow()
    context = found.value.context
    assert (context["table"], context["key"], context["constraint"]) == ("public.u", "id=2", "u_val_key")
    assert pair.target("SELECT id FROM u") == [(99,)]


# --- tables of another shape --------------------------------------------------------------------


@SIZES
async def test_columns_are_matched_by_name(pair: Pair, rows: int) -> None:
    follower = await _follower(
        pair,
        'CREATE TABLE s (gone int, id int PRIMARY KEY, a text, "B ""q""" numeric(8, 2));'
        " ALTER TABLE s DROP gone",
        on_target='CREATE TABLE s ("B ""q""" numeric, extra int DEFAULT 7, doomed int, id bigint, a text,'
        " made int GENERATED ALWAYS AS (extra * 2) STORED); ALTER TABLE s DROP doomed, DROP id;"
        " ALTER TABLE s ADD id int PRIMARY KEY",
    )
    pair.source(f"INSERT INTO s SELECT i, 'a', i / 4.0 FROM generate_series(1, {rows}) i")
    await follower.follow()
    pair.source('UPDATE s SET a = \'b\', "B ""q""" = -1 WHERE id > 1; DELETE FROM s WHERE id = 1')
    await follower.follow()
    columns = 'SELECT id, a, "B ""q""" FROM s ORDER BY id'
    assert pair.source(columns) == pair.target(columns)
    assert pair.target("SELECT DISTINCT extra, made FROM s") == [(7, 14)]


@SIZES
async def test_the_target_may_be_partitioned_where_the_source_is_not(pair: Pair, rows: int) -> None:
    """Rows are found in whatever partition they are, with a key and without, and move between partitions."""
    follower = await _follower(
        pair,
        "CREATE TABLE y (id int PRIMARY KEY, n int); CREATE TABLE k (id int, n int); CREATE TABLE e (id int)",
        on_target=";".join(
            f"CREATE TABLE {table} PARTITION BY RANGE (id);"
            f"CREATE TABLE {table[0]}_low PARTITION OF {table[0]} FOR VALUES FROM (MINVALUE) TO (2);"
            f"CREATE TABLE {table[0]}_high PARTITION OF {table[0]} FOR VALUES FROM (2) TO (MAXVALUE)"
            for table in ("y (id int PRIMARY KEY, n int)", "k (id int, n int)", "e (id int)")
        ),
    )
    fill = f"SELECT i, 0 FROM generate_series(1, {rows}) i"
    pair.source(
        f"INSERT INTO y {fill}; INSERT INTO k {fill}; INSERT INTO k {fill}; INSERT INTO e VALUES (1), (2)"
    )
    await follower.follow()
    pair.source(
        "UPDATE y SET n = 1; UPDATE y SET id = -id WHERE id > 1; TRUNCATE e; INSERT INTO e VALUES (7)"
    )
    pair.source("UPDATE k SET n = 1 WHERE ctid = '(0,1)'; UPDATE k SET id = -id WHERE n = 0")
    pair.source("DELETE FROM k WHERE ctid = (SELECT max(ctid) FROM k); DELETE FROM y WHERE id = 1")
    await follower.follow()
    for table in "yke":
        question = f"SELECT * FROM {table} ORDER BY 1, {table}::text"
        assert pair.source(question) == pair.target(question) != []


async def test_a_column_that_the_target_lacks_is_named(pair: Pair) -> None:
    follower = await _follower(pair, "CREATE TABLE s (id int PRIMARY KEY, a text)")
    pair.target("ALTER TABLE s DROP a")
    pair.source("INSERT INTO s VALUES (1, 'a')")
    with pytest.raises(TargetError) as found:
        await follower.follow()
    assert (found.value.context["table"], found.value.context["column"]) == ("public.s", "a")


async def test_an_identifier_of_the_source_is_not_taken_for_one_of_the_target(pair: Pair) -> None:
    """A regclass column that is added under a stream in binary form: the capture can't change its form."""
    follower = await _follower(pair, "CREATE TABLE r (id int PRIMARY KEY)")
    pair.source("INSERT INTO r VALUES (1)")
    async with captured(follower.stream, follower.journal) as capture:
        await follower.journal.read_until(capture, pair.end_of_log())
        for side in (pair.target, pair.source):
            side("ALTER TABLE r ADD c regclass")
        pair.source("INSERT INTO r VALUES (2, NULL)")
        await follower.journal.read_until(capture, pair.end_of_log())
        await follower.apply()
        follower.assert_equal()
        pair.source("UPDATE r SET c = 'r' WHERE id = 2")
        await follower.journal.read_until(capture, pair.end_of_log())
    with pytest.raises(TargetError) as found:
        await follower.apply()
    assert (found.value.context["table"], found.value.context["column"]) == ("public.r", "c")


async def test_a_column_widened_while_apply_runs_keeps_all_digits(pair: Pair) -> None:
    """First on the target, then on the source, under one apply session that has used the table before."""
    follower = await _follower(pair, "CREATE TABLE w (id int PRIMARY KEY, n numeric(6, 1))")
    pair.source("INSERT INTO w SELECT i, i FROM generate_series(1, 20) i")
    pair.source("UPDATE w SET n = n + 0.5")
    pair.source("ALTER TABLE w ALTER n TYPE numeric(9, 3)")
    pair.source("UPDATE w SET n = n + 0.125")
    await follower.capture()

    def widen() -> bool:
        if pair.target("SELECT count(*) FROM w WHERE n = id + 0.5") == [(20,)]:
            pair.target("ALTER TABLE w ALTER n TYPE numeric(9, 3)")
        return False

    await follower.apply(limits=Limits(changes=1), ended=widen)
    follower.assert_equal()
    assert _replays(follower) == 0
