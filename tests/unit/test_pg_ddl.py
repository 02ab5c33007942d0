"""Which statement it was, what of it is the group's, and whom to believe: all purely."""

from __future__ import annotations

import fnmatch
import hashlib
import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from castling.apply.schedule import Batcher, Limits
from castling.config import GroupSettings
from castling.errors import DecodeError
from castling.journal.record import Position
from castling.kinds.base import Commit, Piece
from castling.kinds.postgres.changes import Message
from castling.kinds.postgres.ddl_message import (
    Dropped,
    SchemaChange,
    Shape,
    decode_ddl,
    is_sealed,
    runs,
)
from castling.kinds.postgres.ddl_source import expression
from castling.kinds.postgres.ddl_target import carried, is_remade
from castling.kinds.postgres.ddl_text import may_be_made, split, statement_of

_PIECES = [
    "SELECT 1",
    "CREATE TABLE t (a text DEFAULT 'x; y''; z')",
    'ALTER TABLE "odd; ""name""" ADD b int',
    "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS $$ SELECT 1; SELECT 2 $$",
    "DO $do$ BEGIN PERFORM $$;$$; END $do$",
    "COMMENT ON TABLE t IS E'it\\'s; a tab\\t'",
    "CREATE FUNCTION g() RETURNS int BEGIN ATOMIC SELECT 1; SELECT CASE WHEN true THEN 1 END; END",
    "CREATE RULE r AS ON DELETE TO v DO INSTEAD (SELECT 1; SELECT 2)",
    "CREATE TABLE таблица (ключ int) -- ; a comment",
    "CREATE /* ; /* nested; */ ; */ VIEW v AS SELECT $1$2",
    "UPDATE t SET begin = 1",
    "BEGIN",
    "COMMIT",
]


@given(
    st.lists(st.sampled_from(_PIECES), max_size=6),
    st.sampled_from([";", ";;", ";\n-- x; y\n", " ; /* ; */ "]),
)
def test_a_text_is_taken_apart_where_its_statements_end(pieces: list[str], between: str) -> None:
    found = split((between if between.strip().endswith(";") else ";\n").join(f"{each}\n" for each in pieces))
    assert found == [each.split(" -- ")[0] for each in pieces]


def test_backslashes_count_where_strings_are_not_standard() -> None:
    text = r"SELECT 'a\'; b'; SELECT 2"
    assert split(text, standard=False) == [r"SELECT 'a\'; b'", "SELECT 2"]


def _change(tag: str, query: str | None = None, nth: int = 1, **more: object) -> SchemaChange:
    return SchemaChange(v=1, tag=tag, query=query, nth=nth, **more)  # type: ignore[arg-type]


def _named(kind: str, *names: str) -> list[tuple[str, str | None, tuple[list[str], list[str]] | None]]:
    return [(kind, ".".join(names), (list(names), []))]


_SCRIPT = """
    -- a migration
    CREATE TABLE a (id int); INSERT INTO a VALUES (1);
    CREATE TABLE b AS SELECT 1; ALTER TABLE a ADD x int; alter table only "B c" add y int;
    CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1; SELECT 2';
    CREATE TABLE IF NOT EXISTS d (id int); CREATE CONSTRAINT TRIGGER t AFTER INSERT ON a EXECUTE FUNCTION g();
"""


@pytest.mark.parametrize(
    ("change", "statement"),
    [
        (_change("CREATE TABLE", "  CREATE TABLE a (id int) ; "), "CREATE TABLE a (id int)"),
        (_change("CREATE TABLE", _SCRIPT, 1, objects=_named("table", "p", "a")), "CREATE TABLE a (id int)"),
        (
            _change("CREATE TABLE", _SCRIPT, 2, objects=_named("table", "p", "d")),
            "CREATE TABLE IF NOT EXISTS d (id int)",
        ),
        (
            _change("ALTER TABLE", _SCRIPT, 2, objects=_named("table", "p", "B c")),
            'alter table only "B c" add y int',
        ),
        (
            _change("CREATE FUNCTION", _SCRIPT, 1, objects=_named("function", "p", "f")),
            "CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1; SELECT 2'",
        ),
        (
            _change("CREATE TRIGGER", _SCRIPT, 1, objects=_named("trigger", "p", "a", "t")),
            "CREATE CONSTRAINT TRIGGER t AFTER INSERT ON a EXECUTE FUNCTION g()",
        ),
        (_change("SELECT INTO", bare="CREATE TABLE x (a int)"), "CREATE TABLE x (a int)"),
        (
            _change(
                "CREATE TABLE",
                stack='SQL statement "CREATE TABLE "a ""b"\n" (id int)"\nPL/pgSQL function f()',
            ),
            'CREATE TABLE "a ""b"\n" (id int)',
        ),
        (
            _change(
                "CREATE INDEX", "CREATE INDEX CONCURRENTLY i ON t (a)", index="CREATE INDEX i ON p.t (a)"
            ),
            "CREATE INDEX i ON p.t (a)",
        ),
        (
            _change("CREATE INDEX", "CREATE INDEX ON t (a)", index="CREATE INDEX i ON p.t (a)"),
            "CREATE INDEX ON t (a)",
        ),
        (
            _change("ALTER TABLE", "ALTER TABLE r DETACH PARTITION p CONCURRENTLY"),
            "ALTER TABLE r DETACH PARTITION p",
        ),
    ],
)
def test_the_statement_is_found(change: SchemaChange, statement: str) -> None:
    assert statement_of(change) == statement


