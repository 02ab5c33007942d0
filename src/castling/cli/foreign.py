"""castling group foreign-writes: what others wrote on the target, and that an operator has seen it."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from castling.cli.output import Result, ask
from castling.cli.session import Session, Yes, command
from castling.config import units
from castling.errors import FindingsExist, UsageError

__all__ = ["register"]

#: longer than a backup may take to answer, seconds
ANSWER_S = 90.0
#: writes that are shown to people
SHOWN = 50


def register(groups: typer.Typer) -> None:
    """Add the command to those of `castling group`."""
    command(groups, "foreign-writes")(_foreign_writes)


def _foreign_writes(
    session: Session,
    group: Annotated[str, typer.Argument(help="Name of the group.")],
    since: Annotated[
        str | None,
        typer.Option(
            "--since",
            envvar="CASTLING_SINCE",
            help="All of the last while, such as 24h, acknowledged ones too.",
            metavar="TIME",
        ),
    ] = None,
    acknowledge: Annotated[
        bool,
        typer.Option(
            "--acknowledge", envvar="CASTLING_ACKNOWLEDGE", help="Note that they were seen: the alarm ends."
        ),
    ] = False,
    yes: Yes = False,
) -> Result:
    """List writes on the backup that are not Castling's: who, when, rows. Exit code 3 while any is open."""
    if acknowledge and since is not None:
        raise UsageError("--acknowledge is for all that is open; --since only looks")
    path = f"/v1/groups/{group}/foreign-writes"
    query = "" if since is None else f"?since_s={_seconds(since)}"
    data = session.call("GET", path + query, timeout_s=ANSWER_S)
    text = _text(data, group)
    if not acknowledge:
        return Result(data, text, FindingsExist.exit_code if data["open"] else 0)
    if data["open"] and not (yes or ask(f"{text}\nEnd the alarm? The rows stay as they are.")):
        raise UsageError("not confirmed; nothing was changed", hint="--yes acknowledges without asking")
    data = session.call("POST", f"{path}/acknowledge", timeout_s=ANSWER_S)
    return Result(data, f"{_text(data, group)}\nacknowledged: {len(data['writes'])} of {group}")


def _seconds(text: str) -> float:
    try:
        return units.seconds(text)
    except ValueError as error:
        raise UsageError(f"--since {text}: {error}") from error


def _text(data: dict[str, Any], group: str) -> str:
    writes = data["writes"]
    if not writes:
        return f"{group}: nothing that others wrote on the target"
    lines = []
    for each in writes[:SHOWN]:
        lines.append(f"{_when(each['at_ns'])}  {each['part']} on {each['backup']}: {each['what']}")
        process = "" if each["pid"] is None else f", process {each['pid']}"
        seen = "" if each["acknowledged_by"] is None else f"; acknowledged by {each['acknowledged_by']}"
        lines.append(f"    by {each['who']}{process}{seen}")
    if len(writes) > SHOWN:
        lines.append(f"and {len(writes) - SHOWN} older ones; --json shows all")
    lines.append(f"{group}: {len(writes)} writes by others, {data['open']} not acknowledged")
    tables = sorted({each["part"] for each in writes if each["acknowledged_ns"] is None})
    if tables and not data["acknowledged"]:
        lines.append(
            f"  hint: `castling group resync {group} {' '.join(tables[:5])}` copies anew from the source"
        )
    return "\n".join(lines)


def _when(at_ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(at_ns / 1e9))
