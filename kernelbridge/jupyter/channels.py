"""The only I/O with a kernel: its channels, which are sockets of ZeroMQ, on the event loop.

They are plain UNIX sockets here, and `zmtp.py` knows what is said on them. ZeroMQ's own library hands over a message
when all of its frames are there, so that a kernel decides how much memory the server needs; and it reads and writes in
a thread, which costs every message a change of threads.

Nothing is dropped on this side: while `_ROOM` is full, nothing is read from the kernel.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping

from kernelbridge.aio import passed_descriptors
from kernelbridge.jupyter.zmtp import SUBSCRIBE_ALL, BadPeer, Decoder, Ready, encode, opening

MAX_MESSAGE = 48 << 20
"""Bytes of one message; a kernel that sends a larger one is disconnected."""
SEND_TIMEOUT = 5.0
"""Seconds for which a kernel may leave messages unread."""

_TYPES = {"shell": "DEALER", "control": "DEALER", "stdin": "DEALER", "iopub": "SUB"}
_ROOM = 4 << 20  # bytes received and not handled yet, per channel
_PIECES = 10_000  # the same in pieces of any size: each costs some memory of its own
_PIECE = 1 << 16  # bytes received at once
_STEPS = 8  # messages after which the socket is emptied again
_SENT = 1 << 20  # bytes sent at once
_UNCOUNTED = 16  # messages that may wait, for any time, until a kernel is ready: its start has a time-out of its own
_BATCH = 64  # messages read in one turn, before other callbacks of the loop have theirs
_TURN = 0.005  # seconds after which a turn ends with the current message
_BACKLOG = 2.0  # seconds to read what a dead kernel has sent: a process that it forked may send for ever
_RETRY, _LONGEST_RETRY = 0.005, 0.1  # seconds between attempts to connect to a socket at which nobody listens yet

Received = Callable[[str, list[bytes]], asyncio.Future[None] | None]
"""Handles the frames of a message. Until a future that it returns is done, the channel's next one is not handled."""


