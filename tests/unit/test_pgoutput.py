"""What a server says, through drafts and records, to the decoder's pieces.

The messages are made here, by an encoder written from PostgreSQL's page "Logical Replication
Message Formats" and sharing nothing with the code under test.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from castling.errors import ContinuityLost, DecodeError
from castling.journal.record import Draft, Flag, Position, Record, RecordType
from castling.kinds.base import Abandon, Commit, Piece
from castling.kinds.postgres import decoder as decoder_module
from castling.kinds.postgres import drafts as drafts_module
from castling.kinds.postgres.changes import (
    Change,
    Delete,
    Insert,
    Message,
    Oversized,
    Truncate,
    Update,
    coalesce,
)
from castling.kinds.postgres.decoder import PostgresDecoder
from castling.kinds.postgres.drafts import PART, PART_LAST, DraftMaker
from castling.kinds.postgres.messages import (
    NULL,
    Column,
    Relation,
    Row,
    frames,
    pack_frames,
    parse_relation,
    unix_ns,
)
from castling.kinds.postgres.row_words import too_large

NAMES = ("id", "n\u00e4me", 'we"ird', "long", "b")


# --- the server's side ------------------------------------------------------------------------


def i16(value: int) -> bytes:
    return struct.pack("!H", value)


def i32(value: int) -> bytes:
    return struct.pack("!I", value)


def i64(value: int) -> bytes:
    return struct.pack("!Q", value)


def string(value: str) -> bytes:
    return value.encode() + b"\0"


def begin(final: int, time_us: int = 0, xid: int = 7) -> bytes:
    return b"B" + i64(final) + struct.pack("!q", time_us) + i32(xid)


def commit(final: int, end: int, time_us: int = 0) -> bytes:
    return b"C" + b"\0" + i64(final) + i64(end) + struct.pack("!q", time_us)


def described(relation: Relation) -> bytes:
    said = b"R" + i32(relation.oid) + string(relation.schema) + string(relation.name)
    said += relation.identity.encode() + i16(len(relation.columns))
    for column in relation.columns:
        said += bytes([column.key]) + string(column.name)
        said += i32(column.type_oid) + struct.pack("!i", column.type_modifier)
    return said


def tuple_data(row: Row) -> bytes:
    said = i16(len(row.fields))
    for index, value in enumerate(row.fields):
        if value is None:
            said += b"u"
        elif value == NULL:
            said += b"n"
        else:
            said += (b"t" if row.text >> index & 1 else b"b") + i32(len(value) - 4) + value[4:]
    return said


def old_tuple(relation: Relation, row: Row) -> bytes:
    return (b"O" if relation.identity == "f" else b"K") + tuple_data(row)


def told(change: Change) -> bytes:
    if isinstance(change, Message):
        return logical(change.prefix, change.content)
    if isinstance(change, Truncate):
        options = change.cascade | change.restart_identity << 1
        oids = b"".join(i32(relation.oid) for relation in change.relations)
        return b"T" + i32(len(change.relations)) + bytes([options]) + oids
    oid = i32(change.relation.oid)
    if isinstance(change, Insert):
        return b"I" + oid + b"N" + tuple_data(change.new)
    if isinstance(change, Delete):
        return b"D" + oid + old_tuple(change.relation, change.old)
    old = b"" if change.old is None else old_tuple(change.relation, change.old)
    return b"U" + oid + old + b"N" + tuple_data(change.new)


def type_name(oid: int) -> bytes:
    return b"Y" + i32(oid) + string("app") + string(f"type{oid}")


def logical(prefix: str, content: bytes, lsn: int = 0) -> bytes:
    return b"M" + b"\1" + i64(lsn) + string(prefix) + i32(len(content)) + content


def altered(relation: Relation, **changed: Any) -> Relation:
    kept = {name: getattr(relation, name) for name in ("oid", "schema", "name", "identity", "columns")}
    return Relation(**(kept | changed))


def relations_of(change: Change) -> tuple[Relation, ...]:
    if isinstance(change, Message):
        return ()
    return change.relations if isinstance(change, Truncate) else (change.relation,)


@dataclass
class Transaction:
    """`final`: where its commit record begins; `end`: where that ends."""

    final: int
    end: int
    time_us: int
    changes: list[Change]

    @property
    def as_commit(self) -> tuple[int, int]:
        return self.end, unix_ns(self.time_us)


@dataclass
class Server:
    """One conversation: a table is described when it is new to it or has another shape."""

    known: dict[int, Relation] = field(default_factory=dict)

    def says(self, transaction: Transaction) -> Iterator[bytes]:
        yield begin(transaction.final, transaction.time_us)
        for change in transaction.changes:
            for relation in relations_of(change):
                if self.known.get(relation.oid) != relation:
                    if any(column.type_oid >= 16384 for column in relation.columns):
                        yield type_name(relation.columns[0].type_oid)
                    yield described(relation)
                    self.known[relation.oid] = relation
            yield told(change)
        yield commit(transaction.final, transaction.end, transaction.time_us)


# --- histories --------------------------------------------------------------------------------


def a_field(value: bytes) -> bytes:
    return len(value).to_bytes(4, "big") + value


_VALUES = st.binary(max_size=12).map(a_field)


@st.composite
def _relations(draw: st.DrawFn, oid: int) -> Relation:
    identity = draw(st.sampled_from("dif"))
    count = draw(st.integers(1, len(NAMES)))
    keys = draw(st.integers(1, count))
    columns = tuple(
        Column(
            name,
            draw(st.sampled_from([23, 25, 70000, 4294967295])),
            draw(st.integers(-1, 99)),
            identity == "f" or index < keys,
        )
        for index, name in enumerate(NAMES[:count])
    )
    return Relation(oid, draw(st.sampled_from(["public", "a pp"])), f"t{oid}", identity, columns)


@st.composite
def _rows(draw: st.DrawFn, relation: Relation, form: str) -> Row:
    """`form`: whole; key (the other columns are NULL); sparse (values that are no key may be unsent)."""
    fields: list[bytes | None] = []
    text = 0
    for index, column in enumerate(relation.columns):
        value: bytes | None = draw(_VALUES)
        if form == "key" and not column.key:
            value = NULL
        elif not column.key or not relation.keys:
            value = draw(st.sampled_from([value, value, NULL, None if form == "sparse" else NULL]))
        if value is not None and value != NULL:
            text |= draw(st.integers(0, 1)) << index
        fields.append(value)
    return Row(fields, text)


@st.composite
def _changes(draw: st.DrawFn, relations: list[Relation]) -> Change:
    relation = draw(st.sampled_from(relations))
    kind = draw(st.sampled_from("IIIUUUDDTM"))
    if kind == "M":
        return Message(draw(st.sampled_from(["castling:ddl", "castling:x"])), draw(st.binary(max_size=9)))
    old_form = "key" if relation.keys else "whole"
    if kind == "I":
        return Insert(relation, draw(_rows(relation, "whole")))
    if kind == "D":
        return Delete(relation, draw(_rows(relation, old_form)))
    if kind == "T":
        some = draw(st.lists(st.sampled_from(relations), min_size=1, unique_by=lambda one: one.oid))
        return Truncate(tuple(some), draw(st.booleans()), draw(st.booleans()))
    with_old = not relation.keys or draw(st.booleans())
    old = draw(_rows(relation, old_form)) if with_old else None
    return Update(relation, draw(_rows(relation, "sparse")), old)


@st.composite
def histories(draw: st.DrawFn, min_size: int = 0) -> list[Transaction]:
    relations = [draw(_relations(oid)) for oid in (16400, 16500)]
    found, at = [], 1000
    for _ in range(draw(st.integers(min_size, 5))):
        if draw(st.integers(0, 3)) == 0:  # one of the tables is altered
            which = draw(st.integers(0, 1))
            relations[which] = draw(_relations(relations[which].oid))
        final = at + draw(st.integers(0, 50))
        end = final + draw(st.integers(1, 50))
        time_us = draw(st.integers(-(10**15), 10**15))
        found.append(Transaction(final, end, time_us, draw(st.lists(_changes(relations), max_size=6))))
        at = end
    return found


# --- records ----------------------------------------------------------------------------------


def records(drafts: Iterable[Draft]) -> list[Record]:
    return [
        Record(
            Position(1, seq),
            draft.type,
            draft.flags,
            draft.object,
            5,
            draft.offset,
            draft.length,
            draft.payload,
        )
        for seq, draft in enumerate(drafts, 1)
    ]


def session(offset: int) -> Draft:
    return Draft(RecordType.SESSION, b"token", offset, Flag.KEYFRAME)


def captured(
    messages: Iterable[bytes], *, after: int = 900, cuts: random.Random | None = None
) -> list[Draft]:
    """The drafts of one session; with `cuts`, closed at random."""
    maker = DraftMaker(resume=after, begins=after, any_commit=True)
    maker.trusts = lambda content: True
    found = [session(after)]
    for message in messages:
        maker.take(message)
        if cuts is not None and cuts.random() < 0.3:
            found += maker.ready()
    return found + maker.ready()


def decoded(
    given: Iterable[Record], decoder: PostgresDecoder | None = None
) -> list[tuple[int, tuple[int, int], list[Change]]]:
    """The transactions, as a target would see them: (offset, commit, changes). Empty ones that stand
    for a session are left out."""
    decoder = decoder or PostgresDecoder()
    found = []
    open_: list[Change] = []
    for record in given:
        for piece in decoder.feed(record):
            if isinstance(piece, Abandon):
                open_ = []
                continue
            open_ += piece.changes
            if piece.commit is None:
                continue
            assert piece.offset < piece.commit.offset
            assert piece.commit.position == record.position
            if record.type is not RecordType.SESSION:
                found.append((piece.offset, (piece.commit.offset, piece.commit.committed_ns), open_))
            open_ = []
    return found


def expected(history: list[Transaction]) -> list[tuple[int, tuple[int, int], list[Change]]]:
    return [(one.final, one.as_commit, one.changes) for one in history]


def said(history: Iterable[Transaction], server: Server | None = None) -> list[bytes]:
    server = server or Server()
    return [message for one in history for message in server.says(one)]


# --- the same comes out -----------------------------------------------------------------------


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(histories(), st.randoms(use_true_random=False), st.sampled_from([1, 300, 8 << 20]))
def test_what_was_said_is_decoded(history: list[Transaction], cuts: random.Random, piece: int) -> None:
    found = decoded(records(captured(said(history), cuts=cuts)), PostgresDecoder(piece_bytes=piece))
    assert found == expected(history)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(histories(min_size=1), st.data())
def test_the_comparison_notices_one_changed_bit_in_a_value(
    history: list[Transaction], data: st.DataObject
) -> None:
    inserted = Insert(Relation(9, "s", "t", "d", (Column("id", 23, -1, True),)), Row([a_field(b"value")], 0))
    history[0].changes.append(inserted)
    messages = said(history)
    at = next(i for i, message in enumerate(messages) if message == told(inserted))
    bit = data.draw(st.integers(0, 39))
    garbled = bytearray(messages[at])
    garbled[-5 + bit // 8] ^= 1 << bit % 8
    messages[at] = bytes(garbled)
    assert decoded(records(captured(messages))) != expected(history)


def test_messages_that_change_nothing_are_passed_over() -> None:
    messages = [begin(1000), b"O" + i64(1) + string("origin"), type_name(7), logical("x", b"y")]
    outside = logical("castling:ddl", b"y")
    messages.append(outside[:1] + b"\0" + outside[2:])  # it was not emitted as part of its transaction
    messages.append(commit(1000, 1010))
    assert decoded(records(captured(messages))) == [(1000, (1010, unix_ns(0)), [])]


def test_unknown_messages_are_refused() -> None:
    for kind in set(range(256)) - set(b"IUDBCRTYOM"):
        with pytest.raises(DecodeError):
            list(PostgresDecoder().feed(data(bytes([kind]) + bytes(20))))


def data(*messages: bytes, object_: int = 0, offset: int = 0) -> Record:
    return raw(pack_frames(list(messages)), object_=object_, offset=offset)


def raw(payload: bytes, *, object_: int = 0, offset: int = 0, flags: Flag = Flag.NONE) -> Record:
    return Record(Position(1, 1), RecordType.DATA, flags, object_, 5, offset, 0, payload)


def of_type(kind: RecordType, payload: bytes = b"", *, offset: int = 0) -> Record:
    return Record(Position(1, 1), kind, Flag.NONE, 0, 5, offset, 0, payload)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(histories(min_size=1), st.randoms(use_true_random=False))
def test_barriers_and_markers_between_records_change_nothing(
    history: list[Transaction], cuts: random.Random
) -> None:
    mixed = []
    for record in records(captured(said(history), cuts=cuts)):
        mixed += [of_type(RecordType.BARRIER), record, of_type(RecordType.MARK, b"before the upgrade")]
    assert decoded(mixed) == expected(history)


# --- columns that change ----------------------------------------------------------------------


def test_two_tables_whose_columns_change_mid_stream() -> None:
    one = Relation(1, "s", "one", "d", (Column("id", 23, -1, True), Column("old", 23, -1, False)))
    two = Relation(2, "s", "two", "f", (Column("x", 25, -1, True),))
    wider = altered(one, columns=(*one.columns, Column("new", 1043, 14, False)))
    other = altered(two, columns=(Column("y", 25, -1, True), Column("x", 25, -1, True)))
    v = a_field(b"v")
    changes: list[Change] = [
        Insert(one, Row([v, NULL], 0)),
        Insert(two, Row([v], 1)),
        Insert(wider, Row([v, v, NULL], 2)),
        Delete(two, Row([v], 1)),
        Insert(other, Row([v, v], 3)),
        Update(wider, Row([v, None, v], 4), None),
    ]
    history = [Transaction(1000, 1010, 0, changes[:3]), Transaction(1010, 1020, 0, changes[3:])]
    assert decoded(records(captured(said(history)))) == expected(history)
    unchanged = [m for m in said(history) if not (m[:1] == b"R" and m[1:5] == i32(1) and b"new" in m)]
    with pytest.raises(DecodeError, match="has 3 columns"):
        decoded(records(captured(unchanged)))


# --- sessions ---------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(histories(min_size=1), st.data(), st.sampled_from([1, 300, 8 << 20]))
def test_a_conversation_that_breaks_off_anywhere_is_taken_up_by_the_next(
    history: list[Transaction], data: st.DataObject, piece: int
) -> None:
    messages = said(history)
    cut = data.draw(st.integers(0, len(messages)))
    first = captured(messages[:cut], cuts=random.Random(cut))
    resume = first[-1].offset
    rest = [one for one in history if one.end > resume]
    second = captured(said(rest), after=resume)
    assert decoded(records(first + second), PostgresDecoder(piece_bytes=piece)) == expected(history)


def test_a_transaction_of_which_parts_were_handed_out_is_abandoned() -> None:
    relation = Relation(1, "s", "t", "d", (Column("id", 23, -1, True),))
    change = Insert(relation, Row([a_field(b"1")], 0))
    decoder = PostgresDecoder(piece_bytes=1)
    began = [begin(1000), described(relation), told(change)]
    (piece,) = decoder.feed(data(*began))
    assert piece == Piece([change], piece.size, None, 1000)
    resumed, empty = decoder.feed(of_type(RecordType.SESSION, offset=990))
    assert resumed == Abandon()
    assert empty == Piece([], 0, Commit(990, 5, Position(1, 1)), 989)
    parts = list(decoder.feed(data(*began, commit(1000, 1010))))
    assert [part.commit is None for part in parts] == [True, False]


def test_a_transaction_of_which_nothing_was_handed_out_is_forgotten_quietly() -> None:
    decoder = PostgresDecoder()
    assert list(decoder.feed(data(begin(1000)))) == []
    assert len(list(decoder.feed(of_type(RecordType.SESSION, offset=990)))) == 1
    with pytest.raises(DecodeError, match="outside a transaction"):
        list(decoder.feed(data(commit(1000, 1010))))


def test_a_session_forgets_every_description() -> None:
    relation = Relation(1, "s", "t", "d", (Column("id", 23, -1, True),))
    change = Insert(relation, Row([a_field(b"1")], 0))
    decoder = PostgresDecoder()
    list(decoder.feed(data(begin(1000), described(relation), told(change), commit(1000, 1010))))
    list(decoder.feed(of_type(RecordType.SESSION, offset=1010)))
    with pytest.raises(DecodeError, match="before its description"):
        list(decoder.feed(data(begin(1010), told(change))))


def test_a_resting_session_lets_the_same_conversation_go_on() -> None:
    """The server repeats no description after it, so the next transaction begins with them all."""
    relation = Relation(1, "s", "t", "d", (Column("id", 23, -1, True),))
    change = Insert(relation, Row([a_field(b"1")], 0))
    history = [Transaction(1000, 1010, 0, [change]), Transaction(2000, 2010, 0, [change])]
    server = Server()
    maker = DraftMaker(resume=900, begins=900, any_commit=True)
    for message in said(history[:1], server):
        maker.take(message)
    maker.rest(b"token", 1500)
    after = said(history[1:], server)
    assert described(relation) not in after
    for message in after:
        maker.take(message)
    given = records([session(900), *maker.ready()])
    assert [record.type for record in given] == [RecordType.SESSION, RecordType.DATA] * 2
    assert decoded(given) == expected(history)


# --- keyframes --------------------------------------------------------------------------------


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(histories(min_size=2), st.randoms(use_true_random=False))
def test_a_decoder_that_begins_at_any_keyframe_sees_the_same(
    monkeypatch: pytest.MonkeyPatch, history: list[Transaction], cuts: random.Random
) -> None:
    monkeypatch.setattr(drafts_module, "KEYFRAME_BYTES", 60)
    given = records(captured(said(history), cuts=cuts))
    whole = decoded(given)
    assert whole == expected(history)
    starts = [at for at, record in enumerate(given) if record.flags & Flag.KEYFRAME]
    for at in starts:
        later = decoded(given[at:])
        assert later == whole[len(whole) - len(later) :]
        held = given[max(at - 1, 0)].offset
        assert len(later) == len([one for one in history if one.end > held])


def test_every_transaction_can_be_a_keyframe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafts_module, "KEYFRAME_BYTES", 1)
    relation = Relation(1, "s", "t", "d", (Column("id", 23, -1, True),))
    change = Insert(relation, Row([a_field(b"1")], 0))
    history = [Transaction(1000 + i, 1001 + i, 0, [change]) for i in range(4)]
    given = []
    maker, server = DraftMaker(resume=900, begins=900, any_commit=True), Server()
    for one in history:
        for message in server.says(one):
            maker.take(message)
        given += records(maker.ready())
    assert [record.flags for record in given] == [Flag.NONE, Flag.KEYFRAME, Flag.KEYFRAME, Flag.KEYFRAME]
    assert decoded(given[2:]) == expected(history)[2:]
    stripped = replace(given[2], payload=given[2].payload[4 + len(described(relation)) :])
    with pytest.raises(DecodeError, match="before its description"):
        decoded([stripped])


# --- parts of large messages ------------------------------------------------------------------


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(histories(min_size=1), st.integers(24, 60), st.randoms(use_true_random=False))
def test_large_messages_go_in_parts(
    monkeypatch: pytest.MonkeyPatch, history: list[Transaction], part: int, cuts: random.Random
) -> None:
    monkeypatch.setattr(drafts_module, "PART_BYTES", part)
    monkeypatch.setattr(drafts_module, "KEYFRAME_BYTES", 100)
    large = [message for message in said(history) if len(message) > part]
    drafts = captured(said(history), cuts=cuts)
    assert sum(draft.object == PART_LAST for draft in drafts) == len(large)
    assert decoded(records(drafts)) == expected(history)


@pytest.mark.parametrize("what", ["insert", "update", "delete"])
def test_a_change_that_is_too_large_is_named_and_not_kept(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    monkeypatch.setattr(drafts_module, "PART_BYTES", 100_000)
    columns = (Column("id", 23, -1, True), Column("v", 25, -1, False))
    relation = Relation(7, "public", "t", "d", columns)
    key, large = i32(4) + i32(42), i32(300_000) + b"x" * 300_000
    row = Row([key, large], 0)
    change = {
        "insert": Insert(relation, row),
        "update": Update(relation, row, None),
        "delete": Delete(Relation(7, "public", "t", "f", columns), row),
    }[what]
    small = Insert(change.relation, Row([key, NULL], 0))
    messages = [begin(1000), described(change.relation), told(change), told(small), commit(1000, 1010)]
    given = records(captured(messages))
    decoder = PostgresDecoder(row_max=299_999)
    (_, _, (oversized, after)) = decoded(given, decoder)[-1]
    assert isinstance(oversized, Oversized) and isinstance(after, Insert)
    assert oversized.size == len(told(change))
    assert len(oversized.head) <= 64 << 10, "what is too large is not kept"
    assert "public.t (id=42" in str(too_large(oversized))
    (_, _, (kept, _)) = decoded(given, PostgresDecoder(row_max=len(told(change))))[-1]
    assert kept == change, "the bound itself is allowed"


def parted() -> list[Record]:
    payload = pack_frames([begin(1000)])
    return [raw(payload[:10], object_=PART), raw(payload[10:], object_=PART_LAST)]


def test_a_missing_last_part_is_noticed() -> None:
    decoder = PostgresDecoder()
    list(decoder.feed(parted()[0]))
    with pytest.raises(DecodeError, match="in parts is missing"):
        list(decoder.feed(data(commit(1000, 1010))))


def test_a_missing_first_part_is_noticed() -> None:
    with pytest.raises(DecodeError):
        list(PostgresDecoder().feed(parted()[1]))


def test_a_session_after_the_first_part_begins_anew() -> None:
    decoder = PostgresDecoder()
    list(decoder.feed(parted()[0]))
    list(decoder.feed(of_type(RecordType.SESSION, offset=990)))
    assert decoded([*parted(), data(commit(1000, 1010))], decoder) == [(1000, (1010, unix_ns(0)), [])]


def test_parts_without_end_are_refused_before_they_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_module, "FRAME_MAX", 1000)
    decoder = PostgresDecoder()
    with pytest.raises(DecodeError, match="longer than a message can be"):
        for _ in range(11):
            list(decoder.feed(raw(bytes(100), object_=PART)))


def test_a_record_of_unknown_object_is_refused() -> None:
    with pytest.raises(DecodeError):
        list(PostgresDecoder().feed(data(begin(1000), object_=3)))


# --- what is refused --------------------------------------------------------------------------


def only_decode_errors(given: Iterable[Record]) -> bool:
    """Whether it was refused; what the decoder lets through must be fit for `coalesce`."""
    decoder = PostgresDecoder(piece_bytes=300)
    changes: list[Change] = []
    try:
        for record in given:
            for piece in decoder.feed(record):
                if isinstance(piece, Piece):
                    changes += piece.changes
    except DecodeError:
        return True
    coalesce(changes)
    return False


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(histories(min_size=1), st.data())
def test_garbled_records_are_a_decode_error_and_nothing_else(
    history: list[Transaction], data: st.DataObject
) -> None:
    given = records(captured(said(history)))
    at = data.draw(st.integers(1, len(given) - 1))
    payload = bytearray(given[at].payload)
    for _ in range(data.draw(st.integers(1, 4))):
        where = data.draw(st.integers(0, len(payload) - 1))
        payload[where] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, *b"KONRutbn"]))
    given[at] = replace(given[at], payload=bytes(payload))
    only_decode_errors(given)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(histories(min_size=1), st.data())
def test_a_message_cut_off_anywhere_is_refused(history: list[Transaction], data: st.DataObject) -> None:
    messages = said(history)
    at = data.draw(st.integers(0, len(messages) - 1))
    kept = data.draw(st.integers(1, len(messages[at]) - 1))
    if messages[at][:1] == b"Y":
        return
    cut = [*messages[:at], messages[at][:kept], *messages[at + 1 :]]
    assert only_decode_errors([of_type(RecordType.SESSION, offset=900), raw(pack_frames(cut))])


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(histories(min_size=1), st.data())
def test_a_message_with_more_behind_it_is_refused(history: list[Transaction], data: st.DataObject) -> None:
    messages = said(history)
    at = data.draw(st.integers(0, len(messages) - 1))
    if messages[at][:1] == b"Y":
        return
    longer = [
        *messages[:at],
        messages[at] + data.draw(st.binary(min_size=1, max_size=5)),
        *messages[at + 1 :],
    ]
    assert only_decode_errors([of_type(RecordType.SESSION, offset=900), raw(pack_frames(longer))])


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(histories(min_size=1), st.data())
def test_a_payload_cut_off_inside_a_message_is_refused(
    history: list[Transaction], data: st.DataObject
) -> None:
    payload = pack_frames(said(history))
    ends = {len(pack_frames(said(history)[:count])) for count in range(len(said(history)) + 1)}
    kept = data.draw(st.sampled_from(sorted(set(range(len(payload))) - ends)))
    assert only_decode_errors([of_type(RecordType.SESSION, offset=900), raw(payload[:kept])])


@settings(max_examples=500, deadline=None)
@given(
    st.lists(st.binary(min_size=1, max_size=60), max_size=5),
    st.sampled_from(b"IUDBCRT"),
)
def test_noise_is_a_decode_error_and_nothing_else(bodies: list[bytes], kind: int) -> None:
    messages = [begin(1000), *(bytes([kind]) + body for body in bodies)]
    only_decode_errors([raw(pack_frames(messages))])
    only_decode_errors([raw(b"".join(bodies))])


RELATION = Relation(1, "s", "t", "d", (Column("id", 23, -1, True), Column("v", 25, -1, False)))
FULL = altered(
    RELATION, oid=2, identity="f", columns=tuple(column._replace(key=True) for column in RELATION.columns)
)
V = a_field(b"v")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (Insert(RELATION, Row([V, None], 0)), "without all its values"),
        (Delete(RELATION, Row([None, NULL], 0)), "without all its values"),
        (Update(FULL, Row([V, V], 0), Row([V, None], 0)), "without all its values"),
        (Update(RELATION, Row([None, V], 0), None), "of which row"),
        (Update(FULL, Row([V, V], 0), None), "of which row"),
        (Insert(RELATION, Row([V], 0)), "has 1 columns"),
        (Truncate((), False, False), "wrong length"),
    ],
)
def test_a_change_that_can_not_be_made_is_refused(change: Change, says: str) -> None:
    with pytest.raises(DecodeError, match=says):
        list(PostgresDecoder().feed(data(described(RELATION), described(FULL), begin(1000), told(change))))


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([begin(1000), begin(1000)], "inside another"),
        ([commit(1000, 1010)], "outside a transaction"),
        ([begin(1000), commit(1001, 1010)], "does not belong"),
        ([begin(1000), commit(1000, 1000)], "ends before its commit"),
        ([begin(1000), commit(1000, 1010), begin(1009)], "before the end of the one before it"),
        ([begin(949)], "before the end of the one before it"),
        ([described(RELATION), told(Insert(RELATION, Row([V, V], 0)))], "outside a transaction"),
        ([begin(1000), told(Insert(RELATION, Row([V, V], 0)))], "before its description"),
        ([b"R" + described(RELATION)[1:].replace(b"td", b"tz")], None),
        ([described(altered(RELATION, identity="d")).replace(b"t\0d", b"t\0\xe9")], "replica identity"),
    ],
)
def test_a_conversation_out_of_order_is_refused(messages: list[bytes], says: str | None) -> None:
    decoder = PostgresDecoder()
    list(decoder.feed(of_type(RecordType.SESSION, offset=950)))
    if says is None:
        list(decoder.feed(data(*messages)))
        return
    with pytest.raises(DecodeError, match=says):
        list(decoder.feed(data(*messages)))


def test_a_description_is_read_whole() -> None:
    assert parse_relation(described(RELATION)) == RELATION
    assert parse_relation(described(altered(RELATION, schema=""))).schema == "pg_catalog"
    assert RELATION.keys == (0,)
    assert FULL.keys == ()
    assert altered(RELATION, identity="n").keys == ()


def test_frames_are_what_was_packed() -> None:
    assert list(frames(pack_frames([b"a", b"bc"]))) == [b"a", b"bc"]
    assert list(frames(b"")) == []
    for bad in (b"\0\0\0\0", b"\1\0\0", b"\2\0\0\0a", b"\xff\xff\xff\xffa"):
        with pytest.raises(DecodeError):
            list(frames(bad))


# --- drafts -----------------------------------------------------------------------------------


def test_a_draft_resumes_after_the_last_commit_in_it() -> None:
    history = [Transaction(1000, 1010, 3, []), Transaction(1020, 1030, 4, [])]
    maker = DraftMaker(resume=900, begins=900, any_commit=True)
    offsets = []
    for message in said(history):
        maker.take(message)
        offsets += [(draft.offset, draft.commits) for draft in maker.ready()]
    assert offsets == [(900, ()), (1010, (unix_ns(3),)), (1010, ()), (1030, (unix_ns(4),))]


def test_what_the_journal_holds_is_passed_over_and_proves_the_source() -> None:
    change = Insert(RELATION, Row([V, V], 0))
    history = [Transaction(1000 * i, 1000 * i + 10, 0, [change]) for i in (1, 2, 3)]
    maker = DraftMaker(resume=2010, begins=900, any_commit=False)
    proven = []
    for message in said(history):
        maker.take(message)
        proven.append(maker.proven)
    assert proven == [False] * 6 + [True] * 4
    given = records([session(2010), *maker.ready()])
    assert given[1].flags is Flag.KEYFRAME
    assert decoded(given) == expected(history[2:])


@pytest.mark.parametrize(
    "other", [[(1000, 1010), (2020, 2030)], [(1000, 1010), (2000, 2020)], [(2020, 2030)]]
)
def test_a_source_without_the_commit_at_the_journals_end_is_another(other: list[tuple[int, int]]) -> None:
    maker = DraftMaker(resume=2010, begins=900, any_commit=False)
    with pytest.raises(ContinuityLost):
        for message in said([Transaction(final, end, 0, []) for final, end in other]):
            maker.take(message)
    assert maker.ready() == []


def test_heartbeats_are_noted() -> None:
    maker = DraftMaker(resume=900, begins=900, any_commit=True)
    for message in (logical("other", b"1"), logical("castling.heartbeat", b"x"), b"M"):
        maker.take(message)
    assert maker.heartbeat_ns is None
    maker.take(logical("castling.heartbeat", b"1700000000000000000"))
    assert maker.heartbeat_ns == 1_700_000_000_000_000_000


# --- after a rest -----------------------------------------------------------------------------


def rested(messages: list[bytes], *, begins: int) -> DraftMaker:
    """The journal's last transaction ends at 600, and a session rests at 1000 behind it."""
    maker = DraftMaker(resume=1000, begins=begins, any_commit=False, last_commit=600)
    for message in messages:
        maker.take(message)
    return maker


