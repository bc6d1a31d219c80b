"""Faults: after how long they are reported, and after how long all is well again, beside what is promised.

`docs/explanation/reliability.md` says what happens. The tests only wait for it, because they may run on a busy machine.
The servers and, with Docker, one engine are this benchmark's own: they are killed and frozen. That needs root.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any
from unittest import mock

from kernelbridge.workspace.options import SERVER_RETURNS
from tests.adoption.house import House, Server, house
from tests.benchmarks.lag import Probe
from tests.conftest import SMALL_IMAGE
from tests.docker.faulty_engine import PrivateEngine, home_with_image
from tests.integration.conftest import Client

ROUNDS = 5
IMAGE = os.environ.get("KERNELBRIDGE_TEST_IMAGE", SMALL_IMAGE)
LINGER = 3.0
"""Seconds, of sessions whose server does not come back."""
SLACK = 5.0
"""Seconds after its time in which a sandbox must have ended."""
DEATHS = {
    "os._exit": ("import os; os._exit(3)", "kernel_died"),
    "a segmentation fault": ("import ctypes; ctypes.string_at(0)", "kernel_died"),
    "out of memory": ("b = bytearray(800 << 20)", "out_of_memory"),
}
CHILD = "import subprocess; subprocess.run(['python3', '-c', 'b = bytearray(800 << 20)'])"
PROBED = """
import runpy, sys
sys.argv.insert(1, {path!r})
runpy.run_module("tests.benchmarks.lag_server", run_name="__main__")
"""


def bench_faults(runtime: str) -> None:
    """Measure the faults of a runtime."""
    for measure in (_kernel, _sandbox, _pause, _server, _abandoned):
        asyncio.run(measure(runtime))
    if runtime == "docker":
        with home_with_image(IMAGE) as home:
            asyncio.run(_engine(home))
    print(f"  load of the machine, the last minute: {os.getloadavg()[0]:.1f}")


def row(name: str, seconds: list[float], promised: float | None = None) -> None:
    """Print one row of a table."""
    longest = max(seconds)
    line = f"median {statistics.median(seconds):7.3f} s   longest {longest:7.3f} s   n={len(seconds):<4}"
    if promised is not None:
        line += f" promised {promised:g} s" + ("" if longest <= promised else ": MISSED")
    print(f"  {name:<48} {line}", flush=True)


async def timed(answer: Awaitable[dict[str, Any]], **expected: object) -> float:
    """Wait for an answer with these fields; return how many seconds it took."""
    start = time.perf_counter()
    frame = await answer
    took = time.perf_counter() - start
    assert expected.items() <= frame.items(), frame
    return took


async def status(client: Client, **expected: object) -> dict[str, Any]:
    """Wait for a `session_status` with these fields."""
    while not expected.items() <= (frame := await client.receive()).items():
        pass
    return frame


async def _kernel(runtime: str) -> None:
    async with house(runtime, IMAGE) as home:
        server = await home.serve("--memory", "256m")
        async with home.connect(server) as client:
            for name, (code, cause) in DEATHS.items():
                reported, replaced = [], []
                for _ in range(ROUNDS):
                    await client.run("x = 1")
                    reported.append(await timed(client.run(code), cause=cause))
                    replaced.append(await timed(client.run("print(1)"), output="1\n", statePreserved=False))
                row(f"{name}: reported", reported, 2)
                row(f"{name}: the next cell", replaced, 10)
            children = [await timed(client.run(CHILD), cause="out_of_memory") for _ in range(ROUNDS)]
            row("out of memory in a child: reported", children, 2)


async def _sandbox(runtime: str) -> None:
    reported, replaced = [], []
    async with house(runtime, IMAGE) as home:
        server = await home.serve()
        async with home.connect(server) as client, home.connect(server) as follower:
            await follower.ask(type="open_session", sessionId="s")
            for _ in range(ROUNDS):
                await client.run("x = 1")
                [sandbox] = await asyncio.to_thread(home.sandboxes)
                start = time.perf_counter()
                await asyncio.to_thread(home.destroy, sandbox)
                await status(follower, status="closed", cause="sandbox_lost")
                reported.append(time.perf_counter() - start)
                replaced.append(await timed(client.run("print(1)"), output="1\n"))
    row("the sandbox is destroyed: reported", reported, 3)
    row("the sandbox is destroyed: the next cell", replaced, 10)


async def _pause(runtime: str) -> None:
    resumed = []
    async with house(runtime, IMAGE) as home:
        server = await home.serve("--idle-timeout", "20ms")
        async with home.connect(server) as client, home.connect(server) as follower:
            await follower.ask(type="open_session", sessionId="s")
            for _ in range(10 * ROUNDS):
                await status(follower, status="paused")
                resumed.append(await timed(client.run("print(1)"), output="1\n"))
    row("a paused session: the next cell", resumed, 0.06)


async def _server(runtime: str) -> None:
    restarted, adopted = [], []
    async with house(runtime, IMAGE) as home:
        server = await home.serve()
        async with _killed(home, server) as client:
            await client.run("x = 1")
        for _ in range(ROUNDS):
            start = time.perf_counter()
            server = await home.serve()
            restarted.append(time.perf_counter() - start)
            async with _killed(home, server) as client:
                await timed(client.run("print(x)"), output="1\n")
                adopted.append(time.perf_counter() - start)
    row("the server is killed: another one listens", restarted)
    row("the server is killed: the next cell", adopted)


async def _abandoned(runtime: str) -> None:
    """Kill servers that nothing replaces, and wait for the ends of their sandboxes. Tests wait less than a minute."""
    ends = await asyncio.gather(_end_alone(runtime, "0"), _end_alone(runtime, "200ms"))
    for name, seconds in zip(("runs", "is paused"), ends, strict=True):
        row(f"no server comes back: a sandbox that {name} ends", [seconds], LINGER + SERVER_RETURNS + SLACK)
        assert seconds >= LINGER + SERVER_RETURNS, seconds


async def _end_alone(runtime: str, idle_timeout: str) -> float:
    async with house(runtime, IMAGE) as home:
        server = await home.serve("--idle-timeout", idle_timeout, linger=f"{LINGER:g}s")
        async with home.connect(server, streams=True) as client:
            await client.send(type="execute_code", sessionId="s", code="x = 1")
            await status(client, status="ready" if idle_timeout == "0" else "paused")
            start = time.perf_counter()
            await server.kill()
        assert await asyncio.to_thread(home.sandboxes)
        while await asyncio.to_thread(home.sandboxes):  # noqa: ASYNC110 - an end without a server tells nobody
            await asyncio.sleep(0.2)
        return time.perf_counter() - start


@contextlib.asynccontextmanager
async def _killed(home: House, server: Server) -> AsyncIterator[Client]:
    async with home.connect(server) as client:
        yield client
        await server.kill()


async def _engine(engine_home: Path) -> None:
    engine = await PrivateEngine.start(engine_home)
    try:
        with tempfile.TemporaryDirectory() as directory, mock.patch.dict(os.environ, DOCKER_HOST=engine.address):
            async with house("docker", IMAGE) as home:
                await _frozen(engine, home, Path(directory) / "probe")
                await _without_image(engine, home)
    finally:
        await engine.stop()


async def _frozen(engine: PrivateEngine, home: House, path: Path) -> None:
    refused, ran, late, cleaned = [], [], [], []
    server = await home.serve(linger="0", program=PROBED.format(path=str(path)))
    probe = Probe(server.process.pid, path)
    async with home.connect(server) as client, home.connect(server) as leaving, home.connect(server) as new:
        await client.run("x = 1")
        for _ in range(ROUNDS):
            await leaving.run("x = 1", session="leaving")
            await asyncio.to_thread(probe.take)
            engine.freeze()
            try:
                await leaving.send(type="close_session", sessionId="leaving", requestId="close")
                refusal = asyncio.create_task(timed(new.run("1", session="new"), code="runtime_unavailable"))
                while not refusal.done():
                    ran.append(await timed(client.run("print(x)"), output="1\n"))
                refused.append(await refusal)
                late.append((await asyncio.to_thread(probe.take))["wall"] / 1e3)
            finally:
                engine.thaw()
            start = time.perf_counter()
            while await asyncio.to_thread(home.containers, "leaving"):
                pass
            cleaned.append(time.perf_counter() - start)
            await leaving.answer_to("close")
    await server.stop()
    row("a frozen engine: a new session is refused", refused, 10)
    row("a frozen engine: a cell in an open session", ran)
    row("a frozen engine: longest turn of the event loop", late, 0.2)
    row("the engine goes on: nothing is left", cleaned, 15)


async def _without_image(engine: PrivateEngine, home: House) -> None:
    server = await home.serve()
    with contextlib.closing(engine.factory()) as api:
        api.images.remove(IMAGE)
    async with home.connect(server) as client:
        refused = [await timed(client.run("1"), code="image_unusable") for _ in range(ROUNDS)]
    row("an absent image: a new session is refused", refused, 5)
