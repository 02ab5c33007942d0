"""The API's one gate: who asks, is it allowed, is the body sane, and one envelope for every answer.

Success is `{"ok": true, "data": …}`, failure `{"ok": false, "error": {…}}` with the
fields of `CastlingError.as_json`, on every path, also where there is none. Bodies are
bounded before they are read; nothing that fails tells more than a typed error does.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from castling.config.rules import NAME
from castling.control.access import AccessRole, Caller, demand
from castling.control.routes import ENDPOINTS, Access, Call, Endpoint, Raw, Services
from castling.errors import (
    AccessDenied,
    AgentUnreachable,
    CastlingError,
    ConfigError,
    NotFound,
    StateError,
    TooManyAttempts,
    UsageError,
)
from castling.observe import events

__all__ = ["BODY_MAX", "ask", "build_app", "checked_names", "crashed", "endpoint", "status_of"]

#: a castling.toml of the greatest length, quoted as JSON, fits
BODY_MAX = 4 << 20
#: where the connection's verified node is found in the request's scope
NODE_KEY = "castling.node"

#: errors told of one that is not known: it, and what led to it
_CAUSES_MAX = 10
_BY_PLACE = {(each.method, each.path): each for each in ENDPOINTS}
_TOKEN_ID = re.compile(r"[0-9a-f]{1,32}")
_STATUS: tuple[tuple[type[CastlingError], int], ...] = (
    (UsageError, 400),
    (TooManyAttempts, 429),
    (AccessDenied, 403),
    (NotFound, 404),
    (ConfigError, 422),
    (StateError, 409),
    (AgentUnreachable, 502),
)


class _Unknown(AccessDenied):
    """Nobody the agent knows makes this request."""


def build_app(services: Services, beside: Sequence[Route] = ()) -> Starlette:
    """The ASGI application of one agent. `beside`: paths of another face, which guards them itself."""
    paths = sorted({endpoint.path for endpoint in ENDPOINTS})
    routes = [Route(path, _Path(path, services)) for path in paths]
    return Starlette(
        routes=[*routes, *beside],
        exception_handlers={HTTPException: _no_route},
    )


class _Path:
    """All methods of one path, as an ASGI application of its own, so that 405 has our shape too."""

    def __init__(self, path: str, services: Services) -> None:
        self._methods = {each.method: each for each in ENDPOINTS if each.path == path}
        self._services = services

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        endpoint = self._methods.get(request.method)
        if endpoint is None:
            allowed = ", ".join(sorted(self._methods))
            error = UsageError(f"{request.method} is not for this path", hint=f"allowed: {allowed}")
            response = _failure(error, 405, {"allow": allowed})
        else:
            try:
                response = await _answer(self._services, endpoint, request)
            except CastlingError as error:  # not even the note of who asked could be kept
                response = _failure(error, status_of(error))
            except Exception as error:  # noqa: BLE001 - the outermost frame of a request
                response = _failure(crashed(request, error), 500)
        await response(scope, receive, send)


async def _answer(services: Services, endpoint: Endpoint, request: Request) -> Response:
    try:
        caller = _caller(services, request)
        query = dict(request.query_params)
        found = await _perform(
            services, endpoint, caller, request.path_params, query, lambda: _body(endpoint, request)
        )
        return _success(found)
    except CastlingError as error:
        status = status_of(error)
        return _failure(error, status, {"www-authenticate": "Bearer"} if status == 401 else {})
    except ClientDisconnect:
        return Response(status_code=499)


async def _perform(
    services: Services,
    endpoint: Endpoint,
    caller: Caller,
    params: dict[str, str],
    query: dict[str, str],
    body: Callable[[], Awaitable[Any]],
) -> Any:
    """What the endpoint's handler returns, if `caller` may; noted in the access log either way."""
    try:
        _allow(endpoint, caller)
        call = Call(caller, checked_names(params), query, await body())
        found = await endpoint.handler(services, call)
    except CastlingError as error:
        _note(services, endpoint, params, caller, error.code)
        raise
    _note(services, endpoint, params, caller, "done")
    return found


def endpoint(method: str, path: str) -> Endpoint:
    """The entry of the table; the path with its braces."""
    return _BY_PLACE[method, path]


async def ask(
    services: Services,
    method: str,
    path: str,
    caller: Caller,
    names: dict[str, str],
    query: dict[str, str],
    body: Any = None,
) -> Any:
    """The data that the path would answer `caller` with, for another face of the same use-cases.

    Access, names and body are checked, and the call is noted, as if it came over the wire.
    """
    wanted = endpoint(method, path)

    async def checked() -> Any:
        try:
            return None if wanted.body is None else msgspec.convert(body, wanted.body)
        except msgspec.ValidationError as error:
            raise UsageError(f"that is not what this takes: {error}") from error

    needed = {each: names[each] for each in re.findall(r"{(\w+)}", path)}
    found = await _perform(services, wanted, caller, needed, query, checked)
    return found.data if isinstance(found, Raw) else found


