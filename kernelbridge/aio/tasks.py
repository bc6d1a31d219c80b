"""Background tasks with an owner, whose errors are logged, and values that are made once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, Generic, TypeVar

import structlog

from kernelbridge.errors import KernelBridgeError

log = structlog.get_logger(__name__)

Wait = Callable[[], Awaitable[object]]
"""Wait for something that has been started."""

T = TypeVar("T")


async def attempt(work: Awaitable[object], failed: Callable[..., object]) -> None:
    """Await one step of several. Call `failed(error=…)` if it raises, with `exc_info=True` if the error is a bug."""
    try:
        await work
    except (KernelBridgeError, OSError) as exc:
        failed(error=str(exc))
    except Exception as exc:  # noqa: BLE001  a bug in one step must not prevent the other steps
        failed(error=repr(exc), exc_info=True)


async def all_within(waits: Iterable[Wait], seconds: float) -> None:
    """Wait until all `waits` have returned, or for `seconds`; then cancel those that have not."""
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
        """Run `coroutine` in the background. An exception that it raises is a bug and is logged."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    async def aclose(self) -> None:
        """Cancel all tasks, except the calling one, and wait until they have ended. Idempotent."""
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
    """A value that is made once, when it is first needed, and made again only after a failure."""

    def __init__(self, make: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._make = make
        self._task: asyncio.Task[T] | None = None

    async def get(self) -> T:
        """Return the value. Raises what `make` raises; then the next call tries again.

        Cancelling it is safe: the value continues to be made for other callers.
        """
        if self._task is None or (self._task.done() and self._task.exception() is not None):
            self._task = asyncio.get_running_loop().create_task(self._make())
        return await asyncio.shield(self._task)

    def made(self) -> T:
        """Return the value, which `get` has returned before. It may be called from any thread."""
        if self._task is None:
            raise AssertionError("nothing was made yet")
        return self._task.result()

    def forget(self) -> None:
        """Drop the value: the next `get` makes a new one."""
        self._task = None
