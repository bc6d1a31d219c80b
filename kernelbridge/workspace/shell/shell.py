"""A workspace's persistent shell: one command at a time, its output, exit code and directory."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

from kernelbridge.aio.turns import turns
from kernelbridge.errors import BadRequest, SandboxError, TerminalError
from kernelbridge.jupyter.bounded import Spill
from kernelbridge.protocol import texts
from kernelbridge.runtimes.contract import ExitStatus, Process, Sandbox
from kernelbridge.workspace.adoption.session_state import RunningCommand, ShellState
from kernelbridge.workspace.command_outcome import CommandOutcome
from kernelbridge.workspace.hints import command_hint
from kernelbridge.workspace.interrupt_progress import Step
from kernelbridge.workspace.shell import script
from kernelbridge.workspace.shell.exchange import Exchange, Listen, bounded_output, draw, within
from kernelbridge.workspace.shell.marks import MarkState
from kernelbridge.workspace.shell.ptys import OpenTerminals, ShellTerminals

TAKE_TIMEOUT = 7.0
"""Seconds for an idle shell to begin a command. It takes one millisecond; a shell that needs longer is given up."""
_STARVED_TIMEOUT = 2.0
"""Seconds instead, after bash could start no process: it may then wait for its latest job, with each next command."""
_END_TIMEOUT = 5.0
"""Seconds between the end of a shell's process and the end of its output, or the other way round."""
_CLOSE_TIMEOUT = 1.0
"""Seconds instead when the shell is closed: a program that survived its end may hold the terminal."""
_SCREEN_PATIENCE = 2.0
"""Seconds that a command which paints a screen may stay there, or be silent: then it waits for keys."""
_STALL_PATIENCE = 1.6
"""Seconds, twice, that a shell may try to start a process where there is no room; bash tries after 1, 3, 7, 15."""
_NO_FORK = 254
"""The exit code that bash gives where it could not start a process."""
_SIGNALLED = 128
_FILLS_MEMORY = 20.0
"""Milliseconds. A command that was shorter has not exhausted the memory, so its sandbox is not asked about that."""
_COUNT_TIMEOUT = 1.0
"""Seconds that the sandbox has to answer that."""

_LOST_OUTPUT = "\n[output was lost here, with the server that ended]\n"


class ReportStep(Protocol):
    """Called with each step of an interrupt; `done`: the command has ended, and the shell lives."""

    def __call__(self, step: Step, /, *, done: bool) -> None:
        """Report one step."""
        ...


@dataclass(frozen=True, slots=True)
class ShellSettings:
    """What the shells of one workspace have in common."""

    max_output: int
    """Bytes of each command's output that are kept."""
    grace: float = 2.0
    """Seconds that a command has to end after SIGINT, and again after its processes were killed."""
    spill: Callable[[], Spill | None] | None = None
    """Returns what keeps the whole output of one command when it is longer than that."""


def hand_over(sandbox: Sandbox, name: str, content: bytes) -> None:
    """Replace a text that the shells of a sandbox read. Raises `TerminalError`."""
    try:
        sandbox.shared.put(name, content)
    except SandboxError as exc:
        raise TerminalError("The terminal command was not run", exc.reason) from exc


def _note_nothing(_exchange: Exchange) -> None:
    """Note nothing, for a command that no later server has to know."""


def _report_nothing(_step: Step, /, *, done: bool) -> None:
    """Report nothing."""


