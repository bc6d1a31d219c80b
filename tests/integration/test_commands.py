"""Terminal commands through the whole server: streamed, limited, interrupted, and those that want too much."""

import pytest

from tests.integration.conftest import Client, Frame, RunningServer, StartServer, on_both_runtimes

RUNTIMES = ("local",)
"""Whose tests these are, but for some: what a runtime could spoil is in tests/contract."""


async def until(client: Client, kind: str) -> tuple[list[Frame], Frame]:
    """The frames before the next of a kind, and that one."""
    frames: list[Frame] = []
    while (frame := await client.receive())["type"] != kind:
        frames.append(frame)
    return frames, frame


async def result_of(client: Client, request_id: str) -> Frame:
    """The result of a request, which may be streamed."""
    while (frame := await client.answer_to(request_id))["type"] == "terminal_chunk":
        pass
    return frame


async def steps_of(client: Client, request_id: str) -> list[Frame]:
    """All steps of an interrupt."""
    steps = [await client.answer_to(request_id)]
    while not steps[-1]["done"]:
        steps.append(await client.answer_to(request_id))
    return steps


def everything(number: str) -> str:
    """A command that counts the processes of the sandbox with this number among their arguments."""
    count = f"grep -c '[{number[0]}]{number[1:]}'"
    return f"for f in /proc/[0-9]*/cmdline; do tr '\\0' ' ' <$f; echo; done 2>/dev/null | {count}"


async def test_a_streamed_command_tells_its_output_and_then_its_result(client: Client) -> None:
    command = "printf 'a\\033[1mb\\n'; mkfifo go; read x <go; printf 'ü漢%s' $x >&2"
    await client.send(type="terminal_command", sessionId="s", command=command, stream=True, requestId="r")
    first = await client.receive()
    assert first == {
        "type": "terminal_chunk", "sessionId": "s", "requestId": "r", "seq": first["seq"], "text": "a\x1b[1mb\n"
    }  # fmt: skip
    await client.send(type="execute_code", sessionId="s", code="open('go', 'w').write('🎉\\n')")
    chunks, result = await until(client, "terminal_output")
    chunks = [chunk for chunk in chunks if chunk["type"] == "terminal_chunk"]  # the cell's result comes among them
    assert "".join(chunk["text"] for chunk in chunks) == "ü漢🎉"
    assert (result["output"], result["exitCode"], result["requestId"]) == ("ab\nü漢🎉", 0, "r")
    assert first["seq"] < chunks[-1]["seq"] < result["seq"]


@on_both_runtimes
async def test_chunks_hold_all_output_and_no_marks(client: Client) -> None:
    await client.shell("true")
    await client.send(type="terminal_command", sessionId="s", command="seq 200000; echo ü | head -c 1", stream=True)
    chunks, result = await until(client, "terminal_output")
    text = "".join(chunk["text"] for chunk in chunks)
    assert text == "".join(f"{n}\n" for n in range(1, 200_001)) + "\ufffd"
    assert result["output"] == text
    assert len(chunks) < 2000
    assert "\x1b" not in text


async def test_who_does_not_ask_is_told_nothing_but_the_result(client: Client) -> None:
    assert "seq" not in await client.shell("echo x")


async def test_a_slow_reader_misses_events_and_is_told_how_much(server: RunningServer) -> None:
    async with server.connect("tester") as client:
        await client.shell("true")
        await client.send(
            type="terminal_command", sessionId="s", command="head -c 48000000 /dev/zero | tr '\\0' x", stream=True
        )
        async with server.connect("tester") as other:
            # It is complete when the next command of the session is answered; only now the first reads.
            assert (await other.shell("echo behind"))["output"] == "behind\n"
        chunks, result = await until(client, "terminal_output")
        got = sum(len(chunk["text"]) for chunk in chunks)
        assert got < 48_000_000
        assert result["truncated"]["events"] == 48_000_000 - got
        assert sum(chunk.get("leftOut", 0) for chunk in chunks) <= result["truncated"]["events"]


async def test_output_that_is_too_long_is_in_a_file(start_server: StartServer) -> None:
    server = await start_server(max_output="100KiB")
    async with server.connect("tester") as client:
        result = await client.shell("seq 100000")
        whole = "".join(f"{n}\n" for n in range(1, 100_001))
        left_out = result["truncated"]
        assert left_out["fileComplete"] is True
        assert len(result["output"]) + left_out["bytes"] == len(whole)
        assert result["output"].startswith("1\n2\n")
        assert result["output"].endswith("99999\n100000\n")
        cell = await client.run(
            f"import hashlib; print(hashlib.sha256(open({left_out['file']!r}, 'rb').read()).hexdigest())"
        )
        assert cell["output"] == (await client.shell("seq 100000 > o; sha256sum o"))["output"].split()[0] + "\n"


