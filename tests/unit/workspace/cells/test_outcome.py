"""The steps of an outcome on its way to the answer."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from kernelbridge.aio.tasks import TaskSet
from kernelbridge.jupyter.bounded import Spilled
from kernelbridge.jupyter.cell import Outcome
from kernelbridge.workspace.cells.outcome import Step, finish, with_hint, written
from kernelbridge.workspace.denials import Denials


class StuckDisk:
    """Takes the output of a cell, and never says that all of it is there."""

    def begin(self, texts: Sequence[str]) -> None:
        """Take them."""

    def write(self, text: str) -> None:
        """Take it."""

    def discard(self) -> None:
        """Take nothing more."""

    async def finish(self) -> Spilled:
        await asyncio.Event().wait()
        raise AssertionError


def noted(what: str) -> Step:
    return lambda outcome: replace(outcome, late_output=outcome.late_output + what)


async def later(outcome: Outcome) -> Outcome:
    await asyncio.sleep(0)
    return replace(outcome, late_output=outcome.late_output + "b")


async def test_steps_that_take_no_time_are_taken_in_order_before_anything_else_runs() -> None:
    answers: list[Outcome] = []
    hinted = partial(with_hint, denials=Denials(), mark=0)
    finish(Outcome(success=True), [noted("a"), written, hinted, noted("b")], answers.append, TaskSet())
    assert [answer.late_output for answer in answers] == ["ab"]


async def test_what_is_behind_a_step_that_takes_time_waits_for_it() -> None:
    answers: asyncio.Queue[Outcome] = asyncio.Queue()
    tasks = TaskSet()
    finish(Outcome(success=True), [noted("a"), later, noted("c")], answers.put_nowait, tasks)
    assert answers.empty()
    assert (await asyncio.wait_for(answers.get(), 5)).late_output == "abc"
    await tasks.aclose()


async def test_the_end_of_the_session_answers_a_cell_whose_output_is_still_being_written() -> None:
    answers: list[Outcome] = []
    tasks = TaskSet()
    outcome = Outcome(success=True, output="x", truncated={"bytes": 1}, spill=StuckDisk())
    finish(outcome, [written, noted("behind")], answers.append, tasks)
    await asyncio.sleep(0)  # it has begun to wait
    assert answers == []
    await tasks.aclose()
    assert answers == [replace(outcome, spill=None, late_output="behind")]


def test_a_cell_that_never_reached_a_kernel_has_lost_its_variables() -> None:
    ended = Outcome.ended("session_closed", "SessionClosed: x")
    assert ended == Outcome(success=False, error="SessionClosed: x", cause="session_closed", state_preserved=False)


def test_the_texts_that_may_be_long_are_named_once() -> None:
    texts = Outcome(success=True, output="a", stdout="a", stderr="b", traceback="c").texts
    assert texts == {"output": "a", "stderr": "b", "results": [], "traceback": "c"}
    assert Outcome(success=True, output="a", stdout="b").texts["stdout"] == "b"
