"""What another server must know of an open session to go on with it, as JSON; pure."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import Any, TypeVar

import msgspec

from kernelbridge.jupyter.identity import KernelIdentity
from kernelbridge.runtimes.contract import Left, Moment
from kernelbridge.runtimes.facts import Facts
from kernelbridge.workspace.options import Bounds, Choice

VERSION = 2
"""Of the form of these files; another one cannot be read."""


class RunningCell(msgspec.Struct, frozen=True):
    """A cell that was sent to a kernel and is not answered."""

    msg_id: str
    request_id: str | None
    """That of the `execute_code`."""
    streams: bool
    """Whether its events are told."""
    asks: bool
    """Whether it may ask for input."""
    since: float
    """When it was sent, in seconds since the epoch."""
    began: float
    """The same in seconds of the clock that nobody sets: one for all servers, for no sandbox outlives its machine."""
    timeout: float | None
    """Seconds that it may run."""
    left: float | None
    """Seconds of them that were left at `counted`."""
    counted: float | None
    """In seconds of that clock; None while its time stands still, for it waits for input."""

    def left_at(self, now: float) -> float | None:
        """Give how many seconds it may still run; None: as long as it likes."""
        if self.left is None or self.counted is None:
            return self.left
        return max(0.0, self.left - max(0.0, now - self.counted))


class RunningCommand(msgspec.Struct, frozen=True):
    """A terminal command that was given to a shell and is not answered."""

    request_id: str | None
    """That of the `terminal_command`."""
    streams: bool
    """Whether its output is told as it comes."""
    since: float
    """When it was given, in seconds since the epoch."""
    began: float = 0.0
    """The same in seconds of the clock that nobody sets."""
    timeout: float | None = None
    """Seconds that it may run."""
    nonce: str = ""
    """What its marks have; see `marks.py`."""
    moment: Moment | None = None
    """When it began, for `Process.prune`."""

    @property
    def can_be_resumed(self) -> bool:
        """Whether a server can go on with it."""
        return bool(self.nonce)

    def time_left(self, now: float) -> float | None:
        """Give how many seconds it may still run at `now`; None: as long as it likes."""
        return None if self.timeout is None else max(0.0, self.timeout - max(0.0, now - self.began))


class ShellState(msgspec.Struct, frozen=True):
    """The persistent shell."""

    process: str
    """Its handle."""
    keys: str
    """The name of the terminal that it reads from."""
    screen: str
    """And of the one that it writes on."""
    jobs: tuple[str, ...] = ()
    """Of those that only background jobs write on."""


class TerminalState(msgspec.Struct, frozen=True):
    """An interactive terminal."""

    id: str
    process: str
    """The handle of its shell."""
    rows: int
    cols: int


class LimitsState(msgspec.Struct, frozen=True):
    """What its sandbox may use, as far as it can be chosen."""

    memory: int
    cpus: float
    pids: int


class ChoiceState(msgspec.Struct, frozen=True):
    """What it was opened with."""

    image: str | None
    kernel: str
    env: dict[str, str]
    limits: LimitsState

    @classmethod
    def of(cls, choice: Choice) -> ChoiceState:
        """Give what has to be noted of a choice."""
        limits = LimitsState(choice.limits.memory, choice.limits.cpus, choice.limits.pids)
        return cls(choice.image, choice.kernel, dict(choice.env), limits)

    def choice(self, bounds: Bounds) -> Choice:
        """Give the choice again; what cannot be chosen is as the server has it now."""
        limits = replace(bounds.limits, memory=self.limits.memory, cpus=self.limits.cpus, pids=self.limits.pids)
        # It may have been made with a runtime that has no images, or be gone on with by one.
        image = None if bounds.image is None else self.image or bounds.image
        return Choice(limits, image, self.kernel, MappingProxyType(self.env))


class SandboxState(msgspec.Struct, frozen=True):
    """Its sandbox."""

    id: str
    facts: Facts


class SessionState(msgspec.Struct, frozen=True):
    """An open session."""

    version: int
    principal: str | None
    session_id: str
    created: str
    runtime: str
    """What made its sandbox."""
    seq: int
    """No event has this number or a larger one."""
    choice: ChoiceState
    sandbox: SandboxState | None
    """None: it was lost, and no other was needed yet."""
    kernel: KernelIdentity | None
    """None: there was none, or it has ended."""
    incarnation: int
    """The number of its latest interpreter."""
    had_shell: bool
    """Whether a shell was started in the sandbox."""
    lost: str | None
    """How the interpreter ended that earlier cells ran in, until a result has told that."""
    terminals: tuple[TerminalState, ...] = ()
    """Its interactive terminals."""
    shell: ShellState | None = None
    """The shell, if it runs."""
    linger: float | None = None
    """Seconds that it lives on after its last connection, if somebody asked for that."""
    keep_while_running: bool = False

    def left(self) -> Left | None:
        """Give what the runtime must know to find the sandbox."""
        return None if self.sandbox is None else Left(self.sandbox.id, self.sandbox.facts)


def without_sandbox(state: SessionState) -> SessionState:
    """Give what is left of a session whose sandbox is gone."""
    lost = state.lost if state.kernel is None else "ended with its sandbox"
    return msgspec.structs.replace(state, sandbox=None, kernel=None, shell=None, lost=lost)


def _plain(value: Any) -> Any:
    if isinstance(value, MappingProxyType):
        return dict(value)
    raise NotImplementedError(type(value))  # how msgspec is told of a type that cannot be written


_encoder = msgspec.json.Encoder(enc_hook=_plain)
_session = msgspec.json.Decoder(SessionState)
_LENGTH = 4  # bytes of the length before a cell or a command

T = TypeVar("T", RunningCell, RunningCommand)


def write_session(state: SessionState) -> bytes:
    """Give the content of a session's file."""
    return _encoder.encode(state)


def read_session(content: bytes) -> SessionState:
    """Read it; raises `ValueError` if it is damaged or of another version."""
    try:
        state = _session.decode(content)
    except (msgspec.MsgspecError, RecursionError) as exc:
        raise ValueError(str(exc)) from exc
    if state.version != VERSION:
        raise ValueError(f"it has version {state.version}, and not {VERSION}")
    return state


def write_running(run: RunningCell | RunningCommand | None) -> bytes:
    """Give what the file of a cell or a command begins with: whatever is behind that does not count."""
    content = b"" if run is None else _encoder.encode(run)
    return len(content).to_bytes(_LENGTH, "big") + content


def read_running(content: bytes, kind: type[T]) -> T | None:
    """Read it, None if none ran; raises `ValueError` if it is damaged."""
    length = int.from_bytes(content[:_LENGTH], "big")
    if not length:
        return None
    try:
        return msgspec.json.decode(content[_LENGTH : _LENGTH + length], type=kind)
    except (msgspec.MsgspecError, RecursionError) as exc:
        raise ValueError(str(exc)) from exc
