"""HTTPS for the agent: TLS 1.3, the peer's certificate verified when it shows one.

Users show a token and no certificate, nodes show a certificate, so the handshake asks
for one and goes on without. The verified node name of a connection is put into the
scope of its requests; a certificate that is not a node's ends the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Generator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from castling.control.api import NODE_KEY
from castling.control.home import Home, node_tls
from castling.errors import LinkForeign, StateError

__all__ = ["AgentServer", "bind"]

#: connections that are served at once; more are answered 503
CONNECTIONS_MAX = 200


class AgentServer(uvicorn.Server):
    """Serves `app`. Signals are the agent's own business."""

    def __init__(self, app: Starlette, home: Home) -> None:
        tls = node_tls(home)

        class Protocol(H11Protocol):
            def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as its base
                super().connection_made(transport)
                found: ssl.SSLObject = transport.get_extra_info("ssl_object")
                certificate = found.getpeercert(binary_form=True)
                if certificate is None:
                    return
                try:
                    node = tls.peer_node(certificate)
                except LinkForeign:
                    transport.abort()
                    return
                self.app = _as_node(self.app, node)

            def send_400_response(self, msg: str) -> None:
                # not HTTP: there is nobody to read an envelope
                self.transport.close()

        super().__init__(
            uvicorn.Config(
                app,
                http=Protocol,
                ws="none",
                loop="asyncio",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=CONNECTIONS_MAX,
                timeout_keep_alive=10,
                timeout_graceful_shutdown=5,
                h11_max_incomplete_event_size=64 << 10,
                ssl_certfile=home.node_cert,
                ssl_keyfile=home.node_key,
                ssl_ca_certs=str(home.ca_cert),
                ssl_cert_reqs=ssl.CERT_OPTIONAL,
            )
        )
        self.config.load()
        assert self.config.ssl is not None
        self.config.ssl.minimum_version = ssl.TLSVersion.TLSv1_3
        self.config.ssl.num_tickets = 0

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def _as_node(app: Any, node: str) -> Any:
    async def with_node(scope: Any, receive: Any, send: Any) -> None:
        scope[NODE_KEY] = node
        await app(scope, receive, send)

    return with_node


def bind(address: str) -> socket.socket:
    """A listening socket on `host:port`; StateError when that is not possible."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        family, kind, proto, _, where = socket.getaddrinfo(
            host, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, proto)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(where)
            listener.listen(128)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise StateError(f"can't listen on {address}: {error.strerror or error}") from error
    return listener
