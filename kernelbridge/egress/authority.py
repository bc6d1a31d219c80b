"""A certificate authority that only sandboxes trust, for the few hosts whose TLS the server ends itself.

Its name constraints are these hosts, which includes the names below them: with its key, nobody can pretend to be
another one. It is kept in the data directory, which no sandbox sees: a program that outlives the server has read the
certificate once and would not trust a new one. Certificates have what strict clients expect (RFC 5280; Python 3.13 and
later).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import ssl
from collections.abc import Collection, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from kernelbridge.watched_file import read_private

ALPN: Final = ("http/1.1",)
"""What the server speaks with programs and hosts where it ends TLS."""

ROOTS: Final = (
    Path("/etc/ssl/certs/ca-certificates.crt"),
    Path("/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem"),
    Path("/etc/ssl/ca-bundle.pem"),
    Path("/etc/ssl/cert.pem"),
)
"""Where Linux distributions have their certificate authorities in one file; the first that exists is used."""

_NAME: Final = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kernelbridge authority for its sandboxes")])
_LEAF_NAME: Final = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kernelbridge")])
_LIFE: Final = timedelta(days=3650)
_LEAST_LEFT: Final = timedelta(days=365)
"""With less, a server that starts makes a new one."""
_LEAF_LIFE: Final = timedelta(days=7)
_LEAF_RENEWAL: Final = timedelta(days=1)
_CLOCK_SKEW: Final = timedelta(hours=1)


class Authority:
    """A key and its certificate, and the TLS contexts that are made with them."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._key, self._certificate = key, certificate
        self._contexts: dict[str, tuple[datetime, ssl.SSLContext]] = {}

    @classmethod
    def make(cls, hosts: Collection[str]) -> Authority:
        """Make a new one for some canonical hosts."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        certificate = (
            _builder(_NAME, key.public_key(), now - _CLOCK_SKEW, now + _LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(sign_certificates=True), critical=True)
            .add_extension(_constraints(hosts), critical=True)
            .sign(key, hashes.SHA256())
        )
        return cls(key, certificate)

    @classmethod
    def load(cls, pem: bytes) -> Authority:
        """Return the one whose key and certificate are in `pem`. Raises `ValueError`."""
        key = load_pem_private_key(pem, None)
        certificate = x509.load_pem_x509_certificate(pem)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or certificate.public_key() != key.public_key():
            raise ValueError("the key is not the certificate's")
        return cls(key, certificate)

    def dump(self) -> bytes:
        """Return the key and the certificate, for `load`."""
        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + self.certificate

    @property
    def certificate(self) -> bytes:
        """What programs must trust (PEM)."""
        return self._certificate.public_bytes(Encoding.PEM)

    def is_for(self, hosts: Collection[str]) -> bool:
        """Return whether it is for exactly these hosts, and valid for long enough."""
        try:
            found = self._certificate.extensions.get_extension_for_class(x509.NameConstraints).value
        except x509.ExtensionNotFound:
            return False
        return found == _constraints(hosts) and self._certificate.not_valid_after_utc - datetime.now(UTC) > _LEAST_LEFT

    def context(self, host: str) -> ssl.SSLContext:
        """Return the context with which a server is this host for programs that trust the authority."""
        now = datetime.now(UTC)
        made, context = self._contexts.get(host, (None, None))
        if made is None or context is None or now - made > _LEAF_RENEWAL:
            context = _server_context(*self._issue(host, now))
            self._contexts[host] = now, context
        return context

    def _issue(self, host: str, now: datetime) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        key = ec.generate_private_key(ec.SECP256R1())
        own = self._certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        certificate = (
            _builder(_LEAF_NAME, key.public_key(), now - _CLOCK_SKEW, now + _LEAF_LIFE)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(sign_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return key, certificate


def open_authority(path: Path, hosts: Collection[str]) -> Authority:
    """Return the authority for some hosts that an earlier server has kept, or make and keep one; blocking.

    Raises `OSError` if it cannot be kept.
    """
    with contextlib.suppress(OSError, ValueError):  # as if there was none: nobody is worse off with a new one
        found = Authority.load(read_private(path))
        if found.is_for(hosts):
            return found
    made = Authority.make(hosts)
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(made.dump())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return made


def certificate_bundle(own: bytes, roots: Iterable[Path]) -> bytes:
    """Return the operator's certificates together with this machine's; blocking. Raises `OSError`.

    Programs use such a file in place of their own roots. So it must have all of them, as far as they are known.
    """
    usual = next((path for path in roots if path.is_file()), None)
    parts = (b"" if usual is None else usual.read_bytes(), own)
    # Each ends its last line: a certificate that began on it would make the whole file unreadable.
    return b"".join(part.rstrip() + b"\n" for part in parts if part)


def client_context(trusted: bytes) -> ssl.SSLContext:
    """Return the context with which the server connects to hosts; `trusted` are authorities (PEM)."""
    with _as_file(trusted) as path:
        context = ssl.create_default_context(cafile=path)
    context.set_alpn_protocols(ALPN)
    return context


def _server_context(key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # A program begins anew with each connection, and not again in the middle of one.
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0
    context.set_alpn_protocols(ALPN)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with _as_file(private + certificate.public_bytes(Encoding.PEM)) as path:
        context.load_cert_chain(path)
    return context


@contextlib.contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """Return the path of a file with this content: `ssl` reads only files. It is in memory alone."""
    descriptor = os.memfd_create("certificates", os.MFD_CLOEXEC)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        yield f"/proc/self/fd/{descriptor}"


def _builder(
    subject: x509.Name, key: ec.EllipticCurvePublicKey, begin: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(_NAME)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _constraints(hosts: Collection[str]) -> x509.NameConstraints:
    """Return the constraints for some names, and no address."""
    every = [x509.IPAddress(ip_network(network)) for network in ("0.0.0.0/0", "::/0")]
    return x509.NameConstraints([x509.DNSName(host) for host in sorted(set(hosts))], every)


def _key_usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        key_cert_sign=sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
