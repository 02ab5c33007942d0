"""Users with passwords, and their sessions of the portal.

A session is 256 random bits in a cookie; the store holds their hash. Who it stands for and in which role is
looked up with every request, so a user who is removed, or a token that is revoked, is out at once. Sessions
end by logging out, after `IDLE_S` without a request, and after `LONGEST_S` in any case.

Guessing is slowed down by scrypt, and stopped by `Attempts`: so many failures for one name from one address,
for one address, and for one name from everywhere, then nobody of them gets an answer for a while.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from castling.config.rules import NAME
from castling.control.access import AccessRole, Caller, Kept, split_token
from castling.control.passwords import demand_acceptable, keep_password, password_matches
from castling.control.store import Store
from castling.errors import AccessDenied, NotFound, TooManyAttempts, UsageError

__all__ = ["IDLE_S", "LONGEST_S", "Accounts", "Attempts", "Login"]

Json = dict[str, Any]
IDLE_S = 30 * 60.0
LONGEST_S = 12 * 3600.0
#: how often at most the store is told that a session is in use, seconds
SEEN_EVERY_S = 30.0
#: sessions of one user; the oldest give way
SESSIONS_MAX = 20


@dataclass(frozen=True, slots=True)
class Login:
    """A valid session: who it is, and the text that its forms must bring."""

    caller: Caller
    csrf: str
    #: True when the user came with a password, and so can change it
    has_password: bool


class Attempts:
    """Failed logins of late, in memory. Pure: the caller gives monotonic seconds."""

    WINDOW_S = 300.0
    #: of one name from one address, of one address, of one name from everywhere
    LIMITS = (5, 20, 50)
    #: what is remembered at most; the longest unused gives way
    KEYS_MAX = 10_000

    def __init__(self) -> None:
        self._failed: OrderedDict[tuple[str, ...], deque[float]] = OrderedDict()

    def demand(self, name: str, address: str, now_s: float) -> None:
        """TooManyAttempts when one more would be too many."""
        for key, limit in zip(_keys(name, address), self.LIMITS, strict=True):
            times = self._failed.get(key, deque())
            while times and times[0] <= now_s - self.WINDOW_S:
                times.popleft()
            if len(times) >= limit:
                wait_s = times[0] + self.WINDOW_S - now_s
                raise TooManyAttempts(f"too many failed logins; try again in {wait_s / 60 + 1:.0f} minutes")

    def failed(self, name: str, address: str, now_s: float) -> None:
        for key, limit in zip(_keys(name, address), self.LIMITS, strict=True):
            self._failed.setdefault(key, deque(maxlen=limit)).append(now_s)
            self._failed.move_to_end(key)
        while len(self._failed) > self.KEYS_MAX:
            self._failed.popitem(last=False)

    def succeeded(self, name: str, address: str) -> None:
        """What one name failed from one address is forgiven; the rest is not: it may be another's."""
        self._failed.pop(_keys(name, address)[0], None)


def _keys(name: str, address: str) -> tuple[tuple[str, ...], ...]:
    return (("both", name, address), ("address", address), ("name", name))


