"""What auditor and apply say to each other about a view of both ends at one position.

The auditor writes a row, `asked`, into `castling.audit_marks` of the target, and a message with its id into
the source's log. When apply comes to the message it waits, for a moment, until the row says at which
position it is to stop (`until`): it makes the row `armed`, then `reached` when it holds all before that
position and nothing after. The auditor takes its snapshot and says `taken`. Apply goes on by itself when that
takes too long: `passed`, committed before any later change, so a snapshot that sees `reached` sees nothing
that came after. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence

from castling.kinds.base import Piece
from castling.kinds.postgres.changes import Message
from castling.kinds.postgres.neighbours import MAKE_ALONE

__all__ = ["CREATE_MARKS", "MARK_PREFIX", "REPAIR_PREFIX", "has_mark", "mark_in"]

MARK_PREFIX = "castling:audit"
#: what a repair has to make of single rows (see `audit_mend`)
REPAIR_PREFIX = "castling:repair"

CREATE_MARKS = (
    MAKE_ALONE
    + """
    CREATE TABLE IF NOT EXISTS castling.audit_marks (
        stream text NOT NULL,
        id text PRIMARY KEY,
        state text NOT NULL CHECK (state IN ('asked', 'armed', 'reached', 'taken', 'passed')),
        until pg_lsn,
        paused_s double precision,
        at timestamptz NOT NULL DEFAULT pg_catalog.now()
    );
    CREATE TABLE IF NOT EXISTS castling.audit_repairs (
        stream text NOT NULL,
        digest text NOT NULL,
        state text NOT NULL DEFAULT 'asked' CHECK (state IN ('asked', 'done', 'refused')),
        detail text NOT NULL DEFAULT '',
        at timestamptz NOT NULL DEFAULT pg_catalog.now(),
        PRIMARY KEY (stream, digest)
    );
"""
)


def mark_in(piece: Piece) -> str | None:
    """The id of a mark that the transaction is. Ours carry nothing else: the changes of others are not
    searched."""
    if len(piece.changes) != 1:
        return None
    change = piece.changes[0]
    if isinstance(change, Message) and change.prefix == MARK_PREFIX:
        return change.content.decode(errors="replace")
    return None


def has_mark(pieces: Sequence[Piece]) -> bool:
    return any(mark_in(piece) is not None for piece in pieces)
