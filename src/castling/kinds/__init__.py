"""The kinds of groups, by name. A kind never imports another kind."""

from __future__ import annotations

import importlib

from castling.errors import NotFound
from castling.kinds.base import Kind

__all__ = ["load"]

_FOLDERS = {"postgres": "castling.kinds.postgres.kind"}


def load(name: str) -> Kind:
    """The kind called `name`; NotFound for any other."""
    if name not in _FOLDERS:
        raise NotFound(f"there is no kind {name!r}", hint=f"kinds: {', '.join(sorted(_FOLDERS))}")
    kind: Kind = importlib.import_module(_FOLDERS[name]).KIND
    return kind
