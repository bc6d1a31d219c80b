"""Starting what runs in a workspace's sandbox: the kernel, the shell, terminals; and taking a kernel over."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol, TypeVar

import structlog

from kernelbridge.errors import RuntimeUnavailable, SandboxError
from kernelbridge.jupyter.adopted import AdoptedKernel
from kernelbridge.jupyter.identity import KernelIdentity
from kernelbridge.jupyter.kernel import Kernel
from kernelbridge.runtimes.base import Sandbox
from kernelbridge.workspace.adoption.record import Record
from kernelbridge.workspace.files.spill import Spills
from kernelbridge.workspace.python_env import PythonEnvironment
from kernelbridge.workspace.settings import WorkspaceSettings
from kernelbridge.workspace.shell import script
from kernelbridge.workspace.shell.shell import Shell
from kernelbridge.workspace.shell.start import start_shell
from kernelbridge.workspace.terminals import shell_rc

log = structlog.get_logger(__name__)

T = TypeVar("T")

LOSS_NOTICE = 3.0
"""Seconds that the runtime has to say that a sandbox is gone, after a process could not be started in it."""
ENGINE_PAUSE = 1.0
"""Seconds until an engine that did not answer is asked again about a sandbox that is to be taken over."""


class Place(Protocol):
    """Where it is started: a workspace's sandbox."""

    async def sandbox(self) -> Sandbox:
        """Give the running sandbox; it is started if need be."""
        ...

    def lose(self, sandbox: Sandbox) -> None:
        """Take note that a sandbox has ended, if that is not known yet."""
        ...

    @property
    def kernel_name(self) -> str:
        """The name of the session's kernelspec."""
        ...


class Launcher:
    """Starts what runs in the sandbox of one workspace."""

    def __init__(
        self, place: Place, record: Record, sockets: Path, settings: WorkspaceSettings, spills: Spills
    ) -> None:
        """`sockets` is the host's side of the sandbox's socket directory."""
        self._place = place
        self._record = record
        self._sockets = sockets
        self._settings = settings
        self._spills = spills
        self._jobs_mark = secrets.token_hex(16)  # in the environment of all that terminal commands start
        self._commands_in: Sandbox | None = None
        self.environment: PythonEnvironment | None = None
        """Of the sandbox that runs; set before anything is started in it."""

    async def kernel(self, incarnation: int, on_late_output: Callable[[str], None]) -> Kernel:
        """Start a kernel (`interpreter.StartKernel`)."""

        async def start(sandbox: Sandbox, environment: PythonEnvironment) -> Kernel:
            spec = sandbox.facts.kernelspec(self._place.kernel_name)
            return await Kernel.start(
                sandbox,
                spec,
                argv=environment.argv(spec, sandbox.facts),
                env=environment.env,
                sockets_host=self._sockets,
                incarnation=incarnation,
                start_timeout=self._settings.start_timeout,
                max_output=self._settings.max_output,
                on_late_output=on_late_output,
                overflows=self._spills.of("cell"),
            )

        kernel = await self.in_sandbox(start)
        self._record.kernel_started(kernel.identity)
        return kernel

    async def left_kernel(
        self, identity: KernelIdentity, _incarnation: int, on_late_output: Callable[[str], None], *, runs: bool
    ) -> Kernel:
        """Take over the kernel that an earlier server has started; `runs` says whether a cell of that server does."""
        sandbox = await self._place.sandbox()
        process = await sandbox.rejoin(identity.process)
        kernel = AdoptedKernel.adopt(
            process,
            identity,
            sockets_host=self._sockets,
            sockets_inside=sandbox.sockets_path,
            on_late_output=on_late_output,
            max_output=self._settings.max_output,
            overflows=self._spills.of("cell"),
        )
        if not runs:
            try:
                await kernel.settle(self._settings.start_timeout)
            except asyncio.CancelledError:
                await kernel.leave()
                raise
            except BaseException:
                await kernel.aclose()
                raise
        return kernel

    async def shell(self) -> Shell:
        """Start the persistent shell."""

        async def start(sandbox: Sandbox, environment: PythonEnvironment) -> Shell:
            self._commands_in = sandbox
            return await start_shell(
                sandbox,
                commands_host=self._sockets,
                commands_inside=sandbox.sockets_path,
                env=environment.env,
                mark=self._jobs_mark,
                max_output=self._settings.max_output,
                overflow=functools.partial(self._spills.new, "command"),
            )

        shell = await self.in_sandbox(start)
        self._record.shell_started()
        return shell

    async def end_jobs(self, spare: int) -> None:
        """SIGKILL all but `spare` that terminal commands have started; raises `SandboxError` if some outlived that."""
        if self._commands_in is not None:
            await self._commands_in.sweep(self._jobs_mark, spare=spare)

    async def in_sandbox(self, start: Callable[[Sandbox, PythonEnvironment], Awaitable[T]]) -> T:
        """Start something in the sandbox; once more in a new one if the sandbox turns out to be gone."""
        sandbox = await self._place.sandbox()
        try:
            return await start(sandbox, self._python(sandbox))
        except RuntimeUnavailable:
            raise  # nobody can say now whether the sandbox is gone
        except SandboxError:
            try:
                await asyncio.wait_for(sandbox.wait(), LOSS_NOTICE)
            except TimeoutError:
                pass
            else:
                self._place.lose(sandbox)
                sandbox = await self._place.sandbox()
                return await start(sandbox, self._python(sandbox))
            raise

    def _python(self, sandbox: Sandbox) -> PythonEnvironment:
        if self.environment is None:
            raise AssertionError(f"sandbox {sandbox.id} has no python environment")
        return self.environment


async def taken_over(sandbox: Sandbox, kernel: KernelIdentity | None, *, wanted: Callable[[], bool]) -> None:
    """Make a sandbox of an earlier server this one's: nothing but its kernel goes on in it. Raises `SandboxError`.

    What leads to the terminals of its shells has ended with that server, so they are ended, too. An engine that does
    not answer is asked again while that is `wanted`.
    """
    tried = False
    while True:
        try:
            # A pause may have been under way when that server ended.
            await sandbox.resume()
            problem = await _end_shells(sandbox, kernel)
            # An engine that was killed meanwhile has passed nothing on, and did not say so.
            await sandbox.resume()
        except RuntimeUnavailable as exc:
            if not wanted():
                raise
            log.warning("sandbox_not_taken_over_yet", sandbox=sandbox.id, error=str(exc))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(sandbox.wait(), ENGINE_PAUSE)
            continue
        if problem is None:
            return
        if tried:
            # No reason to lose the interpreter.
            log.warning("shells_not_ended", sandbox=sandbox.id, error=str(problem))
            return
        tried = True  # once more: perhaps it was the engine that stood still, and goes on again


async def _end_shells(sandbox: Sandbox, kernel: KernelIdentity | None) -> SandboxError | None:
    """End all but the kernel; give what kept it from that. Raises `RuntimeUnavailable`."""
    spare = 0 if kernel is None else (await sandbox.rejoin(kernel.process)).pid
    try:
        await sandbox.end_others(spare=spare)
        # And what has left its session, by what it got from there.
        for mark in (script.MARK, shell_rc.MARK):
            await sandbox.sweep(f"{mark}=", spare=spare)
    except RuntimeUnavailable:
        raise
    except SandboxError as exc:
        return exc
    return None
