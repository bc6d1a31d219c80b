"""Kernels that one server leaves and another takes over, in all states of a cell."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from kernelbridge.errors import KernelError
from kernelbridge.jupyter.adopted import AdoptedKernel
from kernelbridge.jupyter.cell import Cell, Outcome
from kernelbridge.jupyter.identity import KernelIdentity
from kernelbridge.jupyter.requests import RequestTable
from kernelbridge.jupyter.startup import wait_heard
from tests.unit.jupyter.conftest import PATIENCE, Notebook

NewNotebook = Callable[..., Awaitable[Notebook]]


def until(path: Path) -> str:
    return f"import os, time\nwhile not os.path.exists({str(path)!r}): time.sleep(0.01)\n"


async def there(path: Path) -> None:
    async with asyncio.timeout(PATIENCE):
        while not path.exists():  # noqa: ASYNC110 - the file system tells nobody
            await asyncio.sleep(0.01)


class Change:
    """One kernel, and a change of its server."""

    def __init__(self, notebook: Notebook) -> None:
        self.notebook = notebook
        self.root = Path(notebook.sandbox.workspace_path)
        self.identity: KernelIdentity
        self.msg_id = ""
        self.late: list[str] = []
        self.adopted: AdoptedKernel

    async def leave(self, code: str | None = None, *, first: str = "") -> None:
        """Send a cell, wait until the line `first` has run, and leave the kernel."""
        kernel = self.notebook.kernel
        if code is not None:
            begun = self.root / "begun"
            cell = Cell(code=f"{first}\nopen({str(begun)!r}, 'w').close()\n{code}")
            kernel.submit(cell, lambda outcome: pytest.fail(f"answered: {outcome}"), note=self._note)
            await there(begun)
        self.identity = kernel.identity
        await kernel.leave()

    def _note(self, msg_id: str) -> None:
        self.msg_id = msg_id

    def adopt(self) -> AdoptedKernel:
        """Be the next server."""
        adopted = AdoptedKernel.adopt(
            self.notebook.sandbox,
            self.notebook.sandbox.processes[-1],
            self.identity,
            on_late_output=self.late.append,
            max_output=10 << 20,
        )
        self.notebook.kernel = self.adopted = adopted
        return adopted

    def adopt_cell(self, **more: Any) -> asyncio.Future[Outcome]:
        """Be the next server, and wait for the cell."""
        done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        kernel = self.adopt()
        kernel.adopt_cell(
            self.msg_id,
            lambda outcome: done.set_result(kernel.with_losses(outcome)),
            None,
            **({"asks": False, "began": 0.0} | more),
        )
        return done


@pytest.fixture
def change(new_notebook: NewNotebook) -> Callable[..., Awaitable[Change]]:
    async def make(**settings: Any) -> Change:
        return Change(await new_notebook(**settings))

    return make


NewChange = Callable[..., Awaitable[Change]]


async def test_a_kernel_runs_on_after_its_server_has_left(change: NewChange) -> None:
    case = await change()
    await case.notebook.run("x = 1")
    await case.leave()
    kernel = case.adopt()
    await kernel.settle(PATIENCE)
    assert (await case.notebook.run("print(x)")).output == "1\n"
    assert kernel.identity == case.identity


async def test_a_kernel_in_which_nothing_has_run_is_taken_over(change: NewChange) -> None:
    case = await change()
    await case.leave()
    await case.adopt().settle(PATIENCE)
    assert (await asyncio.wait_for(case.notebook.run("print(1)"), PATIENCE)).output == "1\n"


async def test_each_line_of_a_cell_that_never_stops_writing_comes_once(change: NewChange) -> None:
    case = await change()
    go = case.root / "go"
    await case.leave(f"import os\nn = 0\nwhile not os.path.exists({str(go)!r}):\n    print(n, flush=True); n += 1")
    done = case.adopt_cell()
    async with asyncio.timeout(PATIENCE):
        while not case.adopted._caught_up.done():  # noqa: ASYNC110 - it has not caught up yet
            await asyncio.sleep(0)
    go.touch()
    outcome = await asyncio.wait_for(done, PATIENCE)
    lines = [int(line) for line in outcome.output.split()]
    missing = 0 if outcome.truncated is None else outcome.truncated["bytes"]
    first = lines[0]
    assert lines == list(range(first, first + len(lines)))
    assert missing == sum(len(f"{number}\n") for number in range(first))


async def test_results_displays_and_errors_sent_between_servers_are_in_the_result(change: NewChange) -> None:
    case = await change()
    over = case.root / "over"
    await case.leave(
        f"{until(case.root / 'go')}from IPython.display import display\n"
        "import sys, threading\nhandle = display('first', display_id=True)\nhandle.update('second')\n"
        f"print('said', file=sys.stderr)\nthreading.Timer(0.5, lambda: open({str(over)!r}, 'w').close()).start()\n1 / 0"
    )
    (case.root / "go").touch()
    await there(over)
    outcome = await asyncio.wait_for(case.adopt_cell(), PATIENCE)
    assert outcome.error == "ZeroDivisionError: division by zero"
    assert outcome.output == "'second'\nsaid\n"
    assert outcome.stderr == "said\n"
    assert outcome.state_preserved
    assert outcome.cpu_ms is not None


async def test_text_of_threads_between_servers_is_late_output(change: NewChange) -> None:
    case = await change()
    over = case.root / "over"
    code = f"import threading\ndef tell():\n    print('meanwhile', flush=True)\n    open({str(over)!r}, 'w').close()\n"
    await case.notebook.run(f"{code}threading.Timer(0.5, tell).start()\nprint('mine')")
    await case.leave()
    await there(over)
    await case.adopt().settle(PATIENCE)
    assert "".join(case.late) == "meanwhile\n"


async def test_a_cell_that_never_reached_its_kernel_is_not_waited_for(change: NewChange) -> None:
    case = await change()
    await case.notebook.run("x = 1")
    await case.leave()
    case.msg_id = "never-sent_1"
    outcome = await asyncio.wait_for(case.adopt_cell(), PATIENCE)
    assert (outcome.success, outcome.cause, outcome.state_preserved) == (False, None, True)
    assert outcome.error is not None
    assert outcome.error.startswith("NeverRan: ")
    assert (await case.notebook.run("print(x)")).output == "1\n"


async def test_without_hooks_the_reply_arrives_and_the_loss_is_reported(change: NewChange) -> None:
    case = await change(hooks=False)
    printed = case.root / "printed"
    before = f"print('before', flush=True)\nopen({str(printed)!r}, 'w').close()\n"
    await case.leave(f"{before}{until(case.root / 'go')}print('after')\n42")
    await there(printed)
    done = case.adopt_cell()
    kernel = case.notebook.kernel
    async with asyncio.timeout(PATIENCE):
        while not kernel._iopub_seen.is_set():
            await kernel._requests.ask("control", "kernel_info_request", {})
    (case.root / "go").touch()
    outcome = await asyncio.wait_for(done, PATIENCE)
    assert (outcome.success, outcome.output) == (True, "after\n42\n")
    assert outcome.truncated == {"bytes": 0, "kept": "tail", "at": 0}
    assert "its output before that is lost" in outcome.late_output


async def test_a_kernel_without_our_hooks_does_not_keep_a_result(change: NewChange) -> None:
    case = await change(hooks=False)
    over = case.root / "over"
    timer = f"import threading; threading.Timer(0.5, lambda: open({str(over)!r}, 'w').close()).start()"
    await case.leave(f"{until(case.root / 'go')}{timer}\nx = 5")
    (case.root / "go").touch()
    await there(over)
    outcome = await asyncio.wait_for(case.adopt_cell(), PATIENCE)
    assert outcome.error is not None
    assert outcome.error.startswith("ResultLost: ")
    assert outcome.state_preserved
    assert (await case.notebook.run("print(x)")).output == "5\n"


async def test_the_outcome_says_how_an_adopted_kernel_died(change: NewChange) -> None:
    case = await change()
    await case.leave(f"print('x', flush=True)\n{until(case.root / 'go')}os._exit(3)")
    (case.root / "go").touch()
    await case.notebook.sandbox.processes[-1].wait()
    outcome = await asyncio.wait_for(case.adopt_cell(), PATIENCE)
    assert (outcome.cause, outcome.exit_code, outcome.state_preserved) == ("kernel_died", 3, False)
    assert "its output before that is lost" in outcome.late_output


async def test_a_kernel_that_cannot_repeat_its_output_reports_the_loss(change: NewChange) -> None:
    case = await change()
    await case.notebook.run(
        "recorder = get_ipython().kernel.iopub_thread._really_send.__globals__['recorder']\n"
        "def full(send): raise MemoryError\nprint('x')"
    )
    await case.leave(f"print('before', flush=True)\n{until(case.root / 'go')}", first="recorder.newest.replay = full")
    done = case.adopt_cell()
    (case.root / "go").touch()
    outcome = await asyncio.wait_for(done, PATIENCE)
    assert outcome.success
    assert outcome.truncated == {"bytes": 0, "kept": "tail", "at": 0}
    assert "its output before that is lost" in outcome.late_output


async def test_a_kernel_that_died_while_nothing_ran_cannot_be_taken_over(change: NewChange) -> None:
    case = await change()
    await case.leave()
    await case.notebook.sandbox.processes[-1].kill()
    with pytest.raises(KernelError, match="could not be taken over"):
        await case.adopt().settle(PATIENCE)


async def test_a_kernel_with_a_blocked_event_loop_is_taken_over(change: NewChange) -> None:
    case = await change()
    go, busy = case.root / "go", case.root / "busy"
    code = f"def keep():\n    import os, time\n    print('late', flush=True)\n    open({str(busy)!r}, 'w').close()\n"
    code += f"    while not os.path.exists({str(go)!r}): time.sleep(0.01)\n"
    await case.notebook.run(
        f"{code}import asyncio\nx = 1\nasyncio.get_running_loop().call_later(0.5, keep)\nprint('mine')"
    )
    await case.leave()
    await there(busy)
    try:
        await case.adopt().settle(5.0)
    finally:
        go.touch()
    assert (await case.notebook.run("print(x)")).output == "1\n"
    assert "".join(case.late) == "late\n"


async def test_a_cancelled_take_over_leaves_no_task(change: NewChange) -> None:
    place = await change()
    await place.leave()
    process = place.notebook.sandbox.processes[-1]
    os.kill(process.pid, signal.SIGSTOP)
    try:
        settling = asyncio.create_task(place.adopt().settle(PATIENCE))
        asyncio.get_running_loop().call_soon(settling.cancel)
        await asyncio.wait({settling})
        assert settling.cancelled()
        assert [task for task in asyncio.all_tasks() if "_settle" in repr(task.get_coro())] == []
    finally:
        os.kill(process.pid, signal.SIGCONT)


async def test_a_kernel_without_its_sockets_cannot_be_taken_over(change: NewChange) -> None:
    case = await change()
    await case.leave()
    (case.notebook.sandbox.shared.host / "k1" / "s-1").unlink()
    with pytest.raises(KernelError, match="its socket s-1 is gone"):
        case.adopt()


LIES = {
    "nonsense": "session.send(stream, 'kernelbridge_recall_reply', {'cell': 7}, parent, ident=ident)",
    "a mark that never comes": "session.send(stream, 'kernelbridge_recall_reply', {}, parent, ident=ident)",
    "too much": "session.send(stream, 'kernelbridge_recall_reply', {'cell': 'x' * 10**7}, parent, ident=ident)",
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
async def test_a_kernel_that_recalls_nonsense_harms_only_itself(
    change: NewChange, lie: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kernelbridge.jupyter.adopted.REPLAY_TIMEOUT", 0.5)
    case = await change()
    await case.notebook.run(
        "kernel = get_ipython().kernel\nsession = kernel.session\ndef lie(stream, ident, parent):\n"
        f"    {lie}\nkernel.control_handlers['kernelbridge_recall_request'] = lie"
    )
    await case.leave(until(case.root / "go"))
    done = case.adopt_cell()
    (case.root / "go").touch()
    outcome = await asyncio.wait_for(done, PATIENCE)
    assert outcome.cause == ("kernel_died" if not lie.count("{}") else None)


@pytest.mark.parametrize("runs", [False, True])
async def test_an_error_of_megabytes_costs_no_interpreter(change: NewChange, runs: bool) -> None:  # noqa: FBT001
    case = await change()
    await case.notebook.run("x = 1")
    code = "raise ValueError('y' * 3_000_000)"
    if runs:
        over = case.root / "over"
        go = case.root / "go"
        await case.leave(f"{until(go)}try:\n    {code}\nfinally:\n    open({str(over)!r}, 'w').close()")
        go.touch()
        await there(over)
        outcome = await asyncio.wait_for(case.adopt_cell(), PATIENCE)
        assert outcome.error is not None
        assert outcome.error.startswith("ValueError: yyyy")
    else:
        await case.notebook.run(code)
        await case.leave()
        await case.adopt().settle(PATIENCE)
    assert (await case.notebook.run("print(x)")).output == "1\n"


async def test_a_kernel_that_publishes_nothing_is_asked_at_intervals() -> None:
    class Mute:
        asked = 0

        async def ask(self, *_request: object) -> object:
            self.asked += 1
            return self

    requests = Mute()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await wait_heard(cast("RequestTable", requests), asyncio.Event(), on_control=True)
    assert 0 < requests.asked < 10
