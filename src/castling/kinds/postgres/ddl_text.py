"""Which statement it was: the one among those of a text, or of a call stack, that a trigger told of. Pure.

A client may send many statements in one text, and a function may give them one by one. PostgreSQL tells a
trigger the whole text or the call stack, the statement's tag and how many of that tag came before it.
So a text is taken apart as psql does it, and what is found must be of the tag and name the object; what
can't be told for certain is not guessed at.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from castling.kinds.postgres.ddl_message import SchemaChange

__all__ = ["dropped", "may_be_made", "split", "statement_of"]

#: what ends or begins a statement's parts; the order of alternatives counts
_LEXEME = r"""
    (?P<space>\s+|--[^\n]*)
  | (?P<comment>/\*)
  | (?P<dollar>\$(?:[A-Za-z_\u0080-\uffff][A-Za-z0-9_\u0080-\uffff]*)?\$)
  | (?P<escaped>[eE]'(?:[^'\\]|\\.|'')*')
  | (?P<text>(?:[bBxXnN]|[uU]&)?'(?:[^']|'')*')
  | (?P<quoted>(?:[uU]&)?"(?:[^"]|"")*")
  | (?P<word>[A-Za-z_\u0080-\U0010ffff][A-Za-z0-9_$\u0080-\U0010ffff]*)
  | (?P<open>[(\[]) | (?P<close>[)\]]) | (?P<end>;) | (?P<other>\d[\w.]*|.)
"""
_STANDARD = re.compile(_LEXEME, re.VERBOSE | re.DOTALL)
#: with standard_conforming_strings off every text may hold backslashes
_ESCAPING = re.compile(
    _LEXEME.replace(r"(?:[bBxXnN]|[uU]&)?'(?:[^']|'')*'", r"(?:[bBxXnN]|[uU]&)?'(?:[^'\\]|\\.|'')*'"),
    re.VERBOSE | re.DOTALL,
)
_COMMENT = re.compile(r"/\*|\*/")
#: words that stand between CREATE and what is created, and are not in the tag
_BESIDE = {
    *("OR", "REPLACE", "GLOBAL", "LOCAL", "TEMP", "TEMPORARY", "UNLOGGED", "RECURSIVE", "UNIQUE"),
    *("TRUSTED", "PROCEDURAL", "CONSTRAINT", "DEFAULT"),
}
#: objects whose own name a statement about them must hold
_NAMED = {
    *("table", "index", "view", "materialized view", "sequence", "function", "procedure", "aggregate"),
    *("trigger", "policy", "rule", "schema", "extension"),
}
#: errors that say that something of that name is there, or is not
_DUPLICATE = ("42701", "42P07", "42710", "42723", "42P06")
_GONE = ("42P01", "42703", "42704", "42883", "3F000")
#: the innermost frame of a call stack, and what may stand behind it
_FRAME = re.compile(r'SQL statement "(.*?)"(?:$|\n(?=PL/|SQL |extension script|while |COPY ))', re.DOTALL)
_CONCURRENTLY = re.compile(r"\s+CONCURRENTLY\s*$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Parsed:
    """`words`: unquoted ones in capitals, at no depth of brackets; `names`: every identifier, folded."""

    text: str
    words: tuple[str, ...]
    names: frozenset[str]
    #: commas at no depth of brackets
    commas: int

    def has_tag(self, tag: str) -> bool:
        wanted = tag.split()
        if tag == "CREATE TABLE" and "AS" in self.words:
            return False  # CREATE TABLE AS has a tag of its own
        if wanted[0] not in self.words[:1]:
            return False
        found = [*self.words[:1], *_without(self.words[1:8])]
        return found[: len(wanted)] == wanted or list(self.words[: len(wanted)]) == wanted


def _without(words: Sequence[str]) -> list[str]:
    """`words` without those that are not in a tag and stand before it."""
    at = 0
    while at < len(words) and words[at] in _BESIDE:
        at += 1
    return list(words[at:])


def split(text: str, *, standard: bool = True) -> list[str]:
    """The statements of `text`, without what separates them. `standard`: as standard_conforming_strings."""
    return [each.text for each in _parsed(text, standard=standard)]


def _parsed(text: str, *, standard: bool) -> list[_Parsed]:
    scan = (_STANDARD if standard else _ESCAPING).match
    found: list[_Parsed] = []
    at, begin, end, depth, blocks, commas = 0, -1, 0, 0, 0, 0
    words: list[str] = []
    names: set[str] = set()
    while at < len(text):
        token = scan(text, at)
        assert token is not None, "a pattern that matches any character"
        kind, was, at = token.lastgroup, at, token.end()
        if kind == "space":
            continue
        if kind == "comment":
            at = _after_comment(text, at)
            continue
        if kind == "end" and depth == 0 and blocks == 0:
            if begin >= 0:
                found.append(_Parsed(text[begin:end], tuple(words), frozenset(names), commas))
            begin, words, names, commas = -1, [], set(), 0
            continue
        begin = was if begin < 0 else begin
        if kind == "dollar":
            closing = text.find(token[0], at)
            at = len(text) if closing < 0 else closing + len(token[0])
        elif kind == "open":
            depth += 1
        elif kind == "close":
            depth = max(0, depth - 1)
        elif token[0] == ",":
            commas += depth == 0
        elif kind == "quoted":
            names.add(token[0][token[0].index('"') + 1 : -1].replace('""', '"'))
        elif kind == "word":
            word = token[0].upper()
            names.add(token[0].lower())
            if depth == 0:
                words.append(word)
            blocks = _blocks(blocks, word, words)
        end = at
    if begin >= 0:
        found.append(_Parsed(text[begin:end], tuple(words), frozenset(names), commas))
    return found


def _blocks(blocks: int, word: str, words: Sequence[str]) -> int:
    """The body of a function may be BEGIN ATOMIC … END, with semicolons; CASE … END may lie in it."""
    if blocks == 0:
        begins = word == "ATOMIC" and words[-2:] == ["BEGIN", "ATOMIC"] and words[0] == "CREATE"
        return 1 if begins else 0
    if word in ("BEGIN", "CASE"):
        return blocks + 1
    return blocks - 1 if word == "END" else blocks


def _after_comment(text: str, at: int) -> int:
    depth = 1
    while depth:
        found = _COMMENT.search(text, at)
        if found is None:
            return len(text)
        depth += 1 if found[0] == "/*" else -1
        at = found.end()
    return at


def statement_of(change: SchemaChange) -> str | None:
    """The statement to make on the target. None: it can't be told for certain."""
    if change.untold is not None:
        return None
    if change.bare is not None:
        return change.bare
    text = _told(change)
    if text is None or (change.index is not None and _is_concurrent(text)):
        return change.index
    if change.tag == "ALTER TABLE" and "DETACH" in text.upper():
        return _CONCURRENTLY.sub("", text)
    return text


