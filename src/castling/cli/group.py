"""Commands of groups: check, start, stop, status, watch, list, compare-schema, copy-unlogged, remove."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import msgspec
import typer

from castling.cli import foreign, parts
from castling.cli.output import Result, ask, columns, say
from castling.cli.session import Session, Yes, command
from castling.cli.status import details, one_line, table
from castling.errors import AgentUnreachable, FindingsExist, UsageError

__all__ = ["register"]

#: longer than the kind may take to look at both ends, seconds
CHECK_S = 150.0
COPY_S = 3700.0
STOP_S = 90.0

Group = Annotated[str, typer.Argument(help="Name of the group.")]
Interval = Annotated[
    float, typer.Option("--interval", envvar="CASTLING_INTERVAL", min=0.1, help="Seconds between two looks.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    command(app, "check")(_check)
    groups = typer.Typer(help="Groups: what is replicated from where to where.", no_args_is_help=True)
    command(groups, "list")(_list)
    command(groups, "start")(_start)
    command(groups, "stop")(_stop)
    command(groups, "status")(_status)
    command(groups, "watch")(_watch)
    command(groups, "compare-schema")(_compare_schema)
    command(groups, "copy-unlogged")(_copy_unlogged)
    command(groups, "remove")(_remove)
    parts.register(groups)
    foreign.register(groups)
    app.add_typer(groups, name="group")


def _check(session: Session, group: Group) -> Result:
    """Say what can't be replicated and why, table by table. Changes nothing; exit code 3 if refused."""
    data = session.call("POST", f"/v1/groups/{group}/check", timeout_s=CHECK_S)
    return Result(data, _findings(data), FindingsExist.exit_code if data["refused"] else 0)


def _findings(data: dict[str, Any]) -> str:
    order = ["refused", "change", "warning", "ok"]
    found = sorted(data["findings"], key=lambda each: (order.index(each["severity"]), each["object"]))
    lines = _told(found)
    counts = ", ".join(
        f"{sum(each['severity'] == severity for each in found)} {severity}" for severity in order
    )
    verdict = "refused: the group would not start" if data["refused"] else "the group can start"
    return "\n".join([*lines, f"{data['group']}: {verdict} ({counts})"])


def _told(found: list[dict[str, Any]]) -> list[str]:
    lines = []
    for each in found:
        lines.append(f"{each['severity'].upper():8} {each['object']}  [{each['code']}]")
        lines.append(f"         {each['message']}")
        if each["hint"]:
            lines.append(f"         hint: {each['hint']}")
    return lines


def _compare_schema(session: Session, group: Group) -> Result:
    """Compare definitions, roles, settings of both sides. Changes nothing; exit code 3 if they differ."""
    data = session.call("POST", f"/v1/groups/{group}/compare-schema", timeout_s=CHECK_S)
    count = data["differences"]
    verdict = "no differences" if not count else f"{count} differences"
    text = "\n".join([*_told(data["findings"]), f"{group}: {verdict}"])
    return Result(data, text, FindingsExist.exit_code if count else 0)


def _copy_unlogged(session: Session, group: Group, yes: Yes = False) -> Result:
    """Copy unlogged tables as they are now; refresh materialized views. Exit code 3 if one fails."""
    if not (yes or ask(f"Empty {group}'s unlogged tables on the backup, and copy them anew?")):
        raise UsageError("not confirmed; nothing was changed", hint="--yes copies without asking")
    data = session.call("POST", f"/v1/groups/{group}/copy-unlogged", timeout_s=COPY_S)
    lines = []
    for each in data["copied"]:
        done = "refreshed" if each["rows"] is None else f"{each['rows']} rows copied"
        lines.append(f"{each['object']} to {each['backup']}: {each['problem'] or done}")
    lines = lines or [f"{group} has neither unlogged tables nor materialized views"]
    return Result(data, "\n".join(lines), FindingsExist.exit_code if data["failed"] else 0)


def _start(
    session: Session,
    group: Group,
    force: Annotated[
        bool, typer.Option("--force", envvar="CASTLING_FORCE", help="Refused, with the reason why.")
    ] = False,
    reseed: Annotated[
        bool,
        typer.Option(
            "--reseed", envvar="CASTLING_RESEED", help="Throw the copy away and make the first copy anew."
        ),
    ] = False,
    yes: Yes = False,
) -> Result:
    """Check, then run the group; the first start makes the first copy. Asks only before --reseed."""
    if force:
        raise UsageError(
            "what the check refuses would be lost or would stop the group; that can't be forced",
            hint=f"`castling check {group}` names it; exclude it in castling.toml or change the source",
        )
    if reseed and not (yes or ask(f"Empty {group}'s tables on the backup, and copy all of them anew?")):
        raise UsageError("not confirmed; nothing was changed", hint="--yes reseeds without asking")
    action = "reseed" if reseed else "start"
    data = session.call("POST", f"/v1/groups/{group}/{action}", timeout_s=CHECK_S + STOP_S)
    for each in data["findings"]:
        if each["severity"] in ("change", "warning"):
            say(f"{each['severity']}: {each['object']}: {each['message']}")
    return Result(data, f"{data['result']}: {group}")


