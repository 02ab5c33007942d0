"""What a deployment would change, restart and refuse."""

from __future__ import annotations

import pytest

from castling.config import parse
from castling.control.plan import ChangeKind, digest, plan
from castling.groups.topology import End, EndName

TEXT = """\
[installation]
name = "shop"
[nodes.east]
api = "east:7430"
link = "east:7431"
[nodes.west]
api = "west:7430"
link = "west:7431"
[groups.orders]
kind = "postgres"
primary = "east"
backups = ["west"]
heartbeat = 1
batch_changes = 1000
[groups.orders.retention]
age = "1h"
[groups.orders.databases.east]
host = "e"
dbname = "orders"
user = "castling"
[groups.orders.databases.west]
host = "w"
dbname = "orders"
user = "castling"
"""
SOURCE, RECEIVE, APPLY = (End("orders", "west", name) for name in EndName)


def changed(old: str, new: str, *, begun: bool = True, running: bool = True):
    assert old in TEXT
    groups = {"orders"}
    return plan(
        parse(TEXT),
        parse(TEXT.replace(old, new, 1)),
        installation="shop",
        begun=groups if begun else set(),
        running=groups if running else set(),
    )


def test_the_same_text_changes_nothing() -> None:
    found = plan(parse(TEXT), parse(TEXT), installation="shop", begun={"orders"}, running={"orders"})
    assert (found.changes, found.restarts, found.added, found.removed, found.refused) == ([], [], [], [], [])


def test_the_first_deployment_is_of_the_installation_that_the_certificates_name() -> None:
    found = plan(None, parse(TEXT), installation="shed", begun=set(), running=set())
    assert len(found.refused) == 1 and "shed" in found.refused[0]


def test_the_first_deployment_adds_every_end_and_tells_what_was_written() -> None:
    found = plan(None, parse(TEXT), installation="shop", begun=set(), running=set())
    assert set(found.added) == {SOURCE, RECEIVE, APPLY}
    paths = {change.path for change in found.changes}
    assert "groups.orders.databases.west.host" in paths
    assert "groups.orders.link.compression" not in paths, "what nobody wrote is not told"
    assert all(change.kind is ChangeKind.ADDED for change in found.changes)


@pytest.mark.parametrize(
    ("old", "new", "restarts"),
    [
        ("heartbeat = 1", "heartbeat = 2", {SOURCE}),
        ("batch_changes = 1000", "batch_changes = 2000", {APPLY}),
        ('age = "1h"', 'age = "2h"', {RECEIVE}),
        ("heartbeat = 1", "heartbeat = 1\nlink.bandwidth = 1000", {SOURCE, RECEIVE}),
        ("heartbeat = 1", 'heartbeat = 1\nwal_alarm = "1GiB"', {SOURCE}),
        ("heartbeat = 1", "heartbeat = 1\nseed.bandwidth = 1000", {SOURCE}),
        ('link = "west:7431"', 'link = "west:7433"', {SOURCE, RECEIVE}),
        ('link = "east:7431"', 'link = "east:7433"', set()),
        ('host = "w"', 'host = "w"\npassfile = "/x"', {RECEIVE, APPLY}),
        ('host = "e"', 'host = "e"\npassfile = "/x"', {SOURCE}),
        ('link = "west:7431"', 'link = "west:7431"\npostgres_bin = "/pg"', {RECEIVE, APPLY}),
        ('link = "east:7431"', 'link = "east:7431"\npostgres_bin = "/pg"', {SOURCE}),
        ('api = "east:7430"', 'api = "east:7440"', set()),
    ],
)
def test_exactly_the_ends_that_read_a_key_restart(old: str, new: str, restarts: set[End]) -> None:
    found = changed(old, new)
    assert set(found.restarts) == restarts
    assert not found.refused
    assert not changed(old, new, running=False).restarts, "nothing that does not run restarts"


def test_a_changed_api_address_is_told_as_a_note() -> None:
    assert "started again" in changed('api = "east:7430"', 'api = "east:7440"').notes[0]


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("heartbeat = 1", 'heartbeat = 1\ninclude = ["public.*"]', "groups.orders.include"),
        ("heartbeat = 1", 'heartbeat = 1\nexclude = ["public.x"]', "groups.orders.exclude"),
        ("heartbeat = 1", 'heartbeat = 1\nrename = { "a.*" = "b.*" }', "groups.orders.rename.a.*"),
        ("heartbeat = 1", 'heartbeat = 1\nrows = { "a.b" = "v > 1" }', "groups.orders.rows.a.b"),
        ("heartbeat = 1", 'heartbeat = 1\ncolumns = { "a.b" = ["v"] }', "groups.orders.columns.a.b"),
        ("[groups.orders]", "[groups.sales]", "groups.orders: holds a copy"),
        ('name = "shop"', 'name = "shed"', "installation.name"),
    ],
)
def test_what_cant_change_is_refused_by_name(old: str, new: str, named: str) -> None:
    text = TEXT.replace(old, new, 1)
    if new == "[groups.sales]":
        text = text.replace("groups.orders.", "groups.sales.")
    found = plan(parse(TEXT), parse(text), installation="shop", begun={"orders"}, running={"orders"})
    assert any(named in line for line in found.refused), found.refused
    if not named.startswith("installation"):
        assert not plan(parse(TEXT), parse(text), installation="shop", begun=set(), running=set()).refused, (
            "a group without a copy may"
        )


def test_a_database_may_move_only_while_the_group_is_stopped() -> None:
    assert "groups.orders.databases.east.host" in changed('host = "e"', 'host = "e2"').refused[0]
    assert not changed('host = "e"', 'host = "e2"', running=False).refused


def test_the_source_end_moves_with_capture_on() -> None:
    found = changed("heartbeat = 1", 'heartbeat = 1\ncapture_on = "west"')
    assert SOURCE in found.restarts and RECEIVE in found.restarts


def test_only_the_text_makes_the_digest() -> None:
    assert digest(TEXT) == digest(TEXT) != digest(TEXT + "\n")
