"""The authority that sandboxes trust for the hosts of secrets, as strict TLS clients see it."""

import socket
import ssl
import threading
from pathlib import Path

import pytest
import trustme
from cryptography import x509

from kernelbridge.egress.authority import Authority, certificate_bundle, client_context, open_authority

HOSTS = ("api.example", "other.example")
STRICT = ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
"""What Python's default context has since version 3.13."""


def handshake(server: ssl.SSLContext, trusted: bytes, name: str) -> tuple[str | None, bytes]:
    """Begin TLS as a client of the newest Python would; return the protocol and the server's certificate."""
    context = ssl.create_default_context(cadata=trusted.decode())
    context.verify_flags |= STRICT
    context.set_alpn_protocols(["h2", "http/1.1"])
    ours, theirs = socket.socketpair()

    def serve() -> None:
        try:
            with server.wrap_socket(theirs, server_side=True):
                pass
        except OSError:
            theirs.close()

    serving = threading.Thread(target=serve)
    serving.start()
    try:
        with context.wrap_socket(ours, server_hostname=name) as tls:
            return tls.selected_alpn_protocol(), tls.getpeercert(binary_form=True) or b""
    finally:
        ours.close()
        serving.join()


def test_a_strict_client_believes_it() -> None:
    authority = Authority.make(HOSTS)
    for host in HOSTS:
        assert handshake(authority.context(host), authority.certificate, host)[0] == "http/1.1"
    assert authority.context("api.example") is authority.context("api.example")


def test_it_cannot_pretend_to_be_another_host() -> None:
    authority = Authority.make(HOSTS)
    with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree violation"):
        handshake(authority.context("pypi.org"), authority.certificate, "pypi.org")


def test_nobody_believes_it_who_does_not_have_its_certificate() -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(Authority.make(HOSTS).context("api.example"), trustme.CA().cert_pem.bytes(), "api.example")


def test_the_next_server_has_the_same_one(tmp_path: Path) -> None:
    path = tmp_path / "authority.pem"
    made = open_authority(path, HOSTS)
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]
    again = open_authority(path, (*reversed(HOSTS), "api.example"))
    assert again.certificate == made.certificate
    assert handshake(again.context("api.example"), made.certificate, "api.example")


@pytest.mark.parametrize("spoil", ["other hosts", "cut off", "another's key", "readable by others", "foreign"])
def test_one_that_does_not_fit_is_replaced(tmp_path: Path, spoil: str) -> None:
    path = tmp_path / "authority.pem"
    made = open_authority(path, HOSTS)
    hosts: tuple[str, ...] = HOSTS
    match spoil:
        case "other hosts":
            hosts = ("api.example",)
        case "cut off":
            path.write_bytes(path.read_bytes()[:300])
        case "another's key":
            path.write_bytes(path.read_bytes().replace(made.certificate, Authority.make(HOSTS).certificate))
        case "readable by others":
            path.chmod(0o644)
        case "foreign":
            authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
            path.write_bytes(authority.private_key_pem.bytes() + authority.cert_pem.bytes())
    again = open_authority(path, hosts)
    assert again.certificate != made.certificate
    assert path.read_bytes() == again.dump()
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_its_certificates_say() -> None:
    authority = Authority.make(HOSTS)
    certificate = x509.load_pem_x509_certificate(authority.certificate)
    constraints = certificate.extensions.get_extension_for_class(x509.NameConstraints)
    assert constraints.critical
    assert [name.value for name in constraints.value.permitted_subtrees or ()] == sorted(HOSTS)
    assert [str(name.value) for name in constraints.value.excluded_subtrees or ()] == ["0.0.0.0/0", "::/0"]
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    assert (usage.key_cert_sign, usage.digital_signature) == (True, False)
    _, seen = handshake(authority.context("api.example"), authority.certificate, "api.example")
    leaf = x509.load_der_x509_certificate(seen)
    assert (leaf.not_valid_after_utc - leaf.not_valid_before_utc).days == 7
    own = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    named = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    assert named.key_identifier == own.digest


def test_a_host_is_verified_with_what_the_operator_trusts() -> None:
    ca = trustme.CA()
    context = client_context(ca.cert_pem.bytes())
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    serial = x509.load_pem_x509_certificate(ca.cert_pem.bytes()).serial_number
    assert [int(str(each["serialNumber"]), 16) for each in context.get_ca_certs()] == [serial]


def test_a_bundle_has_the_usual_authorities_too(tmp_path: Path) -> None:
    usual = tmp_path / "usual.pem"
    usual.write_bytes(b"USUAL\n\n")
    assert certificate_bundle(b"OWN\n", [tmp_path / "absent", usual]) == b"USUAL\nOWN\n"
    assert certificate_bundle(b"OWN\n", [tmp_path / "absent"]) == b"OWN\n"
    assert certificate_bundle(b"", [usual]) == b"USUAL\n"


def test_a_file_whose_last_line_has_no_end_does_not_spoil_the_bundle(tmp_path: Path) -> None:
    """Another authority is added to it: two on one line are none, and a program that reads it knows no host."""
    usual, own, added = (trustme.CA().cert_pem.bytes() for _ in range(3))
    (tmp_path / "usual.pem").write_bytes(usual.rstrip())
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(certificate_bundle(own.rstrip(), [tmp_path / "usual.pem"]) + added)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(bundle)
    assert len(context.get_ca_certs()) == 3


def test_a_key_of_another_certificate_is_refused() -> None:
    one, other = Authority.make(HOSTS), Authority.make(HOSTS)
    mixed = one.dump().removesuffix(one.certificate) + other.certificate
    with pytest.raises(ValueError, match="the key is not the certificate's"):
        Authority.load(mixed)
    assert Authority.load(one.dump()).dump() == one.dump()
