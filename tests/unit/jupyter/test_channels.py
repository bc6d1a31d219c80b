from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
import zmq

from kernelbridge.aio import passed_descriptors
from kernelbridge.jupyter import channels as channels_module
from kernelbridge.jupyter.channels import Channels, Received
from kernelbridge.jupyter.zmtp import encode, opening
from tests.unit.lingering import lingering

PATIENCE = 20.0


class Peer:
    """The kernel's side of the channels, blocking."""

    def __init__(self, directory: Path) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.endpoints = {name: f"{directory}/{name}" for name in ("shell", "iopub", "stdin", "control")}
        self.sockets = {}
        for name, path in self.endpoints.items():
            made = self.context.socket(zmq.XPUB if name == "iopub" else zmq.ROUTER)
            made.linger = 0
            made.sndhwm = 0
            made.rcvtimeo = made.sndtimeo = int(PATIENCE * 1000)
            made.bind(f"ipc://{path}")
            self.sockets[name] = made

    def close(self) -> None:
        self.context.destroy(linger=0)


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Peer]:
    peer = Peer(tmp_path)
    yield peer
    peer.close()


def connect(
    peer: Peer, received: Received, lost: Callable[[str, str | None], None] = lambda *_: None, **settings: Any
) -> Channels:
    settings.setdefault("stuck", lambda _: None)
    return Channels(peer.endpoints, routing_id=b"me", received=received, lost=lost, **settings)


class Inbox:
    """The received messages, and a way to wait for them."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, list[bytes]]] = []
        self.lost: list[str] = []
        self.faults: list[str | None] = []
        self._changed = asyncio.Event()

    def received(self, channel: str, frames: list[bytes]) -> None:
        self.messages.append((channel, frames))
        self._changed.set()

    def disconnected(self, channel: str, fault: str | None) -> None:
        self.lost.append(channel)
        self.faults.append(fault)
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
        for each in peer.sockets.values():
            each.close(linger=int(PATIENCE * 1000))
        await channels.drained(PATIENCE)
        assert [frames for _, frames in inbox.messages] == [[b"%d" % number] for number in range(100)]
        assert sorted(inbox.lost) == ["control", "iopub", "shell", "stdin"]
        assert inbox.faults == [None] * 4
        channels.close()
        channels.close()

    runner.run(scenario())


def test_a_message_over_the_limit_ends_the_connection(peer: Peer, runner: asyncio.Runner) -> None:
    async def scenario() -> None:
        inbox = Inbox()
        channels = inbox.connect(peer, max_message=1000)
        shell = peer.sockets["shell"]
        channels.send("shell", [b"request"])
        identity, _ = await asyncio.to_thread(shell.recv_multipart)
        shell.send_multipart([identity, b"x" * 500, b"x" * 500])
        await inbox.until(messages=1)
        shell.send_multipart([identity, b"x" * 500, b"x" * 501])
        await inbox.until(lost=1)
        assert (inbox.lost, inbox.faults) == (["shell"], ["sent a message that is too large"])
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

    async def start(self, channels: Channels) -> None:
        channels.send("shell", [b"request"])
        self.identity, _ = await asyncio.to_thread(self.shell.recv_multipart)
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
        await flood.start(channels)
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
        await flood.start(channels)
        channels._channels["shell"]._socket.settimeout(PATIENCE)
        channels._channels["shell"]._socket.recv(1, socket.MSG_PEEK)
        channels._channels["shell"]._socket.settimeout(0)
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
            lost=lambda *_: None,
            stuck=stuck.set_result,
            send_timeout=0.2,
        )
        for number in range(100):
            channels.send("stdin", [b"%d" % number])
        assert await asyncio.wait_for(stuck, PATIENCE) == "stdin"
        late = peer.context.socket(zmq.ROUTER)
        late.rcvtimeo = int(PATIENCE * 1000)
        late.bind(f"ipc://{endpoints['stdin']}")
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
            lost=lambda *_: None,
            stuck=told.append,
            send_timeout=0.1,
        )
        for number in range(100):
            channels.send("stdin", [b"%d" % number])
        assert channels._channels["stdin"]._waiting
        channels.close()
        await asyncio.wait({asyncio.get_running_loop().create_future()}, timeout=0.3)
        assert told == []

    runner.run(scenario())


def test_a_held_channel_takes_a_bounded_amount(
    peer: Peer, runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest waits in the kernel, and nothing of it is lost."""
    monkeypatch.setattr(channels_module, "_ROOM", 1 << 20)

    async def scenario() -> None:
        inbox = Inbox()
        hold: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def holding(channel: str, frames: list[bytes]) -> asyncio.Future[None]:
            inbox.received(channel, frames)
            return hold

        channels = connect(peer, holding)
        channel = channels._channels["iopub"]
        iopub = peer.sockets["iopub"]
        assert await asyncio.to_thread(iopub.recv) == b"\x01"
        for number in range(500):
            iopub.send_multipart([b"%d" % number, bytes(10_000)])
        async with asyncio.timeout(PATIENCE):
            while channel._watches_input:
                await asyncio.wait({hold}, timeout=0.01)
        assert (1 << 20) - 20_000 < channel._decoder.waiting <= (1 << 20) + channels_module._PIECE
        assert len(inbox.messages) == 1
        hold.set_result(None)
        await inbox.until(messages=500)
        assert [frames[0] for _, frames in inbox.messages] == [b"%d" % number for number in range(500)]
        channels.close()

    runner.run(scenario())


