"""A session's status, derived from the states of its sandbox and its interpreter; pure.

A `session_status` is sent whenever the status or its cause changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from msgspec import UNSET, UnsetType

from kernelbridge.protocol.base import Cause
from kernelbridge.protocol.sessions import Status
from kernelbridge.runtimes.contract import NO_ROOM
from kernelbridge.workspace.states import KernelState, WorkspaceState


class SessionStatus(NamedTuple):
    """One status: `status` and `cause` for programs, `detail` for people."""

    status: Status
    detail: str
    cause: Cause | UnsetType = UNSET


ABSENT = SessionStatus("closed", "the sandbox does not run; the next command starts one")
LOST = SessionStatus(
    "closed", "the sandbox ended by itself; the files are kept, and the next command starts another", "sandbox_lost"
)
PAUSED = SessionStatus("paused", "the sandbox is paused and keeps its memory; the next message resumes it")
RESUMED = SessionStatus("resumed", "the sandbox runs again")
CLOSING = SessionStatus("closing", "the session is being closed", "session_closed")
CLOSED = SessionStatus("closed", "the session was closed; the next request opens it again", "session_closed")

_BY_SANDBOX: Mapping[WorkspaceState, SessionStatus] = MappingProxyType(
    {
        WorkspaceState.ABSENT: ABSENT,
        WorkspaceState.STARTING: SessionStatus("starting", "the sandbox starts"),
        WorkspaceState.PAUSED: PAUSED,
        WorkspaceState.CLOSING: CLOSING,
        WorkspaceState.CLOSED: CLOSED,
    }
)
_BY_KERNEL: Mapping[KernelState, SessionStatus] = MappingProxyType(
    {
        KernelState.ABSENT: SessionStatus("ready", "the interpreter starts with the first cell"),
        KernelState.STARTING: SessionStatus("starting", "the interpreter starts"),
        KernelState.ADOPTING: SessionStatus("starting", "an earlier server's interpreter is taken over"),
        KernelState.READY: SessionStatus("ready", "the interpreter is ready"),
        KernelState.DEAD: SessionStatus(
            "ready", "the interpreter ended and its variables are lost; the next cell starts another", "kernel_died"
        ),
        KernelState.RESTARTING: SessionStatus("restarting", "a new interpreter starts; variables are lost"),
        KernelState.REPLACING: SessionStatus("restarting", "a new interpreter will start; variables are lost"),
    }
)


class StatusReporter:
    """Reports the status of one session."""

    def __init__(self, send: Callable[[Status, str, Cause | UnsetType], None]) -> None:
        self._send = send
        self._last = ABSENT
        self._before_pause: SessionStatus | None = None
        """The status before the pause; None while the session is not paused."""

    def changed(self, sandbox: WorkspaceState, kernel: KernelState, *, lost: bool) -> None:
        """Report the status after an event; `lost` says whether the event is that the sandbox ended by itself."""
        if sandbox in {WorkspaceState.PAUSING, WorkspaceState.RESUMING}:
            return  # reported when the pause or the resume is complete
        status = session_status(sandbox, kernel)
        if status is PAUSED and self._before_pause is None:
            self._before_pause = self._last
        elif status is not PAUSED and self._before_pause is not None:
            if sandbox is WorkspaceState.ACTIVE:
                self._send(*RESUMED)
                self._last = self._before_pause
            self._before_pause = None
        if status is ABSENT:
            status = LOST if lost else self._last if self._last.status == "closed" else ABSENT
        if (status.status, status.cause) != (self._last.status, self._last.cause):
            self._send(*status)
        self._last = status

    def sandbox_was_lost(self) -> None:
        """Report that the sandbox ended while no server ran."""
        self._last = LOST
        self._send(*LOST)

    def server_stops(self, seconds: float) -> None:
        """Report that the session ends with the server, in at most `seconds`."""
        if self._last.status != "closed":
            self._last = SessionStatus(
                "closing", f"the server stops; what runs has {seconds:g} s to end", "session_closed"
            )
            self._send(*self._last)

    def memory_ran_out(self) -> None:
        """Report that a process in the sandbox was killed for lack of memory; the status stays the same."""
        self._send(self._last.status, "the session's memory ran out, and a process in it was killed", "out_of_memory")

    def processes_ran_out(self) -> None:
        """Report that the sandbox has no room for more processes; the status stays the same."""
        self._send(self._last.status, f"the session's sandbox is full: {NO_ROOM}", "process_limit")

    def disk_ran_out(self, detail: str) -> None:
        """Report that the session has reached its disk limit; the status stays the same."""
        self._send(self._last.status, detail, "disk_limit")


def session_status(sandbox: WorkspaceState, kernel: KernelState) -> SessionStatus:
    """Return the status: the interpreter's while the sandbox runs, else the sandbox's."""
    return _BY_SANDBOX.get(sandbox) or _BY_KERNEL[kernel]
