"""What the console asks at the terminal: cells, with completion, history and colours, and lines for `input()`."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app, run_in_terminal
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.lexers import PygmentsLexer
from pygments import highlight
from pygments.formatters.terminal import TerminalFormatter
from pygments.lexers.python import PythonLexer, PythonTracebackLexer

from kernelbridge.cli import screen
from kernelbridge.cli.state import state_directory
from kernelbridge.cli.typed_code import next_indent
from kernelbridge.client.core import Kind
from kernelbridge.errors import KernelBridgeError

if TYPE_CHECKING:
    from kernelbridge import AsyncSession

_PATIENCE = 30.0
"""Seconds that help may take. The first completion of an interpreter reads many files; typing on drops it."""


class Prompts:
    """The prompts of one console. Ctrl-C raises `KeyboardInterrupt`, Ctrl-D `EOFError`; cancelling is safe."""

    def __init__(self, session: AsyncSession, *, coloured: bool) -> None:
        self._coloured = coloured
        self._cells = PromptSession[str](
            history=_history(),
            multiline=True,
            lexer=PygmentsLexer(PythonLexer) if coloured else None,
            completer=_KernelCompleter(session),
            complete_while_typing=False,
            key_bindings=_keys(session),
            prompt_continuation=lambda width, _line, _wrapped: "...: ".rjust(width),
        )

    async def cell(self, prompt: str) -> str:
        """Return a whole cell."""
        return await self._cells.prompt_async(prompt, handle_sigint=False)

    async def line(self, prompt: str, *, secret: bool) -> str:
        """Return a line, which is not in the history; one that is secret is not shown."""
        return await PromptSession[str]().prompt_async(screen.plain(prompt), is_password=secret, handle_sigint=False)

    def highlighted(self, traceback: str) -> str:
        """Return a traceback in colours."""
        return str(highlight(traceback, PythonTracebackLexer(), TerminalFormatter())) if self._coloured else traceback


def _history() -> History:
    """Return the history of all consoles of the user, in a file that nobody else can read."""
    try:
        path = state_directory() / "console_history"
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
        Path(path).chmod(0o600)  # it may have been made by something else
    except OSError as exc:
        screen.say(f"The history is not kept: {exc}")
        return InMemoryHistory()
    return FileHistory(str(path))


class _KernelCompleter(Completer):
    """Completes by the session's interpreter. Without an answer in time there is no completion."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """Return nothing: only the asynchronous method asks."""
        del document, complete_event
        return ()

    async def get_completions_async(
        self, document: Document, complete_event: CompleteEvent
    ) -> AsyncGenerator[Completion, None]:
        """Yield what the interpreter finds at the cursor."""
        del complete_event
        cursor = document.cursor_position
        found: dict[str, Any] = {"matches": ()}
        with contextlib.suppress(KernelBridgeError, TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                frame = {"type": "complete", "code": document.text, "cursor": cursor}
                found = await self._session.request(frame, Kind.QUESTION)
        for match in found["matches"]:
            yield Completion(screen.plain(match), start_position=min(0, found["cursorStart"] - cursor))


def _keys(session: AsyncSession) -> KeyBindings:
    keys = KeyBindings()

    @Condition
    def behind_blanks() -> bool:
        return not get_app().current_buffer.document.current_line_before_cursor.strip()

    @keys.add("enter")
    def _enter(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.complete_state is not None and buffer.complete_state.current_completion is not None:
            buffer.complete_state = None  # it is taken
        elif not buffer.document.on_last_line:
            buffer.newline()
        elif (indent := next_indent(buffer.text)) is not None:
            buffer.insert_text(f"\n{indent}")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.newline()

    @keys.add("tab", filter=behind_blanks)
    def _indent(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("    ")

    @keys.add("s-tab", filter=~Condition(lambda: get_app().current_buffer.complete_state is not None))
    async def _explain(event: KeyPressEvent) -> None:
        document = event.current_buffer.document
        text = ""
        with contextlib.suppress(KernelBridgeError, TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                text = await session.inspect(document.text, document.cursor_position)
        await run_in_terminal(lambda: screen.output().print(screen.plain(text) or "Nothing is known of it."))

    return keys
