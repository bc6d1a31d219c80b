"""The terminal lane: a workspace's persistent shell and the queue of commands in front of it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Protocol

import structlog

from kernelbridge.aio.tasks import TaskSet
from kernelbridge.errors import KernelBridgeError, RuntimeUnavailable, SandboxError, SessionClosed, TerminalError
from kernelbridge.workspace.command_outcome import CommandOutcome, LossCause
from kernelbridge.workspace.queue_limits import WaitingBudget, run_timeout
from kernelbridge.workspace.resource_watch import MemoryWatch
from kernelbridge.workspace.session_state import RunningCommand
from kernelbridge.workspace.shell.exchange import Exchange, Listen
from kernelbridge.workspace.shell.shell import TAKE_TIMEOUT, Shell, Step

log = structlog.get_logger(__name__)

WAITING_CHARACTERS = 8 << 20
"""Length of the commands that may wait in a session."""

_PATIENCE = TAKE_TIMEOUT + 2.0
"""Seconds that a command may wait for a shell that takes none to be ended, all in all: less than ten, for whoever
waits for an engine that hangs is told within those."""

CommandDone = Callable[[CommandOutcome | KernelBridgeError], None]


@dataclass(frozen=True, slots=True)
class Interruption:
    """How far an interrupt has gone."""

    step: Step
    done: bool
    state_preserved: bool = True
    """With `done`: whether the shell is still the same."""
    ended: int = 0
    """With `done`: how many waiting commands were ended."""


Tell = Callable[[Interruption], None]

_CLOSED = CommandOutcome(output="", exit_code=None, cwd=None, duration_ms=0.0, cause="session_closed")
_INTERRUPTED = CommandOutcome(output="", exit_code=None, cwd=None, duration_ms=0.0, cause="interrupted")


@dataclass(slots=True, eq=False)
class _Job:
    command: str
    timeout: float | None
    done: CommandDone
    listen: Listen | None = None
    request_id: str | None = None
    interrupted: bool = False
    """Before it began."""


class CommandRecord(Protocol):
    """What is told which command runs, so that another server can go on with it."""

    def command_begins(self, command: RunningCommand) -> None:
        """Take note of a command that is about to be given to the shell."""
        ...

    def command_wrote(self, data: bytes) -> None:
        """Keep what the shell's terminal says meanwhile."""
        ...

    def command_ended(self) -> None:
        """Take note that it was answered."""
        ...


TakeShell = Callable[[], Awaitable[Shell]]
"""Give the shell that an earlier server started."""


@dataclass(frozen=True, slots=True)
class PreviousCommand:
    """A command that an earlier server gave to its shell."""

    command: RunningCommand
    said: bytes
    """What that server has read since."""
    done: CommandDone
    listen: Listen | None
    """Is given what comes."""
    lost: Callable[[LossCause], CommandOutcome]
    """Gives how it ended, if it is gone with its shell."""


