from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
import zmq

from kernelbridge.jupyter import channels as channels_module
from kernelbridge.jupyter.channels import Channels, Received

PATIENCE = 20.0


class Peer:
    """The kernel's side of the channels, blocking."""

    def __init__(self, directory: Path) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.endpoints = {name: f"ipc://{directory}/{name}" for name in ("shell", "iopub", "stdin", "control")}
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


def connect(peer: Peer, received: Received, lost: Callable[[str], None] = lambda _: None, **settings: Any) -> Channels:
    settings.setdefault("stuck", lambda _: None)
    return Channels(peer.endpoints, routing_id=b"me", received=received, lost=lost, **settings)


class Inbox:
    """The received messages, and a way to wait for them."""

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

    def connect(self, peer: Peer, **settings: Any) -> Channels:
        return connect(peer, self.received, self.disconnected, **settings)


@pytest.fixture(params=["asyncio", "uvloop"])
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        yield runner


def test_a_send_that_consumes_the_signal_of_a_message_does_not_lose_it(peer: Peer, runner: asyncio.Runner) -> None:
    """The lost wake-up: the descriptor is edge-triggered, and any operation on the socket consumes the edge."""

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


def test_a_flood_arrives_complete_and_in_order(peer: Peer, runner: asyncio.Runner) -> None:
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


def test_a_peer_that_reads_nothing_blocks_nothing(peer: Peer, runner: asyncio.Runner) -> None:
    async def scenario() -> None:
        inbox = Inbox()
        channels = inbox.connect(peer)
        for _ in range(5000):
            channels.send("shell", [b"x" * 10_000])
        channels.close()

    runner.run(scenario())


def test_a_closed_connection_is_reported_after_its_messages(peer: Peer, runner: asyncio.Runner) -> None:
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
        assert sorted(inbox.lost) == ["control", "iopub", "shell", "stdin"]
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


def test_a_reader_continues_after_its_consumer_raised(peer: Peer, runner: asyncio.Runner) -> None:
    async def scenario() -> None:
        failures: list[BaseException | None] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context.get("exception")))
        inbox = Inbox()

        def fail_first(channel: str, frames: list[bytes]) -> None:
            inbox.received(channel, frames)
            if len(inbox.messages) == 1:
                raise RuntimeError("a bug in the consumer")

        channels = connect(peer, fail_first, inbox.disconnected)
        shell = peer.sockets["shell"]
        channels.send("shell", [b"request"])
        identity, _ = await asyncio.to_thread(shell.recv_multipart)
        for _ in range(3):
            shell.send_multipart([identity, b"reply"])
        await inbox.until(messages=3)
        assert [str(failure) for failure in failures] == ["a bug in the consumer"]
        channels.close()

    runner.run(scenario())


class Flood:
    """A consumer to which the peer sends two more messages for each one that it reads."""

    def __init__(self, peer: Peer) -> None:
        self.shell = peer.sockets["shell"]
        self.identity = b""
        self.taken = 0
        self.much = asyncio.Event()
        self.stopped = False
        self.most = 0
        """Maximum number of messages handled in one turn of the loop."""
        self._in_a_row = 0

    def received(self, _channel: str, _frames: list[bytes]) -> None:
        self.taken += 1
        self._in_a_row += 1
        self.most = max(self.most, self._in_a_row)
        if self.taken == 2000:
            self.much.set()
        for _ in range(2):
            self.shell.send_multipart([self.identity, b"more"])

    def start(self, channels: Channels) -> None:
        channels.send("shell", [b"request"])
        self.identity, _ = self.shell.recv_multipart()
        for _ in range(200):
            self.shell.send_multipart([self.identity, b"first"])
        self._another_turn()

    def _another_turn(self) -> None:
        self._in_a_row = 0
        if not self.stopped:
            asyncio.get_running_loop().call_soon(self._another_turn)


