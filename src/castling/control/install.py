"""Making a home: a new installation, or a new node of one.

Both write the node's name last, so a home without it is unfinished and may be begun
again. The secret half of everything stays where it was made: a joining node sends a
signing request, never its key.
"""

from __future__ import annotations

import hmac
import ssl
from dataclasses import dataclass

import httpx
import msgspec

from castling.config.rules import NAME, address_problem
from castling.control.access import AccessRole, Invitation
from castling.control.client import CONNECT_S, client_context, unreachable, unwrap
from castling.control.home import Address, Home, node_tls, write_private
from castling.control.store import Store
from castling.errors import AgentUnreachable, LinkForeign, StateError, UsageError
from castling.link.authority import (
    create_authority,
    fingerprint,
    issue,
    name_of_authority,
    new_key_and_csr,
)

__all__ = [
    "CERTIFICATE_DAYS",
    "Installed",
    "initialise",
    "issued",
    "join",
    "node_table",
    "recover",
]

CERTIFICATE_DAYS = 3650


@dataclass(frozen=True, slots=True)
class Installed:
    """`token`: the text of the new admin token, None when nothing was made."""

    node: str
    fingerprint: str
    token: str | None


def initialise(home: Home, installation: str, node: str, address: Address, *, keep_token: bool) -> Installed:
    """A new installation with its first node; a home that has this node already is left as it is."""
    if home.initialised:
        _is_that_node(home, node, address)
        if name_of_authority(home.ca_cert.read_bytes()) != installation:
            raise StateError(
                f"{home.folder} belongs to the installation {name_of_authority(home.ca_cert.read_bytes())}",
                hint="--home or CASTLING_HOME says another folder",
            )
        return Installed(home.node(), fingerprint(home.ca_cert.read_bytes()), None)
    check_names(installation=installation, node=node)
    check_addresses(address)
    home.create()
    ca_cert, ca_key = create_authority(installation)
    key, csr = new_key_and_csr(node)
    write_private(home.ca_key, ca_key)
    write_private(home.ca_cert, ca_cert)
    write_private(home.node_key, key)
    write_private(home.node_cert, issue(ca_cert, ca_key, csr, node, CERTIFICATE_DAYS))
    if not home.written.exists():
        write_private(home.written, skeleton(installation, node, address).encode())
    token = _finish(home, node, address, keep_token=keep_token)
    return Installed(node, fingerprint(ca_cert), token)


def join(
    home: Home, invitation: Invitation, node: str | None, address: Address, *, keep_token: bool
) -> Installed:
    """Become the invited node; a home that has this node already is left as it is."""
    if home.initialised:
        _is_that_node(home, node or invitation.node, address)
        return Installed(home.node(), fingerprint(home.ca_cert.read_bytes()), None)
    if node is not None and node != invitation.node:
        raise UsageError(f"the token invites node {invitation.node}, not {node}")
    check_names(node=invitation.node)
    check_addresses(address)
    home.create()
    write_private(home.ca_cert, _pinned_ca(invitation))
    key, csr = new_key_and_csr(invitation.node)
    write_private(home.node_key, key)
    given = _ask(
        home,
        invitation,
        {
            "id": invitation.id,
            "secret": invitation.secret,
            "node": invitation.node,
            "csr": csr.decode(),
            "api": address.api,
            "link": address.link,
        },
    )
    write_private(home.node_cert, given["certificate"].encode())
    if given.get("deployed"):
        write_private(home.deployed, given["deployed"].encode())
    token = _finish(home, invitation.node, address, keep_token=keep_token)
    return Installed(invitation.node, invitation.fingerprint, token)


def _is_that_node(home: Home, node: str, address: Address) -> None:
    """StateError when the home's node is another than is asked for, or elsewhere."""
    if home.node() != node:
        raise StateError(
            f"{home.folder} is the home of node {home.node()}, not of {node}",
            hint="--home or CASTLING_HOME says another folder",
        )
    there = home.address()
    if address not in (there, Address()):
        raise StateError(
            f"node {node} is there already, with api {there.api} and link {there.link}",
            hint="an address changes in castling.toml, by `castling deploy`",
        )


def recover(home: Home, name: str, *, keep_token: bool) -> tuple[str, str]:
    """(node, text of a new admin token): for whoever can write the home, who could do anything anyway."""
    node = home.node()
    check_names(user=name)
    with Store(home.state) as store:
        _, token = store.add_token(name, AccessRole.ADMIN)
        store.add_access(f"owner of {home.folder}", "token recover", name, "done")
    if keep_token:
        write_private(home.admin_token, f"{token}\n".encode())
    return node, token


