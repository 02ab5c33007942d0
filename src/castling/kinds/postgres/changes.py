"""Net changes: what a run of source changes comes to, table by table. Pure.

A run of transactions that is applied as one needs only its outcome: of ten updates of a
row the last image, of an insert and its delete nothing. What comes out is a list of steps
for the target, so ordered that every table sees its own changes in a legal order. Tables
need no order among each other, because the target checks neither foreign keys nor
triggers while it applies.

Three things can't be said as a set and become row steps in their place: changes of a table
without a key, a key change that leaves a TOASTed value behind (where rows are filtered, an insert that came
of one), and anything that would be impossible in a faithful history. TRUNCATE is a step of its own for all
its tables; what came before it of theirs is left out. A message is a barrier for all tables.

Keys are compared by the bytes that were sent. That is exact: the server sends the old
key whenever the bytes of a key change. Between two sessions the same key may come once as text and
once binary; a step holds only keys of one form.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import final

from castling.kinds.postgres.messages import Relation, Row

__all__ = [
    "Change",
    "Delete",
    "Insert",
    "Message",
    "MessageStep",
    "NetStep",
    "Oversized",
    "OversizedStep",
    "RowStep",
    "Step",
    "Truncate",
    "TruncateStep",
    "Update",
    "coalesce",
]


@final
class Insert:
    __slots__ = ("new", "relation")

    def __init__(self, relation: Relation, new: Row) -> None:
        self.relation = relation
        self.new = new

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Insert) and self.relation == other.relation and self.new == other.new

    def __hash__(self) -> int:
        return hash((self.relation, self.new))

    def __repr__(self) -> str:
        return f"Insert({self.relation}, {self.new!r})"


@final
class Update:
    """`old`: the old key (or the whole old row under REPLICA IDENTITY FULL) if the server sent it."""

    __slots__ = ("new", "old", "relation")

    def __init__(self, relation: Relation, new: Row, old: Row | None) -> None:
        self.relation = relation
        self.new = new
        self.old = old

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Update)
            and self.relation == other.relation
            and self.new == other.new
            and self.old == other.old
        )

    def __hash__(self) -> int:
        return hash((self.relation, self.new, self.old))

    def __repr__(self) -> str:
        return f"Update({self.relation}, {self.new!r}, {self.old!r})"


@final
class Delete:
    __slots__ = ("old", "relation")

    def __init__(self, relation: Relation, old: Row) -> None:
        self.relation = relation
        self.old = old

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Delete) and self.relation == other.relation and self.old == other.old

    def __hash__(self) -> int:
        return hash((self.relation, self.old))

    def __repr__(self) -> str:
        return f"Delete({self.relation}, {self.old!r})"


@dataclass(frozen=True, slots=True)
class Truncate:
    relations: tuple[Relation, ...]
    cascade: bool
    restart_identity: bool


@dataclass(frozen=True, slots=True)
class Message:
    """Something beside rows that a transaction carries, as a logical message of the prefix `castling:…`.

    Every stream of the source's database sees it: `content` says whom it is for, where that matters.
    """

    prefix: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Oversized:
    """A change whose row takes more memory than is allowed: it was not kept. `head`: how its message begins,
    enough to tell most keys. It can't be made; its table is put on hold."""

    relation: Relation
    size: int
    head: bytes


Change = Insert | Update | Delete | Truncate | Message | Oversized


@dataclass(slots=True)
class NetStep:
    """What a keyed table comes to: apply deletes, then updates, then inserts.

    `deletes`: key fields. `updates`: rows by which columns were sent; a row's unsent fields
    are None. Rows of `inserts` are whole. `changes`: what this is the outcome of, in order.
    """

    relation: Relation
    changes: list[Insert | Update | Delete] = field(default_factory=list)
    deletes: list[Row] = field(default_factory=list)
    updates: list[Row] = field(default_factory=list)
    inserts: list[Row] = field(default_factory=list)


@dataclass(slots=True)
class RowStep:
    """Changes of one table to make one by one, in order."""

    relation: Relation
    changes: list[Insert | Update | Delete] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class TruncateStep:
    truncate: Truncate


@dataclass(frozen=True, slots=True)
class MessageStep:
    """A barrier: what came before it is written first, what comes after it may depend on it."""

    message: Message


@dataclass(frozen=True, slots=True)
class OversizedStep:
    oversized: Oversized


Step = NetStep | RowStep | TruncateStep | MessageStep | OversizedStep


def coalesce(changes: Iterable[Change]) -> list[Step]:
    """The steps that take a target from before `changes` to after them."""
    tables: dict[int, _Table] = {}
    steps: list[Step] = []
    last: _Table | None = None  # mostly the table of the change before
    for change in changes:
        if isinstance(change, Truncate):
            for gone in change.relations:
                tables.pop(gone.oid, None)  # what came before is gone with the rows
            last = None
            steps.append(TruncateStep(change))
        elif isinstance(change, Message):
            for table in tables.values():
                steps.extend(table.steps())
            tables.clear()
            last = None
            steps.append(MessageStep(change))
        elif isinstance(change, Oversized):
            steps.append(OversizedStep(change))  # nothing of this run will be kept: its place does not matter
        else:
            relation = change.relation
            if last is None or last.relation is not relation:
                found = tables.get(relation.oid)
                if found is None or found.relation != relation:
                    if found is not None:  # the table has another shape from here on
                        steps.extend(found.steps())
                    found = _Table(relation)
                    tables[relation.oid] = found
                last = found
            last.add(change)
    for table in tables.values():
        steps.extend(table.steps())
    return steps


