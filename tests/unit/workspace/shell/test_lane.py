"""The lane of terminal commands: what it reports about its shell, and what an interrupt reaches."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import pytest

from kernelbridge.aio.tasks import TaskSet
from kernelbridge.errors import KernelBridgeError, SandboxError, TerminalError
from kernelbridge.identity.principal import Principal
from kernelbridge.workspace.adoption.record import Record
from kernelbridge.workspace.adoption.session_state import RunningCommand
from kernelbridge.workspace.command_outcome import CommandOutcome
from kernelbridge.workspace.denials import Denials
from kernelbridge.workspace.disk_watch import DiskStops
from kernelbridge.workspace.interrupt_progress import InterruptProgress
from kernelbridge.workspace.resource_watch import MemoryWatch
from kernelbridge.workspace.session_key import SessionKey
from kernelbridge.workspace.shell.lane import CommandLane, PreviousCommand
from kernelbridge.workspace.shell.shell import Shell
from tests.unit.workspace.adoption.test_record import AtOnce
from tests.unit.workspace.conftest import Place

Answer = CommandOutcome | KernelBridgeError


def send(lane: CommandLane, command: str) -> asyncio.Future[Answer]:
    done: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    lane.submit(command, done.set_result, timeout=20)
    return done


async def run(lane: CommandLane, command: str) -> CommandOutcome:
    outcome = await send(lane, command)
    assert isinstance(outcome, CommandOutcome), outcome
    return outcome


class Jobs:
    """Ends the jobs of a shell when it is let."""

    def __init__(self) -> None:
        self.begun, self.let = asyncio.Event(), asyncio.Event()

    async def end(self) -> None:
        self.begun.set()
        await self.let.wait()


@pytest.fixture
def jobs() -> Jobs:
    return Jobs()


def lane_of(place: Place, tasks: TaskSet, start_shell: Callable[[], Awaitable[Shell]] | None = None) -> CommandLane:
    return CommandLane(
        start_shell or place.shell,
        destroy_sandbox=place.sandbox.destroy,
        queue_limit=10,
        tasks=tasks,
        memory=MemoryWatch(lambda: None),
        denials=Denials(),
        disk_stops=DiskStops(),
        record=Record(
            place.home / "absent", SessionKey(Principal(), "s"), created="", runtime="local", seq=int, executor=AtOnce()
        ),
        longest=None,
    )


@pytest.fixture
async def lane(place: Place) -> AsyncIterator[CommandLane]:
    tasks = TaskSet()
    lane = lane_of(place, tasks)
    yield lane
    await lane.aclose()
    await tasks.aclose()


async def until_idle(lane: CommandLane) -> None:
    """Wait a little longer than for the last answer."""
    async with asyncio.timeout(20):
        while lane.busy:  # noqa: ASYNC110  it tells nobody
            await asyncio.sleep(0)


async def last_of(told: asyncio.Queue[InterruptProgress]) -> InterruptProgress:
    """Give the last step of an interrupt."""
    async with asyncio.timeout(20):
        while not (step := await told.get()).done:
            pass
    return step


@pytest.mark.parametrize("end", ["exit 3", "(read x <go; kill -9 $$) & true"])
async def test_the_loss_of_a_shell_is_told_once(place: Place, lane: CommandLane, end: str) -> None:
    """By the command that ended it, or by the next one if it ended between the two."""
    os.mkfifo(place.home / "go")
    assert (await run(lane, "V=1")).state_preserved
    last = await run(lane, end)
    assert last.state_preserved is (end != "exit 3")
    if last.state_preserved:
        await asyncio.to_thread((place.home / "go").write_text, "x\n")
    async with asyncio.timeout(20):
        while place.opened[-1].alive:  # noqa: ASYNC110  it tells nobody
            await asyncio.sleep(0)
    told = [await run(lane, "echo [$V]") for _ in range(2)]
    assert [outcome.output for outcome in told] == ["[]\n", "[]\n"]
    assert [outcome.state_preserved for outcome in told] == [not last.state_preserved, True]


async def test_a_command_that_cannot_be_handed_over_costs_no_shell(
    place: Place, lane: CommandLane, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_name: str, _content: bytes) -> None:
        raise SandboxError("A text cannot be handed over", "the disk is full")

    await run(lane, "V=1")
    with monkeypatch.context() as patched:
        patched.setattr(place.sandbox.shared, "put", full)
        refused = await send(lane, "echo $V")
    assert isinstance(refused, TerminalError)
    assert "disk" in refused.reason
    outcome = await run(lane, "echo $V")
    assert (outcome.output, outcome.state_preserved, len(place.opened)) == ("1\n", True, 1)


async def test_a_result_waits_until_what_the_shell_has_become_is_on_disk(
    lane: CommandLane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have moved to another terminal, where the next server has to look for it."""
    asked, let = asyncio.Event(), asyncio.Event()

    async def slowly() -> None:
        asked.set()
        await let.wait()

    await run(lane, "V=1")
    monkeypatch.setattr(lane._record, "written", slowly)
    answer = send(lane, "echo $V &")
    async with asyncio.timeout(20):
        await asked.wait()
        assert not answer.done()
        let.set()
        assert isinstance(await answer, CommandOutcome)


