"""A server is killed; the next one goes on with its sessions."""

import asyncio
import secrets

import pytest

from tests.adoption.house import (
    House,
    begin,
    docker_only,
    engine,
    result,
    resume,
    touch,
    until,
    until_begun,
    until_there,
)
from tests.contract.driving import on_host
from tests.integration.conftest import Client, Frame
from tests.integration.emulator import Person

LINES = 60_000
"""Lines that a command writes while no server is there: more than a pipe or a terminal holds."""
CELL = f"""print('before', x)
{until("go")}
for number in range(10_000): print(number)
open('over', 'w').close()
{until("end")}
x + 40"""


def numbers(count: int) -> str:
    return "".join(f"{number}\n" for number in range(count))


async def test_all_that_runs_in_five_sessions_goes_on(house: House) -> None:
    """And is answered with all that it wrote, also while no server was there; afterwards nothing of it is left."""
    sessions = [f"s{number}" for number in range(5)]
    mark = f"88{secrets.randbelow(10**9):09}"
    server = await house.serve()
    async with house.connect(server) as client:
        for number, session in enumerate(sessions):
            assert (await client.run(f"x = {number}", session=session))["success"]
        await begin(client, CELL, "cell", session="s0")
        for number, session in enumerate(sessions):
            assert (await client.shell(f"y={number}; cd /tmp; sleep {mark} &", session=session))["exitCode"] == 0
        wait = "until [ -e ~/go ]; do sleep 0.02; done"
        command = f"touch ~/command; {wait}; seq 0 {LINES - 1}; (exit 7)"
        await client.send(type="terminal_command", sessionId="s0", command=command, requestId="command")
        await client.send(type="open_terminal", sessionId="s0", terminalId="t", rows=24, cols=80)
        typed = f"z=kept; touch ~/terminal; {wait}; seq 1000 1999; echo en''ded\n"
        await client.send(type="terminal_input", sessionId="s0", terminalId="t", data=typed)
        files = house.files("s0")
        await until_there(files / "terminal")
        await until_begun(client, files / "command")
        await server.kill()
    before = house.sandboxes()
    assert len(on_host(f"sleep\0{mark}")) == len(sessions)
    touch(files, "go")
    await until_there(files / "over")
    server = await house.serve(linger="8s")
    async with house.connect(server) as follower, house.connect(server) as client:
        resumed = await resume(follower, "s0", after=1)
        assert resumed["lost"]["from"] == 2
        touch(files, "end")
        answers: dict[str, Frame] = {}
        while answers.keys() != {"cell", "command"}:
            frame = await follower.receive()
            if frame["type"] in {"execution_result", "terminal_output"}:
                answers[frame["requestId"]] = frame
        assert answers["cell"]["output"] == f"before 0\n{numbers(10_000)}40\n"
        assert (answers["command"]["exitCode"], answers["command"]["output"]) == (7, numbers(LINES))
        for answer in answers.values():
            assert not {"truncated", "cause", "statePreserved", "lateOutput"} & answer.keys()
        for number, session in enumerate(sessions):
            found = await client.run("print(x)", session=session)
            assert (found["output"], "lateOutput" in found) == (f"{number}\n", False)
            command = "echo $y $PWD $(jobs | grep -c Running)"
            assert (await client.shell(command, session=session))["output"] == f"{number} /tmp 1\n"
        person = await Person.open(client, session="s0", terminalId="t")
        assert person.opened["reattached"] is True
        await person.until_sent("ended")
        shown = person.data.replace("\r", "")
        assert "".join(f"{number}\n" for number in range(1000, 2000)) in shown
        await person.type("echo still-$z\r")
        await person.until("still-kept")
        assert sorted(house.sandboxes()) == sorted(before)
    await house.until_nothing_is_left()
    assert on_host(mark) == []


@pytest.mark.parametrize(("last", "error"), [("'end'", None), ("1 / 0", "ZeroDivisionError: division by zero")])
async def test_a_cell_that_ended_while_no_server_was_there_is_answered(
    house: House, last: str, error: str | None
) -> None:
    server = await house.serve()
    async with house.connect(server) as client:
        await client.run("import atexit, threading")
        # The next cell of the main thread is never there to tell that this one is over: a thread is.
        over = "threading.Timer(1, lambda: open('over', 'w').close()).start()"
        await begin(client, f"print('before')\n{until('go')}\nprint('gap')\n{over}\n{last}", "cell")
        await server.kill()
    touch(house.files("s"), "go")
    await until_there(house.files("s") / "over")
    server = await house.serve()
    async with house.connect(server) as client:
        await resume(client)
        answer = await result(client, "cell")
        assert (answer["success"], answer["error"]) == (error is None, error)
        assert answer["output"].startswith("before\ngap\n")
        assert ("ZeroDivisionError" in answer.get("traceback", "")) == (error is not None)
        assert answer["cpuMs"] > 0
        again = await client.run("print('again')", requestId="again")
        while again.get("requestId") != "again":
            again = await client.receive()
        assert (again["output"], again["executionCount"]) == ("again\n", answer["executionCount"] + 1)
        assert again["seq"] > answer["seq"]


