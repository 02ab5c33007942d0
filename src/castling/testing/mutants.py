"""Builds with a promise broken on purpose: the tests must fail on every one of them.

    python -m castling.testing.mutants [--only NAME] [--list]

A mutant is a small change of the source text. Each is built as a copy of the package, put before the
installed one, and given to the tests that guard the promise. One that they let pass is a hole in
the tests, and fails the run; so does a change that no longer fits the source, and a test that
fails on the unbroken build.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import castling

__all__ = ["MUTANTS", "Edit", "Mutant", "apply_edits", "main"]

_PACKAGE = Path(castling.__file__).parent
#: what pytest says when tests ran and some failed; anything else is no verdict
_TESTS_FAILED = 1


@dataclass(frozen=True, slots=True)
class Edit:
    """In `file` (below the package) the text `old`, which is there exactly once, becomes `new`."""

    file: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Mutant:
    """`promise`: what is broken. `tests`: arguments for pytest, run in the project's folder."""

    name: str
    promise: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]


_AUDIT_TESTS = ("tests/real/test_audit.py", "-x")
_AUDIT_HARD_TESTS = ("tests/real/test_audit_hard.py", "-x")

MUTANTS = (
    Mutant(
        "audit-stops-too-early",
        "when apply stands at an audit's position, all before it is committed",
        (
            Edit(
                "kinds/postgres/target.py",
                "                if before is not None:\n                    await self.commit(before)\n",
                "",
            ),
        ),
        _AUDIT_TESTS,
    ),
    Mutant(
        "audit-reads-what-is-now",
        "an audit reads the target as of its position, whatever is applied meanwhile",
        (
            Edit(
                "kinds/postgres/audit_view.py",
                "            yield Reader(connection, self.snapshot)\n",
                "            cursor = await connection.execute(\n"
                '                b"BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT pg_sleep(1)")\n'
                '            await connection.execute(b"COMMIT")\n'
                "            keeper = await _session(self.database, self.application, target=True)\n"
                '            await keeper.execute(b"BEGIN ISOLATION LEVEL REPEATABLE READ")\n'
                '            cursor = await keeper.execute(b"SELECT pg_export_snapshot()")\n'
                "            yield Reader(connection, (await cursor.fetchone())[0])\n",
            ),
        ),
        _AUDIT_TESTS,
    ),
    Mutant(
        "audit-leaves-out-a-column",
        "the hash of a row is of all its columns",
        (
            Edit(
                "kinds/postgres/audit_sql.py",
                'for column in columns)\n    return f"hashtextextended(',
                'for column in columns[:6])\n    return f"hashtextextended(',
            ),
        ),
        _AUDIT_TESTS,
    ),
    Mutant(
        "audit-takes-null-for-nothing",
        "NULL and an empty value are told apart",
        (
            Edit(
                "kinds/postgres/audit_sql.py",
                'COLLATE "C", 1), 0)\'',
                "COLLATE \"C\", 1), hashtextextended(\\'\\', 1))'",
            ),
        ),
        _AUDIT_TESTS,
    ),
    Mutant(
        "audit-repairs-for-anybody",
        "a repair is carried out only if Castling has noted it in the target before",
        (
            Edit(
                "kinds/postgres/audit_mend.py",
                "        if await cursor.fetchone() is None:\n            return\n",
                "",
            ),
        ),
        _AUDIT_HARD_TESTS,
    ),
    Mutant(
        "audit-trusts-a-truncated-table",
        "a table that was truncated under a snapshot is unknown, not different",
        (
            Edit(
                "kinds/postgres/audit_view.py",
                "                if row is None or row[0] is not True:\n",
                "                if row is None:\n",
            ),
        ),
        _AUDIT_HARD_TESTS,
    ),
    Mutant(
        "audit-never-done-is-equal",
        "what was never compared is unknown",
        (
            Edit(
                "audit/state.py",
                'return "unknown" if self.never or self.unknown or not self.parts else "equal"',
                'return "equal"',
            ),
        ),
        ("tests/unit/test_audit.py",),
    ),
    Mutant(
        "fsync-removed",
        "what is acknowledged is durable",
        (
            Edit(
                "journal/journal.py",
                "            await self._host.sync([current.file])\n",
                "            pass\n",
            ),
        ),
        ("tests/unit", "-k", "journal"),
    ),
    Mutant(
        "fsync-removed-simulated",
        "what is acknowledged is durable",
        (
            Edit(
                "journal/journal.py",
                "            await self._host.sync([current.file])\n",
                "            pass\n",
            ),
        ),
        ("tests/sim",),
    ),
    Mutant(
        "spool-fsync-removed",
        "the source forgets only what the spool holds durably",
        (
            Edit(
                "groups/spool.py",
                "        tail = await self._journal.harden()\n",
                "        tail = self._journal.hardened = self._journal.tail\n"
                "        self._journal._publish()\n",
            ),
        ),
        ("tests/sim/test_sim.py",),
    ),
    Mutant(
        "ack-before-harden",
        "a position is acknowledged only after the fsync",
        (
            Edit(
                "link/intake.py",
                "        hardened = self._journal.hardened\n",
                "        hardened = self._journal.tail\n",
            ),
        ),
        ("tests/unit", "tests/sim", "-k", "receiver or stream or sim"),
    ),
    Mutant(
        "progress-apart",
        "progress is committed with the changes it counts",
        (
            Edit(
                "kinds/postgres/target.py",
                "            await progress.write(connection,",
                '            await connection.execute(b"COMMIT")\n'
                '            await connection.execute(b"BEGIN")\n'
                "            await progress.write(connection,",
            ),
        ),
        ("tests/real/test_apply_once.py",),
    ),
    Mutant(
        "repeats-applied",
        "what the target holds already is passed over",
        (
            Edit(
                "apply/schedule.py",
                "        if item.offset < self._progress:\n            return\n",
                "        if False:\n            return\n",
            ),
        ),
        ("tests/unit/test_schedule.py",),
    ),
    Mutant(
        "epoch-check-off",
        "a primary whose epoch is over is refused",
        (
            Edit("link/handshake.py", "    if hello.epoch < epoch:\n", "    if False:\n"),
            Edit("link/intake.py", "        if batch.epoch < self._journal.epoch:\n", "        if False:\n"),
            Edit(
                "journal/journal.py", "            if header.epoch < self.epoch:\n", "            if False:\n"
            ),
            Edit("link/feed.py", "        if tail.position.epoch > self._epoch:\n", "        if False:\n"),
        ),
        ("tests/unit", "-k", "epoch"),
    ),
    Mutant(
        "another-installation-welcome",
        "a node of another installation is refused",
        (Edit("link/handshake.py", "    if hello.installation != installation:\n", "    if False:\n"),),
        ("tests/unit", "-k", "link"),
    ),
    Mutant(
        "payload-checksum-off",
        "a flipped bit in a record is noticed",
        (
            Edit(
                "journal/segment.py",
                "    if _xxh3(buffer[start:end]) != header.payload_sum:\n",
                "    if False:\n",
            ),
        ),
        ("tests/unit", "-k", "journal"),
    ),
    Mutant(
        "continuity-unchecked",
        "a slot that is not the journal's is refused",
        (
            Edit(
                "kinds/postgres/session.py",
                "def check_continuity(source: Source, *, slot: str, resume: int, session: Session | None)"
                " -> None:\n",
                "def check_continuity(source: Source, *, slot: str, resume: int, session: Session | None)"
                " -> None:\n    return\n",
            ),
        ),
        ("tests/real/test_continuity.py",),
    ),
    Mutant(
        "promotion-unproven",
        "a promoted standby that lacks what the backup has is refused",
        (Edit("kinds/postgres/promotion.py", "    if left_at < resume:\n", "    if False:\n"),),
        ("tests/unit/test_pg_promotion.py",),
    ),
    Mutant(
        "unknown-is-zero",
        "a dead source never shows an RPO of zero",
        (
            Edit(
                "groups/source.py",
                "            return None\n        ages = [",
                "            return 0.0\n        ages = [",
            ),
        ),
        ("tests/real/test_faults_special.py", "-k", "dead_source"),
    ),
    Mutant(
        "copy-position-forgotten",
        "a table that is copied anew goes on at its copy's own position",
        (
            Edit(
                "kinds/postgres/resync_target.py",
                "wanted = 'release', lsn = %(l)s\n",
                "wanted = 'release'\n",
            ),
        ),
        ("tests/real/test_resync.py",),
    ),
    Mutant(
        "one-change-too-many",
        "a table that is copied anew leaves out what its copy has, and nothing more",
        (
            Edit(
                "kinds/postgres/holds.py",
                '"ahead") and offset >= place.offset\n',
                '"ahead") and offset > place.offset\n',
            ),
        ),
        ("tests/unit/test_pg_holds.py",),
    ),
    Mutant(
        "own-sessions-unmarked",
        "what Castling writes on the target is not taken for somebody else's",
        (
            Edit(
                "kinds/postgres/connect.py",
                '"options": OWN_OPTIONS,\n',
                '"options": "-c default_transaction_read_only=off",\n',
            ),
        ),
        ("tests/real/test_foreign_writes.py", "-k", "not_reported"),
    ),
    Mutant(
        "replicas-unwatched",
        "a session that makes itself a replication replica is noticed like any other",
        (
            Edit(
                "kinds/postgres/foreign_sql.py",
                " ENABLE ALWAYS TRIGGER {TRIGGER}",
                " ENABLE TRIGGER {TRIGGER}",
            ),
            Edit("kinds/postgres/foreign_watch.py", "t.tgenabled = 'A'", "t.tgenabled = 'O'"),
        ),
        ("tests/real/test_foreign_writes.py", "-k", "whatever_a_session_sets"),
    ),
    Mutant(
        "emptied-tables-forgotten",
        "a table truncated during the first copy comes right",
        (
            Edit(
                "kinds/postgres/seed_read.py",
                "        if row[0] != self._files[table.oid]:\n",
                "        if False:\n",
            ),
        ),
        ("tests/real/test_seed_truncate.py",),
    ),
    Mutant(
        "rot-cut-as-torn",
        "what was acknowledged is never cut away as a torn tail",
        (
            Edit(
                "journal/recovery.py",
                "    if mark is None or mark.position.seq <= last_seq:\n",
                "    if True:\n",
            ),
        ),
        ("tests/unit/test_journal_damage.py",),
    ),
    Mutant(
        "unapplied-released",
        "what is not applied stays in the journal, whatever its size and age",
        (
            Edit(
                "journal/retention.py",
                "    free = [segment for segment in segments if segment.last_seq < needed_seq]\n",
                "    free = list(segments)\n",
            ),
        ),
        ("tests/unit/test_journal_room.py",),
    ),
    Mutant(
        "disk-filled-up",
        "a disk that is nearly full stops the receiving, before it is",
        (Edit("journal/journal.py", "        if free < self._min_free:\n", "        if False:\n"),),
        ("tests/unit/test_journal_room.py",),
    ),
    Mutant(
        "waiting-degrades",
        "who chose to wait for the backup waits",
        (
            Edit(
                "kinds/postgres/sync.py",
                '        if on_loss == "degrade" and silent_s > degrade_after_s:\n',
                "        if silent_s > degrade_after_s:\n",
            ),
        ),
        ("tests/unit/test_pg_sync.py",),
    ),
    Mutant(
        "dead-shown-as-now",
        "no figure of a process that is gone is shown as if it were of now",
        (
            Edit(
                "control/tree.py",
                '    elif seen.get("pid") != status.pid:\n',
                '    elif said in (None, "failed", "stopped"):\n',
            ),
        ),
        ("tests/unit/test_control_tree.py",),
    ),
    Mutant(
        "sequences-without-margin",
        "the target's sequences stay ahead of the source's",
        (
            Edit(
                "kinds/postgres/sequences.py",
                "    last = told.last + margin * told.increment\n",
                "    last = told.last\n",
            ),
        ),
        ("tests/unit/test_pg_sequences.py",),
    ),
    Mutant(
        "invitation-counts-twice",
        "a node joins with an invitation once",
        (Edit("control/store.py", "id = ? AND used_ns IS NULL AND", "id = ? AND"),),
        ("tests/unit/test_control_store.py",),
    ),
    Mutant(
        "earlier-columns-forgotten",
        "of many updates of a row each column arrives, also one that a later update left out",
        (
            Edit(
                "kinds/postgres/changes.py",
                "            self._updates[key] = _merged(change.new, self._updates.get(key))\n",
                "            self._updates[key] = change.new\n",
            ),
        ),
        ("tests/unit/test_changes.py",),
    ),
    Mutant(
        "equal-rows-are-one",
        "of two equal rows without a key one delete deletes one",
        (
            Edit(
                "kinds/postgres/statements.py",
                '"(t.tableoid, t.ctid) = (SELECT',
                '"(t.tableoid, t.ctid) IN (SELECT',
            ),
            Edit(
                "kinds/postgres/statements.py",
                "::record OPERATOR(pg_catalog.*=) ROW({told})::record LIMIT 1)",
                "::record OPERATOR(pg_catalog.*=) ROW({told})::record)",
            ),
        ),
        ("tests/real/test_apply_hard.py", "-k", "test_of_equal_rows_one_is_meant"),
    ),
)


