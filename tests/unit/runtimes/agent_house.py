"""An agent as a process of this machine, without isolation, and clients of it."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from kernelbridge.runtimes.agent.client import AgentClient, agent_command, agent_source
from kernelbridge.runtimes.agent.directory import AgentDirectory
from kernelbridge.runtimes.agent.process import AgentProcess
from kernelbridge.runtimes.contract import ExitStatus
from kernelbridge.runtimes.facts import Facts, PythonFacts
from tests.contract.driving import PATIENCE

FACTS = Facts(
    uid=os.getuid(),
    gid=os.getgid(),
    env={"PATH": os.environ["PATH"]},
    python=PythonFacts(sys.executable, (3, 11), user_site=False, site_packages=(), base_executable=sys.executable),
    kernelspecs={},
    shell="/bin/sh",
)
RUN = f"{os.getpid():x}"
"""Part of every file name of these tests' sleeping programs, so that none is taken for another run's."""


@dataclass
class House:
    """A running agent and its clients."""

    sockets: Path
    agent: asyncio.subprocess.Process
    directory: AgentDirectory
    clients: list[AgentClient] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    async def connect(self, *, again: bool = False, outlive: float = 60) -> AgentClient:
        async with asyncio.timeout(PATIENCE):
            control = await (self.directory.reopen() if again else self.directory.connect())
            client = AgentClient(control, FACTS, judge=lambda status, _, then: then(status), on_lost=self.lost.append)
            self.clients.append(client)
            await client.until_ready()
        client.outlive(outlive)
        return client

    async def start(self, client: AgentClient, script: str, *, tty: bool = False) -> AgentProcess:
        return await client.spawn(["sh", "-c", script], env=FACTS.env, cwd=str(self.sockets), tty=tty)

    def link(self, name: str) -> Path:
        """Make another name of `sleep`, by which its processes are found."""
        path = self.sockets / f"{name}-{RUN}"
        path.symlink_to("/bin/sleep")
        return path

    async def ended(self) -> None:
        async with asyncio.timeout(PATIENCE):
            await self.agent.wait()


def alive(path: Path) -> list[int]:
    """The processes that were started by this name."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if (entry / "cmdline").read_bytes().split(b"\0")[0] == os.fsencode(path):
                found.append(int(entry.name))
    return found


async def until(true: Callable[[], object]) -> None:
    """Look until something is true that no event tells."""
    async with asyncio.timeout(PATIENCE):
        while not true():  # noqa: ASYNC110 - no event tells it
            await asyncio.sleep(0.01)


async def until_alive(path: Path, count: int = 1) -> None:
    """Wait until so many run that were started by this name, whatever became of their parents."""
    await until(lambda: len(alive(path)) >= count)


@asynccontextmanager
async def agent_house(
    path: Path, *, start: float = 60, python: str = sys.executable, fault: bytes = b"", proxy: int | None = None
) -> AsyncIterator[House]:
    """Run an agent with an interpreter.

    `start` is for how many seconds it waits for the first client. `fault` is code that runs before its program.
    `proxy` is the port at which it listens for connections to the proxy.
    """
    directory = AgentDirectory(path)
    directory.prepare()
    file = path / "agent.py"
    file.write_bytes(fault + agent_source())
    command = agent_command(python, str(file), str(path / "agent"), rlimits={"nofile": 200}, start=start, proxy=proxy)
    house = House(path, await asyncio.create_subprocess_exec(*command, cwd="/"), directory)
    yield house
    for client in house.clients:
        client.outlive(0)
        client.ended(ExitStatus(code=0))
    directory.close()
    try:
        await house.ended()
    except TimeoutError:
        house.agent.kill()
        raise
