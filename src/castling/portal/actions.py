"""What can be done from a page: each is an endpoint of the API, behind a page that says what it will do.

The confirmation is a page of its own, not a box that a script opens: it works without scripts and by keyboard
alone, has an address, and shows what was true when it was asked for.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from castling.control.access import AccessRole, demand
from castling.control.api import ask, endpoint
from castling.errors import UsageError
from castling.portal.pages import Asker
from castling.portal.wording import seconds

__all__ = ["ACTIONS", "Action", "Field", "done_text"]

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Field:
    """One field of the confirmation's form."""

    name: str
    label: str
    value: str = ""
    hint: str = ""
    required: bool = False
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Action:
    """`explain`: what will happen, as (term, text) pairs; `body`: of the endpoint, from the form's fields.

    `result`: a template that shows the answer; without one the user is led back to `back`.
    """

    name: str
    path: str
    back: str
    section: str
    title: str
    button: str
    method: str
    endpoint: str
    explain: Callable[[Asker], Awaitable[list[tuple[str, str]]]]
    body: Callable[[dict[str, str]], Json | None] = field(default=lambda fields: None)
    fields: tuple[Field, ...] = ()
    is_grave: bool = False
    result: str | None = None

    def demand(self, asker: Asker) -> None:
        """AccessDenied when the user may not do it, before any page offers it."""
        needed = endpoint(self.method, self.endpoint).access
        assert isinstance(needed, AccessRole)
        demand(asker.caller, needed)

    async def do(self, asker: Asker, fields: dict[str, str]) -> Any:
        for each in self.fields:
            if each.required and not fields.get(each.name):
                raise UsageError(f"{each.label.lower()}: something has to be written here")
        named = {key: fields[key] for key in ("user", "token") if key in fields}
        names: dict[str, str] = asker.names | named
        return await ask(
            asker.services, self.method, self.endpoint, asker.caller, names, {}, self.body(fields)
        )


def _group(*lines: tuple[str, str]) -> Callable[[Asker], Awaitable[list[tuple[str, str]]]]:
    """`lines`, and how the group is now."""

    async def explain(asker: Asker) -> list[tuple[str, str]]:
        tree = await asker.tree()
        told = list(lines)
        told.append(
            ("Roles now", f"{tree['primary']} is the primary, {', '.join(tree['backups'])} the backup")
        )
        for stream in tree["streams"]:
            name = stream["backup"]
            told.append(
                (
                    f"State of {name}",
                    f"{stream['state']}; not yet safe there (RPO): {seconds(stream['rpo_s'])}; "
                    f"not yet applied: {seconds(stream['apply_lag_s'])}",
                )
            )
        return told

    return explain


def _plain(*lines: tuple[str, str]) -> Callable[[Asker], Awaitable[list[tuple[str, str]]]]:
    async def explain(asker: Asker) -> list[tuple[str, str]]:
        return list(lines)

    return explain


def _on_group(
    name: str,
    title: str,
    button: str,
    path: str,
    *lines: tuple[str, str],
    to: str = "/groups/{group}",
    **more: Any,
) -> Action:
    return Action(
        name=name,
        path=f"/groups/{{group}}/do/{name}",
        back=to,
        section="overview",
        title=title,
        button=button,
        method="POST",
        endpoint=f"/v1/groups/{{group}}/{path}",
        explain=_group(*lines),
        **more,
    )


def _parts(action: str) -> Callable[[dict[str, str]], Json]:
    def body(fields: dict[str, str]) -> Json:
        parts = [part.strip() for part in fields.get("part", "").split(",") if part.strip()]
        reason = fields.get("reason", "").strip()[:200]
        return {"action": action, "parts": parts, "reason": reason or f"{action} in the portal"}

    return body


_PART = Field("part", "Table", hint="schema.table; several with commas between", required=True)
_REASON = Field("reason", "Reason", hint="shown in the status")

