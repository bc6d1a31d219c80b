"""Blocking work in threads; long work is cut into slices, so that no job occupies a thread for long.

Such work is written as a generator that yields wherever it can be paused, and returns its result.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Generator
from concurrent.futures import Executor
from typing import ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")

BlockingWork = Generator[None, None, T]

_TURN = 0.05
"""Seconds of one slice. Then other work that waits for a thread has its turn."""


def finish(work: BlockingWork[T]) -> T:
    """Do all of some work now, in this thread, and return its result: for work that is short as a rule."""
    while True:
        try:
            next(work)
        except StopIteration as exc:
            result: T = exc.value
            return result


async def in_thread(executor: Executor | None, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a blocking function in a thread of the executor, or of the loop's own. If cancelled, wait for its return."""
    loop = asyncio.get_running_loop()
    return await _ended(loop.run_in_executor(executor, functools.partial(function, *args, **kwargs)))


async def in_turns(executor: Executor, work: BlockingWork[T]) -> T:
    """Run the work in threads of the executor, in slices between other work, and return its result.

    If cancelled, it closes the generator, whose `finally` blocks clean up.
    """
    loop = asyncio.get_running_loop()
    try:
        while True:
            result = await _ended(loop.run_in_executor(executor, _turn, work))
            if result:
                return result[0]
    except asyncio.CancelledError:
        await loop.run_in_executor(executor, work.close)
        raise


async def _ended(call: asyncio.Future[T]) -> T:
    """Wait for a call in a thread, also when cancelled: what the call uses must not be closed before it returns."""
    try:
        return await asyncio.shield(call)
    except asyncio.CancelledError:
        await asyncio.gather(call, return_exceptions=True)
        raise


def _turn(work: BlockingWork[T]) -> tuple[T] | None:
    """Run one slice of the work. Return its result in a tuple, or None if there is more to do."""
    end = time.monotonic() + _TURN
    try:
        next(work)
        while time.monotonic() < end:
            next(work)
    except StopIteration as exc:
        return (exc.value,)
    return None
