"""`sys.stdout`, `sys.stderr` and descriptors 1 and 2 as scripts use them, and forked children."""

from __future__ import annotations

from collections.abc import AsyncIterator
from textwrap import dedent

import pytest
import pytest_asyncio

from tests.unit.jupyter.conftest import Notebook

pytestmark = pytest.mark.asyncio(loop_scope="module")

CELLS = {
    "bytes among text": (
        """
        sys.stdout.buffer.write(b"a\\xc3"); sys.stdout.buffer.write(b"\\xa9\\n")
        print("b")
        sys.stderr.buffer.write(b"c\\n")
        os.system("echo d")
        sys.stdout.buffer.raw.write(b"e\\n")
        None
        """,
        "aé\nb\nc\nd\ne\n",
    ),
    "a wrapper": (
        """
        wrapped = sys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8")
        print("é")
        sys.stdout = sys.__stdout__
        del wrapped
        print("on")
        """,
        "é\non\n",
    ),
    "what captures C code": (
        """
        with open("captured", "w+") as file:
            saved = os.dup(sys.stdout.fileno())
            os.dup2(file.fileno(), sys.stdout.fileno())
            os.system("echo inside")
            os.dup2(saved, sys.stdout.fileno()); os.close(saved)
            _ = file.seek(0)
            print("got", file.read(), end="")
        _ = os.system("echo outside")
        """,
        "got inside\noutside\n",
    ),
    "descriptors by number": (
        """
        print("a", file=open(1, "w"))
        print("b")
        print("c", file=open(1, "w", closefd=False))
        with open(sys.stdout.fileno(), "wb", buffering=0) as file: _ = file.write(b"d\\n")
        subprocess.run("echo e >/dev/stdout; echo f >/proc/self/fd/1", shell=True, stdout=sys.stdout)
        print("g")
        """,
        "a\nb\nc\nd\ne\nf\ng\n",
    ),
    "descriptors closed": (
        """
        saved = os.dup(1)
        os.close(1)
        print("a")
        _ = os.dup2(saved, 1); os.close(saved)
        _ = os.system("echo b")
        """,
        "a\nb\n",
    ),
    "its attributes": (
        """
        sys.stdout.reconfigure(encoding="utf-8", errors="replace", line_buffering=True)
        print(sys.stdout.fileno(), sys.stderr.fileno(), sys.stdout.encoding, sys.stdout.errors)
        print(sys.stdout.isatty(), sys.stdout.writable(), sys.stdout.readable(), sys.stdout.closed)
        """,
        "1 2 utf-8 replace\nFalse True False False\n",
    ),
    "redirected to something odd": (
        """
        class Odd: pass
        with contextlib.redirect_stdout(None): print("nowhere")
        try:
            with contextlib.redirect_stdout(Odd()): print("x")
        except AttributeError as error: print(error)
        """,
        "'Odd' object has no attribute 'write'\n",
    ),
    "text of a class": (
        """
        class Text(str):
            def __len__(self): return 1 << 60
            def __str__(self): return "wrong"
        sys.stdout.write(Text("right\\n"))
        None
        """,
        "right\n",
    ),
    "children that nobody waits for": (
        """
        try: os.wait()
        except ChildProcessError: print("none")
        """,
        "none\n",
    ),
}

C_CODE = "libc = ctypes.PyDLL(None)\n"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def notebook(any_notebook: Notebook) -> AsyncIterator[Notebook]:
    await any_notebook.run("import asyncio, contextlib, ctypes, io, os, subprocess, sys, threading")
    yield any_notebook


@pytest.mark.parametrize("name", CELLS)
async def test_streams_as_scripts_use_them(notebook: Notebook, name: str) -> None:
    code, output = CELLS[name]
    outcome = await notebook.run(dedent(code))
    assert (outcome.output, outcome.error) == (output, None)
    assert (await notebook.run("print('on')\n1/0")).output == "on\n"


async def test_a_stream_cannot_be_detached(notebook: Notebook) -> None:
    outcome = await notebook.run("sys.stdout.detach()")
    assert outcome.error == "UnsupportedOperation: detach"


async def test_a_saved_stream_writes_for_the_running_cell(notebook: Notebook) -> None:
    await notebook.run("sys.stdout = sys.__stdout__\nsaved, sys.stdout = sys.stdout, io.StringIO()")
    outcome = await notebook.run("print('aside', file=saved)\nsys.stdout = saved\nprint('back')")
    assert outcome.output == "aside\nback\n"


