from __future__ import annotations

import asyncio
import functools
import platform
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from kernelbridge import __version__
from kernelbridge.errors import ConfigError
from kernelbridge.metrics import PHASES, Metrics
from kernelbridge.server import metrics_listener
from kernelbridge.workspace.states import WorkspaceState
from tests.unit.server.conftest import RunningServer, StartServer, eventually

PYTHON = platform.python_version()
STATES = [state.value for state in WorkspaceState if state is not WorkspaceState.CLOSED]
NONE = dict.fromkeys(STATES, 0.0)

Series = Mapping[tuple[str, tuple[tuple[str, str], ...]], float]


async def scrape(server: RunningServer) -> Series:
    assert server.metrics is not None
    async with server.http.get(server.metrics) as answer:
        assert answer.status == 200
        return parsed(await answer.text())


def parsed(text: str) -> Series:
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in samples}


def of(series: Series, name: str, **labels: str) -> float:
    return series[f"kernelbridge_{name}", tuple(sorted(labels.items()))]


@pytest.fixture
async def server(start_server: StartServer) -> RunningServer:
    return await start_server(metrics_listen="127.0.0.1:0")


async def test_a_session_is_counted_from_its_start_to_its_end(server: RunningServer) -> None:
    before = await scrape(server)
    assert of(before, "build_info", version=__version__, python=PYTHON, runtime="local") == 1
    assert of(before, "connections") == 0
    async with server.connect("u") as client:
        assert (await client.run("print(6*7)"))["success"]
        assert not (await client.run("1/0"))["success"]
        assert (await client.run("import os; os._exit(3)"))["cause"] == "kernel_died"
        assert (await client.shell("true"))["exitCode"] == 0
        assert (await client.shell("false"))["exitCode"] == 1
        assert (await client.ask(type="read_file", sessionId="s", filename="absent"))["code"] == "not_found"
        series = await scrape(server)
        assert of(series, "cells_total", result="ok", cause="none") == 1
        assert of(series, "cells_total", result="failed", cause="none") == 1
        assert of(series, "cells_total", result="failed", cause="kernel_died") == 1
        assert of(series, "commands_total", result="ok", cause="none") == 1
        assert of(series, "commands_total", result="failed", cause="none") == 1
        assert of(series, "refusals_total", code="not_found") == 1
        assert of(series, "connections") == 1
        assert of(series, "output_bytes_total") > 500
        assert of(series, "buffered_limit_bytes") == 256 << 20
        for phase in PHASES:
            assert of(series, "start_phase_seconds_count", phase=phase) == 1, phase
            assert of(series, "start_failures_total", phase=phase) == 0
        assert {state: of(series, "sessions", state=state) for state in STATES} == {**NONE, "active": 1}
        assert of(series, "process_resident_memory_bytes") > 1 << 20
        await client.ask(type="close_session", sessionId="s", requestId="c")

    async def left() -> bool:
        return not of(await scrape(server), "connections")

    assert await eventually(left)
    series = await scrape(server)
    assert {state: of(series, "sessions", state=state) for state in STATES} == NONE


async def test_a_start_that_fails_is_counted_in_its_phase(start_server: StartServer) -> None:
    server = await start_server(metrics_listen="127.0.0.1:0")
    async with server.connect("u") as client:
        # The interpreter does not get past its own start.
        await client.send(type="open_session", sessionId="s", env={"PYTHONIOENCODING": "nonsense"})
        assert (await client.until(type="error"))["code"] == "kernel_failed"
        await client.send(type="execute_code", sessionId="s", code="1", requestId="r")
        assert (await client.until(requestId="r"))["code"] == "kernel_failed"
    assert of(await scrape(server), "start_failures_total", phase="kernel") == 2
    assert of(await scrape(server), "cells_total", result="refused", cause="kernel_failed") == 1


async def test_the_loop_lag_is_measured(server: RunningServer) -> None:
    async def measured() -> float:
        return of(await scrape(server), "event_loop_lag_seconds_count")

    assert await eventually(measured)


