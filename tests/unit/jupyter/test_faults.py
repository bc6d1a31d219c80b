"""Kernels that die, freeze, or break the protocol."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from kernelbridge.errors import KernelError
from kernelbridge.jupyter.cell import Cell, Outcome
from kernelbridge.jupyter.completion_watchdog import NO_REPLY
from kernelbridge.jupyter.end_causes import SESSION_CLOSED
from kernelbridge.jupyter.kernel import Kernel
from kernelbridge.jupyter.launch import program_request
from kernelbridge.jupyter.startup import ProcessOutput, wait_started
from kernelbridge.runtimes.contract import END_SECONDS, ExitStatus
from kernelbridge.runtimes.facts import KernelSpec
from tests.contract.driving import state
from tests.unit.jupyter.conftest import PATIENCE, HostProcess, HostSandbox, Notebook

NewNotebook = Callable[..., Awaitable[Notebook]]


def spec(*argv: str) -> KernelSpec:
    return KernelSpec(name="faulty", argv=argv, language="faulty", display_name="Faulty")


def faulty(fault: str) -> KernelSpec:
    return spec(sys.executable, str(Path(__file__).with_name("faulty_kernel.py")), fault, "{connection_file}")


async def died(notebook: Notebook) -> ExitStatus:
    return await asyncio.wait_for(asyncio.shield(notebook.kernel.died), PATIENCE)


@pytest.mark.parametrize(
    "fault",
    [
        "no delimiter",
        "one empty frame",
        "wrong signature",
        "deep json",
        "deep header",
        "header that is not utf-8",
        "text is a number",
        "reply is a list",
        "frame over the limit",
        "many frames",
        "closes its channels",
    ],
)
async def test_a_kernel_that_breaks_the_protocol_is_ended(new_notebook: NewNotebook, fault: str) -> None:
    notebook = await new_notebook(faulty(fault), max_message=1 << 20)
    outcomes: list[Outcome] = []
    for _ in range(3):
        notebook.kernel.submit(Cell(code="x"), outcomes.append)
    assert await died(notebook) == ExitStatus(signal=signal.SIGKILL)
    assert len(outcomes) == 3
    assert outcomes[0].output in {"before the fault\n", ""}
    for outcome in outcomes:
        assert (outcome.success, outcome.cause, outcome.state_preserved) == (False, "kernel_died", False)
        assert outcome.error is not None
        assert outcome.error.startswith("KernelDied: the kernel was ended because it ")
    with pytest.raises(KernelError):
        notebook.send("x")
    await notebook.kernel.interrupt()


class EndToldLate(HostProcess):
    """A program of a sandbox that ended with it: how is told as late as a runtime may."""

    async def _wait(self) -> ExitStatus:
        await super()._wait()
        told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(END_SECONDS, told.set_result, None)
        await told
        return ExitStatus(lost=True)


async def test_a_kernel_that_ended_with_its_sandbox_did_not_break_the_protocol(
    new_notebook: NewNotebook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.unit.jupyter.conftest.HostProcess", EndToldLate)
    notebook = await new_notebook()
    outcome = await notebook.run("import os; os.kill(os.getpid(), 9)")
    assert (outcome.cause, outcome.state_preserved) == ("sandbox_lost", False)


async def test_forged_messages_complete_a_request_once(new_notebook: NewNotebook) -> None:
    notebook = await new_notebook(faulty("forged"))
    outcomes: list[Outcome] = []
    for _ in range(5):
        notebook.kernel.submit(Cell(code="x"), outcomes.append)
    last = await notebook.run("x")
    assert len(outcomes) == 5
    assert [outcome.execution_count for outcome in [*outcomes, last]] == [7] * 6


async def test_an_aborted_cell_ends_with_its_reply(new_notebook: NewNotebook) -> None:
    notebook = await new_notebook(faulty("aborts the second"))
    sent = [notebook.send("x") for _ in range(3)]
    outcomes = await asyncio.wait_for(asyncio.gather(*sent), PATIENCE)
    assert [outcome.success for outcome in outcomes] == [True, False, True]
    assert (outcomes[1].error or "").startswith("Aborted: ")


async def test_output_after_the_reply_belongs_to_the_cell(new_notebook: NewNotebook) -> None:
    notebook = await new_notebook(faulty("output after the reply"))
    assert (await notebook.run("x")).output == "before the fault\nafter the reply\n"


async def test_a_kernel_that_sends_idle_without_a_reply_is_ended(new_notebook: NewNotebook) -> None:
    notebook = await new_notebook(faulty("idle without a reply"))
    began = time.monotonic()
    outcome = await notebook.run("x")
    print(f"told after {time.monotonic() - began:.1f} s")
    assert (outcome.output, outcome.cause, outcome.state_preserved) == ("before the fault\n", "kernel_died", False)
    assert outcome.error == f"KernelDied: the kernel was ended because {NO_REPLY}; its variables are lost"
    assert await died(notebook) == ExitStatus(signal=signal.SIGKILL)


async def test_a_kernel_that_loses_its_reply_by_an_interrupt_lives(new_notebook: NewNotebook) -> None:
    notebook = await new_notebook(faulty("idle without a reply"))
    running = notebook.send("x")
    await asyncio.wait_for(notebook.kernel.interrupt(), PATIENCE)
    outcome = await asyncio.wait_for(running, PATIENCE)
    assert (outcome.output, outcome.cause, outcome.error) == ("before the fault\n", "interrupted", "KeyboardInterrupt")
    assert outcome.state_preserved
    assert not notebook.kernel.died.done()


async def test_a_reply_without_idle_ends_the_cell(new_notebook: NewNotebook) -> None:
    notebook = await new_notebook(faulty("never idle"))
    for _ in range(2):
        outcome = await notebook.run("x")
        assert (outcome.success, outcome.output, outcome.state_preserved) == (True, "before the fault\n", True)


async def test_the_session_can_be_closed_while_a_cell_runs(new_notebook: NewNotebook) -> None:
    notebook = await new_notebook(faulty("never answers"))
    done = notebook.send("x")
    await notebook.kernel.aclose()
    assert done.result().cause == "session_closed"
    assert notebook.kernel.died.result() == ExitStatus(signal=signal.SIGKILL)
    await notebook.kernel.aclose()


async def test_a_cell_can_be_ended_from_outside(new_notebook: NewNotebook) -> None:
    notebook = await new_notebook(faulty("never answers"))
    done = notebook.send("x")
    notebook.kernel.end_pending(SESSION_CLOSED)
    assert (done.result().cause, done.result().state_preserved) == ("session_closed", False)


async def test_a_kernel_killed_while_a_cell_runs(new_notebook: NewNotebook) -> None:
    """The dead peer: it never answers again, and nothing waits for it."""
    notebook = await new_notebook()
    gate = Path(notebook.sandbox.workspace_path) / "gate"
    os.mkfifo(gate)
    running = notebook.send("print('so far', flush=True); open('gate', 'w').close()\nwhile True: pass")
    queued = notebook.send("x")
    await asyncio.wait_for(asyncio.to_thread(gate.read_text), PATIENCE)
    os.kill(notebook.sandbox.processes[0].pid, signal.SIGKILL)
    outcome = await asyncio.wait_for(running, PATIENCE)
    assert (outcome.success, outcome.cause) == (False, "kernel_died")
    assert outcome.output in {"so far\n", ""}  # what libzmq's own thread had not written yet is lost with it
    assert outcome.error == "KernelDied: the kernel ended (signal 9); its variables are lost"
    assert queued.result().cause == "kernel_died"
    assert await died(notebook) == ExitStatus(signal=signal.SIGKILL)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("import os; print('so far', flush=True); os._exit(7)", ExitStatus(code=7)),
        ("import ctypes; print('so far', flush=True); ctypes.string_at(0)", ExitStatus(signal=signal.SIGSEGV)),
    ],
)
async def test_a_cell_that_ends_its_kernel(new_notebook: NewNotebook, code: str, status: ExitStatus) -> None:
    notebook = await new_notebook()
    outcome = await notebook.run(code)
    assert (outcome.success, outcome.cause, outcome.state_preserved) == (False, "kernel_died", False)
    assert f"({status})" in (outcome.error or "")
    assert outcome.output in {"so far\n", ""}  # what ZeroMQ had sent when the process was gone
    assert await died(notebook) == status


@pytest.mark.parametrize("code", ["exit()", "quit()", "exit", "import sys; sys.exit(3)"])
async def test_exit_ends_the_kernel_after_the_reply(new_notebook: NewNotebook, code: str) -> None:
    notebook = await new_notebook()
    outcome = await notebook.run(f"print('bye')\n{code}" if code != "exit" else code)
    if "sys" in code:
        assert (outcome.success, outcome.error) == (False, "SystemExit: 3")
        assert (await notebook.run("1")).success
        return
    assert outcome.success
    assert not outcome.state_preserved
    assert await died(notebook) == ExitStatus(code=0)


async def frozen(pid: int) -> None:
    """Stop a process, and wait until all of its threads have stopped."""
    os.kill(pid, signal.SIGSTOP)
    async with asyncio.timeout(PATIENCE):
        threads = Path(f"/proc/{pid}/task")
        while {state(int(thread.name)) for thread in threads.iterdir()} != {"T"}:  # noqa: ASYNC110 - no event tells it
            await asyncio.sleep(0)


async def test_a_frozen_kernel_blocks_nothing(new_notebook: NewNotebook) -> None:
    notebook = await new_notebook()
    pid = notebook.sandbox.processes[0].pid
    await frozen(pid)
    sent = [notebook.send(f"len({'x' * 10_000!r}) + {number}") for number in range(300)]
    os.kill(pid, signal.SIGCONT)
    outcomes = await asyncio.wait_for(asyncio.gather(*sent), PATIENCE)
    assert [outcome.output for outcome in outcomes] == [f"{10_000 + number}\n" for number in range(300)]
    await frozen(pid)
    done = notebook.send("1")
    await notebook.kernel.kill()
    assert (await asyncio.wait_for(done, PATIENCE)).cause == "kernel_died"


async def test_the_first_cell_of_a_fresh_kernel_has_all_its_output(new_notebook: NewNotebook) -> None:
    """The lost iopub at start: a subscription takes effect some time after connect."""
    for _ in range(5):
        notebook = await new_notebook()
        assert (await notebook.run("print('first')\n1")).output == "first\n1\n"
        assert notebook.late == []


async def test_a_kernel_without_hooks_works_too(new_notebook: NewNotebook) -> None:
    notebook = await new_notebook(hooks=False)
    outcome = await notebook.run("print('a')\n1/0")
    assert (outcome.output, outcome.error, outcome.cpu_ms) == ("a\n", "ZeroDivisionError: division by zero", None)
    assert "\x1b" not in (outcome.traceback or "\x1b")


async def test_hooks_that_do_not_fit_leave_a_working_kernel(
    new_notebook: NewNotebook, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = program_request("raise ImportError('no such IPython')")
    monkeypatch.setattr("kernelbridge.jupyter.startup.hooks_request", lambda: request)
    notebook = await new_notebook()
    assert (await notebook.run("print(1)")).output == "1\n"


async def test_a_second_incarnation_beside_the_first(new_notebook: NewNotebook) -> None:
    notebook = await new_notebook()
    first = notebook.kernel
    await notebook.start(incarnation=2)
    assert (await notebook.run("2")).output == "2\n"
    await first.aclose()
    assert (await notebook.run("3")).output == "3\n"
    assert [path.name for path in notebook.sandbox.shared.host.iterdir()] == ["k2"]


async def test_a_cell_that_cannot_be_sent_leaves_nothing_behind(new_notebook: NewNotebook) -> None:
    notebook = await new_notebook(faulty("never answers"))
    with pytest.raises(ValueError, match="surrogates"):
        notebook.send("'\ud800'")
    assert repr(notebook.kernel) == "<Kernel faulty alive pending=0>"


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (
            ("sh", "-c", "echo no such module >&2; exit 3"),
            "its process ended (exit code 3); its last output: no such",
        ),
        (("sh", "-c", "kill -9 $$"), "its process ended (signal 9)"),
        (
            ("sh", "-c", "echo starting; exec sleep 3600"),
            "it did not answer within 0.5 s; its last output: starting",
        ),
        (
            ("sh", "-c", "cd $(dirname $0) && touch s-1 s-2 s-3 s-4 s-5; exec sleep 3600", "{connection_file}"),
            "its socket s-1 is not a socket",
        ),
        (
            (
                "sh",
                "-c",
                "cd $(dirname $0) && for i in 1 2 3 4 5; do ln -s /run/x s-$i; done; exec sleep 3600",
                "{connection_file}",
            ),
            "its socket s-1 is not a socket",
        ),
    ],
)
async def test_a_kernel_that_does_not_start(tmp_path: Path, argv: tuple[str, ...], why: str) -> None:
    sandbox = HostSandbox(tmp_path)
    with pytest.raises(KernelError) as caught:
        await Kernel.start(
            sandbox,
            spec(*argv),
            incarnation=1,
            on_late_output=lambda _: None,
            start_timeout=0.5 if "within" in why else PATIENCE,
        )
    assert why in caught.value.reason
    assert list(sandbox.shared.host.iterdir()) == []
    assert all(process._ended.done() for process in sandbox.processes)


async def test_a_cancelled_start_leaves_no_task() -> None:
    loop = asyncio.get_running_loop()
    answer, died = loop.create_future(), loop.create_future()

    async def bring_up() -> None:
        await asyncio.wait({answer})
        raise KernelError("The kernel is dead", "its channels were closed under whoever brings it up")

    work = asyncio.create_task(bring_up())
    start = asyncio.create_task(wait_started(work, died, PATIENCE, ProcessOutput(), fault=lambda: None))
    loop.call_soon(start.cancel)
    await asyncio.wait({start})
    assert start.cancelled()
    assert work.cancelled()
