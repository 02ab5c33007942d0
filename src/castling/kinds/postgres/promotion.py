"""Whether a promoted standby can be gone on with, where the old primary stood. Pure.

A standby that is promoted begins a timeline of its own: up to the point at which it left the primary's, its
log is the primary's, byte for byte. So a journal that ends at or before that point is a beginning of the new
primary's history too. What follows comes from the stream's slot, of which a standby of PostgreSQL 17 or later
keeps a copy in step (a failover slot): it begins at or before the journal's end.
"""

from __future__ import annotations

import re

from castling.kinds.postgres.lsn import lsn_text, parse_lsn

__all__ = ["promotion_problem", "switch_point"]

#: one line of a timeline's history: the timeline before, and where it was left
_LINE = re.compile(r"^\s*([0-9]+)\s+([0-9A-F]+/[0-9A-F]+)", re.MULTILINE)


def switch_point(history: str, timeline: int) -> int | None:
    """Where a server with this timeline history left `timeline`; None: it was never on it."""
    found = {int(number): parse_lsn(lsn) for number, lsn in _LINE.findall(history)}
    return found.get(timeline)


def promotion_problem(
    *, journal: int, server: int, left_at: int | None, resume: int, has_slot: bool, is_synced: bool
) -> str | None:
    """Why a server on timeline `server` can't give what follows position `resume` of a journal that was
    written from timeline `journal`, and which it left at `left_at`; None: it can."""
    what = f"the source is on timeline {server}, the journal was written from {journal}"
    if server < journal:
        return f"{what}: an old primary has come back, or it was restored"
    if left_at is None:
        return f"{what}, which is not in the source's past: it was restored or is another server"
    if left_at < resume:
        return (
            f"{what}: the standby that was promoted left it at {lsn_text(left_at)}, and the journal ends at"
            f" {lsn_text(resume)}: the backup has changes that the new primary never got"
        )
    if not has_slot:
        return f"{what}: it was promoted, and has no copy of the stream's slot"
    if not is_synced:
        return f"{what}: it was promoted or restored, and its slot is not one that was kept in step by it"
    return None
