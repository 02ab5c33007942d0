"""Commands for the access log: who did what, and whether the log is what was written."""

from __future__ import annotations

import time
from typing import Annotated
from urllib.parse import quote

import typer

from castling.cli.output import Result, columns
from castling.cli.session import Session, command
from castling.errors import FindingsExist

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    log = typer.Typer(help="Who did what on this node's agent.", no_args_is_help=True)
    command(log, "list")(_list)
    command(log, "verify")(_verify)
    app.add_typer(log, name="access-log")


def _list(
    session: Session,
    limit: Annotated[
        int, typer.Option("--limit", envvar="CASTLING_LIMIT", min=1, max=10_000, help="The newest so many.")
    ] = 100,
) -> Result:
    """List the newest entries, oldest first."""
    data = session.call("GET", f"/v1/access-log?limit={limit}")
    rows = [
        [
            str(each["id"]),
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each["at_ns"] / 1e9)),
            *(each[key] for key in ("who", "action", "subject", "outcome")),
        ]
        for each in data
    ]
    return Result(data, columns(["ID", "TIME", "WHO", "ACTION", "SUBJECT", "OUTCOME"], rows))


def _verify(
    session: Session,
    head: Annotated[
        str | None,
        typer.Option("--head", envvar="CASTLING_HEAD", help="ID:HASH as an earlier verify told it."),
    ] = None,
) -> Result:
    """Verify that no entry was changed, removed or slipped in. Exit code 3 when one was.

    Keep the head that it tells somewhere else: with --head, a log that was written anew is noticed too.
    """
    data = session.call(
        "GET", "/v1/access-log/verify" + (f"?head={quote(head)}" if head else ""), timeout_s=120
    )
    if not data["ok"]:
        return Result(data, data["problem"], FindingsExist.exit_code)
    text = f"{data['entries']} entries, each as it was written\nhead {data['head']}"
    if data["expected"] == "unknown":
        text += f"\nentry {(head or '').partition(':')[0]} is no longer kept: the given head proves nothing"
    return Result(data, text)
