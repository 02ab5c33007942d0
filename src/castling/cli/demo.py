"""`castling demo`: the main job on one machine, with faults on purpose and proof at the end.

Two embedded servers become two nodes by the same commands that a user gives. A bank writes all the while; the
link is cut, the apply is killed, and a row that nobody wrote is slipped into the backup, which an audit has
to find and mend under load; then every table of both sides is compared by a method that shares no code with
the replication, and every transaction that the bank was told was committed is looked for on the backup.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from castling.cli.output import Result, columns, say
from castling.cli.session import Session, command
from castling.errors import CastlingError, FindingsExist, UsageError
from castling.testing.bank import Bank, create_bank, lost, total_balance
from castling.testing.cluster import Cluster, wait_for
from castling.testing.compare import Comparison, compare

__all__ = ["Outcome", "register", "verdict"]

#: how often it is audited until every table could be compared
AUDITS_MOST = 6


@dataclass(slots=True)
class Outcome:
    """What the demonstration found; `verdict` makes the report of it."""

    rows_seeded: int = 0
    seed_s: float = 0.0
    transactions: int = 0
    changes: int = 0
    lost: list[tuple[int, int]] = field(default_factory=list)
    comparison: Comparison = field(default_factory=Comparison)
    balances: tuple[str, str] = ("", "")
    rpo: dict[str, Any] = field(default_factory=dict)
    apply_lag: dict[str, Any] = field(default_factory=dict)
    faults: list[dict[str, Any]] = field(default_factory=list)
    #: what an audit made of damage done on purpose; None: there was none
    audit: dict[str, Any] | None = None
    ratio: float | None = None
    duration_s: float = 0.0


def verdict(outcome: Outcome) -> dict[str, Any]:
    """The report. `ok` only if something was compared, nothing differs, nothing acknowledged is missing,
    no money was made or lost, and every fault healed."""
    healed = all(fault["healed"] for fault in outcome.faults)
    ok = (
        outcome.comparison.equal
        and not outcome.lost
        and outcome.balances[0] == outcome.balances[1] != ""
        and outcome.transactions > 0
        and healed
        and (outcome.audit is None or outcome.audit["equal"])
    )
    return {
        "ok": ok,
        "lost": len(outcome.lost),
        "differences": len(outcome.comparison.differences),
        "rpo_s": outcome.rpo,
        "apply_lag_s": outcome.apply_lag,
        "rows_seeded": outcome.rows_seeded,
        "seed_s": round(outcome.seed_s, 2),
        "transactions": outcome.transactions,
        "changes": outcome.changes,
        "tables_compared": outcome.comparison.tables,
        "rows_compared": outcome.comparison.rows,
        "compression_ratio": outcome.ratio,
        "faults": outcome.faults,
        "audit": outcome.audit,
        "differing": [{"table": found.table, "what": found.what} for found in outcome.comparison.differences],
        "duration_s": round(outcome.duration_s, 1),
    }


class _Demo:
    """One run: each method is one scene."""

    def __init__(self, cluster: Cluster, *, rows: int, seconds: float) -> None:
        self._cluster = cluster
        self._rows = rows
        self._seconds = seconds
        self._changes: dict[int, int] = {}
        self._lags: dict[int, dict[str, Any]] = {}
        self.outcome = Outcome()

    def run(self) -> Outcome:
        began = time.monotonic()
        rows = create_bank(self._cluster.dsn("east"), accounts=self._rows // 2)
        say(f"east holds a bank of {rows:,} rows; a few clients begin to move money, and never stop")
        bank = Bank(self._cluster.dsn("east"), accounts=self._rows // 2).start()
        try:
            self._check()
            self._seed()
            self._live(self._seconds * 0.4, "replicating live")
            self._cut_link()
            self._kill_apply()
            self._live(self._seconds * 0.3, "replicating live again")
            self._audit()
        finally:
            bank.stop()
        self._prove(bank)
        self.outcome.duration_s = time.monotonic() - began
        return self.outcome

    def _check(self) -> None:
        found = self._cluster.cli("east", "check", "bank")["data"]
        say(f"castling check bank: nothing refused, {_count(found)} findings in all")

    def _seed(self) -> None:
        say("castling group start bank: the first copy, from one consistent view, while the bank writes")
        began = time.monotonic()
        self._cluster.start_group_now()
        with _bar() as show:
            wait_for(lambda: self._seeding(show), "the first copy is complete", within_s=150)
        self.outcome.seed_s = time.monotonic() - began
        say(f"seeded {self.outcome.rows_seeded:,} rows in {self.outcome.seed_s:.1f} s; apply catches up")
        wait_for(self._cluster.is_running, "the group runs")

    def _seeding(self, show: Any) -> bool:
        seed = self._cluster.report("source").get("seed")
        if seed:
            self.outcome.rows_seeded = seed["rows"]
            show(seed["phase"], seed["rows"], seed["rows_total"])
        return self._cluster.is_running()

    def _live(self, seconds: float, what: str) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(min(2.0, seconds))
            self._watch()
            rpo, lag = self._figures()
            say(f"{what}: {sum(self._changes.values()):,} changes applied, RPO {rpo}, apply lag {lag}")

    def _watch(self) -> None:
        """Remember the apply process's figures: they begin anew with each process."""
        report = self._cluster.report("apply")
        if report.get("pid"):
            self._changes[report["pid"]] = report.get("counters", {}).get("changes", 0)
            self._lags[report["pid"]] = report.get("apply_lag") or {}

    def _figures(self) -> tuple[str, str]:
        source, apply = self._cluster.report("source"), self._cluster.report("apply")
        return _seconds(source.get("rpo_s")), _seconds(apply.get("apply_lag_s"))

    def _cut_link(self) -> None:
        say("cutting the link between the nodes; the bank goes on")
        self._cluster.proxy.cut()
        began = time.monotonic()
        time.sleep(3)
        rpo, _ = self._figures()
        say(f"the link is down: RPO {rpo} and growing, shown as it is")
        self._cluster.proxy.heal()
        wait_for(self._cluster.is_running, "the stream goes on")
        self._cluster.wait_until_applied()
        self._healed("link cut", began, "it went on where the far journal ended")

    def _kill_apply(self) -> None:
        self._watch()
        hardened = self._cluster.report("receive").get("positions", {}).get("hardened")
        pid = self._cluster.kill("apply")
        began = time.monotonic()
        say(f"kill -9 of the apply (process {pid}); receiving goes on without it")
        wait_for(
            lambda: self._cluster.report("receive").get("positions", {}).get("hardened") != hardened,
            "the journal grows while apply is dead",
        )
        wait_for(lambda: self._cluster.pid("apply") not in (None, pid), "the agent starts another apply")
        self._cluster.wait_until_applied()
        self._healed(
            "kill -9 of the apply", began, "progress is committed with the data, so nothing comes twice"
        )

    def _audit(self) -> None:
        """A row that nobody wrote on the source appears on the target: it has to be found and to go."""
        self._cluster.servers["west"].execute(
            "SET session_replication_role = replica;"
            " INSERT INTO card (number, pin) VALUES (gen_random_uuid(), -1)",
            self._cluster.database,
        )
        say("a row that nobody wrote is slipped into west; castling audit run bank, while the bank writes")
        found = self._audited("audit", "run", "bank", "--rule", "rows", "--detach")
        facts = found["facts"]
        say(
            f"the audit read {facts['rows']:,} rows in {facts['seconds']:.1f} s at one position and found"
            f" {facts['differing']} table that differs; castling audit repair bank"
        )
        repaired = self._cluster.cli("east", "audit", "repair", "bank", "--yes")["data"]
        for _ in range(AUDITS_MOST):
            # the bank truncates a table now and then: one that was, during an audit, is unknown in that one
            again = self._audited("audit", "run", "bank", "--rule", "rows", "--detach")["facts"]
            if not again["unknown"]:
                break
        is_equal = facts["differing"] == 1 and not repaired["open"] and not again["differing"]
        say(f"repaired through the stream and audited again: {'equal' if is_equal else 'NOT EQUAL'}")
        self.outcome.audit = {
            "rows": facts["rows"],
            "seconds": facts["seconds"],
            "apply_paused_s": facts["apply_paused_s"],
            "found": facts["differing"],
            "unknown": again["unknown"],
            "equal": is_equal and not again["unknown"],
        }

    def _audited(self, *command: str) -> dict[str, Any]:
        """The audit that the command began, when it has ended."""
        identity = self._cluster.cli("east", *command)["data"]["audits"][0]["id"]
        found: dict[str, Any] = {}

        def has_ended() -> bool:
            audits = self._cluster.cli("east", "audit", "list", "bank")["data"]["audits"]
            found.update(next(each for each in audits if each["id"] == identity))
            return bool(found["state"] != "running")

        wait_for(has_ended, "the audit has ended")
        return found

    def _healed(self, fault: str, began: float, why: str) -> None:
        seconds = time.monotonic() - began
        self.outcome.faults.append({"fault": fault, "healed": True, "seconds": round(seconds, 2)})
        say(f"healed after {seconds:.1f} s: {why}")

    def _prove(self, bank: Bank) -> None:
        say("the bank rests; what it wrote drains to west, then every table is compared")
        self._cluster.wait_until_applied()
        wait_for(lambda: self._cluster.report("apply").get("apply_lag_s") == 0.0, "apply reports no lag")
        self._watch()
        east, west = self._cluster.dsn("east"), self._cluster.dsn("west")
        outcome = self.outcome
        outcome.comparison = compare(east, west)
        outcome.lost = lost(bank, west)
        outcome.transactions = bank.transactions
        outcome.balances = (str(total_balance(east)), str(total_balance(west)))
        outcome.changes = sum(self._changes.values())
        source = self._cluster.report("source")
        outcome.rpo = _quantiles(source.get("rpo") or {})
        outcome.ratio = (source.get("link") or {}).get("ratio")
        latest = self._lags.get(self._cluster.pid("apply") or 0, {})
        outcome.apply_lag = _quantiles(latest)
        worst = [lag["max"] for lag in self._lags.values() if lag.get("max") is not None]
        outcome.apply_lag["max"] = max(worst, default=None)


