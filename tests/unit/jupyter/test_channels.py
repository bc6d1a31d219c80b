from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop
import zmq

from kernelbridge.jupyter.channels import Channels

PATIENCE = 20.0


class Peer:
    """The kernel's side of the channels, blocking."""

    def __init__(self, directory: Path) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.endpoints = {name: f"ipc://{directory}/{name}" for name in ("shell", "iopub", "control")}
        self.sockets = {}
        for name, endpoint in self.endpoints.items():
            socket = self.context.socket(zmq.XPUB if name == "iopub" else zmq.ROUTER)
            socket.linger = 0
            socket.sndhwm = 0
            socket.rcvtimeo = socket.sndtimeo = int(PATIENCE * 1000)
            socket.bind(endpoint)
            self.sockets[name] = socket

    def close(self) -> None:
        self.context.destroy(linger=0)


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Peer]:
    peer = Peer(tmp_path)
    yield peer
    peer.close()


class Inbox:
    """What came, and a way to wait for it."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, list[bytes]]] = []
        self.lost: list[str] = []
        self._changed = asyncio.Event()

    def received(self, channel: str, frames: list[bytes]) -> None:
        self.messages.append((channel, frames))
        self._changed.set()

    def disconnected(self, channel: str) -> None:
        self.lost.append(channel)
        self._changed.set()

    async def until(self, *, messages: int = 0, lost: int = 0) -> None:
        async with asyncio.timeout(PATIENCE):
            while len(self.messages) < messages or len(self.lost) < lost:
                self._changed.clear()
                await self._changed.wait()

    def connect(self, peer: Peer, **settings: int) -> Channels:
        return Channels(peer.endpoints, routing_id=b"me", received=self.received, lost=self.disconnected, **settings)


@pytest.fixture(params=["asyncio", "uvloop"])
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        yield runner


def test_a_send_that_takes_the_signal_of_a_message_does_not_lose_it(peer: Peer, runner: asyncio.Runner) -> None:
    """The lost wake-up: the descriptor is edge-triggered, and any operation on the socket takes the edge."""

    async def scenario() -> None:
        inbox = Inbox()
        channels = inbox.connect(peer)
        shell = peer.sockets["shell"]
        for number in range(1, 11):
            channels.send("shell", [b"request"])
            identity, _ = shell.recv_multipart()
            shell.send_multipart([identity, b"reply"])
            # The reply is here and its signal is taken, while the reader is parked.
            assert channels._channels["shell"]._socket.poll(int(PATIENCE * 1000))
            channels.send("shell", [b"another"])
            assert shell.recv_multipart()[1] == b"another"
            await inbox.until(messages=number)
        assert inbox.messages == [("shell", [b"reply"])] * 10
        channels.close()

    runner.run(scenario())


def test_everything_of_a_flood_arrives_in_order(peer: Peer, runner: asyncio.Runner) -> None:
    async def scenario() -> None:
        inbox = Inbox()
        channels = inbox.connect(peer)
        iopub = peer.sockets["iopub"]
        assert await asyncio.to_thread(iopub.recv) == b"\x01"
        await asyncio.to_thread(lambda: [iopub.send_multipart([b"topic", b"%d" % number]) for number in range(5000)])
        await inbox.until(messages=5000)
        assert inbox.messages == [("iopub", [b"topic", b"%d" % number]) for number in range(5000)]
        channels.close()

    runner.run(scenario())


def test_a_peer_that_takes_nothing_blocks_nothing(peer: Peer, runner: asyncio.Runner) -> None:
    async def scenario() -> None:
        inbox = Inbox()
        channels = inbox.connect(peer)
        for _ in range(5000):
            channels.send("shell", [b"x" * 10_000])
        channels.close()

    runner.run(scenario())


def test_a_closed_connection_is_told_after_what_came_before(peer: Peer, runner: asyncio.Runner) -> None:
    async def scenario() -> None:
        inbox = Inbox()
        channels = inbox.connect(peer)
        shell = peer.sockets["shell"]
        channels.send("shell", [b"request"])
        identity, _ = await asyncio.to_thread(shell.recv_multipart)
        for number in range(100):
            shell.send_multipart([identity, b"%d" % number])
        for socket in peer.sockets.values():
            socket.close(linger=int(PATIENCE * 1000))
        await channels.drained(PATIENCE)
        assert [frames for _, frames in inbox.messages] == [[b"%d" % number] for number in range(100)]
        assert sorted(inbox.lost) == ["control", "iopub", "shell"]
        channels.close()
        channels.close()

    runner.run(scenario())


def test_a_frame_over_the_limit_ends_the_connection(peer: Peer, runner: asyncio.Runner) -> None:
    async def scenario() -> None:
        inbox = Inbox()
        channels = inbox.connect(peer, max_message=1000)
        shell = peer.sockets["shell"]
        channels.send("shell", [b"request"])
        identity, _ = await asyncio.to_thread(shell.recv_multipart)
        shell.send_multipart([identity, b"x" * 1000])
        await inbox.until(messages=1)
        shell.send_multipart([identity, b"x" * 1001])
        await inbox.until(lost=1)
        assert inbox.lost == ["shell"]
        channels.close()

    runner.run(scenario())


def test_a_reader_whose_consumer_fails_goes_on(peer: Peer, runner: asyncio.Runner) -> None:
    async def scenario() -> None:
        failures: list[BaseException | None] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context.get("exception")))
        inbox = Inbox()

        def fail_first(channel: str, frames: list[bytes]) -> None:
            inbox.received(channel, frames)
            if len(inbox.messages) == 1:
                raise RuntimeError("a bug in the consumer")

        channels = Channels(peer.endpoints, routing_id=b"me", received=fail_first, lost=inbox.disconnected)
        shell = peer.sockets["shell"]
        channels.send("shell", [b"request"])
        identity, _ = await asyncio.to_thread(shell.recv_multipart)
        for _ in range(3):
            shell.send_multipart([identity, b"reply"])
        await inbox.until(messages=3)
        assert [str(failure) for failure in failures] == ["a bug in the consumer"]
        channels.close()

    runner.run(scenario())
