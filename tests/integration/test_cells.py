"""Cells through the whole server: order, side by side, completeness, warm state, death."""

import asyncio

from tests.integration.conftest import Client, RunningServer, StartServer, on_both_runtimes

RUNTIMES = ("local",)
"""Whose tests these are, but for some: what a runtime could spoil is in tests/contract."""


async def test_fifty_pipelined_cells_answer_in_order_and_an_error_aborts_nothing(client: Client) -> None:
    for number in range(50):
        code = f"print({number})" if number != 20 else "1/0"
        await client.send(type="execute_code", sessionId="s", code=code)
    frames = [await client.receive() for _ in range(50)]
    assert [frame["output"] for frame in frames] == [f"{n}\n" if n != 20 else "" for n in range(50)]
    assert frames[20]["error"] == "ZeroDivisionError: division by zero"
    assert [frame["executionCount"] for frame in frames] == list(range(1, 51))


async def test_two_sessions_run_side_by_side(client: Client) -> None:
    """Each cell waits for a file that only the other session's cell makes possible to be answered."""
    await client.run("pass", session="a")
    await client.run("pass", session="b")
    wait = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.01)"
    await client.send(type="execute_code", sessionId="a", code=wait, requestId="a")
    answer = await client.ask(type="execute_code", sessionId="b", code="print('b')", requestId="b")
    assert (answer["requestId"], answer["output"]) == ("b", "b\n")
    await client.send(type="save_file", sessionId="a", filename="go", content="", requestId="go")
    # The cell may see the file before its name is durable, which is when the save is answered.
    assert (await client.answer_to("go"))["success"]
    assert (await client.answer_to("a"))["success"]


async def test_a_terminal_and_files_answer_while_a_cell_runs(client: Client) -> None:
    await client.run("pass")
    wait = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.01)\nprint('went')"
    await client.send(type="execute_code", sessionId="s", code=wait, requestId="cell")
    assert (await client.shell("echo here"))["output"] == "here\n"
    await client.send(type="terminal_command", sessionId="s", command="touch go", requestId="go")
    assert (await client.answer_to("go"))["exitCode"] == 0
    assert (await client.answer_to("cell"))["output"] == "went\n"


async def test_a_saved_file_is_there_for_the_message_behind_it(client: Client) -> None:
    for number in range(10):
        await client.send(type="save_file", sessionId="s", filename=f"m/{number}.txt", content=str(number))
        await client.send(type="execute_code", sessionId="s", code=f"print(open('m/{number}.txt').read())")
    frames = [await client.receive() for _ in range(20)]
    results = [frame["output"] for frame in frames if frame["type"] == "execution_result"]
    assert results == [f"{number}\n" for number in range(10)]


@on_both_runtimes
async def test_twenty_thousand_flushed_prints_arrive_complete_and_in_order(client: Client) -> None:
    frame = await client.run("for i in range(20_000): print(i, flush=True)")
    assert frame["output"] == "".join(f"{i}\n" for i in range(20_000))


async def test_eight_megabytes_of_output_are_complete(client: Client) -> None:
    frame = await client.run("for i in range(100_000): print(f'{i:080d}')")
    assert frame["output"] == "".join(f"{i:080d}\n" for i in range(100_000))
    assert "truncated" not in frame


async def test_output_past_the_limit_is_told(start_server: StartServer) -> None:
    server = await start_server(max_output="64k")
    async with server.connect() as client:
        frame = await client.run("print('a' * 50_000); print('b' * 50_000)")
        assert frame["truncated"]["bytes"] > 30_000
        assert frame["output"].startswith("a")
        assert frame["output"].endswith("b\n")


