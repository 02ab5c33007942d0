"""The portal's paths: pages with their JSON twins and live streams, actions, login, files.

Deny by default: but for the login and the files of `static`, nothing is answered without a session, and what
a session may see or do is decided by the API's own table. Every path of a page is GET and changes nothing;
every change is a form with the text that only its session knows.
"""

from __future__ import annotations

import asyncio
import mimetypes
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import quote

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from castling.control.accounts import LONGEST_S, Login
from castling.control.api import checked_names, crashed, status_of
from castling.control.routes import Services
from castling.errors import AccessDenied, CastlingError, NotFound, TooManyAttempts
from castling.portal.actions import ACTIONS, Action, done_text
from castling.portal.pages import PAGES, Asker, Page
from castling.portal.web import HEADERS, HERE, Web, answer, form, json_answer, see

__all__ = ["portal_routes"]

Json = dict[str, Any]
#: pages that are live at once; more are told to try later
LIVE_MAX = 60
#: how often a stream says that it is there, and looks whether its session still is, seconds
BEAT_S = 15.0


class _LoginNeeded(AccessDenied):
    """Log in first."""


def portal_routes(services: Services) -> list[Route]:
    """To be served beside the API's paths."""
    portal = _Portal(services)
    routes = [
        Route("/login", portal.login_page, methods=["GET"]),
        Route("/login", portal.login, methods=["POST"]),
        Route("/logout", portal.logout, methods=["POST"]),
        Route("/account/password", portal.password, methods=["POST"]),
        Route("/static/{file}", portal.static, methods=["GET"]),
    ]
    for page in PAGES:
        routes += [
            Route(page.twin, portal.guarded(portal.twin, page), methods=["GET"]),
            Route(page.stream, portal.guarded(portal.live, page), methods=["GET"]),
        ]
    for action in ACTIONS:
        routes += [
            Route(action.path, portal.guarded(portal.confirm, action), methods=["GET"]),
            Route(action.path, portal.guarded(portal.act, action), methods=["POST"]),
        ]
    return routes + [Route(page.path, portal.guarded(portal.page, page), methods=["GET"]) for page in PAGES]


Guarded = Callable[[Any, Login, Request], Awaitable[Response]]