def apply_edits(package: Path, edits: Sequence[Edit]) -> None:
    """Change the sources below `package`. ValueError when a text is not there exactly once."""
    for edit in edits:
        path = package / edit.file
        text = path.read_text(encoding="utf-8")
        if text.count(edit.old) != 1:
            raise ValueError(f"{edit.file}: the text to change is there {text.count(edit.old)} times")
        path.write_text(text.replace(edit.old, edit.new), encoding="utf-8")


def _pytest(tests: Sequence[str], before: Path | None) -> tuple[int, str]:
    """Exit code and closing lines of pytest, with the package in folder `before` put first."""
    environment = dict(os.environ)
    if before is not None:
        environment["PYTHONPATH"] = str(before)
        seen = subprocess.run(
            [sys.executable, "-c", "import castling; print(castling.__file__)"],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        if not seen.startswith(str(before)):
            raise RuntimeError(f"the tests would not run the mutant but {seen.strip()}")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider", *tests],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout[-1500:]


def _killed(mutant: Mutant) -> bool:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="castling-mutant-") as folder:
        built = Path(folder) / "castling"
        shutil.copytree(_PACKAGE, built, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        apply_edits(built, mutant.edits)
        code, said = _pytest(mutant.tests, Path(folder))
    noticed = code == _TESTS_FAILED
    first = next((line for line in said.splitlines() if line.startswith(("FAILED", "ERROR"))), "")
    word = "noticed" if noticed else f"NOT NOTICED (pytest ended with {code})"
    print(f"{mutant.name:32} {word:10} {time.monotonic() - began:6.1f} s  {first[:120]}", flush=True)
    if not noticed:
        print(said)
    return noticed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every mutant; 0 when the tests noticed all of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", action="append", choices=[mutant.name for mutant in MUTANTS])
    parser.add_argument("--list", action="store_true", help="name the mutants and the promises they break")
    chosen = parser.parse_args(arguments)
    mutants = [mutant for mutant in MUTANTS if not chosen.only or mutant.name in chosen.only]
    if chosen.list:
        for mutant in mutants:
            print(f"{mutant.name:32} {mutant.promise}")
        return 0
    for tests in dict.fromkeys(mutant.tests for mutant in mutants):
        code, said = _pytest(tests, None)
        if code != 0:
            print(f"on the unbroken build {' '.join(tests)} ends with {code}:\n{said}")
            return 2
    survivors = [mutant.name for mutant in mutants if not _killed(mutant)]
    print(f"{len(mutants) - len(survivors)} of {len(mutants)} broken builds were noticed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
