"""What the next server must know about an open session to take it over, as JSON; pure."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, TypeVar

import msgspec

from kernelbridge.jupyter.identity import KernelIdentity
from kernelbridge.runtimes.contract import Moment, PreviousSandbox
from kernelbridge.workspace.options import Choice

VERSION = 3
"""Version of the format of these files; no other can be read."""


class RunningCell(msgspec.Struct, frozen=True):
    """A cell that was sent to a kernel and has not been answered."""

    msg_id: str
    request_id: str | None
    """Of the `execute_code`."""
    streams: bool
    """Whether its events are sent."""
    asks: bool
    """Whether it may ask for input."""
    since: float
    """When it was sent, in seconds since the epoch."""
    began: float
    """The same on the monotonic clock, in seconds: it is one clock for all servers until the machine restarts."""
    timeout: float | None
    """Seconds that it may run; None for no limit."""
    left: float | None
    """Seconds of the timeout that were left at `counted`."""
    counted: float | None
    """On the monotonic clock, in seconds; None while its time does not run, because it waits for input."""

    def time_left(self, now: float) -> float | None:
        """Return how many seconds it may still run at `now`, on the monotonic clock; None for no limit."""
        if self.left is None or self.counted is None:
            return self.left
        return max(0.0, self.left - max(0.0, now - self.counted))


class RunningCommand(msgspec.Struct, frozen=True):
    """A terminal command that was given to a shell and has not been answered."""

    request_id: str | None
    """Of the `terminal_command`."""
    streams: bool
    """Whether its output is sent as it comes."""
    since: float
    """When it was given to the shell, in seconds since the epoch."""
    began: float
    """The same on the monotonic clock, in seconds."""
    timeout: float | None
    """Seconds that it may run; None for no limit."""
    nonce: str
    """Of its marks; see `marks.py`."""
    moment: Moment | None
    """When it began, for `Process.prune`."""

    def time_left(self, now: float) -> float | None:
        """Return how many seconds it may still run at `now`, on the monotonic clock; None for no limit."""
        return None if self.timeout is None else max(0.0, self.timeout - max(0.0, now - self.began))


class ShellState(msgspec.Struct, frozen=True):
    """The persistent shell."""

    process: str
    """Its id."""
    keys: str
    """The path of the terminal that it reads from."""
    screen: str
    """The path of the terminal that it writes to."""
    jobs: tuple[str, ...] = ()
    """The paths of the terminals that only background jobs write to."""


class TerminalState(msgspec.Struct, frozen=True):
    """An interactive terminal."""

    id: str
    process: str
    """The id of its shell."""
    rows: int
    cols: int


class SessionState(msgspec.Struct, frozen=True):
    """An open session."""

    version: int
    principal: str | None
    """The principal's `key`."""
    session_id: str
    created: str
    runtime: str
    """The name of the runtime of its sandbox."""
    seq: int
    """No event has this number or a larger one."""
    choice: Choice
    sandbox: PreviousSandbox | None
    """None if it was lost, and no other has been started."""
    kernel: KernelIdentity | None
    """None if none was started, or it has ended."""
    incarnation: int
    """The number of its latest kernel."""
    had_shell: bool
    """Whether a shell was started in the sandbox."""
    lost: str | None
    """How the kernel of earlier cells ended, until a result has reported that."""
    terminals: tuple[TerminalState, ...] = ()
    """Its interactive terminals."""
    shell: ShellState | None = None
    """The shell, if it runs."""
    linger: float | None = None
    """Seconds that it stays open without a connection, if a client has chosen that."""
    keep_while_running: bool = False


def without_sandbox(state: SessionState) -> SessionState:
    """Return the state of a session after the end of its sandbox."""
    lost = state.lost if state.kernel is None else "ended with its sandbox"
    return msgspec.structs.replace(state, sandbox=None, kernel=None, shell=None, lost=lost)


def _plain(value: Any) -> Any:
    if isinstance(value, MappingProxyType):
        return dict(value)
    raise NotImplementedError(type(value))  # as msgspec expects it for a type that cannot be encoded


_encoder = msgspec.json.Encoder(enc_hook=_plain)
_session = msgspec.json.Decoder(SessionState)
_LENGTH = 4  # bytes of the length before a cell or a command

T = TypeVar("T", RunningCell, RunningCommand)


def write_session(state: SessionState) -> bytes:
    """Return the content of a session's file."""
    return _encoder.encode(state)


def read_session(content: bytes) -> SessionState:
    """Read the content of a session's file; raises `ValueError` if it is damaged or of another version."""
    try:
        state = _session.decode(content)
    except (msgspec.MsgspecError, RecursionError) as exc:
        raise ValueError(str(exc)) from exc
    if state.version != VERSION:
        raise ValueError(f"it has version {state.version}, and not {VERSION}")
    return state


def write_running(run: RunningCell | RunningCommand | None) -> bytes:
    """Return the beginning of a cell's or a command's file; the bytes that follow it in the file are ignored."""
    content = b"" if run is None else _encoder.encode(run)
    return len(content).to_bytes(_LENGTH, "big") + content


def read_running(content: bytes, kind: type[T]) -> T | None:
    """Read a cell's or a command's file; return None if nothing ran. Raises `ValueError` if it is damaged."""
    length = int.from_bytes(content[:_LENGTH], "big")
    if not length:
        return None
    try:
        return msgspec.json.decode(content[_LENGTH : _LENGTH + length], type=kind)
    except (msgspec.MsgspecError, RecursionError) as exc:
        raise ValueError(str(exc)) from exc
