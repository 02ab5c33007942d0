"""The pages: path, template, and the JSON that a page shows and its twin tells.

A page asks the API's own endpoints, as the user who looks: what a role may see is said in one place
(control/routes.py), and a page can't show what the API would refuse.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from castling.control.access import AccessRole, Caller
from castling.control.api import ask
from castling.control.routes import Services
from castling.control.watch import Look, backlog_bytes
from castling.errors import CastlingError, NotInitialised
from castling.portal.graph import plot
from castling.portal.topology import draw

__all__ = ["PAGES", "Asker", "Page"]

Json = dict[str, Any]
HOURS = (1, 6, 24)
#: a look that is not older than this is as good as a new one, seconds
FRESH_S = 3.0


@dataclass(frozen=True, slots=True)
class Asker:
    """One user's questions for one page. `look`: the latest look of all groups, when the page is live."""

    services: Services
    caller: Caller
    names: dict[str, str]
    query: dict[str, str]
    look: Look | None = None

    async def get(self, path: str, **query: str) -> Any:
        """The data of `GET path` of the API; names of the page's own path fill its braces."""
        found = await ask(self.services, "GET", path, self.caller, self.names, query)
        return found

    async def trees(self) -> list[Json]:
        if self.look is not None:
            return self.look.trees
        found: list[Json] = await self.get("/v1/groups")
        return found

    async def tree(self) -> Json:
        for tree in self.look.trees if self.look is not None else ():
            if tree["group"] == self.names["group"]:
                return tree
        found: Json = await self.get("/v1/groups/{group}")
        return found

    @property
    def may_operate(self) -> bool:
        return self.caller.role is not None and self.caller.role.rank >= AccessRole.OPERATOR.rank

    @property
    def may_administer(self) -> bool:
        return self.caller.role is AccessRole.ADMIN


Gather = Callable[[Asker], Awaitable[Json]]
Show = Callable[[Asker, Json], Json]


@dataclass(frozen=True, slots=True)
class Page:
    """`section`: the entry of the menu that it belongs to; `live`: whether it changes while one looks;
    `shown`: what only people need of the data, such as pictures."""

    path: str
    template: str
    section: str
    title: str
    gather: Gather
    shown: Show | None = None
    live: bool = True

    @property
    def twin(self) -> str:
        """The path of the same as JSON."""
        return ("/overview" if self.path == "/" else self.path) + ".json"

    @property
    def stream(self) -> str:
        return ("/overview" if self.path == "/" else self.path) + "/live"


async def _overview(ask: Asker) -> Json:
    trees = await ask.trees()
    return {"groups": trees, "nodes": await ask.get("/v1/nodes"), "attention": attention(trees)}


def _pictures(ask: Asker, data: Json) -> Json:
    """Two sizes of the same picture: for a wide page and for a narrow one."""
    trees, nodes = data["groups"], data["nodes"]
    lags = [s["rpo_s"] for tree in trees for s in tree["streams"]]
    return {
        "pictures": {
            "wide": draw(trees, nodes, width=1080, box=190),
            "narrow": draw(trees, nodes, width=350, box=74),
        },
        "backlog": backlog_bytes,
        "streams": len(lags),
        "greatest_rpo_s": None if None in lags or not lags else max(lags),
    }


def attention(trees: list[Json]) -> list[Json]:
    """What needs somebody, worst first: every stream that does not do what it should, every warning."""
    found = []
    for tree in trees:
        for stream in tree["streams"]:
            place = {"group": tree["group"], "backup": stream["backup"]}
            if stream["state"] not in ("running", "seeding", "starting") and tree["desired"] == "running":
                found.append({**place, "state": stream["state"], **_cause(stream)})
            elif stream["state"] == "unknown":
                found.append({**place, "state": "unknown", **_cause(stream)})
            for warning in stream["warnings"]:
                found.append({**place, "state": "warning", **_said(warning)})
    order = ("failed", "given-up", "journal-full", "unknown", "on-hold")
    return sorted(
        found, key=lambda each: order.index(each["state"]) if each["state"] in order else len(order)
    )


