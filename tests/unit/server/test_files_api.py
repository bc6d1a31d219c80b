"""Files by HTTP: ranges, conditions, refusals, and what a client that vanishes leaves."""

import asyncio
import contextlib
import hashlib
import io
import os
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import aiohttp
import pytest
import structlog
from yarl import URL

from kernelbridge.identity.principal import Principal
from kernelbridge.server import files_api
from kernelbridge.server.app import running
from kernelbridge.settings.settings import resolve
from kernelbridge.workspace.files.versions import Condition, NewVersion, Saved
from kernelbridge.workspace.session_key import SessionKey
from tests.unit.server.conftest import RunningServer, StartServer


@pytest.fixture
async def server(start_server: StartServer) -> RunningServer:
    """A server of the test's own."""
    return await start_server()


def address(server: RunningServer, path: str, *, session: str = "s", user: str = "u") -> URL:
    base = server.url.replace("ws://", "http://").removesuffix("/ws")
    return URL(f"{base}/api/sessions/{session}/files/{path}?user_id={user}", encoded=True)


def root(server: RunningServer, *, session: str = "s", user: str = "u") -> Path:
    return server.data_dir / "workspaces" / SessionKey(Principal(user), session).workspace_id / "files"


async def until(there: Callable[[], bool]) -> None:
    """Wait until a condition holds, while the server runs in the same loop."""
    async with asyncio.timeout(20):
        while not there():  # noqa: ASYNC110  the file system tells nobody
            await asyncio.sleep(0)


