"""Containers that somebody else pauses and resumes, and engines that fail when they are to."""

import asyncio
from pathlib import Path

import docker
import pytest

from kernelbridge.errors import RuntimeUnavailable
from kernelbridge.runtimes.docker.sandbox import DockerSandbox
from tests.contract.docker_fixture import docker_runtime
from tests.contract.driving import run
from tests.docker.conftest import MakeSpec
from tests.docker.faulty_engine import PATIENCE, cuttable_wire


class Told:
    """Collects what `watch_pauses` tells."""

    def __init__(self, sandbox: DockerSandbox) -> None:
        self.news: asyncio.Queue[bool] = asyncio.Queue()
        sandbox.watch_pauses(self.news.put_nowait)

    async def next(self) -> bool:
        async with asyncio.timeout(PATIENCE):
            return await self.news.get()


async def test_a_pause_by_somebody_else_is_told(client: docker.DockerClient, sandbox: DockerSandbox) -> None:
    told = Told(sandbox)
    for _ in range(3):
        await asyncio.to_thread(client.api.pause, sandbox.id)
        assert await told.next() is True
        await asyncio.to_thread(client.api.unpause, sandbox.id)
        assert await told.next() is False
    await asyncio.to_thread(client.api.pause, sandbox.id)
    assert await told.next() is True
    await sandbox.resume()
    assert (await run(sandbox, "echo", "alive")).output == "alive\n"
    assert told.news.empty()


async def test_our_own_pauses_are_no_news(client: docker.DockerClient, sandbox: DockerSandbox) -> None:
    told = Told(sandbox)
    for _ in range(10):
        await sandbox.pause()
        await sandbox.resume()
    await asyncio.to_thread(client.api.pause, sandbox.id)
    assert await told.next() is True  # and nothing before that
    assert told.news.empty()


async def test_a_pause_while_the_engines_events_are_lost_is_told(
    client: docker.DockerClient, new_spec: MakeSpec, workspace_image: str, tmp_path: Path
) -> None:
    async with (
        cuttable_wire(tmp_path / "s") as wire,
        docker_runtime(workspace_image, client_factory=wire.factory) as runtime,
    ):
        sandbox = await runtime.create(new_spec())
        told = Told(sandbox)
        await wire.cut()
        await asyncio.to_thread(client.api.pause, sandbox.id)
        await wire.join()
        assert await told.next() is True
        await sandbox.resume()
        assert (await run(sandbox, "echo", "alive")).output == "alive\n"


async def test_an_engine_that_pauses_too_late_is_noticed(
    new_spec: MakeSpec, workspace_image: str, tmp_path: Path
) -> None:
    async with (
        cuttable_wire(tmp_path / "s") as wire,
        docker_runtime(workspace_image, client_factory=wire.factory) as runtime,
    ):
        sandbox = await runtime.create(new_spec())
        told = Told(sandbox)
        wire.hold(rb"/pause ")
        runtime._engine.timeout = 0.2
        with pytest.raises(RuntimeUnavailable):
            await sandbox.pause()
        runtime._engine.timeout = PATIENCE
        await sandbox.resume()
        wire.release()
        assert await told.next() is True
        await sandbox.resume()
        assert (await run(sandbox, "echo", "alive")).output == "alive\n"


async def test_a_resume_that_the_engine_refuses_because_of_late_news_is_ordered_again(
    new_spec: MakeSpec, workspace_image: str, tmp_path: Path
) -> None:
    async with (
        cuttable_wire(tmp_path / "s") as wire,
        docker_runtime(workspace_image, client_factory=wire.factory) as runtime,
    ):
        sandbox = await runtime.create(new_spec())
        await sandbox.pause()
        wire.refuse_once(b"POST .*/unpause", f"Container {sandbox.id} is not paused")
        await sandbox.resume()
        assert (await run(sandbox, "echo", "alive")).output == "alive\n"
