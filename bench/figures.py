"""Samples of two systems, round by round, as a line of a table: medians, ratios, spread."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["Contest", "quantile", "spread", "table"]


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """`median (least – most)`; a dash without values."""
    if not values:
        return "–"
    if len(values) == 1:
        return f"{values[0]:{form}}"
    return f"{statistics.median(values):{form}} ({min(values):{form}} – {max(values):{form}})"


def quantile(values: Sequence[float], share: float) -> float:
    """The value that `share` of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """As Markdown; the first column to the left, the others to the right."""
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))


@dataclass
class Contest:
    """One question, answered by both systems in each round."""

    name: str
    castling: list[float] = field(default_factory=list)
    native: list[float] = field(default_factory=list)

    def add(self, side: str, value: float) -> None:
        (self.castling if side == "castling" else self.native).append(round(value, 4))

    def ratios(self, *, less_is_better: bool = True) -> list[float]:
        """How many times as good ours was, round by round."""
        pairs = zip(self.castling, self.native, strict=True)
        return [native / ours if less_is_better else ours / native for ours, native in pairs]

    def row(self, form: str = ".2f", *, less_is_better: bool = True) -> list[str]:
        ratios = self.ratios(less_is_better=less_is_better)
        ratio = f"**{statistics.median(ratios):.2f}**" if ratios else "–"
        if len(ratios) > 1:
            ratio += f" ({min(ratios):.2f} – {max(ratios):.2f})"
        return [self.name, spread(self.castling, form), spread(self.native, form), ratio]
