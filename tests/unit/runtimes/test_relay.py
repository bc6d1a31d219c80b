"""Connections that an agent passes on: only those that were asked for, and that are what they should be."""

import asyncio
import contextlib
import json
import os
import resource
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.errors import SandboxError
from kernelbridge.runtimes.agent import client as module
from kernelbridge.runtimes.agent import stream
from kernelbridge.runtimes.agent.client import AgentClient
from kernelbridge.runtimes.agent.messages import Known
from kernelbridge.runtimes.agent.stream import is_proxy_connection
from kernelbridge.runtimes.contract import ExitStatus
from tests.contract.driving import PATIENCE, descriptors
from tests.unit.runtimes.agent_house import FACTS


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Listen at a port that counts as the proxy's."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setattr(stream, "PROXY_PORT", listening.getsockname()[1])
        yield listening


def connect(listener: socket.socket, opened: ExitStack) -> tuple[socket.socket, socket.socket]:
    """Return both ends of a connection: the program's, and the one that was accepted."""
    program = opened.enter_context(socket.create_connection(listener.getsockname()))
    accepted = opened.enter_context(listener.accept()[0])
    return program, accepted


def test_only_what_was_accepted_at_the_port_is_such_a_connection(listener: socket.socket) -> None:
    with ExitStack() as opened:
        program, accepted = connect(listener, opened)
        assert is_proxy_connection(accepted.fileno())
        with socket.create_server(("127.0.0.1", 0)) as elsewhere:
            _, other = connect(elsewhere, opened)
        datagram = opened.enter_context(socket.socket(type=socket.SOCK_DGRAM))
        datagram.bind(listener.getsockname())
        unix, _ = map(opened.enter_context, socket.socketpair())
        six = opened.enter_context(socket.socket(socket.AF_INET6))
        for wrong in (program, other, listener, datagram, unix, six):
            assert not is_proxy_connection(wrong.fileno()), wrong
        assert not is_proxy_connection(opened.enter_context(open(os.devnull, "rb")).fileno())  # noqa: PTH123 - no Path


class ForgingAgent:
    """An agent in the hands of a user."""

    def __init__(self, *, ready: str = '{"op":"ready","relay":true}') -> None:
        ours, self.end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.taken: asyncio.Queue[int] = asyncio.Queue()
        self.client = AgentClient(ours, FACTS, judge=lambda status, _, then: then(status), on_lost=self.lost.set_result)
        self.end.send(ready.encode())

    def pass_on(self, *sockets: socket.socket) -> None:
        socket.send_fds(self.end, [b'{"op":"connection"}'], [each.fileno() for each in sockets])

    async def heard(self) -> Any:
        self.end.settimeout(PATIENCE)
        return json.loads(await asyncio.to_thread(self.end.recv, 4096))

    def close(self) -> None:
        self.client.leave()
        self.end.close()
        while not self.taken.empty():
            os.close(self.taken.get_nowait())


async def test_as_many_as_were_asked_for_are_taken_and_no_more(listener: socket.socket) -> None:
    with ExitStack() as opened:
        agent = opened.enter_context(contextlib.closing(ForgingAgent()))
        await agent.client.until_ready()
        agent.client.relay(agent.taken.put_nowait, 1)
        agent.client.relay(agent.taken.put_nowait, 1)
        assert [await agent.heard(), await agent.heard()] == [{"op": "relay", "count": 1}] * 2
        _, accepted = connect(listener, opened)
        for _ in range(3):
            agent.pass_on(accepted)
        async with asyncio.timeout(PATIENCE):
            assert await agent.lost == "the sandbox's agent broke its protocol"
        assert agent.taken.qsize() == 2


@pytest.mark.parametrize("kind", ["nothing", "another socket", "before it was asked for"])
async def test_what_is_no_connection_ends_the_sandbox(listener: socket.socket, kind: str) -> None:
    with ExitStack() as opened:
        agent = opened.enter_context(contextlib.closing(ForgingAgent()))
        await agent.client.until_ready()
        if kind != "before it was asked for":
            agent.client.relay(agent.taken.put_nowait, 1)
        program, accepted = connect(listener, opened)
        before = descriptors()
        agent.pass_on(*{"nothing": [], "another socket": [program]}.get(kind, [accepted]))
        async with asyncio.timeout(PATIENCE):
            await agent.lost
        assert agent.taken.empty()
        assert len(descriptors()) < len(before), "its link is closed, and nothing was kept"


