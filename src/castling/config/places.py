"""On which line of a TOML text every table and key stands.

Python's TOML reader gives values without places. This scanner gives places without
values; it is only ever run on text that the reader has accepted, so it may be lenient.
A place is the 1-based line; a path is the keys from the top, so `[groups.orders.link]`
followed by `port = 1` gives ("groups", "orders", "link", "port").
"""

from __future__ import annotations

__all__ = ["Path", "nearest", "places"]

Path = tuple[str, ...]


def nearest(found: dict[Path, int], path: Path) -> int | None:
    """The line of `path`, or of the closest table around it that is written; None if there is none."""
    for length in range(len(path), 0, -1):
        if path[:length] in found:
            return found[path[:length]]
    return None


def places(text: str) -> dict[Path, int]:
    """The line of every table header and key of a valid TOML text (the first one counts)."""
    scanner = _Scanner(text)
    scanner.document()
    return scanner.found


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.found: dict[Path, int] = {}
        self._counted = 0
        self._line = 1

    def line(self) -> int:
        self._line += self.text.count("\n", self._counted, self.at)
        self._counted = self.at
        return self._line

    def peek(self, length: int = 1) -> str:
        return self.text[self.at : self.at + length]

    def blank(self) -> None:
        """Skip white space, line ends, commas and comments."""
        while self.at < len(self.text) and self.peek() in " \t\r\n,#":
            if self.peek() == "#":
                end = self.text.find("\n", self.at)
                self.at = len(self.text) if end < 0 else end
            else:
                self.at += 1

    def document(self) -> None:
        table: Path = ()
        while True:
            self.blank()
            if self.at >= len(self.text):
                return
            line = self.line()
            if self.peek() == "[":
                brackets = 2 if self.peek(2) == "[[" else 1
                self.at += brackets
                table = self.key()
                self.at += brackets
                self.note(table, line)
            else:
                self.pair(table)

    def note(self, path: Path, line: int) -> None:
        for length in range(1, len(path) + 1):
            self.found.setdefault(path[:length], line)

    def pair(self, table: Path) -> None:
        line = self.line()
        path = table + self.key()
        self.note(path, line)
        self.at += 1  # the equals sign
        self.blank()
        self.value(path)

    def key(self) -> Path:
        """A dotted key; stops at its `=` or `]`."""
        parts: list[str] = []
        while True:
            self.blank()
            if self.peek() in ("'", '"'):
                parts.append(self.quoted())
            else:
                start = self.at
                while self.peek() and self.peek() not in " \t.=]":
                    self.at += 1
                parts.append(self.text[start : self.at])
            self.blank()
            if self.peek() != ".":
                return tuple(parts)
            self.at += 1

    def quoted(self) -> str:
        """A string of any of the four forms; what it says, but for escapes."""
        mark = self.peek()
        fence = mark * 3 if self.peek(3) == mark * 3 else mark
        self.at += len(fence)
        start = self.at
        while self.at < len(self.text) and not self.text.startswith(fence, self.at):
            self.at += 2 if mark == '"' and self.peek() == "\\" else 1
        said = self.text[start : self.at]
        self.at += len(fence)
        while len(fence) == 3 and self.peek() == mark:  # up to two quotes may stand before the fence
            self.at += 1
        return said

    def value(self, path: Path) -> None:
        opening = self.peek()
        if opening in ("'", '"'):
            self.quoted()
        elif opening in ("[", "{"):
            self.at += 1
            self.members(path, "]" if opening == "[" else "}")
        else:
            while self.peek() and self.peek() not in ",]}#\r\n":
                self.at += 1

    def members(self, path: Path, closing: str) -> None:
        while True:
            self.blank()
            if self.at >= len(self.text) or self.peek() == closing:
                self.at += 1
                return
            if closing == "}":
                self.pair(path)
            else:
                self.value(path)
