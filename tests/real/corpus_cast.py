"""The hard cases, as folders, and what is compared of them beside their rows.

    postgres/CASE/schema.sql   tables, in a schema of the case's name
    postgres/CASE/before.sql   rows that the first copy takes
    postgres/CASE/target.sql   what is then made otherwise on the target (optional)
    postgres/CASE/live.sql     the transactions that are replicated
    postgres/CASE/case.toml    needs: oldest version that can hold it; extra: tables with more columns on the
                               target; built: a query that is true on servers built so that they can hold it

psql runs them, as a person would.
"""

from __future__ import annotations

import difflib
import os
import re
import subprocess
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from castling.testing.servers import EmbeddedServer

__all__ = [
    "EXTENSIONS",
    "Case",
    "definitions",
    "differing_lines",
    "fitting",
    "own_columns",
    "run_script",
    "sequences",
]

EXTENSIONS = (
    *("hstore", "citext", "ltree", "cube", "seg", "isn", "intarray", "lo", "earthdistance"),
    *("btree_gist", "pg_trgm"),
)
_FOLDER = Path(__file__).parent / "postgres"


@dataclass(frozen=True, slots=True)
class Case:
    """`schema`: where its tables are made."""

    folder: Path
    schema: str
    needs: int = 0
    built: str | None = None
    extra: tuple[str, ...] = ()

    @property
    def is_altered(self) -> bool:
        """Its target is made otherwise than its source."""
        return (self.folder / "target.sql").exists()


def fitting(*servers: EmbeddedServer, suffix: str = "") -> list[Case]:
    """The cases that all the servers can hold, in schemas of their names and `suffix`."""
    version = min(int(str(server.execute("SHOW server_version_num")[0][0])) for server in servers)
    found = []
    for folder in sorted(path for path in _FOLDER.iterdir() if path.is_dir()):
        path = folder / "case.toml"
        said = tomllib.loads(path.read_text()) if path.exists() else {}
        case = Case(
            folder,
            folder.name + suffix,
            said.get("needs", 0),
            said.get("built"),
            tuple(said.get("extra", ())),
        )
        built = case.built
        if version >= case.needs and (
            built is None or all(server.execute(built) == [(True,)] for server in servers)
        ):
            found.append(case)
    return found


def run_script(server: EmbeddedServer, database: str, case: Case, script: str) -> None:
    """By psql, in the case's schema; any error ends the test. A script that is not there is done."""
    path = case.folder / f"{script}.sql"
    if not path.exists():
        return
    done = subprocess.run(
        [
            *(str(server.bin / "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-o", "/dev/null"),
            *("-c", f'SET search_path = "{case.schema}", public', "-f", str(path), server.dsn(database)),
        ],
        env={"PATH": os.defpath, "PGCLIENTENCODING": "UTF8"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{case.schema}/{script}.sql: {done.stderr}"


def definitions(server: EmbeddedServer, database: str, cases: Iterable[Case], bin_folder: Path) -> list[str]:
    """What pg_dump (of `bin_folder`: one and the same for both sides) says of the cases whose target was not
    made otherwise: owners, grants, comments and default privileges too."""
    chosen = [f'--schema="{case.schema}"' for case in cases if not case.is_altered]
    dumped = subprocess.run(
        [str(bin_folder / "pg_dump"), "--schema-only", *chosen, server.dsn(database)],
        env={"PATH": os.defpath},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    kept = [line for line in dumped if line and not line.startswith(("--", "\\"))]
    return [line for line in kept if "TRIGGER castling_watch" not in line]


#: what a version with constraints for NOT NULL says of them, and an older one does not
_NOT_NULL = re.compile(r' CONSTRAINT ("[^"]*"|\S+)(?= NOT NULL)|^ +NOT NULL .*$|,$')


def differing_lines(here: list[str], there: list[str], *, loosely: bool) -> list[str]:
    """Marked with the side that has them; none when both say the same in the same order. `loosely`: between
    versions of servers."""
    if loosely:
        here, there = ([_NOT_NULL.sub("", line) for line in side] for side in (here, there))
    return [line for line in difflib.ndiff(here, there) if line[0] in "+-" and line[2:]]


def own_columns(
    server: EmbeddedServer, database: str, case: Case, columns_of: EmbeddedServer
) -> dict[str, list[tuple[Any, ...]]]:
    """The rows of its tables that have more columns on the target, by the columns that `columns_of` has."""
    found = {}
    for table in case.extra:
        name = f'"{case.schema}"."{table}"'
        listed = columns_of.execute(
            "SELECT string_agg(quote_ident(attname), ', ' ORDER BY attname) FROM pg_attribute"
            f" WHERE attnum > 0 AND NOT attisdropped AND attrelid = '{name}'::regclass",
            database,
        )
        found[name] = server.execute(f"SELECT ROW({listed[0][0]})::text FROM {name} ORDER BY 1", database)
    return found


def sequences(server: EmbeddedServer, database: str) -> dict[str, tuple[int, int, bool]]:
    """Of every sequence: what nextval gives next, the increment and whether it starts again at its end."""
    found = {}
    listed = server.execute(
        "SELECT format('%I.%I', schemaname, sequencename), increment_by, cycle FROM pg_sequences"
        " WHERE schemaname <> 'castling'",
        database,
    )
    for name, step, cycles in listed:
        last, called = server.execute(f"SELECT last_value, is_called FROM {name}", database)[0]
        assert isinstance(last, int) and isinstance(step, int)
        found[str(name)] = (last + step if called else last, step, bool(cycles))
    return found
