"""The compiled modules are those of the sources beside them, and every one of them is there or none."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest
from tests.unit.as_source import is_compiled, source_path

_SETUP = Path(__file__).parents[2] / "setup.py"


def _hot() -> list[str]:
    for node in ast.parse(_SETUP.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "HOT":
            return [
                path.removeprefix("src/").removesuffix(".py").replace("/", ".")
                for path in ast.literal_eval(node.value)
            ]
    raise AssertionError("setup.py names no modules")


def test_all_or_none_are_compiled() -> None:
    assert len({is_compiled(name) for name in _hot()}) == 1


@pytest.mark.parametrize("name", _hot())
def test_what_is_compiled_is_the_source_beside_it(name: str) -> None:
    if not is_compiled(name):
        return  # the source itself is what runs
    # what is beside the source only leads to the one library that holds the code of all
    library = importlib.import_module("castling_hot__mypyc").__file__
    assert library is not None
    is_current = Path(library).stat().st_mtime >= source_path(name).stat().st_mtime
    assert is_current, "out of date: run `make setup`"
