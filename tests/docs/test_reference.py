"""The generated pages are current, and what the pages say exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from castling.cli.reference import commands, pages

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", sorted(pages()))
def test_generated_pages_are_current(name: str) -> None:
    assert (DOCS / "reference" / name).read_text(encoding="utf-8") == pages()[name], "run `make docs`"


def test_links_between_pages_lead_somewhere() -> None:
    for page in DOCS.rglob("*.md"):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.relative_to(DOCS)} links to {target}"


def test_commands_in_the_pages_exist() -> None:
    known = {words for words, _ in commands()} | {"demo", "check"}
    first = {words.split()[0] for words in known}
    for page in [*DOCS.glob("*.md"), *(DOCS / "runbooks").glob("*.md")]:
        for block in re.findall(r"`castling ([a-z][a-z -]*)", page.read_text(encoding="utf-8")):
            words = block.split()
            assert words[0] in first, f"{page.name}: castling {block}"
            if words[0] not in known and len(words) > 1:
                assert " ".join(words[:2]) in known, f"{page.name}: castling {block}"
