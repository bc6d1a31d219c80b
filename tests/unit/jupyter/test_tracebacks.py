"""Errors and `inspect` show a cell's own source, whatever else has its name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from tests.unit.jupyter.conftest import Notebook

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture
def main_file(notebook: Notebook) -> Iterator[Path]:
    """Make a real file with the name of the cells."""
    file = Path(notebook.sandbox.workspace_path) / "main.py"
    file.write_text("one\ntwo\nthree\nfour\nfive\nsix\n")
    yield file
    file.unlink()


@pytest.mark.usefixtures("main_file")
@pytest.mark.parametrize(
    ("code", "line", "source"),
    [
        ("a=1\nb=(\nc", 2, "b=("),
        ("\n\n\nb = [\n", 4, "b = ["),
        ("a = 1\n%time 1\n!true\nb = 1 x\n", 4, "b = 1 x"),
        ("\n%time 1\nb = 1 x\n", 3, "b = 1 x"),
        ("a = 1\nreturn 5", 2, "return 5"),
        ("\n\na = 1\nbreak", 4, "break"),
        ("a = 1\n  b = 2", 2, "b = 2"),
    ],
)
async def test_a_syntax_error_quotes_the_cell_and_not_a_file(
    notebook: Notebook, code: str, line: int, source: str
) -> None:
    outcome = await notebook.run(code)
    assert (outcome.traceback or "").startswith(f'  File "main.py", line {line}\n    {source}\n')


async def test_a_syntax_error_points_at_the_column_of_the_cell(notebook: Notebook) -> None:
    code = f"text = '{'ö' * 60}'; b = 1 x"
    outcome = await notebook.run(code, filename="/etc/passwd")
    shown = (outcome.traceback or "").splitlines()
    assert shown[:2] == ['  File "/etc/passwd", line 1', f"    {code}"]
    assert shown[2].index("^") - 4 == code.rindex("x")


async def test_a_syntax_error_of_a_file_quotes_the_file(notebook: Notebook, main_file: Path) -> None:
    main_file.write_text("one = (\n")
    outcome = await notebook.run("a = 1; import main")
    assert 'main.py", line 1\n    one = (\n' in (outcome.traceback or "")


async def test_an_error_beside_a_group_is_shown_once_and_plainly(notebook: Notebook) -> None:
    outcome = await notebook.run("try:\n    raise ExceptionGroup('g', [OSError(1)])\nexcept ExceptionGroup:\n    1/0")
    assert (outcome.error, outcome.output) == ("ZeroDivisionError: division by zero", "")
    assert "ExceptionGroup: g" in (outcome.traceback or "")
    assert "IPython" not in (outcome.traceback or "")


@pytest.mark.usefixtures("main_file")
@pytest.mark.parametrize(
    ("code", "line", "source"),
    [
        ("%%time\nx = 1\n\n1/0", 4, "1/0"),
        ("\n\n%%time\n\n1/0", 5, "1/0"),
        ("%%time\n%time x = 1\n!true\n1/0", 4, "1/0"),
        ("%%time\n1/0  # 1/0", 2, "1/0  # 1/0"),
        ("%%timeit -n1 -r1\nx = 1\n1/0", 3, "1/0"),
        ("%%capture\nx = 1\n1/0", 3, "1/0"),
        ("%%capture\n\n%%time\nx = 1\n1/0", 5, "1/0"),
        ("x = 1\n%time x / 0", 2, "x / 0"),
        ("files = !ls \\\n -la\n1/0", 3, "1/0"),
        ("if 1:\n    !echo \\\n    a \\\n    b\n    1/0", 5, "1/0"),
        ("%time x = \\\n 1\n1/0", 3, "1/0"),
        ("%%time\n!echo \\\n a\n1/0", 4, "1/0"),
    ],
)
async def test_code_that_a_magic_runs_belongs_to_the_cell(
    notebook: Notebook, code: str, line: int, source: str
) -> None:
    outcome = await notebook.run(code)
    shown = (outcome.traceback or "") + outcome.output
    assert f'File "main.py", line {line}, in ' in shown
    assert shown.rpartition(f'File "main.py", line {line}, in ')[2].splitlines()[1] == f"    {source}"


async def test_a_syntax_error_in_what_a_magic_runs(notebook: Notebook) -> None:
    outcome = await notebook.run("%%time\nx = 1\nif x\n    pass")
    assert outcome.error == "SyntaxError: expected ':'"
    assert (outcome.traceback or "").startswith('  File "main.py", line 3\n    if x\n')


async def test_functions_that_a_magic_defines_have_their_source(notebook: Notebook) -> None:
    await notebook.run("%%time\n\ndef timed():\n    return 1 / 0  # timed\n")
    assert await source_of(notebook, "timed") == "def timed():\n    return 1 / 0  # timed\n"
    assert 'File "main.py", line 4, in timed\n    return 1 / 0  # timed' in str(
        (await notebook.run("\n\n\n\ntimed()")).traceback
    )


@pytest.mark.usefixtures("main_file")
@pytest.mark.parametrize(
    ("code", "head"),
    [
        (
            "from threading import *\ndef work():\n    1/0  # lost\nt = Thread(None, work, 'T')\nt.start(); t.join()",
            "Exception in thread T:\nTraceback",
        ),
        (
            "class A:\n    def __del__(self):\n        1/0  # lost\nA()\nNone",
            "Exception ignored in: <function A.__del__",
        ),
    ],
)
async def test_errors_that_end_no_cell_show_the_source(notebook: Notebook, code: str, head: str) -> None:
    outcome = await notebook.run(code)
    assert outcome.success
    assert outcome.stderr.startswith(head)
    assert 'File "main.py", line 3, in ' in outcome.stderr
    assert "\n    1/0  # lost\n" in outcome.stderr
    assert outcome.stderr.endswith("ZeroDivisionError: division by zero\n")
    assert "<kernelbridge>" not in outcome.stderr


async def source_of(notebook: Notebook, name: str) -> str:
    outcome = await notebook.run(f"import inspect\nprint(inspect.getsource({name}), end='')")
    assert outcome.success, outcome.traceback
    return outcome.output


@pytest.mark.usefixtures("main_file")
async def test_the_source_of_classes(notebook: Notebook) -> None:
    code = """

        from dataclasses import dataclass
        from enum import Enum

        @dataclass(frozen=True)
        class Point:
            x: int
            y: int = 0

        class Color(Enum):
            RED = 1

        class Outer:
            class Inner:
                pass

        def make():
            class Local:
                "Made."
            return Local

        class Empty: pass
    """
    await notebook.run(dedent(code))
    point = "@dataclass(frozen=True)\nclass Point:\n    x: int\n    y: int = 0\n"
    assert await source_of(notebook, "Point") == point
    assert await source_of(notebook, "Color") == "class Color(Enum):\n    RED = 1\n"
    assert await source_of(notebook, "Outer.Inner") == "    class Inner:\n        pass\n"
    assert await source_of(notebook, "make()") == '    class Local:\n        "Made."\n'
    assert await source_of(notebook, "Empty") == "class Empty: pass\n"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("class C:\n    def f(self): return 1\n", "class C:\n    def f(self): return 2\n"),
        ("class C:\n    @wrapped\n    def f(self): pass\n", "class C:\n    @wrapped\n    def f(self): ...\n"),
    ],
)
async def test_classes_of_one_name_in_cells_of_one_name(notebook: Notebook, first: str, second: str) -> None:
    await notebook.run("import functools\ndef wrapped(f): return functools.wraps(f)(lambda self: f(self))")
    await notebook.run(first)
    await notebook.run("Old = C")
    await notebook.run(second)
    assert not (await notebook.run("class C: unfinished")).success
    assert not (await notebook.run("class C: (")).success
    assert await source_of(notebook, "Old") == first
    assert await source_of(notebook, "C") == second


async def test_a_class_without_methods_has_the_newest_source_of_its_name(notebook: Notebook) -> None:
    await notebook.run("from dataclasses import dataclass\n@dataclass\nclass C:\n    x: int")
    await notebook.run("\n@dataclass\nclass C:\n    y: int")
    assert await source_of(notebook, "C") == "@dataclass\nclass C:\n    y: int\n"


async def test_objects_without_source_raise_as_usual(notebook: Notebook) -> None:
    outcome = await notebook.run("import inspect\ninspect.getsource(type('Made', (), {}))")
    assert outcome.error == "OSError: source code not available"
    assert (await notebook.run("inspect.getsource(int)")).error == ("TypeError: <class 'int'> is a built-in class")
    assert (await notebook.run("inspect.getsource(inspect.Signature)[:15]")).output == "'class Signature'\n"
