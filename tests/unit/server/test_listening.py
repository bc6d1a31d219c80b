"""Where a server with authentication may listen: any address, a UNIX socket, with TLS."""

import datetime as dt
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from kernelbridge.errors import ConfigError
from kernelbridge.server import listening
from tests.unit.server.conftest import Client
from tests.unit.server.logins import Guarded, bearer, token_server


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """Make a certificate for 127.0.0.1 and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kernelbridge")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (tmp_path / "cert").write_bytes(made.public_bytes(pem))
    (tmp_path / "key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return tmp_path / "cert", tmp_path / "key"


@pytest.fixture
async def everywhere(tmp_path: Path) -> AsyncIterator[Guarded]:
    async with token_server(tmp_path, host="0.0.0.0") as guarded:
        yield guarded


async def test_any_address_with_authentication(everywhere: Guarded) -> None:
    assert everywhere.server.url.startswith("ws://0.0.0.0:")
    async with everywhere.logged_in() as client:
        assert (await client.ask(type="ping"))["type"] == "pong"
    for headers, expected in (
        ({"Host": "192.0.2.1:8001"}, 200),  # what a client elsewhere connects to
        ({"Host": "[2001:db8::1]"}, 200),
        ({"Host": "evil.example"}, 403),  # DNS can point a name here, but no address
        ({"Host": "192.0.2.1.evil.example"}, 403),
        ({"Host": "192.0.2.1", "Origin": "http://192.0.2.1"}, 403),
    ):
        url = f"{everywhere.server.origin}/readyz"
        async with everywhere.server.http.get(url, headers=bearer(everywhere.token) | headers) as answer:
            assert answer.status == expected, headers


async def test_tls(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    async with token_server(tmp_path, tls_cert=str(cert), tls_key=str(key)) as guarded:
        assert guarded.server.url.startswith("wss://127.0.0.1:")
        trust = ssl.create_default_context(cafile=str(cert))
        headers = bearer(guarded.token)
        async with guarded.server.http.ws_connect(guarded.server.url, ssl=trust, headers=headers) as ws:
            client = Client(ws)
            assert (await client.receive())["userId"] == "ada"
            saved = await client.ask(type="save_file", sessionId="s", filename="f", content="x" * (4 << 20))
            assert saved["size"] == 4 << 20
        url = guarded.file("f")
        async with guarded.server.http.get(url, ssl=trust, headers=headers) as answer:
            assert len(await answer.read()) == 4 << 20
        with pytest.raises(aiohttp.ClientError):
            await guarded.server.http.get(url.replace("https", "http"), headers=headers)


async def test_a_certificate_that_cannot_be_used(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    (tmp_path / "nonsense").write_text("x")
    for wrong in ((cert, None), (key, key), (tmp_path / "absent", key), (tmp_path / "nonsense", key)):
        with pytest.raises(ConfigError, match=r"--tls-cert: .* cannot be used: .*expected a certificate in PEM"):
            listening.tls(*wrong)
    listening.tls(cert, key)


def test_a_unix_socket_that_was_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with listening.bind_unix(path) as sock:
        sock.listen()
        with pytest.raises(ConfigError, match="another server listens there"):
            listening.bind_unix(path)
    with listening.bind_unix(path):
        assert path.stat().st_mode & 0o777 == 0o660
    path.unlink()
    path.write_text("something")
    with pytest.raises(ConfigError, match="not a socket"):
        listening.bind_unix(path)
    assert path.read_text() == "something"
    with pytest.raises(ConfigError, match="No such file"):
        listening.bind_unix(tmp_path / "absent" / "socket")


def test_a_unix_socket_is_not_everybodys_for_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []
    chmod = Path.chmod

    def watched(path: Path, mode: int) -> None:
        modes.append(path.stat().st_mode & 0o777)
        chmod(path, mode)

    monkeypatch.setattr(Path, "chmod", watched)
    with listening.bind_unix(tmp_path / "socket") as sock:
        assert sock.family == socket.AF_UNIX
    assert modes == [0o600]
