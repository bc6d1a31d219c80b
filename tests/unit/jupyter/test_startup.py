"""Requests to a kernel that starts, also to kernels that drop some of them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Mapping
from importlib.util import MAGIC_NUMBER
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from msgspec import structs

from kernelbridge.errors import KernelError, SandboxError
from kernelbridge.jupyter import requests, wire
from kernelbridge.jupyter.launch import hooks_failure, hooks_request, program_request
from kernelbridge.jupyter.requests import LIMIT, RequestTable
from kernelbridge.jupyter.startup import explained
from kernelbridge.runtimes.contract import NO_ROOM, Sandbox
from kernelbridge.runtimes.facts import KernelSpec
from tests.unit.jupyter.conftest import PATIENCE, Notebook

NewNotebook = Callable[..., Awaitable[Notebook]]


def faulty(fault: str, language: str = "faulty") -> KernelSpec:
    argv = (sys.executable, str(Path(__file__).with_name("faulty_kernel.py")), fault, "{connection_file}")
    return KernelSpec(name="faulty", argv=argv, language=language, display_name="Faulty")


async def test_requests_that_a_starting_kernel_drops_are_sent_again(new_notebook: NewNotebook) -> None:
    notebook = await new_notebook(faulty("drops its first requests"), start_timeout=20.0)
    assert (await notebook.run("x")).output == "before the fault\n"
    assert len(notebook.kernel._requests) == 0


async def test_a_kernel_that_answers_nothing_on_control_starts(new_notebook: NewNotebook) -> None:
    notebook = await new_notebook(faulty("deaf on control"), start_timeout=20.0)
    assert (await notebook.run("x")).output == "before the fault\n"


async def test_the_hooks_are_sent_again_if_they_are_dropped(new_notebook: NewNotebook) -> None:
    notebook = await new_notebook(faulty("drops its first execution", "python"), start_timeout=20.0)
    assert notebook.kernel.has_hooks
    assert (await notebook.run("x")).output == "before the fault\n"


async def test_a_kernel_that_was_asked_often_before_it_was_ready_shows_its_output(
    new_notebook: NewNotebook, monkeypatch: pytest.MonkeyPatch, any_spec: KernelSpec
) -> None:
    """A slow start repeats its requests, and each answer is beside two messages of the output's channel."""
    ask = RequestTable.ask_until_answered

    async def ask_often(
        table: RequestTable, channel: str, msg_type: str, content: Mapping[str, Any]
    ) -> wire.Message | None:
        for _ in range(20):
            assert await table.ask(channel, "kernel_info_request", {}) is not None
        return await ask(table, channel, msg_type, content)

    monkeypatch.setattr(RequestTable, "ask_until_answered", ask_often)
    notebook = await new_notebook(any_spec)
    assert (await notebook.run("for n in range(100): print(n, flush=True)")).output.endswith("\n98\n99\n")


async def test_hooks_that_take_long_are_installed_once(
    new_notebook: NewNotebook, monkeypatch: pytest.MonkeyPatch, any_spec: KernelSpec
) -> None:
    """The request is sent several times, because it seems to be dropped, but the program runs once."""
    monkeypatch.setattr(requests, "FIRST_REPEAT", 0.001)
    notebook = await new_notebook(any_spec)
    outcome = await notebook.run("print('a')\n1")
    assert (outcome.error, outcome.output) == (None, "a\n1\n"), (outcome, notebook.late)
    content = hooks_request()
    before = await notebook.run("id(get_ipython().kernel.init_metadata)")
    for _ in range(2):
        reply = await notebook.kernel._requests.ask("shell", "execute_request", content)
        assert reply is not None
        assert hooks_failure(reply) is None
    after = await notebook.run("id(get_ipython().kernel.init_metadata)")
    assert (after.success, after.output) == (True, before.output)


@pytest.mark.parametrize(("magic", "error"), [(MAGIC_NUMBER, LookupError), (b"another", SyntaxError)])
def test_only_a_kernel_of_the_same_python_runs_compiled_code(magic: bytes, error: type[Exception]) -> None:
    """The source in this request is not Python, but its code is that of a program that raises `LookupError`."""
    source = "raise LookupError(__name__)"
    expression = program_request(source, magic)["user_expressions"]["hooks"].replace(repr(source), "'?'")
    with pytest.raises(error, match="<kernelbridge>"):
        eval(expression, {"get_ipython": lambda: SimpleNamespace(kernel=SimpleNamespace())})


async def test_a_kernel_that_answers_nothing_does_not_start(new_notebook: NewNotebook) -> None:
    with pytest.raises(KernelError) as caught:
        await new_notebook(faulty("deaf"), start_timeout=1.0)
    assert "it did not answer within 1 s" in caught.value.reason


async def test_a_kernel_whose_output_is_never_heard_does_not_start(new_notebook: NewNotebook) -> None:
    with pytest.raises(KernelError) as caught:
        await new_notebook(faulty("mute"), start_timeout=1.0)
    assert "it did not answer within 1 s" in caught.value.reason


async def test_answers_of_repeated_requests_are_ignored(new_notebook: NewNotebook) -> None:
    notebook = await new_notebook(faulty("slow at first"), start_timeout=20.0)
    for _ in range(3):
        assert (await notebook.run("x")).output == "before the fault\n"
    assert len(notebook.kernel._requests) == 0


async def test_interrupts_that_a_kernel_ignores_do_not_fill_its_table(new_notebook: NewNotebook) -> None:
    spec = structs.replace(faulty("deaf on control, never answers"), interrupt_mode="message")
    notebook = await new_notebook(spec)
    notebook.send("x")
    async with asyncio.timeout(PATIENCE):
        for _ in range(LIMIT + 1):
            ask = asyncio.create_task(notebook.kernel.interrupt())
            while len(notebook.kernel._requests) == 0:
                assert not ask.done()
                await asyncio.sleep(0)  # until it is sent
            ask.cancel()
            await asyncio.wait({ask})
            assert len(notebook.kernel._requests) == 0


class CrowdedSandbox:
    """Has as many processes as it may have, or almost none, or is gone."""

    def __init__(self, crowded: bool | None) -> None:  # noqa: FBT001 - what is asked
        self.answer = crowded

    async def crowded(self) -> bool | None:
        if self.answer is None:
            raise SandboxError("The sandbox is gone")
        return self.answer


@pytest.mark.parametrize(
    ("crowded", "reason", "told"),
    [
        (True, "it printed nothing", f"{NO_ROOM}; it printed nothing"),
        (True, f"it ended: {NO_ROOM}; fork", f"it ended: {NO_ROOM}; fork"),
        (False, "it printed nothing", "it printed nothing"),
        (None, "it printed nothing", "it printed nothing"),
    ],
)
async def test_a_kernel_that_found_no_room_for_its_threads_says_so_once(
    crowded: bool | None,  # noqa: FBT001 - a parameter of the table
    reason: str,
    told: str,
) -> None:
    sandbox = cast("Sandbox", CrowdedSandbox(crowded))
    assert (await explained(KernelError("The kernel did not start", reason), sandbox)).reason == told
