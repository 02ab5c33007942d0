"""Graphs of figures over time. Pure: values at equal spans in, an SVG path and ticks out.

What was not known is a gap in the line, never a zero and never bridged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Graph", "Tick", "nice_top", "plot"]

WIDTH, HEIGHT = 600.0, 120.0


@dataclass(frozen=True, slots=True)
class Tick:
    at: float
    value: float


@dataclass(frozen=True, slots=True)
class Graph:
    """`line`, `area`: paths in a box of WIDTH × HEIGHT; `top`: the value at the upper edge."""

    line: str
    area: str
    top: float
    ticks: list[Tick]
    newest: float | None
    greatest: float | None
    #: of the spans, how many have a value
    known: int


def plot(values: list[float | None], *, least_top: float, base: float = 10.0) -> Graph:
    """`least_top`: the upper edge is not lower; `base`: of round numbers, 1024 for bytes."""
    known = [value for value in values if value is not None]
    top = nice_top(max([least_top, *known]), base)
    width = WIDTH / max(1, len(values) - 1)
    line, area, run = [], [], []
    for index, value in enumerate([*values, None]):
        if value is not None:
            run.append((index * width, HEIGHT - HEIGHT * value / top))
        elif run:
            points = " L".join(f"{x:.1f} {y:.1f}" for x, y in run)
            # a lone value is a dot: a round line of no length
            line.append(f"M{points}" + (" h0" if len(run) == 1 else ""))
            area.append(f"M{run[0][0]:.1f} {HEIGHT:.0f} L{points} L{run[-1][0]:.1f} {HEIGHT:.0f} z")
            run = []
    newest = next((value for value in reversed(values) if value is not None), None)
    ticks = [Tick(HEIGHT - HEIGHT * part, top * part) for part in (0.5, 1.0)]
    return Graph(" ".join(line), " ".join(area), top, ticks, newest, max(known, default=None), len(known))


def nice_top(value: float, base: float = 10.0) -> float:
    """The least round number that is not below `value`: 1, 2, 5, … times a power of `base`."""
    if value <= 0:
        return 1.0
    power = base ** math.floor(math.log(value, base) + 1e-9)
    parts = [part * ten for ten in (1.0, 10.0, 100.0) for part in (1.0, 2.0, 5.0)] + [1000.0, base]
    return next(power * part for part in parts if power * part >= value * (1 - 1e-9))
