"""People at terminals: the programs that they use, drawn by a real terminal emulator."""

import asyncio
import contextlib
import hashlib
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.integration.conftest import Client, Frame, RunningServer, on_both_runtimes
from tests.integration.emulator import UP, Person
from tests.integration.test_lifecycle import containers

RUNTIMES = ("local",)
"""Whose tests these are, but for some: what a runtime could spoil is in tests/contract."""

DAEMON = """import os, sys
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execvp("sleep", ["sleep", sys.argv[1]])
    os._exit(0)
os.wait()
"""


# -- the shell -------------------------------------------------------------------


@on_both_runtimes
async def test_a_terminal_is_a_shell_in_the_workspace(client: Client) -> None:
    person = await Person.open(client, requestId="open")
    assert person.opened == {
        "type": "terminal_opened",
        "sessionId": "s",
        "requestId": "open",
        "seq": person.opened["seq"],
        "terminalId": person.id,
        "rows": 24,
        "cols": 80,
        "reattached": False,
    }
    await person.prompt()
    assert person.screen.buffer[0][0].fg == "green"
    await person.type('echo "$TERM $HOME:$PWD" $((6 * 7))\r')
    await person.until("xterm-256color /workspace:/workspace 42")
    assert {frame["requestId"] for frame in person.frames} == {"open"}
    numbers = [frame["seq"] for frame in [person.opened, *person.frames]]
    assert numbers == sorted(set(numbers))


@on_both_runtimes
async def test_its_python_is_the_sessions(client: Client) -> None:
    mine = await client.run("import sys; print(sys.prefix, flush=True)")
    person = await Person.open(client, cols=200)
    await person.prompt()
    await person.type("python -c 'import sys; print(sys.prefix)'; pip --version\r")
    await person.until(f"\n{mine['output'].strip()}\n")
    await person.until("pip 2")


@on_both_runtimes
async def test_the_users_own_file_is_read_and_jobs_can_be_controlled(client: Client) -> None:
    await client.ask(
        type="save_file", sessionId="s", filename=".bashrc", content="PS1='mine$ '; alias hi='echo hi there'\n"
    )
    person = await Person.open(client)
    await person.until("mine$")
    await person.type("hi\r")
    await person.until("\nhi there\n")
    await person.type("sh -c 'echo sta''rted; exec cat'\r")
    await person.until("started")
    await person.type("\x1a")
    await person.until("Stopped")
    await person.type("bg; jobs; kill %1; fg\r")
    await person.until("Terminated")


async def test_exit_ends_it_with_its_code(client: Client) -> None:
    person = await Person.open(client)
    await person.type("sleep 7771 & setsid sleep 7772 &\rexit 3\r")
    closed = await person.until_closed()
    assert (closed["cause"], closed["exitCode"]) == ("exited", 3)
    assert "logout" not in person.text
    assert (await client.shell("ps -eo args | grep 'sleep 77[7]'"))["output"] == ""
    error = await client.ask(type="terminal_input", sessionId="s", terminalId=person.id, data="x")
    assert error["code"] == "unknown_terminal"


@on_both_runtimes
async def test_a_shell_that_was_killed_says_by_what(client: Client) -> None:
    person = await Person.open(client)
    await person.type("kill -9 $$\r")
    closed = await person.until_closed()
    assert (closed["cause"], closed["exitCode"]) == ("exited", 137)


# -- programs --------------------------------------------------------------------


async def test_vim_edits_and_saves_a_file(client: Client) -> None:
    person = await Person.open(client)
    await person.prompt()
    await person.type("vim.tiny note.txt\r")
    await person.until(lambda text: '"note.txt" [New' in text and "\n~\n~\n" in text)
    await person.type("ihello wörld\ragain")
    await person.until("hello wörld\nagain\n~")
    await person.resize(40, 100)
    await person.until(lambda text: text.count("\n~") == 37)
    await person.type("\x1b:set lines? columns?\r")
    await person.until(lambda text: "lines=40" in text and "columns=100" in text)
    await person.type("\r:w\r")
    await person.until("written")
    await person.type(":q\r")
    await person.prompt()
    assert (await client.shell("cat note.txt"))["output"] == "hello wörld\nagain\n"


async def test_top_shows_processes_and_quits(client: Client) -> None:
    person = await Person.open(client, rows=30, cols=100)
    await person.type("top\r")
    shown = await person.until(lambda text: "load average" in text and "PID USER" in text and " top\n" in text + "\n")
    assert "bash" in shown
    await person.type("q")
    await person.prompt()


async def test_python_has_its_history_and_ends_by_control_d(client: Client) -> None:
    person = await Person.open(client)
    await person.prompt()
    await person.type("python -q\r")
    await person.until(">>>")
    await person.type("40 + 2\r")
    await person.until("\n42\n>>>")
    await person.type("'x' * 3\r")
    await person.until("\n'xxx'\n>>>")
    await person.type(UP + UP + "00\r")  # 40 + 200
    await person.until("\n240\n>>>")
    await person.type("\x04")
    await person.prompt()


