"""Work that must be completed even if its caller is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import structlog

T = TypeVar("T")

log = structlog.get_logger(__name__)


class Background:
    """Tasks that a runtime owns and waits for; failures are logged."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, None], *, doing: str) -> asyncio.Task[None]:
        """Run `work` in the background. A failure is logged with `doing`."""
        task = asyncio.get_running_loop().create_task(work, name=doing)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    async def whole(self, work: Coroutine[Any, Any, T], *, undo: Callable[[T], Awaitable[None]], doing: str) -> T:
        """Run `work` and return its result. When cancelled, `work` is completed and its result undone with `undo`.

        A call to an engine cannot be interrupted, so its result comes in any case. The cancellation is raised after
        that; a second one does not wait.
        """
        task = asyncio.get_running_loop().create_task(work, name=doing)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            undoing = self.spawn(_undo(task, undo), doing=f"undo: {doing}")
            await asyncio.wait({undoing})
            raise

    async def settle(self) -> None:
        """Wait until all tasks have ended. Each of their steps must be bounded in time."""
        current = asyncio.current_task()
        while tasks := {task for task in self._tasks if task is not current}:
            await asyncio.wait(tasks)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("background_work_failed", doing=task.get_name(), error=str(error))


async def _undo(task: asyncio.Task[T], undo: Callable[[T], Awaitable[None]]) -> None:
    await undo(await task)
