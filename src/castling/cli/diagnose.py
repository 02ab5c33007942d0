"""castling diagnose: one file for a bug report, without secrets.

It takes what is known to be free of secrets (settings name where passwords are, never
the passwords) and leaves keys, tokens and databases alone. Logs are cut to their ends.
"""

from __future__ import annotations

import io
import os
import platform
import tarfile
import time
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

import castling
from castling.cli.output import Result
from castling.cli.session import Session, command
from castling.control.home import Home
from castling.errors import CastlingError

__all__ = ["register"]

LOG_MAX = 512 << 10
FILES_MAX = 200


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    command(app, "diagnose")(_diagnose)


def _diagnose(
    session: Session,
    output: Annotated[
        Path | None, typer.Option("--output", envvar="CASTLING_OUTPUT", help="The file to write.")
    ] = None,
) -> Result:
    """Gather versions, settings, reports, events and logs of this node in one tar file."""
    file = output or Path(f"castling-diagnose-{time.strftime('%Y%m%d-%H%M%S')}.tar.gz")
    parts = {"about.json": _json(_about(session.home))}
    for name, path in (
        ("groups.json", "/v1/groups"),
        ("nodes.json", "/v1/nodes"),
        ("events.json", "/v1/events?limit=1000"),
        ("deployments.json", "/v1/deployments"),
    ):
        parts[name] = _json(_asked(session, path))
    parts.update(_files(session.home))
    _write(file, parts)
    data = {"file": str(file.absolute()), "bytes": file.stat().st_size, "parts": sorted(parts)}
    return Result(data, f"{file}: {len(parts)} parts; look through it before you send it")


def _about(home: Home) -> dict[str, Any]:
    wanted = ("cryptography", "psycopg", "msgspec", "starlette", "uvicorn", "zstandard", "xxhash")
    return {
        "castling": castling.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "node": home.node() if home.initialised else None,
        "packages": {name: metadata.version(name) for name in wanted},
    }


def _asked(session: Session, path: str) -> Any:
    """An agent that does not answer is what a bug report may be about."""
    try:
        return session.call("GET", path)
    except CastlingError as error:
        return {"error": error.as_json()}


def _files(home: Home) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for path in (home.written, home.deployed):
        if path.exists():
            found[path.name] = path.read_bytes()
    kinds = ("*.json", "*.log", "*/stream.json")
    for path in [path for kind in kinds for path in sorted(home.groups.glob(f"*/{kind}"))][:FILES_MAX]:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LOG_MAX))
            found[str(path.relative_to(home.folder))] = file.read(LOG_MAX)
    return found


def _json(data: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(data), indent=2)


def _write(file: Path, parts: dict[str, bytes]) -> None:
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "wb") as raw, tarfile.open(fileobj=raw, mode="w:gz") as tar:
        for name, data in parts.items():
            entry = tarfile.TarInfo(f"castling-diagnose/{name}")
            entry.size, entry.mode, entry.mtime = len(data), 0o600, int(time.time())
            tar.addfile(entry, io.BytesIO(data))
