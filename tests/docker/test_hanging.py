"""An engine that is there and does not answer: what it costs, and whom."""

import asyncio
import contextlib
import os
import re
import signal
import socket
from functools import partial
from pathlib import Path

import docker
import pytest
from aiohttp import web

from kernelbridge.errors import RuntimeUnavailable
from kernelbridge.runtimes.agent.host_directories import HostDirectories
from kernelbridge.runtimes.contract import ExitStatus
from kernelbridge.runtimes.docker.events import FIRST_DELAY, EventFollower, EventStream
from kernelbridge.runtimes.docker.runtime import DockerRuntime, probe_engine
from kernelbridge.runtimes.docker.spec import INSTANCE_LABEL
from tests.contract.docker_fixture import docker_runtime
from tests.contract.driving import on_host, run
from tests.docker.conftest import MakeSpec
from tests.docker.faulty_engine import PATIENCE, CuttableWire, PrivateEngine

KILLED = ExitStatus(signal=signal.SIGKILL)
LOST = ExitStatus(signal=signal.SIGKILL, lost=True)


async def test_a_container_that_starts_too_late_is_removed(
    wire: CuttableWire,
    workspace_image: str,
    client: docker.DockerClient,
    new_spec: MakeSpec,
    directories: HostDirectories,
) -> None:
    """One that the engine makes too late: `tests/faults/test_slow_engine.py`."""
    async with docker_runtime(workspace_image, client_factory=wire.factory, directories=directories) as runtime:
        await runtime.prepare()
        of_this = {"event": "destroy", "label": f"{INSTANCE_LABEL}={runtime._instance}"}
        events = EventStream(client.api, of_this)
        destroyed = asyncio.create_task(asyncio.to_thread(next, iter(events)))
        runtime._engine.timeout = 0.5
        wire.hold(rb"POST .*/containers/\w+/start")
        with pytest.raises(RuntimeUnavailable, match=r"longer than 0\.5 s"):
            await runtime.create(new_spec())
        assert not wire.held.empty()
        runtime._engine.timeout = PATIENCE
        wire.release()
        async with asyncio.timeout(PATIENCE):
            assert (await destroyed)["Action"] == "destroy"
        events.close()


async def test_an_engine_that_hangs_costs_open_sandboxes_nothing_and_a_new_one_one_time_out(
    wire: CuttableWire, wired: DockerRuntime, new_spec: MakeSpec
) -> None:
    sandbox = await wired.create(new_spec())
    processes = [await sandbox.exec(["sleep", "1000"], tty=tty) for tty in (False, True)]
    wired._engine.timeout = 0.5
    wire.hold(b"")
    assert (await run(sandbox, "echo", "lives")).output == "lives\n"
    for process in processes:
        await process.kill()
        assert await process.wait() == KILLED
    with pytest.raises(RuntimeUnavailable, match="longer than"):
        await wired.create(new_spec())
    wired._engine.timeout = PATIENCE
    wire.release()


async def test_what_runs_in_a_container_that_cannot_be_removed_yet_ends_at_once(
    wire: CuttableWire, wired: DockerRuntime, new_spec: MakeSpec
) -> None:
    sandbox = await wired.create(new_spec())
    mark = f"1000.{os.getpid()}"
    processes = [await sandbox.exec(["sleep", mark]) for _ in range(2)]
    assert len(on_host(mark)) == 2
    wired._engine.timeout = 0.5
    wire.hold(b"")
    with pytest.raises(RuntimeUnavailable):
        await sandbox.destroy()
    async with asyncio.timeout(PATIENCE):
        for process in processes:
            await process.aclose()
            assert await process.wait() == LOST
        while on_host(mark):  # noqa: ASYNC110 - no event tells it
            await asyncio.sleep(0.01)
        wired._engine.timeout = PATIENCE
        wire.release()
        assert await sandbox.wait() == KILLED


async def test_those_who_wait_for_a_turn_hear_of_an_engine_that_hangs(wire: CuttableWire, wired: DockerRuntime) -> None:
    await wired.prepare()
    wired._engine.timeout = 0.5
    wire.hold(rb"GET .*/images/")
    async with asyncio.timeout(PATIENCE):
        results = await asyncio.gather(*(wired.prepare() for _ in range(40)), return_exceptions=True)
    assert {type(result) for result in results} == {RuntimeUnavailable}
    wire.release()
    wired._engine.timeout = PATIENCE
    await wired.prepare()


