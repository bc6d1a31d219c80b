"""Interrupts reach the cell and what it waits for, and nothing else; restarts and limits of time."""

import asyncio

import pytest

from tests.integration.conftest import Client, Frame, RunningServer, StartServer, on_both_runtimes

RUNTIMES = ("local",)
"""Whose tests these are, but for some: what a runtime could spoil is in tests/contract."""


async def started(client: Client, code: str, begin: str = "open('mark', 'w').close()\n") -> None:
    """Send a cell that opens a FIFO as its first act, and wait for that."""
    await client.shell("cd; rm -f mark; mkfifo mark")
    await client.send(type="execute_code", sessionId="s", code=begin + code, requestId="cell")
    assert (await client.shell("cat mark"))["exitCode"] == 0


async def interrupt(client: Client, **more: object) -> list[Frame]:
    """Interrupt, and give the steps up to the last."""
    await client.send(type="interrupt", sessionId="s", requestId="i", **more)
    steps = [await client.answer_to("i")]
    while not steps[-1]["done"]:
        steps.append(await client.answer_to("i"))
    return steps


async def no_process_left(client: Client, pattern: str) -> object:
    return (await client.shell(f"! grep -qas '{pattern}' /proc/[0-9]*/cmdline"))["exitCode"] == 0


@on_both_runtimes
async def test_an_interrupt_ends_the_cell_and_its_subprocesses(client: Client) -> None:
    await client.run("import subprocess, time, asyncio, os; x = 7")
    for code in (
        "time.sleep(1000)",
        "while True: pass",
        "subprocess.run(['sleep', '1000.5'])",
        "!sleep 1000.5",
        "subprocess.run(['sh', '-c', 'trap \"\" INT; exec sleep 1000.5'])",
        "await asyncio.sleep(1000)",
        "await asyncio.sleep(0)\nwhile True: time.sleep(0.01)",
        "subprocess.Popen(['sleep', '1000.5']).wait()",
    ):
        await started(client, code)
        steps = await interrupt(client)
        assert [(s["step"], s["done"], s.get("statePreserved")) for s in steps] == [("sigint", True, True)], code
        result = await client.answer_to("cell")
        assert (result["success"], result["cause"], result["statePreserved"]) == (False, "interrupted", True), code
        assert await no_process_left(client, "1000[.]5"), code
    result = await client.run("print(x)")
    assert (result["output"], "cause" in result) == ("7\n", False)


@on_both_runtimes
async def test_one_that_ignores_it_loses_its_interpreter_step_by_step(client: Client) -> None:
    await client.run("import os, time; x = 1")
    await client.shell("y=kept")
    await started(client, "os.system('trap \"\" INT; : > mark; sleep 1000.5')", begin="")
    await client.send(type="execute_code", sessionId="s", code="print('x' in globals())", requestId="next")
    steps = await interrupt(client)
    assert [(s["step"], s["done"]) for s in steps] == [
        ("sigint", False),
        ("process_group", False),
        ("kill", False),
        ("restart", True),
    ]
    assert steps[-1]["statePreserved"] is False
    assert [s["seq"] for s in steps] == sorted(s["seq"] for s in steps)
    result = await client.answer_to("cell")
    assert (result["success"], result["cause"], result["statePreserved"]) == (False, "interrupted", False)
    assert result["error"].startswith("Interrupted: ")
    after = await client.answer_to("next")
    assert (after["output"], after["statePreserved"]) == ("False\n", False)
    assert await no_process_left(client, "1000[.]5")
    assert (await client.shell("echo $y"))["output"] == "kept\n"


async def test_when_nothing_runs_it_says_so(client: Client) -> None:
    nothing = {"type": "interrupted", "sessionId": "s", "requestId": "i", "target": "execution", "step": "none"}
    for _ in range(2):
        steps = await interrupt(client)
        assert steps == [{**nothing, "done": True, "statePreserved": True, "seq": steps[0]["seq"]}]
        await client.run("pass")


async def test_waiting_cells_are_ended_if_that_is_wanted(client: Client) -> None:
    await client.run("import time; ran = []")
    await started(client, "time.sleep(1000)")
    for name in "abc":
        await client.send(type="execute_code", sessionId="s", code=f"ran.append('{name}')", requestId=name)
    steps = await interrupt(client, queued=True)
    assert (steps[-1]["step"], steps[-1]["ended"]) == ("sigint", 3)
    assert (await client.answer_to("cell"))["cause"] == "interrupted"
    for name in "abc":
        result = await client.answer_to(name)
        assert (result["success"], result["cause"]) == (False, "interrupted")
        assert result["error"].endswith("it never ran")
    assert (await client.run("print(ran)"))["output"] == "[]\n"


