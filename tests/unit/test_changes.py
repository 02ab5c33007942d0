"""Net changes against a model that applies the same history row by row.

A small source makes a history as a server would tell it: unsent TOAST values, old keys where a
key changed, values as text or binary by session, tables described anew, TRUNCATE. The steps that
`coalesce` makes of it are applied to a copy as the writer does. Both must come to the same rows,
and the set form must touch exactly the rows it expects.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import find as find_example
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample
from tests.unit.as_source import as_source

from castling.kinds.postgres import changes as installed
from castling.kinds.postgres.messages import NULL, Column, Relation, Row
from castling.kinds.postgres.statements import shape_of

changes_module = as_source("castling.kinds.postgres.changes")
Change, Delete, Insert, Update = (
    changes_module.Change,
    changes_module.Delete,
    changes_module.Insert,
    changes_module.Update,
)
NetStep, RowStep, Step = changes_module.NetStep, changes_module.RowStep, changes_module.Step
Truncate, TruncateStep, coalesce = (
    changes_module.Truncate,
    changes_module.TruncateStep,
    changes_module.coalesce,
)

#: a row as the source means it; k1 and k2 are the key, `u` is unique, `big` and k2 may be TOASTed
Values = tuple[int | None, ...]
K1, K2, A, U, BIG = range(5)
KEYS = (K1, K2)

Coalesce = Callable[[Iterable[Change]], list[Step]]


def relation(oid: int, identity: str) -> Relation:
    columns = tuple(
        Column(name, 23, -1, identity == "f" or name in ("k1", "k2"))
        for name in ("k1", "k2", "a", "u", "big")
    )
    return Relation(oid, "public", f"t{oid}", identity, columns)


TABLES = (relation(1, "d"), relation(2, "i"), relation(3, "f"))


# --- fields -----------------------------------------------------------------------------------


def sent(value: int | None, *, as_text: bool) -> bytes:
    if value is None:
        return NULL
    body = str(value).encode() if as_text else value.to_bytes(4, "big", signed=True)
    return len(body).to_bytes(4, "big") + body


def meant(row: Row, index: int) -> int | None:
    found = row.fields[index]
    assert found is not None
    if found == NULL:
        return None
    assert len(found) == 4 + int.from_bytes(found[:4], "big")
    return int(found[4:]) if row.text >> index & 1 else int.from_bytes(found[4:], "big", signed=True)


def as_row(values: Values, *, as_text: bool, unsent: Sequence[int] = ()) -> Row:
    fields = [None if i in unsent else sent(value, as_text=as_text) for i, value in enumerate(values)]
    shown = [i for i, value in enumerate(values) if as_text and value is not None and i not in unsent]
    return Row(fields, sum(1 << i for i in shown))


def old_key(values: Values, *, as_text: bool) -> Row:
    """An old key as the server sends it: the other columns are NULL."""
    return as_row(
        tuple(value if i in KEYS else None for i, value in enumerate(values)),
        as_text=as_text,
    )


# --- the source -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Op:
    """One thing to try on the source; what is impossible there is passed over."""

    kind: str
    table: int
    row: int
    key: tuple[int, int]
    a: int | None
    u: int | None
    big: int | None
    flag: bool


@dataclass
class Source:
    with_unique: bool
    rows: list[list[Values]] = field(default_factory=lambda: [[] for _ in TABLES])
    relations: list[Relation] = field(default_factory=lambda: list(TABLES))
    as_text: bool = False
    told: list[Change] = field(default_factory=list)

    def do(self, op: Op) -> None:
        if op.kind == "session":
            self.as_text = not self.as_text
        elif op.kind == "describe":
            self._describe(op)
        elif op.kind == "truncate":
            self._truncate(op)
        elif op.kind == "insert":
            self._insert(op)
        elif self.rows[op.table]:
            at = op.row % len(self.rows[op.table])
            if op.kind == "delete":
                self._delete(op, at)
            else:
                self._update(op, at)

    def _describe(self, op: Op) -> None:
        """The table comes with another type modifier from here on."""
        old = self.relations[op.table]
        columns = (*old.columns[:-1], old.columns[-1]._replace(type_modifier=op.key[0]))
        self.relations[op.table] = Relation(old.oid, old.schema, old.name, old.identity, columns)

    def _truncate(self, op: Op) -> None:
        chosen = [op.table] if op.flag else [op.table, (op.table + 1) % len(TABLES)]
        for table in chosen:
            self.rows[table] = []
        self.told.append(Truncate(tuple(self.relations[table] for table in chosen), False, False))

    def _values(self, op: Op) -> Values:
        return (*op.key, op.a, op.u if self.with_unique else None, op.big)

    def _fits(self, table: int, values: Values, but: int | None = None) -> bool:
        if not self.relations[table].keys:
            return True
        others = [row for at, row in enumerate(self.rows[table]) if at != but]
        if any(row[:2] == values[:2] for row in others):
            return False
        return values[U] is None or all(row[U] != values[U] for row in others)

    def _insert(self, op: Op) -> None:
        values = self._values(op)
        if self._fits(op.table, values):
            self.rows[op.table].append(values)
            self.told.append(Insert(self.relations[op.table], as_row(values, as_text=self.as_text)))

    def _delete(self, op: Op, at: int) -> None:
        described = self.relations[op.table]
        values = self.rows[op.table].pop(at)
        whole = not described.keys
        old = (as_row if whole else old_key)(values, as_text=self.as_text)
        self.told.append(Delete(described, old))

    def _update(self, op: Op, at: int) -> None:
        described = self.relations[op.table]
        before, after = self.rows[op.table][at], list(self._values(op))
        if op.kind == "update":
            after[K1], after[K2] = before[K1], before[K2]
        if op.flag:
            after[BIG] = before[BIG]
        new = tuple(after)
        if not self._fits(op.table, new, but=at):
            return
        self.rows[op.table][at] = new
        unsent = [BIG] if op.flag and before[BIG] is not None else []
        if not described.keys:
            old: Row | None = as_row(before, as_text=self.as_text)
        elif new[:2] != before[:2]:
            old = old_key(before, as_text=self.as_text)
            unsent += [K2] if op.row % 2 and new[K2] == before[K2] else []
        elif op.row % 3 == 0:  # a long key: left out of the new row, and the old one is sent
            old = old_key(before, as_text=self.as_text)
            unsent.append(K2)
        else:
            old = None
        self.told.append(Update(described, as_row(new, as_text=self.as_text, unsent=unsent), old))


# --- the copy ---------------------------------------------------------------------------------


class NotExact(Exception):
    """The set form did not touch the rows it expected."""


class Collides(Exception):
    """A unique value is there already."""


class Copy:
    """Applies steps as the writer does: a set form, and row by row where a unique value objects."""

    def __init__(self, rows: list[list[Values]]) -> None:
        self.rows = {table.oid: copy.copy(found) for table, found in zip(TABLES, rows, strict=True)}
        self.replays = 0

    def apply(self, steps: list[Step]) -> None:
        for step in steps:
            if isinstance(step, TruncateStep):
                for emptied in step.truncate.relations:
                    self.rows[emptied.oid] = []
            elif isinstance(step, RowStep):
                self.one_by_one(step.changes)
            else:
                before = copy.copy(self.rows[step.relation.oid])
                try:
                    self._set(step)
                except Collides:
                    self.replays += 1
                    self.rows[step.relation.oid] = before
                    self.one_by_one(step.changes)

    def one_by_one(self, changes: Iterable[Insert | Update | Delete]) -> None:
        for change in changes:
            if isinstance(change, Insert):
                self._put(change.relation, change.new)
            elif isinstance(change, Delete):
                self.rows[change.relation.oid].remove(self._one(change.relation, change.old))
            else:
                self._change(change.relation, change.new, change.old or change.new)

    def _set(self, step: NetStep) -> None:
        described = step.relation
        for row in step.deletes:
            self.rows[described.oid].remove(self._one(described, row))
        for row in self._by_shape(described, step.updates):
            self._change(described, row, row)
        for row in self._by_shape(described, step.inserts):
            assert None not in row.fields, "an insert must be whole"
            self._put(described, row)

    @staticmethod
    def _by_shape(described: Relation, rows: list[Row]) -> list[Row]:
        """The writer takes the rows of one shape together."""
        shapes = list(dict.fromkeys(shape_of(described, row.fields, row.text) for row in rows))
        return sorted(rows, key=lambda row: shapes.index(shape_of(described, row.fields, row.text)))

    def _one(self, described: Relation, row: Row) -> Values:
        told_by = described.keys or range(len(described.columns))
        wanted = tuple(meant(row, index) for index in told_by)
        found = [one for one in self.rows[described.oid] if tuple(one[i] for i in told_by) == wanted]
        if not found or (described.keys and len(found) > 1):
            raise NotExact(f"{len(found)} rows for {wanted}")
        return found[0]

    def _change(self, described: Relation, new: Row, old: Row) -> None:
        before = self._one(described, old)
        rows = self.rows[described.oid]
        rows.remove(before)
        rows.append(self._free(described, self._over(new, before)))

    def _put(self, described: Relation, row: Row) -> None:
        values = tuple(meant(row, index) for index in range(len(row.fields)))
        self.rows[described.oid].append(self._free(described, values))

    @staticmethod
    def _over(row: Row, before: Values) -> Values:
        return tuple(
            before[index] if value is None else meant(row, index) for index, value in enumerate(row.fields)
        )

    def _free(self, described: Relation, values: Values) -> Values:
        for row in self.rows[described.oid] if described.keys else ():
            if row[:2] == values[:2]:
                raise NotExact(f"a second row {values}")
            if values[U] is not None and row[U] == values[U]:
                raise Collides
        return values


# --- histories --------------------------------------------------------------------------------

_SMALL = st.integers(0, 3)
_MAYBE = st.none() | _SMALL
_OPS = st.builds(
    Op,
    kind=st.sampled_from(
        ["insert"] * 6 + ["update"] * 6 + ["move"] * 5 + ["delete"] * 4 + ["truncate", "session", "describe"]
    ),
    table=st.sampled_from([0, 0, 0, 1, 2]),
    row=st.integers(0, 11),
    key=st.tuples(_SMALL, st.integers(0, 1)),
    a=_MAYBE,
    u=_MAYBE,
    big=_MAYBE,
    flag=st.booleans(),
)


@st.composite
def histories(draw: st.DrawFn) -> tuple[bool, list[Op], list[Op]]:
    """Whether `u` is unique; what came before the run; the run."""
    with_unique = draw(st.booleans())
    return with_unique, draw(st.lists(_OPS, max_size=8)), draw(st.lists(_OPS, min_size=1, max_size=24))


def difference(history: tuple[bool, list[Op], list[Op]], coalesced: Coalesce) -> str:
    """What the steps of `coalesced` get wrong; empty when nothing."""
    with_unique, before, run = history
    source = Source(with_unique)
    for op in before:
        source.do(op)
    target = Copy(source.rows)
    source.told = []
    for op in run:
        source.do(op)
    try:
        steps = coalesced(source.told)
        target.apply(steps)
    except (NotExact, Collides, AssertionError) as error:
        return f"{type(error).__name__}: {error}"
    if target.replays and not with_unique:
        return "replayed where nothing was unique"
    for table, rows in zip(TABLES, source.rows, strict=True):
        if Counter(target.rows[table.oid]) != Counter(rows):
            return f"{table}: {sorted(map(str, target.rows[table.oid]))}, not {sorted(map(str, rows))}"
    return ""


@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(histories())
def test_the_steps_come_to_what_the_history_came_to(history: tuple[bool, list[Op], list[Op]]) -> None:
    assert difference(history, coalesce) == ""


def _as_installed(change: Change) -> object:
    if isinstance(change, Insert):
        return installed.Insert(change.relation, change.new)
    if isinstance(change, Delete):
        return installed.Delete(change.relation, change.old)
    if isinstance(change, Update):
        return installed.Update(change.relation, change.new, change.old)
    return installed.Truncate(change.relations, change.cascade, change.restart_identity)


def _installed(told: Iterable[Change]) -> list[Step]:
    """The installed, perhaps compiled, form at work: its steps said by the source's classes."""
    found = []
    for step in installed.coalesce([_as_installed(change) for change in told]):
        if isinstance(step, installed.TruncateStep):
            gone = step.truncate
            found.append(TruncateStep(Truncate(gone.relations, gone.cascade, gone.restart_identity)))
            continue
        changes = [_as_source(change) for change in step.changes]
        if isinstance(step, installed.RowStep):
            found.append(RowStep(step.relation, changes))
        else:
            found.append(NetStep(step.relation, changes, step.deletes, step.updates, step.inserts))
    return found


