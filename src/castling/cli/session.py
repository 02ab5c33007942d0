"""What every command has: home, agent, token; and the frame in which a command runs.

`command` gives a function the common options, runs it, and turns what it returns or
raises into output and exit code, so that no command does it in its own way.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from castling.cli.output import Result, show, show_error
from castling.control.client import AgentClient, client_context
from castling.control.home import Home, default_home, node_tls
from castling.errors import AccessDenied, CastlingError, NotInitialised

__all__ = ["Session", "Yes", "command"]

#: of the commands that destroy something
Yes = Annotated[bool, typer.Option("--yes", envvar="CASTLING_YES", help="Don't ask.")]


@dataclass(slots=True)
class Session:
    """The common options of one command."""

    home: Home
    json: bool
    agent: str | None
    token_file: Path | None
    _client: AgentClient | None = field(default=None, repr=False)

    @property
    def client(self) -> AgentClient:
        """The agent that this command asks; its certificate must be of our installation."""
        if self._client is None:
            if not self.home.ca_cert.exists():
                raise NotInitialised(
                    f"{self.home.folder} has no node",
                    hint="--home or CASTLING_HOME says where it is; `castling init` makes one",
                )
            tls = client_context(self.home.ca_cert, identify=node_tls(self.home).peer_node)
            self._client = AgentClient(self.agent or self._address(), tls, token=self._token())
        return self._client

    def call(self, method: str, path: str, body: Any = None, *, timeout_s: float = 30.0) -> Any:
        return self.client.call(method, path, body, timeout_s=timeout_s)

    def _address(self) -> str:
        running = self.home.running_agent()
        address = running.address if running else self.home.address().api
        host, _, port = address.rpartition(":")
        everywhere = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}
        return f"{everywhere.get(host, host)}:{port}"

    def _token(self) -> str:
        given = os.environ.get("CASTLING_TOKEN")
        if given:
            return given.strip()
        file = self.token_file or self.home.admin_token
        try:
            return file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise AccessDenied(
                f"no token: CASTLING_TOKEN is not set and {file} can't be read",
                hint="an administrator makes one by `castling token create`; if all are lost,"
                " `castling token recover` on the node does",
            ) from error


_COMMON = (
    (
        "home",
        Annotated[Path | None, typer.Option("--home", envvar="CASTLING_HOME", help="Folder of this node.")],
        None,
    ),
    (
        "agent",
        Annotated[
            str | None,
            typer.Option("--agent", envvar="CASTLING_AGENT", help="Ask the agent at HOST:PORT instead."),
        ],
        None,
    ),
    (
        "token_file",
        Annotated[
            Path | None,
            typer.Option("--token-file", envvar="CASTLING_TOKEN_FILE", help="File with the token to show."),
        ],
        None,
    ),
    (
        "json",
        Annotated[bool, typer.Option("--json", envvar="CASTLING_JSON", help="Print the result as JSON.")],
        False,
    ),
)

Body = Callable[..., Result | None]


def command(app: typer.Typer, name: str) -> Callable[[Body], Body]:
    """Register a function `(session, …) -> Result` as a command with the common options."""

    def register(body: Body) -> Body:
        own = inspect.signature(body, eval_str=True).parameters
        common = [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
            for key, kind, default in _COMMON
        ]

        @functools.wraps(body)
        def run(**given: Any) -> None:
            session = Session(
                Home(given.pop("home") or default_home()),
                given.pop("json"),
                given.pop("agent"),
                given.pop("token_file"),
            )
            _frame(body, session, given)

        mine = [
            each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for key, each in own.items() if key != "session"
        ]
        run.__signature__ = inspect.Signature(mine + common)  # type: ignore[attr-defined]  # read by typer
        run.__annotations__ = {each.name: each.annotation for each in mine + common}
        del run.__wrapped__  # or typer would look at the body instead
        app.command(name, short_help=inspect.cleandoc(body.__doc__ or "").partition("\n")[0])(run)
        return body

    return register


def _frame(body: Body, session: Session, given: dict[str, Any]) -> None:
    try:
        result = body(session, **given)
    except CastlingError as error:
        show_error(error, json=session.json)
        raise typer.Exit(error.exit_code) from error
    if result is not None:
        show(result, json=session.json)
        if result.exit_code:
            raise typer.Exit(result.exit_code)
