"""Who asked for a cell that an earlier server has sent: nobody who is there, so whoever resumes gets its answer."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import UNSET

from kernelbridge.jupyter.execution import Cell
from kernelbridge.protocol import ServerMessage
from kernelbridge.server.client import Asker
from kernelbridge.server.requests.cells import job_of
from kernelbridge.workspace.job import Job
from kernelbridge.workspace.registry import Registry
from kernelbridge.workspace.state import RunningCell
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


def left_job(registry: Registry, workspace: Workspace, cell: RunningCell) -> Job:
    """Give what stands for a cell that an earlier server has sent; its code is not known and not needed."""
    session = workspace.key
    request_id = UNSET if cell.request_id is None else cell.request_id
    asker = Asker(Absent(session.principal, registry), workspace, session.session_id, request_id)
    return job_of(asker, Cell(code="", allow_stdin=cell.asks, stream=cell.streams), cell.timeout)
