"""Pauses over a sandbox whose pauses and resumes end when the test says so, or fail."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelbridge.aio.tasks import TaskSet
from kernelbridge.errors import SandboxError
from kernelbridge.runtimes.contract import Sandbox
from kernelbridge.workspace.lifecycle.pausing import Pausing
from kernelbridge.workspace.states import WORKSPACE, Machine, WorkspaceAction, WorkspaceEvent, WorkspaceState

PATIENCE = 20


class ObedientSandbox:
    """Stands still or goes on when the test lets it: `let` is the outcome of the call that is under way."""

    def __init__(self) -> None:
        self.id = "obedient"
        self.running = True
        self.calls: asyncio.Queue[tuple[str, asyncio.Future[None]]] = asyncio.Queue()

    def outlive(self, seconds: float) -> None:
        """It has no server."""

    async def pause(self) -> None:
        await self._call("pause")
        self.running = False

    async def resume(self) -> None:
        await self._call("resume")
        self.running = True

    async def _call(self, name: str) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.calls.put_nowait((name, done))
        await done

    async def let(self, name: str, error: Exception | None = None) -> None:
        """Wait for a call and let it succeed, or fail."""
        async with asyncio.timeout(PATIENCE):
            called, done = await self.calls.get()
        assert called == name
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)


class Place:
    """A workspace that consists of its pauses."""

    def __init__(self, idle_timeout: float | None = 0.001) -> None:
        self.events: list[str] = []
        self.changed = asyncio.Event()
        self.machine: Machine[WorkspaceState, WorkspaceEvent, WorkspaceAction] = Machine(
            WORKSPACE, WorkspaceState.ACTIVE, self._observe
        )
        self.busy = False
        self.tasks = TaskSet()
        self.sandbox = ObedientSandbox()
        self.current: Sandbox | None = cast("Sandbox", self.sandbox)
        self.pausing = Pausing(
            self.machine, lambda: self.current, idle_timeout=idle_timeout, busy=lambda: self.busy, tasks=self.tasks
        )
        self.pausing.began()

    def _observe(self, event: WorkspaceEvent) -> None:
        self.events.append(event.name)
        self.changed.set()

    def end(self) -> None:
        self.current = None
        self.pausing.ended()

    async def until(self, state: WorkspaceState) -> None:
        async with asyncio.timeout(PATIENCE):
            while self.machine.state is not state:
                self.changed.clear()
                await self.changed.wait()

    async def paused(self) -> None:
        await self.sandbox.let("pause")
        await self.until(WorkspaceState.PAUSED)


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    place = Place()
    yield place
    place.end()
    await place.tasks.aclose()


async def answered(work: "asyncio.Task[None]") -> None:
    async with asyncio.timeout(PATIENCE):
        await work


async def test_an_idle_sandbox_is_paused_and_the_next_message_resumes_it(place: Place) -> None:
    await place.paused()
    message = asyncio.create_task(place.pausing.awake())
    await place.sandbox.let("resume")
    await answered(message)
    assert place.sandbox.running
    assert place.events[:4] == ["IDLE", "PAUSED", "NEED", "RESUMED"]  # it may be idle again already
    assert not place.pausing._waiters  # a session may be paused for months, ten times a day
    await place.paused()  # and so on


async def test_a_busy_session_is_not_paused(place: Place) -> None:
    place.busy = True
    assert place.sandbox.calls.empty()
    looks = 0

    def busy() -> bool:
        nonlocal looks
        looks += 1
        place.busy = looks < 5
        return place.busy

    place.pausing._busy = busy
    await place.paused()
    assert looks == 5


async def test_a_message_in_the_middle_of_a_pause_waits_for_its_end_and_that_of_the_resume(place: Place) -> None:
    await place.until(WorkspaceState.PAUSING)
    messages = [asyncio.create_task(place.pausing.awake()) for _ in range(3)]
    await place.until(WorkspaceState.RESUMING)
    await place.sandbox.let("pause")
    await place.sandbox.let("resume")
    for message in messages:
        await answered(message)
    assert place.sandbox.running
    assert place.events[:4] == ["IDLE", "NEED", "PAUSED", "RESUMED"]


async def test_after_a_failed_pause_the_sandbox_is_resumed(place: Place) -> None:
    await place.sandbox.let("pause", SandboxError("The sandbox does not answer"))
    await place.sandbox.let("resume")
    await place.until(WorkspaceState.ACTIVE)
    await place.paused()  # tried again when it was idle as long again


async def test_a_message_during_a_failed_pause_waits_for_the_resume(place: Place) -> None:
    await place.until(WorkspaceState.PAUSING)
    message = asyncio.create_task(place.pausing.awake())
    await place.until(WorkspaceState.RESUMING)
    await place.sandbox.let("pause", SandboxError("The sandbox cannot be paused"))
    await place.sandbox.let("resume")
    await answered(message)


async def test_a_failed_resume_is_reported_and_the_next_message_tries_again(place: Place) -> None:
    await place.paused()
    messages = [asyncio.create_task(place.pausing.awake()) for _ in range(2)]
    await place.sandbox.let("resume", SandboxError("The sandbox does not answer"))
    for message in messages:
        with pytest.raises(SandboxError):
            await answered(message)
    assert place.machine.state is WorkspaceState.PAUSED
    message = asyncio.create_task(place.pausing.awake())
    await place.sandbox.let("resume")
    await answered(message)


async def test_the_loss_of_the_sandbox_ends_the_wait_for_it(place: Place) -> None:
    await place.paused()
    message = asyncio.create_task(place.pausing.awake())
    await place.until(WorkspaceState.RESUMING)
    place.machine.on(WorkspaceEvent.LOST)
    place.end()
    await answered(message)
    await place.sandbox.let("resume", SandboxError("The sandbox is gone"))  # too late to matter
    await asyncio.sleep(0)
    assert place.machine.state is WorkspaceState.ABSENT


async def test_without_a_limit_nothing_is_paused() -> None:
    place = Place(idle_timeout=None)
    place.pausing.touch()
    assert place.pausing._timer is None


class Walk(Place):
    """Anything that may happen, in any order."""

    def __init__(self) -> None:
        super().__init__(idle_timeout=1e6)
        self.messages: list[asyncio.Task[None]] = []

    async def _message(self) -> None:
        while self.pausing.asleep:
            await self.pausing.awake()
        assert self.sandbox.running

    def message(self) -> None:
        self.messages.append(asyncio.create_task(self._message()))

    def succeed(self) -> None:
        if not self.sandbox.calls.empty():
            self.sandbox.calls.get_nowait()[1].set_result(None)

    def fail(self) -> None:
        if not self.sandbox.calls.empty():
            self.sandbox.calls.get_nowait()[1].set_exception(SandboxError("The sandbox does not answer"))

    def idle(self) -> None:
        self.pausing._used_at = -1e9
        self.pausing._look()

    async def settle(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)


@given(st.lists(st.sampled_from([Walk.message, Walk.succeed, Walk.fail, Walk.idle]), max_size=30))
def test_no_message_waits_for_ever_and_none_passes_during_a_pause(steps: list[Callable[[Walk], None]]) -> None:
    async def walk() -> None:
        place = Walk()
        for step in steps:
            step(place)
            await place.settle()
        place.message()
        while not all(task.done() for task in place.messages):
            await place.settle()
            place.succeed()  # from here on the sandbox obeys
        *_, last = (task.exception() for task in place.messages)
        assert last is None
        assert all(isinstance(task.exception(), SandboxError | None) for task in place.messages)
        place.end()
        await place.tasks.aclose()

    asyncio.run(walk())
