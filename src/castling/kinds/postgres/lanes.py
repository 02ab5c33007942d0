"""Lanes: which tables are applied beside each other, each in its own order. Pure.

A lane gives up that all tables are seen at one moment of the source, and nothing else. What has to keep an
order among each other goes into one lane: a table's own rows (so its keys and its unique indexes keep
theirs), tables joined by foreign keys, tables of one inheritance or partitioning, and tables whose
triggers fire while changes are applied, because nobody knows what those do.

The assignment is a function of what the target looks like; it is stored with the lanes' progress, so that a
later session, whatever its own number of lanes, knows what each table has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from castling.kinds.postgres.changes import Change, Message, Truncate
from castling.kinds.postgres.messages import Relation

__all__ = ["Table", "are_known", "assign", "split"]

Table = tuple[str, str]


def assign(
    weights: Mapping[Table, int], links: Iterable[tuple[Table, Table]], lanes: int
) -> dict[Table, int]:
    """The lane of each table. `weights`: how much is written to it; `links`: pairs that keep an order.

    The heaviest family of tables is given first, each to the lane that has least so far.
    """
    loads = [0] * lanes
    found: dict[Table, int] = {}
    families = _families(weights, links)
    for family in sorted(families, key=lambda each: (-sum(weights[table] for table in each), each)):
        lane = loads.index(min(loads))
        loads[lane] += max(1, sum(weights[table] for table in family))
        found.update(dict.fromkeys(family, lane))
    return found


def _families(weights: Mapping[Table, int], links: Iterable[tuple[Table, Table]]) -> list[list[Table]]:
    """Tables that are joined, directly or by others; each family and all of its tables in order of name."""
    head = {table: table for table in weights}

    def of(table: Table) -> Table:
        while head[table] != table:
            head[table] = head[head[table]]
            table = head[table]
        return table

    for one, other in links:
        if one in head and other in head:
            head[of(one)] = of(other)
    families: dict[Table, list[Table]] = {}
    for table in sorted(weights):
        families.setdefault(of(table), []).append(table)
    return list(families.values())


def split(changes: Sequence[Change], lane_of: Mapping[Table, int], lanes: int) -> list[list[Change]] | None:
    """Changes by lane, each in the source's order. None when they have to be made by one session: among
    them is what concerns all tables (TRUNCATE, messages), or a table that nobody has given a lane."""
    parts: list[list[Change]] = [[] for _ in range(lanes)]
    last: Relation | None = None
    part: list[Change] = []
    for change in changes:
        if isinstance(change, Truncate | Message):
            return None
        relation = change.relation
        if relation is not last:
            lane = lane_of.get((relation.schema, relation.name))
            if lane is None:
                return None
            part, last = parts[lane], relation
        part.append(change)
    return parts


def are_known(changes: Iterable[Change], lane_of: Mapping[Table, int]) -> bool:
    """Whether every table that changes has a lane."""
    return all(
        isinstance(change, Truncate | Message) or (change.relation.schema, change.relation.name) in lane_of
        for change in changes
    )
