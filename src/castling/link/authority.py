"""The installation's own certificate authority.

Nodes trust this CA and nothing else. A node makes its key where it lives and asks with
a signing request; the key never travels. Who a certificate stands for is a URI in it
(`castling://<installation id>/node/<name>`), not a host name: nodes move, names stay.

Invariants: keys are ECDSA P-256; the CA signs node certificates only (path length 0);
what a signing request asks for beyond its key and its node's name is ignored.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
import secrets
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from castling.errors import AccessDenied, ConfigError

__all__ = [
    "create_authority",
    "fingerprint",
    "installation_of",
    "issue",
    "name_of_authority",
    "new_key_and_csr",
    "node_of",
]

_NAME = re.compile(r"[a-z0-9_-]{1,40}")
_INSTALLATION = re.compile(r"[0-9a-f]{32}")
#: a certificate is valid from this long ago, so that nodes whose clocks differ accept it
_BACKDATED = datetime.timedelta(hours=1)
_AUTHORITY_DAYS = 20 * 365
_REQUEST_MAX = 16 << 10


def create_authority(installation_name: str) -> tuple[bytes, bytes]:
    """A new CA for a new installation: its certificate and its key, both PEM.

    The installation gets a random id, which is what tells it from another of the same name.
    """
    _check_name(installation_name)
    key = ec.generate_private_key(ec.SECP256R1())
    name = _subject(f"castling {installation_name}")
    uri = x509.UniformResourceIdentifier(f"castling://{secrets.token_hex(16)}")
    certificate = (
        _builder(name, key.public_key(), _AUTHORITY_DAYS)
        .issuer_name(name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectAlternativeName([uri]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM), _key_pem(key)


def new_key_and_csr(node: str) -> tuple[bytes, bytes]:
    """A new node key and the request to sign it, both PEM. The key stays on the node."""
    _check_name(node)
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(_subject(node)).sign(key, hashes.SHA256())
    return _key_pem(key), request.public_bytes(serialization.Encoding.PEM)


def issue(ca_cert: bytes, ca_key: bytes, csr_pem: bytes, node: str, days: int) -> bytes:
    """Sign the request as the certificate of `node`, valid for `days`. All PEM.

    ConfigError when the request can't be read; AccessDenied when it is not signed by its
    own key, names another node or brings another kind of key.
    """
    _check_name(node)
    authority = x509.load_pem_x509_certificate(ca_cert)
    signer = serialization.load_pem_private_key(ca_key, password=None)
    if not isinstance(signer, ec.EllipticCurvePrivateKey) or signer.public_key() != authority.public_key():
        raise ConfigError("the authority's key does not belong to its certificate")
    public = _requested_key(csr_pem, node)
    names: list[x509.GeneralName] = [
        x509.UniformResourceIdentifier(f"castling://{installation_of(ca_cert)}/node/{node}"),
        x509.DNSName(node),
        x509.DNSName("localhost"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        x509.IPAddress(ipaddress.ip_address("::1")),
    ]
    certificate = (
        _builder(_subject(node), public, days)
        .issuer_name(authority.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
            critical=False,
        )
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
        .sign(signer, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM)


def fingerprint(cert_pem: bytes) -> str:
    """SHA-256 of the certificate (of its DER form), 64 hex digits."""
    return x509.load_pem_x509_certificate(cert_pem).fingerprint(hashes.SHA256()).hex()


def installation_of(ca_cert: bytes) -> str:
    """The installation id in a CA certificate (PEM). ConfigError when it has none."""
    try:
        certificate = x509.load_pem_x509_certificate(ca_cert)
    except ValueError as error:
        raise ConfigError("the authority's certificate can't be read") from error
    for uri in _uris(certificate):
        parts = urlsplit(uri)
        if parts.scheme == "castling" and parts.path == "" and _INSTALLATION.fullmatch(parts.netloc):
            return parts.netloc
    raise ConfigError("the authority's certificate names no installation")


def name_of_authority(ca_cert: bytes) -> str:
    """The installation's name in a CA certificate (PEM): for people; the id is what tells it from another."""
    subject = x509.load_pem_x509_certificate(ca_cert).subject
    found = subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
    return str(found).removeprefix("castling ")


def node_of(certificate: x509.Certificate, installation: str) -> str | None:
    """The node that a certificate of `installation` stands for; None when it does not say so.

    Says nothing about who signed it: the caller has verified that.
    """
    for uri in _uris(certificate):
        parts = urlsplit(uri)
        folder, _, name = parts.path.rpartition("/")
        if parts.scheme == "castling" and parts.netloc == installation and folder == "/node":
            return name if _NAME.fullmatch(name) else None
    return None


def _requested_key(csr_pem: bytes, node: str) -> ec.EllipticCurvePublicKey:
    if len(csr_pem) > _REQUEST_MAX:
        raise ConfigError("the signing request is too large")
    try:
        request = x509.load_pem_x509_csr(csr_pem)
        public = request.public_key()
        signed = request.is_signature_valid
        names = [str(found.value) for found in request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    except (ValueError, TypeError, InvalidSignature) as error:
        raise ConfigError("the signing request can't be read") from error
    if not signed:
        raise AccessDenied("the signing request is not signed by its own key")
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise AccessDenied("the signing request brings another key than ECDSA P-256")
    if names != [node]:
        raise AccessDenied(f"the signing request is not for node {node}")
    return public


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name[:60]!r} is not a name", hint="1 to 40 of a-z, 0-9, - and _", name=name[:60])


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(subject: x509.Name, public: ec.EllipticCurvePublicKey, days: int) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _uris(certificate: x509.Certificate) -> list[str]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (x509.ExtensionNotFound, ValueError):
        return []
    return found.value.get_values_for_type(x509.UniformResourceIdentifier)
