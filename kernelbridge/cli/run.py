"""`kernelbridge run`: code from a file, an argument or standard input, as a program of the shell would run it."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import json
import os
import signal
import sys
import termios
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from kernelbridge.cli import pictures, screen
from kernelbridge.cli.as_client import BY_SIGNAL, Server, Signals, as_client, carry_out, connected
from kernelbridge.cli.detaching import without_questions
from kernelbridge.client.events import Display, Output, Started
from kernelbridge.client.results import Result
from kernelbridge.errors import KernelBridgeError
from kernelbridge.settings import quantities

if TYPE_CHECKING:
    from kernelbridge import AsyncSession
    from kernelbridge.client.events import Event

TIMED_OUT = 124
"""Exit code when the code ran longer than its time limit, as with `timeout`."""
_END_OF_FILE = "\x04"
"""What a kernel takes as the end of its input."""

_CODES = """\b
Exit codes:
    0, 1   the code ran to its end; it raised an exception
    n      it called sys.exit(n)
    124    it ran longer than --timeout
    125    it could not be run: standard error says why
    128+n  signal n ended it: 130 for Ctrl-C, 137 without memory
"""

_EXAMPLES = """\b
Examples:
    kernelbridge run -c 'print(6 * 7)'
    kernelbridge run --session work --keep analysis.py data.csv
    generate | kernelbridge run -
