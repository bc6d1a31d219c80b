"""A cell that asks: input(), getpass and debugger prompts, with and without somebody who answers."""

import asyncio
import itertools
from typing import Any

from tests.integration.conftest import Client, Frame, RunningServer, StartServer, on_both_runtimes

RUNTIMES = ("local",)
"""Whose tests these are, but for some: what a runtime could spoil is in tests/contract."""


async def start(client: Client, code: str, *, session: str = "s", request_id: str = "cell", **more: Any) -> None:
    more.setdefault("allowStdin", True)
    await client.send(type="execute_code", sessionId=session, code=code, requestId=request_id, **more)


async def asked(client: Client, request_id: str = "cell") -> Frame:
    frame = await client.answer_to(request_id)
    assert frame["type"] == "input_request", frame
    return frame


async def until(client: Client, kind: str) -> list[Frame]:
    """Return the next frames, up to one of this type."""
    frames = [await client.receive()]
    while frames[-1]["type"] != kind:
        frames.append(await client.receive())
    return frames


def kinds(frames: list[Frame]) -> list[str]:
    """Return the types of frames, without repetitions: output may come in several pieces."""
    return [kind for kind, _ in itertools.groupby(frame["type"] for frame in frames)]


async def reply(client: Client, value: str, *, session: str = "s", **more: Any) -> None:
    await client.send(type="input_reply", sessionId=session, value=value, **more)


@on_both_runtimes
async def test_input_getpass_and_a_debugger_are_answered(client: Client) -> None:
    code = "import getpass\nname = input('name? ')\nword = getpass.getpass('word? ')\nprint(name, word)"
    await start(client, code)
    first = await asked(client)
    assert first == {
        "type": "input_request",
        "sessionId": "s",
        "requestId": "cell",
        "seq": first["seq"],
        "prompt": "name? ",
        "password": False,
        "inputId": first["inputId"],
    }
    await reply(client, "Ann", inputId=first["inputId"])
    second = await asked(client)
    assert (second["prompt"], second["password"]) == ("word? ", True)
    assert second["inputId"] != first["inputId"]
    assert second["seq"] > first["seq"]
    await reply(client, "s3cret")
    result = await client.answer_to("cell")
    assert (result["success"], result["output"]) == (True, "Ann s3cret\n")

    await start(client, "def f(y):\n    breakpoint()\n    return y\nprint(f(41))")
    assert (await asked(client))["prompt"] in {"ipdb> ", "(Pdb) "}
    await reply(client, "y = y + 1")
    await asked(client)
    await reply(client, "c")
    result = await client.answer_to("cell")
    assert result["success"], result
    assert result["output"].endswith("42\n")


async def test_without_leave_to_ask_it_fails_at_once_and_clearly(client: Client) -> None:
    for code in ("input('x')", "import getpass; getpass.getpass()"):
        result = await client.run(code)
        assert result["success"] is False
        assert result["error"].startswith("StdinNotImplementedError: ")
        assert "is not available here: pass the value in the code" in result["error"]


async def test_a_streamed_cell_asks_behind_what_it_wrote(client: Client) -> None:
    await start(client, "print('before')\nprint(input('? '))", stream=True)
    frames = await until(client, "input_request")
    assert kinds(frames) == ["execution_started", "execution_output", "input_request"]
    await reply(client, "after")
    frames = await until(client, "execution_result")
    assert kinds(frames) == ["execution_output", "execution_result"]
    assert frames[-1]["output"] == "before\nafter\n"


async def test_an_answer_that_nobody_waits_for_is_refused(client: Client) -> None:
    await reply(client, "x", requestId="r")
    frame = await client.answer_to("r")
    assert (frame["type"], frame["code"], frame["retryable"]) == ("error", "no_input_waiting", False)
    await start(client, "print(input())")
    await asked(client)
    await reply(client, "x", inputId="another", requestId="r")
    assert (await client.answer_to("r"))["code"] == "no_input_waiting"
    await reply(client, "y" * ((1 << 20) + 1), requestId="r")
    assert (await client.answer_to("r"))["code"] == "invalid_field"
    await reply(client, "right")
    assert (await client.answer_to("cell"))["output"] == "right\n"


async def test_prompts_of_several_sessions_do_not_mix(server: RunningServer) -> None:
    async with server.connect("ann") as ann, server.connect("bob") as bob:
        places = [(ann, "one"), (ann, "two"), (bob, "one")]
        for number, (client, session) in enumerate(places):
            await start(client, f"print(input('{number}'))", session=session, request_id=session)
        for number, (client, session) in enumerate(places):
            assert (await asked(client, session))["prompt"] == str(number)
        for number, (client, session) in reversed(list(enumerate(places))):
            await reply(client, f"for {number}", session=session)
        for number, (client, session) in enumerate(places):
            assert (await client.answer_to(session))["output"] == f"for {number}\n"


