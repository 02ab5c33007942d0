"""The access log is what was written: each way to change it afterwards is noticed."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from castling.control import access_log
from castling.control.access_log import verify_file
from castling.control.store import MIGRATIONS, Store


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """The file of a store with ten entries."""
    path = tmp_path / "state.sqlite"
    with Store(path) as store:
        for number in range(10):
            store.add_access("ann", f"POST /v1/{number}", "orders", "done")
    return path


def change(path: Path, *statements: str) -> None:
    with sqlite3.connect(path) as db:
        for statement in statements:
            assert db.execute(statement).rowcount == 1, (
                "it changes something, so what follows means something"
            )
    db.close()


def test_a_log_as_it_was_written_is_verified(log: Path) -> None:
    found = verify_file(log)
    assert (found["ok"], found["entries"], found["first"], found["expected"]) == (True, 10, 1, None)
    assert found["head"].startswith("10:")
    assert verify_file(log, found["head"])["expected"] == "found"


@pytest.mark.parametrize("column", ["at_ns", "who", "action", "subject", "outcome", "hash"])
def test_a_changed_value_is_noticed(log: Path, column: str) -> None:
    change(log, f"UPDATE access SET {column} = {7 if column == 'at_ns' else repr('eve')} WHERE id = 4")
    found = verify_file(log)
    assert not found["ok"] and found["broken_at"] == 4 and "entry 4" in found["problem"]


@pytest.mark.parametrize(("gone", "noticed_at"), [(1, 2), (5, 6), (10, 9)])
def test_a_removed_entry_is_noticed(log: Path, gone: int, noticed_at: int) -> None:
    change(log, f"DELETE FROM access WHERE id = {gone}")
    assert verify_file(log)["broken_at"] == noticed_at


def test_an_entry_slipped_in_is_noticed(log: Path) -> None:
    change(log, f"INSERT INTO access VALUES (11, 1, 'eve', 'POST', '', 'done', '{'0' * 64}')")
    assert verify_file(log)["broken_at"] == 11


def test_a_log_written_anew_is_noticed_by_a_head_that_was_kept(log: Path) -> None:
    head = verify_file(log)["head"]
    change(log, "DELETE FROM access_end WHERE which = 'head'")
    with sqlite3.connect(log) as db:
        db.execute("DELETE FROM access")
    db.close()
    with Store(log) as store:
        for number in range(12):
            store.add_access("eve", f"POST /v1/{number}", "orders", "done")
    assert verify_file(log)["ok"], "in itself it is a chain"
    found = verify_file(log, head)
    assert not found["ok"] and found["expected"] == "changed" and "anew" in found["problem"]


def test_the_oldest_go_and_the_rest_is_verified(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = verify_file(log)["head"]
    monkeypatch.setattr(access_log, "ACCESS_MAX", 4)
    with Store(log) as store:
        for number in range(6):
            store.add_access("bob", f"POST /v1/{number}", "", "done")
        assert [row["id"] for row in store.access_entries(100)] == [13, 14, 15, 16]
    found = verify_file(log, head)
    assert (found["ok"], found["entries"], found["first"], found["expected"]) == (True, 4, 13, "unknown")


def test_entries_of_an_older_version_become_the_beginning_of_the_chain(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    first = MIGRATIONS[0]
    assert isinstance(first, str)
    with sqlite3.connect(path) as db:
        db.executescript(first)
        db.execute("PRAGMA user_version = 1")
        for who in ("ann", "bob"):
            db.execute(
                "INSERT INTO audit (at_ns, who, action, subject, outcome) VALUES (1, ?, 'join', '', 'done')",
                (who,),
            )
    db.close()
    with Store(path) as store:
        assert [row["who"] for row in store.access_entries(9)] == ["ann", "bob"]
    assert verify_file(path)["entries"] == 2