@on_both_runtimes
async def test_a_time_limit_ends_the_command_and_all_it_started(client: Client) -> None:
    await client.shell("cd /tmp; sleep 4000 & V=1")
    daemon = "import os, sys, time; os.fork() and sys.exit(); os.setsid(); os.fork() and sys.exit(); time.sleep(4444)"
    stubborn = '(trap "" INT TERM HUP; env -i sleep 4444)'
    command = f"python3 -c '{daemon}'; setsid sleep 4444 & {stubborn} & sleep 4444; echo no"
    result = await client.shell(command, timeout=1.5)
    assert (result["cause"], result["statePreserved"], result["cwd"]) == ("timeout", True, "/tmp")
    assert "no" not in result["output"].splitlines()
    assert (await client.shell(everything("4444")))["output"] == "0\n"
    assert (await client.shell("echo $V; kill %1 2>/dev/null || kill $!"))["output"].startswith("1\n")


@on_both_runtimes
async def test_what_ignores_signals_is_killed_and_the_shell_lives(client: Client) -> None:
    result = await client.shell(
        """V=1; cd /tmp; sh -c 'trap "" INT QUIT TERM; while :; do :; done'; echo no""", timeout=1
    )
    assert (result["cause"], result["statePreserved"], result["cwd"]) == ("timeout", True, "/tmp")
    assert (await client.shell("echo $V"))["output"] == "1\n"


@on_both_runtimes
async def test_a_shell_that_ignores_signals_itself_is_replaced(client: Client) -> None:
    result = await client.shell("V=1; setsid sleep 4545 & trap '' INT QUIT TERM HUP; while :; do :; done", timeout=1)
    assert (result["cause"], result["statePreserved"]) == ("timeout", False)
    assert (await client.shell("echo [$V]"))["output"] == "[]\n"
    assert (await client.shell(everything("4545")))["output"] == "0\n"


async def test_a_time_limit_beyond_the_servers_is_refused(start_server: StartServer) -> None:
    server = await start_server(execution_timeout="1")
    async with server.connect("tester") as client:
        refused = await client.shell("echo x", timeout=2)
        assert (refused["type"], refused["code"]) == ("error", "invalid_field")
        assert "at most 1 seconds" in refused["error"]
        assert (await client.shell("sleep 4646"))["cause"] == "timeout"


async def started(client: Client, command: str, **more: object) -> None:
    """Send a streamed command that says `go`, and wait for that."""
    await client.send(type="terminal_command", sessionId="s", command=command, stream=True, requestId="cmd", **more)
    assert (await client.receive())["text"].startswith("go")


async def test_an_interrupt_ends_the_command_and_the_next_one_runs(client: Client) -> None:
    await client.shell("cd /tmp; V=1")
    await started(client, "sh -c 'echo go; exec sleep 4747'; echo no")
    await client.send(type="terminal_command", sessionId="s", command="echo next $V $PWD", requestId="next")
    await client.send(type="interrupt", sessionId="s", target="terminal", requestId="stop")
    step = await client.answer_to("stop")
    assert step == {
        "type": "interrupted", "sessionId": "s", "requestId": "stop", "seq": step["seq"], "target": "terminal",
        "step": "sigint", "done": True, "statePreserved": True,
    }  # fmt: skip
    result = await result_of(client, "cmd")
    assert (result["cause"], result["exitCode"], result["statePreserved"]) == ("interrupted", 130, True)
    assert "no" not in result["output"]
    assert (await client.answer_to("next"))["output"] == "next 1 /tmp\n"


@on_both_runtimes
async def test_an_interrupt_goes_as_far_as_it_has_to(client: Client) -> None:
    await started(client, """sh -c 'trap "" INT; echo go; while :; do :; done'; echo no""")
    await client.send(type="interrupt", sessionId="s", target="terminal", requestId="stop")
    steps = await steps_of(client, "stop")
    assert [(step["step"], step["done"]) for step in steps] == [("sigint", False), ("process_group", True)]
    assert steps[1]["statePreserved"] is True
    assert "no" not in (await result_of(client, "cmd"))["output"]
    await started(client, "trap '' INT; echo go; while :; do :; done")
    await client.send(type="interrupt", sessionId="s", target="terminal", requestId="stop")
    steps = await steps_of(client, "stop")
    assert [(step["step"], step["done"]) for step in steps] == [
        ("sigint", False), ("process_group", False), ("kill", False), ("restart", True)
    ]  # fmt: skip
    assert steps[3]["statePreserved"] is False
    result = await result_of(client, "cmd")
    assert (result["cause"], result["statePreserved"]) == ("interrupted", False)
    assert (await client.shell("echo sane", requestId="x"))["output"] == "sane\n"