@pytest.mark.parametrize("target", ["execution", "terminal"])
async def test_an_interrupt_for_one_run_touches_no_other(client: Client, target: str) -> None:
    await client.shell("mkfifo gate")
    kind, text, wait, quick = (
        ("execute_code", "code", "open('gate').read()", "1")
        if target == "execution"
        else ("terminal_command", "command", "cat gate", "true")
    )
    for request_id, what in (("runs", wait), ("waits", quick), ("meant", quick), ("last", quick)):
        await client.send(type=kind, sessionId="s", requestId=request_id, **{text: what})
    [step] = await interrupt(client, target=target, runId="meant")
    assert (step["step"], step["ended"]) == ("none", 1)
    assert (await client.answer_to("meant"))["cause"] == "interrupted"
    [step] = await interrupt(client, target=target, runId="meant")
    assert (step["step"], step["ended"]) == ("none", 0), "it has ended: what runs now is not meant"
    *_, step = await interrupt(client, target=target, runId="runs")
    assert step["done"]
    assert (await client.answer_to("runs"))["cause"] == "interrupted"
    for request_id in ("waits", "last"):
        assert "cause" not in await client.answer_to(request_id)


async def test_an_interrupt_that_only_signals_ends_nothing(client: Client) -> None:
    """Its answer comes while the cell that has caught it goes on."""
    code = """
        import time
        for number in range(2):
            try: time.sleep(1000)
            except KeyboardInterrupt: print(number)
        text = open('gate').read()
        """
    await client.shell("mkfifo gate")
    await started(client, "\n".join(line[8:] for line in code.splitlines()))
    for _ in range(2):
        steps = await interrupt(client, escalate=False)
        assert [(step["step"], step["done"], step["statePreserved"]) for step in steps] == [("sigint", True, True)]
    info = await client.ask(type="session_info", sessionId="s")
    assert "runningSince" in info
    await client.send(type="terminal_command", sessionId="s", command="echo >gate")
    result = await client.answer_to("cell")
    assert (result["success"], result["output"], "cause" in result) == (True, "0\n1\n", False)


async def test_what_a_signal_ends_is_interrupted_and_what_fails_later_is_not(client: Client) -> None:
    await started(client, "import time; time.sleep(1000)")
    await interrupt(client, escalate=False)
    result = await client.answer_to("cell")
    assert (result["cause"], result["statePreserved"]) == ("interrupted", True)
    await started(client, "try: time.sleep(1000)\nexcept KeyboardInterrupt: pass\n1 / 0")
    await interrupt(client, escalate=False)
    result = await client.answer_to("cell")
    assert (result["error"], "cause" in result) == ("ZeroDivisionError: division by zero", False)


async def test_a_signal_ends_a_question_and_the_limit_runs_on(client: Client) -> None:
    code = "try: input('? ')\nexcept KeyboardInterrupt: pass\nwhile True: pass"
    await client.send(type="execute_code", sessionId="s", code=code, requestId="cell", allowStdin=True, timeout=1.0)
    question = await client.answer_to("cell")
    assert (await interrupt(client, escalate=False))[-1]["step"] == "sigint"
    await client.send(type="input_reply", sessionId="s", value="late", inputId=question["inputId"], requestId="r")
    assert (await client.answer_to("r"))["code"] == "no_input_waiting"
    assert (await client.answer_to("cell"))["cause"] == "timeout"


async def test_several_interrupts_at_once_are_all_answered(client: Client) -> None:
    await client.run("import time")
    await started(client, "time.sleep(1000)")
    for number in range(20):
        await client.send(type="interrupt", sessionId="s", requestId=f"i{number}")
    frames = [await client.answer_to(f"i{number}") for number in range(20)]
    assert all(frame["done"] and frame["step"] in {"sigint", "none"} for frame in frames)
    assert (await client.answer_to("cell"))["cause"] == "interrupted"
    assert (await client.run("print(1)"))["output"] == "1\n"


