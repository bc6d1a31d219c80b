"""A workspace's persistent shell: one command at a time, its output, exit code and directory."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from posixpath import join
from typing import Any

from kernelbridge.errors import BadRequest, TerminalError
from kernelbridge.runtimes.base import ExitStatus, Process, Sandbox
from kernelbridge.text import render_terminal
from kernelbridge.workspace import shell_script
from kernelbridge.workspace.shell_marks import CommandMarks, HeadTail, MarkState

_READY_TIMEOUT = 10.0
"""Seconds for a shell to read its set-up, the user's ~/.bashrc included."""
_TAKE_TIMEOUT = 10.0
"""Seconds for an idle shell to begin a command. It takes one millisecond; a shell that needs longer is lost."""
_END_TIMEOUT = 5.0
"""Seconds between the end of a shell's process and the end of its output, or the other way round."""
_KEYS = (b"\x03", b"\x1c")
"""What a person presses to end a program: SIGINT, then SIGQUIT, for the terminal's foreground processes."""
_LARGE = 1 << 18
"""Bytes of output that are drawn in a thread, because the event loop would notice."""


@dataclass(frozen=True, slots=True)
class CommandOutcome:
    """How a command ended and what it wrote."""

    output: str
    """What a terminal would have shown."""
    exit_code: int | None
    """128 + n for an end by signal n, as shells count; None when the command was killed with its shell."""
    cwd: str | None
    """Where the shell is now; None when it is gone."""
    duration_ms: float
    truncated: dict[str, Any] | None = None
    """`{"bytes": left out of `output`, "kept": "head and tail", "at": character where they are missing}`."""
    cause: str | None = None
    """Why it did not end by itself: `timeout`, `shell_exited`, `out_of_memory`."""
    state_preserved: bool = True
    """False when the shell is gone, and with it its directory, variables, functions and background jobs."""


class _Exchange:
    """One command on its way through the shell."""

    def __init__(self, max_output: int) -> None:
        self.nonce = secrets.token_hex(16)
        self.marks = CommandMarks(self.nonce)
        self.output = HeadTail(max_output)
        self.started = asyncio.Event()
        self.ended = asyncio.Event()
        self.began = time.perf_counter()
        self.finished = self.began

    @property
    def complete(self) -> bool:
        return self.marks.state is MarkState.ENDED

    def receive_data(self, data: bytes) -> None:
        self.output.append(self.marks.receive_data(data))
        if self.marks.state is not MarkState.WAITING and not self.started.is_set():
            self.started.set()
        if self.marks.state in {MarkState.ENDED, MarkState.REFUSED}:
            self._end()

    def lose(self) -> None:
        """Take it that no more comes, because the shell is gone."""
        self.output.append(self.marks.take_rest())
        self._end()

    def _end(self) -> None:
        if not self.ended.is_set():
            self.finished = time.perf_counter()
            self.started.set()
            self.ended.set()


@dataclass(frozen=True, slots=True)
class _Launch:
    """What every attempt to start a workspace's shell has in common."""

    sandbox: Sandbox
    program: str
    commands_host: Path
    commands_inside: str
    env: Mapping[str, str]
    max_output: int
    grace: float

    async def attempt(self, *, user_file: bool) -> tuple[Shell | None, str]:
        """Give a shell that is ready, or None and what it did instead."""
        setup = _Exchange(self.max_output)
        path = self.commands_host / f"shell-{setup.nonce}"
        script = shell_script.setup(self.program, self.commands_inside, setup.nonce, user_file=user_file)
        argv, extra = shell_script.start(self.program, join(self.commands_inside, path.name))
        _write(path, script.encode())
        try:
            process = await self.sandbox.exec(
                argv, env={**shell_script.PLAIN, **self.env, **extra}, cwd=self.sandbox.workspace_path, tty=True
            )
            shell = Shell(process, self.program, self.commands_host, max_output=self.max_output, grace=self.grace)
            failure: str | None = "was not waited for"
            try:
                failure = await shell.prepare(setup)
            finally:
                if failure is not None:
                    await shell.aclose()
        finally:
            path.unlink(missing_ok=True)
        return (shell, "") if failure is None else (None, failure)


