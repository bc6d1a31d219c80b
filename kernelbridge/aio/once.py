"""Something that is made when it is first needed, once, and again only after a failure."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Once(Generic[T]):
    """What `make` makes."""

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