class Accounts:
    """The use-cases around users, and who has logged in."""

    def __init__(
        self, store: Store, now_ns: Callable[[], int] = time.time_ns, attempts: Attempts | None = None
    ) -> None:
        self._store = store
        self._now_ns = now_ns
        self._attempts = attempts or Attempts()
        self._hashing = asyncio.Lock()  # one at a time: each takes 32 MiB

    # --- users --------------------------------------------------------------------------------

    def users(self) -> list[Json]:
        return self._store.rows("SELECT name, role, created_ns, changed_ns FROM user ORDER BY name")

    async def add(self, name: str, role: str, password: str) -> Json:
        """UsageError when the name, the role or the password is not acceptable, or the user is there."""
        if not NAME.fullmatch(name):
            raise UsageError("a user's name has 1 to 40 of a-z, 0-9, _ and -")
        if role not in list(AccessRole):
            raise UsageError(f"there is no role {role[:40]!r}", hint=f"roles: {', '.join(AccessRole)}")
        demand_acceptable(name, password)
        kept = await self._keep(password)
        now_ns = self._now_ns()
        with self._store.write() as db:
            if db.execute("SELECT 1 FROM user WHERE name = ?", (name,)).fetchone():
                raise UsageError(f"user {name} is there already", hint=f"`castling user passwd {name}`")
            db.execute(
                "INSERT INTO user VALUES (?, ?, ?, ?, ?, ?)",
                (name, role, kept.salt, kept.digest, now_ns, now_ns),
            )
        return {"name": name, "role": role, "result": "added"}

    async def set_password(self, name: str, password: str) -> Json:
        """The user's sessions end."""
        self._user(name)
        demand_acceptable(name, password)
        kept = await self._keep(password)
        with self._store.write() as db:
            db.execute(
                "UPDATE user SET salt = ?, digest = ?, changed_ns = ? WHERE name = ?",
                (kept.salt, kept.digest, self._now_ns(), name),
            )
            db.execute("DELETE FROM session WHERE user = ?", (name,))
        return {"name": name, "result": "changed"}

    def remove(self, name: str) -> Json:
        self._user(name)
        with self._store.write() as db:
            db.execute("DELETE FROM session WHERE user = ?", (name,))
            db.execute("DELETE FROM user WHERE name = ?", (name,))
        return {"name": name, "result": "removed"}

    def _user(self, name: str) -> Json:
        rows = self._store.rows("SELECT * FROM user WHERE name = ?", name)
        if not rows:
            raise NotFound(f"there is no user {name}", hint="`castling user list`")
        return rows[0]

    async def _keep(self, password: str) -> Kept:
        async with self._hashing:
            return await asyncio.to_thread(keep_password, password)

    # --- sessions -----------------------------------------------------------------------------

    async def login(self, name: str, password: str, address: str) -> str:
        """The secret of a new session, for a user's name and password, or for a token in its place.

        AccessDenied says no more than that; TooManyAttempts that nothing was looked at.
        """
        now_s = self._now_ns() / 1e9
        known = name if NAME.fullmatch(name) else ("?" if name else "token")
        self._attempts.demand(known, address, now_s)
        user, token = (
            (None, self._token(password)) if not name else (await self._by_password(name, password), None)
        )
        if user is None and token is None:
            self._attempts.failed(known, address, now_s)
            raise AccessDenied("that is no user with that password", hint="or no token that is valid here")
        self._attempts.succeeded(known, address)
        return self._begin(user, token)

    def _token(self, text: str) -> str | None:
        parts = split_token(text.strip())
        return parts[0] if parts is not None and self._store.caller(text.strip()) is not None else None

    async def _by_password(self, name: str, password: str) -> str | None:
        rows = self._store.rows("SELECT salt, digest FROM user WHERE name = ?", name)
        kept = Kept(rows[0]["salt"], rows[0]["digest"]) if rows else None
        async with self._hashing:
            matches = await asyncio.to_thread(password_matches, kept, password)
        return name if matches else None

    def _begin(self, user: str | None, token: str | None) -> str:
        secret = secrets.token_urlsafe(32)
        now_ns = self._now_ns()
        with self._store.write() as db:
            db.execute("DELETE FROM session WHERE seen_ns < ?", (now_ns - int(LONGEST_S * 1e9),))
            db.execute(
                "DELETE FROM session WHERE digest IN (SELECT digest FROM session WHERE user IS ?"
                " AND token IS ? ORDER BY seen_ns DESC LIMIT -1 OFFSET ?)",
                (user, token, SESSIONS_MAX - 1),
            )
            db.execute(
                "INSERT INTO session VALUES (?, ?, ?, ?, ?)", (_digest(secret), user, token, now_ns, now_ns)
            )
        return secret

    def session(self, secret: str, *, in_use: bool = True) -> Login | None:
        """Whose session it is; None when it is nobody's or over. `in_use`: the user is there, not a timer."""
        rows = self._store.rows(
            "SELECT s.*, u.role AS user_role, t.name AS token_name, t.role AS token_role FROM session s"
            " LEFT JOIN user u ON u.name = s.user"
            " LEFT JOIN token t ON t.id = s.token AND t.revoked_ns IS NULL WHERE s.digest = ?",
            _digest(secret),
        )
        if not rows:
            return None
        row, now_ns = rows[0], self._now_ns()
        role = row["user_role"] or row["token_role"]
        idle_s, age_s = (now_ns - row["seen_ns"]) / 1e9, (now_ns - row["created_ns"]) / 1e9
        if role is None or idle_s > IDLE_S or age_s > LONGEST_S:
            self.logout(secret)
            return None
        if in_use and idle_s > SEEN_EVERY_S:
            with self._store.write() as db:
                db.execute("UPDATE session SET seen_ns = ? WHERE digest = ?", (now_ns, _digest(secret)))
        name = row["user"] or row["token_name"]
        return Login(Caller(name, AccessRole(role)), _csrf(secret), row["user"] is not None)

    def logout(self, secret: str) -> None:
        with self._store.write() as db:
            db.execute("DELETE FROM session WHERE digest = ?", (_digest(secret),))


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def _csrf(secret: str) -> str:
    """What the session's forms must bring: known only with the cookie, which no other site can read."""
    return hmac.new(secret.encode("utf-8", "surrogatepass"), b"csrf", hashlib.sha256).hexdigest()
