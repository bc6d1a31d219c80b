"""Who gets in, by each way in, and who does not: a real server for each kind of authentication, over real sockets."""

import asyncio
import base64
import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import pytest
import pytest_asyncio

from kernelbridge.identity.credentials import CARRIER, MARKER
from kernelbridge.identity.principal import Principal
from kernelbridge.rates import Pace
from kernelbridge.server import authentication, waiting_logins
from kernelbridge.server.administration import Administration
from kernelbridge.server.app import Server
from kernelbridge.server.files_api import Transfers
from kernelbridge.server.websocket.heartbeat import Patience
from kernelbridge.server.websocket.tcp import TcpConnection
from kernelbridge.watched_file import WatchedFile
from kernelbridge.workspace.session_key import SessionKey
from tests.unit.server.conftest import PATIENCE, Client, RunningServer, Wire, masked, start_at, text
from tests.unit.server.logins import Guarded, all_text, bearer, jwt_server, logged, new_address, token_server

pytestmark = pytest.mark.asyncio(loop_scope="module")

CLOSED_WITHIN = 5.0
"""Seconds after which nothing of a login that has ended is open any more."""
SWEEP = authentication.SWEEP
"""How often a server looks; these tests look more often, but for one that takes its time."""
UPGRADE = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
ENV = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
KEY = {"Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="}
_UPGRADED = "\r\n".join(f"{name}: {value}" for name, value in (UPGRADE | KEY).items())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_tokens(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Guarded]:
    async with token_server(tmp_path_factory.mktemp("token")) as guarded:
        yield guarded


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_jwts(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Guarded]:
    async with jwt_server(tmp_path_factory.mktemp("jwt")) as guarded:
        yield guarded


@pytest.fixture(scope="module", autouse=True)
def _frequent_sweeps() -> Iterator[None]:
    authentication.SWEEP = 0.05
    yield
    authentication.SWEEP = SWEEP


@pytest.fixture
def tokens(shared_tokens: Guarded) -> Guarded:
    shared_tokens.move()  # the failures of other tests do not count
    return shared_tokens


@pytest.fixture
def jwts(shared_jwts: Guarded) -> Guarded:
    shared_jwts.move()
    return shared_jwts


@pytest_asyncio.fixture(loop_scope="module", params=["token", "jwt"])
async def guarded(request: pytest.FixtureRequest, tokens: Guarded, jwts: Guarded) -> Guarded:
    return tokens if request.param == "token" else jwts


def carrier(token: str) -> str:
    return CARRIER + base64.urlsafe_b64encode(token.encode()).decode().rstrip("=")


async def status(guarded: Guarded, path: str, method: str = "GET", **options: Any) -> int:
    async with guarded.server.http.request(method, f"{guarded.server.origin}{path}", **options) as answer:
        await answer.read()
        return answer.status


# -- every route -----------------------------------------------------------------------


def routes() -> set[tuple[str, str]]:
    """Return the method and an address of each route of the application."""
    nothing = cast("Any", None)
    transfers, administration = Transfers(nothing, nothing, nothing, nothing, nothing), Administration(nothing)
    server = Server(nothing, nothing, transfers, None, nothing, nothing, nothing, nothing, administration, nothing)
    found = set()
    for route in server.app().router.routes():
        assert route.resource is not None
        path = route.resource.canonical.replace("{session_id}", "s").replace("{path}", "f")
        path = path.replace("{id}", "0").replace("{name}", "n")
        found.add((route.method, path))
    return found


FOR_EVERYBODY = {
    "/healthz": 200,
    "/": 200,
    "/frame.html": 200,
    "/icon.svg": 200,
    "/licences.txt": 200,
    "/assets/n": 404,
}
"""That the server lives, and the files of its page: no more than anybody could download with the program."""


async def test_every_route_is_closed_but_those_for_everybody(guarded: Guarded) -> None:
    found = routes()
    assert len(found) > 8
    assert {path for _, path in found} > FOR_EVERYBODY.keys()
    closed = {
        *found,
        ("GET", "/index.html"),
        ("POST", "/"),
        ("GET", "/absent"),
        ("POST", "/ws"),
        ("DELETE", "/healthz/"),
        ("OPTIONS", "/readyz"),
    }
    closed |= {("GET", "/healthz/../readyz"), ("GET", "//healthz"), ("GET", "/healthz%2f")}
    for method, path in closed:
        expected = FOR_EVERYBODY.get(path, 401) if method in {"GET", "HEAD"} else 401
        # Also as what is allowed to log in later, on another route.
        for headers in ({}, UPGRADE | KEY):
            if path == "/ws" and headers:
                continue  # it waits for a first message
            assert await status(guarded, path, method, headers=headers) == expected, (method, path, headers)
    assert await status(guarded, "/healthz?user_id=a&user_id=b") == 200


async def test_a_refusal_says_what_to_do(guarded: Guarded) -> None:
    async with guarded.server.http.get(f"{guarded.server.origin}/readyz") as answer:
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        told = await answer.json()
    assert told["error"] == "unauthorized"
    origin = guarded.server.origin
    async with guarded.server.http.get(f"{origin}/readyz", headers={"Origin": origin}) as answer:
        assert answer.headers["Access-Control-Allow-Origin"] == origin  # so that its page can read why
    assert "Authorization: Bearer" in told["reason"]


