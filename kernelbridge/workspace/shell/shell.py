"""A workspace's persistent shell: one command at a time, its output, exit code and directory."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kernelbridge.aio.turns import turns
from kernelbridge.errors import BadRequest, RuntimeUnavailable, SandboxError, TerminalError
from kernelbridge.jupyter.bounded import Overflow
from kernelbridge.protocol import texts
from kernelbridge.runtimes.contract import ExitStatus, Process, Sandbox
from kernelbridge.workspace.command_outcome import CommandOutcome
from kernelbridge.workspace.session_state import RunningCommand, ShellState
from kernelbridge.workspace.shell import script
from kernelbridge.workspace.shell.command_files import overwrite
from kernelbridge.workspace.shell.exchange import Exchange, Listen, bounded_output, draw, within
from kernelbridge.workspace.shell.hints import hint
from kernelbridge.workspace.shell.marks import MarkState
from kernelbridge.workspace.shell.ptys import OpenTerminals, ShellTerminals

TAKE_TIMEOUT = 7.0
"""Seconds for an idle shell to begin a command. It takes one millisecond; a shell that needs longer is lost."""
_STARVED_TIMEOUT = 2.0
"""Seconds instead, after bash could start no process: it may then wait for its latest job, with each next command."""
_END_TIMEOUT = 5.0
"""Seconds between the end of a shell's process and the end of its output, or the other way round."""
_SCREEN_PATIENCE = 2.0
"""Seconds that a command which paints a screen may go on, or be silent: then it waits for keys."""
_STALL_PATIENCE = 1.6
"""Seconds, twice, that a shell may try to start a process where there is no room; bash tries after 1, 3, 7, 15."""
_NO_FORK = 254
"""What bash gives as the exit code where it could not start a process."""
_SIGNALLED = 128

_LOST_OUTPUT = "\n[output was lost here, with the server that ended]\n"

Step = Literal["none", "sigint", "process_group", "kill", "restart"]
"""How far it was gone to end a command; `none`: nothing ran."""
StepDone = Callable[[Step, bool], None]
"""Takes each step, and whether it was the last: the command has ended, and the shell lives."""


@dataclass(frozen=True, slots=True)
class ShellSettings:
    """What the shells of one workspace have in common."""

    program: str
    commands: Path
    """The bridge's directory that the sandbox sees and cannot write."""
    max_output: int
    """Bytes of each command's output that are kept."""
    grace: float
    """Seconds that a command has to end after SIGINT, and again after its processes were killed."""
    overflow: Callable[[], Overflow | None] | None = None
    """Gives what takes the whole output of one command when it is too much."""


def _nobody_notes(_exchange: Exchange) -> None:
    """Note nothing: no other server will go on with it."""


