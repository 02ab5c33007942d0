"""Commands for single tables of a group: hold, release, resync."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from castling.cli.output import Result, ask, columns
from castling.cli.session import Session, Yes, command
from castling.errors import UsageError

__all__ = ["register"]

Group = Annotated[str, typer.Argument(help="Name of the group.")]
Reason = Annotated[
    str, typer.Option("--reason", envvar="CASTLING_REASON", help="What the status shall say about it.")
]


def register(groups: typer.Typer) -> None:
    """Add the commands to those of `castling group`."""
    command(groups, "hold")(_hold)
    command(groups, "release")(_release)
    command(groups, "resync")(_resync)


def _hold(
    session: Session,
    group: Group,
    tables: Annotated[list[str], typer.Argument(help="Tables, schema.table each.", metavar="TABLE...")],
    reason: Reason = "held by hand",
) -> Result:
    """Let single tables of the backup stand still; their changes are kept and the others go on."""
    return _ask(session, group, "hold", tables, reason)


def _release(
    session: Session,
    group: Group,
    tables: Annotated[
        list[str] | None,
        typer.Argument(help="Tables, schema.table each; all that are on hold without.", metavar="[TABLE...]"),
    ] = None,
    reason: Reason = "",
) -> Result:
    """Bring tables on hold up to the others, from the changes that were kept."""
    return _ask(session, group, "release", tables or [], reason)


def _resync(
    session: Session,
    group: Group,
    tables: Annotated[
        list[str] | None,
        typer.Argument(help="Tables, schema.table each; all that are on hold without.", metavar="[TABLE...]"),
    ] = None,
    reason: Reason = "copied anew by hand",
    yes: Yes = False,
) -> Result:
    """Copy tables anew from the primary while the others go on; they are live again by themselves."""
    if not yes:
        named = ", ".join(tables or _on_hold(session, group)) or "no table (none is on hold)"
        if not ask(f"Replace the rows of {named} on the backup by a new copy?"):
            raise UsageError(
                f"not confirmed; nothing was changed. Copied anew would be {named}",
                hint="--yes copies without asking",
            )
    return _ask(session, group, "resync", tables or [], reason)


def _on_hold(session: Session, group: str) -> list[str]:
    tree: dict[str, Any] = session.call("GET", f"/v1/groups/{group}")
    return sorted({hold["part"] for stream in tree["streams"] for hold in stream["holds"] or ()})


def _ask(session: Session, group: str, action: str, tables: list[str], reason: str) -> Result:
    body = {"action": action, "parts": tables, "reason": reason}
    data: dict[str, Any] = session.call("POST", f"/v1/groups/{group}/parts", body)
    rows = [[each["backup"], each["part"], each["result"]] for each in data["parts"]]
    return Result(data, columns(["BACKUP", "TABLE", "RESULT"], rows) if rows else "no table is on hold")