class Closer:
    """A kernel that sends something and closes its connection, while the server is still sending."""

    def __init__(self, path: str) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()

    def answer(self, data: bytes) -> None:
        """Take a connection, send everything at once and close it, without reading more than one byte."""
        connection, _ = self._listener.accept()
        with connection, self._listener:
            connection.recv(1)
            connection.sendall(data)


def test_what_came_before_a_failed_send_is_received(tmp_path: Path, peer: Peer, runner: asyncio.Runner) -> None:
    async def scenario() -> None:
        inbox = Inbox()
        closer = Closer(str(tmp_path / "closer"))
        peer.endpoints["shell"] = str(tmp_path / "closer")
        channels = inbox.connect(peer)
        channels.send("shell", [b"request"])
        sent = opening("ROUTER") + encode([b"one"]) + encode([b"two", b"2"])
        await asyncio.to_thread(closer.answer, sent)
        channels._channels["shell"]._flush()  # fails: nobody reads it
        channels.send("shell", [b"another"])
        await inbox.until(messages=2, lost=1)
        assert inbox.messages == [("shell", [b"one"]), ("shell", [b"two", b"2"])]
        assert (inbox.lost, inbox.faults) == (["shell"], [None])
        channels.send("shell", [b"nobody is there"])
        channels.close()

    runner.run(scenario())


def test_who_does_not_speak_the_protocol_is_told_of(tmp_path: Path, peer: Peer, runner: asyncio.Runner) -> None:
    async def scenario() -> None:
        inbox = Inbox()
        closer = Closer(str(tmp_path / "odd"))
        peer.endpoints["shell"] = str(tmp_path / "odd")
        channels = inbox.connect(peer)
        await asyncio.to_thread(closer.answer, b"HTTP/1.1 400 Bad Request\r\n\r\n".ljust(100))
        await inbox.until(lost=1)
        assert inbox.faults == ["does not speak version 3 of ZeroMQ's protocol"]
        channels.close()

    runner.run(scenario())


