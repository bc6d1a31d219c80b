"""The command lane: a workspace's persistent shell and the queue of commands in front of it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import structlog

from kernelbridge.aio.tasks import TaskSet
from kernelbridge.errors import KernelBridgeError, SandboxError, SessionClosed, TerminalError
from kernelbridge.workspace.adoption.record import Record
from kernelbridge.workspace.adoption.session_state import RunningCommand
from kernelbridge.workspace.command_outcome import CommandOutcome, LossCause, lost_command
from kernelbridge.workspace.denials import Denials
from kernelbridge.workspace.disk_watch import DiskStops
from kernelbridge.workspace.interrupt_progress import InterruptProgress, Step
from kernelbridge.workspace.job_queue import JobQueue, answer, run_timeout
from kernelbridge.workspace.resource_watch import MemoryWatch
from kernelbridge.workspace.shell.exchange import Exchange, Listen
from kernelbridge.workspace.shell.shell import Shell

log = structlog.get_logger(__name__)

WAITING_CHARACTERS = 8 << 20
"""Length of the commands that may wait in a session."""

CommandDone = Callable[[CommandOutcome | KernelBridgeError], None]
Report = Callable[[InterruptProgress], None]

_CLOSED = CommandOutcome(output="", exit_code=None, cwd=None, duration_ms=0.0, cause="session_closed")
_INTERRUPTED = replace(_CLOSED, cause="interrupted")


@dataclass(slots=True, eq=False)
class _Command:
    text: str
    timeout: float | None
    done: CommandDone
    listen: Listen | None
    request_id: str | None
    interrupted: bool = False
    """Whether it was interrupted before it began."""


AdoptShell = Callable[[], Awaitable[Shell]]
"""Adopt the shell of an earlier server."""


@dataclass(frozen=True, slots=True)
class PreviousCommand:
    """A command that an earlier server gave to its shell."""

    command: RunningCommand
    earlier: bytes
    """What that server has read from the terminal since."""
    done: CommandDone
    listen: Listen | None
    """Called with the output that comes from now on."""


class CommandLane:
    """Runs the terminal commands of one workspace first-in first-out, beside its cells."""

    def __init__(
        self,
        start_shell: Callable[[], Awaitable[Shell]],
        *,
        destroy_sandbox: Callable[[], Awaitable[None]],
        queue_limit: int,
        tasks: TaskSet,
        memory: MemoryWatch,
        denials: Denials,
        disk_stops: DiskStops,
        record: Record,
        longest: float | None,
    ) -> None:
        """`longest`: seconds that a command may run; None: without limit."""
        self._start_shell = start_shell
        self._destroy_sandbox = destroy_sandbox
        self._waiting = JobQueue[_Command]("terminal commands", requests=queue_limit, characters=WAITING_CHARACTERS)
        self._tasks = tasks
        self._memory = memory
        self._denials = denials
        self._disk_stops = disk_stops
        self._record = record
        self._longest = longest
        memory.serve(busy=lambda: self._running is not None)
        self._running: _Command | None = None
        self._since = 0.0
        self._draining = False
        self._shell: Shell | None = None
        self._intact = False
        """Whether the last outcome said that the shell is still the same."""
        self._lost = False
        """Whether the shell was lost after that, and no outcome has reported it."""
        self._lost_how = ""
        """How the shell of an earlier life of the session ended, until an outcome has reported it."""
        self.on_rest: Callable[[], object] = lambda: None
        """Called when no command runs or waits any more."""
        self.on_loss_reported: Callable[[], object] = lambda: None
        """Called when an outcome has reported how the shell of an earlier life ended."""
        self._starting = asyncio.Lock()
        self._interrupts: dict[asyncio.Task[None], bool] = {}
        """The interrupts under way; true for those that end the jobs of all commands, before which none may begin."""
        self._quiet = asyncio.Event()
        """Set when nothing runs, and nothing will."""
        self._finishing = self._closed = self._leaving = self._left = False

    @property
    def waiting(self) -> int:
        """How many commands wait."""
        return len(self._waiting)

    @property
    def in_hand(self) -> set[str]:
        """The ids of the requests whose commands run or wait."""
        own = None if self._running is None else self._running.request_id
        return self._waiting.request_ids | ({own} if own else set())

    @property
    def busy(self) -> bool:
        """Whether a command runs, waits or is interrupted, or a shell is started. Background jobs do not count."""
        under_way = self._draining or self._interrupts or self._starting.locked()
        return bool(under_way or (self._shell is not None and self._shell.busy))

    @property
    def occupied(self) -> bool:
        """Whether a command runs or waits."""
        return self._draining

    @property
    def running(self) -> tuple[str, str | None, float] | None:
        """The text of the command that runs, its `requestId`, and when it began, in seconds since the epoch."""
        return None if self._running is None else (self._running.text, self._running.request_id, self._since)

    @property
    def has_lost(self) -> bool:
        """Whether the session's end loses a shell, or a lost shell was not reported yet."""
        return self._shell is not None or self._intact or self._lost

    def was_lost(self, how: str) -> None:
        """Let the next outcome report how the shell of an earlier life of the session ended."""
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
        """Queue a command.

        `done` is called once, with its outcome or the error that kept it from running; before that, `listen` is called
        with output as it comes. `timeout` is in seconds. `request_id` is for a later server, which may have to answer.
        Raises `SessionClosed`, `LimitExceeded`, and `BadRequest` for a timeout above the limit.
        """
        if self._closed or self._finishing:
            raise SessionClosed(TerminalError.code)
        self._waiting.put(_Command(command, run_timeout(timeout, self._longest), done, listen, request_id))
        if not self._draining:
            self._draining = True
            self._tasks.create(self._drain())

    def crowded(self) -> None:
        """Check whether the shell is blocked because the process limit is reached."""
        if self._shell is not None:
            self._shell.crowded()

    def interrupt(self, report: Report, *, queued: bool, jobs: bool, only: str | None = None) -> None:
        """End the running command, and with `queued` those that wait; `report` is called for each step.

        With `only`, the command of that request is ended, whether it runs or waits, and no other.
        With `jobs`, everything that earlier commands have left running is ended after that.
        """
        first = self._running or self._waiting.first
        if only is not None and (first is None or first.request_id != only):
            withdrawn = self._waiting.withdraw(only, _INTERRUPTED)
            report(InterruptProgress("none", done=True, state_preserved=True, ended=withdrawn))
            return
        ended = self._waiting.end(_INTERRUPTED) if queued else None
        command = self._running or self._waiting.first  # none runs yet, but this one is about to
        if command is None and not jobs:
            report(InterruptProgress("none", done=True, state_preserved=True, ended=ended))
        else:
            interrupting = self._tasks.create(self._interrupt_to_the_end(command, report, ended, jobs=jobs))
            self._interrupts[interrupting] = jobs
            interrupting.add_done_callback(self._interrupts.pop)

    def finish(self, *, leaving: bool = False) -> asyncio.Event:
        """Take no more commands, and end those that wait with cause `session_closed`.

        Returns an event that is set when nothing runs. With `leaving`, a command of an earlier server that this one
        cannot reach is not answered: the next server will do that.
        """
        self._finishing = True
        self._leaving = self._leaving or leaving
        self._waiting.end(_CLOSED)
        if not self._draining:
            self._quiet.set()
        return self._quiet

    def adopt(self, adopt: AdoptShell | None, previous: PreviousCommand | None, *, had_shell: bool) -> None:
        """Continue with the shell of an earlier server and its command, before any command is submitted.

        Without `adopt` there is no shell; `had_shell` says whether there was one, which ended with the sandbox.
        """
        if adopt is None:
            self._lost = had_shell or self._lost
        else:
            self._draining = self._intact = True
            self._tasks.create(self._adopt(adopt, previous))

    async def leave(self) -> None:
        """Leave the shell and its command to another server, after `finish`."""
        self._left = True
        shell, self._shell = self._shell, None
        if shell is not None:
            await shell.leave()

    def end(self) -> None:
        """Take no more commands, and end those that wait with cause `session_closed`. Idempotent; no I/O."""
        self._closed = True
        self._waiting.end(_CLOSED)

    async def aclose(self) -> None:
        """End the shell, and with it the running command, after `end`. Idempotent."""
        self.end()
        shell, self._shell = self._shell, None
        if shell is not None:
            await shell.aclose()

    # -- an earlier server's command ---------------------------------------------

    async def _adopt(self, adopt: AdoptShell, previous: PreviousCommand | None) -> None:
        """Adopt the shell and answer the command in it; then run the commands that wait."""
        command = None
        if previous is not None:
            noted = previous.command
            command = _Command("", noted.timeout, previous.done, previous.listen, noted.request_id)
            self._running, self._since = command, noted.since
        outcome: CommandOutcome | KernelBridgeError | None = _CLOSED
        try:
            async with self._starting:
                shell = self._shell = await adopt()
                if previous is not None:
                    shell.resume(previous.command, previous.earlier, previous.listen, self._record.command_wrote)
            if previous is not None and command is not None:
                outcome = await self._finish_previous(shell, previous, command)
        except KernelBridgeError as exc:
            log.warning("shell_not_adopted", error=str(exc))
            self._intact, self._lost = False, previous is None
            if self._leaving:
                outcome = None
            elif previous is not None and not self._closed:
                cause: LossCause = "shell_exited" if isinstance(exc, TerminalError) else "sandbox_lost"
                outcome = lost_command(previous.command.since, cause)
        finally:
            if command is not None:
                self._answer(command, outcome)
            if not self._left:
                await self._drain()

    async def _finish_previous(
        self, shell: Shell, previous: PreviousCommand, command: _Command
    ) -> CommandOutcome | KernelBridgeError:
        try:
            if command.interrupted:
                await shell.interrupt()
            stops = self._disk_stops.mark()
            outcome = await shell.finish(previous.command.time_left(time.monotonic()))
            outcome = self._disk_stops.explained(outcome, stops)
            await self._record.written()  # as after a command of this server
        except KernelBridgeError as exc:
            return _CLOSED if self._closed else exc
        self._intact = outcome.state_preserved
        return replace(outcome, cause="session_closed") if self._closed else outcome

    # -- running commands ----------------------------------------------------------

    async def _drain(self) -> None:
        """Run the commands that wait, one after the other."""
        try:
            while self._waiting:
                command = self._running = self._waiting.next()
                self._since = time.time()
                outcome: CommandOutcome | KernelBridgeError = _CLOSED
                try:
                    outcome = await self._run(command)
                finally:
                    self._answer(command, outcome)
        finally:
            self._draining = False
            if self._finishing:
                self._quiet.set()
            self.on_rest()

    def _answer(self, command: _Command, outcome: CommandOutcome | KernelBridgeError | None) -> None:
        """Answer a command that has ended; with None, or after `leave`, the next server does that."""
        self._running = None
        if not self._left and outcome is not None:
            answer(command.done, outcome)
            self._record.command_ended()

    async def _run(self, command: _Command) -> CommandOutcome | KernelBridgeError:
        try:
            # An interrupt that ends jobs would end what this command starts.
            while interrupts := [task for task, jobs in self._interrupts.items() if jobs]:
                await asyncio.wait(interrupts)
            outcome = await self._run_in_a_shell(command)
            if outcome is None:
                return _INTERRUPTED
            if self._lost:
                self._lost = False
                outcome = replace(outcome, state_preserved=False)
            if self._lost_how and not self._closed:
                loss, self._lost_how = f"kernelbridge: the shell {self._lost_how}\n", ""
                outcome = replace(outcome, late_output=loss + outcome.late_output)
                self.on_loss_reported()
            return replace(outcome, cause="session_closed") if self._closed else outcome
        except KernelBridgeError as exc:
            if self._closed:
                return _CLOSED
            log.warning("terminal_command_failed", error=str(exc))
            return exc
        except Exception as exc:
            log.exception("terminal_command_failed")
            return TerminalError("The terminal command could not be run", f"{type(exc).__name__}: {exc}")

    async def _run_in_a_shell(self, command: _Command) -> CommandOutcome | None:
        """Run a command in the shell, or in a new one if an earlier command has made that unusable.

        Returns None if it was interrupted before it began.
        """
        while True:
            shell, fresh = await self._living_shell()
            if command.interrupted:
                return None
            try:
                return await self._run_in(shell, command)
            except TerminalError:  # nothing of the command has run
                if fresh or self._closed or shell.alive:
                    raise
                self._lost = True

    async def _run_in(self, shell: Shell, command: _Command) -> CommandOutcome:
        mark = self._memory.mark()  # not before: the sandbox may have been started for it
        denied = self._denials.mark()
        stops = self._disk_stops.mark()

        def begins(exchange: Exchange) -> None:
            self._record.command_begins(
                RunningCommand(
                    command.request_id,
                    command.listen is not None,
                    since=self._since,
                    began=exchange.began,
                    timeout=command.timeout,
                    nonce=exchange.nonce,
                    moment=exchange.since,
                )
            )
            exchange.on_data = self._record.command_wrote

        outcome = await shell.run(command.text, timeout=command.timeout, listen=command.listen, begins=begins)
        self._intact = outcome.state_preserved
        # It may have moved to another terminal. A server that is killed as soon as the client has the result must have
        # noted that, or the next one would look for the shell at the old terminal.
        await self._record.written()
        outcome = await self._memory.over_command(outcome, mark)
        outcome = replace(outcome, hint=self._denials.hint(denied, outcome.hint))
        return self._disk_stops.explained(outcome, stops)

    async def _living_shell(self) -> tuple[Shell, bool]:
        """Return the shell, and whether it was started just now."""
        async with self._starting:
            if self._shell is not None and self._shell.alive:
                return self._shell, False
            if self._shell is not None:
                self._lost = self._lost or self._intact
                await self._drop(self._shell)
            shell = await self._start_shell()
            if self._closed:
                await shell.aclose()
                raise SessionClosed(TerminalError.code)
            self._shell = shell
            return shell, True

    async def _drop(self, shell: Shell) -> None:
        """End a shell; if its processes cannot be ended, destroy the sandbox."""
        try:
            await shell.aclose()
        except SandboxError as exc:
            log.warning("sandbox_given_up", why="its shell could not be ended", error=str(exc))
            await self._destroy_sandbox()
        if self._shell is shell:
            self._shell = None

    # -- interrupts ------------------------------------------------------------------

    async def _interrupt_to_the_end(
        self, command: _Command | None, report: Report, ended: int | None, *, jobs: bool
    ) -> None:
        """Interrupt, and report a last step in any case."""
        over = False

        def report_once(progress: InterruptProgress) -> None:
            nonlocal over
            over = over or progress.done
            report(progress)

        try:
            if jobs:
                await self._interrupt_all(command, report_once, ended)
            elif command is not None:
                await self._interrupt(command, report_once, ended)
        finally:
            if not over:
                # The command is answered with the error that stood in the way; or the session ends.
                alive = self._shell is not None and self._shell.alive and not self._closed
                step: Step = "sigint" if alive else "kill"
                report(InterruptProgress(step, done=True, state_preserved=alive, ended=ended))

    async def _interrupt(self, command: _Command, report: Report, ended: int | None) -> None:
        def report_step(step: Step, *, done: bool) -> None:
            report(InterruptProgress(step, done, True if done else None, ended if done else None))

        shell = self._shell
        # The shell may run the next command already, which must not be interrupted.
        if shell is None or self._running is not command or not await shell.interrupt(report_step):
            # It has not begun, or it has just ended: there is nothing to interrupt.
            command.interrupted = True
            step: Step = "sigint" if self._running is command else "none"
            alive = shell is None or shell.alive
            report(InterruptProgress(step, done=True, state_preserved=alive, ended=ended))
        elif not shell.alive and not self._closed:
            try:
                await self._living_shell()
            except KernelBridgeError as exc:
                log.warning("shell_not_restarted", error=str(exc))
            report(InterruptProgress("restart", done=True, state_preserved=False, ended=ended))

    async def _interrupt_all(self, command: _Command | None, report: Report, ended: int | None) -> None:
        def report_step(progress: InterruptProgress) -> None:
            if progress.step != "none":
                report(InterruptProgress(progress.step, done=False))  # more is to be ended

        before = self._shell
        if command is not None:
            await self._interrupt(command, report_step, ended)
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
                    await self._drop(shell)
        preserved = before is self._shell and (before is None or before.alive)
        report(InterruptProgress(step, done=True, state_preserved=preserved, ended=ended))
