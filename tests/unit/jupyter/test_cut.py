"""Interrupts at moments at which a message of the kernel could be cut or lost: of questions, output and replies."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Callable

import pytest

from kernelbridge.jupyter.cell import Cell, Outcome
from kernelbridge.jupyter.events import Asked, CellEvent
from tests.unit.jupyter.conftest import PATIENCE, Notebook

NewNotebook = Callable[..., Awaitable[Notebook]]


async def asks(notebook: Notebook, code: str, heard: Callable[[], None] = lambda: None) -> Outcome:
    """Run a cell and answer all its questions; `heard` is called first."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Outcome] = loop.create_future()

    def listen(event: CellEvent) -> None:
        if isinstance(event, Asked):
            heard()
            loop.call_soon(notebook.kernel.reply_input, "answer")

    notebook.kernel.submit(Cell(code=code, allow_stdin=True), done.set_result, listen)
    return await asyncio.wait_for(done, PATIENCE)


# An interrupt behind one frame of the first question.
CUT = """
import signal, zmq
socket = get_ipython().kernel.stdin_socket
parts = 0
def send(data, flags=0, **more):
    global parts
    sent = zmq.Socket.send(socket, data, flags, **more)
    parts += 1
    if parts == {cut}:
        signal.raise_signal(signal.SIGINT)
    return sent
socket.send = send
try:
    {ask}
except KeyboardInterrupt:
    print('interrupted')
finally:
    del socket.send
print(input('again? '))
"""


@pytest.mark.parametrize("ask", ["input('first? ')", "__import__('getpass').getpass('first? ')"])
@pytest.mark.parametrize("awaits", [False, True])
async def test_a_question_is_sent_complete(new_notebook: NewNotebook, ask: str, *, awaits: bool) -> None:
    notebook = await new_notebook()
    for cut in range(1, 8):
        code = CUT.format(ask=ask, cut=cut)
        if awaits:
            code = "import asyncio\nawait asyncio.sleep(0)" + code
        outcome = await asks(notebook, code)
        assert (outcome.output, outcome.error) == ("interrupted\nanswer\n", None)


# An interrupt at one line of what Python does to see whether the publishing thread lives.
LOOKS = """
import sys
left = {line}
def trace(frame, event, arg):
    global left
    if frame.f_code.co_name != '_wait_for_tstate_lock':
        return None
    left -= event == 'line'
    if left == 0:
        raise KeyboardInterrupt
    return trace
sys.settrace(trace)
try:
    get_ipython().kernel.iopub_thread.thread.is_alive()
except KeyboardInterrupt:
    pass
finally:
    sys.settrace(None)
print(get_ipython().kernel.iopub_thread.thread.is_alive())
"""


async def test_an_interrupted_print_leaves_the_publishing_thread_alive(new_notebook: NewNotebook) -> None:
    notebook = await new_notebook()
    for line in range(1, 8):
        assert (await notebook.run(LOOKS.format(line=line))).output == "True\n"


# An interrupt where IPython looks what it has to call behind a cell.
BEHIND = """
import collections, functools, signal
interrupt = functools.partial(list, filter(signal.raise_signal, [signal.SIGINT]))
others = {{name: found for name, found in get_ipython().events.callbacks.items() if name != {event!r}}}
get_ipython().events.callbacks = collections.defaultdict(interrupt, others)
"""


async def test_an_interrupt_after_a_cell_costs_no_reply(new_notebook: NewNotebook) -> None:
    notebook = await new_notebook()
    for event in ("post_execute", "post_run_cell"):
        assert (await notebook.run(BEHIND.format(event=event))).success
        assert (await notebook.run("print(1)")).output == "1\n"


# An interrupt as soon as ipykernel lets one through, which it does before it begins with a request.
BEFORE = """
import signal, ipykernel.kernelbase as base
set_handler = base.signal
def let_through(number, handler):
    before = set_handler(number, handler)
    signal.raise_signal(number)
    return before
base.signal = let_through
"""


async def test_an_interrupt_before_a_cell_costs_no_reply(new_notebook: NewNotebook) -> None:
    notebook = await new_notebook()
    assert (await notebook.run(BEFORE)).success
    assert (await notebook.run("print(1)")).output == "1\n"


async def test_interrupts_at_any_time_damage_no_question(new_notebook: NewNotebook) -> None:
    notebook = await new_notebook()
    loop, pid = asyncio.get_running_loop(), notebook.sandbox.processes[0].pid
    chance, interrupts = random.Random(1), 0

    def heard() -> None:
        nonlocal interrupts
        interrupts += 1
        loop.call_later(chance.uniform(0, 0.001), os.kill, pid, signal.SIGINT)  # about when it asks again

    while interrupts < 300:
        outcome = await asks(notebook, "while True: input('? ')", heard)
        assert outcome.error in {"KeyboardInterrupt", "KeyboardInterrupt: Interrupted by user"}
