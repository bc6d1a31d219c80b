"""Starting a workspace's persistent shell: its terminal, its set-up, and a way past a user's file that fails."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from posixpath import join

from kernelbridge.errors import TerminalError
from kernelbridge.jupyter.bounded import Overflow
from kernelbridge.jupyter.failures import wants_processes
from kernelbridge.runtimes.base import NO_ROOM, Sandbox
from kernelbridge.workspace.shell import script as shell_script
from kernelbridge.workspace.shell.command_files import handed_over
from kernelbridge.workspace.shell.exchange import Exchange, bounded_output
from kernelbridge.workspace.shell.ptys import ScreenOnly
from kernelbridge.workspace.shell.shell import Shell, ShellSettings

_READY_TIMEOUT = 10.0
"""Seconds for a shell to read its set-up, the user's ~/.bashrc included."""
_SETUP_OUTPUT = 1 << 16
"""Bytes of what it says meanwhile that are kept."""


async def start_shell(
    sandbox: Sandbox,
    *,
    commands_host: Path,
    commands_inside: str,
    env: Mapping[str, str],
    mark: str = "",
    max_output: int,
    grace: float = 2.0,
    overflow: Callable[[], Overflow | None] | None = None,
) -> Shell:
    """Start a shell and wait until it is ready.

    `mark` is in the environment of all that it starts. `commands_host` is a directory of the bridge's that the sandbox
    sees, and cannot write, at `commands_inside`. For the rest see `ShellSettings`. Where the user's
    ~/.bashrc keeps the shell from starting it is skipped, and the first command says so.
    Raises `TerminalError`, and `SandboxError` when the sandbox is gone.
    """
    program = sandbox.facts.shell
    settings = ShellSettings(program, commands_host, max_output, grace, overflow)
    launch = _Launch(sandbox, settings, commands_inside, {**env, shell_script.MARK: mark})
    has_user_file = shell_script.is_bash(program)
    shell, failure = await launch.attempt(user_file=has_user_file)
    if shell is None and has_user_file:
        skipped = failure
        shell, failure = await launch.attempt(user_file=False)
        if shell is not None:
            shell.notice = f"~/.bashrc was skipped: with it, the shell {skipped}\n"
    if shell is None:
        reason = NO_ROOM if wants_processes(failure) else f"{program} {failure}"
        raise TerminalError("The workspace's shell did not start", reason)
    return shell


@dataclass(frozen=True, slots=True)
class _Launch:
    """What every attempt to start a workspace's shell has in common."""

    sandbox: Sandbox
    settings: ShellSettings
    commands_inside: str
    env: Mapping[str, str]

    async def attempt(self, *, user_file: bool) -> tuple[Shell | None, str]:
        """Give a shell that is ready, or None and what it did instead."""
        screen = await ScreenOnly.open(self.sandbox)
        with contextlib.ExitStack() as files:
            try:
                shell, setup = await self._begin(screen, files, user_file=user_file)
            except BaseException:
                await screen.aclose()
                raise
            failure: str | None = "was not waited for"
            try:
                failure = await shell.prepare(setup, _READY_TIMEOUT)
            finally:
                if failure is not None:
                    await shell.aclose()
        return (shell, "") if failure is None else (None, failure)

    async def _begin(
        self, screen: ScreenOnly, files: contextlib.ExitStack, *, user_file: bool
    ) -> tuple[Shell, Exchange]:
        """Start it; what it reads is there until `files` is closed."""
        program, setup = self.settings.program, Exchange(bounded_output(_SETUP_OUTPUT))
        path = self.settings.commands / f"shell-{setup.file}"
        inside, workspace = self.commands_inside, self.sandbox.workspace_path
        script = shell_script.setup(program, inside, workspace, screen.path, setup.nonce, user_file=user_file)
        argv, extra = shell_script.start(program, inside, screen.path, join(inside, path.name))
        screen.on_data = setup.receive_data  # it may speak before it is known to run
        files.enter_context(handed_over(path, script.encode()))
        _link(self.settings.commands, *shell_script.POSIX_KEYS)
        # Not a terminal of its own: see `shell_script`.
        process = await self.sandbox.exec(argv, env={**shell_script.PLAIN, **self.env, **extra}, cwd=workspace)
        return Shell(self.sandbox, process, screen, self.settings), setup


def _link(directory: Path, name: str, target: str) -> None:
    try:
        (directory / name).symlink_to(target)
    except FileExistsError:
        pass  # it was made with the directory, or for an earlier shell
    except OSError as exc:
        raise TerminalError("The workspace's shell did not start", f"it got no terminal: {exc.strerror}") from exc
