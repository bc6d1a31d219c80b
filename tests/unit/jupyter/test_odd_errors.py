"""Errors of any exception: its name, the line of the cell, no frames of IPython, in bounded size."""

from __future__ import annotations

from textwrap import dedent

import pytest

from tests.unit.jupyter.conftest import Notebook

pytestmark = pytest.mark.asyncio(loop_scope="module")

FAILED = "Odd: <exception str() failed>"

_LOW = """import sys; kept = sys.getrecursionlimit()
for n in range(20, 1000):
    try: sys.setrecursionlimit(n); break
    except RecursionError: pass"""
_DEEP = """import sys
limit = sys.getrecursionlimit()
sys.setrecursionlimit(30_000)
def f(n): return g(n)
def g(n): return f(n + 1)
try: f(0)
finally: sys.setrecursionlimit(limit)"""


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("def __str__(self): raise RuntimeError('no text')", FAILED),
        ("def __str__(self): raise SystemExit", FAILED),
        ("def __str__(self): return None", FAILED),
        ("def __str__(self): return str(self)", FAILED),
        ("def __str__(self):\n        while True: pass", FAILED),
        ("def __str__(self):\n        import time; time.sleep(3600)", FAILED),
        ("def __repr__(self): raise RuntimeError('no text')", "Odd: text"),
        ("def __getattribute__(self, name): raise RuntimeError(name)", "Odd: text"),
        ("def __getattr__(self, name): raise RuntimeError(name)", "Odd: text"),
        *[
            (f"{name} = property(lambda self: 1 / 0)", "Odd: text")
            for name in ("__cause__", "__context__", "__notes__", "__traceback__", "__suppress_context__")
        ],
        *[
            (f"{name} = property(lambda self: 1 / 0)", "Odd: text")
            for name in ("args", "__class__", "__dict__", "__name__", "__module__", "_render_traceback_")
        ],
        ("def _render_traceback_(self): raise RuntimeError", "Odd: text"),
        ("def _render_traceback_(self): return 5", "Odd: text"),
    ],
)
async def test_an_exception_whose_methods_fail(any_notebook: Notebook, body: str, error: str) -> None:
    code = f"class Odd(Exception):\n    {body}\nfirst = ValueError('first')\nraise Odd('text') from first"
    outcome = await any_notebook.run(code)
    assert (outcome.success, outcome.error, outcome.output) == (False, error, "")
    shown = outcome.traceback or ""
    assert "ValueError: first\n\nThe above exception was the direct cause of the following exception:\n" in shown
    assert "\n    raise Odd('text') from first\n" in shown
    assert shown.splitlines()[-1].rpartition(".")[2] == error
    assert "IPython" not in shown
    assert "<kernelbridge>" not in shown
    assert (await any_notebook.run("print(type(__import__('sys').last_value) is Odd)")).output == "True\n"


@pytest.mark.parametrize(
    "error",
    [
        "ValueError('x' * 100_000_000)",
        "type('ValueError', (Exception,), {'__str__': lambda self: 'x' * 100_000_000})()",
        "ValueError('x', ['y' * 5_000_000])",
    ],
)
async def test_a_huge_text_is_cut(any_notebook: Notebook, error: str) -> None:
    outcome = await any_notebook.run(f"raise {error}")
    assert (outcome.error or "").startswith("ValueError: ")
    assert len(outcome.error or "") <= 4096
    assert f"    raise {error}\n" in (outcome.traceback or "")
    assert len(outcome.traceback or "") < 1 << 20
    assert "characters left out]" in (outcome.traceback or "")


