"""The definitions of a first copy: an archive of the source's pg_dump, restored section by section.

pg_restore writes for a server as new as itself. An older target does not know all of its settings, so
for one the statements are written out first, what it can't know is left out, and psql runs the rest.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from castling.config import DatabaseSettings
from castling.errors import SeedFailed
from castling.kinds.postgres.tools import find_tool, run_tool

__all__ = ["SeedArchive", "for_server"]

_ARCHIVE_MAX = 256 << 20
#: settings of a dump's head, and the first version that has them
_SINCE = {b"transaction_timeout": 170000}
_SET = re.compile(rb"SET (\w+) = [^;\n]*;")


def for_server(script: bytes, version: int) -> bytes:
    """`script`, as pg_restore writes it, without the settings that a server of `version` lacks. Pure.

    Only the head is looked at: whatever stands after the first statement of another kind is data of the
    definitions, and left alone.
    """
    lines = script.splitlines(keepends=True)
    for number, line in enumerate(lines):
        found = _SET.fullmatch(line.strip())
        if found and _SINCE.get(found[1], 0) > version:
            lines[number] = b"\n"
        elif (
            line.strip()
            and not found
            and not line.startswith((b"--", b"\\", b"SELECT pg_catalog.set_config"))
        ):
            break
    return b"".join(lines)


class SeedArchive:
    """One archive in a folder of its own. `versions`: of the source's server and of the target's;
    `owners`: with owners and grants."""

    def __init__(
        self,
        settings: DatabaseSettings,
        *,
        postgres_bin: str | None,
        versions: tuple[int, int],
        owners: bool,
    ) -> None:
        self._settings = settings
        self._postgres_bin = postgres_bin
        self._source, self._target = versions
        self._plain = [] if owners else ["--no-owner", "--no-privileges"]
        self._folder = tempfile.TemporaryDirectory(prefix="castling-")
        self._path = Path(self._folder.name) / "definitions"

    async def receive(self, body: AsyncIterator[bytes]) -> None:
        parts, size = [], 0
        async for chunk in body:
            size += len(chunk)
            if size > _ARCHIVE_MAX:
                raise SeedFailed(f"the definitions are larger than {_ARCHIVE_MAX >> 20} MiB")
            parts.append(chunk)
        self._path.write_bytes(b"".join(parts))

    def _program(self) -> Path:
        return find_tool("pg_restore", server_version=self._source, configured=self._postgres_bin)

    async def contents(self, section: str) -> bytes:
        """The table of contents of a section."""
        return await run_tool(
            self._program(), f"--section={section}", "--list", str(self._path), settings=self._settings
        )

    async def restore(self, section: str, *options: str) -> None:
        """Make what the section defines, all of it or nothing."""
        program = self._program()
        chosen = [f"--section={section}", *self._plain, *options]
        if all(self._target >= since for since in _SINCE.values()):
            into = ["--single-transaction", "--dbname", self._settings.dbname]
            await run_tool(program, *chosen, *into, str(self._path), settings=self._settings)
            return
        script = self._path.with_name(f"{section}.sql")
        await run_tool(program, *chosen, f"--file={script}", str(self._path), settings=self._settings)
        script.write_bytes(for_server(script.read_bytes(), self._target))
        psql = program.with_name("psql")
        once = ["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--single-transaction"]
        await run_tool(psql, *once, f"--file={script}", settings=self._settings)

    def close(self) -> None:
        self._folder.cleanup()
