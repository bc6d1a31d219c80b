"""Behaviour of every supported generation of the kernel."""

import ast
from importlib import resources

import pytest

from kernelbridge.jupyter.launch import PROGRAM
from tests.unit.jupyter.conftest import Notebook

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_cell_is_answered_and_shown_under_its_name(any_notebook: Notebook) -> None:
    outcome = await any_notebook.run("print('said')\n1/0", filename="main.py")
    assert outcome.output == "said\n"
    assert outcome.error == "ZeroDivisionError: division by zero"
    assert any_notebook.kernel.has_hooks, "our program is not in it"


CONTROL_GROUP = """if 1:
    import os
    for fd in os.listdir('/proc/self/fd'):
        try:
            path = os.readlink(f'/proc/self/fd/{fd}')
        except OSError:
            continue
        if path.startswith('/sys/fs/cgroup'):
            print(path)
"""
"""Prints which files of its control group a kernel has open."""


async def test_without_a_control_group_of_its_own_a_kernel_counts_no_kills(any_notebook: Notebook) -> None:
    assert (await any_notebook.run(CONTROL_GROUP)).output == ""


async def test_the_parts_of_our_program_share_no_name() -> None:
    """They run in one namespace: the later of two would replace the earlier."""
    names: list[str] = []
    for part in PROGRAM:
        tree = ast.parse(resources.files("kernelbridge.guest.kernel").joinpath(part).read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.append(node.name)
            elif isinstance(node, ast.Assign):
                names += [target.id for target in node.targets if isinstance(target, ast.Name)]
    assert [name for name in set(names) if names.count(name) > 1] == []
