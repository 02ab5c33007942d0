"""The documented fields of every command's `--json` result.

`docs/reference/json.md` is written from this table, and the tests compare it with what
the commands print. Fields may be added in any version: readers ignore what they don't
know. A field is removed or changed only with a new major version.

A path names a field below `data`; `[]` goes into a list, `*` stands for any name.
"""

from __future__ import annotations

from typing import Any

__all__ = ["RESULTS", "undocumented"]

_MADE = (
    ("node", "name of the node"),
    ("home", "its folder"),
    ("ca_fingerprint", "SHA-256 of the CA's certificate, hexadecimal"),
    ("token", "text of the new admin token, this once; null when nothing was made"),
)
_PLAN = (
    ("digest", "SHA-256 of the written text"),
    ("changes", "what differs, a list"),
    ("changes[].path", "key"),
    ("changes[].kind", "added, removed or changed"),
    ("changes[].old", "value that runs, null for none"),
    ("changes[].new", "value that is written, null for none"),
    *(
        (f"{key}{field}", text)
        for key, what in (
            ("added", "ends that are new"),
            ("removed", "ends that end"),
            ("restarts", "ends that begin anew"),
        )
        for field, text in (
            ("", f"{what}, a list"),
            ("[].group", "group"),
            ("[].backup", "backup of the stream"),
            ("[].end", "source, receive or apply"),
        )
    ),
    ("refused", "why it can't be deployed now, a list of texts"),
    ("notes", "what else has to be done, a list of texts"),
    ("running", "digest of what runs here, empty for nothing (plans only)"),
    ("nodes", "the nodes that were asked, by name"),
    ("nodes.*.version", "version of the node's agent"),
    ("nodes.*.current", "true when it already runs the written text"),
)
_FINDINGS = (
    ("findings", "answers of the check, a list"),
    ("findings[].backup", "backup of the stream"),
    ("findings[].severity", "refused, warning, change or ok"),
    ("findings[].object", "what it is about, such as public.orders"),
    ("findings[].code", "stable word"),
    ("findings[].message", "what was found"),
    ("findings[].hint", "what to do, may be empty"),
    ("findings[].context", "more, by name; depends on the code"),
)
_REHEARSAL = (
    ("id", "which it is"),
    ("group", "name"),
    ("backup", "node whose replica was copied"),
    ("state", "opening, open, closing or closed"),
    ("by", "who opened it"),
    ("begun_ns", "when that was, ns since 1970"),
    ("opened_ns", "since when it can be written, or null"),
    ("until_ns", "when it ends by itself"),
    ("closed_ns", "when it ended, or null"),
    ("why", "why it ended"),
    ("database", "name of the copy on the backup's server; null: there was none"),
    ("position", "source position at which it was taken, or null"),
    ("shares_blocks", "true: it takes room only for what is written in it; null: not known"),
    ("size", "size of the replica, bytes, or null"),
    ("opened_s", "how long the copy took, seconds, or null"),
    ("apply_paused_s", "how long nothing was applied meanwhile, seconds, or null"),
)
_LATEST = (
    ("backup", "backup of the stream"),
    ("result", "equal, differs or unknown (also when some part was never compared)"),
    (
        "full_ns",
        "when the part was compared that was compared longest ago, ns since 1970; null: some never was",
    ),
    ("full_age_s", "seconds since then; null: unknown"),
    ("parts", "tables and rules that there are"),
    ("never", "of these, never compared"),
    ("differing", "of these, with a difference"),
    ("unknown", "of these, such as could not be told the last time"),
    ("open", "open findings; null: nothing was ever audited"),
    ("running", "id of the audit that is running; else null"),
)
_AUDIT = (
    ("id", "of the audit"),
    ("group", "group"),
    ("backup", "backup of the stream"),
    ("state", "running, done, stopped or failed"),
    ("scope", "all, due or repair"),
    ("by", "who asked for it, or window"),
    ("begun_ns", "since when, ns since 1970"),
    ("ended_ns", "until when; null while it runs"),
    ("why", "why it was stopped or has failed; else empty"),
    ("now", "what was compared last, while it runs"),
    ("facts", "figures"),
    ("facts.parts_total", "tables and rules to be compared"),
    ("facts.parts_done", "of these, done"),
    ("facts.rows", "rows read on the source"),
    ("facts.bytes", "bytes read there"),
    ("facts.bytes_total", "bytes of the tables to be compared"),
    ("facts.differing", "parts that differ"),
    ("facts.unknown", "parts that could not be told"),
    ("facts.busy_s", "how long the source worked for it, seconds"),
    ("facts.seconds", "how long it took, seconds"),
    ("facts.apply_paused_s", "how long apply stood still for it at a time, at most; null: not known"),
)
_AUDIT_FINDING = (
    ("id", "its number"),
    ("backup", "backup of the stream"),
    ("run", "id of the audit"),
    ("state", "open, repaired or gone (not found any more)"),
    ("found_ns", "when, ns since 1970"),
    ("closed_ns", "when it was closed; null while it is open"),
    ("rule", "rows, sequences, definitions, grants or protection"),
    ("part", "table or object, by the primary's name"),
    ("what", "missing, extra, different, more (rows that are not listed), behind, …"),
    ("message", "for people"),
    ("key", "the row's key by column, as text; null: it has none"),
    ("source", "what the source has, by column, as text, long values cut; null: nothing"),
    ("target", "what the target has"),
    ("columns", "the columns that differ, a list"),
    ("times", "how many equal rows it is about"),
    ("mend", "row, copy, sequence, statement; empty: only a person can"),
    ("statement", "what a repair runs on the target; else empty"),
    ("token", "what the repair needs, by name"),
)
_LAG = (("p50", "median"), ("p99", "99th percentile"), ("max", "greatest"), ("samples", "commits measured"))
_WARNING = (("code", "stable word"), ("message", "for people"), ("hint", "what to do"))
_STAGES = ("captured", "hardened", "applied", "released")
_STATES = (
    "starting, seeding, running, waiting, given-up (a new copy is made when the backup is back), pausing "
    "(starts again soon), stopped, failed, unknown"
)
_STREAM = (
    ("backup", "node that holds the copy"),
    ("state", "that of its worst end, or journal-full, or on-hold"),
    ("link", "up, down or unknown"),
    ("mode", "async; sync while commits wait for the backup; sync:STATE while they don't"),
    ("nodes", "node of each end, by source, receive, apply"),
    ("positions", "how far each stage is"),
    *((f"positions.{stage}", "epoch/seq, or null") for stage in _STAGES),
    ("rpo_s", "age of the oldest commit that is not hardened on the backup, seconds; null: unknown"),
    ("rpo", "seconds from commit to hardened"),
    *((f"rpo.{key}", text) for key, text in _LAG),
    ("apply_lag_s", "age of the oldest hardened commit that is not applied, seconds; null: unknown"),
    ("apply_lag", "seconds from commit to applied"),
    *((f"apply_lag.{key}", text) for key, text in _LAG),
    ("warnings", "what does not stop the stream, but leaves something unprotected or will stop it"),
    *((f"warnings.*.{key}", text) for key, text in _WARNING),
    ("left_behind", "what belongs to the group but is not carried (unlogged tables, materialized views), a "
     "list; null: not known"),
    ("audit", "age and result of the last full audit; null: not known"),
    *((f"audit.{key}", text) for key, text in _LATEST),
    ("foreign_writes", "writes on the target that are not Castling's; null: not known"),
    ("foreign_writes.mode", "watch or ignore"),
    ("foreign_writes.tables", "tables of the group there, partitions too; null: not known"),
    ("foreign_writes.unwatched", "of these, without a trigger yet; null: not known"),
    ("foreign_writes.open", "transactions that nobody has acknowledged; null: not known"),
    ("foreign_writes.parts", "what they did, by table, a list, 20 at most: part, transactions, inserted, "
     "updated, deleted, uncounted, others, first_ns, last_ns, last_by, what"),
    ("foreign_writes.at_ns", "as of when, ns since 1970; null: not known"),
    ("holds", "parts (tables) of the target that stand still, oldest first; null: not known yet"),
    ("holds.*.part", "which, such as public.orders"),
    ("holds.*.state", "held, copying (anew), releasing or lost (its changes are no longer kept)"),
    ("holds.*.offset", "source position up to which it is whole"),
    ("holds.*.since_ns", "since when, ns since 1970"),
    ("holds.*.age_s", "for how long, seconds"),
    ("holds.*.reason", "why"),
    ("holds.*.sqlstate", "the server's code, or null"),
    ("holds.*.pinned_bytes", "what it keeps of the journal, bytes"),
    ("holds.*.copy", "its new copy while it is under way; else null"),
    ("holds.*.copy.part", "the same name"),
    ("holds.*.copy.rows", "rows sent"),
    ("holds.*.copy.bytes", "bytes sent"),
    ("holds.*.copy.bytes_total", "bytes in all, an estimate"),
    ("holds.*.copy.started_ns", "since when, ns since 1970"),
    ("definitions", "how the target's definitions compare with the source's"),
    ("definitions.differ", "what is not as on the source, by kind and name, a list; null: not known"),
    ("definitions.as_of_ns", "when it was looked at, ns since 1970; null: not known"),
    ("beside", "what is carried beside the changes, by name (sequences, …): carried, as_of_s (age of what "
     "the target has), looked_ns, told_ns, applied_ns and more; null for what is not known"),
    ("seed", "the first copy: phase, rows, rows_total, bytes, bytes_total, started_ns, tables_done, "
     "tables_total, eta_s, attempts, rows_kept (of rows, what attempts before have brought), rows_renewed "
     "(read once more, because they have changed since); null before it"),
    ("ends", "each end's own report, by source, receive, apply; of one that is gone or silent only what "
     "that does not change"),
    ("ends.*.state", _STATES),
    ("ends.*.error", "code, message, hint, retryable, exit_code, context; or null"),
    ("ends.*.supervisor", "what the agent sees: running, pausing, stopped or failed"),
    ("ends.*.restarts", "times the agent started it anew"),
    ("ends.*.pid", "its process; null: none runs"),
    ("ends.*.detail", "a sentence"),
    ("ends.*.capture.wal", "what the source keeps of its log for the stream; null for what is not known"),
    ("ends.*.capture.wal.retained_bytes", "in all, what open transactions pin included"),
    ("ends.*.capture.wal.waiting_bytes", "of it, what neither the backup nor the spool has taken"),
    ("ends.*.capture.wal.lasts_s", "until the server takes it away (max_slot_wal_keep_size), seconds"),
    ("ends.*.capture.wal.limit_in_s", "until the backup is given up (wal_limit), seconds"),
    ("ends.*.capture.wal.disk_full_in_s", "until the disk of the source's log is full, seconds"),
    ("ends.*.spool", "where changes wait while the backup is away; null without wal_spool"),
    ("ends.*.spool.state", "empty, kept (what was on its way), filling, sending or full"),
    ("ends.*.spool.bytes", "its size on disk"),
    ("ends.*.spool.unsent_bytes", "of it, what the backup has not acknowledged, about"),
    ("ends.*.spool.full_in_s", "until it takes nothing more, seconds; null: not in sight or not known"),
)  # fmt: skip
_GROUP = (
    ("group", "name"),
    ("kind", "what is replicated"),
    ("primary", "node that holds the original"),
    ("backups", "nodes that hold a copy"),
    ("delivery", "async or sync"),
    ("desired", "running, stopped, or new when it was never started"),
    ("state", "that of its worst stream"),
)
_TREE = (
    *_GROUP,
    ("configured_primary", "the primary that castling.toml names"),
    ("epoch", "counts role changes; that of the current primary"),
    ("capture_on", "node that captures"),
    ("node", "node that answered"),
    ("streams", "one for each backup"),
    *((f"streams[].{key}", text) for key, text in _STREAM),
)


