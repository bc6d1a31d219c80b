"""How a connection ends: requests are answered, and messages after the server's close are not handled."""

import asyncio
import json
import time
from contextlib import AsyncExitStack

import aiohttp
import pytest

from kernelbridge.errors import ConfigError, RuntimeUnavailable
from kernelbridge.runtimes.agent.host_directories import HostDirectories
from kernelbridge.runtimes.docker.engine import EngineInfo
from kernelbridge.runtimes.docker.runtime import DockerRuntime
from kernelbridge.server import app, listening
from kernelbridge.server import open_docker as docker_module
from kernelbridge.server import open_runtime as runtime_module
from kernelbridge.server.open_runtime import open_runtime
from kernelbridge.server.websocket import outbox
from kernelbridge.server.websocket.heartbeat import Patience
from kernelbridge.settings.settings import resolve
from tests.unit.server.conftest import PATIENCE, RunningServer, StartServer, masked, text

MIB = 1 << 20


async def test_messages_after_the_servers_close_are_not_handled(tmp_path: pytest.TempPathFactory) -> None:
    flags = {"runtime": "local", "isolation": False, "port": "0", "data_dir": f"{tmp_path}/data"}
    async with AsyncExitStack() as others, AsyncExitStack() as stack:
        report = await stack.enter_async_context(app.running(resolve(flags, {}), on_progress=lambda _line: None))
        http = await others.enter_async_context(aiohttp.ClientSession())
        server = RunningServer(report.url, report.data_dir, http)
        async with server.upgraded() as wire:
            wire.write(text(type="ping"))
            assert b'"pong"' in (await wire.frame())[1]
            stopping = asyncio.create_task(stack.aclose())
            assert (await wire.ending())[1] == 1001
            wire.write(text(type="ping"), text(type="save_file", sessionId="s", filename="f", content=""))
            wire.write(masked(8, b"\x03\xe9"))
            assert await wire.everything() == b""
            await asyncio.wait_for(stopping, PATIENCE)


async def test_a_client_that_does_not_answer_the_goodbye_does_not_hold_up_the_stop(
    tmp_path: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "CLOSE_TIMEOUT", 0.2)
    flags = {"runtime": "local", "isolation": False, "port": "0", "data_dir": f"{tmp_path}/data"}
    async with AsyncExitStack() as others, AsyncExitStack() as stack:
        report = await stack.enter_async_context(app.running(resolve(flags, {}), on_progress=lambda _line: None))
        http = await others.enter_async_context(aiohttp.ClientSession())
        server = RunningServer(report.url, report.data_dir, http)
        async with server.connect("u") as client:
            await client.ask(type="save_file", sessionId="s", filename="f", content="x" * (8 * MIB))
        async with server.upgraded(buffer=1024) as silent, server.upgraded(buffer=1024) as deaf:
            deaf.writer.transport.pause_reading()  # type: ignore[attr-defined]  # it is a socket's
            deaf.write(text(type="read_file", sessionId="s", filename="f") * 4)
            stopping = asyncio.create_task(stack.aclose())
            assert (await silent.ending())[1] == 1001
            await asyncio.wait_for(stopping, PATIENCE)


async def test_one_connection_too_many_is_told_and_closed(start_server: StartServer) -> None:
    server = await start_server(max_connections_per_user="2")
    async with server.connect("u") as first, server.connect("u"), server.connect("another"):
        async with server.http.ws_connect(f"{server.url}?user_id=u") as third:
            error = json.loads((await third.receive(PATIENCE)).data)
            assert (error["type"], error["code"]) == ("error", "limit_exceeded")
            assert (await third.receive(PATIENCE)).data == 1013
        await first.ws.close()
        async with asyncio.timeout(PATIENCE):
            while True:  # its end is noticed a moment later
                async with server.http.ws_connect(f"{server.url}?user_id=u") as again:
                    if json.loads((await again.receive()).data)["type"] == "connected":
                        break


async def test_answers_that_are_not_read_in_time_end_the_connection(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "LIMIT", 9 * MIB)
    server = await start_server()
    async with server.connect("u") as client:
        await client.ask(type="save_file", sessionId="s", filename="f", content="x" * (8 * MIB))
    async with server.upgraded(buffer=1024) as deaf:
        # The reads of one piece are all begun before the first answer has gone.
        deaf.writer.transport.pause_reading()  # type: ignore[attr-defined]  # it is a socket's
        cells = [text(type="terminal_command", sessionId="s", command="head -c 8000000 /dev/zero | tr '\\0' x")] * 3
        deaf.write(*cells)
        async with server.connect("u") as client:  # behind them
            assert (await client.shell("echo done"))["output"] == "done\n"
        deaf.writer.transport.resume_reading()  # type: ignore[attr-defined]  # likewise
        said, code, reason = await deaf.ending()
        assert (len(said) < 3, code, reason) == (True, 1008, "answers were not read in time")


