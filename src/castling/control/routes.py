"""Every path of the API: method, path, who may, what it takes, what it does.

One table, so that access control, the reference page and the tests see the same list.
A handler gets a `Call` whose body and names have been checked, and returns the data of
the envelope; it raises typed errors.
"""

from __future__ import annotations

import asyncio
import enum
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

import castling
from castling.control.access import AccessRole, Caller
from castling.control.access_log import verify_file
from castling.control.accounts import Accounts
from castling.control.audit_group import AuditGroup
from castling.control.audits import AuditRequest, RepairRequest
from castling.control.deployment import Deployment
from castling.control.group import Groups
from castling.control.membership import Membership
from castling.control.metrics import render
from castling.control.moves import MOVES, MoveBody
from castling.control.nodes import LocalNode
from castling.control.store import Store
from castling.control.switches import Switches
from castling.control.watch import Watch
from castling.errors import NotFound, UsageError

__all__ = ["ENDPOINTS", "Access", "Call", "Endpoint", "Raw", "Services"]

_HEAD = re.compile(r"[0-9]{1,18}:[0-9a-f]{64}")


class Access(enum.StrEnum):
    """Who may besides users of a role."""

    PUBLIC = "anybody"
    NODE = "nodes of the installation"


@dataclass(frozen=True, slots=True)
class Services:
    """The use-cases that the API is a face of."""

    local: LocalNode
    store: Store
    groups: Groups
    audits: AuditGroup
    deployment: Deployment
    membership: Membership
    accounts: Accounts
    watch: Watch
    switches: Switches


@dataclass(frozen=True, slots=True)
class Call:
    """`body` is of the endpoint's body type; `names` are the checked names in the path."""

    caller: Caller
    names: dict[str, str]
    query: dict[str, str]
    body: Any

    def number(self, key: str, default: float, least: float, most: float) -> float:
        try:
            value = float(self.query.get(key, default))
        except ValueError:
            value = -1.0
        if not least <= value <= most:
            raise UsageError(f"{key} must be a number from {least:g} to {most:g}")
        return value


@dataclass(frozen=True, slots=True)
class Raw:
    """An answer outside the envelope, or with another status than 200."""

    status: int = 200
    data: Any = None
    text: bytes | None = None
    media: str = "application/json"