def _is_concurrent(text: str) -> bool:
    """An index that is made concurrently is made in one go where nobody but Castling writes."""
    return "CONCURRENTLY" in (parsed.words if (parsed := _first(text)) else ())


def _first(text: str) -> _Parsed | None:
    found = _parsed(text, standard=True)
    return found[0] if found else None


def _told(change: SchemaChange) -> str | None:
    text, nth = change.query, change.nth
    if text is None:
        frame = _FRAME.match(change.stack or "")
        if frame is None:
            return None
        text, nth = frame[1], 1
    standard = change.settings.get("standard_conforming_strings", "on") == "on"
    statements = _parsed(text, standard=standard)
    fitting = [each for each in statements if each.has_tag(change.tag)]
    if len(statements) == 1:
        return fitting[0].text if fitting else None
    if change.query is None and len(fitting) != 1:
        return None  # which of several it is was not counted there
    goes_back = any(each.words[:1] in (("ROLLBACK",), ("ABORT",)) for each in statements)
    if len(fitting) > 1 and goes_back:
        return None  # what was rolled back was not counted
    nth = nth if len(fitting) > 1 else 1
    if nth > len(fitting):
        return None
    chosen = fitting[nth - 1]
    return chosen.text if _names(chosen, change) else None


def _names(statement: _Parsed, change: SchemaChange) -> bool:
    known = [at[0][-1] for kind, _, at in change.objects if at is not None and kind in _NAMED]
    known += [shape.name for shape in change.tables if known]  # an index may have got its name by itself
    return not known or any(name in statement.names for name in known)


def may_be_made(statement: str, sqlstate: str) -> bool:
    """Whether the target may refuse it because what it makes is there already, or what it takes away is gone.
    Of several actions in one statement only one would be known to be so."""
    parsed = _first(statement)
    if parsed is None or (parsed.words[0] == "ALTER" and parsed.commas):
        return False
    if sqlstate in _DUPLICATE:
        return True
    return sqlstate in _GONE and bool({"RENAME", "DROP"} & set(parsed.words[1:]))


def dropped(type_: str, names: Sequence[str], *, cascade: bool) -> str:
    """A DROP of what was named, if it is there."""
    return f"DROP {type_} IF EXISTS {', '.join(names)}{' CASCADE' if cascade else ''}"
