"""Where a server with authentication may listen: any address, a UNIX socket, with TLS."""

import asyncio
import contextlib
import datetime as dt
import errno
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest
import uvloop
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from structlog.testing import capture_logs

from kernelbridge.errors import ConfigError
from kernelbridge.server import certificate as certificate_module
from kernelbridge.server import listening
from kernelbridge.server.certificate import Certificate
from kernelbridge.server.websocket.buffers import Buffers
from tests.unit.server.conftest import PATIENCE, Client, eventually
from tests.unit.server.logins import Guarded, bearer, logged, token_server

Pair = tuple[Path, Path]


def write_pair(directory: Path, *, serial: int | None = None) -> Pair:
    """Write a certificate for 127.0.0.1 and its key; returns where they are."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kernelbridge")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(serial or x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    pair = directory / "cert", directory / "key"
    pair[0].write_bytes(made.public_bytes(pem))
    pair[1].write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return pair


@pytest.fixture
def certificate(tmp_path: Path) -> Pair:
    return write_pair(tmp_path)


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


async def test_tls(tmp_path: Path, certificate: Pair) -> None:
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


async def test_a_certificate_that_cannot_be_used(tmp_path: Path, certificate: Pair) -> None:
    cert, key = certificate
    (tmp_path / "nonsense").write_text("x")
    for wrong in ((cert, None), (key, key), (tmp_path / "absent", key), (tmp_path / "nonsense", key)):
        with pytest.raises(ConfigError, match=r"--tls-cert: .* cannot be used: .*expected a certificate in PEM"):
            Certificate(*wrong)
    Certificate(cert, key)


def used(certificate: Certificate) -> int:
    """Return the serial number of the certificate that a client is shown now."""
    client, server = ssl.MemoryBIO(), ssl.MemoryBIO()
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    shown = trusting.wrap_bio(client, server)
    served = certificate.context.wrap_bio(server, client, server_side=True)
    for end in (shown, served, shown):
        with contextlib.suppress(ssl.SSLWantReadError):
            end.do_handshake()
    return x509.load_der_x509_certificate(shown.getpeercert(binary_form=True) or b"").serial_number


def look_twice(certificate: Certificate) -> None:
    """A change takes effect at the second look."""
    certificate.refresh()
    certificate.refresh()


def test_a_renewed_certificate_is_used(tmp_path: Path) -> None:
    certificate = Certificate(*write_pair(tmp_path, serial=11))
    before = certificate.context
    look_twice(certificate)
    assert certificate.context is before
    write_pair(tmp_path, serial=22)
    certificate.refresh()
    assert used(certificate) == 11, "the other file may still be written"
    certificate.refresh()
    assert used(certificate) == 22


def test_a_renewed_certificate_behind_links_is_used(tmp_path: Path) -> None:
    """As certbot does it: it writes the new files elsewhere, and changes links to them one after the other."""
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    old, new = write_pair(tmp_path / "1", serial=11), write_pair(tmp_path / "2", serial=22)
    links = tmp_path / "cert", tmp_path / "key"
    for link, file in zip(links, old, strict=True):
        link.symlink_to(file)
    certificate = Certificate(*links)
    for link, file in zip(links, new, strict=True):
        link.unlink()
        link.symlink_to(file)
        certificate.refresh()
    certificate.refresh()
    assert used(certificate) == 22


def test_a_broken_renewal_keeps_the_certificate(tmp_path: Path) -> None:
    pair = write_pair(tmp_path, serial=11)
    certificate = Certificate(*pair)
    another = tmp_path / "another"
    another.mkdir()
    wrong_key = write_pair(another)[1].read_bytes()
    for part, broken in ((0, b"nonsense"), (1, wrong_key), (0, None), (1, None)):
        write_pair(tmp_path, serial=11)
        look_twice(certificate)
        with logged() as lines:
            if broken is None:
                pair[part].unlink()
            else:
                pair[part].write_bytes(broken)
            for _ in range(5):
                certificate.refresh()
        (line,) = lines
        assert (line["event"], line["log_level"]) == ("certificate_not_reloaded", "error")
        assert "cannot be used" in line["reason"]
        assert used(certificate) == 11
    write_pair(tmp_path, serial=22)
    look_twice(certificate)
    assert used(certificate) == 22


async def test_a_server_renews_its_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificate_module, "EVERY", 0.05)
    cert, key = write_pair(tmp_path, serial=11)
    old = ssl.create_default_context(cafile=str(cert))
    async with token_server(tmp_path, tls_cert=str(cert), tls_key=str(key)) as guarded:
        headers = bearer(guarded.token)
        async with guarded.server.http.ws_connect(guarded.server.url, ssl=old, headers=headers) as ws:
            client = Client(ws)
            await client.receive()
            write_pair(tmp_path, serial=22)
            new = ssl.create_default_context(cafile=str(cert))

            async def renewed() -> bool:
                with contextlib.suppress(aiohttp.ClientConnectorCertificateError):
                    async with guarded.server.http.get(f"{guarded.server.origin}/healthz", ssl=new) as answer:
                        return answer.status == 200
                return False

            assert await eventually(renewed)
            assert (await client.ask(type="ping"))["type"] == "pong", "the connection that was open stays"


@pytest.fixture(params=["asyncio", "uvloop"])
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        yield runner


@asynccontextmanager
async def hello_over_tls(pair: Pair, buffers: Buffers) -> AsyncIterator[tuple[str, int]]:
    """Serve a word over TLS, to a few clients at a time; yields the address."""

    async def serve(_request: web.Request) -> web.Response:
        return web.Response(text="hello")

    app = web.Application()
    app.router.add_get("/", serve)
    async with AsyncExitStack() as stack, asyncio.timeout(PATIENCE):
        runner = web.AppRunner(app)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        (sock,) = await listening.bind("127.0.0.1", 0)
        stack.enter_context(sock)
        serving = listening.accepting(runner, [sock], buffers, Certificate(*pair), most_idle=2)
        await stack.enter_async_context(serving)
        yield sock.getsockname()


def test_tls_handshakes_that_stall_are_few(runner: asyncio.Runner, certificate: Pair) -> None:
    """They count among the connections without a request, of which the oldest makes room."""
    buffers = Buffers(1 << 20)

    async def scenario() -> None:
        async with hello_over_tls(certificate, buffers) as address, AsyncExitStack() as stack:
            silent = []
            for _ in range(3):
                reader, writer = await asyncio.open_connection(*address)
                stack.callback(writer.close)
                silent.append(reader)
            assert await silent[0].read() == b""
            assert not silent[1].at_eof()
            trust = ssl.create_default_context(cafile=str(certificate[0]))
            url = f"https://{address[0]}:{address[1]}/"
            async with aiohttp.ClientSession() as http, http.get(url, ssl=trust) as answer:
                assert await answer.text() == "hello"
            assert await silent[1].read() == b""
            assert not silent[2].at_eof()

    runner.run(scenario())


def test_tls_handshakes_that_stall_are_short(
    runner: asyncio.Runner, certificate: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "HANDSHAKE", 0.2)
    buffers = Buffers(1 << 20)

    async def scenario() -> None:
        async with hello_over_tls(certificate, buffers) as address:
            for begun in (b"", b"\x16\x03\x01\x02\x00\x01"):
                reader, writer = await asyncio.open_connection(*address)
                writer.write(begun)
                assert await reader.read() == b""
                writer.close()
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"GET / HTTP/1.1\r\n\r\n")  # this is no TLS
            await reader.read()
            writer.close()
            assert not buffers._holdings, "nothing stays of a client that never came in"

    runner.run(scenario())


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


class FullTable(socket.socket):
    """The socket of a server that may open no more files."""

    attempts = 0

    def accept(self) -> tuple[socket.socket, object]:
        self.attempts += 1
        raise OSError(errno.EMFILE, "Too many open files")


async def test_a_server_that_may_open_no_more_files_waits_before_it_accepts_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listening, "_ACCEPT_AGAIN", 3600)
    with FullTable() as sock, capture_logs() as logs:
        sock.bind(("127.0.0.1", 0))
        handshakes = listening._Handshakes(sock, cast("Any", None), cast("Certificate", None))
        async with handshakes.accepting():
            while not logs:  # noqa: ASYNC110 - it is the next of some turns
                await asyncio.sleep(0)
            for _ in range(50):
                await asyncio.sleep(0)
        assert [entry["event"] for entry in logs] == ["not_accepted"]
        assert sock.attempts == 1
