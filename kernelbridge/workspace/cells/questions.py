"""Requests that wait for the interpreter, besides cells: questions about code, and restarts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from kernelbridge.aio.tasks import TaskSet
from kernelbridge.errors import KernelBridgeError, SessionClosed
from kernelbridge.jupyter.help import Help
from kernelbridge.workspace.cells.kernel_supervisor import KernelSupervisor
from kernelbridge.workspace.job_queue import WaitingBudget

T = TypeVar("T")
CHARACTERS = 32 << 20
"""Length of the code that may wait in a session: so either few requests or small ones."""
MOST = 64
"""Requests that may wait in a session."""


class Questions:
    """The requests that wait for one interpreter."""

    def __init__(self, supervisor: KernelSupervisor, tasks: TaskSet) -> None:
        self._supervisor = supervisor
        self._tasks = tasks
        self._budget = WaitingBudget("questions", requests=MOST, characters=CHARACTERS)

    @property
    def waiting(self) -> int:
        """How many wait."""
        return self._budget.waiting

    def take(self, code: str) -> None:
        """Reserve room for one; `answer` must follow. Raises `LimitExceeded`."""
        self._budget.take(code)

    def ask(
        self, code: str, put: Callable[[Help], Awaitable[T]], done: Callable[[T | KernelBridgeError], None]
    ) -> None:
        """Ask a question about `code`, and start the interpreter for it; `done` is called once, with the answer.

        Raises `LimitExceeded`.
        """
        self.take(code)
        self.answer(self._put(put), done, code)

    def answer(self, work: Awaitable[T], done: Callable[[T | KernelBridgeError], None], code: str = "") -> None:
        """Call `done` with the result of `work`, or its error."""
        self._tasks.create(self._answer(work, done, code))

    async def _put(self, put: Callable[[Help], Awaitable[T]]) -> T:
        kernel = await self._supervisor.ready()
        return await put(kernel.help)

    async def _answer(self, work: Awaitable[T], done: Callable[[T | KernelBridgeError], None], code: str) -> None:
        answer: T | KernelBridgeError
        try:
            answer = await work
        except KernelBridgeError as exc:
            answer = exc
        except asyncio.CancelledError:
            done(SessionClosed())  # the session ends, maybe at the moment at which the interpreter has answered
            raise
        finally:
            self._budget.release(code)
        done(answer)
