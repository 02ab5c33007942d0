"""The installation's CA: what it signs, what it refuses, and who a certificate stands for."""

from __future__ import annotations

import datetime
import hashlib
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from castling.errors import AccessDenied, ConfigError, LinkForeign
from castling.link.authority import (
    create_authority,
    fingerprint,
    installation_of,
    issue,
    new_key_and_csr,
    node_of,
)
from castling.link.tls import NodeTls


@pytest.fixture(scope="module")
def authority() -> tuple[bytes, bytes]:
    return create_authority("acme")


def request_of(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, name: str) -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def test_a_certificate_stands_for_its_node_in_its_installation_only(authority: tuple[bytes, bytes]) -> None:
    _, request = new_key_and_csr("east")
    certificate = x509.load_pem_x509_certificate(issue(*authority, request, "east", 30))
    assert node_of(certificate, installation_of(authority[0])) == "east"
    assert node_of(certificate, installation_of(create_authority("acme")[0])) is None
    assert node_of(x509.load_pem_x509_certificate(authority[0]), installation_of(authority[0])) is None


def test_a_certificate_lasts_as_long_as_said_and_signs_nothing(authority: tuple[bytes, bytes]) -> None:
    _, request = new_key_and_csr("east")
    certificate = x509.load_pem_x509_certificate(issue(*authority, request, "east", 30))
    left = certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    assert datetime.timedelta(days=29) < left <= datetime.timedelta(days=30)
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    assert not constraints.ca and not usage.key_cert_sign


def test_a_node_s_certificate_can_not_sign_another(authority: tuple[bytes, bytes]) -> None:
    key, request = new_key_and_csr("east")
    certificate = issue(*authority, request, "east", 30)
    _, other = new_key_and_csr("west")
    with pytest.raises(ConfigError, match="names no installation"):
        issue(certificate, key, other, "west", 30)


def test_two_installations_of_one_name_are_two() -> None:
    assert installation_of(create_authority("acme")[0]) != installation_of(create_authority("acme")[0])


def test_the_wrong_authority_s_key_is_noticed(authority: tuple[bytes, bytes]) -> None:
    _, request = new_key_and_csr("east")
    with pytest.raises(ConfigError, match="does not belong"):
        issue(authority[0], create_authority("acme")[1], request, "east", 30)


def test_a_request_for_another_node_is_refused(authority: tuple[bytes, bytes]) -> None:
    _, request = new_key_and_csr("east")
    with pytest.raises(AccessDenied, match="not for node west"):
        issue(*authority, request, "west", 30)


@pytest.mark.parametrize("kind", ["rsa", "p384"])
def test_another_kind_of_key_is_refused(authority: tuple[bytes, bytes], kind: str) -> None:
    key = rsa.generate_private_key(65537, 2048) if kind == "rsa" else ec.generate_private_key(ec.SECP384R1())
    with pytest.raises(AccessDenied, match="P-256"):
        issue(*authority, request_of(key, "east"), "east", 30)


def test_a_request_that_its_key_did_not_sign_is_refused(authority: tuple[bytes, bytes]) -> None:
    _, request = new_key_and_csr("east")
    loaded = x509.load_pem_x509_csr(request)
    der = bytearray(loaded.public_bytes(serialization.Encoding.DER))
    at = bytes(der).find(b"east")
    der[at : at + 4] = b"west"
    forged = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(AccessDenied, match="own key"):
        issue(*authority, forged, "west", 30)


@pytest.mark.parametrize(
    "request_pem", [b"", b"not a request", b"-----BEGIN CERTIFICATE REQUEST-----\n", bytes(99_999)]
)
def test_what_is_no_request_is_refused(authority: tuple[bytes, bytes], request_pem: bytes) -> None:
    with pytest.raises(ConfigError):
        issue(*authority, request_pem, "east", 30)


@pytest.mark.parametrize("name", ["", "East", "a/b", "../ca", "a" * 41, "ö", "a b", "a\n"])
def test_a_name_that_is_none_is_refused(authority: tuple[bytes, bytes], name: str) -> None:
    with pytest.raises(ConfigError, match="is not a name"):
        new_key_and_csr(name)
    with pytest.raises(ConfigError, match="is not a name"):
        create_authority(name)


def test_a_fingerprint_is_of_the_certificate(authority: tuple[bytes, bytes]) -> None:
    der = ssl.PEM_cert_to_DER_cert(authority[0].decode())
    assert fingerprint(authority[0]) == hashlib.sha256(der).hexdigest()


def test_key_material_never_reaches_an_error(authority: tuple[bytes, bytes], tmp_path: Path) -> None:
    for name in ("ca.pem", "node.pem", "node.key"):
        (tmp_path / name).write_bytes(authority[1])
    tls = NodeTls(tmp_path / "ca.pem", tmp_path / "node.pem", tmp_path / "node.key")
    secret = authority[1].split(b"\n")[1].decode()
    for use in (tls.client, tls.server, lambda: tls.installation):
        with pytest.raises(ConfigError) as caught:
            use()
        assert secret not in str(caught.value.as_json())


def test_an_expired_certificate_is_told_before_connecting(
    authority: tuple[bytes, bytes], tmp_path: Path
) -> None:
    key, request = new_key_and_csr("east")
    (tmp_path / "ca.pem").write_bytes(authority[0])
    (tmp_path / "node.key").write_bytes(key)
    tls = NodeTls(tmp_path / "ca.pem", tmp_path / "node.pem", tmp_path / "node.key")
    (tmp_path / "node.pem").write_bytes(issue(*authority, request, "east", 0))
    with pytest.raises(ConfigError, match="has expired"):
        tls.client()
    (tmp_path / "node.pem").write_bytes(issue(*authority, request, "east", 1))
    tls.client()  # a renewed certificate is taken up by the next connection
    with pytest.raises(LinkForeign):
        tls.peer_node(b"no certificate")
