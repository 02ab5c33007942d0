"""Commands that make and run a node: init, invite, join, agent; and the users' tokens."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from castling.cli.output import Result, ask, columns, say
from castling.cli.session import Session, Yes, command
from castling.config import units
from castling.config.rules import is_loopback
from castling.control.access import Invitation
from castling.control.agent import run_agent
from castling.control.home import Address
from castling.control.install import initialise, node_table, recover
from castling.control.install import join as join_installation
from castling.errors import UsageError
from castling.observe import configure_events

__all__ = ["register"]

API, LINK = Address().api, Address().link

Api = Annotated[
    str, typer.Option("--api", envvar="CASTLING_API", help="HOST:PORT of the agent, as others reach it.")
]
Link = Annotated[
    str,
    typer.Option(
        "--link", envvar="CASTLING_LINK", help="HOST:PORT where records arrive, as others reach it."
    ),
]
ApiListen = Annotated[
    str | None,
    typer.Option("--api-listen", envvar="CASTLING_API_LISTEN", help="What the agent binds, if another."),
]
LinkListen = Annotated[
    str | None,
    typer.Option("--link-listen", envvar="CASTLING_LINK_LISTEN", help="What the receiver binds, if another."),
]
NoSave = Annotated[
    bool,
    typer.Option(
        "--no-save-token", envvar="CASTLING_NO_SAVE_TOKEN", help="Don't keep the token in admin.token."
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    command(app, "init")(_init)
    command(app, "invite")(_invite)
    command(app, "join")(_join)
    command(app, "agent")(_agent)
    tokens = typer.Typer(help="Who may use the agent of this node.", no_args_is_help=True)
    command(tokens, "create")(_token_create)
    command(tokens, "list")(_token_list)
    command(tokens, "recover")(_token_recover)
    command(tokens, "revoke")(_token_revoke)
    app.add_typer(tokens, name="token")
    nodes = typer.Typer(help="The nodes of the installation.", no_args_is_help=True)
    command(nodes, "list")(_node_list)
    app.add_typer(nodes, name="node")


def _init(
    session: Session,
    name: Annotated[str, typer.Argument(help="Name of the installation.")],
    node: Annotated[str, typer.Option("--node", envvar="CASTLING_NODE", help="Name of this node.")],
    api: Api = API,
    link: Link = LINK,
    api_listen: ApiListen = None,
    link_listen: LinkListen = None,
    no_save_token: NoSave = False,
) -> Result:
    """Make an installation: its CA, its first node, an admin token."""
    address = Address(api=api, link=link, api_listen=api_listen, link_listen=link_listen)
    made = initialise(session.home, name, node, address, keep_token=not no_save_token)
    data: dict[str, Any] = {
        "result": "initialised" if made.token else "already_initialised",
        "node": made.node,
        "home": str(session.home.folder),
        "ca_fingerprint": made.fingerprint,
        "token": made.token,
    }
    if made.token is None:
        return Result(data, f"already_initialised: node {made.node} in {session.home.folder}")
    text = f"Installation {name}, node {node}, in {session.home.folder}\n" + _token_text(session, made.token)
    return Result(data, text + f"Next: castling agent; edit {session.home.written}; castling deploy")


def _token_text(session: Session, token: str) -> str:
    kept = session.home.admin_token
    where = f"kept in {kept}" if kept.exists() else "kept nowhere"
    return f"Admin token, shown this once ({where}):\n{token}\n"


def _invite(
    session: Session,
    node: Annotated[str, typer.Argument(help="Name of the node that shall join.")],
    ttl: Annotated[
        str, typer.Option("--ttl", envvar="CASTLING_TTL", help="How long the token counts, such as 15m.")
    ] = "1h",
) -> Result:
    """Make a one-time token with which a node joins this installation."""
    try:
        ttl_s = units.seconds(ttl)
    except ValueError as error:
        raise UsageError(f"--ttl {ttl}: {error}") from None
    data = session.call("POST", "/v1/invites", {"node": node, "ttl_s": ttl_s})
    say(f"On the new node, within {ttl}, with this token on standard input:")
    say(f"  castling join - --api HOST:PORT --link HOST:PORT   # becomes {node}")
    return Result(data, data["token"])


def _join(
    session: Session,
    token: Annotated[
        str | None,
        typer.Argument(
            help="A file with the token, or - for standard input. The token itself works, but shows in ps."
        ),
    ] = None,
    node: Annotated[
        str | None,
        typer.Option("--node", envvar="CASTLING_NODE", help="The name that the token must be for."),
    ] = None,
    api: Api = API,
    link: Link = LINK,
    api_listen: ApiListen = None,
    link_listen: LinkListen = None,
    no_save_token: NoSave = False,
) -> Result:
    """Become a node of an installation, with a token from `castling invite`."""
    address = Address(api=api, link=link, api_listen=api_listen, link_listen=link_listen)
    invitation = Invitation.decode(_read_token(token))
    made = join_installation(session.home, invitation, node, address, keep_token=not no_save_token)
    table = node_table(made.node, address)
    data: dict[str, Any] = {
        "result": "joined" if made.token else "already_joined",
        "node": made.node,
        "home": str(session.home.folder),
        "ca_fingerprint": made.fingerprint,
        "token": made.token,
        "table": table,
    }
    if made.token is None:
        return Result(data, f"already_joined: node {made.node} in {session.home.folder}")
    if is_loopback(api) and not is_loopback(invitation.address):
        say(f"Note: node {made.node} says that it is reached at {api}, which leads other machines nowhere;")
        say("      write its own address in castling.toml, or join with --api and --link in another folder")
    text = f"Node {made.node} joined, in {session.home.folder}\n" + _token_text(session, made.token)
    return Result(data, text + f"Next: castling agent; and in castling.toml where you deploy:\n\n{table}")


def _read_token(given: str | None) -> str:
    """From the environment, standard input, a file, or the argument itself."""
    if given is None:
        found = os.environ.get("CASTLING_JOIN_TOKEN")
        if not found:
            raise UsageError(
                "no join token", hint="give a file, - for standard input, or set CASTLING_JOIN_TOKEN"
            )
        return found
    if given == "-":
        return sys.stdin.readline()
    if given.startswith("castling-join-"):
        return given
    try:
        return Path(given).read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"the file with the join token can't be read: {error.strerror}") from error


def _agent(
    session: Session,
    log: Annotated[
        str, typer.Option("--log", envvar="CASTLING_LOG", help="Form of the events on stderr: text or json.")
    ] = "text",
) -> None:
    """Run this node's agent until SIGTERM. What it supervises runs on without it."""
    if log not in ("text", "json"):
        raise UsageError("--log is text or json")
    configure_events(json=log == "json")
    session.home.node()
    from castling.portal.app import portal_routes  # here: no other command needs it

    asyncio.run(run_agent(session.home, portal_routes))