Handler = Callable[[Services, Call], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    method: str
    path: str
    access: Access | AccessRole
    handler: Handler
    body: type[msgspec.Struct] | None = None


#: of a rehearsal: it becomes part of a name in the kind
Identity = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{2,16}$")]


# --- bodies -----------------------------------------------------------------------------------


class JoinBody(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    secret: str
    node: str
    csr: str
    api: str
    link: str


class InviteBody(msgspec.Struct, forbid_unknown_fields=True):
    node: str
    ttl_s: float | None = None


class TokenBody(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    role: str


class UserBody(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    role: str
    password: str


class PasswordBody(msgspec.Struct, forbid_unknown_fields=True):
    password: str


class PlanBody(msgspec.Struct, forbid_unknown_fields=True):
    text: str


class DeployBody(msgspec.Struct, forbid_unknown_fields=True):
    """`expect`: digest of what ran when the plan was shown, "" for nothing."""

    text: str
    expect: str | None = None


class NodeDeployBody(msgspec.Struct, forbid_unknown_fields=True):
    text: str
    by: str


class PartsBody(msgspec.Struct, forbid_unknown_fields=True):
    action: Literal["hold", "release", "resync"]
    parts: list[str]
    reason: str = ""


class ForeignBody(msgspec.Struct, forbid_unknown_fields=True):
    since_s: float | None = None
    acknowledge: str | None = None


class NodeAuditBody(msgspec.Struct, forbid_unknown_fields=True):
    action: str
    options: dict[str, Any]
    by: str


class ForgetBody(msgspec.Struct, forbid_unknown_fields=True):
    without: list[str]


class RehearsalBody(msgspec.Struct, forbid_unknown_fields=True):
    limit_s: float
    backup: str | None = None


class NodeRehearsalBody(msgspec.Struct, forbid_unknown_fields=True):
    id: Identity
    limit_s: float
    by: str


class NodeRehearsalCloseBody(msgspec.Struct, forbid_unknown_fields=True):
    id: Identity
    by: str


class ForgetNodeBody(msgspec.Struct, forbid_unknown_fields=True):
    keep_role: bool = False


class RoleBody(msgspec.Struct, forbid_unknown_fields=True):
    epoch: Annotated[int, msgspec.Meta(ge=1, le=(1 << 62))]
    primary: str
    by: str


class ScriptsBody(msgspec.Struct, forbid_unknown_fields=True):
    names: list[str]


class ScriptBody(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    values: dict[str, str]


class PoolBody(msgspec.Struct, forbid_unknown_fields=True):
    action: Literal["pause", "resume"]
    primary: str


class SwitchPlanBody(msgspec.Struct, forbid_unknown_fields=True):
    application: str
    procedure: str = "planned"
    to: str | None = None


class SwitchBody(msgspec.Struct, forbid_unknown_fields=True):
    """`overrides`: gates of the preflight that are passed over, for this run."""

    application: str
    procedure: str = "planned"
    to: str | None = None
    overrides: list[str] = []


class NodeSwitchBody(msgspec.Struct, forbid_unknown_fields=True):
    application: str
    procedure: str
    to: str | None
    overrides: list[str]
    by: str


class SwitchWordBody(msgspec.Struct, forbid_unknown_fields=True):
    word: Literal["resume", "approve", "override", "abort", "acknowledge"]
    step: str | None = None
    group: str | None = None
    reason: str = ""


class NodeSwitchWordBody(msgspec.Struct, forbid_unknown_fields=True):
    word: Literal["resume", "approve", "override", "abort", "acknowledge"]
    step: str | None
    group: str | None
    reason: str
    by: str


class DesireBody(msgspec.Struct, forbid_unknown_fields=True):
    state: Literal["running", "stopped"]
    by: str


# --- what they do -----------------------------------------------------------------------------


async def _live(services: Services, call: Call) -> Any:
    return {"live": True}


async def _ready(services: Services, call: Call) -> Any:
    return {"ready": True, "node": services.local.name}


async def _ca(services: Services, call: Call) -> Any:
    return services.membership.ca()


async def _join(services: Services, call: Call) -> Any:
    body: JoinBody = call.body
    return services.membership.join(
        identity=body.id, secret=body.secret, node=body.node, csr=body.csr, api=body.api, link=body.link
    )


async def _version(services: Services, call: Call) -> Any:
    return {"version": castling.__version__, "node": services.local.name}


async def _metrics(services: Services, call: Call) -> Any:
    text = render(await services.groups.trees())
    return Raw(text=text, media="text/plain; version=0.0.4; charset=utf-8")


async def _openapi(services: Services, call: Call) -> Any:
    from castling.control.openapi import document  # it is made from this table

    return Raw(text=msgspec.json.encode(document()))


async def _tokens(services: Services, call: Call) -> Any:
    return services.membership.tokens()


async def _create_token(services: Services, call: Call) -> Any:
    return services.membership.create_token(call.body.name, call.body.role)


async def _revoke_token(services: Services, call: Call) -> Any:
    return services.membership.revoke_token(call.names["token"])


async def _users(services: Services, call: Call) -> Any:
    return services.accounts.users()


async def _add_user(services: Services, call: Call) -> Any:
    return await services.accounts.add(call.body.name, call.body.role, call.body.password)


async def _set_password(services: Services, call: Call) -> Any:
    return await services.accounts.set_password(call.names["user"], call.body.password)


async def _remove_user(services: Services, call: Call) -> Any:
    return services.accounts.remove(call.names["user"])


async def _nodes(services: Services, call: Call) -> Any:
    return services.membership.nodes()


async def _invite(services: Services, call: Call) -> Any:
    return services.membership.invite(call.body.node, call.body.ttl_s, call.caller)


async def _config(services: Services, call: Call) -> Any:
    return services.deployment.current()


async def _plan(services: Services, call: Call) -> Any:
    return await services.deployment.plan(call.body.text)


async def _deploy(services: Services, call: Call) -> Any:
    return await services.deployment.deploy(call.body.text, call.caller, call.body.expect)


async def _deployments(services: Services, call: Call) -> Any:
    return services.store.deployments()


async def _groups(services: Services, call: Call) -> Any:
    return await services.groups.trees()


async def _group(services: Services, call: Call) -> Any:
    return await services.groups.tree(call.names["group"])


async def _group_ready(services: Services, call: Call) -> Any:
    lag_s = call.number("lag_s", 30, 0, 1e9)
    ready, data = await services.groups.ready(
        call.names["group"], rpo_s=call.number("rpo_s", lag_s, 0, 1e9), lag_s=lag_s
    )
    return Raw(200 if ready else 503, data)


async def _figures(services: Services, call: Call) -> Any:
    tree = await services.groups.tree(call.names["group"])  # NotFound where there is no such group
    backup = call.query.get("backup") or tree["backups"][0]
    if backup not in tree["backups"]:
        raise NotFound(f"{backup[:40]!r} is not a backup of group {tree['group']}")
    past = services.watch.past(tree["group"], backup, call.number("hours", 1, 0.01, 24))
    return {
        "group": tree["group"],
        "backup": backup,
        **past,
        "rates": services.watch.rates(tree["group"], backup),
    }


async def _check(services: Services, call: Call) -> Any:
    return await services.groups.check(call.names["group"])


async def _copy_unlogged(services: Services, call: Call) -> Any:
    return await services.groups.copy_left_behind(call.names["group"])


async def _compare_schema(services: Services, call: Call) -> Any:
    return await services.groups.compare_schema(call.names["group"])


async def _start(services: Services, call: Call) -> Any:
    return await services.groups.start(call.names["group"], call.caller)


async def _reseed(services: Services, call: Call) -> Any:
    return await services.groups.reseed(call.names["group"], call.caller)


async def _stop(services: Services, call: Call) -> Any:
    return await services.groups.stop(call.names["group"], call.caller)


async def _parts(services: Services, call: Call) -> Any:
    body = call.body
    return await services.groups.move_parts(call.names["group"], body.action, body.parts, body.reason)


async def _foreign_writes(services: Services, call: Call) -> Any:
    since_s = call.number("since_s", 0, 0, 1e9) or None
    return await services.groups.foreign_writes(call.names["group"], since_s=since_s)


async def _acknowledge(services: Services, call: Call) -> Any:
    return await services.groups.foreign_writes(call.names["group"], acknowledge=call.caller)


async def _rehearsals(services: Services, call: Call) -> Any:
    return await services.groups.rehearsals(call.names["group"])


async def _rehearsal_open(services: Services, call: Call) -> Any:
    body = call.body
    return await services.groups.rehearsal_open(call.names["group"], body.backup, body.limit_s, call.caller)


async def _rehearsal_close(services: Services, call: Call) -> Any:
    return await services.groups.rehearsal_close(call.names["group"], call.names["rehearsal"], call.caller)


async def _audits(services: Services, call: Call) -> Any:
    return await services.audits.listed(call.names["group"], int(call.number("limit", 100, 1, 2000)))


async def _audit_start(services: Services, call: Call) -> Any:
    return await services.audits.start(call.names["group"], call.body, call.caller)


async def _audit_stop(services: Services, call: Call) -> Any:
    return await services.audits.stop(call.names["group"], call.caller)


async def _audit_latest(services: Services, call: Call) -> Any:
    return await services.audits.latest(call.names["group"])


async def _audit_parts(services: Services, call: Call) -> Any:
    return await services.audits.parts(call.names["group"])


async def _audit_findings(services: Services, call: Call) -> Any:
    return await services.audits.findings(call.names["group"])


async def _audit_repair(services: Services, call: Call) -> Any:
    return await services.audits.repair(call.names["group"], call.body, call.caller)


async def _audit_shown(services: Services, call: Call) -> Any:
    return await services.audits.shown(call.names["group"], call.names["audit"])


async def _remove(services: Services, call: Call) -> Any:
    without = [name for name in call.query.get("without", "").split(",") if name]
    return await services.groups.remove(call.names["group"], call.caller, without)


async def _events(services: Services, call: Call) -> Any:
    return services.store.events(int(call.number("limit", 100, 1, 10_000)))


async def _access_log(services: Services, call: Call) -> Any:
    return services.store.access_entries(int(call.number("limit", 100, 1, 10_000)))


async def _access_log_verify(services: Services, call: Call) -> Any:
    head = call.query.get("head") or None
    if head is not None and not _HEAD.fullmatch(head):
        raise UsageError("a head is ID:HASH, as `castling access-log verify` tells it")
    return await asyncio.to_thread(verify_file, services.store.path, head)


async def _node(services: Services, call: Call) -> Any:
    return await services.local.describe()


async def _switch_plan(services: Services, call: Call) -> Any:
    body = call.body
    return await services.switches.plan(body.application, body.procedure, body.to)


async def _switch_start(services: Services, call: Call) -> Any:
    body = call.body
    return await services.switches.start(
        body.application, body.procedure, body.to, body.overrides, str(call.caller)
    )


async def _switch_history(services: Services, call: Call) -> Any:
    return await services.switches.history(int(call.number("limit", 20, 1, 1000)))


async def _switch_show(services: Services, call: Call) -> Any:
    return await services.switches.show(call.names["run"])


async def _switch_tell(services: Services, call: Call) -> Any:
    body = call.body
    return await services.switches.tell(
        call.names["run"],
        body.word,
        str(call.caller),
        step=body.step,
        group=body.group,
        reason=body.reason[:1000],
    )


async def _node_switches(services: Services, call: Call) -> Any:
    return services.switches.here(int(call.number("limit", 20, 1, 1000)))


async def _node_switch(services: Services, call: Call) -> Any:
    return services.switches.one_here(call.names["run"])


async def _node_switch_start(services: Services, call: Call) -> Any:
    body = call.body
    by = f"{body.by[:100]} through {call.caller}"
    return await services.switches.start(body.application, body.procedure, body.to, body.overrides, by)


async def _node_switch_tell(services: Services, call: Call) -> Any:
    body = call.body
    by = f"{body.by[:100]} through {call.caller}"
    return services.switches.tell_here(
        call.names["run"], body.word, by, step=body.step, group=body.group, reason=body.reason[:1000]
    )


async def _node_scripts_look(services: Services, call: Call) -> Any:
    return await services.local.look_scripts(call.names["application"], call.body.names)


async def _node_script(services: Services, call: Call) -> Any:
    return await services.local.call_script(call.names["application"], call.body.name, call.body.values)


async def _node_pool(services: Services, call: Call) -> Any:
    return await services.local.pool(call.names["group"], call.body.action, call.body.primary)


async def _node_deploy(services: Services, call: Call) -> Any:
    return await services.local.deploy(call.body.text, f"{call.body.by[:100]} through {call.caller}")


async def _node_roles(services: Services, call: Call) -> Any:
    return await services.local.roles()


async def _node_role(services: Services, call: Call) -> Any:
    by = f"{call.body.by[:100]} through {call.caller}"
    return await services.local.take_role(call.names["group"], call.body.epoch, call.body.primary, by)


async def _node_move(services: Services, call: Call) -> Any:
    name = call.names["move"]
    if name not in MOVES:
        raise NotFound(f"there is no move {name!r}")
    taken = {part: getattr(call.body, part) for part in MOVES[name]}
    if "by" in taken:
        taken["by"] = f"{call.body.by[:100]} through {call.caller}"
    return await getattr(services.local, name)(call.names["group"], **taken)


async def _node_desire(services: Services, call: Call) -> Any:
    by = f"{call.body.by[:100]} through {call.caller}"
    return await services.local.desire(call.names["group"], call.body.state, by)


async def _node_ends(services: Services, call: Call) -> Any:
    return await services.local.ends(call.names["group"])


async def _node_check(services: Services, call: Call) -> Any:
    return await services.local.check(call.names["group"])


async def _node_copy_unlogged(services: Services, call: Call) -> Any:
    return await services.local.copy_left_behind(call.names["group"])


async def _node_compare_schema(services: Services, call: Call) -> Any:
    return await services.local.compare_schema(call.names["group"])


async def _node_parts(services: Services, call: Call) -> Any:
    body = call.body
    return await services.local.move_parts(call.names["group"], body.action, body.parts, body.reason)


async def _node_foreign_writes(services: Services, call: Call) -> Any:
    body = call.body
    by = None if body.acknowledge is None else body.acknowledge[:100]
    return await services.local.foreign_writes(call.names["group"], body.since_s, by)


async def _node_audit(services: Services, call: Call) -> Any:
    body = call.body
    by = f"{body.by[:100]} through {call.caller}"
    return await services.local.audit(call.names["group"], body.action, body.options, by)


async def _node_rehearsals(services: Services, call: Call) -> Any:
    return await services.local.rehearsals(call.names["group"])


async def _node_rehearsal_open(services: Services, call: Call) -> Any:
    body = call.body
    by = f"{body.by[:100]} through {call.caller}"
    return await services.local.rehearsal_open(call.names["group"], body.id, body.limit_s, by)


async def _node_rehearsal_close(services: Services, call: Call) -> Any:
    by = f"{call.body.by[:100]} through {call.caller}"
    return await services.local.rehearsal_close(call.names["group"], call.body.id, by)


async def _node_forget_kind(services: Services, call: Call) -> Any:
    return await services.local.forget_kind(call.names["group"], call.body.without)


async def _node_forget(services: Services, call: Call) -> Any:
    return await services.local.forget(call.names["group"], keep_role=call.body.keep_role)


_VIEWER, _OPERATOR, _ADMIN = AccessRole.VIEWER, AccessRole.OPERATOR, AccessRole.ADMIN

ENDPOINTS = (
    Endpoint("GET", "/health/live", Access.PUBLIC, _live),
    Endpoint("GET", "/health/ready", Access.PUBLIC, _ready),
    Endpoint("GET", "/metrics", _VIEWER, _metrics),
    Endpoint("GET", "/openapi.json", _VIEWER, _openapi),
    Endpoint("GET", "/v1/ca", Access.PUBLIC, _ca),
    Endpoint("POST", "/v1/join", Access.PUBLIC, _join, JoinBody),
    Endpoint("GET", "/v1/version", _VIEWER, _version),
    Endpoint("GET", "/v1/tokens", _ADMIN, _tokens),
    Endpoint("POST", "/v1/tokens", _ADMIN, _create_token, TokenBody),
    Endpoint("DELETE", "/v1/tokens/{token}", _ADMIN, _revoke_token),
    Endpoint("GET", "/v1/users", _ADMIN, _users),
    Endpoint("POST", "/v1/users", _ADMIN, _add_user, UserBody),
    Endpoint("POST", "/v1/users/{user}/password", _ADMIN, _set_password, PasswordBody),
    Endpoint("DELETE", "/v1/users/{user}", _ADMIN, _remove_user),
    Endpoint("GET", "/v1/nodes", _VIEWER, _nodes),
    Endpoint("POST", "/v1/invites", _ADMIN, _invite, InviteBody),
    Endpoint("GET", "/v1/config", _VIEWER, _config),
    Endpoint("POST", "/v1/deploy/plan", _OPERATOR, _plan, PlanBody),
    Endpoint("POST", "/v1/deploy", _ADMIN, _deploy, DeployBody),
    Endpoint("GET", "/v1/deployments", _VIEWER, _deployments),
    Endpoint("GET", "/v1/groups", _VIEWER, _groups),
    Endpoint("GET", "/v1/groups/{group}", _VIEWER, _group),
    Endpoint("GET", "/v1/groups/{group}/ready", _VIEWER, _group_ready),
    Endpoint("GET", "/groups/{group}/ready", _VIEWER, _group_ready),
    Endpoint("GET", "/v1/groups/{group}/figures", _VIEWER, _figures),
    Endpoint("POST", "/v1/groups/{group}/check", _OPERATOR, _check),
    Endpoint("POST", "/v1/groups/{group}/compare-schema", _OPERATOR, _compare_schema),
    Endpoint("POST", "/v1/groups/{group}/copy-unlogged", _ADMIN, _copy_unlogged),
    Endpoint("GET", "/v1/groups/{group}/foreign-writes", _VIEWER, _foreign_writes),
    Endpoint("POST", "/v1/groups/{group}/foreign-writes/acknowledge", _OPERATOR, _acknowledge),
    Endpoint("POST", "/v1/groups/{group}/start", _OPERATOR, _start),
    Endpoint("POST", "/v1/groups/{group}/reseed", _ADMIN, _reseed),
    Endpoint("POST", "/v1/groups/{group}/stop", _OPERATOR, _stop),
    Endpoint("POST", "/v1/groups/{group}/parts", _OPERATOR, _parts, PartsBody),
    Endpoint("GET", "/v1/groups/{group}/audits", _VIEWER, _audits),
    Endpoint("POST", "/v1/groups/{group}/audits", _OPERATOR, _audit_start, AuditRequest),
    Endpoint("POST", "/v1/groups/{group}/audits/stop", _OPERATOR, _audit_stop),
    Endpoint("GET", "/v1/groups/{group}/audits/latest", _VIEWER, _audit_latest),
    Endpoint("GET", "/v1/groups/{group}/audits/parts", _VIEWER, _audit_parts),
    Endpoint("GET", "/v1/groups/{group}/audits/findings", _OPERATOR, _audit_findings),
    Endpoint("POST", "/v1/groups/{group}/audits/repair", _OPERATOR, _audit_repair, RepairRequest),
    Endpoint("GET", "/v1/groups/{group}/audits/{audit}", _OPERATOR, _audit_shown),
    Endpoint("GET", "/v1/groups/{group}/rehearsals", _VIEWER, _rehearsals),
    Endpoint("POST", "/v1/groups/{group}/rehearsals", _OPERATOR, _rehearsal_open, RehearsalBody),
    Endpoint("DELETE", "/v1/groups/{group}/rehearsals/{rehearsal}", _OPERATOR, _rehearsal_close),
    Endpoint("DELETE", "/v1/groups/{group}", _ADMIN, _remove),
    Endpoint("GET", "/v1/events", _VIEWER, _events),
    Endpoint("GET", "/v1/access-log", _ADMIN, _access_log),
    Endpoint("GET", "/v1/access-log/verify", _ADMIN, _access_log_verify),
    Endpoint("POST", "/v1/switches/plan", _OPERATOR, _switch_plan, SwitchPlanBody),
    Endpoint("POST", "/v1/switches", _OPERATOR, _switch_start, SwitchBody),
    Endpoint("GET", "/v1/switches", _VIEWER, _switch_history),
    Endpoint("GET", "/v1/switches/{run}", _VIEWER, _switch_show),
    Endpoint("POST", "/v1/switches/{run}", _OPERATOR, _switch_tell, SwitchWordBody),
    Endpoint("GET", "/v1/node", Access.NODE, _node),
    Endpoint("GET", "/v1/node/switches", Access.NODE, _node_switches),
    Endpoint("POST", "/v1/node/switches", Access.NODE, _node_switch_start, NodeSwitchBody),
    Endpoint("GET", "/v1/node/switches/{run}", Access.NODE, _node_switch),
    Endpoint("POST", "/v1/node/switches/{run}", Access.NODE, _node_switch_tell, NodeSwitchWordBody),
    Endpoint(
        "POST",
        "/v1/node/applications/{application}/scripts/look",
        Access.NODE,
        _node_scripts_look,
        ScriptsBody,
    ),
    Endpoint("POST", "/v1/node/applications/{application}/scripts", Access.NODE, _node_script, ScriptBody),
    Endpoint("POST", "/v1/node/groups/{group}/pool", Access.NODE, _node_pool, PoolBody),
    Endpoint("POST", "/v1/node/deploy", Access.NODE, _node_deploy, NodeDeployBody),
    Endpoint("GET", "/v1/node/roles", Access.NODE, _node_roles),
    Endpoint("POST", "/v1/node/groups/{group}/role", Access.NODE, _node_role, RoleBody),
    Endpoint("POST", "/v1/node/groups/{group}/switch/{move}", Access.NODE, _node_move, MoveBody),
    Endpoint("POST", "/v1/node/groups/{group}/desire", Access.NODE, _node_desire, DesireBody),
    Endpoint("GET", "/v1/node/groups/{group}/ends", Access.NODE, _node_ends),
    Endpoint("POST", "/v1/node/groups/{group}/check", Access.NODE, _node_check),
    Endpoint("POST", "/v1/node/groups/{group}/copy-unlogged", Access.NODE, _node_copy_unlogged),
    Endpoint("POST", "/v1/node/groups/{group}/compare-schema", Access.NODE, _node_compare_schema),
    Endpoint("POST", "/v1/node/groups/{group}/parts", Access.NODE, _node_parts, PartsBody),
    Endpoint(
        "POST", "/v1/node/groups/{group}/foreign-writes", Access.NODE, _node_foreign_writes, ForeignBody
    ),
    Endpoint("POST", "/v1/node/groups/{group}/audit", Access.NODE, _node_audit, NodeAuditBody),
    Endpoint("GET", "/v1/node/groups/{group}/rehearsals", Access.NODE, _node_rehearsals),
    Endpoint(
        "POST", "/v1/node/groups/{group}/rehearsals", Access.NODE, _node_rehearsal_open, NodeRehearsalBody
    ),
    Endpoint(
        "POST",
        "/v1/node/groups/{group}/rehearsals/close",
        Access.NODE,
        _node_rehearsal_close,
        NodeRehearsalCloseBody,
    ),
    Endpoint("POST", "/v1/node/groups/{group}/forget-kind", Access.NODE, _node_forget_kind, ForgetBody),
    Endpoint("POST", "/v1/node/groups/{group}/forget", Access.NODE, _node_forget, ForgetNodeBody),
)
