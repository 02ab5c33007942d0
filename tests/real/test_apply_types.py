"""Every common type of column, as a value and as a key: what arrives is what was sent, to the last bit.

Each type has three tables: a value beside a key, a value alone (the whole row tells it) and a key. Each
is given every value, several times over, changed and deleted; the comparison looks at text and at the
stored image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.real.apply_cast import Follower
from tests.real.pg_cast import Pair, database_pair

from castling.errors import TargetError
from castling.kinds.postgres import replication
from castling.testing.servers import EmbeddedServer


@dataclass(frozen=True)
class Kind:
    """`values`: text that the type reads. `is_key`: it can be a primary key."""

    type: str
    values: tuple[str, ...]
    is_key: bool = True


def _kind(type_: str, *values: str, is_key: bool = True) -> Kind:
    return Kind(type_, values, is_key)


#: types that mean the same on every server
BUILT_IN = (
    _kind("boolean", "true", "false"),
    _kind("smallint", "-32768", "0", "32767"),
    _kind("integer", "-2147483648", "0", "2147483647"),
    _kind("bigint", "-9223372036854775808", "0", "9223372036854775807"),
    _kind("real", "-0", "1e-37", "3.4028235e38", "NaN", "Infinity", "-Infinity", "0.1"),
    _kind(
        "double precision", "-0", "5e-324", "1.7976931348623157e308", "NaN", "Infinity", "-Infinity", "0.1"
    ),
    _kind("numeric", "NaN", "Infinity", "-Infinity", "0", "1.10", "-0.000000000000000001", "1" * 200 + ".5"),
    _kind("numeric(12, 3)", "123456789.125", "-1", "NaN"),
    _kind("money", "-92233720368547758.08", "12.34"),
    _kind("text", "", " ", "NULL", "\\N", "a\tb\nc\\d", "ümläut ☃ 𝄞", "x" * 3000),
    _kind("varchar(20)", "", "trailing  ", "twenty characters 20"),
    _kind("character(6)", "", "ab", "ab  cd"),
    _kind("name", "", "some name"),
    _kind('"char"', "", "a", "\\200"),
    _kind("bytea", "", "\\x00", "\\xdeadbeef00ff5c27", "\\x" + "00ff" * 2000),
    _kind("date", "0044-03-15 BC", "2024-02-29", "infinity", "-infinity", "5874897-12-31"),
    _kind("time", "00:00:00", "23:59:59.999999", "24:00:00"),
    _kind("timetz", "00:00:00+15:59", "23:59:59.999999-15:59"),
    _kind("timestamp", "0044-03-15 12:00:00 BC", "2024-02-29 23:59:59.999999", "infinity", "-infinity"),
    _kind(
        "timestamptz", "0044-03-15 12:00:00+02 BC", "2024-10-27 02:30:00.000001+01", "infinity", "-infinity"
    ),
    _kind("timestamp(0)", "2024-02-29 23:59:59"),
    _kind("interval", "0", "1 year -2 months 3 days -04:05:06.000007", "infinity", "-178000000 years"),
    _kind("uuid", "00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"),
    _kind("inet", "192.168.0.1", "10.1.2.3/8", "::1", "2001:db8::1/64"),
    _kind("cidr", "10.0.0.0/8", "2001:db8::/32"),
    _kind("macaddr", "08:00:2b:01:02:03"),
    _kind("macaddr8", "08:00:2b:01:02:03:04:05"),
    _kind("bit(5)", "00000", "10101"),
    _kind("bit varying", "", "1", "101010101010101010101"),
    _kind("json", "null", '{"b":  1, "a": [1,2], "b": 2}', '"\\u00e9"', is_key=False),
    _kind("jsonb", "null", '{"b": 1.10, "a": [1, {"c": null}]}', '"ünï"', "[]", "1e400"),
    _kind("tsvector", "", "'a':1A,3 'fat':2B,4C 'it''s'"),
    _kind("jsonpath", '$."a"[*] ? (@ > 1)', is_key=False),
    _kind("point", "(1.5,-2)", "(NaN,Infinity)", is_key=False),
    _kind("line", "{1,2,3}", is_key=False),
    _kind("lseg", "[(1,2),(3,4)]", is_key=False),
    _kind("box", "(3,4),(1,2)", is_key=False),
    _kind("path", "[(1,2),(3,4)]", "((1,2),(3,4),(5,6))", is_key=False),
    _kind("polygon", "((0,0),(1,0),(1,1))", is_key=False),
    _kind("circle", "<(1,2),3.5>", is_key=False),
    _kind("int4range", "empty", "[1,10)", "(,5)", "(,)"),
    _kind("numrange", "(1.10,2.50]", "empty", "[1,)"),
    _kind("tstzrange", '["2024-01-01 00:00:00+00",infinity)', '["2024-01-01 00:00:00+00",)'),
    _kind("daterange", "[2024-01-01,2024-02-01)"),
    _kind("int8multirange", "{}", "{[1,3),[7,9)}", "{(,)}"),
    _kind("tsmultirange", '{["2024-01-01 00:00:00","2024-01-02 00:00:00")}'),
    _kind("integer[]", "{}", "{1,NULL,3}", "{{1,2},{3,4}}", "[0:2]={7,8,9}"),
    _kind("text[]", "{}", '{"",NULL,"NULL","a,b","\\"quoted\\"","\\\\"}', "{{a,b},{c,d}}"),
    _kind("numeric[]", "{NaN,Infinity,1.10}"),
    _kind("timestamptz[]", '{infinity,"2024-01-01 00:00:00+00"}'),
    _kind("jsonb[]", '{"{\\"a\\": 1}",NULL}'),
    _kind("bytea[]", '{"\\\\x00ff",""}'),
    _kind("int4range[]", '{empty,"[1,5)"}'),
    _kind("oid", "0", "4294967295"),
    _kind("pg_lsn", "0/0", "FFFFFFFF/FFFFFFFF"),
    _kind("xid8", "18446744073709551615"),
)

#: types that travel as text: their identifiers differ from server to server, or no server reads their
#: binary form
AS_TEXT = (
    _kind("mood", "sad", 'it\'s, "quoted"', "Ünhappy"),
    _kind("mood[]", "{}", '{sad,NULL,"it\'s, \\"quoted\\""}'),
    _kind('"odd Schema"."Pair"', "(1,)", '(,"a,b ""c"" \\\\")', "(,sad)"),
    _kind('"odd Schema"."Pair"[]', '{"(1,x)",NULL}'),
    _kind("positive", "1", "100"),
    _kind("positive[]", "{1,2,NULL}"),
    _kind("moods", "{sad}", "{}"),
    _kind("short", "", "ab "),
    _kind("floatrange", "[1.5,2.5)", "empty"),
    _kind("floatmultirange", "{[1.5,2.5),[4,5)}"),
    _kind("tsquery", "", "'fat':AB & ( 'rat' | !'cat' ) <-> 'x':*"),
    _kind("tsquery[]", "{}"),
    _kind("regtype", "integer", "mood"),
    _kind("regclass[]", "{pg_class,bare_0,NULL}", is_key=False),
)

_OWN_TYPES = """
    CREATE TYPE mood AS ENUM ('sad', 'it''s, "quoted"', 'Ünhappy');
    CREATE SCHEMA "odd Schema";
    CREATE TYPE "odd Schema"."Pair" AS (n int, "T" text);
    CREATE DOMAIN positive AS int CHECK (VALUE > 0);
    CREATE DOMAIN moods AS mood[];
    CREATE DOMAIN short AS varchar(3) NOT NULL;
    CREATE TYPE floatrange AS RANGE (subtype = float8, multirange_type_name = floatmultirange);
