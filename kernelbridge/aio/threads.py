"""Long blocking work in pieces, so that none holds a thread for itself.

Such work is written as a generator that yields wherever it may be laid down for a moment, and returns its result.
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
"""Seconds after which a thread turns to what else waits for one."""


def finish(work: BlockingWork[T]) -> T:
    """Do all of it now."""
    while True:
        try:
            next(work)
        except StopIteration as exc:
            result: T = exc.value
            return result


async def in_thread(executor: Executor, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a blocking function in one of the executor's threads; a cancellation waits for its end."""
    loop = asyncio.get_running_loop()
    return await _ended(loop.run_in_executor(executor, functools.partial(function, *args, **kwargs)))


async def in_turns(executor: Executor, work: BlockingWork[T]) -> T:
    """Do it in the executor's threads, in turns with what else waits for them; a cancellation undoes it."""
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
    """Wait for a call in a thread, which no cancellation ends: what it uses must not be closed before."""
    try:
        return await asyncio.shield(call)
    except asyncio.CancelledError:
        await asyncio.gather(call, return_exceptions=True)
        raise


def _turn(work: BlockingWork[T]) -> tuple[T] | None:
    """Go on for a while; gives the result in a tuple when it is done."""
    end = time.monotonic() + _TURN
    try:
        next(work)
        while time.monotonic() < end:
            next(work)
    except StopIteration as exc:
        return (exc.value,)
    return None
