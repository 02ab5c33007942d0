"""What a node remembers of its audits: runs, what is known of each part, and findings.

Findings hold values of rows, as the databases do: they are in the node's own store, and told to operators
only. A part that is compared again closes the findings of its comparison before.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec

from castling.audit.run import Result
from castling.audit.state import Known, coverage
from castling.control.store import Store
from castling.kinds.base import AuditPart, Discrepancy, Repaired

__all__ = ["AuditStore"]

#: runs that are remembered, and findings that are closed; the oldest go first
RUNS_MAX = 2000
CLOSED_MAX = 20_000

Json = dict[str, Any]


class AuditStore:
    """The tables `audit_run`, `audit_part`, `audit_finding`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    # --- runs ---------------------------------------------------------------------------------

    def begin(self, run: str, group: str, backup: str, scope: str, by: str) -> None:
        with self._store.write() as db:
            db.execute(
                "INSERT INTO audit_run VALUES (?, ?, ?, 'running', ?, ?, ?, NULL, '', '{}')",
                (run, group, backup, scope, by, time.time_ns()),
            )
            db.execute(
                "DELETE FROM audit_run WHERE state <> 'running' AND id NOT IN"
                " (SELECT id FROM audit_run ORDER BY begun_ns DESC LIMIT ?)",
                (RUNS_MAX,),
            )
            db.execute(
                "DELETE FROM audit_finding WHERE state <> 'open' AND id NOT IN"
                " (SELECT id FROM audit_finding ORDER BY id DESC LIMIT ?)",
                (CLOSED_MAX,),
            )

    def end(self, run: str, state: str, why: str, facts: Json) -> None:
        with self._store.write() as db:
            db.execute(
                "UPDATE audit_run SET state = ?, why = ?, facts = ?, ended_ns = ? WHERE id = ?",
                (state, why, _encoded(facts), time.time_ns(), run),
            )

    def interrupt(self) -> None:
        """What ran when the agent before this one died runs no more."""
        with self._store.write() as db:
            db.execute(
                "UPDATE audit_run SET state = 'stopped', why = 'the agent ended', ended_ns = ?"
                " WHERE state = 'running'",
                (time.time_ns(),),
            )

    def runs(self, group: str, limit: int) -> list[Json]:
        """The newest first."""
        rows = self._store.rows(
            "SELECT * FROM audit_run WHERE grp = ? ORDER BY begun_ns DESC, rowid DESC LIMIT ?", group, limit
        )
        return [_run(row) for row in rows]

    def run(self, group: str, run: str) -> Json | None:
        rows = self._store.rows("SELECT * FROM audit_run WHERE grp = ? AND id = ?", group, run)
        return _run(rows[0]) if rows else None

    # --- parts --------------------------------------------------------------------------------

    def known(self, group: str, backup: str) -> list[Known]:
        return [
            Known(
                row["rule"],
                row["part"],
                row["compared_ns"],
                row["result"],
                row["changes"],
                row["equal_runs"],
                row["problem"],
            )
            for row in self._store.rows(
                "SELECT * FROM audit_part WHERE grp = ? AND backup = ? ORDER BY rule, part", group, backup
            )
        ]

    def parts(self, group: str, backup: str) -> list[Json]:
        """What is known of each part, for people and programs."""
        rows = self._store.rows(
            "SELECT * FROM audit_part WHERE grp = ? AND backup = ? ORDER BY rule, part", group, backup
        )
        return [
            {
                **{
                    key: row[key]
                    for key in ("backup", "rule", "part", "compared_ns", "result", "problem", "run")
                },
                **msgspec.json.decode(row["facts"]),
            }
            for row in rows
        ]

    def expect(self, group: str, backup: str, parts: list[AuditPart], rules: list[str]) -> None:
        """These are all that there are: what is new was never compared, what is gone is forgotten."""
        wanted = {("rows", part.part) for part in parts} | {(rule, rule) for rule in rules}
        there = {(each.rule, each.part) for each in self.known(group, backup)}
        with self._store.write() as db:
            for rule, part in wanted - there:
                db.execute(
                    "INSERT INTO audit_part VALUES (?, ?, ?, ?, NULL, 'unknown', NULL, 0, '', '', '{}')",
                    (group, backup, rule, part),
                )
            for rule, part in there - wanted:
                db.execute(
                    "DELETE FROM audit_part WHERE grp = ? AND backup = ? AND rule = ? AND part = ?",
                    (group, backup, rule, part),
                )
                _close(db, group, backup, rule, part)

    def note(self, run: str, group: str, backup: str, result: Result) -> None:
        """One part was compared, or could not be."""
        compared = result.compared
        now_ns = time.time_ns()
        with self._store.write() as db:
            if compared.problem:
                db.execute(
                    "UPDATE audit_part SET problem = ?, run = ?"
                    " WHERE grp = ? AND backup = ? AND rule = ? AND part = ?",
                    (compared.problem, run, group, backup, compared.rule, compared.part),
                )
                return
            facts = {
                "rows_source": compared.rows_source,
                "rows_target": compared.rows_target,
                "bytes": compared.bytes,
                "position": result.position,
                "notes": compared.notes,
            }
            values = (
                now_ns,
                compared.result,
                result.changes,
                compared.result == "equal",
                run,
                _encoded(facts),
            )
            db.execute(
                "UPDATE audit_part SET compared_ns = ?, result = ?, changes = ?, problem = '',"
                " equal_runs = CASE WHEN ? THEN equal_runs + 1 ELSE 0 END, run = ?, facts = ?"
                " WHERE grp = ? AND backup = ? AND rule = ? AND part = ?",
                (*values, group, backup, compared.rule, compared.part),
            )
            _close(db, group, backup, compared.rule, compared.part)
            for found in compared.found:
                db.execute(
                    "INSERT INTO audit_finding VALUES (NULL, ?, ?, ?, ?, ?, ?, 'open', NULL, ?)",
                    (group, backup, run, compared.rule, compared.part, now_ns, _encoded(found)),
                )

    def latest(self, group: str, backup: str) -> Json:
        """Age and result of the last full audit; see `audit.state`. Nothing known is unknown, never equal."""
        found = coverage(self.known(group, backup))
        running = self._store.rows(
            "SELECT id FROM audit_run WHERE grp = ? AND backup = ? AND state = 'running'", group, backup
        )
        (counted,) = self._store.rows(
            "SELECT count(*) AS open FROM audit_finding WHERE grp = ? AND backup = ? AND state = 'open'",
            group,
            backup,
        )
        return {
            "backup": backup,
            "result": found.result,
            "full_ns": found.full_ns,
            "full_age_s": found.age_s(time.time_ns()),
            "parts": found.parts,
            "never": found.never,
            "differing": found.differing,
            "unknown": found.unknown,
            "open": counted["open"] if found.parts else None,
            "running": running[0]["id"] if running else None,
        }

    # --- findings -----------------------------------------------------------------------------

    def findings(self, group: str, *, run: str | None = None, backup: str | None = None) -> list[Json]:
        """Of a run, or all that are open (of a backup)."""
        if run is not None:
            rows = self._store.rows(
                "SELECT * FROM audit_finding WHERE grp = ? AND run = ? ORDER BY id", group, run
            )
        else:
            rows = self._store.rows(
                "SELECT * FROM audit_finding WHERE grp = ? AND backup = ? AND state = 'open' ORDER BY id",
                group,
                backup,
            )
        return [
            {
                **{key: row[key] for key in ("id", "backup", "run", "state", "found_ns", "closed_ns")},
                **msgspec.json.decode(row["body"]),
            }
            for row in rows
        ]

    def discrepancies(self, findings: list[Json]) -> list[Discrepancy]:
        return [msgspec.convert(_body(each), Discrepancy) for each in findings]

    def repaired(self, findings: list[Json], results: list[Repaired]) -> None:
        with self._store.write() as db:
            for result in results:
                if result.result == "done":
                    db.execute(
                        "UPDATE audit_finding SET state = 'repaired', closed_ns = ?"
                        " WHERE id = ? AND state = 'open'",
                        (time.time_ns(), findings[result.index]["id"]),
                    )

    def forget(self, group: str) -> None:
        with self._store.write() as db:
            for table in ("audit_run", "audit_part", "audit_finding"):
                db.execute(f"DELETE FROM {table} WHERE grp = ?", (group,))


def _close(db: Any, group: str, backup: str, rule: str, part: str) -> None:
    db.execute(
        "UPDATE audit_finding SET state = 'gone', closed_ns = ?"
        " WHERE grp = ? AND backup = ? AND rule = ? AND part = ? AND state = 'open'",
        (time.time_ns(), group, backup, rule, part),
    )


def _run(row: Json) -> Json:
    kept = {key: row[key] for key in ("id", "backup", "state", "scope", "by", "begun_ns", "ended_ns", "why")}
    return {**kept, "group": row["grp"], "facts": msgspec.json.decode(row["facts"])}


def _body(finding: Json) -> Json:
    own = {"id", "backup", "run", "state", "found_ns", "closed_ns"}
    return {key: value for key, value in finding.items() if key not in own}


def _encoded(value: Any) -> str:
    return msgspec.json.encode(value).decode()