@pytest.mark.parametrize(
    ("before", "request_line"),
    [
        (rb"GET .*/images/", rb"POST .*/containers/create"),
        (rb"POST .*/containers/\w+/start", rb"GET .*/containers/\w+/logs"),
    ],
)
async def test_an_engine_that_hangs_while_an_image_is_tried_is_not_the_images_fault(
    wire: CuttableWire, wired: DockerRuntime, before: bytes, request_line: bytes
) -> None:
    """And costs all who wait for the image one time-out, not one each."""
    wired._engine.timeout = PATIENCE
    wire.hold(before)
    all_of_them = [asyncio.create_task(wired.prepare()) for _ in range(5)]
    async with asyncio.timeout(PATIENCE):
        await wire.held.get()
        # What comes before may take its time on a busy machine.
        wired._engine.timeout = 0.5
        wire.release()
        wire.hold(request_line)
        results = await asyncio.gather(*all_of_them, return_exceptions=True)
    assert {type(result) for result in results} == {RuntimeUnavailable}
    held = [wire.held.get_nowait() for _ in range(wire.held.qsize())]
    assert len([line for line in held if re.match(request_line, line)]) == 1
    wire.release()
    wired._engine.timeout = PATIENCE
    await wired.prepare()


async def test_no_engine_is_told_why(tmp_path: Path, workspace_image: str) -> None:
    nowhere = CuttableWire(tmp_path / "nowhere")
    info = await probe_engine(nowhere.factory)
    assert not info.available
    assert "start the Docker engine" in info.reason
    with pytest.raises(RuntimeUnavailable, match="start the Docker engine"):
        await DockerRuntime.open(
            image=workspace_image, instance="x", directories=HostDirectories(tmp_path), client_factory=nowhere.factory
        )


async def test_a_frozen_engine_blocks_nobody(tmp_path_factory: pytest.TempPathFactory, workspace_image: str) -> None:
    home = tmp_path_factory.mktemp("engine")
    engine = await PrivateEngine.start(home)
    try:
        info = await probe_engine(engine.factory)
        assert info.available
        assert info.version in str(info)
        runtime = await DockerRuntime.open(
            image=workspace_image,
            instance="frozen",
            directories=HostDirectories(home),
            client_factory=engine.factory,
            call_timeout=5.0,
        )
        async with asyncio.timeout(PATIENCE), contextlib.aclosing(runtime):
            engine.freeze()
            preparing = asyncio.create_task(runtime.prepare())
            await a_hundred_turns()
            assert not preparing.done()
            with pytest.raises(RuntimeUnavailable, match="longer than 5 s"):
                await preparing
            info = await probe_engine(engine.factory, timeout=0.5)
            assert "longer than 0.5 s" in info.reason
    finally:
        await engine.stop()


async def test_an_engine_that_refuses_to_tell_its_events_is_asked_less_and_less(tmp_path: Path) -> None:
    """It is not taken for one that does: all that may have been missed would be asked for each time."""
    asked: asyncio.Queue[None] = asyncio.Queue()

    async def version(_request: web.Request) -> web.Response:
        return web.json_response({"ApiVersion": "1.41"})

    async def events(_request: web.Request) -> web.Response:
        asked.put_nowait(None)
        return web.json_response({"message": "forbidden"}, status=403)

    app = web.Application()
    app.add_routes([web.get("/version", version), web.get("/v1.41/events", events)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "proxy")).start()
    connected: list[None] = []
    follower = EventFollower(
        partial(docker.DockerClient, base_url=f"unix://{tmp_path / 'proxy'}", version="auto"),
        label="x",
        on_event=lambda _event: None,
        on_connected=lambda: connected.append(None),
    )
    async with asyncio.timeout(PATIENCE):
        for _ in range(3):
            await asked.get()
    follower.stop()
    await asyncio.to_thread(follower._thread.join)
    await runner.cleanup()
    assert connected == []
    assert follower._delay > FIRST_DELAY


async def a_hundred_turns() -> None:
    """Go round the event loop."""
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    echo_reader, echo_writer = await asyncio.open_connection(sock=theirs)
    for _ in range(100):
        writer.write(b"x")
        echo_writer.write(await echo_reader.readexactly(1))
        await reader.readexactly(1)
    for end in (writer, echo_writer):
        end.close()
        await end.wait_closed()