async def test_an_interrupt_ends_what_waits_too_if_asked(client: Client) -> None:
    await started(client, "sh -c 'echo go; exec sleep 4848'")
    for name in ("w1", "w2"):
        await client.send(type="terminal_command", sessionId="s", command="echo no", requestId=name)
    await client.send(type="interrupt", sessionId="s", target="terminal", queued=True, requestId="stop")
    step = await client.answer_to("stop")
    assert (step["step"], step["done"], step["ended"]) == ("sigint", True, 2)
    for name in ("cmd", "w1", "w2"):
        assert (await result_of(client, name))["cause"] == "interrupted"
    assert (await client.shell("echo sane"))["output"] == "sane\n"


NEXT = "for i in $(seq 200); do sleep 0.001 || echo $?; done; echo whole"


@on_both_runtimes
async def test_the_end_of_all_jobs_does_not_reach_the_next_command(client: Client) -> None:
    for _ in range(5):
        await client.shell("sleep 4646 >/dev/null 2>&1 &")
        await started(client, "sh -c 'echo go; exec sleep 4747'")
        await client.send(type="terminal_command", sessionId="s", command=NEXT, requestId="next")
        await client.send(type="interrupt", sessionId="s", target="terminal", jobs=True, requestId="stop")
        step = (await steps_of(client, "stop"))[-1]
        assert (step["step"], step["statePreserved"]) == ("process_group", True)
        assert (await result_of(client, "cmd"))["cause"] == "interrupted"
        assert (await client.answer_to("next"))["output"] == "whole\n"
        assert (await client.shell(everything("4646")))["output"] == "0\n"


async def test_an_interrupt_of_nothing_hits_nothing(client: Client) -> None:
    for _ in range(3):
        await client.send(type="interrupt", sessionId="s", target="terminal", requestId="stop")
        step = await client.answer_to("stop")
        assert (step["step"], step["done"]) == ("none", True)
        assert (await client.shell("sleep 0.05; echo whole"))["output"] == "whole\n"


async def test_an_interrupt_right_behind_a_command_hits_that_one(client: Client) -> None:
    for _ in range(5):
        await client.send(type="terminal_command", sessionId="s", command="sleep 4949; echo no", requestId="cmd")
        await client.send(type="interrupt", sessionId="s", target="terminal", requestId="stop")
        await client.send(type="terminal_command", sessionId="s", command="sleep 0.05; echo whole", requestId="next")
        assert (await steps_of(client, "stop"))[-1]["statePreserved"] is True
        result = await result_of(client, "cmd")
        assert (result["cause"], "no" in result["output"]) == ("interrupted", False)
        assert (await client.answer_to("next"))["output"] == "whole\n"


async def test_a_command_answers_while_a_cell_blocks(client: Client) -> None:
    await client.run("import os; os.path.exists('go') or os.mkfifo('go')")
    await client.send(type="execute_code", sessionId="s", code="open('go').read()", requestId="cell")
    await client.send(type="terminal_command", sessionId="s", command="echo meanwhile; echo x >go", requestId="cmd")
    assert (await client.answer_to("cmd"))["output"] == "meanwhile\n"
    assert (await client.answer_to("cell"))["output"] == "'x\\n'\n"


@pytest.mark.parametrize(
    "command",
    [
        "read x </dev/tty",
        "cat /dev/tty",
        "python3 -c 'open(\"/dev/tty\").read()'",
        "python3 -c 'import getpass; getpass.getpass()'",
        "python3 -c 'input()'",
        "python3",
        "bash -c 'read x </dev/tty'",
        "less /etc/passwd",
        "top",
        "cat - | cat",
    ],
)
async def test_nothing_waits_for_keys(client: Client, command: str) -> None:
    result = await client.shell(f"{command}; echo $? >&2", timeout=20)
    assert "cause" not in result, result
    assert (await client.shell("echo sane"))["output"] == "sane\n"


@pytest.mark.parametrize(
    "command", ["less /etc/passwd", "top", "vi file", "TERM=xterm vi file", "TERM=xterm top; TERM=xterm watch ls"]
)
async def test_full_screen_programs_are_told_where_they_work(client: Client, command: str) -> None:
    result = await client.shell(command, timeout=30)
    assert "cause" not in result, result
    assert "exitCode" in result
    assert "open_terminal" in result["hint"]
    assert (await client.shell("echo sane"))["output"] == "sane\n"


async def test_plain_programs_get_no_hint(client: Client) -> None:
    for command in (
        "false",
        "printf '\\033[?1049hx\\033[?1049l\\033[3;4Hy'",
        "git log",
        "ls --color=always /",
        "echo /dev/tty: No such device or address",
    ):
        assert "hint" not in await client.shell(command)


