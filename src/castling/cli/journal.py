"""castling journal inspect: what a journal on this node holds, read without changing it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from castling.cli.output import Result, columns
from castling.cli.session import Session, command
from castling.errors import FindingsExist, NotFound
from castling.host import RealHost

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    journals = typer.Typer(help="Remote journals on this node.", no_args_is_help=True)
    command(journals, "inspect")(_inspect)
    app.add_typer(journals, name="journal")


def _inspect(
    session: Session,
    where: Annotated[
        str, typer.Argument(metavar="GROUP|DIR", help="A group of this node, or a journal's folder.")
    ],
    records: Annotated[
        bool, typer.Option("--records", envvar="CASTLING_RECORDS", help="List every record's header.")
    ] = False,
) -> Result:
    """Show segments, positions, sessions and damage; exit code 3 if there is damage."""
    from castling.journal.inspect import describe

    found = [
        {"folder": str(folder), **describe(RealHost(), str(folder), records=records)}
        for folder in _folders(session, where)
    ]
    damaged = any(each.get("damage") for each in found)
    return Result(
        found, "\n\n".join(_text(each) for each in found), FindingsExist.exit_code if damaged else 0
    )


def _folders(session: Session, where: str) -> list[Path]:
    if "/" in where or Path(where).is_dir():
        folder = Path(where)
        if not folder.is_dir():
            raise NotFound(f"there is no folder {folder}")
        return [folder / "journal" if (folder / "journal").is_dir() else folder]
    found = sorted((session.home.groups / where).glob("*/journal"))
    if not found:
        raise NotFound(
            f"this node holds no journal of a group {where!r}",
            hint="the journal of a group is on its backup; or give the journal's folder",
        )
    return found


def _text(found: dict[str, Any]) -> str:
    """Any tree of figures as text: tables for lists of things, lines for the rest."""
    lines = []
    for key, value in found.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            head = list(value[0])
            rows = [[_cell(name, each.get(name)) for name in head] for each in value]
            lines += [
                f"{key}:",
                *("  " + line for line in columns([n.upper() for n in head], rows).splitlines()),
            ]
        else:
            lines.append(f"{key}: {_cell(key, value)}")
    return "\n".join(lines)


def _cell(name: str, value: Any) -> str:
    if value is None or value == []:
        return "-"
    if name.endswith("t_ns") and isinstance(value, int):
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value / 1e9))
    return str(value)