async def test_output_that_is_forgotten_is_said_to_be_missing(house: House) -> None:
    server = await house.serve()
    async with house.connect(server) as client:
        code = f"{until('go')}\nfor i in range(40_000): print('%0100d' % i)\nopen('over', 'w').close()\nprint('end')"
        await begin(client, code, "cell")
        await server.kill()
    touch(house.files("s"), "go")
    await until_there(house.files("s") / "over")
    server = await house.serve()
    async with house.connect(server) as client:
        await resume(client)
        answer = await result(client, "cell")
    assert answer["success"]
    assert answer["output"].endswith("39999\nend\n")
    whole = 40_000 * 101 + len("end\n")
    assert answer["truncated"]["bytes"] + len(answer["output"]) == whole
    assert len(answer["output"]) > 800_000
    assert f"the first {answer['truncated']['bytes']} bytes" in answer["lateOutput"]


async def streamed(client: Client, text: str) -> tuple[int, int]:
    """Wait until the cell has streamed this text and nothing else; return the first and the last `seq` of it."""
    said, numbers = "", []
    while said != text:
        frame = await client.receive()
        if frame["type"] == "execution_output":
            assert frame["requestId"] == "cell"
            said += frame["text"]
            numbers.append(frame["seq"])
            assert text.startswith(said)
    return numbers[0], numbers[-1]


async def test_a_streamed_cell_goes_on_being_told(house: House) -> None:
    server = await house.serve()
    async with house.connect(server, streams=True) as client:
        await begin(client, f"print('one')\n{until('go')}\nprint('two')\n{until('end')}", "cell")
        _, seq = await streamed(client, "one\n")
        await server.kill()
    server = await house.serve()
    async with house.connect(server, streams=True) as client:
        resumed = await resume(client, after=seq)
        assert (resumed["from"], resumed["lost"]["from"]) == (seq + 1, seq + 1)
        touch(house.files("s"), "go")
        first, _ = await streamed(client, "two\n")
        assert first > resumed["lost"]["to"]
        touch(house.files("s"), "end")
        assert (await result(client, "cell"))["output"] == "one\ntwo\n"


async def test_a_cell_that_asks_is_answered_by_another_server(house: House) -> None:
    server = await house.serve()
    async with house.connect(server) as client:
        await begin(client, "print('hello', input('name? '))", "cell", allowStdin=True)
        while (question := await client.receive())["type"] != "input_request":
            pass
        await server.kill()
    server = await house.serve()
    async with house.connect(server) as client:
        await resume(client)
        while (asked := await client.receive())["type"] != "input_request":
            pass
        assert (asked["prompt"], asked["inputId"]) == ("name? ", question["inputId"])
        await client.send(type="input_reply", sessionId="s", value="Ada", inputId=asked["inputId"])
        assert "hello Ada\n" in (await result(client, "cell"))["output"]


async def test_all_that_the_shell_has_started_goes_on(house: House) -> None:
    server = await house.serve()
    async with house.connect(server) as client:
        await client.run("import subprocess; job = subprocess.Popen(['sleep', '1111'], start_new_session=True)")
        await client.shell("export HERE=1; sleep 2222 & setsid sleep 3333 & (setsid sleep 4444 &)")
        await client.send(type="open_terminal", sessionId="s", terminalId="t", rows=10, cols=40)
        while (await client.receive())["type"] != "terminal_data":
            pass
        typed = "setsid sleep 5555 & touch typed; sleep 6666\n"
        await client.send(type="terminal_input", sessionId="s", terminalId="t", data=typed)
        await client.send(type="terminal_command", sessionId="s", command="touch began; sleep 7777", requestId="c")
        await until_there(house.files("s") / "typed")
        await until_begun(client, house.files("s") / "began")
        await server.kill()
    server = await house.serve()
    async with house.connect(server) as client:
        await resume(client)
        await client.send(type="interrupt", sessionId="s", target="terminal", requestId="stop")
        await client.send(
            type="terminal_command",
            sessionId="s",
            command="echo [$HERE]; cat /proc/[0-9]*/cmdline | tr '\\0' ' '",
            requestId="d",
        )
        answer = await client.answer_to("d")
        assert answer["output"].startswith("[1]\n")
        assert "statePreserved" not in answer
        left = [number for number in range(1111, 8888, 1111) if f"sleep {number} " in answer["output"]]
        assert left == [1111, 2222, 3333, 4444, 5555, 6666]
        await client.send(type="session_info", sessionId="s", requestId="i")
        assert (await client.answer_to("i"))["terminals"] == ["t"]


