"""What replication of a table costs, by what the server has counted: facts in, words out. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from castling.kinds.base import Finding, Severity
from castling.kinds.postgres.catalog import Table
from castling.kinds.postgres.facts import Activity

__all__ = ["IdentityCost", "identity_cost", "judge_copy", "judge_locks", "judge_rows"]

#: locks that one table takes: read by pg_dump; made with what it has beside it (TOAST, its index)
_READ, _MADE = 1, 3

#: rows that have on average more than this part of the bound may well have some beyond it
_NEAR = 8
#: counters of a shorter time say nothing of a day, seconds
_COUNTED_S = 3600.0


@dataclass(frozen=True, slots=True)
class IdentityCost:
    """What the whole old row in the log costs; None where the server's estimates and counters say nothing."""

    row_bytes: int | None
    log_bytes_a_day: int | None

    @property
    def told(self) -> str:
        if self.row_bytes is None:
            return " (how large that is, ANALYZE would tell)"
        each = f": about {self.row_bytes} bytes for each update and delete"
        if self.log_bytes_a_day is None:
            return f"{each}; how many there are is not known"
        return f"{each}, {_size(self.log_bytes_a_day)} a day at the rate so far"


def identity_cost(table: Table, activity: Activity | None) -> IdentityCost:
    """By the table's size, its estimated rows, and its counters of updates and deletes."""
    row_bytes = table.bytes // table.rows if table.rows else None
    if row_bytes is None or activity is None or activity.seconds < _COUNTED_S:
        return IdentityCost(row_bytes, None)
    return IdentityCost(row_bytes, int(row_bytes * activity.changes / activity.seconds * 86400))


def _size(amount: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def judge_copy(tables: list[Table]) -> Finding:
    """What a first copy of the published tables comes to."""
    rows, bytes_ = sum(table.rows for table in tables), sum(table.bytes for table in tables)
    uncounted = sum(not table.rows and bool(table.bytes) for table in tables)
    told = f"{len(tables)} tables, about {rows} rows, {_size(bytes_)}"
    told += f"; the rows of {uncounted} are not counted yet (ANALYZE counts them)" if uncounted else ""
    return Finding(
        Severity.OK, "group", "first-copy", told, "", {"tables": len(tables), "rows": rows, "bytes": bytes_}
    )


def judge_rows(table: Table, row_max: int) -> list[Finding]:
    """Whether its rows are so large that one may be beyond what apply takes. By its size on disk and the
    server's estimate of its rows: how large the largest one is, is not known without reading them."""
    if not table.rows or table.bytes // table.rows <= row_max // _NEAR:
        return []
    average, most = _size(table.bytes / table.rows), _size(row_max)
    message = (
        f"its rows have {average} on average; a change of one of more than {most} (row_max) puts it on hold"
    )
    hint = "set row_max above its largest row, where the backup may take twice as much memory; or exclude it"
    return [Finding(Severity.WARNING, str(table), "rows-large", message, hint)]


def judge_locks(tables: list[Table], source: dict[str, str], target: dict[str, str]) -> list[Finding]:
    """Definitions are read in one transaction and made in one, each with a lock on every table: whether the
    servers have room for so many. About: what others lock meanwhile is not known. Settings of both."""
    found = []
    for side, settings, each in (("source", source, _READ), ("target", target, _MADE)):
        sessions = int(settings["max_connections"]) + int(settings["max_prepared_transactions"])
        room, needed = int(settings["max_locks_per_transaction"]) * sessions, each * len(tables)
        if needed > room:
            message = (
                f"has room for about {room} locks at once, and {len(tables)} tables may need {needed}: the"
                " first copy would fail as it begins (out of shared memory)"
            )
            hint = f"ALTER SYSTEM SET max_locks_per_transaction = {-(-needed // sessions)}; then restart it"
            found.append(Finding(Severity.WARNING, side, "locks-few", message, hint))
    return found
