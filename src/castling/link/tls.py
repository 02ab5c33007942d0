"""Mutual TLS between nodes of one installation.

TLS 1.3 only; both sides show a certificate of the installation's CA, and the name that
counts is the URI in it, never a host name (`authority` says why). There are no session
tickets, so every connection verifies the certificate anew.
"""

from __future__ import annotations

import datetime
import ssl
from functools import cached_property
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from castling.errors import ConfigError, LinkForeign
from castling.link.authority import installation_of, node_of

__all__ = ["NodeTls"]


class NodeTls:
    """A node's TLS material, by the files that hold it. Implements `host.TlsContexts`.

    Contexts are made anew for each use, so a renewed certificate is shown by the next
    connection without a restart.
    """

    def __init__(self, ca_pem_path: Path, cert_path: Path, key_path: Path) -> None:
        self._ca = Path(ca_pem_path)
        self._cert = Path(cert_path)
        self._key = Path(key_path)

    @cached_property
    def installation(self) -> str:
        """The installation id of the CA that this node trusts. ConfigError when it can't be read."""
        try:
            return installation_of(self._ca.read_bytes())
        except OSError as error:
            raise ConfigError(f"{self._ca} can't be read: {error.strerror}") from error

    def client(self) -> ssl.SSLContext:
        context = self._context(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    def server(self) -> ssl.SSLContext:
        context = self._context(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.CERT_REQUIRED
        context.num_tickets = 0
        return context

    def peer_node(self, certificate: bytes) -> str:
        """The node name in a verified DER certificate; LinkForeign if it is not one of ours."""
        try:
            node = node_of(x509.load_der_x509_certificate(certificate), self.installation)
        except ValueError as error:
            raise LinkForeign("the other side's certificate can't be read") from error
        if node is None:
            raise LinkForeign("the other side's certificate is of no node of this installation")
        return node

    def _check_own(self) -> None:
        """The other side would drop a certificate that is expired or not of its CA without a word."""
        authority = x509.load_pem_x509_certificate(self._ca.read_bytes())
        own = x509.load_pem_x509_certificate(self._cert.read_bytes())
        if own.not_valid_after_utc < datetime.datetime.now(datetime.UTC):
            raise ConfigError(f"the certificate {self._cert} has expired", hint="`castling join` renews it")
        try:
            own.verify_directly_issued_by(authority)
        except (ValueError, TypeError, InvalidSignature) as error:
            raise ConfigError(
                f"the certificate {self._cert} is not of the authority {self._ca}",
                hint="this node's folder mixes two installations; `castling join` makes it anew",
            ) from error

    def _context(self, side: ssl._SSLMethod) -> ssl.SSLContext:
        context = ssl.SSLContext(side)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        try:
            context.load_verify_locations(self._ca)
            context.load_cert_chain(self._cert, self._key)
            self._check_own()
        except OSError as error:  # ssl.SSLError is one
            raise ConfigError(
                f"the node's certificate can't be used: {error.strerror or error}",
                hint=f"expected {self._ca}, {self._cert} and {self._key}",
            ) from error
        return context
