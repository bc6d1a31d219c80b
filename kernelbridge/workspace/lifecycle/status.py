"""What a session's status is, by the states of its sandbox and its interpreter; pure.

A `session_status` is told whenever the status or its cause changes.
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
    """One status, for a person and a program."""

    status: Status
    detail: str
    cause: Cause | UnsetType = UNSET


ABSENT = SessionStatus("closed", "the sandbox does not run; the next command starts one")
LOST = SessionStatus(
    "closed", "the sandbox ended by itself; the files are kept, and the next command starts another", "sandbox_lost"
)
PAUSED = SessionStatus("paused", "the sandbox stands still and keeps its memory; the next message resumes it")
RESUMED = SessionStatus("resumed", "the sandbox goes on")
CLOSING = SessionStatus("closing", "the session is being closed", "session_closed")
CLOSED = SessionStatus("closed", "the session was closed; the next request opens it anew", "session_closed")

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


class StatusTeller:
    """Tells of one session."""

    def __init__(self, tell: Callable[[Status, str, Cause | UnsetType], None]) -> None:
        self._tell = tell
        self._told = ABSENT
        self._before_pause: SessionStatus | None = None
        """What it was when it was paused; None while it is not."""

    def changed(self, sandbox: WorkspaceState, kernel: KernelState, *, lost: bool) -> None:
        """Take note of the states after an event; `lost`: it was that the sandbox ended by itself."""
        if sandbox in {WorkspaceState.PAUSING, WorkspaceState.RESUMING}:
            return  # what it was told to be is told no longer or again when it is
        status = session_status(sandbox, kernel)
        if status is PAUSED and self._before_pause is None:
            self._before_pause = self._told
        elif status is not PAUSED and self._before_pause is not None:
            if sandbox is WorkspaceState.ACTIVE:
                self._tell(*RESUMED)
                self._told = self._before_pause
            self._before_pause = None
        if status is ABSENT:
            status = LOST if lost else self._told if self._told.status == "closed" else ABSENT
        if (status.status, status.cause) != (self._told.status, self._told.cause):
            self._tell(*status)
        self._told = status

    def sandbox_was_lost(self) -> None:
        """Tell that the sandbox ended while no server was there."""
        self._told = LOST
        self._tell(*LOST)

    def server_stops(self, seconds: float) -> None:
        """Tell that the session ends with the server, after `seconds` at most."""
        if self._told.status != "closed":
            self._told = SessionStatus(
                "closing", f"the server stops; what runs has {seconds:g} s to end", "session_closed"
            )
            self._tell(*self._told)

    def memory_ran_out(self) -> None:
        """Tell that something in the sandbox was killed for want of memory; the status stays as it is."""
        self._tell(self._told.status, "the session's memory ran out, and a process in it was killed", "out_of_memory")

    def processes_ran_out(self) -> None:
        """Tell that the sandbox has no room for more processes; the status stays as it is."""
        self._tell(self._told.status, f"the session's sandbox is full: {NO_ROOM}", "process_limit")


def session_status(sandbox: WorkspaceState, kernel: KernelState) -> SessionStatus:
    """Give the status; that of the interpreter counts while the sandbox runs."""
    return _BY_SANDBOX.get(sandbox) or _BY_KERNEL[kernel]
