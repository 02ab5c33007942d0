"""Who may do what: roles, tokens of users, one-time invitations of nodes. Pure but for randomness.

A secret is 256 random bits, so a salted SHA-256 is all that is kept of it: there is
nothing to guess that a slow hash would protect. A text of a token carries an id, by
which its row is found, and the secret, which is compared in constant time.
"""

from __future__ import annotations

import base64
import enum
import hashlib
import hmac
import secrets
from dataclasses import dataclass

import msgspec

from castling.errors import AccessDenied, UsageError

__all__ = [
    "AccessRole",
    "Caller",
    "Invitation",
    "Kept",
    "demand",
    "digest",
    "new_secret",
    "new_token",
    "split_token",
]

#: no token or invitation is longer than this
TEXT_MAX = 4096
_TOKEN = "ct"  # noqa: S105 - the mark at the beginning of a token
_INVITATION = "castling-join-"


class AccessRole(enum.StrEnum):
    """Each role may do what the one before it may."""

    VIEWER = "viewer"  #: see everything but secrets
    OPERATOR = "operator"  #: check, start and stop groups
    ADMIN = "admin"  #: deploy, remove, tokens, invitations

    @property
    def rank(self) -> int:
        return list(AccessRole).index(self)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a request: a user by token, or a node of the installation by certificate."""

    name: str
    role: AccessRole | None = None
    node: str | None = None

    def __str__(self) -> str:
        return f"node {self.node}" if self.node else self.name


@dataclass(frozen=True, slots=True)
class Kept:
    """What is stored of a secret."""

    salt: bytes
    digest: bytes

    def matches(self, secret: str) -> bool:
        return hmac.compare_digest(self.digest, digest(self.salt, secret))


class Invitation(msgspec.Struct, frozen=True, kw_only=True):
    """What a node needs to join, in one text: whom to ask, how to know it, and a secret for one use."""

    node: str
    address: str
    fingerprint: str
    id: str
    secret: str

    def encode(self) -> str:
        return _INVITATION + base64.urlsafe_b64encode(msgspec.json.encode(self)).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str) -> Invitation:
        """UsageError when `text` is not an invitation; the text itself is never repeated."""
        text = text.strip()
        body = text.removeprefix(_INVITATION)
        if len(text) <= TEXT_MAX and body != text:
            try:
                return msgspec.json.decode(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)), type=cls)
            except (ValueError, msgspec.DecodeError):
                pass
        raise UsageError("that is not a join token", hint="`castling invite NODE` prints one")


def new_secret() -> tuple[str, Kept]:
    """256 random bits as text, and what to keep of them."""
    secret = secrets.token_urlsafe(32)
    salt = secrets.token_bytes(16)
    return secret, Kept(salt, digest(salt, secret))


def new_token() -> tuple[str, str, Kept]:
    """(id, text to give to the user once, what to keep)."""
    identity = secrets.token_hex(4)
    secret, kept = new_secret()
    return identity, f"{_TOKEN}_{identity}_{secret}", kept


def split_token(text: str) -> tuple[str, str] | None:
    """(id, secret) of a token's text; None when it does not look like one."""
    parts = text.split("_", 2)
    if len(text) > TEXT_MAX or len(parts) != 3 or parts[0] != _TOKEN:
        return None
    return parts[1], parts[2]


def digest(salt: bytes, secret: str) -> bytes:
    return hashlib.sha256(salt + secret.encode("utf-8", "surrogatepass")).digest()


def demand(caller: Caller, needed: AccessRole) -> None:
    """AccessDenied unless `caller` has the role `needed`. A node is not a user: it has none."""
    if caller.role is None or caller.role.rank < needed.rank:
        raise AccessDenied(f"{caller} may not do that; it needs the role {needed}")
