"""A kernel that is not IPython's: bash_kernel, which is interrupted by a signal and answers that with `abort`."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from kernelbridge.runtimes.facts import KernelSpec
from tests.unit.jupyter.conftest import PATIENCE, HostSandbox, Notebook

pytestmark = pytest.mark.asyncio(loop_scope="module")

BASH = KernelSpec(
    name="bash",
    argv=(sys.executable, "-m", "bash_kernel", "-f", "{connection_file}"),
    language="bash",
    display_name="Bash",
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bash(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Notebook]:
    notebook = Notebook(HostSandbox(tmp_path_factory.mktemp("kernel")))
    yield await notebook.start(BASH)
    await notebook.close()


async def test_a_cell_and_its_failure(bash: Notebook) -> None:
    outcome = await bash.run("x=5; echo one; echo two >&2")
    assert (outcome.success, outcome.output) == (True, "one\ntwo\n")
    outcome = await bash.run("echo before; (exit 3)")
    assert (outcome.success, outcome.output, outcome.error, outcome.cause) == (False, "before\n", "Error: 3", None)


async def test_an_interrupted_cell_keeps_its_output_and_says_so(bash: Notebook) -> None:
    await bash.run("x=kept")
    gate = Path(bash.sandbox.workspace_path) / "gate"
    os.mkfifo(gate)
    running = bash.send("for i in 1 2 3; do echo line $i; done; : > gate; sleep 1000")
    await asyncio.wait_for(asyncio.to_thread(gate.read_text), PATIENCE)
    await bash.kernel.interrupt()
    outcome = await asyncio.wait_for(running, PATIENCE)
    assert (outcome.success, outcome.cause, outcome.state_preserved) == (False, "interrupted", True)
    assert outcome.error == "Interrupted: the kernel stopped the cell"
    assert outcome.output.startswith("line 1\nline 2\nline 3\n")
    outcome = await bash.run("echo $x")
    assert (outcome.success, outcome.output) == (True, "kept\n")
