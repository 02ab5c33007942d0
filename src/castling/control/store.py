"""The agent's memory: one SQLite file, written by the agent alone.

What must survive a restart of the agent and is not a file of its own: hashes of
tokens and invitations, nodes that joined, deployments, which groups should run, runs of
procedures, recent events, and who did what. Calls are short and local, so they are made on the event
loop. Times are wall-clock nanoseconds.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from castling.control import access_log
from castling.control.access import AccessRole, Caller, Kept, new_secret, new_token, split_token
from castling.errors import NotFound, StateError, StateUnsaved
from castling.switch.run import Run

__all__ = ["Store"]

#: rows kept of events and deployments; the oldest go first
EVENTS_MAX = 10_000
DEPLOYMENTS_MAX = 200

#: one step per schema version, statements or a function; a step is never changed once released
MIGRATIONS: tuple[str | Callable[[sqlite3.Connection], None], ...] = (
    """
    CREATE TABLE token (
        id TEXT PRIMARY KEY, name TEXT NOT NULL, role TEXT NOT NULL, salt BLOB NOT NULL, digest BLOB NOT NULL,
        created_ns INTEGER NOT NULL, revoked_ns INTEGER
    ) STRICT;
    CREATE TABLE invite (
        id TEXT PRIMARY KEY, node TEXT NOT NULL, salt BLOB NOT NULL, digest BLOB NOT NULL,
        created_ns INTEGER NOT NULL, expires_ns INTEGER NOT NULL, used_ns INTEGER
    ) STRICT;
    CREATE TABLE node (
        name TEXT PRIMARY KEY, api TEXT NOT NULL, link TEXT NOT NULL, joined_ns INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE deployment (
        version INTEGER PRIMARY KEY, digest TEXT NOT NULL, text TEXT NOT NULL, by TEXT NOT NULL,
        at_ns INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE desired (
        grp TEXT PRIMARY KEY, state TEXT NOT NULL CHECK (state IN ('running', 'stopped')), by TEXT NOT NULL,
        at_ns INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE event (
        id INTEGER PRIMARY KEY AUTOINCREMENT, at_ns INTEGER NOT NULL, name TEXT NOT NULL, fields TEXT NOT NULL
    ) STRICT;
    CREATE TABLE audit (
        id INTEGER PRIMARY KEY AUTOINCREMENT, at_ns INTEGER NOT NULL, who TEXT NOT NULL, action TEXT NOT NULL,
        subject TEXT NOT NULL, outcome TEXT NOT NULL
    ) STRICT;
    """,
    """
    CREATE TABLE access (
        id INTEGER PRIMARY KEY, at_ns INTEGER NOT NULL, who TEXT NOT NULL, action TEXT NOT NULL,
        subject TEXT NOT NULL, outcome TEXT NOT NULL, hash TEXT NOT NULL
    ) STRICT;
    CREATE TABLE access_end (
        which TEXT PRIMARY KEY CHECK (which IN ('before', 'head')), id INTEGER NOT NULL, hash TEXT NOT NULL
    ) STRICT;
    """,
    access_log.chain_existing,
    """
    CREATE TABLE rehearsal (
        id TEXT NOT NULL, grp TEXT NOT NULL, backup TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('opening', 'open', 'closing', 'closed')), by TEXT NOT NULL,
        begun_ns INTEGER NOT NULL, opened_ns INTEGER, until_ns INTEGER NOT NULL, closed_ns INTEGER,
        why TEXT NOT NULL, facts TEXT NOT NULL, PRIMARY KEY (grp, id)
    ) STRICT;
    """,
    """
    CREATE TABLE audit_run (
        id TEXT PRIMARY KEY, grp TEXT NOT NULL, backup TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('running', 'done', 'stopped', 'failed')), scope TEXT NOT NULL,
        by TEXT NOT NULL, begun_ns INTEGER NOT NULL, ended_ns INTEGER, why TEXT NOT NULL, facts TEXT NOT NULL
    ) STRICT;
    CREATE TABLE audit_part (
        grp TEXT NOT NULL, backup TEXT NOT NULL, rule TEXT NOT NULL, part TEXT NOT NULL, compared_ns INTEGER,
        result TEXT NOT NULL, changes INTEGER, equal_runs INTEGER NOT NULL, problem TEXT NOT NULL,
        run TEXT NOT NULL, facts TEXT NOT NULL, PRIMARY KEY (grp, backup, rule, part)
    ) STRICT;
    CREATE TABLE audit_finding (
        id INTEGER PRIMARY KEY AUTOINCREMENT, grp TEXT NOT NULL, backup TEXT NOT NULL, run TEXT NOT NULL,
        rule TEXT NOT NULL, part TEXT NOT NULL, found_ns INTEGER NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('open', 'repaired', 'gone')), closed_ns INTEGER,
        body TEXT NOT NULL
    ) STRICT;
    CREATE INDEX audit_finding_open ON audit_finding (grp, backup, state);
    """,
    """
    CREATE TABLE user (
        name TEXT PRIMARY KEY, role TEXT NOT NULL, salt BLOB NOT NULL, digest BLOB NOT NULL,
        created_ns INTEGER NOT NULL, changed_ns INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE session (
        digest BLOB PRIMARY KEY, user TEXT, token TEXT, created_ns INTEGER NOT NULL, seen_ns INTEGER NOT NULL,
        CHECK ((user IS NULL) <> (token IS NULL))
    ) STRICT;
    CREATE TABLE figure (
        grp TEXT NOT NULL, backup TEXT NOT NULL, at_ns INTEGER NOT NULL, rpo_s REAL, apply_lag_s REAL,
        captured INTEGER, hardened INTEGER, applied INTEGER, released INTEGER, backlog_bytes INTEGER,
        journal_bytes INTEGER, PRIMARY KEY (grp, backup, at_ns)
    ) STRICT;
    CREATE INDEX figure_at ON figure (at_ns);
    """,
    """
    CREATE TABLE run (
        id TEXT PRIMARY KEY, application TEXT NOT NULL, procedure TEXT NOT NULL, is_over INTEGER NOT NULL,
        created_ns INTEGER NOT NULL, state TEXT NOT NULL
    ) STRICT;
    """,
)


class Store:
    """Opens (and makes or migrates) the file at `path`. Close it, or use it as a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._path = path
        self._db = sqlite3.connect(path, timeout=5.0, isolation_level=None)
        self._db.row_factory = sqlite3.Row
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._migrate()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._db.close()

    def _migrate(self) -> None:
        with self.write():
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version > len(MIGRATIONS):
                raise StateError(
                    f"the state was written by a newer version (schema {version}, known {len(MIGRATIONS)})"
                )
            for step in MIGRATIONS[version:]:
                if isinstance(step, str):
                    for statement in filter(str.strip, step.split(";")):
                        self._db.execute(statement)
                else:
                    step(self._db)
            self._db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

    @contextlib.contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """One transaction."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield self._db
            self._db.execute("COMMIT")
        except BaseException as error:
            if self._db.in_transaction:  # a full disk has rolled it back already
                self._db.execute("ROLLBACK")
            if isinstance(error, sqlite3.OperationalError):  # locked, full, or broken
                raise StateUnsaved(
                    f"the agent's state ({self._path}) can't be written: {error}",
                    hint="does its disk have room, and does nobody else hold the file?",
                ) from error
            raise

    def rows(self, sql: str, *values: object) -> list[dict[str, Any]]:
        try:
            return [dict(row) for row in self._db.execute(sql, values)]
        except sqlite3.OperationalError as error:
            raise StateError(f"the agent's state ({self._path}) can't be read: {error}") from error

    # --- tokens -------------------------------------------------------------------------------

    def add_token(self, name: str, role: AccessRole) -> tuple[str, str]:
        """(id, text): the text is given to the user once and not kept."""
        identity, text, kept = new_token()
        with self.write() as db:
            db.execute(
                "INSERT INTO token VALUES (?, ?, ?, ?, ?, ?, NULL)",
                (identity, name, role, kept.salt, kept.digest, time.time_ns()),
            )
        return identity, text

    def caller(self, text: str) -> Caller | None:
        """Whose token `text` is; None when it is nobody's, or was revoked."""
        parts = split_token(text)
        if parts is None:
            return None
        rows = self.rows("SELECT * FROM token WHERE id = ? AND revoked_ns IS NULL", parts[0])
        if not rows or not Kept(rows[0]["salt"], rows[0]["digest"]).matches(parts[1]):
            return None
        return Caller(rows[0]["name"], AccessRole(rows[0]["role"]))

    def tokens(self) -> list[dict[str, Any]]:
        return self.rows("SELECT id, name, role, created_ns, revoked_ns FROM token ORDER BY created_ns")

    def revoke_token(self, identity: str) -> bool:
        """True when it was valid until now; NotFound when there is none of that id."""
        with self.write() as db:
            if not db.execute("SELECT 1 FROM token WHERE id = ?", (identity,)).fetchone():
                raise NotFound(f"there is no token {identity!r}")
            done = db.execute(
                "UPDATE token SET revoked_ns = ? WHERE id = ? AND revoked_ns IS NULL",
                (time.time_ns(), identity),
            )
            return done.rowcount == 1

    # --- nodes --------------------------------------------------------------------------------

    def add_invite(self, node: str, ttl_s: float) -> tuple[str, str, int]:
        """(id, secret, expires_ns); earlier invitations of that node no longer count."""
        secret, kept = new_secret()
        identity = os.urandom(8).hex()
        now_ns = time.time_ns()
        expires_ns = now_ns + int(ttl_s * 1e9)
        with self.write() as db:
            db.execute("DELETE FROM invite WHERE node = ? OR expires_ns < ?", (node, now_ns - 10**15))
            db.execute(
                "INSERT INTO invite VALUES (?, ?, ?, ?, ?, ?, NULL)",
                (identity, node, kept.salt, kept.digest, now_ns, expires_ns),
            )
        return identity, secret, expires_ns

    def use_invite(self, identity: str, secret: str, now_ns: int) -> str | None:
        """The node that was invited, once; None when the invitation is unknown, used or over."""
        with self.write() as db:
            row = db.execute(
                "SELECT * FROM invite WHERE id = ? AND used_ns IS NULL AND expires_ns > ?", (identity, now_ns)
            ).fetchone()
            if row is None or not Kept(row["salt"], row["digest"]).matches(secret):
                return None
            db.execute("UPDATE invite SET used_ns = ? WHERE id = ?", (now_ns, identity))
            return str(row["node"])

    def put_node(self, name: str, api: str, link: str) -> None:
        with self.write() as db:
            db.execute("INSERT OR REPLACE INTO node VALUES (?, ?, ?, ?)", (name, api, link, time.time_ns()))

    def nodes(self) -> list[dict[str, Any]]:
        return self.rows("SELECT * FROM node ORDER BY name")

    # --- what is deployed and what should run -------------------------------------------------

    def add_deployment(self, digest: str, text: str, by: str) -> int:
        """The version that this deployment got."""
        with self.write() as db:
            (version,) = db.execute("SELECT coalesce(max(version), 0) + 1 FROM deployment").fetchone()
            db.execute(
                "INSERT INTO deployment VALUES (?, ?, ?, ?, ?)", (version, digest, text, by, time.time_ns())
            )
            db.execute("DELETE FROM deployment WHERE version <= ?", (version - DEPLOYMENTS_MAX,))
        return int(version)

    def deployments(self) -> list[dict[str, Any]]:
        """Newest first, without their texts."""
        return self.rows("SELECT version, digest, by, at_ns FROM deployment ORDER BY version DESC")

    def desired(self) -> dict[str, str]:
        """`running` or `stopped` of every group that was ever started and not removed since."""
        return {row["grp"]: row["state"] for row in self.rows("SELECT grp, state FROM desired")}

    def set_desired(self, group: str, state: str, by: str) -> bool:
        """True when that is a change."""
        with self.write() as db:
            row = db.execute("SELECT state FROM desired WHERE grp = ?", (group,)).fetchone()
            db.execute(
                "INSERT OR REPLACE INTO desired VALUES (?, ?, ?, ?)", (group, state, by, time.time_ns())
            )
        return row is None or row["state"] != state

    def forget_desired(self, group: str) -> None:
        with self.write() as db:
            db.execute("DELETE FROM desired WHERE grp = ?", (group,))

    # --- runs of procedures -------------------------------------------------------------------

    def put_run(self, run: Run) -> None:
        with self.write() as db:
            db.execute(
                "INSERT INTO run VALUES (?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (id) DO UPDATE SET is_over = excluded.is_over, state = excluded.state",
                (
                    run.id,
                    run.application,
                    run.procedure,
                    not run.blocks,
                    run.created_ns,
                    msgspec.json.encode(run).decode(),
                ),
            )

    def run(self, identity: str) -> Run:
        rows = self.rows("SELECT state FROM run WHERE id = ?", identity)
        if not rows:
            raise NotFound(f"there is no run {identity!r}", hint="`castling switch history` lists them")
        return msgspec.json.decode(rows[0]["state"], type=Run)

    def runs(self, limit: int) -> list[Run]:
        """The newest `limit`, newest first."""
        rows = self.rows("SELECT state FROM run ORDER BY created_ns DESC, id DESC LIMIT ?", limit)
        return [msgspec.json.decode(row["state"], type=Run) for row in rows]

    def blocking_runs(self) -> list[Run]:
        """Those that are not over, and those that failed and that nobody has acknowledged; oldest first."""
        rows = self.rows("SELECT state FROM run WHERE is_over = 0 ORDER BY created_ns, id")
        return [msgspec.json.decode(row["state"], type=Run) for row in rows]

    def unfinished_runs(self) -> list[Run]:
        return [run for run in self.blocking_runs() if not run.ended]

    # --- what happened ------------------------------------------------------------------------

    def add_event(self, name: str, fields: dict[str, Any]) -> None:
        """An event that finds no room on the disk is dropped: supervision goes on, the log has it too."""
        with contextlib.suppress(StateUnsaved), self.write() as db:
            added = db.execute(
                "INSERT INTO event (at_ns, name, fields) VALUES (?, ?, ?)",
                (time.time_ns(), name, msgspec.json.encode(fields).decode()),
            )
            db.execute("DELETE FROM event WHERE id <= ?", ((added.lastrowid or 0) - EVENTS_MAX,))

    def events(self, limit: int) -> list[dict[str, Any]]:
        """The newest `limit` events, oldest first."""
        rows = self.rows("SELECT * FROM event ORDER BY id DESC LIMIT ?", limit)
        return [{**row, "fields": msgspec.json.decode(row["fields"])} for row in reversed(rows)]

    # --- who did what -------------------------------------------------------------------------

    def add_access(self, who: str, action: str, subject: str, outcome: str) -> None:
        """One more entry of the access log's chain."""
        with self.write() as db:
            access_log.append(db, time.time_ns(), who, action, subject, outcome)

    def access_entries(self, limit: int) -> list[dict[str, Any]]:
        """The newest `limit` entries, oldest first."""
        return list(reversed(self.rows("SELECT * FROM access ORDER BY id DESC LIMIT ?", limit)))
