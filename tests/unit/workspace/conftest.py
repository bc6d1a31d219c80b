"""A sandbox that is this machine, so that real shells run on a real terminal without a container."""

import asyncio
import contextlib
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kernelbridge.jupyter.bounded import Spill
from kernelbridge.runtimes.agent.client import AgentClient, agent_command, agent_source
from kernelbridge.runtimes.agent.directory import AgentDirectory
from kernelbridge.runtimes.agent.host_directories import HostShared
from kernelbridge.runtimes.agent.process import AgentProcess
from kernelbridge.runtimes.contract import ExitStatus, SandboxSpec, Terminal
from kernelbridge.runtimes.facts import Facts, PythonFacts
from kernelbridge.workspace.shell.shell import Shell, ShellSettings
from kernelbridge.workspace.shell.start import start_shell
from kernelbridge.workspace.shell.texts import LINKS, TEXTS
from tests.unit.unpaused import Unpaused, host_shared


def session(sid: int) -> list[int]:
    """The living processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
                if int(fields[3]) == sid and fields[0] not in "ZX":
                    found.append(int(entry.name))
    return found


class HostSandbox(Unpaused):
    """`contract.Sandbox` without a wall around it: an agent, and what it runs."""

    id = "host"

    def __init__(self, facts: Facts, home: Path, shared: HostShared, client: AgentClient) -> None:
        self.facts = facts
        self.workspace_path, self.shared = str(home), shared
        self.client = client
        self.processes: list[AgentProcess] = []
        self.keepers: list[int] = []
        """Those of the processes; each leads the session that its program, a shell, is a member of."""

    async def exec(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        tty: bool = False,
        rows: int = 24,
        cols: int = 80,
        terminal: Terminal | None = None,
    ) -> AgentProcess:
        process = await self.client.spawn(
            argv,
            env={**self.facts.env, **(env or {})},
            cwd=cwd or self.workspace_path,
            tty=tty,
            rows=rows,
            cols=cols,
            terminal=terminal,
        )
        self.processes.append(process)
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended, maybe meanwhile
            stat = Path(f"/proc/{process.pid}/stat").read_text(errors="replace")
            self.keepers.append(int(stat.rpartition(")")[2].split()[1]))
        return process

    def open_terminal(self, rows: int = 24, cols: int = 80) -> Terminal:
        return self.client.open_terminal(rows, cols)

    def running(self) -> list[int]:
        """The living members of the sessions of shells, but for the keepers."""
        return [pid for keeper in self.keepers for pid in session(keeper) if pid != keeper]

    def oom_kills(self) -> int:
        return 0

    def watch_memory(self, on_kill: Callable[[], None]) -> None:
        """Tell nothing: nobody limits its memory."""

    async def wait(self) -> ExitStatus:
        raise NotImplementedError

    async def destroy(self) -> None:
        raise NotImplementedError


@dataclass
class Place:
    """Where the shells of one test run."""

    sandbox: HostSandbox
    home: Path
    opened: list[Shell] = field(default_factory=list)

    async def shell(
        self,
        *,
        max_output: int = 1 << 20,
        grace: float = 2.0,
        env: Mapping[str, str] | None = None,
        spill: Callable[[], Spill | None] | None = None,
    ) -> Shell:
        settings = ShellSettings(max_output, grace, spill)
        shell = await start_shell(self.sandbox, settings, env or {})
        self.opened.append(shell)
        return shell


PROGRAMS = {"bash": "/bin/bash", "dash": "/bin/dash", "busybox": "/bin/busybox"}
"""Any other name stands for a `sh` that is none of these: bash under that name."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Give a directory for a workspace's files."""
    root = tmp_path / "files"
    root.mkdir()
    return root


@pytest.fixture
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    """A place whose shell is bash, or the one that the test is parametrised with."""
    name = getattr(request, "param", "bash")
    (tmp_path / "sh").symlink_to(PROGRAMS.get(name, "/bin/bash"))
    # busybox is the program that it is called as.
    program = PROGRAMS[name] if name in {"bash", "dash"} else str(tmp_path / "sh")
    home, shared = tmp_path / "workspace", host_shared(tmp_path / "with space 'n quote")
    home.mkdir()
    shared.make(SandboxSpec("place", texts=TEXTS, links=LINKS))
    env = {"PATH": f"/opt/sandbox/bin:{os.environ['PATH']}", "HOME": str(home), "LANG": "C.UTF-8"}
    python = PythonFacts(sys.executable, sys.version_info[:2], True, (), sys.executable)  # noqa: FBT003 - facts in their order
    facts = Facts(uid=os.getuid(), gid=os.getgid(), env=env, python=python, kernelspecs={}, shell=program)
    with tempfile.TemporaryDirectory(prefix="kb-") as sockets:  # whose path is short
        directory = AgentDirectory(Path(sockets))
        directory.prepare()
        source = Path(sockets, "agent.py")
        source.write_bytes(agent_source())
        command = agent_command(sys.executable, str(source), f"{sockets}/agent", rlimits={}, start=20)
        agent = await asyncio.create_subprocess_exec(*command, cwd="/")
        client = AgentClient(
            await directory.connect(), facts, judge=lambda status, _, then: then(status), on_lost=lambda _: None
        )
        await client.until_ready()
        client.outlive(0)
        place = Place(HostSandbox(facts, home, shared, client), home)
        yield place
        for shell in place.opened:
            await shell.aclose()
        left = place.sandbox.running()
        client.end()
        await agent.wait()
        client.ended(ExitStatus(code=0))
        directory.close()
        shared.agent.close()
        assert left == [], "processes were left behind"


@pytest.fixture
async def shell(place: Place) -> Shell:
    return await place.shell()
