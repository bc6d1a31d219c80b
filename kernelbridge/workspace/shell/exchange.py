"""One command on its way through a shell: what of the terminal's output is its own, and what became of it."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Generator
from typing import Any

from kernelbridge.aio.turns import turns
from kernelbridge.errors import SandboxError
from kernelbridge.jupyter.bounded import BoundedText, Overflow
from kernelbridge.runtimes.contract import Moment
from kernelbridge.terminal_text import TerminalDecoder, drawn
from kernelbridge.workspace.shell.hints import ScreenWatch
from kernelbridge.workspace.shell.marks import CommandMarks, MarkState

_FAREWELL = "exit\n"
"""What bash itself says when it ends: the last such line."""

Listen = Callable[[str], None]
"""Takes a command's output as it comes: whole characters, escape sequences as written, lines ended by `\\n`."""


class Exchange:
    """One command, from the line that starts it to its end."""

    def __init__(self, output: BoundedText, listen: Listen | None = None, *, nonce: str = "") -> None:
        """`nonce` is that of a command that an earlier server gave to the shell."""
        self.nonce = nonce or secrets.token_hex(16)
        """What makes its marks its own: no program that it runs can know it."""
        self.since: Moment | None = None
        """What the shell has started since is the command's; see `Process.prune`. None: all that it has."""
        self.marks = CommandMarks(self.nonce)
        self.screen = ScreenWatch()
        self.started = asyncio.Event()
        self.ended = asyncio.Event()
        self.on_data: Callable[[bytes], None] = _nothing
        """Is given what the terminal says, before it is looked at."""
        self.on_paint: Callable[[], None] = lambda: None
        """Is called when it first paints a screen."""
        self.on_stall: Callable[[], None] = lambda: None
        """Is called when a shell first says in it that it waits until it may start a process."""
        self.stopping = asyncio.Lock()
        """Held by whoever ends it; its end is told after that."""
        self.cause: str | None = None
        """Who ended it: `timeout`, `interrupted` or `process_limit`."""
        self.full_screen = False
        """It was ended because it is a full-screen program."""
        self.typed = False
        """The shell was told of it."""
        self.killed = False
        """It was killed with its shell."""
        self.failure: SandboxError | None = None
        """Why it could not be killed."""
        self.pieces = 0
        """Grows with every piece of output."""
        self.looked_at = False
        """Somebody looks whether its shell waits until it may start a process."""
        self._stalled = False
        self._output = output
        self.listen = listen
        """Is given its output."""
        self._decoder = TerminalDecoder()
        self.began = time.monotonic()
        """When it was sent, in seconds of the clock that nobody sets."""
        self._finished = self.began

    @property
    def complete(self) -> bool:
        """Whether the shell has said that it ended, or never began with it, and is there for the next."""
        return self.marks.state is MarkState.ENDED or (self.cause is not None and self.marks.state is MarkState.REFUSED)

    @property
    def duration_ms(self) -> float:
        """How long it took."""
        return (self._finished - self.began) * 1000

    def receive_data(self, data: bytes) -> None:
        """Take what the terminal said."""
        self.on_data(data)
        self._take(self._decoder.decode(self.marks.receive_data(data)))
        if self.marks.state is not MarkState.WAITING and not self.started.is_set():
            self.started.set()
        if self.marks.state in {MarkState.ENDED, MarkState.REFUSED}:
            self._end()

    def note(self, text: str) -> None:
        """Put words of the bridge's into the output."""
        self._take(text)

    def lose(self) -> None:
        """Take it that no more comes, because the shell is gone."""
        self._take(self._decoder.decode(self.marks.take_rest()))
        self._end()

    def give_up(self) -> None:
        """Take it that the shell will not be told of it."""
        self.marks.state = MarkState.REFUSED
        self._end()

    def end_output(self) -> None:
        """Take it that all output has come; half a character is one now."""
        self._take(self._decoder.decode(b"", final=True))

    async def text(self, *, farewell: bool = False) -> tuple[str, dict[str, Any] | None]:
        """Draw the output; give it and what was left out. With `farewell`, without the shell's own last words."""
        output = self._output
        text, left_out, at = output.text(), output.left_out, output.head_length()
        overflow = output.spilled()
        shown, split = await turns().run(draw(text, at if left_out else 0))
        if farewell:
            shown = _without_farewell(shown)
        if not left_out:
            return shown, None
        truncated: dict[str, Any] = {"bytes": left_out, "kept": "head and tail", "at": split}
        if overflow is not None and (where := await overflow.finish()).path is not None:
            truncated |= {"file": where.path, "fileComplete": where.complete}
        return shown, truncated

    def _take(self, text: str) -> None:
        if not text:
            return
        self.pieces += 1
        self._output.append(text)
        painted, stalled = self.screen.paints, self._stalled
        self.screen.take(text)
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
            self.end_output()
            self.started.set()
            self.ended.set()


def _nothing(_data: bytes) -> None:
    """Keep nothing: no other server has to know."""


def bounded_output(max_output: int, overflow: Callable[[], Overflow | None] | None = None) -> BoundedText:
    """Give what keeps a command's output: whole up to `max_output` bytes, else a quarter of that."""
    return BoundedText(max_output, kept=max_output // 4, overflow=overflow)


async def within(event: asyncio.Event, seconds: float | None) -> bool:
    """Wait for an event; say whether it came in time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()


def draw(text: str, at: int = 0) -> Generator[None, None, tuple[str, int]]:
    """Draw what is before `at`, and then what is behind it; return both, and where the second begins. Yields often."""
    parts: list[str] = []
    split = 0
    for piece in (text[:at], text[at:]):
        split = sum(map(len, parts))
        for part in drawn(piece):
            parts.append(part)
            yield
    return "".join(parts), split


def _without_farewell(text: str) -> str:
    at = text.rfind("\n" + _FAREWELL) + 1
    if at or text.startswith(_FAREWELL):
        return text[:at] + text[at + len(_FAREWELL) :]
    return text
