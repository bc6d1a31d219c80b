"""Who asked for what an earlier server has started: nobody who is there, so whoever resumes gets the answers."""

from __future__ import annotations

import functools
from collections.abc import Callable

from kernelbridge.jupyter.cell import Cell
from kernelbridge.protocol import ServerMessage
from kernelbridge.protocol.terminals import TerminalClosed
from kernelbridge.server.websocket.handlers.cells import job_of
from kernelbridge.server.websocket.handlers.commands import CommandEvents, answer_of
from kernelbridge.server.websocket.handlers.request_context import RequestContext, encode, given
from kernelbridge.workspace.adoption.lost_shells import TellLoss, lost_command
from kernelbridge.workspace.adoption.record import PreviousSession
from kernelbridge.workspace.cells.queue import Job
from kernelbridge.workspace.command_outcome import LossCause
from kernelbridge.workspace.registry import Registry
from kernelbridge.workspace.session_state import RunningCell
from kernelbridge.workspace.shell.lane import PreviousCommand
from kernelbridge.workspace.workspace import Workspace


class Absent:
    """A connection of the server that ended (`client.Client`)."""

    id = ""
    streams = False
    open = False
    backlog = 0

    def __init__(self, user_id: str | None, registry: Registry) -> None:
        self.user_id = user_id
        self.registry = registry

    def workspace(self, session_id: str) -> Workspace:
        """Refuse: it sends no requests any more."""
        raise AssertionError(session_id)

    def send(self, message: ServerMessage) -> None:
        """Drop what only it would get."""

    def put_frame(self, frame: bytes, unsent: Callable[[], None] | None = None) -> None:  # noqa: ARG002 - of `Client`
        """Say that it was not sent."""
        if unsent is not None:
            unsent()

    def offer_frame(self, frame: bytes, unsent: Callable[[], None] | None = None) -> bool:  # noqa: ARG002 - of `Client`
        """Refuse a frame."""
        return False

    async def room(self, level: int = 0) -> None:
        """Return at once: it is gone."""

    def on_close(self, call: Callable[[], None]) -> Callable[[], None]:
        """Call at once: it is gone."""
        call()
        return lambda: None


class Absentees:
    """Those connections, one for each session (`registry.Absentees`)."""

    def job(self, registry: Registry, workspace: Workspace, cell: RunningCell) -> Job:
        """Give what stands for a cell that an earlier server has sent; its code is not known and not needed."""
        context = _context(registry, workspace, cell.request_id)
        return job_of(context, Cell(code="", allow_stdin=cell.asks, stream=cell.streams), cell.timeout)

    def command(self, registry: Registry, workspace: Workspace, left: PreviousSession) -> PreviousCommand | None:
        """Give what stands for a command that an earlier server has given to a shell, if the shell may be there."""
        command = left.command
        if command is None or left.state.shell is None or not command.can_be_resumed:
            return None
        context = _context(registry, workspace, command.request_id)
        events = CommandEvents(context) if command.streams else None
        return PreviousCommand(
            command,
            left.output,
            answer_of(context) if events is None else events.answer,
            events,
            lost=functools.partial(lost_command, command),
        )

    def loss(self, registry: Registry, workspace: Workspace, left: PreviousSession) -> TellLoss:
        """Give what tells of the end of an earlier server's terminals and command."""

        def tell(lost: str | None, cause: LossCause) -> None:
            for terminal in left.state.terminals:
                if lost in {None, terminal.id}:
                    _closed(_context(registry, workspace, None), terminal.id, cause)
            if lost is None and left.command is not None:
                context = _context(registry, workspace, left.command.request_id)
                answer = CommandEvents(context).answer if left.command.streams else answer_of(context)
                answer(lost_command(left.command, cause))

        return tell


def _context(registry: Registry, workspace: Workspace, request_id: str | None) -> RequestContext:
    session = workspace.key
    return RequestContext(Absent(session.principal, registry), workspace, session.session_id, given(request_id))


def _closed(context: RequestContext, terminal_id: str, cause: LossCause) -> None:
    closed = TerminalClosed(
        session_id=context.session_id,
        seq=context.seq(),
        terminal_id=terminal_id,
        cause="exited" if cause == "shell_exited" else cause,
    )
    # Not as `RequestContext.answer` does: its own connections are gone, so this is for whoever follows the session.
    context.workspace.feed.answer(context.client, encode(closed), closed.seq)
