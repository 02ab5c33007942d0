"""How definitions differ between two servers: lists of things in, differences out. Pure.

Servers of two versions write the same expression differently: newer ones leave out the name of the only table
in it. So between versions texts are compared loosely, without qualifying names outside of literals.

A thing is named by kind and name and has a text that says what it is; two are the same when their texts are.
`make` is the statement by which the target would come to have it, where there is one. It never holds a
password: PostgreSQL does not show them, and neither does this.
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from castling.config import GroupSettings
from castling.kinds.base import Finding, Severity
from castling.kinds.postgres.catalog import are_chosen, table_name

__all__ = [
    "Difference",
    "Digest",
    "Thing",
    "differences",
    "finding",
    "is_in_group",
    "judge_extensions",
    "loosely",
]

#: of these the target may have more than the source: other databases live there too
_SHARED = frozenset({"role", "member", "tablespace", "extension", "schema"})
#: the statement that makes one of these also changes what is there
_MADE_ANEW = frozenset(
    {"role", "member", "setting", "server setting", "owner", "grant", "comment", "security label", "function"}
    | {"rule", "extension"}
)
#: longer definitions are shown cut
_SHOWN = 200


@dataclass(frozen=True, slots=True)
class Thing:
    kind: str
    name: str
    text: str
    make: str = ""

    @property
    def key(self) -> tuple[str, str]:
        return self.kind, self.name


@dataclass(frozen=True, slots=True)
class Difference:
    """`source`, `target`: the thing's text on each, None where it is not there."""

    kind: str
    name: str
    source: str | None
    target: str | None
    make: str = ""

    @property
    def message(self) -> str:
        if self.kind == "server setting" and None in (self.source, self.target):
            side = "source" if self.source is None else "target"
            return f"is not compared: the {side} does not have it, or does not show it to Castling's user"
        if self.target is None:
            return f"is not on the target: {_shown(self.source)}"
        if self.source is None:
            return f"is on the target only: {_shown(self.target)}"
        return f"is {_shown(self.source)} on the source, {_shown(self.target)} on the target"


def _shown(text: str | None) -> str:
    one_line = " ".join((text or "").split())
    return one_line if len(one_line) <= _SHOWN else f"{one_line[:_SHOWN]} …"


#: a literal, kept; or a name that qualifies the one behind its dot, left out; or white space
_LOOSE = re.compile(r"""('(?:[^']|'')*')|(?:"(?:[^"]|"")*"|[^\W\d][\w$]*)\.|\s+""")


def loosely(text: str) -> str:
    """The text without what two versions of PostgreSQL write differently."""
    return _LOOSE.sub(lambda found: found.group(1) or ("" if found.group(0).strip() else " "), text).strip()


def differences(source: Iterable[Thing], target: Iterable[Thing], *, loose: bool = False) -> list[Difference]:
    """What the target lacks, has otherwise, or has beyond the source; by kind and name.

    A thing inside another that is missing itself is not told of again.
    """
    here = {thing.key: thing for thing in source}
    there = {thing.key: thing for thing in target}
    found = []
    for key in sorted(here.keys() | there.keys()):
        mine, other = here.get(key), there.get(key)
        if mine is not None and other is not None:
            same = mine.text == other.text or (loose and loosely(mine.text) == loosely(other.text))
            if not same:
                make = mine.make if mine.kind in _MADE_ANEW else ""
                if mine.kind == "role":
                    make = make.replace("CREATE ROLE", "ALTER ROLE", 1)
                found.append(Difference(*key, mine.text, other.text, make))
        elif mine is not None:
            found.append(Difference(*key, mine.text, None, mine.make))
        elif other is not None and other.kind not in _SHARED:
            found.append(Difference(*key, None, other.text))
    whole = {(each.name, each.source is None) for each in found if each.kind in ("table", "schema")
             and None in (each.source, each.target)}  # fmt: skip
    return [each for each in found if each.kind in ("table", "schema") or not _is_inside(each, whole)]


def _is_inside(difference: Difference, whole: set[tuple[str, bool]]) -> bool:
    if None not in (difference.source, difference.target):
        return False
    side = difference.source is None
    return any(
        difference.name.startswith((f"{name}.", f"{name}(")) or difference.name == name
        for name, only_target in whole
        if only_target == side
    )


class Digest:
    """A short digest for each kind of thing, in whatever order they come, without keeping them."""

    def __init__(self, *, loose: bool = False) -> None:
        self._loose = loose
        self._sums: dict[str, int] = {}

    def add(self, thing: Thing) -> None:
        text = loosely(thing.text) if self._loose else thing.text
        one = hashlib.sha256(f"{thing.name}\0{text}".encode()).digest()
        self._sums[thing.kind] = (self._sums.get(thing.kind, 0) + int.from_bytes(one[:16], "big")) % (
            1 << 128
        )

    def result(self) -> dict[str, str]:
        return {kind: f"{value:032x}" for kind, value in sorted(self._sums.items())}


def finding(difference: Difference, *, code: str) -> Finding:
    """A difference as an answer of a check; its hint is the statement that mends it, where there is one."""
    return Finding(
        Severity.WARNING,
        f"{difference.kind} {difference.name}",
        code,
        difference.message,
        _hint(difference),
        {"source": difference.source, "target": difference.target, "make": difference.make},
    )


def _hint(difference: Difference) -> str:
    if difference.kind == "server setting" and None in (difference.source, difference.target):
        side = "source" if difference.source is None else "target"
        return f"on the {side}: GRANT pg_read_all_settings to the user"
    return f"on the target: {difference.make}" if difference.make and difference.source is not None else ""


def judge_extensions(found: list[Difference], available: dict[str, set[str]]) -> list[Difference]:
    """A statement that the target could not carry out is exchanged for what has to be done before. Pure."""
    judged = []
    for each in found:
        if each.kind == "extension" and each.source is not None:
            name = each.name.strip('"').replace('""', '"')
            versions = available.get(name, set())
            if not versions:
                each = replace(
                    each, make=f"CREATE EXTENSION {each.name} -- first install the package that brings it"
                )
            elif each.target is not None:
                each = replace(each, make=f"ALTER EXTENSION {each.name} UPDATE TO '{each.source}'")
            if versions and each.source not in versions:
                offered = ", ".join(sorted(versions))
                each = replace(each, make=f"CREATE EXTENSION {each.name} -- the server offers only {offered}")
        judged.append(each)
    return judged


def is_in_group(schema: str, relations: list[tuple[str, str]], settings: GroupSettings) -> bool:
    """Whether what belongs to one of `relations` (a table and those it is a part of), or else to a schema,
    belongs to the group."""
    if relations:
        return are_chosen([table_name(*relation) for relation in relations], settings)
    if any(
        fnmatch.fnmatchcase(schema, before)
        for before, _, after in map(_parts, settings.exclude)
        if after == "*"
    ):
        return False
    return any(fnmatch.fnmatchcase(schema, before) for before, _, _ in map(_parts, settings.include))


def _parts(pattern: str) -> tuple[str, str, str]:
    return pattern.partition(".") if "." in pattern else (pattern, ".", "*")
