"""What every answer of the portal has in common: headers, cookies, forms, templates.

The headers let nothing run or load but the portal's own files, let nobody frame it, and keep pages out of
caches. A form is bounded, and counts only with the text that its session (or, before there is one, its
cookie) alone knows.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import jinja2
import msgspec
from starlette.requests import Request
from starlette.responses import Response

import castling
from castling.errors import AccessDenied, UsageError
from castling.portal import wording

__all__ = ["FORM_MAX", "Web", "answer", "form", "json_answer", "see"]

HERE = Path(__file__).parent
FORM_MAX = 64 << 10
HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class Web:
    """Templates and cookies of one node's portal."""

    def __init__(self, node: str) -> None:
        self.node = node
        #: cookies don't know ports: two nodes of one machine must not take each other's
        self.session_cookie = f"__Host-castling-{node}"
        self.login_cookie = f"__Host-castling-login-{node}"
        self._templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters.update(wording.FILTERS)
        self._templates.globals.update(node=node, version=castling.__version__, asset=_asset)

    def page(self, template: str, values: dict[str, Any]) -> str:
        return self._templates.get_template(template).render(values)

    def live_part(self, template: str, values: dict[str, Any]) -> str:
        """The part of a page that changes while somebody looks."""
        return self.page(f"live/{template}", values)

    # --- cookies ------------------------------------------------------------------------------

    def session(self, request: Request) -> str | None:
        return request.cookies.get(self.session_cookie)

    def begin(self, response: Response, secret: str, longest_s: float) -> None:
        self._set(response, self.session_cookie, secret, int(longest_s))
        self._set(response, self.login_cookie, "", 0)

    def end(self, response: Response) -> None:
        self._set(response, self.session_cookie, "", 0)

    def login_csrf(self, request: Request, response: Response | None = None) -> tuple[str, str]:
        """(the cookie's text, what the login's form must bring)."""
        text = request.cookies.get(self.login_cookie) or secrets.token_urlsafe(16)
        return text, hmac.new(text.encode("utf-8", "replace"), b"login", hashlib.sha256).hexdigest()

    def keep_login(self, response: Response, text: str) -> None:
        self._set(response, self.login_cookie, text, 3600)

    def _set(self, response: Response, name: str, value: str, age_s: int) -> None:
        response.set_cookie(
            name, value, max_age=age_s, path="/", secure=True, httponly=True, samesite="strict"
        )


def _asset(name: str) -> str:
    """The path of a file of `static`, which names its content, so that it may be cached for ever."""
    return f"/static/{name}?v={_content(name)}"


_known: dict[str, str] = {}


def _content(name: str) -> str:
    if name not in _known:
        _known[name] = hashlib.sha256((HERE / "static" / name).read_bytes()).hexdigest()[:12]
    return _known[name]


async def form(request: Request, csrf: str | None) -> dict[str, str]:
    """The fields of an urlencoded body. AccessDenied when it does not come from a page of this session."""
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise AccessDenied("that form came from another site")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise UsageError("a form is sent urlencoded")
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > FORM_MAX:
            raise UsageError(f"the form is larger than {FORM_MAX} bytes")
    try:
        fields = dict(
            parse_qsl(data.decode(), keep_blank_values=True, strict_parsing=bool(data), max_num_fields=50)
        )
    except ValueError as error:
        raise UsageError("that is no form") from error
    if csrf is None or not hmac.compare_digest(fields.pop("csrf", "").encode(), csrf.encode()):
        raise AccessDenied("the form is out of date", hint="load the page again")
    return fields


def answer(content: str, status: int = 200, *, media: str = "text/html") -> Response:
    return Response(content, status, HEADERS, media_type=media)


def json_answer(said: dict[str, Any], status: int = 200) -> Response:
    return Response(msgspec.json.encode(said), status, HEADERS, media_type="application/json")


def see(path: str) -> Response:
    """Go there, by GET."""
    return Response("", 303, {**HEADERS, "location": path})