async def test_a_page_may_ask_what_it_may_send(guarded: Guarded) -> None:
    """Browsers ask without credentials, and before they send any."""
    origin = guarded.server.origin
    asks = {"Origin": origin, "Access-Control-Request-Method": "GET"}
    async with guarded.server.http.options(guarded.file("f"), headers=asks) as answer:
        assert answer.status == 204
        assert "Authorization" in answer.headers["Access-Control-Allow-Headers"]
    assert await status(guarded, "/api/sessions/s/files/f", "OPTIONS", headers={"Origin": origin}) == 401
    evil = {**asks, "Origin": "https://evil.example"}
    assert await status(guarded, "/api/sessions/s/files/f", "OPTIONS", headers=evil) == 403


async def test_a_foreign_origin_is_refused_with_a_valid_token_too(guarded: Guarded) -> None:
    for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}, {"Origin": "null"}):
        assert await status(guarded, "/readyz", headers=bearer(guarded.token) | headers) == 403
        with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
            async with guarded.connect(headers=headers):
                pass


# -- ways in ---------------------------------------------------------------------------


async def test_the_header(guarded: Guarded) -> None:
    assert await status(guarded, "/readyz", headers=bearer(guarded.token)) == 200
    async with guarded.connect() as client:
        assert (await client.receive())["userId"] == "ada"
    async with guarded.connect(query="user_id=ada") as client:
        assert (await client.receive())["userId"] == "ada"


async def test_a_subprotocol(guarded: Guarded) -> None:
    """Only the marker is in the answer."""
    for offered in ([MARKER, carrier(guarded.token)], [carrier(guarded.token), "other", MARKER]):
        async with guarded.connect("", protocols=offered) as client:
            assert client.ws.protocol == MARKER
            assert (await client.receive())["userId"] == "ada"


async def test_a_first_message(guarded: Guarded) -> None:
    for query in ("", "user_id=ada"):
        async with guarded.connect("", query) as client:
            told = await client.ask(type="authenticate", token=guarded.token, requestId="r")
            assert (told["type"], told["userId"], told["requestId"]) == ("authenticated", "ada", "r")
            assert (told["expires"] is None) == (guarded.key is None)
            assert (await client.receive())["type"] == "connected"
            large = await client.ask(type="save_file", sessionId="s", filename="f", content="x" * (1 << 20))
            assert large["success"], large


async def test_a_malformed_name_is_refused_before_the_first_message(guarded: Guarded) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError, match="400"):
        async with guarded.connect("", "user_id=a&user_id=b"):
            pass


async def test_requests_behind_the_first_message_are_answered(guarded: Guarded) -> None:
    async with guarded.connect("") as client:
        await client.send(type="authenticate", token=guarded.token)
        await client.send(type="ping", requestId="p")
        assert [(await client.receive())["type"] for _ in range(3)] == ["authenticated", "connected", "pong"]


# -- what is refused -------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer"},
        {"Authorization": "Basic YTpi"},
        {"Authorization": "Bearer caf\u00e9"},
        {"Authorization": "Bearer \ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16")},
        {"Authorization": f"Bearer {'x' * 8100}"},
        {"Sec-WebSocket-Protocol": f"{MARKER}, {CARRIER}d3Jvbmc"},
        {"Sec-WebSocket-Protocol": f"{MARKER}, {CARRIER}***"},
    ],
)
async def test_a_wrong_credential(guarded: Guarded, headers: dict[str, str]) -> None:
    for path in ("/readyz", "/ws", "/api/sessions/s/files/f"):
        assert await status(guarded, path, headers=headers) == 401
    with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
        async with guarded.connect("", headers=headers):
            pass


async def test_bytes_that_are_not_text_are_401(guarded: Guarded) -> None:
    for value in (b"Bearer \xff\xfe", b"Bearer \xe2\x82", b"\x80"):
        async with guarded.server.wire() as wire:
            host = f"Host: localhost\r\nX-Forwarded-For: {guarded.address}\r\n".encode()
            wire.write(b"GET /readyz HTTP/1.1\r\n", host, b"Authorization: ", value, b"\r\n\r\n")
            assert (await wire.head()).startswith(b"HTTP/1.1 401 ")


async def test_two_credentials(guarded: Guarded) -> None:
    other = guarded.signed("eve") if guarded.key else guarded.more("eve")
    both = {**bearer(guarded.token), "Sec-WebSocket-Protocol": f"{MARKER}, {carrier(other)}"}
    assert await status(guarded, "/ws", headers=both) == 401
    with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
        async with guarded.connect(protocols=[MARKER, carrier(other)]):
            pass
    async with guarded.logged_in(protocols=[MARKER, carrier(guarded.token)]):
        pass  # the same twice
    twice = f"Authorization: Bearer {guarded.token}\r\n"
    async with guarded.server.wire() as wire:
        wire.write(f"GET /readyz HTTP/1.1\r\nHost: localhost\r\n{twice}{twice}\r\n".encode())
        assert (await wire.head()).startswith(b"HTTP/1.1 401 ")