@pytest.mark.parametrize("kind", ["socket", "pipe"])
async def test_a_path_in_place_of_a_descriptor_ends_the_sandbox_and_is_not_kept(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "p"
    with ExitStack() as opened:
        agent = opened.enter_context(contextlib.closing(ForgingAgent()))
        await agent.client.until_ready()
        agent.client.relay(agent.taken.put_nowait, 1)
        await agent.heard()
        bound = opened.enter_context(socket.socket(socket.AF_UNIX))
        bound.bind(str(path)) if kind == "socket" else os.mkfifo(path)
        only_path = os.open(path, os.O_PATH)
        opened.callback(os.close, only_path)
        before = descriptors()
        if kind == "socket":
            socket.send_fds(agent.end, [b'{"op":"connection"}'], [only_path])
        else:
            known = Known(1, 7, "sh", 5, tty=False, running=True, code=None, signal=None)
            attaching = asyncio.ensure_future(agent.client.attach(known))
            asked = await agent.heard()
            socket.send_fds(agent.end, [json.dumps({"op": "attached", "id": asked["id"]}).encode()], [only_path])
        async with asyncio.timeout(PATIENCE):
            await agent.lost
        assert len(descriptors()) < len(before), "its link is closed, and nothing was kept"
        if kind == "pipe":
            agent.client.ended(ExitStatus(code=0))
            with pytest.raises(SandboxError):
                await attaching


async def test_a_socket_is_closed_without_waiting_until_its_data_is_sent(listener: socket.socket) -> None:
    with ExitStack() as opened:
        agent = opened.enter_context(contextlib.closing(ForgingAgent()))
        await agent.client.until_ready()
        agent.client.relay(agent.taken.put_nowait, 1)
        program, _ = connect(listener, opened)
        program.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 1000))
        agent.pass_on(program)
        async with asyncio.timeout(PATIENCE):
            assert await agent.lost == "the sandbox's agent broke its protocol"
        lingers, _ = struct.unpack("ii", program.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8))
        assert not lingers


async def test_an_earlier_agent_is_not_asked_for_what_it_does_not_know() -> None:
    with contextlib.closing(ForgingAgent(ready='{"op":"ready"}')) as agent:
        agent.client.relay(agent.taken.put_nowait, 1)  # before it is known what the agent can
        await agent.client.until_ready()
        agent.client.relay(agent.taken.put_nowait, 1)
        agent.client.outlive(5)
        assert await agent.heard() == {"op": "outlive", "seconds": 5.0}


@contextlib.contextmanager
def no_free_descriptor() -> Iterator[None]:
    """Let this process open nothing more while the context is open."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_a_connection_for_which_no_descriptor_is_free_costs_no_sandbox(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DROPPED_SECONDS", 0.0)
    with ExitStack() as opened:
        agent = opened.enter_context(contextlib.closing(ForgingAgent()))
        await agent.client.until_ready()
        agent.client.relay(agent.taken.put_nowait, 1)
        asked = {"op": "relay", "count": 1}
        assert await agent.heard() == asked
        _, accepted = connect(listener, opened)
        agent.pass_on(accepted)
        with no_free_descriptor():
            assert await agent.heard() == asked, "the lost one was not asked for again"
        agent.pass_on(accepted)
        async with asyncio.timeout(PATIENCE):
            os.close(await agent.taken.get())
        assert not agent.client.closed


@pytest.mark.parametrize("asked_for", ["program", "terminal"])
async def test_a_program_for_which_no_descriptor_is_free_costs_no_sandbox(asked_for: str) -> None:
    """The request fails, and the next one succeeds."""
    known = Known(1, 7, "sh", 5, tty=False, running=True, code=None, signal=None)
    with ExitStack() as opened:
        agent = opened.enter_context(contextlib.closing(ForgingAgent()))
        await agent.client.until_ready()
        passed, other_end = os.pipe() if asked_for == "program" else os.openpty()
        opened.callback(os.close, passed)
        opened.callback(os.close, other_end)

        async def attach() -> asyncio.Future[Any]:
            asking = agent.client.attach(known) if asked_for == "program" else agent.client.take_terminal("/dev/pts/1")
            attaching = asyncio.ensure_future(asking)
            asked = await agent.heard()
            socket.send_fds(agent.end, [json.dumps({"op": "attached", "id": asked["id"]}).encode()], [passed])
            return attaching

        with no_free_descriptor():
            refused = await attach()
            async with asyncio.timeout(PATIENCE):
                with pytest.raises(SandboxError, match="too many open files"):
                    await refused
        assert not agent.client.closed
        assert not agent.lost.done()
        async with asyncio.timeout(PATIENCE):
            assert await (await attach())
        assert not agent.client.closed
        agent.client.ended(ExitStatus(code=0))