@pytest.fixture(params=["refused", "received"])
def passing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the system does with passed descriptors: refuse them, as Linux 6.16 can, or hand them over."""
    if request.param == "received":
        monkeypatch.setattr(passed_descriptors, "refuse", lambda _: None)
    elif not refuses_descriptors():
        monkeypatch.setattr(passed_descriptors, "refuse", lambda _: None)
        return "received"
    return str(request.param)


def refuses_descriptors() -> bool:
    mine, theirs = socket.socketpair()
    with mine, theirs:
        passed_descriptors.refuse(mine)
        try:
            socket.send_fds(theirs, [b"x"], [0])
        except PermissionError:
            return True
        return False


class Passer:
    """A kernel that passes a descriptor whose close waits, and keeps no copy."""

    def __init__(self, path: str) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        self._kept: list[socket.socket] = []
        self.refused = False

    def accept(self) -> socket.socket:
        connection, _ = self._listener.accept()
        self._kept.append(connection)
        return connection

    def pass_on(self, connection: socket.socket, *, nested: bool) -> None:
        full, kept = lingering()
        self._kept += kept
        passed = full
        if nested:
            passed, sender = socket.socketpair()
            socket.send_fds(sender, [b"x"], [full.fileno()])
            sender.close()
        try:
            socket.send_fds(connection, [b"\xff"], [passed.fileno()])
        except PermissionError:
            self.refused = True
        if self.refused:  # then it is closed here
            full.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
        full.close()
        if nested:  # in a thread: if the other side was quicker, this is the last one, which waits
            threading.Thread(target=passed.close, daemon=True).start()

    def close(self) -> None:
        for each in (self._listener, *self._kept):
            each.close()


@pytest.mark.parametrize("nested", [False, True])
def test_a_passed_descriptor_blocks_nobody(
    tmp_path: Path,
    peer: Peer,
    runner: asyncio.Runner,
    passing: str,
    nested: bool,  # noqa: FBT001 - pytest's
) -> None:
    """Whoever closes the last one waits as long as its owner likes."""

    async def scenario() -> None:
        inbox = Inbox()
        passer = Passer(str(tmp_path / "passer"))
        peer.endpoints["shell"] = str(tmp_path / "passer")
        channels = inbox.connect(peer)
        connection = await asyncio.to_thread(passer.accept)
        await asyncio.to_thread(passer.pass_on, connection, nested=nested)
        assert passer.refused == (passing == "refused")
        if not passer.refused:
            await inbox.until(lost=1)
            assert inbox.faults == ["passed an open file"]
        channels.close()
        passer.close()

    runner.run(scenario())


def test_a_descriptor_that_was_not_received_blocks_nobody(
    tmp_path: Path, peer: Peer, runner: asyncio.Runner, passing: str
) -> None:
    async def scenario() -> None:
        passer = Passer(str(tmp_path / "passer"))
        peer.endpoints["shell"] = str(tmp_path / "passer")
        channels = Inbox().connect(peer)
        passer.pass_on(passer.accept(), nested=False)
        assert passer.refused == (passing == "refused")
        channels.close()
        passer.close()

    runner.run(scenario())


def test_a_kernel_may_take_its_time_until_it_is_ready(peer: Peer, runner: asyncio.Runner) -> None:
    """Its start has a time-out of its own."""

    async def scenario() -> None:
        told: list[str] = []
        listener = socket.socket(socket.AF_UNIX)
        peer.endpoints["shell"] += "-slow"
        listener.bind(peer.endpoints["shell"])
        listener.listen()
        channels = connect(peer, lambda *_: None, stuck=told.append, send_timeout=0.05)
        for number in range(3):
            channels.send("shell", [b"%d" % number])
        await asyncio.wait({asyncio.get_running_loop().create_future()}, timeout=0.3)
        assert told == []
        channels.close()
        listener.close()

    runner.run(scenario())


def test_a_kernel_that_shuts_its_ears_is_told_of(tmp_path: Path, peer: Peer, runner: asyncio.Runner) -> None:
    async def scenario() -> None:
        stuck: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        path = str(tmp_path / "deaf")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()
        peer.endpoints["shell"] = path
        channels = connect(peer, lambda *_: None, stuck=stuck.set_result, send_timeout=0.1)
        connection, _ = listener.accept()
        connection.sendall(opening("ROUTER"))
        connection.shutdown(socket.SHUT_RD)
        async with asyncio.timeout(PATIENCE):
            while not channels._channels["shell"]._ready:  # noqa: ASYNC110 - no event tells it
                await asyncio.sleep(0)
        channels.send("shell", [b"request"])
        assert await asyncio.wait_for(stuck, PATIENCE) == "shell"
        channels.close()
        connection.close()
        listener.close()

    runner.run(scenario())


def test_nothing_is_received_after_the_close(peer: Peer, runner: asyncio.Runner) -> None:
    async def scenario() -> None:
        messages: list[list[bytes]] = []
        closed = asyncio.Event()

        def close_at_the_batchs_end(_channel: str, frames: list[bytes]) -> None:
            messages.append(frames)
            if len(messages) == channels_module._BATCH // 2:
                asyncio.get_running_loop().call_soon(close)

        def close() -> None:
            channels.close()
            closed.set()
            messages.append([b"closed"])

        channels = connect(peer, close_at_the_batchs_end)
        iopub = peer.sockets["iopub"]
        assert await asyncio.to_thread(iopub.recv) == b"\x01"
        for number in range(1000):
            iopub.send_multipart([b"%d" % number])
        async with asyncio.timeout(PATIENCE):
            await closed.wait()
        for _ in range(10):
            await asyncio.sleep(0)
        assert messages[-1] == [b"closed"]

    runner.run(scenario())


def test_a_large_message_leaves_others_their_turn(peer: Peer, runner: asyncio.Runner) -> None:
    async def scenario() -> None:
        channels = Inbox().connect(peer)
        shell = peer.sockets["shell"]
        channels.send("shell", [b"ready?"])
        await asyncio.to_thread(shell.recv_multipart)
        large = bytes(40 << 20)
        channels.send("shell", [large])
        channel = channels._channels["shell"]
        assert channel._unsent
        assert (await asyncio.to_thread(shell.recv_multipart))[1] == large
        assert not channel._unsent
        channels.close()

    runner.run(scenario())


def test_a_path_that_cannot_be_connected_to_is_told_of(tmp_path: Path, peer: Peer, runner: asyncio.Runner) -> None:
    async def scenario() -> None:
        inbox = Inbox()
        datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        datagrams.bind(str(tmp_path / "datagrams"))
        peer.endpoints["shell"] = str(tmp_path / "datagrams")
        channels = inbox.connect(peer)
        await inbox.until(lost=1)
        assert inbox.faults[0] is not None
        assert "cannot be reached on its shell channel" in inbox.faults[0]
        channels.close()
        datagrams.close()

    runner.run(scenario())


def test_a_wait_that_ended_in_vain_can_be_repeated(peer: Peer, runner: asyncio.Runner) -> None:
    async def scenario() -> None:
        inbox = Inbox()
        channels = inbox.connect(peer)
        await channels.drained(0.0)
        await channels.drained(0.0)
        peer.close()
        await channels.drained(PATIENCE)
        await inbox.until(lost=4)
        channels.close()

    runner.run(scenario())