def _caller(services: Services, request: Request) -> Caller:
    """Who the token or the connection's certificate says it is; nobody without either."""
    node = request.scope.get(NODE_KEY)
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token:
        user = services.store.caller(token.strip())
        if user is None:
            raise _Unknown("the token is not known here, or was revoked", hint="tokens belong to one node")
        return Caller(user.name, user.role, node)
    return Caller(f"node {node}" if node else "nobody", None, node)


def _allow(endpoint: Endpoint, caller: Caller) -> None:
    if endpoint.access is Access.PUBLIC:
        return
    if caller.role is None and caller.node is None:
        raise _Unknown(
            "a token is needed",
            hint="CASTLING_TOKEN, --token-file or <home>/admin.token; `castling token create`",
        )
    if endpoint.access is Access.NODE:
        if caller.node is None:
            raise AccessDenied("only a node of the installation may do that")
        return
    assert isinstance(endpoint.access, AccessRole)
    demand(caller, endpoint.access)


def checked_names(params: dict[str, Any]) -> dict[str, str]:
    """Names become file names: anything but a name is not found before it is used."""
    for key, value in params.items():
        pattern = _TOKEN_ID if key in ("token", "rehearsal", "audit") else NAME
        if not pattern.fullmatch(value):
            raise NotFound(f"there is no {key} of that name")
    return params


async def _body(endpoint: Endpoint, request: Request) -> Any:
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > BODY_MAX:
        raise UsageError(f"the body is larger than {BODY_MAX} bytes")
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > BODY_MAX:
            raise UsageError(f"the body is larger than {BODY_MAX} bytes")
    if endpoint.body is None:
        return None
    try:
        return msgspec.json.decode(bytes(data), type=endpoint.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"the body is not what this path takes: {error}") from error


def _note(
    services: Services, endpoint: Endpoint, params: dict[str, str], caller: Caller, outcome: str
) -> None:
    """Who did what: every call that may change something and was not by an unknown caller."""
    if endpoint.method != "GET" and (caller.role is not None or caller.node is not None):
        subject = ",".join(str(value) for value in params.values())[:100]
        services.store.add_access(str(caller), f"{endpoint.method} {endpoint.path}", subject, outcome)


def _success(found: Any) -> Response:
    raw = found if isinstance(found, Raw) else Raw(data=found)
    if raw.text is not None:
        return Response(raw.text, raw.status, media_type=raw.media)
    return _json({"ok": True, "data": raw.data}, raw.status)


def _failure(error: CastlingError, status: int, headers: dict[str, str] | None = None) -> Response:
    response = _json({"ok": False, "error": error.as_json()}, status)
    response.headers.update(headers or {})
    return response


def _json(said: dict[str, Any], status: int) -> Response:
    headers = {"cache-control": "no-store"}
    return Response(msgspec.json.encode(said), status, headers, media_type="application/json")


def status_of(error: CastlingError) -> int:
    """The HTTP status that an error is answered with."""
    if isinstance(error, _Unknown):
        return 401
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _failure(
        NotFound("there is no such path", hint="docs/reference/api.md lists them"), error.status_code
    )


def crashed(request: Request, error: Exception) -> CastlingError:
    """What to answer. The log gets the frames of all that led to it but no values: values may be secrets."""
    inside = list(_inside(error))
    events("agent").error(
        "agent.request_crashed",
        path=request.url.path,
        error=" < ".join(type(each).__name__ for each in inside),
        at=[[f"{frame.filename}:{frame.lineno}" for frame in _frames(each)] for each in inside],
    )
    root = inside[-1]
    where = next((f" at {Path(each.filename).name}:{each.lineno}" for each in reversed(_frames(root))), "")
    told = f"the agent met an error it does not know ({type(root).__name__}{where}); see its log"
    return CastlingError(told)


def _inside(error: BaseException) -> Iterator[BaseException]:
    """It, and what led to it: of a group the first one, as several fail for one reason mostly."""
    found: BaseException | None = error
    for _ in range(_CAUSES_MAX):
        if found is None:
            return
        yield found
        found = found.exceptions[0] if isinstance(found, BaseExceptionGroup) else found.__cause__


def _frames(error: BaseException) -> traceback.StackSummary:
    return traceback.extract_tb(error.__traceback__)
