"""Closed streams, a killed pump, and the last output of a kernel: each on a kernel of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from textwrap import dedent

import pytest

from kernelbridge.runtimes.facts import KernelSpec
from tests.unit.jupyter.conftest import PATIENCE, Notebook

NewNotebook = Callable[..., Awaitable[Notebook]]


async def test_a_closed_stream_raises_until_it_is_restored(any_spec: KernelSpec, new_notebook: NewNotebook) -> None:
    notebook = await new_notebook(any_spec)
    assert (await notebook.run("import sys\nsaved = sys.stdout\nsys.stdout.close()\nsys.stdout.close()")).success
    assert (await notebook.run("print(1)")).error == "ValueError: I/O operation on closed file."
    assert (await notebook.run("sys.stdout = sys.__stdout__\nprint('back')")).output == "back\n"
    assert (await notebook.run("sys.stdout.close()\nsys.stdout = sys.__stdout__\nprint('again')")).output == "again\n"


async def test_a_kernel_reads_its_pipes_itself_after_its_pump_was_killed(
    any_spec: KernelSpec, new_notebook: NewNotebook
) -> None:
    notebook = await new_notebook(any_spec)
    code = """
        import os
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try: ours = os.getsid(int(pid)) == os.getsid(0) and int(pid) != os.getpid()
            except OSError: continue
            if ours: os.kill(int(pid), 9)
    """
    await notebook.run(dedent(code))
    for _ in range(3):
        outcome = await notebook.run("print('a')\nos.system('echo b')\nprint('c')\n_ = os.system('seq 30000')")
        assert outcome.output == "a\nb\nc\n" + "".join(f"{n}\n" for n in range(1, 30_001))


async def test_what_is_written_before_the_kernel_knows_that_its_pump_is_dead_keeps_its_order(
    any_spec: KernelSpec, new_notebook: NewNotebook
) -> None:
    """The thread that notices it may be late; here it waits for a lock."""
    notebook = await new_notebook(any_spec)
    code = """
        import os
        with get_ipython().kernel.kernelbridge_outbox.source_lock:
            for pid in filter(str.isdigit, os.listdir("/proc")):
                try: ours = os.getsid(int(pid)) == os.getsid(0) and int(pid) != os.getpid()
                except OSError: continue
                if ours: os.kill(int(pid), 9)
            for number in range(3):
                print("a", number)
                os.system(f"echo b {number}")
                print("c", number)
        _ = os.system("seq 30000")
    """
    outcome = await notebook.run(dedent(code))
    written = [f"{letter} {number}\n" for number in range(3) for letter in "abc"]
    assert outcome.output == "".join(written) + "".join(f"{n}\n" for n in range(1, 30_001))
    assert (await notebook.run("print('a')\nos.system('echo b')\nprint('c')")).output == "a\nb\nc\n"


async def test_the_thread_that_waits_for_output_rests_after_the_pumps_end(
    any_spec: KernelSpec, new_notebook: NewNotebook
) -> None:
    """Another thread may notice the end while the pump's bell still rings."""
    notebook = await new_notebook(any_spec)
    code = """
        import os, select, threading, time
        outbox = get_ipython().kernel.kernelbridge_outbox
        source = outbox.source
        def until(ringing):
            while bool(select.select([source.pump.bell], [], [], 0)[0]) is not ringing: time.sleep(0.001)
        with outbox.source_lock:
            heard = source.words[6]
            os.system("echo a")
            while source.words[6] == heard: time.sleep(0.001)
            until(False)  # the thread has heard the bell, and waits for the lock
            os.system("echo a")
            until(True)
            for pid in filter(str.isdigit, os.listdir("/proc")):
                try: ours = os.getsid(int(pid)) == os.getsid(0) and int(pid) != os.getpid()
                except OSError: continue
                if ours: os.kill(int(pid), 9)
            os.system("echo b")
            print("c")
        watcher = next(thread for thread in threading.enumerate() if thread.name == "OutputWatcher")
        def used():
            with open(f"/proc/self/task/{watcher.native_id}/stat") as file:
                return sum(map(int, file.read().rpartition(")")[2].split()[11:13]))
        before = used()
        time.sleep(1)
        print(used() - before < 20)
    """
    assert (await notebook.run(dedent(code))).output == "a\na\nb\nc\nTrue\n"
    assert (await notebook.run("import os\nos.system('echo d')\nprint('e')")).output == "d\ne\n"


@pytest.mark.parametrize("file", ["", "file=sys.stderr"])
async def test_the_report_of_a_crash_is_in_the_result(
    any_spec: KernelSpec, new_notebook: NewNotebook, file: str
) -> None:
    notebook = await new_notebook(any_spec)
    code = f"import faulthandler, sys\nfaulthandler.enable({file})\nfaulthandler._sigsegv()"
    outcome = await notebook.run(code)
    assert outcome.cause == "kernel_died"
    assert outcome.output.startswith("Fatal Python error: Segmentation fault\n")
    assert 'File "main.py", line 3 in <module>\n' in outcome.output
    assert outcome.stderr.startswith("Fatal Python error")


async def test_the_last_output_of_a_dying_kernels_children_is_in_its_result(
    any_spec: KernelSpec, new_notebook: NewNotebook
) -> None:
    notebook = await new_notebook(any_spec)
    outcome = await notebook.run("import os\nos.system('echo written')\nos.write(2, b'last')\nos._exit(3)")
    assert outcome.output == "written\nlast"
    assert outcome.error == "KernelDied: the kernel ended (exit code 3); its variables are lost"
    assert (await asyncio.wait_for(asyncio.shield(notebook.kernel.died), PATIENCE)).code == 3
