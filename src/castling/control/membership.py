"""Who belongs to the installation: users by token, nodes by invitation and certificate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from castling.control.access import AccessRole, Caller, Invitation
from castling.control.home import Home
from castling.control.install import check_names, issued
from castling.control.nodes import LocalNode
from castling.control.store import Store
from castling.errors import AccessDenied, StateError, UsageError
from castling.link.authority import fingerprint

__all__ = ["Membership"]

Json = dict[str, Any]
#: how long an invitation counts unless said otherwise, and at most, seconds
INVITE_S = 3600.0
INVITE_MOST_S = 7 * 86400.0


class Membership:
    """The use-cases around tokens and nodes."""

    def __init__(
        self,
        home: Home,
        local: LocalNode,
        store: Store,
        address: Callable[[], str],
        now_ns: Callable[[], int],
    ) -> None:
        self._home = home
        self._local = local
        self._store = store
        self._address = address
        self._now_ns = now_ns

    def invite(self, node: str, ttl_s: float | None, caller: Caller) -> Json:
        """A text by which the node `node` joins, once. StateError where the CA's key is not."""
        check_names(node=node)
        if node == self._local.name:
            raise UsageError(f"{node} is this node")
        ttl_s = INVITE_S if ttl_s is None else ttl_s
        if not 1 <= ttl_s <= INVITE_MOST_S:
            raise UsageError(f"an invitation counts from 1 s to {INVITE_MOST_S / 86400:.0f} days")
        if not self._home.ca_key.exists():
            raise StateError(
                "the key of the installation's CA is not on this node",
                hint="invite on the node where `castling init` ran",
            )
        identity, secret, expires_ns = self._store.add_invite(node, ttl_s)
        ca_cert = self._home.ca_cert.read_bytes()
        invitation = Invitation(
            node=node,
            address=self._address(),
            fingerprint=fingerprint(ca_cert),
            id=identity,
            secret=secret,
        )
        return {"node": node, "token": invitation.encode(), "expires_ns": expires_ns}

    def join(self, *, identity: str, secret: str, node: str, csr: str, api: str, link: str) -> Json:
        """The certificate of a node that shows a valid invitation, which is then used up."""
        invited = self._store.use_invite(identity, secret, self._now_ns())
        if invited is None or invited != node:
            self._store.add_access(f"node {node[:40]!r}", "join", node[:40], "refused")
            raise AccessDenied(
                "the join token is unknown, used or over",
                hint=f"`castling invite {node[:40]}` makes a new one",
            )
        certificate = issued(self._home, csr.encode(), node)
        self._store.put_node(node, api, link)
        self._store.add_access(f"node {node}", "join", node, "done")
        self._store.add_event("node.joined", {"node": node, "api": api})
        return {"certificate": certificate.decode(), "deployed": self._local.text}

    def nodes(self) -> list[Json]:
        """Nodes that are deployed or joined here, by name."""
        joined = {row["name"]: row for row in self._store.nodes()}
        deployed = {} if self._local.config is None else self._local.config.nodes
        return [
            {
                "node": name,
                "api": deployed[name].api if name in deployed else joined[name]["api"],
                "link": deployed[name].link if name in deployed else joined[name]["link"],
                "deployed": name in deployed,
                "here": name == self._local.name,
            }
            for name in sorted(joined.keys() | deployed.keys())
        ]

    def ca(self) -> Json:
        """The CA's certificate; public."""
        pem = self._home.ca_cert.read_bytes()
        return {"certificate": pem.decode(), "fingerprint": fingerprint(pem)}

    def create_token(self, name: str, role: str) -> Json:
        """A new user's token; its text is in this answer and nowhere else."""
        check_names(user=name)
        if role not in list(AccessRole):
            raise UsageError(f"there is no role {role!r}", hint=f"roles: {', '.join(AccessRole)}")
        identity, text = self._store.add_token(name, AccessRole(role))
        return {"id": identity, "name": name, "role": role, "token": text}

    def tokens(self) -> list[Json]:
        return self._store.tokens()

    def revoke_token(self, identity: str) -> Json:
        done = self._store.revoke_token(identity)
        return {"id": identity, "result": "revoked" if done else "already_revoked"}