class Shell:
    """An interactive shell with a terminal in a sandbox. Its caller runs one command at a time."""

    def __init__(self, process: Process, program: str, commands: Path, *, max_output: int, grace: float) -> None:
        self._process = process
        self._program = program
        self._commands = commands
        self._max_output = max_output
        self._grace = grace
        self._exchange: _Exchange | None = None
        self._usable = True
        self._over = asyncio.Event()
        self.notice = ""
        """What the output of the first command begins with."""
        self._follower = asyncio.get_running_loop().create_task(self._follow())

    @classmethod
    async def start(
        cls,
        sandbox: Sandbox,
        *,
        commands_host: Path,
        commands_inside: str,
        env: Mapping[str, str],
        max_output: int,
        grace: float = 2.0,
    ) -> Shell:
        """Start a shell and wait until it is ready.

        `commands_host` is a directory of the bridge's that the sandbox sees, and cannot write, at
        `commands_inside`. At most `max_output` bytes of each command's output are kept. A
        command that times out has `grace` seconds after SIGINT and again after SIGQUIT. Where the user's
        ~/.bashrc keeps the shell from starting it is skipped, and the first command says so.
        Raises `TerminalError`, and `SandboxError` when the sandbox is gone.
        """
        program = sandbox.facts.shell
        launch = _Launch(sandbox, program, commands_host, commands_inside, env, max_output, grace)
        has_user_file = shell_script.is_bash(program)
        shell, failure = await launch.attempt(user_file=has_user_file)
        if shell is None and has_user_file:
            skipped = failure
            shell, failure = await launch.attempt(user_file=False)
            if shell is not None:
                shell.notice = f"~/.bashrc was skipped: with it, the shell {skipped}\n"
        if shell is None:
            raise TerminalError("The workspace's shell did not start", f"{program} {failure}")
        return shell

    @property
    def alive(self) -> bool:
        """Whether it can take another command."""
        return self._usable and not self._over.is_set()

    async def run(self, command: str, *, timeout: float | None) -> CommandOutcome:  # noqa: ASYNC109 - the time is the command's, which gets its outcome and not a TimeoutError
        """Run a command and wait for its end; after `timeout` seconds it is ended.

        Raises `BadRequest` for text that no shell can take, and `TerminalError` when the shell
        could not begin it; nothing of the command has run then.
        """
        if self._exchange is not None:
            raise AssertionError("the shell runs one command at a time")
        data = _encoded(command)
        if not self.alive:
            raise TerminalError("The terminal command was not run", "its shell has ended; send it again")
        exchange = self._exchange = _Exchange(self._max_output)
        path = self._commands / exchange.nonce
        try:
            _write(path, data)
            await self._begin(exchange)
            timed_out = not await _within(exchange.ended, timeout)
            if timed_out:
                await self._stop(exchange)
            return await self._outcome(exchange, timed_out=timed_out)
        finally:
            self._exchange = None
            # Whatever the shell does now, its next output would not be the next command's.
            self._usable = self._usable and exchange.complete
            path.unlink(missing_ok=True)

    async def aclose(self) -> None:
        """End the shell and every process of its session. Idempotent; a running command ends with it."""
        self._usable = False
        try:
            await self._process.aclose()
        finally:
            self._follower.cancel()
            await asyncio.wait({self._follower})

    async def prepare(self, setup: _Exchange) -> str | None:
        """Wait for the shell to have read its set-up; give what it did instead, or None."""
        self._exchange = setup
        try:
            in_time = await _within(setup.ended, _READY_TIMEOUT)
        finally:
            self._exchange = None
        if setup.complete:
            return None
        if not in_time:
            return f"was not ready within {_READY_TIMEOUT:g} seconds"
        return f"ended at once with {await self._status()}{_quoted(setup)}"

    async def _begin(self, exchange: _Exchange) -> None:
        try:
            await self._process.write(shell_script.run(self._program, exchange.nonce))
        except BrokenPipeError:
            await _within(self._over, _END_TIMEOUT)
        else:
            await _within(exchange.started, _TAKE_TIMEOUT)
        match exchange.marks.state:
            case MarkState.WAITING if self._over.is_set():
                reason = "its shell had just ended; send it again and a new one takes it"
            case MarkState.WAITING | MarkState.REFUSED:
                reason = (
                    "the shell's state was changed so that it takes no commands, e.g. its terminal's settings or a"
                    " function named `builtin`; send it again and a new shell takes it"
                )
            case _:
                return
        raise TerminalError("The terminal command was not run", reason)

    async def _stop(self, exchange: _Exchange) -> None:
        """End a command that takes too long: by keys, so that the shell survives, else together with the shell."""
        for key in _KEYS:
            with contextlib.suppress(BrokenPipeError):
                await self._process.write(key)
            if await _within(exchange.ended, self._grace):
                return
        await self._process.kill()
        await _within(self._over, _END_TIMEOUT)

    async def _outcome(self, exchange: _Exchange, *, timed_out: bool) -> CommandOutcome:
        marks = exchange.marks
        code, cause = marks.status, "timeout" if timed_out else None
        if not exchange.complete and not timed_out:
            status = await self._status()
            code = status.code if status.signal is None else 128 + status.signal
            cause = "out_of_memory" if status.oom else "shell_exited"
        head, tail, left_out = exchange.output.parts()
        if len(head) + len(tail) > _LARGE:
            output, truncated = await asyncio.to_thread(_draw, head, tail, left_out)
        else:
            output, truncated = _draw(head, tail, left_out)
        notice, self.notice = self.notice, ""
        return CommandOutcome(
            output=notice + output,
            exit_code=code,
            cwd=None if marks.cwd is None else marks.cwd.decode("utf-8", "replace"),
            duration_ms=(exchange.finished - exchange.began) * 1000,
            truncated=truncated,
            cause=cause,
            state_preserved=exchange.complete,
        )

    async def _status(self) -> ExitStatus:
        try:
            return await asyncio.wait_for(self._process.wait(), _END_TIMEOUT)
        except TimeoutError:
            await self._process.kill()
            return ExitStatus()

    async def _follow(self) -> None:
        """Hand on the shell's output until both the shell and its output have ended."""
        reader = asyncio.get_running_loop().create_task(self._read())
        try:
            await self._process.wait()
            # Jobs that it leaves hold its terminal open, so that the output would not end.
            await self._process.kill()
            await asyncio.wait({reader}, timeout=_END_TIMEOUT)
        finally:
            reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reader

    async def _read(self) -> None:
        try:
            # Between commands too: a background job must not stand still for want of a reader.
            while data := await self._process.read():
                if self._exchange is not None:
                    self._exchange.receive_data(data)
        finally:
            self._end()

    def _end(self) -> None:
        self._over.set()
        if self._exchange is not None:
            self._exchange.lose()