async def test_less_pages_and_quits(client: Client) -> None:
    content = "".join(f"line {number}\n" for number in range(1, 201))
    await client.ask(type="save_file", sessionId="s", filename="lines.txt", content=content)
    person = await Person.open(client)
    await person.prompt()
    await person.type("less lines.txt\r")
    await person.until(lambda text: text.startswith("line 1\nline 2\n"))
    await person.type(" ")
    await person.until(lambda text: text.startswith("line 24\nline 25\n"))
    await person.type("G")
    await person.until("\nline 200\n")
    await person.type("q")
    await person.prompt()


@on_both_runtimes
async def test_a_new_size_is_told_and_signalled(client: Client) -> None:
    program = (
        "import os, signal as s; s.pthread_sigmask(s.SIG_BLOCK, {s.SIGWINCH}); print('rea' + 'dy', flush=True);"
        " s.sigwait({s.SIGWINCH}); print('told', *os.get_terminal_size())"
    )
    person = await Person.open(client, rows=10, cols=40)
    await person.type("stty size\r")
    await person.until("\n10 40\n")
    await person.type(f'python -c "{program}"\r')
    await person.until("ready")
    await person.resize(33, 111)
    await person.until("told 111 33")
    await person.type("stty size\r")
    await person.until("\n33 111\n")


@on_both_runtimes
async def test_control_c_interrupts_and_control_d_ends(client: Client) -> None:
    person = await Person.open(client)
    await person.type("sh -c 'echo sta''rted; exec cat'\r")
    await person.until("started")
    await person.type("\x03")
    await person.until("^C")
    await person.prompt()
    await person.type("\x04")
    assert (await person.until_closed())["cause"] == "exited"


# -- input and output ------------------------------------------------------------


async def test_what_is_typed_before_it_is_open_is_not_lost(client: Client) -> None:
    await client.send(type="open_terminal", sessionId="s", terminalId="early")
    for number in range(50):
        data = f"echo n{number} >>log\r"
        await client.send(type="terminal_input", sessionId="s", terminalId="early", data=data)
    await client.send(type="terminal_input", sessionId="s", terminalId="early", data="exit\r")
    person = Person(client, await client.receive(), "s")
    await person.until_closed()
    assert (await client.shell("cat log"))["output"] == "".join(f"n{number}\n" for number in range(50))


@on_both_runtimes
async def test_a_large_paste_is_complete_and_holds_up_nobody(client: Client) -> None:
    person = await Person.open(client, terminalId="pasting")
    await person.type("stty -echo; cat >pasted; sha256sum pasted; wc -c <pasted\r")
    await client.send(type="open_terminal", sessionId="s", terminalId="other", requestId="other")
    other = str((await client.answer_to("other"))["terminalId"])
    lines = "".join(f"{number:099d}\n" for number in range(10_486))
    await person.type(lines)
    await client.send(type="terminal_input", sessionId="s", terminalId=other, data="echo served $((6*7))\r")
    await person.type("\x04")
    seen: dict[str, str] = {person.id: "", other: ""}
    while "served 42" not in seen[other] or f"{len(lines)}\r\n" not in seen[person.id]:
        frame = await client.receive()
        seen[frame["terminalId"]] += frame["data"]
    assert hashlib.sha256(lines.encode()).hexdigest() in seen[person.id]


async def test_no_character_is_split(client: Client) -> None:
    program = "import os; [(os.write(1, bytes([b])), os.read(0, 1)) for b in 'Ä€😀'.encode()]"
    person = await Person.open(client)
    await person.prompt()
    await person.type(f'stty raw -echo; python -c "{program}"; stty sane\r')
    await person.type("." * 20)
    await person.until("Ä€😀")
    assert "\ufffd" not in person.data


async def test_what_is_no_utf8_is_replaced(client: Client) -> None:
    person = await Person.open(client)
    await person.type(r"printf 'a\377b\303'; exit" + "\r")
    await person.until_closed()
    assert "a\ufffdb\ufffd" in person.data


# -- several ---------------------------------------------------------------------


async def test_who_opens_one_twice_before_it_is_open_is_answered_twice(client: Client) -> None:
    for request_id in ("first", "second"):
        await client.send(type="open_terminal", sessionId="s", terminalId="t", requestId=request_id)
    opened = [await client.answer_to(request_id) for request_id in ("first", "second")]
    assert [(frame["type"], frame["terminalId"]) for frame in opened] == 2 * [("terminal_opened", "t")]
    await client.send(type="terminal_input", sessionId="s", terminalId="t", data="echo $((6 * 7))\r")
    await Person(client, opened[1], "s").until("\n42\n")


