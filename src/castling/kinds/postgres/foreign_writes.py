"""Writes on the target that are not Castling's: what is known of one, and what is said of many. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

__all__ = ["WATCH_REMOVED", "ForeignWrite", "PartWrites", "foreign_warnings", "who"]

#: the operation of a note that says that a trigger was found missing or disabled: nobody knows who and when
WATCH_REMOVED = "WATCH REMOVED"
_ROWS = ("INSERT", "UPDATE", "DELETE")
#: tables that the status names
_NAMED = 5


def who(login: str | None, role: str | None, application: str | None, client: str | None) -> str:
    """For people: the user, as which role, by which program, from where."""
    if login is None:
        return "unknown"
    user = login if role is None or role == login else f"{login} as {role}"
    return f"{user} ({', '.join(filter(None, (application, client or 'local')))})"


def _counts(inserted: int | None, updated: int | None, deleted: int | None) -> str:
    counted = ((inserted, "inserted"), (updated, "updated"), (deleted, "deleted"))
    return ", ".join(f"{rows} {what}" for rows, what in counted if rows)


@dataclass(frozen=True, slots=True)
class ForeignWrite:
    """What one transaction of somebody else did to one table. `operation`: INSERT, UPDATE or DELETE, the
    first of the transaction; or TRUNCATE, the tag of a DDL command, or WATCH_REMOVED, without numbers.
    `inserted`, `updated`, `deleted`: rows; None: not counted. `login` None: nobody knows."""

    number: int
    part: str
    operation: str
    at: datetime
    login: str | None
    role: str | None
    application: str | None
    client: str | None
    pid: int | None
    inserted: int | None
    updated: int | None
    deleted: int | None
    acknowledged_at: datetime | None = None
    acknowledged_by: str | None = None

    @property
    def what(self) -> str:
        if self.operation not in _ROWS:
            return self.operation
        return _counts(self.inserted, self.updated, self.deleted) or f"{self.operation}, rows unknown"

    @property
    def who(self) -> str:
        return who(self.login, self.role, self.application, self.client)

    def as_json(self) -> dict[str, Any]:
        acknowledged = self.acknowledged_at
        return {
            "number": self.number,
            "part": self.part,
            "operation": self.operation,
            "at_ns": _ns(self.at),
            "login": self.login,
            "role": self.role,
            "application": self.application,
            "client": self.client,
            "pid": self.pid,
            "inserted": self.inserted,
            "updated": self.updated,
            "deleted": self.deleted,
            "who": self.who,
            "what": self.what,
            "acknowledged_ns": None if acknowledged is None else _ns(acknowledged),
            "acknowledged_by": self.acknowledged_by,
        }


@dataclass(frozen=True, slots=True)
class PartWrites:
    """All that is not acknowledged of one table. `uncounted`: transactions whose rows are unknown.
    `others`: operations without rows. `last_by`: as `who` says it."""

    part: str
    transactions: int
    inserted: int
    updated: int
    deleted: int
    uncounted: int
    others: tuple[str, ...]
    first: datetime
    last: datetime
    last_by: str

    @property
    def what(self) -> str:
        told = [_counts(self.inserted, self.updated, self.deleted)]
        told += [f"{self.uncounted} times rows unknown" if self.uncounted else ""]
        return ", ".join(filter(None, (*told, *self.others)))

    def as_json(self) -> dict[str, Any]:
        return {
            "part": self.part,
            "transactions": self.transactions,
            "inserted": self.inserted,
            "updated": self.updated,
            "deleted": self.deleted,
            "uncounted": self.uncounted,
            "others": list(self.others),
            "first_ns": _ns(self.first),
            "last_ns": _ns(self.last),
            "last_by": self.last_by,
            "what": self.what,
        }


def foreign_warnings(parts: Sequence[PartWrites], group: str) -> list[dict[str, Any]]:
    """In the form of a report's warnings, the latest first."""
    latest = sorted(parts, key=lambda each: each.last, reverse=True)
    found = [
        {
            "code": "foreign-writes",
            "message": f"{each.part} was changed by others: {each.what};"
            f" last {_when(each.last)} by {each.last_by}",
            "hint": f"`castling group foreign-writes {group}` lists who and when, and ends this alarm by"
            f" --acknowledge; `castling group resync {group} {each.part}` brings the source's rows back",
        }
        for each in latest[:_NAMED]
    ]
    if len(latest) > _NAMED:
        found.append(
            {
                "code": "foreign-writes",
                "message": f"{len(latest) - _NAMED} more tables were changed by others",
                "hint": f"`castling group foreign-writes {group}` lists all",
            }
        )
    return found


def _when(at: datetime) -> str:
    return at.strftime("%Y-%m-%d %H:%M:%SZ")


def _ns(at: datetime) -> int:
    return int(at.timestamp() * 1e6) * 1000
