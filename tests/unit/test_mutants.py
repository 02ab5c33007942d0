"""The broken builds stay true: each still fits the source, and the tests that guard it are there."""

from __future__ import annotations

from pathlib import Path

import pytest

import castling
from castling.testing.mutants import MUTANTS, Edit, Mutant, apply_edits

_PACKAGE = Path(castling.__file__).parent
_ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_each_still_fits_the_source(mutant: Mutant) -> None:
    for edit in mutant.edits:
        assert (_PACKAGE / edit.file).read_text().count(edit.old) == 1, edit
        assert edit.old != edit.new
    for argument in mutant.tests:
        if argument.startswith("tests/"):
            assert (_ROOT / argument).exists(), argument


def test_a_change_that_no_longer_fits_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\ny = 1\n")
    apply_edits(tmp_path, [Edit("a.py", "x = 1", "x = 2")])
    assert (tmp_path / "a.py").read_text() == "x = 2\ny = 1\n"
    for old in ("x = 1", " = "):
        with pytest.raises(ValueError, match=r"a\.py"):
            apply_edits(tmp_path, [Edit("a.py", old, "")])
