"""Speaking to an agent: TLS that knows whom it speaks to, one envelope, errors as their own class.

The certificate must come from the installation's CA and, where a node is expected,
must be that node's: this is checked inside the handshake, before a token is sent.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

from castling.errors import AgentUnreachable, CastlingError, LinkForeign

__all__ = ["AgentClient", "RemoteError", "client_context", "error_from_json", "unwrap"]

#: an answer is never longer than this, bytes
ANSWER_MAX = 32 << 20
CONNECT_S = 5.0


class RemoteError(CastlingError):
    """The other side reported an error that this version does not know."""

    code = "remote-error"


def _classes(base: type[CastlingError]) -> dict[str, type[CastlingError]]:
    found = {base.code: base}
    for inner in base.__subclasses__():
        found.update(_classes(inner))
    return found


def error_from_json(said: dict[str, Any]) -> CastlingError:
    """An error of the class with that code; RemoteError, which keeps code and exit code, for others."""
    message, hint = str(said.get("message", "")), str(said.get("hint", ""))
    context = said.get("context")
    context = {str(key): value for key, value in context.items()} if isinstance(context, dict) else {}
    wanted = _classes(CastlingError).get(str(said.get("code")))
    error = (wanted or RemoteError)(message)
    error.hint, error.context = hint, context
    return error


def client_context(
    ca_cert: Path,
    *,
    identify: Callable[[bytes], str],
    expect: str | None = None,
    cert: tuple[Path, Path] | None = None,
) -> ssl.SSLContext:
    """TLS 1.3 to an agent of the installation of `ca_cert`; `expect`: the node it must be.

    `identify` tells the node of a verified certificate (LinkForeign if it has none).
    """

    def verify(certificate: bytes | None) -> None:
        node = identify(certificate or b"")
        if expect is not None and node != expect:
            raise LinkForeign(f"node {node} answered where {expect} was expected")

    class VerifiedObject(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            verify(self.getpeercert(binary_form=True))

    class VerifiedSocket(ssl.SSLSocket):
        def do_handshake(self, block: bool = False) -> None:
            super().do_handshake(block)
            verify(self.getpeercert(binary_form=True))

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # nodes are known by their names in the certificate, not by host names
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(ca_cert)
    if cert is not None:
        context.load_cert_chain(*cert)
    context.sslobject_class = VerifiedObject
    context.sslsocket_class = VerifiedSocket
    return context


def unwrap(status: int, content: bytes, address: str) -> Any:
    """The data of an answer; its error raised as its own class."""
    try:
        said = json.loads(content)
        if said["ok"] is True:
            return said["data"]
        raise error_from_json(said["error"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise AgentUnreachable(f"{address} does not answer as an agent does (status {status})") from None


class AgentClient:
    """Calls of one agent by a user, blocking: a connection each. Agents among themselves use
    `nodes.RemoteNode`. (Importing httpx would take longer than most calls.)"""

    def __init__(self, address: str, tls: ssl.SSLContext, *, token: str | None = None) -> None:
        self.address = address
        self._tls = tls
        self._headers = {"authorization": f"Bearer {token}"} if token else {}

    def call(self, method: str, path: str, body: Any = None, *, timeout_s: float = 30.0) -> Any:
        """The data of the answer, or the error that the agent reports; AgentUnreachable without an answer."""
        headers = self._headers | ({} if body is None else {"content-type": "application/json"})
        given = None if body is None else json.dumps(body).encode()
        try:
            connection = http.client.HTTPSConnection(self.address, timeout=CONNECT_S, context=self._tls)
            with contextlib.closing(connection):
                connection.connect()
                connection.sock.settimeout(timeout_s)
                connection.request(method, path, given, headers)
                answer = connection.getresponse()
                content = answer.read(ANSWER_MAX + 1)
        except (OSError, http.client.HTTPException) as error:
            raise unreachable(self.address, error) from error
        if len(content) > ANSWER_MAX:
            raise AgentUnreachable(f"{self.address} does not answer as an agent does: it never ends")
        return unwrap(answer.status, content, self.address)


def unreachable(address: str, error: Exception) -> CastlingError:
    """Why there was no answer, with what to do; a certificate that is not ours is no mere silence."""
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return LinkForeign(
            f"{address} showed a certificate of another installation",
            hint="check the address; `castling join` adds a node to this installation",
        )
    return AgentUnreachable(
        f"the agent at {address} does not answer: {error or type(error).__name__}",
        hint="`castling agent` runs it; as a service: systemctl status castling",
    )