async def test_a_paused_session_is_resumed_and_paused_again(house: House) -> None:
    server = await house.serve("--idle-timeout", "1s")
    async with house.connect(server, streams=True) as client:
        await client.send(type="execute_code", sessionId="s", code="x = 1", requestId="a")
        while (await client.receive()).get("status") != "paused":
            pass
        await server.kill()
    server = await house.serve("--idle-timeout", "1s")
    async with house.connect(server, streams=True) as client:
        await resume(client)
        while (await client.receive()).get("status") != "paused":
            pass
        await client.send(type="execute_code", sessionId="s", code="print(x)", requestId="b")
        assert (await result(client, "b"))["output"] == "1\n"


async def test_a_server_that_is_killed_again_costs_nothing_either(house: House) -> None:
    server = await house.serve()
    async with house.connect(server) as client:
        await client.run("x = 1")
        await begin(client, f"print('one')\n{until('go')}\nprint(x)", "cell")
        await server.kill()
    for _ in range(2):
        server = await house.serve()
        await server.kill()
    server = await house.serve()
    seen = 0
    async with house.connect(server) as client:
        seen = (await resume(client))["to"]
        await server.kill()
    touch(house.files("s"), "go")
    server = await house.serve()
    async with house.connect(server) as client:
        assert (await resume(client, after=seen))["lost"]["from"] == seen + 1
        assert (await result(client, "cell"))["output"] == "one\n1\n"


@docker_only
async def test_an_interpreter_outlives_its_image(house: House, workspace_image: str) -> None:
    image = f"kb-test-{secrets.token_hex(4)}:latest"
    with engine() as api:
        api.tag(workspace_image, image.partition(":")[0], "latest")
        try:
            server = await house.serve("--allow-image", image)
            async with house.connect(server) as client:
                opened = await client.ask(type="open_session", sessionId="s", image=image)
                assert opened["type"] == "session_ready"
                await client.run("x = 1")
                await server.kill()
        finally:
            api.remove_image(image)
    server = await house.serve("--allow-image", image)
    async with house.connect(server) as client:
        assert (await client.run("print(x)"))["output"] == "1\n"
        assert (await client.ask(type="save_file", sessionId="s", filename="a", content="x"))["success"]


async def test_cells_that_waited_are_not_run(house: House) -> None:
    server = await house.serve()
    async with house.connect(server) as client:
        await client.run("x = 0")
        await begin(client, until("go"), "cell")
        await client.send(type="execute_code", sessionId="s", code="x += 1", requestId="queued")
        await client.send(type="ping", requestId="p")
        await client.answer_to("p")
        await server.kill()
    server = await house.serve()
    touch(house.files("s"), "go")
    async with house.connect(server) as client:
        await resume(client)
        await result(client, "cell")
        await client.send(type="execute_code", sessionId="s", code="print(x)", requestId="x")
        assert (await result(client, "x"))["output"] == "0\n"


async def test_whose_sandbox_vanished_is_told(house: House) -> None:
    server = await house.serve()
    async with house.connect(server) as client:
        await client.run("x = 1")
        await client.ask(type="save_file", sessionId="s", filename="kept", content="y")
        await begin(client, until("go"), "cell")
        await server.kill()
    for sandbox in house.sandboxes():
        house.destroy(sandbox)
    server = await house.serve()
    async with house.connect(server) as client:
        await resume(client)
        status = await client.receive()
        assert (status["status"], status["cause"]) == ("closed", "sandbox_lost")
        assert (await result(client, "cell"))["cause"] == "sandbox_lost"
        await client.send(
            type="execute_code", sessionId="s", code="print(open('kept').read(), 'x' in globals())", requestId="n"
        )
        answer = await result(client, "n")
        assert (answer["output"], answer["statePreserved"]) == ("y False\n", False)
        assert "variables are lost" in answer["lateOutput"]


