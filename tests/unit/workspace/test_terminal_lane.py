"""The lane of terminal commands: what it tells of its shell."""

import asyncio
import os

import pytest

from kernelbridge.errors import KernelBridgeError
from kernelbridge.workspace.layout import SessionKey
from kernelbridge.workspace.memory import MemoryWatch
from kernelbridge.workspace.record import Record
from kernelbridge.workspace.shell_exchange import CommandOutcome
from kernelbridge.workspace.tasks import TaskSet
from kernelbridge.workspace.terminal import TerminalLane
from tests.unit.workspace.conftest import Place


async def run(lane: TerminalLane, command: str) -> CommandOutcome:
    done: asyncio.Future[CommandOutcome | KernelBridgeError] = asyncio.get_running_loop().create_future()
    lane.submit(command, done.set_result, timeout=20)
    outcome = await done
    assert isinstance(outcome, CommandOutcome), outcome
    return outcome


async def _no_jobs(_spare: int) -> None:
    pass


@pytest.mark.parametrize("end", ["exit 3", "(read x <go; kill -9 $$) & true"])
async def test_the_loss_of_a_shell_is_told_once(place: Place, end: str) -> None:
    """By the command that ended it, or by the next one if it ended between the two."""
    os.mkfifo(place.home / "go")
    tasks = TaskSet()
    lane = TerminalLane(
        place.shell,
        end_jobs=_no_jobs,
        destroy_sandbox=place.sandbox.destroy,
        queue_limit=10,
        tasks=tasks,
        memory=MemoryWatch(lambda: None),
        record=Record(place.home / "absent", SessionKey(None, "s"), created="", runtime="local", seq=int),
        longest=None,
    )
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
