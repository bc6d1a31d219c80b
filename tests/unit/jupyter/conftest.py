"""Real kernels as plain processes of this host, in a minimal sandbox."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from kernelbridge.jupyter.cell import Cell, Outcome
from kernelbridge.jupyter.kernel import Kernel
from kernelbridge.runtimes.contract import ExitStatus, Moment, Process, Terminal
from kernelbridge.runtimes.facts import Facts, KernelSpec, PythonFacts
from tests.older_kernel import older_python
from tests.unit.unpaused import Unpaused, host_shared

PATIENCE = 60.0
"""Seconds after which a wait is a failure, also on a busy machine."""


def python_spec(python: str) -> KernelSpec:
    """Describe the ipykernel of an interpreter."""
    return KernelSpec(
        name="python3",
        argv=(python, "-m", "ipykernel_launcher", "-f", "{connection_file}"),
        language="python",
        display_name="Python 3",
    )


PYTHON = python_spec(sys.executable)


def _environment() -> dict[str, str]:
    # ipykernel does not watch the descriptors of its process when it believes itself under test.
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}


class HostProcess:
    """A process of this host that leads its own session."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._ended = asyncio.ensure_future(self._wait())
        self.pid = process.pid
        self.id = ""

    async def _wait(self) -> ExitStatus:
        code = await self._process.wait()
        return ExitStatus(signal=-code) if code < 0 else ExitStatus(code=code)

    async def read(self) -> bytes:
        if self._process.stdout is None:
            raise AssertionError
        return await self._process.stdout.read(65536)

    async def write(self, data: bytes) -> None:
        raise BrokenPipeError(f"{len(data)} bytes for a process without stdin")

    def resize(self, rows: int, cols: int) -> None:
        del rows, cols  # it has no terminal

    async def signal(self, signum: int) -> None:
        if not self._ended.done():
            with contextlib.suppress(ProcessLookupError):  # its end is not told yet
                os.killpg(self.pid, signum)

    async def kill(self) -> None:
        await self.signal(signal.SIGKILL)

    async def moment(self) -> Moment:
        raise NotImplementedError

    async def prune(self, since: Moment | None = None) -> None:
        raise NotImplementedError

    async def wait(self) -> ExitStatus:
        return await asyncio.shield(self._ended)

    async def aclose(self) -> None:
        await self.kill()
        await self._ended


class HostSandbox(Unpaused):
    """No isolation at all: directories are the host's own."""

    def __init__(self, root: Path) -> None:
        self.id = "host"
        self.workspace_path = str(root / "w")
        self.shared = host_shared(root / "s")
        self.processes: list[HostProcess] = []
        self.facts = Facts(
            uid=os.getuid(),
            gid=os.getgid(),
            env={},
            python=PythonFacts(
                executable=sys.executable,
                version=(sys.version_info[0], sys.version_info[1]),
                user_site=False,
                site_packages=(),
                base_executable=sys.executable,
            ),
            kernelspecs={"python3": PYTHON},
            shell="/bin/sh",
        )
        for path in (self.workspace_path, self.shared.path):
            Path(path).mkdir()

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
    ) -> Process:
        del tty, rows, cols, terminal
        process = HostProcess(
            await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
                cwd=cwd or self.workspace_path,
                env={**_environment(), "IPYTHONDIR": f"{self.workspace_path}/.ipython", **(env or {})},
            )
        )
        self.processes.append(process)
        return process

    def oom_kills(self) -> int:
        return 0

    def watch_memory(self, on_kill: Callable[[], None]) -> None:
        """Do nothing: its memory has no limit."""

    async def wait(self) -> ExitStatus:
        raise AssertionError("a kernel does not wait for its sandbox")

    async def destroy(self) -> None:
        for process in self.processes:
            await process.aclose()


class Notebook:
    """A kernel and its late output."""

    def __init__(self, sandbox: HostSandbox) -> None:
        self.sandbox = sandbox
        self.late: list[str] = []
        self.late_came = asyncio.Event()
        self.kernel: Kernel

    def _take_late(self, text: str) -> None:
        self.late.append(text)
        self.late_came.set()

    async def start(self, spec: KernelSpec = PYTHON, incarnation: int = 1, **settings: Any) -> Notebook:
        self.kernel = await Kernel.start(
            self.sandbox,
            spec,
            incarnation=incarnation,
            on_late_output=self._take_late,
            **settings,
        )
        return self

    def send(self, code: str, **cell: Any) -> asyncio.Future[Outcome]:
        done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.kernel.submit(Cell(code=code, **cell), done.set_result)
        return done

    async def run(self, code: str, **cell: Any) -> Outcome:
        return await asyncio.wait_for(self.send(code, **cell), PATIENCE)

    async def late_text(self, wanted: str) -> str:
        """Return the late output when it contains `wanted`."""
        async with asyncio.timeout(PATIENCE):
            while wanted not in (text := "".join(self.late)):
                self.late_came.clear()
                await self.late_came.wait()
        return text

    async def close(self) -> None:
        if hasattr(self, "kernel"):
            await self.kernel.aclose()
        await self.sandbox.destroy()


@pytest_asyncio.fixture
async def new_notebook(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[Notebook]]]:
    """Start kernels of a test's own; arguments are those of `Notebook.start`."""
    made: list[Notebook] = []

    async def make(spec: KernelSpec = PYTHON, **settings: Any) -> Notebook:
        root = tmp_path / str(len(made))
        root.mkdir()
        notebook = Notebook(HostSandbox(root))
        made.append(notebook)
        return await notebook.start(spec, **settings)

    yield make
    for notebook in made:
        await notebook.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def notebook(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Notebook]:
    """One kernel for all tests of a module, which leave it alive."""
    notebook = Notebook(HostSandbox(tmp_path_factory.mktemp("kernel")))
    yield await notebook.start()
    await notebook.close()


@pytest.fixture(scope="module", params=["ipykernel-7", "ipykernel-6"])
def any_spec(request: pytest.FixtureRequest) -> KernelSpec:
    """Each supported generation: ipykernel 7 with IPython 9, ipykernel 6.31 with IPython 8."""
    return PYTHON if request.param == "ipykernel-7" else python_spec(older_python())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def any_notebook(any_spec: KernelSpec, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Notebook]:
    """One kernel of each supported generation for all tests of a module, which leave it alive."""
    notebook = Notebook(HostSandbox(tmp_path_factory.mktemp("kernel")))
    yield await notebook.start(any_spec)
    await notebook.close()