async def _within(event: asyncio.Event, seconds: float | None) -> bool:
    """Wait for an event; say whether it came in time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()


def _draw(head: bytes, tail: bytes, left_out: int) -> tuple[str, dict[str, Any] | None]:
    first = render_terminal(head.decode("utf-8", "replace"))
    if not left_out:
        return first, None
    last = render_terminal(tail.decode("utf-8", "replace"))
    return first + last, {"bytes": left_out, "kept": "head and tail", "at": len(first)}


def _quoted(setup: _Exchange) -> str:
    """Give what a shell that ended said about it, shortened."""
    head, tail, _ = setup.output.parts()
    said = " ".join(render_terminal((head + tail).decode("utf-8", "replace"))[-200:].split())
    return f", saying {said!r}" if said else ""


def _encoded(command: str) -> bytes:
    if "\0" in command:
        raise BadRequest("The command cannot be run", "it contains a NUL character", field="command")
    try:
        # The line feed also keeps the file from being empty, which the shell takes for a file that is not there.
        return command.encode() + b"\n"
    except UnicodeEncodeError as exc:
        reason = "it contains half of a surrogate pair, which has no UTF-8 form"
        raise BadRequest("The command cannot be run", reason, field="command") from exc


def _write(path: Path, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with open(path, "wb", opener=lambda name, _: os.open(name, flags, 0o600)) as file:
            file.write(data)
            os.fchmod(file.fileno(), 0o644)  # whatever the umask says: the sandbox's user has to read it
    except OSError as exc:
        path.unlink(missing_ok=True)
        raise TerminalError("The terminal command was not run", f"it could not be handed over: {exc.strerror}") from exc
