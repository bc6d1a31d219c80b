"""What every runtime promises of the end of a sandbox, and of its own."""

import asyncio
import contextlib
import os
import signal
import threading
from dataclasses import replace

import pytest

from kernelbridge.errors import SandboxError
from kernelbridge.runtimes.contract import Runtime, Sandbox
from tests.contract.conftest import DECLINED, MakeSandbox, MakeSpec
from tests.contract.driving import (
    ISOLATED,
    PATIENCE,
    children,
    descriptors,
    on_host,
    read_all,
    read_until,
    run,
    start_python,
)


async def test_destroy_is_idempotent_and_ends_wait(make_sandbox: MakeSandbox) -> None:
    sandbox = await make_sandbox()
    waiting = [asyncio.create_task(sandbox.wait()) for _ in range(3)]
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(sandbox.destroy(), sandbox.destroy())
        await sandbox.destroy()
        statuses = await asyncio.gather(*waiting)
        assert len(set(statuses)) == 1
        assert await sandbox.wait() == statuses[0]


async def test_destroy_ends_what_runs_and_what_escaped(make_sandbox: MakeSandbox) -> None:
    sandbox = await make_sandbox()
    marker = f"4444.{os.getpid()}"
    script = f"setsid sleep {marker} >/dev/null 2>&1 & echo started; exec sleep {marker}"
    plain = await sandbox.exec(["sh", "-c", script])
    terminal = await sandbox.exec(["sh", "-c", f"echo started; exec sleep {marker}"], tty=True)
    for process in (plain, terminal):
        await read_until(process, b"\n")
    reading = [asyncio.create_task(read_all(process)) for process in (plain, terminal)]
    await sandbox.destroy()
    assert on_host(marker) == []
    async with asyncio.timeout(PATIENCE):
        assert await asyncio.gather(*reading) == [b"", b""]
        for process in (plain, terminal):
            assert (await process.wait()).code != 0
            await process.signal(signal.SIGTERM)
            process.resize(1, 1)
            await process.aclose()


async def test_nothing_starts_in_a_destroyed_sandbox(make_sandbox: MakeSandbox) -> None:
    sandbox = await make_sandbox()
    await sandbox.destroy()
    with pytest.raises(SandboxError):
        await sandbox.exec(["true"])


@ISOLATED
async def test_killing_everything_from_inside_is_told(make_sandbox: MakeSandbox) -> None:
    sandbox = await make_sandbox()
    victim = await sandbox.exec(["sleep", "1000"])
    killer = await start_python(sandbox, "import os; os.kill(-1, 9)")
    async with asyncio.timeout(PATIENCE):
        await killer.wait()
        assert (await victim.wait()).code != 0
        assert await victim.read() == b""
        # Whether the sandbox itself survives is the runtime's: but it is one or the other.
        try:
            assert (await run(sandbox, "echo", "lives")).output == "lives\n"
        except SandboxError:
            await sandbox.wait()
    await victim.aclose()
    await killer.aclose()


async def test_a_failed_create_leaves_nothing(runtime: Runtime, make_spec: MakeSpec) -> None:
    good = make_spec()
    bad = replace(good, workspace_id="absent")
    before, others, times = len(descriptors()), children(), 20  # of earlier tests, perhaps
    for _ in range(times):
        with pytest.raises(SandboxError, match="absent"):
            await runtime.create(bad)
    assert children().keys() <= others.keys()
    assert len(descriptors()) < before + times  # connections to an engine may be opened and kept, but not one each time
    await (await runtime.create(good)).destroy()


async def test_a_cancelled_create_leaves_nothing(runtime: Runtime, make_spec: MakeSpec) -> None:
    spec = make_spec()
    await (await runtime.create(spec)).destroy()
    before = children()
    creating = asyncio.create_task(runtime.create(spec))
    await asyncio.wait({creating}, timeout=0)
    creating.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await creating
    assert children() == before
    await (await runtime.create(spec)).destroy()


async def test_the_runtimes_end_destroys_its_sandboxes(runtime: Runtime, make_spec: MakeSpec) -> None:
    sandboxes = [await runtime.create(make_spec()) for _ in range(2)]
    await runtime.aclose()
    async with asyncio.timeout(PATIENCE):
        for sandbox in sandboxes:
            await sandbox.wait()
    await runtime.aclose()
    with pytest.raises(SandboxError):
        await runtime.create(make_spec())


async def test_reclaim_leaves_the_living_alone(runtime: Runtime, sandbox: Sandbox) -> None:
    assert await runtime.reclaim() == 0
    assert (await run(sandbox, "true")).status.code == 0


async def test_twenty_sandboxes_leave_nothing(runtime: Runtime, make_spec: MakeSpec) -> None:
    spec = make_spec()

    async def cycle() -> None:
        sandbox = await runtime.create(spec)
        assert (await run(sandbox, "echo", "x")).output == "x\n"
        assert (await run(sandbox, "echo", "x", tty=True)).output == "x\r\n"
        await sandbox.destroy()

    for _ in range(3):  # what is made once and kept, such as a pool of threads
        await cycle()
    before, threads, times = (len(descriptors()), children()), threading.active_count(), 20
    for _ in range(times):
        await cycle()
    assert (len(descriptors()), children()) == before
    assert threading.active_count() < threads + times  # a pool may grow to its size, but not by one each time


async def test_the_runtime_says_what_it_is(runtime: Runtime) -> None:
    assert runtime.info.name in DECLINED
    assert runtime.info.detail
    assert "\n" not in runtime.info.detail + runtime.info.isolation
    assert runtime.info.warning is None


async def test_the_end_of_many_processes_stops_no_program_in_a_terminal(sandbox: Sandbox) -> None:
    terminal = await sandbox.exec(["bash", "--norc", "-i"], tty=True)
    await terminal.write(b"PS1=; sh -c 'echo be''gun; exec sleep 1000'\n")
    await read_until(terminal, b"begun\r\n")
    crowd = await start_python(
        sandbox,
        "import os, signal\nfor _ in range(40): os.fork() or signal.pause()\nprint('all', flush=True)\nsignal.pause()",
    )
    await read_until(crowd, b"all\n")
    await crowd.aclose()
    await terminal.write(b"\x03")
    await terminal.write(b"jobs; echo do''ne\n")
    assert b"Stopped" not in await read_until(terminal, b"done\r\n")
    await terminal.aclose()
