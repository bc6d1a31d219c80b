import asyncio
import secrets
import signal
import threading
from typing import Any

import docker
import pytest
from docker.errors import APIError

from kernelbridge.errors import RuntimeUnavailable, SandboxError
from kernelbridge.runtimes.base import ExitStatus, SandboxSpec
from kernelbridge.runtimes.docker import DockerRuntime
from kernelbridge.runtimes.docker_attach import EventStream
from kernelbridge.runtimes.docker_engine import THREADS
from kernelbridge.runtimes.docker_sandbox import DockerSandbox
from kernelbridge.runtimes.docker_spec import INSTANCE_LABEL, WORKSPACE_LABEL, container_name
from tests.contract.docker_fixture import containers, docker_runtime
from tests.contract.driving import descriptors, read_all, read_until, run, start_python
from tests.docker.conftest import MakeSpec
from tests.docker.faulty_engine import PATIENCE, CuttableWire, sdk_leaves_sockets

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
    await asyncio.to_thread(client.api.kill, sandbox.id, "TERM")
    async with asyncio.timeout(PATIENCE):
        assert await sandbox.wait() == ExitStatus(signal=signal.SIGTERM)


async def test_an_idle_process_that_is_stopped_is_told(runtime: DockerRuntime, new_spec: MakeSpec) -> None:
    sandbox = await runtime.create(new_spec())
    process = await sandbox.exec(["sleep", "1000"])
    stopper = await start_python(sandbox, STOP_IDLE)
    assert (await stopper.wait()).code == 0
    sandbox.control._engine.timeout = 0.5
    with pytest.raises(SandboxError, match="destroy the sandbox"):
        await process.kill()
    sandbox.control._engine.timeout = PATIENCE
    await sandbox.destroy()
    assert await process.wait() == KILLED


STOP_IDLE = """
import os, signal
others = [name for name in os.listdir('/proc') if name.isdigit() and int(name) not in (1, os.getpid())]
for name in others:
    if b'kernelbridge-idle' in open(f'/proc/{name}/cmdline', 'rb').read():
        os.kill(int(name), signal.SIGSTOP)
"""


async def test_noise_on_the_idle_process_output_changes_nothing(sandbox: DockerSandbox) -> None:
    process = await sandbox.exec(["sleep", "1000"])
    await process.signal(0)
    liar = "kernelbridge-control 2 0"
    await run(sandbox, "sh", "-c", f"for i in 1 2 3; do echo {liar}; head -c 300000 /dev/zero; done >/proc/1/fd/1")
    await process.kill()
    assert await process.wait() == KILLED


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


async def test_a_source_the_engine_does_not_see(runtime: DockerRuntime, new_spec: MakeSpec) -> None:
    good = new_spec()
    spec = SandboxSpec(good.workspace_id, good.files / "absent", good.sockets)
    with pytest.raises(SandboxError, match="same absolute path"):
        await runtime.create(spec)
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

    await eight(0)  # the connection to the idle process is made once and kept
    await runtime._background.settle()
    before = len(descriptors()), len(asyncio.all_tasks())
    for start in range(0, 200, 8):
        await eight(start)
    await runtime._background.settle()
    assert (len(descriptors()), len(asyncio.all_tasks())) == before
    assert sum(thread.name.startswith("docker_") for thread in threading.enumerate()) <= THREADS
    assert repr(sandbox).endswith("running, 0 processes>")
    await sandbox.destroy()


async def test_a_closed_runtime_leaves_no_thread_and_no_descriptor(workspace_image: str, new_spec: MakeSpec) -> None:
    await asyncio.to_thread(int)  # the event loop keeps its thread
    before = threading.active_count(), descriptors()
    async with docker_runtime(workspace_image) as runtime:
        process = await (await runtime.create(new_spec())).exec(["sleep", "1000"])
    assert await process.wait() == LOST
    assert (threading.active_count(), descriptors()) == before


# -- an engine that goes away ---------------------------------------------------


@sdk_leaves_sockets
async def test_a_container_that_ends_while_the_engine_is_away(
    wire: CuttableWire, wired: DockerRuntime, client: docker.DockerClient, new_spec: MakeSpec
) -> None:
    removed, stopped, survivor = [await wired.create(new_spec()) for _ in range(3)]
    process = await removed.exec(["sleep", "1000"])
    await wire.cut()
    assert await process.read() == b""
    await asyncio.to_thread(client.api.remove_container, removed.id, force=True)
    await asyncio.to_thread(client.api.kill, stopped.id, "TERM")
    with pytest.raises(RuntimeUnavailable, match="start the Docker engine"):
        await survivor.exec(["true"])
    await wire.join()
    async with asyncio.timeout(PATIENCE):
        assert await removed.wait() == ExitStatus()
        assert await process.wait() == LOST
        assert await stopped.wait() == ExitStatus(signal=signal.SIGTERM)
    assert (await run(survivor, "echo", "lives")).output == "lives\n"


@sdk_leaves_sockets
async def test_a_process_that_ends_while_the_engine_is_away(
    wire: CuttableWire, wired: DockerRuntime, new_spec: MakeSpec
) -> None:
    spec = new_spec()
    sandbox = await wired.create(spec)
    script = "echo ready; while [ ! -e end ]; do sleep 0.05; done; exit 5"
    ends, lives = [await sandbox.exec(["sh", "-c", script]), await sandbox.exec(["sleep", "1000"])]
    await read_until(ends, b"ready")
    await wire.cut()
    (spec.files / "end").touch()
    await wire.join()
    async with asyncio.timeout(PATIENCE):
        assert await ends.wait() == ExitStatus(code=5)
    await lives.kill()
    async with asyncio.timeout(PATIENCE):
        assert await lives.wait() == KILLED


@sdk_leaves_sockets
@pytest.mark.parametrize("tty", [False, True])
async def test_what_became_of_a_process_is_asked_until_the_engine_answers(
    wire: CuttableWire, wired: DockerRuntime, client: docker.DockerClient, new_spec: MakeSpec, *, tty: bool
) -> None:
    """One that is back, and hangs, says nothing when it goes on."""
    spec = new_spec()
    sandbox = await wired.create(spec)
    process = await sandbox.exec(["sh", "-c", "while [ ! -e end ]; do sleep 0.05; done; exit 5"], tty=tty)
    await wire.cut()
    if not tty:
        of_this = {"event": "exec_die", "label": f"{INSTANCE_LABEL}={wired._instance}"}
        events = EventStream(client.api, of_this)
        (spec.files / "end").touch()
        await asyncio.to_thread(next, iter(events))
        events.close()
    wired._engine.timeout = 0.5
    wire.hold(rb"GET .*/exec/|POST .*/attach")
    await wire.join()
    async with asyncio.timeout(PATIENCE):
        await wire.held.get()
        await wired._background.settle()  # until nobody waits for an answer any more
        wired._engine.timeout = PATIENCE
        wire.release()
        assert await process.wait() == (KILLED if tty else ExitStatus(code=5))
