"""The picture of an installation: where each node and each stream is drawn. Pure: trees in, shapes out.

Nodes stand in columns so that nearly every stream leads from one column to the next (a breadth-first walk
over the streams gives such columns). Between two columns every stream has a row of its own, so no two labels
meet. A stream inside one column (three nodes in a ring) is drawn as a bow at its right.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Arrow", "Box", "Picture", "draw"]

Json = dict[str, Any]
Point = tuple[float, float]
ROW = 64.0
PAD = 12.0
GAP = 24.0
TITLE = 40.0


@dataclass(slots=True)
class Box:
    """A node."""

    node: str
    here: bool
    column: int
    x: float = 0.0
    y: float = 0.0
    width: float = 0.0
    height: float = 0.0
    roles: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Arrow:
    """A stream: the curve's path, where its label stands, and the stream itself."""

    group: str
    source: str
    backup: str
    stream: Json
    path: str
    x: float
    y: float
    #: the arrow's head: a closed path at its end
    head: str


@dataclass(slots=True)
class Picture:
    width: float
    height: float
    boxes: list[Box]
    arrows: list[Arrow]


def draw(trees: list[Json], nodes: list[Json], *, width: float, box: float) -> Picture:
    """`nodes`: as `GET /v1/nodes` tells them; `width` of the whole, `box` of one node."""
    edges = [(t["capture_on"], s["backup"], t["group"], s) for t in trees for s in t["streams"]]
    edges.sort(key=lambda edge: edge[:3])
    here = {node["node"]: bool(node["here"]) for node in nodes}
    names = sorted(here.keys() | {edge[0] for edge in edges} | {edge[1] for edge in edges})
    columns = _columns(names, edges)
    boxes = {name: Box(name, here.get(name, False), columns[name]) for name in names}
    count = max(columns.values(), default=0) + 1
    step = (width - box) / max(1, count - 1) if count > 1 else 0.0
    for tree in trees:
        for name, role in [(tree["primary"], "primary"), *((each, "backup") for each in tree["backups"])]:
            if name in boxes and role not in boxes[name].roles:
                boxes[name].roles.append(role)
    height = _stand(boxes, edges, step, box)
    arrows = _arrows(boxes, edges)
    return Picture(width, height, list(boxes.values()), arrows)


def _columns(names: list[str], edges: list[Any]) -> dict[str, int]:
    """Breadth first from the node that most streams leave; what hangs together with nothing comes first."""
    beside: dict[str, list[str]] = {name: [] for name in names}
    for source, backup, *_ in edges:
        beside[source].append(backup)
        beside[backup].append(source)
    leaving = {name: sum(edge[0] == name for edge in edges) for name in names}
    columns: dict[str, int] = {}
    for root in sorted(names, key=lambda name: (-leaving[name], name)):
        if root in columns:
            continue
        columns[root] = 0
        queue = [root]
        while queue:
            name = queue.pop(0)
            for other in sorted(beside[name]):
                if other not in columns:
                    columns[other] = columns[name] + 1
                    queue.append(other)
    return columns


def _stand(boxes: dict[str, Box], edges: list[Any], step: float, width: float) -> float:
    """Give every box its place; the height of the whole."""
    order = {name: _mean([i for i, edge in enumerate(edges) if name in edge[:2]]) for name in boxes}
    by_column: dict[int, list[Box]] = {}
    for each in sorted(boxes.values(), key=lambda one: (order[one.node], one.node)):
        by_column.setdefault(each.column, []).append(each)
    tallest = 0.0
    for column, members in by_column.items():
        y = 0.0
        for each in members:
            sides = [0, 0]
            for source, backup, *_ in edges:
                if each.node in (source, backup):
                    other = boxes[backup if source == each.node else source]
                    sides[other.column >= column] += 1
            each.x, each.y, each.width = column * step, y, width
            each.height = TITLE + PAD + max(1, *sides) * ROW
            y += each.height + GAP
        tallest = max(tallest, y - GAP)
    for members in by_column.values():  # a short column stands in the middle
        slack = tallest - (members[-1].y + members[-1].height)
        for each in members:
            each.y += slack / 2
    return tallest


def _arrows(boxes: dict[str, Box], edges: list[Any]) -> list[Arrow]:
    used: dict[tuple[str, bool], int] = {}

    def port(name: str, right: bool) -> tuple[float, float]:
        index = used.get((name, right), 0)
        used[name, right] = index + 1
        it = boxes[name]
        return it.x + (it.width if right else 0.0), it.y + TITLE + PAD / 2 + (index + 0.5) * ROW

    found = []
    for source, backup, group, stream in edges:
        a, b = boxes[source], boxes[backup]
        leads_right = b.column > a.column
        same = a.column == b.column
        x1, y1 = port(source, leads_right or same)
        x2, y2 = port(backup, same or not leads_right)
        sign = 1.0 if leads_right else -1.0
        if same:
            bow, sign = x1 + 60.0, -1.0
            path = _curve((x1, y1), (bow, y1), (bow, y2), (x2 + 9, y2))
            label = (x1 + 50, (y1 + y2) / 2)
        else:
            end = x2 - 9 * sign
            mid = (x1 + end) / 2
            path = _curve((x1, y1), (mid + 70 * sign, y1), (mid + 30 * sign, y2), (end, y2))
            label = (mid, y1 if y1 == y2 else y1 + (y2 - y1) * 0.42)
        head = f"M{x2:.0f} {y2:.0f} l{-10 * sign:.0f} -5 v10 z"
        found.append(Arrow(group, source, backup, stream, path, label[0], label[1], head))
    return found


def _curve(start: Point, first: Point, second: Point, end: Point) -> str:
    a, b, c, d = (f"{x:.0f} {y:.0f}" for x, y in (start, first, second, end))
    return f"M{a} C{b} {c} {d}"


def _mean(values: list[int]) -> float:
    return sum(values) / len(values) if values else -1.0
