"""A real server on a free port, over each runtime, and a client as small as the page allows."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from kernelbridge.egress.policy import Resolve
from kernelbridge.server.app import running
from kernelbridge.server.websocket.heartbeat import Patience
from kernelbridge.settings.settings import resolve
from tests.docker.faulty_engine import CuttableWire, cuttable_wire
from tests.integration.driving import PATIENCE, Client, Frame, RunningServer
from tests.integration.shared import SharedServer, clear

__all__ = ["PATIENCE", "Client", "Frame", "RunningServer", "StartServer", "on_both_runtimes"]

StartServer = Callable[..., Awaitable[RunningServer]]

on_both_runtimes = pytest.mark.parametrize("runtime_name", ["docker", "local"], indirect=True)
"""For tests that a runtime could spoil, in a module whose others run on one."""


def flags_of(runtime: str, data_dir: Path, image: str, flags: dict[str, Any]) -> dict[str, Any]:
    """Give all flags of a server of the tests: `flags`, and what each has."""
    return {
        "runtime": runtime,
        "port": "0",
        "data_dir": str(data_dir),
        "image": image,
        "linger": "0",
        "stop_timeout": "0",
        # What a test reaches, it says itself.
        **({} if flags.get("isolation") is False else {"egress": "none"}),
        **flags,
    }


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test on the runtimes in `RUNTIMES` of its module, unless it names its own."""
    if "runtime_name" in metafunc.fixturenames and not any(
        "runtime_name" in mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")
    ):
        metafunc.parametrize("runtime_name", getattr(metafunc.module, "RUNTIMES", ("docker", "local")), indirect=True)


@pytest.fixture
def runtime_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def engine_wire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[CuttableWire]:
    """Put a wire that can be cut between the server and its engine."""
    async with cuttable_wire(tmp_path / "engine.sock") as wire:
        monkeypatch.setenv("DOCKER_HOST", f"unix://{wire.path}")
        yield wire


@pytest.fixture
async def start_server(runtime_name: str, tmp_path: Path, workspace_image: str) -> AsyncIterator[StartServer]:
    """Start servers with flags of the test's choice; all are stopped in order at the end."""
    stops: list[Callable[[], Awaitable[object]]] = []

    async def start(
        patience: Patience = Patience(),  # noqa: B008 - frozen
        resolve_name: Resolve | None = None,
        **flags: str | bool,
    ) -> RunningServer:
        settings = resolve(flags_of(runtime_name, tmp_path / "data", workspace_image, flags), {})
        context = running(settings, on_progress=lambda _line: None, patience=patience, resolve=resolve_name)
        report = await context.__aenter__()
        stops.append(lambda: context.__aexit__(None, None, None))
        http = aiohttp.ClientSession()
        stops.append(http.close)
        return RunningServer(report.url, settings.data_dir, runtime_name, http)

    yield start
    for stop in reversed(stops):
        await stop()


@pytest.fixture(scope="module")
def shared_servers() -> Iterator[dict[Any, SharedServer]]:
    """The servers that the tests of a module share, by their runtime and flags."""
    servers: dict[Any, SharedServer] = {}
    yield servers
    for server in servers.values():
        server.stop()


@pytest.fixture
async def share_server(
    runtime_name: str,
    workspace_image: str,
    tmp_path_factory: pytest.TempPathFactory,
    shared_servers: dict[Any, SharedServer],
) -> AsyncIterator[StartServer]:
    """Give servers with flags of the test's choice that other tests of its module use, too, before it and after it.

    None has any session when the test begins, and all that it makes are closed and deleted when it is over.
    """
    used: dict[Any, RunningServer] = {}

    async def share(**flags: str | bool) -> RunningServer:
        key = (runtime_name, *sorted(flags.items()))
        if key not in shared_servers:
            data = tmp_path_factory.mktemp("shared") / "data"
            shared_servers[key] = await asyncio.to_thread(
                SharedServer, flags_of(runtime_name, data, workspace_image, flags)
            )
        shared = shared_servers[key]
        used[key] = RunningServer(shared.url, shared.data_dir, runtime_name, aiohttp.ClientSession())
        return used[key]

    yield share
    for key, server in used.items():
        try:
            await clear(server)
        except BaseException:
            await asyncio.to_thread(shared_servers.pop(key).stop)  # the next test gets another
            raise
        finally:
            await server.http.close()


@pytest.fixture
async def server(share_server: StartServer) -> RunningServer:
    return await share_server()


@pytest.fixture
async def client(server: RunningServer) -> AsyncIterator[Client]:
    async with server.connect("tester") as client:
        yield client
