"""Streamed cells on real kernels: their events, the intervals, and what delays a flood."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from textwrap import dedent

from kernelbridge.jupyter.bounded import Spilled
from kernelbridge.jupyter.cell import Cell, Outcome
from kernelbridge.jupyter.events import CellEvent, Cleared, Displayed, Started, Updated, Wrote
from tests.unit.jupyter.conftest import PATIENCE, Notebook

NewNotebook = Callable[..., Awaitable[Notebook]]

INTERVAL = """
    import sys
    boxes = [cell.cell_contents for cell in type(sys.stdout).write.__closure__]
    [box.timer.seconds for box in boxes if hasattr(box, "timer")]
"""


async def watched(notebook: Notebook, code: str, *, silent: bool = False) -> tuple[list[CellEvent], Outcome]:
    """Run a cell; return its events and its outcome."""
    events: list[CellEvent] = []
    done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    notebook.kernel.submit(Cell(code=dedent(code), stream=True, silent=silent), done.set_result, events.append)
    return events, await asyncio.wait_for(done, PATIENCE)


class SlowDisk:
    """A spill that falls behind at once."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.fell_behind = asyncio.Event()
        self._caught_up: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def new(self) -> SlowDisk:
        return self

    def behind(self) -> asyncio.Future[None] | None:
        if self.texts and not self._caught_up.done():
            self.fell_behind.set()
            return self._caught_up
        return None

    def catch_up(self) -> None:
        self._caught_up.set_result(None)

    def begin(self, texts: Sequence[str]) -> None:
        self.texts = list(texts)

    def write(self, text: str) -> None:
        self.texts.append(text)

    def discard(self) -> None:
        raise AssertionError("it was too much")

    async def finish(self) -> Spilled:
        raise AssertionError("nobody asked where it is")


async def test_the_events_of_a_cell(new_notebook: NewNotebook) -> None:
    notebook = await new_notebook()
    code = """
        import sys
        from IPython.display import clear_output, display
        print("out")
        print("err", file=sys.stderr)
        handle = display("one", display_id="d")
        handle.update("two")
        clear_output()
        6 * 7
    """
    events, outcome = await watched(notebook, code)
    assert events[0] == Started(1)
    assert "".join(event.text for event in events if isinstance(event, Wrote) and event.stream == "stdout") == "out\n"
    assert "".join(event.text for event in events if isinstance(event, Wrote) and event.stream == "stderr") == "err\n"
    shown = [event for event in events[1:] if not isinstance(event, Wrote)]
    assert [type(event) for event in shown] == [Displayed, Updated, Cleared, Displayed]
    assert isinstance(shown[-1], Displayed)
    assert (shown[-1].data, shown[-1].result) == ({"text/plain": "42"}, True)
    assert outcome.output == "42\n"


async def test_a_traceback_that_does_not_end_the_cell_is_an_event(new_notebook: NewNotebook) -> None:
    notebook = await new_notebook()
    await notebook.run("1 / 0")
    events, outcome = await watched(notebook, "%tb\nprint('on')")
    text = "".join(event.text for event in events if isinstance(event, Wrote))
    assert "ZeroDivisionError" in text
    assert text == outcome.output
    events, outcome = await watched(notebook, "1 / 0")
    assert [type(event) for event in events] == [Started]
    assert outcome.traceback is not None


async def test_a_silent_cell_starts_without_a_count(new_notebook: NewNotebook) -> None:
    events, _ = await watched(await new_notebook(), "print('x')", silent=True)
    assert events == [Started(None), Wrote("stdout", "x\n")]


async def test_only_a_watched_cell_has_the_short_interval(new_notebook: NewNotebook) -> None:
    notebook = await new_notebook()
    assert (await notebook.run(dedent(INTERVAL))).output == "[0.2]\n"
    assert (await watched(notebook, INTERVAL))[1].output == "[0.004]\n"
    assert (await notebook.run(dedent(INTERVAL))).output == "[0.2]\n"


async def test_a_kernel_that_has_to_wait_loses_nothing(new_notebook: NewNotebook) -> None:
    disk = SlowDisk()
    notebook = await new_notebook(max_output=1 << 20, spills=disk)
    other = await new_notebook()
    done = notebook.send("line = 'x' * 79\nfor i in range(200_000): print(line)")
    await asyncio.wait_for(disk.fell_behind.wait(), PATIENCE)
    held = len(disk.texts)
    for _ in range(20):
        assert (await other.run("1")).success
    assert len(disk.texts) == held
    assert not done.done()
    disk.catch_up()
    outcome = await asyncio.wait_for(done, PATIENCE)
    assert outcome.spill is disk
    assert "".join(disk.texts) == ("x" * 79 + "\n") * 200_000
