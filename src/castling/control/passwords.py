"""Passwords of users: what makes one acceptable, and what is kept of it. Pure but for randomness.

A password is something that people can remember, so something that machines can guess: what is kept is made
by scrypt, which takes 32 MiB and about a tenth of a second for each guess.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

from castling.control.access import Kept
from castling.errors import UsageError

__all__ = ["PASSWORD_MAX", "PASSWORD_MIN", "demand_acceptable", "keep_password", "password_matches"]

PASSWORD_MIN = 10
PASSWORD_MAX = 1024
_COST = {"n": 1 << 15, "r": 8, "p": 1, "maxmem": 64 << 20, "dklen": 32}


def demand_acceptable(name: str, password: str) -> None:
    """UsageError when `password` is too short, too long, or the user's name; it is never repeated."""
    if not PASSWORD_MIN <= len(password) <= PASSWORD_MAX:
        raise UsageError(f"a password has {PASSWORD_MIN} to {PASSWORD_MAX} characters")
    if password.casefold() == name.casefold() or len(set(password)) < 4:
        raise UsageError("that password would be the first guess", hint="several words make a good one")


def keep_password(password: str) -> Kept:
    """What to keep of it. Takes a tenth of a second: call it in a thread."""
    salt = secrets.token_bytes(16)
    return Kept(salt, _derived(salt, password))


def password_matches(kept: Kept | None, password: str) -> bool:
    """Whether it is the password; without anything kept, False after the same time. Call it in a thread."""
    if kept is None:
        _derived(b"nobody has this", password)
        return False
    return hmac.compare_digest(kept.digest, _derived(kept.salt, password))


def _derived(salt: bytes, password: str) -> bytes:
    data = password.encode("utf-8", "surrogatepass")[: 4 * PASSWORD_MAX]
    return hashlib.scrypt(data, salt=salt, **_COST)
