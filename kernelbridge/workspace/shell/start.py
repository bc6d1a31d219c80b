"""Start a workspace's persistent shell, without the user's ~/.bashrc if that fails; or adopt one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kernelbridge.errors import SandboxError, TerminalError
from kernelbridge.jupyter.failures import wants_processes
from kernelbridge.runtimes.contract import NO_ROOM, Sandbox, Terminal
from kernelbridge.workspace.adoption.session_state import ShellState
from kernelbridge.workspace.shell import script as shell_script
from kernelbridge.workspace.shell.exchange import Exchange, bounded_output
from kernelbridge.workspace.shell.ptys import OpenTerminals
from kernelbridge.workspace.shell.shell import Shell, ShellSettings, hand_over

_READY_TIMEOUT = 10.0
"""Seconds for a shell to read its set-up, the user's ~/.bashrc included."""
_SETUP_OUTPUT = 1 << 16
"""Bytes of output that are kept meanwhile."""


async def start_shell(sandbox: Sandbox, settings: ShellSettings, env: Mapping[str, str]) -> Shell:
    """Start a shell, with `env` added to the environment of its sandbox, and return it when it is ready.

    If the user's ~/.bashrc keeps the shell from starting, it is skipped, and the first command says so. Raises
    `TerminalError`, and `SandboxError` when the sandbox is gone. A cancellation leaves nothing running.
    """
    program = sandbox.facts.shell
    launch = _Launch(sandbox, settings, env)
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


async def adopt_shell(sandbox: Sandbox, settings: ShellSettings, state: ShellState) -> Shell:
    """Adopt a shell that an earlier server started; raises `SandboxError` if it is gone."""
    process = await sandbox.take(state.process)
    taken: dict[str, Terminal] = {}
    try:
        for path in dict.fromkeys((state.keys, state.screen, *state.jobs)):
            try:
                taken[path] = await sandbox.take_terminal(path)
            except SandboxError:
                if path not in state.jobs:  # a job that has ended needs none
                    raise
    except BaseException:
        for terminal in taken.values():
            terminal.leave()
        await process.aclose()
        raise
    jobs = tuple(taken[path] for path in state.jobs if path in taken)
    return Shell(sandbox, process, OpenTerminals(taken[state.keys], taken[state.screen], jobs), settings)


@dataclass(frozen=True, slots=True)
class _Launch:
    """What the attempts to start one shell have in common."""

    sandbox: Sandbox
    settings: ShellSettings
    env: Mapping[str, str]

    async def attempt(self, *, user_file: bool) -> tuple[Shell | None, str]:
        """Return a shell that is ready; or None, and what it did instead."""
        terminal = self.sandbox.open_terminal()
        try:
            shell, setup = await self._begin(terminal, user_file=user_file)
        except BaseException:
            terminal.close()
            raise
        failure: str | None = "was not waited for"
        try:
            failure = await shell.prepare(setup, _READY_TIMEOUT)
        finally:
            if failure is not None:
                await shell.aclose()
        return (shell, "") if failure is None else (None, failure)

    async def _begin(self, terminal: Terminal, *, user_file: bool) -> tuple[Shell, Exchange]:
        program, setup = self.sandbox.facts.shell, Exchange(bounded_output(_SETUP_OUTPUT))
        inside, workspace = self.sandbox.shared.path, self.sandbox.workspace_path
        text = shell_script.setup(program, inside, workspace, terminal.path, setup.nonce, user_file=user_file)
        hand_over(self.sandbox, shell_script.SETUP, text.encode())
        argv, extra = shell_script.start(program, inside)
        process = await self.sandbox.exec(
            argv, env={**shell_script.PLAIN, **self.env, **extra}, cwd=workspace, terminal=terminal
        )
        return Shell(self.sandbox, process, OpenTerminals(terminal, terminal), self.settings), setup
