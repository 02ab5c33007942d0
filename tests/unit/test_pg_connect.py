"""Where a password comes from, and that nothing in the environment goes before what is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from castling.config import DatabaseSettings
from castling.errors import SecretMissing
from castling.kinds.postgres.connect import parameters, password_of


def _settings(passfile: Path, **changed: object) -> DatabaseSettings:
    given = {"host": "db", "port": 5433, "dbname": "shop", "user": "ann", "passfile": str(passfile)}
    return DatabaseSettings(**(given | changed))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("line", "password"),
    [
        ("db:5433:shop:ann:secret", "secret"),
        ("*:*:*:*:secret", "secret"),
        (r"db:5433:shop:ann:a\:b\\c", r"a:b\c"),
        ("# a comment\nother:5433:shop:ann:no\ndb:*:shop:ann:yes\n*:*:*:*:late", "yes"),
    ],
)
def test_the_first_line_that_matches_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, password: str
) -> None:
    monkeypatch.setenv("PGPASSWORD", "of the environment")
    passfile = tmp_path / "pgpass"
    passfile.write_text(line + "\n")
    assert password_of(_settings(passfile)) == password
    assert parameters(_settings(passfile), application_name="x")["password"] == password


def test_a_file_without_the_line_is_named_and_never_what_it_holds(tmp_path: Path) -> None:
    passfile = tmp_path / "pgpass"
    passfile.write_text("db:5433:shop:bob:secret\nmalformed:secret\n")
    with pytest.raises(SecretMissing) as raised:
        password_of(_settings(passfile))
    assert str(passfile) in str(raised.value) and "secret" not in str(raised.value)
    with pytest.raises(SecretMissing):
        password_of(_settings(tmp_path / "none"))


def test_the_environment_does_not_lead_elsewhere(tmp_path: Path) -> None:
    """PGHOSTADDR or PGOPTIONS of the agent's environment would count for what is not given."""
    passfile = tmp_path / "pgpass"
    passfile.write_text("*:*:*:*:x\n")
    given = parameters(_settings(passfile), application_name="x")
    assert given["hostaddr"] == "" and given["options"].startswith("-c castling.session=on ")
