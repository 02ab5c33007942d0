"""castling.toml is read exactly, and every problem names its line and key."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from castling.config import load, parse, units
from castling.config.places import nearest, places
from castling.errors import ConfigError, NotFound

GOOD = """\
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
retention = { size = "1GiB", age = "12h" }

[groups.orders.link]
bandwidth = "10MiB/s"

[groups.orders.databases.east]
host = "east"
dbname = "orders"
user = "castling"

[groups.orders.databases.west]
host = "west"
dbname = "orders"
user = "castling"
"""


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, "castling.toml")
    found = caught.value.context["problems"]
    assert isinstance(found, list)
    return found


def test_a_good_file_gives_typed_settings() -> None:
    config = parse(GOOD)
    group = config.groups["orders"]
    assert group.retention.size == 1 << 30
    assert group.retention.age == 12 * 3600
    assert group.link.bandwidth == 10 << 20
    assert group.retention.segment == 64 << 20, "what is not written has its default"
    assert group.include == ["*.*"]


def test_load_reads_a_file_and_names_a_missing_one(tmp_path) -> None:
    file = tmp_path / "castling.toml"
    file.write_text(GOOD)
    assert load(file) == parse(GOOD)
    with pytest.raises(NotFound, match="no file"):
        load(tmp_path / "other.toml")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            'primary = "east"',
            'primry = "east"',
            "castling.toml:14: groups.orders.primry: unknown key; did you",
        ),
        ('primary = "east"', "", "castling.toml:12: groups.orders.primary: is missing"),
        (
            'primary = "east"',
            "primary = 7",
            "castling.toml:14: groups.orders.primary: expected `str`, got `int`",
        ),
        (
            'primary = "east"',
            'primary = "north"',
            "castling.toml:14: groups.orders.primary: there is no node 'north'",
        ),
        ('["west"]', '["west", "east"]', "castling.toml:15: groups.orders.backups: east is the primary"),
        ('["west"]', '["west", "west"]', "castling.toml:15: groups.orders.backups: a node is named twice"),
        ('["west"]', "[]", "castling.toml:15: groups.orders.backups: a group has at least one backup"),
        ('"1GiB"', '"1 Gigs"', "castling.toml:16: groups.orders.retention.size: a size is"),
        ('"12h"', '"soon"', "castling.toml:16: groups.orders.retention.age: a time is"),
        ('"10MiB/s"', '"10MiB/h"', "castling.toml:19: groups.orders.link.bandwidth: a rate is per second"),
        ('"10MiB/s"', "0", "castling.toml:19: groups.orders.link.bandwidth: 0 would never send"),
        (
            'kind = "postgres"',
            'kind = "mysql"',
            "castling.toml:13: groups.orders.kind: must be one of postgres",
        ),
        ('"east:7430"', '"east"', "castling.toml:5: nodes.east.api: an address is"),
        ('"east:7430"', '"fd00::1:7430"', "castling.toml:5: nodes.east.api: an IPv6 address"),
        ("[nodes.east]", "[nodes.East]", "castling.toml:4: nodes.East: a name has"),
        (
            'host = "west"',
            'host = "east"',
            "castling.toml:26: groups.orders.databases.west: is the same database",
        ),
        ("[groups.orders.databases.west]", "[groups.orders.databases.north]", "databases.west: is missing"),
        ('backups = ["west"]', 'backups = ["west"]\ndelivery = "sync"', "on_sync_loss: is missing"),
        ('backups = ["west"]', 'backups = ["west"]\non_sync_loss = "wait"', "on_sync_loss: is for delivery"),
        (
            'backups = ["west"]',
            'backups = ["west", "north"]\ndelivery = "sync"\non_sync_loss = "wait"',
            'castling.toml:16: groups.orders.delivery: "sync" is for one backup',
        ),
        (
            "[groups.orders.link]",
            '[groups.orders.seed]\nschema = "create"\nexisting = "match"\n[groups.orders.link]',
            'groups.orders.seed.existing: "match" is for tables that are there',
        ),
        (
            'backups = ["west"]',
            'backups = ["west"]\ncapture_on = "north"',
            "capture_on: must be a node of the group",
        ),
        (
            'backups = ["west"]',
            'backups = ["west"]\ninclude = ["orders"]',
            "include: 'orders' is not a `schema.table`",
        ),
        ('backups = ["west"]', 'backups = ["west"]\nheartbeat = 0', "heartbeat: must be from 0.05"),
        (
            'backups = ["west"]',
            'backups = ["west"]\nwal_spool = "1GiB"',
            "castling.toml:16: groups.orders.wal_spool: 1073741824 bytes is less than wal_alarm",
        ),
        (
            'backups = ["west"]',
            'backups = ["west"]\nwal_spool = "40GiB"\nwal_limit = "30GiB"\non_wal_limit = "stop"',
            "castling.toml:17: groups.orders.wal_limit: 32212254720 bytes is less than wal_spool",
        ),
        (
            'backups = ["west"]',
            'backups = ["west"]\nwal_limit = "1GiB"\non_wal_limit = "stop"',
            "castling.toml:16: groups.orders.wal_limit: 1073741824 bytes is less than wal_alarm",
        ),
        ('backups = ["west"]', 'backups = ["west"]\nwal_limit = "90GiB"', "on_wal_limit: is missing"),
        (
            'backups = ["west"]',
            'backups = ["west"]\non_wal_limit = "reseed"',
            "castling.toml:16: groups.orders.on_wal_limit: is for wal_limit",
        ),
        (
            'backups = ["west"]',
            'backups = ["west"]\ndelivery = "sync"\non_sync_loss = "degrade"\nwal_spool = "90GiB"',
            'castling.toml:18: groups.orders.wal_spool: is for delivery = "async"',
        ),
        (
            'user = "castling"\n\n',
            'user = "castling"\npassword = "x"\n',
            "a password never stands in this file",
        ),
    ],
)
def test_every_problem_names_line_and_key(old: str, new: str, told: str) -> None:
    assert old in GOOD
    found = problems(GOOD.replace(old, new, 1))
    assert any(told in line for line in found), found


def test_a_password_is_never_repeated_in_a_message() -> None:
    text = GOOD.replace('user = "castling"\n', 'user = "castling"\npassword = "hunter2"\n', 1)
    assert "hunter2" not in "\n".join(problems(text))


def test_all_problems_are_told_at_once() -> None:
    text = (
        GOOD.replace('kind = "postgres"', 'kind = "x"')
        .replace('"12h"', '"soon"')
        .replace("[nodes.east]", "[nodes.E]")
    )
    assert len(problems(text)) >= 2


def test_two_groups_on_one_port_need_a_port_of_their_own() -> None:
    second = GOOD[GOOD.index("[groups.orders]") :].replace("orders", "stock")
    found = problems(GOOD + second)
    assert found == [
        "castling.toml:36: groups.stock.link.port: west:7431 of west already receives group orders; "
        "give one of them its own port"
    ]
    assert (
        parse(GOOD + second.replace('bandwidth = "10MiB/s"', "port = 7432")).groups["stock"].link.port == 7432
    )


@pytest.mark.parametrize("text", ["a = ", "[a", 'a = "\n', "a = 1\na = 2"])
def test_broken_toml_names_its_line(text: str) -> None:
    assert problems(text)[0].startswith("castling.toml:")


def test_places_of_every_form_of_toml() -> None:
    text = (
        "# [no.table]\n"
        'a.b = "x # [y]"\n'
        "[t]\n"
        "list = [\n  1, # one\n  { k = 2 },\n]\n"
        "text = '''\n[not.a.table]\nkey = 1\n'''\n"
        '"quoted key" = true\n'
        "[[many]]\nz = 1\n"
        "[t.inner]\nlast = {p = 1, q = [\n2]}\n"
    )
    assert {".".join(path): line for path, line in places(text).items()} == {
        "a": 2,
        "a.b": 2,
        "t": 3,
        "t.list": 4,
        "t.list.k": 6,
        "t.text": 8,
        "t.quoted key": 12,
        "many": 13,
        "many.z": 14,
        "t.inner": 15,
        "t.inner.last": 16,
        "t.inner.last.p": 16,
        "t.inner.last.q": 16,
    }


def test_the_nearest_written_table_stands_for_what_is_missing() -> None:
    found = places("[a.b]\nc = 1\n")
    assert nearest(found, ("a", "b", "missing", "deep")) == 1
    assert nearest(found, ("other",)) is None


_NAMES = st.text("abcdefg_-", min_size=1, max_size=6)


@given(st.lists(_NAMES, min_size=1, max_size=8, unique=True), st.integers(0, 3))
def test_places_agree_with_the_lines_that_were_written(names: list[str], blank: int) -> None:
    lines, expected = [], {}
    for name in names:
        lines += ["# comment"] * blank
        lines.append(f"[{name}]")
        expected[(name,)] = len(lines)
        lines.append(f'k = "{name} = # [x]"')
        expected[(name, "k")] = len(lines)
    assert places("\n".join(lines)) == expected


@pytest.mark.parametrize(
    ("text", "value"),
    [("64MiB", 64 << 20), ("1kB", 1000), ("1.5GiB", 3 << 29), (17, 17), ("17", 17), ("10 GB", 10**10)],
)
def test_sizes(text: object, value: int) -> None:
    assert units.size(text) == value


@pytest.mark.parametrize("text", ["", "-1", "1.0001B", "MiB", "1XB", None, True, -5, float("nan"), "1e9"])
def test_what_is_no_size_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="a size is"):
        units.size(text)


@pytest.mark.parametrize(
    ("text", "value"), [("500ms", 0.5), ("90s", 90), ("15m", 900), ("24h", 86400), ("7d", 604800)]
)
def test_times(text: str, value: float) -> None:
    assert units.seconds(text) == value


def test_rates() -> None:
    assert units.unlimited_rate("10MiB/s") == 10 << 20
    assert units.unlimited_rate(1000) == 1000
    assert units.unlimited_rate("unlimited") is None


def _with(text: str) -> str:
    return GOOD.replace("[groups.orders.link]", text + "\n[groups.orders.link]")


def test_names_conditions_and_columns_are_read() -> None:
    text = _with(
        'rename = { "sales.*" = "sales_eu.*", "public.orders" = "archive.orders_2026" }\n'
        'rows = { "public.orders" = "region = \'eu\'" }\n'
        'columns = { "public.customers" = ["id", "name"] }'
    )
    group = parse(text).groups["orders"]
    assert group.rename == {"sales.*": "sales_eu.*", "public.orders": "archive.orders_2026"}
    assert group.rows == {"public.orders": "region = 'eu'"}
    assert group.columns == {"public.customers": ["id", "name"]}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('rename = { "sales" = "eu.*" }', "rename.sales: 'sales' is not a `schema.table`"),
        ('rename = { "a.b" = "c.d.e" }', "rename.a.b: 'c.d.e' is not a `schema.table`"),
        ('rename = { "a.*" = "b.c" }', "rename.a.*: a schema (`sales.*`) becomes a schema"),
        ('rename = { "a.b" = "c.*" }', "rename.a.b: a schema (`sales.*`) becomes a schema"),
        ('rename = { "a.x" = "c.d", "b.x" = "c.d" }', "rename.b.x: c.d on the target is a.x already"),
        ('rename = { "a.*" = "castling.*" }', "rename.a.*: the schema castling"),
        ('rows = { "public.*" = "true" }', "rows.public.*: 'public.*' is not a `schema.table`"),
        ('rows = { "a.b" = "x = 1; DROP TABLE y" }', "rows.a.b: holds a semicolon"),
        ('rows = { "a.b" = "x = 1) OR (true" }', "rows.a.b: has brackets"),
        ('columns = { "a.b" = [] }', "columns.a.b: names the columns that are carried"),
        ('columns = { "a.b" = ["c", "c"] }', "columns.a.b: names the columns that are carried"),
    ],
)
def test_what_can_not_be_meant_names_its_line_and_key(text: str, says: str) -> None:
    (found,) = problems(_with(text))
    line = _with(text).split("\n").index(text) + 1
    assert found.startswith(f"castling.toml:{line}: groups.orders.{says}"), found


def test_two_schemas_may_become_one() -> None:
    assert parse(_with('rename = { "a.*" = "c.*", "b.*" = "c.*" }')).groups["orders"].rename
