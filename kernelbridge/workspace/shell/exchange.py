"""One command on its way through a shell: which part of the terminal's output belongs to it, and how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Generator
from typing import Any

from kernelbridge.aio.turns import turns
from kernelbridge.errors import SandboxError
from kernelbridge.jupyter.bounded import BoundedText, Spill
from kernelbridge.runtimes.contract import Moment
from kernelbridge.terminal_text import TerminalDecoder, drawn
from kernelbridge.workspace.shell.marks import CommandMarks, MarkState
from kernelbridge.workspace.shell.screen_watch import ScreenWatch

_EXIT = "exit\n"
"""The last line that bash itself writes when it ends."""

Listen = Callable[[str], None]
"""Called with a command's output as it comes: whole characters, escape sequences as written, lines ended by `\\n`."""


class Exchange:
    """One command, from the line that starts it to its end."""

    def __init__(self, output: BoundedText, listen: Listen | None = None, *, nonce: str = "") -> None:
        """`nonce` is given for a command that an earlier server has typed."""
        self.nonce = nonce or secrets.token_hex(16)
        """Tells its marks from all others: no program that it runs can know it."""
        self.since: Moment | None = None
        """What the shell has started since then belongs to the command; see `Process.prune`."""
        self.marks = CommandMarks(self.nonce)
        self.screen = ScreenWatch()
        self.started = asyncio.Event()
        self.ended = asyncio.Event()
        self.on_data: Callable[[bytes], None] = lambda _data: None
        """Called with what is read from the terminal, before it is looked at."""
        self.on_paint: Callable[[], None] = lambda: None
        """Called when it first paints a screen."""
        self.on_stall: Callable[[], None] = lambda: None
        """Called when a shell in it first says that it waits until it may start a process."""
        self.listen = listen
        self.stopping = asyncio.Lock()
        """Held while it is being ended; its outcome waits for that."""
        self.cause: str | None = None
        """Why it was ended: `timeout`, `interrupted` or `process_limit`."""
        self.full_screen = False
        """Whether it was ended because it is a full-screen program."""
        self.typed = False
        """Whether the lines that run it were typed."""
        self.killed = False
        """Whether it was killed with its shell."""
        self.failure: SandboxError | None = None
        """Why it could not be ended."""
        self.pieces = 0
        """Grows with every piece of output."""
        self.looked_at = False
        """Whether somebody looks if its shell waits until it may start a process."""
        self.began = time.monotonic()
        """When it began, in monotonic seconds."""
        self._finished = self.began
        self._stalled = False
        self._output = output
        self._decoder = TerminalDecoder()

    @property
    def complete(self) -> bool:
        """Whether it has ended or was withdrawn, and the shell is ready for the next command."""
        return self.marks.state is MarkState.ENDED or (self.cause is not None and self.marks.state is MarkState.REFUSED)

    @property
    def duration_ms(self) -> float:
        """How long it took, in milliseconds."""
        return (self._finished - self.began) * 1000

    def receive_data(self, data: bytes) -> None:
        """Process what was read from the terminal."""
        self.on_data(data)
        self._add(self._decoder.decode(self.marks.receive_data(data)))
        if self.marks.state is not MarkState.WAITING:
            self.started.set()
        if self.marks.state in {MarkState.ENDED, MarkState.REFUSED}:
            self._end()

    def add_note(self, text: str) -> None:
        """Put a note of the server into the output."""
        self._add(text)

    def lose(self) -> None:
        """End it without its end mark: the shell is gone. Idempotent."""
        self._add(self._decoder.decode(self.marks.take_rest()))
        self._end()

    def withdraw(self) -> None:
        """Mark it as never started: it will not be typed."""
        self.marks.state = MarkState.REFUSED
        self._end()

    async def text(self, *, without_exit: bool = False) -> tuple[str, dict[str, Any] | None]:
        """Draw the output; return it, and what was left out, in the format of `CommandOutcome.truncated`.

        With `without_exit`, the line that bash wrote when it ended is removed.
        """
        output = self._output
        text, left_out, at = output.text(), output.left_out, output.head_length()
        spill = output.spilled()
        shown, split = await turns().run(draw(text, at if left_out else 0))
        if without_exit:
            shown = _without_exit(shown)
        if not left_out:
            return shown, None
        truncated: dict[str, Any] = {"bytes": left_out, "kept": "head and tail", "at": split}
        if spill is not None and (spilled := await spill.finish()).path is not None:
            truncated |= {"file": spilled.path, "fileComplete": spilled.complete}
        return shown, truncated

    def _add(self, text: str) -> None:
        if not text:
            return
        self.pieces += 1
        self._output.append(text)
        painted, stalled = self.screen.paints, self._stalled
        self.screen.receive(text)
        self._stalled = stalled or self.screen.stalls
        if self.screen.paints and not painted:
            self.on_paint()
        if self._stalled and not stalled:
            self.on_stall()
        if self.listen is not None:
            self.listen(text)

    def _end(self) -> None:
        if not self.ended.is_set():
            self._finished = time.monotonic()
            self._add(self._decoder.decode(b"", final=True))  # half a character, if there is one
            self.started.set()
            self.ended.set()


def bounded_output(max_output: int, spill: Callable[[], Spill | None] | None = None) -> BoundedText:
    """Return what keeps a command's output: whole up to `max_output` bytes, else a quarter of that."""
    return BoundedText(max_output, kept=max_output // 4, spill=spill)


async def within(event: asyncio.Event, seconds: float | None) -> bool:
    """Wait for an event; return whether it came in time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()


def draw(text: str, at: int = 0) -> Generator[None, None, tuple[str, int]]:
    """Draw the text before `at`, then the rest; return both joined, and where the rest begins. Yields often."""
    parts: list[str] = []
    split = 0
    for piece in (text[:at], text[at:]):
        split = sum(map(len, parts))
        for part in drawn(piece):
            parts.append(part)
            yield
    return "".join(parts), split


def _without_exit(text: str) -> str:
    at = text.rfind("\n" + _EXIT) + 1
    if at or text.startswith(_EXIT):
        return text[:at] + text[at + len(_EXIT) :]
    return text