async def test_the_next_cell_is_never_hit_by_an_interrupt_for_the_one_before(client: Client) -> None:
    """Interrupts at the very moment at which cells end: each result is its own cell's, and none is lost."""
    await client.run("import time; done = []")
    interrupted = 0
    for number in range(60):
        pause = number % 12 / 100
        await client.send(type="execute_code", sessionId="s", code=f"time.sleep({pause})", requestId="short")
        await client.send(type="interrupt", sessionId="s", requestId="i")
        code = f"for _ in range(200): pass\ndone.append({number})"
        await client.send(type="execute_code", sessionId="s", code=code, requestId="after")
        short, after = await client.answer_to("short"), await client.answer_to("after")
        assert (await client.answer_to("i"))["done"]
        interrupted += not short["success"]
        assert short["success"] or short["cause"] == "interrupted", short
        assert after["success"], after
    assert (await client.run("print(done == list(range(60)))"))["output"] == "True\n"
    assert interrupted


LATE = """
import os, signal
kernel = get_ipython().kernel
finish = kernel.finish_metadata
def finish_late(*details):
    del kernel.finish_metadata
    kernel.finish_metadata = finish
    os.kill(os.getpid(), signal.SIGINT)
    return finish(*details)
kernel.finish_metadata = finish_late
x = 1
"""


@pytest.mark.parametrize(
    "last", ["", "await __import__('asyncio').sleep(0)", "get_ipython().run_cell('x += 1')", "1/0"]
)
async def test_an_interrupt_behind_a_cells_end_does_not_cost_its_reply(client: Client, last: str) -> None:
    result = await client.run(LATE + last)
    assert (result["success"], "cause" in result) == (last != "1/0", False), result
    assert (await client.run("print(x > 0)"))["output"] == "True\n"


async def test_a_cell_that_runs_another_can_be_interrupted_behind_it(client: Client) -> None:
    await started(client, "get_ipython().run_cell('x = 1')\nwhile True: pass")
    await client.send(type="interrupt", sessionId="s", requestId="i")
    assert (await client.answer_to("cell"))["cause"] == "interrupted"
    assert (await client.answer_to("i"))["step"] == "sigint"


async def test_an_interrupt_while_the_interpreter_starts_ends_the_first_that_waits(client: Client) -> None:
    await client.send(type="execute_code", sessionId="s", code="print('first')", requestId="first")
    await client.send(type="execute_code", sessionId="s", code="print('second')", requestId="second")
    steps = await interrupt(client)
    assert (steps[0]["step"], steps[0]["ended"]) == ("none", 1)
    first = await client.answer_to("first")
    assert (first["cause"], first["error"].endswith("it never ran")) == ("interrupted", True)
    assert (await client.answer_to("second"))["output"] == "second\n"


async def test_another_connection_interrupts_and_other_sessions_run_on(server: RunningServer) -> None:
    async with server.connect("u") as first, server.connect("u") as second, server.connect("v") as stranger:
        await first.run("import time")
        await started(first, "time.sleep(1000)")
        assert (await interrupt(stranger))[0]["step"] == "none"
        assert (await interrupt(second))[0]["step"] == "sigint"
        assert (await first.answer_to("cell"))["cause"] == "interrupted"


# -- restart ----------------------------------------------------------------------


@on_both_runtimes
async def test_a_restart_ends_what_runs_and_waits_and_nothing_else(client: Client) -> None:
    await client.run("import time; x = 1")
    await client.shell("y=kept; echo data > file")
    await started(client, "!sleep 1000.5")
    await client.send(type="execute_code", sessionId="s", code="x", requestId="waits")
    await client.send(type="restart_kernel", sessionId="s", requestId="r")
    await client.send(type="execute_code", sessionId="s", code="print('x' in globals())", requestId="after")
    restarted = await client.answer_to("r")
    assert {k: restarted[k] for k in ("type", "cause", "ended")} == {
        "type": "kernel_restarted",
        "cause": "requested",
        "ended": 2,
    }
    for name, words in (("cell", "was restarted while the cell ran"), ("waits", "it never ran")):
        result = await client.answer_to(name)
        assert (result["success"], result["cause"]) == (False, "kernel_restarted")
        assert words in result["error"]
    after = await client.answer_to("after")
    assert (after["output"], after["statePreserved"]) == ("False\n", False)
    again = await client.run("1")
    assert "statePreserved" not in again
    assert (await client.shell("echo $y; cat file"))["output"] == "kept\ndata\n"
    assert await no_process_left(client, "1000[.]5")


async def test_a_restart_starts_an_interpreter_that_never_ran_or_starts_or_died(client: Client) -> None:
    await client.send(type="restart_kernel", sessionId="s", requestId="a")
    await client.send(type="restart_kernel", sessionId="s", requestId="b")
    for name in "ab":
        assert (await client.answer_to(name))["type"] == "kernel_restarted"
    await client.send(type="execute_code", sessionId="s", code="import os; os._exit(1)", requestId="dies")
    assert (await client.answer_to("dies"))["cause"] == "kernel_died"
    await client.send(type="restart_kernel", sessionId="s", requestId="r")
    assert (await client.answer_to("r"))["ended"] == 0
    assert (await client.run("print(1)"))["output"] == "1\n"


