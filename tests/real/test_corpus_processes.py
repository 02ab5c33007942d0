"""The corpus of hard cases (corpus_cast.py) as a user runs it: processes, a link, and `kill -9` of each.

Every case twice: once while the group runs, once written while it is stopped, so that it comes as a backlog.
In the end an independent comparison of rows, definitions with owners and grants, and sequences.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.real.corpus_cast import (
    EXTENSIONS,
    Case,
    definitions,
    differing_lines,
    fitting,
    own_columns,
    run_script,
    sequences,
)

from castling.testing.cluster import GROUP, Cluster, wait_for
from castling.testing.compare import compare

ENDS = ("apply", "source", "receive")


@pytest.fixture(
    params=[
        "15 to 18",
        "18 to 15",
        *(pytest.param(each, marks=pytest.mark.faults) for each in ("18 to 18", "15 to 15")),
    ]
)
def cluster(request: pytest.FixtureRequest, bin15: Path) -> Iterator[Cluster]:
    bins = {
        node: bin15
        for node, version in zip(("east", "west"), request.param.split(" to "), strict=True)
        if version == "15"
    }
    with Cluster(
        bins=bins,
        server_settings={"max_prepared_transactions": "20"},
        # small batches: there is a middle to die in
        group={"heartbeat": 0.5, "compare_every": 1.0, "batch_changes": 2000},
    ) as made:
        yield made


def _begun(cluster: Cluster, cases: list[Case]) -> None:
    """On the source, before there is a group."""
    east, database = cluster.servers["east"], cluster.database
    for number in range(5):  # so that no type has the same identifier on both sides
        cluster.servers["west"].execute(f"CREATE TYPE other_{number} AS ENUM ('x')", database)
    east.execute("; ".join(f"CREATE EXTENSION {name} CASCADE" for name in EXTENSIONS), database)
    east.execute("CREATE TABLE acked (client int, n bigint, PRIMARY KEY (client, n))", database)
    for case in cases:
        east.execute(f'CREATE SCHEMA "{case.schema}"', database)
        run_script(east, database, case, "schema")
        run_script(east, database, case, "before")


def _applied(cluster: Cluster) -> object:
    return cluster.servers["west"].execute("SELECT * FROM castling.progress", cluster.database)


def _catches_up_through_deaths(cluster: Cluster) -> None:
    """Each process dies at least once while there is still something to apply."""
    for name in ("apply", "receive", "source", "apply"):
        before = _applied(cluster)
        cluster.kill(name)
        if name == "apply":
            wait_for(lambda before=before: _applied(cluster) != before, "it has come further")


def test_every_hard_case_through_the_death_of_every_process(cluster: Cluster) -> None:
    east, west, database = cluster.servers["east"], cluster.servers["west"], cluster.database
    live, behind = (fitting(east, west, suffix=suffix) for suffix in ("", " from a backlog"))
    cases = live + behind
    _begun(cluster, cases)
    cluster.start_group(within_s=240)
    for case in cases:
        run_script(west, database, case, "target")
    for number, case in enumerate(live):
        run_script(east, database, case, "live")
        if number % 4 == 3:  # more often, and the agent would wait longer and longer before it starts another
            cluster.kill(ENDS[number // 4 % len(ENDS)])
    cluster.wait_until_applied(within_s=120)
    cluster.stop_group()
    for case in behind:
        run_script(east, database, case, "live")
    cluster.start_group_now()
    _catches_up_through_deaths(cluster)
    cluster.wait_until_applied(within_s=120)
    _equal(cluster, cases)
    cluster.stop_group()
    _damage_is_noticed(cluster, cases)


def _equal(cluster: Cluster, cases: list[Case]) -> None:
    east, west, database = cluster.servers["east"], cluster.servers["west"], cluster.database
    altered = {name for case in cases for name in own_columns(east, database, case, east)}
    found = compare(cluster.dsn("east"), cluster.dsn("west"))
    differing = [each for each in found.differences if each.table.replace('"', "") not in _unquoted(altered)]
    assert differing == [] and found.tables >= 3 * len(cases) // 2
    for case in cases:
        assert own_columns(east, database, case, east) == own_columns(west, database, case, east)
    assert _differing(cluster, cases) == []
    wait_for(lambda: _behind(cluster) == [], "no sequence of the target is behind the source's")
    stream = cluster.cli("east", "group", "status", GROUP)["data"]["streams"][0]
    assert stream["holds"] == [], "a table has come to stand still"


def _differing(cluster: Cluster, cases: list[Case]) -> list[str]:
    east, west = cluster.servers["east"], cluster.servers["west"]
    newest = max(east.bin, west.bin, key=lambda folder: "/15/" not in str(folder))
    here, there = (definitions(side, cluster.database, cases, newest) for side in (east, west))
    assert len(here) > 20
    return differing_lines(here, there, loosely=east.bin != west.bin)


#: damage to the target's definitions, and a line that tells of it
_DAMAGE = {
    "REVOKE SELECT (id) ON belongings.things FROM pg_read_all_stats": "GRANT SELECT(id)",
    "COMMENT ON COLUMN belongings.things.v IS NULL": "of a column",
    "DROP POLICY chosen ON belongings.things": "CREATE POLICY",
    "ALTER TABLE belongings.owned OWNER TO CURRENT_USER": "OWNER TO pg_monitor",
    "ALTER TABLE triggers.quiet DISABLE TRIGGER stamp": "ENABLE ALWAYS TRIGGER",
    "DROP INDEX belongings.by_kind": "CREATE INDEX by_kind",
}


def _damage_is_noticed(cluster: Cluster, cases: list[Case]) -> None:
    """The control of `_equal`: what it looks at beside the rows it does see."""
    west, database = cluster.servers["west"], cluster.database
    west.execute("; ".join(_DAMAGE), database)
    differing = _differing(cluster, cases)
    for damage, told in _DAMAGE.items():
        assert any(told in line for line in differing), damage
    west.execute("SELECT setval('sequences.alone', 1)", database)
    west.execute("""SELECT setval('sequences."Down, by seven"', 1000)""", database)
    assert sorted(_behind(cluster)) == ['sequences."Down, by seven"', "sequences.alone"]


def _unquoted(names: set[str]) -> set[str]:
    return {name.replace('"', "") for name in names}


def _behind(cluster: Cluster) -> list[str]:
    """Sequences whose next value on the target the source may have given out already. One that begins again
    at its end has no order to be behind in."""
    here, there = (sequences(cluster.servers[node], cluster.database) for node in ("east", "west"))
    assert here.keys() == there.keys() and len(here) > 10
    return [
        name
        for name, (following, step, cycles) in here.items()
        if not cycles and (there[name][0] - following) * step < 0
    ]
