"""The continuity token: what is recognised, and that every difference ends the stream loudly."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from castling.errors import ContinuityLost, DecodeError
from castling.kinds.postgres.lsn import lsn_text, parse_lsn
from castling.kinds.postgres.session import (
    Published,
    Session,
    Source,
    check_continuity,
    check_published,
    created_comment,
    created_lsn,
    remembered,
    slot_name,
)

SESSION = Session(
    system_id="7300000000000000001",
    timeline=1,
    database="shop",
    slot="castling_shop_west",
    publication="castling_shop_west",
    server_version=160004,
    start_lsn=0x1_0000_0000,
    binary=True,
    created_lsn=0x9000_0000,
    tables=[16400, 16410],
    tables_digest=remembered([16400, 16410])[1],
)
SOURCE = Source(
    system_id=SESSION.system_id,
    timeline=1,
    database="shop",
    server_version=160004,
    flush_lsn=0x2_0000_0000,
    slot_plugin="pgoutput",
    slot_database="shop",
    confirmed_lsn=0x1_0000_0000,
    wal_status="reserved",
    created_lsn=0x9000_0000,
)
RESUME = 0x1_8000_0000


def change(source: Source = SOURCE, **changed: object) -> Source:
    return msgspec.structs.replace(source, **changed)


def check(source: Source, *, resume: int = RESUME, session: Session | None = SESSION) -> None:
    check_continuity(source, slot="castling_shop_west", resume=resume, session=session)


# --- going on ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        SOURCE,
        change(confirmed_lsn=RESUME),  # the journal holds what was acknowledged, and no more
        change(flush_lsn=RESUME),  # nothing was written since
        change(server_version=160009),  # the source was updated in place
        change(wal_status="extended"),
        change(wal_status="unreserved"),
        change(created_lsn=None),  # the comment was removed: the other proofs still hold
    ],
)
def test_the_same_source_goes_on(source: Source) -> None:
    check(source)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"system_id": "7300000000000000002"}, "another server"),
        ({"timeline": 2}, "timeline 2"),
        ({"database": "shop2", "slot_database": "shop2"}, "of database shop"),
        ({"created_lsn": 0x9000_0001}, "begun anew"),
        ({"confirmed_lsn": None, "slot_plugin": None, "slot_database": None, "wal_status": None}, "is gone"),
        ({"slot_plugin": "test_decoding"}, "not the one made"),
        ({"slot_database": "other"}, "not the one made"),
        ({"wal_status": "lost"}, "max_slot_wal_keep_size"),
        ({"confirmed_lsn": RESUME + 1}, "made anew or advanced"),
        ({"flush_lsn": RESUME - 1, "confirmed_lsn": RESUME - 1}, "restored to an older state"),
    ],
)
def test_every_difference_ends_the_stream_and_says_which(changed: dict[str, object], says: str) -> None:
    with pytest.raises(ContinuityLost, match=says) as caught:
        check(change(**changed))
    assert "--reseed" in caught.value.hint
    assert not caught.value.retryable


def test_an_empty_journal_goes_with_an_unmoved_slot_only() -> None:
    fresh = change(confirmed_lsn=SOURCE.created_lsn)
    check(fresh, resume=0, session=None)
    check(change(fresh, created_lsn=None), resume=0, session=None)
    with pytest.raises(ContinuityLost, match="journal on the backup is empty"):
        check(SOURCE, resume=0, session=None)
    with pytest.raises(ContinuityLost, match="is gone"):
        check(change(confirmed_lsn=None), resume=0, session=None)


# --- what is published ------------------------------------------------------------------------


def look(tables: list[int], *, existing: list[int] | None = None, whole: bool = True) -> Published:
    return Published(tables=tables, existing=tables if existing is None else existing, whole=whole)


@pytest.mark.parametrize("found", [look([16410, 16400]), look([16400]), look([])])
def test_the_same_tables_go_on_and_dropped_ones_are_no_loss(found: Published) -> None:
    check_published(found, publication="p", session=SESSION)


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (look([16400, 16410], whole=False), "no longer publishes everything"),
        (look([16400, 16410, 16420]), "never copied"),
        (look([16400], existing=[16400, 16410]), "taken out"),
        (look([], existing=[16410]), "taken out"),
    ],
)
def test_another_choice_of_tables_ends_the_stream(found: Published, says: str) -> None:
    with pytest.raises(ContinuityLost, match=says):
        check_published(found, publication="p", session=SESSION)


def test_of_very_many_tables_a_digest_is_remembered() -> None:
    many = list(range(16400, 16400 + 4001))
    tables, digest = remembered(many)
    assert tables == []
    session = msgspec.structs.replace(SESSION, tables=tables, tables_digest=digest)
    check_published(look(many[::-1]), publication="p", session=session)
    with pytest.raises(ContinuityLost, match="other tables"):
        check_published(look([*many[:-1], 99999]), publication="p", session=session)


def test_a_token_with_the_most_tables_it_lists_fits_the_link() -> None:
    tables, digest = remembered(list(range(2**32 - 4000, 2**32)))
    assert len(tables) == 4000
    longest = "x" * 63
    token = msgspec.structs.replace(
        SESSION, tables=tables, tables_digest=digest, database=longest, slot=longest, publication=longest
    ).encode()
    assert len(token) < 32 << 10


# --- the token's bytes ------------------------------------------------------------------------


_LSNS = st.integers(0, 2**64 - 1)


@given(
    st.builds(
        Session,
        system_id=st.text(max_size=20),
        timeline=st.integers(1, 2**31),
        database=st.text(max_size=63),
        slot=st.text(max_size=63),
        publication=st.text(max_size=63),
        server_version=st.integers(140000, 200000),
        start_lsn=_LSNS,
        binary=st.booleans(),
        created_lsn=st.none() | _LSNS,
        tables=st.lists(st.integers(0, 2**32 - 1), max_size=20),
        tables_digest=st.text(max_size=16),
        rests=st.booleans(),
        v=st.just(1),
    )
)
def test_a_token_is_read_back(session: Session) -> None:
    assert Session.decode(session.encode()) == session


def test_a_token_of_before_resting_sessions_is_read() -> None:
    said = msgspec.msgpack.decode(SESSION.encode())
    for later in ("rests", "created_lsn", "tables", "tables_digest"):
        del said[later]
    found = Session.decode(msgspec.msgpack.encode({**said, "from_the_future": [1]}))
    assert (found.rests, found.created_lsn, found.tables) == (False, None, [])
    assert found.start_lsn == SESSION.start_lsn


def test_a_token_of_another_version_is_refused() -> None:
    with pytest.raises(DecodeError, match="version 2"):
        Session.decode(msgspec.structs.replace(SESSION, v=2).encode())


@settings(max_examples=300)
@given(st.data())
def test_a_damaged_token_is_a_decode_error_and_nothing_else(data: st.DataObject) -> None:
    whole = SESSION.encode()
    with pytest.raises(DecodeError):
        Session.decode(whole[: data.draw(st.integers(0, len(whole) - 1))])
    garbled = bytearray(whole)
    garbled[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    for bad in (bytes(garbled), data.draw(st.binary(max_size=40))):
        with contextlib.suppress(DecodeError):
            Session.decode(bad)


def test_a_token_nested_without_end_is_refused() -> None:
    nested = b"\x81\xa1x" + b"\x91" * 30000 + b"\xc0"
    with pytest.raises(DecodeError):
        Session.decode(nested)


# --- names and places -------------------------------------------------------------------------


_NAMES = st.from_regex(r"[a-z0-9_-]{1,40}", fullmatch=True)


@given(st.tuples(_NAMES, _NAMES), st.tuples(_NAMES, _NAMES))
def test_no_two_streams_share_a_name(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert (slot_name(*one) == slot_name(*other)) is (one == other)


@given(_NAMES, _NAMES)
def test_a_name_is_one_that_a_slot_can_have(group: str, backup: str) -> None:
    name = slot_name(group, backup)
    assert len(name) <= 63
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_")


def test_names_that_could_be_read_in_two_ways_differ() -> None:
    assert slot_name("shop", "west") == "castling_shop_west"
    assert slot_name("a_b", "c") != slot_name("a", "b_c")
    assert slot_name("a-b", "c") != slot_name("a_b", "c")
    assert slot_name("g" * 40, "b" * 40) != slot_name("g" * 40, "b" * 39 + "c")


@given(_LSNS)
def test_a_place_is_read_back(lsn: int) -> None:
    assert parse_lsn(lsn_text(lsn)) == lsn
    assert created_lsn(created_comment(lsn)) == lsn


def test_places_are_written_as_the_server_does() -> None:
    assert lsn_text(0x16_B374_D848) == "16/B374D848"
    assert lsn_text(0) == "0/0"
    assert parse_lsn("16/B374D848") == 0x16_B374_D848


@pytest.mark.parametrize(
    "comment", [None, "", "mine", "castling: the stream begins at 0/", "x" + created_comment(5)]
)
def test_another_comment_says_nothing(comment: str | None) -> None:
    assert created_lsn(comment) is None