async def vanish(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def fetch(server: RunningServer, path: str, method: str = "GET", **options: Any) -> aiohttp.ClientResponse:
    where = {name: options.pop(name) for name in ("session", "user") if name in options}
    if isinstance(options.get("data"), bytes):
        options["data"] = io.BytesIO(options["data"])
    response = await server.http.request(method, address(server, path, **where), **options)
    await response.read()
    return response


async def test_what_was_sent_is_what_comes_back(server: RunningServer) -> None:
    content = bytes(range(256)) * 10_000
    sent = await fetch(server, "a/b%20%C3%BC", "PUT", data=content)
    assert sent.status == 201
    assert await sent.json() == {
        "filename": "a/b ü",
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    got = await fetch(server, "a/b%20%C3%BC")
    assert (got.status, await got.read()) == (200, content)
    assert got.headers["Content-Type"] == "application/octet-stream"
    assert got.headers["Content-Disposition"] == "attachment; filename*=UTF-8''b%20%C3%BC"
    assert got.headers["X-Content-Type-Options"] == "nosniff"
    assert got.headers["ETag"] == sent.headers["ETag"]
    assert int(got.headers["Content-Length"]) == len(content)
    assert (await fetch(server, "a/b%20%C3%BC", "PUT", data=b"new")).status == 200
    head = await fetch(server, "a/b%20%C3%BC", "HEAD")
    assert (head.status, head.headers["Content-Length"], await head.read()) == (200, "3", b"")


@pytest.mark.parametrize("name", ["two%0Alines", "%0A", "%0D%0A", "tab%09", "%7F%1B", "a%0Adirectory/b", "%E2%80%A8"])
async def test_a_name_with_any_characters_can_be_sent_and_asked_for(server: RunningServer, name: str) -> None:
    sent = await fetch(server, name, "PUT", data=b"new")
    assert (sent.status, (await sent.json())["filename"]) == (201, unquote(name))
    got = await fetch(server, name)
    assert (got.status, await got.read()) == (200, b"new")
    assert got.headers["Content-Disposition"] == f"attachment; filename*=UTF-8''{name.rpartition('/')[2]}"


@pytest.mark.parametrize(
    ("header", "status", "body", "content_range"),
    [
        ("bytes=0-3", 206, b"0123", "bytes 0-3/10"),
        ("bytes=8-", 206, b"89", "bytes 8-9/10"),
        ("bytes=8-99", 206, b"89", "bytes 8-9/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=-99", 200, b"0123456789", None),
        ("bytes=0-", 200, b"0123456789", None),
        ("bytes=10-", 416, b"", "bytes */10"),
        ("bytes=5-2", 200, b"0123456789", None),
        ("bytes=0-1,4-5", 200, b"0123456789", None),
        ("lines=1-2", 200, b"0123456789", None),
        ("bytes=9999999999999999999999-", 416, b"", "bytes */10"),
    ],
)
async def test_ranges(server: RunningServer, header: str, status: int, body: bytes, content_range: str | None) -> None:
    await fetch(server, "f", "PUT", data=b"0123456789")
    got = await fetch(server, "f", headers={"Range": header})
    assert (got.status, await got.read(), got.headers.get("Content-Range")) == (status, body, content_range)


async def test_conditions(server: RunningServer) -> None:
    first = await fetch(server, "f", "PUT", data=b"one", headers={"If-None-Match": "*"})
    assert first.status == 201
    taken = await fetch(server, "f", "PUT", data=b"two", headers={"If-None-Match": "*"})
    assert (taken.status, (await taken.json())["code"]) == (412, "exists")
    tag = first.headers["ETag"]
    assert (await fetch(server, "f", headers={"If-None-Match": tag})).status == 304
    assert (await fetch(server, "f", headers={"If-None-Match": f'"x", W/{tag}'})).status == 304
    assert (await fetch(server, "f", headers={"If-Match": '"x"'})).status == 412
    second = await fetch(server, "f", "PUT", data=b"two", headers={"If-Match": tag})
    assert second.status == 200
    stale = await fetch(server, "f", "PUT", data=b"three", headers={"If-Match": tag})
    assert (stale.status, (await stale.json())["code"]) == (412, "conflict")
    weak = await fetch(server, "f", "PUT", data=b"three", headers={"If-Match": f"W/{second.headers['ETag']}"})
    assert weak.status == 412
    by_hash = await fetch(
        server, "f", "PUT", data=b"three", headers={"If-Match": f'"{hashlib.sha256(b"two").hexdigest()}"'}
    )
    assert by_hash.status == 200
    assert (await fetch(server, "f", "PUT", data=b"three", headers={"If-Match": "*"})).status == 200
    assert (await fetch(server, "new", "PUT", data=b"x", headers={"If-Match": "*"})).status == 412
    assert (await fetch(server, "f", "PUT", data=b"x", headers={"If-Match": "nonsense"})).status == 412
    part = await fetch(server, "f", headers={"Range": "bytes=1-2", "If-Range": tag})
    assert (part.status, await part.read()) == (200, b"three")
    assert (root(server) / "f").read_bytes() == b"three"


async def test_nothing_is_made_by_asking_and_a_foreign_session_is_an_unknown_one(server: RunningServer) -> None:
    await fetch(server, "secret", "PUT", data=b"x", user="owner")
    before = sorted((server.data_dir / "workspaces").iterdir())
    foreign = await fetch(server, "secret", user="other")
    unknown = await fetch(server, "secret", session="none", user="other")
    own = await fetch(server, "missing", user="owner")
    assert foreign.status == unknown.status == own.status == 404
    assert await foreign.read() == await unknown.read()
    assert (await own.json())["code"] == "not_found"
    assert {**foreign.headers, "Date": ""} == {**unknown.headers, "Date": ""}
    assert sorted((server.data_dir / "workspaces").iterdir()) == before
    assert not list((server.data_dir / "run").iterdir())


@pytest.mark.parametrize(
    ("path", "session", "status", "code"),
    [
        ("%2e%2e/x", "s", 400, "invalid_field"),
        ("a/..%2f..%2fx", "s", 400, "invalid_field"),
        ("%2Fetc/passwd", "s", 400, "invalid_field"),
        ("a%00b", "s", 400, "invalid_field"),
        ("%ff", "s", 400, "bad_request"),
        ("", "s", 400, "invalid_field"),
        ("f", "s%2F..", 400, "invalid_field"),
        ("f", "s" * 129, 400, "invalid_field"),
        ("d", "s", 409, "is_a_directory"),
        ("link", "s", 409, "not_a_file"),
        ("pipe", "s", 409, "not_a_file"),
        ("d/f/x", "s", 409, "not_a_directory"),
    ],
)
async def test_what_is_refused_says_why(server: RunningServer, path: str, session: str, status: int, code: str) -> None:
    await fetch(server, "d/f", "PUT", data=b"x")
    (root(server) / "link").symlink_to("/etc/passwd")
    os.mkfifo(root(server) / "pipe")
    async with asyncio.timeout(20):
        got = await fetch(server, path, session=session)
    answer = await got.json()
    assert (got.status, answer["code"]) == (status, code)
    assert set(answer) == {"code", "message", "error", "retryable"}


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "OPTIONS"])
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Host": "evil.example"},
        {"Host": "evil.example", "Origin": "http://evil.example"},
    ],
)
async def test_other_sites_can_neither_read_nor_write(
    server: RunningServer, method: str, headers: dict[str, str]
) -> None:
    await fetch(server, "f", "PUT", data=b"old")
    got = await fetch(server, "f", method, headers=headers, data=b"new" if method == "PUT" else None)
    assert got.status == 403
    assert "Access-Control-Allow-Origin" not in got.headers
    assert b"old" not in await got.read()
    assert (root(server) / "f").read_bytes() == b"old"