async def test_another_connection_is_told_and_answers_when_the_asker_is_gone(share_server: StartServer) -> None:
    server = await share_server(linger="60s")
    async with server.connect("ann") as stays:
        await stays.run("x = 1")
        async with server.connect("ann") as leaves:
            await start(leaves, "x = input('who? ')")
            question = await asked(leaves)
            # While the asker is there nobody else is told.
            assert (await stays.ask(type="is_complete", sessionId="s", code="1", requestId="q"))["requestId"] == "q"
        while (await stays.ask(type="session_info", sessionId="s"))["connections"] > 1:
            pass
        await stays.send(type="is_complete", sessionId="s", code="1", requestId="q")
        again = await stays.receive()
        assert (again["type"], again["prompt"], again["inputId"]) == ("input_request", "who? ", question["inputId"])
        assert again["seq"] > question["seq"]
        assert (await stays.receive())["requestId"] == "q"
        await reply(stays, "me", inputId=again["inputId"])
        assert (await stays.run("print(x)"))["output"] == "me\n"


async def test_a_cell_that_asks_when_its_asker_is_gone_asks_the_next_that_comes(share_server: StartServer) -> None:
    server = await share_server(linger="60s")
    async with server.connect("ann") as stays:
        await stays.shell("mkfifo gone")
        async with server.connect("ann") as leaves:
            await start(leaves, "open('gone').read()\nx = input('who? ')")
            while "runningSince" not in await leaves.ask(type="session_info", sessionId="s"):
                pass
        while (await stays.ask(type="session_info", sessionId="s"))["connections"] > 1:
            pass
        assert (await stays.shell("echo >gone"))["exitCode"] == 0
        while not (await stays.ask(type="session_info", sessionId="s"))["waitingInput"]:
            pass
        question = await stays.ask(type="list_files", sessionId="s")
        assert (question["type"], question["prompt"]) == ("input_request", "who? ")
        assert (await stays.receive())["type"] == "file_list"
        await reply(stays, "me", inputId=question["inputId"])
        assert (await stays.run("print(x)"))["output"] == "me\n"


async def test_another_user_can_neither_see_nor_answer_it(server: RunningServer) -> None:
    async with server.connect("ann") as ann, server.connect("bob") as bob:
        await start(ann, "print(input())")
        question = await asked(ann)
        await reply(bob, "x", inputId=question["inputId"], requestId="r")
        refused = await bob.answer_to("r")
        assert (refused["type"], refused["code"]) == ("error", "no_input_waiting")
        await reply(ann, "mine")
        assert (await ann.answer_to("cell"))["output"] == "mine\n"


async def test_a_cell_that_gives_up_a_question_asks_another(client: Client) -> None:
    """And its old question cannot be answered any more."""
    code = """
        import os, signal
        def give_up(*_): raise TimeoutError
        signal.signal(signal.SIGUSR1, give_up)
        with open('pid', 'w') as file: file.write(str(os.getpid()))
        try: input('first? ')
        except TimeoutError: print('gave up')
        print(input('second? '))
        """
    await start(client, "\n".join(line[8:] for line in code.splitlines()))
    first = await asked(client)
    await client.send(type="terminal_command", sessionId="s", command="kill -USR1 $(cat pid)", requestId="kill")
    second = await asked(client)
    assert (second["prompt"], second["inputId"] != first["inputId"]) == ("second? ", True)
    await reply(client, "old", inputId=first["inputId"], requestId="r")
    assert (await client.answer_to("r"))["code"] == "no_input_waiting"
    assert (await client.answer_to("kill"))["exitCode"] == 0
    await reply(client, "new", inputId=second["inputId"])
    assert (await client.answer_to("cell"))["output"] == "gave up\nnew\n"


async def test_a_cell_that_gives_up_a_question_and_goes_on_waits_no_more(client: Client) -> None:
    code = """
        import signal
        def give_up(*_): raise TimeoutError
        signal.signal(signal.SIGALRM, give_up)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        try: input('? ')
        except TimeoutError: open('gave-up', 'w').close()
        while True: pass
        """
    await client.shell("mkfifo gave-up")
    await start(client, "\n".join(line[8:] for line in code.splitlines()), timeout=3.0)
    question = await asked(client)
    assert (await client.shell("cat gave-up"))["exitCode"] == 0
    while (await client.ask(type="session_info", sessionId="s"))["waitingInput"]:
        pass
    await reply(client, "late", inputId=question["inputId"], requestId="r")
    assert (await client.answer_to("r"))["code"] == "no_input_waiting"
    assert (await client.answer_to("cell"))["error"] == "ExecutionTimeout: the cell ran longer than its limit of 3 s"


async def test_the_cells_clock_stands_still_while_it_waits(client: Client) -> None:
    await client.run("import time")
    await start(client, "input()\nwhile True: time.sleep(0.01)", timeout=3.0)
    await asked(client)
    # Longer than the limit: what the clock did not count.
    assert (await client.shell("sleep 4; echo slept"))["output"] == "slept\n"
    await reply(client, "go")
    result = await client.answer_to("cell")
    assert (result["cause"], result["statePreserved"]) == ("timeout", True)
    assert result["error"] == "ExecutionTimeout: the cell ran longer than its limit of 3 s"
    assert result["durationMs"] > 6000


