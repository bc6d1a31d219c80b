"""Outcomes of cells of one real kernel."""

from __future__ import annotations

import asyncio
import os
from functools import partial
from pathlib import Path
from textwrap import dedent

import pytest

from kernelbridge.jupyter.cell import Outcome
from tests.unit.jupyter.conftest import PATIENCE, Notebook


def _append(answers: list[int], number: int, _: object) -> None:
    answers.append(number)


_NO_SLEEPER = """
    import os, time
    def sleepers():
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                comm, rest = open(f"/proc/{pid}/stat").read().split("(", 1)[1].rsplit(")", 1)
            except OSError:
                continue
            state, _, _, session = rest.split()[:4]
            if comm == "sleep" and state != "Z" and int(session) == os.getsid(0):
                yield pid
    end = time.monotonic() + 30  # a killed process may need a moment to be gone
    while list(sleepers()) and time.monotonic() < end: pass
    print(*(list(sleepers()) or ["none left"]))
"""


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_result(notebook: Notebook) -> None:
    outcome = await notebook.run("print('hello')\n1 + 1")
    assert outcome.success
    assert outcome.output == "hello\n2\n"
    assert outcome.stdout == "hello\n"
    assert outcome.results == [{"type": "execute_result", "data": {"text/plain": "2"}, "metadata": {}}]
    assert (outcome.error, outcome.traceback, outcome.cause, outcome.truncated) == (None, None, None, None)
    assert outcome.execution_count is not None
    assert outcome.duration_ms > 0
    assert outcome.cpu_ms is not None
    assert outcome.cpu_ms > 0


async def test_fifty_pipelined_cells_answer_in_order_and_an_error_aborts_nothing(notebook: Notebook) -> None:
    answers: list[int] = []
    sent = []
    for number in range(50):
        done = notebook.send(f"print({number})" if number != 20 else "1/0")
        done.add_done_callback(partial(_append, answers, number))
        sent.append(done)
    outcomes: list[Outcome] = await asyncio.wait_for(asyncio.gather(*sent), PATIENCE)
    assert answers == list(range(50))
    assert [outcome.output for outcome in outcomes] == [f"{n}\n" if n != 20 else "" for n in range(50)]
    assert [outcome.success for outcome in outcomes] == [n != 20 for n in range(50)]
    assert outcomes[20].error == "ZeroDivisionError: division by zero"


async def test_twenty_thousand_flushed_prints_arrive_complete_and_in_order(notebook: Notebook) -> None:
    outcome = await notebook.run("for i in range(20000): print(i, flush=True)")
    assert outcome.output == "".join(f"{number}\n" for number in range(20000))
    assert outcome.truncated is None


async def test_eight_megabytes_are_complete(notebook: Notebook) -> None:
    outcome = await notebook.run("for i in range(100000): print(f'{i:<80}')")
    assert outcome.output == "".join(f"{number:<80}\n" for number in range(100_000))
    assert outcome.truncated is None


async def test_stdout_and_stderr_are_in_the_order_of_writing(notebook: Notebook) -> None:
    code = """
        import sys
        for i in range(1000):
            print("out", i)
            print("err", i, file=sys.stderr)
        sys.stdout.write("a"); sys.stderr.write("b"); sys.stdout.write("c\\n")
        None
    """
    outcome = await notebook.run(dedent(code))
    assert outcome.output == "".join(f"out {n}\nerr {n}\n" for n in range(1000)) + "abc\n"
    assert outcome.stderr == "".join(f"err {n}\n" for n in range(1000)) + "b"


async def test_displays_and_prints_are_in_order(notebook: Notebook) -> None:
    code = """
        import sys
        for i in range(200):
            print("before", i)
            display(i)
            print("after", i, file=sys.stderr)
    """
    outcome = await notebook.run(dedent(code))
    assert outcome.output == "".join(f"before {n}\n{n}\nafter {n}\n" for n in range(200))


async def test_output_of_subprocesses_and_c_code_is_in_order(notebook: Notebook) -> None:
    code = """
        import ctypes, os, subprocess, sys
        print("1")
        os.system("echo 2")
        print("3", file=sys.stderr)
        subprocess.run(["sh", "-c", "echo 4; echo 5 >&2"])
        print("6")
        os.write(2, b"7\\n")
        print("8")
        _ = ctypes.CDLL(None).printf(b"9\\n")
    """
    outcome = await notebook.run(dedent(code))
    assert outcome.output == "1\n2\n3\n4\n5\n6\n7\n8\n9\n"


