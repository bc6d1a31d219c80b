"""An interpreter that ends: its cell is told how, everything else lives on, and the next cell says what is lost."""

import time

import pytest

from tests.faults.conftest import begin, status_with
from tests.integration.conftest import Client, Frame, RunningServer, StartServer
from tests.integration.emulator import Person

EXIT = "import os; os._exit(3)"
SEGFAULT = "import ctypes; ctypes.string_at(0)"
KILLED = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
ABORTED = "import os; os.abort()"


@pytest.mark.parametrize(
    ("code", "field", "value", "how"),
    [
        (EXIT, "exitCode", 3, "exit code 3"),
        (SEGFAULT, "signal", "SIGSEGV", "signal 11"),
        (ABORTED, "signal", "SIGABRT", "signal 6"),
        (KILLED, "signal", "SIGKILL", "signal 9"),
    ],
)
async def test_its_cell_is_told_how_it_ended(client: Client, code: str, field: str, value: object, how: str) -> None:
    await client.run("x = 1; open('f', 'w').write('kept')")
    await client.shell("y=kept; cd /tmp")
    died = await client.run(code)
    assert (died["success"], died["cause"], died["statePreserved"]) == (False, "kernel_died", False)
    assert died[field] == value
    assert ("exitCode" in died, "signal" in died) == (field == "exitCode", field == "signal")
    assert died["error"] == f"KernelDied: the kernel ended ({how}); its variables are lost"
    assert died["durationMs"] < 15_000  # at once; a busy machine needs longer
    after = await client.run("print(open('f').read(), 'x' in globals())")
    assert (after["success"], after["output"], after["statePreserved"]) == (True, "kept False\n", False)
    assert after["lateOutput"] == f"kernelbridge: the interpreter ended ({how}); its variables are lost\n"
    again = await client.run("print(1)")
    assert "statePreserved" not in again
    assert "lateOutput" not in again
    assert (await client.shell("echo $y; pwd"))["output"] == "kept\n/tmp\n"


@pytest.mark.parametrize("code", [EXIT, SEGFAULT])
async def test_an_open_terminal_survives_it(server: RunningServer, client: Client, code: str) -> None:
    async with server.connect("tester") as viewer:
        await client.run("x = 1")
        person = await Person.open(viewer)
        await person.type("cd /tmp; kept=in-it; sh -c 'echo beg''un; read line; echo $line; exec sleep 1000'\r")
        await person.until("begun")
        assert (await client.run(code))["cause"] == "kernel_died"
        await person.type("still there\r")
        await person.until("still there\nstill there")
        await person.type("\x03")
        await person.prompt()
        await person.type("echo $PWD $kept\r")
        await person.until("/tmp in-it")
        assert (await client.run("print('x' in globals())"))["output"] == "False\n"


async def test_the_first_result_tells_of_the_loss_even_if_its_cell_fails(client: Client) -> None:
    await client.run("x = 1")
    await client.run(EXIT)
    failed = await client.run("x")
    assert (failed["success"], failed["error"]) == (False, "NameError: name 'x' is not defined")
    assert (failed["statePreserved"], "cause" in failed) == (False, False)
    assert "its variables are lost" in failed["lateOutput"]


async def test_one_that_dies_again_at_once_is_told_each_time(client: Client) -> None:
    await client.run("x = 1")
    for code in (EXIT, EXIT, SEGFAULT):
        died = await client.run(code)
        assert (died["cause"], died["statePreserved"]) == ("kernel_died", False)
    after = await client.run("print('x' in globals())")
    assert (after["output"], after["lateOutput"].count("kernelbridge:")) == ("False\n", 1)


async def test_one_that_dies_while_no_cell_runs_is_told_by_the_next(server: RunningServer) -> None:
    async with server.connect("u") as watcher, server.connect("u") as client:
        await watcher.ask(type="open_session", sessionId="s")
        await client.run("x = 1")
        pid = (await client.run("import os; print(os.getpid())"))["output"].strip()
        assert (await client.shell(f"kill -SEGV {pid}"))["exitCode"] == 0
        await status_with(watcher, "kernel_died")
        after = await client.run("print('x' in globals())")
        assert (after["output"], after["statePreserved"]) == ("False\n", False)
        assert "signal 11" in after["lateOutput"]


@pytest.mark.parametrize("child", ["os.setsid(); time.sleep(1000)", "time.sleep(1000)"])
async def test_children_that_outlive_it_delay_the_news_by_little(client: Client, child: str) -> None:
    """They are forks of the kernel: whatever it had open, its output and its sockets, they hold on to."""
    await client.run("import os, time; x = 1")
    began = time.monotonic()
    died = await client.run(f"if os.fork() == 0:\n    {child}\nos._exit(4)")
    assert (died["cause"], died["exitCode"]) == ("kernel_died", 4)
    assert time.monotonic() - began < 3.5  # the engine waits for them before it tells, up to 4 s
    assert (await client.run("print('x' in globals())"))["output"] == "False\n"


async def test_a_restart_is_told_by_the_next_cell_as_well(client: Client) -> None:
    await client.run("x = 1")
    assert (await client.ask(type="restart_kernel", sessionId="s"))["type"] == "kernel_restarted"
    after = await client.run("print('x' in globals())")
    assert (after["output"], after["statePreserved"]) == ("False\n", False)
    assert after["lateOutput"] == "kernelbridge: the interpreter was restarted; its variables are lost\n"


SWALLOWS = "import time\nwhile True:\n  try:\n    while True: time.sleep(60)\n  except KeyboardInterrupt: pass"


async def test_a_loop_that_swallows_interrupts_is_ended_step_by_step(start_server: StartServer) -> None:
    """Past its time: SIGINT, SIGINT to the group, the end of the interpreter, another; what waits runs in that."""
    server = await start_server(execution_timeout="1s")
    async with server.connect("u") as client:
        await client.run("x = 1")
        await client.shell("y=kept")
        await client.send(type="execute_code", sessionId="s", code=SWALLOWS, stream=True, requestId="cell")
        await client.send(type="execute_code", sessionId="s", code="print('x' in globals())", requestId="queued")
        steps: list[Frame] = []
        while not steps or not steps[-1].get("done"):
            frame = await client.answer_to("cell")
            if frame["type"] == "execution_result":
                result = frame
            elif frame["type"] == "interrupted":
                steps.append(frame)
        told = [(step["step"], step["done"]) for step in steps]
        assert told == [("sigint", False), ("process_group", False), ("kill", False), ("restart", True)]
        assert (result["success"], result["cause"], result["statePreserved"]) == (False, "timeout", False)
        assert "signal" not in result  # it was the server that killed it
        assert result["error"] == "ExecutionTimeout: the cell ran longer than its limit of 1 s"
        queued = await client.answer_to("queued")
        assert (queued["output"], queued["statePreserved"]) == ("False\n", False)
        assert queued["lateOutput"].startswith("kernelbridge: the interpreter was restarted")
        assert (await client.shell("echo $y"))["output"] == "kept\n"


async def test_an_interrupt_that_works_preserves_everything(client: Client) -> None:
    await client.run("import time; x = 1")
    await begin(client, "time.sleep(1000)")
    await client.send(type="interrupt", sessionId="s", requestId="i")
    result = await client.answer_to("cell")
    assert (result["success"], result["cause"], result["statePreserved"]) == (False, "interrupted", True)
    assert (await client.answer_to("i"))["statePreserved"] is True
    after = await client.run("print(x)")
    assert (after["output"], "statePreserved" in after, "lateOutput" in after) == ("1\n", False, False)
