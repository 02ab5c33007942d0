"""One result, two writers: JSON for programs, text for people.

A result goes to stdout, the story to stderr. Text keeps to 80 columns where its content
lets it, and is plain when stdout is no terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from castling.errors import CastlingError

__all__ = ["Result", "ask", "columns", "say", "show", "show_error"]


WIDTH = 80


@dataclass(frozen=True, slots=True)
class Result:
    """`data`: the documented JSON; `text`: the same for people; `exit_code`: 3 when something was found."""

    data: Any
    text: str
    exit_code: int = 0


def show(result: Result, *, json: bool) -> None:
    if json:
        sys.stdout.write(_encoded({"ok": True, "data": result.data}))
    elif result.text:
        sys.stdout.write(result.text.rstrip("\n") + "\n")
    sys.stdout.flush()


def show_error(error: CastlingError, *, json: bool) -> None:
    if json:
        sys.stdout.write(_encoded({"ok": False, "error": error.as_json()}))
        sys.stdout.flush()
        return
    sys.stderr.write(f"error[{error.code}]: {error}\n")
    if error.hint:
        sys.stderr.write(f"hint: {error.hint}\n")


def say(line: str) -> None:
    """A line of the story."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def ask(question: str) -> bool:
    """True when somebody at a terminal says yes."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def columns(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table: as wide as its content, two blanks between (one where that keeps it to the width)."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(head))]
    gap = "  " if sum(widths) + 2 * (len(widths) - 1) <= WIDTH else " "
    return "\n".join(
        gap.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _encoded(said: dict[str, Any]) -> str:
    return msgspec.json.format(msgspec.json.encode(said), indent=2).decode() + "\n"