def test_reading_from_a_peer_that_sends_for_ever_ends(
    peer: Peer, runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that outlives the kernel that forked it: reading all that it sends would never end."""
    monkeypatch.setattr(channels_module, "_BACKLOG", 0.2)

    async def scenario() -> None:
        flood = Flood(peer)
        channels = connect(peer, flood.received)
        flood.start(channels)
        await asyncio.wait_for(channels.drained(0.1), PATIENCE)
        channels.close()
        flood.stopped = True
        assert flood.taken > 200
        assert flood.most <= channels_module._BATCH

    runner.run(scenario())


def test_sending_into_a_flood_does_not_multiply_its_readers(peer: Peer, runner: asyncio.Runner) -> None:
    """Each send that saw a waiting message scheduled one more reader, and each reader delayed the others."""

    async def scenario() -> None:
        flood = Flood(peer)
        channels = connect(peer, flood.received)
        flood.start(channels)
        assert channels._channels["shell"]._socket.poll(int(PATIENCE * 1000))
        for _ in range(100):
            channels.send("shell", [b"another"])
        await asyncio.wait_for(flood.much.wait(), PATIENCE)
        channels.close()
        flood.stopped = True
        assert flood.most <= channels_module._BATCH

    runner.run(scenario())


def test_a_close_while_it_is_drained_ends_the_wait(peer: Peer, runner: asyncio.Runner) -> None:
    async def scenario() -> None:
        channels = Inbox().connect(peer)
        waiting = asyncio.ensure_future(channels.drained(PATIENCE))
        asyncio.get_running_loop().call_soon(channels.close)
        await asyncio.wait_for(waiting, PATIENCE / 2)

    runner.run(scenario())


def test_a_peer_that_reads_nothing_is_reported_and_messages_wait_in_order(peer: Peer, runner: asyncio.Runner) -> None:
    async def scenario() -> None:
        stuck: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        endpoints = {**peer.endpoints, "stdin": peer.endpoints["stdin"] + "-nobody"}
        channels = Channels(
            endpoints,
            routing_id=b"me",
            received=lambda *_: None,
            lost=lambda _: None,
            stuck=stuck.set_result,
            send_timeout=0.2,
        )
        for number in range(100):
            channels.send("stdin", [b"%d" % number])
        assert await asyncio.wait_for(stuck, PATIENCE) == "stdin"
        late = peer.context.socket(zmq.ROUTER)
        late.rcvtimeo = int(PATIENCE * 1000)
        late.bind(endpoints["stdin"])
        taken = [(await asyncio.to_thread(late.recv_multipart))[1] for _ in range(100)]
        assert taken == [b"%d" % number for number in range(100)]
        channels.close()
        late.close(linger=0)

    runner.run(scenario())


def test_a_channel_is_not_read_while_its_consumer_holds_it(peer: Peer, runner: asyncio.Runner) -> None:
    async def scenario() -> None:
        inbox = Inbox()
        holds: list[asyncio.Future[None]] = []

        def hold_first(channel: str, frames: list[bytes]) -> asyncio.Future[None] | None:
            inbox.received(channel, frames)
            if channel == "shell" and not holds:
                holds.append(asyncio.get_running_loop().create_future())
                return holds[0]
            return None

        channels = connect(peer, hold_first)
        identities = {}
        for name in ("shell", "control"):
            channels.send(name, [b"request"])
            identities[name] = (await asyncio.to_thread(peer.sockets[name].recv_multipart))[0]
        for number in range(3):
            peer.sockets["shell"].send_multipart([identities["shell"], b"%d" % number])
        await inbox.until(messages=1)
        peer.sockets["control"].send_multipart([identities["control"], b"beside"])
        await inbox.until(messages=2)
        assert inbox.messages == [("shell", [b"0"]), ("control", [b"beside"])]
        holds[0].set_result(None)
        await inbox.until(messages=4)
        assert inbox.messages[2:] == [("shell", [b"1"]), ("shell", [b"2"])]
        channels.close()

    runner.run(scenario())


def test_unsent_messages_are_not_reported_after_a_close(peer: Peer, runner: asyncio.Runner) -> None:
    async def scenario() -> None:
        told: list[str] = []
        endpoints = {**peer.endpoints, "stdin": peer.endpoints["stdin"] + "-nobody"}
        channels = Channels(
            endpoints,
            routing_id=b"me",
            received=lambda *_: None,
            lost=lambda _: None,
            stuck=told.append,
            send_timeout=0.1,
        )
        for number in range(100):
            channels.send("stdin", [b"%d" % number])
        assert channels._channels["stdin"]._unsent
        channels.close()
        await asyncio.wait({asyncio.get_running_loop().create_future()}, timeout=0.3)
        assert told == []

    runner.run(scenario())


def test_reading_that_consumes_the_signal_of_room_sends_waiting_messages(peer: Peer, runner: asyncio.Runner) -> None:
    """The lost wake-up in the other direction: waiting messages would wait for the next received one."""
    number = 5000

    async def scenario() -> None:
        inbox = Inbox()
        channels = inbox.connect(peer)
        shell, mine = peer.sockets["shell"], channels._channels["shell"]
        for _ in range(number):
            channels.send("shell", [b"x" * 10_000])
        assert mine._unsent
        identity = shell.recv_multipart()[0]
        taken = 1
        while shell.poll(200):  # all that ZeroMQ has; nobody has a turn meanwhile
            shell.recv_multipart()
            taken += 1
        assert taken < number
        shell.send_multipart([identity, b"reply"])
        assert mine._socket.poll(int(PATIENCE * 1000))  # which takes the signals
        mine._read()
        await inbox.until(messages=1)

        def rest() -> int:
            return sum(len(shell.recv_multipart()) // 2 for _ in range(number - taken))

        assert await asyncio.to_thread(rest) == number - taken
        channels.close()

    runner.run(scenario())
