"""What holds for every supported generation of the kernel."""

import pytest

from tests.unit.jupyter.conftest import Notebook

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_cell_is_answered_and_told_under_its_name(any_notebook: Notebook) -> None:
    outcome = await any_notebook.run("print('said')\n1/0", filename="main.py")
    assert outcome.output == "said\n"
    assert outcome.error == "ZeroDivisionError: division by zero"
    assert any_notebook.kernel.recalls, "our program is not in it"
