"""Requests about a session's interactive terminals."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from msgspec import UNSET

from kernelbridge.errors import KernelBridgeError
from kernelbridge.protocol.terminals import (
    CloseTerminal,
    OpenTerminal,
    TerminalClosed,
    TerminalData,
    TerminalInput,
    TerminalOpened,
    TerminalResize,
)
from kernelbridge.server.websocket.handlers import answers
from kernelbridge.server.websocket.handlers.request_context import Asker, Handler
from kernelbridge.workspace.terminals.terminal import Ending, Size


class View:
    """A connection that shows a terminal (`workspace.terminals.terminal.Viewer`): its events answer one request."""

    def __init__(self, asker: Asker) -> None:
        self.id = asker.client.id
        self._asker = asker

    @property
    def backlog(self) -> int:
        """Bytes that the client has not read yet."""
        return self._asker.client.backlog

    async def room(self, level: int) -> None:
        """Wait until it has not read `level` bytes at most, or is gone."""
        await self._asker.client.room(level)

    def on_gone(self, call: Callable[[], None]) -> Callable[[], None]:
        """Have `call` called when the connection is gone; the result takes that back."""
        return self._asker.client.on_close(call)

    def opened(self, terminal_id: str, rows: int, cols: int, *, reattached: bool) -> None:
        """Send `terminal_opened`."""
        asker = self._asker
        asker.answer(
            TerminalOpened(
                session_id=asker.session_id,
                request_id=asker.request_id,
                seq=asker.seq(),
                terminal_id=terminal_id,
                rows=rows,
                cols=cols,
                reattached=reattached,
            )
        )

    def show(self, terminal_id: str, text: str, *, replay: bool = False, left_out: int = 0) -> None:
        """Send `terminal_data`. It is bounded by the terminal, which waits for `room`."""
        asker = self._asker
        asker.answer(
            TerminalData(
                session_id=asker.session_id,
                request_id=asker.request_id,
                seq=asker.seq(),
                terminal_id=terminal_id,
                data=text,
                replay=replay or UNSET,
                left_out=left_out or UNSET,
            )
        )

    def closed(self, terminal_id: str, ending: Ending) -> None:
        """Send `terminal_closed`."""
        asker = self._asker
        asker.answer(
            TerminalClosed(
                session_id=asker.session_id,
                request_id=asker.request_id,
                seq=asker.seq(),
                terminal_id=terminal_id,
                exit_code=UNSET if ending.exit_code is None else ending.exit_code,
                cause=ending.cause,
            )
        )

    def failed(self, error: KernelBridgeError) -> None:
        """Send `error`."""
        asker = self._asker
        asker.answer(answers.error_message(error, asker.session_id, asker.request_id))


async def open_terminal(asker: Asker, message: OpenTerminal) -> None:
    """Open a terminal or come back to one; its answer follows when it is open."""
    asker.workspace.terminals.open(View(asker), message.terminal_id, Size(message.rows, message.cols))


async def type_input(asker: Asker, message: TerminalInput) -> None:
    """Type into a terminal."""
    asker.workspace.terminals.find(message.terminal_id).type(message.data)


async def resize(asker: Asker, message: TerminalResize) -> None:
    """Set a terminal's size."""
    asker.workspace.terminals.find(message.terminal_id).resize(Size(message.rows, message.cols))


async def close(asker: Asker, message: CloseTerminal) -> None:
    """End a terminal; its answer follows when everything in it is gone."""
    asker.workspace.terminals.find(message.terminal_id).close(View(asker))


HANDLERS: Mapping[type, Handler] = {
    OpenTerminal: open_terminal,
    TerminalInput: type_input,
    TerminalResize: resize,
    CloseTerminal: close,
}