@docker_only
async def test_another_sandbox_is_made_as_this_server_grants_it(house: House, workspace_image: str) -> None:
    image = f"kb-test-{secrets.token_hex(4)}:latest"
    with engine() as api:
        api.tag(workspace_image, image.partition(":")[0], "latest")
        try:
            server = await house.serve("--allow-image", image)
            async with house.connect(server) as client:
                await client.ask(type="open_session", sessionId="s", image=image)
                await client.run("x = 1")
                await server.kill()
            server = await house.serve("--memory", "256m")
            async with house.connect(server) as client:
                assert (await client.run("print(x)"))["output"] == "1\n"
                (container,) = house.containers()
                api.remove_container(container, force=True)
                await resume(client)
                while (await client.receive()).get("cause") != "sandbox_lost":
                    pass
                await client.send(type="execute_code", sessionId="s", code="1", requestId="n")
                assert (await result(client, "n"))["success"]
                await client.send(type="session_info", sessionId="s", requestId="i")
                info = await client.answer_to("i")
            assert (info["image"], info["limits"]["memory"]) == (workspace_image, 256 << 20)
            (container,) = house.containers()
            assert api.inspect_container(container)["HostConfig"]["Memory"] == 256 << 20
        finally:
            api.remove_image(image)


async def test_a_session_that_asked_for_less_disk_has_no_more_on_the_next_server(house: House) -> None:
    server = await house.serve()
    async with house.connect(server) as client:
        await client.ask(type="open_session", sessionId="s", limits={"disk": 4 << 20})
        await server.kill()
    server = await house.serve()
    async with house.connect(server) as client:
        info = await client.ask(type="session_info", sessionId="s")
        assert (info["limits"]["disk"], info["disk"]["limit"]) == (4 << 20, 4 << 20)
        await client.send(type="save_file", sessionId="s", filename="f", content="x" * (5 << 20), requestId="f")
        assert (await client.answer_to("f"))["code"] == "disk_limit"


async def test_a_kernel_that_died_meanwhile_is_said_to_have(house: House) -> None:
    server = await house.serve()
    async with house.connect(server) as client:
        await begin(client, f"print('last words')\n{until('go')}\nopen('over', 'w').close()\nos._exit(7)", "cell")
        await server.kill()
    touch(house.files("s"), "go")
    await until_there(house.files("s") / "over")
    server = await house.serve()
    async with house.connect(server) as client:
        await resume(client)
        answer = await result(client, "cell")
        assert (answer["cause"], answer["exitCode"], answer["statePreserved"]) == ("kernel_died", 7, False)
        await client.send(type="execute_code", sessionId="s", code="print('x')", requestId="n")
        assert (await result(client, "n"))["output"] == "x\n"


async def test_an_adopted_interpreter_is_like_any_other(house: House) -> None:
    server = await house.serve()
    async with house.connect(server) as client:
        await client.run("name_of_mine = 1")
        await server.kill()
    server = await house.serve()
    async with house.connect(server) as client:
        await resume(client)
        reply = await client.ask(type="complete", sessionId="s", code="name_of", cursor=7, requestId="q")
        while reply.get("requestId") != "q":
            reply = await client.receive()
        assert "name_of_mine" in reply["matches"]
        # An interrupt reaches it.
        await begin(client, "import time; time.sleep(1000)", "a")
        await client.send(type="interrupt", sessionId="s")
        answer = await result(client, "a")
        assert (answer["cause"], answer["error"].split(":")[0]) == ("interrupted", "KeyboardInterrupt")
        # Files are watched.
        await client.send(type="list_files", sessionId="s", watch=True, requestId="w")
        await client.answer_to("w")
        touch(house.files("s"), "new")
        while (await client.receive())["type"] != "file_changed":
            pass
        # Its end is noticed while nothing runs.
        await client.send(type="execute_code", sessionId="s", code="import os; os._exit(3)", requestId="x")
        answer = await result(client, "x")
        assert (answer["cause"], answer["exitCode"]) == ("kernel_died", 3)
        await client.send(type="execute_code", sessionId="s", code="print('name_of_mine' in globals())", requestId="y")
        assert (await result(client, "y"))["output"] == "False\n"
        await server.kill()
    server = await house.serve()
    async with house.connect(server) as client:
        await client.send(type="restart_kernel", sessionId="s", requestId="r")
        assert (await client.answer_to("r"))["type"] == "kernel_restarted"
        assert (await client.run("print(1)"))["output"] == "1\n"


async def test_the_end_of_an_idle_adopted_interpreter_is_told(house: House) -> None:
    server = await house.serve()
    async with house.connect(server) as client:
        await client.run("import os, threading\nwhile_away = 1\nprint(os.getpid())")
        await server.kill()
    server = await house.serve()
    async with house.connect(server, streams=True) as client:
        await resume(client)
        await client.send(
            type="terminal_command",
            sessionId="s",
            command="pkill -9 -f ipykernel || kill -9 $(pgrep python)",
            requestId="k",
        )
        async with asyncio.timeout(20):
            while (await client.receive()).get("cause") != "kernel_died":
                pass
