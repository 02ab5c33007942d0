"""Compares one table at both ends of a view, and narrows what differs down to rows.

Both ends are read at once, each block after block. The first reading brings one sum (see `audit_sql`); when
it is equal, so is the table. Otherwise a second one brings sums by bucket, and the buckets that differ are
read row by row, as many at a time as fit into memory. Rows with a key are told apart by it; without one by
their hash and how often it is there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from castling.kinds.base import AuditGuard, Compared, Discrepancy
from castling.kinds.postgres.audit_sql import Blocks, Hashed, Side, buckets_for
from castling.kinds.postgres.audit_view import Reader

__all__ = ["End", "compare_rows", "differing"]

#: rows of differing buckets that are looked at, and held in memory, at once
ROWS_AT_ONCE = 200_000
#: readings of the whole table to narrow down; what is left then is counted as "more"
READINGS = 4
#: rows that are listed with their values; more of them are counted
LISTED = 500
#: blocks read with one statement, at most and at least, and what one should take, seconds
_BLOCKS = (64, 65536)
_STATEMENT_S = 0.5
#: blocks of the first one; a smaller table is read at once
_FIRST_BLOCKS = 8192

#: how many fields an answer of sums has
_SUM_FIELDS = 3

Place = tuple[int, str]
_Read = TypeVar("_Read")
Sums = dict[int, tuple[int, int]]


@dataclass(slots=True)
class End:
    """One end of a view. `blocks`: how many the table has; `oids`: it, or its partitions."""

    reader: Reader
    side: Side
    blocks: int
    oids: list[int]
    is_source: bool
    block_bytes: int = 8192
    #: the other end has failed
    is_over: bool = False


#: by key (without a key: by hash) the rows that have it: hash and place of each
_Rows = dict[str, list[tuple[int, Place]]]


def differing(here: Sums, there: Sums) -> list[int]:
    """The buckets in which the two ends have not the same rows."""
    return sorted(bucket for bucket in here.keys() | there.keys() if here.get(bucket) != there.get(bucket))


async def compare_rows(part: str, source: End, target: End, likely_rows: int, guard: AuditGuard) -> Compared:
    here, there = await _both(source, target, lambda end: _sums(end, 1, guard))
    found = Compared(
        "rows",
        part,
        rows_source=sum(count for count, _ in here.values()),
        rows_target=sum(count for count, _ in there.values()),
        bytes=(source.blocks * source.block_bytes) + (target.blocks * target.block_bytes),
    )
    if not differing(here, there):
        return found
    buckets = buckets_for(likely_rows)
    here, there = await _both(source, target, lambda end: _sums(end, buckets, guard))
    different = differing(here, there)
    for reading, chosen in enumerate(_in_memory(different, here, there)):
        if reading == READINGS:
            break
        read = partial(_rows, buckets=buckets, chosen=chosen, guard=guard)
        mine, other = await _both(source, target, read)
        await _list(found, source, target, mine, other)
        different = [bucket for bucket in different if bucket not in set(chosen)]
    # of what was not looked at row by row, at least one row a bucket differs
    found.more += len(different)
    if found.more:
        found.found.append(
            Discrepancy(
                rule="rows",
                part=part,
                what="more",
                message=f"{part}: {found.more} more rows differ, or more than that",
                mend="copy",
            )
        )
    return found


async def _both(source: End, target: End, read: Callable[[End], Awaitable[_Read]]) -> tuple[_Read, _Read]:
    """Both ends work at once. When one fails the other ends its statement, and no more: a session that is
    interrupted within one could not be used for the next table."""
    tasks = [asyncio.ensure_future(read(end)) for end in (source, target)]
    try:
        _, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        if pending:
            source.is_over = target.is_over = True
            await asyncio.wait(pending)
    except asyncio.CancelledError:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
    errors = [error for error in (task.exception() for task in tasks) if error is not None]
    for error in errors:
        if not isinstance(error, _Over):
            raise error
    return tasks[0].result(), tasks[1].result()


class _Over(Exception):
    """The other end has failed, and this one need not go on."""


def _in_memory(different: list[int], here: Sums, there: Sums) -> Iterator[list[int]]:
    """The buckets in lots that are not too many rows."""
    lot: list[int] = []
    rows = 0
    for bucket in different:
        size = here.get(bucket, (0, 0))[0] + there.get(bucket, (0, 0))[0]
        if lot and rows + size > ROWS_AT_ONCE:
            yield lot
            lot, rows = [], 0
        lot.append(bucket)
        rows += size
    if lot:
        yield lot


# --- reading ----------------------------------------------------------------------------------


async def _each(end: End, statement: Callable[[Blocks], str], guard: AuditGuard) -> AsyncIterator[list[Any]]:
    """Answers block range by block range; the ranges follow how long a statement takes."""
    first, step = 0, _FIRST_BLOCKS
    while True:
        if end.is_over:
            raise _Over
        last = first + step if first + step < end.blocks else None
        begun_s = time.monotonic()
        answers = await end.reader.ask(statement((first, last)), end.oids)
        took_s = time.monotonic() - begun_s
        yield answers
        if end.is_source:
            blocks = (end.blocks if last is None else last) - first
            rows = sum(row[1] for row in answers if len(row) == _SUM_FIELDS)
            await guard.spent(seconds=took_s, size=max(0, blocks) * end.block_bytes, rows=rows)
        if last is None:
            return
        first = last
        step = int(min(max(step * _STATEMENT_S / max(took_s, 0.01), _BLOCKS[0]), step * 4, _BLOCKS[1]))


async def _sums(end: End, buckets: int, guard: AuditGuard) -> Sums:
    found: Sums = {}
    async for answers in _each(end, lambda blocks: end.side.sums(blocks, buckets), guard):
        for bucket, count, total in answers:
            before = found.get(bucket, (0, 0))
            found[bucket] = (before[0] + count, before[1] + int(total))
    return found


async def _rows(end: End, buckets: int, chosen: list[int], guard: AuditGuard) -> _Rows:
    found: _Rows = {}
    async for answers in _each(end, lambda blocks: end.side.rows(blocks, buckets, chosen), guard):
        for key, hash_, table, place in answers:
            found.setdefault(key, []).append((hash_, (table, place)))
    return found


# --- telling ----------------------------------------------------------------------------------


async def _list(found: Compared, source: End, target: End, here: _Rows, there: _Rows) -> None:
    """Note every row that is not the same on both ends; the first ones with their values."""
    for key in sorted(here.keys() | there.keys()):
        mine, other = _unmatched(here.get(key, []), there.get(key, []))
        if not source.side.key:
            one = mine or other
            if one:
                times = len(one)
                await _add(
                    found, source, target, mine[0] if mine else None, other[0] if other else None, times
                )
            continue
        for at in range(max(len(mine), len(other))):
            pair = (mine[at] if at < len(mine) else None, other[at] if at < len(other) else None)
            await _add(found, source, target, *pair, 1)


def _unmatched(
    here: list[tuple[int, Place]], there: list[tuple[int, Place]]
) -> tuple[list[tuple[int, Place]], list[tuple[int, Place]]]:
    """What is left of both when equal rows are taken away in pairs."""
    left = list(there)
    mine = []
    for row in here:
        same = next((other for other in left if other[0] == row[0]), None)
        if same is None:
            mine.append(row)
        else:
            left.remove(same)
    return mine, left


async def _add(
    found: Compared,
    source: End,
    target: End,
    mine: tuple[int, Place] | None,
    other: tuple[int, Place] | None,
    times: int,
) -> None:
    if len(found.found) >= LISTED:
        found.more += 1
        return
    here = None if mine is None else await _shown(source, mine[1])
    there = None if other is None else await _shown(target, other[1])
    what = "extra" if here is None else "missing" if there is None else "different"
    key = None
    if mine is not None and source.side.key:
        key = await _key(source, mine[1])
    elif other is not None and target.side.key:
        key = await _key(target, other[1])
    columns = []
    if here is not None and there is not None:
        columns = [name for name in here if here[name] != there[name]]
    found.found.append(
        Discrepancy(
            rule="rows",
            part=found.part,
            what=what,
            message=_message(found.part, what, key, columns, times),
            key=key,
            source=here,
            target=there,
            columns=columns,
            times=times,
            mend="row",
            token={"source": mine and mine[0], "target": other and other[0]},
        )
    )


def _message(part: str, what: str, key: dict[str, str | None] | None, columns: list[str], times: int) -> str:
    which = "a row" if key is None else ", ".join(f"{name} = {value}" for name, value in key.items())
    often = f", {times} times" if times > 1 else ""
    if what == "missing":
        return f"{part}: {which} is not on the target{often}"
    if what == "extra":
        return f"{part}: {which} is on the target and not on the source{often}"
    return f"{part}: {which} differs in {', '.join(columns) or 'its text'}"


async def _shown(end: End, place: Place) -> dict[str, str | None]:
    return dict(zip(_names(end.side.columns), await _one(end, end.side.shown(*place)), strict=True))


async def _key(end: End, place: Place) -> dict[str, str | None]:
    return dict(zip(_names(end.side.key), await _one(end, end.side.keys(*place)), strict=True))


def _names(columns: Sequence[Hashed]) -> list[str]:
    return [column.name for column in columns]


async def _one(end: End, statement: str) -> tuple[Any, ...]:
    rows = await end.reader.ask(statement, end.oids)
    assert len(rows) == 1, "a snapshot lost a row"
    return rows[0]
