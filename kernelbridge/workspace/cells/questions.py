"""Questions about code, and restarts: what is asked of a session's interpreter besides cells."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from kernelbridge.aio.tasks import TaskSet
from kernelbridge.errors import KernelBridgeError, KernelError
from kernelbridge.jupyter.help import Help
from kernelbridge.workspace.cells.kernel_supervisor import Interpreter
from kernelbridge.workspace.cells.waiting import CHARACTERS
from kernelbridge.workspace.queue_limits import WaitingBudget

T = TypeVar("T")

MOST = 64
"""Questions about code, and restarts, that may wait in a session."""


class Questions:
    """What waits for one interpreter's answer."""

    def __init__(self, interpreter: Interpreter, tasks: TaskSet) -> None:
        self._interpreter = interpreter
        self._tasks = tasks
        self._budget = WaitingBudget("questions", requests=MOST, characters=CHARACTERS)

    @property
    def waiting(self) -> int:
        """How many."""
        return self._budget.waiting

    def take(self, code: str) -> None:
        """Find room for one; raises `LimitExceeded`. `answer` follows."""
        self._budget.take(code)

    def ask(
        self, code: str, put: Callable[[Help], Awaitable[T]], done: Callable[[T | KernelBridgeError], None]
    ) -> None:
        """Put a question; the interpreter is started if need be. `done` is called once. Raises `LimitExceeded`."""
        self.take(code)
        self.answer(self._put(put), done, code)

    def answer(self, work: Awaitable[T], done: Callable[[T | KernelBridgeError], None], code: str = "") -> None:
        """Have `done` called with what `work` comes to."""
        self._tasks.create(self._answer(work, done, code))

    async def _put(self, put: Callable[[Help], Awaitable[T]]) -> T:
        kernel = await self._interpreter.ready()
        return await put(kernel.help)

    async def _answer(self, work: Awaitable[T], done: Callable[[T | KernelBridgeError], None], code: str) -> None:
        answer: T | KernelBridgeError
        try:
            answer = await work
        except KernelBridgeError as exc:
            answer = exc
        except asyncio.CancelledError:
            # The session ends, perhaps in the same moment in which the interpreter has said so: whoever asked is told.
            done(KernelError("The session is closed", "send the request again to open it anew"))
            raise
        finally:
            self._budget.release(code)
        done(answer)


async def then(event: Awaitable[object], value: T) -> T:
    """Give a value when something else has come about."""
    await event
    return value