def _finish(home: Home, node: str, address: Address, *, keep_token: bool) -> str:
    write_private(home.address_file, msgspec.json.encode(address))
    with Store(home.state) as store:
        store.put_node(node, address.api, address.link)
        _, token = store.add_token("admin", AccessRole.ADMIN)
    if keep_token:
        write_private(home.admin_token, f"{token}\n".encode())
    write_private(home.node_name, f"{node}\n".encode())
    return token


def _pinned_ca(invitation: Invitation) -> bytes:
    """The CA's certificate, fetched from whoever answers and believed only for its fingerprint."""
    blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    blind.minimum_version = ssl.TLSVersion.TLSv1_3
    blind.check_hostname = False
    blind.verify_mode = ssl.CERT_NONE
    try:
        answer = httpx.get(
            f"https://{invitation.address}/v1/ca", verify=blind, trust_env=False, timeout=CONNECT_S
        )
        pem = str(unwrap(answer.status_code, answer.content, invitation.address)["certificate"]).encode()
    except httpx.HTTPError as error:
        raise unreachable(invitation.address, error) from error
    except (KeyError, TypeError):
        raise AgentUnreachable(f"{invitation.address} does not answer as an agent does") from None
    try:
        found = fingerprint(pem)
    except ValueError:
        found = ""
    if not hmac.compare_digest(found, invitation.fingerprint):
        raise LinkForeign(
            f"{invitation.address} is not of the installation that the token is from",
            hint="ask for a new token; if this repeats, somebody stands between the nodes",
        )
    return pem


def _ask(home: Home, invitation: Invitation, request: dict[str, str]) -> dict[str, str]:
    tls = client_context(home.ca_cert, identify=node_tls(home).peer_node)
    try:
        with httpx.Client(verify=tls, trust_env=False, timeout=CONNECT_S) as http:
            answer = http.post(f"https://{invitation.address}/v1/join", json=request)
            given = unwrap(answer.status_code, answer.content, invitation.address)
    except httpx.HTTPError as error:
        raise unreachable(invitation.address, error) from error
    if not isinstance(given, dict) or not isinstance(given.get("certificate"), str):
        raise AgentUnreachable(f"{invitation.address} does not answer as an agent does")
    return given


def check_names(**names: str) -> None:
    for what, name in names.items():
        if not NAME.fullmatch(name):
            raise UsageError(
                f"{name[:60]!r} can't be the name of the {what}", hint="1 to 40 of a-z, 0-9, _ and -"
            )


def check_addresses(address: Address) -> None:
    for key, value in msgspec.structs.asdict(address).items():
        wrong = None if value is None else address_problem(value)
        if wrong:
            raise UsageError(f"--{key.replace('_', '-')} {value}: {wrong}")


def skeleton(installation: str, node: str, address: Address) -> str:
    """The first castling.toml of an installation."""
    return f'''\
# What this installation replicates. After a change: castling deploy
# Every setting: docs/reference/settings.md

[installation]
name = "{installation}"

{node_table(node, address)}
# [nodes.west]                       # `castling invite west` here, `castling join` there
# api = "west.example.com:7430"
# link = "west.example.com:7431"

# [groups.orders]
# kind = "postgres"
# primary = "{node}"
# backups = ["west"]
#
# [groups.orders.databases.{node}]
# host = "127.0.0.1"
# dbname = "orders"
# user = "castling"
# passfile = "/etc/castling/pgpass"
#
# [groups.orders.databases.west]
# host = "127.0.0.1"
# dbname = "orders"
# user = "castling"
# passfile = "/etc/castling/pgpass"
'''


def node_table(node: str, address: Address) -> str:
    """A node's table for castling.toml."""
    lines = [f"[nodes.{node}]"]
    for key, value in msgspec.structs.asdict(address).items():
        if value is not None:
            lines.append(f'{key} = "{value}"')
    return "\n".join(lines) + "\n"


def issued(home: Home, csr: bytes, node: str) -> bytes:
    """A certificate for `node`; StateError where the CA's key is not."""
    if not home.ca_key.exists():
        raise StateError(
            "the key of the installation's CA is not on this node",
            hint="invite on the node where `castling init` ran",
        )
    return issue(home.ca_cert.read_bytes(), home.ca_key.read_bytes(), csr, node, CERTIFICATE_DAYS)