def _stop(session: Session, group: Group, yes: Yes = False) -> Result:
    """End the group's processes on all nodes; production goes on unprotected. Start goes on from there."""
    if not (yes or ask(f"Stop {group}? The backup will fall behind.")):
        raise UsageError("not confirmed; nothing was changed", hint="--yes stops without asking")
    data = session.call("POST", f"/v1/groups/{group}/stop", timeout_s=STOP_S)
    return Result(data, f"{data['result']}: {group}")


def _status(
    session: Session,
    group: Annotated[str | None, typer.Argument(help="Name of the group; all without.")] = None,
) -> Result:
    """Show how groups are: positions, lag, progress of the first copy, errors with hints."""
    trees = _trees(session, group)
    data: Any = trees[0] if group else trees
    return Result(data, _text(trees))


def _trees(session: Session, group: str | None) -> list[dict[str, Any]]:
    if group is None:
        found: list[dict[str, Any]] = session.call("GET", "/v1/groups")
        return found
    return [session.call("GET", f"/v1/groups/{group}")]


def _text(trees: list[dict[str, Any]]) -> str:
    below = [details(tree) for tree in trees]
    return "\n".join([table(trees), *(["", *filter(None, below)] if any(below) else [])])


def _list(session: Session) -> Result:
    """List the deployed groups."""
    trees = _trees(session, None)
    data = [
        {key: tree[key] for key in ("group", "kind", "primary", "backups", "delivery", "desired", "state")}
        for tree in trees
    ]
    rows = [
        [
            each["group"],
            each["kind"],
            each["primary"],
            ",".join(each["backups"]),
            each["delivery"],
            each["state"],
        ]
        for each in data
    ]
    return Result(data, columns(["GROUP", "KIND", "PRIMARY", "BACKUPS", "DELIVERY", "STATE"], rows))


def _watch(
    session: Session,
    group: Annotated[str | None, typer.Argument(help="Name of the group; all without.")] = None,
    interval: Interval = 1.0,
) -> None:
    """Follow groups until Ctrl-C: live on a terminal, else a line per change. --json: a line per look."""
    if session.json or not sys.stdout.isatty():
        _watch_lines(session, group, interval)
        return
    from rich.console import Console  # a third of the time that any other command takes
    from rich.live import Live
    from rich.text import Text

    console = Console(highlight=False)
    with Live(console=console, auto_refresh=False, transient=False) as live:
        while True:
            live.update(Text(_look(session, group)), refresh=True)
            time.sleep(interval)


def _look(session: Session, group: str | None) -> str:
    """An agent that is away for a moment is part of what is watched."""
    try:
        return _text(_trees(session, group))
    except AgentUnreachable as error:
        return f"unknown: {error}"


def _watch_lines(session: Session, group: str | None, interval: float) -> None:
    before: list[str] = []
    while True:
        if session.json:
            trees = _trees(session, group)
            sys.stdout.write(msgspec.json.encode({"ok": True, "data": trees}).decode() + "\n")
        else:
            try:
                lines = [line for tree in _trees(session, group) for line in one_line(tree)]
            except AgentUnreachable as error:
                lines = [f"unknown: {error}"]
            for line in lines:
                if line not in before:
                    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {line}\n")
            before = lines
        sys.stdout.flush()
        time.sleep(interval)


def _remove(
    session: Session,
    group: Group,
    without: Annotated[
        list[str] | None,
        typer.Option(
            "--without", envvar="CASTLING_WITHOUT", help="A node that is gone for good and is not asked."
        ),
    ] = None,
    yes: Yes = False,
) -> Result:
    """Forget a stopped group: slot, publication, progress, journals. Both databases keep their data."""
    gone = f" What {', '.join(without)} still has of it stays there." if without else ""
    if not (yes or ask(f"Remove {group}? A later start makes the first copy anew.{gone}")):
        raise UsageError("not confirmed; nothing was changed", hint="--yes removes without asking")
    query = f"?without={','.join(without)}" if without else ""
    data = session.call("DELETE", f"/v1/groups/{group}{query}", timeout_s=CHECK_S)
    return Result(data, f"{data['result']}: {group}")
