"""Memory that runs out, where the kernel has counted it before the runtime reports it."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import pytest

from kernelbridge.jupyter.cell import Outcome
from kernelbridge.runtimes.contract import Sandbox
from kernelbridge.workspace import resource_watch
from kernelbridge.workspace.command_outcome import CommandOutcome
from kernelbridge.workspace.resource_watch import MemoryWatch


class SandboxWithLateReports:
    """Reports a kill only when the test says so, like an engine on a busy machine."""

    def __init__(self) -> None:
        self._kills = 0
        self._tell: Callable[[], None]

    def oom_kills(self) -> int:
        return self._kills

    def watch_memory(self, tell: Callable[[], None]) -> None:
        self._tell = tell

    def report(self) -> None:
        self._kills += 1
        self._tell()


class Session:
    """The memory watch of a session, and what it has said."""

    def __init__(self) -> None:
        self.now: list[str] = []
        self.later: list[str] = []
        self.sandbox = SandboxWithLateReports()
        self.watch = MemoryWatch(lambda: self.now.append("out_of_memory"))
        self.watch.serve(busy=lambda: False, tell_later=self.later.append)
        self.watch.watch(cast("Sandbox", self.sandbox))


def cell(*, oom_kills: int = 0) -> Outcome:
    return Outcome(success=True, output="", oom_kills=oom_kills)


async def test_a_kill_that_the_kernel_has_counted_is_not_the_next_cells() -> None:
    session = Session()
    first = session.watch.mark()
    assert session.watch.explained(cell(oom_kills=1), first).cause == "out_of_memory"
    second = session.watch.mark()
    session.sandbox.report()
    assert session.watch.explained(cell(), second).cause is None
    third = session.watch.mark()
    session.sandbox.report()
    assert session.watch.explained(cell(), third).cause == "out_of_memory"  # another kill


async def test_nor_is_it_in_the_next_result_however_late_its_report_is() -> None:
    session = Session()
    session.watch.explained(cell(oom_kills=1), session.watch.mark())
    session.watch._settled -= 2 * resource_watch.LATE
    session.sandbox.report()
    assert (session.now, session.later) == (["out_of_memory"], [])
    session.watch._settled -= 2 * resource_watch.LATE
    session.sandbox.report()
    assert session.later == [resource_watch.NOTICE]


async def test_a_command_that_ran_beside_the_cell_need_not_wait_for_the_report() -> None:
    session = Session()
    command = session.watch.mark()
    session.watch.explained(cell(oom_kills=1), session.watch.mark())
    outcome = CommandOutcome(output="", exit_code=0, cwd="/", duration_ms=1)
    assert (await session.watch.over_command(outcome, command)).cause == "out_of_memory"


async def test_a_kill_that_the_agent_has_counted_is_the_commands_and_not_the_next_ones() -> None:
    session = Session()
    outcome = CommandOutcome(output="", exit_code=0, cwd="/", duration_ms=100)
    first = session.watch.mark()
    told = await session.watch.over_command(replace(outcome, oom_kills=1), first)
    assert (told.cause, told.hint) == ("out_of_memory", resource_watch.HINT)
    second = session.watch.mark()
    session.sandbox.report()
    assert (await session.watch.over_command(outcome, second)).cause is None
    assert session.later == []


async def test_the_kernels_own_end_is_not_the_commands_beside_it() -> None:
    session = Session()
    command, its_cell = session.watch.mark(), session.watch.mark()
    session.sandbox.report()
    session.watch.explained(Outcome.ended("out_of_memory", "OutOfMemory: it was killed"), its_cell)
    outcome = CommandOutcome(output="", exit_code=0, cwd="/", duration_ms=100, oom_kills=1)
    assert (await session.watch.over_command(outcome, command)).cause is None


async def test_a_shell_that_was_killed_had_no_memory_however_late_its_exit_is_reported() -> None:
    """The runtime connects it with no kill any more, but the agent has counted one since the command began."""
    session = Session()
    outcome = CommandOutcome(output="", exit_code=137, cwd=None, duration_ms=9000, state_preserved=False)
    late = replace(outcome, cause="shell_exited")
    beside, mark = session.watch.mark(), session.watch.mark()
    told = await session.watch.over_command(replace(late, oom_kills=1), mark)
    assert (told.cause, told.state_preserved) == ("out_of_memory", False)
    assert session.watch.explained(cell(oom_kills=1), beside).cause is None  # it was the shell
    again = session.watch.mark()
    assert (await session.watch.over_command(late, again)).cause == "shell_exited"
    left = replace(late, exit_code=3, oom_kills=1)
    assert (await session.watch.over_command(left, again)).cause == "shell_exited"


async def test_a_command_that_was_killed_waits_for_the_report_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session()
    outcome = CommandOutcome(output="", exit_code=137, cwd="/", duration_ms=100)
    asyncio.get_running_loop().call_soon(session.sandbox.report)
    assert (await session.watch.over_command(outcome, session.watch.mark())).cause == "out_of_memory"
    monkeypatch.setattr(resource_watch, "GRACE", 0.01)
    assert (await session.watch.over_command(outcome, session.watch.mark())).cause is None