"""


@pytest.fixture
def pair(east: EmbeddedServer, west: EmbeddedServer, tmp_path: Path) -> Iterator[Pair]:
    with database_pair(east, west, tmp_path) as made:
        made.target("CREATE TYPE only_here AS ENUM ('x')")  # identifiers of later types differ
        for side in (made.source, made.target):
            side(_OWN_TYPES)
        made.source(
            _session_defaults(made.name, style="SQL, DMY", zone="Asia/Kathmandu", interval="sql_standard")
        )
        made.target(
            _session_defaults(made.name, style="German", zone="America/St_Johns", interval="iso_8601")
        )
        oid = "SELECT 'mood'::regtype::oid, 'mood[]'::regtype::oid"
        assert made.source(oid) != made.target(oid)
        yield made


def _session_defaults(database: str, *, style: str, zone: str, interval: str) -> str:
    """What any session of the database begins with, unless it says otherwise."""
    return ";".join(
        f"ALTER DATABASE {database} SET {setting}"
        for setting in (
            f"DateStyle = '{style}'",
            f"TimeZone = '{zone}'",
            f"IntervalStyle = '{interval}'",
            "extra_float_digits = -3",
            "bytea_output = 'escape'",
        )
    )


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _is_nullable(kind: Kind) -> bool:
    return kind.type != "short"


def _tables(kinds: tuple[Kind, ...]) -> str:
    made = []
    for at, kind in enumerate(kinds):
        made.append(f"CREATE TABLE valued_{at} (id int PRIMARY KEY, v {kind.type}, n int)")
        made.append(f"CREATE TABLE bare_{at} (v {kind.type}, n int)")
        made.append(f"ALTER TABLE bare_{at} REPLICA IDENTITY FULL")
        if kind.is_key:
            made.append(f"CREATE TABLE key_{at} (v {kind.type}, n int, PRIMARY KEY (v, n))")
    return ";".join(made)


def _values(kind: Kind, *, copies: int) -> str:
    """A FROM item: every value of the type (and NULL, where it may be) `copies` times, `i` from 0 on."""
    given = [f"({_literal(value)}::{kind.type})" for value in kind.values]
    if _is_nullable(kind):
        given.append(f"(NULL::{kind.type})")
    return (
        "(SELECT row_number() OVER ()::int - 1, v"
        f" FROM (VALUES {', '.join(given)}) w(v), generate_series(1, {copies})) g(i, v)"
    )


def _inserts(kinds: tuple[Kind, ...], *, copies: int) -> str:
    made = []
    for at, kind in enumerate(kinds):
        values = _values(kind, copies=copies)
        made.append(f"INSERT INTO valued_{at} SELECT i, v, 0 FROM {values}")
        made.append(f"INSERT INTO bare_{at} SELECT v, 0 FROM {values}")
        if kind.is_key:
            made.append(
                f"INSERT INTO key_{at} SELECT v, i FROM {values} WHERE v IS NOT NULL OR v::text <> ''"
            )
    return ";".join(made)


def _changes(kinds: tuple[Kind, ...], *, copies: int) -> str:
    """Each row gets the next row's value; the row beside the value changes; some rows go."""
    made = []
    for at, kind in enumerate(kinds):
        count = f"(SELECT count(*)::int FROM valued_{at})"
        values = _values(kind, copies=copies)
        made.append(
            f"UPDATE valued_{at} t SET v = g.v FROM {values}"
            f" WHERE g.i = (t.id + 1) % {count} AND t.id % 2 = 0"
        )
        made.append(f"UPDATE valued_{at} SET n = n + 1 WHERE id % 3 = 0")
        made.append(f"DELETE FROM valued_{at} WHERE id % 5 = 4")
        one = f"ctid = (SELECT min(ctid) FROM bare_{at} WHERE v::text IS NOT DISTINCT FROM"
        for value in kind.values:
            shown = f"({_literal(value)}::{kind.type})::text"
            made.append(f"UPDATE bare_{at} SET n = 1 WHERE {one} {shown})")
            made.append(f"DELETE FROM bare_{at} WHERE {one} {shown} AND n = 0)")
        if _is_nullable(kind):
            made.append(f"UPDATE bare_{at} SET v = {_literal(kind.values[0])} WHERE v IS NULL AND n = 0")
        if kind.is_key:
            made.append(f"UPDATE key_{at} SET n = n + 1000 WHERE n % 2 = 0")
            made.append(f"UPDATE key_{at} SET v = {_literal(kind.values[0])} WHERE n % 3 = 0")
            made.append(f"DELETE FROM key_{at} WHERE n % 5 = 1")
    return ";".join(made)


