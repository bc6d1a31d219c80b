"""`kernelbridge shell`: an interactive terminal of a session, which can be left and taken up again."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import os
import shlex
import signal
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from kernelbridge.cli import screen
from kernelbridge.cli.as_client import (
    OUR_FAILURE,
    WAITING,
    EndedBySignal,
    Server,
    as_client,
    carry_out,
    connected,
    has_terminal,
)
from kernelbridge.cli.completion import own_sessions
from kernelbridge.cli.detaching import LEFT, Keys
from kernelbridge.cli.output_filter import OutputFilter
from kernelbridge.errors import KernelBridgeError

if TYPE_CHECKING:
    from kernelbridge.client.terminal import AsyncTerminal

_READ = 1 << 16
_EXAMPLES = """\b
Examples:
    kernelbridge shell
    kernelbridge shell work
    kernelbridge shell work --terminal logs
"""


@click.command(epilog=_EXAMPLES, short_help="Open a terminal of a session.")
@click.argument("session", required=False, shell_complete=own_sessions)
@click.option("--terminal", default="shell", show_default=True, help="Which terminal of the session.")
@as_client
def shell(*, session: str | None, terminal: str, server: Server) -> int:
    """Open a terminal of SESSION, or attach to the one that is open; without SESSION, of a new one.

    `exit` ends it. `~d` at the beginning of a line leaves it: what runs goes on for up to an hour, and the same
    command takes it up again. The exit code is that of the shell, 0 after `~d`, and 125 if there is no terminal.
    """
    say = screen.say
    if not has_terminal():
        return OUR_FAILURE

    async def work(_signals: object) -> int:
        async with (
            connected(server, keeps_files=session is not None) as there,
            there.session(session, server.image, keep=True, takes_up=True) as opened,
        ):
            opened.keep = session is not None  # until its name is told
            size = os.get_terminal_size()
            async with screen.waiting(WAITING):
                attached = await opened.session.terminal(rows=size.lines, cols=size.columns, name=terminal)
            with _raw(sys.stdin.fileno()):
                left = await _Attached(attached).until_left()
            opened.keep = left
            if left:
                words = ["kernelbridge", "shell", opened.session.session_id]
                for option, value, usual in (
                    ("--terminal", terminal, "shell"),
                    ("--url", server.url, None),
                    ("--user", server.user, None),
                ):
                    words += [] if value in {usual, None} else [option, str(value)]
                say(f"The terminal goes on {opened.stays}. Take it up again with: {shlex.join(words)}")
                if there.to_own_server:
                    say("It ends now nevertheless: the server was started for this command.")
                return 0
            if attached.exit_code is None:
                opened.keep = session is not None
                raise KernelBridgeError("The terminal has ended", f"its shell did not exit by itself: {attached.cause}")
            return attached.exit_code

    return carry_out(work)


class _Attached:
    """Passes keys, output and sizes on between this terminal and the session's."""

    def __init__(self, terminal: AsyncTerminal) -> None:
        self._terminal = terminal
        self._loop = asyncio.get_running_loop()
        self._left: asyncio.Future[bool] = self._loop.create_future()
        """True when the person leaves; False when the shell ends."""
        self._keys = Keys()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._tasks: set[asyncio.Task[None]] = set()
        self._writing = threading.Lock()

    async def until_left(self) -> bool:
        """Pass on until the shell ends or the person leaves; return whether they left."""
        keys = sys.stdin.fileno()
        self._loop.add_reader(keys, self._read, keys)
        self._loop.add_signal_handler(signal.SIGWINCH, self._do, self._resize)
        self._do(self._show)
        try:
            return await self._left
        finally:
            self._loop.remove_reader(keys)
            self._loop.remove_signal_handler(signal.SIGWINCH)
            for task in self._tasks:
                task.cancel()
            with self._writing:  # a thread may be writing what was shown last
                pass

    def _do(self, what: object, *arguments: str) -> None:
        task = self._loop.create_task(what(*arguments))  # type: ignore[operator]
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            self._end(exc)

    def _end(self, why: BaseException) -> None:
        if not self._left.done():
            self._left.set_exception(why)

    def _read(self, keys: int) -> None:
        data = os.read(keys, _READ)
        text, leaves = self._keys.take(self._decoder.decode(data))
        if text:
            self._do(self._type, text)
        if not data:
            self._end(EndedBySignal(signal.SIGHUP))  # nobody is there any more
        elif leaves:
            self._do(self._leave)

    async def _type(self, text: str) -> None:
        from kernelbridge.client.errors import Closed, ConnectionLost  # noqa: PLC0415

        try:
            await self._terminal.write(text)
        except ConnectionLost:
            await self._write("\a")  # typed into nothing: the connection is being made again
        except Closed:
            pass  # its last output is being shown

    async def _leave(self) -> None:
        if not self._left.done():
            self._left.set_result(True)

    async def _resize(self) -> None:
        size = os.get_terminal_size()
        await self._terminal.resize(size.lines, size.columns)

    async def _show(self) -> None:
        replay = OutputFilter(keys=True)
        while text := await self._terminal.read():
            # What was begun in the replay and ends behind it was never answered.
            await self._write(replay.take(text) if self._terminal.replayed else replay.end() + text)
        if not self._left.done():
            self._left.set_result(False)

    async def _write(self, text: str) -> None:
        def write() -> None:
            with self._writing:
                _write_all(text.encode())

        await asyncio.to_thread(write)


def _write_all(data: bytes) -> None:
    while data:
        data = data[os.write(sys.stdout.fileno(), data) :]


@contextlib.contextmanager
def _raw(keys: int) -> Iterator[None]:
    """Hand every key on while the context is open, and leave the terminal as it was."""
    before = termios.tcgetattr(keys)
    tty.setraw(keys)
    try:
        yield
    finally:
        with contextlib.suppress(OSError, termios.error):  # its window may be closed
            termios.tcsetattr(keys, termios.TCSAFLUSH, before)
            _write_all(LEFT.encode())