class Channels:
    """The connected sockets of one kernel incarnation.

    `received` is called with the channel and the frames of each message, `lost` with a channel whose connection has
    ended and, if the kernel broke ZeroMQ's protocol, with what it did ("sent …"). `stuck` is called with a channel that
    the kernel has stopped reading. `routing_id` names this client to the kernel. It must be a new one, or that of an
    earlier client, whose replies then arrive here. `endpoints` are paths of UNIX sockets, at which the kernel may begin
    to listen later. Sizes are in bytes, times in seconds.
    """

    def __init__(
        self,
        endpoints: Mapping[str, str],
        *,
        routing_id: bytes,
        received: Received,
        lost: Callable[[str, str | None], None],
        stuck: Callable[[str], None],
        max_message: int = MAX_MESSAGE,
        send_timeout: float = SEND_TIMEOUT,
    ) -> None:
        self._lost = lost
        self._open = set(_TYPES)
        self._all_lost = asyncio.get_running_loop().create_future()
        self._channels: dict[str, _Channel] = {}
        try:
            for name, kind in _TYPES.items():
                self._channels[name] = _Channel(
                    name,
                    endpoints[name],
                    opening(kind, routing_id if kind == "DEALER" else b""),
                    subscription=encode([SUBSCRIBE_ALL]) if kind == "SUB" else None,
                    received=received,
                    disconnected=self._disconnected,
                    stuck=stuck,
                    max_message=max_message,
                    send_timeout=send_timeout,
                )
        except BaseException:
            self.close()
            raise

    def send(self, channel: str, frames: list[bytes]) -> None:
        """Send a message without blocking, now or when the kernel reads."""
        self._channels[channel].send(frames)

    async def drained(self, timeout: float) -> None:  # noqa: ASYNC109 - giving up is the normal case, not an error
        """Wait, after the kernel's end, until everything that it sent has been received.

        A process that the kernel forked may keep its connections open, and even send on them. So their end is awaited
        for `timeout` seconds, and then messages are read until there are none, for at most two seconds more.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await asyncio.shield(self._all_lost)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_BACKLOG):
                for channel in self._channels.values():
                    channel.check_received()
                    await channel.quiet.wait()

    def close(self) -> None:
        """Close the sockets; nothing is received afterwards. Idempotent."""
        for channel in self._channels.values():
            channel.close()
        if not self._all_lost.done():
            self._all_lost.set_result(None)

    def _disconnected(self, channel: str, fault: str | None) -> None:
        self._open.discard(channel)
        if not self._open and not self._all_lost.done():
            self._all_lost.set_result(None)
        self._lost(channel, fault)


class _Channel:
    def __init__(
        self,
        name: str,
        path: str,
        first: bytes,
        *,
        subscription: bytes | None,
        received: Received,
        disconnected: Callable[[str, str | None], None],
        stuck: Callable[[str], None],
        max_message: int,
        send_timeout: float,
    ) -> None:
        """`first` is sent first, `subscription` as soon as the kernel is ready."""
        self._name = name
        self._path = path
        self._received = received
        self._disconnected = disconnected
        self._stuck = stuck
        self._send_timeout = send_timeout
        self._loop = asyncio.get_running_loop()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(0)
        passed_descriptors.refuse(self._socket)
        self._retry: asyncio.TimerHandle | None = None
        self._decoder = Decoder(max_message)
        self._watches_input = self._watches_room = False
        """For what the loop watches the socket."""
        self._emptied = True
        """Whether the socket was read until it had nothing more."""
        self._held = self._scheduled = False
        self._eof = False
        """Whether nothing more comes from the kernel."""
        self._ended = False
        """Whether that was reported."""
        self._closed = False
        self.quiet = asyncio.Event()
        """Set while nothing is known to wait that has come, or the channel is closed."""
        self.quiet.set()
        self._ready = False
        self._subscription = subscription
        self._waiting: list[bytes] = []
        """Messages to send when the kernel is ready."""
        self._unsent: deque[bytes | memoryview] = deque([first])
        self._deaf = False
        """Whether the kernel takes nothing any more."""
        self._overdue: asyncio.TimerHandle | None = None
        self._connect(_RETRY)

    # -- the connection -----------------------------------------------------------

    def _connect(self, pause: float) -> None:
        """Connect, or try again after `pause` seconds: a kernel makes a socket some time before it listens."""
        self._retry = None
        try:
            self._socket.connect(self._path)
        except (ConnectionRefusedError, FileNotFoundError, BlockingIOError):
            self._retry = self._loop.call_later(pause, self._connect, min(2 * pause, _LONGEST_RETRY))
        except OSError as exc:
            self._loop.call_soon(self._end, f"cannot be reached on its {self._name} channel ({exc.strerror})")
        else:
            self._watch_input(wanted=True)
            self._flush()

    def _end(self, fault: str | None = None) -> None:
        """Report that the connection has ended, and send nothing more."""
        if self._is_over():
            return
        self._ended = True
        self._stop()
        self._disconnected(self._name, fault)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._stop()
        passed_descriptors.close(self._socket)

    def _is_over(self) -> bool:
        return self._ended or self._closed

    def _stop(self) -> None:
        self._watch_input(wanted=False)
        self._watch_room(wanted=False)
        self._waiting.clear()
        self._unsent.clear()
        for timer in (self._retry, self._overdue):
            if timer is not None:
                timer.cancel()
        self.quiet.set()

    def _watch_input(self, *, wanted: bool) -> None:
        if wanted != self._watches_input:
            self._watches_input = wanted
            if wanted:
                self._loop.add_reader(self._socket, self._readable)
            else:
                self._loop.remove_reader(self._socket)

    def _watch_room(self, *, wanted: bool) -> None:
        if wanted != self._watches_room:
            self._watches_room = wanted
            if wanted:
                self._loop.add_writer(self._socket, self._flush)
            else:
                self._loop.remove_writer(self._socket)

    # -- to the kernel ------------------------------------------------------------

    def send(self, frames: list[bytes]) -> None:
        if self._is_over():
            return  # the owner knows that the kernel is lost
        if not self._ready:
            self._waiting.append(encode(frames))
            self._count_time(progress=False)
            return
        self._unsent.append(encode(frames))
        if not self._watches_room:
            self._flush()

    def _flush(self) -> None:
        """Send what the socket has room for. Call `stuck` if it has none for too long."""
        taken = False
        end = time.monotonic() + _TURN
        try:
            while self._unsent and time.monotonic() < end:
                data = self._unsent[0]
                sent = self._socket.send(data if len(data) <= _SENT else memoryview(data)[:_SENT])
                taken = True
                if sent == len(data):
                    self._unsent.popleft()
                else:
                    self._unsent[0] = memoryview(data)[sent:]
        except BlockingIOError:
            pass
        except OSError:
            # The kernel has closed it, or reads no more. What it sent before is still read; then its end is found.
            self._deaf = True
            self._unsent.clear()
        self._watch_room(wanted=bool(self._unsent))
        self._count_time(progress=taken and not self._deaf)

    def _count_time(self, *, progress: bool) -> None:
        unread = self._unsent or self._deaf if self._ready else len(self._waiting) > _UNCOUNTED
        if self._overdue is not None and (progress or not unread):
            self._overdue.cancel()
            self._overdue = None
        if unread and self._overdue is None:
            self._overdue = self._loop.call_later(self._send_timeout, self._stuck, self._name)

    # -- from the kernel ----------------------------------------------------------

    def check_received(self) -> None:
        """Schedule a look at what has come."""
        if not (self._is_over() or self._held or self._retry):
            self._emptied = False
            self._schedule()

    def _readable(self) -> None:
        self._emptied = False
        if self._held or self._scheduled:
            self._receive_all()
        else:
            self._turn()

    def _schedule(self) -> None:
        """Schedule one turn, unless one is scheduled already: otherwise each turn would schedule more of them."""
        if not self._scheduled:
            self._scheduled = True
            self.quiet.clear()
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """Handle what has come, until there is no more or other callbacks of the loop must have their turn."""
        self._scheduled = False
        if self._is_over():
            return
        more = True
        end = time.monotonic() + _TURN
        try:
            for number in range(_BATCH):
                if number % _STEPS == _STEPS - 1:
                    self._emptied = False
                    self._receive_all()
                more = self._step()
                if not more or self._held or self._is_over() or time.monotonic() > end:
                    return
        finally:  # also when a consumer has raised
            if not (self._held or self._is_over()):
                if more:
                    self._schedule()
                else:
                    self._idle()

    def _step(self) -> bool:
        """Handle a message, or receive bytes if there is none; return whether there was one of both."""
        try:
            got = self._decoder.read()
        except BadPeer as exc:
            self._end(str(exc))
            return False
        if got is None:
            return self._receive_all()
        if isinstance(got, list):
            later = self._received(self._name, got)
            if later is not None and not later.done():
                self._hold(later)
        else:
            self._on_command(got)
        return True

    def _receive_all(self) -> bool:
        """Receive until there is nothing or no room for more; return whether something came.

        A publisher that drops messages drops them when its socket is full, so it is emptied often. And uvloop signals
        the end of a connection only once, if the kernel has left something unread.
        """
        came = False
        while not (self._emptied or self._eof or self._closed):
            if self._decoder.waiting > _ROOM or self._decoder.pieces > _PIECES:
                self._watch_input(wanted=False)
                break
            came = self._receive() or came
        return came

    def _receive(self) -> bool:
        try:
            data, fds, _ = passed_descriptors.receive(self._socket, _PIECE)
        except BlockingIOError:
            self._emptied = True
            return False
        except OSError:
            data, fds = b"", []  # the kernel has left something unread; what it sent has been received before
        if fds:
            passed_descriptors.drop(fds)
            self._decoder.refuse("passed an open file")
        if data:
            self._decoder.feed(data)
            return True
        self._eof = True
        self._watch_input(wanted=False)
        return False

    def _idle(self) -> None:
        """All that has come has been handled."""
        if self._eof:
            self._end()
        else:
            self._watch_input(wanted=True)
            self.quiet.set()

    def _hold(self, later: asyncio.Future[None]) -> None:
        """Handle nothing until `later` is done; `quiet` stays unset meanwhile."""
        self._held = True
        self.quiet.clear()

        def resume(_: asyncio.Future[None]) -> None:
            self._held = False
            if not self._closed:
                self._schedule()

        later.add_done_callback(resume)

    def _on_command(self, got: Ready | bytes) -> None:
        if isinstance(got, Ready):
            self._ready = True
            if self._subscription is not None:
                self._unsent.append(self._subscription)
            self._unsent.extend(self._waiting)
            self._waiting.clear()
            self._flush()
        elif got and not self._unsent:  # otherwise it asks whether we live, and reads no answer
            self._unsent.append(got)
            self._flush()