def _images(pair: Pair, kinds: tuple[Kind, ...]) -> list[str]:
    """Types whose stored values are not the same on both sides: none."""
    wrong = []
    for at, kind in enumerate(kinds):
        question = (
            f"SELECT id, pg_column_size(v), md5(record_send(ROW(n, {_send(kind)})))"
            f" FROM valued_{at} ORDER BY id"
        )
        if pair.source(question) != pair.target(question):
            wrong.append(kind.type)
    return wrong


def _send(kind: Kind) -> str:
    """The value in its binary form, where that holds no identifiers of the server."""
    return "v" if kind in BUILT_IN else "v::text"


async def _follow(pair: Pair, kinds: tuple[Kind, ...], *, copies: int) -> Follower:
    for side in (pair.source, pair.target):
        side(_tables(kinds))
    follower = Follower(pair)
    await follower.begin()
    pair.source(_inserts(kinds, copies=copies))
    await follower.follow()
    follower.assert_equal()
    pair.source(_changes(kinds, copies=copies))
    await follower.follow()
    found = follower.compared()
    assert found.equal, found.differences
    assert found.rows > len(kinds) * 4
    return follower


@pytest.mark.parametrize("copies", [1, 12], ids=["row by row", "as sets"])
async def test_built_in_types_travel_in_binary_form(pair: Pair, copies: int) -> None:
    follower = await _follow(pair, BUILT_IN, copies=copies)
    assert _images(pair, BUILT_IN) == []
    assert follower.reports[-1]["replays"] == 0
    assert (follower.reports[-1]["sets"] > 0) == (copies > 1)


@pytest.mark.parametrize("copies", [1, 12], ids=["row by row", "as sets"])
async def test_all_types_travel_as_text_beside_types_of_the_database(pair: Pair, copies: int) -> None:
    kinds = AS_TEXT + BUILT_IN
    follower = await _follow(pair, kinds, copies=copies)
    assert _images(pair, kinds) == []
    assert follower.reports[-1]["replays"] == 0


async def test_a_value_that_is_equal_but_not_the_same_is_noticed(pair: Pair) -> None:
    """The control of the comparison."""
    kinds = tuple(kind for kind in BUILT_IN if kind.type == "numeric")
    await _follow(pair, kinds, copies=1)
    assert _images(pair, kinds) == []
    assert pair.target("UPDATE valued_0 SET v = 0.0 WHERE v = 0 RETURNING id")
    assert _images(pair, kinds) == ["numeric"]


async def test_the_sessions_own_settings_are_needed(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the settings that the fixture gives both databases."""
    monkeypatch.setattr(replication, "_OPTIONS", "")
    with pytest.raises((TargetError, AssertionError)):
        await _follow(pair, AS_TEXT + BUILT_IN, copies=1)