async def test_a_page_of_this_machine_may(server: RunningServer) -> None:
    origin = {"Origin": "http://localhost:3000"}
    asked = await fetch(server, "f", "OPTIONS", headers={**origin, "Access-Control-Request-Method": "PUT"})
    assert (asked.status, asked.headers["Access-Control-Allow-Methods"]) == (204, "GET, HEAD, PUT")
    sent = await fetch(server, "f", "PUT", headers=origin, data=b"x")
    assert sent.headers["Access-Control-Allow-Origin"] == "http://localhost:3000"
    seen = set(sent.headers["Access-Control-Expose-Headers"].split(", "))
    assert {"Content-Encoding", "Content-Range", "ETag"} <= seen, "what a client needs to continue a download"


async def test_a_client_that_vanishes_leaves_nothing(server: RunningServer) -> None:
    await fetch(server, "f", "PUT", data=b"old")
    url = address(server, "f")
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(
        f"PUT {url.raw_path_qs} HTTP/1.1\r\nHost: {url.host}:{url.port}\r\nContent-Length: 9000000\r\n\r\n".encode()
    )
    writer.write(b"x" * 3_000_000)
    await writer.drain()
    await until(lambda: bool(list(root(server).glob(".*.part"))))
    await vanish(writer)
    await until(lambda: list(root(server).iterdir()) == [root(server) / "f"])
    assert (root(server) / "f").read_bytes() == b"old"
    assert reader is not None


async def test_the_limit_is_kept_announced_or_not(start_server: StartServer) -> None:
    server = await start_server(max_upload="1m")

    async def pieces(count: int) -> AsyncIterator[bytes]:
        for _ in range(count):
            yield b"x" * (1 << 18)

    for body in (pieces(5), b"x" * (5 << 18)):
        refused = await fetch(server, "f", "PUT", data=body)
        assert (refused.status, (await refused.json())["code"]) == (413, "too_large")
    assert list(root(server).iterdir()) == []
    assert (await fetch(server, "f", "PUT", data=pieces(4))).status == 201


async def test_what_cannot_be_kept_is_refused(server: RunningServer) -> None:
    for headers in ({"Content-Encoding": "gzip"}, {"Content-Range": "bytes 0-2/9"}, {"If-None-Match": '"x"'}):
        refused = await fetch(server, "f", "PUT", data=b"x", headers=headers, skip_auto_headers=["Content-Encoding"])
        assert (refused.status, (await refused.json())["code"]) == (400, "bad_request")
    assert (await fetch(server, "f", user="a&user_id=b")).status == 400


