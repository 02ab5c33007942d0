"""Partitions are found by their roots, however many tables there are."""

from __future__ import annotations

import pytest

from castling.config import DatabaseSettings, GroupSettings
from castling.kinds.postgres.catalog import Table
from castling.kinds.postgres.costs import judge_locks
from castling.kinds.postgres.publication import identity_problems, partition_problems, partitions_by_root

_DATABASE = DatabaseSettings(host="h", dbname="d", user="u")
SETTINGS = GroupSettings(
    kind="postgres", primary="e", backups=["w"], databases={"e": _DATABASE, "w": _DATABASE}
)


def _table(name: str, kind: str = "r", ancestors: tuple[str, ...] = (), *, key: bool = True) -> Table:
    return Table(
        oid=0,
        schema="s",
        name=name,
        kind=kind,
        persistence="p",
        identity="d",
        is_partition=bool(ancestors),
        row_security=False,
        rows=0,
        bytes=0,
        readable=True,
        primary_key_usable=key,
        has_identity_index=False,
        has_children=False,
        ancestors=ancestors,
        columns=(),
        primary_key=("id",),
    )


def test_a_partition_is_found_by_each_table_above_it() -> None:
    root, middle, leaf = _table("r", "p"), _table("m", "p", ("s.r",)), _table("l", ancestors=("s.m", "s.r"))
    assert partitions_by_root([root, middle, leaf, _table("other")]) == {"s.m": [leaf], "s.r": [leaf]}


@pytest.mark.timeout(60)
def test_many_tables_are_looked_at_once_each() -> None:
    """Compared with one another, this many would take minutes."""
    plain = [_table(f"t{number}") for number in range(30_000)]
    root, leaf = _table("r", "p"), _table("l", ancestors=("s.r",), key=False)
    (problem,) = partition_problems([*plain, root], [*plain, root, leaf], SETTINGS)
    assert problem[0] is root and "(s.l)" in problem[1]
    assert identity_problems([*plain, root], [*plain, root, leaf]) == []


def test_tables_that_take_more_locks_than_a_server_has_are_told_of() -> None:
    settings = {"max_connections": "100", "max_prepared_transactions": "0", "max_locks_per_transaction": "64"}
    assert judge_locks([_table("t")] * 2133, settings, settings) == []
    (found,) = judge_locks([_table("t")] * 2134, settings, settings)
    assert (found.object, found.code) == ("target", "locks-few") and "= 65;" in found.hint
    assert len(judge_locks([_table("t")] * 6401, settings, settings)) == 2
