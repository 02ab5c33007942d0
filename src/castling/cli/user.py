"""Commands for the users of the portal: add, list, remove, passwd.

A password comes from a file, from standard input, or from a prompt; never from the command line, which every
user of the machine can read.
"""

from __future__ import annotations

import getpass
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from castling.cli.output import Result, ask, columns
from castling.cli.session import Session, Yes, command
from castling.errors import UsageError

__all__ = ["register"]

Name = Annotated[str, typer.Argument(help="Name of the user.")]
PasswordFile = Annotated[
    str | None,
    typer.Option(
        "--password-file",
        envvar="CASTLING_USER_PASSWORD_FILE",
        help="File whose first line is the password, or - for standard input; asked for without.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    users = typer.Typer(help="Who may log in to the portal of this node.", no_args_is_help=True)
    command(users, "add")(_add)
    command(users, "list")(_list)
    command(users, "passwd")(_passwd)
    command(users, "remove")(_remove)
    app.add_typer(users, name="user")


def _add(
    session: Session,
    name: Name,
    role: Annotated[
        str, typer.Option("--role", envvar="CASTLING_ROLE", help="viewer, operator or admin.")
    ] = "viewer",
    password_file: PasswordFile = None,
) -> Result:
    """Add a user who logs in to this node's portal with a password."""
    password = _password(name, password_file)
    data = session.call("POST", "/v1/users", {"name": name, "role": role, "password": password})
    return Result(data, f"added: {role} {name}")


def _list(session: Session) -> Result:
    """List the users of this node's portal."""
    data = session.call("GET", "/v1/users")
    rows = [[each["name"], each["role"], _day(each["created_ns"]), _day(each["changed_ns"])] for each in data]
    return Result(data, columns(["NAME", "ROLE", "CREATED", "PASSWORD SET"], rows))


def _passwd(session: Session, name: Name, password_file: PasswordFile = None) -> Result:
    """Set a user's password anew; the user's sessions end."""
    password = _password(name, password_file)
    data = session.call("POST", f"/v1/users/{name}/password", {"password": password})
    return Result(data, f"changed: {name}")


def _remove(session: Session, name: Name, yes: Yes = False) -> Result:
    """Remove a user; the user's sessions end at once."""
    if not (yes or ask(f"Remove user {name}?")):
        raise UsageError("not confirmed", hint="--yes")
    data = session.call("DELETE", f"/v1/users/{name}")
    return Result(data, f"removed: {name}")


def _password(name: str, file: str | None) -> str:
    if file == "-":
        return sys.stdin.readline().rstrip("\r\n")
    if file is not None:
        try:
            return Path(file).read_text(encoding="utf-8").partition("\n")[0].rstrip("\r")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"the file with the password can't be read: {error}") from error
    if not sys.stdin.isatty():
        raise UsageError("no password", hint="--password-file FILE, or - for standard input")
    first = getpass.getpass(f"Password of {name}: ")
    if first != getpass.getpass("The same again: "):
        raise UsageError("the two differ; nothing was changed")
    return first


def _day(time_ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(time_ns / 1e9))