class Shell:
    """An interactive shell in a sandbox with a terminal to write on. Its caller runs one command at a time."""

    def __init__(self, sandbox: Sandbox, process: Process, terminals: OpenTerminals, settings: ShellSettings) -> None:
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
        """What another server needs to go on with it."""
        return ShellState(self._process.handle, *self._terminals.paths)

    def on_change(self, call: Callable[[ShellState], None]) -> None:
        """Have `call` called when that has changed."""
        self._terminals.on_change = lambda: call(self.state)

    @property
    def alive(self) -> bool:
        """Whether it can take another command, at once or when the one that runs has ended."""
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
        begins: Callable[[Exchange], None] = _nobody_notes,
    ) -> CommandOutcome:
        """Run a command and wait for its end; after `timeout` seconds it is ended. `listen` gets its output meanwhile.

        `begins` is called when the shell is about to be told of it, unless it was interrupted before.
        Raises `BadRequest` for text that no shell can take, and `TerminalError` when the shell
        could not begin it; nothing of the command has run then.
        """
        if self._exchange is not None:
            raise AssertionError("the shell runs one command at a time")
        data = _encoded(command)
        if not self.alive:
            raise TerminalError("The terminal command was not run", "its shell has ended; send it again")
        # Before anything of it is begun: what cannot be handed over costs no shell.
        overwrite(self._settings.commands / script.COMMAND, data)
        exchange = self._exchange = self._new_exchange(listen)
        return await self._finish(exchange, timeout, self._begin(exchange, len(data), begins))

    def _new_exchange(self, listen: Listen | None, nonce: str = "") -> Exchange:
        settings = self._settings
        exchange = Exchange(bounded_output(settings.max_output, settings.overflow), listen, nonce=nonce)
        exchange.on_paint = lambda: self._watch(exchange, self._watch_screen)
        exchange.on_stall = lambda: self._watch(exchange, self._watch_stall)
        return exchange

    def resume(
        self, command: RunningCommand, said: bytes, listen: Listen | None, wrote: Callable[[bytes], None]
    ) -> None:
        """Go on with a command that an earlier server has given to it; `finish` then waits for its end.

        To be called before anything else is awaited. `said` is what that server has read since, `wrote` is given what
        comes. `listen` is as in `run`, for what comes.
        """
        exchange = self._exchange = self._new_exchange(None, command.nonce)
        exchange.began, exchange.since = command.began, command.moment
        exchange.typed = True
        exchange.receive_data(said)
        if len(said) >= self._settings.max_output:
            exchange.note(_LOST_OUTPUT)
        exchange.on_data, exchange.listen = wrote, listen

    async def finish(self, timeout: float | None) -> CommandOutcome:  # noqa: ASYNC109 - as above
        """Wait for the end of the command of `resume`; see `run`."""
        exchange = self._exchange
        if exchange is None:
            raise AssertionError("no command was resumed")
        return await self._finish(exchange, timeout, self._until_begun(exchange, TAKE_TIMEOUT))

    async def _finish(
        self,
        exchange: Exchange,
        timeout: float | None,  # noqa: ASYNC109 - as above
        beginning: Coroutine[Any, Any, None],
    ) -> CommandOutcome:
        try:
            await beginning
            if not await within(exchange.ended, timeout):
                await self._stop(exchange, "timeout", _nobody)
            async with exchange.stopping:
                pass  # whoever ends it is done with that: nothing of it reaches the next command
            late = "" if exchange.failure else self._terminals.take_late()
            if exchange.marks.left_job:
                await self._terminals.move(bytes(exchange.marks.behind))
            if exchange.failure is not None:
                raise exchange.failure
            return await self._outcome(exchange, late)
        finally:
            self._exchange = None
            # Whatever the shell does now, its next output would not be the next command's.
            self._usable = self._usable and exchange.complete
            await self._end_watchers()

    async def interrupt(self, tell: StepDone) -> bool:
        """End the running command, if there is one, and all its processes, step by step; say whether that was done.

        Jobs of earlier commands live on, unless the shell has to be killed.
        """
        exchange = self._exchange
        if exchange is None or exchange.ended.is_set():
            return False
        return await self._stop(exchange, "interrupted", tell)

    def crowded(self) -> None:
        """Take note that there is hardly any room for processes: see whether a command's shell waits for some."""
        exchange = self._exchange
        if exchange is not None and not exchange.looked_at:
            exchange.looked_at = True
            self._watch(exchange, self._watch_silence)

    async def leave(self) -> None:
        """Leave it to another server, with the command that runs in it."""
        self._usable = False
        self._follower.cancel()
        await asyncio.wait({self._follower})
        await self._terminals.aclose(leave=True)

    async def aclose(self) -> None:
        """End the shell and every process of its session. Idempotent; a running command ends with it."""
        self._usable = False
        try:
            await self._process.aclose()
        finally:
            self._follower.cancel()
            await asyncio.wait({self._follower})
            await self._terminals.aclose()
            self._end()

    async def prepare(self, setup: Exchange, seconds: float) -> str | None:
        """Wait for the shell to have read its set-up; give what it did instead, or None."""
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

    async def _begin(self, exchange: Exchange, size: int, begins: Callable[[Exchange], None]) -> None:
        until = asyncio.get_running_loop().time() + TAKE_TIMEOUT
        try:
            async with asyncio.timeout_at(until):
                exchange.since = await self._process.moment()
        except TimeoutError as exc:
            reason = "its sandbox does not answer; send it again"
            raise TerminalError("The terminal command was not run", reason) from exc
        except RuntimeUnavailable:
            raise
        except SandboxError as exc:
            self._usable = False  # it has ended with its sandbox, or is about to
            raise TerminalError("The terminal command was not run", exc.reason) from exc
        if exchange.complete:
            return  # it was interrupted meanwhile
        exchange.typed = True
        try:
            begins(exchange)
            program, path = self._settings.program, self._terminals.path
            await self._terminals.write(script.run(program, exchange.nonce, path, size=size))
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
                    " `builtin`, or what makes sandboxes does not answer; send it again and a new shell takes it"
                )
            case _:
                return
        raise TerminalError("The terminal command was not run", reason)

    async def _stop(self, exchange: Exchange, cause: str | None, tell: StepDone) -> bool:
        """End a command with all its processes: gently, then without the shell, then together with it.

        Says whether that was needed: it may end by itself, or be ended by somebody else.
        """
        async with exchange.stopping:
            if exchange.ended.is_set():
                return False
            exchange.cause = cause
            if not exchange.typed:  # a signal would only be about the shell's prompt
                exchange.give_up()
                tell("sigint", True)  # noqa: FBT003 - the second of two
                return True
            try:
                await self._stop_by_steps(exchange, tell)
            except SandboxError as exc:
                exchange.failure = exc
                exchange.lose()
            return True

    async def _stop_by_steps(self, exchange: Exchange, tell: StepDone) -> None:
        # A shell that has not begun would take it for a word about its prompt.
        await within(exchange.started, self._settings.grace)
        # To its group, which is the shell's: a shell that waits for a program leaves off only if both get it.
        await self._process.signal(signal.SIGINT)
        if await within(exchange.ended, self._settings.grace):
            await self._process.prune(exchange.since)
            tell("sigint", True)  # noqa: FBT003 - the second of two
            return
        tell("sigint", False)  # noqa: FBT003 - as above
        await self._process.signal(signal.SIGINT)
        await self._process.signal(signal.SIGURG)
        for _ in range(3):  # it may have started another program meanwhile
            await self._process.prune(exchange.since)
            if await within(exchange.ended, self._settings.grace / 3):
                await self._process.prune(exchange.since)
                tell("process_group", True)  # noqa: FBT003 - as above
                return
        tell("process_group", False)  # noqa: FBT003 - as above
        exchange.killed = True
        await self._process.kill()
        await within(self._over, _END_TIMEOUT)
        exchange.lose()
        tell("kill", False)  # noqa: FBT003 - as above

    async def end_jobs(self) -> None:
        """SIGKILL everything that it has started; raises `SandboxError` if something outlives that."""
        await self._process.prune()

    def _watch(self, exchange: Exchange, how: Callable[[Exchange], Coroutine[Any, Any, None]]) -> None:
        if not exchange.ended.is_set():
            self._watchers.add(asyncio.get_running_loop().create_task(how(exchange)))

    async def _watch_screen(self, exchange: Exchange) -> None:
        """End a command that paints a screen and then waits for keys which nobody presses."""
        while True:
            pieces = exchange.pieces
            if await within(exchange.ended, _SCREEN_PATIENCE):
                return
            if exchange.screen.alternate or exchange.pieces == pieces:
                break
        exchange.full_screen = True
        await self._stop(exchange, None, _nobody)

    async def _watch_stall(self, exchange: Exchange) -> None:
        """End a command whose shell cannot start a process, and waits for one to end."""
        while not await within(exchange.ended, _STALL_PATIENCE):
            exchange.screen.stalls = False
            if await within(exchange.ended, _STALL_PATIENCE):
                return
            with contextlib.suppress(SandboxError):
                if exchange.screen.stalls and await self._sandbox.crowded() is not False:
                    await self._stop(exchange, "process_limit", _nobody)
                    return

    async def _watch_silence(self, exchange: Exchange) -> None:
        """End such a command where what its shell says of that goes elsewhere."""
        with contextlib.suppress(SandboxError):
            if await self._sandbox.starves(self._process.pid):
                await within(exchange.ended, _STALL_PATIENCE)
                if not exchange.ended.is_set() and await self._sandbox.starves(self._process.pid):
                    await self._stop(exchange, "process_limit", _nobody)
        exchange.looked_at = False

    async def _end_watchers(self) -> None:
        watchers, self._watchers = self._watchers, set()
        for watcher in watchers:
            watcher.cancel()
            await asyncio.wait({watcher})

    async def _outcome(self, exchange: Exchange, late: str) -> CommandOutcome:
        marks = exchange.marks
        code, cause, left = marks.status, exchange.cause, False
        if not exchange.complete and not exchange.killed:
            status = await self._status()
            code = status.code if status.signal is None else _SIGNALLED + status.signal
            left = status.signal is None and script.is_bash(self._settings.program)
            if cause is None and not exchange.full_screen:
                cause = "out_of_memory" if status.oom else "sandbox_lost" if status.lost else "shell_exited"
        if code is None and exchange.complete:
            code = _SIGNALLED + signal.SIGINT  # before it began
        elif code is None and exchange.full_screen:
            code = _SIGNALLED + signal.SIGKILL
        stalled = cause == "process_limit"
        output, truncated = await exchange.text(farewell=left)
        late, _ = await turns().run(draw(late))
        notice, self.notice = self.notice, ""
        output = notice + output
        if code == _NO_FORK:  # whose words may have been sent elsewhere
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
            state_preserved=exchange.complete,
            hint=hint(output, late, code, full_screen=exchange.full_screen, stalled=stalled),
            late_output=late,
            json=await turns().run(texts.written({"output": output})),
        )

    async def _status(self) -> ExitStatus:
        try:
            return await asyncio.wait_for(self._process.wait(), _END_TIMEOUT)
        except TimeoutError:
            await self._process.kill()
            return ExitStatus()

    # -- what comes from it ------------------------------------------------------

    def _on_data(self, data: bytes) -> None:
        if self._exchange is not None:
            self._exchange.receive_data(data)

    async def _follow(self) -> None:
        """Take note of the shell's end, when all that it wrote has come."""
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


def _nobody(_step: Step, _done: bool) -> None:  # noqa: FBT001 - a `StepDone`
    """Tell nobody."""


def _encoded(command: str) -> bytes:
    if "\0" in command:
        raise BadRequest("The command cannot be run", "it contains a NUL character", field="command")
    try:
        # The line feed also keeps the file from being empty, which the shell takes for a file that is not there.
        return command.encode() + b"\n"
    except UnicodeEncodeError as exc:
        reason = "it contains half of a surrogate pair, which has no UTF-8 form"
        raise BadRequest("The command cannot be run", reason, field="command") from exc
