"""What our hooks do in a kernel that user code has taken apart, on every supported generation.

Each disturbance is done to a kernel of its own; then each hook has to do there what it does everywhere.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import pytest
import pytest_asyncio

from kernelbridge.jupyter import recall
from kernelbridge.jupyter.cell import Cell
from kernelbridge.jupyter.events import Asked
from kernelbridge.jupyter.wire import RawMessage
from kernelbridge.runtimes.facts import KernelSpec
from tests.unit.jupyter.conftest import PATIENCE, HostSandbox, Notebook

pytestmark = pytest.mark.asyncio(loop_scope="module")

OWN_NAMES = """
    import sys
    ctypes, inspect, os, threading, time = map(sys.modules.get, ("ctypes", "inspect", "os", "threading", "time"))
    say, nap, Thread, write, fork, wait = print, time.sleep, threading.Thread, os.write, os.fork, os.waitpid
    class Known:
        value = "the source of a class"
    def fail():
        raise ValueError("a thread's")
"""


@dataclass(frozen=True)
class Disturbance:
    """A disturbance by user code."""

    code: str
    files: tuple[str, ...] = ()
    """Modules of the workspace, each of which raises an error."""
    stdout: bool = True
    """Whether `sys.stdout` shows what is written to it."""
    stderr: bool = True
    fails: bool | None = False
    """Whether its cell ends with an error; None where that depends on IPython's version."""


STANDARD = tuple(
    sorted({*sys.stdlib_module_names, "IPython", "comm", "debugpy", "ipykernel", "jedi", "tornado", "zmq"})
)

DISTURBANCES = {
    "nothing": Disturbance("pass"),
    "stdout-closed": Disturbance("sys.stdout.close()", stdout=False),
    "stdout-none": Disturbance("sys.stdout = None", stdout=False),
    "stdout-deleted": Disturbance("del sys.stdout", stdout=False),
    "stdout-a-class": Disturbance(
        "class Nowhere:\n    def write(self, text): return len(text)\nsys.stdout = Nowhere()", stdout=False
    ),
    "stdout-raises": Disturbance(
        "class Raises:\n    def __getattr__(self, name): raise RuntimeError(name)\nsys.stdout = Raises()", stdout=False
    ),
    "stdout-wrapped": Disturbance("import io\nsys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding='utf-8')"),
    "stderr-closed": Disturbance("sys.stderr.close()", stderr=False),
    "stderr-none": Disturbance("sys.stderr = None", stderr=False),
    "stderr-a-class": Disturbance(
        "class Nowhere:\n    def write(self, text): return len(text)\nsys.stderr = Nowhere()", stderr=False
    ),
    "stdin-closed": Disturbance("sys.stdin.close()"),
    "streams-none": Disturbance("sys.stdin = sys.stdout = sys.stderr = None", stdout=False, stderr=False),
    "descriptors-closed": Disturbance("os.close(1); os.close(2)"),
    "descriptor-opened": Disturbance("print('by number', file=open(1, 'w'))"),
    "modules-in-the-workspace": Disturbance("pass", files=STANDARD),
    "forked": Disturbance("child = fork()\nif child: wait(child, 0)"),
    "forked-and-failed": Disturbance("child = fork()\nif not child: 1/0\nwait(child, 0)"),
    "in-a-thread": Disturbance("import asyncio\nawait asyncio.to_thread(get_ipython().run_cell, 'say(1)\\n1/0')"),
    "lock-held": Disturbance(
        "libc = ctypes.PyDLL(None)\nlibc.printf(b'1' * 300_000); libc.fflush(None); libc.usleep(300_000)"
    ),
    "str-raises": Disturbance(
        "class Odd(Exception):\n    def __str__(self): raise RuntimeError('no text')\nraise Odd()", fails=True
    ),
    "repr-raises": Disturbance("class Odd:\n    def __repr__(self): raise RuntimeError('no text')\nOdd()", fails=None),
    "excepthooks": Disturbance(
        "sys.excepthook = threading.excepthook = sys.unraisablehook = lambda *seen: None", stderr=False
    ),
    "sigint-handler": Disturbance("import signal\nsignal.signal(signal.SIGINT, lambda *seen: None)\nNone"),
    "event-loop": Disturbance("import asyncio\nasyncio.set_event_loop(asyncio.new_event_loop())"),
    "builtins": Disturbance("import builtins\nbuiltins.print = None"),
    "clock": Disturbance("time.monotonic = time.time = time.perf_counter = time.process_time = lambda: 0.0"),
    "threading": Disturbance("threading.Thread = None"),
    "json": Disturbance("import json\njson.dumps = json.loads = None"),
    "os": Disturbance("os.getpid = None"),
    "linecache": Disturbance("import linecache\nlinecache.cache.clear()"),
    "path": Disturbance("sys.path.clear()"),
    "environment": Disturbance("os.environ.clear()"),
    "trace": Disturbance("sys.settrace(lambda *seen: None); threading.settrace(lambda *seen: None)"),
}