class TerminalLane:
    """Runs the terminal commands of one workspace first-in first-out, beside its cells."""

    def __init__(
        self,
        start_shell: Callable[[], Awaitable[Shell]],
        *,
        destroy_sandbox: Callable[[], Awaitable[None]],
        queue_limit: int,
        tasks: TaskSet,
        memory: MemoryWatch,
        record: CommandRecord,
        longest: float | None,
    ) -> None:
        """`longest`: seconds that a command may run; None: as long as it likes."""
        self._start_shell = start_shell
        self._destroy_sandbox = destroy_sandbox
        self._budget = WaitingBudget("terminal commands", requests=queue_limit, characters=WAITING_CHARACTERS)
        self._tasks = tasks
        self._memory = memory
        self._record = record
        self._longest = longest
        memory.serve(busy=lambda: self._running is not None)
        self._waiting: deque[_Job] = deque()
        self._running: _Job | None = None
        self._draining = False
        self._shell: Shell | None = None
        self._intact = False
        """Whether the last outcome said that the shell is still the same."""
        self._lost = False
        """Whether that has turned out to be wrong since, and nobody was told."""
        self._lost_how = ""
        """How an earlier life's shell ended, until a result has told that."""
        self._since = 0.0
        self.on_rest: Callable[[], object] = lambda: None
        """Called when no command runs or waits any more."""
        self.on_loss_told: Callable[[], object] = lambda: None
        """Called when a result has told that."""
        self._starting = asyncio.Lock()
        self._dropping: asyncio.Task[KernelBridgeError | None] | None = None
        """Ends the shell, maybe still when the command was answered that had it ended."""
        self._interrupts: dict[asyncio.Task[None], bool] = {}
        """Those under way, and whether they end all that any command has started: none may begin meanwhile."""
        self._quiet = asyncio.Event()
        """Set when nothing runs, and nothing will."""
        self._finishing = self._closed = self._leaving = self._left = False

    @property
    def waiting(self) -> int:
        """How many commands wait."""
        return len(self._waiting)

    @property
    def busy(self) -> bool:
        """Whether a command runs, waits or is ended, or something is started for the next. Background jobs are not."""
        under_way = self._draining or self._interrupts or self._starting.locked()
        return bool(under_way or (self._shell is not None and self._shell.busy))

    @property
    def occupied(self) -> bool:
        """Whether a command runs or waits."""
        return self._draining

    @property
    def running(self) -> tuple[str, str | None, float] | None:
        """The command that runs, its `requestId`, and when it began, in seconds since the epoch."""
        return None if self._running is None else (self._running.command, self._running.request_id, self._since)

    @property
    def has_lost(self) -> bool:
        """Whether a shell would be lost with the session, or one was and no result has told that."""
        return self._shell is not None or self._intact or self._lost

    def was_lost(self, how: str) -> None:
        """Have the next result tell how an earlier life's shell ended."""
        self._lost, self._lost_how = True, how

    def submit(
        self,
        command: str,
        done: CommandDone,
        *,
        timeout: float | None = None,
        listen: Listen | None = None,
        request_id: str | None = None,
    ) -> None:
        """Queue a command; `done` is called once, with its outcome or the error that kept it from running.

        `listen` is called before that with its output, as it comes. `request_id` is for a server that answers it in
        place of this one.
        """
        if self._closed or self._finishing:
            raise SessionClosed(TerminalError.code)
        timeout = run_timeout(timeout, self._longest)
        self._budget.take(command)
        self._waiting.append(_Job(command, timeout, done, listen, request_id))
        if not self._draining:
            self._draining = True
            self._tasks.create(self._drain())

    def crowded(self) -> None:
        """Take note that there is hardly any room for processes: the shell may wait for some, and say so to nobody."""
        if self._shell is not None:
            self._shell.crowded()

    def interrupt(self, tell: Tell, *, queued: bool, jobs: bool) -> None:
        """End the running command, and with `queued` those that wait; `tell` is called for each step.

        With `jobs` all that earlier commands have left running is ended as well, after it.
        """
        ended = self._end_waiting(_INTERRUPTED) if queued else 0
        job = self._running or next(iter(self._waiting), None)  # none runs yet, but it is about to
        if job is None and not jobs:
            tell(Interruption("none", done=True, ended=ended))
        else:
            interrupting = self._tasks.create(self._interrupt_to_the_end(job, tell, ended, jobs=jobs))
            self._interrupts[interrupting] = jobs
            interrupting.add_done_callback(self._interrupts.pop)

    def finish(self, *, leaving: bool = False) -> asyncio.Event:
        """Take no more, and end what waits with cause `session_closed`; the result is set once nothing runs.

        If this server is `leaving` the shell to the next one, a command that an earlier server left and this one cannot
        reach is not answered: the next server will.
        """
        self._finishing = True
        self._leaving = self._leaving or leaving
        self._end_waiting(_CLOSED)
        if not self._draining:
            self._quiet.set()
        return self._quiet

    def adopt(self, take: TakeShell | None, previous: PreviousCommand | None, *, had_shell: bool) -> None:
        """Go on with the shell of an earlier server, and with the command in it, before anything is submitted.

        Without `take`, `had_shell` says whether there was one, which has ended with that server's sandbox.
        """
        if take is None:
            self._lost = had_shell or self._lost
        else:
            self._draining = self._intact = True
            self._tasks.create(self._take(take, previous))

    async def leave(self) -> None:
        """Leave the shell and the command in it to another server, after `finish`."""
        self._left = True
        if self._dropping is not None:
            await asyncio.wait({self._dropping})
        shell, self._shell = self._shell, None
        if shell is not None:
            await shell.leave()

    async def _take(self, take: TakeShell, previous: PreviousCommand | None) -> None:
        """Take the shell over, wait for the end of its command, and answer that; then run what waits."""
        job = None
        if previous is not None:
            command = previous.command
            job = self._running = _Job("", command.timeout, previous.done, previous.listen, command.request_id)
            self._since = command.since
        outcome: CommandOutcome | KernelBridgeError | None = _CLOSED
        try:
            outcome = await self._go_on(take, previous, job)
        finally:
            self._running = None
            if not self._left:
                if job is not None and outcome is not None:
                    _answer(job, outcome)
                    self._record.command_ended()
                await self._drain()

    async def _go_on(
        self, take: TakeShell, previous: PreviousCommand | None, job: _Job | None
    ) -> CommandOutcome | KernelBridgeError | None:
        """Return the result of `job`; None if the next server has to answer it."""
        try:
            async with self._starting:
                shell = self._shell = await take()
                if previous is not None:
                    shell.resume(previous.command, previous.said, previous.listen, self._record.command_wrote)
        except KernelBridgeError as exc:
            log.warning("shell_not_taken_over", error=str(exc))
            if self._leaving:
                return None
            self._intact, self._lost = False, previous is None
            if previous is None or self._closed:
                return _CLOSED
            return previous.lost("shell_exited" if isinstance(exc, TerminalError) else "sandbox_lost")
        if previous is None or job is None:
            return _CLOSED  # to nobody
        try:
            if job.interrupted:
                await shell.interrupt(lambda _step, _done: None)
            outcome = await shell.finish(previous.command.time_left(time.monotonic()))
        except KernelBridgeError as exc:
            return _CLOSED if self._closed else exc
        self._intact = outcome.state_preserved
        return replace(outcome, cause="session_closed") if self._closed else outcome

    def end(self) -> None:
        """End every waiting command with cause `session_closed` and take no more. Idempotent; no I/O."""
        self._closed = True
        self._end_waiting(_CLOSED)

    async def aclose(self) -> None:
        """End the shell, and with it the running command, after `end`. Idempotent."""
        self.end()
        if self._dropping is not None:
            await asyncio.wait({self._dropping})
        shell, self._shell = self._shell, None
        if shell is not None:
            await shell.aclose()

    def _end_waiting(self, outcome: CommandOutcome) -> int:
        waiting, self._waiting = self._waiting, deque()
        for job in waiting:
            self._budget.release(job.command)
            _answer(job, outcome)
        return len(waiting)

    async def _drain(self) -> None:
        try:
            while self._waiting:
                job = self._running = self._waiting.popleft()
                self._since = time.time()
                self._budget.release(job.command)
                outcome: CommandOutcome | KernelBridgeError = _CLOSED
                try:
                    outcome = await self._run(job)
                finally:
                    self._running = None
                    if not self._left:
                        _answer(job, outcome)
                        self._record.command_ended()
        finally:
            self._draining = False
            if self._finishing:
                self._quiet.set()
            self.on_rest()

    async def _interrupt_to_the_end(self, job: _Job | None, tell: Tell, ended: int, *, jobs: bool) -> None:
        told = False

        def tell_once(interruption: Interruption) -> None:
            nonlocal told
            told = told or interruption.done
            tell(interruption)

        try:
            if jobs:
                await self._interrupt_all(job, tell_once, ended)
            elif job is not None:
                await self._interrupt(job, tell_once, ended)
        finally:
            if not told:
                # What kept it from the end is told by the command; or the session ends, and with it all of this.
                alive = self._shell is not None and self._shell.alive and not self._closed
                tell(Interruption("sigint" if alive else "kill", done=True, state_preserved=alive, ended=ended))

    async def _interrupt(self, job: _Job, tell: Tell, ended: int) -> None:
        def told(step: Step, done: bool) -> None:  # noqa: FBT001 - a `StepDone`
            tell(Interruption(step, done, ended=ended))

        shell = self._shell
        # The shell may be at the next command already, which is not meant.
        if shell is None or self._running is not job or not await shell.interrupt(told):
            # It has not begun, or it has just ended; in neither case is anything to be done.
            job.interrupted = True
            step: Step = "sigint" if self._running is job else "none"
            tell(Interruption(step, done=True, state_preserved=shell is None or shell.alive, ended=ended))
        elif not shell.alive and not self._closed:
            try:
                await self._living_shell(self._until())
            except KernelBridgeError as exc:
                log.warning("shell_not_restarted", error=str(exc))
            tell(Interruption("restart", done=True, state_preserved=False, ended=ended))

    async def _interrupt_all(self, job: _Job | None, tell: Tell, ended: int) -> None:
        def told(interruption: Interruption) -> None:
            # What ends the command is not the end of this.
            if interruption.step != "none":
                tell(replace(interruption, done=False))

        before = self._shell
        if job is not None:
            await self._interrupt(job, told, ended)
        shell = self._shell
        step: Step = "process_group"
        try:
            if shell is not None:
                await shell.end_jobs()
        except KernelBridgeError as exc:
            log.warning("jobs_not_ended", error=str(exc))
            step = "kill"
            if shell is not None:
                with contextlib.suppress(KernelBridgeError):
                    await self._drop(shell, self._until())
        preserved = before is self._shell and (before is None or before.alive)
        tell(Interruption(step, done=True, state_preserved=preserved, ended=ended))

    async def _run(self, job: _Job) -> CommandOutcome | KernelBridgeError:
        until = self._until()
        try:
            await self._jobs_ended(until)
            shell, fresh = await self._living_shell(until)
            if _unwanted(job):
                return _INTERRUPTED
            try:
                outcome = await self._run_in(shell, job)
            except TerminalError:
                # The command was not run: an earlier one had made the shell unusable. A new shell has not.
                if fresh or self._closed or shell.alive:
                    raise
                self._lost = self._lost or self._intact
                await self._drop(shell, until)
                shell, _ = await self._living_shell(until)
                if _unwanted(job):
                    return _INTERRUPTED
                outcome = await self._run_in(shell, job)
                outcome = replace(outcome, state_preserved=False)
            if self._lost:
                self._lost = False
                outcome = replace(outcome, state_preserved=False)
            if self._lost_how and not self._closed:
                told, self._lost_how = f"kernelbridge: the shell {self._lost_how}\n", ""
                outcome = replace(outcome, late_output=told + outcome.late_output)
                self.on_loss_told()
            return replace(outcome, cause="session_closed") if self._closed else outcome
        except KernelBridgeError as exc:
            if self._closed:
                return _CLOSED
            log.warning("terminal_command_failed", error=str(exc))
            return exc
        except Exception as exc:
            log.exception("terminal_command_failed")
            return TerminalError("The terminal command could not be run", f"{type(exc).__name__}: {exc}")

    async def _jobs_ended(self, until: float) -> None:
        """Wait until no interrupt is under way that would end the next command's processes, too; `until` as in `_drop`.

        Raises `RuntimeUnavailable`.
        """
        loop = asyncio.get_running_loop()
        while interrupts := [task for task, jobs in self._interrupts.items() if jobs]:
            _, ending = await asyncio.wait(interrupts, timeout=max(0.0, until - loop.time()))
            if ending:
                reason = "what earlier commands have left running is still being ended; send it again"
                raise RuntimeUnavailable("The terminal command was not run", reason)

    async def _run_in(self, shell: Shell, job: _Job) -> CommandOutcome:
        mark = self._memory.mark()  # not before: the sandbox may have been started for it

        def begins(exchange: Exchange) -> None:
            self._record.command_begins(
                RunningCommand(
                    job.request_id,
                    job.listen is not None,
                    since=self._since,
                    began=exchange.began,
                    timeout=job.timeout,
                    nonce=exchange.nonce,
                    moment=exchange.since,
                )
            )
            exchange.on_data = self._record.command_wrote

        outcome = await shell.run(job.command, timeout=job.timeout, listen=job.listen, begins=begins)
        self._intact = outcome.state_preserved
        return await self._memory.over_command(outcome, mark)

    async def _living_shell(self, until: float) -> tuple[Shell, bool]:
        """Give the shell, and whether it was started just now; for `until` see `_drop`."""
        async with self._starting:
            if self._shell is not None and self._shell.alive:
                return self._shell, False
            if self._shell is not None:
                self._lost = self._lost or self._intact
                await self._drop(self._shell, until)
            shell = await self._start_shell()
            if self._closed:
                await shell.aclose()
                raise SessionClosed(TerminalError.code)
            self._shell = shell
            return shell, True

    def _until(self) -> float:
        return asyncio.get_running_loop().time() + _PATIENCE

    async def _drop(self, shell: Shell, until: float) -> None:
        """End a shell; if that cannot be done, its sandbox goes with it.

        Raises `RuntimeUnavailable` when nobody can be asked to: the interpreter beside it must not pay for that; and
        when it is not done at the loop's time `until`: it goes on, and the next command waits for it in its turn.
        """
        loop = asyncio.get_running_loop()
        while True:
            # That of an earlier command was begun when nobody could be asked to, which may be over: then once more.
            joined = self._dropping is not None and not self._dropping.done()
            if self._dropping is None or not joined:
                self._dropping = loop.create_task(self._end_shell(shell))
            dropping = self._dropping
            await asyncio.wait({dropping}, timeout=max(0.0, until - loop.time()))
            if not dropping.done():
                reason = "its shell takes none, and what makes sandboxes has not ended it yet; see whether it answers"
                raise RuntimeUnavailable("The terminal command was not run", f"{reason}, and send it again")
            if (failure := dropping.result()) is None:
                return
            if not joined:
                raise failure

    async def _end_shell(self, shell: Shell) -> KernelBridgeError | None:
        try:
            await shell.aclose()
        except RuntimeUnavailable as exc:
            return exc  # it stays what it is, a shell that takes no command: the next one asks again
        except SandboxError as exc:
            log.warning("sandbox_given_up", why="its shell could not be ended", error=str(exc))
            await self._destroy_sandbox()
        if self._shell is shell:
            self._shell = None
        return None


def _unwanted(job: _Job) -> bool:
    """Whether it was interrupted before it began."""
    return job.interrupted


def _answer(job: _Job, outcome: CommandOutcome | KernelBridgeError) -> None:
    try:
        job.done(outcome)
    except Exception:
        # Whoever asked cannot take the answer; the commands behind it must run all the same.
        log.exception("answer_failed")
