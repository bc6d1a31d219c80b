"""Starting the kernel and the shell in a workspace's sandbox, and adopting those of an earlier server."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import TypeVar

from kernelbridge.errors import RuntimeUnavailable, SandboxError, TerminalError
from kernelbridge.jupyter.adopted import AdoptedKernel
from kernelbridge.jupyter.identity import KernelIdentity
from kernelbridge.jupyter.kernel import Kernel
from kernelbridge.runtimes.contract import Process, Sandbox
from kernelbridge.settings.settings import Settings
from kernelbridge.workspace.adoption.record import Record
from kernelbridge.workspace.adoption.session_state import ShellState
from kernelbridge.workspace.files.spill import SpillFiles
from kernelbridge.workspace.lifecycle.sandbox_owner import SandboxOwner
from kernelbridge.workspace.python_env import PythonEnvironment
from kernelbridge.workspace.shell.shell import Shell, ShellSettings
from kernelbridge.workspace.shell.start import adopt_shell, start_shell

T = TypeVar("T")

LOSS_NOTICE = 3.0
"""How long to wait, after a process could not be started, for the report that its sandbox has ended, in seconds."""


class Launcher:
    """Starts and adopts the programs in the sandbox of one workspace."""

    def __init__(self, owner: SandboxOwner, record: Record, settings: Settings, spills: SpillFiles) -> None:
        self._owner = owner
        self._record = record
        self._settings = settings
        self._spills = spills
        spill = functools.partial(spills.new, "command")
        self._shell_settings = ShellSettings(settings.max_output, spill=spill)

    async def kernel(self, incarnation: int, on_late_output: Callable[[str], None]) -> Kernel:
        """Start a kernel (`kernel_supervisor.StartKernel`)."""

        async def start(sandbox: Sandbox, environment: PythonEnvironment) -> Kernel:
            spec = sandbox.facts.kernelspec(self._owner.opening.choice.kernel)
            with self._owner.starts.metrics.timed("kernel"):
                return await Kernel.start(
                    sandbox,
                    spec,
                    argv=environment.argv(spec, sandbox.facts),
                    env=environment.env,
                    incarnation=incarnation,
                    start_timeout=self._settings.start_timeout,
                    max_output=self._settings.max_output,
                    on_late_output=on_late_output,
                    spills=self._spills,
                )

        kernel = await self.in_sandbox(start)
        self._record.kernel_started(kernel.identity)
        await self._recorded(kernel)
        return kernel

    async def adopt_kernel(
        self, identity: KernelIdentity, _incarnation: int, on_late_output: Callable[[str], None], *, runs: bool
    ) -> Kernel:
        """Adopt the kernel that an earlier server started; `runs` says whether a cell of that server runs in it."""
        sandbox = await self._owner.get()
        process = await sandbox.take(identity.process)
        kernel = AdoptedKernel.adopt(
            sandbox,
            process,
            identity,
            on_late_output=on_late_output,
            max_output=self._settings.max_output,
            spills=self._spills,
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
            return await start_shell(sandbox, self._shell_settings, environment.env)

        shell = await self.in_sandbox(start)
        self._record.set_shell(shell.state)
        await self._recorded(shell)
        shell.on_change(self._record.set_shell)
        return shell

    async def _recorded(self, started: Kernel | Shell) -> None:
        """Wait until the record names what was started, before anything runs in it."""
        try:
            await self._record.written()
        except BaseException:
            await started.aclose()
            raise

    async def adopt_shell(self, state: ShellState) -> Shell:
        """Adopt the shell that an earlier server started.

        Raises `TerminalError`, or `SandboxError` if the sandbox is gone.
        """
        sandbox = await self._owner.get()
        try:
            shell = await adopt_shell(sandbox, self._shell_settings, state)
        except SandboxError as exc:
            raise TerminalError("The shell of the earlier server cannot be used", exc.reason) from exc
        shell.on_change(self._record.set_shell)
        return shell

    async def adopt_program(self, program: str) -> tuple[Sandbox, Process]:
        """Adopt a program that an earlier server started; returns its sandbox and its process.

        Raises `TerminalError`, or `SandboxError` if the sandbox is gone.
        """
        sandbox = await self._owner.get()
        try:
            return sandbox, await sandbox.take(program)
        except SandboxError as exc:
            raise TerminalError("The terminal of the earlier server cannot be used", exc.reason) from exc

    async def in_sandbox(self, start: Callable[[Sandbox, PythonEnvironment], Awaitable[T]]) -> T:
        """Call `start` with the sandbox; if the sandbox turns out to have ended, call it again with a new one."""
        sandbox = await self._owner.get()
        try:
            return await start(sandbox, self._owner.environment)
        except RuntimeUnavailable:
            raise  # whether the sandbox has ended cannot be known now
        except SandboxError:
            try:
                await asyncio.wait_for(sandbox.wait(), LOSS_NOTICE)
            except TimeoutError:
                pass
            else:
                self._owner.lose(sandbox)
                sandbox = await self._owner.get()
                return await start(sandbox, self._owner.environment)
            raise
