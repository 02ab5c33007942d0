"""castling audit: compare both ends under load, look at what differs, repair it."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import typer

from castling.cli.output import Result, ask, columns, say
from castling.cli.session import Session, Yes, command
from castling.errors import FindingsExist, UsageError

__all__ = ["register"]

#: longer than a repair may take, seconds
REPAIR_S = 3600.0
_LOOK_S = 0.5
#: findings that are shown to people
SHOWN = 20
_BAR = 30

Group = Annotated[str, typer.Argument(help="Name of the group.")]
Backup = Annotated[
    str | None,
    typer.Option("--backup", envvar="CASTLING_BACKUP", help="Which backup, where there are several."),
]
Json = dict[str, Any]


def register(app: typer.Typer) -> None:
    """Add `castling audit`."""
    audits = typer.Typer(
        help="Prove that the backup is equal; repair what is not.",
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.add_typer(audits, name="audit")
    command(audits, "run")(_run)
    command(audits, "list")(_list)
    command(audits, "show")(_show)
    command(audits, "repair")(_repair)
    command(audits, "stop")(_stop)


def _run(
    session: Session,
    group: Group,
    table: Annotated[
        list[str] | None,
        typer.Option("--table", envvar="CASTLING_TABLE", help="Only these, schema.table; repeatable."),
    ] = None,
    rule: Annotated[
        list[str] | None,
        typer.Option("--rule", envvar="CASTLING_RULE", help="Only these rules; repeatable."),
    ] = None,
    due: Annotated[
        bool, typer.Option("--due", envvar="CASTLING_DUE", help="Only what is due, as in the window.")
    ] = False,
    backup: Backup = None,
    detach: Annotated[
        bool, typer.Option("--detach", envvar="CASTLING_DETACH", help="Begin it, and don't wait.")
    ] = False,
) -> Result:
    """Compare both ends at one position while writers run. Exit code 3 when something differs."""
    body = {
        "backup": backup,
        "scope": "due" if due else "all",
        "parts": table or [],
        "rules": rule or [],
    }
    begun = session.call("POST", f"/v1/groups/{group}/audits", body)
    if detach:
        return Result(begun, "\n".join(f"{each['id']}: begun" for each in begun["audits"]))
    found = [_waited(session, group, each["id"]) for each in begun["audits"]]
    data = {"group": group, "audits": found}
    bad = any(each["findings"] or each["state"] != "done" or each["facts"]["unknown"] for each in found)
    return Result(data, "\n".join(map(_told, found)), FindingsExist.exit_code if bad else 0)


def _waited(session: Session, group: str, identity: str) -> Json:
    """Until it has ended; with a bar for people who look at a terminal."""
    path = f"/v1/groups/{group}/audits/{identity}"
    shown = sys.stderr.isatty() and not session.json
    while True:
        found: Json = session.call("GET", path)
        if shown:
            sys.stderr.write(f"\r\x1b[K{_bar(found)}")
            sys.stderr.flush()
        if found["state"] != "running":
            break
        time.sleep(_LOOK_S)
    if shown:
        say("")
    return found


def _bar(run: Json) -> str:
    facts = run["facts"]
    total = facts.get("parts_total") or 0
    done = facts.get("parts_done") or 0
    share = min(1.0, facts.get("bytes", 0) / max(1, facts.get("bytes_total") or 1)) if total else 0.0
    share = max(share * 0.98, done / total) if total else 0.0
    filled = int(share * _BAR)
    rows = facts.get("rows", 0)
    return f"[{'#' * filled}{'.' * (_BAR - filled)}] {done}/{total}  {rows} rows  {run['now'][:30]}"


def _list(session: Session, group: Group) -> Result:
    """Show age and result of the last full audit, and the audits there were."""
    data = session.call("GET", f"/v1/groups/{group}/audits")
    lines = [_age(group, each) for each in data["latest"]]
    rows = [
        [
            each["id"],
            each["backup"],
            each["state"],
            each["scope"],
            _when(each["begun_ns"]),
            str(each["facts"].get("parts_done", "-")),
            str(each["facts"].get("differing", "-")),
            each["by"][:20],
        ]
        for each in data["audits"]
    ]
    if rows:
        lines.append(columns(["ID", "BACKUP", "STATE", "SCOPE", "BEGUN", "PARTS", "DIFFER", "BY"], rows))
    return Result(data, "\n".join(lines))


def _age(group: str, latest: Json) -> str:
    age_s = latest["full_age_s"]
    told = "unknown (some part was never compared)" if age_s is None else f"{_span(age_s)} ago"
    number = "unknown" if latest["open"] is None else str(latest["open"])
    return (
        f"{group} on {latest['backup']}: {latest['result']}; last full audit: {told}; open findings: {number}"
    )


def _show(
    session: Session,
    group: Group,
    identity: Annotated[
        str | None, typer.Argument(help="Of one audit; all that is open without.", metavar="[ID]")
    ] = None,
) -> Result:
    """Show findings with the rows of both ends. Exit code 3 while any is open."""
    path = f"/v1/groups/{group}/audits/{identity or 'findings'}"
    data = session.call("GET", path)
    is_open = any(each["state"] == "open" for each in data["findings"])
    text = _told(data) if identity else _findings(data["findings"]) or f"{group}: no open finding"
    return Result(data, text, FindingsExist.exit_code if is_open else 0)


def _repair(
    session: Session,
    group: Group,
    finding: Annotated[
        list[int] | None,
        typer.Argument(help="Numbers of findings; all open ones without.", metavar="[FINDING...]"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", envvar="CASTLING_DRY_RUN", help="Only show what would be done.")
    ] = False,
    backup: Backup = None,
    yes: Yes = False,
) -> Result:
    """Mend what was found, through the stream where rows are concerned, and audit it again."""
    path = f"/v1/groups/{group}/audits/repair"
    body = {"backup": backup, "findings": finding or [], "dry_run": True}
    plan = session.call("POST", path, body)
    text = _plan(plan)
    is_nothing = not any(each["plan"] for each in plan["streams"])
    if dry_run or is_nothing:
        return Result(plan, text)
    if not (yes or ask(f"{text}\nDo it?")):
        raise UsageError("not confirmed; nothing was changed", hint="--yes repairs without asking")
    data = session.call("POST", path, {**body, "dry_run": False}, timeout_s=REPAIR_S)
    lines = [
        f"finding {each['id']}: {each['result']}{': ' if each['detail'] else ''}{each['detail']}"
        for stream in data["streams"]
        for each in stream["repaired"]
    ]
    lines.append(f"{group}: audited again, open findings: {data['open']}")
    return Result(data, "\n".join(lines), FindingsExist.exit_code if data["open"] else 0)


def _stop(session: Session, group: Group) -> Result:
    """End the audits of a group that are running; what they compared is kept."""
    data = session.call("POST", f"/v1/groups/{group}/audits/stop")
    return Result(data, f"{group}: {len(data['stopped'])} told to stop")


# --- words ------------------------------------------------------------------------------------


def _told(run: Json) -> str:
    facts = run["facts"]
    lines = [
        f"audit {run['id']} of {run['group']} on {run['backup']}: {run['state']}"
        f"{' (' + run['why'] + ')' if run['why'] else ''}; {facts.get('parts_done', 0)} compared,"
        f" {facts.get('rows', 0)} rows, {facts.get('differing', 0)} differ,"
        f" {facts.get('unknown', 0)} could not be told"
    ]
    found = _findings(run["findings"])
    return "\n".join([*lines, found] if found else lines)


def _findings(findings: list[Json]) -> str:
    lines = []
    for each in findings[:SHOWN]:
        lines.append(f"{each['id']}  {each['what']}  {each['message']}  [{each['state']}]")
        for side in ("source", "target"):
            if each[side] is not None:
                values = {name: each[side][name] for name in each["columns"] or each[side]}
                lines.append(
                    f"    {side}: " + ", ".join(f"{name}={value!r}" for name, value in values.items())
                )
    if len(findings) > SHOWN:
        lines.append(f"and {len(findings) - SHOWN} more; --json shows all")
    return "\n".join(lines)


def _plan(plan: Json) -> str:
    rows = [
        [str(each["id"]), stream["backup"], each["part"], each["what"], each["how"]]
        for stream in plan["streams"]
        for each in stream["plan"]
    ]
    if not rows:
        return f"{plan['group']}: there is nothing to repair"
    statements = [
        f"  {each['id']}: {each['statement']}"
        for stream in plan["streams"]
        for each in stream["plan"]
        if each["statement"]
    ]
    return "\n".join([columns(["FINDING", "BACKUP", "PART", "WHAT", "HOW"], rows), *statements])


def _when(at_ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(at_ns / 1e9))


def _span(seconds: float) -> str:
    for name, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name}"
    return f"{seconds:.0f} s"