def _as_source(change: object) -> Change:
    if isinstance(change, installed.Insert):
        return Insert(change.relation, change.new)
    if isinstance(change, installed.Delete):
        return Delete(change.relation, change.old)
    assert isinstance(change, installed.Update)
    return Update(change.relation, change.new, change.old)


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(histories())
def test_what_is_installed_does_the_same(history: tuple[bool, list[Op], list[Op]]) -> None:
    assert difference(history, _installed) == ""


@settings(max_examples=300, deadline=None)
@given(histories())
def test_a_step_replayed_one_by_one_comes_to_the_same(history: tuple[bool, list[Op], list[Op]]) -> None:
    def one_by_one(told: Iterable[Change]) -> list[Step]:
        return [
            RowStep(step.relation, step.changes) if isinstance(step, NetStep) else step
            for step in coalesce(told)
        ]

    assert difference(history, one_by_one) == ""


def test_one_row_told_as_text_then_binary_then_text_ends_with_the_last() -> None:
    source = Source(with_unique=False, rows=[[(1, 1, 0, None, 0)], [], []])
    target = Copy(source.rows)
    for a in (1, 2, 3):
        source.do(Op("session", 0, 0, (0, 0), None, None, None, False))
        source.do(Op("update", 0, 1, (0, 0), a, None, 0, False))
    steps = coalesce(source.told)
    target.apply(steps)
    assert target.rows[1] == [(1, 1, 3, None, 0)]
    assert len(steps) == 3


