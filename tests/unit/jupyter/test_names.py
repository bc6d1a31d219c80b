"""`filename`: what tracebacks, warnings and `inspect` say about the code of cells."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from tests.unit.jupyter.conftest import Notebook

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_traceback_names_file_and_line_and_shows_the_source(notebook: Notebook) -> None:
    outcome = await notebook.run("x = 0\ndef divide():\n    return 1 / x  # here\n\ndivide()")
    assert outcome.error == "ZeroDivisionError: division by zero"
    assert outcome.traceback is not None
    assert outcome.traceback.startswith("Traceback (most recent call last):\n")
    for line in ('File "main.py", line 5', 'File "main.py", line 3, in divide', "return 1 / x  # here"):
        assert line in outcome.traceback
    for foreign in ("\x1b", "ipykernel", "IPython"):
        assert foreign not in outcome.traceback


async def test_a_cell_may_choose_its_name(notebook: Notebook) -> None:
    outcome = await notebook.run("1/0", filename="src/größe.py")
    assert 'File "src/größe.py", line 1' in (outcome.traceback or "")
    assert "1/0" in (outcome.traceback or "")


@pytest.mark.parametrize(
    ("code", "error", "line", "source"),
    [
        ("x = 1\nif x\n    pass", "SyntaxError: expected ':'", 2, "if x"),
        ("def f(", "SyntaxError: '(' was never closed", 1, "def f("),
        ("x = 1\n  y = 2", "IndentationError: unexpected indent", 2, "y = 2"),
        ("x = 1\nreturn 5", "SyntaxError: 'return' outside function", 2, "return 5"),
        (
            "f() = 1",
            "SyntaxError: cannot assign to function call here. Maybe you meant '==' instead of '='?",
            1,
            "f() = 1",
        ),
    ],
)
async def test_syntax_errors(notebook: Notebook, code: str, error: str, line: int, source: str) -> None:
    outcome = await notebook.run(code)
    assert outcome.error == error
    assert f'File "main.py", line {line}\n' in (outcome.traceback or "")
    assert source in (outcome.traceback or "")


async def test_cells_of_one_name_do_not_confuse_each_other(notebook: Notebook) -> None:
    await notebook.run("def one():\n    raise ValueError('first')  # one\n")
    await notebook.run("\n\ndef two():\n    raise ValueError('second')  # two\n")
    for name, line in (("one", 2), ("two", 4)):
        outcome = await notebook.run(f"\n{name}()")
        assert f'File "main.py", line {line}, in {name}\n    raise ValueError(' in (outcome.traceback or "")
        assert f"# {name}" in (outcome.traceback or "")
    outcome = await notebook.run(
        "import inspect\nfor f in (one, two): print(inspect.getsource(f).split('# ')[1].strip())"
    )
    assert outcome.output == "one\ntwo\n"


async def test_a_real_file_of_that_name_is_not_mistaken_for_the_cell(notebook: Notebook) -> None:
    file = Path(notebook.sandbox.workspace_path) / "main.py"
    file.write_text("# line one of the file\n# line two of the file\ndef imported():\n    return 1 / 0  # the file\n")
    outcome = await notebook.run("import inspect\ndef f():\n    1/0  # the cell\nprint(inspect.getsource(f))\nf()")
    assert "1/0  # the cell" in outcome.output
    assert "1/0  # the cell" in (outcome.traceback or "")
    assert "of the file" not in (outcome.traceback or "")
    outcome = await notebook.run("import main\nmain.imported()")
    assert "return 1 / 0  # the file" in (outcome.traceback or "")
    file.unlink()


async def test_print_exc_and_warnings_show_the_source(notebook: Notebook) -> None:
    outcome = await notebook.run(
        "import traceback\ntry:\n    1/0  # caught\nexcept Exception:\n    traceback.print_exc()"
    )
    assert 'File "main.py", line 3' in outcome.stderr
    assert "1/0  # caught" in outcome.stderr
    outcome = await notebook.run("import warnings\n\nwarnings.warn('careful')")
    assert outcome.stderr == "main.py:3: UserWarning: careful\n  warnings.warn('careful')\n"


async def test_the_source_of_everything_that_has_one(notebook: Notebook) -> None:
    code = """
        import functools, inspect
        from dataclasses import dataclass
        def decorate(f):
            @functools.wraps(f)
            def inner(*a): return f(*a)
            return inner
        @decorate
        def decorated():
            return 1
        async def later():
            return 2
        small = lambda: (
            3)
        @dataclass
        class Point:
            x: int
            def norm(self):
                return abs(self.x)
        print(inspect.getsource(decorated))
        print(inspect.getsource(later))
        print(inspect.getsource(small))
        print(inspect.getsource(Point.norm))
        print(await later(), Point(4).norm())
    """
    outcome = await notebook.run(dedent(code))
    assert outcome.success, outcome.traceback
    for piece in ("@decorate\ndef decorated():\n    return 1\n", "async def later():\n    return 2\n"):
        assert piece in outcome.output
    for piece in ("small = lambda: (\n    3)\n", "    def norm(self):\n        return abs(self.x)\n", "2 4\n"):
        assert piece in outcome.output


async def test_chained_errors_and_groups(notebook: Notebook) -> None:
    outcome = await notebook.run("try:\n    1/0\nexcept Exception as e:\n    raise KeyError('k') from e")
    assert outcome.error == "KeyError: 'k'"
    assert "direct cause" in (outcome.traceback or "")
    assert 'File "main.py", line 2' in (outcome.traceback or "")
    outcome = await notebook.run(
        "e = ValueError(1)\ne.add_note('a note')\nraise ExceptionGroup('several', [e, OSError(2)])"
    )
    assert outcome.error == "ExceptionGroup: several (2 sub-exceptions)"
    assert "a note" in (outcome.traceback or "")
    assert "interactiveshell" not in (outcome.traceback or "")
    assert outcome.output == ""


async def test_libraries_can_pickle_functions(notebook: Notebook) -> None:
    code = """
        import copy, pickle
        name = (lambda: 0).__code__.co_filename
        again = pickle.loads(pickle.dumps(name))
        print(name == "main.py", "main.py" == name, again == name, type(again) is str, name != "other.py")
        print(name.endswith(".py"), f"{name}", name in ["main.py"])
    """
    outcome = await notebook.run(dedent(code))
    assert outcome.output == "True True True True True\nTrue main.py True\n"


async def test_tracemalloc_can_hash_names(notebook: Notebook) -> None:
    outcome = await notebook.run("import tracemalloc\ntracemalloc.start()\nkept = [object() for _ in range(99)]")
    assert outcome.success
    code = """
        taken = tracemalloc.take_snapshot().statistics("lineno")
        tracemalloc.stop()
        print([str(line.traceback) for line in taken if line.traceback[0].filename == "main.py" and line.count > 90])
    """
    assert (await notebook.run(dedent(code))).output == "['main.py:3']\n"


async def test_other_ways_to_show_errors_still_work(notebook: Notebook) -> None:
    await notebook.run("%xmode Context")
    outcome = await notebook.run("def f():\n    1/0\nf()")
    await notebook.run("%xmode Plain")
    assert "File main.py, line 3" in (outcome.traceback or "")
    assert "----> 2     1/0" in (outcome.traceback or "").replace("    1/0", "    1/0")
    outcome = await notebook.run("1/0")
    outcome = await notebook.run("%tb")
    assert "ZeroDivisionError" in (outcome.output + (outcome.traceback or ""))


async def test_lines_are_counted_from_the_first_even_if_it_is_empty(notebook: Notebook) -> None:
    outcome = await notebook.run("\n \n\n    x = 1\n    1/0  # indented\n")
    assert 'File "main.py", line 5, in <module>\n    1/0  # indented' in (outcome.traceback or "")
    outcome = await notebook.run("\n\nx = (\n")
    assert 'File "main.py", line 3\n    x = (' in (outcome.traceback or "")
    assert (await notebook.run("\n\n%%bash\necho magic")).output == "magic\n"


async def test_old_sources_do_not_grow_without_bound(notebook: Notebook) -> None:
    code = """
        import linecache
        for _ in range(6):
            get_ipython().compile.cache("x" * (8 << 20), 1)
        kept = [entry[0] for name, entry in linecache.cache.items() if type(name).__name__ == "CellName"]
        print(3 << 23 <= sum(kept) <= 4 << 23)
    """
    assert (await notebook.run(dedent(code))).output == "True\n"


async def test_modules_of_the_user_are_for_the_users_code_only(notebook: Notebook) -> None:
    """The kernel imports some of these names itself, while it completes."""
    names = ("jedi", "parso", "types", "token", "trio")
    for name in names:
        (Path(notebook.sandbox.workspace_path) / f"{name}.py").write_text("ours = __name__")
    try:
        found = await notebook.kernel.help.complete("import colle", 12)
        assert "collections" in found.matches
        code = "import sys, jedi, token, trio\nprint(hasattr(jedi, 'ours'), trio.ours)\ndel sys.modules['trio'], trio"
        assert (await notebook.run(code)).output == "False trio\n"
    finally:
        for name in names:
            (Path(notebook.sandbox.workspace_path) / f"{name}.py").unlink()
