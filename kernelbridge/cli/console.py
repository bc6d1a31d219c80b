"""`kernelbridge console`: a prompt for Python code, as IPython's, whose interpreter is that of a session."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from kernelbridge import __version__
from kernelbridge.cli import screen
from kernelbridge.cli.as_client import (
    OUR_FAILURE,
    WAITING,
    Opened,
    Server,
    Signals,
    as_client,
    carry_out,
    connected,
    has_terminal,
    no_isolation_option,
    tell_stay,
)
from kernelbridge.cli.completion import own_sessions
from kernelbridge.cli.running import END_OF_FILE, OutputScreen, Running
from kernelbridge.client.errors import LoginRefused
from kernelbridge.client.events import Display, Output
from kernelbridge.client.results import Result
from kernelbridge.errors import KernelBridgeError

if TYPE_CHECKING:
    from kernelbridge import AsyncSession

_LEAVES = frozenset({"exit", "quit", "exit()", "quit()"})
"""What leaves, because it would end the interpreter otherwise."""
_HELP = "Tab completes, name? explains, Ctrl-D leaves."
_EXAMPLES = """\b
Examples:
    kernelbridge console
    kernelbridge console work --keep
    kernelbridge console --image registry.example/science:1
"""


@click.command(epilog=_EXAMPLES, short_help="Type Python code into a session.")
@click.argument("session", required=False, shell_complete=own_sessions)
@click.option("--keep", is_flag=True, help="Leave the session open, with its variables, for up to an hour.")
@no_isolation_option
@as_client
def console(*, session: str | None, keep: bool, no_isolation: bool, server: Server) -> int:
    """Type Python code into SESSION, cell by cell; without SESSION, into a new one.

    Tab completes, Shift-Tab or `name?` explains, Alt-Enter begins a new line. Ctrl-C interrupts a cell, Ctrl-D leaves.
    """
    if not has_terminal():
        return OUR_FAILURE

    async def work(signals: Signals) -> int:
        async with (
            connected(server, isolation=not no_isolation, keeps_files=session is not None) as there,
            there.session(session, server.image, keep=keep) as opened,
        ):
            await _Console(opened, signals).until_left()
            tell_stay(there, opened)
        return 0

    return carry_out(work)


class _Console:
    """Asks for cells, and runs them, until the person leaves."""

    def __init__(self, opened: Opened, signals: Signals) -> None:
        self._session = opened.session
        self._signals = signals
        self._screen = OutputScreen()
        from kernelbridge.cli.prompts import Prompts  # noqa: PLC0415 - loads prompt_toolkit: not for --help

        self._prompts = Prompts(self._session, coloured=not os.environ.get("NO_COLOR"))
        self._number = 1
        """That of the next cell."""
        self._interrupt: Callable[[], bool] = lambda: False

    async def until_left(self) -> None:
        """Return when the person leaves."""
        async with screen.waiting(WAITING):
            self._number = await _next_number(self._session)
        name = self._session.session_id
        self._screen.write(sys.stdout, f"kernelbridge {__version__}, session {name}\n{_HELP}\n")
        while True:
            try:
                code = await self._prompts.cell(f"\nIn [{self._number}]: ")
            except KeyboardInterrupt:
                continue
            except EOFError:
                return
            if code.strip() in _LEAVES:
                return
            if code.strip():
                await self._run(code)

    # -- a cell ---------------------------------------------------------------------

    async def _run(self, code: str) -> None:
        running = Running(self._session, self._ask, self._show)
        cell = asyncio.ensure_future(running.result(code, "main.py"))
        withdrawn = False

        def interrupt() -> bool:
            nonlocal withdrawn
            if not running.began:
                withdrawn = True
                cell.cancel()
            else:
                running.interrupt(escalate=True)
            return True

        self._interrupt = interrupt
        self._signals.on_interrupt = interrupt
        try:
            result = await cell
        except asyncio.CancelledError:
            cell.cancel()
            if not withdrawn:
                raise
            self._screen.write(sys.stderr, "KeyboardInterrupt: the cell had not begun\n")
            return
        except LoginRefused:
            raise
        except KernelBridgeError as exc:
            screen.write_error(screen.errors(), exc.message, exc.reason)
            return
        finally:
            self._signals.on_interrupt = lambda: False
        self._finish(result)

    def _finish(self, result: Result) -> None:
        self._screen.settle()
        self._number = (result.execution_count or self._number) + 1
        if result.late_output:
            self._screen.write(sys.stdout, result.late_output)
        if not result.success:
            text = (result.traceback or result.error or "").rstrip("\n") + "\n"
            self._screen.write(sys.stdout, self._prompts.highlighted(text))
        for note in (
            f"the cell was ended ({result.cause})" if result.cause not in {None, "interrupted"} else None,
            None if result.state_preserved else "the interpreter was ended: its variables are lost",
            "output is missing: it was longer than the server sends" if result.truncated else None,
            result.hint,
        ):
            if note:
                screen.say(f"kernelbridge: {note}")

    def _show(self, event: Output | Display) -> None:
        if isinstance(event, Display) and event.bundle.is_result:
            self._screen.show_bundle(event.bundle, f"Out[{self._number}]: ")
        else:
            self._screen.show(event)

    async def _ask(self, prompt: str, secret: bool) -> str:  # noqa: FBT001 - the client calls it so
        """Ask what a cell asks. Ctrl-C interrupts the cell, Ctrl-D is the end of input."""
        try:
            return await self._prompts.line(prompt, secret=secret)
        except EOFError:
            return END_OF_FILE
        except KeyboardInterrupt:
            self._interrupt()
            return await asyncio.Future()  # until the cell has ended, or asks something else


async def _next_number(session: AsyncSession) -> int:
    """Return the number of the next cell: 1 in a new session, and if the kernel is not IPython."""
    with contextlib.suppress(KeyError, ValueError):
        found = await session.run("get_ipython().execution_count", store_history=False)
        return int(found.data["text/plain"])
    return 1