@pytest.mark.parametrize(
    "change",
    [
        _change("CREATE TABLE", _SCRIPT, 3),  # there are two
        _change("CREATE TABLE", _SCRIPT, 1, objects=_named("table", "p", "other")),  # another one's name
        _change("CREATE VIEW", "CREATE TABLE a ()"),  # what a C function made of it
        _change("CREATE TABLE", stack='SQL function "f" statement 2'),
        _change("CREATE TABLE", "SAVEPOINT s; CREATE TABLE a (); ROLLBACK TO s; CREATE TABLE b ()", 1),
        _change(
            "CREATE TABLE", stack='SQL statement "CREATE TABLE a (); CREATE TABLE b ()"\nPL/pgSQL function f'
        ),
        _change("CREATE TABLE"),
        _change("CREATE TABLE", "CREATE TABLE a ()", untold="why"),
    ],
)
def test_what_can_not_be_told_is_not_guessed(change: SchemaChange) -> None:
    assert statement_of(change) is None


@pytest.mark.parametrize(
    ("statement", "sqlstate", "may"),
    [
        ("CREATE TABLE t (a int, b int)", "42P07", True),
        ("ALTER TABLE t ADD a int", "42701", True),
        ("ALTER TABLE t ADD a int, ALTER b SET DEFAULT 5", "42701", False),
        ("ALTER TABLE t DROP a", "42703", True),
        ("ALTER TABLE t RENAME a TO b", "42703", True),
        ("ALTER TABLE t ALTER a SET DEFAULT nowhere()", "42883", False),
        ("ALTER TABLE t DROP a", "2BP01", False),
    ],
)
def test_what_may_be_made_already(statement: str, sqlstate: str, may: bool) -> None:
    assert may_be_made(statement, sqlstate) is may


# --- whom to believe --------------------------------------------------------------------------


@given(st.binary(max_size=40), st.binary(min_size=1, max_size=8), st.integers(0, 500))
def test_only_what_is_sealed_with_the_key_is_believed(body: bytes, key: bytes, flip: int) -> None:
    sealed = hashlib.sha256(key + hashlib.sha256(key + body).digest()).digest() + body
    assert is_sealed(sealed, key)
    assert not is_sealed(sealed, key + b"x")
    changed = bytearray(sealed)
    changed[flip % len(changed)] ^= 1 << flip % 8
    assert not is_sealed(bytes(changed), key)


def test_what_has_no_seal_asks_for_nothing() -> None:
    told = b"untold:ALTER TABLE: out of memory"
    assert is_sealed(told, b"key")
    assert statement_of(decode_ddl(told)) is None and decode_ddl(told).tag == "ALTER TABLE"


