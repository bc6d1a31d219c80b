"""Kernels whose end fails: each of its steps is done all the same, and no caller waits for ever."""

from __future__ import annotations

import asyncio
import gc
import signal
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from kernelbridge.errors import KernelError, SandboxError
from kernelbridge.jupyter.end_causes import process_ended
from kernelbridge.jupyter.startup import ProcessOutput, wait_started
from kernelbridge.runtimes.agent import host_directories
from kernelbridge.runtimes.agent.host_directories import HostSockets
from kernelbridge.runtimes.contract import ExitStatus, Process
from kernelbridge.trees import remove_tree
from tests.unit.jupyter.conftest import PATIENCE, HostProcess, HostSandbox, Notebook
from tests.unit.jupyter.test_faults import faulty


class FailingCloseProcess(HostProcess):
    """The first attempt to end it fails."""

    closes = 0

    async def aclose(self) -> None:
        self.closes += 1
        if self.closes == 1:
            raise SandboxError("The process could not be ended", "the engine is away")
        await super().aclose()


class SlowCloseProcess(HostProcess):
    """Its end waits for the test."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        super().__init__(process)
        self.entered, self.let_go = asyncio.Event(), asyncio.Event()

    async def aclose(self) -> None:
        self.entered.set()
        await self.let_go.wait()
        await super().aclose()


class LostStatusProcess(HostProcess):
    """Its exit status is unknown."""

    async def wait(self) -> ExitStatus:
        await super().wait()
        raise SandboxError("The process is unknown", "the engine has forgotten it")


class FaultySandbox(HostSandbox):
    """A sandbox whose processes have a fault."""

    def __init__(self, root: Path, kind: type[HostProcess]) -> None:
        super().__init__(root)
        self._kind = kind

    async def exec(self, *args: Any, **kwargs: Any) -> Process:
        plain = await super().exec(*args, **kwargs)
        assert isinstance(plain, HostProcess)
        process = self._kind(plain._process)
        self.processes.append(process)
        return process


NewNotebook = Callable[[type[HostProcess]], Any]


@pytest_asyncio.fixture
async def new_faulty(tmp_path: Path) -> AsyncIterator[NewNotebook]:
    made: list[Notebook] = []

    async def make(kind: type[HostProcess]) -> Notebook:
        notebook = Notebook(FaultySandbox(tmp_path, kind))
        made.append(notebook)
        return await notebook.start(faulty("never answers"))

    yield make
    for notebook in made:
        await notebook.close()


def directory(notebook: Notebook) -> Path:
    return notebook.sandbox.shared.host / "k1"


async def test_a_failing_close_does_every_step_and_can_be_tried_again(new_faulty: NewNotebook) -> None:
    notebook = await new_faulty(FailingCloseProcess)
    kernel, process = notebook.kernel, notebook.sandbox.processes[-1]
    done = notebook.send("x")
    sockets = kernel._sockets._directory
    assert isinstance(sockets, HostSockets)
    held = [*sockets._sockets, sockets._fd]
    with pytest.raises(SandboxError, match="could not be ended"):
        await kernel.aclose()
    assert done.result().cause == "session_closed"
    assert kernel.died.result() == ExitStatus()
    assert all(task.done() for task in kernel._tasks)
    assert not any(str(directory(notebook)) in str(Path(f"/proc/self/fd/{fd}").resolve()) for fd in held)
    assert not directory(notebook).exists()
    await kernel.aclose()
    assert process._ended.done()
    await kernel.aclose()
    assert process.closes == 2


async def test_every_caller_waits_for_the_same_close(new_faulty: NewNotebook) -> None:
    notebook = await new_faulty(SlowCloseProcess)
    process = notebook.sandbox.processes[-1]
    first = asyncio.ensure_future(notebook.kernel.aclose())
    await asyncio.wait_for(process.entered.wait(), PATIENCE)
    second = asyncio.ensure_future(notebook.kernel.aclose())
    left: list[bool] = []
    second.add_done_callback(lambda _: left.append(directory(notebook).exists()))
    first.cancel()  # who gives up waiting does not undo it for the others
    assert not notebook.kernel.alive
    process.let_go.set()
    await asyncio.wait_for(second, PATIENCE)
    assert left == [False]
    assert first.cancelled()


async def test_a_kernel_with_an_unknown_status_has_died(new_faulty: NewNotebook) -> None:
    notebook = await new_faulty(LostStatusProcess)
    done = notebook.send("x")
    await notebook.kernel.kill()
    assert await asyncio.wait_for(asyncio.shield(notebook.kernel.died), PATIENCE) == ExitStatus()
    assert done.result().error == "KernelDied: the kernel ended (unknown status); its variables are lost"
    assert not notebook.kernel.alive
    with pytest.raises(KernelError):
        notebook.send("x")


async def test_a_cancelled_start_logs_nothing() -> None:
    """Its later errors are not logged."""
    loop = asyncio.get_running_loop()
    complaints: list[object] = []
    loop.set_exception_handler(lambda _loop, context: complaints.append(context))
    fails = asyncio.Event()

    async def bring_up() -> None:
        await fails.wait()
        raise KernelError("The kernel is dead", "the session was closed")

    work, died = loop.create_task(bring_up()), loop.create_future()
    starting = loop.create_task(wait_started(work, died, PATIENCE, ProcessOutput(), fault=lambda: None))
    await asyncio.sleep(0)
    starting.cancel()
    fails.set()
    await asyncio.wait({starting, work})
    del starting, work
    gc.collect()
    assert complaints == []


def test_a_bus_error_is_explained() -> None:
    """Nothing else says that a mapped file had no memory."""
    ended = process_ended(ExitStatus(signal=signal.SIGBUS))
    assert (ended.cause, ended.signal) == ("kernel_died", "SIGBUS")
    assert "/dev/shm" in ended.error
    assert "/dev/shm" in process_ended(ExitStatus(signal=signal.SIGKILL, oom=True)).error
    assert "/dev/shm" not in process_ended(ExitStatus(signal=signal.SIGSEGV)).error


async def test_its_directory_is_made_and_removed_beside_the_event_loop(
    new_notebook: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session can put millions of files into it, and removing them takes as long."""
    threads = []

    def seen(path: Path) -> None:
        threads.append(threading.current_thread())
        remove_tree(path)

    monkeypatch.setattr(host_directories, "remove_tree", seen)
    notebook = await new_notebook()
    await notebook.kernel.aclose()
    assert len(threads) == 2
    assert threading.main_thread() not in threads