async def test_much_output_of_a_subprocess_is_complete_and_in_its_cell(notebook: Notebook) -> None:
    outcome = await notebook.run("import subprocess\nsubprocess.run(['seq', '200000'])\nNone")
    assert outcome.output == "".join(f"{number}\n" for number in range(1, 200_001))
    outcome = await notebook.run("subprocess.run(['printf', 'ä€😀' * 2000])\nprint()")
    assert outcome.output == "ä€😀" * 2000 + "\n"


async def test_output_of_forked_children_arrives(notebook: Notebook) -> None:
    code = """
        import multiprocessing, os
        def child(): print("from a child")
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start(); process.join()
        print("from the parent")
    """
    outcome = await notebook.run(dedent(code))
    whole = outcome.output + "".join(notebook.late)
    assert "from the parent\n" in outcome.output
    assert whole.count("from a child\n") == 1


async def test_overwriting_and_clearing(notebook: Notebook) -> None:
    code = """
        from IPython.display import clear_output, display
        for i in range(101): print(f"\\r{i}%", end="")
        print("\\x1b[32m done\\x1b[0m")
    """
    outcome = await notebook.run(dedent(code))
    assert outcome.output == "100% done\n"
    assert "\r50%" in outcome.stdout
    outcome = await notebook.run("print('gone'); clear_output(wait=True); print('kept')")
    assert (outcome.output, outcome.stdout) == ("kept\n", "gone\nkept\n")
    outcome = await notebook.run("d = display('one', display_id=True); print('x'); d.update('two')")
    assert outcome.output == "'two'\nx\n"


async def test_late_output_of_a_thread_goes_to_the_session(notebook: Notebook) -> None:
    code = """
        import threading
        go, said = threading.Event(), threading.Event()
        def late():
            go.wait(60); print("from the thread"); said.set()
        threading.Thread(target=late).start()
        print("from the cell")
    """
    first = await notebook.run(dedent(code))
    assert first.output == "from the cell\n"
    second = await notebook.run("go.set(); said.wait(60); print('from the second cell')")
    assert second.output == "from the second cell\n"
    assert "from the thread\n" in await notebook.late_text("from the thread\n")


async def test_output_of_a_pools_threads_belongs_to_the_running_cell(notebook: Notebook) -> None:
    await notebook.run("from concurrent.futures import ThreadPoolExecutor\npool = ThreadPoolExecutor(1)")
    for number in range(2):
        outcome = await notebook.run(f"pool.submit(print, {number}).result()")
        assert outcome.output == f"{number}\n"
    await notebook.run("pool.shutdown()")


async def test_top_level_await_magics_and_commands(notebook: Notebook) -> None:
    outcome = await notebook.run("import asyncio\nawait asyncio.sleep(0)\nprint('awaited')")
    assert outcome.output == "awaited\n"
    assert (await notebook.run("%%bash\necho from bash")).output == "from bash\n"
    assert (await notebook.run("!echo from the shell")).output == "from the shell\n"
    assert "per loop" in (await notebook.run("%timeit -n1 -r1 1")).output
    assert (await notebook.run("%nosuch")).error == "UsageError: Line magic function `%nosuch` not found."


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("len?", "Return the number of items in a container."),
        ("import textwrap\ntextwrap.dedent??", "def dedent(text):"),
        ("%pdoc len", "Return the number of items in a container."),
        ("%prun sum(range(9))", "function calls"),
        ("print('before')\nlen?", "before\n"),
    ],
)
async def test_text_for_a_pager_is_printed(notebook: Notebook, code: str, shown: str) -> None:
    outcome = await notebook.run(code)
    assert outcome.success
    assert shown in outcome.output
    assert "\x1b" not in outcome.output


async def test_history_names_work_without_a_history_database(notebook: Notebook) -> None:
    outcome = await notebook.run("6 * 7")
    count = outcome.execution_count
    outcome = await notebook.run(f"print(_, Out[{count}], In[{count}], _{count}, _i{count})")
    assert outcome.output == "42 42 6 * 7 42 6 * 7\n"
    outcome = await notebook.run("secret = 1", store_history=False)
    assert (await notebook.run("In[-1]")).results[0]["data"]["text/plain"] == "'In[-1]'"


async def test_a_silent_cell_shows_no_result(notebook: Notebook) -> None:
    outcome = await notebook.run("print('said')\n5", silent=True)
    assert outcome.success
    assert (outcome.output, outcome.results) == ("said\n", [])


@pytest.mark.parametrize(("code", "name"), [("input('name? ')", "input"), ("getpass.getpass()", "getpass")])
async def test_input_fails_at_once_where_nobody_can_answer(notebook: Notebook, code: str, name: str) -> None:
    outcome = await notebook.run(f"import getpass\n{code}")
    assert not outcome.success
    assert outcome.error == f"StdinNotImplementedError: {name}() is not available here: pass the value in the code"
    assert "kernel" not in (outcome.traceback or "")


