"""How much room the disk of the source's log has, where that can be known.

PostgreSQL does not say. When the capture runs on the source's own machine and may look into the server's
folder, the machine is asked; anywhere else it is unknown.
"""

from __future__ import annotations

import os
from pathlib import Path

from castling.config import DatabaseSettings

__all__ = ["free_bytes"]

#: in the server's postmaster.pid: the line with its port
_PORT_LINE = 3
_HERE = ("localhost", "::1")


def free_bytes(database: DatabaseSettings, data_directory: str | None) -> int | None:
    """Free bytes on the disk of pg_wal; None: not known. A folder of the same name on another machine is told
    by its server's port."""
    named = database.places
    here = all(host.startswith(("/", "127.")) or host in _HERE for host, _ in named)
    if data_directory is None or not here:
        return None
    try:
        lines = (Path(data_directory) / "postmaster.pid").read_text().splitlines()
        if len(lines) <= _PORT_LINE or lines[_PORT_LINE] not in {str(port) for _, port in named}:
            return None
        found = os.statvfs(Path(data_directory) / "pg_wal")
    except (OSError, UnicodeDecodeError):
        return None
    return found.f_bavail * found.f_frsize
