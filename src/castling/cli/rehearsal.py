"""castling rehearsal: a copy of the replica to try things in, while replication goes on."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from castling.cli.output import Result, columns
from castling.cli.session import Session, command
from castling.config import units
from castling.errors import UsageError

__all__ = ["register"]

#: longer than copying a large database may take, seconds
ANSWER_S = 4 * 3600.0

Group = Annotated[str, typer.Argument(help="Name of the group.")]


def register(app: typer.Typer) -> None:
    """Add `castling rehearsal`."""
    rehearsals = typer.Typer(
        help="Try the backup while production and replication go on.",
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.add_typer(rehearsals, name="rehearsal")
    command(rehearsals, "open")(_open)
    command(rehearsals, "list")(_list)
    command(rehearsals, "close")(_close)


def _open(
    session: Session,
    group: Group,
    limit: Annotated[
        str,
        typer.Option(
            "--for", envvar="CASTLING_FOR", help="When it ends by itself, such as 30min.", metavar="TIME"
        ),
    ] = "1h",
    backup: Annotated[
        str | None,
        typer.Option("--backup", envvar="CASTLING_BACKUP", help="Which backup, where there are several."),
    ] = None,
) -> Result:
    """Copy the replica into a database of its own that can be written; receiving goes on all the while."""
    try:
        limit_s = units.seconds(limit)
    except ValueError as error:
        raise UsageError(f"--for {limit}: {error}") from error
    body = {"limit_s": limit_s, "backup": backup}
    data = session.call("POST", f"/v1/groups/{group}/rehearsals", body, timeout_s=ANSWER_S)
    return Result(data, _opened(data))


def _list(session: Session, group: Group) -> Result:
    """List the group's rehearsals, the newest first."""
    data: list[dict[str, Any]] = session.call("GET", f"/v1/groups/{group}/rehearsals")
    rows = [
        [
            each["id"],
            each["backup"],
            each["state"],
            _when(each["begun_ns"]),
            each["database"] or "-",
            _end(each),
        ]
        for each in data
    ]
    text = columns(["ID", "BACKUP", "STATE", "BEGUN", "DATABASE", "END"], rows)
    return Result(data, text if rows else f"{group}: no rehearsal yet")


def _close(
    session: Session, group: Group, identity: Annotated[str, typer.Argument(help="Which one.", metavar="ID")]
) -> Result:
    """End a rehearsal before its time and remove its copy, with all that was written there."""
    data = session.call("DELETE", f"/v1/groups/{group}/rehearsals/{identity}", timeout_s=ANSWER_S)
    return Result(data, f"rehearsal {identity} of {group}: {data['result'].replace('_', ' ')}")


def _opened(data: dict[str, Any]) -> str:
    room = {True: "shares its blocks", False: f"takes {data['size'] >> 20} MiB", None: "was there already"}
    return "\n".join(
        (
            f"rehearsal {data['id']} of {data['group']}:"
            f" database {data['database']} on the server of {data['backup']}",
            f"  the copy {room[data['shares_blocks']]}; made in {data['opened_s']:.1f} s,"
            f" in which nothing was applied for {data['apply_paused_s']:.1f} s and receiving went on",
            f"  it ends by itself at {_when(data['until_ns'])}",
            f"  hint: `castling rehearsal close {data['group']} {data['id']}` ends it now",
        )
    )


def _end(each: dict[str, Any]) -> str:
    if each["closed_ns"] is None:
        return f"at {_when(each['until_ns'])}"
    return f"{_when(each['closed_ns'])}: {each['why']}"


def _when(at_ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(at_ns / 1e9))
