"""Questions that a cell gives up by itself, and answers that come too late for them."""

import asyncio
from collections.abc import Awaitable, Callable

from kernelbridge.jupyter.cell import Cell, Outcome
from kernelbridge.jupyter.events import Asked, CellEvent
from tests.unit.jupyter.conftest import PATIENCE, Notebook

NewNotebook = Callable[..., Awaitable[Notebook]]

GIVES_UP = """
import os, signal
def give_up(*_): raise TimeoutError
signal.signal(signal.SIGALRM, give_up)
signal.setitimer(signal.ITIMER_REAL, 0.05)
try: input("first? ")
except TimeoutError: print("gave up")
print(input("second? "))
"""


async def test_an_answer_to_a_question_that_was_given_up_answers_no_other(new_notebook: NewNotebook) -> None:
    """Also one that is on its way to the kernel when that asks again."""
    notebook = await new_notebook()
    kernel, loop = notebook.kernel, asyncio.get_running_loop()
    asked, done = asyncio.Queue[Asked](), loop.create_future()

    def listen(event: CellEvent) -> None:
        if isinstance(event, Asked):
            asked.put_nowait(event)

    def finished(outcome: Outcome) -> None:
        done.set_result(outcome)

    kernel.submit(Cell(code=GIVES_UP, allow_stdin=True), finished, listen)
    first = await asyncio.wait_for(asked.get(), PATIENCE)
    second = await asyncio.wait_for(asked.get(), PATIENCE)
    late = kernel._codec.request("input_reply", {"status": "ok", "value": "late"}, parent=first.input_id)[1]
    kernel._alive().send("stdin", late)
    kernel.reply_input("right")
    outcome = await asyncio.wait_for(done, PATIENCE)
    assert (second.prompt, outcome.output) == ("second? ", "gave up\nright\n")
