"""Questions to kernels that answer nonsense, elsewhere, or never; and what a kernel may ask and send."""

from __future__ import annotations

import asyncio

import pytest

from kernelbridge.errors import KernelBusy, KernelError
from kernelbridge.jupyter import help as help_module
from kernelbridge.jupyter import requests as requests_module
from kernelbridge.jupyter.cell import Cell, Outcome
from kernelbridge.jupyter.events import Asked, CellEvent
from tests.unit.jupyter.conftest import PATIENCE
from tests.unit.jupyter.test_faults import NewNotebook, died, faulty


@pytest.mark.parametrize("fault", ["help is nonsense", "help is too large"])
async def test_an_answer_that_cannot_be_used_is_an_error(new_notebook: NewNotebook, fault: str) -> None:
    notebook = await new_notebook(faulty(fault))
    with pytest.raises(KernelError, match="cannot be used"):
        await notebook.kernel.help.complete("x", 1)
    assert notebook.kernel.alive


async def test_a_large_answer_is_cut_to_what_makes_sense(new_notebook: NewNotebook) -> None:
    notebook = await new_notebook(faulty("help is large"))
    found = await notebook.kernel.help.complete("äöü", 3)
    assert found.matches == ["y" * 50] * (help_module.MAX_MATCHES - 1)
    assert (found.start, found.end, found.metadata) == (0, 3, {})


@pytest.mark.parametrize("fault", ["help on another channel", "help never comes"])
async def test_unanswered_questions_are_busy_and_bounded(
    new_notebook: NewNotebook, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(help_module, "IDLE_TIMEOUT", 0.3)
    notebook = await new_notebook(faulty(fault))
    asked = [notebook.kernel.help.complete("x" * 1000, 1) for _ in range(requests_module.LIMIT + 20)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(answer, KernelBusy) for answer in answers)
    assert len(notebook.kernel._requests) == requests_module.LIMIT
    # What is unanswered lies in a queue, whether or not anybody waits for it.
    with pytest.raises(KernelBusy, match="has not answered many earlier requests"):
        await notebook.kernel.help.complete("x", 1)
    await notebook.kernel.kill()
    await died(notebook)
    assert len(notebook.kernel._requests) == 0


async def test_the_size_of_unanswered_questions_is_bounded(
    new_notebook: NewNotebook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(help_module, "IDLE_TIMEOUT", 0.1)
    notebook = await new_notebook(faulty("help never comes"))
    code = "x" * (12 << 20)
    for _ in range(2):
        with pytest.raises(KernelBusy, match="did not answer within"):
            await notebook.kernel.help.complete(code, 1)
    with pytest.raises(KernelBusy, match="earlier requests"):
        await notebook.kernel.help.complete(code, 1)


async def test_a_question_to_a_kernel_that_dies_raises(new_notebook: NewNotebook) -> None:
    notebook = await new_notebook(faulty("help never comes"))
    asked = asyncio.ensure_future(notebook.kernel.help.complete("x", 1))
    await notebook.kernel.kill()
    with pytest.raises(KernelError, match="dead"):
        await asyncio.wait_for(asked, PATIENCE)


async def test_a_kernel_without_subshells_is_busy_while_a_cell_runs(new_notebook: NewNotebook) -> None:
    notebook = await new_notebook(faulty("never answers"))
    notebook.send("x")
    with pytest.raises(KernelBusy, match="runs a cell"):
        await notebook.kernel.help.is_complete("x")


async def test_only_the_running_cell_asks_and_not_without_end_and_briefly(new_notebook: NewNotebook) -> None:
    notebook = await new_notebook(faulty("asks and asks"))
    loop = asyncio.get_running_loop()
    first_asked, done = loop.create_future(), loop.create_future()
    events: list[CellEvent] = []

    def listen(event: CellEvent) -> None:
        events.append(event)
        if isinstance(event, Asked) and not first_asked.done():
            first_asked.set_result(None)

    notebook.kernel.submit(Cell(code="x", allow_stdin=True), done.set_result, listen)
    await asyncio.wait_for(first_asked, PATIENCE)
    await asyncio.wait({done}, timeout=0.2)
    questions = [event for event in events if isinstance(event, Asked)]
    assert len(questions) < 30  # it sends thousands; see `_REPLACED`
    assert len(questions[0].prompt) <= (1 << 15) + 1
    notebook.kernel.reply_input("answer")
    outcome: Outcome = await asyncio.wait_for(done, PATIENCE)
    assert outcome.success


async def test_a_question_that_cannot_be_read_ends_the_kernel(new_notebook: NewNotebook) -> None:
    notebook = await new_notebook(faulty("asks nonsense"))
    done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    notebook.kernel.submit(Cell(code="x", allow_stdin=True), done.set_result, lambda _: None)
    assert (await asyncio.wait_for(done, PATIENCE)).cause == "kernel_died"


async def test_a_cell_that_may_not_ask_asks_nothing(new_notebook: NewNotebook) -> None:
    notebook = await new_notebook(faulty("asks nonsense"))
    events: list[CellEvent] = []
    notebook.kernel.submit(Cell(code="x"), lambda _: None, events.append)
    with pytest.raises(KernelBusy):
        await notebook.kernel.help.is_complete("x")
    assert not any(isinstance(event, Asked) for event in events)
    assert notebook.kernel.alive


async def test_large_messages_of_nested_json_leave_the_cell_with_what_can_be_used(new_notebook: NewNotebook) -> None:
    """Once, each `[],` of such a message became an object, on the event loop."""
    notebook = await new_notebook(faulty("large messages"))
    outcome = await notebook.run("x")
    assert (outcome.success, outcome.execution_count) == (True, 7)
    assert "kept\n" in outcome.output
    assert notebook.kernel.alive
