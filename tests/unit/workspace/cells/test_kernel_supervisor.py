"""The lane and the interpreter with kernels of this host, and with kernels that have a fault."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from kernelbridge.aio.tasks import TaskSet
from kernelbridge.errors import KernelBridgeError, KernelError, NoInputWaiting, SandboxError, SessionClosed
from kernelbridge.jupyter.cell import Cell, Outcome
from kernelbridge.jupyter.events import Asked, CellEvent
from kernelbridge.jupyter.kernel import Kernel
from kernelbridge.runtimes.facts import KernelSpec
from kernelbridge.workspace.cells.deadline import Deadline
from kernelbridge.workspace.cells.interrupts import Graces
from kernelbridge.workspace.cells.lane import ExecutionLane
from kernelbridge.workspace.cells.run import Job
from kernelbridge.workspace.denials import Denials
from kernelbridge.workspace.disk_watch import DiskStops
from kernelbridge.workspace.interrupt_progress import InterruptProgress
from kernelbridge.workspace.resource_watch import MemoryWatch
from kernelbridge.workspace.states import KernelEvent
from tests.unit.jupyter.conftest import PATIENCE, PYTHON, HostProcess, HostSandbox
from tests.unit.jupyter.test_faults import faulty
from tests.unit.workspace.adoption.test_record import new as unrecorded

GRACES = Graces(sigint=1.0, process_group=0.5, lost_reply=0.2)


class UnkillableProcess(HostProcess):
    """Killing it fails until its sandbox is destroyed."""

    destroyed = False

    async def kill(self) -> None:
        if not self.destroyed:
            raise SandboxError("The process could not be ended", "the engine is away")
        await super().kill()


class UnsweptProcess(HostProcess):
    """What a kernel that exits with 7 has started cannot be ended at first: its sandbox is paused."""

    paused = True

    async def aclose(self) -> None:
        await super().aclose()
        if self.paused and self._process.returncode == 7:
            self.paused = False
            raise SandboxError("Processes in the sandbox cannot be signalled", "container is paused")


class Place:
    """A lane with its kernels."""

    def __init__(self, root: Path, spec: KernelSpec, kind: type[HostProcess] = HostProcess) -> None:
        self.sandbox = HostSandbox(root)
        self.spec = spec
        self.kind = kind
        self.refuse: KernelBridgeError | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.destroyed = asyncio.Event()
        self.events: list[KernelEvent] = []
        self.tasks = TaskSet()
        self.lane = ExecutionLane(
            self._start,
            destroy_sandbox=self._destroy,
            queue_limit=100,
            tasks=self.tasks,
            memory=MemoryWatch(lambda: None),
            denials=Denials(),
            disk_stops=DiskStops(),
            record=unrecorded(root),
            graces=GRACES,
            observer=self.events.append,
        )

    async def _start(self, incarnation: int, late: Callable[[str], None]) -> Kernel:
        await self.gate.wait()
        if self.refuse is not None:
            raise self.refuse
        place = self

        class Sandbox(HostSandbox):
            def __init__(self) -> None:
                self.__dict__ = place.sandbox.__dict__

            async def exec(self, *args: Any, **options: Any) -> Any:
                plain = await super().exec(*args, **options)
                assert isinstance(plain, HostProcess)
                process = place.kind(plain._process)
                self.processes.append(process)
                return process

        return await Kernel.start(
            Sandbox(),
            self.spec,
            incarnation=incarnation,
            on_late_output=late,
        )

    async def _destroy(self) -> None:
        self.destroyed.set()
        for process in self.sandbox.processes:
            if isinstance(process, UnkillableProcess):
                process.destroyed = True
        await self.sandbox.destroy()

    def send(
        self,
        code: str,
        listener: Callable[[CellEvent], None] | None = None,
        timeout: float | None = None,
        **cell: Any,
    ) -> Any:
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.lane.submit(Job(Cell(code=code, **cell), done.set_result, listener, timeout))
        return done

    async def run(self, code: str) -> Outcome:
        outcome = await asyncio.wait_for(self.send(code), PATIENCE)
        assert isinstance(outcome, Outcome), outcome
        return outcome

    async def interrupt(self, **how: Any) -> list[Any]:
        steps: list[Any] = []
        last = asyncio.Event()

        def report(progress: InterruptProgress | KernelBridgeError) -> None:
            steps.append(progress)
            if isinstance(progress, KernelBridgeError) or progress.done:
                last.set()

        self.lane.interrupt(report, **how)
        await asyncio.wait_for(last.wait(), PATIENCE)
        return steps

    async def restart(self) -> Any:
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.lane.restart(done.set_result)
        return await asyncio.wait_for(done, PATIENCE)

    async def close(self) -> None:
        self.gate.set()
        for process in self.sandbox.processes:
            if isinstance(process, UnkillableProcess):
                process.destroyed = True
        await self.lane.aclose()
        await self.tasks.aclose()
        await self.sandbox.destroy()


@pytest.fixture
async def new_place(tmp_path: Path) -> AsyncIterator[Callable[..., Place]]:
    made: list[Place] = []

    def make(spec: KernelSpec = PYTHON, kind: type[HostProcess] = HostProcess) -> Place:
        made.append(Place(tmp_path, spec, kind))
        return made[-1]

    yield make
    for place in made:
        await place.close()


NewPlace = Callable[..., Place]


async def until_ready(place: Place) -> None:
    """Wait until the interpreter has started, and with it the first cell that waits."""
    ready = asyncio.get_running_loop().create_future()
    place.lane.warm(ready.set_result)
    assert await asyncio.wait_for(ready, PATIENCE) is None


async def test_a_lost_reply_does_not_cost_the_interpreter(new_place: NewPlace) -> None:
    """An interrupt that hit the kernel's own code after the cell: it is idle, and nothing more will come."""
    place = new_place(faulty("idle without a reply"))
    done = place.send("x")
    await until_ready(place)
    steps = await place.interrupt()
    assert [(step.step, step.done, step.state_preserved) for step in steps] == [("sigint", True, True)]
    outcome = await asyncio.wait_for(done, PATIENCE)
    assert (outcome.success, outcome.cause, outcome.state_preserved) == (False, "interrupted", True)


