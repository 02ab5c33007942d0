"""Who did what, as a chain: every entry holds the hash of the one before.

So an entry that is changed, removed or slipped in is noticed by `verify`, unless whoever did it wrote
everything behind it anew. Against that, keep a head (`ID:HASH`, as verify tells it) somewhere else: a
chain that was written anew no longer has it.

The table is a ring: of what is dropped at its beginning, the last hash stays (`before`), so the rest can be
verified. `head` names the newest entry, so a cut at the end is noticed too.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from pathlib import Path
from typing import Any

import msgspec

__all__ = ["ACCESS_MAX", "append", "chain_existing", "entry_hash", "verify", "verify_file"]

#: entries kept; the oldest go first
ACCESS_MAX = 100_000
#: what the first entry of an installation takes for the hash before it
NOTHING = "0" * 64


def entry_hash(before: str, entry: tuple[int, int, str, str, str, str]) -> str:
    """SHA-256 over the hash before and the entry (id, at_ns, who, action, subject, outcome), hexadecimal."""
    return hashlib.sha256(msgspec.json.encode([before, *entry])).hexdigest()


def append(db: sqlite3.Connection, at_ns: int, who: str, action: str, subject: str, outcome: str) -> None:
    """Add an entry, inside the caller's transaction."""
    newest, before = _end(db, "head")
    identity = newest + 1
    said = entry_hash(before, (identity, at_ns, who, action, subject, outcome))
    db.execute(
        "INSERT INTO access VALUES (?, ?, ?, ?, ?, ?, ?)",
        (identity, at_ns, who, action, subject, outcome, said),
    )
    _set_end(db, "head", identity, said)
    gone = db.execute("SELECT id, hash FROM access WHERE id = ?", (identity - ACCESS_MAX,)).fetchone()
    if gone is not None:
        _set_end(db, "before", gone[0], gone[1])
        db.execute("DELETE FROM access WHERE id <= ?", (gone[0],))


def chain_existing(db: sqlite3.Connection) -> None:
    """A step of migration: the entries of the table `audit` become the beginning of the chain."""
    for row in db.execute("SELECT at_ns, who, action, subject, outcome FROM audit ORDER BY id").fetchall():
        append(db, *row)
    db.execute("DROP TABLE audit")


def verify_file(path: Path, expected: str | None = None) -> dict[str, Any]:
    """`verify` with a connection of its own, for another thread than the store's."""
    with contextlib.closing(sqlite3.connect(path.absolute().as_uri() + "?mode=ro", uri=True)) as db:
        db.execute("BEGIN")  # one view of the table and its ends
        return verify(db, expected)


def verify(db: sqlite3.Connection, expected: str | None = None) -> dict[str, Any]:
    """Walk the chain. `expected`: a head of earlier, `ID:HASH`, which must still be in it.

    The documented form is `access-log verify` in docs/reference/json.md.
    """
    first, before = _end(db, "before")
    entries, previous = 0, first
    found: dict[str, Any] = {"ok": True, "broken_at": None, "problem": ""}
    wanted = None if expected is None else expected.partition(":")[0]
    kept = None if expected is None else "unknown"
    for row in db.execute("SELECT id, at_ns, who, action, subject, outcome, hash FROM access ORDER BY id"):
        entry, said = tuple(row)[:6], row[6]
        if entry_hash(before, entry) != said:
            found = _broken(entry[0], "it is not what was written, or one before it is missing")
            break
        if wanted == str(entry[0]):
            kept = "found" if expected == f"{entry[0]}:{said}" else "changed"
        entries, previous, before = entries + 1, entry[0], said
    if found["ok"] and _end(db, "head") != (previous, before):
        found = _broken(previous, "entries behind it are missing")
    if found["ok"] and kept == "changed":
        found = _broken(wanted, "the chain was written anew since the head was noted")
    return {**found, "entries": entries, "first": first + 1, "head": f"{previous}:{before}", "expected": kept}


def _broken(identity: int | str | None, problem: str) -> dict[str, Any]:
    return {
        "ok": False,
        "broken_at": None if identity is None else int(identity),
        "problem": f"entry {identity}: {problem}",
    }


def _end(db: sqlite3.Connection, which: str) -> tuple[int, str]:
    row = db.execute("SELECT id, hash FROM access_end WHERE which = ?", (which,)).fetchone()
    return (0, NOTHING) if row is None else (row[0], row[1])


def _set_end(db: sqlite3.Connection, which: str, identity: int, said: str) -> None:
    db.execute("INSERT OR REPLACE INTO access_end VALUES (?, ?, ?)", (which, identity, said))