def _cause(stream: Json) -> Json:
    for name, end in stream["ends"].items():
        if end.get("error"):
            return {**_said(end["error"]), "end": name}
    for name, end in stream["ends"].items():
        if end.get("state") == "unknown":
            return {"message": end.get("detail") or f"the {name} end says nothing", "hint": "", "end": name}
    if stream["state"] == "on-hold":
        parts = ", ".join(hold["part"] for hold in stream["holds"] or ())
        return {"message": f"{parts} stands still while the rest goes on", "hint": "", "end": "apply"}
    return {"message": f"the stream to {stream['backup']} is {stream['state']}", "hint": "", "end": None}


def _said(error: Json) -> Json:
    return {"message": str(error.get("message", "")), "hint": str(error.get("hint", ""))}


async def _group(ask: Asker) -> Json:
    tree = await ask.tree()
    hours = ask.query.get("hours", "1")
    hours = hours if hours in map(str, HOURS) else "1"
    past = {
        s["backup"]: await ask.get("/v1/groups/{group}/figures", backup=s["backup"], hours=hours)
        for s in tree["streams"]
    }
    return {"group": tree, "figures": past, "hours": int(hours)}


def _graphs(ask: Asker, data: Json) -> Json:
    graphs = {}
    for backup, past in data["figures"].items():
        columns = past["figures"]
        graphs[backup] = [
            ("RPO", "seconds", plot(columns["rpo_s"], least_top=1.0)),
            ("Apply lag", "seconds", plot(columns["apply_lag_s"], least_top=1.0)),
            ("Backlog", "size", plot(columns["backlog_bytes"], least_top=1 << 20, base=1024)),
            ("Journal", "size", plot(columns["journal_bytes"], least_top=1 << 20, base=1024)),
        ]
    return {"graphs": graphs, "backlog": backlog_bytes, "choices": HOURS}


async def _audits(ask: Asker) -> Json:
    """Of every group; one whose node does not answer is told with its error."""
    groups: list[Json] = []
    for tree in await ask.trees():
        inner = Asker(ask.services, ask.caller, {"group": tree["group"]}, {})
        said: Json = {"group": tree["group"], "latest": [], "audits": [], "findings": None, "error": None}
        try:
            said |= await inner.get("/v1/groups/{group}/audits", limit="50")
            if ask.may_operate:  # findings hold values of rows
                said |= await inner.get("/v1/groups/{group}/audits/findings")
        except CastlingError as error:
            said["error"] = error.as_json()
        said["is_running"] = any(each["state"] == "running" for each in said["audits"])
        groups.append(said)
    return {"groups": groups}


async def _events(ask: Asker) -> Json:
    name = ask.query.get("about", "").strip()[:80]
    found = await ask.get("/v1/events", limit="500")
    if name:
        found = [each for each in found if name in each["name"] or name in str(each["fields"])]
    return {"events": list(reversed(found))[:200], "about": name}


async def _settings(ask: Asker) -> Json:
    try:
        config = await ask.get("/v1/config")
    except NotInitialised:  # nothing is deployed yet
        config = None
    found: Json = {
        "config": config,
        "nodes": await ask.get("/v1/nodes"),
        "deployments": list(await ask.get("/v1/deployments"))[:10],
    }
    if ask.may_administer:
        found |= {
            "users": await ask.get("/v1/users"),
            "tokens": await ask.get("/v1/tokens"),
            "access_log": list(reversed(await ask.get("/v1/access-log", limit="50"))),
        }
    return found


PAGES = (
    Page("/", "overview.html", "overview", "Overview", _overview, _pictures),
    Page("/groups/{group}", "group.html", "overview", "Group", _group, _graphs),
    Page("/audits", "audits.html", "audits", "Audits", _audits),
    Page("/events", "events.html", "events", "Events", _events),
    Page("/settings", "settings.html", "settings", "Settings", _settings, live=False),
)