async def test_restarts_interrupts_and_cells_in_any_order_are_all_answered(client: Client) -> None:
    kinds = ["execute_code", "interrupt", "restart_kernel", "execute_code", "execute_code", "interrupt"] * 3
    for number, kind in enumerate(kinds):
        more = {"code": "import time; time.sleep(0.05)"} if kind == "execute_code" else {}
        await client.send(type=kind, sessionId="s", requestId=str(number), **more)
    answers = [await client.answer_to(str(number)) for number in range(len(kinds))]
    expected = {"execute_code": "execution_result", "interrupt": "interrupted", "restart_kernel": "kernel_restarted"}
    assert [answer["type"] for answer in answers] == [expected[kind] for kind in kinds]
    assert (await client.run("print(1)"))["output"] == "1\n"


# -- limits of time -----------------------------------------------------------------


async def test_a_cell_has_a_limit_of_its_own(client: Client) -> None:
    await client.run("import time; x = 1")
    await client.send(type="execute_code", sessionId="s", code="time.sleep(60)", timeout=0.3, requestId="t")
    await client.send(type="execute_code", sessionId="s", code="print(x)", requestId="next")
    result = await client.answer_to("t")
    assert (result["cause"], result["statePreserved"]) == ("timeout", True)
    assert result["error"] == "ExecutionTimeout: the cell ran longer than its limit of 0.3 s"
    assert (await client.answer_to("next"))["output"] == "1\n"


async def test_a_longer_limit_than_the_servers_is_refused(start_server: StartServer) -> None:
    server = await start_server(execution_timeout="5s")
    async with server.connect() as client:
        frame = await client.run("1", timeout=6)
        assert (frame["type"], frame["code"]) == ("error", "invalid_field")
        assert "'timeout'" in frame["message"]
        assert "5 seconds" in frame["error"]
        frame = await client.run("import time; time.sleep(60)", timeout=0.3)
        assert frame["error"] == "ExecutionTimeout: the cell ran longer than its limit of 0.3 s"


async def test_a_streamed_cell_is_told_how_it_is_ended(client: Client) -> None:
    await client.run("import time")
    code = "while True:\n    try:\n        time.sleep(1000)\n    except KeyboardInterrupt:\n        pass"
    await client.send(type="execute_code", sessionId="s", code=code, timeout=0.3, stream=True, requestId="t")
    frames = [await client.answer_to("t")]
    while frames[-1].get("step") != "restart":
        frames.append(await client.answer_to("t"))
    told = [frame.get("step", frame["type"]) for frame in frames]
    assert told == ["execution_started", "sigint", "process_group", "kill", "execution_result", "restart"]
    assert (frames[4]["cause"], frames[4]["statePreserved"]) == ("timeout", False)
    assert frames[-1]["done"]
    assert "x" not in (await client.run("print(1)"))


@on_both_runtimes
async def test_a_session_that_ends_while_its_interpreter_is_replaced_answers_the_cell_once(client: Client) -> None:
    await client.run("import time")
    code = "while True:\n    try:\n        time.sleep(1000)\n    except KeyboardInterrupt:\n        pass"
    await client.send(type="execute_code", sessionId="s", code=code, timeout=0.3, stream=True, requestId="t")
    while (await client.receive()).get("step") != "kill":
        pass
    frames = [await client.ask(type="close_session", sessionId="s", requestId="c")]
    while frames[-1].get("requestId") != "c":
        frames.append(await client.receive())
    finals = [(frame["type"], frame.get("cause")) for frame in frames if frame["type"] in {"execution_result", "error"}]
    assert finals == [("execution_result", "timeout")]


@pytest.mark.parametrize("silent", [True, False])
async def test_silent_cells_and_cells_without_history(client: Client, silent: bool) -> None:  # noqa: FBT001 - pytest's
    await client.run("x = 1")
    result = await client.run("x + 1", silent=silent, storeHistory=False)
    assert result["success"]
    assert (result["output"] == "") is silent
    failed = await client.run("1/0", silent=silent)
    assert failed["error"] == "ZeroDivisionError: division by zero"
    counts = [(await client.run("None", storeHistory=False))["executionCount"] for _ in range(2)]
    assert counts[0] == counts[1]
    await asyncio.wait_for(client.run("x"), 60)