async def test_a_command_begins_when_the_jobs_of_those_before_have_been_ended(
    place: Place, lane: CommandLane, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ends them ends all that any command has started."""
    told: list[InterruptProgress] = []
    await run(lane, "V=1")
    monkeypatch.setattr(place.opened[-1], "end_jobs", jobs.end)
    lane.interrupt(told.append, queued=False, jobs=True)
    following = send(lane, "echo $V >begun")
    await jobs.begun.wait()
    await (await place.shell()).run("echo x", timeout=20)  # takes longer than a command to begin
    assert (following.done(), (place.home / "begun").exists(), told) == (False, False, [])
    jobs.let.set()
    outcome = await following
    assert isinstance(outcome, CommandOutcome)
    assert (outcome.state_preserved, (place.home / "begun").read_text()) == (True, "1\n")
    assert [(step.step, step.done, step.state_preserved) for step in told] == [("process_group", True, True)]


@pytest.mark.parametrize("unasked", ["signal", "prune"])
async def test_an_interrupt_is_answered_when_the_command_cannot_be_ended(
    place: Place, lane: CommandLane, monkeypatch: pytest.MonkeyPatch, unasked: str
) -> None:
    """The command is answered with the error; the request to end it needs an answer of its own."""

    async def no_answer(*_of: object, **_more: object) -> None:
        raise SandboxError("The sandbox does not answer")

    assert (await run(lane, "true")).state_preserved
    begun = asyncio.Event()
    command: asyncio.Future[CommandOutcome | KernelBridgeError] = asyncio.get_running_loop().create_future()
    lane.submit("sh -c 'echo begun; exec sleep 60'", command.set_result, listen=lambda _text: begun.set())
    await begun.wait()
    told: asyncio.Queue[InterruptProgress] = asyncio.Queue()
    with monkeypatch.context() as patched:
        patched.setattr(place.opened[-1]._process, unasked, no_answer)
        lane.interrupt(told.put_nowait, queued=False, jobs=False)
        last = await last_of(told)
        assert isinstance(await command, SandboxError)
    # A shell that was never asked is lost with what runs in it.
    assert (last.step, last.state_preserved) == (("restart", False) if unasked == "signal" else ("sigint", True))
    assert (await run(lane, "true")).state_preserved is last.state_preserved


async def test_an_interrupt_is_a_use_until_it_is_answered_as_it_is_at_the_end(
    place: Place, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or what ends processes would be frozen with them, and taken for stuck."""
    tasks = TaskSet()
    lane = lane_of(place, tasks)
    await run(lane, "true")
    await until_idle(lane)
    monkeypatch.setattr(place.opened[-1], "end_jobs", jobs.end)
    told: asyncio.Queue[InterruptProgress] = asyncio.Queue()
    lane.interrupt(told.put_nowait, queued=False, jobs=True)
    assert lane.busy
    await jobs.begun.wait()
    assert lane.busy
    await lane.aclose()
    await tasks.aclose()
    assert told.get_nowait().done
    assert told.empty()
    assert not lane.busy


class HeldTasks(TaskSet):
    """Begins what it is given when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.let = asyncio.Event()
        self.let.set()

    def create(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        async def held() -> None:
            await self.let.wait()
            await coroutine

        return super().create(held())


async def test_an_interrupt_of_a_command_that_has_ended_meanwhile_leaves_the_next_one_alone(place: Place) -> None:
    for name in ("one", "two"):
        os.mkfifo(place.home / name)
    tasks = HeldTasks()
    lane = lane_of(place, tasks)
    begun, told = asyncio.Event(), asyncio.Queue[InterruptProgress]()
    following: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    first: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    lane.submit("echo begun; read x <one", first.set_result, listen=lambda _text: begun.set())
    lane.submit("echo begun; read x <two; echo whole", following.set_result, listen=lambda _text: begun.set())
    await begun.wait()
    begun.clear()
    tasks.let.clear()
    lane.interrupt(told.put_nowait, queued=False, jobs=False)
    await asyncio.to_thread((place.home / "one").write_text, "x\n")
    await begun.wait()
    assert first.done()
    tasks.let.set()
    assert (await last_of(told)).step == "none"
    await asyncio.to_thread((place.home / "two").write_text, "x\n")
    outcome = await following
    assert isinstance(outcome, CommandOutcome)
    assert (outcome.output, outcome.exit_code, outcome.cause) == ("begun\nwhole\n", 0, None)
    await lane.aclose()
    await tasks.aclose()


async def test_a_shell_that_starts_while_its_session_closes_is_closed_too(place: Place) -> None:
    asked, let = asyncio.Event(), asyncio.Event()

    async def start() -> Shell:
        asked.set()
        await let.wait()
        return await place.shell()

    tasks = TaskSet()
    lane = lane_of(place, tasks, start)
    done = send(lane, "echo x")
    await asked.wait()
    await lane.aclose()
    let.set()
    outcome = await done
    assert isinstance(outcome, CommandOutcome)
    assert outcome.cause == "session_closed"
    assert [shell.alive for shell in place.opened] == [False]
    await tasks.aclose()


@pytest.mark.parametrize(
    ("error", "leaving", "cause"),
    [
        (SandboxError("The sandbox does not answer"), False, "sandbox_lost"),
        (TerminalError("The shell is gone"), False, "shell_exited"),
        (SandboxError("The sandbox does not answer"), True, None),  # the next server will reach it, and answer
    ],
)
async def test_a_command_of_an_earlier_server_that_cannot_be_reached(
    place: Place, error: KernelBridgeError, cause: str | None, *, leaving: bool
) -> None:
    async def adopt() -> Shell:
        raise error

    tasks = TaskSet()
    lane = lane_of(place, tasks)
    told: list[Answer] = []
    noted = RunningCommand(request_id="r", streams=False, since=0.0, began=0.0, timeout=None, nonce="n", moment=None)
    lane.adopt(adopt, PreviousCommand(noted, b"", told.append, None), had_shell=True)
    async with asyncio.timeout(20):
        await lane.finish(leaving=leaving).wait()
    assert [outcome.cause for outcome in told if isinstance(outcome, CommandOutcome)] == ([cause] if cause else [])
    assert len(told) == (not leaving)
    await lane.aclose()
    await tasks.aclose()


async def test_two_that_need_a_shell_start_one(place: Place, lane: CommandLane) -> None:
    """A command, and an interrupt of the one before, which has cost the shell."""
    (first, fresh), (second, again) = await asyncio.gather(lane._living_shell(), lane._living_shell())
    assert first is second
    assert (fresh, again, len(place.opened)) == (True, False, 1)
