"""The only ZeroMQ I/O: a kernel's channels on the event loop.

The descriptor of a ZeroMQ socket is edge-triggered. It signals that something changed, not that a message is there,
and any operation on the socket may consume the signal. So a reader reads until there are no messages, and a sender
checks afterwards whether its send has consumed the signal of one (https://zguide.zeromq.org and zmq_getsockopt(3),
ZMQ_FD). The sockets are plain ones, and all operations are non-blocking: measured, this is half the cost per message of
`zmq.asyncio`, and it needs only `add_reader` and `call_soon` of the loop.

Nothing is dropped on this side: while a receive queue is full, nothing is read from the kernel.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Mapping

import zmq
from zmq.utils.monitor import recv_monitor_message

from kernelbridge.errors import KernelError

MAX_MESSAGE = 48 << 20
"""Bytes of one frame; a kernel that sends a larger one is disconnected."""
SEND_TIMEOUT = 5.0
"""Seconds for which a kernel may leave messages unread."""

_KINDS = {"shell": zmq.DEALER, "control": zmq.DEALER, "stdin": zmq.DEALER, "iopub": zmq.SUB}
_QUEUE = 10_000  # messages received but not yet read, per channel
_OUTPUT_QUEUE = 32  # the same for output, if the kernel waits when it is full: such messages can have 128 KiB each
# Messages in ZeroMQ's queue for the kernel. A correct kernel takes them at once, however busy its interpreter is. More
# of them wait in `_Channel`, and not much longer than `SEND_TIMEOUT`.
_UNSENT = 16
_BATCH = 64  # messages read in one turn, before other callbacks of the loop have theirs
_TURN = 0.005  # seconds after which a turn ends with the current message
_BACKLOG = 2.0  # seconds to read what a dead kernel has sent: a process that it forked may send for ever

Received = Callable[[str, list[bytes]], asyncio.Future[None] | None]
"""Handles the frames of a message. Until a future that it returns is done, the channel is not read."""


class Channels:
    """The connected sockets of one kernel incarnation.

    `received` is called with the channel and the frames of each message, `lost` with a channel whose connection the
    kernel closed, `stuck` with a channel that the kernel has stopped reading. `routing_id` names this client to the
    kernel. It must be a new one, or that of an earlier client, whose replies then arrive here. Sizes are in bytes,
    times in seconds. With `publisher_waits`, few messages of output wait here: for a kernel whose publisher then waits
    instead of dropping some.
    """

    def __init__(
        self,
        endpoints: Mapping[str, str],
        *,
        routing_id: bytes,
        received: Received,
        lost: Callable[[str], None],
        stuck: Callable[[str], None],
        max_message: int = MAX_MESSAGE,
        send_timeout: float = SEND_TIMEOUT,
        publisher_waits: bool = False,
    ) -> None:
        self._lost = lost
        self._channels: dict[str, _Channel] = {}
        self._open: set[str] = set()
        self._all_lost = asyncio.get_running_loop().create_future()
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        try:
            for name, kind in _KINDS.items():
                socket = context.socket(kind)
                socket.linger = 0
                socket.sndhwm = _UNSENT
                # Never changed afterwards: with a lower limit than messages that have come, ZeroMQ stops for ever.
                socket.rcvhwm = _OUTPUT_QUEUE if kind == zmq.SUB and publisher_waits else _QUEUE
                socket.maxmsgsize = max_message
                if kind == zmq.SUB:
                    socket.subscribe(b"")
                else:
                    socket.routing_id = routing_id
                self._channels[name] = _Channel(name, socket, received, self._disconnected, stuck, send_timeout)
                self._open.add(name)
                socket.connect(endpoints[name])
        except BaseException:
            self.close()
            raise

    def send(self, channel: str, frames: list[bytes]) -> None:
        """Send a message without blocking, now or when the kernel reads. Raises `KernelError` if the socket failed."""
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

    def _disconnected(self, channel: str) -> None:
        self._open.discard(channel)
        if not self._open and not self._all_lost.done():
            self._all_lost.set_result(None)
        self._lost(channel)


def _option(socket: zmq.Socket[bytes], option: zmq.SocketOption) -> int:
    value = socket.get(option)
    if not isinstance(value, int):
        raise TypeError(f"ZeroMQ gave {value!r} for {option}")
    return value


class _Channel:
    def __init__(  # noqa: PLR0917 - private, and all that a channel is
        self,
        name: str,
        socket: zmq.Socket[bytes],
        received: Received,
        disconnected: Callable[[str], None],
        stuck: Callable[[str], None],
        send_timeout: float,
    ) -> None:
        self._name = name
        self._stuck = stuck
        self._send_timeout = send_timeout
        self._unsent: deque[list[bytes]] = deque()
        self._overdue: asyncio.TimerHandle | None = None
        self._held = False
        self._socket = socket
        self._received = received
        self._disconnected = disconnected
        self._loop = asyncio.get_running_loop()
        self._monitor: zmq.Socket[bytes] = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._monitor.linger = 0
        self._readers = (_option(socket, zmq.FD), _option(self._monitor, zmq.FD))
        self._closed = False
        self._scheduled = False
        self.quiet = asyncio.Event()
        """Set while no message is known to wait, or the channel is closed."""
        self._loop.add_reader(self._readers[0], self._signalled)
        self._loop.add_reader(self._readers[1], self._watch)
        # There is no signal for what arrived before the readers were added.
        self._schedule()
        self._loop.call_soon(self._watch)

    def send(self, frames: list[bytes]) -> None:
        self._unsent.append(frames)
        self._flush()

    def _flush(self) -> None:
        """Pass messages to ZeroMQ. Call `stuck` if it accepts none for too long."""
        taken = False
        try:
            while self._unsent:
                try:
                    self._socket.send_multipart(self._unsent[0], zmq.NOBLOCK)
                except zmq.Again:
                    # Check again, because the attempt may have consumed the signal that there is room.
                    if not _option(self._socket, zmq.EVENTS) & zmq.POLLOUT:
                        break
                else:
                    self._unsent.popleft()
                    taken = True
        except zmq.ZMQError as exc:
            raise KernelError("The kernel cannot be reached", f"its {self._name} channel failed: {exc}") from exc
        if self._overdue is not None and (taken or not self._unsent):
            self._overdue.cancel()
            self._overdue = None
        if self._unsent and self._overdue is None:
            self._overdue = self._loop.call_later(self._send_timeout, self._stuck, self._name)
        self.check_received()  # the send may have consumed the signal of a received message

    def check_received(self) -> None:
        """Check for received messages without a signal, and schedule their reading."""
        if self._closed or self._held:
            return
        events = _option(self._socket, zmq.EVENTS)
        if events & zmq.POLLIN:
            self._schedule()
        if events & zmq.POLLOUT and self._unsent:
            self._loop.call_soon(self._send_waiting)  # the check may have consumed the signal that there is room

    def _send_waiting(self) -> None:
        if self._unsent and not self._closed:
            self._flush()

    def _signalled(self) -> None:
        self._send_waiting()
        if not self._scheduled and not self._held:
            self._read()

    def _schedule(self) -> None:
        """Schedule one turn, unless one is scheduled already: otherwise each turn would schedule more of them."""
        if not self._scheduled:
            self._scheduled = True
            self.quiet.clear()
            self._loop.call_soon(self._read)

    def _read(self) -> None:
        """Read messages until there are none, or until other callbacks of the loop must have their turn."""
        self._scheduled = False
        empty = False
        end = time.monotonic() + _TURN
        try:
            for _ in range(_BATCH):
                if self._closed:
                    return
                try:
                    frames = self._socket.recv_multipart(zmq.NOBLOCK)
                except zmq.Again:
                    empty = True
                    return
                later = self._received(self._name, frames)
                if later is not None and not later.done():
                    self._hold(later)
                    return
                if time.monotonic() > end:
                    return
        finally:
            # There will be no signal for the messages that are still in the queue.
            if empty or self._closed:
                self.quiet.set()
            elif not self._held:
                self._schedule()
            self._send_waiting()  # reading may have consumed the signal that there is room

    def _hold(self, later: asyncio.Future[None]) -> None:
        """Stop reading until `later` is done; `quiet` stays unset meanwhile."""
        self._held = True

        def resume(_: asyncio.Future[None]) -> None:
            self._held = False
            if not self._closed:
                self._schedule()

        later.add_done_callback(resume)

    def _watch(self) -> None:
        while not self._closed and _option(self._monitor, zmq.EVENTS) & zmq.POLLIN:
            if recv_monitor_message(self._monitor, zmq.NOBLOCK)["event"] == zmq.EVENT_DISCONNECTED:
                self._disconnected(self._name)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.quiet.set()
        self._unsent.clear()
        if self._overdue is not None:
            self._overdue.cancel()
        for fd in self._readers:
            self._loop.remove_reader(fd)
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=0)