async def test_scans_make_no_series(server: RunningServer) -> None:
    async def refused(path: str, **headers: str) -> None:
        async with server.http.get(f"{server.origin}{path}", headers=headers) as answer:
            assert answer.status >= 400

    async def rounds(mark: str) -> set[object]:
        for number in range(5):
            await refused(f"/{mark}{number}.php")
            await refused(f"/api/sessions/{mark}{number}/files/{mark}?user_id={mark}{number}")
            await refused(f"/api/workspaces/{mark}{number}/events")
            await refused("/healthz", Host=f"{mark}{number}.example")
            await refused("/healthz", Origin=f"https://{mark}{number}.example")
            async with server.connect(f"{mark}{number}") as client:
                await client.ask(type=f"{mark}{number}")
                await client.ask(type="session_info", sessionId=f"{mark}{number}")
                await client.ask(type="read_file", sessionId=f"{mark}{number}", filename=mark)
        return set(await scrape(server))

    first = await rounds("a")
    assert await rounds("b") == first


async def test_the_address_of_the_clients_has_no_metrics(start_server: StartServer) -> None:
    server = await start_server()
    assert server.metrics is None
    async with server.http.get(f"{server.origin}/metrics") as answer:
        assert answer.status == 404


async def test_the_address_of_the_metrics_has_nothing_else(server: RunningServer) -> None:
    assert server.metrics is not None
    for path in ("/healthz", "/api/sessions", "/ws"):
        async with server.http.get(server.metrics.replace("/metrics", path)) as answer:
            assert answer.status == 404


@pytest.mark.parametrize("header", [{"Host": "attacker.example"}, {"Origin": "https://attacker.example"}])
async def test_a_web_page_gets_no_metrics(server: RunningServer, header: dict[str, str]) -> None:
    assert server.metrics is not None
    async with server.http.get(server.metrics, headers=header) as answer:
        assert answer.status == 403
        assert "kernelbridge_" not in await answer.text()


async def test_prometheus_gets_the_format_that_it_asks_for(server: RunningServer) -> None:
    assert server.metrics is not None
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    async with server.http.get(server.metrics, headers=accept) as answer:
        assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
        assert (await answer.text()).endswith("# EOF\n")


async def test_a_unix_socket_is_made_and_removed(start_server: StartServer, tmp_path: Path) -> None:
    path = tmp_path / "metrics.sock"
    server = await start_server(metrics_listen=f"unix:{path}")
    assert server.metrics == f"unix:{path}"
    assert path.stat().st_mode & 0o777 == 0o660
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as http,
        http.get("http://localhost/metrics") as answer,
    ):
        assert ("kernelbridge_connections", ()) in parsed(await answer.text())


async def test_connections_to_the_metrics_are_few(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever they do: the oldest makes room for the next."""
    monkeypatch.setattr(metrics_listener, "CONNECTIONS", 3)
    server = await start_server(metrics_listen="127.0.0.1:0")
    assert server.metrics is not None
    address = urlsplit(server.metrics)
    get = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n"
    with ExitStack() as stack:

        def connect() -> socket.socket:
            opened = stack.enter_context(socket.create_connection((address.hostname, address.port)))
            opened.settimeout(0)
            return opened

        silent, endless, reads_nothing = (connect() for _ in range(3))
        endless.sendall(get)
        reads_nothing.sendall((get + b"\r\n") * 500)

        async def ended(opened: socket.socket) -> bool:
            connect()
            try:
                opened.send(b"x")
            except BlockingIOError:
                return False
            except OSError:
                return True
            await asyncio.sleep(0)
            return False

        for each in (silent, endless, reads_nothing):
            assert await eventually(functools.partial(ended, each))
    await scrape(server)


async def test_an_address_in_use_is_named_with_its_setting(start_server: StartServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"{address}: .*choose another with --metrics-listen"):
            await start_server(metrics_listen=address)


async def test_a_file_in_the_way_of_the_socket_is_left_alone(start_server: StartServer, tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("x")
    with pytest.raises(ConfigError, match=f"unix:{path}: .*choose another path with --metrics-listen"):
        await start_server(metrics_listen=f"unix:{path}")
    assert path.read_text() == "x"


async def test_the_lag_is_measured_only_while_there_is_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_listener, "LOOK", 0.0)
    measured: list[float] = []
    looked = asyncio.Event()

    def lagged(seconds: float) -> None:
        measured.append(seconds)
        looked.set()

    metrics = Metrics()
    monkeypatch.setattr(metrics, "lagged", lagged)
    async with metrics_listener.listening(("127.0.0.1", 0), metrics):
        await asyncio.wait_for(looked.wait(), 60)
    count = len(measured)
    for _ in range(20):
        await asyncio.sleep(0)
    assert (len(measured), min(measured) >= 0.0) == (count, True)
