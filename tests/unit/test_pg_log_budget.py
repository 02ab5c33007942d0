"""The room for the source's log: what the check says of it, and what a slot that was given up says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from castling.config import DatabaseSettings, GroupSettings
from castling.errors import LogGivenUp
from castling.kinds.postgres import wal_disk
from castling.kinds.postgres.giving_up import given_up_size
from castling.kinds.postgres.judge_log import judge_log
from castling.kinds.postgres.session import Source, check_continuity, created_comment


def _group(**settings: int) -> GroupSettings:
    return GroupSettings(kind="postgres", primary="east", backups=["west"], databases={}, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("keeps", "settings", "codes"),
    [
        ("-1", {}, ["log-unbounded"]),
        ("-1", {"wal_spool": 1 << 30}, ["log-unbounded"]),  # a spool ends nothing: it fills
        ("-1", {"wal_limit": 1 << 30}, []),
        ("1GB", {}, []),
        ("10GB", {"wal_spool": 1 << 30, "wal_limit": 2 << 30}, []),
        ("2GB", {"wal_spool": 1 << 30, "wal_limit": 2 << 30}, ["log-limit-late"]),
        ("512MB", {"wal_spool": 1 << 30}, ["log-limit-late"]),
    ],
)
def test_what_bounds_the_log_is_told(keeps: str, settings: dict[str, int], codes: list[str]) -> None:
    found = judge_log({"max_slot_wal_keep_size": keeps}, _group(**settings))
    assert [each.code for each in found] == codes
    assert all(each.hint for each in found)


def test_a_slot_that_was_given_up_is_told_from_one_that_is_gone() -> None:
    assert given_up_size(created_comment(77)) is None and given_up_size(None) is None
    assert given_up_size("castling: given up with 5368709120 bytes of log kept") == 5 << 30
    source = Source("1", 1, "db", 180000, 100, None, None, None, None, None, given_up=5 << 30)
    with pytest.raises(LogGivenUp, match="5120 MiB"):
        check_continuity(source, slot="castling_g_w", resume=50, session=None)


def _database(host: str, port: int) -> DatabaseSettings:
    return DatabaseSettings(host=host, port=port, dbname="db", user="u")


def test_the_logs_disk_is_known_only_where_it_is_this_servers(tmp_path: Path) -> None:
    (tmp_path / "pg_wal").mkdir()
    assert wal_disk.free_bytes(_database("localhost", 5432), str(tmp_path)) is None, "no server runs there"
    (tmp_path / "postmaster.pid").write_text(f"{os.getpid()}\n{tmp_path}\n1\n5432\n")
    assert (wal_disk.free_bytes(_database("localhost", 5432), str(tmp_path)) or 0) > 0
    assert wal_disk.free_bytes(_database("localhost", 5433), str(tmp_path)) is None, "another server's folder"
    assert wal_disk.free_bytes(_database("db.example.com", 5432), str(tmp_path)) is None
    assert wal_disk.free_bytes(_database("localhost", 5432), None) is None
