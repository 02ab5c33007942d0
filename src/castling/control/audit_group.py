"""The use-cases around audits: whichever node is asked, the node that captures the group does the work.

It keeps what is known, too; after a switch of roles another node captures, and what it never audited is
unknown.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from castling.control.access import Caller
from castling.control.audits import AuditRequest, RepairRequest
from castling.control.nodes import Node
from castling.kinds.base import Stream

__all__ = ["AuditGroup"]

Json = dict[str, Any]


class AuditGroup:
    """`captures`: the node that captures a group; `tree`: the report tree of a group."""

    def __init__(self, captures: Callable[[str], Node], tree: Callable[[str], Any]) -> None:
        self._captures = captures
        self._tree = tree

    async def start(self, group: str, request: AuditRequest, caller: Caller) -> Json:
        """Begin an audit of every stream (or one) of the group; it goes on by itself."""
        asked = msgspec.to_builtins(request)
        return {"group": group, "audits": await self._ask(group, "start", asked, str(caller))}

    async def stop(self, group: str, caller: Caller) -> Json:
        return {"group": group, "stopped": await self._ask(group, "stop", {}, str(caller))}

    async def listed(self, group: str, limit: int) -> Json:
        """Runs, the newest first, and age and result of each stream's last full audit. No values of rows."""
        return {
            "group": group,
            "latest": await self.latest(group),
            "audits": await self._ask(group, "list", {"limit": limit}),
        }

    async def latest(self, group: str) -> list[Json]:
        """Of each stream: age and result of the last full audit; what a switch has to ask for."""
        found: list[Json] = await self._ask(group, "latest", {})
        return found

    async def parts(self, group: str) -> Json:
        """What is known of every part, table by table."""
        return {"group": group, "parts": await self._ask(group, "parts", {})}

    async def findings(self, group: str) -> Json:
        """All findings that are open, with the rows of both ends."""
        return {"group": group, "findings": await self._ask(group, "findings", {})}

    async def shown(self, group: str, identity: str) -> Json:
        found: Json = await self._ask(group, "show", {"id": identity})
        return found

    async def repair(self, group: str, request: RepairRequest, caller: Caller) -> Json:
        """Mend findings and audit their parts again; with `dry_run` only the plan."""
        found: Json = await self._ask(group, "repair", msgspec.to_builtins(request), str(caller))
        return found

    async def lag(self, stream: Stream) -> float | None:
        """How far the stream is behind, seconds; None: not known."""
        tree = await self._tree(stream.group)
        for each in tree["streams"]:
            if each["backup"] == stream.backup and None not in (each["rpo_s"], each["apply_lag_s"]):
                return float(each["rpo_s"] + each["apply_lag_s"])
        return None

    async def _ask(self, group: str, action: str, options: Json, by: str = "") -> Any:
        return await self._captures(group).audit(group, action, options, by)
