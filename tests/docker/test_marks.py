"""Ending what has left its session, by a mark in its environment or limits."""

import asyncio

import pytest

from kernelbridge.runtimes.contract import Sandbox
from tests.contract.driving import IN_SANDBOX_PROCESSES, PATIENCE, python, read_until

DAEMON = """if 1:
    import os, signal, sys
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.execvp('sleep', ['sleep', sys.argv[1]])
        os._exit(0)
    os.wait()
"""


@pytest.mark.parametrize("tty", [False, True])
async def test_a_sweep_takes_what_has_the_mark_wherever_it_went(sandbox: Sandbox, tty: bool) -> None:  # noqa: FBT001 - as above
    mark, other = "a5" * 16, "5a" * 16
    daemon = f"{sandbox.facts.python.executable} -c '{DAEMON.replace(chr(39), chr(34))}'"
    script = f"{daemon} 77771; setsid sleep 77772 & nohup sleep 77773 >/dev/null 2>&1 & echo rea''dy; wait"
    marked = await sandbox.exec(["sh", "-c", script], tty=tty, env={"MARK": f"x\n{mark}", "TEXT": "y" * 4000})
    neighbour = await sandbox.exec(["sh", "-c", f"{daemon} 88881; echo rea''dy; sleep 88882"], env={"MARK": other})
    await read_until(marked, b"ready")
    await read_until(neighbour, b"ready")
    await sandbox.sweep(mark)
    await marked.wait()
    processes = (await python(sandbox, IN_SANDBOX_PROCESSES)).output
    assert [number for number in ("77771", "77772", "77773", "88881", "88882") if number in processes] == [
        "88881",
        "88882",
    ]
    await sandbox.sweep(mark)
    await sandbox.sweep(other)
    assert "8888" not in (await python(sandbox, IN_SANDBOX_PROCESSES)).output
    await marked.aclose()
    await neighbour.aclose()


async def test_a_sweep_ends_what_starts_its_children_anew(sandbox: Sandbox) -> None:
    mark = "c3" * 16
    program = """if 1:
        import os
        for _ in range(3):
            if os.fork() == 0:
                os.setsid()
        print('rea' + 'dy', flush=True)
        while True:
            if os.fork() == 0:
                os.execvp('sleep', ['sleep', '99991'])
            os.wait()
    """
    process = await sandbox.exec([sandbox.facts.python.executable, "-c", program], env={"MARK": mark})
    await read_until(process, b"ready\n" * 8)
    async with asyncio.timeout(PATIENCE):
        await sandbox.sweep(mark)
    assert "99991" not in (await python(sandbox, IN_SANDBOX_PROCESSES)).output
    await process.aclose()


async def test_a_sweep_takes_what_threw_its_environment_away_but_kept_its_limits(sandbox: Sandbox) -> None:
    mark = "712345678901234567"
    program = f"""if 1:
        import os, resource, subprocess, time
        subprocess.Popen(['sleep', str(5555 * 10)])
        resource.setrlimit(10, ({mark}, -1))  # RLIMIT_LOCKS, which Linux does not look at
        subprocess.Popen(['setsid', 'env', '-i', '/bin/sleep', str(5555 * 10 + 1)])
        subprocess.Popen(['sleep', str(5555 * 10 + 2)])
        if os.fork() == 0:
            os.setsid()
            time.sleep(9999)
        print('rea' + 'dy', flush=True)
        time.sleep(9999)
    """
    process = await sandbox.exec([sandbox.facts.python.executable, "-c", program])
    await read_until(process, b"ready")
    await sandbox.sweep(mark, spare=process.pid)
    found = (await python(sandbox, IN_SANDBOX_PROCESSES)).output
    assert [n for n in ("55550", "55551", "55552") if n in found] == ["55550"]
    await sandbox.sweep(mark)
    await process.wait()
    await process.aclose()


async def test_a_sweep_of_a_sandbox_that_is_gone_does_nothing(sandbox: Sandbox) -> None:
    await sandbox.destroy()
    await sandbox.sweep("d2" * 16)