"""


@click.command(epilog=f"{_EXAMPLES}\n\n{_CODES}", context_settings={"allow_interspersed_args": False})
@click.argument("file", required=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option("-c", "code", metavar="CODE", help="Run this code instead of a file.")
@click.option("--session", metavar="NAME", help="The session to run it in.  [default: a new one, which is deleted]")
@click.option("--keep", is_flag=True, help="Leave the session open, with its variables, for up to an hour.")
@click.option("--timeout", metavar="DURATION", help="End the code after so long: 30s, 5m.  [default: the server's]")
@click.option("--no-isolation", is_flag=True, help="Without a server: run the code with all your rights.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole result as JSON when the code has ended.")
@as_client
def run(
    *,
    file: str | None,
    arguments: Sequence[str],
    code: str | None,
    session: str | None,
    keep: bool,
    timeout: str | None,
    no_isolation: bool,
    as_json: bool,
    server: Server,
) -> int:
    """Run FILE, - for standard input, or CODE in a session, and show what it shows.

    It runs on the server at --url, or else on the one on this machine. If there is none, the command starts one for
    itself. ARGUMENTS are the code's sys.argv. Ctrl-C interrupts the code.
    """
    if code is not None and file is not None:
        file, arguments = "-c", (file, *arguments)
    name, text = ("main.py", code) if code is not None else _read(file)
    argv = [*(["-c"] if code is not None else [file or name]), *arguments]
    seconds = None if timeout is None else _seconds(timeout)
    say = screen.say
    if server.url is not None and no_isolation:
        raise click.UsageError("--no-isolation is for a server of the command's own: leave --url out")

    async def work(signals: Signals) -> int:
        async with (
            connected(server, isolation=not no_isolation, keeps_files=session is not None) as there,
            there.session(session, server.image, keep=keep) as opened,
        ):
            running = _Run(opened.session, signals, as_json=as_json)
            result = await running.of(text, name, argv, seconds)
            if keep and there.to_own_server:
                say("The session ends now nevertheless: the server was started for this command.")
            elif keep:
                say(f"The session {opened.session.session_id} stays open {opened.stays}.")
            return result

    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    with _terminal_restored():
        return carry_out(work)


class _Run:
    """One run: shows what comes, answers what is asked, and passes interrupts on."""

    def __init__(self, session: AsyncSession, signals: Signals, *, as_json: bool) -> None:
        self._session = session
        self._signals = signals
        self._as_json = as_json
        self._pictures = pictures.protocol(os.environ, is_terminal=sys.stdout.isatty() and not as_json)
        self._run_id = ""
        """That of the cell, when it has begun."""
        self._interrupting: asyncio.Task[object] | None = None

    async def of(self, code: str, filename: str, argv: Sequence[str], limit: float | None) -> int:
        """Run code, for at most `limit` seconds; return the exit code."""
        await self._session.run(f"import sys; sys.argv = {list(argv)!r}", silent=True, store_history=False, check=True)
        self._signals.on_interrupt = self._interrupt
        stream = self._session.stream(code, timeout=limit, filename=filename, on_input=self._answer)
        result: Result | None = None
        try:
            async with contextlib.aclosing(stream) as events:
                async for event in events:
                    if isinstance(event, Result):
                        result = event
                    elif isinstance(event, Started):
                        self._run_id = event.run_id
                    elif not self._as_json:
                        await asyncio.to_thread(self._show, event)
        finally:
            self._signals.on_interrupt = lambda: False
            if self._interrupting is not None:
                self._interrupting.cancel()
        if result is None:
            raise AssertionError(code)
        return self._finished(result)

    def _interrupt(self) -> bool:
        """Pass a Ctrl-C on to the cell, once. A second one, and one before the cell has begun, ends the command."""
        if not self._run_id or self._interrupting is not None:
            return False
        self._interrupting = asyncio.ensure_future(self._pass_on())
        return True

    async def _pass_on(self) -> None:
        with contextlib.suppress(KernelBridgeError):  # the run ends with the same error
            await self._session.interrupt(run_id=self._run_id)
        self._interrupting = None

    def _show(self, event: Event) -> None:
        match event:
            case Output(text, "stderr"):
                _write(sys.stderr, text)
            case Output(text):
                _write(sys.stdout, text)
            case Display(bundle) if self._pictures is not None and bundle.png is not None:
                _write(sys.stdout, pictures.shown(bundle.png, self._pictures))
            case Display(bundle) if bundle.text:
                _write(sys.stdout, f"{bundle.text}\n")

    def _finished(self, result: Result) -> int:
        if self._as_json:
            _write(sys.stdout, json.dumps(dict(result.frame)) + "\n")
            return exit_code(result)
        code = exit_code(result)
        if result.late_output:
            _write(sys.stderr, result.late_output)
        leaves = _left_by_itself(result)
        if leaves is None and not result.success:
            _write(sys.stderr, (result.traceback or result.error or "").rstrip("\n") + "\n")
        elif leaves and leaves != "None" and not _is_number(leaves):
            _write(sys.stderr, f"{leaves}\n")
        if leaves is None and result.cause is not None:
            _write(sys.stderr, f"kernelbridge: the code was ended ({result.cause})\n")
        if result.truncated:
            _write(sys.stderr, f"kernelbridge: output is missing: {json.dumps(dict(result.truncated))}\n")
        if result.hint:
            _write(sys.stderr, f"kernelbridge: {result.hint}\n")
        return code

    async def _answer(self, prompt: str, secret: bool) -> str:  # noqa: FBT001 - the client calls it so
        """Ask for a line. In a thread that nobody waits for at the end: a read of a terminal cannot be cancelled."""
        loop = asyncio.get_running_loop()
        line: asyncio.Future[str] = loop.create_future()

        def answered(found: str) -> None:
            if not line.done():
                line.set_result(found)

        def read() -> None:
            found = _line(prompt, secret=secret)
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(answered, found)

        threading.Thread(target=read, daemon=True).start()
        return await line


def exit_code(result: Result) -> int:
    """Return what a program of the shell would return that ended like this."""
    leaves = _left_by_itself(result)
    if leaves is not None:
        code = 0 if leaves in {"", "None"} else int(leaves) if _is_number(leaves) else 1
        return code & 0xFF
    if result.cause == "timeout":
        return TIMED_OUT
    if result.cause == "interrupted" or (result.error or "").startswith("KeyboardInterrupt"):
        return BY_SIGNAL + signal.SIGINT
    name = "SIGKILL" if result.cause == "out_of_memory" else result.frame.get("signal")
    if name is not None:
        return BY_SIGNAL + int(getattr(signal, name, signal.SIGKILL))
    return int(result.frame.get("exitCode", not result.success)) & 0xFF


def _is_number(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def _left_by_itself(result: Result) -> str | None:
    """Return what `sys.exit` was called with, as text; None if it was not called."""
    name, _, value = (result.error or "").partition(": ")
    return value if name == "SystemExit" else None


def _read(file: str | None) -> tuple[str, str]:
    """Return the name and the text of the code. Raises `click.UsageError`."""
    if file is None:
        raise click.UsageError("There is nothing to run: name a file, - for standard input, or give code with -c")
    try:
        return ("main.py", sys.stdin.read()) if file == "-" else (Path(file).name, Path(file).read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8"
        raise click.UsageError(f"{file} cannot be read: {reason}") from exc


def _seconds(text: str) -> float:
    try:
        return quantities.parse_duration(text)
    except ValueError as exc:
        raise click.UsageError(f"--timeout: {text!r} is not a duration such as 30s or 5m") from exc


def _line(prompt: str, *, secret: bool) -> str:
    if secret and sys.stdin.isatty():
        try:
            return getpass.getpass(prompt)
        except EOFError:
            return _END_OF_FILE
    _write(sys.stdout, prompt)
    line = sys.stdin.readline()
    return line.removesuffix("\n") if line else _END_OF_FILE


def _write(stream: TextIO, text: str) -> None:
    if stream.isatty():  # it would answer, into the shell that comes after this command
        text = without_questions(text)
    stream.write(text)
    stream.flush()


@contextlib.contextmanager
def _terminal_restored() -> Iterator[None]:
    """Leave the terminal as it was: a password that is not typed to its end leaves it without echo."""
    try:
        before = termios.tcgetattr(sys.stdin.fileno())
    except (termios.error, ValueError, OSError):  # no terminal, or nothing at all
        yield
        return
    try:
        yield
    finally:
        if termios.tcgetattr(sys.stdin.fileno()) != before:
            termios.tcsetattr(sys.stdin.fileno(), termios.TCSAFLUSH, before)
