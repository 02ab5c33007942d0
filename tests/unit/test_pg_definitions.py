"""Differences of definitions, purely: what is told once, what by whose statement, what not at all."""

from __future__ import annotations

from collections.abc import Iterable

from castling.config import GroupSettings
from castling.kinds.postgres.definition_watch import by_name
from castling.kinds.postgres.definitions import (
    Difference,
    Digest,
    Thing,
    differences,
    is_in_group,
    judge_extensions,
)

_TABLE = Thing("table", "a.t", "table")


def digest(things: Iterable[Thing], *, loose: bool = False) -> dict[str, str]:
    found = Digest(loose=loose)
    for thing in things:
        found.add(thing)
    return found.result()


def _settings(include: list[str], exclude: list[str]) -> GroupSettings:
    return GroupSettings(
        kind="postgres", primary="e", backups=["w"], databases={}, include=include, exclude=exclude
    )


def test_equal_things_do_not_differ_in_any_order() -> None:
    things = [_TABLE, Thing("column", "a.t.x", "int"), Thing("role", "r", "LOGIN")]
    assert differences(things, reversed(things)) == []
    assert digest(things) == digest(reversed(things))
    assert by_name(things) == by_name(reversed(things))


def test_what_is_inside_a_missing_thing_is_not_told_again() -> None:
    inside = [
        Thing("column", "a.t.x", "int"),
        Thing("constraint", "a.t.k", "CHECK"),
        Thing("owner", "a.t", "o"),
    ]
    beside = [Thing("column", "a.tt.x", "int")]
    assert {each.name for each in differences([_TABLE, *inside, *beside], [])} == {"a.t", "a.tt.x"}
    assert {each.name for each in differences([], [_TABLE, *inside, *beside])} == {"a.t", "a.tt.x"}
    [changed] = differences([_TABLE, *inside], [_TABLE, Thing("column", "a.t.x", "text"), *inside[1:]])
    assert (changed.name, changed.source, changed.target) == ("a.t.x", "int", "text")


def test_the_target_may_have_more_roles_but_not_more_tables() -> None:
    assert differences([], [Thing("role", "r", "LOGIN")]) == []
    [extra] = differences([], [_TABLE])
    assert "on the target only" in extra.message


def test_a_statement_is_given_only_where_it_mends() -> None:
    role = Thing("role", "r", "LOGIN", "CREATE ROLE r LOGIN")
    assert differences([role], [])[0].make == "CREATE ROLE r LOGIN"
    assert differences([role], [Thing("role", "r", "NOLOGIN")])[0].make == "ALTER ROLE r LOGIN"
    column = Thing("column", "a.t.x", "int", "ALTER TABLE a.t ADD COLUMN x int")
    assert differences([column], [Thing("column", "a.t.x", "text")])[0].make == ""


def test_an_extension_that_the_server_can_not_install_says_so() -> None:
    wanted = Difference("extension", "x", "1.2", None, "CREATE EXTENSION x VERSION '1.2'")
    assert judge_extensions([wanted], {"x": {"1.2"}}) == [wanted]
    assert "first install" in judge_extensions([wanted], {})[0].make
    assert "offers only 1.1" in judge_extensions([wanted], {"x": {"1.1"}})[0].make
    older = Difference("extension", "x", "1.2", "1.1", "")
    assert judge_extensions([older], {"x": {"1.1", "1.2"}})[0].make == "ALTER EXTENSION x UPDATE TO '1.2'"


def test_between_versions_only_what_is_meant_counts() -> None:
    older = Thing(
        "table", "v", "SELECT t.id,\n    'a.b  c'::text AS x\n   FROM t\n  WHERE (\"T x\".id > 1.5)"
    )
    newer = Thing("table", "v", "SELECT id, 'a.b  c'::text AS x FROM t WHERE (id > 1.5)")
    assert differences([older], [newer]) != []
    assert differences([older], [newer], loose=True) == []
    assert digest([older]) != digest([newer])
    assert digest([older], loose=True) == digest([newer], loose=True)
    for before, after in (("a.b", "b"), ("  c", " c"), ("1.5", "1.6"), ("FROM t", "FROM u")):
        other = Thing("table", "v", newer.text.replace(before, after))
        assert differences([older], [other], loose=True) != []


def test_too_many_things_are_reported_as_one_digest() -> None:
    many = [Thing("role", f"r{number}", "LOGIN") for number in range(600)]
    assert isinstance(by_name(many)["role"], str)
    assert by_name(many) != by_name([*many[1:], Thing("role", "r0", "NOLOGIN")])


def test_what_belongs_to_no_table_goes_by_its_schema() -> None:
    settings = _settings(["app.*", "other.t*"], ["app.secret", "gone.*"])
    assert is_in_group("app", [], settings)
    assert is_in_group("other", [], settings)
    assert not is_in_group("third", [], settings)
    assert not is_in_group("gone", [], _settings(["*.*"], ["gone.*"]))
    assert is_in_group("app", [("app", "t")], settings)
    assert not is_in_group("app", [("app", "secret")], settings)
    assert not is_in_group("other", [("other", "x")], settings)
    assert is_in_group("other", [("other", "x"), ("other", "tx")], settings)
