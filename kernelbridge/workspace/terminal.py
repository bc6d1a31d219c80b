"""The terminal lane: a workspace's persistent shell and the queue of commands in front of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import structlog

from kernelbridge.errors import KernelBridgeError, TerminalError
from kernelbridge.workspace.budget import WaitingBudget
from kernelbridge.workspace.shell import CommandOutcome, Shell
from kernelbridge.workspace.tasks import TaskSet

log = structlog.get_logger(__name__)

WAITING_CHARACTERS = 8 << 20
"""Length of the commands that may wait in a session."""

CommandDone = Callable[[CommandOutcome | KernelBridgeError], None]

_CLOSED = CommandOutcome(output="", exit_code=None, cwd=None, duration_ms=0.0, cause="session_closed")


@dataclass(frozen=True, slots=True)
class _Job:
    command: str
    timeout: float | None
    done: CommandDone


class TerminalLane:
    """Runs the terminal commands of one workspace first-in first-out, beside its cells."""

    def __init__(self, start_shell: Callable[[], Awaitable[Shell]], *, queue_limit: int, tasks: TaskSet) -> None:
        self._start_shell = start_shell
        self._budget = WaitingBudget("terminal commands", requests=queue_limit, characters=WAITING_CHARACTERS)
        self._tasks = tasks
        self._waiting: deque[_Job] = deque()
        self._draining = False
        self._shell: Shell | None = None
        self._closed = False

    @property
    def waiting(self) -> int:
        """How many commands wait."""
        return len(self._waiting)

    def submit(self, command: str, timeout: float | None, done: CommandDone) -> None:
        """Queue a command; `done` is called once, with its outcome or the error that kept it from running."""
        if self._closed:
            raise TerminalError("The session is closed", "send the request again to open it anew")
        self._budget.take(command)
        self._waiting.append(_Job(command, timeout, done))
        if not self._draining:
            self._draining = True
            self._tasks.create(self._drain())

    def end(self) -> None:
        """End every waiting command with cause `session_closed` and take no more. Idempotent; no I/O."""
        self._closed = True
        waiting, self._waiting = self._waiting, deque()
        for job in waiting:
            self._budget.release(job.command)
            _answer(job, _CLOSED)

    async def aclose(self) -> None:
        """End the shell, and with it the running command, after `end`. Idempotent."""
        self.end()
        shell, self._shell = self._shell, None
        if shell is not None:
            await shell.aclose()

    async def _drain(self) -> None:
        try:
            while self._waiting:
                job = self._waiting.popleft()
                self._budget.release(job.command)
                outcome: CommandOutcome | KernelBridgeError = _CLOSED
                try:
                    outcome = await self._run(job)
                finally:
                    _answer(job, outcome)
        finally:
            self._draining = False

    async def _run(self, job: _Job) -> CommandOutcome | KernelBridgeError:
        try:
            shell, fresh = await self._living_shell()
            try:
                outcome = await shell.run(job.command, timeout=job.timeout)
            except TerminalError:
                # The command was not run: an earlier one had made the shell unusable. A new shell has not.
                if fresh or self._closed:
                    raise
                await shell.aclose()
                shell, _ = await self._living_shell()
                outcome = replace(await shell.run(job.command, timeout=job.timeout), state_preserved=False)
            return replace(outcome, cause="session_closed") if self._closed else outcome
        except KernelBridgeError as exc:
            if self._closed:
                return _CLOSED
            log.warning("terminal_command_failed", error=str(exc))
            return exc
        except Exception as exc:
            log.exception("terminal_command_failed")
            return TerminalError("The terminal command could not be run", f"{type(exc).__name__}: {exc}")

    async def _living_shell(self) -> tuple[Shell, bool]:
        """Give the shell, and whether it was started just now."""
        if self._shell is not None and self._shell.alive:
            return self._shell, False
        if self._shell is not None:
            await self._shell.aclose()
        shell = await self._start_shell()
        if self._closed:
            await shell.aclose()
            raise TerminalError("The session is closed", "send the request again to open it anew")
        self._shell = shell
        return shell, True


def _answer(job: _Job, outcome: CommandOutcome | KernelBridgeError) -> None:
    try:
        job.done(outcome)
    except Exception:
        # Whoever asked cannot take the answer; the commands behind it must run all the same.
        log.exception("answer_failed")
