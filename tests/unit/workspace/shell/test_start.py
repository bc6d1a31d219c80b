"""Adopting a shell of an earlier server, some of whose terminals are gone."""

from __future__ import annotations

from typing import cast

import pytest

from kernelbridge.errors import SandboxError
from kernelbridge.runtimes.contract import Process, Sandbox, Terminal
from kernelbridge.workspace.adoption.session_state import ShellState
from kernelbridge.workspace.shell.shell import ShellSettings
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