@pytest.mark.parametrize(
    ("code", "error"),
    [("sys.exit(2)", "SystemExit: 2"), ("sys.exit('bye')", "SystemExit: bye"), ("sys.exit()", "SystemExit")],
)
async def test_an_exit_is_an_error_like_any_other(notebook: Notebook, code: str, error: str) -> None:
    outcome = await notebook.run(f"import sys\nprint('said')\n{code}")
    assert (outcome.success, outcome.error, outcome.output) == (False, error, "said\n")
    shown = f'Traceback (most recent call last):\n  File "main.py", line 3, in <module>\n    {code}\n{error}'
    assert outcome.traceback is not None
    # Python 3.13 underlines the call.
    assert "\n".join(line for line in outcome.traceback.splitlines() if line.strip(" ~^")) == shown
    assert (await notebook.run("sys.version_info >= (3,)")).output == "True\n"


async def test_an_interrupt_while_a_command_starts_ends_the_cell(notebook: Notebook) -> None:
    code = """
        import unittest.mock
        with unittest.mock.patch("subprocess.Popen", side_effect=KeyboardInterrupt):
            !echo never
    """
    outcome = await notebook.run(dedent(code))
    assert (outcome.success, outcome.error, outcome.output) == (False, "KeyboardInterrupt", "")
    outcome = await notebook.run("def say():\n    word = 'local'\n    !echo {word}\nsay()")
    assert outcome.output == "local\n"


async def test_a_forked_process_cannot_ask(notebook: Notebook) -> None:
    code = """
        import os
        child = os.fork()
        if not child:
            try:
                input("?")
            except Exception as exc:
                print(repr(exc), flush=True)
            os._exit(0)
        _ = os.waitpid(child, 0)
    """
    outcome = await notebook.run(dedent(code), allow_stdin=True)
    assert "StdinNotImplementedError('input() is not available in a forked process" in outcome.output


@pytest.mark.parametrize(
    ("command", "shown", "code"),
    [
        ("cat; echo $?", "0\n", 0),
        ("read x; echo $?", "1\n", 0),
        ("read x </dev/tty || test -t 1 && echo none", "none\n", 0),
        ("test -t 2 && stty size <&2", "24 80\n", 0),
        ("printf 'a\\377b\\303'", "a\ufffdb\ufffd", 0),
        ("seq 100000 | sha256sum", "", 0),
        ("exit 3", "", 3),
        ("kill -9 $$", "", -9),
        ("sh -c 'kill -2 $$'", "", -2),
        ("yes >&2 & echo $! >job; sleep 0.1", "y\n", 0),
        ("exec >&- 2>&-; sleep 0.1; exit 4", "", 4),
    ],
)
async def test_a_command_has_a_terminal_to_write_on_and_none_to_read_from(
    notebook: Notebook, command: str, shown: str, code: int
) -> None:
    outcome = await notebook.run(f"!{command}")
    assert outcome.success, outcome
    assert shown in outcome.output
    assert (await notebook.run("print(_exit_code)")).output == f"{code}\n"
    await notebook.run("import os\nif os.path.exists('job'): os.kill(int(open('job').read()), 9); os.unlink('job')")


async def test_much_output_of_a_command_is_complete(notebook: Notebook) -> None:
    outcome = await notebook.run("!seq 200000")
    assert outcome.output == "".join(f"{n}\n" for n in range(1, 200_001))


async def test_an_interrupt_ends_a_command_that_ignores_it_and_its_cell(notebook: Notebook) -> None:
    gate = Path(notebook.sandbox.workspace_path) / "gate2"
    os.mkfifo(gate)
    for command in ("echo > gate2; sleep 60", "trap '' INT; echo > gate2; sleep 60; sleep 60"):
        done = notebook.send(f"!{command}\nprint('went on')\n!sleep 60")
        await asyncio.wait_for(asyncio.to_thread(gate.read_text), PATIENCE)
        await notebook.kernel.interrupt()
        outcome = await asyncio.wait_for(done, PATIENCE)
        assert (outcome.success, outcome.cause, outcome.error) == (False, "interrupted", "KeyboardInterrupt")
        assert outcome.output == ""
    assert (await notebook.run(dedent(_NO_SLEEPER))).output == "none left\n"


