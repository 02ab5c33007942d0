"""From any version to any version: a whole group between PostgreSQL 15 and 18, in both directions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.real.pg_cast import Pair, database_pair
from tests.real.test_seed import _CREATE, _ODD, _RICH

from castling.kinds.base import Severity
from castling.kinds.postgres.kind import KIND
from castling.testing.cluster import Cluster, wait_for
from castling.testing.compare import compare
from castling.testing.servers import EmbeddedServer

_WRITE = """
    INSERT INTO customer (name, mood) SELECT 'n' || {0} || '-' || i, 'so-so' FROM generate_series(1, 500) i;
    UPDATE invoice SET number = 'm{0}-' || id WHERE id % 5 = {0} % 5;
    UPDATE wide SET doc = jsonb_build_object('round', {0}) WHERE id % 3 = {0} % 3;
    UPDATE measured SET at = at + 2000 WHERE at = date '2025-06-01' + {0};
    DELETE FROM keyless WHERE ctid IN (SELECT ctid FROM keyless LIMIT 7);
    INSERT INTO keyless VALUES ('w{0}'), ('w{0}'), (NULL);
    INSERT INTO acked VALUES ({0}, {0})
"""


@pytest.fixture(params=["15 to 18", "18 to 15"])
def cluster(request: pytest.FixtureRequest, bin15: Path) -> Iterator[Cluster]:
    old = "east" if request.param == "15 to 18" else "west"
    with Cluster(bins={old: bin15}) as made:
        yield made


def _arrived(cluster: Cluster, number: int) -> None:
    question = f"SELECT count(*) FROM acked WHERE n = {number}"
    west = cluster.servers["west"]
    wait_for(lambda: west.execute(question, cluster.database) == [(1,)], f"round {number} has arrived")


def test_a_group_between_versions_live_from_a_backlog_and_through_kills(cluster: Cluster) -> None:
    east = cluster.servers["east"]
    for statement in (_RICH, _ODD, "CREATE TABLE acked (client int, n bigint, PRIMARY KEY (client, n))"):
        east.execute(statement, cluster.database)
    cluster.start_group()
    for number, dies in enumerate((None, "apply", "source", "receive")):
        east.execute(_WRITE.format(number), cluster.database)
        if dies is not None:
            cluster.kill(dies)
        _arrived(cluster, number)
    cluster.stop_group()
    for number in range(4, 8):
        east.execute(_WRITE.format(number), cluster.database)
    cluster.start_group_now()
    cluster.kill("apply")  # as soon as it is there
    _arrived(cluster, 7)
    found = compare(cluster.dsn("east"), cluster.dsn("west"))
    assert found.equal and found.tables >= 11, found.differences


@pytest.fixture
def older_target(east: EmbeddedServer, bin15: Path, tmp_path: Path) -> Iterator[Pair]:
    with (
        EmbeddedServer(name="fifteen", bin_folder=bin15) as west,
        database_pair(east, west, tmp_path) as made,
    ):
        yield made


async def test_what_an_older_target_can_not_have_is_refused_by_name(older_target: Pair) -> None:
    older_target.source("CREATE TABLE t (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) VIRTUAL)")
    found = await KIND.check(older_target.stream(seed=_CREATE))
    (refused,) = [finding for finding in found if finding.severity is Severity.REFUSED]
    assert (refused.object, refused.code) == ("public.t", "column-virtual")
