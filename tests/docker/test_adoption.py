"""One runtime leaves its containers, another takes them over."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable

import docker
import pytest

from kernelbridge.errors import SandboxError
from kernelbridge.runtimes.agent.host_directories import HostDirectories
from kernelbridge.runtimes.contract import PreviousSandbox
from kernelbridge.runtimes.docker.runtime import DockerRuntime
from tests.contract.docker_fixture import containers, docker_runtime
from tests.contract.driving import PATIENCE, read_until, run
from tests.docker.conftest import MakeSpec

Open = Callable[[], Awaitable[DockerRuntime]]


@pytest.fixture
async def open_runtime(workspace_image: str, directories: HostDirectories) -> AsyncIterator[Open]:
    """Open runtimes of one instance, one after the other."""
    instance = f"test-{secrets.token_hex(4)}"
    opened: list[DockerRuntime] = []

    async def make() -> DockerRuntime:
        own = HostDirectories(directories.root)  # as another server
        opened.append(await DockerRuntime.open(image=workspace_image, instance=instance, directories=own))
        return opened[-1]

    yield make
    last = await make()
    await last.reclaim()
    for runtime in opened:
        await runtime.aclose()
    assert containers(instance) == []


async def test_processes_are_found_again_and_their_end_is_told(
    open_runtime: Open, new_spec: MakeSpec, directories: HostDirectories
) -> None:
    first = await open_runtime()
    spec = new_spec()
    sandbox = await first.create(spec)
    ended = await sandbox.exec(["sh", "-c", "exit 5"])
    script = "echo one; while [ ! -e go ]; do sleep 0.05; done; echo two; sleep 1000"
    lives = await sandbox.exec(["sh", "-c", script], tty=True)
    await read_until(lives, b"one")
    ends = await sandbox.exec(["sleep", "1000"])
    handles = [process.id for process in (ended, lives, ends)]
    await ended.wait()
    await first.aclose(keep=True)
    (directories.files(spec.workspace_id) / "go").touch()
    second = await open_runtime()
    adopted = (await second.adopt({spec.workspace_id: PreviousSandbox(sandbox.id, sandbox.facts)}))[spec.workspace_id]
    await adopted.resume()
    assert await second.reclaim() == 0
    assert adopted.id == sandbox.id
    again = [await adopted.take(handle) for handle in handles]
    assert [process.pid for process in again[1:]] == [lives.pid, ends.pid]
    async with asyncio.timeout(PATIENCE):
        assert (await again[0].wait()).code == 5
        await read_until(again[1], b"two")
        again[1].resize(30, 90)
        await again[1].signal(15)
        assert (await again[1].wait()).signal == 15
        assert (await run(adopted, "echo", "alive")).output == "alive\n"
        await adopted.destroy()
        assert (await again[2].wait()).lost


async def test_programs_are_ended_but_for_one(open_runtime: Open, new_spec: MakeSpec) -> None:
    first = await open_runtime()
    spec = new_spec()
    sandbox = await first.create(spec)
    spared = await sandbox.exec(["sh", "-c", "setsid sleep 1111 & sleep 2222 & wait"])
    await sandbox.exec(["sh", "-c", "sleep 3333 & sleep 4444"], tty=True)
    await sandbox.exec(["sleep", "5555"])
    await first.aclose(keep=True)
    second = await open_runtime()
    adopted = (await second.adopt({spec.workspace_id: PreviousSandbox(sandbox.id, sandbox.facts)}))[spec.workspace_id]
    await adopted.resume()
    for program in set(await adopted.programs()) - {spared.id}:
        await (await adopted.take(program)).aclose()
    seen = (await run(adopted, "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")).output
    assert [number for number in range(1111, 6000, 1111) if f"sleep {number}" in seen] == [1111, 2222]


async def test_what_is_gone_stopped_or_unknown_is_not_adopted(
    open_runtime: Open, new_spec: MakeSpec, client: docker.DockerClient
) -> None:
    first = await open_runtime()
    specs = [new_spec() for _ in range(5)]
    gone, stopped, unknown, other, paused = [await first.create(spec) for spec in specs]
    await first.aclose(keep=True)
    client.api.remove_container(gone.id, force=True)
    client.api.kill(stopped.id)
    client.api.pause(paused.id)
    known = {
        spec.workspace_id: PreviousSandbox(sandbox.id, sandbox.facts)
        for spec, sandbox in zip(specs, (gone, stopped, unknown, other, paused), strict=True)
    }
    del known[specs[2].workspace_id]
    known[specs[3].workspace_id] = PreviousSandbox("another", other.facts)
    second = await open_runtime()
    adopted = await second.adopt(known)
    assert [sandbox.id for sandbox in adopted.values()] == [paused.id]
    assert await second.reclaim() == 3
    (sandbox,) = adopted.values()
    await sandbox.resume()
    assert (await run(sandbox, "echo", "on")).output == "on\n"


@pytest.mark.parametrize("paused", [False, True])
async def test_a_container_that_no_server_comes_back_to_ends_itself(
    new_spec: MakeSpec,
    client: docker.DockerClient,
    workspace_image: str,
    directories: HostDirectories,
    paused: bool,  # noqa: FBT001 - a parameter
) -> None:
    async with docker_runtime(workspace_image, directories=directories) as runtime:
        sandbox = await runtime.create(new_spec())
        await sandbox.exec(["sleep", "1000"])
        if paused:
            await sandbox.pause()
        sandbox.outlive(0.5)
        sandbox.leave()
        async with asyncio.timeout(20):  # an agent that was told nothing goes on for longer
            assert (await asyncio.to_thread(client.api.wait, sandbox.id))["StatusCode"] == 0


async def test_an_id_of_something_else_leads_nowhere(open_runtime: Open, new_spec: MakeSpec) -> None:
    runtime = await open_runtime()
    sandbox = await runtime.create(new_spec())
    for program in ("", "x", "0", "-1"):
        with pytest.raises(SandboxError, match="cannot be found again"):
            await sandbox.take(program)