def test_ten_updates_of_a_row_are_one() -> None:
    source = Source(with_unique=False)
    source.do(Op("insert", 0, 0, (1, 1), 0, None, 7, False))
    source.told = []
    for a in range(10):
        source.do(Op("update", 0, 1, (0, 0), a, None, None, True))
    (step,) = coalesce(source.told)
    assert isinstance(step, NetStep)
    (row,) = step.updates
    assert meant(row, A) == 9
    assert row.fields[BIG] is None
    assert not step.inserts
    assert not step.deletes
    assert step.changes == source.told


def test_an_insert_and_its_delete_are_nothing() -> None:
    source = Source(with_unique=False)
    source.do(Op("insert", 0, 0, (1, 1), 0, None, 7, False))
    source.do(Op("delete", 0, 0, (1, 1), 0, None, 7, False))
    assert len(source.told) == 2
    assert coalesce(source.told) == []


# --- the check notices mistakes ---------------------------------------------------------------


def _merges_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values that were not sent are lost."""

    def merged(new: Row, before: Row | None) -> Row:
        return Row([NULL if value is None else value for value in new.fields], new.text)

    monkeypatch.setattr(changes_module, "_merged", merged)


def _forgets_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    """A merged value is taken for binary though it came as text."""
    real = changes_module._merged
    monkeypatch.setattr(
        changes_module, "_merged", lambda new, before: Row(real(new, before).fields, new.text)
    )


def _keeps_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that was inserted and deleted within the run is inserted all the same."""

    def deletes(table: changes_module._Table, change: Delete) -> None:
        key = changes_module._key_of(change.old, KEYS)
        table._updates.pop(key, None)
        if key not in table._inserts:
            table._deletes[key] = change.old

    monkeypatch.setattr(changes_module._Table, "_delete", deletes)