class Disturbed:
    """A kernel that user code has disturbed."""

    def __init__(self, notebook: Notebook, disturbance: Disturbance) -> None:
        self.notebook = notebook
        self.disturbance = disturbance

    async def output(self, code: str) -> str:
        outcome = await self.notebook.run(dedent(code))
        assert outcome.success, outcome
        return outcome.output


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=DISTURBANCES)
async def disturbed(
    request: pytest.FixtureRequest, any_spec: KernelSpec, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Disturbed]:
    """One kernel for each disturbance and generation."""
    disturbance = DISTURBANCES[request.param]
    notebook = Notebook(HostSandbox(tmp_path_factory.mktemp("kernel")))
    for name in disturbance.files:
        text = "raise RuntimeError('the workspace has one, too')\n"
        (Path(notebook.sandbox.workspace_path) / f"{name}.py").write_text(text, encoding="utf-8")
    try:
        await notebook.start(any_spec)
        assert (await notebook.run(dedent(OWN_NAMES))).success
        outcome = await notebook.run(disturbance.code)
        assert disturbance.fails is None or outcome.success is not disturbance.fails, outcome
        yield Disturbed(notebook, disturbance)
    finally:
        await notebook.close()


async def streams(disturbed: Disturbed) -> None:
    code = """
        say("one", file=sys.__stdout__)
        write(1, b"two\\n")
        say("three", file=sys.__stderr__)
        write(2, b"four\\n")
        sys.__stdout__.buffer.write(b"five\\n")
        None
    """
    assert await disturbed.output(code) == "one\ntwo\nthree\nfour\nfive\n"


async def displays(disturbed: Disturbed) -> None:
    outcome = await disturbed.notebook.run("display({'text/plain': 'shown'}, raw=True)\n6 * 7")
    assert [result["data"]["text/plain"] for result in outcome.results] == ["shown", "42"]


async def errors(disturbed: Disturbed) -> None:
    outcome = await disturbed.notebook.run("x = 1\n1 / 0", filename="lesson.py")
    assert outcome.error == "ZeroDivisionError: division by zero"
    assert 'File "lesson.py", line 2, in <module>\n    1 / 0\n' in (outcome.traceback or "")


async def usage_errors(disturbed: Disturbed) -> None:
    outcome = await disturbed.notebook.run("%nosuch")
    assert (outcome.success, outcome.error) == (False, "UsageError: Line magic function `%nosuch` not found.")


async def sources(disturbed: Disturbed) -> None:
    code = "class Here:\n    value = 'found'\n\nsay(inspect.getsource(Here), file=sys.__stdout__)"
    assert "value = 'found'" in await disturbed.output(code)


async def threads(disturbed: Disturbed) -> None:
    code = """
        thread = Thread(target=say, args=("from a thread",), kwargs={"file": sys.__stdout__})
        thread.start(); thread.join()
    """
    assert await disturbed.output(code) == "from a thread\n"


