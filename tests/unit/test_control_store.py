"""Tokens, invitations and what the agent remembers."""

from __future__ import annotations

import contextlib
import sqlite3
import stat
from pathlib import Path

import pytest

from castling.control.access import AccessRole, Caller, Invitation, demand
from castling.control.store import EVENTS_MAX, MIGRATIONS, Store
from castling.errors import AccessDenied, NotFound, StateError, StateUnsaved, UsageError


@pytest.fixture
def store(tmp_path: Path):
    with Store(tmp_path / "state.sqlite") as found:
        yield found


def test_a_token_tells_its_user_until_it_is_revoked(store: Store) -> None:
    identity, text = store.add_token("ann", AccessRole.OPERATOR)
    assert store.caller(text) == Caller("ann", AccessRole.OPERATOR)
    assert store.revoke_token(identity) is True
    assert store.caller(text) is None
    assert store.revoke_token(identity) is False, "again is safe, and says so"
    with pytest.raises(NotFound):
        store.revoke_token("00000000")


def test_a_wrong_token_is_nobodys(store: Store) -> None:
    _, text = store.add_token("ann", AccessRole.ADMIN)
    for wrong in (
        "",
        "ct_",
        text[:-1],
        text + "x",
        text[:-1] + ("A" if text[-1] != "A" else "B"),
        "x" * 10_000,
    ):
        assert store.caller(wrong) is None


def test_no_secret_is_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    with Store(path) as store:
        _, token = store.add_token("ann", AccessRole.ADMIN)
        _, secret, _ = store.add_invite("west", 60)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    content = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"ann" in content, "the file is readable, so what follows means something"
    assert token.split("_", 2)[2].encode() not in content
    assert secret.encode() not in content


def test_an_invitation_counts_once_for_its_node_and_its_time(store: Store) -> None:
    identity, secret, expires_ns = store.add_invite("west", 60)
    assert store.use_invite(identity, "wrong", expires_ns - 1) is None
    assert store.use_invite(identity, secret, expires_ns) is None, "it is over"
    assert store.use_invite(identity, secret, expires_ns - 1) == "west"
    assert store.use_invite(identity, secret, expires_ns - 1) is None, "it was used"


def test_a_new_invitation_replaces_the_earlier_one_of_the_node(store: Store) -> None:
    old, old_secret, _ = store.add_invite("west", 60)
    new, new_secret, expires_ns = store.add_invite("west", 60)
    assert store.use_invite(old, old_secret, expires_ns - 1) is None
    assert store.use_invite(new, new_secret, expires_ns - 1) == "west"


def test_an_invitation_survives_its_text() -> None:
    made = Invitation(node="west", address="east:7430", fingerprint="ab" * 32, id="1", secret="s")
    assert Invitation.decode(made.encode() + "\n") == made
    for wrong in (
        "",
        "castling-join-",
        "castling-join-%%%",
        "castling-join-e30",
        made.encode()[:-9],
        "x" * 9999,
    ):
        with pytest.raises(UsageError) as caught:
            Invitation.decode(wrong)
        assert wrong == "" or wrong not in str(caught.value)


def test_roles_include_the_ones_below() -> None:
    demand(Caller("a", AccessRole.ADMIN), AccessRole.VIEWER)
    demand(Caller("a", AccessRole.VIEWER), AccessRole.VIEWER)
    for caller in (Caller("a", AccessRole.VIEWER), Caller("node west", None, "west"), Caller("nobody")):
        with pytest.raises(AccessDenied):
            demand(caller, AccessRole.OPERATOR)


def test_desired_states_are_kept(tmp_path: Path) -> None:
    with Store(tmp_path / "s") as store:
        assert store.set_desired("orders", "running", "ann") is True
        assert store.set_desired("orders", "running", "ann") is False
    with Store(tmp_path / "s") as store:
        assert store.desired() == {"orders": "running"}
        store.forget_desired("orders")
        assert store.desired() == {}
        with pytest.raises(sqlite3.IntegrityError):
            store.set_desired("orders", "dancing", "ann")


def test_what_can_not_be_kept_is_said_by_name(tmp_path: Path) -> None:
    """Somebody else holds the file; an event is then dropped, and everything else is refused."""
    with Store(tmp_path / "s") as store, contextlib.closing(sqlite3.connect(tmp_path / "s")) as other:
        store._db.execute("PRAGMA busy_timeout = 10")
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StateUnsaved, match="database is locked"):
            store.set_desired("orders", "running", "ann")
        store.add_event("dropped", {})
        other.rollback()
        assert store.set_desired("orders", "running", "ann") is True
        assert store.events(10) == []


def test_events_are_bounded_and_in_order(store: Store) -> None:
    store.add_event("first", {})
    store._db.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'event'", (EVENTS_MAX,))
    store.add_event("second", {"n": 2})
    assert [each["name"] for each in store.events(10)] == ["second"], "the oldest gave way"
    store.add_event("third", {})
    assert [each["name"] for each in store.events(10)] == ["second", "third"]
    assert store.events(10)[0]["fields"] == {"n": 2}


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    Store(tmp_path / "s").close()
    with sqlite3.connect(tmp_path / "s") as db:
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    db.close()
    with pytest.raises(StateError, match="newer version"):
        Store(tmp_path / "s")


def test_deployments_get_rising_versions(store: Store) -> None:
    assert [store.add_deployment("d", "text", "ann") for _ in range(3)] == [1, 2, 3]
    assert [row["version"] for row in store.deployments()] == [3, 2, 1]