async def test_another_name_in_the_query(guarded: Guarded) -> None:
    assert await status(guarded, "/api/sessions/s/files/f?user_id=eve", headers=bearer(guarded.token)) == 403
    with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
        async with guarded.connect(query="user_id=eve"):
            pass
    async with guarded.connect("", "user_id=eve") as client:
        await client.send(type="authenticate", token=guarded.token)
        assert (await client.closed())[0] == 1008
    assert client.frames[-1]["code"] == "unauthorized"


async def test_another_name_is_noted_once_for_each_refusal(tmp_path: Path) -> None:
    audit = tmp_path / "audit.log"
    async with token_server(tmp_path, audit_log=str(audit), metrics_listen="127.0.0.1:0") as guarded:
        with logged() as lines:
            assert await status(guarded, "/readyz?user_id=eve", headers=bearer(guarded.token)) == 403
            async with guarded.connect("", "user_id=eve") as client:
                await client.send(type="authenticate", token=guarded.token)
                await client.closed()
        async with guarded.server.http.get(guarded.server.metrics or "") as answer:
            assert 'kernelbridge_refusals_total{code="forbidden"} 2.0' in await answer.text()
    refused = [entry for entry in map(json.loads, audit.read_text().splitlines()) if entry["event"] == "refused"]
    assert [(entry["user"], entry["what"], entry["code"]) for entry in refused] == [
        ("ada", "GET /readyz", "forbidden"),
        ("ada", "GET /ws", "forbidden"),
    ]
    assert all("user_id in the query" in entry["reason"] and "eve" not in entry["reason"] for entry in refused)
    assert [line["path"] for line in lines if line["event"] == "request_refused"] == ["/readyz", "/ws"]


@pytest.mark.parametrize("name", ["token", "access_token", "Authorization", "jwt"])
async def test_a_token_in_the_query(guarded: Guarded, name: str) -> None:
    with logged() as lines:
        for headers in ({}, bearer(guarded.token)):
            async with guarded.server.http.get(
                f"{guarded.server.origin}/readyz?{name}={guarded.token}", headers=headers
            ) as answer:
                assert answer.status == 401
                assert guarded.token not in await answer.text()
    assert "must not be in the URL" in all_text(lines)
    assert guarded.token not in all_text(lines)


async def test_each_login_is_noted(guarded: Guarded) -> None:
    with logged() as lines:
        assert await status(guarded, "/readyz", headers=bearer(guarded.token)) == 200
        assert await status(guarded, "/readyz", headers=bearer("wrong")) == 401
    noted = [line for line in lines if line["event"].startswith("authenticat")]
    assert [(line["event"], line["address"], line["carried_by"]) for line in noted] == [
        ("authenticated", guarded.address, "header"),
        ("authentication_failed", guarded.address, "header"),
    ]
    assert noted[0]["user_id"] == "ada"


# -- before the first message ----------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        {"type": "ping"},
        {"type": "execute_code", "sessionId": "s", "code": "1"},
        {"type": "authenticate"},
        {"type": "authenticate", "token": "wrong"},
        {"type": "authenticate", "token": "caf\u00e9"},
        {"type": "authenticate", "token": "\ud800"},
        {"type": "authenticate", "token": 3},
        {"type": "authenticate", "token": "x" * 9000},
    ],
)
async def test_a_first_message_that_is_no_login(guarded: Guarded, message: dict[str, Any]) -> None:
    async with guarded.connect("") as client:
        await client.send(**message)
        code, reason = await client.closed()
    assert (code, reason) == (1008, "not logged in")
    (error,) = client.frames
    assert (error["type"], error["code"]) == ("error", "unauthorized")


async def test_a_frame_that_is_no_message(guarded: Guarded) -> None:
    for data in (b"\xff", b"{", b"[" * 10_000):
        async with guarded.connect("") as client:
            await client.ws.send_bytes(data)
            assert (await client.closed())[0] == 1008


async def test_a_large_first_message_is_not_taken(guarded: Guarded) -> None:
    async with guarded.connect("") as client:
        await client.send(type="authenticate", token="x" * (17 << 10))
        assert (await client.closed())[0] == 1009


async def test_silent_and_slow_clients_are_dropped(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authentication, "FIRST_MESSAGE", 0.3)
    for begun in (b"", masked(1, b"{", length=100), masked(9, b"ping")):
        async with guarded.server.wire() as wire:
            wire.write(request("/ws", UPGRADE | KEY), begun)
            assert (await wire.head()).startswith(b"HTTP/1.1 101 ")
            if begun.startswith(b"\x89"):
                assert (await wire.frame())[0] == 10
            said, code, _ = await wire.ending()
            assert code == 1008
            assert "no `authenticate` came within" in said[0]["error"]


def request(path: str, headers: dict[str, str]) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n".encode()