def _one_key_column(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are told apart by the first key column alone."""
    monkeypatch.setattr(changes_module, "_key_of", lambda row, keys: row.fields[keys[0]])


def _moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed key is taken for an ordinary update."""

    def change_key(table: changes_module._Table, change: Update, old: bytes, key: bytes) -> None:
        table._updates[key] = change.new

    monkeypatch.setattr(changes_module._Table, "_change_key", change_key)


@pytest.mark.parametrize(
    "plant", [_merges_nothing, _forgets_forms, _keeps_deleted, _one_key_column, _moves_nothing]
)
def test_a_planted_mistake_is_noticed(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    found = find_example(
        histories(),
        lambda history: difference(history, coalesce) != "",
        settings=settings(
            max_examples=3000, deadline=None, derandomize=True, database=None, phases=[Phase.generate]
        ),
    )
    monkeypatch.undo()
    assert difference(found, coalesce) == "", "the history itself must be sound"


def _truncates_late(told: Iterable[Change]) -> list[Step]:
    return sorted(coalesce(told), key=lambda step: isinstance(step, TruncateStep))


def _forgets_rows(told: Iterable[Change]) -> list[Step]:
    return [step for step in coalesce(told) if not isinstance(step, RowStep)]


@pytest.mark.parametrize("broken", [_truncates_late, _forgets_rows])
def test_steps_in_a_wrong_order_are_noticed(broken: Coalesce) -> None:
    try:
        find_example(
            histories(),
            lambda history: difference(history, broken) != "",
            settings=settings(
                max_examples=3000, deadline=None, derandomize=True, database=None, phases=[Phase.generate]
            ),
        )
    except NoSuchExample:
        pytest.fail("nothing was noticed")
