"""The clients of an earlier server, for what it left running: answers are kept for clients that resume the session."""

from __future__ import annotations

from collections.abc import Callable

from kernelbridge.errors import KernelBridgeError
from kernelbridge.identity.principal import Identity, Principal
from kernelbridge.jupyter.cell import Cell
from kernelbridge.protocol import ServerMessage
from kernelbridge.protocol.terminals import TerminalClosed
from kernelbridge.server.websocket.handlers.cells import job_of
from kernelbridge.server.websocket.handlers.commands import CommandEvents, answer_of
from kernelbridge.server.websocket.handlers.request_context import RequestContext, echoed, encode
from kernelbridge.workspace.adoption.record import PreviousSession
from kernelbridge.workspace.adoption.session_state import RunningCell
from kernelbridge.workspace.cells.run import Job
from kernelbridge.workspace.command_outcome import LossCause, ReportLoss, lost_command
from kernelbridge.workspace.registry import Registry
from kernelbridge.workspace.shell.lane import PreviousCommand
from kernelbridge.workspace.workspace import Workspace


class PreviousClient:
    """A connection of an earlier server (`request_context.Client`)."""

    id = ""
    streams = False
    open = False
    backlog = 0

    def __init__(self, principal: Principal, registry: Registry) -> None:
        self.principal = principal
        self.registry = registry

    def workspace(self, session_id: str) -> Workspace:
        """Fail: it sends no requests."""
        raise AssertionError(session_id)

    def renew_login(self, token: str) -> Identity:  # noqa: ARG002 - of `Client`
        """Fail: it sends no requests."""
        raise AssertionError

    def refuse_login(self, error: KernelBridgeError) -> None:
        """Do nothing: it is gone."""

    def send(self, message: ServerMessage) -> None:
        """Drop the message."""

    def refused(self, error: KernelBridgeError, what: str, session_id: str | None, request_id: str | None) -> None:
        """Do nothing: it sends no requests."""

    def put_frame(self, frame: bytes, unsent: Callable[[], None] | None = None) -> None:  # noqa: ARG002 - of `Client`
        """Call `unsent`."""
        if unsent is not None:
            unsent()

    def offer_frame(self, frame: bytes, unsent: Callable[[], None] | None = None) -> bool:  # noqa: ARG002 - of `Client`
        """Return False: the frame is not queued."""
        return False

    async def room(self, level: int = 0) -> None:
        """Return at once."""

    def on_close(self, call: Callable[[], None]) -> Callable[[], None]:
        """Call `call` at once."""
        call()
        return lambda: None


class PreviousClients:
    """The answers to what an earlier server left running (`registry.PreviousClients`)."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def job(self, workspace: Workspace, cell: RunningCell) -> Job:
        """Return the queue's entry for a cell that an earlier server started. Its code is unknown and not needed."""
        context = self._context(workspace, cell.request_id)
        return job_of(context, Cell(code="", allow_stdin=cell.asks, stream=cell.streams), cell.timeout)

    def command(self, workspace: Workspace, session: PreviousSession) -> PreviousCommand | None:
        """Return the entry for a command that an earlier server started, or None if its shell cannot be there."""
        command = session.command
        if command is None or session.state.shell is None:
            return None
        context = self._context(workspace, command.request_id)
        events = CommandEvents(context) if command.streams else None
        answer = answer_of(context) if events is None else events.answer
        return PreviousCommand(command, session.output, answer, events)

    def loss(self, workspace: Workspace, session: PreviousSession) -> ReportLoss:
        """Return the function that reports the end of an earlier server's terminals and command."""

        def report(lost: str | None, cause: LossCause) -> None:
            for terminal in session.state.terminals:
                if lost in {None, terminal.id}:
                    _closed(self._context(workspace, None), terminal.id, cause)
            if lost is None and (command := session.command) is not None:
                context = self._context(workspace, command.request_id)
                answer = CommandEvents(context).answer if command.streams else answer_of(context)
                answer(lost_command(command.since, cause))

        return report

    def _context(self, workspace: Workspace, request_id: str | None) -> RequestContext:
        client = PreviousClient(workspace.key.principal, self._registry)
        return RequestContext(client, workspace, workspace.key.session_id, echoed(request_id))


def _closed(context: RequestContext, terminal_id: str, cause: LossCause) -> None:
    closed = TerminalClosed(
        session_id=context.session_id,
        seq=context.seq(),
        terminal_id=terminal_id,
        cause="exited" if cause == "shell_exited" else cause,
    )
    # `RequestContext.answer` would send it to the client that asked, which is gone. This is for those that follow.
    context.workspace.feed.answer(context.client, encode(closed), closed.seq)