def test_a_source_that_rested_goes_on() -> None:
    after = [begin(1100), commit(1100, 1110)]
    assert rested(after, begins=1000).proven
    assert rested(after, begins=700).proven
    before = [begin(590), commit(590, 600)]
    assert not rested([], begins=500).proven
    maker = rested(before + after, begins=500)
    assert maker.proven and maker.resume == maker.last_commit == 1110


@pytest.mark.parametrize("begins", [500, 650])
def test_a_source_that_was_restored_to_before_a_rest_is_noticed(begins: int) -> None:
    with pytest.raises(ContinuityLost):
        rested([begin(700), commit(700, 730)], begins=begins)


def test_a_restored_source_that_has_nothing_of_ours_is_noticed() -> None:
    with pytest.raises(ContinuityLost):
        rested([begin(1100), commit(1100, 1110)], begins=500)


def test_very_many_descriptions_make_several_records_of_a_keyframe() -> None:
    maker = DraftMaker(resume=0, begins=0, any_commit=True)
    maker.take(begin(100))
    for oid in range(6000):
        maker.take(b"R" + i32(oid) + bytes(3000))
    maker.take(commit(100, 110))
    maker.ready()
    maker.take(begin(200))
    maker.take(commit(200, 210))
    drafts = maker.ready()
    assert [draft.flags for draft in drafts] == [Flag.KEYFRAME, *[Flag.NONE] * (len(drafts) - 1)]
    assert max(len(draft.payload) for draft in drafts) < 2 << 20
    assert sum(1 for draft in drafts for _ in frames(draft.payload)) == 6002
