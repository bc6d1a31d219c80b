import asyncio
import secrets
import signal
import threading
from typing import Any

import docker
import pytest
from docker.errors import APIError

from kernelbridge.errors import RuntimeUnavailable, SandboxError
from kernelbridge.runtimes.agent.host_directories import HostDirectories
from kernelbridge.runtimes.contract import ExitStatus, SandboxSpec
from kernelbridge.runtimes.docker.engine import THREADS
from kernelbridge.runtimes.docker.runtime import DockerRuntime
from kernelbridge.runtimes.docker.sandbox import DockerSandbox
from kernelbridge.runtimes.docker.spec import INSTANCE_LABEL, WORKSPACE_LABEL, container_name
from tests.contract.docker_fixture import containers, docker_runtime
from tests.contract.driving import descriptors, read_all, read_until, run
from tests.docker.conftest import MakeSpec
from tests.docker.faulty_engine import PATIENCE, CuttableWire

KILLED = ExitStatus(signal=signal.SIGKILL)
LOST = ExitStatus(signal=signal.SIGKILL, lost=True)


# -- behind the runtime's back --------------------------------------------------


async def test_a_removed_container_ends_everything(client: docker.DockerClient, sandbox: DockerSandbox) -> None:
    plain = await sandbox.exec(["sh", "-c", "echo last words; exec sleep 1000"])
    terminal = await sandbox.exec(["sleep", "1000"], tty=True)
    reading = [asyncio.create_task(read_all(process)) for process in (plain, terminal)]
    waiting = asyncio.create_task(sandbox.wait())
    await asyncio.to_thread(client.api.remove_container, sandbox.id, force=True)
    async with asyncio.timeout(PATIENCE):
        assert await waiting == KILLED
        assert await asyncio.gather(*reading) == [b"last words\n", b""]
        assert [await process.wait() for process in (plain, terminal)] == [LOST, LOST]
    for process in (plain, terminal):
        await process.signal(signal.SIGTERM)
        await process.kill()
        await process.aclose()
    with pytest.raises(SandboxError, match="gone"):
        await sandbox.exec(["true"])
    await sandbox.destroy()


async def test_a_stopped_container_is_told_how_it_ended(client: docker.DockerClient, sandbox: DockerSandbox) -> None:
    async with asyncio.timeout(PATIENCE):
        await asyncio.to_thread(client.api.stop, sandbox.id, timeout=10 * PATIENCE)  # which need not be waited for
        assert await sandbox.wait() == KILLED


async def test_a_stale_container_of_the_same_workspace_is_replaced(
    client: docker.DockerClient, runtime: DockerRuntime, new_spec: MakeSpec, workspace_image: str
) -> None:
    spec = new_spec()
    stale = leave(client, workspace_image, runtime._instance, spec.workspace_id)
    sandbox = await runtime.create(spec)
    assert sandbox.id != stale
    with pytest.raises(docker.errors.NotFound):
        client.api.inspect_container(stale)
    with pytest.raises(SandboxError, match="already has one"):
        await runtime.create(spec)
    assert (await run(sandbox, "true")).status.code == 0


async def test_a_strangers_container_is_never_touched(
    client: docker.DockerClient, runtime: DockerRuntime, new_spec: MakeSpec, workspace_image: str
) -> None:
    spec = new_spec()
    stranger = leave(client, workspace_image, "another", spec.workspace_id, named_by=runtime._instance)
    try:
        with pytest.raises(SandboxError, match="rename or remove it"):
            await runtime.create(spec)
        assert await runtime.reclaim() == 0
        assert client.api.inspect_container(stranger)
    finally:
        client.api.remove_container(stranger, force=True)


async def test_reclaim_removes_what_an_earlier_server_left(
    client: docker.DockerClient, runtime: DockerRuntime, sandbox: DockerSandbox, workspace_image: str
) -> None:
    for _ in range(2):
        leave(client, workspace_image, runtime._instance, secrets.token_hex(8))
    assert await runtime.reclaim() == 2
    assert await runtime.reclaim() == 0
    assert len(containers(runtime._instance)) == 1
    assert (await run(sandbox, "true")).status.code == 0


async def test_what_the_engine_refuses_to_remove_costs_no_start_and_is_removed_later(
    client: docker.DockerClient, workspace_image: str
) -> None:
    held: set[str] = set()

    def factory(**options: Any) -> docker.DockerClient:
        made = docker.from_env(**options)
        really = made.api.remove_container

        def remove(container: str, **how: Any) -> None:
            if container in held:
                raise APIError("driver failed to remove root filesystem: device or resource busy")
            really(container, **how)

        made.api.remove_container = remove  # type: ignore[method-assign, assignment]  # the fault
        return made

    async with docker_runtime(workspace_image, client_factory=factory) as runtime:
        workspaces = [secrets.token_hex(8) for _ in range(3)]
        held.add([leave(client, workspace_image, runtime._instance, workspace) for workspace in workspaces][1])
        assert await runtime.reclaim() == 2
        assert containers(runtime._instance) == [f"/{container_name(runtime._instance, workspaces[1])}"]
        held.clear()
        async with asyncio.timeout(PATIENCE):
            while await asyncio.to_thread(containers, runtime._instance):
                pass


def leave(client: docker.DockerClient, image: str, instance: str, workspace: str, *, named_by: str = "") -> str:
    """Make a container as an earlier server would have."""
    labels = {INSTANCE_LABEL: instance, WORKSPACE_LABEL: workspace}
    name = container_name(named_by or instance, workspace)
    made: str = client.api.create_container(image, ["sleep", "1000"], name=name, labels=labels)["Id"]
    return made


