"""Each program of `examples/` does what its docstring says."""

import ast
import asyncio
import base64
import json
import re
import socket
from pathlib import Path
from typing import Any

import aiohttp
import nbformat
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.client.servers import until
from tests.examples.conftest import EXAMPLES, Begin, Run

PNG = b"\x89PNG\r\n\x1a\n"
PROGRAMS = sorted(path.name for path in EXAMPLES.glob("*.py"))


class ScriptedModel:
    """A chat service: what its model says is written before, and what it is told is kept."""

    def __init__(self, *codes: str, answer: str) -> None:
        calls = [{"tool_calls": [{"id": f"call-{code}", "function": {"arguments": code}}]} for code in codes]
        self._messages = iter(
            [*({"role": "assistant", "content": None, **call} for call in calls), {"content": answer}]
        )
        self.told: list[dict[str, Any]] = []

    async def complete(self, request: web.Request) -> web.Response:
        self.told = (await request.json())["messages"]
        return web.json_response({"choices": [{"message": next(self._messages)}]})


async def test_a_model_runs_code_and_answers(run: Run) -> None:
    def arguments(code: str) -> str:
        return json.dumps({"code": code})

    model = ScriptedModel(
        arguments("x = 6"), "no JSON", arguments("print('y' * 9_000); x * 7"), arguments("1/0"), answer="It is 42."
    )
    app = web.Application()
    app.add_routes([web.post("/chat", model.complete)])
    async with TestServer(app) as service:
        done = await asyncio.to_thread(run, "llm_tool.py", "What is 6 * 7?", CHAT_URL=str(service.make_url("/chat")))
    assert (done.returncode, done.stdout) == (0, "It is 42.\n")
    question, *rest = model.told
    assert question == {"role": "user", "content": "What is 6 * 7?"}
    defined, wrong, long, failed = (message["content"] for message in rest if message["role"] == "tool")
    assert defined == "(no output)"
    assert wrong.startswith("Nothing was run.")
    assert "characters …" in long
    assert long.endswith("\n42")
    assert len(long) < 3_000
    assert failed.endswith("ZeroDivisionError: division by zero")


def cell(source: str) -> dict[str, Any]:
    return {"cell_type": "code", "metadata": {}, "source": source, "outputs": [], "execution_count": None}


def written(path: Path, *sources: str) -> None:
    """Write a notebook with these cells, and a text before them."""
    text = {"cell_type": "markdown", "metadata": {"kept": True}, "source": ["# Title\n", "text"]}
    notebook = {"nbformat": 4, "nbformat_minor": 4, "metadata": {"also": "kept"}, "cells": [text, *map(cell, sources)]}
    path.write_text(json.dumps(notebook))


CLEARED = (
    "from IPython.display import clear_output\nhandle = display(1, display_id=True)\nprint('a')",
    "for i in range(3):\n    clear_output(wait=True)\n    print(i)\nclear_output(wait=True)",
    "print('gone')\nclear_output()\nhandle.update(2)",
)
PLOT = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()"