@pytest.mark.parametrize("fd", [1, 2])
async def test_code_that_holds_the_lock_may_write_more_than_a_pipe_holds(notebook: Notebook, fd: int) -> None:
    outcome = await notebook.run(f"print('before')\n{C_CODE}n = libc.write({fd}, b'1' * 500_000, 500_000)\nprint(n)")
    assert outcome.output == "before\n" + "1" * 500_000 + "500000\n"


async def test_output_of_c_code_is_complete(notebook: Notebook) -> None:
    outcome = await notebook.run(f"{C_CODE}libc.printf(b'%s\\n', b'1' * 100_000); libc.fflush(None)\nprint('after')")
    assert outcome.output.endswith("1" * 100_000 + "\n0\nafter\n") or outcome.output == "1" * 100_000 + "\nafter\n"


async def test_a_flood_of_a_subprocess_is_complete_and_waits_for_the_reader(notebook: Notebook) -> None:
    """It is longer than the ring: the pump waits for a kernel that shows signs of life."""
    code = f"_ = subprocess.run('yes {'x' * 79} | head -n 1000000', shell=True)\nprint('end')"
    outcome = await notebook.run(code)
    assert outcome.truncated is not None
    assert outcome.truncated["bytes"] + len(outcome.output) == 80_000_004


FORKS = {
    "that falls off the end": (
        """
        child = os.fork()
        if child: os.waitpid(child, 0)
        else: print("child")
        """,
        "child\n",
        None,
    ),
    "that exits": ("child = os.fork()\nif not child:\n    print('child')\n    sys.exit(3)", "child\n", 3),
    "that exits with words": ("child = os.fork()\nif not child: sys.exit('words')", "words\n", 1),
    "that raises": ("child = os.fork()\nif not child: raise ValueError('its own')", "ValueError: its own\n", 1),
    "that awaits": ("child = os.fork()\nif not child: print('child')\nawait asyncio.sleep(0)", "child\n", 0),
    "of a thread": (
        """
        def work():
            global child
            child = os.fork()
            if not child: print("child")
        thread = threading.Thread(target=work); thread.start(); thread.join()
        """,
        "child\n",
        0,
    ),
    "of a pool's thread": (
        """
        def work():
            global child
            child = os.fork()
            if not child: print("child")
        await asyncio.to_thread(work)
        """,
        "child\n",
        0,
    ),
    "with a thread": (
        "child = os.fork()\nif not child: threading.Timer(0.05, print, ('late',)).start()",
        "late\n",
        0,
    ),
    "of multiprocessing": (
        """
        import multiprocessing
        def work(): print("child")
        process = multiprocessing.get_context("fork").Process(target=work)
        process.start(); child = process.pid; process.join()
        """,
        "child\n",
        None,
    ),
}


@pytest.mark.parametrize("name", FORKS)
async def test_a_forked_child_ends_with_its_work(notebook: Notebook, name: str) -> None:
    code, output, status = FORKS[name]
    outcome = await notebook.run("print('parent')\n" + dedent(code))
    assert outcome.success, outcome
    waited = "try: print('status', os.waitpid(child, 0)[1] >> 8)\nexcept ChildProcessError: print('gone')"
    outcome_of_child = await notebook.run(waited)
    assert outcome_of_child.output.endswith(
        "gone\n" if "waitpid" in code or status is None else f"status {status}\n"
    ) or (status is None and "status 0\n" in outcome_of_child.output)
    told = outcome.output + outcome_of_child.output + "".join(notebook.late)
    notebook.late.clear()
    assert told.count("parent\n") == 1
    assert told.count(output) == 1, told


async def test_a_callback_that_forks_ends_its_child(notebook: Notebook) -> None:
    code = """
        def work():
            global child
            child = os.fork()
            if child: done.set()
            else: print("from a callback")
        done = asyncio.Event()
        _ = asyncio.get_running_loop().call_later(0.01, work)
    """
    assert (await notebook.run(dedent(code))).success
    assert (await notebook.run("await done.wait()\nprint(os.waitpid(child, 0)[1])")).output.endswith("0\n")
    assert (await notebook.run("6 * 7")).output == "42\n"