def _token_create(
    session: Session,
    name: Annotated[str, typer.Argument(help="Whose token it is.")],
    role: Annotated[
        str, typer.Option("--role", envvar="CASTLING_ROLE", help="viewer, operator or admin.")
    ] = "viewer",
) -> Result:
    """Make a token for a user of this node's agent; it is shown once."""
    data = session.call("POST", "/v1/tokens", {"name": name, "role": role})
    say(f"{role} {name}, id {data['id']}; the token is shown this once:")
    return Result(data, data["token"])


def _token_recover(
    session: Session,
    name: Annotated[str, typer.Argument(help="Whose token it is.")] = "admin",
    no_save_token: NoSave = False,
) -> Result:
    """Make a new admin token when all are lost. It needs this node's folder, not its agent."""
    node, token = recover(session.home, name, keep_token=not no_save_token)
    data = {"name": name, "role": "admin", "node": node, "token": token}
    return Result(data, _token_text(session, token))


def _token_list(session: Session) -> Result:
    """List the tokens of this node's agent, without their texts."""
    data = session.call("GET", "/v1/tokens")
    rows = [
        [
            each["id"],
            each["name"],
            each["role"],
            _day(each["created_ns"]),
            "revoked" if each["revoked_ns"] else "valid",
        ]
        for each in data
    ]
    return Result(data, columns(["ID", "NAME", "ROLE", "CREATED", "STATE"], rows))


def _token_revoke(
    session: Session,
    identity: Annotated[str, typer.Argument(metavar="ID", help="As shown by list.")],
    yes: Yes = False,
) -> Result:
    """Make a token worthless, at once."""
    if not (yes or ask(f"Revoke token {identity}?")):
        raise UsageError("not confirmed", hint="--yes")
    data = session.call("DELETE", f"/v1/tokens/{identity}")
    return Result(data, f"{data['result']}: {identity}")


def _node_list(session: Session) -> Result:
    """List the nodes that are deployed, or joined at this node."""
    data = session.call("GET", "/v1/nodes")
    rows = [
        [
            each["node"] + (" *" if each["here"] else ""),
            each["api"],
            each["link"],
            "yes" if each["deployed"] else "no",
        ]
        for each in data
    ]
    return Result(data, columns(["NODE", "API", "LINK", "DEPLOYED"], rows))


def _day(time_ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(time_ns / 1e9))
