"""The definitions of a first copy: an archive of the source's pg_dump, restored section by section.

pg_restore writes for a server as new as itself. For an older target the statements are written out
first, put into words that it knows (`seed_older`), and run by psql; so they are where schemas or tables have
other names on the target (`seed_renames`).
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from castling.config import DatabaseSettings
from castling.errors import SeedFailed
from castling.kinds.postgres.naming import Naming
from castling.kinds.postgres.seed_older import for_server, is_as_it_is
from castling.kinds.postgres.seed_renames import renamed_script
from castling.kinds.postgres.tools import find_tool, run_tool

__all__ = ["SeedArchive"]

_ARCHIVE_MAX = 256 << 20
#: in an archive's list of contents
_WATCHING = re.compile(r" (TRIGGER \S.* castling_watch|EVENT TRIGGER \S+ castling_(watch|ddl)_\w+) ")


class SeedArchive:
    """One archive in a folder of its own. `versions`: of the source's server and of the target's;
    `owners`: with owners and grants; `application`: what the programs' sessions are called."""

    def __init__(
        self,
        settings: DatabaseSettings,
        *,
        postgres_bin: str | None,
        application: str,
        versions: tuple[int, int],
        owners: bool,
        naming: Naming,
    ) -> None:
        self._settings = settings
        self._naming, self._owners = naming, owners
        self._postgres_bin = postgres_bin
        self._application = application
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
            self._program(),
            f"--section={section}",
            "--list",
            str(self._path),
            settings=self._settings,
            application=self._application,
        )

    async def _chosen(self, section: str) -> list[str]:
        """What of a section is restored. The source may have triggers that tell of its schema changes, and
        such that watch it where it is itself a target; they are not its own."""
        contents = (await self.contents(section)).decode(errors="surrogateescape").splitlines(keepends=True)
        own = [line for line in contents if not _WATCHING.search(line)]
        if len(own) == len(contents):
            return [f"--section={section}"]
        listed = self._path.with_name(f"{section}.list")
        listed.write_text("".join(own), errors="surrogateescape")
        return [f"--section={section}", f"--use-list={listed}"]

    async def restore(self, section: str, *options: str) -> None:
        """Make what the section defines, all of it or nothing."""
        program = self._program()
        chosen = [*await self._chosen(section), *self._plain, *options]
        if is_as_it_is(self._target) and not self._naming:
            into = ["--single-transaction", "--dbname", self._settings.dbname]
            await run_tool(
                program,
                *chosen,
                *into,
                str(self._path),
                settings=self._settings,
                application=self._application,
            )
            return
        script = self._path.with_name(f"{section}.sql")
        await run_tool(
            program,
            *chosen,
            f"--file={script}",
            str(self._path),
            settings=self._settings,
            application=self._application,
        )
        text = for_server(script.read_bytes(), self._target)
        if self._naming:
            begins = section == "pre-data"
            text = renamed_script(text, self._naming, begins=begins, owners=self._owners)
        script.write_bytes(text)
        psql = program.with_name("psql")
        once = ["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--single-transaction"]
        await run_tool(
            psql, *once, f"--file={script}", settings=self._settings, application=self._application
        )

    def close(self) -> None:
        self._folder.cleanup()
