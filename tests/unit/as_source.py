"""A module of the product as its source says it, whether or not a compiled form of it is installed.

Compiled code does not look its own functions up by name, so mistakes can be planted only in the source.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

__all__ = ["as_source", "is_compiled", "source_path"]


def source_path(name: str) -> Path:
    installed = importlib.import_module(name)
    assert installed.__file__ is not None
    return Path(installed.__file__).parent / f"{name.rpartition('.')[2]}.py"


def is_compiled(name: str) -> bool:
    return not str(importlib.import_module(name).__file__).endswith(".py")


def as_source(name: str) -> ModuleType:
    """A module of its own, beside the installed one; other modules do not see it."""
    alias = f"{name}_as_source"
    spec = importlib.util.spec_from_file_location(alias, source_path(name))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[alias] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
