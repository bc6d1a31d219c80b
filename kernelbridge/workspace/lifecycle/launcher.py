"""Starting what runs in a workspace's sandbox: the kernel and the shell; and the files that must be there before.

`python_env.py` says which files `pip install` needs.
"""

from __future__ import annotations

import asyncio
import functools
import secrets
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Protocol, TypeVar

import structlog

from kernelbridge.aio.threads import in_thread, in_turns
from kernelbridge.errors import KernelBridgeError, RuntimeUnavailable, SandboxError
from kernelbridge.jupyter.adopted import AdoptedKernel
from kernelbridge.jupyter.identity import KernelIdentity
from kernelbridge.jupyter.kernel import Kernel
from kernelbridge.runtimes.accounts import group, passwd
from kernelbridge.runtimes.base import Sandbox
from kernelbridge.runtimes.facts import Facts
from kernelbridge.workspace.adoption.record import Record
from kernelbridge.workspace.files.data_directory import DataDirectory
from kernelbridge.workspace.files.spill import Spills
from kernelbridge.workspace.files.store import FileLimits, WorkspaceFiles
from kernelbridge.workspace.python_env import PythonEnvironment, python_environment
from kernelbridge.workspace.session_key import SessionKey
from kernelbridge.workspace.settings import WorkspaceSettings
from kernelbridge.workspace.shell.shell import Shell
from kernelbridge.workspace.shell.start import start_shell

log = structlog.get_logger(__name__)

T = TypeVar("T")

LOSS_NOTICE = 3.0
"""Seconds that the runtime has to say that a sandbox is gone, after a process could not be started in it."""


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
        """Start a kernel (`kernel_supervisor.StartKernel`)."""

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


async def prepare_files(
    data: DataDirectory,
    key: SessionKey,
    facts: Facts,
    settings: WorkspaceSettings,
    *,
    own_uid: bool,
    executor: Executor,
) -> WorkspaceFiles:
    """Give the files of a session, made if need be, as the sandboxes' user has them. Raises `FileError`.

    With `own_uid` that is one of the session's own.
    """
    stored = await in_thread(executor, data.prepare_files, key, facts.uid, facts.gid, own_uid=own_uid)
    await in_turns(executor, data.handing_over(stored))
    limits = FileLimits(settings.max_file, settings.max_upload)
    return WorkspaceFiles(stored.root, uid=stored.uid, gid=stored.gid, limits=limits, commits=stored.commits)


async def prepare_user(
    data: DataDirectory, key: SessionKey, facts: Facts, files: WorkspaceFiles, *, executor: Executor
) -> tuple[int | None, Path | None]:
    """Give `SandboxSpec.uid` and `etc` for a sandbox over these files, in which its user has a name."""
    if not facts.any_uid:
        return None, None
    uid = files.owner.uid
    if not facts.passwd:
        return uid, None
    etc = {"passwd": passwd(facts, uid), "group": group(facts)}
    return uid, await in_thread(executor, data.prepare_etc, key, etc)


async def prepare_python(
    sandbox: Sandbox, files: WorkspaceFiles, *, executor: Executor, tell: Callable[[str], None]
) -> PythonEnvironment:
    """Give the environment for what is started in a sandbox; `tell` is called if packages cannot be installed in it."""
    environment = python_environment(sandbox.facts, sandbox.workspace_path)
    try:
        await in_thread(executor, _install, files, environment)
    except KernelBridgeError as exc:
        # The user's own files are in the way, or the disk is full: no reason to keep them from putting that right.
        tell(f"kernelbridge: packages cannot be installed in this session: {exc}\n")
        return environment.without_installs()
    return environment


def _install(files: WorkspaceFiles, environment: PythonEnvironment) -> None:
    for directory in environment.directories:
        files.mkdir(directory)
    for path, (content, mode) in environment.files.items():
        files.write_private(path, content.encode(), mode)
    for path, target in environment.symlinks.items():
        files.symlink(path, target)
