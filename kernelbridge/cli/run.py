"""`kernelbridge run`: code from a file, an argument or standard input, as a program of the shell would run it."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import termios
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import click

from kernelbridge.cli import screen
from kernelbridge.cli.as_client import (
    BY_SIGNAL,
    WAITING,
    Server,
    Signals,
    as_client,
    carry_out,
    connected,
    no_isolation_option,
    tell_stay,
)
from kernelbridge.cli.completion import files, own_sessions
from kernelbridge.cli.running import Lines, OutputScreen, Running
from kernelbridge.client.results import Result
from kernelbridge.settings import quantities

_PASSED_ON = 2
"""How many Ctrl-C the code gets."""
TIMED_OUT = 124
"""Exit code when the code ran longer than its time limit, as with `timeout`."""

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


@click.command(
    epilog=f"{_EXAMPLES}\n\n{_CODES}",
    short_help="Run a program in a session.",
    context_settings={"allow_interspersed_args": False},
)
@click.argument("file", required=False, shell_complete=files)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option("-c", "code", metavar="CODE", help="Run this code instead of a file.")
@click.option(
    "--session",
    metavar="NAME",
    shell_complete=own_sessions,
    help="The session to run it in.  [default: a new one, which is deleted]",
)
@click.option("--keep", is_flag=True, help="Leave the session open, with its variables, for up to an hour.")
@click.option("--timeout", metavar="DURATION", help="End the code after so long: 30s, 5m.  [default: the server's]")
@no_isolation_option
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

    async def work(signals: Signals) -> int:
        async with (
            connected(server, isolation=not no_isolation, keeps_files=session is not None) as there,
            there.session(session, server.image, keep=keep) as opened,
        ):
            set_argv = f"import sys; sys.argv = {argv!r}"
            async with screen.waiting(WAITING, shown=not as_json):
                await opened.session.run(set_argv, silent=True, store_history=False, check=True)
            shown = OutputScreen()
            running = Running(opened.session, Lines(shown).ask, (lambda _event: None) if as_json else shown.show)
            signals.on_interrupt = partial(_interrupted, running)
            try:
                result = await running.result(text, name, seconds)
            finally:
                signals.on_interrupt = lambda: False
            code = _finished(result, shown, as_json=as_json)
            tell_stay(there, opened)
            return code

    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    with _terminal_restored():
        return carry_out(work)


def _interrupted(running: Running) -> bool:
    """Pass a Ctrl-C on to the code; return False for one that ends the command.

    That is one before the code has begun, and the third. The person is told with the second: the code has caught the
    first one, or does not react.
    """
    if not running.began or running.interrupts >= _PASSED_ON:
        return False
    running.interrupt()
    if running.interrupts == _PASSED_ON:
        screen.say("Ctrl-C was passed on again. Once more ends the code and this command.")
    return True


def _finished(result: Result, shown: OutputScreen, *, as_json: bool) -> int:
    """Show how the code ended, and return its exit code."""
    code = exit_code(result)
    shown.settle()
    if as_json:
        shown.write(sys.stdout, json.dumps(dict(result.frame)) + "\n")
        return code
    if result.late_output:
        shown.write(sys.stderr, result.late_output)
    leaves = _left_by_itself(result)
    if leaves is None and not result.success:
        shown.write(sys.stderr, (result.traceback or result.error or "").rstrip("\n") + "\n")
    elif leaves and leaves != "None" and not _is_number(leaves):
        shown.write(sys.stderr, f"{leaves}\n")
    if leaves is None and result.cause is not None:
        shown.write(sys.stderr, f"kernelbridge: the code was ended ({result.cause})\n")
    if result.truncated:
        shown.write(sys.stderr, f"kernelbridge: output is missing: {json.dumps(dict(result.truncated))}\n")
    if result.hint:
        shown.write(sys.stderr, f"kernelbridge: {result.hint}\n")
    return code


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
