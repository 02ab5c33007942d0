"""Only some rows or columns of a table: exactly these, from the first copy on, and nobody else's."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psycopg
import pytest
from tests.real.pg_cast import Journal, Pair, captured, database_pair
from tests.real.resync_cast import applied, copied, held
from tests.real.test_naming import _follower, _lived, _refusals
from tests.real.test_seed import ends, seeded

from castling.config import SeedSettings
from castling.errors import ContinuityLost, NotReplicable, PartsMoved, StateError, TargetDiverged
from castling.kinds.base import Finding, Severity, Stream
from castling.kinds.postgres.kind import KIND
from castling.testing.cluster import Cluster, wait_for
from castling.testing.compare import compare
from castling.testing.servers import EmbeddedServer

_CREATE = SeedSettings(schema="create", chunk_rows=200)
_EXPECT = SeedSettings(schema="expect", chunk_rows=200)

_SOURCE = """
    CREATE TABLE orders (id int PRIMARY KEY, region text, big text, v int);
    ALTER TABLE orders ALTER big SET STORAGE EXTERNAL;
    CREATE TABLE tenant (tenant int, id int, v text, PRIMARY KEY (tenant, id));
    CREATE TABLE person (
        id int PRIMARY KEY, name text, secret text, twice int GENERATED ALWAYS AS (id * 2) STORED
    );
    CREATE TABLE keyless (region text, v int);
    CREATE TABLE whole (id int PRIMARY KEY, v int);
    INSERT INTO orders SELECT i, (ARRAY['eu', 'us', NULL])[1 + i % 3], repeat(md5(i::text), 200), 0
      FROM generate_series(1, 900) i;
    INSERT INTO tenant SELECT i % 5, i, 'v' || i FROM generate_series(1, 900) i;
    INSERT INTO person SELECT i, 'p' || i, 'secret' || i FROM generate_series(1, 900) i;
    INSERT INTO keyless SELECT (ARRAY['eu', 'us'])[1 + i % 2], i % 50 FROM generate_series(1, 300) i;
    INSERT INTO whole SELECT i, i FROM generate_series(1, 300) i;
"""
_ROWS = {
    "public.orders": "region = 'eu' AND v < 1000",
    "public.tenant": "tenant IN (1, 3)",
    "public.keyless": "region = 'eu'",
}
_COLUMNS = {"public.person": ["id", "name"], "public.tenant": ["tenant", "id", "v"]}
#: rows come into the filter, go out of it, change in it and beyond it
_WORK = """
    UPDATE orders SET region = (ARRAY['eu', 'us', NULL])[1 + (id + {0}) % 3] WHERE id % 4 = {0} % 4;
    UPDATE orders SET v = v + 1 WHERE id % 5 = {0} % 5;
    UPDATE orders SET v = 5000 WHERE id % 50 = {0} % 50;
    UPDATE orders SET big = repeat(md5(big), 150) WHERE id % 6 = {0} % 6;
    DELETE FROM orders WHERE id % 90 = {0};
    INSERT INTO orders SELECT 1000 + {0} * 10 + i, (ARRAY['eu', 'us'])[1 + i % 2], 'new', 0
      FROM generate_series(1, 9) i;
    UPDATE tenant SET tenant = (tenant + 1) % 5 WHERE id % 6 = {0} % 6;
    UPDATE tenant SET v = v || '!' WHERE id % 5 = {0} % 5;
    DELETE FROM tenant WHERE id % 70 = {0};
    UPDATE person SET secret = 'none' WHERE id % 3 = {0} % 3;
    UPDATE person SET name = name || '+' WHERE id % 7 = {0} % 7;
    UPDATE person SET id = id + 10000 WHERE id = {0} + 1;
    UPDATE keyless SET region = 'us' WHERE ctid IN (SELECT ctid FROM keyless WHERE region = 'eu' LIMIT 3);
    UPDATE keyless SET region = 'eu', v = -1
     WHERE ctid IN (SELECT ctid FROM keyless WHERE region = 'us' LIMIT 4);
    DELETE FROM keyless WHERE ctid IN (SELECT ctid FROM keyless LIMIT 2);
    UPDATE whole SET v = v + 1
