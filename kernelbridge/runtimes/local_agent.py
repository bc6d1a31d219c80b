"""The bridge's end of the agent's socket (`kernelbridge/guest/agent.py` says what goes over it).

The agent runs among the user's processes and as the same user, so it may be anybody: what it sends is bounded,
validated, and believed only as an answer to something asked. Anything else breaks the link, and its sandbox is lost.
"""

from __future__ import annotations

import array
import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import msgspec

_PACKET = 4096
_QUEUE = 1024
"""Requests that the agent has not taken yet; one that takes none is broken."""
_BATCH = 64
"""Packets read before other work has its turn."""

Id = Annotated[int, msgspec.Meta(ge=1, le=2**53)]
Step = Literal["fork", "cwd", "program", "terminal"]


class Ready(msgspec.Struct, frozen=True, tag_field="op", tag="ready"):
    """The agent runs; a descriptor of the sandbox's /dev/ptmx comes with it."""


class Started(msgspec.Struct, frozen=True, tag_field="op", tag="started"):
    """A process runs its program."""

    id: Id
    pid: Annotated[int, msgspec.Meta(ge=1, le=2**22)]


class Refused(msgspec.Struct, frozen=True, tag_field="op", tag="refused"):
    """A process could not be started."""

    id: Id
    step: Step
    errno: Annotated[int, msgspec.Meta(ge=0, le=4095)]


class Ended(msgspec.Struct, frozen=True, tag_field="op", tag="ended"):
    """A process has ended."""

    id: Id
    code: Annotated[int, msgspec.Meta(ge=0, le=255)] | None
    signal: Annotated[int, msgspec.Meta(ge=1, le=64)] | None


class Killed(msgspec.Struct, frozen=True, tag_field="op", tag="killed"):
    """No process of the session is left."""

    id: Id


class Done(msgspec.Struct, frozen=True, tag_field="op", tag="done"):
    """A sweep, a pause or its end is over."""

    id: Id
    all: bool
    """Whether no marked process is left; whether all stand still."""


Answer = Started | Refused | Ended | Killed | Done
_DECODER: msgspec.json.Decoder[Ready | Answer] = msgspec.json.Decoder(Ready | Answer)


class Spawn(msgspec.Struct, frozen=True, tag_field="op", tag="spawn"):
    """Start a process. What may be longer than a packet (argv, env, cwd) and its output come as descriptors."""

    id: int
    tty: bool


class Signal(msgspec.Struct, frozen=True, tag_field="op", tag="signal"):
    """Signal the process group that the process leads."""

    id: int
    signal: int


class Kill(msgspec.Struct, frozen=True, tag_field="op", tag="kill"):
    """SIGKILL the whole session that the process leads."""

    id: int


class Sweep(msgspec.Struct, frozen=True, tag_field="op", tag="sweep"):
    """SIGKILL every process but `spare` with `mark` in its environment or limits."""

    id: int
    mark: str
    spare: int


class Pause(msgspec.Struct, frozen=True, tag_field="op", tag="pause"):
    """SIGSTOP every process but the agent, until all stand still."""

    id: int


class Resume(msgspec.Struct, frozen=True, tag_field="op", tag="resume"):
    """SIGCONT what a pause stopped."""

    id: int


Request = Spawn | Signal | Kill | Sweep | Pause | Resume


class AgentLink:
    """One agent's socket; owns it. Sends never block, answers go to `on_answer`, the end to `on_lost`."""

    def __init__(
        self, control: socket.socket, *, on_answer: Callable[[Answer], bool], on_lost: Callable[[str], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = control
        self._fd = control.fileno()
        self._on_answer = on_answer
        self._on_lost = on_lost
        self._queue: deque[tuple[bytes, list[int]]] = deque()
        self.closed = False
        self.ready: asyncio.Future[bool] = self._loop.create_future()
        """True once the agent runs, false if the link ends before that."""
        self.ptmx = -1
        """The sandbox's /dev/ptmx (O_PATH), while the link is open."""
        self._loop.add_reader(self._fd, self._readable)

    def post(self, message: Request, fds: Sequence[int] = ()) -> None:
        """Send a request, now or when the agent takes it; `fds` are closed in any case."""
        if self.closed:
            _close_all(fds)
            return
        self._queue.append((msgspec.json.encode(message), list(fds)))
        if len(self._queue) > _QUEUE:
            self._lose("the sandbox's agent takes no requests")
        elif len(self._queue) == 1:
            self._flush()

    def close(self) -> None:
        """Close the socket, which ends the agent. Idempotent."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._socket.close()
        for _, fds in self._queue:
            _close_all(fds)
        self._queue.clear()
        if self.ptmx >= 0:
            os.close(self.ptmx)
            self.ptmx = -1
        if not self.ready.done():
            self.ready.set_result(False)

    def _flush(self) -> None:
        while self._queue:
            data, fds = self._queue[0]
            try:
                socket.send_fds(self._socket, [data], fds)
            except BlockingIOError:
                self._loop.add_writer(self._fd, self._flush)
                return
            except OSError as exc:
                self._lose(f"the sandbox's agent is gone ({exc.strerror})")
                return
            self._queue.popleft()
            _close_all(fds)
        self._loop.remove_writer(self._fd)

    def _readable(self) -> None:
        for _ in range(_BATCH):
            if self.closed:
                return
            # Descriptors are taken with the first packet only, sent before any user's program ran.
            room = 0 if self.ready.done() else socket.CMSG_SPACE(4)
            try:
                data, ancillary, flags, _ = self._socket.recvmsg(_PACKET, room, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return
            except OSError as exc:
                self._lose(f"the sandbox's agent is gone ({exc.strerror})")
                return
            fds = array.array("i")
            for level, kind, content in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
            self._receive(data, flags, list(fds))

    def _receive(self, data: bytes, flags: int, fds: list[int]) -> None:
        try:
            if not data:
                self._lose("the sandbox's agent is gone")
                return
            message = None if flags & socket.MSG_TRUNC else _decode(data)
            if isinstance(message, Ready):
                if not self.ready.done() and fds:
                    self.ptmx = fds.pop()
                    self.ready.set_result(True)
                    return
            elif message is not None and self.ready.done() and self._on_answer(message):
                return
            self._lose("the sandbox's agent broke its protocol")
        finally:
            _close_all(fds)

    def _lose(self, reason: str) -> None:
        self.close()
        self._on_lost(reason)


def _decode(data: bytes) -> Ready | Answer | None:
    try:
        return _DECODER.decode(data)
    except (msgspec.MsgspecError, RecursionError):
        return None


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