async def test_what_a_cell_shows(client: Client) -> None:
    frame = await client.run(
        "import sys\nprint('out')\nprint('err', file=sys.stderr)\nprint('out again')\n"
        "from IPython.display import display, HTML\ndisplay(HTML('<b>x</b>'))\n6 * 7"
    )
    assert frame["output"] == "out\nerr\nout again\n<IPython.core.display.HTML object>\n42\n"
    assert (frame["stdout"], frame["stderr"]) == ("out\nout again\n", "err\n")
    assert [(r["type"], sorted(r["data"])) for r in frame["results"]] == [
        ("display_data", ["text/html", "text/plain"]),
        ("execute_result", ["text/plain"]),
    ]
    assert frame["durationMs"] > 0
    assert frame["cpuMs"] >= 0


async def test_output_is_kept_when_the_code_then_fails(client: Client) -> None:
    frame = await client.run("print('before')\n\ndef f():\n    return {}['key']\nf()", filename="job.py")
    assert (frame["success"], frame["output"], frame["error"]) == (False, "before\n", "KeyError: 'key'")
    assert "job.py" in frame["traceback"]
    assert "line 4" in frame["traceback"]
    assert "return {}['key']" in frame["traceback"]
    assert "\x1b" not in frame["traceback"]


async def test_cells_are_compiled_under_their_filename(client: Client) -> None:
    await client.ask(type="save_file", sessionId="s", filename="main.py", content="# another text\n" * 9)
    await client.run("def one():\n    raise ValueError('one')")
    await client.run("\n\ndef two():\n    raise ValueError('two')")
    frame = await client.run(
        "import inspect; print(inspect.getsource(one) + inspect.getsource(two))", filename="other.py"
    )
    assert frame["output"] == "def one():\n    raise ValueError('one')\ndef two():\n    raise ValueError('two')\n\n"
    for name, line in (("one", 2), ("two", 4)):
        trace = (await client.run(f"{name}()", filename="other.py"))["traceback"]
        assert "main.py" in trace
        assert f"line {line}" in trace
        assert f"raise ValueError('{name}')" in trace
    syntax = await client.run("x = 1\nif x\n  pass", filename="broken.py")
    assert syntax["error"] == "SyntaxError: expected ':'"
    assert "broken.py" in syntax["traceback"]
    assert "line 2" in syntax["traceback"]


async def test_await_magics_and_shell_escapes_work(client: Client) -> None:
    frame = await client.run("import asyncio\nprint(await asyncio.sleep(0, 'awaited'))\n!echo escaped\n%pwd")
    assert frame["output"].startswith("awaited\nescaped\n")


@on_both_runtimes
async def test_late_output_of_threads_reaches_the_session(client: Client) -> None:
    await client.run(
        "import threading\ngo, done = threading.Event(), threading.Event()\n"
        "def late():\n    go.wait(); print('late', flush=True); done.set()\n"
        "threading.Thread(target=late).start()"
    )
    frame = await client.run("go.set(); done.wait(); print('now')")
    seen = frame.get("lateOutput", "") or (await client.run("pass"))["lateOutput"]
    assert (frame["output"], seen) == ("now\n", "late\n")


@on_both_runtimes
async def test_a_dead_kernel_costs_its_cell_and_nothing_else(client: Client) -> None:
    await client.run("x = 1; open('f', 'w').write('kept')")
    await client.shell("export Y=kept; cd /tmp")
    await client.send(
        type="execute_code", sessionId="s", code="print('last words', flush=True)\nimport os; os._exit(3)"
    )
    await client.send(type="execute_code", sessionId="s", code="print(open('f').read(), 'x' in globals())")
    died, after = await client.receive(), await client.receive()
    assert (died["success"], died["cause"], died["statePreserved"]) == (False, "kernel_died", False)
    assert died["output"] in {"last words\n", ""}  # what libzmq's own thread had not written yet is lost with it
    assert "exit code 3" in died["error"]
    assert (after["output"], after["statePreserved"]) == ("kept False\n", False)
    assert "statePreserved" not in await client.run("pass")
    assert (await client.shell("echo $Y; pwd"))["output"] == "kept\n/tmp\n"


async def test_exit_in_a_cell_is_answered_and_the_next_cell_runs(client: Client) -> None:
    first = await client.run("x = 1\nexit()")
    assert first["type"] == "execution_result"
    assert (await client.run("print('x' in globals())"))["output"] == "False\n"