"""


@pytest.fixture
def plain(east: EmbeddedServer, west: EmbeddedServer, tmp_path: Path) -> Iterator[Pair]:
    with database_pair(east, west, tmp_path) as made:
        yield made


@pytest.fixture(params=["18 to 18", "15 to 18", "18 to 15"])
def pair(
    request: pytest.FixtureRequest, east: EmbeddedServer, west: EmbeddedServer, tmp_path: Path, bin15: Path
) -> Iterator[Pair]:
    if request.param == "18 to 18":
        with database_pair(east, west, tmp_path) as made:
            yield made
        return
    with EmbeddedServer(name="fifteen", bin_folder=bin15) as old:
        servers = (old, west) if request.param == "15 to 18" else (east, old)
        with database_pair(*servers, tmp_path) as made:
            yield made


def _differences(pair: Pair) -> list[str]:
    found = compare(pair.east.dsn(pair.name), pair.west.dsn(pair.name), rows=_ROWS, columns=_COLUMNS)
    assert found.tables == 5
    return [f"{each.table}: {each.what} {each.rows[:3]}" for each in found.differences]


def _identities(found: list[Finding]) -> set[str]:
    """The tables that would get REPLICA IDENTITY FULL."""
    return {one.object for one in found if one.code == "sets-identity-full"}


async def test_exactly_the_rows_and_columns_of_the_filter_are_carried(pair: Pair) -> None:
    pair.source(_SOURCE)
    stream = pair.stream(seed=_CREATE, rows=_ROWS, columns=_COLUMNS)
    found = await KIND.check(stream)
    assert _refusals(found) == set()
    assert _identities(found) == {"public.orders", "public.keyless"}
    assert pair.source("SELECT FROM pg_publication") == [], "the check leaves nothing"
    assert pair.source("SELECT relreplident FROM pg_class WHERE relname = 'orders'") == [("d",)]
    await seeded(stream)
    assert _differences(pair) == []
    assert pair.target("SELECT count(*) FROM person WHERE secret IS NOT NULL OR twice <> id * 2") == [(0,)]
    # the negative control: without the condition the same comparison sees other rows
    assert not compare(pair.east.dsn(pair.name), pair.west.dsn(pair.name), columns=_COLUMNS).equal
    follower = _follower(pair, stream)
    for number in range(5):
        pair.source(_WORK.format(number))
    await follower.capture()
    assert await _lived(follower, random.Random(1)) > 0
    assert _differences(pair) == []
    pair.source("TRUNCATE orders; INSERT INTO orders VALUES (1, 'eu', '', 0), (2, 'us', '', 0)")
    await follower.follow()
    assert _differences(pair) == []
    assert pair.target("SELECT id FROM orders") == [(1,)]
    # a row that should not be there is seen
    pair.target("INSERT INTO orders VALUES (3, 'us', '', 0)")
    assert [one.split(":")[0] for one in _differences(pair)] == ["public.orders"]


async def test_a_table_copied_anew_has_the_same_rows_and_columns(plain: Pair) -> None:
    plain.source(_SOURCE)
    stream = plain.stream(seed=_CREATE, rows=_ROWS, columns=_COLUMNS, on_error="resync")
    await seeded(stream)
    follower = _follower(plain, stream)
    plain.target(
        "DELETE FROM orders WHERE id < 100; INSERT INTO person VALUES (-1, 'x', 'y');"
        "UPDATE person SET name = 'z'"
    )
    for table in ("public.orders", "public.person"):
        await KIND.move_parts(stream, "resync", [table], "a test")
    await applied(follower)
    plain.source(_WORK.format(3))
    assert await copied(follower)
    plain.source(_WORK.format(4))
    await follower.capture()
    await applied(follower)
    assert _differences(plain) == []


async def test_a_row_that_comes_by_a_change_of_its_key_without_its_large_value_is_copied(plain: Pair) -> None:
    """The server does not send what the row left as it was; so the table is copied anew."""
    plain.source(
        "CREATE TABLE tenant (tenant int, id int, big text, v int, PRIMARY KEY (tenant, id));"
        "ALTER TABLE tenant ALTER big SET STORAGE EXTERNAL;"
        "INSERT INTO tenant SELECT i % 2, i, repeat(md5(i::text), 200), 0 FROM generate_series(1, 50) i"
    )
    rows = {"public.tenant": "tenant = 1"}
    stream = plain.stream(seed=_CREATE, rows=rows, on_error="resync")
    assert _identities(await KIND.check(stream)) == set(), "its key is all that the filter reads"
    await seeded(stream)
    follower = _follower(plain, stream)
    plain.source("UPDATE tenant SET tenant = 1 WHERE id = 10; UPDATE tenant SET v = 1")
    await follower.capture()
    with pytest.raises(PartsMoved, match="big"):
        await follower.apply()
    assert [(one.part, one.state) for one in await held(follower)] == [("public.tenant", "copying")]
    assert await copied(follower)
    await follower.capture()
    await applied(follower)
    found = compare(plain.east.dsn(plain.name), plain.west.dsn(plain.name), rows=rows)
    assert found.equal, found.differences
    assert plain.target("SELECT length(big) FROM tenant WHERE id = 10") == [(6400,)]
    # where nobody may copy by itself the group stops, and says which row and what of it
    stopped = _follower(plain, plain.stream(seed=_CREATE, rows=rows))
    stopped.journal = follower.journal
    plain.source("UPDATE tenant SET tenant = 1 WHERE id = 12")
    await stopped.capture()
    with pytest.raises(TargetDiverged, match=r"id=12.*big"):
        await stopped.apply()


@pytest.mark.parametrize(
    "change",
    [
        "ALTER PUBLICATION {0} SET TABLE ONLY public.orders, ONLY public.person (id, name)",
        "ALTER PUBLICATION {0} SET TABLE ONLY public.orders WHERE (region = 'us'),"
        " ONLY public.person (id, name)",
        "ALTER PUBLICATION {0} SET TABLE ONLY public.orders WHERE (region = 'eu'), ONLY public.person",
        "ALTER PUBLICATION {0} SET TABLE ONLY public.orders WHERE (region = 'eu'),"
        " ONLY public.person (id, name, secret)",
        "COMMENT ON PUBLICATION {0} IS NULL",
    ],
)
async def test_a_filter_that_somebody_changed_ends_the_stream(plain: Pair, change: str) -> None:
    plain.source("CREATE TABLE orders (id int PRIMARY KEY, region text);"
                 "CREATE TABLE person (id int PRIMARY KEY, name text, secret text)")  # fmt: skip
    stream = plain.stream(
        seed=_CREATE, rows={"public.orders": "region = 'eu'"}, columns={"public.person": ["id", "name"]}
    )
    await seeded(stream)
    journal = Journal()
    async with captured(stream, journal) as capture:
        await journal.read_until(capture, plain.end_of_log())
    async with captured(stream, journal):
        pass  # it goes on as it was
    # what changes names and nothing else is no change
    plain.source("ALTER TABLE orders RENAME COLUMN region TO area")
    async with captured(stream, journal):
        pass
    (name,) = plain.source("SELECT pubname FROM pg_publication")[0]
    plain.source(change.format(name).replace("region", "area"))
    with pytest.raises(ContinuityLost):
        async with captured(stream, journal):
            pass


async def test_other_filters_in_the_settings_than_the_copys_end_the_stream(plain: Pair) -> None:
    plain.source("CREATE TABLE orders (id int PRIMARY KEY, region text)")
    stream = plain.stream(seed=_CREATE, rows={"public.orders": "region = 'eu'"})
    await seeded(stream)
    for rows in ({}, {"public.orders": "region = 'us'"}):
        changed = msgspec.structs.replace(stream.settings, rows=rows)
        with pytest.raises(ContinuityLost, match="other `rows` and `columns`"):
            async with captured(Stream(stream.group, stream.backup, changed, stream.config)):
                pass


async def test_what_would_make_the_sources_own_statements_fail_is_refused_by_name(plain: Pair) -> None:
    plain.source(
        "CREATE TABLE part (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);"
        "CREATE TABLE part_1 PARTITION OF part DEFAULT;"
        "CREATE TABLE keyless (a int, b int); CREATE TABLE keyed (id int PRIMARY KEY, a int, g int"
        " GENERATED ALWAYS AS (a) STORED); CREATE TABLE strict (id int PRIMARY KEY, must int NOT NULL);"
        "CREATE FUNCTION public.f(int) RETURNS bool IMMUTABLE LANGUAGE sql AS 'SELECT true';"
        "CREATE TABLE called (id int PRIMARY KEY); CREATE TABLE typo (id int PRIMARY KEY);"
        "CREATE TABLE shared (id int PRIMARY KEY, a int, b int);"
        "CREATE PUBLICATION others FOR TABLE shared (id, a)"
    )
    rows = {
        "public.part": "id > 1",
        "public.called": "public.f(id)",
        "public.typo": "nothing = 1",
        "public.shared": "a > 1",
        "public.absent": "true",
    }
    columns = {
        "public.keyless": ["a"],
        "public.keyed": ["a", "g", "nothing"],
        "public.strict": ["id"],
    }
    stream = plain.stream(seed=_CREATE, rows=rows, columns=columns)
    found = await KIND.check(stream)
    assert _refusals(found) == {
        ("public.part", "narrowing-unfit"),
        ("public.absent", "narrowing-unfit"),
        ("public.keyless", "narrowing-unfit"),
        ("public.keyed", "narrowing-unfit"),
        ("public.called", "narrowing-refused"),
        ("public.typo", "narrowing-refused"),
        ("public.shared", "identity-conflict"),
        ("public.strict", "column-required"),
    }
    said = " ".join(one.message for one in found if one.severity is Severity.REFUSED)
    for word in (
        "has no column nothing",
        "column g is generated",
        "column id of its replica identity",
        "others",
    ):
        assert word in said
    async with ends(stream) as (seed, _):
        with pytest.raises(NotReplicable):
            await seed.begin()
    # of a table for which a full identity is no way, nothing was changed and its users go on
    narrowed = plain.stream(seed=_CREATE, rows={"public.shared": "a > 1"})
    async with ends(narrowed) as (seed, _):
        with pytest.raises(NotReplicable, match="others"):
            await seed.begin()
    assert plain.source("SELECT relreplident FROM pg_class WHERE relname = 'shared'") == [("d",)]
    plain.source("INSERT INTO shared VALUES (1, 1, 1); UPDATE shared SET b = 2")
    # the negative control: what the check refused would have made this fail
    plain.source("ALTER TABLE shared REPLICA IDENTITY FULL")
    with pytest.raises(psycopg.errors.InvalidColumnReference):
        plain.source("UPDATE shared SET b = 3")


async def test_the_sources_own_statements_go_on_whatever_is_filtered(plain: Pair) -> None:
    plain.source(_SOURCE)
    stream = plain.stream(seed=_CREATE, rows=_ROWS, columns=_COLUMNS)
    await seeded(stream)
    plain.source(_WORK.format(2))
    # the negative control: without the identity that was set, the server refuses them
    plain.source("ALTER TABLE orders REPLICA IDENTITY DEFAULT")
    with pytest.raises(psycopg.errors.InvalidColumnReference):
        plain.source("UPDATE orders SET v = 1")


_NAMED = {"public.*": "eu.*", "public.person": "shown.person", "public.acked": "public.acked"}


def test_a_whole_group_named_and_filtered_live_and_from_a_backlog_through_kills() -> None:
    with Cluster(group={"rows": _ROWS, "columns": _COLUMNS, "rename": _NAMED}) as cluster:
        east, west = cluster.servers["east"], cluster.servers["west"]
        east.execute(_SOURCE, cluster.database)
        east.execute("CREATE TABLE acked (client int, n bigint, PRIMARY KEY (client, n))", cluster.database)
        cluster.start_group()
        for number, dies in enumerate((None, "apply", "source")):
            east.execute(_WORK.format(number), cluster.database)
            if dies is not None:
                cluster.kill(dies)
            cluster.wait_until_applied()
        cluster.stop_group()
        for number in (5, 6):
            east.execute(_WORK.format(number), cluster.database)
        cluster.start_group_now()
        wait_for(lambda: cluster.pid("apply") is not None, "apply is there to be killed")
        cluster.kill("apply")
        cluster.wait_until_applied()
        dsns = cluster.dsn("east"), cluster.dsn("west")
        found = compare(*dsns, named=_NAMED, rows=_ROWS, columns=_COLUMNS)
        assert found.equal and found.tables == 6, found.differences
        # what did not come from the source is seen
        west.execute(
            "UPDATE eu.orders SET v = -7 WHERE id = (SELECT min(id) FROM eu.orders)", cluster.database
        )
        found = compare(*dsns, named=_NAMED, rows=_ROWS, columns=_COLUMNS)
        assert [each.table for each in found.differences] == ["public.orders"]
        # a deployment that would make the copy one of something else is refused
        file = cluster.homes["east"] / "castling.toml"
        file.write_text(file.read_text().replace("tenant IN (1, 3)", "tenant IN (1, 2)"))
        with pytest.raises(
            StateError, match=r"rows.public.tenant: can't change while the group holds a copy"
        ):
            cluster.cli("east", "deploy", "--yes")
