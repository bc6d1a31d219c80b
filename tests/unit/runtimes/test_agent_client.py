"""The connection to an agent that somebody else plays: what it is believed, and what breaks the connection."""

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from kernelbridge.errors import SandboxError
from kernelbridge.runtimes.agent import client as agent_client
from kernelbridge.runtimes.agent import stream
from kernelbridge.runtimes.agent.client import AgentClient
from kernelbridge.runtimes.agent.messages import Known
from kernelbridge.runtimes.agent.process import Agent, AgentProcess
from kernelbridge.runtimes.agent.terminal import AgentTerminal
from kernelbridge.runtimes.contract import ExitStatus
from tests.contract.driving import PATIENCE, descriptors
from tests.unit.runtimes.agent_house import FACTS


@dataclass
class Impostor:
    """The far end of a client's socket, in the hands of a user."""

    end: socket.socket
    far: socket.socket
    """The client's end, which the client owns."""
    lost: list[str] = field(default_factory=list)
    broken: asyncio.Event = field(default_factory=asyncio.Event)

    def on_lost(self, reason: str) -> None:
        self.lost.append(reason)
        self.broken.set()

    def send(self, *fds: int, **message: object) -> None:
        socket.send_fds(self.end, [json.dumps(message).encode()], fds)

    async def receive(self) -> dict[str, Any]:
        async with asyncio.timeout(PATIENCE):
            return dict(json.loads(await asyncio.get_running_loop().sock_recv(self.end, 4096)))

    async def until_lost(self) -> None:
        async with asyncio.timeout(PATIENCE):
            await self.broken.wait()


@pytest.fixture
async def impostor() -> AsyncIterator[Impostor]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.settimeout(0)
    with theirs:
        yield Impostor(theirs, ours)


@pytest.fixture
async def client(impostor: Impostor) -> AsyncIterator[AgentClient]:
    client = AgentClient(impostor.far, FACTS, judge=lambda status, _, then: then(status), on_lost=impostor.on_lost)
    impostor.send(op="ready")
    await client.until_ready()
    yield client
    client.ended(ExitStatus(code=0))


@contextlib.contextmanager
def foreign_descriptor(kind: str, directory: Path) -> Iterator[int]:
    """Open what is neither a pipe nor a terminal."""
    with contextlib.ExitStack() as opened:
        match kind:
            case "never ends":
                yield opened.enter_context(Path("/dev/zero").open("rb")).fileno()
            case "a socket":
                yield opened.enter_context(socket.socket()).fileno()
            case _:
                yield opened.enter_context((directory / "f").open("w+b")).fileno()


@pytest.mark.parametrize("asked_for", ["program", "terminal"])
@pytest.mark.parametrize("kind", ["never ends", "a socket", "a file"])
async def test_a_descriptor_of_another_kind_breaks_the_connection(
    client: AgentClient, impostor: Impostor, tmp_path: Path, asked_for: str, kind: str
) -> None:
    """It is not read, nothing of it stays open, and who has asked for it learns why."""
    before = descriptors()
    known = Known(1, 7, "sh", 5, tty=False, running=True, code=None, signal=None)
    asking = asyncio.ensure_future(
        client.attach(known) if asked_for == "program" else client.take_terminal("/dev/pts/1")
    )
    request = await impostor.receive()
    with foreign_descriptor(kind, tmp_path) as fd:
        impostor.send(fd, op="attached", id=request["id"])
    await impostor.until_lost()
    assert client.closed
    assert impostor.lost == ["the sandbox's agent broke its protocol"]
    client.ended(ExitStatus())  # as its sandbox does
    with pytest.raises(SandboxError, match="broke its protocol"):
        await asking
    assert descriptors().items() <= before.items()


async def test_ends_of_programs_that_are_not_attached_are_bounded(
    client: AgentClient, impostor: Impostor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Programs of an earlier server may end before this one attaches them; nobody has any number of those."""
    monkeypatch.setattr(agent_client, "_MOST_KNOWN", 3)
    for number in (7, 8, 9):
        impostor.send(op="ended", id=number, code=0, signal=None)
    pruning = asyncio.ensure_future(client.prune(7, None))
    impostor.send(op="done", id=(await impostor.receive())["id"], all=True)
    assert await pruning  # so that the ends before it have been read
    assert impostor.lost == []
    impostor.send(op="ended", id=7, code=0, signal=None)
    await impostor.until_lost()
    assert impostor.lost == ["the sandbox's agent broke its protocol"]


async def test_what_has_survived_a_kill_can_be_killed_again(client: AgentClient, impostor: Impostor) -> None:
    known = Known(1, 7, "sh", 5, tty=False, running=True, code=None, signal=None)
    attaching = asyncio.ensure_future(client.attach(known))
    reading, writing = os.pipe()
    impostor.send(reading, op="attached", id=(await impostor.receive())["id"])
    os.close(reading)
    os.close(writing)
    program = await attaching
    killing = asyncio.ensure_future(program.kill())
    assert await impostor.receive() == {"op": "kill", "id": 7}
    impostor.send(op="killed", id=7, all=False)
    with pytest.raises(SandboxError, match="cannot be ended"):
        await killing
    killing = asyncio.ensure_future(program.kill())
    assert await impostor.receive() == {"op": "kill", "id": 7}
    impostor.send(op="killed", id=7, all=True)
    await killing
    await program.aclose()


# -- reading ---------------------------------------------------------------------------


class EndlessOutput(AgentProcess):
    """A program whose output is always there to be read."""

    def __init__(self) -> None:
        super().__init__(
            1, "endless", os.open("/dev/zero", os.O_RDONLY), tty=False, oom_kills=0, agent=cast("Agent", None)
        )


async def turns_beside(reads: int, source: AgentProcess | AgentTerminal) -> int:
    """Read so often, and return how often another task ran meanwhile."""
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    beside = asyncio.create_task(others())
    for _ in range(reads):
        assert await source.read()
    beside.cancel()
    return turns


async def test_who_reads_a_program_lets_others_run() -> None:
    source = EndlessOutput()
    assert await turns_beside(100, source) >= 98
    source.leave(SandboxError("left", "here"))


async def test_who_reads_a_terminal_lets_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "_CHUNK", 16)
    master, slave = os.openpty()
    os.write(slave, b"x" * 1600)
    terminal = AgentTerminal(master, slave, drop=lambda _: None)
    assert await turns_beside(100, terminal) >= 98
    terminal.close()