async def test_one_that_ignores_everything_is_replaced_step_by_step(new_place: NewPlace) -> None:
    place = new_place()
    await place.run("x = 1")
    done = place.send("import time\nwhile True:\n  try: time.sleep(9)\n  except KeyboardInterrupt: pass")
    behind = place.send("print('x' in globals())")
    steps = await place.interrupt()
    assert [step.step for step in steps] == ["sigint", "process_group", "kill", "restart"]
    assert [step.done for step in steps] == [False, False, False, True]
    assert (await done).cause == "interrupted"
    outcome = await asyncio.wait_for(behind, PATIENCE)
    assert (outcome.output, outcome.state_preserved) == ("False\n", False)


async def test_who_interrupts_is_told_when_no_other_interpreter_starts(new_place: NewPlace) -> None:
    place = new_place(faulty("never answers"))
    done = place.send("x")
    await until_ready(place)
    place.refuse = SandboxError("No sandbox", "none left")
    steps = await place.interrupt()
    assert [step.step for step in steps[:-1]] == ["sigint", "process_group", "kill"]
    assert steps[-1] is place.refuse
    assert (await asyncio.wait_for(done, PATIENCE)).cause == "interrupted"
    assert await place.restart() is place.refuse
    place.refuse = None
    assert await place.restart() == 0


async def test_an_interrupt_of_a_cell_that_has_just_been_ended_otherwise_is_answered(new_place: NewPlace) -> None:
    place = new_place(faulty("never answers"))
    done = place.send("x")
    await until_ready(place)
    first, restarted = asyncio.create_task(place.interrupt()), asyncio.create_task(place.restart())
    second = asyncio.create_task(place.interrupt())
    assert [step.done for step in await first] == [True]
    assert await restarted == 1
    assert (await done).cause == "kernel_restarted"
    assert [(step.step, step.done) for step in await second] == [("none", True)]