async def test_a_server_that_stops_leaves_nothing_of_what_was_arriving(tmp_path: Path) -> None:
    flags = {"runtime": "local", "isolation": False, "port": "0", "data_dir": str(tmp_path / "data")}
    files = tmp_path / "data" / "workspaces" / SessionKey(Principal("u"), "s").workspace_id / "files"
    async with running(resolve(flags, {}), on_progress=lambda _line: None) as report:
        url = URL(report.url)
        _reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(
            b"PUT /api/sessions/s/files/f?user_id=u HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000\r\n\r\n"
        )
        writer.write(b"x" * 3_000_000)
        await until(lambda: files.is_dir() and bool(list(files.iterdir())))
    assert list(files.iterdir()) == []
    await vanish(writer)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"zz\r\n", id="no length of a chunk"),
        pytest.param(b"3\r\nabcd\r\n", id="a longer chunk than it says"),
    ],
)
async def test_a_body_that_is_none_is_refused_in_one_line(server: RunningServer, body: bytes) -> None:
    with structlog.testing.capture_logs() as log:
        async with server.wire() as wire:
            wire.write(b"PUT /api/sessions/s/files/f?user_id=u HTTP/1.1\r\nHost: localhost\r\n")
            wire.write(b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
            await until(lambda: root(server).is_dir() and bool(list(root(server).iterdir())))
            wire.write(body)
            assert (await wire.everything()).split(b" ", 2)[1] == b"400"
    (line,) = (line for line in log if line["log_level"] not in {"debug", "info"})
    assert (line["event"], line["log_level"], "exc_info" in line) == ("malformed_request", "warning", False)
    assert list(root(server).iterdir()) == []


async def test_a_transfer_in_which_nothing_moves_is_given_up(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_api, "_STALL", 0.2)
    await fetch(server, "large", "PUT", data=bytes(30 << 20))
    async with server.wire() as wire:
        wire.write(b"PUT /api/sessions/s/files/f?user_id=u HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nx")
        assert (await wire.head()).split(b" ", 2)[1] == b"408"
    async with server.wire(buffer=1024) as wire:
        wire.write(b"GET /api/sessions/s/files/large?user_id=u HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await wire.head()).split(b" ", 2)[1] == b"200"
        await asyncio.wait({asyncio.get_running_loop().create_future()}, timeout=1)
        assert len(await wire.everything()) < 30 << 20


async def test_a_file_that_becomes_shorter_while_it_is_sent_ends_the_connection(server: RunningServer) -> None:
    """Else the client would take what it got for all of it, or what comes next for the rest."""
    await fetch(server, "f", "PUT", data=bytes(30 << 20))
    async with server.wire(buffer=1024) as wire:
        wire.write(b"GET /api/sessions/s/files/f?user_id=u HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await wire.head()
        os.truncate(root(server) / "f", 1)
        assert len(await wire.everything()) < 30 << 20


async def test_too_many_transfers_at_once(server: RunningServer) -> None:
    url = address(server, "f")
    writers = []
    for number in range(16):
        _reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(
            f"PUT /api/sessions/s/files/f{number}?user_id=u HTTP/1.1\r\n"
            f"Host: localhost\r\nContent-Length: 9\r\n\r\n".encode()
        )
        writers.append(writer)
    await until(lambda: root(server).is_dir() and len(list(root(server).iterdir())) == 16)
    refused = await fetch(server, "f")
    assert (refused.status, (await refused.json())["retryable"]) == (429, True)
    assert (await fetch(server, "f", user="another")).status == 404
    for writer in writers:
        await vanish(writer)
    await until(lambda: not list(root(server).iterdir()))
    assert (await fetch(server, "f")).status == 404


async def deleted(server: RunningServer) -> None:
    async with server.connect("u") as other:
        assert (await other.ask(type="close_session", sessionId="s", deleteFiles=True))["filesDeleted"]


@pytest.mark.parametrize("opened", [True, False])
async def test_an_upload_to_a_session_whose_files_are_deleted_says_so(server: RunningServer, *, opened: bool) -> None:
    go_on = asyncio.Event()

    async def content() -> AsyncIterator[bytes]:
        yield b"x" * (1 << 20)
        await go_on.wait()
        yield b"x" * (1 << 20)

    async with server.connect("u") as client:
        if opened:
            assert (await client.run("1"))["success"]
        sending = asyncio.create_task(fetch(server, "f", "PUT", data=content()))
        await until(lambda: any(path.stat().st_size for path in root(server).glob("*.part")))
        await deleted(server)
        go_on.set()
        refused = await sending
        failure = await refused.json()
        assert (refused.status, failure["code"], failure["retryable"]) == (409, "files_deleted", True)
        assert failure["message"] == "The file 'f' was not saved"
        assert "closed and its files were deleted" in failure["error"]
        assert "send the request again" in failure["error"]
        assert (await client.ask(type="list_sessions"))["sessions"] == []
        assert (await fetch(server, "f", "PUT", data=b"again")).status == 201


async def test_a_save_in_a_session_whose_files_are_deleted_says_so(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, begun, go_on = NewVersion.commit, threading.Event(), threading.Event()

    def late(new: NewVersion, condition: Condition) -> Saved:
        begun.set()
        assert go_on.wait(20)
        return commit(new, condition)

    async with server.connect("u") as client:
        # Created first: the first request of a session without files creates its directory.
        assert (await client.ask(type="save_file", sessionId="s", filename="g", content="x"))["success"]
        with monkeypatch.context() as patched:
            patched.setattr(NewVersion, "commit", late)
            await client.send(type="save_file", sessionId="s", filename="f", content="x", requestId="f")
            assert await asyncio.to_thread(begun.wait, 20)
            await deleted(server)
            go_on.set()
            answer = await client.answer_to("f")
        assert (answer["success"], answer["code"]) == (False, "files_deleted")
        assert answer["message"].startswith("The file 'f' was not saved: the session was closed and its files were")
        assert (await client.ask(type="save_file", sessionId="s", filename="f", content="x"))["success"]


async def test_whatever_happens_while_files_are_deleted_is_done_or_says_so(server: RunningServer) -> None:
    async with server.connect("u") as client:
        for turn in range(30):
            await client.send(type="save_file", sessionId="s", filename="a/f", content="x" * 100_000, requestId="f")
            sending = asyncio.create_task(fetch(server, "b/f", "PUT", data=b"x" * 100_000))
            for _ in range(turn):
                await asyncio.sleep(0)
            async with server.connect("u") as other:
                await other.ask(type="close_session", sessionId="s", deleteFiles=True)
            saved, sent = await client.answer_to("f"), await sending
            assert saved["success"] or saved["code"] == "files_deleted", saved
            assert sent.ok or (await sent.json())["code"] == "files_deleted", await sent.json()