class Shell:
    """An interactive shell in a sandbox with a terminal to write on. Its caller runs one command at a time."""

    def __init__(self, sandbox: Sandbox, process: Process, terminals: OpenTerminals, settings: ShellSettings) -> None:
        """Own the process and its terminals from now on."""
        self._sandbox = sandbox
        self._process = process
        self._settings = settings
        self._exchange: Exchange | None = None
        self._usable = True
        self._starved = False
        self._over = asyncio.Event()
        self._terminals = ShellTerminals(sandbox, terminals, self._on_data)
        self._watchers: set[asyncio.Task[None]] = set()
        self.notice = ""
        """What the output of the first command begins with."""
        self._follower = asyncio.get_running_loop().create_task(self._follow())

    @property
    def state(self) -> ShellState:
        """What a later server needs to take it over."""
        return ShellState(self._process.id, *self._terminals.paths)

    def on_change(self, call: Callable[[ShellState], None]) -> None:
        """Call `call` whenever that changes."""
        self._terminals.on_change = lambda: call(self.state)

    @property
    def alive(self) -> bool:
        """Whether it can take another command, now or when the running one has ended."""
        exchange = self._exchange
        lost = exchange is not None and exchange.ended.is_set() and not exchange.complete
        return self._usable and not lost and not self._over.is_set()

    @property
    def busy(self) -> bool:
        """Whether a command runs."""
        return self._exchange is not None

    async def run(
        self,
        command: str,
        *,
        timeout: float | None,  # noqa: ASYNC109 - the command's, which gets its outcome and not a TimeoutError
        listen: Listen | None = None,
        begins: Callable[[Exchange], None] = _note_nothing,
    ) -> CommandOutcome:
        """Run a command, wait for its end and return its outcome; after `timeout` seconds it is ended.

        `listen` is called with output as it comes, `begins` before the command is typed. Raises `BadRequest` for text
        that no shell can take, `TerminalError` when the shell could not begin the command (then nothing of it has run),
        and `SandboxError` when it could not be ended. After a cancellation the shell can only be closed.
        """
        if self._exchange is not None:
            raise AssertionError("the shell runs one command at a time")
        failure = "The command cannot be run"
        if "\0" in command:
            raise BadRequest(failure, "it contains a NUL character", field="command")
        # The line feed also keeps the file from being empty, which the shell takes for a file that is not there.
        data = script.encoded(command, failure, "command") + b"\n"
        if not self.alive:
            raise TerminalError("The terminal command was not run", "its shell has ended; send it again")
        hand_over(self._sandbox, script.COMMAND, data)  # first: if that fails, the shell is as it was
        exchange = self._exchange = self._new_exchange(listen)
        return await self._finish(exchange, timeout, self._begin(exchange, len(data), begins))

    def resume(
        self, command: RunningCommand, earlier: bytes, listen: Listen | None, wrote: Callable[[bytes], None]
    ) -> None:
        """Continue with a command of an earlier server; `finish` then waits for its end.

        Call it directly after the shell was taken over, without awaiting anything between. `earlier` is what that
        server has read from the terminal since the command began; `wrote` is called with what is read from now on, and
        `listen` with the output in it.
        """
        exchange = self._exchange = self._new_exchange(None, command.nonce)
        exchange.began, exchange.since = command.began, command.moment
        exchange.typed = True
        exchange.receive_data(earlier)
        if len(earlier) >= self._settings.max_output:
            exchange.add_note(_LOST_OUTPUT)
        exchange.on_data, exchange.listen = wrote, listen

    async def finish(self, timeout: float | None) -> CommandOutcome:  # noqa: ASYNC109 - as above
        """Wait for the end of the command of `resume`; see `run`."""
        exchange = self._exchange
        if exchange is None:
            raise AssertionError("no command was resumed")
        return await self._finish(exchange, timeout, self._until_begun(exchange, TAKE_TIMEOUT))

    async def interrupt(self, report: ReportStep = _report_nothing) -> bool:
        """End the running command and all its processes, step by step; return False if none runs.

        Jobs of earlier commands live on, unless the shell has to be killed.
        """
        exchange = self._exchange
        if exchange is None or exchange.ended.is_set():
            return False
        return await self._stop(exchange, "interrupted", report)

    def crowded(self) -> None:
        """Look whether the shell waits for room for a process: there is hardly any."""
        exchange = self._exchange
        if exchange is not None and not exchange.looked_at:
            exchange.looked_at = True
            self._watch(exchange, self._watch_silence)

    async def end_jobs(self) -> None:
        """SIGKILL everything that the shell has started; raises `SandboxError` if something outlives that."""
        await self._process.prune()

    async def leave(self) -> None:
        """Leave the shell and the command in it to another server."""
        self._usable = False
        self._follower.cancel()
        await asyncio.wait({self._follower})
        await self._terminals.aclose(leave=True)

    async def aclose(self) -> None:
        """End the shell and everything that it has started. Idempotent; a running command ends with it."""
        self._usable = False
        try:
            await self._process.aclose()
            if self._exchange is not None:
                # Its outcome has what it wrote last, and says that it ran: a terminal tells that some time later.
                await self._terminals.drain(_CLOSE_TIMEOUT)
        finally:
            self._follower.cancel()
            await asyncio.wait({self._follower})
            await self._terminals.aclose()
            self._end()

    async def prepare(self, setup: Exchange, seconds: float) -> str | None:
        """Wait, `seconds` at most, until the shell has read its set-up; return None, or what the shell did instead."""
        self._exchange = setup
        try:
            in_time = await within(setup.ended, seconds)
        finally:
            self._exchange = None
        if setup.complete:
            self._terminals.close_to_readers()
            return None
        if not in_time:
            return f"was not ready within {seconds:g} seconds"
        status = await self._status()
        text, _ = await setup.text()
        said = " ".join(text[-200:].split())
        return f"ended at once with {status}" + (f", saying {said!r}" if said else "")

    # -- a command's beginning and end ------------------------------------------

    def _new_exchange(self, listen: Listen | None, nonce: str = "") -> Exchange:
        settings = self._settings
        exchange = Exchange(bounded_output(settings.max_output, settings.spill), listen, nonce=nonce)
        exchange.on_paint = lambda: self._watch(exchange, self._watch_screen)
        exchange.on_stall = lambda: self._watch(exchange, self._watch_stall)
        return exchange

    async def _begin(self, exchange: Exchange, size: int, begins: Callable[[Exchange], None]) -> None:
        until = asyncio.get_running_loop().time() + TAKE_TIMEOUT
        try:
            async with asyncio.timeout_at(until):
                exchange.since = await self._process.moment()
        except TimeoutError as exc:
            reason = "its sandbox does not answer; send it again"
            raise TerminalError("The terminal command was not run", reason) from exc
        except SandboxError as exc:
            self._usable = False  # it has ended with its sandbox, or will do so at once
            raise TerminalError("The terminal command was not run", exc.reason) from exc
        if exchange.complete:
            return  # it was interrupted meanwhile
        exchange.typed = True
        try:
            begins(exchange)
            line = script.run(self._sandbox.facts.shell, exchange.nonce, self._terminals.path, size=size)
            await self._terminals.write(line)
        except BrokenPipeError:
            await within(self._over, _END_TIMEOUT)
        left = until - asyncio.get_running_loop().time()
        await self._until_begun(exchange, min(left, _STARVED_TIMEOUT) if self._starved else left)

    async def _until_begun(self, exchange: Exchange, seconds: float) -> None:
        await within(exchange.started, seconds)
        match exchange.marks.state:
            case _ if exchange.cause is not None:
                return
            case MarkState.WAITING if self._over.is_set():
                reason = "its shell had just ended; send it again and a new one takes it"
            case MarkState.WAITING | MarkState.REFUSED:
                reason = (
                    "the shell took no command: its state was changed, e.g. its own variables or a function named"
                    " `builtin`, or the sandbox does not answer; send it again and a new shell takes it"
                )
            case _:
                return
        raise TerminalError("The terminal command was not run", reason)

    async def _finish(
        self,
        exchange: Exchange,
        timeout: float | None,  # noqa: ASYNC109 - as above
        beginning: Coroutine[Any, Any, None],
    ) -> CommandOutcome:
        try:
            await beginning
            if not await within(exchange.ended, timeout):
                await self._stop(exchange, "timeout")
            async with exchange.stopping:
                pass  # nothing of an interrupt reaches the next command
            late = "" if exchange.failure else self._terminals.take_late()
            if exchange.marks.left_job:
                await self._terminals.move(bytes(exchange.marks.after_end))
            if exchange.failure is not None:
                raise exchange.failure
            return await self._outcome(exchange, late)
        finally:
            self._exchange = None
            # If the command's end was not seen, the next output would not be the next command's.
            self._usable = self._usable and exchange.complete
            await self._end_watchers()

    async def _outcome(self, exchange: Exchange, late: str) -> CommandOutcome:
        marks = exchange.marks
        code, cause, said_exit = marks.status, exchange.cause, False
        if not exchange.complete and not exchange.killed:
            status = await self._status()
            code = status.code if status.signal is None else _SIGNALLED + status.signal
            said_exit = status.signal is None and script.is_bash(self._sandbox.facts.shell)
            if cause is None and not exchange.full_screen:
                cause = "out_of_memory" if status.oom else "sandbox_lost" if status.lost else "shell_exited"
        if code is None and exchange.complete:
            code = _SIGNALLED + signal.SIGINT  # it was interrupted before it began
        elif code is None and exchange.full_screen:
            code = _SIGNALLED + signal.SIGKILL
        stalled = cause == "process_limit"
        output, truncated = await exchange.text(without_exit=said_exit)
        late, _ = await turns().run(draw(late))
        notice, self.notice = self.notice, ""
        output = notice + output
        if code == _NO_FORK:  # and bash's own message may have gone elsewhere
            with contextlib.suppress(SandboxError):
                stalled = await self._sandbox.crowded() is not False
        self._starved = stalled
        return CommandOutcome(
            output=output,
            exit_code=code,
            cwd=None if marks.cwd is None else marks.cwd.decode("utf-8", "replace"),
            duration_ms=exchange.duration_ms,
            truncated=truncated,
            cause=cause,
            oom_kills=await self._oom_kills(exchange) if cause in {None, "shell_exited"} else 0,
            state_preserved=exchange.complete,
            hint=command_hint(output, late, code, full_screen=exchange.full_screen, stalled=stalled),
            late_output=late,
            json=await turns().run(texts.written({"output": output})),
        )

    async def _oom_kills(self, exchange: Exchange) -> int:
        """Return how many processes were killed during a command because memory was exhausted; 0 if that is unknown.

        An engine reports this too, but maybe after the command's end.
        """
        if exchange.since is None or exchange.duration_ms < _FILLS_MEMORY:
            return 0
        try:
            async with asyncio.timeout(_COUNT_TIMEOUT):
                now = await self._process.moment()
        except (SandboxError, TimeoutError):
            return 0
        return max(0, now.oom_kills - exchange.since.oom_kills)

    async def _status(self) -> ExitStatus:
        try:
            return await asyncio.wait_for(self._process.wait(), _END_TIMEOUT)
        except TimeoutError:
            await self._process.kill()
            return ExitStatus()

    # -- ending a command ----------------------------------------------------------

    async def _stop(self, exchange: Exchange, cause: str | None, report: ReportStep = _report_nothing) -> bool:
        """End a command with all its processes: by SIGINT, by SIGKILL without the shell, then with the shell.

        Returns False if it had ended already, by itself or by another call.
        """
        async with exchange.stopping:
            if exchange.ended.is_set():
                return False
            exchange.cause = cause
            if not exchange.typed:  # a signal would only reach the shell at its prompt
                exchange.withdraw()
                report("sigint", done=True)
                return True
            try:
                await self._stop_by_steps(exchange, report)
            except SandboxError as exc:
                exchange.failure = exc
                exchange.lose()
            return True

    async def _stop_by_steps(self, exchange: Exchange, report: ReportStep) -> None:
        # A shell that has not begun the command would apply the signal to its prompt.
        await within(exchange.started, self._settings.grace)
        # To the shell's process group: a shell that waits for a program gives up only if both get the signal.
        await self._process.signal(signal.SIGINT)
        if await within(exchange.ended, self._settings.grace):
            await self._process.prune(exchange.since)
            report("sigint", done=True)
            return
        report("sigint", done=False)
        await self._process.signal(signal.SIGINT)
        await self._process.signal(signal.SIGURG)
        for _ in range(3):  # it may have started another program meanwhile
            await self._process.prune(exchange.since)
            if await within(exchange.ended, self._settings.grace / 3):
                await self._process.prune(exchange.since)
                report("process_group", done=True)
                return
        report("process_group", done=False)
        exchange.killed = True
        await self._process.kill()
        await within(self._over, _END_TIMEOUT)
        exchange.lose()
        report("kill", done=False)

    # -- watching a command ----------------------------------------------------------

    def _watch(self, exchange: Exchange, how: Callable[[Exchange], Coroutine[Any, Any, None]]) -> None:
        if not exchange.ended.is_set():
            self._watchers.add(asyncio.get_running_loop().create_task(how(exchange)))

    async def _watch_screen(self, exchange: Exchange) -> None:
        """End a command that paints a screen and then waits for keys, which nobody presses."""
        while True:
            pieces = exchange.pieces
            if await within(exchange.ended, _SCREEN_PATIENCE):
                return
            if exchange.screen.alternate or exchange.pieces == pieces:
                break
        exchange.full_screen = True
        await self._stop(exchange, None)

    async def _watch_stall(self, exchange: Exchange) -> None:
        """End a command while a shell in it says again and again that it cannot start a process."""
        while not await within(exchange.ended, _STALL_PATIENCE):
            exchange.screen.stalls = False
            if await within(exchange.ended, _STALL_PATIENCE):
                return
            with contextlib.suppress(SandboxError):
                if exchange.screen.stalls and await self._sandbox.crowded() is not False:
                    await self._stop(exchange, "process_limit")
                    return

    async def _watch_silence(self, exchange: Exchange) -> None:
        """End a command whose shell cannot start a process, where its message goes elsewhere."""
        with contextlib.suppress(SandboxError):
            if await self._sandbox.starves(self._process.pid):
                await within(exchange.ended, _STALL_PATIENCE)
                if not exchange.ended.is_set() and await self._sandbox.starves(self._process.pid):
                    await self._stop(exchange, "process_limit")
        exchange.looked_at = False

    async def _end_watchers(self) -> None:
        watchers, self._watchers = self._watchers, set()
        for watcher in watchers:
            watcher.cancel()
            await asyncio.wait({watcher})

    # -- its output and its end ------------------------------------------------------

    def _on_data(self, data: bytes) -> None:
        if self._exchange is not None:
            self._exchange.receive_data(data)

    async def _follow(self) -> None:
        """Wait for the shell's end and for all its output; then the command in it has ended, too."""
        try:
            await self._process.wait()
            # Jobs that it leaves hold its terminal open, so that the output would not end.
            await self._process.kill()
            await self._terminals.drain(_END_TIMEOUT)
        finally:
            self._end()

    def _end(self) -> None:
        self._over.set()
        if self._exchange is not None:
            self._exchange.lose()