async def test_an_error_of_many_lines_is_complete(any_notebook: Notebook) -> None:
    outcome = await any_notebook.run("raise ValueError('x\\n' * 125_000 + 'the end')")
    assert (outcome.traceback or "").count("\nx") == 124_999
    assert (outcome.traceback or "").endswith("x\nthe end")


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("e = ValueError(1)\ne.__cause__ = e\nraise e", ["ValueError: 1"]),
        (
            "e, f = ValueError(1), KeyError(2)\ne.__cause__, f.__cause__ = f, e\nraise e",
            ["KeyError: 2", "ValueError: 1"],
        ),
        (
            "e = None\nfor n in range(5000):\n    f = ValueError(n); f.__context__ = e; e = f\nraise e",
            ["earlier exceptions are left out", "ValueError: 4998", "ValueError: 4999"],
        ),
        (
            "e = ValueError(0)\nfor n in range(1000):\n    e = ExceptionGroup('g', [e, ValueError(n)])\nraise e",
            ["ExceptionGroup: g (2 sub-exceptions)", "max_group_depth is 10"],
        ),
        ("raise ExceptionGroup('g', [ValueError(n) for n in range(3000)])", ["ValueError: 14", "and 2985 more"]),
        ("e = ValueError(0)\ne.add_note('one')\ne.__notes__.append(5)\nraise e", ["ValueError: 0\none\n5"]),
        ("e = ValueError(0)\ne.__notes__ = 5\nraise e", ["ValueError: 0\n5"]),
        ("def f(n): return f(n + 1)\nf(0)", ["more times", "RecursionError"]),
        (
            _DEEP,
            ["more frames]", "RecursionError"],
        ),
    ],
)
async def test_endless_errors_are_cut(any_notebook: Notebook, code: str, shown: list[str]) -> None:
    outcome = await any_notebook.run(code)
    assert not outcome.success
    assert outcome.output == ""
    for piece in shown:
        assert piece in (outcome.traceback or "")
    assert len(outcome.traceback or "") < 100_000


@pytest.mark.parametrize(
    "fields",
    ["'f.py', 3, 10**12, 'text', 4, 10**11", "'f.py', 'x', {}, 5", "5, 3, -7, 'text'", "None, None, None, None"],
)
async def test_a_syntax_error_with_odd_fields(any_notebook: Notebook, fields: str) -> None:
    code = f"class Odd(SyntaxError):\n    text = property(lambda self: 1 / 0)\nraise Odd('bad', ({fields}))"
    outcome = await any_notebook.run(code)
    assert (outcome.error or "").startswith("Odd: bad")
    assert 'File "main.py", line 3, in <module>' in (outcome.traceback or "")
    assert len(outcome.traceback or "") < 1000


async def test_errors_of_threads_and_finalizers_are_bounded(any_notebook: Notebook) -> None:
    code = """
        import threading
        class Odd(Exception):
            def __str__(self): raise RuntimeError
        def work(): raise Odd
        thread = threading.Thread(target=work); thread.start(); thread.join()
        class Final:
            def __repr__(self): return "r" * 10_000_000
            def __del__(self): raise Odd
        Final(), None
        del _
    """
    outcome = await any_notebook.run(dedent(code))
    assert outcome.stderr.count(FAILED) >= 1
    assert "    def work(): raise Odd\n" in outcome.stderr
    assert len(outcome.stderr) < 20_000


@pytest.mark.parametrize("shown", ["display(Odd())", "Odd()"])
async def test_an_error_of_a_display_is_shown_once(any_notebook: Notebook, shown: str) -> None:
    code = "class Odd:\n    def __repr__(self): return 'text'\n    def _repr_html_(self): return 1 / 0\n"
    outcome = await any_notebook.run(code + shown)
    everything = outcome.output + (outcome.traceback or "")
    assert everything.count("ZeroDivisionError") == 1
    assert everything.count("def _repr_html_(self): return 1 / 0") == 1
    assert "IPython" not in everything
    assert "text\n" in outcome.output


