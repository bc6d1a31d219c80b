"""Lines of a cell end where Python ends them, Windows' line ends included, and debuggers find them."""

from __future__ import annotations

import asyncio
from textwrap import dedent

import pytest

from kernelbridge.jupyter.cell import Cell, Outcome
from kernelbridge.jupyter.events import Asked, CellEvent
from tests.unit.jupyter.conftest import PATIENCE, Notebook

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize("odd", ["\u2028", "\u2029", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85"])
@pytest.mark.parametrize("head", ["", "%%time\n", "!true\n", "    "])
async def test_only_newlines_end_a_line(any_notebook: Notebook, odd: str, head: str) -> None:
    indent = head if head.isspace() else ""
    code = f"{head}text = 'a{odd}b'\n{indent}other = 1\n{indent}raise ValueError(len(text))"
    line = code.count("\n") + 1
    outcome = await any_notebook.run(code)
    shown = outcome.output + (outcome.traceback or "")  # `%%time` of IPython 8 shows an error, and goes on
    assert "ValueError: 3" in shown
    assert f'File "main.py", line {line}, in <module>\n    raise ValueError(len(text))\n' in shown
    assert "Warning" not in shown


async def test_a_form_feed_between_functions_is_in_no_source(any_notebook: Notebook) -> None:
    await any_notebook.run("def one():\n    return 1\n\x0c\ndef two():\n    return 2 / 0\n")
    outcome = await any_notebook.run("import inspect\nprint(inspect.getsource(two))\ntwo()")
    assert outcome.output == "def two():\n    return 2 / 0\n\n"
    assert "line 5, in two\n    return 2 / 0\n" in (outcome.traceback or "")


@pytest.mark.parametrize("end", ["\r\n", "\r"])
@pytest.mark.parametrize(
    ("lines", "output"),
    [
        (["%%bash", "echo a", "if true; then", "echo b; fi"], "a\nb\n"),
        (["!echo a", "x = !echo b", "print(x)"], "a\n['b']\n"),
        (["%%capture said", "print('a')"], ""),
        (["if True:", "    print('a')", "    print('''b", "c''')"], "a\nb\nc\n"),
        (["%%writefile lines.txt", "one", "two"], "Writing lines.txt\n"),
    ],
)
async def test_windows_line_ends_are_line_ends(any_notebook: Notebook, end: str, lines: list[str], output: str) -> None:
    await any_notebook.run("import os\nif os.path.exists('lines.txt'): os.unlink('lines.txt')")
    outcome = await any_notebook.run(end.join([*lines, ""]))
    assert (outcome.success, outcome.output) == (True, output)
    if "%%writefile lines.txt" in lines:
        assert (await any_notebook.run("print(open('lines.txt', 'rb').read())")).output == "b'one\\ntwo\\n'\n"


async def test_windows_line_ends_are_counted_once(any_notebook: Notebook) -> None:
    outcome = await any_notebook.run("x = 1\r\n\r\n%time 1\r\nx = (\r\n  1 / 0)\r\n")
    assert 'File "main.py", line 5, in <module>\n    1 / 0)\n' in (outcome.traceback or "")
    outcome = await any_notebook.run("x = 1\r\n\r\nx = (\r\n")
    assert 'File "main.py", line 3\n    x = (\n' in (outcome.traceback or "")


async def debug(notebook: Notebook, code: str, *replies: str) -> Outcome:
    """Run a cell whose questions are answered one after the other."""
    left = list(replies)
    done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def listen(event: CellEvent) -> None:
        if isinstance(event, Asked):
            notebook.kernel.reply_input(left.pop(0))

    notebook.kernel.submit(Cell(dedent(code).strip(), allow_stdin=True), done.set_result, listen)
    outcome = await asyncio.wait_for(done, PATIENCE)
    assert left == []
    return outcome


_DEBUGGED = """
    import pdb
    def g():
        x = 5
        {stop}
        y = x + 1
        return y
    print(g())
"""


@pytest.mark.parametrize("stop", ["pdb.set_trace()", "breakpoint()", "pdb.Pdb().set_trace()"])
async def test_a_debugger_shows_the_source_and_sets_breakpoints(any_notebook: Notebook, stop: str) -> None:
    outcome = await debug(any_notebook, _DEBUGGED.format(stop=stop), "l", "b 5", "tbreak 6", "c", "p y", "ll", "c")
    assert outcome.success, outcome.traceback
    said = outcome.output
    assert "Breakpoint 1 at main.py:5" in said or "Breakpoint 2 at main.py:5" in said or "at main.py:5" in said
    assert said.count("5     y = x + 1") >= 2 or said.count("5  ->\t    y = x + 1") >= 1
    assert "return y" in said
    assert "does not exist" not in said
    assert "\n6\n" in said
    await any_notebook.run("import bdb; bdb.Breakpoint.clearBreakpoints()")


async def test_a_debugger_stops_in_a_function_of_an_earlier_cell(any_notebook: Notebook) -> None:
    await any_notebook.run("import pdb\n\ndef earlier(a):\n    b = a + 1  # earlier\n    return b")
    outcome = await debug(any_notebook, "pdb.set_trace()\nearlier(1)", "b earlier", "c", "c")
    assert outcome.success, outcome.traceback
    assert "at main.py:3" in outcome.output
    assert "b = a + 1  # earlier" in outcome.output
    await any_notebook.run("import bdb; bdb.Breakpoint.clearBreakpoints()")


async def test_a_debugger_examines_an_error(any_notebook: Notebook) -> None:
    await any_notebook.run("def bad(a):\n    return a / 0  # bad\n\nbad(3)")
    outcome = await debug(any_notebook, "%debug", "l", "p a", "u", "q")
    assert "2     return a / 0  # bad" in outcome.output
    assert "\n3\n" in outcome.output
    assert "4 bad(3)" in outcome.output
    outcome = await debug(any_notebook, "import pdb, sys\npdb.post_mortem(sys.last_traceback)", "p a * 2", "q")
    assert "return a / 0  # bad" in outcome.output
    assert "\n6\n" in outcome.output


async def test_cells_run_in_other_threads(any_notebook: Notebook) -> None:
    code = """
        import asyncio, threading
        found = []
        def work():
            run = get_ipython().run_cell
            found.append(run("1 + 1").result)
            found.append(run("import asyncio\\nawait asyncio.sleep(0)\\n3").result)
            found.append(type(run("1 / 0").error_in_exec).__name__)
            found.append(get_ipython().run_line_magic("time", "4"))
        thread = threading.Thread(target=work); thread.start(); thread.join()
        print(found)
        print((await asyncio.to_thread(get_ipython().run_cell, "5")).result)
    """
    outcome = await any_notebook.run(dedent(code))
    assert outcome.success, outcome.traceback
    assert "[2, 3, 'ZeroDivisionError', 4]\n" in outcome.output
    assert outcome.output.endswith("5\n")
    assert "signal only works" not in outcome.output
    assert (await any_notebook.run("print('alive')")).output == "alive\n"


async def test_a_cell_in_a_subshell_while_another_runs(notebook: Notebook) -> None:
    """Only ipykernel 7 has subshells."""
    help_ = notebook.kernel.help
    assert help_.subshells
    code = "import time\nwhile not globals().get('go'): time.sleep(0.001)\nprint('went')"
    done = notebook.send(code)
    requests = notebook.kernel._requests
    made = await requests.ask("control", "create_subshell_request", {})
    assert made is not None
    name = __import__("json").loads(made.content)["subshell_id"]
    run = {"code": "go = 1\n1 / 0 if 0 else 7", "silent": False, "user_expressions": {}, "allow_stdin": False}
    reply = await asyncio.wait_for(requests.begin("shell", "execute_request", run, subshell=name), PATIENCE)
    assert reply is not None
    assert b'"ok"' in reply.content
    outcome = await asyncio.wait_for(done, PATIENCE)
    assert (outcome.success, outcome.output) == (True, "went\n")
    await requests.ask("control", "delete_subshell_request", {"subshell_id": name})
