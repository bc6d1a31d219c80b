"""Pauses of containers: ours, which need no engine, and those of somebody else, which are undone."""

import asyncio
import os
from pathlib import Path

import docker

from kernelbridge.runtimes.agent.host_directories import HostDirectories
from kernelbridge.runtimes.docker.runtime import DockerRuntime
from tests.contract.docker_fixture import docker_runtime
from tests.contract.driving import on_host, run, state
from tests.docker.conftest import MakeSpec
from tests.docker.faulty_engine import PATIENCE, CuttableWire, cuttable_wire


async def until_unpaused(client: docker.DockerClient, container: str) -> None:
    async with asyncio.timeout(PATIENCE):
        while (await asyncio.to_thread(client.api.inspect_container, container))["State"]["Paused"]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_container_that_somebody_else_pauses_is_unpaused(
    client: docker.DockerClient, runtime: DockerRuntime, new_spec: MakeSpec
) -> None:
    sandbox = await runtime.create(new_spec())
    mark = f"1000.{os.getpid()}"
    await sandbox.exec(["sleep", mark])
    [sleeping] = on_host(mark)
    for _ in range(3):
        await asyncio.to_thread(client.api.pause, sandbox.id)
        assert (await run(sandbox, "echo", "alive")).output == "alive\n"
        await until_unpaused(client, sandbox.id)  # its programs run before the engine says so, and takes another pause
    await sandbox.pause()
    await asyncio.to_thread(client.api.pause, sandbox.id)
    await until_unpaused(client, sandbox.id)
    assert state(sleeping) == "T"  # which is the server's pause
    await sandbox.resume()
    assert (await run(sandbox, "echo", "alive")).output == "alive\n"


async def test_a_pause_while_the_engines_events_are_lost_is_undone(
    client: docker.DockerClient, new_spec: MakeSpec, directories: HostDirectories, workspace_image: str, tmp_path: Path
) -> None:
    async with (
        cuttable_wire(tmp_path / "s") as wire,
        docker_runtime(workspace_image, client_factory=wire.factory, directories=directories) as runtime,
    ):
        sandbox = await runtime.create(new_spec())
        await wire.cut()
        await asyncio.to_thread(client.api.pause, sandbox.id)
        await wire.join()
        await until_unpaused(client, sandbox.id)
        assert (await run(sandbox, "echo", "alive")).output == "alive\n"


async def test_a_sandbox_is_paused_and_resumed_while_the_engine_hangs(
    wire: CuttableWire, wired: DockerRuntime, new_spec: MakeSpec
) -> None:
    sandbox = await wired.create(new_spec())
    mark = f"2000.{os.getpid()}"
    await sandbox.exec(["sleep", mark])
    [sleeping] = on_host(mark)
    wire.hold(b"")
    await sandbox.pause()
    assert state(sleeping) == "T"
    await sandbox.resume()
    assert state(sleeping) in "SR"
    assert (await run(sandbox, "echo", "alive")).output == "alive\n"
    wire.release()
