"""Users, sessions and guessing: who is let in, for how long, and what is kept of a password."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from castling.control.access import AccessRole
from castling.control.accounts import IDLE_S, LONGEST_S, SESSIONS_MAX, Accounts, Attempts
from castling.control.passwords import keep_password, password_matches
from castling.control.store import Store
from castling.errors import AccessDenied, NotFound, TooManyAttempts, UsageError

PASSWORD = "correct horse battery"


class Clock:
    now_ns = 10**18

    def __call__(self) -> int:
        return self.now_ns

    def pass_s(self, seconds: float) -> None:
        self.now_ns += int(seconds * 1e9)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "state.sqlite") as found:
        yield found


@pytest.fixture
async def accounts(store: Store, clock: Clock) -> Accounts:
    found = Accounts(store, clock)
    await found.add("ann", "operator", PASSWORD)
    return found


def test_a_password_matches_itself_alone() -> None:
    kept = keep_password(PASSWORD)
    assert password_matches(kept, PASSWORD)
    assert not password_matches(kept, PASSWORD + " ") and not password_matches(None, PASSWORD)
    assert keep_password(PASSWORD).digest != kept.digest, "each has a salt of its own"


@pytest.mark.parametrize("password", ["", "short", "aaaaaaaaaaaa", "x" * 2000, "administrator"])
async def test_a_password_that_is_the_first_guess_is_refused(store: Store, password: str) -> None:
    with pytest.raises(UsageError) as caught:
        await Accounts(store).add("administrator", "admin", password)
    assert not password or password not in str(caught.value)


async def test_a_name_or_role_that_is_none_is_refused(accounts: Accounts) -> None:
    for name, role in (("Ann Other", "viewer"), ("../x", "viewer"), ("bob", "king"), ("ann", "viewer")):
        with pytest.raises(UsageError):
            await accounts.add(name, role, PASSWORD)
    with pytest.raises(NotFound):
        await accounts.set_password("bob", PASSWORD)


async def test_a_session_stands_for_its_user_and_role(accounts: Accounts) -> None:
    secret = await accounts.login("ann", PASSWORD, "1.2.3.4")
    login = accounts.session(secret)
    assert login is not None
    assert (login.caller.name, login.caller.role, login.has_password) == ("ann", AccessRole.OPERATOR, True)
    assert accounts.session(secret + "x") is None and accounts.session("") is None
    accounts.logout(secret)
    assert accounts.session(secret) is None


async def test_neither_password_nor_session_is_in_the_file(accounts: Accounts, store: Store) -> None:
    secret = await accounts.login("ann", PASSWORD, "1.2.3.4")
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    content = b"".join(file.read_bytes() for file in store.path.parent.iterdir())
    assert b"ann" in content, "the file is readable, so what follows means something"
    assert PASSWORD.encode() not in content and secret.encode() not in content


async def test_a_session_ends_when_nobody_uses_it(accounts: Accounts, clock: Clock) -> None:
    secret = await accounts.login("ann", PASSWORD, "1.2.3.4")
    for _ in range(3):
        clock.pass_s(IDLE_S - 60)
        assert accounts.session(secret) is not None, "it is used"
    for _ in range(3):
        clock.pass_s(IDLE_S / 2)
        alive = accounts.session(secret, in_use=False)
    assert alive is None, "a page that is live is not a user who is there"


async def test_a_session_ends_after_its_longest_time(accounts: Accounts, clock: Clock) -> None:
    secret = await accounts.login("ann", PASSWORD, "1.2.3.4")
    passed = 0.0
    while passed + 600 < LONGEST_S:
        clock.pass_s(600)
        passed += 600
        assert accounts.session(secret) is not None
    clock.pass_s(700)
    assert accounts.session(secret) is None


async def test_a_user_who_is_removed_or_has_another_password_is_out_at_once(accounts: Accounts) -> None:
    secret = await accounts.login("ann", PASSWORD, "1.2.3.4")
    await accounts.set_password("ann", "another one entirely")
    assert accounts.session(secret) is None
    secret = await accounts.login("ann", "another one entirely", "1.2.3.4")
    accounts.remove("ann")
    assert accounts.session(secret) is None
    with pytest.raises(AccessDenied):
        await accounts.login("ann", "another one entirely", "1.2.3.4")


async def test_a_token_logs_in_until_it_is_revoked(accounts: Accounts, store: Store) -> None:
    identity, text = store.add_token("robot", AccessRole.VIEWER)
    secret = await accounts.login("", f" {text}\n", "1.2.3.4")
    login = accounts.session(secret)
    assert login is not None and (login.caller.name, login.has_password) == ("robot", False)
    store.revoke_token(identity)
    assert accounts.session(secret) is None
    with pytest.raises(AccessDenied):
        await accounts.login("", text, "1.2.3.4")


async def test_sessions_of_one_user_are_bounded(accounts: Accounts, store: Store, clock: Clock) -> None:
    first = accounts._begin("ann", None)
    for _ in range(SESSIONS_MAX):
        clock.pass_s(1)
        newest = accounts._begin("ann", None)
    assert accounts.session(first) is None and accounts.session(newest) is not None
    assert store.rows("SELECT count(*) AS n FROM session")[0]["n"] == SESSIONS_MAX


async def test_guessing_is_stopped_and_the_right_password_too_until_the_window_is_over(
    accounts: Accounts, clock: Clock
) -> None:
    for _ in range(5):
        with pytest.raises(AccessDenied) as caught:
            await accounts.login("ann", "wrong wrong wrong", "1.2.3.4")
        assert not isinstance(caught.value, TooManyAttempts)
    with pytest.raises(TooManyAttempts):
        await accounts.login("ann", PASSWORD, "1.2.3.4")
    assert await accounts.login("ann", PASSWORD, "5.6.7.8"), "an attacker does not lock the user out"
    clock.pass_s(Attempts.WINDOW_S + 1)
    assert await accounts.login("ann", PASSWORD, "1.2.3.4")


def test_one_address_can_not_try_many_names_nor_many_addresses_one_name() -> None:
    attempts = Attempts()
    for number in range(20):
        attempts.demand(f"user{number}", "1.2.3.4", 0.0)
        attempts.failed(f"user{number}", "1.2.3.4", 0.0)
    with pytest.raises(TooManyAttempts):
        attempts.demand("another", "1.2.3.4", 1.0)
    for number in range(50):
        attempts.failed("ann", f"10.0.0.{number}", 0.0)
    with pytest.raises(TooManyAttempts):
        attempts.demand("ann", "10.0.1.1", 1.0)
    attempts.demand("bob", "10.0.1.1", 1.0)


def test_what_is_remembered_of_attempts_is_bounded() -> None:
    attempts = Attempts()
    for number in range(Attempts.KEYS_MAX):
        attempts.failed(f"user{number}", "1.2.3.4", 0.0)
    assert len(attempts._failed) <= Attempts.KEYS_MAX
