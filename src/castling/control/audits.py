"""The audits of the streams that this node captures: run when asked for, or in the group's window.

They run inside the agent, one a stream at a time; what is known is kept part by part, so an agent that
ends loses no more than the part that was under way. The work itself is done by the two servers.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from castling import kinds
from castling.audit.guard import Guard, Limits
from castling.audit.plan import Chosen, choose
from castling.audit.run import Result, run_audit
from castling.config.window import is_open
from castling.control.audit_store import AuditStore
from castling.control.store import Store
from castling.errors import AlreadyRunning, AuditYields, CastlingError, NotFound, UsageError
from castling.kinds.base import Auditor, Stream
from castling.observe import events

__all__ = ["AuditRequest", "Audits", "RepairRequest"]

#: seconds between two looks whether something is due
LOOK_S = 30.0
#: a window's audit that found nothing due looks again after this, seconds
REST_S = 600.0

Json = dict[str, Any]
#: the streams of a group that this node captures
Streams = Callable[[str], list[Stream]]
#: how far a stream is behind, seconds; None: not known
Lag = Callable[[Stream], Awaitable[float | None]]
_Request = TypeVar("_Request", bound=msgspec.Struct)


class AuditRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`scope`: all, or due. `parts`, `rules`: these only; empty: every one."""

    backup: str | None = None
    scope: str = "all"
    parts: list[str] = []
    rules: list[str] = []


class RepairRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`findings`: by id; empty: all that are open. `dry_run`: only tell the plan."""

    backup: str | None = None
    findings: list[int] = []
    dry_run: bool = False


@dataclass(slots=True)
class _Running:
    id: str
    guard: Guard
    parts_total: int = 0
    parts_done: int = 0
    bytes_total: int = 0
    differing: int = 0
    unknown: int = 0
    paused_s: float | None = None
    now: str = ""
    begun_s: float = field(default_factory=time.monotonic)

    def facts(self) -> Json:
        return {
            "parts_total": self.parts_total,
            "parts_done": self.parts_done,
            "rows": self.guard.rows,
            "bytes": self.guard.bytes,
            "bytes_total": self.bytes_total,
            "differing": self.differing,
            "unknown": self.unknown,
            "busy_s": round(self.guard.busy_s, 3),
            "seconds": round(time.monotonic() - self.begun_s, 3),
            "apply_paused_s": self.paused_s,
        }


class Audits:
    """`lag` is set when the service is built: it asks other nodes."""

    def __init__(self, store: Store, streams: Streams) -> None:
        self.store = AuditStore(store)
        self._add_event = store.add_event
        self._streams = streams
        self.lag: Lag = _unknown
        #: the groups whose windows are looked at
        self.groups: Callable[[], Iterable[str]] = list
        self._running: dict[tuple[str, str], _Running] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._rested_s: dict[tuple[str, str], float] = {}
        self._log = events("audit")

    # --- looking ------------------------------------------------------------------------------

    def latest(self, group: str, backup: str) -> Json:
        """Age and result of the last full audit of a stream: what a switch has to ask for."""
        return self.store.latest(group, backup)

    def listed(self, group: str, limit: int) -> list[Json]:
        return [self._live(run) for run in self.store.runs(group, limit)]

    def parts(self, group: str) -> list[Json]:
        return [each for stream in self._streams(group) for each in self.store.parts(group, stream.backup)]

    def shown(self, group: str, run: str) -> Json:
        found = self.store.run(group, run)
        if found is None:
            raise NotFound(f"there is no audit {run!r} of group {group}")
        return {**self._live(found), "findings": self.store.findings(group, run=run)}

    def findings(self, group: str) -> list[Json]:
        """All that are open."""
        streams = self._streams(group)
        return [each for stream in streams for each in self.store.findings(group, backup=stream.backup)]

    def _live(self, run: Json) -> Json:
        live = self._running.get((run["group"], run["backup"]))
        if live is None or live.id != run["id"]:
            return {**run, "now": ""}
        return {**run, "facts": live.facts(), "now": live.now}

    async def answer(self, group: str, action: str, options: Json, by: str) -> Any:
        """What another node, or this one's service, asks for: see `control.audit_group`."""
        if action == "start":
            return self.start(group, _converted(options, AuditRequest), by)
        if action == "stop":
            return self.stop(group, f"{by} stopped it")
        if action == "repair":
            return await self.repair(group, _converted(options, RepairRequest), by)
        if action == "list":
            return self.listed(group, int(options.get("limit", 100)))
        if action == "parts":
            return self.parts(group)
        if action == "findings":
            return self.findings(group)
        if action == "show":
            return self.shown(group, str(options.get("id", "")))
        if action == "latest":
            return [self.latest(group, stream.backup) for stream in self._streams(group)]
        raise UsageError(f"an audit can't be asked to {action[:20]!r}")

    # --- running ------------------------------------------------------------------------------

    def start(self, group: str, request: AuditRequest, by: str) -> list[Json]:
        """Begin an audit of each stream; returns at once. AlreadyRunning where there is one."""
        if request.scope not in ("all", "due"):
            raise UsageError(f"an audit is of what is `due` or of `all`, not of {request.scope[:20]!r}")
        streams = self._chosen(group, request.backup)
        for stream in streams:
            kind = kinds.load(stream.settings.kind)
            rules = kind.auditor(stream).rules
            for rule in request.rules:
                if rule not in rules:
                    raise UsageError(f"there is no rule {rule[:40]!r}", hint=f"rules: {', '.join(rules)}")
            if (group, stream.backup) in self._running:
                raise AlreadyRunning(
                    f"an audit of {group} on {stream.backup} is running",
                    hint=f"`castling audit list {group}` shows it, `castling audit stop {group}` ends it",
                )
        return [self._begin(stream, request, by) for stream in streams]

    def _begin(self, stream: Stream, request: AuditRequest, by: str) -> Json:
        identity = secrets.token_hex(4)
        running = self._register(stream, identity)
        self.store.begin(identity, stream.group, stream.backup, request.scope, by)
        task = asyncio.create_task(self._whole(stream, running, request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        found = self.store.run(stream.group, identity)
        assert found is not None
        return self._live(found)

    def _register(self, stream: Stream, identity: str) -> _Running:
        settings = stream.settings.audit
        limits = Limits(settings.load, settings.bandwidth, settings.max_lag)
        running = _Running(identity, Guard(limits, lambda: self.lag(stream)))
        self._running[stream.group, stream.backup] = running
        return running

    def stop(self, group: str, why: str) -> list[str]:
        """End what runs, at its next piece of work. The ids."""
        found = [running for (name, _), running in self._running.items() if name == group]
        for running in found:
            running.guard.stop(why)
        return [running.id for running in found]

    async def _whole(self, stream: Stream, running: _Running, request: AuditRequest) -> None:
        """An audit and, where that is the policy, its repair; the run is ended whatever comes."""
        state, why = "failed", "the agent met an error it does not know; see its log"
        try:
            await self._compare(stream, running, request)
            if stream.settings.audit.repair == "auto":
                await self._repair_by_policy(stream, running)
            state, why = "done", ""
        except AuditYields as error:
            state, why = "stopped", str(error)
        except CastlingError as error:
            state, why = "failed", f"{error}" + (f" ({error.hint})" if error.hint else "")
        except asyncio.CancelledError:
            state, why = "stopped", "the agent ended"
            raise
        finally:
            del self._running[stream.group, stream.backup]
            self.store.end(running.id, state, why, running.facts())
            facts = {"group": stream.group, "backup": stream.backup, "id": running.id, "state": state}
            self._add_event(
                "audit.ended",
                {**facts, "why": why, "differing": running.differing, "unknown": running.unknown},
            )

    async def _compare(self, stream: Stream, running: _Running, request: AuditRequest) -> None:
        auditor = kinds.load(stream.settings.kind).auditor(stream)
        chosen, rules = await self._choose(stream, auditor, request)
        running.parts_total = len(chosen) + len(rules)
        running.bytes_total = sum(each.part.bytes for each in chosen)

        def tell(result: Result) -> None:
            running.parts_done += 1
            running.now = result.compared.part
            running.differing += result.compared.result == "differs"
            running.unknown += result.compared.result == "unknown"
            if result.paused_s is not None:
                running.paused_s = max(running.paused_s or 0.0, result.paused_s)
            self.store.note(running.id, stream.group, stream.backup, result)

        await run_audit(auditor, [each.part for each in chosen], rules, running.guard, tell)

    async def _choose(
        self, stream: Stream, auditor: Auditor, request: AuditRequest
    ) -> tuple[list[Chosen], list[str]]:
        parts = await auditor.parts()
        others = [rule for rule in auditor.rules if rule != "rows"]
        self.store.expect(stream.group, stream.backup, parts, others)
        lacking = sorted(set(request.parts) - {part.part for part in parts})
        if lacking:
            raise NotFound(
                f"the stream has no table {lacking[0]}", hint="named as on the primary, schema.table"
            )
        known = {
            each.part: each for each in self.store.known(stream.group, stream.backup) if each.rule == "rows"
        }
        chosen = choose(
            parts,
            known,
            now_ns=time.time_ns(),
            every_s=stream.settings.audit.every,
            everything=request.scope == "all",
            only=request.parts,
        )
        if request.rules and "rows" not in request.rules:
            chosen = []
        if request.parts and not request.rules:
            others = []
        return chosen, [rule for rule in others if not request.rules or rule in request.rules]

    # --- repair -------------------------------------------------------------------------------

    async def repair(self, group: str, request: RepairRequest, by: str) -> Json:
        """Mend findings through the stream, then audit their parts again. With `dry_run`, only the plan."""
        plans: list[Json] = []
        for stream in self._chosen(group, request.backup):
            wanted = self.store.findings(group, backup=stream.backup)
            if request.findings:
                wanted = [each for each in wanted if each["id"] in set(request.findings)]
            plan = [_planned(each) for each in wanted]
            if request.dry_run or not wanted:
                plans.append({"backup": stream.backup, "plan": plan, "repaired": [], "audit": None})
                continue
            if (group, stream.backup) in self._running:
                raise AlreadyRunning(f"an audit of {group} on {stream.backup} is running")
            identity = secrets.token_hex(4)
            running = self._register(stream, identity)
            self.store.begin(identity, group, stream.backup, "repair", by)
            repaired = await self._repaired(stream, running, wanted)
            plans.append(
                {
                    "backup": stream.backup,
                    "plan": plan,
                    "repaired": repaired,
                    "audit": self.store.run(group, identity),
                }
            )
        self._must_exist(request, plans)
        is_open = sum(self.store.latest(group, each["backup"])["open"] or 0 for each in plans)
        return {"group": group, "dry_run": request.dry_run, "open": is_open, "streams": plans}

    @staticmethod
    def _must_exist(request: RepairRequest, plans: list[Json]) -> None:
        found = {each["id"] for plan in plans for each in plan["plan"]}
        lacking = sorted(set(request.findings) - found)
        if lacking:
            raise NotFound(f"there is no open finding {lacking[0]}", hint="`castling audit show` lists them")

    async def _repaired(self, stream: Stream, running: _Running, wanted: list[Json]) -> list[Json]:
        state, why = "failed", "the agent met an error it does not know; see its log"
        try:
            found = await self._mend(stream, running, wanted)
            state, why = "done", ""
            return found
        except CastlingError as error:
            why = str(error)
            raise
        finally:
            del self._running[stream.group, stream.backup]
            self.store.end(running.id, state, why, running.facts())

    async def _mend(self, stream: Stream, running: _Running, wanted: list[Json]) -> list[Json]:
        """Repair, and compare anew what was repaired: only that closes or renews findings."""
        auditor = kinds.load(stream.settings.kind).auditor(stream)
        results = await auditor.repair(self.store.discrepancies(wanted))
        self.store.repaired(wanted, results)
        rows = sorted({each["part"] for each in wanted if each["rule"] == "rows"})
        others = {"definitions" if each["rule"] == "grants" else each["rule"] for each in wanted} - {"rows"}
        if rows:
            await self._compare(stream, running, AuditRequest(parts=rows, rules=["rows"]))
        if others:
            await self._compare(stream, running, AuditRequest(rules=sorted(others)))
        self._add_event(
            "audit.repaired",
            {
                "group": stream.group,
                "backup": stream.backup,
                "done": sum(each.result == "done" for each in results),
                "findings": len(results),
            },
        )
        return [
            {"id": wanted[each.index]["id"], "result": each.result, "detail": each.detail} for each in results
        ]

    async def _repair_by_policy(self, stream: Stream, running: _Running) -> None:
        wanted = [each for each in self.store.findings(stream.group, backup=stream.backup) if each["mend"]]
        if wanted:
            await self._mend(stream, running, wanted)

    # --- by itself ----------------------------------------------------------------------------

    async def run(self) -> None:
        """Begin what the windows ask for, until cancelled; then nothing of ours runs any more."""
        self.store.interrupt()
        try:
            while True:
                for group in self.groups():
                    for stream in self._streams(group):
                        self._by_window(stream)
                await asyncio.sleep(LOOK_S)
        finally:
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _by_window(self, stream: Stream) -> None:
        window = stream.settings.audit.window
        place = (stream.group, stream.backup)
        running = self._running.get(place)
        if window is None:
            return
        run = None if running is None else self.store.run(stream.group, running.id)
        if not is_open(window, time.time_ns()):
            if running is not None and run is not None and run["by"] == "window":
                running.guard.stop("its window has closed")
            return
        now_s = time.monotonic()
        if running is None and now_s - self._rested_s.get(place, float("-inf")) >= REST_S:
            self._rested_s[place] = now_s
            self._begin(stream, AuditRequest(scope="due"), "window")

    def _chosen(self, group: str, backup: str | None) -> list[Stream]:
        streams = [each for each in self._streams(group) if backup in (None, each.backup)]
        if not streams:
            raise NotFound(f"this node captures no stream of {group}" + (f" to {backup}" if backup else ""))
        return streams


def _planned(finding: Json) -> Json:
    how = {
        "row": "told anew through the stream",
        "copy": "its table is copied anew",
        "sequence": "told anew through the stream",
        "statement": "the statement is run on the target",
    }
    kept = {
        key: finding[key] for key in ("id", "rule", "part", "what", "key", "message", "mend", "statement")
    }
    return {**kept, "how": how.get(finding["mend"], "a person has to decide")}


def _converted(options: Json, kind: type[_Request]) -> _Request:
    try:
        return msgspec.convert(options, kind)
    except msgspec.ValidationError as error:
        raise UsageError(f"that can't be asked of an audit: {error}") from error


async def _unknown(stream: Stream) -> float | None:
    return None
