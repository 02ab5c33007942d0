"""What the check says of the room for the source's log. Pure."""

from __future__ import annotations

import re

from castling.config import GroupSettings
from castling.kinds.base import Finding
from castling.kinds.postgres.facts import warning

__all__ = ["judge_log"]

_UNITS = {"B": 1, "kB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}


def judge_log(server_settings: dict[str, str], settings: GroupSettings) -> list[Finding]:
    """Whether anything ends what the slot may keep, and whether the server lets the group's order be."""
    keeps = _bytes(server_settings.get("max_slot_wal_keep_size", ""))
    limit = settings.wal_limit
    if keeps is None and limit is None:
        return [
            warning(
                "source",
                "log-unbounded",
                "nothing bounds the log that the source keeps while the backup is away: it grows until its"
                " disk is full, and then the source stops",
                "set wal_limit (and wal_spool), or max_slot_wal_keep_size on the source",
            )
        ]
    if keeps is None:
        return []
    late = [
        f"{key} ({size >> 20} MiB)"
        for key, size in (("wal_spool", settings.wal_spool), ("wal_limit", limit))
        if size is not None and size >= keeps
    ]
    if late:
        return [
            warning(
                "source",
                "log-limit-late",
                f"max_slot_wal_keep_size ({keeps >> 20} MiB) takes the log away before {' and '.join(late)}",
                "set it higher than the group's limits: the server takes log away without a word",
            )
        ]
    return []


def _bytes(text: str) -> int | None:
    """What the server's setting says; None: no limit."""
    found = re.fullmatch(r"([0-9]+)(B|kB|MB|GB|TB)", text)
    return None if found is None else int(found[1]) * _UNITS[found[2]]
