"""What every runtime promises of its agent: whom it lets in, and what it ends."""

import asyncio
import os
import signal

import pytest

from kernelbridge.runtimes.agent.sandbox import AgentSandbox
from kernelbridge.runtimes.contract import Process, Runtime, Sandbox
from tests.contract.driving import (
    IN_SANDBOX_PROCESSES,
    ISOLATED,
    LIMITED,
    PATIENCE,
    python,
    read_all,
    read_until,
    run,
    start_python,
)


def mine(number: int) -> str:
    """A number that no other run's programs sleep for."""
    return f"{number}.{os.getpid()}"


async def sleepers(sandbox: Sandbox) -> list[str]:
    """The numbers that programs sleep for."""
    lines = (await python(sandbox, IN_SANDBOX_PROCESSES)).output.splitlines()
    return sorted(line.split()[2] for line in lines if line.split()[1:2] == ["sleep"])


LEAVING = """if 1:
    import os, subprocess, sys, time
    number = sys.argv[1]
    subprocess.Popen(['sleep', number], start_new_session=True)
    subprocess.Popen(['env', '-i', '/usr/bin/setsid', '-f', 'sleep', number + '1'])
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execve('/bin/sleep', ['sleep', number + '2'], {})
        os._exit(0)
    os.wait()
    subprocess.run(['sh', '-c', f'nohup sleep {number}3 >/dev/null 2>&1 &'])
    while os.popen('ps -eo args').read().count('sleep ' + number) < 4:
        time.sleep(0.01)
    print('up', flush=True)
    time.sleep(9999)
"""


async def leaving(sandbox: Sandbox, number: str, *, tty: bool) -> Process:
    """Start what leaves daemons of every kind behind: `number` and three that begin with it."""
    process = await sandbox.exec([sandbox.facts.python.executable, "-c", LEAVING, number], tty=tty)
    await read_until(process, b"up")
    return process


@pytest.mark.parametrize("tty", [False, True])
async def test_kill_and_prune_take_daemons_of_every_kind_and_no_neighbour(sandbox: Sandbox, tty: bool) -> None:  # noqa: FBT001 - a parameter
    neighbour = await leaving(sandbox, mine(7000), tty=tty)
    killed, pruned = await leaving(sandbox, mine(8000), tty=tty), await leaving(sandbox, mine(9000), tty=tty)
    assert len(await sleepers(sandbox)) == 12
    await killed.kill()
    assert (await killed.wait()).signal == signal.SIGKILL
    await pruned.prune()
    assert await sleepers(sandbox) == [mine(7000) + digit for digit in ("", "1", "2", "3")]
    assert await run_state(sandbox, pruned.pid) == "S"
    await neighbour.kill()
    assert await sleepers(sandbox) == []


async def run_state(sandbox: Sandbox, pid: int) -> str:
    return (
        await python(sandbox, f"print(open('/proc/{pid}/stat').read().rpartition(')')[2].split()[0])")
    ).output.strip()


FORKS = """if 1:
    import os
    print('up', flush=True)
    while True:
        try:
            if os.fork() == 0:
                os.setsid()
        except OSError:
            pass
"""


@LIMITED
@pytest.mark.parametrize("how", ["kill", "prune"])
async def test_a_fork_bomb_at_the_limit_of_processes_is_ended(runtime: Runtime, make_spec: object, how: str) -> None:
    sandbox = await runtime.create(make_spec(pids=60))  # type: ignore[operator]  # a fixture of this suite
    try:
        spared = await sandbox.exec(["sleep", "4242"])
        program = FORKS if how == "kill" else f"import os, time\nif os.fork(): time.sleep(999)\n{FORKS}"
        bomb = await start_python(sandbox, program)
        await read_until(bomb, b"up")
        async with asyncio.timeout(PATIENCE):
            while await sandbox.crowded() is False:  # noqa: ASYNC110 - no event tells it
                await asyncio.sleep(0.01)
            await (bomb.kill() if how == "kill" else bomb.prune())
            assert await sleepers(sandbox) == ["4242"]
            await bomb.kill()
        assert (await python(sandbox, IN_SANDBOX_PROCESSES)).output.count("\n") <= 6
        await spared.aclose()
    finally:
        await sandbox.destroy()


CONNECT = """if 1:
    import os, socket, sys
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        peer.connect(sys.argv[1] + '/agent/socket')
        print('connected', peer.recv(100))
    except OSError as exc:
        print(type(exc).__name__)
    for name in ('mem', 'environ', 'fd', 'maps'):
        try:
            os.listdir('/proc/1/fd') if name == 'fd' else open(f'/proc/1/{name}', 'rb').read(1)
            print('looked into', name)
        except PermissionError:
            pass
"""


@ISOLATED
async def test_no_program_in_it_speaks_to_its_agent(sandbox: Sandbox) -> None:
    words = [sandbox.facts.python.executable, "-c", CONNECT, sandbox.shared.path]
    assert (await run(sandbox, *words)).output == "PermissionError\n"
    # Even where the directory cannot be closed to it, because the server is the same user.
    assert isinstance(sandbox, AgentSandbox)
    (sandbox.shared.host / "agent").chmod(0o755)
    assert (await run(sandbox, *words)).output == "connected b''\n"
    assert (await run(sandbox, "echo", "lives")).output == "lives\n"


@ISOLATED
async def test_the_end_of_all_that_its_user_may_end_is_told(sandbox: Sandbox) -> None:
    process = await leaving(sandbox, mine(5000), tty=False)
    other = await sandbox.exec(["sleep", mine(6000)])
    killer = await sandbox.exec(["sh", "-c", "read go; kill -9 -1"], tty=True)
    await killer.write(b"\n")  # not before it has started: who kills its keeper earlier was never started
    async with asyncio.timeout(PATIENCE):
        await killer.wait()
        assert (await process.wait()).signal == signal.SIGKILL
        assert (await other.wait()).signal == signal.SIGKILL
    assert await sleepers(sandbox) == []


async def test_who_kills_a_keeper_ends_its_program_alone(sandbox: Sandbox) -> None:
    process = await leaving(sandbox, mine(5000), tty=False)
    other = await sandbox.exec(["sleep", mine(6000)])
    await python(sandbox, f"import os; os.kill(int(open('/proc/{process.pid}/stat').read().split()[3]), 9)")
    async with asyncio.timeout(PATIENCE):
        assert (await process.wait()).signal == signal.SIGKILL
        await process.kill()
    assert await sleepers(sandbox) == [mine(6000)]
    await other.kill()


async def test_a_terminal_is_the_sandboxs_own(sandbox: Sandbox) -> None:
    process = await sandbox.exec(["sh", "-c", "tty; echo typed >$(tty); ls -l $(tty); id -u"], tty=True)
    said = (await read_all(process)).decode().split()
    await process.aclose()
    assert said[0].startswith("/dev/pts/")
    assert said[1] == "typed"
    assert said[-1] == str(sandbox.facts.uid)
