"""What every runtime promises of a process and of its terminal."""

import asyncio
import contextlib
import hashlib
import signal

import pytest

from kernelbridge.errors import SandboxError
from kernelbridge.runtimes.contract import Sandbox
from tests.contract.driving import (
    IN_SANDBOX_PROCESSES,
    PATIENCE,
    python,
    read_all,
    read_until,
    run,
    start_python,
)

MIB = 1 << 20


# -- starting and ending a process ---------------------------------------------


async def test_output_is_stdout_and_stderr_in_order(sandbox: Sandbox) -> None:
    ran = await run(sandbox, "sh", "-c", "echo one; echo two >&2; echo three")
    assert ran.output == "one\ntwo\nthree\n"
    assert ran.status.code == 0


async def test_exit_code_is_told(sandbox: Sandbox) -> None:
    status = (await run(sandbox, "sh", "-c", "exit 7")).status
    assert (status.code, status.signal, status.oom) == (7, None, False)


async def test_the_signal_that_ended_it_is_told(sandbox: Sandbox) -> None:
    status = (await python(sandbox, "import os, signal; os.kill(os.getpid(), signal.SIGTERM)")).status
    assert (status.code, status.signal, status.oom) == (None, signal.SIGTERM, False)


async def test_environment_is_laid_over_the_sandboxs_own(sandbox: Sandbox) -> None:
    ran = await run(sandbox, "sh", "-c", 'echo "$GREETING|$HOME|$PATH"', env={"GREETING": "hallo, wörld"})
    assert ran.output.strip() == f"hallo, wörld|{sandbox.workspace_path}|{sandbox.facts.env['PATH']}"


async def test_an_overlay_replaces_a_variable(sandbox: Sandbox) -> None:
    ran = await run(sandbox, "/bin/sh", "-c", "echo $HOME", env={"HOME": "/elsewhere"})
    assert ran.output == "/elsewhere\n"


async def test_working_directory(sandbox: Sandbox) -> None:
    assert (await run(sandbox, "pwd")).output.strip() == sandbox.workspace_path
    process = await sandbox.exec(["pwd"], cwd="/tmp")
    assert await read_all(process) == b"/tmp\n"
    await process.aclose()


@pytest.mark.parametrize("tty", [False, True])
async def test_no_such_program(sandbox: Sandbox, tty: bool) -> None:  # noqa: FBT001 - a parameter of the test
    with pytest.raises(SandboxError, match="no-such-program"):
        await sandbox.exec(["no-such-program"], tty=tty)
    assert (await run(sandbox, "true")).status.code == 0


async def test_an_output_of_a_mebibyte_arrives_whole(sandbox: Sandbox) -> None:
    program = "import sys; sys.stdout.buffer.write(bytes(range(256)) * 4096)"
    process = await start_python(sandbox, program)
    output = await read_all(process)
    assert (await process.wait()).code == 0
    await process.aclose()
    assert len(output) == MIB
    assert hashlib.sha256(output).digest() == hashlib.sha256(bytes(range(256)) * 4096).digest()


async def test_stdin_is_empty_without_a_terminal(sandbox: Sandbox) -> None:
    assert (await run(sandbox, "sh", "-c", "cat; echo done")).output == "done\n"


async def test_a_process_without_a_terminal_takes_no_input(sandbox: Sandbox) -> None:
    process = await sandbox.exec(["sleep", "1000"])
    with pytest.raises(BrokenPipeError):
        await process.write(b"x")
    await process.aclose()


async def test_reads_after_the_end_give_nothing(sandbox: Sandbox) -> None:
    process = await sandbox.exec(["echo", "x"])
    assert await read_all(process) == b"x\n"
    assert await process.read() == b""
    await process.aclose()
    assert await process.read() == b""


async def test_any_number_may_wait_for_the_end(sandbox: Sandbox) -> None:
    process = await start_python(sandbox, "import signal; signal.pause()")
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
        waiting = [group.create_task(process.wait()) for _ in range(5)]
        await process.kill()
    assert {task.result().signal for task in waiting} == {signal.SIGKILL}
    assert (await process.wait()).signal == signal.SIGKILL
    await process.aclose()


async def test_a_cancelled_waiter_takes_nobody_along(sandbox: Sandbox) -> None:
    process = await start_python(sandbox, "import signal; signal.pause()")
    first, second = asyncio.create_task(process.wait()), asyncio.create_task(process.wait())
    reader = asyncio.create_task(process.read())
    for task in (first, reader):
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    await process.aclose()
    async with asyncio.timeout(PATIENCE):
        assert (await second).signal == signal.SIGKILL


async def test_two_processes_at_once(sandbox: Sandbox) -> None:
    async with asyncio.TaskGroup() as group:
        ran = [group.create_task(run(sandbox, "sh", "-c", f"echo {n}")) for n in range(8)]
    assert [task.result().output for task in ran] == [f"{n}\n" for n in range(8)]


# -- sessions, groups, signals --------------------------------------------------


async def test_a_process_leads_its_session_and_its_group(sandbox: Sandbox) -> None:
    process = await start_python(sandbox, "import os; print(os.getpid(), os.getsid(0), os.getpgrp())")
    ids = (await read_all(process)).split()
    await process.aclose()
    assert ids == [str(process.pid).encode()] * 3


async def test_a_signal_reaches_the_whole_group(sandbox: Sandbox) -> None:
    process = await start_python(
        sandbox,
        """if 1:
        import os, signal
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGUSR1, signal.SIG_DFL)
            print('ready', flush=True)
            while True:
                signal.pause()
        print('child ended by', os.waitpid(child, 0)[1])
        """,
    )
    await read_until(process, b"ready")
    await process.signal(signal.SIGUSR1)
    assert await read_all(process) == b"child ended by %d\n" % signal.SIGUSR1
    await process.aclose()