class _Portal:
    def __init__(self, services: Services) -> None:
        self._services = services
        self._web = Web(services.local.name)
        self._live = 0

    def guarded(self, handler: Guarded, what: Any) -> Callable[[Request], Awaitable[Response]]:
        """A handler that runs only for a session that is valid, and whose errors become pages."""

        async def run(request: Request) -> Response:
            login = None
            try:
                login = self._login(request, in_use=handler != self.live)
                checked_names(request.path_params)
                return await handler(what, login, request)
            except _LoginNeeded as error:
                if handler in (self.twin, self.live):
                    return json_answer({"ok": False, "error": error.as_json()}, 401)
                there = request.url.path if request.method == "GET" else "/"
                return see(f"/login?next={quote(there)}" if there != "/" else "/login")
            except CastlingError as error:
                return self._failed(error, login, request, as_json=handler in (self.twin, self.live))
            except ClientDisconnect:
                return Response(status_code=499)
            except Exception as error:  # noqa: BLE001 - the outermost frame of a request
                return self._failed(crashed(request, error), login, request)

        return run

    def _login(self, request: Request, *, in_use: bool = True) -> Login:
        secret = self._web.session(request)
        login = self._services.accounts.session(secret, in_use=in_use) if secret else None
        if login is None:
            raise _LoginNeeded()
        return login

    def _failed(
        self, error: CastlingError, login: Login | None, request: Request, *, as_json: bool = False
    ) -> Response:
        if as_json:
            return json_answer({"ok": False, "error": error.as_json()}, status_of(error))
        values = {**self._frame(login, ""), "title": "That did not work", "error": error.as_json()}
        return answer(self._web.page("error.html", values), status_of(error))

    def _frame(self, login: Login | None, section: str) -> Json:
        """What every page's frame needs."""
        menu = [(page.section, page.path, page.title) for page in PAGES if "{" not in page.path]
        csrf = login.csrf if login else ""
        return {"login": login, "section": section, "csrf": csrf, "done": "", "menu": menu}

    # --- pages --------------------------------------------------------------------------------

    def _asker(self, login: Login, request: Request, look: Any = None) -> Asker:
        return Asker(self._services, login.caller, request.path_params, dict(request.query_params), look)

    async def _values(self, page: Page, ask: Asker, login: Login) -> Json:
        data = await page.gather(ask)
        shown = page.shown(ask, data) if page.shown else {}
        query = "&".join(f"{key}={quote(value)}" for key, value in ask.query.items() if key != "done")
        stream = page.stream.format(**ask.names) + (f"?{query}" if query else "")
        return {
            **self._frame(login, page.section),
            "title": page.title,
            "data": data,
            "may_operate": ask.may_operate,
            "may_administer": ask.may_administer,
            "now_ns": time.time_ns(),
            "names": ask.names,
            "done": done_text(ask.query.get("done", "")),
            "stream": stream if page.live else None,
            "twin": page.twin.format(**ask.names) + (f"?{query}" if query else ""),
            **shown,
        }

    async def page(self, page: Page, login: Login, request: Request) -> Response:
        values = await self._values(page, self._asker(login, request), login)
        return answer(self._web.page(page.template, values))

    async def twin(self, page: Page, login: Login, request: Request) -> Response:
        return json_answer({"ok": True, "data": await page.gather(self._asker(login, request))})

    async def live(self, page: Page, login: Login, request: Request) -> Response:
        if self._live >= LIVE_MAX:
            raise TooManyAttempts("too many pages are live on this node; this one is not")
        return StreamingResponse(
            self._stream(page, request),
            headers={**HEADERS, "x-accel-buffering": "no"},
            media_type="text/event-stream",
        )

    async def _stream(self, page: Page, request: Request) -> AsyncIterator[str]:
        """The live part of the page whenever it differs, until the session or the agent ends."""
        self._live += 1
        last, beat = "", time.monotonic()
        try:
            yield "retry: 3000\n\n"
            async for look in self._services.watch.looks():
                try:
                    login = self._login(request, in_use=False)
                    values = await self._values(page, self._asker(login, request, look), login)
                    content = self._web.live_part(page.template, values)
                except _LoginNeeded:
                    yield "event: over\ndata:\n\n"
                    return
                except Exception as error:  # noqa: BLE001 - the outermost frame of a stream
                    known = error if isinstance(error, CastlingError) else crashed(request, error)
                    content = self._web.page("trouble.html", {"error": known.as_json()})
                if content != last:
                    last, beat = content, time.monotonic()
                    yield "event: page\n" + "".join(f"data: {line}\n" for line in content.splitlines()) + "\n"
                elif time.monotonic() - beat > BEAT_S:
                    beat = time.monotonic()
                    yield ": here\n\n"
        finally:
            self._live -= 1

    # --- actions ------------------------------------------------------------------------------

    async def confirm(self, action: Action, login: Login, request: Request) -> Response:
        return await self._confirm(action, login, request, None)

    async def _confirm(
        self,
        action: Action,
        login: Login,
        request: Request,
        error: CastlingError | None,
        fields: Json | None = None,
    ) -> Response:
        ask = self._asker(login, request)
        action.demand(ask)
        values = {
            **self._frame(login, action.section),
            "title": action.title.format(**ask.names),
            "action": action,
            "names": ask.names,
            "told": await action.explain(ask),
            "given": fields if fields is not None else ask.query,
            "here": request.url.path,
            "back": action.back.format(**ask.names),
            "error": None if error is None else error.as_json(),
        }
        return answer(self._web.page("confirm.html", values), 200 if error is None else status_of(error))

    async def act(self, action: Action, login: Login, request: Request) -> Response:
        fields = await form(request, login.csrf)
        ask = self._asker(login, request)
        action.demand(ask)
        try:
            data = await action.do(ask, fields)
        except CastlingError as error:
            return await self._confirm(action, login, request, error, fields)
        if action.result is None:
            word = str((data or {}).get("result", "done")) if isinstance(data, dict) else "done"
            return see(f"{action.back.format(**ask.names)}?done={action.name}.{quote(word)}")
        values = {
            **self._frame(login, action.section),
            "title": action.title.format(**ask.names),
            "data": data,
            "names": ask.names,
            "back": action.back.format(**ask.names),
        }
        return answer(self._web.page(action.result, values))

    # --- login --------------------------------------------------------------------------------

    async def login_page(self, request: Request) -> Response:
        if self._web.session(request):
            try:
                self._login(request)
                return see(_next(request.query_params.get("next", "")))
            except _LoginNeeded:
                pass
        return self._login_form(request, None, request.query_params.get("next", ""))

    def _login_form(
        self, request: Request, error: CastlingError | None, there: str, name: str = ""
    ) -> Response:
        text, csrf = self._web.login_csrf(request)
        values = {
            **self._frame(None, ""),
            "title": "Log in",
            "csrf": csrf,
            "next": _next(there),
            "name": name[:40],
            "error": None if error is None else error.as_json(),
        }
        status = 200 if error is None else (429 if isinstance(error, TooManyAttempts) else 403)
        response = answer(self._web.page("login.html", values), status)
        self._web.keep_login(response, text)
        return response

    async def login(self, request: Request) -> Response:
        _, csrf = self._web.login_csrf(request)
        fields: dict[str, str] = {}
        address = request.client.host if request.client else "?"
        name = ""
        try:
            fields = await form(request, csrf)
            token = fields.get("token", "").strip()
            name = "" if token else fields.get("name", "").strip()
            if not name and not token:
                raise AccessDenied("a name and a password are needed", hint="or a token")
            secret = await self._services.accounts.login(name, token or fields.get("password", ""), address)
        except CastlingError as error:
            self._note(name, "login", error.code)
            return self._login_form(request, error, fields.get("next", ""), name)
        except ClientDisconnect:
            return Response(status_code=499)
        login = self._services.accounts.session(secret)
        self._note(login.caller.name if login else name, "login", "done")
        response = see(_next(fields.get("next", "")))
        self._web.begin(response, secret, LONGEST_S)
        return response

    def _note(self, name: str, action: str, outcome: str) -> None:
        """In the access log; a name that is none is not repeated there: it may be a password."""
        known = {each["name"] for each in self._services.accounts.users()}
        who = name if name in known or outcome == "done" else "nobody known"
        self._services.store.add_access(who, f"portal {action}", "", outcome)

    async def logout(self, request: Request) -> Response:
        secret = self._web.session(request)
        try:
            login = self._login(request)
            await form(request, login.csrf)
            assert secret is not None
            self._services.accounts.logout(secret)
            self._note(login.caller.name, "logout", "done")
        except _LoginNeeded:
            pass
        except CastlingError as error:
            return self._failed(error, None, request)
        response = see("/login")
        self._web.end(response)
        return response

    async def password(self, request: Request) -> Response:
        """A user changes their own password, and stays logged in here alone."""
        login = None
        try:
            login = self._login(request)
            fields = await form(request, login.csrf)
            address = request.client.host if request.client else "?"
            accounts = self._services.accounts
            if not login.has_password:
                raise AccessDenied("a token has no password")
            if fields.get("new", "") != fields.get("again", ""):
                raise AccessDenied("the two new passwords differ; nothing was changed")
            await accounts.login(login.caller.name, fields.get("old", ""), address)
            await accounts.set_password(login.caller.name, fields.get("new", ""))
            secret = await accounts.login(login.caller.name, fields.get("new", ""), address)
        except _LoginNeeded:
            return see("/login")
        except CastlingError as error:
            return self._failed(error, login, request)
        self._note(login.caller.name, "password", "done")
        response = see("/settings?done=password.changed")
        self._web.begin(response, secret, LONGEST_S)
        return response

    async def static(self, request: Request) -> Response:
        name = request.path_params["file"]
        if name not in _STATIC:
            return self._failed(NotFound("there is no such file"), None, request, as_json=True)
        content = await asyncio.to_thread((HERE / "static" / name).read_bytes)
        media = mimetypes.guess_type(name)[0] or "application/octet-stream"
        headers = {**HEADERS, "cache-control": "public, max-age=31536000, immutable"}
        return Response(content, 200, headers, media_type=media)


_STATIC = frozenset(file.name for file in (HERE / "static").iterdir())


def _next(there: str) -> str:
    """A path of the portal to go to after the login; never another site."""
    is_path = there.startswith("/") and not there.startswith(("//", "/\\", "/login")) and there.isprintable()
    return there if is_path and "\\" not in there else "/"