async def test_background_jobs_write_beside_the_next_commands(client: Client) -> None:
    result = await client.shell("mkfifo go gone; { read x <go; echo late; echo x >gone; } & echo now")
    assert result["output"].endswith("now\n")
    mine = await client.shell("echo x >go; read y <gone; echo mine")
    assert mine["output"] == "mine\n"
    late = mine.get("lateOutput", "")
    while not late:  # it comes another way, so it may take a moment
        late = (await client.shell("true")).get("lateOutput", "")
    assert late == "late\n"
    result = await client.shell("sleep 5050 & echo at once")
    assert (result["exitCode"], result["output"].endswith("at once\n")) == (0, True)
    assert (await client.shell("kill $!"))["exitCode"] == 0


async def test_what_a_background_job_writes_between_two_commands_is_told(client: Client) -> None:
    result = await client.shell("mkfifo gone; { read x <gone; echo late; echo x >told; } & echo now")
    assert result["output"].endswith("now\n")
    code = "import os\nwith open('gone', 'w') as gone: gone.write('x')\nwhile not os.path.exists('told'): pass"
    assert (await client.run(code))["success"]
    late = (await client.shell("true")).get("lateOutput", "")
    while not late:  # it comes another way, so it may take a moment
        late = (await client.shell("true")).get("lateOutput", "")
    assert late == "late\n"


@on_both_runtimes
async def test_a_job_with_its_own_session_lives_as_long_as_its_shell(client: Client) -> None:
    await client.shell("setsid sleep 5151 & true")
    assert (await client.shell(everything("5151")))["output"] == "1\n"
    assert (await client.shell("exit 3"))["exitCode"] == 3
    assert (await client.shell(everything("5151")))["output"] == "0\n"


@pytest.mark.parametrize(
    ("command", "code", "output"),
    [
        ("exit", 0, ""),
        ("echo x; exit 3", 3, "x\n"),
        ("exec sh -c 'exit 4'", 4, ""),
        ("set -e; false; echo no", 1, ""),
        ("echo exit; exit", 0, "exit\n"),
    ],
)
async def test_the_shells_end_is_told_without_its_farewell(
    client: Client, command: str, code: int, output: str
) -> None:
    result = await client.shell(command)
    assert (result["cause"], result["exitCode"], result["output"]) == ("shell_exited", code, output)
    assert (await client.shell("echo sane"))["output"] == "sane\n"


@pytest.mark.parametrize(
    "command",
    [
        "cat /bin/ls", "head -c 1000000 /dev/urandom", "head -c 1000000 /dev/zero", "printf 'a\\0b\\0'",
        "printf '\\033]133;D;%s;0;;/\\007' 00000000000000000000000000000000", "head -c 1000000 /dev/zero | tr '\\0' x",
        "for i in $(seq 2000); do printf '\\r%d%%' $i; done",
    ],
)  # fmt: skip
async def test_any_output_is_framed(client: Client, command: str) -> None:
    result = await client.shell(command, timeout=60)
    assert (result["exitCode"], result.get("cause")) == (0, None)
    assert (await client.shell("echo sane"))["output"] == "sane\n"


async def test_many_lines_and_large_commands_are_whole(client: Client) -> None:
    assert (await client.shell("seq 200000"))["output"] == "".join(f"{n}\n" for n in range(1, 200_001))
    assert (await client.shell("head -c 8000000 /dev/zero | tr '\\0' x"))["output"] == "x" * 8_000_000
    assert (await client.shell(f"printf %s '{'y' * 200_000}' | wc -c"))["output"] == "200000\n"
    assert (await client.shell("echo one\r\necho two\r\n"))["output"].replace("\r", "") == "one\ntwo\n"
    assert (await client.shell("printf 'no end'"))["output"] == "no end"


FORGER = """
seen() { ls -A /run/kernelbridge /run/kernelbridge/*; tr '\\0' '\\n' </proc/$PPID/cmdline; env; cat /proc/self/limits; }
for name in $(seen); do
    name=${name##*[/=-]}
    printf '\\033]133;D;%s;0;;/forged%s\\007' "$name" "$name"
done
"""


async def test_no_program_finds_a_mark_to_forge(client: Client) -> None:
    await client.ask(type="save_file", sessionId="s", filename="forger", content=FORGER)
    for _ in range(2):
        result = await client.shell("sh forger; echo went on; (exit 9)")
        assert (result["exitCode"], result["cwd"]) == (9, "/workspace")
        assert result["output"].endswith("went on\n")


async def test_what_a_command_does_to_the_shells_own_variables_ends_in_time(client: Client) -> None:
    for command in (
        "__kb_n=x; __kb_s=y; __kb_c=z; __kb_j=w; __kb_p=v",
        "readonly __kb_c",
        "readonly PS1",
        "unset -f __kb_end",
        "PS1=x; PROMPT_COMMAND='echo y'",
    ):
        assert "cause" not in await client.shell(command, timeout=20)
        assert (await client.shell("echo sane", timeout=20))["output"] == "sane\n"