async def test_sigint_is_a_keyboard_interrupt(sandbox: Sandbox) -> None:
    process = await start_python(
        sandbox,
        """if 1:
        import os, signal
        r, w = os.pipe()
        os.set_blocking(w, False)
        signal.set_wakeup_fd(w)  # a signal between `print` and `read` is not missed
        try:
            print('ready', flush=True)
            os.read(r, 1)
        except KeyboardInterrupt:
            print('interrupted')
        """,
    )
    await read_until(process, b"ready")
    await process.signal(signal.SIGINT)
    assert b"interrupted" in await read_all(process)
    await process.aclose()


async def test_a_signal_after_the_end_does_nothing(sandbox: Sandbox) -> None:
    process = await sandbox.exec(["true"])
    await process.wait()
    await process.signal(signal.SIGTERM)
    await process.kill()
    await process.kill()
    assert (await process.wait()).code == 0
    await process.aclose()
    await process.aclose()


@pytest.mark.parametrize("tty", [False, True])
async def test_kill_takes_background_jobs_and_grandchildren(sandbox: Sandbox, tty: bool) -> None:  # noqa: FBT001 - as above
    script = "set -m; sleep 77777 & (sleep 77777; :) & sh -c 'sleep 77777; :' & echo rea''dy; wait"
    process = await sandbox.exec(["sh", "-c", script], tty=tty)
    await read_until(process, b"ready")
    await process.kill()
    assert (await process.wait()).signal == signal.SIGKILL
    await process.aclose()
    assert "77777" not in (await python(sandbox, IN_SANDBOX_PROCESSES)).output


async def test_kill_takes_jobs_that_outlived_their_leader(sandbox: Sandbox) -> None:
    process = await sandbox.exec(["sh", "-c", "sleep 66666 >/dev/null 2>&1 & exit 3"])
    assert (await process.wait()).code == 3
    await process.kill()
    await process.aclose()
    assert "66666" not in (await python(sandbox, IN_SANDBOX_PROCESSES)).output


async def test_orphans_are_reaped(sandbox: Sandbox) -> None:
    program = """if 1:
        import os
        r, w = os.pipe()
        if os.fork() == 0:
            parent = os.getpid()
            if os.fork() == 0:
                os.setsid()
                while os.getppid() == parent:
                    os.sched_yield()
                os.write(w, str(os.getpid()).encode())
                os._exit(0)
            os._exit(0)
        os.wait()
        pid = os.read(r, 20).decode()
        while os.path.exists(f'/proc/{pid}'):
            os.sched_yield()
        print('reaped')
    """
    assert (await python(sandbox, program)).output == "reaped\n"


# -- terminals ------------------------------------------------------------------


async def test_a_terminal_is_one(sandbox: Sandbox) -> None:
    program = "import os; print([os.isatty(fd) for fd in range(3)], os.ttyname(0), open('/dev/tty', 'w').isatty())"
    process = await start_python(sandbox, program, tty=True)
    output = await read_all(process)
    await process.aclose()
    assert b"[True, True, True] /dev/pts/" in output
    assert output.endswith(b"True\r\n")


async def test_without_a_terminal_there_is_none(sandbox: Sandbox) -> None:
    assert (await python(sandbox, "import os; print([os.isatty(fd) for fd in range(3)])")).output == (
        "[False, False, False]\n"
    )


async def test_the_terminals_first_size(sandbox: Sandbox) -> None:
    process = await sandbox.exec(["stty", "size"], tty=True, rows=33, cols=121)
    assert await read_all(process) == b"33 121\r\n"
    await process.aclose()


async def test_a_resize_is_seen_and_signalled(sandbox: Sandbox) -> None:
    process = await start_python(
        sandbox,
        """if 1:
        import signal, subprocess
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGWINCH})
        print('ready', flush=True)
        signal.sigwait({signal.SIGWINCH})
        subprocess.run(['stty', 'size'])
        """,
        tty=True,
    )
    await read_until(process, b"ready")
    process.resize(50, 200)
    assert b"50 200\r\n" in await read_all(process)
    await process.wait()
    process.resize(10, 10)
    await process.aclose()


async def test_what_is_written_is_echoed_and_read(sandbox: Sandbox) -> None:
    process = await sandbox.exec(["cat"], tty=True)
    await process.write("grüß\n".encode())
    assert await read_until(process, "grüß\r\ngrüß\r\n".encode()) == "grüß\r\ngrüß\r\n".encode()
    await process.write(b"\x04")
    assert await read_all(process) == b""
    assert (await process.wait()).code == 0
    with pytest.raises(BrokenPipeError):
        await process.write(b"x")
    await process.aclose()


async def test_control_c_interrupts(sandbox: Sandbox) -> None:
    process = await sandbox.exec(["sh", "-c", "echo ready; exec sleep 1000"], tty=True)
    await read_until(process, b"ready")
    await process.write(b"\x03")
    assert b"^C" in await read_all(process)
    assert (await process.wait()).signal == signal.SIGINT
    await process.aclose()


async def test_a_large_input_arrives_whole(sandbox: Sandbox) -> None:
    program = "import sys, tty; tty.setraw(0); print('ready', flush=True); print(len(sys.stdin.buffer.read(300000)))"
    process = await start_python(sandbox, program, tty=True)
    await read_until(process, b"ready")
    async with asyncio.timeout(PATIENCE):
        await process.write(b"x" * 300_000)
    assert b"300000" in await read_all(process)
    await process.aclose()
