"""The local runtime without isolation: its agent is a process of this machine, so nothing but python is needed."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kernelbridge.errors import ImageError, SandboxError
from kernelbridge.runtimes.agent.host_directories import HostDirectories
from kernelbridge.runtimes.contract import ExitStatus, Limits, Sandbox, SandboxSpec
from kernelbridge.runtimes.local.runtime import LocalRuntime
from tests.contract.driving import PATIENCE, on_host, parent, python, read_all, read_until, run


@pytest.fixture
async def runtime(tmp_path: Path) -> AsyncIterator[LocalRuntime]:
    opened = await asyncio.to_thread(
        LocalRuntime, instance="ba4e0001", directories=HostDirectories(tmp_path), isolation=False
    )
    yield opened
    await opened.aclose()


@pytest.fixture
async def spec(tmp_path: Path) -> SandboxSpec:
    HostDirectories(tmp_path).files("bare").mkdir(parents=True)
    return SandboxSpec("bare", Limits(nofile=200, pids=1000))


@pytest.fixture
async def sandbox(runtime: LocalRuntime, spec: SandboxSpec) -> AsyncIterator[Sandbox]:
    made = await runtime.create(spec)
    yield made
    await made.destroy()


@pytest.mark.parametrize(
    ("program", "output", "status"),
    [
        ("echo out; echo err >&2; exit 3", "out\nerr\n", ExitStatus(code=3)),
        ("kill -TERM $$", "", ExitStatus(signal=signal.SIGTERM)),
        ("cat; pwd; ulimit -n", "{home}\n200\n", ExitStatus(code=0)),
    ],
)
async def test_a_program_runs_to_its_end(sandbox: Sandbox, program: str, output: str, status: ExitStatus) -> None:
    ran = await run(sandbox, "sh", "-c", program)
    assert (ran.output, ran.status) == (output.format(home=sandbox.workspace_path), status)


async def test_what_a_killed_server_left_of_its_look_at_python_does_not_matter(runtime: LocalRuntime) -> None:
    (runtime._state_dir / "local-probe" / "left").mkdir(parents=True)
    await runtime.prepare()
    assert not (runtime._state_dir / "local-probe").exists()


async def test_a_terminal_can_be_typed_into_and_resized(sandbox: Sandbox) -> None:
    process = await sandbox.exec(
        ["sh", "-c", "stty size; read word; stty size; echo got $word"], tty=True, rows=7, cols=9
    )
    await read_until(process, b"7 9")
    process.resize(30, 40)
    await process.write(b"hello\n")
    assert (await read_all(process)).decode().split() == ["hello", "30", "40", "got", "hello"]
    assert await process.wait() == ExitStatus(code=0)
    with pytest.raises(BrokenPipeError):
        await process.write(b"more")
    process.resize(1, 1)


async def test_without_a_terminal_nothing_can_be_typed(sandbox: Sandbox) -> None:
    process = await sandbox.exec(["sleep", "100"])
    with pytest.raises(BrokenPipeError):
        await process.write(b"x")
    await process.aclose()


@pytest.mark.parametrize(
    ("argv", "options", "why"),
    [
        (["/no/such/program"], {}, "the program cannot be run: No such file"),
        (["true"], {"cwd": "/no/such/place"}, "its working directory cannot be entered"),
        (["/etc"], {}, "the program cannot be run: Permission denied"),
    ],
)
async def test_what_cannot_be_started_says_why(
    sandbox: Sandbox, argv: list[str], options: dict[str, str], why: str
) -> None:
    with pytest.raises(SandboxError, match=why):
        await sandbox.exec(argv, **options)  # type: ignore[arg-type]  # all of them are texts
    assert (await run(sandbox, "echo", "next")).output == "next\n"


async def test_a_signal_reaches_the_group_and_a_kill_the_session(sandbox: Sandbox) -> None:
    program = "trap 'echo caught; exit 5' INT; sleep 31415 & echo ready; wait"
    process = await sandbox.exec(["sh", "-c", program])
    await read_until(process, b"ready")
    assert on_host("31415")
    await process.signal(signal.SIGINT)
    assert await process.wait() == ExitStatus(code=5)
    await process.signal(signal.SIGINT)  # is nobody's any more
    await process.kill()
    assert on_host("31415") == []
    await process.aclose()


async def test_what_left_the_session_is_found(sandbox: Sandbox) -> None:
    program = "setsid env -i /bin/sh -c 'echo up; exec /bin/sleep 27182' & exec sleep 27182"
    process = await sandbox.exec(["sh", "-c", program])
    await read_until(process, b"up")
    assert len(on_host("27182")) == 2
    await process.prune()
    assert on_host("27182") == [process.pid]
    await process.kill()
    assert on_host("27182") == []
    await process.aclose()


async def test_what_is_paused_goes_on_where_it_was(sandbox: Sandbox) -> None:
    program = "import time\nfor n in range(10**9):\n    print(n, flush=True)\n    time.sleep(.01)"
    process = await sandbox.exec([sandbox.facts.python.executable, "-c", program])
    await read_until(process, b"3\n")
    await sandbox.pause()
    await sandbox.pause()
    assert Path(f"/proc/{process.pid}/stat").read_text().split()[2] == "T"
    late = asyncio.create_task(run(sandbox, "echo", "after"))
    await sandbox.resume()
    await sandbox.resume()
    assert (await late).output == "after\n"
    await read_until(process, b"20\n")
    await process.aclose()


async def test_the_end_of_the_agent_is_the_end_of_all(sandbox: Sandbox) -> None:
    process = await sandbox.exec(["sleep", "16180"])
    os.kill(parent(parent(process.pid)), signal.SIGKILL)
    status = await asyncio.wait_for(sandbox.wait(), PATIENCE)
    assert status.signal == signal.SIGKILL
    assert (await process.wait()).lost
    with pytest.raises(SandboxError, match="the sandbox is gone"):
        await sandbox.exec(["true"])
    with pytest.raises(SandboxError, match="is gone"):
        await sandbox.pause()
    await sandbox.resume()
    await process.prune()
    await process.kill()
    await sandbox.destroy()
    os.kill(process.pid, signal.SIGKILL)  # nothing but a PID namespace takes it along


async def test_destroying_it_ends_all_that_runs(runtime: LocalRuntime, spec: SandboxSpec) -> None:
    sandbox = await runtime.create(spec)
    process = await sandbox.exec(["sh", "-c", "setsid sleep 14142 & exec sleep 14142"])
    await sandbox.destroy()
    await sandbox.destroy()
    assert (await process.wait()).lost
    assert on_host("sleep\0" + "14142") == []
    assert await process.read() == b""


async def test_it_has_no_images_and_adopts_nothing(runtime: LocalRuntime, sandbox: Sandbox) -> None:
    with pytest.raises(ImageError, match="not made of images"):
        await runtime.prepare("debian")
    with pytest.raises(SandboxError, match="none that runs"):
        await sandbox.take("anything")
    assert await runtime.adopt({}) == {}
    assert not runtime.info.own_uids
    assert not (await runtime.prepare()).any_uid


async def test_a_runtime_that_is_closed_makes_none(runtime: LocalRuntime, spec: SandboxSpec) -> None:
    left = await runtime.create(spec)
    await runtime.aclose()
    assert (await left.wait()).signal or (await left.wait()).code is not None
    with pytest.raises(SandboxError, match="the server is stopping"):
        await runtime.create(spec)


async def test_a_directory_that_is_not_there_is_told(runtime: LocalRuntime, tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match="is not a directory"):
        await runtime.create(SandboxSpec("absent"))
    assert list((tmp_path / "run").iterdir()) == []


async def test_every_signal_has_its_default_effect(sandbox: Sandbox) -> None:
    """Python ignores two of its own; they would stay ignored in every program."""
    shown = await run(sandbox, "grep", "-E", "SigIgn|SigBlk", "/proc/self/status")
    assert [int(line.split()[1], 16) for line in shown.output.splitlines()] == [0, 0]
    assert (await python(sandbox, "import os; print(os.environ['OMP_NUM_THREADS'])")).output == "1\n"
