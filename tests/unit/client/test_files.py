"""Files behind a proxy, and a download that is cancelled late."""

import asyncio
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus
from pathlib import Path

import pytest
from aiohttp import web

from kernelbridge import AsyncClient, AsyncSession, ConnectionLost, OutcomeUnknown
from kernelbridge.client import files
from kernelbridge.client.core import Kind

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
Serve = Callable[[Handler], Awaitable[AsyncSession]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Serves a handler for all addresses; returns a session for its files."""
    made: list[tuple[web.ServerRunner, AsyncClient]] = []

    async def start(handler: Handler) -> AsyncSession:
        runner = web.ServerRunner(web.Server(handler))
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        client = AsyncClient(f"ws://127.0.0.1:{runner.addresses[0][1]}")
        made.append((runner, client))
        return client.session("s")

    yield start
    for runner, client in made:
        await client.close()
        await runner.cleanup()


async def compressing(request: web.BaseRequest) -> web.StreamResponse:
    """Do what a proxy does that compresses answers as they pass."""
    content = b"content"
    if "gzip" not in request.headers.get("Accept-Encoding", ""):
        return web.Response(body=content)
    response = web.StreamResponse(headers={"Content-Encoding": "gzip"})
    response.enable_chunked_encoding()
    await response.prepare(request)
    await response.write(gzip.compress(content))
    return response


async def test_a_proxy_is_asked_not_to_compress_a_file(serve: Serve) -> None:
    assert await (await serve(compressing)).files.read("f") == b"content"


async def without_length(request: web.BaseRequest) -> web.StreamResponse:
    response = web.StreamResponse()
    response.enable_chunked_encoding()
    await response.prepare(request)
    await response.write(b"content")
    return response


async def test_an_answer_without_a_length_is_a_typed_error(serve: Serve) -> None:
    with pytest.raises(ConnectionLost, match="length"):
        await (await serve(without_length)).files.read("f")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (200, OutcomeUnknown),
        (500, OutcomeUnknown),
        (502, OutcomeUnknown),
        (504, OutcomeUnknown),
        (413, ConnectionLost),
        (499, ConnectionLost),
    ],
)
async def test_a_file_may_be_saved_when_a_proxy_loses_the_server(
    serve: Serve, status: int, kind: type[ConnectionLost]
) -> None:
    async def lost(request: web.BaseRequest) -> web.StreamResponse:
        await request.read()
        return web.Response(status=status, text="<html>")

    session = await serve(lost)
    with pytest.raises(ConnectionLost) as caught:
        await session.files.write("f", b"x")
    assert type(caught.value) is kind
    if status != HTTPStatus.OK:
        with pytest.raises(ConnectionLost) as of_read:
            await session.files.read("f")
        assert type(of_read.value) is ConnectionLost


async def test_a_download_that_is_cancelled_when_it_is_in_its_place_says_so(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = files._put_into_place

    def too_late(part: str, goal: Path) -> None:
        place(part, goal)
        raise asyncio.CancelledError

    monkeypatch.setattr(files, "_put_into_place", too_late)
    with pytest.raises(asyncio.CancelledError):
        await (await serve(compressing)).files.download("f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == b"content"


async def test_a_list_says_whether_it_is_all(monkeypatch: pytest.MonkeyPatch) -> None:
    session = AsyncClient("ws://localhost:1").session("s")
    entry = {"path": "a", "kind": "file", "size": 1, "modified": "now"}

    async def request(_frame: dict[str, object], _kind: Kind) -> dict[str, object]:
        return {"files": [entry], "truncated": True}

    monkeypatch.setattr(session, "request", request)
    found = await session.files.list()
    assert ([each.path for each in found], found.truncated) == (["a"], True)
