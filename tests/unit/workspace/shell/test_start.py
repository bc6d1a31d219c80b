"""The begin and the end of a shell whose sandbox has a fault."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import cast

import pytest

from kernelbridge.errors import SandboxError
from kernelbridge.runtimes.contract import ExitStatus, Process, Sandbox, Terminal
from kernelbridge.workspace.adoption.session_state import ShellState
from kernelbridge.workspace.shell.shell import Shell, ShellSettings
from kernelbridge.workspace.shell.start import adopt_shell


class LostTerminals:
    """A sandbox with a shell, in which some terminals cannot be found again."""

    def __init__(self, *gone: str) -> None:
        self.gone = gone
        self.taken: list[str] = []
        self.left: list[str] = []

    async def take(self, process: str) -> Process:
        return cast("Process", LeftBehind(process, self.left))

    async def take_terminal(self, path: str) -> Terminal:
        if path in self.gone:
            raise SandboxError("A terminal cannot be found again", path)
        self.taken.append(path)
        return cast("Terminal", LeftBehind(path, self.left))


class LeftBehind:
    """A program or terminal that says when it is let go."""

    def __init__(self, name: str, left: list[str]) -> None:
        self.name = name
        self._left = left

    async def aclose(self) -> None:
        self.leave()

    def leave(self) -> None:
        self._left.append(self.name)


STATE = ShellState("7", "/keys", "/screen", ("/job", "/other"))


@pytest.mark.parametrize("gone", ["/keys", "/screen"])
async def test_a_shell_without_its_terminals_is_ended_and_nothing_of_it_kept(gone: str) -> None:
    sandbox = LostTerminals(gone)
    with pytest.raises(SandboxError, match=gone):
        await adopt_shell(cast("Sandbox", sandbox), cast("ShellSettings", None), STATE)
    assert sandbox.left == [*sandbox.taken, "7"]


class Undying:
    """A program whose end is never reported, until it is killed."""

    def __init__(self) -> None:
        self.killed = False

    async def wait(self) -> ExitStatus:
        await asyncio.Event().wait()
        raise AssertionError

    async def kill(self) -> None:
        self.killed = True


async def test_a_shell_that_has_left_its_terminals_and_runs_on_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernelbridge.workspace.shell.shell._END_TIMEOUT", 0.01)
    process = Undying()
    shell = cast("Shell", SimpleNamespace(_process=process))
    assert (await Shell._status(shell), process.killed) == (ExitStatus(), True)
