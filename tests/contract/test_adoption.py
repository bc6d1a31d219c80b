"""What every runtime that adopts promises: another one with the same data adopts what it left, or ends it."""

import asyncio
import os
import secrets
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from kernelbridge.errors import SandboxError
from kernelbridge.runtimes.agent.host_directories import HostDirectories
from kernelbridge.runtimes.contract import PreviousSandbox, Runtime, Sandbox, SandboxSpec
from kernelbridge.runtimes.local.notes import Notes
from kernelbridge.runtimes.local.runtime import LocalRuntime
from tests.contract.driving import PATIENCE, make_files, on_host, read_until, run, state
from tests.contract.tiny_runtime import TinyRuntime

Open = Callable[[], Awaitable[Runtime]]


@pytest.fixture(params=["docker", "local", "local, not isolated", "tiny"])
async def successors(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Open]:
    """Open one runtime after another over the same data; the last one is closed, and leaves nothing."""
    instance = secrets.token_hex(4)
    opened: list[Runtime] = []

    async def another() -> Runtime:
        directories = HostDirectories(tmp_path)
        if request.param == "docker":
            from kernelbridge.runtimes.docker.runtime import DockerRuntime  # noqa: PLC0415 - the rest needs no engine

            image = request.getfixturevalue("workspace_image")
            opened.append(await DockerRuntime.open(image=image, instance=instance, directories=directories))
        elif request.param == "tiny":
            opened.append(TinyRuntime(directories))
        else:
            isolation = request.param == "local"
            made = await asyncio.to_thread(
                LocalRuntime, instance=instance, directories=directories, isolation=isolation
            )
            opened.append(made)
        return opened[-1]

    yield another
    last = await another()
    await last.reclaim()
    for runtime in opened:
        await runtime.aclose()
    assert Notes(tmp_path / "local" / "sandboxes").read() == []
    assert list((tmp_path / "tiny").glob("*.json")) == []
    assert list((tmp_path / "run").iterdir()) == []
    assert list(Path("/sys/fs/cgroup").glob(f"*/kernelbridge/{instance}")) == []
    reap()


def reap() -> None:
    """Reap the children that their runtime has left, as another process would for a dead server."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


async def make(runtime: Runtime, home: Path, name: str = "ada") -> Sandbox:
    facts = await runtime.prepare()
    spec = SandboxSpec(f"{name}{os.getpid():x}")
    make_files(HostDirectories(home), spec.workspace_id, facts.uid, facts.gid)
    return await runtime.create(spec)


def known(sandbox: Sandbox, name: str = "ada") -> dict[str, PreviousSandbox]:
    return {f"{name}{os.getpid():x}": PreviousSandbox(sandbox.id, sandbox.facts)}


async def test_what_is_left_is_adopted_with_what_runs_in_it(successors: Open, tmp_path: Path) -> None:
    first = await successors()
    assert first.info.adopts
    sandbox = await make(first, tmp_path)
    mark = f"1212.{os.getpid()}"
    process = await sandbox.exec(["sh", "-c", f"sleep {mark}; exit 3"])
    async with asyncio.timeout(PATIENCE):
        while not on_host(f"sleep\0{mark}"):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)
    other = await sandbox.exec(["sh", "-c", "echo up; sleep 1000"])
    await read_until(other, b"up")
    await first.aclose(keep=True)
    second = await successors()
    left = known(sandbox)
    nobody = {"b0b": PreviousSandbox("b0b-1", sandbox.facts)}
    adopted = await second.adopt({**left, **nobody})
    assert adopted.keys() == left.keys()
    [again] = adopted.values()
    assert await second.reclaim() == 0
    await again.resume()
    assert (again.id, again.workspace_path) == (sandbox.id, sandbox.workspace_path)
    assert sorted(await again.programs()) == sorted([process.id, other.id])
    with pytest.raises(SandboxError, match="cannot be found again"):
        await again.take("none")
    await (await again.take(other.id)).aclose()
    assert await again.programs() == [process.id]
    same = await again.take(process.id)
    assert (same.id, same.pid) == (process.id, process.pid)
    assert (await run(again, "echo", "next")).output == "next\n"
    [sleeping] = on_host(f"sleep\0{mark}")
    os.kill(sleeping, signal.SIGKILL)
    async with asyncio.timeout(PATIENCE):
        assert (await same.wait()).code == 3
    await again.destroy()
    assert (await again.wait()).signal == signal.SIGKILL


async def test_what_was_paused_goes_on(successors: Open, tmp_path: Path) -> None:
    first = await successors()
    sandbox = await make(first, tmp_path)
    mark = f"3434.{os.getpid()}"
    await sandbox.exec(["sleep", mark])
    [sleeping] = on_host(mark)
    await sandbox.pause()
    await first.aclose(keep=True)
    second = await successors()
    [again] = (await second.adopt(known(sandbox))).values()
    await again.resume()
    assert state(sleeping) in "SR"  # it may be just about to go on
    await again.pause()
    await again.resume()
    assert (await run(again, "echo", "goes on")).output == "goes on\n"


async def test_what_is_not_adopted_is_ended(successors: Open, tmp_path: Path) -> None:
    first = await successors()
    kept, ended = await make(first, tmp_path), await make(first, tmp_path, "eve")
    mark = f"5656.{os.getpid()}"
    process = await ended.exec(["sh", "-c", f"setsid sleep {mark} & echo up; exec sleep {mark}"])
    await read_until(process, b"up")
    await first.aclose(keep=True)
    second = await successors()
    [again] = (await second.adopt(known(kept))).values()
    assert await second.reclaim() == 1
    assert on_host(f"sleep\0{mark}") == []
    assert await second.adopt(known(ended, "eve")) == {}
    await again.resume()
    assert (await run(again, "true")).status.code == 0


async def test_the_end_of_an_adopted_one_is_told(successors: Open, tmp_path: Path) -> None:
    first = await successors()
    sandbox = await make(first, tmp_path)
    await first.aclose(keep=True)
    second, third = await successors(), await successors()
    [again] = (await second.adopt(known(sandbox))).values()
    await again.resume()
    await third.reclaim()  # behind its back
    async with asyncio.timeout(PATIENCE):
        await again.wait()
    with pytest.raises(SandboxError):
        await again.exec(["true"])
    await again.destroy()
