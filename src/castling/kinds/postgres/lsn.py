"""Log positions: integers inside, `16/B374D848` where PostgreSQL reads or writes them. Pure."""

from __future__ import annotations

__all__ = ["lsn_text", "parse_lsn"]


def lsn_text(lsn: int) -> str:
    """A log position as PostgreSQL writes it."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def parse_lsn(text: str) -> int:
    """The reverse of `lsn_text`."""
    high, _, low = text.partition("/")
    return (int(high, 16) << 32) | int(low, 16)
