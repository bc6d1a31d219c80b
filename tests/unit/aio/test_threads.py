"""Long work in slices shares its thread, and a cancellation waits for the thread before anything is closed."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor

import pytest

from kernelbridge.aio.threads import BlockingWork, in_thread, in_turns
from tests.unit.workspace.files.at_once import finish


@pytest.fixture
def one_thread() -> Iterator[Executor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


def endless(began: threading.Event, stop: threading.Event, log: list[str]) -> BlockingWork[str]:
    try:
        while not stop.is_set():
            began.set()
            yield
        return "done"
    finally:
        log.append("closed")


async def test_long_work_leaves_its_thread_to_others(one_thread: Executor) -> None:
    began, stop = threading.Event(), threading.Event()
    log: list[str] = []
    long = asyncio.create_task(in_turns(one_thread, endless(began, stop, log)))
    async with asyncio.timeout(20):
        for number in range(5):
            assert await in_thread(one_thread, abs, -number) == number
            assert not long.done()
        assert began.is_set()
        stop.set()
        assert await long == "done"
    assert log == ["closed"]


async def test_a_cancellation_closes_the_work_in_its_thread(one_thread: Executor) -> None:
    began, stop = threading.Event(), threading.Event()
    log: list[str] = []
    long = asyncio.create_task(in_turns(one_thread, endless(began, stop, log)))
    await asyncio.to_thread(began.wait)
    long.cancel()
    with pytest.raises(asyncio.CancelledError):
        await long
    assert log == ["closed"]


async def test_a_cancelled_call_has_ended_before_its_caller_continues(one_thread: Executor) -> None:
    began, go = threading.Event(), threading.Event()
    ended: list[bool] = []

    def call() -> None:
        began.set()
        go.wait(20)
        ended.append(True)
        raise OSError

    task = asyncio.create_task(in_thread(one_thread, call))
    await asyncio.to_thread(began.wait)
    task.cancel()
    asyncio.get_running_loop().call_soon(go.set)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [True]


async def test_errors_and_results_come_through(one_thread: Executor) -> None:
    def failing() -> BlockingWork[int]:
        yield
        raise ValueError("why")

    def working() -> BlockingWork[int]:
        yield
        return 7

    with pytest.raises(ValueError, match="why"):
        await in_turns(one_thread, failing())
    assert await in_turns(one_thread, working()) == finish(working()) == 7