async def test_an_error_is_not_repeated_after_later_output(any_notebook: Notebook) -> None:
    """For example, a figure that matplotlib shows at the end of a cell."""
    code = """
        def later():
            get_ipython().events.unregister("post_execute", later)
            display("later")
            {failing}
        get_ipython().events.register("post_execute", later)
        raise ValueError("mine")
    """
    for failing in ("pass", "1/0"):
        outcome = await any_notebook.run(dedent(code).format(failing=failing))
        assert outcome.error == "ValueError: mine"
        assert (outcome.traceback or "").endswith("\nValueError: mine")
        assert "ValueError" not in outcome.output
        assert outcome.output.count("ZeroDivisionError") == (failing == "1/0")
        assert "later" in outcome.output


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("import sys; kept = sys.stdout, sys.stderr; sys.stdout = sys.stderr = None", "sys.stdout, sys.stderr = kept"),
        ("import linecache; linecache.clearcache(); linecache.cache.clear()", ""),
        ("import linecache; kept = dict(vars(linecache)); linecache.getlines = None", "vars(linecache).update(kept)"),
        (
            "import traceback; kept = dict(vars(traceback)); traceback.StackSummary = traceback.walk_tb = None",
            "vars(traceback).update(kept)",
        ),
        ("import builtins; kept = print; builtins.print = None", "builtins.print = kept"),
        ("import sys; sys.excepthook = None", ""),
        ("import threading; threading.excepthook = None", "threading.excepthook = threading.__excepthook__"),
        ("import asyncio; asyncio.set_event_loop(None)", ""),
        ("import sys; sys.settrace(lambda *given: None)", "sys.settrace(None)"),
        (_LOW, "sys.setrecursionlimit(kept)"),
    ],
)
async def test_an_error_is_shown_whatever_user_code_has_changed(
    any_notebook: Notebook, before: str, after: str
) -> None:
    line = before.count("\n") + 2
    outcome = await any_notebook.run(f"{before}\n1 / 0  # here")
    assert outcome.error == "ZeroDivisionError: division by zero"
    assert f'File "main.py", line {line}, in <module>\n    1 / 0  # here\n' in (outcome.traceback or "")
    assert "IPython" not in (outcome.traceback or "")
    outcome = await any_notebook.run(f"import asyncio\nawait asyncio.sleep(0)\n{after}\n1 / 0  # there")
    assert outcome.error == "ZeroDivisionError: division by zero"
    assert "    1 / 0  # there\n" in (outcome.traceback or "")
    assert (await any_notebook.run("print('well')")).output == "well\n"


_SLOW_LOADER = """
import time
class Slow:
    def get_source(self, name): time.sleep(3600)
exec(compile("1 / 0", "nowhere.py", "exec"), {"__name__": "nowhere", "__loader__": Slow()})
"""
_SLOW_NAMES = """
import time, traceback
class Slow:
    def __dir__(self): {body}
create = traceback.TracebackException.__init__
def create_as_newer(self, exc_type, exc_value, *args, **kwargs):
    if isinstance(exc_value, AttributeError) and exc_value.name is not None: dir(exc_value.obj)
    create(self, exc_type, exc_value, *args, **kwargs)
if __import__("sys").version_info < (3, 12):
    traceback.TracebackException.__init__ = create_as_newer
Slow().foo
"""


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (_SLOW_LOADER, "ZeroDivisionError: division by zero"),
        (_SLOW_NAMES.format(body="time.sleep(3600)"), "AttributeError: 'Slow' object has no attribute 'foo'"),
        (_SLOW_NAMES.format(body="raise SystemExit"), "AttributeError: 'Slow' object has no attribute 'foo'"),
    ],
)
async def test_methods_for_suggestions_and_lines_may_fail(any_notebook: Notebook, code: str, error: str) -> None:
    """Python before 3.12 makes its suggestions elsewhere; there, the test makes it ask as a newer one does."""
    outcome = await any_notebook.run(code)
    assert (outcome.success, outcome.error, outcome.output) == (False, error, "")
    shown = (outcome.traceback or "").splitlines()
    assert shown[0] == "Traceback (most recent call last):"
    assert f"    {code.strip().splitlines()[-1]}" in shown
    assert shown[-1] == error
    again = "'create' in globals() and setattr(traceback.TracebackException, '__init__', create)"
    assert (await any_notebook.run(f"_ = {again}")).success
