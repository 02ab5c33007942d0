"""castling deploy: from the written configuration to what runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from castling.cli.output import Result, ask, say
from castling.cli.session import Session, Yes, command
from castling.config.reading import load
from castling.errors import DeployRefused, UsageError

__all__ = ["register"]

Config = Annotated[
    Path | None,
    typer.Option(
        "--config", envvar="CASTLING_CONFIG", help="The written configuration; default <home>/castling.toml."
    ),
]
#: how long all nodes together may take, seconds
DEPLOY_S = 120.0
VALUE_MAX = 60


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    command(app, "deploy")(_deploy)


def _deploy(
    session: Session,
    config: Config = None,
    yes: Yes = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", envvar="CASTLING_DRY_RUN", help="Show the difference and change nothing."),
    ] = False,
) -> Result:
    """Show how castling.toml differs from what runs, then make it run on all nodes."""
    file = config or session.home.written
    load(file)  # problems are told with the name of the user's own file, and before anybody is asked
    text = file.read_text(encoding="utf-8")
    plan = session.call("POST", "/v1/deploy/plan", {"text": text})
    for line in _lines(plan):
        say(line)
    if plan["refused"]:
        raise DeployRefused("\n".join(plan["refused"]), refused=plan["refused"])
    if dry_run:
        return Result({"result": "planned", **plan}, "planned: nothing was changed")
    if all(node["current"] for node in plan["nodes"].values()):
        return Result({"result": "already_deployed", **plan}, "already_deployed")
    if not (yes or ask("Deploy this?")):
        raise UsageError("not confirmed; nothing was changed", hint="--yes deploys without asking")
    body = {"text": text, "expect": plan["running"]}
    data = session.call("POST", "/v1/deploy", body, timeout_s=DEPLOY_S)
    return Result(data, f"{data['result']} on {', '.join(sorted(data['nodes']))}")


def _lines(plan: dict[str, Any]) -> list[str]:
    """The plan for people: every key, then what it does to the ends."""
    signs = {"added": "+", "removed": "-", "changed": "~"}
    lines = []
    for change in plan["changes"]:
        if change["kind"] == "changed":
            value = f"{_short(change['old'])} -> {_short(change['new'])}"
        else:
            value = _short(change["old"] if change["kind"] == "removed" else change["new"])
        lines.append(f"{signs[change['kind']]} {change['path']} = {value}")
    for key, what in (("added", "new"), ("restarts", "restarts"), ("removed", "ends")):
        lines += [f"  {what}: {end['group']} to {end['backup']}, {end['end']}" for end in plan[key]]
    return lines + [f"  note: {note}" for note in plan["notes"]]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= VALUE_MAX else text[: VALUE_MAX - 1] + "…"