def _listed(fields: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    return tuple((f"[].{key}", text) for key, text in fields)


def _done(*words: str) -> tuple[tuple[str, str], ...]:
    return (("group", "name"), ("result", " or ".join(words)))


_PARTS = (
    ("group", "name"),
    ("action", "hold, release or resync"),
    ("parts", "the tables that it concerns, a list"),
    ("parts[].backup", "on which backup"),
    ("parts[].part", "which, such as public.orders"),
    ("parts[].result", "asked, already_asked, already_held, already_releasing, already_copying or not_held"),
)

_RUN_LINE = (
    ("run", "its id"),
    ("application", "what it concerns"),
    ("procedure", "id of the procedure"),
    ("title", "its title"),
    (
        "status",
        "active, waiting, rolling-back, failed, completed, completed-with-errors, rolled-back or aborted",
    ),
    ("acknowledged_by", "who has said that its failure was seen, or empty"),
    ("blocks", "true: no other run of this procedure may start before this one is over or acknowledged"),
    ("asks", "what it waits for, or empty"),
    ("old", "the primary before"),
    ("new", "the primary after"),
    ("coordinator", "node that the run lives on"),
    ("by", "who started it"),
    ("created_ns", "when, ns since 1970"),
    ("ended_ns", "when it ended; null: it has not"),
    ("duration_s", "from start to end, seconds; null: not over"),
    ("pause_s", "the longest that a client may have been kept from writing, seconds; null: not measured"),
    ("rto_s", "from start until the new primary was open, seconds; null: it was not"),
    ("rpo_s", "what was lost, seconds of commits: 0 where equality was proven; null: not known"),
)
_RUN = (
    *_RUN_LINE,
    ("groups", "its groups in order"),
    ("epochs", "by group, the epoch of the new primary"),
    ("aborted_by", "who aborted it, or empty"),
    ("overrides", "gates that were passed over"),
    ("findings", "what the preflight found: gate, severity, object, message, hint, overridable each"),
    ("steps", "its steps, one entry for each group"),
    ("steps[].number", "number"),
    ("steps[].name", "name"),
    ("steps[].title", "what it does"),
    ("steps[].group", "of which group; null: of the application"),
    ("steps[].nodes", "where it is done"),
    ("steps[].state", "pending, waiting, active, done, failed, overridden, skipped or rolled-back"),
    ("steps[].attempts", "how often it was begun"),
    ("steps[].began_ns", "when it began, ns since 1970, or null"),
    ("steps[].ended_ns", "when it ended, or null"),
    ("steps[].duration_s", "seconds, or null"),
    ("steps[].overridable", "true: a person may go on without it"),
    ("steps[].approved_by", "who approved it, or empty"),
    ("steps[].overridden_by", "who went on without it, or empty"),
    ("steps[].reason", "their reason"),
    ("steps[].evidence", "what it found and did, by name"),
    ("steps[].error", "code, message, hint, retryable, exit_code, context; or null"),
    ("steps[].outputs", "what scripts said: script, path, exit_code, seconds, output each"),
    ("digest", "SHA-256 of the rest, as JSON with sorted keys"),
)

RESULTS: dict[str, tuple[tuple[str, str], ...]] = {
    "switch plan": (
        ("application", "what it concerns"),
        ("procedure", "id of the procedure"),
        ("title", "its title"),
        ("clients", "what clients notice"),
        ("groups", "its groups in order"),
        ("old", "the primary now"),
        ("new", "the primary after"),
        ("coordinator", "node that the run will live on"),
        ("findings", "what the preflight finds: gate, severity, object, message, hint, overridable each"),
        ("refused", "how many of them keep it from starting"),
        (
            "steps",
            "its steps, one entry for each group: number, name, title, place, group, nodes, limit_s, opens "
            "(no way back after it), scripts (of yours, before and after it), and what is not as usual",
        ),
    ),
    **{
        f"switch {word}": _RUN
        for word in ("start", "resume", "approve", "override", "abort", "acknowledge", "show")
    },
    "switch history": (
        ("runs", "the newest runs of all nodes, newest first"),
        *((f"runs[].{field}", what) for field, what in _RUN_LINE),
        ("unknown", "by node that did not answer, why"),
    ),
    "init": (("result", "initialised or already_initialised"), *_MADE),
    "join": (("result", "joined or already_joined"), *_MADE, ("table", "the node's table for castling.toml")),
    "invite": (
        ("node", "name of the invited node"),
        ("token", "what it joins with, once"),
        ("expires_ns", "until when, nanoseconds since 1970"),
    ),
    "agent": (),
    "token create": (
        ("id", "by which it is revoked"),
        ("name", "whose"),
        ("role", "role"),
        ("token", "text, this once"),
    ),
    "token recover": (
        ("name", "whose token it is"),
        ("role", "admin"),
        ("node", "the node whose agent takes it"),
        ("token", "text, this once"),
    ),
    "token list": _listed(
        (
            ("id", "by which it is revoked"),
            ("name", "whose"),
            ("role", "role"),
            ("created_ns", "nanoseconds since 1970"),
            ("revoked_ns", "nanoseconds since 1970, or null"),
        )
    ),
    "token revoke": (("id", "the token's id"), ("result", "revoked or already_revoked")),
    "node list": _listed(
        (
            ("node", "name"),
            ("api", "address of its agent"),
            ("link", "where it receives records"),
            ("deployed", "true when it is in the deployed configuration"),
            ("here", "true for the node that answered"),
        )
    ),
    "user add": (("name", "name"), ("role", "role"), ("result", "added")),
    "user list": _listed(
        (
            ("name", "name"),
            ("role", "role"),
            ("created_ns", "ns since 1970"),
            ("changed_ns", "when the password was set, ns since 1970"),
        )
    ),
    "user passwd": (("name", "name"), ("result", "changed")),
    "user remove": (("name", "name"), ("result", "removed")),
    "access-log list": _listed(
        (
            ("id", "number of the entry"),
            ("at_ns", "when, ns since 1970"),
            ("who", "user or node"),
            ("action", "what was asked for"),
            ("subject", "of what"),
            ("outcome", "done, or the code of the error"),
            ("hash", "of the entry and the hash before it"),
        )
    ),
    "access-log verify": (
        ("ok", "true when every entry is as it was written"),
        ("broken_at", "the first entry that is not, or null"),
        ("problem", "for people; empty when ok"),
        ("entries", "how many were verified"),
        ("first", "number of the oldest that is kept"),
        ("head", "ID:HASH of the newest verified one: keep it elsewhere"),
        ("expected", "of --head: found, changed, or unknown (no longer kept); null without"),
    ),
    "deploy": (("result", "deployed, already_deployed or planned"), *_PLAN),
    "check": (
        ("group", "name"),
        ("node", "node that looked"),
        ("refused", "number of findings that refuse the start"),
        *_FINDINGS,
    ),
    "group compare-schema": (
        ("group", "name"),
        ("node", "node that looked"),
        ("differences", "number of findings that are differences"),
        *_FINDINGS,
    ),
    "group foreign-writes": (
        ("group", "name"),
        ("acknowledged", "true when they were acknowledged by this"),
        ("open", "how many of them nobody has acknowledged"),
        ("writes", "each transaction on each table, newest first, a list"),
        ("writes[].backup", "on which backup"),
        ("writes[].number", "by which notes are told apart; later ones have greater ones"),
        ("writes[].part", "table, such as public.orders"),
        (
            "writes[].operation",
            "INSERT, UPDATE or DELETE (the first of the transaction), TRUNCATE, the tag of a DDL "
            "command, or WATCH REMOVED: a trigger was found missing or disabled",
        ),
        ("writes[].at_ns", "when, ns since 1970"),
        ("writes[].login", "user who had logged in; null: not known"),
        ("writes[].role", "role set by SET ROLE, or null"),
        ("writes[].application", "application_name"),
        ("writes[].client", "address, null: by a socket of the machine"),
        ("writes[].pid", "server process"),
        ("writes[].inserted", "rows; null: not known"),
        ("writes[].updated", "rows; null: not known"),
        ("writes[].deleted", "rows; null: not known"),
        ("writes[].who", "for people"),
        ("writes[].what", "for people"),
        ("writes[].acknowledged_ns", "when it was, ns since 1970; null: it was not"),
        ("writes[].acknowledged_by", "by whom, or null"),
    ),
    "group copy-unlogged": (
        ("group", "name"),
        ("node", "node that copied"),
        ("failed", "number of objects that were not copied"),
        ("copied", "what was done, a list"),
        ("copied[].backup", "backup of the stream"),
        ("copied[].object", "table or view"),
        ("copied[].rows", "rows copied; null for a view, or when it failed"),
        ("copied[].problem", "why it was not copied, empty when it was"),
    ),
    "group list": _listed(_GROUP),
    "group start": (
        *_done("started", "already_running", "reseeding"),
        ("node", "node that ran the check; empty where it already ran"),
        ("refused", "always 0: a refusal is an error"),
        *_FINDINGS,
    ),
    "group stop": _done("stopped", "already_stopped"),
    "group hold": _PARTS,
    "group resync": _PARTS,
    "group release": _PARTS,
    "group remove": _done("removed", "already_removed"),
    "group status": (*_TREE, ("[]", "without a name: a list of the above")),
    "group watch": (("[]", "one line per look: a list as of group status"),),
    "rehearsal open": _REHEARSAL,
    "rehearsal list": _listed(_REHEARSAL),
    "rehearsal close": (("result", "closed or already_closed"), *_REHEARSAL),
    "audit run": (
        ("group", "group"),
        ("audits", "one for each stream, a list"),
        *((f"audits[].{key}", text) for key, text in _AUDIT),
        ("audits[].findings", "what it found, a list (not with --detach)"),
        *((f"audits[].findings[].{key}", text) for key, text in _AUDIT_FINDING),
    ),
    "audit list": (
        ("group", "group"),
        ("latest", "of each stream, a list"),
        *((f"latest[].{key}", text) for key, text in _LATEST),
        ("audits", "the newest first, a list"),
        *((f"audits[].{key}", text) for key, text in _AUDIT),
    ),
    "audit show": (
        ("findings", "of the audit, or all that are open, a list"),
        *((f"findings[].{key}", text) for key, text in _AUDIT_FINDING),
        *_AUDIT,
    ),
    "audit repair": (
        ("group", "group"),
        ("dry_run", "true: nothing was changed"),
        ("open", "open findings"),
        ("streams", "by backup, a list"),
        ("streams[].backup", "backup of the stream"),
        ("streams[].plan", "what is to be done, a list"),
        ("streams[].plan[].how", "for people"),
        *(
            (f"streams[].plan[].{key}", text)
            for key, text in _AUDIT_FINDING
            if key in ("id", "rule", "part", "what", "key", "message", "mend", "statement")
        ),
        ("streams[].repaired", "what was done, a list"),
        ("streams[].repaired[].id", "number of the finding"),
        ("streams[].repaired[].result", "done, sent (not finished yet) or refused"),
        ("streams[].repaired[].detail", "more; may be empty"),
        ("streams[].audit", "the audit after it (as in audit list); null: nothing was repaired"),
        *((f"streams[].audit.{key}", text) for key, text in _AUDIT),
    ),
    "audit stop": (("group", "group"), ("stopped", "ids of the audits that were told to stop, a list")),
    "journal inspect": (
        ("[]", "one for each journal found"),
        ("[].folder", "its folder"),
        ("[].group", "group whose journal it is; null when nothing can be read"),
        ("[].journal_id", "changes whenever the journal is begun anew"),
        ("[].epoch", "epoch in which it is written"),
        ("[].epochs", "epoch/position at which each epoch began, a list"),
        ("[].tail", "position of the last intact record"),
        ("[].tail_offset", "source position of it"),
        ("[].tail_t_ns", "when it was captured, ns since 1970"),
        ("[].hardened", "position up to which all is acknowledged"),
        ("[].applied", "position up to which all is applied, as apply last said"),
        ("[].released", "position up to which the journal may forget"),
        ("[].bytes", "size of the segment files"),
        (
            "[].segments",
            "file, epoch, first, last, records, bytes, used, times of each, a list",
        ),
        ("[].segments[].*", "as above"),
        ("[].keyframes", "position and t_ns of records from which decoding may begin, a list"),
        ("[].keyframes[].*", "as above"),
        ("[].damage", "file, offset, position, reason and kind (rot or torn tail) of each, a list"),
        ("[].damage[].*", "as above"),
        ("[].records", "with --records: position, type, flags, t_ns, offset, file, at of each, a list"),
        ("[].records[].*", "as above"),
    ),
    "diagnose": (("file", "what was written"), ("bytes", "its size"), ("parts", "names of its parts")),
    "demo": (),
    "version": (("version", "of this program"),),
}
#: below these everything may stand: they belong to a kind, an end or a journal
_OPEN = (
    "audits[].findings[].key",
    "audits[].findings[].source",
    "audits[].findings[].target",
    "audits[].findings[].token",
    "findings[].key",
    "findings[].source",
    "findings[].target",
    "findings[].token",
    "streams[].plan[].key",
    "findings[].context",
    "streams[].ends.*",
    "streams[].seed",
    "streams[].beside",
    "streams[].nodes",
    "[].segments[].*",
    "[].keyframes[].*",
    "[].damage[].*",
    "[].records[].*",
)


def undocumented(command: str, data: Any) -> list[str]:
    """Fields in a result that the table does not know."""
    known = {path for path, _ in RESULTS[command]}
    known |= {path.removeprefix("[].") for path in known}
    return sorted(set(_unknown(data, "", known)))


def _unknown(value: Any, path: str, known: set[str]) -> list[str]:
    if isinstance(value, list):
        inner = f"{path}[]" if path else ""
        return [each for item in value for each in _unknown(item, inner, known)]
    if not isinstance(value, dict) or path in _OPEN:
        return []
    found = []
    for key, item in value.items():
        dot = f"{path}." if path else ""
        here = f"{dot}{key}" if f"{dot}{key}" in known else f"{dot}*"
        below_star = any(name.startswith(f"{dot}*") for name in known)
        if here not in known and not (here.endswith("*") and below_star):
            found.append(f"{dot}{key}")
        else:
            found += _unknown(item, here, known)
    return found