async def test_a_question_that_nobody_answers_ends_the_cell(start_server: StartServer) -> None:
    server = await start_server(input_timeout="1s")
    async with server.connect() as client:
        await client.run("x = 7")
        await start(client, "input('anybody? ')")
        question = await asked(client)
        result = await client.answer_to("cell")
        assert (result["success"], result["cause"], result["statePreserved"]) == (False, "timeout", True)
        assert result["error"] == "InputTimeout: nobody answered the cell's question within 1 s"
        await reply(client, "late", inputId=question["inputId"], requestId="r")
        assert (await client.answer_to("r"))["code"] == "no_input_waiting"
        assert (await client.run("print(x)"))["output"] == "7\n"


async def test_a_cell_that_asks_again_and_again_waits_no_longer_than_one_that_asks_once(
    start_server: StartServer,
) -> None:
    code = """
        import signal
        def give_up(*_): raise TimeoutError
        signal.signal(signal.SIGALRM, give_up)
        for number in range(40):
            signal.setitimer(signal.ITIMER_REAL, 0.5)
            try: input('? ')
            except TimeoutError: pass
        """
    server = await start_server(input_timeout="3s")
    async with server.connect() as client:
        await client.run("x = 7")
        await start(client, "\n".join(line[8:] for line in code.splitlines()), timeout=15.0)
        frame = await client.answer_to("cell")
        while frame["type"] == "input_request":
            frame = await client.answer_to("cell")
        assert frame["error"] == "InputTimeout: nobody answered the cell's question within 3 s"
        assert (await client.run("print(x)"))["output"] == "7\n"


async def test_an_answer_begins_the_time_for_answers_anew(start_server: StartServer) -> None:
    server = await start_server(input_timeout="5s")
    async with server.connect() as client:
        await start(client, "print([input('? ') for _ in range(3)])")
        for _ in range(3):
            await asked(client)
            assert (await client.shell("sleep 2"))["exitCode"] == 0
            await reply(client, "x")
        assert (await client.answer_to("cell"))["output"] == "['x', 'x', 'x']\n"


@on_both_runtimes
async def test_an_interrupt_ends_a_cell_that_waits_and_a_debugger_too(client: Client) -> None:
    await client.run("x = 7")
    # A debugger may end with the interrupt and let the cell go on; one that asks again is told that there is no more.
    for code in ("input('? ')", "breakpoint()\ny = 1", "import pdb\npdb.Pdb().set_trace()\ny = 1"):
        await start(client, code)
        await asked(client)
        await client.send(type="interrupt", sessionId="s", requestId="i")
        done = await client.answer_to("i")
        assert (done["step"], done["done"], done["statePreserved"]) == ("sigint", True, True), code
        result = await client.answer_to("cell")
        assert result["success"] or result["cause"] == "interrupted", code
        assert result["success"] is not code.startswith("input"), code
    assert (await client.run("print(x)"))["output"] == "7\n"


async def test_forged_questions_of_a_kernel_are_not_told(client: Client) -> None:
    """User code owns the kernel's sockets: it asks although it may not, for other requests, and again and again."""
    forge = """
        from ipykernel.jsonutil import json_clean
        kernel = get_ipython().kernel
        def forge(parent, times):
            ident = kernel._get_shell_context_var(kernel._shell_parent_ident)
            for number in range(times):
                content = json_clean({"prompt": "p" * 100_000, "password": False})
                kernel.session.send(kernel.stdin_socket, "input_request", content, parent, ident=ident)
        """
    await client.run("\n".join(line[8:] for line in forge.splitlines()))
    result = await client.run("forge(kernel.get_parent('shell'), 2000)")
    assert result["success"], result
    await client.shell("mkfifo gate")
    flood = "forge({'header': {'msg_id': 'another'}}, 10)\nforge(kernel.get_parent('shell'), 2000)"
    await start(client, f"{flood}\nopen('gate').read()\nprint(1)")
    frames = [await asked(client)]
    await client.send(type="terminal_command", sessionId="s", command="echo >gate")
    frames += [frame for frame in await until(client, "execution_result") if frame.get("requestId") == "cell"]
    assert frames[-1]["output"] == "1\n"
    assert kinds(frames) == ["input_request", "execution_result"]
    assert len(frames) < 50
    assert all(len(question["prompt"]) < 40_000 for question in frames[:-1])
    # One that is answered is over.
    await reply(client, "x", requestId="r")
    assert (await client.answer_to("r"))["code"] == "no_input_waiting"


async def test_a_client_that_leaves_while_a_cell_waits_leaves_nothing_behind(start_server: StartServer) -> None:
    server = await start_server(linger="0")
    async with server.connect("u") as client:
        await start(client, "input()")
        await asked(client)
    async with asyncio.timeout(60), server.connect("u") as client:
        assert (await client.run("print(1)"))["output"] == "1\n"