async def test_output_to_the_stream_object_is_in_order(notebook: Notebook) -> None:
    code = """
        import subprocess, sys
        print("one")
        subprocess.run(["echo", "two"], stdout=sys.stdout)
        print("three")
        done = subprocess.run(["sh", "-c", "echo four >&2"], stderr=sys.stderr)
    """
    outcome = await notebook.run(dedent(code))
    assert (outcome.output, outcome.stderr) == ("one\ntwo\nthree\nfour\n", "four\n")


async def test_text_that_is_not_unicode_survives(notebook: Notebook) -> None:
    outcome = await notebook.run("print('a\\udcffb', '\\ud800')")
    assert outcome.success
    assert outcome.output == "a\\udcffb \\ud800\n"


async def test_output_over_the_limit_is_counted(notebook: Notebook) -> None:
    outcome = await notebook.run("print('a' * 30_000_000)")
    assert outcome.truncated is not None
    assert outcome.truncated["bytes"] + len(outcome.output) == 30_000_001


async def test_no_name_is_left_in_the_users_namespace(notebook: Notebook) -> None:
    outcome = await notebook.run(
        "print([n for n in dir() if 'kernelbridge' in n.lower() or n in ('Outbox', 'install')])"
    )
    assert outcome.output == "[]\n"


@pytest.mark.parametrize("place", ["input_transformers_cleanup", "ast_transformers", "pre_run_cell", "pre_execute"])
async def test_an_interrupt_before_the_first_line_waits_for_it(notebook: Notebook, place: str) -> None:
    """It arrives while IPython prepares the cell, at several places. None is cut short, and the cell ends at once."""
    setup = f"""
        import ast, asyncio, os, signal
        ran, hit, shell = [], [False], get_ipython()
        class Hit(ast.NodeTransformer):
            def __call__(self, lines=None):
                if hit[0]:
                    hit[0] = False
                    os.kill(os.getpid(), signal.SIGINT)
                return lines
            def visit(self, node):
                return self(node)
        if {place.startswith("pre_")}:
            shell.events.register("{place}", Hit())
        else:
            shell.{place}.append(Hit())
    """
    assert (await notebook.run(dedent(setup))).success
    for code in ("ran.append(1)", "await asyncio.sleep(0); ran.append(1)", "ran.append(1)\nran.append(1)"):
        await notebook.run("hit[0] = True")
        outcome = await notebook.run(code)
        assert (outcome.success, outcome.error) == (False, "KeyboardInterrupt"), code
        assert (await notebook.run("print(ran, hit)")).output == "[] [False]\n"
    assert (await notebook.run("ran.append(1); print(ran)")).output == "[1]\n"


async def test_an_interrupt_reaches_the_cell_and_its_subprocesses(notebook: Notebook) -> None:
    gate = Path(notebook.sandbox.workspace_path) / "gate"
    os.mkfifo(gate)
    started = (
        "open('gate', 'w').close(); time.sleep(60)",
        "subprocess.run(['sh', '-c', 'echo > gate; sleep 60'])",
        "!echo > gate; sleep 60",
        "open('gate', 'w').close()\nwhile True: pass",
    )
    await notebook.run("import subprocess, time")
    for code in started:
        done = notebook.send(code)
        await asyncio.wait_for(asyncio.to_thread(gate.read_text), PATIENCE)
        await notebook.kernel.interrupt()
        outcome = await asyncio.wait_for(done, PATIENCE)
        assert outcome.state_preserved
        assert (outcome.success, outcome.cause, outcome.error) == (False, "interrupted", "KeyboardInterrupt")
    outcome = await notebook.run(dedent(_NO_SLEEPER))
    assert outcome.output == "none left\n"


async def test_bars_are_drawn_in_place_from_many_messages(any_notebook: Notebook) -> None:
    """Once, each message started with an empty screen, and the cursor could not move down."""
    code = """
        import sys
        for piece in ["one wait\\ntwo wait\\n", "\\x1b[2", "A\\rone done", "\\x1b[1B\\rtwo done", "\\x1b[1B\\rall\\n"]:
            sys.stdout.write(piece)
            sys.stdout.flush()
    """
    assert (await any_notebook.run(dedent(code))).output == "one done\ntwo done\nall\n"


async def test_output_that_is_drawn_in_slices_stays_in_order(notebook: Notebook) -> None:
    """Drawing this takes many turns of the loop; later output waits."""
    code = """
        print('first')
        print('ab\\b\\b' * 100_000, end='')
        display('shown')
        print('last')
    """
    outcome = await notebook.run(dedent(code))
    assert outcome.output == "first\nab\n'shown'\nlast\n"
    assert outcome.stdout == "first\n" + "ab\b\b" * 100_000 + "last\n"
