"""Tasks that somebody owns, none of which is forgotten or fails in silence, and values that are made once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, Generic, TypeVar

import structlog

from kernelbridge.errors import KernelBridgeError

log = structlog.get_logger(__name__)

Wait = Callable[[], Awaitable[object]]
"""Waits for something that was begun."""

T = TypeVar("T")


async def attempt(work: Awaitable[object], failed: Callable[..., object]) -> None:
    """Do one step of several, whatever becomes of it; `failed` is called with `error`, and `exc_info` for a bug."""
    try:
        await work
    except (KernelBridgeError, OSError) as exc:
        failed(error=str(exc))
    except Exception as exc:  # noqa: BLE001  a bug in one step must not keep the others from being taken
        failed(error=repr(exc), exc_info=True)


async def all_within(waits: Iterable[Wait], seconds: float) -> None:
    """Wait for all of them, but no longer than that."""
    tasks = [asyncio.ensure_future(wait()) for wait in waits]
    try:
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)
    finally:
        for task in tasks:
            task.cancel()


class TaskSet:
    """The background tasks of one owner."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def create(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `coroutine` in the background; an exception that leaves it is a bug and is logged."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    async def aclose(self) -> None:
        """Cancel what still runs and wait until it has ended. Idempotent."""
        current = asyncio.current_task()
        tasks = [task for task in self._tasks if task is not current]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("background_task_failed", task=task.get_coro(), exc_info=error)


class Lazy(Generic[T]):
    """A value that is made when it is first needed, once, and again only after a failure."""

    def __init__(self, make: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._make = make
        self._task: asyncio.Task[T] | None = None

    async def get(self) -> T:
        """Give it. Raises what `make` raises; the next call tries again then."""
        if self._task is None or (self._task.done() and self._task.exception() is not None):
            self._task = asyncio.get_running_loop().create_task(self._make())
        return await asyncio.shield(self._task)

    def made(self) -> T:
        """Give it, when `get` has given it before; from any thread."""
        if self._task is None:
            raise AssertionError("nothing was made yet")
        return self._task.result()

    def forget(self) -> None:
        """Have it made anew."""
        self._task = None
