"""The lane of terminal commands: what it tells of its shell."""

import asyncio
import os
from collections.abc import Awaitable, Callable

import pytest

from kernelbridge.errors import KernelBridgeError, RuntimeUnavailable
from kernelbridge.workspace.layout import SessionKey
from kernelbridge.workspace.memory import MemoryWatch
from kernelbridge.workspace.record import Record
from kernelbridge.workspace.shell_exchange import CommandOutcome
from kernelbridge.workspace.tasks import TaskSet
from kernelbridge.workspace.terminal import Interruption, TerminalLane
from tests.unit.workspace.conftest import Place


async def run(lane: TerminalLane, command: str) -> CommandOutcome:
    done: asyncio.Future[CommandOutcome | KernelBridgeError] = asyncio.get_running_loop().create_future()
    lane.submit(command, done.set_result, timeout=20)
    outcome = await done
    assert isinstance(outcome, CommandOutcome), outcome
    return outcome


async def _no_jobs(_spare: int) -> None:
    pass


def lane_of(place: Place, tasks: TaskSet, end_jobs: Callable[[int], Awaitable[None]] = _no_jobs) -> TerminalLane:
    return TerminalLane(
        place.shell,
        end_jobs=end_jobs,
        destroy_sandbox=place.sandbox.destroy,
        queue_limit=10,
        tasks=tasks,
        memory=MemoryWatch(lambda: None),
        record=Record(place.home / "absent", SessionKey(None, "s"), created="", runtime="local", seq=int),
        longest=None,
    )


async def last_of(told: asyncio.Queue[Interruption]) -> Interruption:
    """Give the last step of an interrupt."""
    async with asyncio.timeout(20):
        while not (step := await told.get()).done:
            pass
    return step


@pytest.mark.parametrize("end", ["exit 3", "(read x <go; kill -9 $$) & true"])
async def test_the_loss_of_a_shell_is_told_once(place: Place, end: str) -> None:
    """By the command that ended it, or by the next one if it ended between the two."""
    os.mkfifo(place.home / "go")
    tasks = TaskSet()
    lane = lane_of(place, tasks)
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
    await lane.aclose()
    await tasks.aclose()


@pytest.mark.parametrize("unasked", ["signal", "sweep"])
async def test_an_interrupt_is_answered_when_nobody_can_be_asked_to_end_the_command(
    place: Place, monkeypatch: pytest.MonkeyPatch, unasked: str
) -> None:
    """The command is answered with what was in the way; whoever wanted it ended waits for another answer."""

    async def engine_hangs(*_of: object, **_more: object) -> None:
        raise RuntimeUnavailable("The engine does not answer")

    tasks = TaskSet()
    lane = lane_of(place, tasks)
    assert (await run(lane, "true")).state_preserved
    begun = asyncio.Event()
    command: asyncio.Future[CommandOutcome | KernelBridgeError] = asyncio.get_running_loop().create_future()
    lane.submit("echo begun; sleep 60", command.set_result, listen=lambda _text: begun.set())
    await begun.wait()
    told: asyncio.Queue[Interruption] = asyncio.Queue()
    with monkeypatch.context() as patched:
        patched.setattr(place.opened[-1]._process if unasked == "signal" else place.sandbox, unasked, engine_hangs)
        lane.interrupt(told.put_nowait, queued=False, jobs=False)
        last = await last_of(told)
        assert isinstance(await command, RuntimeUnavailable)
    # A shell that was never asked is lost with what runs in it.
    assert (last.step, last.state_preserved) == (("restart", False) if unasked == "signal" else ("sigint", True))
    assert (await run(lane, "true")).state_preserved is last.state_preserved
    await lane.aclose()
    await tasks.aclose()


async def test_an_interrupt_is_a_use_until_it_is_answered_and_is_when_the_session_ends(place: Place) -> None:
    """Or what ends processes would be frozen with them, and taken for stuck."""
    begun, never = asyncio.Event(), asyncio.Event()

    async def take_long(_spare: int) -> None:
        begun.set()
        await never.wait()

    tasks = TaskSet()
    lane = lane_of(place, tasks, take_long)
    told: asyncio.Queue[Interruption] = asyncio.Queue()
    lane.interrupt(told.put_nowait, queued=False, jobs=True)
    assert lane.busy
    await begun.wait()
    assert lane.busy
    await lane.aclose()
    await tasks.aclose()
    assert told.get_nowait().done
    assert told.empty()
    assert not lane.busy
