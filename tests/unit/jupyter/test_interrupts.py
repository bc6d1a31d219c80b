"""Interrupts end the cell, wherever it blocks."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from textwrap import dedent

import pytest

from kernelbridge.jupyter.cell import Outcome
from tests.unit.jupyter.conftest import PATIENCE, Notebook

pytestmark = pytest.mark.asyncio(loop_scope="module")

_SETUP = """
    import asyncio, os, signal, subprocess, sys, threading, time
    kept = "kept"
    def block():
        open("gate", "w").close()
        time.sleep(3600)
    async def blocks():
        block()
"""
_CHILDREN = """
    import os, time
    def children(pid):
        for task in os.listdir(f"/proc/{pid}/task"):
            try: yield from open(f"/proc/{pid}/task/{task}/children").read().split()
            except FileNotFoundError: pass  # a thread that has ended
    end = time.monotonic() + 30  # a killed process may need a moment to be gone
    while (left := list(children(os.getpid()))) and time.monotonic() < end:
        for pid in left:
            try: os.waitpid(int(pid), os.WNOHANG)
            except OSError: pass
    print(left)
"""


async def set_up(notebook: Notebook) -> Path:
    """Make the FIFO `gate`, and what the cells use, unless they are there; return its path."""
    gate = Path(notebook.sandbox.workspace_path) / "gate"
    if not gate.exists():
        os.mkfifo(gate)
        await notebook.run(dedent(_SETUP))
    return gate


async def begun(notebook: Notebook, code: str) -> asyncio.Future[Outcome]:
    """Send a cell, and return when it has opened the FIFO `gate`."""
    gate = await set_up(notebook)
    opened = asyncio.Event()
    reader = os.open(gate, os.O_RDONLY | os.O_NONBLOCK)
    asyncio.get_running_loop().add_reader(reader, opened.set)
    try:
        done = notebook.send(code)
        await asyncio.wait_for(opened.wait(), PATIENCE)
    finally:
        asyncio.get_running_loop().remove_reader(reader)
        os.close(reader)
    return done


async def interrupted(notebook: Notebook, code: str) -> Outcome:
    """Interrupt a cell when it has opened the FIFO `gate`."""
    done = await begun(notebook, dedent(code))
    await notebook.kernel.interrupt()
    return await asyncio.wait_for(done, PATIENCE)


@pytest.mark.parametrize(
    "code",
    [
        "await asyncio.gather(*[asyncio.create_task(blocks()) for _ in range(3)])",
        "others = [asyncio.create_task(blocks())]\nawait asyncio.sleep(3600)",
        "asyncio.get_running_loop().call_soon(block)\nawait asyncio.sleep(3600)",
        "asyncio.get_running_loop().call_later(0.01, block)\nawait asyncio.sleep(3600)",
        """
        asyncio.get_running_loop().call_soon(open("gate", "w").close)
        asyncio.get_running_loop().call_soon(time.sleep, 3600)
        await asyncio.sleep(3600)
        """,
        """
        async def generate():
            yield block()
        async for _ in generate(): pass
        """,
        """
        class Context:
            async def __aenter__(self): block()
            async def __aexit__(self, *error): pass
        async with Context(): pass
        """,
        "await asyncio.wait_for(blocks(), 3600)",
        "open('gate', 'w').close()\nawait asyncio.shield(asyncio.get_running_loop().create_future())",
        "open('gate', 'w').close()\nawait asyncio.to_thread(time.sleep, 0.5)\nawait asyncio.sleep(3600)",
        "asyncio.set_event_loop(None)\nopen('gate', 'w').close()\nawait asyncio.sleep(3600)",
        "asyncio.set_event_loop(asyncio.new_event_loop())\nawait asyncio.create_task(blocks())",
        "await asyncio.sleep(0)\nblock()",
        """
        class Final:
            def __del__(self): block()
        Final(), None
        print("went on")
        """,
        """
        class Final:
            def __del__(self): block()
        async def drop():
            Final()
            await asyncio.sleep(3600)
        await asyncio.create_task(drop())
        """,
        """
        open("slow_module.py", "w").write("import __main__\\n__main__.block()")
        import slow_module
        """,
        "lock = threading.Lock()\nlock.acquire()\nopen('gate', 'w').close()\nlock.acquire()",
        "import select\nopen('gate', 'w').close()\nselect.select([], [], [])",
        "import re\nopen('gate', 'w').close()\nre.match('(a*)*b', 'a' * 64)",
        """
        thread = threading.Thread(target=time.sleep, args=(1,))
        thread.start()
        open("gate", "w").close()
        thread.join(); time.sleep(3600)
        """,
        "signal.signal(signal.SIGINT, signal.SIG_DFL)\nblock()",
        "signal.signal(signal.SIGINT, signal.default_int_handler)\nblock()",
        "[block() for _ in range(2)]",
        "sorted([2, 1], key=lambda _: block())",
    ],
)
async def test_an_interrupt_reaches_what_blocks(any_notebook: Notebook, code: str) -> None:
    outcome = await interrupted(any_notebook, code)
    assert (outcome.success, outcome.cause, outcome.state_preserved) == (False, "interrupted", True)
    assert outcome.error == "KeyboardInterrupt"
    assert "went on" not in outcome.output
    assert "<kernelbridge>" not in (outcome.traceback or "") + outcome.output
    assert (await any_notebook.run("print(kept)")).output == "kept\n"


async def test_a_task_that_is_interrupted_shows_where_it_was(any_notebook: Notebook) -> None:
    outcome = await interrupted(any_notebook, "await asyncio.gather(asyncio.create_task(blocks()))")
    shown = [line for line in (outcome.traceback or "").splitlines() if line.startswith("  File")]
    assert [line.partition(" line ")[2] for line in shown[-2:]] == ["8, in blocks", "6, in block"]
    assert all("main.py" in line for line in shown)


@pytest.mark.parametrize("name", ["pre_run_cell", "pre_execute", "post_execute", "post_run_cell"])
@pytest.mark.parametrize("code", ["ran = 1", "await asyncio.sleep(0)"])
async def test_an_interrupt_of_what_ipython_calls_ends_the_cell(any_notebook: Notebook, name: str, code: str) -> None:
    await set_up(any_notebook)
    register = f"""
        slow = []
        def callback(*given):
            if slow:
                slow.clear()
                block()
        get_ipython().events.register({name!r}, callback)
    """
    await any_notebook.run(dedent(register))
    if name.startswith("pre"):
        await any_notebook.run("slow.append(1)")
    outcome = await interrupted(any_notebook, code if name.startswith("pre") else f"slow.append(1)\n{code}")
    assert (outcome.success, outcome.cause, outcome.error) == (False, "interrupted", "KeyboardInterrupt")
    assert "Traceback" not in outcome.output
    outcome = await any_notebook.run(f"get_ipython().events.unregister({name!r}, callback)\nprint(kept, slow)")
    assert outcome.output == "kept []\n"


_SHELL = "echo > gate; sleep 3600"
_LOSES = "trap 'trap - INT; exec sleep 3600' INT; echo > gate; while :; do sleep 0.05; done"
_CHILD_LOSES = f"bash -c {_LOSES!r}; true"
_SLOW = "import time\nopen('gate', 'w').close()\ntime.sleep(3600)\n"


@pytest.mark.parametrize(
    "code",
    [
        f"!{_SHELL}",
        f"found = !{_SHELL}",
        f"for _ in range(2):\n    found = !{_SHELL}\n    print('went on')",
        f"try:\n    get_ipython().getoutput({_SHELL!r})\nexcept Exception:\n    print('went on')",
        "found = !trap '' INT; echo > gate; sleep 3600; sleep 3600",
        f"get_ipython().system({_SHELL!r})",
        f"%sx {_SHELL}",
        f"!!{_SHELL}",
        f"%%bash\n{_SHELL}",
        f"%%script sh\n{_SHELL}",
        f"%%sh\ntrap '' INT\n{_SHELL}",
        f"%%sh --no-raise-error\n{_SHELL}",
        f"for _ in range(2):\n    get_ipython().run_cell_magic('bash', '', {_SHELL!r})\n    print('went on')",
        f"os.system({_SHELL!r})",
        f"for _ in range(2):\n    os.system({_SHELL!r})\nprint('went on')",
        f"import pty\npty.spawn(['sh', '-c', {_SHELL!r}])",
        # It loses the first signal, as a shell may that is about to become its last command.
        f"import pty\npty.spawn(['sh', '-c', {_LOSES!r}])",
        f"import pty\npty.spawn(['bash', '-c', {_CHILD_LOSES!r}])",
        f"subprocess.run({_SHELL!r}, shell=True)",
        f"os.popen({_SHELL!r}).read()",
        f"open('slow.py', 'w').write({_SLOW!r})\n%run slow.py",
        f"open('slow.ipy', 'w').write({_SLOW!r})\n%run slow.ipy",
        f"open('slow.py', 'w').write({_SLOW!r})\n%run -m slow",
        "%timeit -n1 -r1 block()",
        "%%timeit -n1 -r1\nblock()",
        "%prun block()",
        "%time block()",
        "%%time\nblock()",
        "%%capture\nblock()",
        "get_ipython().run_cell('block()')",
        f"open('slow.py', 'w').write({_SLOW!r})\nget_ipython().run_cell('%run slow.py')",
        "eval('block()')",
    ],
)
async def test_what_ipython_swallows_ends_the_cell(any_notebook: Notebook, code: str) -> None:
    outcome = await interrupted(any_notebook, code if code.startswith("%%") else f"{code}\nprint('went on')")
    assert (outcome.success, outcome.cause, outcome.error) == (False, "interrupted", "KeyboardInterrupt")
    assert outcome.state_preserved
    assert "went on" not in outcome.output
    assert "Traceback" not in outcome.output
    assert (outcome.traceback or "").startswith('Traceback (most recent call last):\n  File "main.py", line ')
    assert "/IPython/" not in (outcome.traceback or "")
    after = await any_notebook.run(dedent(_CHILDREN) + "print(kept)")
    assert (after.error, after.output) == (None, "[]\nkept\n")


@pytest.mark.parametrize("call", ["stop()", "%time stop()", "result = %time stop()"])
async def test_code_that_handles_an_interrupt_continues(any_notebook: Notebook, call: str) -> None:
    code = f"""
        def stop():
            try:
                block()
            except KeyboardInterrupt:
                print("stopped")
        {call}
        print("went on")
    """
    outcome = await interrupted(any_notebook, code)
    assert (outcome.success, outcome.cause) == (True, None)
    assert outcome.output.startswith("stopped\n")
    assert outcome.output.endswith("went on\n")


async def test_an_interrupt_of_c_code_that_ends_late_comes_once(any_notebook: Notebook) -> None:
    """It is sent again meanwhile, because nothing has seen it yet: what saves the work must not be interrupted, too."""
    code = """
        import hashlib
        try:
            open("gate", "w").close()
            hashlib.pbkdf2_hmac("sha256", b"", b"", 3_000_000)
        except KeyboardInterrupt:
            for _ in range(10_000): pass
            print("saved")
    """
    outcome = await interrupted(any_notebook, code)
    assert (outcome.cause, outcome.error, outcome.output) == (None, None, "saved\n")


async def test_a_handler_of_user_code_is_called_and_lasts_for_one_cell(any_notebook: Notebook) -> None:
    code = """
        def handle(signum, frame):
            print("handled")
            raise OSError("by hand")
        signal.signal(signal.SIGINT, handle)
        block()
    """
    outcome = await interrupted(any_notebook, code)
    assert (outcome.cause, outcome.error, outcome.output) == ("interrupted", "OSError: by hand", "handled\n")
    outcome = await any_notebook.run("print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)")
    assert outcome.output == "True\n"
    assert (await interrupted(any_notebook, "block()")).error == "KeyboardInterrupt"


@pytest.mark.parametrize("handler", ["signal.SIG_IGN", "lambda *given: print('ignored')"])
async def test_a_cell_that_ignores_interrupts_is_ended_by_the_second(any_notebook: Notebook, handler: str) -> None:
    code = f"signal.signal(signal.SIGINT, {handler})\n" + dedent("""
        open("gate", "w").close()
        while True: time.sleep(0.01)
    """)
    done = await begun(any_notebook, code)
    await any_notebook.kernel.interrupt()
    assert not done.done()
    await any_notebook.kernel.interrupt_group()
    outcome = await asyncio.wait_for(done, PATIENCE)
    assert (outcome.cause, outcome.error, outcome.state_preserved) == ("interrupted", "KeyboardInterrupt", True)
    assert (await any_notebook.run("print(kept)")).output == "kept\n"


async def test_an_interrupt_that_comes_late_ends_nothing(any_notebook: Notebook) -> None:
    """It is sent again if it is not seen, but never into the next cell."""
    for _ in range(5):
        done = await begun(any_notebook, "open('gate', 'w').close()")
        await any_notebook.kernel.interrupt()
        await asyncio.wait_for(done, PATIENCE)
        outcome = await any_notebook.run("time.sleep(0.1)\nprint('whole')")
        assert (outcome.success, outcome.output) == (True, "whole\n")


@pytest.mark.parametrize("leave", ["sys.exit(3)", "raise KeyboardInterrupt", "raise SystemExit"])
async def test_a_task_or_callback_that_exits_does_not_end_the_kernel(any_notebook: Notebook, leave: str) -> None:
    code = f"""
        import asyncio, sys
        async def leaves():
            {leave}
        def callback():
            {leave}
        asyncio.get_running_loop().call_soon(callback)
        await asyncio.sleep(0.01)
        print("here")
        await asyncio.create_task(leaves())
    """
    outcome = await any_notebook.run(dedent(code))
    assert (outcome.success, outcome.cause, outcome.state_preserved) == (False, None, True)
    assert outcome.output.endswith("here\n")
    assert (await any_notebook.run("print('alive')")).output == "alive\n"