@pytest.mark.parametrize("body", [b"", b"{}", b'{"v": 2, "tag": "x"}', b'{"v": 1, "tag": 5}', b"\xff"])
def test_what_can_not_be_read_is_an_error(body: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_ddl(bytes(32) + body)


def test_what_is_told_comes_back() -> None:
    change = _change(
        "ALTER TABLE",
        "x",
        tables=[Shape("s", "t", "r", [("a", "integer", "")], ("s", "u"), filled={"a": "{1}"})],
    )
    assert decode_ddl(bytes(32) + msgspec.json.encode(change)) == change


# --- what is the group's ----------------------------------------------------------------------


def _settings(**more: object) -> GroupSettings:
    return GroupSettings(kind="postgres", primary="e", backups=["w"], databases={}, **more)  # type: ignore[arg-type]


def test_tables_follow_the_patterns_and_everything_else_is_the_groups() -> None:
    settings = _settings(exclude=["private.*"])
    private = _change("ALTER TABLE", "ALTER TABLE x", tables=[Shape("private", "t", "r")])
    assert carried(private, settings) is None
    came = _change("ALTER TABLE", "ALTER TABLE x", tables=[Shape("s", "t", "r", was=("private", "t"))])
    plan = carried(came, settings)
    assert plan is not None and plan.tables == (("private", "t"), ("s", "t"))
    assert carried(_change("CREATE FUNCTION", "x", objects=_named("function", "private", "f")), settings)
    assert carried(_change("CREATE VIEW", "x", objects=_named("view", "private", "v")), settings) is None
    through_root = Shape("private", "p", "r", roots=[("s", "root")])
    assert carried(_change("ALTER TABLE", "x", tables=[through_root]), settings) is None


def test_a_drop_drops_what_is_the_groups() -> None:
    drop = Dropped(
        "TABLE", True, [("s.t", ["s", "t"]), ("private.t", ["private", "t"])], [["s", "t"], ["s", "below"]]
    )
    plan = carried(_change("DROP TABLE", drop=drop), _settings(exclude=["private.*"]))
    assert plan is not None and plan.statement == "DROP TABLE IF EXISTS s.t CASCADE"
    assert plan.gone == (("s", "t"), ("s", "below"))
    assert carried(_change("DROP TABLE", drop=drop), _settings(include=["other.*"])) is None


@pytest.mark.parametrize(
    ("rewritten", "statement", "remade"),
    [
        (0, "ALTER TABLE t ADD a int DEFAULT 5", False),
        (2, "ALTER TABLE t ADD a uuid DEFAULT gen_random_uuid()", True),
        (2, "ALTER TABLE t ADD a int GENERATED ALWAYS AS (b) STORED", False),
        (2, "ALTER TABLE t ADD a serial", True),
        (2, "ALTER TABLE t ADD a int GENERATED ALWAYS AS IDENTITY", True),
        (2, "ALTER TABLE t ADD a positive", True),
        (4, "ALTER TABLE t ALTER a TYPE text", False),
        (4, "ALTER TABLE t ALTER a TYPE int USING f(a)", True),
        (1, "ALTER TABLE t SET LOGGED", False),
        (8, "ALTER TABLE t SET ACCESS METHOD heap", False),
    ],
)
def test_rows_that_may_come_out_otherwise_are_copied(rewritten: int, statement: str, remade: bool) -> None:
    assert is_remade(Shape("s", "t", "r", rewritten=rewritten), statement) is remade


@given(st.text("ab.*?-_é", max_size=8), st.text("ab.-_é", max_size=8))
def test_a_pattern_means_the_same_on_the_source(pattern: str, name: str) -> None:
    """PostgreSQL's expressions and Python's agree on what is written here."""
    known = fnmatch.fnmatchcase(name, pattern if "." in pattern else f"{pattern}.*")
    told = expression(pattern).replace("^", r"\A", 1)[:-1] + r"\Z"
    assert bool(re.match(told, name, re.DOTALL)) == known, told


def test_a_pattern_may_hold_a_set_of_letters() -> None:
    assert expression("s.t[0-9]") == r"^s\.t[0-9]$" and expression("s.t[!ab]") == r"^s\.t[^ab]$"


# --- transactions -----------------------------------------------------------------------------


def test_a_change_of_the_schema_shares_its_target_transaction_with_nothing() -> None:
    batcher = Batcher(Limits(), 0)

    def piece(offset: int, *, alone: bool = False) -> Piece:
        return Piece([], 1, Commit(offset + 5, 0, Position(1, 1)), offset, alone)

    written = [
        [each.offset for each in action.pieces]  # type: ignore[union-attr]
        for given_ in (piece(10), piece(20), piece(30, alone=True), piece(40))
        for action in batcher.add(given_)
    ]
    assert written == [[10, 20], [30]]
    assert [[each.offset for each in action.pieces] for action in batcher.flush()] == [[40]]


def test_rows_are_cut_behind_each_change_of_the_schema() -> None:
    one, two = Message("castling:ddl", b"1"), Message("castling:ddl", b"2")
    other = Message("castling:sequences", b"x")
    pieces = [Piece([other], 1, None, 10), Piece([other, one, two, other], 1, None, 20)]
    found = [([list(piece.changes) for piece in run], message) for run, message in runs(pieces)]
    assert found == [([[other], [other]], one), ([[]], two), ([[other]], None)]
    assert list(runs(pieces[:1])) == [(pieces[:1], None)]
