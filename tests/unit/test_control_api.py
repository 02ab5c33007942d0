"""One envelope and one gate on every path; hostile requests end in a typed refusal."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from tests.unit.switch_cast import switches

from castling.control.access import AccessRole
from castling.control.accounts import Accounts
from castling.control.api import BODY_MAX, NODE_KEY, build_app
from castling.control.audit_group import AuditGroup
from castling.control.deployment import Deployment
from castling.control.group import Groups
from castling.control.home import Address, Home
from castling.control.install import initialise
from castling.control.membership import Membership
from castling.control.nodes import LocalNode, ask_all
from castling.control.routes import ENDPOINTS, Access, Services
from castling.control.store import Store
from castling.control.supervisor import Supervisor
from castling.control.watch import Watch
from castling.errors import AgentUnreachable

TEXT = """\
[installation]
name = "shop"
[nodes.east]
api = "127.0.0.1:7430"
link = "127.0.0.1:7431"
"""


@dataclass
class Api:
    """The application without a socket, and tokens of every role."""

    app: Any
    services: Services
    tokens: dict[AccessRole, str]
    home: Home

    async def call(
        self,
        method: str,
        path: str,
        *,
        role: AccessRole | None = None,
        node: str | None = None,
        body: Any = None,
        **more: Any,
    ) -> httpx.Response:
        async def with_node(scope: Any, receive: Any, send: Any) -> None:
            await self.app({**scope, **({NODE_KEY: node} if node else {})}, receive, send)

        transport = httpx.ASGITransport(app=with_node)
        headers = {"authorization": f"Bearer {self.tokens[role]}"} if role else {}
        headers.update(more.pop("headers", {}))
        if body is not None:
            more["content"] = msgspec.json.encode(body)
        async with httpx.AsyncClient(transport=transport, base_url="https://agent") as http:
            return await http.request(method, path, headers=headers, **more)


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    home = Home(tmp_path / "home")
    address = Address(api="127.0.0.1:7430", link="127.0.0.1:7431")
    initialise(home, "shop", "east", address, keep_token=False)
    with Store(home.state) as store:
        supervisor = Supervisor(home.folder)
        local = LocalNode(home, store, supervisor, time.time_ns)

        def reach(name: str, address: str) -> Any:
            raise AgentUnreachable(f"{name} is not part of this test")

        changing = asyncio.Lock()
        groups = Groups(local, reach, changing)
        services = Services(
            local=local,
            store=store,
            groups=groups,
            switches=switches(local, store, groups, reach),
            audits=AuditGroup(groups.captures, groups.tree),
            deployment=Deployment(local, store, reach, changing),
            membership=Membership(home, local, store, lambda: "127.0.0.1:7430", time.time_ns),
            accounts=Accounts(store),
            watch=Watch(groups, store),
        )
        task = asyncio.create_task(supervisor.run([]))
        await asyncio.sleep(0)
        tokens = {role: store.add_token(str(role), role)[1] for role in AccessRole}
        yield Api(build_app(services), services, tokens, home)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def check_error(response: httpx.Response) -> dict[str, Any]:
    said = response.json()
    assert set(said) == {"ok", "error"} and said["ok"] is False
    assert set(said["error"]) == {"code", "message", "hint", "retryable", "exit_code", "context"}
    assert isinstance(said["error"]["code"], str) and said["error"]["exit_code"] >= 1
    found: dict[str, Any] = said["error"]
    return found


def concrete(path: str) -> str:
    return (
        path.replace("{group}", "orders")
        .replace("{token}", "00")
        .replace("{rehearsal}", "00")
        .replace("{user}", "ann")
        .replace("{run}", "r1")
        .replace("{application}", "shop")
    )


async def test_every_path_refuses_strangers_in_one_shape(api: Api) -> None:
    for endpoint in ENDPOINTS:
        response = await api.call(endpoint.method, concrete(endpoint.path))
        if endpoint.access is Access.PUBLIC and endpoint.body is None:
            assert response.json()["ok"] is True, endpoint.path
        else:
            assert response.status_code == (400 if endpoint.access is Access.PUBLIC else 401), endpoint.path
            assert check_error(response)["code"] in ("access-denied", "usage")


async def test_every_path_refuses_a_wrong_token_in_one_shape(api: Api) -> None:
    for endpoint in ENDPOINTS:
        response = await api.call(
            endpoint.method, concrete(endpoint.path), headers={"authorization": "Bearer ct_00_wrong"}
        )
        assert response.status_code == 401, endpoint.path
        assert "wrong" not in response.text
        check_error(response)


async def test_every_path_refuses_the_role_below(api: Api) -> None:
    below = {AccessRole.ADMIN: AccessRole.OPERATOR, AccessRole.OPERATOR: AccessRole.VIEWER}
    for endpoint in ENDPOINTS:
        if isinstance(endpoint.access, AccessRole) and endpoint.access in below:
            response = await api.call(endpoint.method, concrete(endpoint.path), role=below[endpoint.access])
            assert response.status_code == 403, endpoint.path
            check_error(response)


async def test_a_node_and_an_admin_each_have_their_own_paths(api: Api) -> None:
    for endpoint in ENDPOINTS:
        if endpoint.access is Access.NODE:
            response = await api.call(endpoint.method, concrete(endpoint.path), role=AccessRole.ADMIN)
            assert response.status_code == 403, endpoint.path
        elif isinstance(endpoint.access, AccessRole):
            response = await api.call(endpoint.method, concrete(endpoint.path), node="west")
            assert response.status_code == 403, endpoint.path
    assert (await api.call("GET", "/v1/node", node="west")).json()["data"]["node"] == "east"


async def test_every_other_method_is_405_in_one_shape(api: Api) -> None:
    paths = {endpoint.path for endpoint in ENDPOINTS}
    for path in paths:
        known = {endpoint.method for endpoint in ENDPOINTS if endpoint.path == path}
        for method in {"GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"} - known:
            response = await api.call(method, concrete(path), role=AccessRole.ADMIN)
            assert response.status_code == 405, (method, path)
            check_error(response)
            assert set(response.headers["allow"].split(", ")) == known


@pytest.mark.parametrize("path", ["/", "/v2", "/v1/groups/", "/v1/groups/a/b/c", "/v1/%2e%2e", "//v1/node"])
async def test_unknown_paths_are_404_in_one_shape(api: Api, path: str) -> None:
    response = await api.call("GET", path, role=AccessRole.ADMIN)
    assert response.status_code in (404, 307) and response.status_code != 200
    if response.status_code == 404:
        assert check_error(response)["code"] == "not-found"


@pytest.mark.parametrize("name", ["..", "%2e%2e", "a%2fb", "A", "a" * 41, "%00", "a.b", "~", "ö"])
async def test_a_name_that_is_none_never_reaches_a_file(api: Api, name: str) -> None:
    for method, path in (("GET", f"/v1/groups/{name}"), ("DELETE", f"/v1/groups/{name}")):
        response = await api.call(method, path, role=AccessRole.ADMIN)
        assert response.status_code in (404, 405), response.text
        check_error(response)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"node": 1}',
        b'{"node": "w", "x": 1}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"node": NaN}',
    ],
)
async def test_bodies_that_are_none_are_refused(api: Api, content: bytes) -> None:
    response = await api.call("POST", "/v1/invites", role=AccessRole.ADMIN, content=content)
    assert response.status_code == 400
    assert check_error(response)["code"] == "usage"


async def test_a_body_is_bounded_whatever_its_header_says(api: Api) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(BODY_MAX // (1 << 20) + 2):
            yield b" " * (1 << 20)

    told = await api.call("POST", "/v1/invites", role=AccessRole.ADMIN, content=b" " * (BODY_MAX + 1))
    untold = await api.call("POST", "/v1/invites", role=AccessRole.ADMIN, content=endless())
    lying = await api.call(
        "POST", "/v1/invites", role=AccessRole.ADMIN, content=b"{}", headers={"content-length": "-1"}
    )
    for response in (told, untold, lying):
        assert response.status_code == 400
        assert "larger than" in check_error(response)["message"]


async def test_a_crash_is_500_in_one_shape_and_tells_nothing(
    api: Api, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> Any:
        raise RuntimeError("a detail that is nobody's business")

    monkeypatch.setattr(api.services.membership, "nodes", broken)
    response = await api.call("GET", "/v1/nodes", role=AccessRole.VIEWER)
    assert response.status_code == 500
    assert check_error(response)["code"] == "unexpected"
    assert "business" not in response.text


async def test_changes_are_in_the_access_log_with_who_and_how_they_ended(api: Api) -> None:
    await api.call("POST", "/v1/tokens", role=AccessRole.ADMIN, body={"name": "bob", "role": "viewer"})
    await api.call("POST", "/v1/groups/orders/start", role=AccessRole.OPERATOR)
    await api.call("POST", "/v1/tokens", role=AccessRole.VIEWER, body={"name": "eve", "role": "admin"})
    rows = (await api.call("GET", "/v1/access-log", role=AccessRole.ADMIN)).json()["data"]
    told = [(row["who"], row["action"], row["subject"], row["outcome"]) for row in rows]
    assert told == [
        ("admin", "POST /v1/tokens", "", "done"),
        ("operator", "POST /v1/groups/{group}/start", "orders", "not-initialised"),
        ("viewer", "POST /v1/tokens", "", "access-denied"),
    ]


async def test_deploying_twice_says_so(api: Api) -> None:
    first = await api.call("POST", "/v1/deploy", role=AccessRole.ADMIN, body={"text": TEXT})
    assert first.json()["data"]["result"] == "deployed"
    assert api.home.deployed.read_text() == TEXT
    again = await api.call("POST", "/v1/deploy", role=AccessRole.ADMIN, body={"text": TEXT})
    assert again.json()["data"]["result"] == "already_deployed"
    stale = await api.call(
        "POST", "/v1/deploy", role=AccessRole.ADMIN, body={"text": TEXT + "\n", "expect": "x"}
    )
    assert check_error(stale)["code"] == "deploy-refused"
    bad = await api.call("POST", "/v1/deploy", role=AccessRole.ADMIN, body={"text": "[nodes"})
    assert bad.status_code == 422 and "castling.toml:1" in check_error(bad)["message"]
    assert api.home.deployed.read_text() == TEXT


async def test_metrics_and_health(api: Api) -> None:
    await api.call("POST", "/v1/deploy", role=AccessRole.ADMIN, body={"text": TEXT})
    response = await api.call("GET", "/metrics", role=AccessRole.VIEWER)
    assert response.status_code == 200 and "castling_rpo_seconds" in response.text
    assert (await api.call("GET", "/health/live")).status_code == 200
    assert (await api.call("GET", "/health/ready")).json()["data"]["node"] == "east"


@dataclass
class _BrokenNode:
    """Stands for a node on which something goes wrong that nobody has foreseen."""

    name: str = "east"

    async def ends(self, group: str) -> list[dict[str, Any]]:
        raise ZeroDivisionError("secret words")


async def test_an_unknown_error_says_where_it_came_from_and_no_values(
    api: Api, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also out of several things that were asked at once."""

    async def asked(self: Groups) -> list[dict[str, Any]]:
        await ask_all([_BrokenNode(), _BrokenNode("west")], lambda node: node.ends("orders"))  # type: ignore[list-item]
        return []

    monkeypatch.setattr(Groups, "trees", asked)
    response = await api.call("GET", "/v1/groups", role=AccessRole.VIEWER)
    assert response.status_code == 500
    said = check_error(response)
    assert said["code"] == "unexpected"
    assert "(ZeroDivisionError at test_control_api.py:" in said["message"]
    captured = capsys.readouterr()
    logged = captured.out + captured.err
    assert "agent.request_crashed" in logged and "ExceptionGroup < ZeroDivisionError" in logged
    assert "secret words" not in logged + response.text


async def test_a_state_that_can_not_be_written_is_typed(api: Api) -> None:
    api.services.store._db.execute("PRAGMA busy_timeout = 10")
    with contextlib.closing(sqlite3.connect(api.home.state)) as other:
        other.execute("BEGIN IMMEDIATE")
        response = await api.call(
            "POST", "/v1/tokens", role=AccessRole.ADMIN, body={"name": "x", "role": "viewer"}
        )
        other.rollback()
    assert response.status_code == 409
    assert check_error(response)["code"] == "state-unsaved"