async def test_few_may_wait(tokens: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    """One address has all places; those that come by another still get in, at its cost."""
    monkeypatch.setattr(waiting_logins, "SILENT", 60.0)
    async with AsyncExitStack() as stack:
        waiting = []
        for _ in range(waiting_logins.WAITING):
            wire = await stack.enter_async_context(tokens.server.wire())
            wire.write(request("/ws", UPGRADE | KEY))
            assert (await wire.head()).startswith(b"HTTP/1.1 101 ")
            waiting.append(wire)
        late = await stack.enter_async_context(tokens.server.wire())
        late.write(request("/ws", UPGRADE | KEY))
        assert (await late.head()).startswith(b"HTTP/1.1 503 ")
        tokens.move()
        async with tokens.connect("") as client:
            assert (await client.ask(type="authenticate", token=tokens.token))["type"] == "authenticated"
        said, code, _ = await waiting.pop(0).ending()
        assert (code, said[0]["code"]) == (1008, "unauthorized")
        # A token in the request needs no place.
        async with tokens.logged_in():
            pass
        waiting[0].write(text(type="authenticate", token=tokens.token))
        assert json.loads((await waiting[0].frame())[1])["type"] == "authenticated"
        # Its place is free.
        async with tokens.connect("") as client:
            assert (await client.ask(type="authenticate", token=tokens.token))["type"] == "authenticated"


async def test_who_is_silent_keeps_nobody_of_the_same_address_out(
    tokens: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy that is not a trusted one is the address of everybody."""
    monkeypatch.setattr(waiting_logins, "SILENT", 0.0)
    async with AsyncExitStack() as stack:
        waiting = []
        for _ in range(waiting_logins.WAITING):
            wire = await stack.enter_async_context(tokens.server.wire())
            wire.write(request("/ws", UPGRADE | KEY))
            assert (await wire.head()).startswith(b"HTTP/1.1 101 ")
            waiting.append(wire)
        late = await stack.enter_async_context(tokens.server.wire())
        late.write(request("/ws", UPGRADE | KEY))
        assert (await late.head()).startswith(b"HTTP/1.1 101 ")
        late.write(text(type="authenticate", token=tokens.token))
        assert json.loads((await late.frame())[1])["type"] == "authenticated"
        said, code, _ = await waiting[0].ending()
        assert (code, said[0]["code"]) == (1008, "unauthorized")


async def test_many_addresses_keep_no_other_out(tokens: Guarded) -> None:
    """A place for each of many addresses: the one that has waited longest makes room."""
    async with AsyncExitStack() as stack:
        waiting = []
        for number in range(waiting_logins.WAITING):
            wire = await stack.enter_async_context(tokens.server.wire())
            wire.write(request("/ws", UPGRADE | KEY | {"X-Forwarded-For": f"198.51.100.{number}"}))
            assert (await wire.head()).startswith(b"HTTP/1.1 101 ")
            waiting.append(wire)
        tokens.move()
        async with tokens.connect("") as client:
            assert (await client.ask(type="authenticate", token=tokens.token))["type"] == "authenticated"
        said, code, _ = await waiting[0].ending()
        assert (code, said[0]["code"]) == (1008, "unauthorized")
        assert "too many connections wait" in said[0]["error"]
        waiting[1].write(text(type="authenticate", token=tokens.token))
        assert json.loads((await waiting[1].frame())[1])["type"] == "authenticated"


async def test_pings_before_the_login_are_few(tokens: Guarded) -> None:
    async with tokens.server.wire() as wire:
        wire.write(request("/ws", UPGRADE | KEY))
        assert (await wire.head()).startswith(b"HTTP/1.1 101 ")
        wire.write(b"\x89\x80\0\0\0\0" * 16)
        for _ in range(16):
            assert (await wire.frame())[0] == 10
        wire.write(b"\x89\x80\0\0\0\0" * 2)
        said, code, reason = await wire.ending()
        assert (said, code, reason) == ([], 1008, "too many pings before the login")


async def test_who_pings_and_is_gone_leaves_no_traceback(
    tokens: Guarded, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = asyncio.Event()
    losing = TcpConnection.connection_lost

    def connection_lost(self: TcpConnection, exc: BaseException | None) -> None:
        losing(self, exc)
        lost.set()

    monkeypatch.setattr(TcpConnection, "connection_lost", connection_lost)
    for number in range(30):
        lost.clear()
        async with tokens.server.wire() as wire:
            wire.write(request("/ws", UPGRADE | KEY), b"\x89\x80\0\0\0\0" * 10)
            if number % 2:
                await wire.head()
            own = wire.writer.get_extra_info("socket")
            own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            wire.writer.transport.abort()
        await asyncio.wait_for(lost.wait(), PATIENCE)
    async with tokens.logged_in():
        pass
    assert [record for record in caplog.records if record.exc_info] == []


async def test_pings_count_as_requests(tokens: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = 0
    wait = Pace.wait

    def counting(self: Pace, *, requests: int = 0, size: int = 0) -> float:
        nonlocal counted
        counted += requests
        return wait(self, requests=requests, size=size)

    async with tokens.logged_in() as client:
        monkeypatch.setattr(Pace, "wait", counting)
        await client.ws.ping(b"1")
        await client.ask(type="ping")
        # That of the connection and that of its user, for each of both.
        assert counted == 4


# -- the end of a login ----------------------------------------------------------------


def sleep(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let the servers' clock be so much later than it is."""
    later = SimpleNamespace(time=lambda: time.time() + seconds, monotonic=time.monotonic)
    monkeypatch.setattr(authentication, "time", later)


class Followed:
    """What one principal has open: a connection that follows a session, with a terminal and transfers.

    And clients that make it hard to end them: one that reads nothing, and one that never stops sending.
    """

    def __init__(self, guarded: Guarded, token: str, session: str) -> None:
        self.guarded = guarded
        self.token = token
        self.session = session
        self.stack = AsyncExitStack()
        self.client: Client
        self.upload: Wire
        self.download: Wire
        self.deaf: Wire
        self.sending: Wire

    async def open(self) -> None:
        self.client = await self.stack.enter_async_context(self.guarded.logged_in(self.token, query="stream=true"))
        await self.client.send(type="open_terminal", sessionId=self.session, requestId="t")
        await self.client.until(type="terminal_opened")
        await self.client.send(type="save_file", sessionId=self.session, filename="large", content="x" * (8 << 20))
        await self.client.until(type="save_result")
        head = f"HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {self.token}\r\n"
        place = f"/api/sessions/{self.session}/files"
        self.upload = await self.stack.enter_async_context(self.guarded.server.wire())
        self.upload.write(f"PUT {place}/new {head}Content-Length: 100\r\n\r\nhalf".encode())
        self.sending = await self.stack.enter_async_context(self.guarded.server.wire())
        self.sending.write(f"PUT {place}/endless {head}Content-Length: 1000000\r\n\r\n".encode())
        self.download = await self.stack.enter_async_context(self.guarded.server.wire(buffer=1 << 10))
        self.download.write(f"GET {place}/large {head}\r\n".encode())
        assert (await self.download.head()).startswith(b"HTTP/1.1 200 ")
        self.deaf = await self.stack.enter_async_context(self.guarded.server.wire(buffer=1 << 10))
        self.deaf.write(request("/ws", UPGRADE | KEY | bearer(self.token)))
        assert (await self.deaf.head()).startswith(b"HTTP/1.1 101 ")
        self.deaf.write(text(type="read_file", sessionId=self.session, filename="large"))

    async def _send_until_closed(self) -> None:
        answer = asyncio.ensure_future(self.sending.everything())
        with contextlib.suppress(ConnectionError):
            while not answer.done():
                self.sending.write(b"x")
                await asyncio.wait({answer}, timeout=0.02)
        assert (await answer).startswith(b"HTTP/1.1 401 ")

    async def ended(self) -> dict[str, Any]:
        """Wait until nothing of it is open; returns the error that the connection got."""
        async with asyncio.timeout(CLOSED_WITHIN):
            code, reason = await self.client.closed()
            assert (code, reason) == (1008, "not logged in")
            assert (await self.upload.head()).startswith(b"HTTP/1.1 401 ")
            await self._send_until_closed()
            for wire in (self.download, self.deaf):
                got = await wire.everything()
                assert len(got) < 8 << 20  # it was cut off, and what the operating system had is all that came
                assert wire is self.deaf or not got.strip(b"x")  # no answer in the middle of the file
        error = self.client.frames[-1]
        assert (error["type"], error["code"]) == ("error", "unauthorized")
        return error


async def test_revocation_ends_all_that_is_open(tokens: Guarded) -> None:
    thief, other = tokens.more("thief"), tokens.more("other")
    await tokens.loaded(other)
    theirs = Followed(tokens, thief, "s1")
    async with theirs.stack, tokens.logged_in(other) as stays:
        await theirs.open()
        tokens.without("thief")
        assert "revoked" in (await theirs.ended())["error"]
        with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
            async with tokens.connect(thief):
                pass
        assert (await stays.ask(type="ping"))["type"] == "pong"
        # What the session had is still there for a new token of the same principal.
    again = tokens.more("thief")
    await tokens.loaded(again)
    async with tokens.logged_in(again) as client:
        listed = await client.ask(type="list_files", sessionId="s1")
        assert [entry["path"] for entry in listed["files"]] == ["large"]


async def test_an_expiry_ends_all_that_is_open(tokens: Guarded, jwts: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    short = tokens.more("short", expires=datetime.now(UTC) + timedelta(minutes=30))
    await tokens.loaded(short)
    first = Followed(tokens, short, "s2")
    second = Followed(jwts, jwts.signed("short", seconds=1800), "s2")
    async with first.stack, second.stack:
        await second.open()
        await first.open()
        sleep(monkeypatch, 1801)
        assert "expired" in (await second.ended())["error"]
        async with asyncio.timeout(PATIENCE):
            assert "expired" in (await first.ended())["error"]
    for guarded, token in ((tokens, short), (jwts, second.token)):
        assert await status(guarded, "/readyz", headers=bearer(token)) == 401


async def test_an_expiry_does_not_wait_for_the_file_of_keys(jwts: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = threading.Event()
    async with jwts.logged_in(jwts.signed(seconds=1800)) as client:
        monkeypatch.setattr(WatchedFile, "refresh", lambda _file: answers.wait())
        sleep(monkeypatch, 1801)
        try:
            assert (await asyncio.wait_for(client.closed(), 2 * CLOSED_WITHIN))[0] == 1008
        finally:
            answers.set()


async def test_a_bug_in_the_reading_of_tokens_is_logged(tokens: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    read_twice, loop = asyncio.Event(), asyncio.get_running_loop()
    reads = 0

    def broken(_file: WatchedFile[Any]) -> None:
        nonlocal reads
        reads += 1
        if reads == 2:
            loop.call_soon_threadsafe(read_twice.set)
        raise RuntimeError

    with logged() as lines:
        monkeypatch.setattr(WatchedFile, "refresh", broken)
        await asyncio.wait_for(read_twice.wait(), PATIENCE)
    assert "sweep_failed" in {line["event"] for line in lines}
    assert await status(tokens, "/readyz", headers=bearer(tokens.token)) == 200


async def test_a_revocation_does_not_wait_for_other_threads(tokens: Guarded) -> None:
    ended, loop = threading.Event(), asyncio.get_running_loop()
    token = tokens.more("gone")
    await tokens.loaded(token)
    async with tokens.logged_in(token) as client:
        busy = [loop.run_in_executor(None, ended.wait) for _ in range(64)]
        try:
            tokens.without("gone")
            assert (await asyncio.wait_for(client.closed(), 2 * CLOSED_WITHIN))[0] == 1008
        finally:
            ended.set()
            await asyncio.gather(*busy)


async def test_a_new_token_of_the_same_user_keeps_a_connection_open(
    jwts: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = jwts.signed("short", seconds=1800), jwts.signed("short", seconds=3600)
    async with jwts.logged_in(first) as client, jwts.logged_in(first) as without:
        told = await client.ask(type="authenticate", token=second, requestId="r")
        assert (told["type"], told["userId"], told["requestId"]) == ("authenticated", "short", "r")
        sleep(monkeypatch, 1801)
        async with asyncio.timeout(CLOSED_WITHIN):
            assert (await without.closed())[0] == 1008, "the first token is over, and that has been looked at"
        assert (await client.ask(type="ping"))["type"] == "pong"
        sleep(monkeypatch, 3601)
        async with asyncio.timeout(CLOSED_WITHIN):
            assert (await client.closed())[0] == 1008


async def test_a_token_of_another_user_does_not(guarded: Guarded) -> None:
    other = guarded.signed("eve") if guarded.key else guarded.more("mallory")
    if guarded.key is None:
        await guarded.loaded(other)
    for token in (other, "wrong"):
        async with guarded.logged_in() as client:
            await client.send(type="authenticate", token=token)
            assert (await client.closed())[0] == 1008
        assert client.frames[-1]["code"] == "unauthorized"


async def test_a_key_that_is_gone_ends_its_logins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As fast as any server, not one for tests."""
    monkeypatch.setattr(authentication, "SWEEP", SWEEP)
    async with jwt_server(tmp_path / "rotated") as guarded, guarded.logged_in() as client:
        (tmp_path / "rotated" / "key").unlink()
        async with asyncio.timeout(CLOSED_WITHIN):
            assert (await client.closed())[0] == 1008


# -- one principal, another ------------------------------------------------------------


async def test_the_files_of_a_user_id_are_the_principals(tmp_path: Path) -> None:
    """A server without authentication, then one with tokens, then one behind a proxy: the same data directory."""
    async with AsyncExitStack() as stack:
        server = await start_at(stack, tmp_path / "data", Patience(), {})
        for user in ("ada", "eve"):
            async with server.connect(user) as client:
                await client.ask(type="save_file", sessionId="s", filename="kept", content=user)
    async with token_server(tmp_path) as guarded:
        async with guarded.logged_in() as client:
            assert (await client.ask(type="read_file", sessionId="s", filename="kept"))["content"] == "ada"
            assert [entry["sessionId"] for entry in (await client.ask(type="list_sessions"))["sessions"]] == ["s"]
        async with guarded.server.http.get(guarded.file("kept"), headers=bearer(guarded.token)) as answer:
            assert await answer.text() == "ada"
    async with AsyncExitStack() as stack:
        flags = {"auth": "proxy", "trusted_proxy": ("127.0.0.1",)}
        server = await start_at(stack, tmp_path / "data", Patience(), flags)
        async with server.connect(None, headers={"X-Forwarded-User": "eve"}) as client:
            assert (await client.run("print(open('kept').read())"))["output"] == "eve\n"


async def test_the_same_subject_of_an_issuer_is_another_principal(tmp_path: Path) -> None:
    """A name that anybody could write into `user_id` is not the name that an issuer vouches for."""
    async with token_server(tmp_path) as guarded, guarded.logged_in() as client:
        await client.ask(type="save_file", sessionId="s", filename="f", content="theirs")
    async with jwt_server(tmp_path) as guarded, guarded.logged_in() as client:
        assert (await client.ask(type="list_sessions"))["sessions"] == []
        assert (await client.ask(type="list_files", sessionId="s"))["files"] == []
        await client.ask(type="save_file", sessionId="s", filename="f", content="mine")
        key = SessionKey(Principal("ada", "https://login.example.org"), "s")
        assert (tmp_path / "data" / "workspaces" / key.workspace_id / "files" / "f").read_text() == "mine"
    async with jwt_server(tmp_path) as guarded, guarded.logged_in() as client:
        assert (await client.ask(type="read_file", sessionId="s", filename="f"))["content"] == "mine"


async def test_a_guessed_session_is_like_an_unknown_one(tokens: Guarded) -> None:
    other = tokens.more("guesser")
    await tokens.loaded(other)
    async with tokens.logged_in() as client, tokens.logged_in(other) as guesser:
        await client.ask(type="save_file", sessionId="secret", filename="f", content="x")
        await client.ask(type="open_terminal", sessionId="secret", requestId="t")

        async def answers(session: str) -> list[Any]:
            found: list[Any] = []
            for message in (
                {"type": "session_info"},
                {"type": "resume"},
                {"type": "read_file", "filename": "f"},
                {"type": "list_files"},
                {"type": "terminal_input", "terminalId": "1", "data": "x"},
                {"type": "interrupt"},
                {"type": "close_session"},
            ):
                answer = await guesser.ask(sessionId=session, requestId="q", **message)
                found.append({name: str(value).replace(session, "S") for name, value in answer.items()})
            for method in ("GET", "HEAD"):
                async with tokens.server.http.request(
                    method, tokens.file("f", session=session), headers=bearer(other)
                ) as got:
                    found.append((got.status, await got.text()))
            return found

        guessed, unknown = await answers("secret"), await answers("unused9")
        assert guessed == unknown
        assert await status(tokens, "/api/sessions/secret/files/f", headers=bearer(tokens.token)) == 200


# -- by a proxy ------------------------------------------------------------------------


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def proxied(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningServer]:
    async with AsyncExitStack() as stack:
        flags = {"auth": "proxy", "trusted_proxy": ("127.0.0.1",), "user_header": "X-User"}
        yield await start_at(stack, tmp_path_factory.mktemp("proxy") / "data", Patience(), flags)


async def test_the_proxy_names_the_user(proxied: RunningServer) -> None:
    for query in ("", "user_id=ada"):
        headers = {"X-User": "ada", "Authorization": "Basic YTpi"}  # which is for the proxy
        async with proxied.http.ws_connect(f"{proxied.url}?{query}", headers=headers) as ws:
            assert (await Client(ws).receive())["userId"] == "ada"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ("", 401),
        ("X-User: ada\r\nX-User: ada\r\n", 400),
        ("X-User: ada\r\nx-user: eve\r\n", 400),
        ("X-User: \r\n", 400),
        ("X_User: ada\r\n", 400),
        ("X-User: ada\r\nX_User: eve\r\n", 400),
        ("X-User: ada, eve\r\n", 400),
        ("Authorization: Bearer x\r\n", 401),
    ],
)
async def test_what_the_proxy_must_not_pass_on(proxied: RunningServer, headers: str, expected: int) -> None:
    for path in ("/readyz", "/ws", "/api/schema", "/absent"):
        upgrade = "".join(f"{name}: {value}\r\n" for name, value in (UPGRADE | KEY).items()) if path == "/ws" else ""
        async with proxied.wire() as wire:
            head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: {new_address()}\r\n"
            wire.write(f"{head}{upgrade}{headers}\r\n".encode())
            assert (await wire.head()).startswith(f"HTTP/1.1 {expected} ".encode())


async def test_pages_of_the_users_own_machine_do_not_act_for_the_user(proxied: RunningServer) -> None:
    """Browsers send the proxy's cookies along, whatever local page asks."""
    for page, expected in (("http://localhost:3000", 403), ("http://127.0.0.1", 403), (proxied.origin, 200)):
        headers = {"X-User": "ada", "Origin": page}
        async with proxied.http.get(f"{proxied.origin}/readyz", headers=headers) as answer:
            assert answer.status == expected, page


async def test_no_message_changes_what_the_proxy_says(proxied: RunningServer) -> None:
    async with proxied.connect(None, headers={"X-User": "ada"}) as client:
        assert (await client.ask(type="authenticate", token="x"))["code"] == "bad_request"
        assert (await client.ask(type="ping"))["type"] == "pong"


async def test_another_peer_names_nobody(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        flags = {"auth": "proxy", "trusted_proxy": ("10.9.8.7", "unix")}
        server = await start_at(stack, tmp_path / "data", Patience(), flags)
        headers = {"X-Forwarded-User": "ada", "X-Forwarded-For": "10.9.8.7"}
        async with server.http.get(f"{server.origin}/readyz", headers=headers) as answer:
            assert answer.status == 401
            assert "from its proxy only" in await answer.text()


async def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    async with AsyncExitStack() as stack:
        flags = {"auth": "proxy", "trusted_proxy": ("unix",), "listen": f"unix:{path}", "host": "192.0.2.1"}
        server = await start_at(stack, tmp_path / "data", Patience(ping=0.2, drop=1), flags)
        assert server.url == f"ws+unix://{path}:/ws"
        assert path.stat().st_mode & 0o777 == 0o660
        connector = aiohttp.UnixConnector(str(path))
        http = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        async with http.get("http://localhost/readyz") as answer:
            assert answer.status == 401
        headers = {"X-Forwarded-User": "ada"}
        async with http.ws_connect("ws://localhost/ws", headers=headers) as ws:
            client = Client(ws)
            assert (await client.receive())["userId"] == "ada"
            assert (await client.run("print(1)"))["output"] == "1\n"
            # It lives on while its client only answers pings.
            quiet = asyncio.ensure_future(ws.receive())
            assert not (await asyncio.wait({quiet}, timeout=1.5))[0]
            await ws.ping()
            await client.send(type="ping")
            assert '"pong"' in (await asyncio.wait_for(quiet, PATIENCE)).data
        # A client that answers none is dropped.
        async with http.ws_connect("ws://localhost/ws", headers=headers, autoping=False) as ws:
            async with asyncio.timeout(PATIENCE):
                while (await ws.receive()).type is not aiohttp.WSMsgType.CLOSED:
                    pass
    assert not path.exists()


# -- many, and in no log ---------------------------------------------------------------


def uncounted(lines: list[dict[str, Any]]) -> int:
    return sum(line["count"] for line in lines if line["event"] == "authentication_failures")


async def test_a_thousand_wrong_tokens(guarded: Guarded) -> None:
    """None gets in, and most are not even logged; a valid one gets in meanwhile, from the same address."""
    wrong = [guarded.token[:-6] + f"{number:06}" for number in range(1000)]
    with logged() as lines:
        found = []
        for number, token in enumerate(wrong):
            async with guarded.server.wire() as wire:
                wire.write(request("/readyz", bearer(token) | {"X-Forwarded-For": guarded.address}))
                found.append(int((await wire.head()).split()[1]))
            if number % 100 == 99:
                assert await status(guarded, "/readyz", headers=bearer(guarded.token)) == 200
                async with guarded.logged_in():
                    pass
        async with asyncio.timeout(PATIENCE):
            # The log tells nobody when it has a line.
            while uncounted(lines) < found.count(429):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    assert set(found) == {401, 429}
    assert found.count(429) > 900
    failed = [line for line in lines if line["event"] == "authentication_failed"]
    assert len(failed) == found.count(401)
    assert uncounted(lines) == found.count(429)
    assert not any(token in all_text(lines) for token in wrong)


async def test_no_token_is_in_the_log(tmp_path: Path) -> None:
    """Of a whole process, at its most talkative, whatever is done to it."""
    made = tmp_path / "tokens"
    new = [sys.executable, "-m", "kernelbridge", "token", "new", "ada", "--token-file", str(made)]
    token = subprocess.run(new, check=True, capture_output=True, text=True, env=ENV).stdout.strip()
    assert token not in made.read_text()
    serve = (
        *("serve", "--auth", "token", "--token-file", str(made), "--runtime", "local", "--no-isolation", "--port", "0"),
        *("--data-dir", str(tmp_path / "data"), "--log-format", "json", "--log-level", "debug", "--linger", "0"),
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "kernelbridge", *serve), stderr=asyncio.subprocess.PIPE, env=ENV
    )
    assert process.stderr is not None
    lines: list[bytes] = []
    async with asyncio.timeout(PATIENCE):
        while b'"started"' not in (line := await process.stderr.readline()):
            assert line, lines
            lines.append(line)
    rest = asyncio.ensure_future(process.stderr.read())
    canary = token[:20]
    try:
        async with aiohttp.ClientSession() as http:
            server = RunningServer(json.loads(line)["url"], tmp_path / "data", http)
            guarded = Guarded(server, token, tmp_path)
            async with guarded.logged_in() as client:
                assert (await client.ask(type="authenticate", token=token))["type"] == "authenticated"
                await client.send(type="authenticate", token=token, sessionId=3, toke=token)
                await client.send(type="execute_code", token=token)
            for protocols in ([MARKER, carrier(token)], [MARKER, carrier(f"{token}x")]):
                with contextlib.suppress(aiohttp.WSServerHandshakeError):
                    async with guarded.connect("", protocols=protocols):
                        pass
            encoded = carrier(token)[len(CARRIER) :][:20]
            for head in (
                f"GET /ws?token={token} HTTP/1.1\r\nHost: localhost",
                f"GET /ws?token={token}\x7f HTTP/1.1\r\nHost: localhost",
                f"GET /ws?token={token} HTTP/1.1\r\nHost: evil.example",
                f"GET /ws?token={token} HTTP/0.9\r\nHost: localhost",
                f"GET ws?token={token} HTTP/1.1\r\nHost: localhost",
                f"GET http://x/?token={token} HTTP/1.1\r\nHost: localhost",
                f"GET /ws?token={token} HTTP/1.1 x\r\nHost: localhost",
                f"GET /absent?user_id={token} HTTP/1.1\r\nHost: localhost",
                f"GET /ws HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}x",
                f"GET /ws HTTP/1.1\r\nHost: localhost\r\nAuthorization: {token}",
                f"GET /ws HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\x01",
                f"GET /ws HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token * 400}",
                f"GET /ws HTTP/1.1\r\nHost: localhost\r\nAuthorization : Bearer {token}",
                f"GET /ws HTTP/1.1\r\nHost: localhost\r\nAuthorization Bearer {token}",
                f"GET /ws HTTP/1.1\r\nHost: localhost\r\nSec-WebSocket-Protocol: {carrier(token)}\r\n{_UPGRADED}",
                f"Bearer {token}",
            ):
                async with server.wire() as wire:
                    wire.write(f"{head}\r\nConnection: close\r\n\r\n".encode())
                    await wire.everything()
    finally:
        process.terminate()
        logs = b"".join(lines) + await rest
        await process.wait()
    assert b'"authenticated"' in logs
    assert b'"authentication_failed"' in logs
    assert canary.encode() not in logs, [one for one in logs.splitlines() if canary.encode() in one]
    assert encoded.encode() not in logs