async def test_a_cell_that_leaves_its_interpreter_and_is_interrupted_costs_the_next_one_nothing(
    new_place: NewPlace,
) -> None:
    place = new_place()
    begun = asyncio.Event()
    leaving = place.send("exit()\nimport time\nprint('begun')\ntime.sleep(60)", lambda _event: begun.set(), stream=True)
    following = place.send("print('following')")
    await asyncio.wait_for(begun.wait(), PATIENCE)
    await place.interrupt()
    left = await asyncio.wait_for(leaving, PATIENCE)
    assert (left.cause, left.state_preserved) == ("interrupted", False)
    assert (await asyncio.wait_for(following, PATIENCE)).output == "following\n"


async def test_an_interrupt_of_a_cell_whose_interpreter_has_just_died_leaves_the_next_one_alone(
    new_place: NewPlace,
) -> None:
    place = new_place()
    await place.run("import os, time")
    dying = place.send("if os.fork() == 0: time.sleep(60)\nos._exit(1)")
    following = place.send("print('following')")
    while place.lane._supervisor.kernel is not None:
        await asyncio.wait({dying}, timeout=0)
    assert not dying.done()
    (step,) = await place.interrupt()
    assert (step.step, step.done) == ("none", True)
    assert (await asyncio.wait_for(dying, PATIENCE)).cause == "kernel_died"
    assert (await asyncio.wait_for(following, PATIENCE)).output == "following\n"


