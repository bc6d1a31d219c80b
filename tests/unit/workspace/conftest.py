"""A sandbox that is this machine, so that real shells run on a real terminal without a container."""

import asyncio
import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kernelbridge.jupyter.bounded import Overflow
from kernelbridge.runtimes.base import WORKSPACE_PATH, ExitStatus, Process
from kernelbridge.runtimes.facts import Facts, PythonFacts
from kernelbridge.workspace.shell.script import POSIX_KEYS
from kernelbridge.workspace.shell.shell import Shell
from kernelbridge.workspace.shell.start import start_shell
from tests.unit.unpaused import Unpaused


class HostProcess:
    """`runtimes.base.Process` over a terminal of this machine."""

    def __init__(self, process: asyncio.subprocess.Process, master: int) -> None:
        self._process = process
        self._master = master
        self._closed = False
        self._output: asyncio.Queue[bytes] = asyncio.Queue()
        self.pid = process.pid
        self.handle = ""
        os.set_blocking(master, False)
        asyncio.get_running_loop().add_reader(master, self._on_output)

    def _on_output(self) -> None:
        try:
            data = os.read(self._master, 65536)
        except BlockingIOError:
            return
        except OSError:  # what Linux says when a terminal has hung up
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._master)
        self._output.put_nowait(data)

    async def read(self) -> bytes:
        data = await self._output.get()
        if not data:
            self._output.put_nowait(b"")
        return data

    async def write(self, data: bytes) -> None:
        if self._closed or self._process.returncode is not None:
            raise BrokenPipeError
        assert os.write(self._master, data) == len(data)

    async def resize(self, rows: int, cols: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    async def signal(self, signum: int) -> None:
        if self._process.returncode is None:
            os.killpg(self.pid, signum)

    async def kill(self) -> None:
        while found := session(self.pid):  # one of them may just have forked
            await _end_all(found)

    async def wait(self) -> ExitStatus:
        code = await self._process.wait()
        return ExitStatus(code=code) if code >= 0 else ExitStatus(signal=-code)

    async def aclose(self) -> None:
        await self.kill()
        await self._process.wait()
        if not self._closed:
            self._closed = True
            asyncio.get_running_loop().remove_reader(self._master)
            os.close(self._master)
            self._output.put_nowait(b"")


async def _end_all(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(pid)
            try:
                os.kill(pid, signal.SIGKILL)
                await asyncio.to_thread(select.select, [descriptor], [], [], 20)
            finally:
                os.close(descriptor)


def marked(mark: str) -> list[int]:
    """The processes of this machine with `mark` in their environment or limits."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                where = (entry / "environ").read_bytes() + (entry / "limits").read_bytes()
                if mark.encode() in where and (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found


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


@dataclass
class HostSandbox(Unpaused):
    """`runtimes.base.Sandbox` without a wall around it."""

    facts: Facts
    workspace_path: str
    sockets_path: str
    id: str = "host"
    processes: list[HostProcess] = field(default_factory=list)

    async def exec(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = WORKSPACE_PATH,
        tty: bool = False,
        rows: int = 24,
        cols: int = 80,
    ) -> Process:
        environment = {**self.facts.env, **(env or {})}
        if tty:
            master, slave = pty.openpty()
            fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))
            process = await asyncio.create_subprocess_exec(
                *argv, stdin=slave, stdout=slave, stderr=slave, cwd=cwd, env=environment,
                start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            )  # fmt: skip
        else:
            master, slave = os.pipe()
            process = await asyncio.create_subprocess_exec(
                *argv, stdin=asyncio.subprocess.DEVNULL, stdout=slave, stderr=slave, cwd=cwd, env=environment,
                start_new_session=True,
            )  # fmt: skip
        os.close(slave)
        self.processes.append(HostProcess(process, master))
        return self.processes[-1]

    async def sweep(self, mark: str, *, spare: int = 0) -> None:
        while pids := [pid for pid in marked(mark) if pid != spare]:
            await _end_all(pids)

    def oom_kills(self) -> int:
        return 0

    def watch_memory(self, tell: Callable[[], None]) -> None:
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
    commands: Path
    opened: list[Shell] = field(default_factory=list)

    async def shell(
        self,
        *,
        max_output: int = 1 << 20,
        grace: float = 2.0,
        env: Mapping[str, str] | None = None,
        overflow: Callable[[], Overflow | None] | None = None,
    ) -> Shell:
        shell = await start_shell(
            self.sandbox,
            commands_host=self.commands,
            commands_inside=str(self.commands),
            env=env or {},
            max_output=max_output,
            grace=grace,
            overflow=overflow,
        )
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
    home, commands = tmp_path / "workspace", tmp_path / "with space 'n quote"
    home.mkdir()
    commands.mkdir()
    env = {"PATH": f"/opt/sandbox/bin:{os.environ['PATH']}", "HOME": str(home), "LANG": "C.UTF-8"}
    python = PythonFacts(sys.executable, sys.version_info[:2], True, (), sys.executable)  # noqa: FBT003 - facts in their order
    facts = Facts(uid=os.getuid(), gid=os.getgid(), env=env, python=python, kernelspecs={}, shell=program)
    place = Place(HostSandbox(facts, str(home), str(commands)), home, commands)
    yield place
    for shell in place.opened:
        await shell.aclose()
    left = [pid for process in place.sandbox.processes for pid in session(process.pid)]
    assert left == [], "processes were left behind"
    assert {path.name for path in commands.iterdir()} <= {POSIX_KEYS[0]}, "commands were left behind"


@pytest.fixture
async def shell(place: Place) -> Shell:
    return await place.shell()
