"""Large objects on real servers: compared, carried when they changed, removed when they are gone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.real.apply_cast import Follower
from tests.real.pg_cast import Pair, captured, database_pair, until

from castling.errors import DecodeError
from castling.kinds.base import Severity
from castling.kinds.postgres.forget import forget_stream
from castling.kinds.postgres.kind import KIND
from castling.kinds.postgres.large_objects import Piece, encode_large
from castling.testing.servers import EmbeddedServer

_EVERYTHING = """
    SELECT m.oid::int8, o.rolname, obj_description(m.oid, 'pg_largeobject'),
           (SELECT array_agg(a ORDER BY a) FROM unnest(m.lomacl::text[]) a),
           (SELECT count(*) FROM pg_largeobject l WHERE l.loid = m.oid),
           encode(sha256(lo_get(m.oid)), 'hex')
      FROM pg_largeobject_metadata m JOIN pg_roles o ON o.oid = m.lomowner ORDER BY 1
"""


@pytest.fixture
def pair(east: EmbeddedServer, west: EmbeddedServer, tmp_path: Path) -> Iterator[Pair]:
    with database_pair(east, west, tmp_path) as made:
        for run in (made.source, made.target):
            run("CREATE TABLE anything (id int PRIMARY KEY)")
        yield made


async def _started(pair: Pair, **settings: Any) -> Follower:
    follower = Follower(pair, compare_every=0.1, **settings)
    await follower.begin()
    return follower


async def _look(follower: Follower, capture: Any) -> None:
    """Take what a look says that began after now."""
    reading = asyncio.create_task(_read(follower, capture))
    try:
        asked = follower.pair.source("SELECT (extract(epoch from clock_timestamp()) * 1000000000)::int8")
        await until(lambda: (capture.report()["beside"]["large objects"]["looked_ns"] or 0) > asked[0][0])
    finally:
        reading.cancel()
        await asyncio.wait((reading,))
    await follower.journal.read_until(capture, follower.pair.end_of_log())


async def _read(follower: Follower, capture: Any) -> None:
    while True:
        follower.journal.add(await capture.read())


async def _follow(follower: Follower) -> dict[str, Any]:
    async with captured(follower.stream, follower.journal) as capture:
        await _look(follower, capture)
        report: dict[str, Any] = capture.report()
    await follower.apply()
    return report


def _size(follower: Follower) -> int:
    return sum(len(record.payload) for record in follower.journal.records)


async def test_large_objects_are_the_same_on_both_sides(pair: Pair) -> None:
    for server in (pair.east, pair.west):
        server.execute(
            "DROP ROLE IF EXISTS lo_owner; DROP ROLE IF EXISTS lo_reader;"
            "CREATE ROLE lo_owner; CREATE ROLE lo_reader"
        )
    pair.source("""
        SELECT lo_from_bytea(70001, 'small');
        SELECT lo_from_bytea(70002, '');
        SELECT lo_from_bytea(70003, decode(repeat(md5('x'), 150000), 'hex'));  -- in several pieces
        SELECT lo_create(70004); SELECT lo_put(70004, 5000000, 'far'); SELECT lo_put(70004, 3, 'near');
        SELECT lo_from_bytea(3000000000, 'a large number');
        ALTER LARGE OBJECT 70001 OWNER TO lo_owner;
        GRANT SELECT ON LARGE OBJECT 70001 TO lo_reader WITH GRANT OPTION;
        GRANT UPDATE ON LARGE OBJECT 70001 TO PUBLIC;
        COMMENT ON LARGE OBJECT 70001 IS 'it''s "mine"';
    """)
    follower = await _started(pair)
    report = await _follow(follower)
    assert pair.target(_EVERYTHING) == pair.source(_EVERYTHING)
    figures = report["beside"]["large objects"]
    assert figures["carried"] == 5
    assert figures["told_ns"] == follower.reports[-1]["beside"]["large objects"]["applied_ns"]
    assert follower.reports[-1]["warnings"] == []
    pair.source("""
        SELECT lo_unlink(70002);
        SELECT lo_put(70003, 1000, 'changed');
        SELECT lo_truncate(lo_open(70004, 131072), 4);
        REVOKE ALL ON LARGE OBJECT 70001 FROM PUBLIC, lo_reader;
        COMMENT ON LARGE OBJECT 70001 IS NULL;
        SELECT lo_from_bytea(70005, 'new');
    """)
    await _follow(follower)
    assert pair.target(_EVERYTHING) == pair.source(_EVERYTHING)
    pair.source("ALTER LARGE OBJECT 70001 OWNER TO CURRENT_USER")
    pair.target("ALTER LARGE OBJECT 70001 OWNER TO CURRENT_USER")
    for server in (pair.east, pair.west):
        server.execute("DROP ROLE lo_owner; DROP ROLE lo_reader")


async def test_within_a_session_only_what_changed_is_told(pair: Pair) -> None:
    pair.source(
        "SELECT lo_from_bytea(70001, decode(repeat(md5('x'), 30000), 'hex')), lo_from_bytea(70002, 'b')"
    )
    follower = await _started(pair)
    async with captured(follower.stream, follower.journal) as capture:
        await _look(follower, capture)
        first = _size(follower)
        assert first > 450_000
        await _look(follower, capture)
        pair.source("SELECT lo_put(70002, 0, 'changed')")
        await _look(follower, capture)
        assert _size(follower) - first < 20_000
        # a broken connection: what the journal holds is not told again
        await capture.open(resume=follower.journal.offset, session=follower.journal.session)
        pair.source("SELECT lo_put(70002, 0, 'again!!')")
        await _look(follower, capture)
        assert _size(follower) - first < 40_000
    await follower.apply()
    assert pair.target(_EVERYTHING) == pair.source(_EVERYTHING)


async def test_what_was_removed_while_nobody_looked_is_removed(pair: Pair) -> None:
    pair.source("SELECT lo_from_bytea(70001, 'a'), lo_from_bytea(70002, 'b')")
    follower = await _started(pair)
    await _follow(follower)
    pair.target("SELECT lo_from_bytea(80001, 'the target''s own')")
    pair.source("SELECT lo_unlink(70001), lo_unlink(70002)")
    await _follow(follower)  # another process
    assert [row[0] for row in pair.target(_EVERYTHING)] == [80001]


async def test_an_object_of_somebody_else_is_left_alone_and_named(pair: Pair) -> None:
    pair.source("SELECT lo_from_bytea(70001, 'a'), lo_from_bytea(70002, 'same')")
    pair.target("SELECT lo_from_bytea(70001, 'precious'), lo_from_bytea(70002, 'same')")
    pair.source("CREATE ROLE only_here; ALTER LARGE OBJECT 70002 OWNER TO only_here")
    follower = await _started(pair)
    await _follow(follower)
    assert pair.target("SELECT lo_get(70001)") == [(b"precious",)]
    [told] = follower.reports[-1]["warnings"]
    assert told["code"] == "large-objects-not-carried"
    assert "70001 is on the target with other content" in told["message"]
    assert "70002 needs the role only_here" in told["message"]
    pair.source("SELECT lo_unlink(70001), lo_unlink(70002); DROP ROLE only_here")
    await _follow(follower)
    # the equal one had been adopted
    assert [row[0] for row in pair.target(_EVERYTHING)] == [70001]
    assert follower.reports[-1]["warnings"] == []


async def test_a_change_that_is_not_told_is_seen_by_the_comparison_of_this_test(pair: Pair) -> None:
    """The negative control: with "ignore" nothing is carried, and the check says so."""
    pair.source("SELECT lo_from_bytea(70001, 'a')")
    follower = await _started(pair, large_objects="ignore")
    async with captured(follower.stream, follower.journal) as capture:
        await follower.journal.read_until(capture, pair.end_of_log())
        assert capture.report()["beside"]["large objects"]["looked_ns"] is None
    await follower.apply()
    assert pair.target(_EVERYTHING) != pair.source(_EVERYTHING)
    found = {each.code: each.severity for each in await KIND.check(pair.stream(large_objects="ignore"))}
    assert found["large-objects-ignored"] is Severity.WARNING


async def test_the_check_asks_for_the_right_to_read_them(pair: Pair) -> None:
    pair.source(
        "SELECT lo_from_bytea(70001, 'a'); CREATE ROLE no_reader LOGIN REPLICATION PASSWORD 'castling'"
    )
    stream = pair.stream()
    found = {each.code: each.severity for each in await KIND.check(stream)}
    assert found["large-objects-compared"] is Severity.WARNING
    try:
        pair.source("GRANT SELECT ON ALL TABLES IN SCHEMA public TO no_reader")
        stream.settings.databases["east"] = _as_user(stream.settings.databases["east"], "no_reader", pair)
        found = {each.code: each.severity for each in await KIND.check(stream)}
        assert found["large-objects-unreadable"] is Severity.REFUSED
        pair.source("GRANT pg_read_all_data TO no_reader")
        found = {each.code: each.severity for each in await KIND.check(stream)}
        assert found["large-objects-compared"] is Severity.WARNING
    finally:
        pair.source("DROP OWNED BY no_reader; DROP ROLE no_reader")


def _as_user(database: Any, user: str, pair: Pair) -> Any:
    secret = Path(pair.password_file).with_name("other-password")
    secret.write_text("castling\n")
    secret.chmod(0o600)
    return msgspec.structs.replace(database, user=user, password_file=str(secret))


async def test_a_piece_without_its_beginning_is_refused(pair: Pair) -> None:
    follower = await _started(pair, large_objects="ignore")
    forged = encode_large(Piece(group=pair.name, oid=5, offset=0, data=b"x"))
    pair.source(f"SELECT pg_logical_emit_message(true, 'castling:lo', '\\x{forged.hex()}'::bytea)")
    with pytest.raises(DecodeError, match="without its beginning"):
        await follower.follow()


async def test_removing_the_group_forgets_which_were_ours_and_keeps_them(pair: Pair) -> None:
    pair.source("SELECT lo_from_bytea(70001, 'a')")
    follower = await _started(pair)
    await _follow(follower)
    await forget_stream(follower.stream)
    assert pair.target("SELECT count(*) FROM castling.large_objects") == [(0,)]
    assert [row[0] for row in pair.target(_EVERYTHING)] == [70001]
