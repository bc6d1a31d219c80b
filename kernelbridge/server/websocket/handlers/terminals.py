"""Requests about a session's interactive terminals."""

from __future__ import annotations

from collections.abc import Mapping

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
from kernelbridge.server.websocket.handlers.request_context import Handler, RequestContext
from kernelbridge.workspace.terminals.terminal import Ending, Size


class View:
    """A connection that shows a terminal (`workspace.terminals.terminal.Viewer`). Its events belong to one request."""

    def __init__(self, context: RequestContext) -> None:
        self.client = context.client
        self._context = context

    def opened(self, terminal_id: str, rows: int, cols: int, *, reattached: bool) -> None:
        """Send `terminal_opened`."""
        context = self._context
        context.answer(
            TerminalOpened(
                **context.ids,
                seq=context.seq(),
                terminal_id=terminal_id,
                rows=rows,
                cols=cols,
                reattached=reattached,
            )
        )

    def show(self, terminal_id: str, text: str, *, replay: bool = False, left_out: int = 0) -> None:
        """Send `terminal_data`. The terminal bounds it: it waits for `room`."""
        context = self._context
        context.answer(
            TerminalData(
                **context.ids,
                seq=context.seq(),
                terminal_id=terminal_id,
                data=text,
                replay=replay or UNSET,
                left_out=left_out or UNSET,
            )
        )

    def closed(self, terminal_id: str, ending: Ending) -> None:
        """Send `terminal_closed`."""
        context = self._context
        context.answer(
            TerminalClosed(
                **context.ids,
                seq=context.seq(),
                terminal_id=terminal_id,
                exit_code=UNSET if ending.exit_code is None else ending.exit_code,
                cause=ending.cause,
            )
        )

    def failed(self, error: KernelBridgeError) -> None:
        """Send `error`."""
        self._context.fail(error)


async def open_terminal(context: RequestContext, message: OpenTerminal) -> None:
    """Open a terminal or attach to an open one. The answer follows when it is open."""
    context.workspace.terminals.open(View(context), message.terminal_id, Size(message.rows, message.cols))


async def type_input(context: RequestContext, message: TerminalInput) -> None:
    """Type into a terminal."""
    context.workspace.terminals.find(message.terminal_id, ending=True).type(message.data)


async def resize(context: RequestContext, message: TerminalResize) -> None:
    """Set the size of a terminal."""
    terminals = context.workspace.terminals
    terminals.resize(terminals.find(message.terminal_id, ending=True), Size(message.rows, message.cols))


async def close(context: RequestContext, message: CloseTerminal) -> None:
    """End a terminal. The answer follows when all its processes have ended."""
    context.workspace.terminals.find(message.terminal_id).close(View(context))


HANDLERS: Mapping[type, Handler] = {
    OpenTerminal: open_terminal,
    TerminalInput: type_input,
    TerminalResize: resize,
    CloseTerminal: close,
}