async def test_a_source_the_engine_does_not_see(runtime: DockerRuntime) -> None:
    with pytest.raises(SandboxError, match="same absolute path"):
        await runtime.create(SandboxSpec("absent"))
    assert containers(runtime._instance) == []


# -- cancelled callers ----------------------------------------------------------


async def test_a_cancelled_exec_leaves_no_process(sandbox: DockerSandbox) -> None:
    starting = [asyncio.create_task(sandbox.exec(["sleep", "98765"], tty=tty)) for tty in (False, True)]
    await asyncio.wait(starting, timeout=0)
    for task in starting:
        task.cancel()
    await asyncio.wait(starting)
    assert all(task.cancelled() for task in starting)
    assert "98765" not in (await run(sandbox, "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")).output.replace(
        "cat /proc", ""
    )


async def test_hundreds_of_processes_leave_nothing(runtime: DockerRuntime, new_spec: MakeSpec) -> None:
    sandbox = await runtime.create(new_spec(ptys=200))  # a busy engine gives terminals back late

    async def cycle(number: int) -> None:
        process = await sandbox.exec(["sleep", "1000"], tty=number % 2 == 0)
        await process.kill()
        assert (await process.wait()).signal == signal.SIGKILL
        await process.aclose()

    async def eight(start: int) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(start, start + 8):
                group.create_task(cycle(number))

    await eight(0)
    await runtime._background.settle()
    before = len(descriptors()), len(asyncio.all_tasks())
    for start in range(0, 200, 8):
        await eight(start)
    await runtime._background.settle()
    assert (len(descriptors()), len(asyncio.all_tasks())) == before
    assert sum(thread.name.startswith("docker_") for thread in threading.enumerate()) <= THREADS
    assert repr(sandbox).endswith(" running>")
    await sandbox.destroy()


def own_threads() -> set[str]:
    """Return the names of the threads that are not the event loop's, which it keeps."""
    return {thread.name for thread in threading.enumerate() if not thread.name.startswith("asyncio_")}


async def test_a_closed_runtime_leaves_no_thread_and_no_descriptor(
    workspace_image: str, new_spec: MakeSpec, directories: HostDirectories
) -> None:
    before = own_threads(), descriptors()
    async with docker_runtime(workspace_image, directories=directories) as runtime:
        process = await (await runtime.create(new_spec())).exec(["sleep", "1000"])
    assert await process.wait() == LOST
    await process.aclose()
    assert (own_threads(), descriptors()) == before


# -- an engine that goes away ---------------------------------------------------


async def test_an_engine_that_is_away_costs_open_sandboxes_nothing(
    wire: CuttableWire, wired: DockerRuntime, new_spec: MakeSpec, directories: HostDirectories
) -> None:
    spec = new_spec()
    sandbox = await wired.create(spec)
    ends = await sandbox.exec(["sh", "-c", "echo ready; while [ ! -e end ]; do sleep 0.05; done; echo on; exit 5"])
    terminal = await sandbox.exec(["cat"], tty=True)
    await read_until(ends, b"ready")
    await wire.cut()
    (directories.files(spec.workspace_id) / "end").touch()
    assert await read_all(ends) == b"on\n"
    assert await ends.wait() == ExitStatus(code=5)
    await terminal.write(b"typed\n")
    await read_until(terminal, b"typed\r\ntyped\r\n")
    terminal.resize(33, 44)
    await terminal.signal(signal.SIGTERM)
    assert await terminal.wait() == ExitStatus(signal=signal.SIGTERM)
    assert (await run(sandbox, "echo", "lives")).output == "lives\n"
    with pytest.raises(RuntimeUnavailable, match="start the Docker engine"):
        await wired.create(new_spec())
    await wire.join()


async def test_a_container_that_ends_while_the_engine_is_away_is_known_to_have_ended(
    wire: CuttableWire, wired: DockerRuntime, client: docker.DockerClient, new_spec: MakeSpec
) -> None:
    removed, stopped = [await wired.create(new_spec()) for _ in range(2)]
    process = await removed.exec(["sleep", "1000"])
    await wire.cut()
    await asyncio.to_thread(client.api.remove_container, removed.id, force=True)
    await asyncio.to_thread(client.api.kill, stopped.id)
    async with asyncio.timeout(PATIENCE):
        assert await removed.wait() == ExitStatus()
        assert await process.wait() == LOST
        assert await stopped.wait() == ExitStatus()
    await wire.join()
    async with asyncio.timeout(PATIENCE):
        while await asyncio.to_thread(containers, wired._instance):
            pass


async def test_a_container_whose_agent_breaks_its_protocol_is_removed(
    workspace_image: str, client: docker.DockerClient, new_spec: MakeSpec, directories: HostDirectories
) -> None:
    async with docker_runtime(workspace_image, directories=directories) as runtime:
        sandbox = await runtime.create(new_spec())
        sandbox.outlive(10 * PATIENCE)
        process = await sandbox.exec(["sleep", "1000"])
        sandbox.agent._link._lose("the sandbox's agent broke its protocol")
        assert client.api.inspect_container(sandbox.id)["State"]["Running"]
        async with asyncio.timeout(PATIENCE):
            assert await sandbox.wait() == ExitStatus()
            assert await process.wait() == LOST
            while containers(runtime._instance):  # noqa: ASYNC110 - nothing in the runtime tells it
                await asyncio.sleep(0.05)
        with pytest.raises(SandboxError, match="gone"):
            await sandbox.exec(["true"])