def test_a_notebook_gets_the_outputs_of_its_cells(run: Run, tmp_path: Path) -> None:
    written(tmp_path / "in.ipynb", "x = 6\nprint('a')\nprint('b')", PLOT, "x * 7", *CLEARED)
    done = run("run_notebook.py", "in.ipynb", "out.ipynb")
    assert (done.returncode, done.stdout) == (0, "")
    notebook = nbformat.read(tmp_path / "out.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    nbformat.validate(notebook)
    text, printed, plotted, value, shown, last, cleared = notebook.cells
    assert text == {"cell_type": "markdown", "metadata": {"kept": True}, "source": "# Title\ntext"}
    assert notebook.metadata == {"also": "kept"}
    assert printed.outputs == [{"output_type": "stream", "name": "stdout", "text": "a\nb\n"}]
    (picture,) = plotted.outputs
    assert base64.b64decode(picture.data["image/png"]).startswith(PNG)
    assert (value.execution_count, value.outputs[0].execution_count) == (3, 3)
    assert value.outputs[0].data["text/plain"] == "42"
    assert [output.output_type for output in shown.outputs] == ["display_data", "stream"]
    assert shown.outputs[0].data["text/plain"] == "2", "replaced by a later cell"
    assert [output.text for output in last.outputs] == ["2\n"]
    assert cleared.outputs == []


def test_a_notebook_stops_at_the_cell_that_fails(run: Run, tmp_path: Path) -> None:
    written(tmp_path / "n.ipynb", "print(1)\n1/0", "print('never')")
    done = run("run_notebook.py", "n.ipynb")
    assert (done.returncode, done.stdout) == (1, "A cell failed: ZeroDivisionError division by zero\n")
    notebook = nbformat.read(tmp_path / "n.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    nbformat.validate(notebook)
    _, failed, after = notebook.cells
    assert [output.output_type for output in failed.outputs] == ["stream", "error"]
    assert after.outputs == []


def test_users_of_a_bot_have_a_session_each(begin: Begin) -> None:
    bot = begin("chat_bot.py")
    shown, _ = bot.communicate("ann: x = 20\nbob: x = 1\nann: x + 1\nbob: x + 1\nann: 1/0\n", timeout=60)
    lines = shown.splitlines()
    assert [line for line in lines if line.startswith("ann")] == [
        "ann> done",
        "ann> 21",
        "ann> ZeroDivisionError: division by zero",
        "ann> (your session is closed)",
    ]
    assert [line for line in lines if line.startswith("bob")] == [
        "bob> done",
        "bob> 2",
        "bob> (your session is closed)",
    ]


def test_a_bot_closes_the_session_of_an_idle_user(begin: Begin) -> None:
    bot = begin("chat_bot.py", IDLE="0.1")
    assert bot.stdin is not None
    assert bot.stdout is not None
    for message, shown in (("x = 1", "done"), ("x", "NameError: name 'x' is not defined")):
        bot.stdin.write(f"ann: {message}\n")
        bot.stdin.flush()
        assert bot.stdout.readline() == f"ann> {shown}\n"
        assert bot.stdout.readline() == "ann> (your session is closed)\n"


SUBMISSIONS = {
    "right": ("a, b = int(input()), int(input('b? '))\nprint(a + b)", "passed"),
    "wrong": ("print(7)", "test 2: wrong output"),
    "endless": ("while True: pass", "test 1: time limit"),
    "hungry": ("x = bytearray(600 << 20)\nprint(len(x))", "test 1: memory limit"),
    "loud": ("while True: print('x' * 100)", "test 1: too much output"),
    "failing": ("int(input()), int(input()), input()", "test 1: failed: EOFError"),
    "keeping": ("print(seen if 'seen' in globals() else int(input()) + int(input()))\nseen = 5", "passed"),
}


def test_programs_of_students_get_their_verdicts(run: Run, tmp_path: Path) -> None:
    for name, (program, _) in SUBMISSIONS.items():
        (tmp_path / f"{name}.py").write_text(program)
    tests = [{"input": ["3", "4"], "output": "7\n"}, {"input": ["-1", "1"], "output": "0\n"}]
    (tmp_path / "task.json").write_text(json.dumps(tests))
    done = run("grade.py", "task.json", *(f"{name}.py" for name in SUBMISSIONS))
    assert done.returncode == 0, done.stdout
    assert dict(line.split(": ", 1) for line in done.stdout.splitlines()) == {
        f"{name}.py": verdict for name, (_, verdict) in SUBMISSIONS.items()
    }


async def test_a_page_plots_what_is_uploaded(begin: Begin) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    begin("data_app.py", str(port))
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:

        async def serves() -> bool:
            try:
                async with http.get("/") as answer:
                    return "<form" in await answer.text()
            except aiohttp.ClientConnectorError:
                return False

        await until(serves)

        async def upload(content: bytes) -> tuple[int, str]:
            form = aiohttp.FormData()
            form.add_field("file", content, filename="numbers.csv")
            async with http.post("/plot", data=form) as answer:
                return answer.status, await answer.text()

        status, page = await upload(b"<b>&,y\n1,2\n3,5\n")
        assert status == 200
        (picture,) = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
        assert base64.b64decode(picture).startswith(PNG)
        assert "&lt;b&gt;&amp;" in page
        assert "<b>" not in page
        assert (await upload(b""))[0] == 422


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_example_says_how_it_is_run_and_is_short(name: str) -> None:
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(text)) or ""
    assert f"python examples/{name}" in docstring
    assert len(text.splitlines()) <= 110
    assert f"({name})" in (EXAMPLES / "README.md").read_text(encoding="utf-8")


def test_the_list_has_no_other_examples() -> None:
    listed = re.findall(r"\]\((\w+\.py)\)", (EXAMPLES / "README.md").read_text(encoding="utf-8"))
    assert sorted(listed) == PROGRAMS
