"""One run of code while a person watches: what it shows, what it asks, and Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TextIO

from kernelbridge.cli import pictures
from kernelbridge.cli.output_filter import OutputFilter
from kernelbridge.client.events import Display, Output, Started
from kernelbridge.client.results import Bundle, Result
from kernelbridge.errors import KernelBridgeError

if TYPE_CHECKING:
    from kernelbridge import AsyncSession

END_OF_FILE = "\x04"
"""What a kernel takes as the end of its input."""

Ask = Callable[[str, bool], Awaitable[str]]
"""Asks the person: called with the prompt, and whether the answer is secret; returns the line."""


class Running:
    """Runs one cell, and passes on what comes of it. Use it once."""

    def __init__(self, session: AsyncSession, ask: Ask, show: Callable[[Output | Display], None]) -> None:
        """`show` is called in a thread, because a terminal that nobody reads blocks."""
        self._session = session
        self._ask = ask
        self._show = show
        self._run_id = ""
        self._interrupts: list[asyncio.Task[None]] = []
        """One for each Ctrl-C."""

    @property
    def began(self) -> bool:
        """Whether the cell has begun: it does not wait for others."""
        return bool(self._run_id)

    async def result(self, code: str, filename: str, limit: float | None = None) -> Result:
        """Run code, for at most `limit` seconds. Cancelling it interrupts the cell, or withdraws one that waits."""
        stream = self._session.stream(code, timeout=limit, filename=filename, on_input=self._ask)
        try:
            async with contextlib.aclosing(stream) as events:
                async for event in events:
                    if isinstance(event, Result):
                        return event
                    if isinstance(event, Started):
                        self._run_id = event.run_id
                    elif isinstance(event, Output | Display):
                        await asyncio.to_thread(self._show, event)
        finally:
            for task in self._interrupts:
                task.cancel()
        raise AssertionError(code)

    @property
    def interrupts(self) -> int:
        """How often the cell was interrupted."""
        return len(self._interrupts)

    def interrupt(self, *, escalate: bool = False) -> None:
        """Interrupt the cell once more. With `escalate`, one that goes on is ended."""
        before = self._interrupts[-1] if self._interrupts else None
        self._interrupts.append(asyncio.ensure_future(self._pass_on(before, escalate=escalate)))

    async def _pass_on(self, before: asyncio.Task[None] | None, *, escalate: bool) -> None:
        if before is not None:
            await asyncio.wait([before])  # two at once could be taken for one
        with contextlib.suppress(KernelBridgeError):  # if the connection is lost, the run ends with the same error
            await self._session.interrupt(run_id=self._run_id, escalate=escalate)


class Lines:
    """Lines of standard input, for the questions of a program."""

    def __init__(self, screen: OutputScreen) -> None:
        self._screen = screen
        self._reading: asyncio.Future[str] | None = None
        """The line that is being read. A read of a terminal cannot be cancelled: a question that replaces another one,
        which the program has given up, gets the line for which that one waited."""

    async def ask(self, prompt: str, secret: bool) -> str:  # noqa: FBT001 - the client calls it so
        """Return the next line. It is read in a thread that nobody waits for at the end."""
        if self._reading is None:
            self._reading = self._begin(prompt, secret=secret)
        else:
            await asyncio.to_thread(self._screen.write, sys.stdout, prompt)
        line = await asyncio.shield(self._reading)
        self._reading = None
        return line

    def _begin(self, prompt: str, *, secret: bool) -> asyncio.Future[str]:
        loop = asyncio.get_running_loop()
        line: asyncio.Future[str] = loop.create_future()

        def read() -> None:
            found = self._line(prompt, secret=secret)
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(line.set_result, found)

        threading.Thread(target=read, daemon=True).start()
        return line

    def _line(self, prompt: str, *, secret: bool) -> str:
        if secret and sys.stdin.isatty():
            try:
                return getpass.getpass(OutputFilter().take(prompt))
            except EOFError:
                return END_OF_FILE
        self._screen.write(sys.stdout, prompt)
        line = sys.stdin.readline()
        return line.removesuffix("\n") if line else END_OF_FILE


class OutputScreen:
    """Shows what cells show on standard output and standard error, with pictures where the terminal can."""

    def __init__(self) -> None:
        self._pictures = pictures.protocol(os.environ, is_terminal=sys.stdout.isatty())
        self._filter = OutputFilter()
        """For both streams: if both are the terminal, one can begin what the other ends."""
        self._writing = threading.Lock()

    def write(self, stream: TextIO, text: str) -> None:
        """Write text of a program; to a terminal without questions, which it would answer into the next prompt."""
        with self._writing:
            if stream.isatty():
                text = self._filter.take(text)
            stream.write(text)
            stream.flush()

    def settle(self) -> None:
        """Drop the beginning of a sequence that the program has not ended: it would take what others write."""
        self._filter.end()

    def show(self, event: Output | Display) -> None:
        """Show one event."""
        if isinstance(event, Display):
            self.show_bundle(event.bundle)
        else:
            self.write(sys.stderr if event.stream == "stderr" else sys.stdout, event.text)

    def show_bundle(self, bundle: Bundle, prefix: str = "") -> None:
        """Show a display: its picture, or else its text behind `prefix`."""
        if self._pictures is not None and bundle.png is not None:
            sys.stdout.write(pictures.shown(bundle.png, self._pictures))
            sys.stdout.flush()
        elif bundle.text:
            self.write(sys.stdout, f"{prefix}{bundle.text}\n")