def _key_of(row: Row, keys: tuple[int, ...]) -> bytes:
    if len(keys) == 1:
        return row.field(keys[0]) or b""
    return b"".join([row.field(index) or b"" for index in keys])


def _told_by(change: Insert | Update | Delete) -> Row:
    """The row that holds the whole key by which the source told the change."""
    if isinstance(change, Insert):
        return change.new
    return change.old or change.new if isinstance(change, Update) else change.old


def _merged(new: Row, before: Row | None) -> Row:
    """`new` with the fields that were not sent taken from the image before it."""
    if before is None or new.whole:
        return new
    fields = list(new.fields)
    text = new.text
    for index, value in enumerate(fields):
        if value is None:
            fields[index] = before.fields[index]
            text |= before.text & (1 << index)
    return Row(fields, text)


@final
class _Table:
    """Collects one table's changes: the open net step, and the steps closed before it."""

    def __init__(self, relation: Relation) -> None:
        self.relation = relation
        self._keys = relation.keys
        self._key_mask = relation.key_mask
        #: which key columns come as text in the open net step
        self._form = 0
        self._done: list[Step] = []
        self._deletes: dict[bytes, Row] = {}
        self._updates: dict[bytes, Row] = {}
        self._inserts: dict[bytes, Row] = {}
        self._keyless: list[Row] = []
        self._changes: list[Insert | Update | Delete] = []
        self._row_changes = 0

    def steps(self) -> list[Step]:
        self._close()
        return self._done

    def _close(self) -> None:
        if self._deletes or self._updates or self._inserts or self._keyless:
            self._done.append(
                NetStep(
                    self.relation,
                    self._changes,
                    list(self._deletes.values()),
                    list(self._updates.values()),
                    [*self._inserts.values(), *self._keyless],
                )
            )
            self._deletes, self._updates, self._inserts, self._keyless = {}, {}, {}, []
        self._changes = []

    def _row_by_row(self, change: Insert | Update | Delete) -> None:
        self._close()
        self._row_changes += 1
        if self._done and isinstance(last := self._done[-1], RowStep):
            last.changes.append(change)
        else:
            self._done.append(RowStep(self.relation, [change]))

    def add(self, change: Insert | Update | Delete) -> None:
        form = _told_by(change).text & self._key_mask
        if form != self._form:
            self._close()
            self._form = form
        before = self._row_changes
        self._collect(change)
        if self._row_changes == before:
            self._changes.append(change)

    def _collect(self, change: Insert | Update | Delete) -> None:
        if isinstance(change, Insert):
            self._insert(change)
        elif not self._keys:
            self._row_by_row(change)
        elif isinstance(change, Update):
            self._update(change)
        else:
            self._delete(change)

    def _insert(self, change: Insert) -> None:
        if not self._keys:
            self._keyless.append(change.new)
            return
        key = _key_of(change.new, self._keys)
        if key in self._inserts or key in self._updates or not change.new.whole:
            self._row_by_row(change)
        else:
            self._inserts[key] = change.new

    def _update(self, change: Update) -> None:
        change = self._with_key(change)
        key = _key_of(change.new, self._keys)
        if change.old is not None:
            old_key = _key_of(change.old, self._keys)
            if old_key != key:
                self._change_key(change, old_key, key)
                return
        if key in self._inserts:
            self._inserts[key] = _merged(change.new, self._inserts[key])
        elif key in self._deletes:
            self._row_by_row(change)
        else:
            self._updates[key] = _merged(change.new, self._updates.get(key))

    def _with_key(self, change: Update) -> Update:
        """A key long enough to be TOASTed is left out of the new row when it did not change; the server
        then sends the old key."""
        if change.new.whole or all(change.new.fields[index] is not None for index in self._keys):
            return change
        assert change.old is not None, "an update without its key"
        fields, text = list(change.new.fields), change.new.text
        for index in self._keys:
            if fields[index] is None:
                fields[index] = change.old.fields[index]
                text |= change.old.text & (1 << index)
        return Update(change.relation, Row(fields, text), change.old)

    def _change_key(self, change: Update, old_key: bytes, key: bytes) -> None:
        """A key change is a delete of the old row and an insert of the whole new one."""
        assert change.old is not None
        inserted = self._inserts.get(old_key)
        new = _merged(change.new, inserted or self._updates.get(old_key))
        taken = key in self._inserts or key in self._updates
        gone = inserted is None and old_key in self._deletes
        if not new.whole or taken or gone:
            self._row_by_row(change)
            return
        if inserted is not None:
            del self._inserts[old_key]
        else:
            self._updates.pop(old_key, None)
            self._deletes[old_key] = change.old
        self._inserts[key] = new

    def _delete(self, change: Delete) -> None:
        key = _key_of(change.old, self._keys)
        if key in self._inserts:
            del self._inserts[key]
        elif key in self._deletes:
            self._row_by_row(change)
        else:
            self._updates.pop(key, None)
            self._deletes[key] = change.old