ACTIONS = (
    _on_group(
        "start",
        "Start {group}",
        "Start",
        "start",
        ("What happens", "The check runs; unless it refuses, the group's processes start on all its nodes."),
        ("Clients", "Notice nothing; with synchronous delivery commits begin to wait for the backup."),
    ),
    _on_group(
        "stop",
        "Stop {group}",
        "Stop",
        "stop",
        ("What happens", "The group's processes end on all nodes. What was acknowledged stays."),
        ("Clients", "Notice nothing. The copy grows older, and the source keeps its log for it."),
        is_grave=True,
    ),
    _on_group(
        "check",
        "Check {group}",
        "Run the check",
        "check",
        ("What happens", "Both ends are looked at: what can't be replicated, and why. Nothing is changed."),
        result="findings.html",
    ),
    _on_group(
        "compare-schema",
        "Compare definitions of {group}",
        "Compare",
        "compare-schema",
        ("What happens", "The definitions of both ends are compared. Nothing is changed."),
        result="findings.html",
    ),
    _on_group(
        "acknowledge",
        "Acknowledge writes on {group}'s backup",
        "Acknowledge",
        "foreign-writes/acknowledge",
        (
            "What happens",
            "The writes of others on the backup are noted as seen by you. The rows stay as they are.",
        ),
    ),
    _on_group(
        "hold",
        "Put a table of {group} on hold",
        "Hold",
        "parts",
        ("What happens", "The table stands still on the backup; its changes are kept, the others go on."),
        body=_parts("hold"),
        fields=(_PART, _REASON),
    ),
    _on_group(
        "release",
        "Release a table of {group}",
        "Release",
        "parts",
        ("What happens", "The table is brought up to the others from the changes that were kept."),
        body=_parts("release"),
        fields=(_PART, _REASON),
    ),
    _on_group(
        "resync",
        "Copy a table of {group} anew",
        "Copy anew",
        "parts",
        ("What happens", "The table's rows on the backup are replaced by a new copy; the others go on."),
        body=_parts("resync"),
        fields=(_PART, _REASON),
        is_grave=True,
    ),
    _on_group(
        "reseed",
        "Make a new copy of {group}",
        "Throw away and copy anew",
        "reseed",
        (
            "What happens",
            "The copy and its journals are thrown away; a first copy is made. The source is only read.",
        ),
        ("Protection", "Until it is complete there is no backup."),
        is_grave=True,
    ),
    _on_group(
        "audit",
        "Audit {group}",
        "Audit everything",
        "audits",
        ("What happens", "Both ends are compared at exactly one position, row by row. Nothing is changed."),
        ("Clients", "Notice nothing; apply stands still for milliseconds, within the limits of load."),
        body=lambda fields: {"scope": "all"},
        to="/audits",
    ),
    _on_group(
        "audit-stop",
        "Stop the audit of {group}",
        "Stop it",
        "audits/stop",
        ("What happens", "The audit ends; what it has compared stays known."),
        to="/audits",
    ),
    _on_group(
        "audit-repair",
        "Repair what differs in {group}",
        "Repair all open findings",
        "audits/repair",
        ("What happens", "Every open finding is mended on the backup, then its part is audited again."),
        ("Look first", "The findings, with the rows of both ends, stand on the page of the audits."),
        body=lambda fields: {},
        is_grave=True,
        to="/audits",
    ),
    Action(
        name="add-user",
        path="/settings/do/add-user",
        back="/settings",
        section="settings",
        title="Add a user",
        button="Add",
        method="POST",
        endpoint="/v1/users",
        explain=_plain(("What happens", "The user can log in to this node's portal with this password.")),
        body=lambda fields: {key: fields.get(key, "") for key in ("name", "role", "password")},
        fields=(
            Field("name", "Name", hint="a-z, 0-9, _ and -", required=True),
            Field("role", "Role", choices=("viewer", "operator", "admin")),
            Field("password", "Password", hint="at least 10 characters", required=True),
        ),
    ),
    Action(
        name="remove-user",
        path="/settings/do/remove-user",
        back="/settings",
        section="settings",
        title="Remove a user",
        button="Remove",
        method="DELETE",
        endpoint="/v1/users/{user}",
        explain=_plain(("What happens", "The user's sessions end at once.")),
        fields=(Field("user", "Name", required=True),),
        is_grave=True,
    ),
    Action(
        name="revoke-token",
        path="/settings/do/revoke-token",
        back="/settings",
        section="settings",
        title="Revoke a token",
        button="Revoke",
        method="DELETE",
        endpoint="/v1/tokens/{token}",
        explain=_plain(("What happens", "The token is worthless at once; sessions that began with it end.")),
        fields=(Field("token", "Id of the token", required=True),),
        is_grave=True,
    ),
)

_DONE = {
    "start.started": "Started.",
    "start.already_running": "It was running already.",
    "stop.stopped": "Stopped.",
    "stop.already_stopped": "It was stopped already.",
    "reseed.reseeding": "A new copy is being made.",
    "acknowledge.done": "Acknowledged.",
    "hold.done": "Asked for: the table is put on hold.",
    "release.done": "Asked for: the table is released.",
    "resync.done": "Asked for: the table is copied anew.",
    "audit.done": "The audit has begun.",
    "audit-stop.done": "It was told to stop.",
    "audit-repair.done": "Repaired, and audited again: see what is still open.",
    "add-user.added": "Added.",
    "remove-user.removed": "Removed.",
    "revoke-token.revoked": "Revoked.",
    "revoke-token.already_revoked": "It was revoked already.",
    "password.changed": "Your password is changed; your other sessions have ended.",
}


def done_text(word: str) -> str:
    """What is said after an action; nothing for a word that is none of ours: it came in the address."""
    return _DONE.get(word, "")
