"""What a table's replica identity costs, purely; what is not known is said to be unknown."""

from __future__ import annotations

from castling.config import GroupSettings
from castling.kinds.postgres.catalog import Table, TableColumn
from castling.kinds.postgres.costs import identity_cost, judge_copy
from castling.kinds.postgres.facts import Activity
from castling.kinds.postgres.judge import judge_table

_COLUMN = TableColumn("v", 25, "text", "", "", "b", 0, "", False)


def _table(rows: int, bytes_: int) -> Table:
    return Table(
        oid=7,
        schema="public",
        name="t",
        kind="r",
        persistence="p",
        identity="d",
        is_partition=False,
        row_security=False,
        rows=rows,
        bytes=bytes_,
        readable=True,
        primary_key_usable=None,
        has_identity_index=False,
        has_children=False,
        ancestors=(),
        columns=(_COLUMN,),
        primary_key=(),
    )


def _settings() -> GroupSettings:
    return GroupSettings(kind="postgres", primary="e", backups=["w"], databases={})


def test_the_cost_is_rows_changed_a_day_times_their_size() -> None:
    cost = identity_cost(_table(1000, 200_000), Activity(changes=500, seconds=43200))
    assert (cost.row_bytes, cost.log_bytes_a_day) == (200, 200_000)
    assert "about 200 bytes for each update and delete, 195 KiB a day" in cost.told


def test_what_is_not_known_is_no_zero() -> None:
    assert "ANALYZE" in identity_cost(_table(0, 8192), Activity(5, 1e6)).told
    for activity in (None, Activity(changes=0, seconds=60)):
        assert identity_cost(_table(10, 8192), activity).log_bytes_a_day is None
        assert "not known" in identity_cost(_table(10, 8192), activity).told


def test_a_table_without_a_key_is_told_with_its_cost() -> None:
    found = {
        each.code: each for each in judge_table(_table(1000, 200_000), _settings(), {7: Activity(2, 86400)})
    }
    assert "400 bytes a day" in found["sets-identity-full"].message
    assert found["sets-identity-full"].context == {"row_bytes": 200, "log_bytes_a_day": 400}


def test_rows_near_the_bound_are_named() -> None:
    large = {each.code: each for each in judge_table(_table(10, 400 << 20), _settings())}
    assert "40 MiB on average; a change of one of more than 256 MiB" in large["rows-large"].message
    for table in (_table(10, 300 << 20), _table(0, 400 << 20)):
        assert "rows-large" not in {each.code for each in judge_table(table, _settings())}


def test_the_first_copy_is_summed_up() -> None:
    told = judge_copy([_table(1000, 200_000), _table(0, 1 << 20)])
    assert (
        told.message
        == "2 tables, about 1000 rows, 1 MiB; the rows of 1 are not counted yet (ANALYZE counts them)"
    )
