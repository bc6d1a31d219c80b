"""Work that must be completed even if its caller is cancelled."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from kernelbridge.aio.tasks import TaskSet
from kernelbridge.errors import KernelBridgeError

T = TypeVar("T")


class Background(TaskSet):
    """The tasks of a runtime, which are completed and not cancelled: a call to an engine cannot be interrupted."""

    async def whole(self, work: Coroutine[Any, Any, T], *, undo: Callable[[T], Awaitable[None]]) -> T:
        """Run `work` and return its result. When cancelled, `work` is completed and its result undone with `undo`.

        The cancellation is raised after that; a second one does not wait.
        """
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait({self.create(_undo(task, undo))})
            raise

    async def settle(self) -> None:
        """Wait until all tasks have ended. Each of their steps must be bounded in time."""
        current = asyncio.current_task()
        while tasks := {task for task in self._tasks if task is not current}:
            await asyncio.wait(tasks)


async def _undo(task: asyncio.Task[T], undo: Callable[[T], Awaitable[None]]) -> None:
    with contextlib.suppress(KernelBridgeError):  # nothing was made; or its removal is retried
        await undo(await task)
