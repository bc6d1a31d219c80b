"""Requests to a lane while it takes over the kernel of an earlier server."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from kernelbridge.errors import KernelBridgeError, KernelError, SessionClosed
from kernelbridge.jupyter.adopted import AdoptedKernel
from kernelbridge.jupyter.cell import Cell, Outcome
from kernelbridge.jupyter.identity import KernelIdentity
from kernelbridge.jupyter.kernel import Kernel
from kernelbridge.workspace.adoption.session_state import RunningCell
from kernelbridge.workspace.cells.run import Job
from kernelbridge.workspace.interrupt_progress import InterruptProgress
from tests.unit.jupyter.conftest import PATIENCE, PYTHON
from tests.unit.workspace.cells.test_kernel_supervisor import Place

FOR_EVER = "import time\nwhile True: time.sleep(0.01)"
KEEPS_THE_INTERPRETER = "import re\nre.match('(a+)+$', 'a' * 64 + 'b')"


class Next(Place):
    """A lane that takes over the kernel of one before, when it is let."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, PYTHON)
        self.root = root
        self.identity: KernelIdentity
        self.msg_id = ""
        self.reach = asyncio.Event()
        self.unreachable: KernelBridgeError | None = None

    async def leave(self, code: str | None) -> None:
        """Be the server before: have a variable, and let a cell run beyond its first line."""
        kernel = await self._start(1, lambda _text: None)
        ran: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        kernel.submit(Cell(code="x = 1"), ran.set_result)
        await asyncio.wait_for(ran, PATIENCE)
        if code is not None:
            begun = self.root / "begun"
            cell = Cell(code=f"print('before')\nopen({str(begun)!r}, 'w').close()\n{code}")
            kernel.submit(cell, lambda outcome: pytest.fail(f"answered: {outcome}"), note=self._note)
            await there(begun)
        self.identity = kernel.identity
        await kernel.leave()

    def _note(self, msg_id: str) -> None:
        self.msg_id = msg_id

    def adopt(self) -> asyncio.Future[Any]:
        """Begin to take over; gives the answer of the cell that was left, if one was."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        job = cell = None
        if self.msg_id:
            job = Job(Cell(code=""), answer.set_result)
            now = time.monotonic() - 60.0
            cell = RunningCell(
                self.msg_id, None, streams=False, asks=False, since=0.0, began=now, timeout=None, left=None, counted=now
            )
        self.lane.adopt(self._left_kernel, 1, None, job, cell)
        return answer

    async def _left_kernel(self, _incarnation: int, late: Callable[[str], None]) -> Kernel:
        await self.reach.wait()
        if self.unreachable is not None:
            raise self.unreachable
        kernel = AdoptedKernel.adopt(
            self.sandbox,
            self.sandbox.processes[0],
            self.identity,
            on_late_output=late,
            max_output=10 << 20,
        )
        if not self.msg_id:
            await kernel.settle(PATIENCE)
        return kernel

    def interrupting(self, **how: Any) -> list[Any]:
        """Request an interrupt; its steps come into the list."""
        steps: list[Any] = []
        self.lane.interrupt(steps.append, **how)
        return steps

    def restarting(self) -> asyncio.Future[Any]:
        """Ask for a restart."""
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.lane.restart(done.set_result)
        return done

    async def close(self) -> None:
        self.reach.set()
        await super().close()


async def there(path: Path) -> None:
    async with asyncio.timeout(PATIENCE):
        while not path.exists():  # noqa: ASYNC110 - the file system tells nobody
            await asyncio.sleep(0.01)


async def of(answer: asyncio.Future[Any]) -> Any:
    return await asyncio.wait_for(answer, PATIENCE)


@pytest.fixture
async def after(tmp_path: Path) -> AsyncIterator[Next]:
    place = Next(tmp_path)
    yield place
    await place.close()


async def test_an_interrupt_reaches_the_cell_as_soon_as_it_can(after: Next) -> None:
    await after.leave(FOR_EVER)
    answer = after.adopt()
    behind = after.send("print(x)")
    first, second = after.interrupting(), after.interrupting()
    assert (first, after.lane.waiting) == ([], 1)
    after.reach.set()
    outcome = await of(answer)
    assert (outcome.cause, outcome.output, outcome.state_preserved) == ("interrupted", "before\n", True)
    assert first == second == [InterruptProgress("sigint", done=True, state_preserved=True)]
    assert (await of(behind)).output == "1\n"


async def test_an_interrupt_of_what_waits_ends_it_at_once(after: Next) -> None:
    await after.leave(FOR_EVER)
    answer = after.adopt()
    behind = after.send("print(x)")
    steps = after.interrupting(queued=True)
    assert (await of(behind)).cause == "interrupted"
    after.reach.set()
    assert (await of(answer)).cause == "interrupted"
    assert steps == [InterruptProgress("sigint", done=True, state_preserved=True, ended=1)]


async def test_a_cell_that_ended_by_itself_is_not_said_to_be_interrupted(after: Next) -> None:
    go, over = after.root / "go", after.root / "over"
    tell = f"import threading; threading.Timer(0.5, lambda: open({str(over)!r}, 'w').close()).start()"
    await after.leave(f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)\n{tell}\ny = 2")
    go.touch()
    await there(over)
    answer = after.adopt()
    steps = after.interrupting()
    after.reach.set()
    outcome = await of(answer)
    assert (outcome.success, outcome.cause, outcome.output) == (True, None, "before\n")
    assert steps == [InterruptProgress("sigint", done=True, state_preserved=True)]
    assert (await of(after.send("print(x + y)"))).output == "3\n"
    assert after.lane._supervisor._incarnation == 1


async def test_a_restart_ends_the_cell_and_its_interpreter(after: Next) -> None:
    await after.leave(FOR_EVER)
    answer = after.adopt()
    before = after.send("print(x)")
    restarts = [after.restarting(), after.restarting()]
    behind = after.send("print('x' in globals())")
    steps = after.interrupting()
    assert (await of(before)).cause == "kernel_restarted"
    assert not any(each.done() for each in (answer, behind, *restarts))
    after.reach.set()
    outcome = await of(answer)
    assert (outcome.output, outcome.state_preserved) == ("before\n", outcome.cause == "interrupted")
    assert steps[-1].done
    assert [await of(each) for each in restarts] == [2, 1]
    assert (await of(behind)).output == "False\n"
    assert after.lane._supervisor._incarnation == 2


async def test_a_restart_gives_the_cell_its_cause_and_all_its_output(after: Next) -> None:
    await after.leave(FOR_EVER)
    answer = after.adopt()
    restart = after.restarting()
    after.reach.set()
    outcome = await of(answer)
    assert (outcome.cause, outcome.output, outcome.state_preserved) == ("kernel_restarted", "before\n", False)
    assert outcome.truncated is None
    assert await of(restart) == 1
    again = await of(after.send("print('x' in globals())"))
    assert (again.output, again.state_preserved) == ("False\n", False)


async def test_a_restart_does_not_wait_for_a_kernel_that_is_stuck(after: Next, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernelbridge.workspace.cells.kernel_supervisor.CATCH_UP", 0.2)
    await after.leave(KEEPS_THE_INTERPRETER)
    answer = after.adopt()
    restart = after.restarting()
    after.reach.set()
    outcome = await of(answer)
    assert (outcome.cause, outcome.output) == ("kernel_restarted", "")
    assert "its output before that is lost" in outcome.late_output
    assert await of(restart) == 1


async def test_a_restart_while_nothing_runs_gives_another_interpreter(after: Next) -> None:
    await after.leave(None)
    after.adopt()
    restart = after.restarting()
    question: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    after.lane.question("x", lambda help_: help_.is_complete("x"), question.set_result)
    after.reach.set()
    assert await of(restart) == 0
    assert (await of(question)).status == "complete"
    again = await of(after.send("print('x' in globals())"))
    assert (again.output, again.state_preserved) == ("False\n", False)


async def test_who_asked_is_answered_when_the_kernel_cannot_be_reached(after: Next) -> None:
    await after.leave(FOR_EVER)
    after.unreachable = KernelError("The kernel could not be taken over", "no answer")
    answer = after.adopt()
    steps = after.interrupting()
    restart = after.restarting()
    after.reach.set()
    assert (await of(answer)).cause == "sandbox_lost"
    assert steps == [InterruptProgress("none", done=True, state_preserved=False)]
    assert await of(restart) == 1
    again = await of(after.send("print('x' in globals())"))
    assert (again.output, again.state_preserved) == ("False\n", False)


async def test_who_asked_is_answered_when_the_kernel_has_ended(after: Next) -> None:
    await after.leave("import os\nos._exit(3)")
    await after.sandbox.processes[0].wait()
    answer = after.adopt()
    steps = after.interrupting()
    after.reach.set()
    outcome = await of(answer)
    assert (outcome.exit_code, outcome.state_preserved) == (3, False)
    assert steps[-1].done
    assert not steps[-1].state_preserved


async def test_the_end_of_the_session_answers_everybody_who_asked_meanwhile(after: Next) -> None:
    await after.leave(FOR_EVER)
    answer = after.adopt()
    steps, restart = after.interrupting(), after.restarting()
    after.lane.end()
    assert answer.result().cause == "session_closed"
    assert steps == [InterruptProgress("none", done=True, state_preserved=False)]
    assert isinstance(await of(restart), SessionClosed)