def _quantiles(found: dict[str, Any]) -> dict[str, Any]:
    return {key: found.get(key) for key in ("p50", "p99", "max")}


def _count(checked: Any) -> int:
    findings = checked.get("findings", []) if isinstance(checked, dict) else checked
    return len(findings)


def _seconds(value: float | None) -> str:
    if value is None:
        return "unknown"
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


@contextmanager
def _bar() -> Iterator[Any]:
    """A progress bar on a terminal; elsewhere a line whenever the phase changes."""
    if not sys.stderr.isatty():
        seen: set[str] = set()

        def line(phase: str, rows: int, total: int | None) -> None:
            if phase not in seen:
                seen.add(phase)
                say(f"seed: {phase} ({rows:,} of about {total or 0:,} rows)")

        yield line
        return
    layout = (TextColumn("seed: {task.description}"), BarColumn(), TextColumn("{task.completed:,.0f} rows"))
    with Progress(*layout, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("planning", total=None)
        yield lambda phase, rows, total: progress.update(task, description=phase, completed=rows, total=total)


def _table(report: dict[str, Any]) -> str:
    rpo, lag = report["rpo_s"], report["apply_lag_s"]
    rows = [
        ("rows seeded", f"{report['rows_seeded']:,} in {report['seed_s']:.1f} s"),
        ("transactions of the bank", f"{report['transactions']:,}"),
        ("changes replicated", f"{report['changes']:,}"),
        ("RPO p50 / p99 / max", " / ".join(_seconds(rpo[key]) for key in ("p50", "p99", "max"))),
        ("apply lag p50 / p99 / max", " / ".join(_seconds(lag[key]) for key in ("p50", "p99", "max"))),
        *(
            (f"fault: {fault['fault']}", f"healed after {fault['seconds']:.1f} s")
            for fault in report["faults"]
        ),
        *_audit_row(report["audit"]),
        ("compared", f"{report['tables_compared']} tables, {report['rows_compared']:,} rows"),
        ("acknowledged and lost", str(report["lost"])),
        ("differences", str(report["differences"])),
        ("verdict", "equal, nothing lost" if report["ok"] else "NOT OK"),
    ]
    return columns(("figure", "value"), rows)


def _audit_row(audit: dict[str, Any] | None) -> list[tuple[str, str]]:
    if audit is None:
        return []
    paused = _seconds(audit["apply_paused_s"])
    told = "damage found and repaired" if audit["equal"] else "NOT OK"
    return [
        (
            "audit under load",
            f"{told}; {audit['rows']:,} rows in {_seconds(audit['seconds'])}, apply paused {paused}",
        )
    ]


def _terminated(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _write(report: Path, found: dict[str, Any]) -> None:
    report.write_text(json.dumps(found, indent=1) + "\n")


def _demo(
    session: Session,
    report: Annotated[
        Path | None,
        typer.Option("--report", envvar="CASTLING_DEMO_REPORT", help="Write the figures to FILE as JSON."),
    ] = None,
    seconds: Annotated[
        float,
        typer.Option("--seconds", envvar="CASTLING_DEMO_SECONDS", min=1, help="How long to replicate live."),
    ] = 20.0,
    rows: Annotated[
        int,
        typer.Option("--rows", envvar="CASTLING_DEMO_ROWS", min=2000, help="Rows in the bank at first."),
    ] = 300_000,
    folder: Annotated[
        Path | None,
        typer.Option("--folder", envvar="CASTLING_DEMO_FOLDER", help="Where to work; default /tmp."),
    ] = None,
) -> Result:
    """Show the main job on this machine: two servers, a bank, faults on purpose, and the proof.

    Needs nothing but the package with its `demo` extra; removes everything that it made.
    """
    if folder is not None and not folder.is_dir():
        raise UsageError(f"--folder {folder}: there is no such folder")
    signal.signal(signal.SIGTERM, _terminated)
    say("setting up two PostgreSQL servers as two nodes, east and west, each with its own agent")
    if report is not None:
        # until something was proven, the file says that nothing is
        _write(report, {"ok": False, "error": "the demonstration did not come to its end"})
    try:
        with Cluster(parent=folder) as cluster:
            outcome = _Demo(cluster, rows=rows, seconds=seconds).run()
    except CastlingError as error:
        if report is not None:
            _write(report, {"ok": False, "error": error.as_json()})
        raise
    found = verdict(outcome)
    if report is not None:
        _write(report, found)
    for difference in outcome.comparison.differences:
        say(f"differs: {difference.table}: {difference.what} {difference.rows[:2]}")
    return Result(found, _table(found), 0 if found["ok"] else FindingsExist.exit_code)


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "demo")(_demo)