async def test_a_client_that_vanishes_is_dropped(start_server: StartServer) -> None:
    server = await start_server(Patience(ping=0.1, drop=1.5))
    async with server.upgraded() as silent, server.connect("u") as client:
        assert (await silent.frame())[0] == 9  # it is asked for a sign of life
        reading = asyncio.ensure_future(client.receive())  # a library answers pings while it reads
        assert (await silent.everything()).count(b"\x89\x00") >= 1
        await client.send(type="ping")
        assert (await reading)["type"] == "pong"


async def test_a_client_is_asked_before_it_is_dropped_though_the_server_stood_still(start_server: StartServer) -> None:
    server = await start_server(Patience(ping=0.1, drop=0.3))
    async with server.upgraded() as silent:
        time.sleep(0.5)  # the fault: the event loop does nothing meanwhile
        assert (await silent.frame())[0] == 9
        await silent.everything()  # and then it is dropped all the same


async def test_a_port_that_is_taken_and_an_address_that_is_none() -> None:
    (held,) = await listening.bind("127.0.0.1", 0)
    with held:
        held.listen()
        port = held.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"Cannot listen on 127\.0\.0\.1:{port}.*in use.*--port"):
            await listening.bind("127.0.0.1", port)
    with pytest.raises(ConfigError, match=r"Cannot listen on 192\.0\.2\.1:1"):
        await listening.bind("192.0.2.1", 1)
    with pytest.raises(ConfigError, match=r"Cannot listen on no-such-host\.invalid:1"):
        await listening.bind("no-such-host.invalid", 1)


async def test_localhost_is_listened_on_in_every_family_there_is() -> None:
    sockets = await listening.bind("localhost", 0)
    assert {sock.getsockname()[0] for sock in sockets} <= {"127.0.0.1", "::1"}
    for sock in sockets:
        sock.close()


class Probed:
    """The result of probing for an engine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **found: object) -> None:
        async def probe() -> EngineInfo:
            await asyncio.sleep(0)
            return EngineInfo(**found)  # type: ignore[arg-type]  # by name

        monkeypatch.setattr(docker_module, "probe_engine", probe)


async def choose(tmp_path: object, left: int = 0, **flags: object) -> tuple[str, list[str]]:
    """Return the name of the runtime that is chosen, and what is said meanwhile."""
    said: list[str] = []
    settings = resolve({"data_dir": f"{tmp_path}/d", **flags}, {})
    runtime = await open_runtime(
        settings,
        instance="i",
        directories=HostDirectories(settings.data_dir),
        on_progress=said.append,
        left_to_docker=lambda: left,
    )
    await runtime.aclose()
    return runtime.info.name, said


async def test_without_an_engine_auto_takes_the_local_runtime_and_says_so(
    tmp_path: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    Probed(monkeypatch, available=False, reason="nothing listens")
    name, (said,) = await choose(tmp_path, runtime="auto")
    assert (name, "nothing listens" in said) == ("local", True)
    assert await choose(tmp_path, runtime="local", isolation=False) == ("local", [])
    with pytest.raises(RuntimeUnavailable, match="nothing listens"):
        await choose(tmp_path, runtime="docker")


@pytest.mark.parametrize(("left", "words"), [(1, "1 session of an earlier"), (2, "2 sessions of an earlier")])
async def test_sessions_in_containers_are_not_given_up_for_the_local_runtime(
    tmp_path: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, left: int, words: str
) -> None:
    Probed(monkeypatch, available=False, reason="frozen")
    with pytest.raises(RuntimeUnavailable, match=words):
        await choose(tmp_path, left, runtime="auto")


async def test_with_neither_both_reasons_are_told(
    tmp_path: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    Probed(monkeypatch, available=False, reason="no engine")

    def no_bubblewrap(**_: object) -> None:
        raise RuntimeUnavailable("No sandbox", "install bubblewrap")

    monkeypatch.setattr(runtime_module, "LocalRuntime", no_bubblewrap)
    with pytest.raises(RuntimeUnavailable, match=r"no engine.*install bubblewrap"):
        await choose(tmp_path, runtime="auto")
    with pytest.raises(RuntimeUnavailable, match="No sandbox"):
        await choose(tmp_path, runtime="local")


async def test_with_an_engine_the_image_is_seen_to_first(
    tmp_path: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    Probed(monkeypatch, available=True)
    seen: list[object] = []

    def ensure(image: str, **_: object) -> None:
        seen.append(image)

    async def opened(**options: object) -> object:
        await asyncio.sleep(0)
        seen.append(options["image"])
        raise RuntimeUnavailable("far enough")

    monkeypatch.setattr(docker_module, "ensure_image", ensure)
    monkeypatch.setattr(DockerRuntime, "open", opened)
    with pytest.raises(RuntimeUnavailable, match="far enough"):
        await choose(tmp_path, runtime="auto", image="mine:1")
    assert seen == ["mine:1", "mine:1"]