async def test_a_kernel_that_broke_the_protocol_and_cannot_be_killed_takes_its_sandbox_along(
    new_place: NewPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kernelbridge.workspace.cells.kernel_supervisor.KILL_GRACE", 0.2)
    place = new_place(faulty("no delimiter"), UnkillableProcess)
    outcome = await place.run("x")
    assert outcome.cause == "kernel_died"
    await asyncio.wait_for(place.destroyed.wait(), PATIENCE)


async def test_a_dead_kernel_that_cannot_be_cleaned_up_after_is_followed_by_another(new_place: NewPlace) -> None:
    place = new_place(PYTHON, UnsweptProcess)
    with capture_logs() as logs:
        assert (await place.run("import os; os._exit(7)")).cause == "kernel_died"
        assert (await place.run("print(1)")).output == "1\n"
    starts = [KernelEvent.NEED, KernelEvent.STARTED]
    assert place.events == [*starts, KernelEvent.DIED, *starts]
    told = [entry["event"] for entry in logs]
    assert (told.count("kernel_not_closed"), told.count("background_task_failed")) == (1, 0)


async def test_a_watcher_that_is_cancelled_cancels_nothing_that_others_wait_for(new_place: NewPlace) -> None:
    place = new_place()
    await place.run("1")
    kernel = place.lane._supervisor.kernel
    assert kernel is not None
    for task in list(place.tasks._tasks):
        task.cancel()
    await asyncio.wait(list(place.tasks._tasks))
    assert not kernel.died.cancelled()
    await kernel.aclose()
    assert kernel.died.result().signal is not None


async def test_a_restart_while_it_starts_is_that_start(new_place: NewPlace) -> None:
    place = new_place()
    place.gate.clear()
    waits = place.send("1")
    restarts = [asyncio.ensure_future(place.restart()) for _ in range(3)]
    outcome = await asyncio.wait_for(waits, PATIENCE)
    assert (outcome.cause, outcome.state_preserved) == ("kernel_restarted", False)
    place.gate.set()
    assert await asyncio.gather(*restarts) == [1, 0, 0]
    assert place.lane._supervisor._incarnation == 1


async def test_the_end_of_the_session_answers_everybody(new_place: NewPlace) -> None:
    place = new_place()
    asked = asyncio.Event()
    done = place.send("input()", lambda event: asked.set() if isinstance(event, Asked) else None, allow_stdin=True)
    await asyncio.wait_for(asked.wait(), PATIENCE)
    loop = asyncio.get_running_loop()
    restarted, questioned = loop.create_future(), loop.create_future()
    place.lane.restart(restarted.set_result)
    place.lane.question("x", lambda help_: help_.is_complete("x"), questioned.set_result)
    place.lane.end()
    assert (await done).cause == "kernel_restarted"
    for answer in (restarted, questioned):
        assert isinstance(await asyncio.wait_for(answer, PATIENCE), SessionClosed)
    with pytest.raises(NoInputWaiting):
        place.lane.reply_input("x", None)
    with pytest.raises(SessionClosed, match="The session is closed: send the request again"):
        place.lane.restart(restarted.set_result)
    with pytest.raises(SessionClosed) as refused:
        place.send("1")
    assert (refused.value.code, refused.value.retryable) == ("kernel_failed", True)


async def test_a_deadline_counts_only_while_its_clock_runs() -> None:
    loop = asyncio.get_running_loop()
    over: asyncio.Future[float] = loop.create_future()
    began = loop.time()
    deadline = Deadline(0.2, lambda: over.set_result(loop.time()))
    deadline.stop()
    await asyncio.wait({over}, timeout=0.4)
    assert not over.done()
    deadline.restart()
    deadline.restart()
    assert await asyncio.wait_for(over, PATIENCE) - began >= 0.59
    never = Deadline(None, pytest.fail)
    never.stop()
    never.restart()
    never.cancel()


async def test_what_a_deadline_has_left_is_noted_when_its_clock_is_set() -> None:
    noted: list[tuple[float, float | None]] = []
    deadline = Deadline(100.0, pytest.fail, lambda left, now: noted.append((left, now)))
    assert noted == []
    before = time.monotonic()
    deadline.restart()
    deadline.stop()
    deadline.stop()
    deadline.restart()
    deadline.cancel()
    deadline.stop()
    deadline.restart()
    assert [now is not None and before <= now <= time.monotonic() for _, now in noted] == [True, False, False, True]
    assert all(99.0 < left <= 100.0 for left, _ in noted)


async def test_who_opens_a_session_while_its_kernel_is_not_taken_over_is_answered(new_place: NewPlace) -> None:
    place = new_place()
    begun, refuse = asyncio.Event(), asyncio.Event()

    async def gone(_incarnation: int, _late: Callable[[str], None]) -> Kernel:
        begun.set()
        await refuse.wait()
        raise KernelError("The kernel could not be taken over", "no answer")

    place.lane.adopt(gone, 1, None, None, None)
    await begun.wait()
    ready: asyncio.Future[KernelBridgeError | None] = asyncio.get_running_loop().create_future()
    place.lane.warm(ready.set_result)
    refuse.set()
    assert await asyncio.wait_for(ready, PATIENCE) is None


async def test_the_limit_of_a_cell_that_has_ended_ends_no_other(new_place: NewPlace) -> None:
    place = new_place()
    await until_ready(place)
    first = await asyncio.wait_for(place.send("import time", timeout=0.3), PATIENCE)
    second = await asyncio.wait_for(place.send("time.sleep(0.6)", timeout=PATIENCE), PATIENCE)
    assert (first.success, second.success, second.cause) == (True, True, None)


async def test_a_cell_that_asks_again_when_it_is_interrupted_is_told_that_there_is_no_more(new_place: NewPlace) -> None:
    """What it has asked before is withdrawn: it may ask again, and need not wait to be killed."""
    code = """
try:
    input("one")
except KeyboardInterrupt:
    print("interrupted")
try:
    input("two")
except EOFError:
    print("no more")
"""
    place, asked = new_place(), asyncio.Event()
    done = place.send(code, lambda event: asked.set() if isinstance(event, Asked) else None, allow_stdin=True)
    await asyncio.wait_for(asked.wait(), PATIENCE)
    steps = await place.interrupt()
    outcome = await asyncio.wait_for(done, PATIENCE)
    assert (outcome.output, outcome.success) == ("interrupted\nno more\n", True)
    assert [(step.step, step.done) for step in steps] == [("sigint", True)]
