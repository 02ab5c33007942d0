"""Current roles make settings of their own; an epoch that is over is never believed."""

from __future__ import annotations

from pathlib import Path

import pytest

from castling.config import parse
from castling.control.plan import plan
from castling.control.roles import later_roles
from castling.errors import RoleError
from castling.groups.role import Role
from castling.groups.topology import EndName, ends_on, in_role, in_roles, stream_folder, streams

TEXT = """\
[installation]
name = "shop"
[nodes.east]
api = "east:1"
link = "east:2"
[nodes.west]
api = "west:1"
link = "west:2"
[nodes.north]
api = "north:1"
link = "north:2"
[groups.orders]
kind = "postgres"
primary = "east"
backups = ["west", "north"]
capture_on = "north"
""" + "".join(
    f'[groups.orders.databases.{node}]\nhost = "h"\ndbname = "d{node}"\nuser = "u"\n'
    for node in ("east", "west", "north")
)
CONFIG = parse(TEXT)
TURNED = in_roles(CONFIG, {"orders": Role(2, "west")})


def test_in_the_configured_role_nothing_is_changed() -> None:
    assert in_roles(CONFIG, {"orders": Role(1, "east")}) == CONFIG
    assert in_roles(CONFIG, {}) == CONFIG


def test_the_configured_primary_becomes_a_backup_and_the_new_one_captures() -> None:
    group = TURNED.groups["orders"]
    assert (group.primary, group.backups, group.capture_on) == ("west", ["east", "north"], None)
    ends = {(end.backup, end.end) for end in ends_on(TURNED, "west")}
    assert ends == {("east", EndName.SOURCE), ("north", EndName.SOURCE)}
    assert {(end.backup, end.end) for end in ends_on(TURNED, "east")} == {
        ("east", EndName.RECEIVE),
        ("east", EndName.APPLY),
    }
    folders = [stream_folder(Path("/h"), each).name for each in streams(TURNED, "orders")]
    assert folders == ["west-east", "west-north"]


def test_a_primary_that_is_not_configured_is_an_error_and_no_guess() -> None:
    with pytest.raises(RoleError, match="elsewhere"):
        in_role(CONFIG.groups["orders"], Role(2, "elsewhere"))


def test_only_what_is_later_is_believed() -> None:
    mine = {"orders": Role(3, "west")}
    assert later_roles(mine, {"orders": {"epoch": 2, "primary": "east"}}) == {}
    assert later_roles(mine, {"orders": {"epoch": 3, "primary": "east"}}) == {}
    assert later_roles(mine, {"orders": {"epoch": 4, "primary": "east"}}) == {"orders": Role(4, "east")}
    assert later_roles(mine, {"unknown": {"epoch": 9, "primary": "east"}}) == {}


def test_a_deployment_restarts_the_ends_of_the_current_roles() -> None:
    text = TEXT.replace('capture_on = "north"', 'capture_on = "north"\nbatch_changes = 1000')
    found = plan(
        CONFIG,
        parse(text),
        installation="shop",
        begun={"orders"},
        running={"orders"},
        roles={"orders": Role(2, "west")},
    )
    assert {(end.backup, end.end) for end in found.restarts} == {
        ("east", EndName.APPLY),
        ("north", EndName.APPLY),
    }
    assert not found.refused and not found.added and not found.removed


def test_a_deployment_without_the_current_primary_is_refused() -> None:
    text = TEXT.replace('["west", "north"]', '["north"]')
    text = text.replace('[groups.orders.databases.west]\nhost = "h"\ndbname = "dwest"\nuser = "u"\n', "")
    found = plan(
        CONFIG,
        parse(text),
        installation="shop",
        begun={"orders"},
        running={"orders"},
        roles={"orders": Role(2, "west")},
    )
    assert any("west holds a copy" in each for each in found.refused)
