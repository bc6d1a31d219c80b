"""The end of an interactive terminal, with a shell and a viewer that have a fault."""

import asyncio
from collections.abc import Callable
from typing import Any, cast
from unittest.mock import create_autospec

import pytest

from kernelbridge.errors import UnknownTerminal
from kernelbridge.runtimes.contract import ExitStatus, Process, Sandbox
from kernelbridge.workspace.adoption.record import Record
from kernelbridge.workspace.terminals.manager import Terminals
from kernelbridge.workspace.terminals.terminal import BACKLOG, Ending, Size, Terminal

PATIENCE = 20.0


class LateViewer:
    """A connection that reads only when `reads` is set."""

    def __init__(self) -> None:
        self.client: Any = self
        self.id = "late"
        self.shown: list[str] = []
        self.ended: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self.waits = asyncio.Event()
        self.reads = asyncio.Event()

    @property
    def backlog(self) -> int:
        return 0 if self.reads.is_set() else sum(map(len, self.shown))

    async def room(self, _level: int) -> None:
        self.waits.set()
        await self.reads.wait()

    def on_close(self, _call: Callable[[], None]) -> Callable[[], None]:
        return lambda: None

    def opened(self, _terminal_id: str, _rows: int, _cols: int, *, reattached: bool) -> None:
        assert not reattached

    def show(self, _terminal_id: str, text: str, *, replay: bool = False, left_out: int = 0) -> None:
        assert (replay, left_out) == (False, 0)
        self.shown.append(text)

    def closed(self, _terminal_id: str, ending: Ending) -> None:
        self.ended.set_result(ending)

    def failed(self, error: Exception) -> None:
        raise error


class QuickProcess:
    """A shell that says a lot and has ended before anybody has read it."""

    def __init__(self) -> None:
        self.output = [b"x" * (BACKLOG + 1), b"last words"]
        self.exited = asyncio.Event()

    async def read(self) -> bytes:
        return self.output.pop(0) if self.output else b""

    async def wait(self) -> ExitStatus:
        await self.exited.wait()
        return ExitStatus(code=3)

    async def kill(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


async def test_the_last_output_of_a_shell_that_has_ended_waits_for_nobody() -> None:
    """A slow reader may be waited for longer than the end of a terminal may take."""
    viewer, process = LateViewer(), QuickProcess()
    terminal = Terminal("t", Size(24, 80), on_ending=lambda: None)
    terminal.attach(viewer)

    async def start(_size: Size) -> tuple[Sandbox, Process]:
        return cast("Sandbox", None), cast("Process", process)

    running: asyncio.Task[Any] = asyncio.create_task(terminal.run(start))
    async with asyncio.timeout(PATIENCE):
        await viewer.waits.wait()
        process.exited.set()
        assert await viewer.ended == Ending("exited", 3)
        await running
    assert "".join(viewer.shown) == "x" * (BACKLOG + 1) + "last words"


class DyingSandbox:
    """Ends beside its terminal, or does not."""

    def __init__(self, status: ExitStatus | None) -> None:
        self.status = status

    async def wait(self) -> ExitStatus:
        if self.status is None:
            await asyncio.Event().wait()
        return self.status or ExitStatus()


@pytest.mark.parametrize(
    ("shell", "sandbox", "ending"),
    [
        (ExitStatus(code=3), ExitStatus(), Ending("exited", 3)),
        (ExitStatus(signal=15), ExitStatus(), Ending("exited", 143)),
        (ExitStatus(signal=9, oom=True), ExitStatus(), Ending("out_of_memory", 137)),
        (ExitStatus(signal=9), ExitStatus(), Ending("sandbox_lost")),
        (ExitStatus(signal=9), ExitStatus(oom=True), Ending("out_of_memory")),
        (ExitStatus(signal=9), None, Ending("exited", 137)),
    ],
)
async def test_why_a_terminal_has_ended(
    monkeypatch: pytest.MonkeyPatch, shell: ExitStatus, sandbox: ExitStatus | None, ending: Ending
) -> None:
    monkeypatch.setattr("kernelbridge.workspace.terminals.terminal._LOSS_TIMEOUT", PATIENCE if sandbox else 0.01)
    terminal = Terminal("t", Size(24, 80), on_ending=lambda: None)
    assert await terminal._ending(cast("Sandbox", DyingSandbox(sandbox)), shell) == ending


class SlowProcess(QuickProcess):
    """A shell that has ended, and whose last program takes long to be killed."""

    id = "p"

    def __init__(self) -> None:
        super().__init__()
        self.output = []
        self.killed = asyncio.Event()
        self.may_end = asyncio.Event()
        self.sizes: list[tuple[int, int]] = []

    async def kill(self) -> None:
        self.killed.set()
        await self.may_end.wait()

    def resize(self, rows: int, cols: int) -> None:
        self.sizes.append((rows, cols))


async def test_who_types_into_an_ending_terminal_gets_its_end_and_no_error() -> None:
    """Its end is not told yet, so nobody can know that it has begun to end."""
    viewer, process = LateViewer(), SlowProcess()
    viewer.reads.set()
    record = create_autospec(Record, instance=True)
    record.scrollback.return_value.latest.return_value = ("", 0)

    async def in_sandbox(_start: object) -> tuple[Sandbox, Process]:
        return cast("Sandbox", None), cast("Process", process)

    terminals = Terminals(in_sandbox, cast("Any", None), record)
    terminals.open(viewer, "t", Size(24, 80))
    async with asyncio.timeout(PATIENCE):
        process.exited.set()
        await process.killed.wait()
        with pytest.raises(UnknownTerminal):
            terminals.find("t")
        terminals.find("t", ending=True).type("exit\r")
        terminals.resize(terminals.find("t", ending=True), Size(30, 90))
        process.may_end.set()
        assert await viewer.ended == Ending("exited", 3)
        await terminals.aclose()
    with pytest.raises(UnknownTerminal):
        terminals.find("t", ending=True)