@on_both_runtimes
async def test_a_time_limit_interrupts_and_keeps_the_variables(start_server: StartServer) -> None:
    server = await start_server(execution_timeout="1s")
    async with server.connect() as client:
        frame = await client.run("x = 5\nimport subprocess; subprocess.run(['sleep', '60'])")
        assert (frame["success"], frame["cause"], frame["statePreserved"]) == (False, "timeout", True)
        assert frame["error"].startswith("ExecutionTimeout: ")
        assert (await client.run("print(x)"))["output"] == "5\n"
        assert "sleep 60" not in (await client.shell("cat /proc/[0-9]*/cmdline | tr '\\0' ' '"))["output"].replace(
            "cat", ""
        )


@on_both_runtimes
async def test_a_cell_that_swallows_the_interrupt_loses_its_kernel(start_server: StartServer) -> None:
    server = await start_server(execution_timeout="500ms")
    async with server.connect() as client:
        # It waits in a call. Python 3.11 takes an interrupt at the end of a loop's round for one before the loop, which
        # would be outside of this `try`.
        frame = await client.run(
            "import time\nwhile True:\n  try:\n    while True: time.sleep(60)\n  except KeyboardInterrupt: pass"
        )
        assert (frame["cause"], frame["statePreserved"]) == ("timeout", False)
        assert (await client.run("print('again')"))["output"] == "again\n"


@on_both_runtimes
async def test_out_of_memory_is_told(start_server: StartServer) -> None:
    server = await start_server(memory="192m")
    async with server.connect() as client:
        frame = await client.run("b = bytearray(800 << 20)")
        assert (frame["success"], frame["cause"]) == (False, "out_of_memory")
        assert (await client.run("print('again')"))["output"] == "again\n"


async def test_messages_queued_during_the_start_run_in_order(client: Client) -> None:
    await client.send(type="execute_code", sessionId="s", code="log = ['first']", requestId="1")
    await client.send(type="terminal_command", sessionId="s", command="echo shell", requestId="2")
    await client.send(type="execute_code", sessionId="s", code="print(log)", requestId="3")
    assert (await client.answer_to("3"))["output"] == "['first']\n"
    assert (await client.answer_to("2"))["output"] == "shell\n"
    assert (await client.answer_to("1"))["success"]


async def test_past_the_queue_limit_a_clear_error(start_server: StartServer) -> None:
    server = await start_server(queue_limit="3")
    async with server.connect() as client:
        for number in range(30):
            await client.send(type="execute_code", sessionId="s", code="pass", requestId=str(number))
        frames = [await client.answer_to(str(number)) for number in range(30)]
        refused = [frame for frame in frames if frame["type"] == "error"]
        assert refused
        assert all((f["code"], f["retryable"]) == ("limit_exceeded", True) for f in refused)
        assert sum(frame["type"] == "execution_result" for frame in frames) + len(refused) == 30


async def test_too_many_sessions_of_one_user_are_refused_and_others_are_not(start_server: StartServer) -> None:
    server = await start_server(max_sessions_per_user="2")
    async with server.connect("a") as a, server.connect("b") as b:
        assert (await a.shell("true", session="1"))["exitCode"] == 0
        assert (await a.shell("true", session="2"))["exitCode"] == 0
        refused = await a.shell("true", session="3")
        assert (refused["type"], refused["code"], refused["sessionId"]) == ("error", "limit_exceeded", "3")
        assert (await b.shell("true", session="3"))["exitCode"] == 0


async def test_ten_clients_at_once_get_their_own_answers(server: RunningServer) -> None:
    async def one(number: int) -> None:
        async with server.connect(f"u{number % 2}") as client:
            for step in range(10):
                frame = await client.run(
                    f"print({number}, {step})", session=f"s{number % 3}", requestId=f"{number}.{step}"
                )
                assert (frame["requestId"], frame["output"]) == (f"{number}.{step}", f"{number} {step}\n")

    await asyncio.gather(*(one(number) for number in range(10)))
