"""The bridge's end of the agent's socket, with agents that lie, flood, or take nothing."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kernelbridge.runtimes.agent.link import AgentLink
from kernelbridge.runtimes.agent.messages import Answer, Attached, Kill, Started
from tests.contract.driving import PATIENCE, descriptors
from tests.unit.lingering import lingering


@dataclass
class ForgingAgent:
    """The far end of a link, in the hands of a user."""

    end: socket.socket
    link: AgentLink | None = None
    answers: list[Answer] = field(default_factory=list)
    two_answers: asyncio.Event = field(default_factory=asyncio.Event)
    lost: asyncio.Event = field(default_factory=asyncio.Event)
    believed: bool = True
    taken: list[int] = field(default_factory=list)

    def send(self, text: str | bytes, *fds: int) -> None:
        socket.send_fds(self.end, [text.encode() if isinstance(text, str) else text], list(fds))

    def answer(self, answer: Answer, fds: list[int]) -> bool:
        self.answers.append(answer)
        if isinstance(answer, Attached):
            self.taken.append(fds.pop())
        if len(self.answers) == 2:
            self.two_answers.set()
        return self.believed

    def dropped(self, answer: Answer) -> bool:
        raise AssertionError(answer)

    async def until_lost(self) -> None:
        async with asyncio.timeout(PATIENCE):
            await self.lost.wait()
        assert self.link is not None
        assert self.link.closed


@pytest.fixture
async def agent() -> AsyncIterator[ForgingAgent]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(0)
    forging = ForgingAgent(theirs)
    forging.link = AgentLink(
        ours, on_answer=forging.answer, on_dropped=forging.dropped, on_lost=lambda _: forging.lost.set()
    )
    with theirs:
        yield forging
        forging.link.close()


async def become_ready(agent: ForgingAgent) -> AgentLink:
    assert agent.link is not None
    null = os.open("/dev/null", os.O_PATH)
    agent.send('{"op":"ready"}', null)
    os.close(null)
    async with asyncio.timeout(PATIENCE):
        assert await agent.link.ready
    return agent.link


async def test_a_ready_agent_brings_its_terminal_device(agent: ForgingAgent) -> None:
    link = await become_ready(agent)
    assert Path(f"/proc/self/fd/{link.ptmx}").readlink() == Path("/dev/null")
    link.close()
    assert link.ptmx == -1


@pytest.mark.parametrize(
    "packet",
    [
        b"\xff\xfe",
        b"{",
        b"[" * 4000,
        b'{"op":"ready"}',
        b'{"op":"reboot"}',
        b'{"op":"started","id":1,"pid":0}',
        b'{"op":"started","id":1,"pid":99999999999}',
        b'{"op":"started","id":-1,"pid":5}',
        b'{"op":"ended","id":1,"code":"0","signal":null}',
        b'{"op":"ended","id":1,"code":0,"signal":999}',
        b'{"op":"refused","id":1,"step":"\\u0000","errno":2}',
        b'{"op":"done","id":1,"all":1}',
        b'{"op":"known","id":1,"program":0,"name":"","pid":5,"tty":true,"running":true,"code":null,"signal":null}',
        b'{"op":"known","id":1,"program":1,"name":"' + b"n" * 201 + b'","pid":5,"tty":true,"running":true,"code":0}',
        b'{"op":"started","id":1,"pid":5,"x":"' + b"x" * 5000 + b'"}',
    ],
)
async def test_a_packet_that_no_agent_sends_ends_the_link(agent: ForgingAgent, packet: bytes) -> None:
    await become_ready(agent)
    agent.send(packet)
    await agent.until_lost()
    assert agent.answers == []


async def test_an_answer_to_nothing_ends_the_link(agent: ForgingAgent) -> None:
    await become_ready(agent)
    agent.believed = False
    agent.send('{"op":"started","id":1,"pid":5}')
    await agent.until_lost()
    assert agent.answers == [Started(1, 5)]


async def test_nothing_is_believed_before_the_agent_is_ready(agent: ForgingAgent) -> None:
    agent.send('{"op":"started","id":1,"pid":5}')
    await agent.until_lost()
    assert agent.answers == []
    assert agent.link is not None
    assert not await agent.link.ready


async def test_an_agent_may_have_no_terminals(agent: ForgingAgent) -> None:
    agent.send('{"op":"ready"}')
    assert agent.link is not None
    async with asyncio.timeout(PATIENCE):
        assert await agent.link.ready
    assert agent.link.ptmx == -1


async def test_the_end_of_the_agent_is_told(agent: ForgingAgent) -> None:
    await become_ready(agent)
    agent.end.close()
    await agent.until_lost()


async def test_descriptors_that_nobody_asked_for_are_not_kept(agent: ForgingAgent) -> None:
    await become_ready(agent)
    before = descriptors()
    null = os.open("/dev/null", os.O_RDONLY)
    agent.send('{"op":"started","id":1,"pid":5}', null, null, null)
    agent.send('{"op":"started","id":2,"pid":6}')
    os.close(null)
    async with asyncio.timeout(PATIENCE):
        await agent.two_answers.wait()
    assert descriptors() == before


async def test_a_descriptor_that_was_asked_for_is_passed_on(agent: ForgingAgent) -> None:
    link = await become_ready(agent)
    reading, writing = os.pipe()
    agent.send('{"op":"attached","id":1}', writing, reading)
    agent.send('{"op":"started","id":2,"pid":6}')
    os.close(writing)
    async with asyncio.timeout(PATIENCE):
        await agent.two_answers.wait()
    os.write(agent.taken[0], b"through")
    assert os.read(reading, 100) == b"through"
    os.close(agent.taken.pop())
    assert os.read(reading, 100) == b"", "it has also kept a copy"
    os.close(reading)
    assert not link.closed


@pytest.mark.parametrize("received", [True, False])
async def test_a_descriptor_whose_close_waits_blocks_nobody(
    agent: ForgingAgent,
    received: bool,  # noqa: FBT001 - pytest's
) -> None:
    """Whether it comes behind the one that was asked for, or not before the link is closed."""
    link = await become_ready(agent)
    full, kept = lingering()
    reading, writing = os.pipe()
    agent.send('{"op":"attached","id":1}', writing, full.fileno())
    for copy in (full.detach(), reading, writing):
        os.close(copy)
    if received:
        agent.send('{"op":"started","id":2,"pid":6}')
        async with asyncio.timeout(PATIENCE):
            await agent.two_answers.wait()
        os.close(agent.taken.pop())
    link.close()
    for each in kept:
        each.close()


async def test_an_agent_that_takes_nothing_blocks_nobody(agent: ForgingAgent) -> None:
    link = await become_ready(agent)
    before = len(descriptors())
    for number in range(100_000):
        if link.closed:
            break
        link.post(Kill(number), [os.dup(agent.end.fileno())])
    await agent.until_lost()
    assert len(descriptors()) <= before


async def test_requests_wait_until_the_agent_takes_them(agent: ForgingAgent) -> None:
    link = await become_ready(agent)
    for number in range(600):
        link.post(Kill(number))
    agent.end.settimeout(0)
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(PATIENCE):
        received = [await loop.sock_recv(agent.end, 4096) for _ in range(600)]
    assert received[599] == b'{"op":"kill","id":599}'
    assert not link.closed
