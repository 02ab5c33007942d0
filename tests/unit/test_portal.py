"""The portal's gate: nothing without a session, nothing beyond a role, no form from elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from tests.unit.switch_cast import switches

from castling.control.access import AccessRole
from castling.control.accounts import Accounts
from castling.control.api import build_app, endpoint
from castling.control.audit_group import AuditGroup
from castling.control.deployment import Deployment
from castling.control.group import Groups
from castling.control.home import Address, Home
from castling.control.install import initialise
from castling.control.membership import Membership
from castling.control.nodes import LocalNode, RemoteNode
from castling.control.routes import Services
from castling.control.store import Store
from castling.control.supervisor import Supervisor
from castling.control.watch import Watch
from castling.portal.actions import ACTIONS
from castling.portal.app import portal_routes
from castling.portal.pages import PAGES

PASSWORD = "correct horse battery"
TEXT = """\
[installation]
name = "shop"
[nodes.east]
api = "127.0.0.1:7430"
link = "127.0.0.1:7431"
[nodes.west]
api = "127.0.0.1:7432"
link = "127.0.0.1:7433"
[groups.orders]
kind = "postgres"
primary = "east"
backups = ["west"]
[groups.orders.databases.east]
host = "east.example"
dbname = "orders"
user = "castling"
[groups.orders.databases.west]
host = "west.example"
dbname = "orders"
user = "castling"
"""


class Portal:
    """The application without a socket; `browser` has cookies as a browser has."""

    def __init__(self, app: Starlette, services: Services) -> None:
        self.app = app
        self.services = services

    def browser(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.ASGITransport(app=self.app), base_url="https://127.0.0.1")

    @contextlib.asynccontextmanager
    async def logged_in(self, role: AccessRole) -> AsyncIterator[httpx.AsyncClient]:
        async with self.browser() as browser:
            page = await browser.get("/login")
            fields = {"csrf": csrf_of(page), "name": f"the-{role}", "password": PASSWORD}
            answer = await browser.post("/login", data=fields)
            assert answer.status_code == 303, answer.text
            yield browser


def csrf_of(page: httpx.Response) -> str:
    found = re.search(r'name="csrf" value="([0-9a-f]+)"', page.text)
    assert found is not None, page.text
    return found[1]


@pytest.fixture
async def portal(tmp_path: Path) -> AsyncIterator[Portal]:
    home = Home(tmp_path / "home")
    initialise(home, "shop", "east", Address(), keep_token=False)
    home.deployed.write_text(TEXT)
    with Store(home.state) as store:
        supervisor = Supervisor(home.folder)
        local = LocalNode(home, store, supervisor, time.time_ns)

        def reach(name: str, address: str) -> Any:
            return RemoteNode(name, "127.0.0.1:1", ssl.create_default_context())  # nobody is there

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
        for role in AccessRole:
            await services.accounts.add(f"the-{role}", role, PASSWORD)
        task = asyncio.create_task(supervisor.run([]))
        await asyncio.sleep(0)
        yield Portal(build_app(services, portal_routes(services)), services)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def concrete(path: str) -> str:
    return re.sub(r"{(\w+)}", "orders", path)


async def test_nothing_is_shown_without_a_session(portal: Portal) -> None:
    async with portal.browser() as browser:
        for page in PAGES:
            answer = await browser.get(concrete(page.path))
            assert answer.status_code == 303 and answer.headers["location"].startswith("/login"), page.path
            for path in (page.twin, page.stream):
                assert (await browser.get(concrete(path))).status_code == 401, path
        for action in ACTIONS:
            for method in ("GET", "POST"):
                answer = await browser.request(method, concrete(action.path))
                assert answer.status_code == 303 and answer.headers["location"].startswith("/login")
        assert (await browser.post("/account/password")).status_code == 303


async def test_a_made_up_session_is_none(portal: Portal) -> None:
    async with portal.browser() as browser:
        browser.cookies.set("__Host-castling-east", "x" * 43)
        assert (await browser.get("/")).status_code == 303


async def test_the_cookie_of_a_session_is_for_the_browser_alone(portal: Portal) -> None:
    async with portal.browser() as browser:
        page = await browser.get("/login")
        answer = await browser.post(
            "/login", data={"csrf": csrf_of(page), "name": "the-viewer", "password": PASSWORD}
        )
        cookie = next(
            c for c in answer.headers.get_list("set-cookie") if c.startswith("__Host-castling-east")
        )
        for part in ("HttpOnly", "Secure", "SameSite=strict", "Path=/"):
            assert part.lower() in cookie.lower(), cookie
        assert PASSWORD not in answer.text and "domain" not in cookie.lower()


async def test_every_answer_has_the_headers(portal: Portal) -> None:
    async with portal.logged_in(AccessRole.ADMIN) as browser:
        paths = [concrete(page.path) for page in PAGES] + [concrete(page.twin) for page in PAGES]
        for path in [*paths, "/static/portal.css", "/groups/none", *(concrete(a.path) for a in ACTIONS)]:
            headers = (await browser.get(path)).headers
            assert "default-src 'none'" in headers["content-security-policy"], path
            assert "unsafe" not in headers["content-security-policy"]
            assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
            assert "no-store" in headers["cache-control"] or path.startswith("/static/"), path


async def test_every_page_is_shown_and_its_twin_tells_the_same(portal: Portal) -> None:
    async with portal.logged_in(AccessRole.VIEWER) as browser:
        for page in PAGES:
            answer = await browser.get(concrete(page.path))
            assert answer.status_code == 200 and "<h1" in answer.text, answer.text
            assert not re.search(r"\sstyle=|<script>|onclick=", answer.text), (
                "nothing inline: the CSP forbids it"
            )
            twin = await browser.get(concrete(page.twin))
            assert twin.status_code == 200 and twin.json()["ok"] is True
        assert "unknown" in (await browser.get("/groups/orders")).text, "west does not answer"


async def test_what_needs_a_role_is_neither_offered_nor_done_below_it(portal: Portal) -> None:
    below = {AccessRole.ADMIN: AccessRole.OPERATOR, AccessRole.OPERATOR: AccessRole.VIEWER}
    for action in ACTIONS:
        needed = endpoint(action.method, action.endpoint).access
        assert isinstance(needed, AccessRole) and needed in below, action.name
        async with portal.logged_in(below[needed]) as browser:
            path = concrete(action.path)
            assert (await browser.get(path)).status_code == 403, action.name
            csrf = csrf_of(await browser.get("/"))
            assert (await browser.post(path, data={"csrf": csrf})).status_code == 403, action.name
        async with portal.logged_in(needed) as browser:
            assert (await browser.get(path)).status_code == 200, action.name


async def test_a_viewer_sees_no_users_tokens_or_access_log(portal: Portal) -> None:
    async with portal.logged_in(AccessRole.VIEWER) as browser:
        said = (await browser.get("/settings.json")).json()["data"]
        assert not {"users", "tokens", "access_log"} & set(said)
    async with portal.logged_in(AccessRole.ADMIN) as browser:
        said = (await browser.get("/settings.json")).json()["data"]
        assert {"users", "tokens", "access_log"} <= set(said), "negative control"


async def test_a_form_from_elsewhere_changes_nothing(portal: Portal) -> None:
    async with portal.logged_in(AccessRole.ADMIN) as browser:
        fields = {"name": "eve", "role": "admin", "password": PASSWORD}
        csrf = csrf_of(await browser.get("/settings"))
        for wrong in ({}, {"csrf": ""}, {"csrf": "0" * 64}):
            answer = await browser.post("/settings/do/add-user", data={**fields, **wrong})
            assert answer.status_code == 403
        foreign = await browser.post(
            "/settings/do/add-user",
            data={**fields, "csrf": csrf},
            headers={"sec-fetch-site": "cross-site"},
        )
        assert foreign.status_code == 403
        assert "eve" not in {user["name"] for user in portal.services.accounts.users()}
        done = await browser.post("/settings/do/add-user", data={**fields, "csrf": csrf})
        assert done.status_code == 303 and done.headers["location"] == "/settings?done=add-user.added"
        assert "eve" in {user["name"] for user in portal.services.accounts.users()}, "negative control"
        logged = portal.services.store.access_entries(1)[0]
        assert (logged["who"], logged["action"], logged["outcome"]) == ("the-admin", "POST /v1/users", "done")


async def test_another_sessions_csrf_text_is_worth_nothing(portal: Portal) -> None:
    async with (
        portal.logged_in(AccessRole.ADMIN) as one,
        portal.logged_in(AccessRole.ADMIN) as other,
    ):
        csrf = csrf_of(await one.get("/"))
        assert csrf != csrf_of(await other.get("/"))
        assert (await other.post("/logout", data={"csrf": csrf})).status_code == 403
        assert (await other.get("/")).status_code == 200


async def test_a_login_needs_the_text_of_its_page(portal: Portal) -> None:
    async with portal.browser() as browser:
        answer = await browser.post("/login", data={"name": "the-admin", "password": PASSWORD})
        assert answer.status_code == 403 and (await browser.get("/")).status_code == 303


async def test_wrong_logins_are_noted_slowed_and_tell_nothing(portal: Portal) -> None:
    async with portal.browser() as browser:
        csrf = csrf_of(await browser.get("/login"))
        texts = set()
        for name in ("the-admin", "nobody-at-all", "my secret typed into the wrong field"):
            answer = await browser.post("/login", data={"csrf": csrf, "name": name, "password": "wrong"})
            assert answer.status_code == 403
            texts.add(re.search(r"<strong>(.*?)</strong>", answer.text)[1])  # type: ignore[index]
        assert len(texts) == 1, "whether the user exists is not told"
        who = [entry["who"] for entry in portal.services.store.access_entries(3)]
        assert who == ["the-admin", "nobody known", "nobody known"]
        for _ in range(5):
            answer = await browser.post(
                "/login", data={"csrf": csrf, "name": "the-admin", "password": "wrong"}
            )
        assert answer.status_code == 429
        answer = await browser.post("/login", data={"csrf": csrf, "name": "the-admin", "password": PASSWORD})
        assert answer.status_code == 429


async def test_logging_out_ends_the_session_for_good(portal: Portal) -> None:
    async with portal.logged_in(AccessRole.VIEWER) as browser:
        secret = browser.cookies["__Host-castling-east"]
        csrf = csrf_of(await browser.get("/"))
        answer = await browser.post("/logout", data={"csrf": csrf})
        assert answer.headers["location"] == "/login"
        browser.cookies.set("__Host-castling-east", secret)
        assert (await browser.get("/")).status_code == 303, "the cookie alone is worth nothing now"


@pytest.mark.parametrize(
    "there", ["//evil.example", "https://evil.example", "/\\evil.example", "/login", "javascript:alert(1)"]
)
async def test_a_login_leads_to_no_other_site(portal: Portal, there: str) -> None:
    async with portal.browser() as browser:
        page = await browser.get("/login", params={"next": there})
        fields = {"csrf": csrf_of(page), "name": "the-viewer", "password": PASSWORD, "next": there}
        assert (await browser.post("/login", data=fields)).headers["location"] == "/"


async def test_what_others_wrote_is_text_and_not_markup(portal: Portal) -> None:
    portal.services.store.add_event("group.odd", {"message": "<script>alert(1)</script>"})
    async with portal.logged_in(AccessRole.VIEWER) as browser:
        page = (await browser.get("/events", params={"about": '"><script>x'})).text
        assert "<script>x" not in page
        page = (await browser.get("/events")).text
        assert "&lt;script&gt;alert(1)" in page and "<script>alert" not in page
        page = (await browser.get("/", params={"done": "<b>hello</b>"})).text
        assert "hello" not in page, "only our own words are said"


async def test_a_user_changes_their_own_password(portal: Portal) -> None:
    async with portal.logged_in(AccessRole.VIEWER) as browser:
        csrf = csrf_of(await browser.get("/settings"))
        new = "a wholly new one"
        fields = {"csrf": csrf, "old": "wrong", "new": new, "again": new}
        assert (await browser.post("/account/password", data=fields)).status_code == 403
        answer = await browser.post("/account/password", data={**fields, "old": PASSWORD})
        assert answer.status_code == 303 and (await browser.get("/")).status_code == 200
        assert await portal.services.accounts.login("the-viewer", new, "elsewhere")


async def test_a_live_page_tells_what_changes_and_ends_with_its_session(portal: Portal) -> None:
    async with portal.logged_in(AccessRole.VIEWER) as browser:
        headers = {"cookie": f"__Host-castling-east={browser.cookies['__Host-castling-east']}"}
    watch = portal.services.watch
    looking = asyncio.create_task(watch.run())
    told: list[str] = []

    async def receive() -> Any:
        await asyncio.sleep(3600)

    async def send(message: Any) -> None:
        told.append(message.get("body", b"").decode())

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/overview/live",
        "query_string": b"",
        "headers": [(key.encode(), value.encode()) for key, value in headers.items()],
        "http_version": "1.1",
        "scheme": "https",
        "server": ("127.0.0.1", 443),
        "client": ("1.2.3.4", 5),
        "root_path": "",
    }
    stream = asyncio.create_task(portal.app(scope, receive, send))
    async with asyncio.timeout(30):
        while not any("event: page" in part for part in told):
            await asyncio.sleep(0.02)
        portal.services.accounts.remove("the-viewer")
        await stream
    assert "event: over" in told[-2] or "event: over" in told[-1]
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)


async def test_files_are_those_of_the_portal_alone(portal: Portal) -> None:
    async with portal.browser() as browser:
        assert (await browser.get("/static/portal.js")).status_code == 200
        for name in ("../app.py", "..%2fapp.py", "none.css", "%2e%2e"):
            assert (await browser.get(f"/static/{name}")).status_code == 404
