"""What an audit asks and concludes, without a server."""

from __future__ import annotations

import pytest

from castling.journal.record import Position
from castling.kinds.base import Commit, Piece
from castling.kinds.postgres.audit_beside import mending_statement
from castling.kinds.postgres.audit_marks import MARK_PREFIX, has_mark, mark_in
from castling.kinds.postgres.audit_rows import differing
from castling.kinds.postgres.audit_sql import Side, buckets_for, how_hashed
from castling.kinds.postgres.changes import Message
from castling.kinds.postgres.definitions import Difference


def _piece(*changes: object) -> Piece:
    return Piece(list(changes), 0, Commit(2, 0, Position(1, 1)), 1)


def test_buckets_are_a_power_of_two_within_bounds() -> None:
    for rows in (0, 1, 1000, 100_000, 10**9):
        found = buckets_for(rows)
        assert 16 <= found <= 4096 and found & (found - 1) == 0


@pytest.mark.parametrize(
    ("here", "there", "found"),
    [
        ({1: (2, 30)}, {1: (2, 30)}, []),
        ({1: (2, 30)}, {1: (2, 31)}, [1]),
        ({1: (2, 30)}, {1: (3, 30)}, [1]),  # a row whose hash is 0
        ({1: (2, 30)}, {}, [1]),
        ({}, {7: (1, 5)}, [7]),
    ],
)
def test_buckets_that_differ(
    here: dict[int, tuple[int, int]], there: dict[int, tuple[int, int]], found: list[int]
) -> None:
    assert differing(here, there) == found


def test_every_column_is_hashed_and_every_name_is_quoted() -> None:
    columns = (how_hashed("a", 23), how_hashed('b"%', 25), how_hashed("c.d", 1042), how_hashed("own", 20000))
    assert [each.how for each in columns] == ["plain", "text", "output", "output"]
    side = Side('ONLY "s"."t"', columns, columns[:1], "a % 2 = 0")
    for statement in (side.sums((3, 9), 16), side.rows((0, None), 16, [1, 2])):
        for name in ('"a"::text', '"b""%"::text', 'concat("c.d")', 'concat("own")'):
            assert name in statement
        assert "(a % 2 = 0)" in statement
    assert "ctid >= '(3,0)'::tid" in side.sums((3, 9), 16) and "ctid < '(9,0)'" in side.sums((3, 9), 16)


def test_a_mark_is_found_among_changes() -> None:
    assert mark_in(_piece(Message("castling:sequences", b"x"))) is None
    assert mark_in(_piece(Message(MARK_PREFIX, b"abc"))) == "abc"
    assert has_mark([_piece(), _piece(Message(MARK_PREFIX, b""))])
    assert not has_mark([_piece(), _piece(Message(MARK_PREFIX, b"abc"), Message(MARK_PREFIX, b"abc"))])


def test_statements_that_mend_definitions() -> None:
    make = "CREATE TRIGGER x AFTER DELETE ON s.t FOR EACH ROW EXECUTE FUNCTION f()"
    changed = Difference("trigger", "s.t.x", make, f"{make} A", "")
    assert mending_statement(changed) == "ALTER TABLE s.t ENABLE TRIGGER x"
    quoted = Difference("trigger", 's."t.u"."x.y"', f"{make} D", make, "")
    assert mending_statement(quoted) == 'ALTER TABLE s."t.u" DISABLE TRIGGER "x.y"'
    assert mending_statement(Difference("trigger", "s.t.x", make, make.replace("f()", "g()"), "")) == ""
    index = Difference("index", "s.i", "CREATE INDEX i ON s.t (a)", None, "CREATE INDEX i ON s.t (a)")
    assert mending_statement(index) == "CREATE INDEX i ON s.t (a)"
    only_there = Difference("index", "s.i", None, "CREATE INDEX i ON s.t (a)", "")
    assert mending_statement(only_there) == ""  # what others made is not thrown away
    column = Difference("column", "s.t.c", "integer", None, "ALTER TABLE s.t ADD COLUMN c integer")
    assert mending_statement(column) == ""  # its rows would be missing