async def uncaught(disturbed: Disturbed) -> None:
    text = await disturbed.output("thread = Thread(target=fail)\nthread.start(); thread.join()")
    assert "ValueError: a thread's" in text or not disturbed.disturbance.stderr


async def figures(disturbed: Disturbed) -> None:
    outcome = await disturbed.notebook.run("for number in range(100_000): pass")
    assert (outcome.cpu_ms or 0) > 0


async def question(disturbed: Disturbed) -> None:
    asked: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    kernel, done = disturbed.notebook.kernel, asyncio.get_running_loop().create_future()

    def listen(event: object) -> None:
        if isinstance(event, Asked) and not asked.done():
            asked.set_result(event.prompt)

    kernel.submit(Cell(code="name = input('name? ')\nname", allow_stdin=True), done.set_result, listen)
    assert await asyncio.wait_for(asked, PATIENCE) == "name? "
    kernel.reply_input("Ann")
    outcome = await asyncio.wait_for(done, PATIENCE)
    assert [result["data"]["text/plain"] for result in outcome.results] == ["'Ann'"]


async def refused_question(disturbed: Disturbed) -> None:
    outcome = await disturbed.notebook.run("input('name? ')")
    assert outcome.error == "StdinNotImplementedError: input() is not available here: pass the value in the code"


async def pager(disturbed: Disturbed) -> None:
    text = await disturbed.output("len?")
    assert "Return the number of items in a container." in text or not disturbed.disturbance.stdout


async def commands(disturbed: Disturbed) -> None:
    text = await disturbed.output("!cd /; echo from the shell")
    assert text.endswith("from the shell\n") or not disturbed.disturbance.stdout


async def interrupts(disturbed: Disturbed) -> None:
    for code in ("nap(60)", "while True: pass", "!sleep 60"):
        done = disturbed.notebook.send(code)
        await disturbed.notebook.kernel.interrupt()
        outcome = await asyncio.wait_for(done, PATIENCE)
        assert (outcome.error, outcome.cause) == ("KeyboardInterrupt", "interrupted"), code


async def completion(disturbed: Disturbed) -> None:
    reply = await disturbed.notebook.kernel.help.complete("kno = Kno", 9)
    assert "Known" in reply.matches


async def recall_reply(disturbed: Disturbed) -> None:
    await disturbed.output("say('kept', file=sys.__stdout__)")
    repeated, over, kernel = list[bytes](), asyncio.Event(), disturbed.notebook.kernel

    def consume(_channel: str, message: RawMessage) -> None:
        repeated.append(message.content)
        if recall.ENDS.encode() in message.header:
            over.set()

    end = kernel.subscribe(consume)
    reply = await kernel._requests.ask("control", recall.REQUEST, {"replay": True})
    assert reply is not None
    assert recall.read(reply).reply_message() is not None
    await asyncio.wait_for(over.wait(), PATIENCE)
    end()
    assert any(b'"kept\\n"' in content for content in repeated)


async def forks(disturbed: Disturbed) -> None:
    code = """
        child = fork()
        if not child:
            say("from the child", file=sys.__stdout__)
            sys.exit(7)
        wait(child, 0)[1] >> 8
    """
    outcome = await disturbed.notebook.run(dedent(code))
    assert outcome.stdout == "from the child\n"
    assert [result["data"]["text/plain"] for result in outcome.results] == ["7"]


HOOKS = (
    *(streams, displays, errors, usage_errors, sources, threads, uncaught, figures, question, refused_question),
    *(pager, commands, interrupts, completion, recall_reply, forks),
)


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.__name__)
async def test_a_hook_in_a_disturbed_kernel(disturbed: Disturbed, hook: Callable[[Disturbed], Awaitable[None]]) -> None:
    await asyncio.wait_for(hook(disturbed), PATIENCE)
