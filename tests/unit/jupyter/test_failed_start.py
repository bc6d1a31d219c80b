"""What is left of a kernel whose program could not be started, or did not answer."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kernelbridge.errors import SandboxError
from kernelbridge.jupyter.connection import KernelSockets
from kernelbridge.jupyter.kernel import Kernel
from kernelbridge.runtimes.facts import KernelSpec

SPEC = KernelSpec("python3", ("python", "-f", "{connection_file}"), "python", "Python", env={"SPEC": "1", "BOTH": "1"})


class Sockets:
    """The sockets of a kernel that never runs."""

    connection_file, start_file, incarnation, key = "/c", "/s", 1, b"k"

    def __init__(self) -> None:
        self.closed = 0

    async def aclose(self) -> None:
        self.closed += 1


@pytest.fixture
def sockets(monkeypatch: pytest.MonkeyPatch) -> Sockets:
    made = Sockets()

    async def make(*_: object) -> Sockets:
        return made

    monkeypatch.setattr(KernelSockets, "make", make)
    return made


@pytest.mark.parametrize("failure", [SandboxError("It is gone"), asyncio.CancelledError()])
async def test_the_sockets_of_a_program_that_does_not_start_are_closed(
    sockets: Sockets, failure: BaseException
) -> None:
    asked: list[tuple[list[str], dict[str, str]]] = []

    async def start(argv: list[str], *, env: dict[str, str]) -> None:
        asked.append((argv, env))
        raise failure

    sandbox = cast("Any", SimpleNamespace(exec=start))
    with pytest.raises(type(failure)):
        await Kernel.start(
            sandbox, SPEC, incarnation=1, on_late_output=print, argv=["mine", "{connection_file}"], env={"BOTH": "2"}
        )
    ((argv, env),) = asked
    assert sockets.closed == 1
    assert argv[-1] == "/c"
    assert (env["SPEC"], env["BOTH"]) == ("1", "2")