async def test_a_cell_a_command_and_a_terminal_run_at_the_same_time(client: Client) -> None:
    """Each waits for what comes after it: they could not end one after the other."""
    await client.shell("mkfifo one two")
    await client.send(type="execute_code", sessionId="s", code="print(open('one').read())", requestId="cell")
    await client.send(type="terminal_command", sessionId="s", command="cat two; echo three >one", requestId="command")
    await client.send(type="open_terminal", sessionId="s", terminalId="t", requestId="terminal")
    await client.send(type="terminal_input", sessionId="s", terminalId="t", data="echo four >two; exit\r")
    assert (await client.answer_to("command"))["output"] == "four\n"
    assert (await client.answer_to("cell"))["output"] == "three\n\n"
    assert (await client.answer_to("terminal"))["type"] == "terminal_opened"


async def test_terminals_of_one_session_are_apart_and_bounded(client: Client) -> None:
    people = [await Person.open(client, terminalId=f"t{n}") for n in range(1)]
    for number in range(1, 8):
        await client.send(type="open_terminal", sessionId="s", terminalId=f"t{number}", requestId=f"r{number}")
        people.append(Person(client, await client.answer_to(f"r{number}"), "s"))
    error = await client_error(client, type="open_terminal", sessionId="s", terminalId="t8", requestId="ninth")
    assert error["code"] == "limit_exceeded"
    assert "close_terminal" in error["error"]
    await people[3].send("close_terminal", requestId="close")
    assert (await client.answer_to("close"))["cause"] == "closed"
    await client.send(type="open_terminal", sessionId="s", terminalId="t8", requestId="again")
    assert (await client.answer_to("again"))["type"] == "terminal_opened"


async def client_error(client: Client, **message: object) -> Frame:
    await client.send(**message)
    answer = await client.answer_to(str(message["requestId"]))
    assert answer["type"] == "error", answer
    return answer


@pytest.mark.parametrize(
    "message",
    [
        {"type": "terminal_input", "data": "x"},
        {"type": "terminal_resize", "rows": 10, "cols": 10},
        {"type": "close_terminal"},
    ],
)
async def test_a_terminal_is_its_principals_alone(server: RunningServer, message: dict[str, object]) -> None:
    async with server.connect("owner") as owner, server.connect("stranger") as stranger:
        person = await Person.open(owner, terminalId="mine")
        await person.prompt()
        answers = [
            await stranger.ask(**message, sessionId="s", terminalId="mine"),
            await stranger.ask(**message, sessionId="none", terminalId="mine"),
        ]
        assert [answer.pop("sessionId") for answer in answers] == ["s", "none"]
        assert answers[0] == answers[1]
        assert answers[0]["code"] == "unknown_terminal"


# -- the end ---------------------------------------------------------------------


@on_both_runtimes
async def test_closing_kills_everything_that_was_started_in_it(client: Client) -> None:
    await client.ask(type="save_file", sessionId="s", filename="daemon.py", content=DAEMON)
    person = await Person.open(client, requestId="open")
    await person.prompt()
    await person.type(
        "sleep 7771 & nohup sleep 7772 >/dev/null 2>&1 & setsid -f sleep 7773; python daemon.py 7774;"
        " (trap '' HUP; sleep 7775; :) &"
        " env -i setsid -f sleep 7776;"
        " until [ $(ps -eo args | grep -c '^sleep 77[7]') = 6 ]; do :; done; echo rea''dy\r"
    )
    await person.until("ready")
    await person.send("close_terminal", requestId="close")
    closed = await person.until_closed()
    assert (closed["requestId"], closed["cause"]) == ("close", "closed")
    assert (await client.shell("ps -eo args | grep 'sleep 77[7]'"))["output"] == ""
    assert (await client.run("print(1)"))["output"] == "1\n"


def children(program: str) -> list[int]:
    """This process's own children that run a program."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            name, _, fields = (entry / "stat").read_text().partition("(")[2].rpartition(")")
            if name == program and int(fields.split()[1]) == os.getpid():
                found.append(int(entry.name))
    return found


@on_both_runtimes
async def test_the_loss_of_the_sandbox_ends_it(client: Client, runtime_name: str, server: RunningServer) -> None:
    person = await Person.open(client)
    await person.prompt()
    if runtime_name == "docker":
        remove = ["docker", "rm", "-f", *containers(server.data_dir)]
        await asyncio.to_thread(subprocess.run, remove, check=True, capture_output=True)
    else:
        for pid in children("bwrap"):
            os.kill(pid, signal.SIGKILL)
    assert (await person.until_closed())["cause"] == "sandbox_lost"
    assert (await Person.open(client, terminalId=person.id)).opened["reattached"] is False


async def test_the_end_of_the_session_ends_it(client: Client) -> None:
    person = await Person.open(client, requestId="open")
    await person.prompt()
    await client.send(type="close_session", sessionId="s", requestId="close")
    closed = await client.answer_to("open")
    while closed["type"] == "terminal_data":
        closed = await client.answer_to("open")
    assert (closed["type"], closed["cause"]) == ("terminal_closed", "session_closed")
    assert (await client.answer_to("close"))["type"] == "close_session_reply"
