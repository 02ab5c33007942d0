"""Other names on the target: the rules, their reverse, definitions under them, statements around a script."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from castling.config.names import split_name, sql_problem
from castling.kinds.postgres.definitions import Thing
from castling.kinds.postgres.naming import Naming
from castling.kinds.postgres.naming_definitions import named_as_on_target
from castling.kinds.postgres.seed_renames import renamed_script

RULES = {"sales.*": "sales_eu.*", "sales.orders": "archive.orders_2026", '"a.b".*': '"c""d".*'}


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("public.orders", ("public", "orders")),
        ("sales.*", ("sales", "*")),
        ('"a.b"."c""d"', ("a.b", 'c"d')),
        ("with space.and more", ("with space", "and more")),
        ("orders", None),
        ("a.b.c", None),
        ('a."b', None),
        (".b", None),
        ('"".b', None),
    ],
)
def test_names_are_read_as_in_sql(name: str, parts: tuple[str, str] | None) -> None:
    assert split_name(name) == parts


@pytest.mark.parametrize(
    ("condition", "says"),
    [
        ("region = 'eu'", None),
        ("(a > 1) AND b IN ('x', ')')", None),
        ("\"odd ;(\" = 'it''s (;'", None),
        ("  ", "empty"),
        ("a = 1; DROP TABLE t", "semicolon"),
        ("a = 1) OR (true", "brackets"),
        ("a = 1)", "brackets"),
        ("(a = 1", "brackets"),
        ("a = 1) WITH (publish = '', x = (1", "brackets"),
        ("a = 1 -- )", "comments"),
        ("a = $$x$$", "dollar"),
    ],
)
def test_a_condition_is_one_expression(condition: str, says: str | None) -> None:
    found = sql_problem(condition)
    assert (found is None) if says is None else says in (found or "")


def test_a_rule_for_a_table_wins_over_its_schemas() -> None:
    naming = Naming(RULES)
    assert naming.target("sales", "orders") == ("archive", "orders_2026")
    assert naming.target("sales", "lines") == ("sales_eu", "lines")
    assert naming.target("a.b", "orders") == ('c"d', "orders")
    assert naming.target("public", "orders") == ("public", "orders")
    assert naming.schema("sales") == "sales_eu"


def test_a_sequence_follows_the_table_that_owns_it() -> None:
    naming = Naming({**RULES, "sales.named": "x.y"})
    assert naming.sequence("sales", "orders_id_seq", ("sales", "orders")) == ("archive", "orders_id_seq")
    assert naming.sequence("sales", "lines_id_seq", ("sales", "lines")) == ("sales_eu", "lines_id_seq")
    assert naming.sequence("sales", "lonely", None) == ("sales_eu", "lonely")
    assert naming.sequence("sales", "named", ("sales", "orders")) == ("x", "y")


def test_without_rules_every_name_stays_and_there_is_no_digest() -> None:
    assert not Naming({}) and Naming({}).digest == ""
    assert Naming({}).target("a", "b") == ("a", "b") and Naming({}).sources("a", "b") == [("a", "b")]
    assert (
        Naming(RULES).digest == Naming(dict(reversed(RULES.items()))).digest != Naming({"a.*": "b.*"}).digest
    )


def test_of_a_name_that_was_renamed_away_nothing_is_the_source() -> None:
    naming = Naming(RULES)
    assert naming.sources("sales", "lines") == [], "on the target that is somebody else's"
    assert naming.sources("sales_eu", "lines") == [("sales", "lines"), ("sales_eu", "lines")]
    assert naming.sources("sales_eu", "orders") == [("sales_eu", "orders")], "sales.orders has its own rule"
    assert naming.sources("archive", "orders_2026") == [
        ("sales", "orders"),
        ("archive", "orders_2026"),
    ]


_names = st.sampled_from(["a", "b", "c", 'd"e', "f.g"])
_quoted = _names.map(lambda name: '"' + name.replace('"', '""') + '"')
_rules = st.dictionaries(
    st.builds("{}.{}".format, _quoted, _quoted), st.builds("{}.{}".format, _quoted, _quoted)
) | st.dictionaries(st.builds("{}.*".format, _quoted), st.builds("{}.*".format, _quoted))


@given(_rules, _rules, _names, _names)
def test_the_reverse_finds_exactly_what_gets_the_name(
    one: dict[str, str], other: dict[str, str], schema: str, name: str
) -> None:
    naming = Naming({**one, **other})
    assert (schema, name) in naming.sources(*naming.target(schema, name))
    for source in naming.sources(schema, name):
        assert naming.target(*source) == (schema, name)


@pytest.mark.parametrize(
    ("thing", "there"),
    [
        (("column", "sales.lines.id", "integer"), ("sales_eu.lines.id", "integer")),
        (("table", "sales.orders", "table"), ("archive.orders_2026", "table")),
        (("schema", "sales", ""), ("sales_eu", "")),
        (("grant", "sales to bob", "USAGE"), ("sales_eu to bob", "USAGE")),
        (("comment", "schema sales", "x"), ("schema sales_eu", "x")),
        (
            (
                "column",
                "public.t.d",
                "DEFAULT nextval('sales.seq'::regclass) || 'sales.x' || f('a.b'::regclass)",
            ),
            ("public.t.d", "DEFAULT nextval('sales_eu.seq'::regclass) || 'sales.x' || f('a.b'::regclass)"),
        ),
        (
            ("constraint", "public.t.k", "FOREIGN KEY (o) REFERENCES sales.orders(id)"),
            ("public.t.k", "FOREIGN KEY (o) REFERENCES archive.orders_2026(id)"),
        ),
        (
            ("view", "public.v", 'SELECT x."sales".a FROM "a.b".t JOIN notsales.t ON 1.5 > 1'),
            ("public.v", 'SELECT x."sales".a FROM "c""d".t JOIN notsales.t ON 1.5 > 1'),
        ),
    ],
)
def test_definitions_are_told_in_the_targets_names(
    thing: tuple[str, str, str], there: tuple[str, str]
) -> None:
    found = named_as_on_target(Thing(*thing), Naming(RULES))
    assert (found.name, found.text) == there


def test_around_a_script_every_schema_comes_back_from_aside() -> None:
    script = renamed_script(b"THE SCRIPT;", Naming(RULES), begins=False, owners=True).decode()
    head, tail = script.split("THE SCRIPT;")
    aside = re.findall(r'ALTER SCHEMA "([^ ]*)" RENAME TO "(castling_aside_\d)"', head)
    back = re.findall(r'ALTER SCHEMA "(castling_aside_\d)" RENAME TO "([^ ]*)"', tail)
    assert len(aside) == 2 and sorted(aside) == sorted((old, new) for new, old in back)
    assert 'RENAME TO "sales_eu"' in tail and 'ALTER SCHEMA "sales_eu"' in head
    assert 'ALTER TABLE "archive"."orders_2026" RENAME' in head
