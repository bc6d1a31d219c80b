"""The bridge's end of an agent's socket: sends and receives packets and descriptors, in order, and never blocks.

An agent may only answer requests, and pass connections as far as it was asked to. Anything else breaks the link, and
the sandbox is lost with it.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from kernelbridge.aio import passed_descriptors
from kernelbridge.runtimes.agent.messages import PACKET, Answer, Ready, Request, decode

_QUEUE = 1024
"""Requests that the agent has not read yet; with more, it counts as broken."""
_BATCH = 64
"""Packets that are read before other work has its turn."""


class AgentLink:
    """One agent's socket; owns it.

    `on_answer` is called with each answer and a list of at most one descriptor that came with it, which it may remove
    and then owns; it returns whether the answer was expected. `on_dropped` is called instead for an answer whose
    descriptor was lost, because this process has too many open files. `on_lost` is called with the reason when the link
    breaks, not after `close`.
    """

    def __init__(
        self,
        control: socket.socket,
        *,
        on_answer: Callable[[Answer, list[int]], bool],
        on_dropped: Callable[[Answer], bool],
        on_lost: Callable[[str], None],
    ) -> None:
        control.settimeout(0)
        self._loop = asyncio.get_running_loop()
        self._socket = control
        self._fd = control.fileno()
        self._on_answer = on_answer
        self._on_dropped = on_dropped
        self._on_lost = on_lost
        self._queue: deque[tuple[bytes, list[int]]] = deque()
        self.closed = False
        self.ready: asyncio.Future[bool] = self._loop.create_future()
        """True when the agent has answered; False if the link was closed before that."""
        self.relays = False
        """Whether the agent, which is ready, listens at the proxy's port."""
        self.ptmx = -1
        """A descriptor (O_PATH) of the sandbox's ptmx while the link is open; -1 if it has none."""
        self._loop.add_reader(self._fd, self._readable)

    def post(self, message: Request, fds: Sequence[int] = ()) -> None:
        """Send a request, now or as soon as the agent reads; `fds` are closed in any case."""
        if self.closed:
            _close_all(fds)
            return
        self._queue.append((msgspec.json.encode(message), list(fds)))
        if len(self._queue) > _QUEUE:
            self._lose("the sandbox's agent does not read its requests")
        elif len(self._queue) == 1:
            self._flush()

    def close(self) -> None:
        """Close the socket. Idempotent."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        passed_descriptors.close(self._socket)
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
            try:
                data, fds, flags = passed_descriptors.receive(self._socket, PACKET)
            except BlockingIOError:
                return
            except OSError as exc:
                self._lose(f"the sandbox's agent is gone ({exc.strerror})")
                return
            passed_descriptors.drop(fds[1:])  # no agent sends more
            self._receive(data, flags, fds[:1])

    def _receive(self, data: bytes, flags: int, fds: list[int]) -> None:
        try:
            if not data:
                self._lose("the sandbox's agent is gone")
                return
            message = None if flags & socket.MSG_TRUNC else decode(data)
            if isinstance(message, Ready):
                if not self.ready.done():
                    self.ptmx = fds.pop() if fds else -1
                    self.relays = message.relay
                    self.ready.set_result(True)
                    return
            elif message is not None and self.ready.done():
                # A fault of this process, or of the machine: it must not cost the sandbox.
                dropped = flags & socket.MSG_CTRUNC and not fds
                if self._on_dropped(message) if dropped else self._on_answer(message, fds):
                    return
            self._lose("the sandbox's agent broke its protocol")
        except OSError as exc:  # its descriptor is of a kind that nobody thought of
            self._lose(f"the sandbox's agent broke its protocol ({exc.strerror})")
        finally:
            passed_descriptors.drop(fds)

    def _lose(self, reason: str) -> None:
        self.close()
        self._on_lost(reason)


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
