"""What every runtime promises of a paused sandbox: nothing runs in it, nothing is lost, and it can be destroyed."""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from kernelbridge.errors import SandboxError
from kernelbridge.runtimes.agent.host_directories import HostDirectories
from kernelbridge.runtimes.contract import ExitStatus, Runtime, Sandbox, SandboxSpec
from tests.contract.conftest import MakeSandbox, MakeSpec
from tests.contract.driving import ISOLATED, PATIENCE, on_host, read_until, run, signal_on_host, start_python, state


def mine(seconds: int) -> str:
    """Seconds that nobody else sleeps on this machine: not the worker beside this one either."""
    return f"{seconds}.{os.getpid()}"


COUNT = """
import mmap, os
fd = os.open('count', os.O_RDWR | os.O_CREAT)
os.truncate(fd, 8)
memory = mmap.mmap(fd, 8)
number = 0
print('counting', flush=True)
while True:
    number += 1
    memory[:] = number.to_bytes(8, 'little')
"""


def count(files: Path) -> int:
    return int.from_bytes((files / "count").read_bytes(), "little")


async def until(there: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not there():  # noqa: ASYNC110  neither the file system nor /proc tells
            await asyncio.sleep(0)


async def test_nothing_runs_until_it_is_resumed(
    runtime: Runtime, make_spec: MakeSpec, directories: HostDirectories
) -> None:
    specs = [make_spec(), make_spec()]
    files = [directories.files(spec.workspace_id) for spec in specs]
    paused, other = [await runtime.create(spec) for spec in specs]
    try:
        for sandbox in (paused, other):
            await read_until(await start_python(sandbox, COUNT), b"counting")
        await until(lambda: count(files[0]) > 0)
        await paused.pause()
        stood, ran = count(files[0]), count(files[1])
        await until(lambda: count(files[1]) > ran + 10_000)
        assert count(files[0]) == stood
        await paused.resume()
        await until(lambda: count(files[0]) > stood)
    finally:
        for sandbox in (paused, other):
            await sandbox.destroy()


async def test_what_is_asked_meanwhile_is_done_afterwards(sandbox: Sandbox) -> None:
    terminal = await sandbox.exec(["cat"], tty=True)
    sleeper = await sandbox.exec(["sleep", "1000"])
    await sandbox.pause()
    await terminal.write(b"typed while it was paused\n")
    started = asyncio.create_task(run(sandbox, "echo", "started while it was paused"))
    signalled = asyncio.create_task(sleeper.signal(signal.SIGTERM))
    await asyncio.wait({started}, timeout=0.2)
    assert not started.done()
    await sandbox.resume()
    async with asyncio.timeout(PATIENCE):
        assert (await started).output == "started while it was paused\n"
        await signalled
        assert await sleeper.wait() == ExitStatus(signal=signal.SIGTERM)
    await read_until(terminal, b"typed while it was paused\r\n")


async def test_pausing_and_resuming_twice_is_no_error(sandbox: Sandbox) -> None:
    await sandbox.resume()
    await asyncio.gather(sandbox.pause(), sandbox.pause())
    await sandbox.pause()
    await asyncio.gather(sandbox.resume(), sandbox.resume())
    await sandbox.resume()
    assert (await run(sandbox, "echo", "alive")).output == "alive\n"


async def test_a_paused_sandbox_is_destroyed_without_being_resumed(make_sandbox: MakeSandbox) -> None:
    sandbox = await make_sandbox()
    process = await sandbox.exec(["sleep", mine(98741)])
    await sandbox.pause()
    reading = asyncio.create_task(process.read())
    waiting = asyncio.create_task(run(sandbox, "true"))
    async with asyncio.timeout(PATIENCE):
        await sandbox.destroy()
        assert (await sandbox.wait()).signal == signal.SIGKILL
        assert await process.wait() == ExitStatus(signal=signal.SIGKILL, lost=True)
        assert await reading == b""
        with pytest.raises(SandboxError, match="gone"):
            await waiting
        await process.aclose()
    assert on_host(mine(98741)) == []
    with pytest.raises(SandboxError, match="gone"):
        await sandbox.pause()
    await sandbox.resume()


async def test_a_sandbox_is_destroyed_while_it_is_being_paused(make_sandbox: MakeSandbox) -> None:
    for _ in range(3):
        sandbox = await make_sandbox()
        await sandbox.exec(["sleep", mine(98742)])
        pausing = asyncio.create_task(sandbox.pause())
        async with asyncio.timeout(PATIENCE):
            await asyncio.sleep(0)  # it has begun
            await sandbox.destroy()
            await asyncio.wait({pausing})
        assert pausing.exception() is None or isinstance(pausing.exception(), SandboxError)
        assert on_host(mine(98742)) == []


FORKING = """
import os, signal
# The kernel sends it to what is stopped in the process group of a leader that is just ending.
signal.signal(signal.SIGHUP, signal.SIG_IGN)
fd = os.open('generation', os.O_WRONLY | os.O_CREAT)
generation = 0
os.pwrite(fd, b'000000000', 0)
print('forking', flush=True)
while True:
    try:
        child = os.fork()
    except BlockingIOError:  # those that have ended are not all reaped yet
        continue
    if child:
        os._exit(0)
    os.setsid()
    generation += 1
    os.pwrite(fd, f'{generation:09}'.encode(), 0)
"""


@ISOLATED
async def test_processes_that_fork_all_the_time_stand_still(sandbox: Sandbox, spec: SandboxSpec, files: Path) -> None:
    """Each lives for a moment only: whoever stops what was found in a list is late."""
    mark = f"forking-{spec.workspace_id}"
    await read_until(await start_python(sandbox, f"{FORKING}# {mark}"), b"forking")
    await sandbox.pause()
    generation = (files / "generation").read_text()
    processes = on_host(mark)
    assert processes, "the chain has ended by itself"
    for _ in range(20):
        assert on_host(mark) == processes
        assert (files / "generation").read_text() == generation
    await sandbox.resume()
    await until(lambda: (files / "generation").read_text() != generation)


FORKING_SLOWLY = """
import os
fd = os.open('generation', os.O_WRONLY | os.O_CREAT)
large = bytearray(400 << 20)  # the time of a fork grows with it
generation = 0
os.pwrite(fd, b'000000000', 0)
print('forking', flush=True)
while True:
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    generation += 1
    os.pwrite(fd, f'{generation:09}'.encode(), 0)
"""


async def test_a_child_whose_birth_the_pause_met_goes_on(sandbox: Sandbox, files: Path) -> None:
    """The kernel stops it when the fork is over; no list of what was stopped has it."""
    await read_until(await start_python(sandbox, FORKING_SLOWLY), b"forking")
    for _ in range(20):
        await sandbox.pause()
        generation = (files / "generation").read_text()
        await sandbox.resume()
        await until(lambda before=generation: (files / "generation").read_text() != before)  # type: ignore[misc]


WOKEN_BY_INPUT = """
import fcntl, os, signal
for request, value in ((fcntl.F_SETOWN, os.getpid()), (fcntl.F_SETSIG, signal.SIGCONT), (fcntl.F_SETFL, os.O_ASYNC)):
    fcntl.fcntl(0, request, value)
"""
"""Lets the kernel send it SIGCONT when something is typed on its terminal."""

WOKEN_BY_A_HELPER = """
import os, signal
main = os.getpid()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while True:
            os.kill(main, signal.SIGCONT)
    os._exit(0)
os.wait()
"""
"""Has a process, in a session of its own, that does nothing but wake it up."""


@ISOLATED
async def test_a_program_that_the_kernel_wakes_up_meanwhile_is_stopped_again(
    sandbox: Sandbox, spec: SandboxSpec, files: Path
) -> None:
    mark = f"woken-{spec.workspace_id}"
    process = await start_python(sandbox, f"{WOKEN_BY_INPUT}{COUNT}# {mark}", tty=True)
    await read_until(process, b"counting")
    [pid] = on_host(mark)
    await sandbox.pause()
    stood = count(files)
    await process.write(b"\n")
    await until(lambda: count(files) > stood)
    await until(lambda: state(pid) == "T")
    stood = count(files)
    await sandbox.resume()
    await until(lambda: count(files) > stood)


@ISOLATED
async def test_a_program_that_another_one_wakes_up_all_the_time_stands_still(
    sandbox: Sandbox, spec: SandboxSpec, files: Path
) -> None:
    mark = f"woken-{spec.workspace_id}"
    await read_until(await start_python(sandbox, f"{WOKEN_BY_A_HELPER}{COUNT}# {mark}"), b"counting")
    assert len(on_host(mark)) == 2  # what stands between them has ended
    await sandbox.pause()
    stood = count(files)
    for _ in range(20):
        assert [state(pid) for pid in on_host(mark)] == ["T", "T"]
    assert count(files) == stood
    await sandbox.resume()
    await until(lambda: count(files) > stood)


async def test_what_was_stopped_before_stays_stopped(sandbox: Sandbox) -> None:
    stopped = await sandbox.exec(["sleep", mine(98743)])
    await stopped.signal(signal.SIGSTOP)
    (pid,) = on_host(mine(98743))
    await until(lambda: state(pid) == "T")
    await sandbox.pause()
    await sandbox.resume()
    assert (await run(sandbox, "echo", "alive")).output == "alive\n"
    assert state(pid) == "T"


async def test_a_shell_does_not_see_that_its_jobs_stood_still(sandbox: Sandbox) -> None:
    assert sandbox.facts.shell.endswith("bash")  # others have no jobs to speak of
    shell = await sandbox.exec(["bash", "--norc", "-i"], tty=True, env={"PS1": "$ "})
    await shell.write(b"sleep 98744 & echo sta''rted\n")
    await read_until(shell, b"started")
    await sandbox.pause()
    await sandbox.resume()
    await shell.write(b"jobs; echo li''sted\n")
    listed = await read_until(shell, b"listed")
    assert b"Running" in listed
    assert b"Stopped" not in listed


async def test_a_process_that_is_killed_meanwhile_is_told_at_the_latest_afterwards(sandbox: Sandbox) -> None:
    process = await sandbox.exec(["sleep", mine(98745)])
    (pid,) = on_host(mine(98745))
    await sandbox.pause()
    signal_on_host(pid, signal.SIGKILL)
    await sandbox.resume()
    async with asyncio.timeout(PATIENCE):
        assert (await process.wait()).signal == signal.SIGKILL
